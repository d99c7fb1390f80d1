"""What the frames of HTTP/2 are made of, and what is wrong with one that a server has sent (RFC 9113)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from trigi._protocol.http2_frames import PREFACE, ErrorCode, FrameType

__all__ = [
    "FRAME_TYPES",
    "LARGEST_WINDOW",
    "PREFACE",
    "SETTING_RANGES",
    "ErrorCode",
    "Flag",
    "Frame",
    "FrameType",
    "SettingCode",
    "Violation",
    "check",
    "check_fields",
    "check_shape",
    "encode_frame",
    "encode_settings",
    "error_code",
    "pad",
    "unpad",
]

LARGEST_WINDOW = 2**31 - 1


class Violation(Exception):
    """The server broke the protocol."""


class Flag(IntEnum):
    """The flags of frames (RFC 9113, 6)."""

    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class SettingCode(IntEnum):
    """The settings (RFC 9113, 6.5.2; RFC 8441, 3; RFC 9218, 2.1)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8
    NO_RFC7540_PRIORITIES = 0x9


FRAME_TYPES = frozenset(FrameType)
ERROR_CODES = frozenset(ErrorCode)
ALLOWED_FLAGS: dict[int, int] = {
    FrameType.DATA: Flag.END_STREAM | Flag.PADDED,
    FrameType.HEADERS: Flag.END_STREAM | Flag.END_HEADERS | Flag.PADDED | Flag.PRIORITY,
    FrameType.SETTINGS: Flag.ACK,
    FrameType.PING: Flag.ACK,
    FrameType.CONTINUATION: Flag.END_HEADERS,
}
OF_CONNECTION = {FrameType.SETTINGS, FrameType.PING, FrameType.GOAWAY}
OF_STREAM = {FrameType.DATA, FrameType.HEADERS, FrameType.PRIORITY, FrameType.RST_STREAM}
SIZES: dict[int, int] = {
    FrameType.PRIORITY: 5,
    FrameType.RST_STREAM: 4,
    FrameType.PING: 8,
    FrameType.WINDOW_UPDATE: 4,
}
SETTING_RANGES: dict[int, tuple[int, int]] = {
    SettingCode.ENABLE_PUSH: (0, 0),  # a server must not say 1 (6.5.2)
    SettingCode.INITIAL_WINDOW_SIZE: (0, LARGEST_WINDOW),
    SettingCode.MAX_FRAME_SIZE: (16384, 2**24 - 1),
    SettingCode.ENABLE_CONNECT_PROTOCOL: (0, 1),
}
NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
VALUE = re.compile(rb"(?:[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?")
CONNECTION_SPECIFIC = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}


@dataclass(slots=True)
class Frame:
    """A frame as it was on the wire.

    Attributes:
        type: a `FrameType`, or another number.
        flags: the `Flag`s that are set.
        stream_id: 0 for the connection.
        payload: with its padding, if it has any.
    """

    type: int
    flags: int
    stream_id: int
    payload: bytes = b""


def encode_frame(
    frame_type: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"", *, size: int | None = None
) -> bytes:
    """A frame (RFC 9113, 4.1), of which nothing is checked.

    Args:
        frame_type: a `FrameType`, or another number below 256.
        flags: a number below 256.
        stream_id: with the reserved bit, a number below 2**32.
        payload: less than 2**24 bytes.
        size: what the frame says its payload's is, if that is not the truth.
    """
    size = len(payload) if size is None else size
    return size.to_bytes(3, "big") + struct.pack(">BBL", frame_type, flags, stream_id) + payload


def encode_settings(settings: Mapping[int, int] | Iterable[tuple[int, int]]) -> bytes:
    """The payload of SETTINGS: in this order, from pairs also the same one twice."""
    pairs = settings.items() if isinstance(settings, Mapping) else settings
    return b"".join(struct.pack(">HL", code, value) for code, value in pairs)


def pad(payload: bytes, padding: int) -> bytes:
    """A payload with its padding."""
    return bytes([padding]) + payload + bytes(padding)


def unpad(frame: Frame) -> bytes:
    """A frame's payload without its padding."""
    if not frame.flags & Flag.PADDED:
        return frame.payload
    check(frame.payload and frame.payload[0] < len(frame.payload), f"{frame} is all padding")
    end = len(frame.payload) - frame.payload[0]
    check(not any(frame.payload[end:]), f"{frame} has padding that is not zero")
    return frame.payload[1:end]


def error_code(code: int) -> int:
    """An `ErrorCode` if it is one."""
    return ErrorCode(code) if code in ERROR_CODES else code


def check(holds: object, otherwise: str) -> None:
    """Raise `Violation` unless something holds."""
    if not holds:
        raise Violation(otherwise)


def check_shape(frame: Frame) -> None:
    """Check what can be seen without knowing what came before."""
    size = len(frame.payload)
    check(frame.stream_id <= LARGEST_WINDOW, f"{frame} has the reserved bit set")
    check(frame.type != FrameType.PUSH_PROMISE, f"{frame}, which nobody asked for")
    check(frame.type not in OF_CONNECTION or not frame.stream_id, f"{frame} on a stream")
    check(frame.type not in OF_STREAM or frame.stream_id, f"{frame} on no stream")
    if frame.type in FRAME_TYPES:
        allowed = ALLOWED_FLAGS.get(frame.type, 0)
        check(frame.flags & ~allowed == 0, f"{frame} has flags that are not defined")
        check(size == SIZES.get(frame.type, size), f"{frame} has {size} bytes")
    if frame.type == FrameType.SETTINGS:
        check(size == 0 if frame.flags & Flag.ACK else size % 6 == 0, f"{frame} has {size} bytes")
    if frame.type == FrameType.GOAWAY:
        check(size >= 8, f"{frame} has {size} bytes")


def check_fields(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Check fields that are no pseudo-headers (RFC 9113, 8.2)."""
    for name, value in fields:
        check(NAME.fullmatch(name), f"the field name {name!r}")
        check(VALUE.fullmatch(value), f"the value {value!r} of {name!r}")
        check(name not in CONNECTION_SPECIFIC, f"the connection-specific field {name!r}")
