"""HTTP/2 bytes become whole frames, each of which has the form that RFC 9113, section 6, gives it.

What a frame is, how long it may be and what may follow it is checked here, before anything else looks at it, and a
frame that is too large is refused at its ninth byte. A field block that comes in several frames is given as the one
HEADERS frame that it would have been.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from math import inf
from typing import Final, NamedTuple

__all__ = [
    "ACK",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_SIZE",
    "LARGEST_FRAME",
    "PADDED",
    "PREFACE",
    "ErrorCode",
    "Frame",
    "FrameReader",
    "FrameType",
    "Violation",
    "encode_frame",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113, 3.4)."""

FRAME_SIZE: Final = 16_384
"""Bytes of a frame's payload at most: what SETTINGS_MAX_FRAME_SIZE says if nobody says more (RFC 9113, 6.5.2)."""

LARGEST_FRAME: Final = 2**24 - 1
"""Bytes that a frame's header can tell of; a whole field block is given as one frame."""

BLOCK_FRAMES_LIMIT: Final = 64
"""CONTINUATION frames of one field block: each may be empty, and they are work without data (CVE-2024-27316)."""

# Flags (RFC 9113, 6)
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20


class FrameType(IntEnum):
    """RFC 9113, 6; PRIORITY_UPDATE: RFC 9218, 7.1."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9
    PRIORITY_UPDATE = 16


class ErrorCode(IntEnum):
    """RFC 9113, 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Violation(Exception):
    """The client broke HTTP/2 in a way that ends the connection (RFC 9113, 5.4.1).

    Attributes:
        code: for the GOAWAY frame.
        reason: for the log.
        limit: the setting whose limit was passed, if it was one.
    """

    def __init__(self, code: ErrorCode, reason: str, *, limit: str | None = None) -> None:
        self.code = code
        self.reason = reason
        self.limit = limit
        super().__init__(f"{code.name}: {reason}")


class Frame(NamedTuple):
    """One frame, of a form that is right for its type.

    Attributes:
        type: of a type that is not in `FrameType` nothing was checked.
        flags: HEADERS always have END_HEADERS.
        stream_id: 0 for the connection.
        payload: without padding and priority; of HEADERS the whole field block.
        size: of the payload as it came, which is what flow control counts.
    """

    type: int
    flags: int
    stream_id: int
    payload: bytes
    size: int


ON_STREAM: Final = frozenset(
    {
        FrameType.DATA,
        FrameType.HEADERS,
        FrameType.PRIORITY,
        FrameType.RST_STREAM,
        FrameType.CONTINUATION,
    }
)
ON_CONNECTION: Final = frozenset(
    {FrameType.SETTINGS, FrameType.PING, FrameType.GOAWAY, FrameType.PRIORITY_UPDATE}
)
LENGTHS: Final = {FrameType.RST_STREAM: 4, FrameType.PING: 8, FrameType.WINDOW_UPDATE: 4}
"""PRIORITY, too, has one length, but another is the stream's error and not the connection's."""


class FrameReader:
    """The frames of one connection, in order. Feed it with `receive_data()` and ask `next_frame()` until `None`.

    Args:
        block_size_limit: bytes of a compressed field block.
    """

    def __init__(self, block_size_limit: float = inf) -> None:
        self._buffer = bytearray()
        self._block_size_limit = min(block_size_limit, LARGEST_FRAME)
        self._preface_read = False
        self._settings_read = False
        self._block: Frame | None = None  # HEADERS whose end has not come
        self._block_parts: list[bytes] = []
        self._blocks_read = 0

    @property
    def established(self) -> bool:
        """Whether the client's preface has come, whole (RFC 9113, 3.4)."""
        return self._settings_read

    @property
    def open_block(self) -> int | None:
        """The number of the field block whose beginning has come, and its end has not; `None` when there is none."""
        is_open = self._block is not None or (
            len(self._buffer) >= 4 and self._buffer[3] == FrameType.HEADERS and self._preface_read
        )
        return self._blocks_read if is_open else None

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take bytes from the client. Nothing is parsed before `next_frame()`."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next frame, `None` until more bytes have come.

        Raises:
            Violation: no frame, or none that may come now. Nothing after it can be read.
        """
        if not self._preface_read and not self._read_preface():
            return None
        buffer = self._buffer
        while len(buffer) >= 9:
            size_high, size_low, type_, flags, stream_id = struct.unpack_from(">BHBBL", buffer)
            size = size_high << 16 | size_low
            stream_id &= 0x7FFFFFFF  # the highest bit is reserved
            self._check_sequence(type_, flags, stream_id)
            _check_form(type_, flags, stream_id, size)
            if len(buffer) < 9 + size:
                return None
            payload = bytes(buffer[9 : 9 + size])
            del buffer[: 9 + size]
            self._settings_read = True
            frame: Frame | None = Frame(type_, flags, stream_id, payload, size)
            if type_ in (FrameType.HEADERS, FrameType.CONTINUATION):
                frame = self._join_block(type_, flags, stream_id, payload)
            elif type_ == FrameType.DATA and flags & PADDED:
                frame = Frame(type_, flags, stream_id, _unpadded(payload), size)
            if frame is not None:
                return frame
        return None

    def _read_preface(self) -> bool:
        if not PREFACE.startswith(self._buffer[: len(PREFACE)]):
            raise Violation(ErrorCode.PROTOCOL_ERROR, "not the preface of HTTP/2")
        if len(self._buffer) < len(PREFACE):
            return False
        del self._buffer[: len(PREFACE)]
        self._preface_read = True
        return True

    def _check_sequence(self, type_: int, flags: int, stream_id: int) -> None:
        """RFC 9113, 3.4: SETTINGS come first; 6.10: nothing comes between the frames of a field block."""
        if not self._settings_read and (type_ != FrameType.SETTINGS or flags & ACK):
            raise Violation(ErrorCode.PROTOCOL_ERROR, "the preface has no SETTINGS")
        if self._block is None:
            if type_ == FrameType.CONTINUATION:
                raise Violation(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        elif type_ != FrameType.CONTINUATION or stream_id != self._block.stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "another frame in the middle of a field block")

    def _join_block(self, type_: int, flags: int, stream_id: int, payload: bytes) -> Frame | None:
        if type_ == FrameType.HEADERS:
            payload = _unprioritized(payload, flags, stream_id)
            if flags & END_HEADERS and len(payload) <= self._block_size_limit:
                self._blocks_read += 1
                return Frame(type_, flags, stream_id, payload, len(payload))
            self._block = Frame(type_, flags | END_HEADERS, stream_id, b"", 0)
        assert self._block is not None
        parts = self._block_parts
        parts.append(payload)
        if len(parts) > BLOCK_FRAMES_LIMIT or sum(map(len, parts)) > self._block_size_limit:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "a field block without an end", limit="head_size_limit"
            )
        if not flags & END_HEADERS:
            return None
        block = b"".join(parts)
        frame = self._block._replace(payload=block, size=len(block))
        self._block = None
        self._blocks_read += 1
        parts.clear()
        return frame


def encode_frame(type_: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """The bytes of a frame (RFC 9113, 4.1)."""
    size = len(payload)
    return struct.pack(">BHBBL", size >> 16, size & 0xFFFF, type_, flags, stream_id) + payload


def _check_form(type_: int, flags: int, stream_id: int, size: int) -> None:
    """RFC 9113, 4.2 and section 6: the length of a frame, and whether it belongs to a stream."""
    if size > FRAME_SIZE:
        raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
    if type_ in ON_STREAM and not stream_id:
        raise Violation(ErrorCode.PROTOCOL_ERROR, f"{FrameType(type_).name} on the connection")
    if type_ in ON_CONNECTION and stream_id:
        raise Violation(ErrorCode.PROTOCOL_ERROR, f"{FrameType(type_).name} on a stream")
    if type_ == FrameType.PUSH_PROMISE:
        raise Violation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
    is_wrong = type_ in LENGTHS and size != LENGTHS[FrameType(type_)]
    if type_ == FrameType.SETTINGS:
        is_wrong = bool(size % 6 or (flags & ACK and size))
    elif type_ == FrameType.GOAWAY:
        is_wrong = size < 8
    elif type_ == FrameType.PRIORITY_UPDATE:
        is_wrong = size < 4
    if is_wrong:
        raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"{FrameType(type_).name} of {size} bytes")


def _unpadded(payload: bytes) -> bytes:
    if not payload:
        raise Violation(ErrorCode.FRAME_SIZE_ERROR, "no room for the length of the padding")
    padding = payload[0]
    if padding >= len(payload):
        raise Violation(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - padding]


def _unprioritized(payload: bytes, flags: int, stream_id: int) -> bytes:
    """The field block of HEADERS; the priorities of RFC 7540 mean nothing any more (RFC 9113, 5.3.2)."""
    size = len(payload)
    if flags & PADDED:
        payload = _unpadded(payload)
    if not flags & PRIORITY:
        return payload
    if len(payload) < 5:
        if size > 5:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
        raise Violation(ErrorCode.FRAME_SIZE_ERROR, "no room for the priority")
    if int.from_bytes(payload[:4]) & 0x7FFFFFFF == stream_id:
        raise Violation(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
    return payload[5:]
