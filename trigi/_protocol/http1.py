"""HTTP/1.1 bytes become events: framing, limits and strictness, the same for every head parser (RFC 9112).

Where one request ends and the next begins is what an attacker wants two parsers to disagree about. So it is
decided once, here, and strictly: the codec finds the end of a head, checks its bytes, has it read, and reads the body
itself. A parser (`http1_h11`, `http1_httptools`) splits the fields, and only ever sees a whole head that has passed.

The order of things in a head's life:

    receive_data -> `_find_end`    a request line and fields as RFC 9112 has them, line by line as they come; limits
                 -> `http1_head`   the rest: the fields, from the raw bytes what body there is (none, a length or
                                   chunks, never two of them), the host, the target: a `Request`

What is wrong is refused at the first byte that shows it: an invalid byte as it comes, an invalid line at its end,
the rest (framing, host, target) at the head's. Nothing is said of a byte before all that precede it have passed, so
the answer does not depend on how the bytes were split.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from trigi.config import Config
from trigi.exceptions import BadRequest

from .events import HTTP2_PREFACE, NEED_DATA, PAUSED, Data, Pause, Request
from .headers import TOKEN
from .http1_h11 import parse_fields
from .http1_head import FieldParser, HeadReader

__all__ = ["HTTP1Codec"]

# RFC 9112, 3, where a token and white space can't be mistaken for each other.
REQUEST_LINE: Final = re.compile(TOKEN.pattern + rb" [\x21-\x7e]+ HTTP/([0-9]\.[0-9])\r\n")
# RFC 9112, 5, with the values of RFC 9110, 5.5. No white space before the colon, no control characters.
FIELD_LINES: Final = re.compile(rb"(?:" + TOKEN.pattern + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*")
# Both at once, as nearly every request comes. Possessive: what does not match is given up at once.
WHOLE_HEAD: Final = re.compile(
    TOKEN.pattern
    + rb"+ [\x21-\x7e]++ HTTP/1\.[01]\r\n(?:"
    + TOKEN.pattern
    + rb"+:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
)

# What can't be in a line, so that it need not be waited for: control characters, on which parsers differ. A carriage
# return without its line feed, and the reverse. White space where a line begins (obs-fold).
INVALID_IN_REQUEST_LINE: Final = re.compile(rb"[^\x20-\x7e\r\n]|(?<!\r)\n|\r(?=[^\n])")
INVALID_IN_FIELDS: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])|(?:\A|\n)[ \t]"
)

# RFC 9112, 7.1, without the white space that it lets a recipient take. 16 digits are 64 bits.
CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?(?:\r(\n)?)?")
CHUNK_LINE_LIMIT: Final = 4096
"""Bytes of one chunk's first line. Longer ones have only been seen in attacks."""
CHUNK_EXTENSIONS_LIMIT: Final = 16 * 1024
"""Bytes of all chunk extensions of one body: they are work without data (CVE-2023-39326 was Go's)."""

PREFACE_LINE: Final = b"PRI * HTTP/2.0\r\n"
"""How HTTP/2 begins: a request that no server of HTTP/1.1 takes for one (RFC 9113, 3.4)."""

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


HEAD, LENGTH, DONE = _Body.HEAD, _Body.LENGTH, _Body.DONE  # where every request comes by


class HTTP1Codec:
    """The requests of one connection, in order.

    Feed it with `receive_data()` and ask `next_event()` until it says `NEED_DATA` or `PAUSED`. After a request is
    read to its end it is `PAUSED` until `start_next_cycle()`: later requests wait in its buffer, whose size in
    bytes is `buffered`. Once it has raised `BadRequest` it reads nothing more, and raises the same again: what
    follows can't be trusted to be a request.

    Args:
        config: the limits.
        parser: splits the fields of heads.
        http2: a client may begin with HTTP/2 instead.
    """

    def __init__(self, config: Config, parser: FieldParser = parse_fields, *, http2: bool = False) -> None:
        self._config = config
        self._http2 = http2
        self._head_reader = HeadReader(parser)
        self._buffer = bytearray()
        self._searched = 0  # of a head or trailer section: bytes in which there was nothing wrong, and no end
        self._line_start = 0  # and where in it the line begins whose end has not come
        self._fields = 0
        self._blank_lines = 0
        self._refusal: BadRequest | None = None
        self._reading = HEAD
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
        return self._reading is DONE

    @property
    def idle(self) -> bool:
        """Whether nothing of the next request has come."""
        return self._reading is HEAD and not self._buffer and self._refusal is None

    @property
    def body_remaining(self) -> int | None:
        """Bytes of the body still to come, `None` when that is not known (chunks)."""
        if self._reading is DONE:
            return 0
        return self._remaining if self._reading is LENGTH else None

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
        if self._refusal is not None:
            raise self._refusal
        try:
            if self._reading is HEAD:
                return self._next_request()
            if self._reading is LENGTH:
                return self._next_data()
            if self._reading is DONE:
                return PAUSED if self._buffer else NEED_DATA
            return self._next_chunks()
        except BadRequest as error:
            self._refusal = error
            raise

    def start_next_cycle(self) -> None:
        """Go on to the next request. Only after this one is complete."""
        assert self._reading is DONE
        self._reading = HEAD
        self._blank_lines = self._body_size = self._extensions_size = 0

    # The head

    def _next_request(self) -> Request | Pause:
        if self._http2 and not self._blank_lines and self._buffer.startswith(PREFACE_LINE):
            return HTTP2_PREFACE
        known = self._head_reader.last
        if known is not None and not self._searched and self._buffer.startswith(known.head):
            del self._buffer[: len(known.head)]
        else:
            head = self._find_head()
            if head is None:
                return NEED_DATA
            self._http2 = False
            known = self._head_reader.read(head)
        request, length = known.request, known.length
        if length is None:
            self._reading = _Body.CHUNK_SIZE
        elif length:
            if length > self._config.body_size_limit:
                raise BadRequest("request body too large", status_hint=413, limit="body_size_limit")
            self._remaining = length
            self._reading = LENGTH
        else:
            self._reading = DONE
        return request

    def _find_head(self) -> bytes | None:
        """Cut the next head off the buffer, `None` while it is incomplete."""
        buffer = self._buffer
        if not self._searched:
            whole = WHOLE_HEAD.match(buffer, 0, int(min(len(buffer), self._config.head_size_limit)))
            if whole is not None:
                head = whole[0]
                if head.count(b"\n") - 2 <= self._config.header_count_limit:
                    del buffer[: len(head)]
                    return head
            while buffer.startswith(b"\r\n"):
                del buffer[:2]
                self._blank_lines += 1
                if self._blank_lines > BLANK_LINES_LIMIT:
                    raise BadRequest("empty lines instead of a request")
            if not buffer or buffer == b"\r":
                return None
            if not 0x20 < buffer[0] < 0x7F:
                raise BadRequest("not an HTTP request (TLS, or another protocol?)")
        end = self._find_end()
        if end is None:
            return None
        head = bytes(buffer[:end])
        del buffer[:end]
        return head

    def _find_end(self) -> int | None:
        """Check the lines of a head or a trailer section as they come: where it ends, `None` while it is incomplete.

        A line is looked at when its end has come, and what is left over only where it is new, so that the work is in
        proportion to the bytes, however few come at a time.
        """
        buffer = self._buffer
        limit = self._config.head_size_limit
        stop = len(buffer) if len(buffer) <= limit else int(limit)
        line_end = 0
        if buffer.find(b"\n", self._searched, stop) >= 0:
            self._take_lines(stop)
            if buffer.startswith(b"\r\n", self._line_start, stop):
                end = self._line_start + 2
                self._searched = self._line_start = self._fields = 0
                return end
            line_end = buffer.find(b"\n", self._line_start, stop) + 1
        in_request_line = self._reading is HEAD and not self._line_start
        invalid = INVALID_IN_REQUEST_LINE if in_request_line else INVALID_IN_FIELDS
        found = invalid.search(buffer, max(self._searched - 2, self._line_start - 1, 0), line_end or stop)
        if found:
            raise BadRequest(f"invalid byte in the {self._section} at offset {found.start()}")
        if line_end:
            what = "request line" if in_request_line else f"line in the {self._section}"
            raise BadRequest(f"invalid {what}")
        if len(buffer) > stop:
            if in_request_line:
                raise BadRequest("request target too long", status_hint=414, limit="head_size_limit")
            raise BadRequest(f"{self._section} too large", status_hint=431, limit="head_size_limit")
        self._searched = stop
        return None

    def _take_lines(self, stop: int) -> None:
        """Go to the first line that is incomplete, invalid or empty."""
        buffer = self._buffer
        if self._reading is HEAD and not self._line_start:
            line = REQUEST_LINE.match(buffer, 0, stop)
            if line is None:
                return
            if line[1] not in (b"1.1", b"1.0"):
                raise BadRequest("HTTP version not supported", status_hint=505)
            self._line_start = line.end()
        lines = FIELD_LINES.match(buffer, self._line_start, stop)
        assert lines is not None  # it may be empty
        self._fields += buffer.count(b"\n", self._line_start, lines.end())
        self._line_start = lines.end()
        if self._fields > self._config.header_count_limit:
            raise BadRequest(
                f"too many fields in the {self._section}", status_hint=431, limit="header_count_limit"
            )

    @property
    def _section(self) -> str:
        return "request head" if self._reading is HEAD else "trailer section"

    # The body

    def _next_data(self) -> Data | Pause:
        if not self._buffer:
            return NEED_DATA
        data = bytes(self._buffer[: self._remaining])
        del self._buffer[: len(data)]
        self._remaining -= len(data)
        if not self._remaining:
            self._reading = DONE
        return Data(data, more=self._remaining > 0)

    def _next_chunks(self) -> Data | Pause:
        """All chunks that are there, as one piece; the last one if their end is there too."""
        pieces: list[bytes] = []
        try:
            while self._next_chunk_part(pieces):
                pass
        except BadRequest as error:
            if not pieces:
                raise
            self._refusal = error  # what came before it is told first, as if it had come alone
        if self._reading is DONE:
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
            case _:
                return self._skip_trailers()

    def _next_chunk_size(self) -> bool:
        buffer = self._buffer
        line = CHUNK_LINE.match(buffer, 0, CHUNK_LINE_LIMIT)
        if line is None or line[3] is None:
            if buffer and (line is None or line.end() < min(len(buffer), CHUNK_LINE_LIMIT)):
                raise BadRequest("invalid chunk size")
            if len(buffer) >= CHUNK_LINE_LIMIT:
                raise BadRequest("chunk extension too long")
            return False
        self._extensions_size += len(line[2] or b"")
        if self._extensions_size > CHUNK_EXTENSIONS_LIMIT:
            raise BadRequest("too many chunk extensions")
        self._remaining = int(line[1], 16)
        del buffer[: line.end()]
        self._body_size += self._remaining
        if self._body_size > self._config.body_size_limit:
            raise BadRequest("request body too large", status_hint=413, limit="body_size_limit")
        self._reading = _Body.CHUNK_DATA if self._remaining else _Body.TRAILERS
        return True

    def _skip_trailers(self) -> bool:
        """Check the trailer section and drop it: ASGI has no place for it."""
        end = self._find_end()
        if end is not None:
            del self._buffer[:end]
            self._reading = DONE
        return False
