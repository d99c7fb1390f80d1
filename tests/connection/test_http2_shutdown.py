"""HTTP/2: how connections end: the server's shutdown, the client's GOAWAY, cancellation, a limit of requests."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.connection.conftest import hello, read_body, respond, send_body, socket_like_pair, start
from tests.connection.test_http2 import begin, connect
from trigi.testing.http2 import PREFACE, ErrorCode, FrameType

DISCONNECT = {"type": "http.disconnect"}
ALL_STREAMS = 2**31 - 1


def drain(client):
    """As the server does when it begins to shut down."""
    client.context.draining.set()
    for connection in list(client.context.connections):
        connection.drain()


class Gate:
    """An application that answers when it is told to."""

    def __init__(self):
        self.open = trio.Event()

    async def __call__(self, scope, receive, send):
        body = await read_body(receive)
        await self.open.wait()
        await respond(send, scope["raw_path"] + body)


@pytest.fixture
def gate():
    return Gate()


# The server's shutdown


@pytest.mark.parametrize("requests", [0, 1, 3])
async def test_an_idle_connection_is_closed_at_once(serve, requests):
    client = await connect(serve, hello)
    for _ in range(requests):
        await client.fetch()
    began = trio.current_time()
    drain(client)
    said = await client.wait_closed()
    assert (said.code, said.last_stream_id) == (ErrorCode.NO_ERROR, max(2 * requests - 1, 0))
    assert trio.current_time() == began


async def test_a_connection_that_has_not_begun_is_closed_at_once(serve):
    client = begin(serve, hello)
    client.answers = False
    await client.send(PREFACE)
    await client.settle()
    began = trio.current_time()
    drain(client)
    await client.wait_closed()
    assert trio.current_time() == began


async def test_open_streams_are_finished(serve, gate):
    """In two steps: what the client opens before it has read of the end is still served (RFC 9113, 6.8)."""
    client = await connect(serve, gate)
    first = await client.request(path="/1")
    upload = await client.request("POST", "/2", end_stream=False)
    await client.settle()
    drain(client)
    await client.frame(FrameType.GOAWAY)
    assert (client.goaway.code, client.goaway.last_stream_id) == (ErrorCode.NO_ERROR, ALL_STREAMS)
    between = await client.request(path="/3")
    await client.frame(FrameType.PING)  # and it is answered
    await client.frame(FrameType.GOAWAY)
    assert (client.goaway.code, client.goaway.last_stream_id) == (ErrorCode.NO_ERROR, between)
    late = await client.request(path="/4")
    assert (await client.wait_reset(late)).code == ErrorCode.REFUSED_STREAM
    gate.open.set()
    assert (await client.response(between)).body == b"/3"
    assert (await client.response(first)).body == b"/1"
    await trio.sleep(20)
    assert not client.done.is_set()
    await client.send_body(upload, b"x" * 100_000)
    assert (await client.response(upload)).body == b"/2" + b"x" * 100_000
    began = trio.current_time()
    await client.wait_closed()
    assert trio.current_time() == began
    assert [each.complete for each in client.observer.ended] == [True] * 3


async def test_a_client_that_does_not_answer_the_ping(serve, gate):
    client = await connect(serve, gate)
    stream_id = await client.request(path="/1")
    await client.settle()
    client.answers = False
    drain(client)
    await trio.sleep(10)
    gate.open.set()
    assert (await client.response(stream_id)).body == b"/1"
    said = await client.wait_closed()
    assert said.last_stream_id == stream_id


async def test_it_is_told_once(serve, gate):
    client = await connect(serve, gate)
    stream_id = await client.request(path="/1")
    await client.settle()
    drain(client)
    drain(client)
    gate.open.set()
    frames = []
    with pytest.raises(EOFError):
        while True:
            frames.append((await client.frame(FrameType.GOAWAY, FrameType.PING)).type)
    assert frames == [FrameType.GOAWAY, FrameType.PING, FrameType.GOAWAY]
    assert (await client.response(stream_id)).body == b"/1"


async def test_the_application_is_told_of_the_shutdown(serve):
    async def app(scope, receive, send):
        await scope["extensions"]["trigi"]["shutting_down"].wait()
        await respond(send, b"shutting down")

    client = await connect(serve, app)
    stream_id = await client.request()
    await client.settle()
    drain(client)
    assert (await client.response(stream_id)).body == b"shutting down"
    await client.wait_closed()


async def test_work_after_the_response_does_not_keep_the_connection_open(serve):
    async def app(scope, receive, send):
        await respond(send, b"done")
        await trio.sleep(50)
        ended.append(trio.current_time())

    ended = []
    client = await connect(serve, app)
    began = trio.current_time()
    await client.fetch()
    drain(client)
    await client.wait_closed()
    assert trio.current_time() == began
    await client.done.wait()
    assert ended == [began + 50]


async def test_a_large_response_is_not_cut_off_by_the_end(serve):
    """The client goes on giving window until it has read all; closing over that would reset the connection."""

    async def app(scope, receive, send):
        await respond(send, b"x" * 1_000_000)

    client = await connect(serve, app, pair=socket_like_pair)
    stream_id = await client.request()
    await client.head(stream_id)
    drain(client)
    assert len((await client.response(stream_id)).body) == 1_000_000
    await client.done.wait()


async def end_by_drain(client):
    drain(client)


async def end_by_goaway(client):
    await client.send_goaway()


async def end_by_limit(client):
    """It is in the settings."""


async def end_by_idleness(client):
    await trio.sleep(5.5)


@pytest.mark.parametrize("end", [end_by_drain, end_by_goaway, end_by_limit, end_by_idleness])
async def test_what_crosses_the_end_takes_no_response_with_it(serve, gate, end):
    """It comes when nobody is interested any more: the response that is on its way must still arrive."""
    limit = {"keep_alive_max_requests": 1} if end is end_by_limit else {}
    client = await connect(serve, gate, pair=socket_like_pair, keep_alive_timeout=5, **limit)
    stream_id = await client.request(path="/1")
    await client.settle()
    gate.open.set()
    await client.settle()
    await end(client)
    await client.settle()
    await client.window_update(0, 1000)
    await client.request(path="/late")
    await client.settle()
    assert (await client.response(stream_id)).body == b"/1"
    assert (await client.wait_closed()).last_stream_id == stream_id


async def test_a_client_that_reads_nothing_cannot_hold_it(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 100_000)

    client = await connect(serve, app, windows=2**20, pair=lambda: socket_like_pair(1000), write_timeout=7)
    await client.window_update(0, 2**20)
    await client.request()
    await client.settle()
    began = trio.current_time()
    drain(client)
    with trio.move_on_after(100):
        await client.done.wait()
    assert client.done.is_set()
    assert trio.current_time() <= began + 7 + 7


# The client's GOAWAY


async def test_a_goaway_of_the_client_closes_an_idle_connection(serve):
    client = await connect(serve, hello)
    await client.fetch()
    began = trio.current_time()
    await client.send_goaway()
    said = await client.wait_closed()
    assert (said.code, said.last_stream_id) == (ErrorCode.NO_ERROR, 1)
    assert trio.current_time() == began


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.ENHANCE_YOUR_CALM])
async def test_a_goaway_of_the_client_lets_open_streams_end(serve, gate, code):
    client = await connect(serve, gate)
    streams = [await client.request(path=f"/{number}") for number in range(3)]
    upload = await client.request("POST", "/3", end_stream=False)
    await client.send_goaway(code)
    await trio.sleep(20)
    gate.open.set()
    for number, stream_id in enumerate(streams):
        assert (await client.response(stream_id)).body == b"/%d" % number
    await client.send_body(upload, b"body")
    assert (await client.response(upload)).body == b"/3body"
    await client.wait_closed()
    assert [each.complete for each in client.observer.ended] == [True] * 4


# Cancellation of the connection


async def test_cancellation_cancels_all_and_waits_for_their_clean_up(serve):
    cleaned_up = []

    async def app(scope, receive, send):
        if scope["path"] == "/sends":
            await start(send)
            await send_body(send, b"half", more=True)
        try:
            if scope["path"] == "/receives":
                await receive()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
            cleaned_up.append(trio.current_time())

    client = await connect(serve, app)
    await client.request(path="/sleeps")
    await client.request(path="/sends")
    await client.request("POST", "/receives", end_stream=False)
    await client.settle()
    began = trio.current_time()
    client.served.scope.cancel()
    await client.done.wait()
    assert cleaned_up == [began + 60] * 3
    assert client.observer.failures == []
    assert [each.complete for each in client.observer.ended] == [False] * 3


async def test_cancellation_of_a_connection_that_cannot_write(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 100_000)

    client = await connect(serve, app, windows=2**20, pair=lambda: socket_like_pair(1000))
    await client.window_update(0, 2**20)
    for _ in range(3):
        await client.request()
    await client.settle()
    began = trio.current_time()
    client.served.scope.cancel()
    await client.done.wait()
    assert trio.current_time() == began
    assert client.observer.failures == []


async def test_cancellation_reaches_work_after_the_response(serve):
    ended = []

    async def app(scope, receive, send):
        await respond(send)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(scope["path"])

    client = await connect(serve, app)
    await client.fetch("/1")
    await client.fetch("/2")
    client.served.scope.cancel()
    await client.done.wait()
    assert sorted(ended) == ["/1", "/2"]
    assert all(each.complete for each in client.observer.ended)


# keep_alive_max_requests


async def test_a_limit_of_requests(serve):
    client = await connect(serve, hello, keep_alive_max_requests=3)
    for _ in range(3):
        assert (await client.fetch()).body == b"hello"
    said = await client.wait_closed()
    assert (said.code, said.last_stream_id) == (ErrorCode.NO_ERROR, 5)
    assert len(client.observer.ended) == 3


async def test_a_limit_of_requests_that_are_open_at_once(serve, gate):
    client = await connect(serve, gate, keep_alive_max_requests=2)
    streams = [await client.request(path=f"/{number}") for number in range(2)]
    await client.settle()
    late = await client.request(path="/late")
    assert (await client.wait_reset(late)).code == ErrorCode.REFUSED_STREAM
    assert client.goaway.last_stream_id == streams[-1]
    gate.open.set()
    for number, stream_id in enumerate(streams):
        assert (await client.response(stream_id)).body == b"/%d" % number
    await client.wait_closed()
    assert len(client.observer.ended) == 2


async def test_a_limit_of_requests_that_come_in_one_read(serve, gate):
    gate.open.set()
    client = await connect(serve, gate, keep_alive_max_requests=2)
    async with client.together():
        streams = [await client.request(path=f"/{number}") for number in range(5)]
    for number, stream_id in enumerate(streams[:2]):
        assert (await client.response(stream_id)).body == b"/%d" % number
    for stream_id in streams[2:]:
        assert (await client.wait_reset(stream_id)).code == ErrorCode.REFUSED_STREAM
    assert (await client.wait_closed()).last_stream_id == streams[1]
    assert len(client.observer.ended) == 2


async def test_a_request_that_is_reset_counts(serve):
    async def app(scope, receive, send):
        while await receive() != DISCONNECT:
            pass

    client = await connect(serve, app, keep_alive_max_requests=2)
    for _ in range(2):
        await client.reset(await client.request())
    assert (await client.wait_closed()).last_stream_id == 3
