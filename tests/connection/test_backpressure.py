"""Memory for each connection is bounded, whatever its client and its application do."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.connection.conftest import echo, hello, read_body, respond, send_body, socket_like_pair, start
from trigi._connection.direct import READ_SIZE
from trigi._connection.transport import DISCARD_SECONDS, DISCARD_SIZE
from trigi.exceptions import ClientDisconnected

PIPE = 1000
"""Bytes on their way in each direction, on the streams of these tests."""


def narrow_pair():
    return socket_like_pair(PIPE)


async def push(client, data, seconds=100):
    """Send the data again and again until nobody takes more; how many bytes were taken."""
    pipe = client.stream._outgoing
    sent = 0
    with trio.move_on_after(seconds):
        while True:
            await client.send(data)
            sent += len(data)
            if sent > 10 * 1024 * 1024:
                pytest.fail("there is no bound")
    return sent + len(data) - (pipe.size - len(pipe.data))


# Uploads


async def never_receives(scope, receive, send):
    await trio.sleep(1000)
    await respond(send)


async def receives_once(scope, receive, send):
    await receive()
    await trio.sleep(1000)
    await respond(send)


@pytest.mark.parametrize("application", [never_receives, receives_once])
@pytest.mark.parametrize(
    ("framing", "piece"),
    [
        (b"content-length: 1000000000", b"x" * 10_000),
        (b"transfer-encoding: chunked", b"2710\r\n" + b"x" * 10_000 + b"\r\n"),
        (b"transfer-encoding: chunked", b"1\r\nx\r\n" * 1000),
        (b"transfer-encoding: chunked", b"1\r\nx\r\n"),
    ],
    ids=["length", "chunks", "many small chunks", "small chunks"],
)
@pytest.mark.parametrize("pair", [narrow_pair, socket_like_pair], ids=["narrow", "wide"])
async def test_an_upload_that_nobody_reads(serve, application, framing, piece, pair):
    """The client can't send more than a few reads' worth. [HR-10]"""
    client = serve(application, pair=pair)
    await client.send(b"POST / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n" % framing)
    assert await push(client, piece) <= 4 * READ_SIZE + len(piece)


async def test_a_slow_application_slows_its_client(serve):
    """And gets all of it, in its order."""
    taken = 0

    async def app(scope, receive, send):
        nonlocal taken
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            taken = len(body)
            if not message["more_body"]:
                break
            await trio.sleep(1)
        await respond(send, body)

    client = serve(app, pair=narrow_pair)
    body = bytes(n % 251 for n in range(50_000))
    ahead = []
    await client.request("POST", headers=[(b"content-length", b"50000")])
    for begin in range(0, 50_000, 100):
        await client.send(body[begin : begin + 100])
        ahead.append(begin + 100 - taken)
    assert (await client.response()).body == body
    assert max(ahead) <= 5 * PIPE


async def test_one_message_is_no_larger_than_one_read(serve):
    sizes = []

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await respond(send)

    client = serve(app)
    await client.fetch(method="POST", body=b"x" * 1_000_000)
    assert max(sizes) <= READ_SIZE


async def test_an_upload_after_the_response(serve):
    """What is read for nothing is bounded as well."""
    client = serve(hello, pair=narrow_pair)
    await client.request("POST", headers=[(b"transfer-encoding", b"chunked")])
    assert (await client.response()).status == 200
    sent = 0
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            sent += 1000
            await trio.sleep(0.01)
    assert sent <= DISCARD_SIZE + 100_000 * (DISCARD_SECONDS + 0.1)
    assert len(client.observer.ended) == 1


async def test_an_unread_upload_does_not_delay_the_end_of_the_response(serve):
    """The reader waits for the application to take the upload: its response sets it free."""
    client = serve(never_receives, pair=narrow_pair)
    await client.request("POST", headers=[(b"content-length", b"200000")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"x" * 200_000)
        assert (await client.response()).status == 200
    assert (await client.fetch()).status == 200


# Pipelining


@pytest.mark.parametrize("limit", [1000, 100_000])
async def test_requests_behind_one_that_takes_long(serve, limit):
    """What is read ahead of them is bounded."""
    client = serve(never_receives, pair=narrow_pair, pipelined_size_limit=limit)
    await client.request()
    taken = await push(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
    assert limit <= taken <= limit + READ_SIZE + 4 * PIPE


async def test_requests_behind_one_are_answered_however_many(serve):
    """More than is read ahead at once: nothing is lost, and nothing stands still."""

    async def app(scope, receive, send):
        await trio.sleep(1)
        await respond(send, scope["raw_path"])

    client = serve(app, pair=narrow_pair, pipelined_size_limit=500)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send_all():
            for number in range(200):
                await client.request(target=f"/{number}")

        for number in range(200):
            assert (await client.response()).body == b"/%d" % number


async def test_a_client_that_asks_and_never_reads(serve):
    """Its requests are not read on while the answers have no room; at last it is left."""
    calls = 0

    async def app(scope, receive, send):
        nonlocal calls
        calls += 1
        await respond(send, b"x" * 500)

    client = serve(app, pair=narrow_pair, pipelined_size_limit=1000, write_timeout=200)
    taken = await push(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert taken <= 1000 + READ_SIZE + 4 * PIPE
    assert calls <= 3
    await client.done.wait()


# Downloads


@pytest.mark.parametrize("length", [True, False])
async def test_a_download_that_nobody_reads(serve, length):
    """The application can't send ahead: `send` waits. And when the client reads, it has all of it. [HT-18]"""
    sent = 0
    total = 64 * 1024 * 1024
    piece = bytes(range(256)) * 1024

    async def app(scope, receive, send):
        nonlocal sent
        await start(send, headers=[(b"content-length", b"%d" % total)] if length else [])
        while sent < total:
            await send_body(send, piece, more=True)
            sent += len(piece)
        await send_body(send)

    client = serve(app, pair=socket_like_pair, write_timeout=1000)
    await client.request()
    await trio.sleep(100)
    assert sent <= len(piece)
    await client.head()
    received = 0
    while data := await client.data():
        assert data == (piece[received % 256 :] + piece)[: len(data)]
        received += len(data)
        assert sent - received <= 2 * len(piece)
    assert received == total


async def test_lockstep(serve):
    """Without any buffer between them nobody waits for ever."""
    client = serve(echo, pair=trio.testing.lockstep_stream_pair)
    for _ in range(3):
        assert (await client.fetch(method="POST", body=b"x" * 200_000)).body == b"x" * 200_000


async def test_reading_and_writing_at_once(serve):
    """A client that sends while it reads, over an application that sends while it receives."""

    async def app(scope, receive, send):
        await start(send)
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send_body(send, message["body"], more=more)

    client = serve(app, pair=narrow_pair)
    body = bytes(n % 251 for n in range(100_000))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send_all():
            await client.request("POST", body=body)

        await client.settle()
        assert (await client.response()).body == body


async def test_tasks_that_send_at_once(serve):
    """One piece goes on the wire after the other, none is torn."""

    async def app(scope, receive, send):
        await start(send)
        async with trio.open_nursery() as nursery:
            for letter in (b"a", b"b", b"c"):
                nursery.start_soon(
                    send, {"type": "http.response.body", "body": letter * 5000, "more_body": True}
                )
        await send_body(send)

    client = serve(app, pair=narrow_pair)
    body = (await client.fetch()).body
    assert len(body) == 15_000
    assert body.replace(b"a" * 5000, b"").replace(b"b" * 5000, b"").replace(b"c" * 5000, b"") == b""


async def test_tasks_that_send_at_once_to_a_client_that_leaves(serve):
    """All are told, also those whose turn had not come."""
    raised = []

    async def app(scope, receive, send):
        async def send_piece():
            with pytest.raises(ClientDisconnected):
                await send_body(send, b"x" * 5000, more=True)
            raised.append(trio.current_time())

        await start(send)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send_piece)

    client = serve(app, pair=narrow_pair)
    await client.request()
    await trio.sleep(7)
    began = trio.current_time()
    await client.leave()
    await client.done.wait()
    assert raised == [began] * 3


# Silence


async def test_2000_silent_connections(serve):
    """They are left after their time, and leave nothing behind."""
    first = serve(hello, header_timeout=10)
    clients = [first, *(serve(hello, context=first.context) for _ in range(1999))]
    await first.settle()
    assert len(first.context.connections) == 2000
    await trio.sleep(9)
    assert (await serve(hello, context=first.context).fetch()).status == 200
    await trio.sleep(10)
    assert all(client.done.is_set() for client in clients)


async def test_many_requests_on_one_connection_leave_nothing_behind(serve):
    client = serve(echo)
    for number in range(500):
        assert (await client.fetch(method="POST", body=b"%d" % number)).body == b"%d" % number
    await client.settle()
    assert client.context.running == set()
    (connection,) = client.context.connections
    assert len(connection._applications.child_tasks) == 1  # which waits for the next request


async def test_a_body_that_is_read_slowly_to_the_last_byte(serve):
    """The reader's last piece waits for room: its end is not lost."""

    async def app(scope, receive, send):
        await trio.sleep(10)
        await respond(send, await read_body(receive))

    client = serve(app)
    await client.request("POST", headers=[(b"content-length", b"4")])
    for byte in (b"a", b"b", b"c", b"d"):
        await client.send(byte)
        await client.settle()
    assert (await client.response()).body == b"abcd"
