"""One accepted stream, written within a time limit and given up as a whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import trio

from trigi._protocol.scope import ConnectionInfo
from trigi.exceptions import ClientDisconnected

from . import files
from .direct import READ_SIZE
from .socket_stream import SocketStream

__all__ = ["Transport"]

WRITE_SIZE = 64 * 1024
"""Bytes that `write_timeout` applies to: a large write has this long for each of its pieces, not for all."""


COPY_SIZE = 256 * 1024
"""Bytes of a file that are copied at once at most: about what a socket takes, and no long time for the other tasks."""

AT_ONCE_SIZE = 257 * 1024
"""Bytes that a task may write to a socket that takes them before it lets others run: 256 KiB with what is around it."""

AT_ONCE_COST = 4096
"""What each write counts for beside its bytes: small ones take time, too."""

DISCARD_SIZE = 256 * 1024
"""Bytes of a request's body that are read for nothing after its response, so that the connection can be used on."""

DISCARD_SECONDS = 2.0
"""How long a client has for that, and how long a closing connection waits for it to read what was sent last."""

CLOSE_SECONDS = 2.0
"""What a closing stream may take to say good-bye (TLS has an alert for it)."""


Arguments = TypeVarTuple("Arguments")


class Transport:
    """A stream, what is known of it, and writes that end.

    Reading is the reader's alone (invariant I1) and goes to `stream` directly. Writes may come from any task: one
    goes on the wire after the other (I2).

    Attributes:
        stream: the stream, its TLS handshake done.
        direct: what the stream is over, if that is a socket, and can be read and written without waiting.
        info: its endpoints and TLS.
        broken: nothing can be written any more.
        closed: the stream is, or is being.
        copies_files: `send_file` can be used: the stream is a socket, and nothing encrypts what goes through it.
    """

    def __init__(self, stream: trio.abc.Stream, info: ConnectionInfo, write_timeout: float) -> None:
        self.stream = stream
        self.info = info
        self.closed = False
        self.direct = stream.direct if isinstance(stream, SocketStream) else None
        self.copies_files = self.direct is not None and self.direct.can_copy_files
        self.broken = False
        self._write_timeout = write_timeout
        self._lock: trio.Lock | None = None  # made when it is first needed
        self._writing: trio.CancelScope | None = None
        self._at_once = 0  # bytes that were written since others could run

    async def write(self, parts: list[bytes]) -> None:
        """Write the parts, nothing else between them; a client has `write_timeout` for each `WRITE_SIZE` bytes.

        Raises:
            ClientDisconnected: the client has gone, or takes nothing.

        Cancellation: before anything is written it changes nothing. Later, what was being written may be half on the
        wire, so the transport is broken from then on.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        direct = self.direct
        is_alone = not self.broken and (self._lock is None or not self._lock.locked())
        if direct is not None and is_alone and sum(map(len, parts)) <= AT_ONCE_SIZE:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            try:
                sent = direct.send_nowait(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self.broken = True
                raise ClientDisconnected("the client has disconnected") from error
            self._at_once += sent + AT_ONCE_COST
            if sent == len(data):  # as nearly always
                if self._at_once > AT_ONCE_SIZE:
                    self._at_once = 0
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return
            parts = [data[sent:]]
        await self._alone(self._write_parts, parts)

    async def send_file(
        self, before: bytes, span: files.Span, after: bytes, report: Callable[[int], None]
    ) -> None:
        """Write a part of a file, copied by the system, between these bytes; the rest is as for `write`.

        Args:
            before: what goes in front of it.
            span: the part.
            after: what goes behind it.
            report: told of every number of bytes that were copied.

        Raises:
            ClientDisconnected: the client has gone, or takes nothing.
            InvalidMessage: the file can't be read, or has become shorter.
        """
        await self._alone(self._copy_file, before, span, after, report)

    async def _alone(
        self, write: Callable[[*Arguments, trio.CancelScope], Awaitable[None]], *args: *Arguments
    ) -> None:
        """Write as the only one, in a cancel scope of its own: what ends that write breaks the transport."""
        lock = self._lock = self._lock or trio.Lock()
        try:
            lock.acquire_nowait()
        except trio.WouldBlock:
            await lock.acquire()
        try:
            with trio.CancelScope() as self._writing:
                await write(*args, self._writing)
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.broken = True
            raise ClientDisconnected("the client has disconnected") from error
        except BaseException:
            self.broken = True
            raise
        finally:
            self._writing = None
            lock.release()
        self.broken = True
        raise ClientDisconnected("the client has disconnected, or took no data within write_timeout")

    async def _write_parts(self, parts: list[bytes], scope: trio.CancelScope) -> None:
        if self.broken:
            raise trio.BrokenResourceError
        if sum(map(len, parts)) <= WRITE_SIZE:
            parts = [b"".join(parts)]
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(part), WRITE_SIZE):
                scope.deadline = trio.current_time() + self._write_timeout
                await self.stream.send_all(view[start : start + WRITE_SIZE])

    async def _copy_file(
        self,
        before: bytes,
        span: files.Span,
        after: bytes,
        report: Callable[[int], None],
        scope: trio.CancelScope,
    ) -> None:
        assert self.direct is not None
        await self._write_parts([before], scope)
        descriptor, offset, count = span
        to_come = 0  # before the client gets more time
        while count:
            if to_come <= 0:
                to_come = WRITE_SIZE
                scope.deadline = trio.current_time() + self._write_timeout
            size = min(count, COPY_SIZE)
            await files.load(descriptor, offset, size)
            try:
                copied = self.direct.copy_file(descriptor, offset, size)
            except BlockingIOError:
                await self.stream.wait_send_all_might_not_block()
                continue
            except OSError:  # the socket's fault, or the file's, or nobody's: not every file system can do it
                copied = 0
            if not copied:  # or the end of the file: these two know what it is
                data = await files.read(descriptor, offset, size)
                await self.stream.send_all(data)
                copied = len(data)
            report(copied)
            offset += copied
            count -= copied
            to_come -= copied
            if count:
                await trio.lowlevel.checkpoint()
        if after:
            await self._write_parts([after], scope)

    def give_up(self) -> None:
        """Write nothing more, and end the write that is waiting for the client."""
        self.broken = True
        if self._writing is not None:
            self._writing.cancel()

    def has_unread(self) -> bool:
        """Whether bytes have come that were not read, as far as that can be seen: on a socket."""
        return self.direct is not None and self.direct.has_unread()

    def reset_on_close(self) -> None:
        """Have the stream closed by RST, where it can be: for a response that only its close could end."""
        if self.direct is not None:
            self.direct.reset_on_close()

    async def linger(self, seconds: float) -> None:
        """Say that no more will come, and read what the client still sends, so that it can read the response.

        Closing with unread bytes in the receive buffer makes the kernel send RST, upon which a client may lose what
        it has not read yet (RFC 9112, 9.6).
        """
        with trio.move_on_after(seconds):
            try:
                if isinstance(self.stream, trio.abc.HalfCloseableStream):  # trio's TLS is not
                    await self.stream.send_eof()
                while await self.stream.receive_some(READ_SIZE):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                return

    async def close(self) -> None:
        """Close in order if the stream can do so within `CLOSE_SECONDS`, in any case close; once more does nothing."""
        if self.closed:
            return
        self.closed = True
        if self.direct is not None:
            self.direct.close(in_order=not self.broken)
            self.broken = True
            return
        with trio.move_on_after(CLOSE_SECONDS):
            try:
                if not self.broken:
                    await self.stream.aclose()
                    return
            except (trio.BrokenResourceError, trio.BusyResourceError):
                pass
        self.broken = True
        await trio.aclose_forcefully(self.stream)
