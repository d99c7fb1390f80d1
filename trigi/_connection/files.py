"""Files as bodies: opened, measured and read in threads, because no file can be waited for otherwise.

A thread is not cancelled: who is cancelled meanwhile gets its result, so that no descriptor is lost, and none is closed
while it is used.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import NamedTuple

import trio

from trigi.exceptions import InvalidMessage

__all__ = ["PIECE", "Span", "load", "measure", "open_path", "read"]

PIECE = 64 * 1024
"""Bytes read at once: what `write_timeout` applies to."""


class Span(NamedTuple):
    """A part of an open file."""

    descriptor: int
    offset: int
    size: int


async def open_path(path: str) -> Span:
    """Open a file for reading: all of it, as long as it is now.

    Raises:
        InvalidMessage: it is not there, not to be read, or no regular file.
    """
    return await trio.to_thread.run_sync(_open, path)


async def measure(descriptor: int, offset: int | None, count: int | None) -> Span:
    """`count` bytes from `offset` on, at most up to the end; `None` is from the current position, and up to the end.

    From the current position on, that moves to behind them.

    Raises:
        InvalidMessage: it is not open, or no regular file.
    """
    return await trio.to_thread.run_sync(_measure, descriptor, offset, count)


async def read(descriptor: int, offset: int, count: int) -> bytes:
    """At least one byte, at most `count` and at most `PIECE`.

    Raises:
        InvalidMessage: the file has become shorter, or can't be read.
    """
    return await trio.to_thread.run_sync(_read, descriptor, offset, min(count, PIECE))


async def load(descriptor: int, offset: int, count: int) -> None:
    """Have the system read this into its memory, if it is not there, so that to copy it is not to wait for a disk."""
    await trio.lowlevel.checkpoint_if_cancelled()
    if not _is_loaded(descriptor, offset + count - 1):
        await trio.to_thread.run_sync(_load, descriptor, offset, count)


def _is_loaded(descriptor: int, offset: int) -> bool:
    """Whether the byte at `offset` is in the system's memory, or not in the file at all."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except (AttributeError, OSError):  # it is not, or this system or file system does not tell
        return False
    return True


def _load(descriptor: int, offset: int, count: int) -> None:
    with suppress(OSError):  # whoever copies it meets that too
        os.pread(descriptor, count, offset)


def _open(path: str) -> Span:
    try:
        # Without O_NONBLOCK, to open a named pipe is to wait for whoever writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # no path has a NUL in it, or a lone surrogate
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidMessage(f"http.response.pathsend: can't open {path!r}: {reason}") from error
    size = _size(descriptor)
    if size is None:
        os.close(descriptor)
        raise InvalidMessage(f"http.response.pathsend: {path!r} is not a regular file")
    return Span(descriptor, 0, size)


def _measure(descriptor: int, offset: int | None, count: int | None) -> Span:
    try:
        size = _size(descriptor)
        if size is None:
            raise InvalidMessage("http.response.zerocopysend: file must be a regular file")
        start = os.lseek(descriptor, 0, os.SEEK_CUR) if offset is None else offset
        rest = max(size - start, 0)
        length = rest if count is None else min(count, rest)
        if offset is None:
            os.lseek(descriptor, start + length, os.SEEK_SET)
    except OSError as error:
        raise InvalidMessage(f"http.response.zerocopysend: can't read file: {error.strerror}") from error
    return Span(descriptor, start, length)


def _size(descriptor: int) -> int | None:
    status = os.fstat(descriptor)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _read(descriptor: int, offset: int, count: int) -> bytes:
    try:
        data = os.pread(descriptor, count, offset)
    except OSError as error:
        raise InvalidMessage(f"the file can't be read any more: {error.strerror}") from error
    if not data:
        raise InvalidMessage(f"the file became shorter while it was sent: it ends at {offset} bytes")
    return data
