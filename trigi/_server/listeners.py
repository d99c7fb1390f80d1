"""Listeners: they accept connections, each in its own way, and say where they are to be reached."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import trio

from trigi._connection.socket_stream import SocketStream
from trigi._connection.tls_stream import TLSStream
from trigi._protocol.scope import Endpoint

__all__ = [
    "DirectListener",
    "LimitedListener",
    "SocketFile",
    "UnixListener",
    "close_listeners",
    "listener_urls",
]

UNSENT_SIZE = 64 * 1024
"""Bytes that the system takes before it has sent those before them: what a client that does not read may keep here."""

ACCEPTED_AT_ONCE = 16
"""Connections that are accepted, if there are so many, before other tasks have their turns."""

OPTIONS = [(socket.TCP_NODELAY, 1)]
if hasattr(socket, "TCP_NOTSENT_LOWAT"):
    OPTIONS.append((socket.TCP_NOTSENT_LOWAT, UNSENT_SIZE))

ARE_INHERITED = sys.platform == "linux"
"""Whether a connection has from its listening socket what is set there; elsewhere that differs."""

# What Linux passes on of a connection's own errors (accept(2)), where others have ECONNABORTED alone.
GONE = {
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN"),
        *("ENONET", "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}
"""The errors of `accept` that are about a client that has left: the next may be better off."""


class UnixListener(trio.abc.Listener[trio.SocketStream]):
    """A listening unix socket that was created here: closing it removes its file, if that is still its own.

    Attributes:
        socket: the listening socket, as `trio.SocketListener` has it.
    """

    def __init__(self, listening: trio.SocketListener, file: SocketFile) -> None:
        self.socket = listening.socket
        self._listening = listening
        self._file = file

    async def accept(self) -> trio.SocketStream:
        """As `trio.SocketListener.accept`."""
        return await self._listening.accept()

    def close(self) -> None:
        """Remove the file and close the socket, without a checkpoint; once more does nothing."""
        # In this order, another server finds a live socket or none, and never a stale one to put its own file
        # in place of, which would then be removed here.
        self._file.remove()
        self.socket.close()

    async def aclose(self) -> None:
        """Remove the file and close the socket. Cancellation: both are done all the same."""
        self.close()
        await trio.lowlevel.checkpoint()


class SocketFile:
    """The file of a unix socket that was bound just now."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()  # whatever folder the program changes to
        self._identity: tuple[int, int] | None = self._identify()

    def remove(self) -> None:
        """Remove the file, unless it was removed or replaced since; to be called before the socket is closed.

        As long as the socket is open its inode is not used again: a file of the same inode is the same file.
        """
        if self._identity is not None and self._identity == self._identify():
            with suppress(OSError):  # that a file stays behind is no reason for a server not to end well
                self._path.unlink()
        self._identity = None

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = self._path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


class DirectListener(trio.abc.Listener[SocketStream]):
    """A listener that accepts with one system call, and gives thin streams.

    Args:
        listener: the listening socket that this accepts on, and that is closed with this.
        ssl_context: of the connections.
    """

    def __init__(
        self, listener: trio.SocketListener | UnixListener, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._listener = listener
        self._ssl_context = ssl_context
        self._socket = socket.socket(fileno=listener.socket.fileno())
        self._socket.setblocking(False)
        if ARE_INHERITED:
            _set_options(self._socket)
        self._in_a_row = 0

    async def accept(self) -> SocketStream:
        """The next connection. Other tasks run before it if it must be waited for, and after every few.

        Raises:
            trio.ClosedResourceError: the listener is closed, or was while this waited.
            OSError: the system can't, as when it has no descriptor left.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._in_a_row >= ACCEPTED_AT_ONCE:
                self._in_a_row = 0
                await trio.lowlevel.checkpoint()
            self._in_a_row += 1
            try:
                accepted, client = self._socket.accept()
            except BlockingIOError:
                self._in_a_row = 0
                await trio.lowlevel.wait_readable(self._socket)
                continue
            except OSError as error:
                if self._listener.socket.fileno() < 0:
                    raise trio.ClosedResourceError("this listener was closed") from None
                if error.errno not in GONE:
                    raise
                continue
            if not ARE_INHERITED:
                _set_options(accepted)
            if self._ssl_context is None:
                return SocketStream(accepted, client)
            return TLSStream(accepted, self._ssl_context, client)

    async def aclose(self) -> None:
        """Close the listening socket."""
        self._socket.detach()
        await self._listener.aclose()


def _set_options(connected: socket.socket) -> None:
    for option in OPTIONS:
        with suppress(OSError):  # a unix socket has none of them
            connected.setsockopt(socket.IPPROTO_TCP, *option)


class LimitedListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener that holds each connection back until there is a slot for it.

    Several listeners share the slots. Each stream that `accept` returns owns one, which whoever serves the stream
    must give back, once, when the connection has ended:

        slots = trio.Semaphore(limit, max_value=limit)
        limited = [LimitedListener(listener, slots) for listener in listeners]
        …
        try:
            await serve_stream(stream, …)
        finally:
            slots.release()

    While there is none, connections wait in the backlog of the operating system. A listener that waits for a
    client holds no slot, so that none is kept from the clients of another listener.
    """

    def __init__(self, listener: trio.abc.Listener[Any], slots: trio.Semaphore) -> None:
        self.listener = listener
        self._slots = slots
        self._accepting: set[trio.CancelScope] = set()

    async def accept(self) -> trio.abc.Stream:
        """The next connection, with a slot of its own.

        Raises:
            trio.ClosedResourceError: the listener is closed, or was while this waited.
            OSError: as the listener inside raises it.

        Cancellation: takes no slot. A connection that waited for one, because another listener's took the last,
        is closed.
        """
        with trio.CancelScope() as scope:
            self._accepting.add(scope)
            try:
                await self._slots.acquire()
                self._slots.release()
                stream: trio.abc.Stream = await self.listener.accept()
                try:
                    await self._slots.acquire()
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
                return stream
            finally:
                self._accepting.discard(scope)
        raise trio.ClosedResourceError("this listener was closed")

    async def aclose(self) -> None:
        """Close the listener inside; slots stay with their connections."""
        for scope in self._accepting:
            scope.cancel()
        await self.listener.aclose()


async def close_listeners(listeners: Iterable[trio.abc.Listener[Any]]) -> None:
    """Close every listener, without waiting for anything; those that are closed already stay so.

    Cancellation: closes all of them all the same, and is not noticed here.
    """
    for listener in listeners:
        # as trio.aclose_forcefully, but that would pass a cancellation on before the next listener has its turn
        with trio.CancelScope(shield=True, deadline=-inf):
            await listener.aclose()


def listener_urls(listeners: Iterable[trio.abc.Listener[Any]], *, tls: bool) -> list[str]:
    """Where to reach each listener: `http://127.0.0.1:8000`, `https://[::1]:8443`, `unix:/run/app.sock`.

    Args:
        listeners: listeners of any kind; one that is no socket is called by its class.
        tls: what is accepted will speak TLS. A `trio.SSLListener` needs no telling.
    """
    return [_url(listener, "https" if tls else "http") for listener in listeners]


def _url(listener: trio.abc.Listener[Any], scheme: str) -> str:
    match listener:
        case LimitedListener():
            return _url(listener.listener, scheme)
        case trio.SSLListener():
            return _url(listener.transport_listener, "https")
        case trio.SocketListener() | UnixListener():
            name = listener.socket.getsockname()
            if listener.socket.family == socket.AF_UNIX:
                # a name in Linux's abstract namespace begins with NUL, which is customarily written @
                return f"unix:{os.fsdecode(name).replace(chr(0), '@')}"
            return f"{scheme}://{Endpoint(*name[:2])}"
        case _:
            return type(listener).__name__
