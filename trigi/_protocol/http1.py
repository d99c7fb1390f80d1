"""HTTP/1.1 bytes become events: framing, limits and strictness, the same for every head parser (RFC 9112).

Where one request ends and the next begins is what an attacker wants two parsers to disagree about. So it is
decided once, here, and strictly: the codec finds the end of a head, checks its bytes, has a parser split it
into fields, and reads the body itself. A parser (`http1_h11`) only ever sees a whole head that has passed.

The order of things in a head's life:

    receive_data -> `_find_head`   ends in CRLF CRLF? nothing in it that parsers read in different ways?
                 -> `_framing`     from the raw bytes: no body, a length, or chunks; never two of them
                 -> parser         method, target, version, fields
                 -> `_request`     host, target, version and what the fields ask for: a `Request`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from trigi.config import Config
from trigi.exceptions import BadRequest

from .events import NEED_DATA, PAUSED, Data, Headers, Pause, Request
from .headers import is_host, tokens
from .http1_h11 import parse_head

__all__ = ["HTTP1Codec", "HeadParser"]

HeadParser = Callable[[bytes], tuple[bytes, bytes, bytes, Headers]]
"""A whole head -> method, target, version (`b"1.1"`) and headers, or `BadRequest`."""

# What parsers are lenient about in different ways: a line feed without its carriage return and the reverse, NUL,
# and a line that begins with white space (obs-fold).
AMBIGUOUS: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\x00|\n[ \t]")

FIELD: Final = {
    name: re.compile(rb"\r\n" + name + rb":[ \t]*([^\r]*?)[ \t]*(?=\r\n)")
    for name in (b"content-length", b"transfer-encoding")
}
# 19 digits are less than 2**63.
LENGTH: Final = re.compile(rb"[0-9]{1,19}")

# RFC 9112, 7.1, without the white space that it lets a recipient take. 16 digits are 64 bits.
CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?\r\n")
CHUNK_LINE_LIMIT: Final = 4096
"""Bytes of one chunk's first line. Longer ones have only been seen in attacks."""
CHUNK_EXTENSIONS_LIMIT: Final = 16 * 1024
"""Bytes of all chunk extensions of one body: they are work without data (CVE-2023-39326 was Go's)."""
TRAILER_SECTION: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*")

ABSOLUTE_FORM: Final = re.compile(rb"(?i:https?)://([^/?#@]+)([^?#]*)(?:\?([^#]*))?")

BLANK_LINES_LIMIT: Final = 8
"""Empty lines before a request line, which some clients send after a body (RFC 9112, 2.2)."""


class _Body(Enum):
    """Where in a request the next byte belongs."""

    HEAD = auto()
    LENGTH = auto()
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    DONE = auto()


class HTTP1Codec:
    """The requests of one connection, in order.

    Feed it with `receive_data()` and ask `next_event()` until it says `NEED_DATA` or `PAUSED`. After a request is
    read to its end it is `PAUSED` until `start_next_cycle()`: later requests wait in its buffer, whose size in
    bytes is `buffered`. Once it has raised `BadRequest` it must not be asked again: what follows can't be trusted
    to be a request.
    """

    def __init__(self, config: Config, parser: HeadParser = parse_head) -> None:
        self._config = config
        self._parse_head = parser
        self._buffer = bytearray()
        self._searched = 0
        self._blank_lines = 0
        self._reading = _Body.HEAD
        self._remaining = 0
        self._body_size = 0
        self._extensions_size = 0

    @property
    def buffered(self) -> int:
        """Bytes received that no event has told of."""
        return len(self._buffer)

    @property
    def request_complete(self) -> bool:
        """Whether the current request is read to its end."""
        return self._reading is _Body.DONE

    @property
    def body_remaining(self) -> int | None:
        """Bytes of the body still to come, `None` when that is not known (chunks)."""
        if self._reading is _Body.DONE:
            return 0
        return self._remaining if self._reading is _Body.LENGTH else None

    @property
    def trailing_data(self) -> bytes:
        """What was received after the request: after an upgrade it belongs to the new protocol."""
        return bytes(self._buffer)

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take bytes from the client. Nothing is parsed before `next_event()`."""
        self._buffer += data

    def next_event(self) -> Request | Data | Pause:
        """The next event, or why there is none.

        Raises:
            BadRequest: the client broke HTTP, or a limit. Nothing after it is a request.
        """
        match self._reading:
            case _Body.HEAD:
                return self._next_request()
            case _Body.LENGTH:
                return self._next_data()
            case _Body.DONE:
                return PAUSED if self._buffer else NEED_DATA
            case _:
                return self._next_chunks()

    def start_next_cycle(self) -> None:
        """Go on to the next request. Only after this one is complete."""
        assert self._reading is _Body.DONE
        self._reading = _Body.HEAD
        self._searched = self._blank_lines = self._body_size = self._extensions_size = 0

    # The head

    def _next_request(self) -> Request | Pause:
        head = self._find_head()
        if head is None:
            return NEED_DATA
        lower = head.lower()
        length = _framing(lower)
        method, target, version, headers = self._parse_head(head)
        request = _request(method, target, version, headers, has_body=length != 0)
        if length is None:
            if request.http_version == "1.0":
                raise BadRequest("Transfer-Encoding in HTTP/1.0")
            self._reading = _Body.CHUNK_SIZE
        elif length:
            if length > self._config.body_size_limit:
                raise BadRequest("request body too large", status_hint=413, limit="body_size_limit")
            self._remaining = length
            self._reading = _Body.LENGTH
        else:
            self._reading = _Body.DONE
        return request

    def _find_head(self) -> bytes | None:
        """Cut the next head off the buffer, `None` while it is incomplete."""
        buffer = self._buffer
        if not self._searched:
            while buffer.startswith(b"\r\n"):
                del buffer[:2]
                self._blank_lines += 1
                if self._blank_lines > BLANK_LINES_LIMIT:
                    raise BadRequest("empty lines instead of a request")
            if not buffer or buffer == b"\r":
                return None
        end = buffer.find(b"\r\n\r\n", max(self._searched - 3, 0))
        size = len(buffer) if end < 0 else end + 4
        limit = self._config.head_size_limit
        if size > limit:
            if buffer.find(b"\n", 0, int(limit)) < 0:
                raise BadRequest("request target too long", status_hint=414, limit="head_size_limit")
            raise BadRequest("request head too large", status_hint=431, limit="head_size_limit")
        # What is wrong is refused as it comes, rather than when (or if) the head is complete.
        ambiguous = AMBIGUOUS.search(buffer, max(self._searched - 2, 0), size)
        if ambiguous:
            raise BadRequest(f"invalid byte in the request head at offset {ambiguous.start()}")
        if buffer[0] <= 0x20 or buffer[0] >= 0x7F:
            raise BadRequest("not an HTTP request (TLS, or another protocol?)")
        if end < 0:
            self._searched = size
            return None
        if buffer.count(b"\r\n", 0, end) > self._config.header_count_limit:
            raise BadRequest("too many header fields", status_hint=431, limit="header_count_limit")
        head = bytes(buffer[:size])
        del buffer[:size]
        self._searched = 0
        return head

    # The body

    def _next_data(self) -> Data | Pause:
        if not self._buffer:
            return NEED_DATA
        data = bytes(self._buffer[: self._remaining])
        del self._buffer[: len(data)]
        self._remaining -= len(data)
        if not self._remaining:
            self._reading = _Body.DONE
        return Data(data, more=self._remaining > 0)

    def _next_chunks(self) -> Data | Pause:
        """All chunks that are there, as one piece; the last one if their end is there too."""
        pieces: list[bytes] = []
        while self._next_chunk_part(pieces):
            pass
        if self._reading is _Body.DONE:
            return Data(b"".join(pieces), more=False)
        return Data(b"".join(pieces), more=True) if pieces else NEED_DATA

    def _next_chunk_part(self, pieces: list[bytes]) -> bool:
        """Read one size, some data, one end of line, or the trailers; whether there may be more to read."""
        buffer = self._buffer
        match self._reading:
            case _Body.CHUNK_SIZE:
                return self._next_chunk_size()
            case _Body.CHUNK_DATA:
                data = bytes(buffer[: self._remaining])
                del buffer[: len(data)]
                self._remaining -= len(data)
                if data:
                    pieces.append(data)
                if not self._remaining:
                    self._reading = _Body.CHUNK_END
                return bool(data)
            case _Body.CHUNK_END:
                if not b"\r\n".startswith(buffer[:2]):
                    raise BadRequest("chunk not ended by CRLF")
                if len(buffer) < 2:
                    return False
                del buffer[:2]
                self._reading = _Body.CHUNK_SIZE
                return True
            case _Body.TRAILERS:
                self._skip_trailers()
                return False
            case _:
                return False

    def _next_chunk_size(self) -> bool:
        buffer = self._buffer
        end = buffer.find(b"\n", 0, CHUNK_LINE_LIMIT)
        if end < 0:
            if len(buffer) >= CHUNK_LINE_LIMIT:
                raise BadRequest("chunk extension too long")
            return False
        match = CHUNK_SIZE.fullmatch(buffer, 0, end + 1)
        if match is None:
            raise BadRequest("invalid chunk size")
        self._extensions_size += len(match[2] or b"")
        if self._extensions_size > CHUNK_EXTENSIONS_LIMIT:
            raise BadRequest("too many chunk extensions")
        self._remaining = int(match[1], 16)
        del buffer[: end + 1]
        self._body_size += self._remaining
        if self._body_size > self._config.body_size_limit:
            raise BadRequest("request body too large", status_hint=413, limit="body_size_limit")
        self._reading = _Body.CHUNK_DATA if self._remaining else _Body.TRAILERS
        return True

    def _skip_trailers(self) -> None:
        """Check the trailer section and drop it: ASGI has no place for it."""
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):
            section, end = b"", 2
        else:
            found = buffer.find(b"\r\n\r\n")
            section = bytes(buffer) if found < 0 else bytes(buffer[: found + 2])
            if len(section) > self._config.head_size_limit:
                raise BadRequest("trailers too large", status_hint=431, limit="head_size_limit")
            if AMBIGUOUS.search(section):
                raise BadRequest("invalid byte in the trailers")
            if found < 0:
                return
            end = found + 4
        if section.count(b"\r\n") > self._config.header_count_limit:
            raise BadRequest("too many trailer fields", status_hint=431, limit="header_count_limit")
        if not TRAILER_SECTION.fullmatch(section):
            raise BadRequest("invalid trailer field")
        del buffer[:end]
        self._reading = _Body.DONE


def _framing(lower: bytes) -> int | None:
    """How long the body is that follows a head (in lower case), `None` for chunks (RFC 9112, 6.3)."""
    codings = FIELD[b"transfer-encoding"].findall(lower)
    lengths = FIELD[b"content-length"].findall(lower)
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
    if len(set(lengths)) > 1 or not LENGTH.fullmatch(lengths[0]):
        raise BadRequest("invalid Content-Length")
    return int(lengths[0])


def _request(method: bytes, target: bytes, version: bytes, headers: Headers, *, has_body: bool) -> Request:
    """The `Request` that a parsed head makes, after the checks that are the same for every parser."""
    if version not in (b"1.1", b"1.0"):
        raise BadRequest("HTTP version not supported", status_hint=505)
    is_http_1_1 = version == b"1.1"
    names = {name for name, _ in headers}
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (is_http_1_1 and not hosts) or (hosts and not is_host(hosts[0])):
        raise BadRequest("a request needs exactly one valid Host" if is_http_1_1 else "invalid Host")
    raw_path, query_string, authority = _split_target(method, target)
    if authority is not None:
        # RFC 9112, 3.2.2: the target's authority is the host, whatever the field says.
        headers = [(b"host", authority), *(field for field in headers if field[0] != b"host")]
    connection = tokens(headers, b"connection") if b"connection" in names else []
    expects_continue = is_http_1_1 and b"expect" in names and has_body
    if expects_continue and tokens(headers, b"expect") != [b"100-continue"]:
        raise BadRequest("unknown expectation", status_hint=417)
    is_upgrade = (
        b"upgrade" in names and b"upgrade" in connection and b"websocket" in tokens(headers, b"upgrade")
    )
    if is_upgrade and has_body:
        raise BadRequest("a WebSocket handshake has no body")
    return Request(
        method=method.decode("ascii"),
        target=target,
        raw_path=raw_path,
        query_string=query_string,
        http_version="1.1" if is_http_1_1 else "1.0",
        headers=headers,
        has_body=has_body,
        keep_alive=b"close" not in connection and (is_http_1_1 or b"keep-alive" in connection),
        expects_continue=expects_continue,
        accepts_trailers=b"te" in names and b"trailers" in tokens(headers, b"te"),
        is_upgrade=is_upgrade,
    )


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
