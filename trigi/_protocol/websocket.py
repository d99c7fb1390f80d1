"""WebSocket: the opening handshake (RFC 6455, section 4), and messages and frames (sections 5 to 8, RFC 7692).

`Handshake` is what a request that asks for a WebSocket has to say and how it is accepted, on HTTP/1.1 (RFC 6455)
and on HTTP/2 (RFC 8441). `WebSocketCodec` is everything after that: bytes become messages, and messages bytes.

wsproto reads the frames: headers, masks, UTF-8, close codes. What it leaves to its user is here: messages made
whole, and a bound for all that a peer can make grow. Two extensions of wsproto's frame decoder do the bounding,
because that is where a size is known before the memory is taken: `FrameLimits` sees the size that a frame's header
announces, `Deflate` sees each piece while it is inflated. Writing needs no help: a server's frame is two to ten
bytes and the payload as it is, since only clients mask (section 5.1).
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as PingReceived
from wsproto.events import Pong as PongReceived
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from trigi.exceptions import BadRequest, InvalidMessage

from .events import Headers, Request

__all__ = ["UPGRADE_REQUIRED_HEADERS", "Closed", "Handshake", "Message", "Pong", "WSEvent", "WebSocketCodec"]

UPGRADE_REQUIRED_HEADERS: Final = (
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-version", b"13"),
)
"""What the answer to a `BadRequest` with `status_hint` 426 says (RFC 6455, 4.4; RFC 9110, 15.5.22).

On HTTP/2 only the last of the three may be sent: the others are fields of the connection (RFC 9113, 8.2.2).
"""

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

SERVER_WINDOW_BITS = 12
"""A window of 4 KiB to compress with. Messages are mostly shorter, and with `MEMORY_LEVEL` it makes 32 KiB of state
a connection instead of zlib's usual 256 KiB. A client need not be told of a smaller window than was agreed."""

MEMORY_LEVEL = 5
"""Of zlib's 1 to 9: 16 KiB for its hash table."""

COMPRESS_FROM = 64
"""Messages of fewer bytes are sent as they are (RFC 7692, 6): compressing them costs more than it saves. Not 0:
zlib has nothing to flush for an empty message, and its marker would be missing."""

INFLATE_SLICE = 4096
"""Bytes that zlib is given at once. What follows the last block of a DEFLATE stream is copied, once for each stream
in a message (RFC 7692, 7.2.3.5), so that long pieces full of short streams would cost their square."""

FORBIDDEN_IN_ACCEPT = frozenset(
    {
        b"connection",
        b"content-length",  # a 101 has no content (RFC 9110, 8.6), nor has the 200 to a CONNECT
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",  # ASGI WebSocket 2.5, "Accept": it is a key of its own
        b"transfer-encoding",
        b"upgrade",
    }
)

_TCHAR = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110, 5.6.2
_TOKEN = re.compile(rf"{_TCHAR}+")
# RFC 6455, 9.1: what is inside quotes must be a token too, so that nothing but a token's characters can be escaped.
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_TCHAR}+)(?:[ \t]*=[ \t]*(?:({_TCHAR}+)|"((?:\\?{_TCHAR})+)"))?')
# One element of a list and the comma after it. Empty elements are allowed and mean nothing (RFC 9110, 5.6.1.2).
_EXTENSION = re.compile(rf"[ \t]*(?:({_TCHAR}+)((?:{_PARAMETER.pattern})*)[ \t]*)?(?:,|\Z)")
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64

# RFC 7692, 7.1: the parameters an offer may have, and their values, where `None` is no value. 8 is a valid value of
# server_max_window_bits too, but zlib has no such compressor, and an offer that can't be kept is to be declined.
_DEFLATE_PARAMETERS: Mapping[str, frozenset[str | None]] = {
    "server_no_context_takeover": frozenset({None}),
    "client_no_context_takeover": frozenset({None}),
    "server_max_window_bits": frozenset({"9", "10", "11", "12", "13", "14", "15"}),
    "client_max_window_bits": frozenset({None, "8", "9", "10", "11", "12", "13", "14", "15"}),
}

_NO_BITS = RsvBits(False, False, False)
_RSV1 = RsvBits(True, False, False)

# The first byte of a frame (RFC 6455, 5.2; RFC 7692, 6): none of the server's is a fragment.
_FIN = 0x80
_COMPRESSED = 0x40

_REASONS: Mapping[int, str] = {1007: "invalid payload data", 1009: "message too big"}


class Handshake:
    """The opening handshake of one request that asks for a WebSocket (RFC 6455, 4.2; RFC 8441, 5).

    Attributes:
        subprotocols: what the client offers, in its order, from all `Sec-WebSocket-Protocol` fields.
        status: of the response that accepts: 101, or 200 on HTTP/2.

    Raises:
        BadRequest: the handshake is not one. With `status_hint` 426 the response must have
            `UPGRADE_REQUIRED_HEADERS`; otherwise it is 400.
    """

    def __init__(self, request: Request) -> None:
        headers = request.headers
        self._key: bytes | None = None
        self.status = 200
        if request.http_version != "2":
            self._check_upgrade(request)
            self.status = 101
        elif request.method != "CONNECT":
            raise BadRequest("a WebSocket over HTTP/2 asks with CONNECT")
        if _values(headers, b"sec-websocket-version") != [b"13"]:
            raise BadRequest("Sec-WebSocket-Version is not 13", status_hint=426)
        if self.status == 101:
            self._key = _key(headers)
        self.subprotocols = _subprotocols(headers)
        self._offers = _offers(headers)

    @staticmethod
    def _check_upgrade(request: Request) -> None:
        """Refuse what is not an HTTP/1.1 upgrade to a WebSocket (RFC 6455, 4.2.1, points 1 to 4)."""
        if request.http_version != "1.1" or request.method != "GET":
            raise BadRequest("a WebSocket asks with GET and HTTP/1.1")
        if "websocket" not in _list(request.headers, b"upgrade"):
            raise BadRequest("Upgrade does not say websocket")
        if "upgrade" not in _list(request.headers, b"connection"):
            raise BadRequest("Connection does not say upgrade")
        if request.has_body:  # its bytes could be read as frames
            raise BadRequest("a request for a WebSocket has no body")

    def accept(
        self,
        subprotocol: str | None,
        headers: Headers,
        *,
        deflate: bool,
        message_size_limit: float,
    ) -> tuple[Headers, list[Extension]]:
        """The response that accepts (RFC 6455, 4.2.2), with status `self.status`.

        Args:
            subprotocol: the one of `subprotocols` that the application chose, or `None`.
            headers: the application's, valid as header fields. They come last, in their order.
            deflate: whether permessage-deflate is used if the client offers it.
            message_size_limit: bytes that one message may be inflated to; `inf` is no limit.

        Returns:
            The response's headers, and the extensions for a `WebSocketCodec`.

        Raises:
            InvalidMessage: the subprotocol was not offered, or a header is the protocol's own.
        """
        if subprotocol is not None and subprotocol not in self.subprotocols:
            raise InvalidMessage(f"'subprotocol': {subprotocol!r} was not offered by the client")
        for name, _ in headers:
            if name.startswith(b":") or name.lower() in FORBIDDEN_IN_ACCEPT:
                raise InvalidMessage(f"'headers': {name!r} is not allowed when a WebSocket is accepted")
        response: Headers = []
        if self._key is not None:
            digest = hashlib.sha1(self._key + ACCEPT_GUID, usedforsecurity=False).digest()
            response.append((b"upgrade", b"websocket"))
            response.append((b"connection", b"Upgrade"))
            response.append((b"sec-websocket-accept", base64.b64encode(digest)))
        if subprotocol is not None:
            response.append((b"sec-websocket-protocol", subprotocol.encode("ascii")))
        extensions: list[Extension] = []
        agreed = self._agree() if deflate else None
        if agreed is not None:
            response.append((b"sec-websocket-extensions", _deflate_response(agreed)))
            extensions.append(Deflate(agreed, message_size_limit))
        return response + headers, extensions

    def _agree(self) -> dict[str, str | None] | None:
        """The parameters of the first offer of permessage-deflate that can be kept (RFC 7692, 5.1 and 7.1)."""
        for name, parameters in self._offers:
            agreed = dict(parameters)
            if (
                name == "permessage-deflate"
                and len(agreed) == len(parameters)  # none twice
                and all(value in _DEFLATE_PARAMETERS.get(key, ()) for key, value in parameters)
            ):
                return agreed
        return None


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for field, value in headers if field == name]


def _list(headers: Headers, name: bytes) -> list[str]:
    """The elements of a comma-separated field, in lower case."""
    joined = b",".join(_values(headers, name)).decode("latin-1").lower()
    return [element.strip(" \t") for element in joined.split(",")]


def _key(headers: Headers) -> bytes:
    """The client's nonce, as it was sent (RFC 6455, 4.2.1, point 5)."""
    values = _values(headers, b"sec-websocket-key")
    if len(values) != 1 or not _KEY.fullmatch(values[0]):
        raise BadRequest("Sec-WebSocket-Key is not one value of 16 bytes in base64")
    return values[0]


def _subprotocols(headers: Headers) -> list[str]:
    """The elements of all `Sec-WebSocket-Protocol` fields (RFC 6455, 11.3.4: `1#token`)."""
    values = _values(headers, b"sec-websocket-protocol")
    joined = b",".join(values).decode("latin-1")
    names = [name for element in joined.split(",") if (name := element.strip(" \t"))]
    if (values and not names) or not all(map(_TOKEN.fullmatch, names)):
        raise BadRequest("Sec-WebSocket-Protocol is malformed")
    return names


def _offers(headers: Headers) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The names and parameters in all `Sec-WebSocket-Extensions` fields (RFC 6455, 9.1), quotes removed."""
    values = _values(headers, b"sec-websocket-extensions")
    joined = b",".join(values).decode("latin-1")
    offers = []
    position = 0
    while position < len(joined):
        element = _EXTENSION.match(joined, position)
        if element is None:
            raise BadRequest("Sec-WebSocket-Extensions is malformed")
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


def _deflate_response(agreed: Mapping[str, str | None]) -> bytes:
    """Everything in the offer is granted, except a `client_max_window_bits` that leaves the number to the server."""
    parts = ["permessage-deflate"]
    for name, value in agreed.items():
        if value is not None:
            parts.append(f"{name}={value}")
        elif name != "client_max_window_bits":
            parts.append(name)
    return "; ".join(parts).encode("ascii")


class FrameLimits(Extension):
    """Refuses frames by their header, before their payload comes.

    wsproto calls `frame_inbound_header` again for a header that came in pieces, so what it changes must be the
    same when it is changed twice; counting is for `frame_inbound_complete`.

    Attributes:
        reason: why a frame was refused, or empty.
    """

    name = ""

    def __init__(self, message_size_limit: float, frame_count_limit: float) -> None:
        self.reason = ""
        self._message_size_limit = message_size_limit
        self._frame_count_limit = frame_count_limit
        self._is_control = False
        self._is_compressed = False
        self._announced = 0
        # Of the message that has begun and not ended: whole frames, and bytes in them.
        self._frames = 0
        self._size = 0

    def enabled(self) -> bool:
        """Always."""
        return True

    def offer(self) -> bool:
        """Nothing: it is no extension of the protocol."""
        return False  # pragma: no cover – asked of clients only

    def frame_inbound_header(
        self, _proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Check the order of the frames (RFC 6455, 5.4), their number, and the size of what is not compressed."""
        self._is_control = opcode.iscontrol()
        if self._is_control:
            return _NO_BITS
        if (opcode is Opcode.CONTINUATION) != (self._frames > 0):
            self.reason = "continuation without a message" if self._frames == 0 else "expected a continuation"
            return CloseReason.PROTOCOL_ERROR
        if self._frames >= self._frame_count_limit:
            self.reason = "message in too many frames"
            return CloseReason.MESSAGE_TOO_BIG
        if self._frames == 0:
            self._is_compressed = rsv.rsv1
        self._announced = payload_length
        # What is compressed may be larger than what it inflates to, which is what counts: see Deflate.
        if not self._is_compressed and self._size + payload_length > self._message_size_limit:
            return CloseReason.MESSAGE_TOO_BIG
        return _NO_BITS

    def frame_inbound_complete(self, _proto: FrameDecoder | FrameProtocol, fin: bool) -> None:
        """Count the frame."""
        if not self._is_control:
            self._frames = 0 if fin else self._frames + 1
            self._size = 0 if fin else self._size + self._announced


class Deflate(Extension):
    """permessage-deflate (RFC 7692, 7), as a server that has agreed to parameters.

    Inflating stops at one byte more than a message may have, however much more there would be.
    """

    name = "permessage-deflate"

    def __init__(self, agreed: Mapping[str, str | None], message_size_limit: float) -> None:
        self._message_size_limit = int(min(message_size_limit, sys.maxsize - 1))  # zlib counts no further
        self._window_bits = min(SERVER_WINDOW_BITS, int(agreed.get("server_max_window_bits") or 15))
        self._client_takeover = "client_no_context_takeover" not in agreed
        self._server_takeover = "server_no_context_takeover" not in agreed
        self._compressor: Any = None  # zlib's types have no public names
        self._inflater: Any = None
        self._is_control = False
        self._is_compressed = False
        self._room = 0  # bytes that the message may still inflate to

    def enabled(self) -> bool:
        """Always: it exists only when it was agreed."""
        return True

    def offer(self) -> bool:
        """Nothing: a server answers."""
        return False  # pragma: no cover – asked of clients only

    def frame_inbound_header(
        self, _proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, _payload_length: int
    ) -> RsvBits:
        """RSV1 belongs to the first frame of a message alone (RFC 7692, 6): elsewhere wsproto refuses it."""
        self._is_control = opcode.iscontrol()
        if self._is_control or opcode is Opcode.CONTINUATION:
            return _NO_BITS
        self._is_compressed = rsv.rsv1
        self._room = self._message_size_limit
        if rsv.rsv1 and self._inflater is None:
            self._inflater = _inflater()
        return _RSV1

    def frame_inbound_payload_data(
        self, _proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """Inflate a piece of a frame."""
        return data if self._is_control or not self._is_compressed else self._inflate(data)

    def frame_inbound_complete(
        self, _proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """Inflate what is left when a message ends (RFC 7692, 7.2.2)."""
        if self._is_control or not self._is_compressed or not fin:
            return None
        rest = self._inflate(b"\x00\x00\xff\xff")
        if not self._client_takeover:
            self._inflater = None
        return rest

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        inflated = []
        for start in range(0, len(data), INFLATE_SLICE):
            piece = data[start : start + INFLATE_SLICE]
            while piece:
                try:
                    inflated.append(self._inflater.decompress(piece, self._room + 1))
                except zlib.error:
                    return CloseReason.INVALID_FRAME_PAYLOAD_DATA
                self._room -= len(inflated[-1])
                if self._room < 0:
                    return CloseReason.MESSAGE_TOO_BIG
                piece = b""
                if self._inflater.eof:  # a block was marked as the last: another stream may begin (7.2.3.5)
                    piece = self._inflater.unused_data
                    self._inflater = _inflater()
        return b"".join(inflated)

    def compress(self, payload: bytes) -> bytes:
        """A whole message, compressed (RFC 7692, 7.2.1)."""
        if self._compressor is None:
            self._compressor = zlib.compressobj(wbits=-self._window_bits, memLevel=MEMORY_LEVEL)
        compressor = self._compressor
        if not self._server_takeover:
            self._compressor = None
        compressed = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return bytes(compressed[:-4])  # without 00 00 FF FF


def _inflater() -> Any:
    """The largest window reads what was written with any smaller one."""
    return zlib.decompressobj(wbits=-15)


@dataclass(slots=True)
class Message:
    """A whole message: `str` if it is text, `bytes` if it is binary (RFC 6455, 5.6)."""

    data: str | bytes


@dataclass(slots=True)
class Pong:
    """An answer to a ping, or an unasked sign of life (RFC 6455, 5.5.3)."""

    payload: bytes


@dataclass(slots=True)
class Closed:
    """The last event: nothing is received after it.

    Attributes:
        code: of the client's close frame, or 1005 if it had none; 1006 if the connection ended without one; 1002,
            1007 or 1009 if the client broke the protocol or a limit (RFC 6455, 7.4.1).
        reason: of the client's close frame, or what the client did wrong.
    """

    code: int
    reason: str


WSEvent = Message | Pong | Closed


class WebSocketCodec:
    """One WebSocket, from the first byte after the handshake, as the server sees it.

    Bytes from the client become events. Pings and close frames are answered by the codec itself: the answers wait in
    `data_to_send()`, and whatever else is to be written takes them along, so that bytes written in the order of
    the calls are in the order of the protocol. Nothing is written after a close frame (RFC 6455, 5.5.1): from
    then on all methods that give bytes give none.

    Args:
        extensions: from `Handshake.accept`.
        message_size_limit: bytes of one message, text as UTF-8; `inf` is no limit. Past it the codec closes with 1009.
        frame_count_limit: frames of one message, empty ones too; `inf` is no limit. Past it 1009 as well.

    Attributes:
        close_sent: whether a close frame was given out, or waits in `data_to_send()`.
        closed: the last event, once it was given.
    """

    def __init__(
        self, extensions: list[Extension], *, message_size_limit: float, frame_count_limit: float
    ) -> None:
        self.close_sent = False
        self.closed: Closed | None = None
        self._limits = FrameLimits(message_size_limit, frame_count_limit)
        self._deflate = next((each for each in extensions if isinstance(each, Deflate)), None)
        self._connection = Connection(ConnectionType.SERVER, [self._limits, *extensions])
        self._replies: list[bytes] = []
        self._pieces: Any = (
            None  # StringIO or BytesIO: lists of one-byte pieces would take many times their size
        )

    def receive_data(self, data: bytes) -> list[WSEvent]:
        """The events that some bytes complete, in their order; none after `Closed`. Nothing is ever raised."""
        events: list[WSEvent] = []
        if self.closed is not None:
            return events
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                message = self._assemble(event)
                if message is not None:
                    events.append(message)
            elif isinstance(event, PingReceived):
                self._reply(Opcode.PONG, event.payload)
            elif isinstance(event, PongReceived):
                events.append(Pong(bytes(event.payload)))
            elif isinstance(event, CloseConnection):  # pragma: no branch – there is no other event
                events.append(self._end(event))
        return events

    def receive_eof(self) -> list[WSEvent]:
        """The client will send no more: `Closed` with 1006, unless there was a `Closed` before (RFC 6455, 7.1.5)."""
        if self.closed is not None:
            return []
        self._pieces = None
        self.closed = Closed(1006, "")
        return [self.closed]

    def _assemble(self, event: TextMessage | BytesMessage) -> Message | None:
        """Put a piece of a message to the others: a frame comes in as many pieces as it took reads."""
        if self.close_sent:  # all that is still waited for is the client's close frame
            return None
        data = event.data if isinstance(event.data, str) else bytes(event.data)
        if self._pieces is None:
            if event.message_finished:
                return Message(data)
            self._pieces = io.StringIO() if isinstance(data, str) else io.BytesIO()
        self._pieces.write(data)
        if not event.message_finished:
            return None
        message = Message(self._pieces.getvalue())
        self._pieces = None
        return message

    def _end(self, event: CloseConnection) -> Closed:
        """The client closed, or broke the protocol, which wsproto reports alike but for its state."""
        code = int(event.code)
        if self._connection.state is ConnectionState.REMOTE_CLOSING:
            reason = event.reason or ""
            payload = b"" if code == 1005 else code.to_bytes(2, "big")
        else:
            # Not always wsproto's own words: they say at which byte of a read UTF-8 went wrong.
            reason = self._limits.reason or _REASONS.get(code) or event.reason or ""
            payload = _close_payload(code, reason)
        self._reply(Opcode.CLOSE, payload)
        self.close_sent = True
        self._pieces = None
        self.closed = Closed(code, reason)
        return self.closed

    def _reply(self, opcode: Opcode, payload: bytes) -> None:
        if not self.close_sent:
            self._replies.append(_frame(_FIN | opcode, payload))

    def data_to_send(self) -> bytes:
        """The answers to what was received since the last call of this or of a method that sends; often none."""
        data = b"".join(self._replies)
        self._replies.clear()
        return data

    def _send(self, first_byte: int, payload: bytes) -> bytes:
        frame = _frame(first_byte, payload)
        return self.data_to_send() + frame if self._replies else frame

    def _can_send(self) -> bool:
        return not self.close_sent and self.closed is None

    def send_message(self, data: str | bytes) -> bytes:
        """The bytes that send a message: text for `str`, binary for `bytes` (RFC 6455, 5.6).

        Raises:
            InvalidMessage: the text has surrogates, which UTF-8 can't express. The connection goes on.
        """
        opcode = Opcode.TEXT if isinstance(data, str) else Opcode.BINARY
        payload = _encode("text", data) if isinstance(data, str) else data
        if not self._can_send():
            return self.data_to_send()
        if self._deflate is None or len(payload) < COMPRESS_FROM:
            return self._send(_FIN | opcode, payload)
        return self._send(_FIN | _COMPRESSED | opcode, self._deflate.compress(payload))

    def ping(self, payload: bytes = b"") -> bytes:
        """The bytes that send a ping (RFC 6455, 5.5.2).

        Raises:
            ValueError: the payload has more than 125 bytes.
        """
        if len(payload) > 125:
            raise ValueError("the payload of a ping has more than 125 bytes")
        return self._send(_FIN | Opcode.PING, payload) if self._can_send() else self.data_to_send()

    def close(self, code: int = 1000, reason: str = "") -> bytes:
        """The bytes that close the WebSocket (RFC 6455, 5.5.1); from then on messages of the client are dropped.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999 (RFC 6455, 7.4).
            reason: cut to 123 bytes of UTF-8, at the end of a character.

        Raises:
            InvalidMessage: the code is none of these, or the reason has surrogates.
        """
        if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            raise InvalidMessage(f"'code': {code} is not a code that a close frame may have")
        payload = _close_payload(code, reason)
        if not self._can_send():
            return self.data_to_send()
        data = self._send(_FIN | Opcode.CLOSE, payload)
        self.close_sent = True
        self._pieces = None
        return data


def _encode(key: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"{key!r}: {error.reason} at character {error.start}") from None


def _close_payload(code: int, reason: str) -> bytes:
    """A control frame holds 125 bytes (RFC 6455, 5.5), two of them the code."""
    cut = _encode("reason", reason)[:123].decode("utf-8", "ignore")
    return code.to_bytes(2, "big") + cut.encode()


def _frame(first_byte: int, payload: bytes) -> bytes:
    """A frame without a mask (RFC 6455, 5.2), with the shortest form of its length."""
    size = len(payload)
    if size <= 125:
        return bytes((first_byte, size)) + payload
    if size <= 0xFFFF:
        return struct.pack("!BBH", first_byte, 126, size) + payload
    return struct.pack("!BBQ", first_byte, 127, size) + payload
