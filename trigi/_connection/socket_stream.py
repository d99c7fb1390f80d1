"""A thin stream over a socket: what trio knows of one that can be read and written directly."""

from __future__ import annotations

from operator import index
from socket import SHUT_WR, socket
from typing import Any

import trio

from .direct import READ_SIZE, DirectSocket

__all__ = ["SocketStream", "as_direct"]


class SocketStream(trio.abc.HalfCloseableStream):
    """A connected socket as a stream.

    Every method that is async is a checkpoint, and lets other tasks run.

    Args:
        connected: a stream socket, which is the stream's from then on.
        peer: the address of its other end, if that is known already; as the `socket` module gives it.

    Attributes:
        direct: what it is made of, for those who need not wait.
    """

    def __init__(self, connected: socket, peer: Any = None) -> None:
        self.direct = DirectSocket(connected, peer)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What came, `b""` at the end. Cancellation loses nothing."""
        size = READ_SIZE if max_bytes is None else index(max_bytes)
        if size < 1:
            raise ValueError("max_bytes must be at least 1")
        direct = self.direct
        if direct.receiving:
            raise trio.BusyResourceError("another task is receiving on this socket")
        direct.check_open()
        direct.receiving = True
        try:
            if direct.may_have_unread:
                await trio.lowlevel.checkpoint()
            else:
                await direct.wait_readable()
            while (data := direct.read(size)) is None:
                await direct.wait_readable()
        except OSError as error:
            raise direct.failed(error) from error
        finally:
            direct.receiving = False
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it. Cancellation: some of it may have been sent."""
        direct = self.direct
        with memoryview(data) as view:
            await trio.lowlevel.checkpoint_if_cancelled()
            descriptor = direct.check_open()
            sent = direct.send_nowait(view)
            if sent == len(view):
                await trio.lowlevel.cancel_shielded_checkpoint()
                return
            direct.sending = True
            try:
                while sent < len(view):
                    await trio.lowlevel.wait_writable(descriptor)
                    sent += direct.write(view[sent:])
            except OSError as error:
                raise direct.failed(error) from error
            finally:
                direct.sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes something."""
        direct = self.direct
        if direct.sending:
            raise trio.BusyResourceError("another task is sending on this socket")
        descriptor = direct.check_open()
        direct.sending = True
        try:
            await trio.lowlevel.wait_writable(descriptor)
        except OSError as error:
            raise direct.failed(error) from error
        finally:
            direct.sending = False

    async def send_eof(self) -> None:
        """Say that no more will be sent; once more does nothing."""
        await trio.lowlevel.checkpoint()
        direct = self.direct
        if direct.sending:
            raise trio.BusyResourceError("another task is sending on this socket")
        direct.ended = True
        try:
            direct.end()
            direct.socket.shutdown(SHUT_WR)
        except OSError as error:
            raise direct.failed(error) from error

    async def aclose(self) -> None:
        """Close the socket, in order unless that is cancelled."""
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.direct.close(in_order=False)
            raise
        self.direct.close(in_order=True)


def as_direct(stream: trio.abc.Stream) -> trio.abc.Stream:
    """A `trio.SocketStream` as one of ours, which has its socket from then on; any other as it is."""
    if isinstance(stream, SocketStream) or not isinstance(stream, trio.SocketStream):
        return stream
    accepted = stream.socket
    kind = accepted.family, accepted.type, accepted.proto
    return SocketStream(socket(*kind, fileno=accepted.detach()))
