"""The opening handshake of a WebSocket (RFC 6455, section 4; over HTTP/2 RFC 8441), and what it agrees on.

A `Handshake` is made from a request that asks for a WebSocket, and says how to accept it: the status, the
headers, and the parameters of permessage-deflate (RFC 7692), if both sides want it. Rejecting it takes an
ordinary response.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trigi.exceptions import BadRequest, InvalidMessage

from .events import Headers, Request
from .headers import TOKEN, tokens

__all__ = ["UPGRADE_REQUIRED_HEADERS", "DeflateParameters", "Handshake"]

UPGRADE_REQUIRED_HEADERS: Final = (
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-version", b"13"),
)
"""What the answer to a `BadRequest` with `status_hint` 426 says (RFC 6455, 4.4; RFC 9110, 15.5.22).

On HTTP/2 only the last of the three may be sent: the others are fields of a connection (RFC 9113, 8.2.2).
"""

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

FORBIDDEN_IN_ACCEPT = frozenset(
    {
        b"connection",
        b"content-length",  # neither a 101 nor the 200 to a CONNECT may have it (RFC 9110, 8.6)
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",  # ASGI WebSocket 2.5, "Accept": a key of its own
        b"transfer-encoding",
        b"upgrade",
    }
)
"""The handshake's own headers, which an application can't set."""

KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
"""16 bytes in base64."""

# RFC 6455, 9.1. What is inside quotes must be a token as well: only its characters can be escaped there.
_TCHAR = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_TCHAR}+)(?:[ \t]*=[ \t]*(?:({_TCHAR}+)|"((?:\\?{_TCHAR})+)"))?')
# One element of the list with the comma after it. Empty elements mean nothing (RFC 9110, 5.6.1.2).
_EXTENSION = re.compile(rf"[ \t]*(?:({_TCHAR}+)((?:{_PARAMETER.pattern})*)[ \t]*)?(?:,|\Z)")

# RFC 7692, 7.1: the parameters an offer may have and their values; `None` is no value. server_max_window_bits
# could be 8, too, but zlib can't compress with that, and an offer that can't be kept is to be declined.
_DEFLATE_PARAMETERS: Mapping[str, frozenset[str | None]] = {
    "server_no_context_takeover": frozenset({None}),
    "client_no_context_takeover": frozenset({None}),
    "server_max_window_bits": frozenset({"9", "10", "11", "12", "13", "14", "15"}),
    "client_max_window_bits": frozenset({None, "8", "9", "10", "11", "12", "13", "14", "15"}),
}

_Offer = tuple[str, list[tuple[str, str | None]]]


@dataclass(frozen=True, slots=True)
class DeflateParameters:
    """What both sides keep to when they compress (RFC 7692, 7.1).

    The client's window is not among them: the largest reads what was written with any.

    Attributes:
        server_max_window_bits: 9 to 15; the server may look back 2 to the power of it bytes.
        server_no_context_takeover: whether each message of the server's is compressed on its own.
        client_no_context_takeover: whether each message of the client's is.
    """

    server_max_window_bits: int = 15
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False


class Handshake:
    """The opening handshake of one request (RFC 6455, 4.2; RFC 8441, 5).

    Attributes:
        subprotocols: what the client offers, in its order, from all `Sec-WebSocket-Protocol` lines.
        status: of the response that accepts: 101, or 200 on HTTP/2.

    Raises:
        BadRequest: the request does not open a WebSocket. `status_hint` is 426 if the version is not 13, and
            then the response must have `UPGRADE_REQUIRED_HEADERS`; otherwise it is 400.
    """

    def __init__(self, request: Request) -> None:
        headers = request.headers
        upgrade = request.http_version != "2"
        if upgrade:
            _check_upgrade(request)
        elif request.method != "CONNECT":
            raise BadRequest("a WebSocket over HTTP/2 is asked for with CONNECT")
        if _values(headers, b"sec-websocket-version") != [b"13"]:
            raise BadRequest("Sec-WebSocket-Version is not 13", status_hint=426)
        self.status = 101 if upgrade else 200
        self.subprotocols = _subprotocols(headers)
        self._key = _key(headers) if upgrade else None
        self._offers = _offers(headers)

    def accept(
        self, subprotocol: str | None, headers: Headers, *, deflate: bool
    ) -> tuple[Headers, DeflateParameters | None]:
        """The response that accepts, with `status` (RFC 6455, 4.2.2).

        Args:
            subprotocol: the one of `subprotocols` that the application chose, or `None`.
            headers: the application's, valid as header fields. They come last, in their order.
            deflate: whether the server would compress, should the client offer it.

        Returns:
            The response's headers, and what a `WebSocketCodec` has to know.

        Raises:
            InvalidMessage: the subprotocol was not offered, or a header is the handshake's own.
        """
        if subprotocol is not None and subprotocol not in self.subprotocols:
            raise InvalidMessage(f"websocket.accept: the client did not offer subprotocol {subprotocol!r}")
        for name, _ in headers:
            if name.startswith(b":") or name.lower() in FORBIDDEN_IN_ACCEPT:
                raise InvalidMessage(f"websocket.accept: header {name!r} is not the application's to send")
        response: Headers = []
        if self._key is not None:
            digest = hashlib.sha1(self._key + ACCEPT_GUID, usedforsecurity=False).digest()
            response.append((b"upgrade", b"websocket"))
            response.append((b"connection", b"Upgrade"))
            response.append((b"sec-websocket-accept", base64.b64encode(digest)))
        if subprotocol is not None:
            response.append((b"sec-websocket-protocol", subprotocol.encode("ascii")))
        agreed = _agree(self._offers) if deflate else None
        if agreed is None:
            return response + headers, None
        response.append((b"sec-websocket-extensions", _deflate_response(agreed)))
        return response + headers, DeflateParameters(
            server_max_window_bits=int(agreed.get("server_max_window_bits") or 15),
            server_no_context_takeover="server_no_context_takeover" in agreed,
            client_no_context_takeover="client_no_context_takeover" in agreed,
        )


def _check_upgrade(request: Request) -> None:
    """Refuse what is no upgrade to a WebSocket on HTTP/1.1 (RFC 6455, 4.2.1, points 1 to 4)."""
    if request.http_version != "1.1" or request.method != "GET":
        raise BadRequest("a WebSocket is asked for with GET and HTTP/1.1")
    if b"websocket" not in tokens(request.headers, b"upgrade"):
        raise BadRequest("Upgrade does not say websocket")
    if b"upgrade" not in tokens(request.headers, b"connection"):
        raise BadRequest("Connection does not say upgrade")
    if request.has_body:  # its bytes could be taken for frames
        raise BadRequest("a request for a WebSocket has no body")


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for field, value in headers if field == name]


def _key(headers: Headers) -> bytes:
    """The client's nonce, as it was sent (RFC 6455, 4.2.1, point 5)."""
    values = _values(headers, b"sec-websocket-key")
    if len(values) != 1 or not KEY.fullmatch(values[0]):
        raise BadRequest("Sec-WebSocket-Key is not 16 bytes in base64, once")
    return values[0]


def _subprotocols(headers: Headers) -> list[str]:
    """RFC 6455, 11.3.4: `1#token`, in one line or several."""
    values = _values(headers, b"sec-websocket-protocol")
    elements = [element.strip(b" \t") for element in b",".join(values).split(b",")]
    names = [element for element in elements if element]
    if (values and not names) or not all(map(TOKEN.fullmatch, names)):
        raise BadRequest("Sec-WebSocket-Protocol is not a list of tokens")
    return [name.decode("ascii") for name in names]


def _offers(headers: Headers) -> list[_Offer]:
    """Extensions with their parameters (RFC 6455, 9.1), in one line or several; values without quotes."""
    values = _values(headers, b"sec-websocket-extensions")
    joined = b",".join(values).decode("latin-1")
    offers: list[_Offer] = []
    position = 0
    while position < len(joined):
        element = _EXTENSION.match(joined, position)
        if element is None:
            raise BadRequest("Sec-WebSocket-Extensions is not a list of extensions")
        position = element.end()
        if element[1]:
            parameters = [
                (name, token or quoted.replace("\\", "") or None)
                for name, token, quoted in _PARAMETER.findall(element[2])
            ]
            offers.append((element[1], parameters))
    if values and not offers:
        raise BadRequest("Sec-WebSocket-Extensions is empty")
    return offers


def _agree(offers: list[_Offer]) -> dict[str, str | None] | None:
    """The first offer of permessage-deflate that can be kept, or `None` (RFC 7692, 5.1 and 7.1)."""
    for extension, parameters in offers:
        agreed = dict(parameters)
        if (
            extension == "permessage-deflate"
            and len(agreed) == len(parameters)  # nothing twice
            and all(value in _DEFLATE_PARAMETERS.get(name, ()) for name, value in parameters)
        ):
            return agreed
    return None


def _deflate_response(agreed: Mapping[str, str | None]) -> bytes:
    """All that was offered, but a `client_max_window_bits` without a number: it leaves that to the server."""
    parts = ["permessage-deflate"]
    for name, value in agreed.items():
        if value is not None:
            parts.append(f"{name}={value}")
        elif name != "client_max_window_bits":
            parts.append(name)
    return "; ".join(parts).encode("ascii")
