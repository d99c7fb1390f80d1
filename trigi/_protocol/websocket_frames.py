"""Frames that are whole messages are read here; the bytes of all others are wsproto's (RFC 6455, 5.2).

Nearly every message comes as one frame: not fragmented, not compressed, masked, its length in the shortest form and
within the limit. In such a frame there is nothing to judge but UTF-8. To read it takes a header, a mask and a copy;
wsproto, which is made for all that a frame can be, takes some seven times as long. So it gets what is left, byte for
byte, and remains the judge of it: control frames, fragments, compressed messages, and whatever is wrong.

Whose a frame is, is decided once, when its length is known. Until then wsproto says nothing of a frame either, so that
nobody can tell who has the bytes. And from then on the frame has an end, where the next one is decided about. Between
two messages nothing in wsproto depends on those it has not seen.

A binary frame waits here until it is complete. A text frame is read here if it is complete already, and is UTF-8. The
rest of text is wsproto's, which decodes it as it comes: it refuses the first byte that is wrong, however many follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FrameReader", "Message"]

# The first byte of a frame that is a whole message: FIN, no reserved bits, the opcode (RFC 6455, 5.2).
WHOLE_TEXT: Final = 0x81
WHOLE_BINARY: Final = 0x82

MASK: Final = 0x80
"""The bit beside the length in the second byte. In a client's frames it is set (RFC 6455, 5.1)."""

SHORT: Final = 512
"""Bytes up to which integers unmask as fast as tables, and a copy is cheaper than a view."""

STRETCH: Final = 64 * 1024
"""Bytes that tables unmask at once: the copies that are made for it are still in the processor's cache, and few."""

XOR_TABLES: Final = [bytes(byte ^ key for byte in range(256)) for key in range(256)]


def unmask_in_python(data: bytes | bytearray | memoryview, mask: bytes | bytearray) -> bytes:
    """The payload without its mask (RFC 6455, 5.3)."""
    size = len(data)
    if size <= SHORT:
        repeated = (mask * (size // 4 + 1))[:size]
        return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(size)
    stretches = [bytearray(data[start : start + STRETCH]) for start in range(0, size, STRETCH)]
    for stretch in stretches:
        for i in range(4):
            stretch[i::4] = stretch[i::4].translate(XOR_TABLES[mask[i]])
    return b"".join(stretches)


try:
    from websockets.speedups import apply_mask as unmask
except ImportError:  # it is an extra, trigi[fast], and what it has in C is its own extra
    unmask = unmask_in_python


@dataclass(slots=True)
class Message:
    """A whole message: `str` if it is text, `bytes` if it is binary (RFC 6455, 5.6)."""

    data: str | bytes


class FrameReader:
    """Divides the bytes of a WebSocket between itself and wsproto, in order.

    Feed it with `feed()` and ask `take()` until it says `None`. What waits in it then is at most the beginning of one
    frame, and its work is proportional to the bytes and the reads.

    Args:
        message_size_limit: bytes of the largest message that is read here.
    """

    def __init__(self, message_size_limit: int) -> None:
        self._message_size_limit = message_size_limit
        # Between `take` saying `None` and the next `feed` the buffer begins with a frame, or is empty.
        self._buffer: bytes | bytearray = b""
        self._start = 0  # of what has not been given
        self._wanted = 0  # bytes of the frame that waits, before there is anything to do with it
        self._passing = 0  # bytes still to come of a frame that is wsproto's

    @property
    def missing(self) -> int:
        """Bytes that are known to follow those that wait here; 0 if none do."""
        return self._wanted - len(self._buffer) if self._buffer else 0

    def feed(self, data: bytes) -> None:
        """More bytes, once `take` has said `None`."""
        if self._buffer:
            self._buffer += data
        else:
            self._buffer = data

    def clear(self) -> None:
        """Let go of what waits here: it can't become a message any more."""
        self._buffer = b""
        self._start = 0

    def take_alone(self, data: bytes) -> Message | None:
        """The message that these bytes are, if they are one, and nothing else waits. If not, they are not taken."""
        if self._buffer or self._passing:
            return None
        self.feed(data)
        taken = self.take(may_read=True)
        is_alone = self._start == len(data)
        self.clear()
        self._passing = 0
        return taken if is_alone and isinstance(taken, Message) else None

    def take(self, *, may_read: bool) -> Message | bytes | None:
        """A message, or bytes for wsproto; `None` until more have come.

        Args:
            may_read: whether frames may be read here. If not, then what waits is wsproto's, too.
        """
        buffer, start = self._buffer, self._start
        size = len(buffer) - start
        if self._passing and size:
            return self._pass(self._passing)
        if size < 2:
            self._wait_for(2)
            return None
        first, second = buffer[start], buffer[start + 1]
        length, payload_start, is_shortest = second & ~MASK, start + 6, True
        # With an opcode that may not have such a length, wsproto refuses the frame by these two bytes.
        if length > 125 and first & 0x0F <= 2:
            extension = 2 if length == 126 else 8
            if size < 2 + extension:
                self._wait_for(2 + extension)
                return None
            length = int.from_bytes(buffer[start + 2 : start + 2 + extension])
            payload_start += extension
            is_shortest = length > (125 if extension == 2 else 0xFFFF)
        end = payload_start + length
        if (
            may_read
            and (first == WHOLE_BINARY or (first == WHOLE_TEXT and end <= len(buffer)))
            and second & MASK
            and is_shortest
            and length <= self._message_size_limit
        ):
            if end > len(buffer):
                self._wait_for(end - start)
                return None
            payload = buffer[payload_start:end] if length <= SHORT else memoryview(buffer)[payload_start:end]
            data = unmask(payload, buffer[payload_start - 4 : payload_start])
            try:
                message = Message(data if first == WHOLE_BINARY else data.decode())
            except UnicodeDecodeError:
                pass  # wsproto shall say so
            else:
                self._start = end
                return message
        return self._pass(end - start)

    def _pass(self, size: int) -> bytes:
        """For wsproto, as much as there is of so many bytes."""
        given = bytes(self._buffer[self._start : self._start + size])
        self._start += len(given)
        self._passing = size - len(given)
        return given

    def _wait_for(self, size: int) -> None:
        """Keep the frame that begins here, until there are so many bytes of it."""
        self._wanted = size
        if self._start == len(self._buffer):
            self._buffer = b""
        elif not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(self._buffer[self._start :])
        else:
            del self._buffer[: self._start]
        self._start = 0
