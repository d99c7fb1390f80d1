"""What the tests of connections share: a server in memory, an observer that remembers, a stream like a socket's.

Nothing here touches the network, and time is virtual: it jumps when everybody waits. What holds for every test is
checked when it ends, by `serve`: no bug of trigi's was reported, each exchange was reported once, every connection
came to its end, and its stream was closed.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from trigi._connection.context import ServerContext
from trigi._connection.observer import Observer
from trigi._connection.serve import serve_stream
from trigi._connection.socket_stream import SocketStream
from trigi.config import Config
from trigi.testing import HTTPClient

LONG = 100_000.0
"""Seconds after which whatever still waits would wait for ever: more than all timeouts of a test together."""


@dataclass
class Ended:
    """An exchange as its report was when it was made."""

    target: bytes
    status: int | None
    complete: bool
    bytes_sent: int
    duration: float
    at: float


class Recorder(Observer):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.exchanges: list[Any] = []
        self.ended: list[Ended] = []
        self.failures: list[BaseException] = []
        self.background: list[tuple[str, BaseException]] = []
        self.refused: list[Any] = []
        self.bugs: list[BaseException] = []
        self.handshakes: list[BaseException] = []

    def exchange_ended(self, exchange):
        self.exchanges.append(exchange)
        self.ended.append(
            Ended(
                exchange.request.target,
                exchange.status,
                exchange.complete,
                exchange.bytes_sent,
                exchange.duration,
                trio.current_time(),
            )
        )

    def application_failed(self, exchange, error):
        self.failures.append(error)

    def background_failed(self, name, error):
        self.background.append((name, error))

    def request_refused(self, connection, error):
        self.refused.append(error)

    def connection_failed(self, client, error):
        self.bugs.append(error)

    def handshake_failed(self, client, error):
        self.handshakes.append(error)


class ServedClient(HTTPClient):
    """The client's end of a connection that is being served.

    Attributes:
        server: the server's end of the stream.
        context: the server's.
        observer: has been told what happened; shared by all connections of one context.
        scope: cancels the connection, as the server's own end would.
        done: `serve_stream` has returned.
    """

    def __init__(self, client: trio.abc.Stream, server: trio.abc.Stream, context: ServerContext) -> None:
        super().__init__(client)
        self.server = server
        self.context = context
        self.observer: Any = context.observer
        self.scope = trio.CancelScope()
        self.done = trio.Event()

    async def serve(self) -> None:
        with self.scope:
            await serve_stream(self.server, self.context)
        self.done.set()

    def put(self, data: bytes) -> None:
        """Send in this very moment, as the tasks that run find it."""
        if isinstance(self.stream, SocketStream):
            assert self.stream.direct.send_nowait(data) == len(data)
        else:
            self.server.receive_stream.put_data(data)

    async def leave(self) -> None:
        """Close the connection, as a client does that has lost interest."""
        await trio.aclose_forcefully(self.stream)

    async def settle(self) -> None:
        """Wait until the server has done all it can do at this moment."""
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def virtual_time(request, autojump_clock):
    """Time jumps when everybody waits. (pytest-trio takes a clock only from a test that names it itself.)"""

    def run(test, *, clock, instruments):
        return trio.run(test, clock=clock or autojump_clock, instruments=instruments)

    request.node.add_marker(pytest.mark.trio(run=run), append=False)


class WatchedSocket(socket.socket):
    """A socket that notes what was read from it, and which task has read it.

    Attributes:
        read: pairs of task and data.
        on_read: called with each piece of data.
    """

    def __init__(self, connected):
        super().__init__(fileno=connected.detach())
        self.read = []
        self.on_read = lambda data: None

    def recv(self, size, flags=0):
        data = super().recv(size, flags)
        if not flags:
            self.read.append((trio.lowlevel.current_task(), data))
            self.on_read(data)
        return data


def socket_pair():
    """Two ends of one connection of the system's."""
    client, server = socket.socketpair()
    return tuple(SocketStream(end) for end in (client, server))


PAIRS = {"memory": trio.testing.memory_stream_pair, "socket": socket_pair}
OVER_MEMORY = pytest.mark.parametrize("make_pair", [PAIRS["memory"]], ids=["memory"])


def pytest_generate_tests(metafunc):
    """A module may name the streams that its tests run over: over a socket, who reads is another task at times."""
    streams = getattr(metafunc.module, "STREAMS", ("memory",))
    if "make_pair" in metafunc.fixturenames and not any(
        "make_pair" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize("make_pair", [PAIRS[name] for name in streams], ids=streams)


@pytest.fixture
async def serve(virtual_time, make_pair):
    """Begins to serve an application on one end of a stream, and gives a client on the other.

    Takes the application, settings, and: `pair`, which makes the two ends of the stream; `context`, to have several
    connections of one server; `state`, the lifespan's.
    """
    clients: list[ServedClient] = []

    async def watch() -> None:
        await trio.sleep(LONG)
        pytest.fail("everybody waits for ever")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)

        def begin(application, *, pair=make_pair, context=None, state=None, **settings) -> ServedClient:
            if context is None:
                context = ServerContext(application, Config(**settings), state=state, observer=Recorder())
            client = ServedClient(*pair(), context)
            clients.append(client)
            nursery.start_soon(client.serve)
            return client

        yield begin
        for client in clients:
            await trio.aclose_forcefully(client.stream)
        with trio.move_on_after(LONG / 2):
            for client in clients:
                await client.done.wait()
        nursery.cancel_scope.cancel()
    for client in clients:
        assert client.observer.bugs == []
        assert client.done.is_set(), "a connection did not come to its end"
        assert len(client.observer.exchanges) == len(set(map(id, client.observer.exchanges)))
        assert client.context.running == set()
        assert client.context.connections == set()
        with pytest.raises(trio.ClosedResourceError):
            await client.server.receive_some(1)


@pytest.fixture(scope="session")
def tls_contexts():
    """The SSL contexts of a client and a server that trust each other."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return client, server


@pytest.fixture
def tls_pair(tls_contexts):
    """Makes two ends of a TLS connection, as the server's listeners do, over those that another such function makes."""

    def make(pair=trio.testing.memory_stream_pair):
        (client, server), (client_context, server_context) = pair(), tls_contexts
        return (
            trio.SSLStream(client, client_context, server_hostname="localhost", https_compatible=True),
            trio.SSLStream(server, server_context, server_side=True, https_compatible=True),
        )

    return make


# What applications under test do again and again.


async def read_body(receive):
    """The request's body; `None` if the client went away before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def respond(send, body=b"", *, status=200, headers=()):
    """A response with a content-length."""
    length = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


async def start(send, *, status=200, headers=(), trailers=False):
    message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(message | {"trailers": True} if trailers else message)


async def send_body(send, body=b"", *, more=False):
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def hello(scope, receive, send):
    """The smallest application."""
    await respond(send, b"hello")


async def echo(scope, receive, send):
    """Answers with the request's body."""
    body = await read_body(receive)
    if body is not None:
        await respond(send, body)


# Streams.


class _Pipe:
    """One direction of a connection: at most `size` bytes are on their way."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray()
        self.finished = False  # its writer has said that no more comes
        self.broken = False  # its reader or its writer is gone
        self.changed = trio.lowlevel.ParkingLot()


class SocketLikeStream(trio.abc.HalfCloseableStream):
    """One end of a connection that is as unfriendly as a socket, where memory streams are not.

    Its buffers are bounded. A write that fits is not cancelled. Whoever closes it with unread bytes, or is written to
    after that, resets the connection, by which the other side loses what it has not read (RFC 9112, 9.6). Two tasks
    must not write at once, and to say that no more comes is to write.
    """

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._sending = False
        self._receiving = False
        self._closed = False

    @property
    def unread(self) -> int:
        """Bytes that came and that nobody has read."""
        return len(self._incoming.data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._one_at_a_time():
            await trio.lowlevel.checkpoint_if_cancelled()
            pipe = self._outgoing
            view = memoryview(data)
            while True:
                self._check_open()
                if pipe.broken:
                    self._break()
                    raise trio.BrokenResourceError
                taken = min(len(view), pipe.size - len(pipe.data))
                pipe.data += view[:taken]
                pipe.changed.unpark_all()
                view = view[taken:]
                if not view:
                    break
                await pipe.changed.park()
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        with self._one_at_a_time():
            await trio.lowlevel.checkpoint()
            self._check_open()
            while len(self._outgoing.data) == self._outgoing.size and not self._outgoing.broken:
                await self._outgoing.changed.park()
                self._check_open()

    async def send_eof(self) -> None:
        with self._one_at_a_time():
            await trio.lowlevel.checkpoint()
            self._check_open(eof_allowed=True)
            self._outgoing.finished = True
            self._outgoing.changed.unpark_all()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and not range(max_bytes):  # a TypeError for what is no int
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError
        self._receiving = True
        pipe = self._incoming
        try:
            await trio.lowlevel.checkpoint()
            while True:
                if self._closed:
                    raise trio.ClosedResourceError
                if pipe.data:
                    size = len(pipe.data) if max_bytes is None else max_bytes
                    data = bytes(pipe.data[:size])
                    del pipe.data[:size]
                    pipe.changed.unpark_all()
                    return data
                if pipe.broken:
                    raise trio.BrokenResourceError
                if pipe.finished:
                    return b""
                await pipe.changed.park()
        finally:
            self._receiving = False

    def reset(self) -> None:
        """Close by RST."""
        self._closed = True
        self._break()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            if self._incoming.data:
                self._break()
            else:
                self._outgoing.finished = True
                self._incoming.broken = True
                self._outgoing.changed.unpark_all()
                self._incoming.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def _break(self) -> None:
        for pipe in self._incoming, self._outgoing:
            pipe.data.clear()
            pipe.broken = True
            pipe.changed.unpark_all()

    def _check_open(self, *, eof_allowed: bool = False) -> None:
        if self._closed or (self._outgoing.finished and not eof_allowed):
            raise trio.ClosedResourceError

    @contextmanager
    def _one_at_a_time(self):
        if self._sending:
            raise trio.BusyResourceError
        self._sending = True
        try:
            yield
        finally:
            self._sending = False


def socket_like_pair(size: int = 64 * 1024) -> tuple[SocketLikeStream, SocketLikeStream]:
    """Two ends of one connection, on which at most `size` bytes are on their way in each direction."""
    one, other = _Pipe(size), _Pipe(size)
    return SocketLikeStream(one, other), SocketLikeStream(other, one)
