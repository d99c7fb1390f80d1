"""A request's head becomes a `Request`: what its target and its fields mean (RFC 9112, 3 and 6).

The head is whole, and has the form that RFC 9112 gives it: `http1` has seen to that. The requests of a connection
mostly differ in method and target alone, if in anything. So what comes after these is read once, and known again for as
long as it is the same, byte for byte; and so is all of a head.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from trigi.config import HTTPParser
from trigi.exceptions import BadRequest

from . import http1_h11
from .events import Headers, Request
from .headers import LENGTH, is_host, tokens

__all__ = ["FieldParser", "HeadReader", "ReadHead", "field_parser"]

FieldParser = Callable[[bytes], Headers]
"""A whole head -> its fields, or `BadRequest`."""

FRAMING_FIELD: Final = {
    name: re.compile(rb"\r\n" + name + rb":([^\r]*)") for name in (b"content-length", b"transfer-encoding")
}

# RFC 3986, 3.2: the authority ends at the first "/", "?" or "#". One with userinfo is no host (RFC 9110, 4.2.4).
ABSOLUTE_FORM: Final = re.compile(rb"(?i:https?)://([^/?#]+)(/[^?#]*)?(?:\?([^#]*))?")

KNOWN_SIZE: Final = 4096
"""Bytes of a head, or of its version and fields, that are worth remembering: what a client says each time is less."""


def field_parser(name: HTTPParser) -> FieldParser:
    """The parser of that name; for `"auto"` httptools where it is installed, else h11."""
    if name != "h11":
        try:
            from .http1_httptools import parse_fields  # noqa: PLC0415 - httptools is an extra
        except ImportError:
            if name == "httptools":
                raise
        else:
            return parse_fields
    return http1_h11.parse_fields


@dataclass(slots=True)
class _Fields:
    """The version and the fields of a head, and what they say.

    Attributes:
        source: their bytes.
        length: of the body that follows; 0 for none, `None` for chunks.
    """

    source: bytes
    http_version: str
    headers: Headers
    length: int | None
    keep_alive: bool
    expects_continue: bool
    accepts_trailers: bool
    is_upgrade: bool


class ReadHead(NamedTuple):
    """A head that was read.

    Attributes:
        head: its bytes.
        request: what it says, which nobody changes.
        length: of the body that follows; 0 for none, `None` for chunks.
    """

    head: bytes
    request: Request
    length: int | None


class HeadReader:
    """Reads the heads of one connection.

    Args:
        parse: splits their fields.

    Attributes:
        last: the last head, if it is worth remembering: the same again need not be read.
    """

    def __init__(self, parse: FieldParser) -> None:
        self.last: ReadHead | None = None
        self._parse = parse
        self._known: _Fields | None = None

    def read(self, head: bytes) -> ReadHead:
        """What the head says.

        Raises:
            BadRequest: the head contradicts itself, or asks for what there is not.
        """
        method, target, source = head.split(b" ", 2)
        fields = self._known
        if fields is None or fields.source != source:
            fields = _read_fields(head, source, self._parse)
            self._known = fields if len(source) <= KNOWN_SIZE else None
        raw_path, query_string, authority = _split_target(method, target)
        headers = fields.headers
        if authority is not None:
            # RFC 9112, 3.2.2: the target's authority is the host, whatever the field says.
            headers = [(b"host", authority), *(field for field in headers if field[0] != b"host")]
        request = Request(
            method.decode("ascii"),
            target,
            raw_path,
            query_string,
            fields.http_version,
            headers,
            fields.length != 0,
            fields.keep_alive,
            fields.expects_continue,
            fields.accepts_trailers,
            fields.is_upgrade,
        )
        read = ReadHead(head, request, fields.length)
        self.last = read if len(head) <= KNOWN_SIZE else None
        return read


def _read_fields(head: bytes, source: bytes, parse: FieldParser) -> _Fields:
    """What version and fields say, after the checks that are the same for every parser."""
    length = _framing(source.lower())
    headers = parse(head)
    is_http_1_1 = source.startswith(b"HTTP/1.1")
    if length is None and not is_http_1_1:
        raise BadRequest("Transfer-Encoding in HTTP/1.0")
    has_body = length != 0
    values = dict(headers)
    host = values.get(b"host")
    is_repeated = len(values) < len(headers) and [name for name, _ in headers].count(b"host") > 1
    if is_repeated or (is_http_1_1 if host is None else not is_host(host)):
        raise BadRequest("a request needs exactly one valid Host" if is_http_1_1 else "invalid Host")
    connection = tokens(headers, b"connection") if b"connection" in values else []
    expects_continue = is_http_1_1 and b"expect" in values and has_body
    if expects_continue and tokens(headers, b"expect") != [b"100-continue"]:
        raise BadRequest("unknown expectation", status_hint=417)
    # RFC 9110, 7.8: an Upgrade in HTTP/1.0 is ignored.
    is_upgrade = is_http_1_1 and b"upgrade" in connection and b"websocket" in tokens(headers, b"upgrade")
    if is_upgrade and has_body:
        raise BadRequest("a WebSocket handshake has no body")
    return _Fields(
        source=source,
        http_version="1.1" if is_http_1_1 else "1.0",
        headers=headers,
        length=length,
        keep_alive=b"close" not in connection and (is_http_1_1 or b"keep-alive" in connection),
        expects_continue=expects_continue,
        accepts_trailers=is_http_1_1 and b"te" in values and b"trailers" in tokens(headers, b"te"),
        is_upgrade=is_upgrade,
    )


def _framing(lower: bytes) -> int | None:
    """How long the body is that follows such fields (in lower case), `None` for chunks (RFC 9112, 6.3)."""
    if b"content-length" not in lower and b"transfer-encoding" not in lower:
        return 0
    codings = [value.strip(b" \t") for value in FRAMING_FIELD[b"transfer-encoding"].findall(lower)]
    lengths = [value.strip(b" \t") for value in FRAMING_FIELD[b"content-length"].findall(lower)]
    if codings:
        if lengths:
            raise BadRequest("both Content-Length and Transfer-Encoding")
        if codings != [b"chunked"]:
            items = [item.strip(b" \t") for value in codings for item in value.split(b",")]
            unknown = [item for item in items if item and item != b"chunked"]
            raise BadRequest("Transfer-Encoding must be chunked", status_hint=501 if unknown else 400)
        return None
    if not lengths:
        return 0
    # Equal ones could be taken for one (RFC 9110, 8.6); parsers do not agree about that.
    if len(lengths) > 1 or not LENGTH.fullmatch(lengths[0]):
        raise BadRequest("invalid Content-Length")
    return int(lengths[0])


def _split_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Path, query and authority (if there is one) of a target, in the forms of RFC 9112, 3.2."""
    if method == b"CONNECT":
        raise BadRequest("CONNECT is not supported", status_hint=501)
    if target[:1] == b"/":
        if b"#" in target:
            raise BadRequest("fragment in the request target")
        path, _, query = target.partition(b"?")
        return path, query, None
    if target == b"*" and method == b"OPTIONS":
        return b"*", b"", None
    absolute = ABSOLUTE_FORM.fullmatch(target)
    if absolute is None or not is_host(absolute[1]):
        raise BadRequest("invalid request target")
    return absolute[2] or b"/", absolute[3] or b"", absolute[1]
