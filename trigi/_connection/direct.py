"""A connected socket, with nothing between trio's event loop and the system calls.

Three things make it cheap. Reading waits for the socket first, since after a request there is nearly always nothing
more, and a call that only says so costs as much as one that reads. The socket is registered once with the system, which
tells whenever something comes (`readiness`). And what is there can be read, what there is room for written, without a
checkpoint: a response that the socket takes at once needs no deadline, no cancel scope and no task switch.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from socket import MSG_PEEK, SO_LINGER, SOL_SOCKET, socket
from typing import Any

import trio

from .readiness import Readiness

__all__ = ["READ_SIZE", "DirectSocket"]

READ_SIZE = 64 * 1024
"""Bytes that are read at once if nobody says how many: as much as a socket usually has."""


class DirectSocket:
    """What is read from a socket and written to it with one call each.

    Args:
        connected: a stream socket, which is this one's from then on.
        peer: the address of its other end, if that is known already; as the `socket` module gives it.

    Attributes:
        socket: it.
        claim: asked when something has come for which somebody waits in `wait_readable`: whether somebody else is going
            to read it, by `receive_nowait`.
        receiving: a task reads it in the stream's way.
        sending: a task writes to it in the stream's way.
        ended: nothing more is to be sent.
    """

    can_copy_files = hasattr(os, "sendfile")
    """Whether `copy_file` is there: nothing encrypts what goes through the socket."""

    def __init__(self, connected: socket, peer: Any = None) -> None:
        connected.setblocking(False)
        self.socket = connected
        self.claim: Callable[[], bool] | None = None
        self.receiving = False
        self.sending = False
        self.ended = False
        self._peer = peer
        self._readable = True  # as far as is known: at first there is probably what a client begins with
        self._is_special = False  # the end, say: only a read that finds nothing was the last
        self._pending = False  # something was read from the socket, and is still to be read from here
        self._waiting: trio.lowlevel.Task | None = None  # for the socket to become readable
        self._given_back = b""
        self._readiness: Readiness | None = None  # once it was waited for

    def endpoints(self) -> tuple[Any, Any]:
        """The addresses of the other end and of this one, as the `socket` module gives them.

        Raises:
            OSError: the connection is broken.
        """
        return self.socket.getpeername() if self._peer is None else self._peer, self.socket.getsockname()

    def check_open(self) -> int:
        """The socket's descriptor; `trio.ClosedResourceError` if it was closed."""
        descriptor = self.socket.fileno()
        if descriptor < 0:
            raise trio.ClosedResourceError("this socket was closed")
        return descriptor

    def failed(self, error: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
        """What an error of the socket means."""
        if self.socket.fileno() < 0:
            return trio.ClosedResourceError("this socket was closed")
        return trio.BrokenResourceError(f"the connection is broken: {error}")

    # Reading

    @property
    def may_have_unread(self) -> bool:
        """Whether there may be something to be read already."""
        return self._readable or self._pending or bool(self._given_back)

    def read(self, size: int) -> bytes | None:
        """What was given back, or else is there; `None` if that is nothing, `b""` at the end.

        Raises:
            OSError: the connection is broken, or the socket was closed.
        """
        if self._given_back:
            data, self._given_back = self._given_back[:size], self._given_back[size:]
            return data
        return self._read(size)

    def receive_nowait(self, size: int) -> bytes | None:
        """As `read`. Whoever waits in `wait_readable` waits on.

        Raises:
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: the socket was closed.
        """
        try:
            data = self.read(size)
        except OSError as error:
            raise self.failed(error) from error
        finally:
            if self._readable or self._pending:
                self._wake()
        return data

    def give_back(self, data: bytes) -> None:
        """Have whoever waits in `wait_readable` read what was read last, or look whether there is anything else."""
        self._given_back = data + self._given_back
        self._wake()

    async def wait_readable(self) -> None:
        """Wait until there is something to be read from the socket; if that is known already, let others run.

        Raises:
            trio.ClosedResourceError: the socket was closed, or is meanwhile.
        """
        descriptor = self.check_open()
        if self._readable:
            await trio.lowlevel.checkpoint()
        elif self._is_watched(descriptor):
            self._waiting = trio.lowlevel.current_task()
            try:
                await trio.lowlevel.wait_task_rescheduled(self._wait_no_more)
            except BaseException:  # Ctrl-C may come before it waits
                self._waiting = None
                raise
            self.check_open()
        else:
            await trio.lowlevel.wait_readable(descriptor)
            self._readable = True

    def has_unread(self) -> bool:
        """Whether bytes have come that were not read: upon which to close would be to reset."""
        try:
            return bool(self._given_back or self.socket.recv(1, MSG_PEEK))
        except OSError:  # there is nothing, or never will be
            return False

    # Writing

    def write(self, data: bytes | memoryview) -> int:
        """Write what the socket takes: how many bytes that was. The rest of them is what comes next, if anything.

        Raises:
            OSError: the connection is broken, or the socket was closed.
        """
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def send_nowait(self, data: bytes | memoryview) -> int:
        """As `write`.

        Raises:
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: the socket was closed.
            trio.BusyResourceError: another task is sending.
        """
        if self.sending:
            raise trio.BusyResourceError("another task is sending on this socket")
        if self.ended:
            raise trio.ClosedResourceError("the sending side of this socket was closed")
        try:
            return self.write(data)
        except OSError as error:
            raise self.failed(error) from error

    def copy_file(self, descriptor: int, offset: int, count: int) -> int:
        """Have the system copy as much of a file as the socket takes at once: how many bytes that was.

        Raises:
            BlockingIOError: the socket takes nothing now.
            OSError: the socket is broken, or the file system can't do it.
        """
        return os.sendfile(self.socket.fileno(), descriptor, offset, count)

    # Closing

    def end(self) -> None:
        """Say that no more will be written, if the protocol has a word for that."""

    def reset_on_close(self) -> None:
        """Have `close` reset the connection, rather than end it in order."""
        self.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))

    def close(self, *, in_order: bool) -> None:
        """Close the socket; tasks that wait for it get `trio.ClosedResourceError`. Once more does nothing.

        Args:
            in_order: say so to the other end, if the protocol has a word for it, and there is room.
        """
        if self.socket.fileno() >= 0:
            if in_order:
                self.end()
            if self._readiness is not None:
                self._readiness.forget(self.socket.fileno())
            if self.sending or (self.receiving and self._waiting is None):  # somebody waits in trio's way
                trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
            self._wake()

    # What is underneath

    def _read(self, size: int) -> bytes | None:
        return self._receive(size)

    def _receive(self, size: int) -> bytes | None:
        """One call of the system's: what there is of so many bytes."""
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            self._readable = self._is_special = False
            return None
        # Less than was asked for was all there was, and what comes next will be told: but not at the end, an error, or
        # an urgent byte.
        self._readable = not 0 < len(data) < size or self._is_special
        return data

    def _is_watched(self, descriptor: int) -> bool:
        """Whether it is told when something comes: from the first time on that somebody waits for it."""
        if self._readiness is None:
            # The system may not watch any more, or have no descriptor left: trio may have more luck.
            with suppress(OSError):
                readiness = Readiness.current()
                if readiness is not None:
                    readiness.watch(descriptor, self._became_readable)
                    self._readiness = readiness
        return self._readiness is not None

    def _became_readable(self, is_special: bool) -> None:
        self._readable = True
        self._is_special |= is_special
        if self._waiting is None or self.claim is None or not self.claim():
            self._wake()

    def _wake(self) -> None:
        """Let the task that waits look at the socket."""
        if self._waiting is not None:
            task, self._waiting = self._waiting, None
            trio.lowlevel.reschedule(task)

    def _wait_no_more(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED
