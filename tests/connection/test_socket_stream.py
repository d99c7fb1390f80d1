"""The thin streams: trio's own suite for streams, what a cancelled call leaves, and fairness."""

from __future__ import annotations

import socket
import ssl

import pytest
import trio
import trio.testing
import trustme

from tests.connection.conftest import WatchedSocket
from trigi._connection import readiness
from trigi._connection.direct import READ_SIZE
from trigi._connection.direct_tls import ANSWERS_SIZE
from trigi._connection.socket_stream import SocketStream
from trigi._connection.tls_stream import TLSStream

AUTHORITY = trustme.CA()
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
AUTHORITY.issue_cert("localhost").configure_cert(SERVER)
CLIENT = ssl.create_default_context()
AUTHORITY.configure_trust(CLIENT)


@pytest.fixture(autouse=True, params=[True, False], ids=["epoll", "no epoll"])
def system(request, monkeypatch):
    """Where there is no epoll, streams wait in trio's way."""
    if not request.param:
        monkeypatch.setattr(readiness, "HAS_EPOLL", False)


def sockets() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    return one, other


async def plain_pair(connect=sockets) -> tuple[SocketStream, SocketStream]:
    one, other = connect()
    return SocketStream(one), SocketStream(other)


async def tls_pair(connect=sockets) -> tuple[TLSStream, trio.SSLStream]:
    """A server's end and a client's, after the handshake."""
    one, other = connect()
    server = TLSStream(one, SERVER)
    client = trio.SSLStream(SocketStream(other), CLIENT, server_hostname="localhost", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    # With it come the session's tickets: a client who leaves them unread resets the connection when it closes it.
    await server.send_all(b"hello")
    assert await client.receive_some() == b"hello"
    return server, client


async def local_pair() -> tuple[SocketStream, SocketStream]:
    """Without TCP, whose buffers take ever more."""
    one, other = socket.socketpair()
    return SocketStream(one), SocketStream(other)


def watched() -> tuple[socket.socket, socket.socket]:
    """The same, and what is read from the first is noted."""
    one, other = sockets()
    return WatchedSocket(one), other


async def clogged_pair() -> tuple[SocketStream, SocketStream]:
    """Neither end can send any more."""
    pair = await local_pair()
    for stream in pair:
        while stream.direct.send_nowait(bytes(1 << 16)):
            pass
    return pair


async def test_a_socket_stream_is_a_stream():
    await trio.testing.check_half_closeable_stream(local_pair, clogged_pair)


async def test_a_tls_stream_is_a_stream():
    await trio.testing.check_two_way_stream(tls_pair, None)


@pytest.mark.parametrize("make_pair", [plain_pair, tls_pair])
async def test_everything_arrives_however_it_is_read_and_written(make_pair):
    server, client = await make_pair()
    data = bytes(range(256)) * 40_000

    async def echo():
        await server.send_all(await read(server, len(data), 100_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(client.send_all, data)
        assert await read(client, len(data), 1 << 16) == data
    await server.aclose()
    await client.aclose()


async def read(stream, size, at_most):
    received = bytearray()
    while len(received) < size:
        piece = await stream.receive_some(at_most)
        assert piece
        assert len(piece) <= at_most
        received += piece
    return bytes(received)


@pytest.mark.parametrize("make_pair", [plain_pair, tls_pair])
async def test_what_is_not_sent_at_once_can_be_sent_later(make_pair):
    """However much the socket took: the count says it exactly."""
    server, client = await make_pair()
    data = bytes(range(256)) * 80_000
    sent = 0
    while piece := server.direct.send_nowait(data[sent:]):
        sent += piece
    assert 0 < sent < len(data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, data[sent:])
        assert await read(client, len(data), 1 << 16) == data
    await server.aclose()
    await client.aclose()


@pytest.mark.parametrize("make_pair", [plain_pair, tls_pair])
async def test_a_cancelled_read_loses_nothing(make_pair):
    server, client = await make_pair()
    with trio.move_on_after(0.01) as scope:
        await server.receive_some()
    assert scope.cancelled_caught
    await client.send_all(b"abc")
    await trio.lowlevel.wait_readable(server.direct.socket)
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.receive_some()
    assert scope.cancelled_caught
    assert await server.receive_some() == b"abc"
    await server.aclose()
    await client.aclose()


@pytest.mark.parametrize("make_pair", [plain_pair, tls_pair])
async def test_every_call_lets_others_run_and_can_be_cancelled(make_pair):
    server, client = await make_pair()
    await client.send_all(bytes(100_000))
    await trio.lowlevel.wait_readable(server.direct.socket)
    for call in (
        lambda: server.receive_some(1),
        lambda: server.send_all(b"x"),
        lambda: server.receive_some(1),
    ):
        with trio.testing.assert_checkpoints():
            await call()
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.send_all(b"x")
    assert scope.cancelled_caught
    await server.aclose()
    await client.aclose()


async def test_tls_end_of_sending_leaves_reading():
    server, client = await tls_pair()
    await server.send_all(b"last")
    await server.send_eof()
    assert await read(client, 4, 4) == b"last"
    assert await client.receive_some() == b""
    await client.transport_stream.send_all(b"more")  # whatever it is: no secret of TLS's any more
    assert await server.receive_some() == b"more"
    await server.aclose()
    await client.aclose()


async def test_tls_goodbye_and_none():
    """A close in order says so; one that cuts a response off does not, nor one that is forced."""
    for cut_off in (False, True):
        one, other = sockets()
        server = TLSStream(one, SERVER)
        client = trio.SSLStream(SocketStream(other), CLIENT, server_hostname="localhost")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            nursery.start_soon(client.do_handshake)
        await server.send_all(b"x")
        assert await client.receive_some() == b"x"
        if cut_off:
            await trio.aclose_forcefully(server)
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        else:
            await server.aclose()
            assert await client.receive_some() == b""
        await trio.aclose_forcefully(client)


@pytest.mark.parametrize("make_pair", [plain_pair, tls_pair])
async def test_one_task_at_a_time(make_pair):
    server, client = await make_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await server.receive_some()
        nursery.start_soon(server.send_all, bytes(20_000_000))
        await trio.testing.wait_all_tasks_blocked()
        for call in (lambda: server.send_all(b"x"), server.wait_send_all_might_not_block, server.send_eof):
            with pytest.raises(trio.BusyResourceError):
                await call()
        with pytest.raises(trio.BusyResourceError):
            server.direct.send_nowait(b"x")
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(server)
    await trio.aclose_forcefully(client)
    with pytest.raises(trio.ClosedResourceError):
        server.direct.send_nowait(b"x")


async def test_a_size_below_one_is_refused():
    one, other = await plain_pair()
    with pytest.raises(ValueError, match="at least 1"):
        await one.receive_some(0)
    await one.aclose()
    await other.aclose()


async def test_who_always_has_something_to_read_does_not_starve_others():
    """Nor who always has room to write."""
    streams = [await plain_pair() for _ in range(3)]
    turns = []

    async def flood(stream):
        with trio.CancelScope():
            while True:
                await stream.send_all(bytes(10_000))

    async def drain(name, stream):
        for _ in range(50):
            await stream.receive_some(1000)
            turns.append(name)

    async with trio.open_nursery() as floods:
        for sender, _ in streams:
            floods.start_soon(flood, sender)
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with trio.open_nursery() as nursery:
            for number, (_, receiver) in enumerate(streams):
                nursery.start_soon(drain, number, receiver)
        floods.cancel_scope.cancel()
    for number in range(3):
        assert turns[:120].count(number) >= 30
    for pair in streams:
        for stream in pair:
            await trio.aclose_forcefully(stream)


async def test_tls_a_read_takes_no_more_than_a_piece_from_the_socket():
    """However much there is that makes no data, such as changes of keys: other tasks have their turns."""
    server, client = await tls_pair(watched)
    connected = server.direct.socket
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(1_000_000))
        received = 0
        while received < 1_000_000:
            before = len(connected.read)
            await trio.lowlevel.wait_readable(connected)
            received += len(server.direct.receive_nowait(1 << 20) or b"")
            assert len(connected.read) - before <= 1
    assert max(len(data) for _, data in connected.read) <= READ_SIZE
    await server.aclose()
    await client.aclose()


async def test_tls_a_client_that_asks_for_answers_and_does_not_read_is_given_up():
    server, client = await tls_pair(socket.socketpair)  # TCP's buffers would take ever more
    while server.direct.send_nowait(bytes(1 << 16)):
        pass
    server.direct._outgoing.write(bytes(ANSWERS_SIZE + 1))  # as of very many changes of keys
    await client.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError, match="does not read them"):
        await server.receive_some()
    await trio.aclose_forcefully(server)
    await trio.aclose_forcefully(client)


async def test_tls_a_reset_on_close_says_no_goodbye():
    server, client = await tls_pair()
    server.direct.reset_on_close()
    await server.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()


@pytest.mark.parametrize("make_pair", [plain_pair, tls_pair])
async def test_a_stream_that_is_closed_while_it_is_read_waits_for_no_other_socket(make_pair):
    """Not even for one that has got its descriptor."""
    server, client = await make_pair(watched)
    connected = server.direct.socket
    descriptor = connected.fileno()
    others = []

    def close_and_find_nothing(_):
        server.direct.close(in_order=False)
        while not any(each.fileno() == descriptor for each in others):
            others.extend(socket.socketpair())
        raise BlockingIOError

    connected.on_read = close_and_find_nothing
    await client.send_all(b"x")
    with trio.fail_after(60), pytest.raises(trio.ClosedResourceError):
        await server.receive_some()
    for each in others:
        each.close()
    await trio.aclose_forcefully(client)


async def test_what_is_unread_is_seen():
    server, client = await local_pair()
    assert not server.direct.has_unread()
    await client.send_all(b"a")
    assert server.direct.has_unread()
    assert await server.receive_some() == b"a"
    await client.aclose()
    assert not server.direct.has_unread(), "the end is nothing to be read"
    await server.aclose()
    assert not server.direct.has_unread()
