"""HTTP/2: every wait for a client has an end, and a stream's ends that stream alone."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import inf

import pytest
import trio
import trio.testing

from tests.connection.conftest import echo, hello, read_body, respond, send_body, socket_like_pair, start
from tests.connection.test_http2 import WINDOW, begin, connect, connect_exhausted
from trigi.exceptions import ClientDisconnected
from trigi.testing.http2 import (
    PREFACE,
    ConnectionClosed,
    ErrorCode,
    Flag,
    FrameType,
    SettingCode,
    encode_frame,
)

DISCONNECT = {"type": "http.disconnect"}
FIELDS = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"a"),
    (b":path", b"/"),
    (b"x-a", b"x" * 50),
]


async def sleeps(scope, receive, send):
    await trio.sleep(float(scope["path"][1:] or 0))
    await respond(send, b"slept")


async def slowly(client):
    """The next frame, ten in a second."""
    await trio.sleep(0.1)
    return await client.frame()


# header_timeout


@pytest.mark.parametrize("sent", [PREFACE, PREFACE + encode_frame(FrameType.SETTINGS)[:5]])
async def test_half_of_the_preface(serve, sent):
    """The client is left within header_timeout of its first byte."""
    client = begin(serve, hello, header_timeout=7, keep_alive_timeout=3)
    client.answers = False
    await client.send(sent)
    began = trio.current_time()
    said = await client.wait_closed()
    assert trio.current_time() == began + 7
    assert said.code in (None, ErrorCode.NO_ERROR)
    (refused,) = client.observer.connections_refused
    assert refused.limit == "header_timeout"


async def test_a_slow_preface_takes_no_time_from_what_comes_then(serve):
    """The wait for the first request begins when the client may ask."""
    client = begin(serve, hello, header_timeout=10, keep_alive_timeout=5)
    await client.send(PREFACE)
    await trio.sleep(7)
    await client.send_settings({})
    await trio.sleep(4)
    assert (await client.fetch()).status == 200


async def test_more_bytes_win_no_time_for_the_preface(serve):
    client = begin(serve, hello, header_timeout=7)
    client.answers = False
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def trickle():
            await client.send(PREFACE)
            settings = encode_frame(FrameType.SETTINGS, 0, 0, bytes([0, 99, 0, 0, 0, 0]) * 20)
            with suppress(trio.BrokenResourceError):
                for number in range(100):
                    await client.send(settings[number : number + 1])
                    await trio.sleep(1)

        await client.wait_closed()
        assert trio.current_time() == began + 7
        nursery.cancel_scope.cancel()


def half_a_frame(client):
    block = client.encode(FIELDS)
    return encode_frame(FrameType.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, block)[:-5]


def without_end(client):
    return encode_frame(FrameType.HEADERS, Flag.END_STREAM, 1, client.encode(FIELDS))


def half_a_continuation(client):
    block = client.encode(FIELDS)
    first = encode_frame(FrameType.HEADERS, Flag.END_STREAM, 1, block[:5])
    return first + encode_frame(FrameType.CONTINUATION, Flag.END_HEADERS, 1, block[5:])[:-5]


HALVES = [half_a_frame, without_end, half_a_continuation]


@pytest.mark.parametrize("half", HALVES)
async def test_half_a_head(serve, half):
    client = await connect(serve, hello, header_timeout=7, keep_alive_timeout=5)
    await trio.sleep(4)
    await client.send(half(client))
    began = trio.current_time()
    said = await client.wait_closed()
    assert trio.current_time() == began + 7
    assert said.code == ErrorCode.NO_ERROR
    (refused,) = client.observer.connections_refused
    assert refused.limit == "header_timeout"
    assert client.observer.ended == []


async def test_more_bytes_win_no_time_for_a_head(serve):
    client = await connect(serve, hello, header_timeout=7)
    await client.send(without_end(client))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def trickle():
            with suppress(trio.BrokenResourceError):
                for _ in range(50):
                    await client.send(encode_frame(FrameType.CONTINUATION, 0, 1, b"\x82"))
                    await trio.sleep(1)

        await client.wait_closed()
        assert trio.current_time() == began + 7
        nursery.cancel_scope.cancel()


async def test_the_end_of_another_stream_wins_no_time_for_a_head(serve):
    client = await connect(serve, sleeps, header_timeout=7, auto_window=False)
    await client.request(path="/6")
    await client.settle()
    block = client.encode(FIELDS)
    await client.send(encode_frame(FrameType.HEADERS, Flag.END_STREAM, 3, block))
    began = trio.current_time()
    await client.wait_closed()
    assert trio.current_time() == began + 7


async def test_each_head_has_its_own_time(serve):
    """Each read ends in the middle of one, but it is always another."""
    client = await connect(serve, hello, header_timeout=7)
    rest = b""
    for number in range(30):
        block = client.encode(FIELDS)
        flags = Flag.END_HEADERS | Flag.END_STREAM
        frame = encode_frame(FrameType.HEADERS, flags, number * 2 + 1, block)
        await client.send(rest + frame[:10])
        rest = frame[10:]
        await trio.sleep(2)
    await client.send(rest)
    await client.settle()
    assert [each.status for each in client.observer.ended] == [200] * 30


# keep_alive_timeout


@pytest.mark.parametrize("requests", [0, 1, 3])
@pytest.mark.parametrize("pings", [False, True])
async def test_an_idle_connection(serve, requests, pings):
    """GOAWAY, and the connection is closed. Pings are no use of it."""
    client = await connect(serve, hello, keep_alive_timeout=5)
    for _ in range(requests):
        await trio.sleep(4)
        await client.fetch()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ping():
            with suppress(trio.BrokenResourceError):
                while pings:
                    await client.send_frame(FrameType.PING, 0, 0, b"still on")
                    await client.window_update(0, 1)
                    await trio.sleep(1)

        said = await client.wait_closed()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == began + 5
    assert (said.code, said.last_stream_id) == (ErrorCode.NO_ERROR, max(requests * 2 - 1, 0))
    assert client.observer.connections_refused == []


async def test_a_connection_with_an_open_stream_is_not_idle(serve):
    client = await connect(serve, sleeps, keep_alive_timeout=5)
    long = await client.request(path="/1000")
    assert (await client.fetch("/1")).status == 200
    assert (await client.response(long)).body == b"slept"
    await trio.sleep(4)
    assert (await client.fetch()).status == 200


async def test_work_after_the_response_does_not_keep_a_connection(serve):
    async def app(scope, receive, send):
        await respond(send)
        await trio.sleep(100)
        ended.append(trio.current_time())

    ended = []
    client = await connect(serve, app, keep_alive_timeout=5)
    began = trio.current_time()
    await client.fetch()
    await client.wait_closed()
    assert trio.current_time() == began + 5
    await client.done.wait()
    assert ended == [began + 100]


async def test_the_rest_of_an_upload_is_waited_for_no_longer_than_a_moment(serve):
    client = await connect(serve, hello, keep_alive_timeout=5)
    stream_id = await client.request("POST", end_stream=False)
    began = trio.current_time()
    assert (await client.response(stream_id)).status == 200
    assert (await client.wait_reset(stream_id)).code == ErrorCode.NO_ERROR
    assert trio.current_time() == began + 2
    await client.wait_closed()
    assert trio.current_time() == began + 7


# body_timeout


async def test_a_body_that_stalls(serve):
    """408, and the stream is reset; the application is told as of a disconnect, and the others go on."""
    seen = []

    async def app(scope, receive, send):
        if scope["path"] == "/good":
            await trio.sleep(20)
            await respond(send, b"good")
            return
        while not seen or seen[-1] != DISCONNECT:
            seen.append(await receive())
        with pytest.raises(ClientDisconnected):
            await respond(send)

    client = await connect(serve, app, body_timeout=7)
    good, bad = await client.request(path="/good"), await client.request("POST", end_stream=False)
    await trio.sleep(3)
    await client.send_data(bad, b"half")
    began = trio.current_time()
    response = await client.response(bad)
    assert trio.current_time() == began + 7
    assert (response.status, response.header(b"content-length")) == (408, b"0")
    assert (await client.wait_reset(bad)).code == ErrorCode.NO_ERROR
    assert (await client.response(good)).body == b"good"
    assert seen == [{"type": "http.request", "body": b"half", "more_body": True}, DISCONNECT]
    assert [each.limit for each in client.observer.refused] == ["body_timeout"]
    assert [(each.status, each.complete) for each in client.observer.ended] == [(408, False), (200, True)]
    assert client.observer.failures == []


async def test_a_body_that_stalls_after_the_response_has_begun(serve):
    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"early", more=True)
        assert await read_body(receive) is None

    client = await connect(serve, app, body_timeout=7)
    began = trio.current_time()
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.wait_reset(stream_id)).code == ErrorCode.INTERNAL_ERROR
    assert trio.current_time() == began + 7
    assert client.observer.failures == []


async def test_a_body_that_nobody_waits_for_may_take_its_time(serve):
    async def app(scope, receive, send):
        await trio.sleep(100)
        await respond(send, await read_body(receive))

    client = await connect(serve, app, body_timeout=7)
    stream_id = await client.request("POST", end_stream=False)
    await trio.sleep(90)
    await client.send_body(stream_id, b"late")
    assert (await client.response(stream_id)).body == b"late"


async def test_a_408_that_cannot_be_read_yet(serve):
    """It has no body, and so needs no window."""
    client = await connect_exhausted(serve, echo, filler=WINDOW + 1, body_timeout=7)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).status == 408


# write_timeout


async def test_a_stream_without_window(serve):
    """It is reset, and the application told; the others go on."""
    raised = []

    async def app(scope, receive, send):
        if scope["path"] == "/good":
            await trio.sleep(20)
            await respond(send, b"good")
            return
        try:
            await respond(send, b"x" * 100)
        except ClientDisconnected:
            raised.append(trio.current_time())
            raise

    client = await connect(serve, app, windows=10, write_timeout=7)
    good, bad = await client.request(path="/good"), await client.request()
    began = trio.current_time()
    client.auto_window = False
    assert (await client.wait_reset(bad)).code == ErrorCode.INTERNAL_ERROR
    assert raised == [trio.current_time()] == [began + 7]
    assert (await client.response(good)).body == b"good"
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False), (200, True)]
    assert client.observer.failures == []


async def test_each_stream_without_window_has_its_own_time(serve):
    async def app(scope, receive, send):
        with pytest.raises(ClientDisconnected):
            await respond(send, b"x" * 100)

    client = await connect(serve, app, windows=0, write_timeout=7)
    streams = []
    for _ in range(3):
        streams.append((await client.request(), trio.current_time()))
        await trio.sleep(2)
    for stream_id, began in streams:
        await client.wait_reset(stream_id)
        assert trio.current_time() == began + 7


async def test_window_in_time(serve):
    """As over HTTP/1.1, the client has write_timeout for each 64 KiB."""
    size = 10 * 65_536

    async def app(scope, receive, send):
        await respond(send, b"x" * size)

    client = await connect(serve, app, windows=0, write_timeout=7)
    await client.window_update(0, size)
    stream_id = await client.request()
    for _ in range(10):
        await trio.sleep(6)
        await client.window_update(stream_id, 65_536)
    assert len((await client.response(stream_id)).body) == size


@pytest.mark.parametrize("of_connection", [False, True])
async def test_a_window_that_is_opened_byte_by_byte(serve, of_connection):
    """It does not win time without end."""

    async def app(scope, receive, send):
        await respond(send, b"x" * 100_000)

    windows = {} if of_connection else {"windows": 0}
    client = await connect(serve, app, write_timeout=7, disconnect_grace=0, **windows)
    client.auto_window = False
    stream_id = await client.request()
    if of_connection:
        await client.window_update(stream_id, 100_000)
    began = trio.current_time()
    with suppress(trio.BrokenResourceError, ConnectionClosed):
        for _ in range(20):
            await trio.sleep(1)
            await client.window_update(0 if of_connection else stream_id, 1)
            if client.observer.ended:
                break
    (ended,) = client.observer.ended
    assert not ended.complete
    assert began + 7 <= ended.at <= began + 8


async def test_streams_together_may_be_as_slow_as_one(serve):
    """A narrow line with many downloads on it is no stalled client."""

    async def app(scope, receive, send):
        await respond(send, b"x" * 20_000)

    client = await connect(serve, app, windows=0, write_timeout=7)
    await client.window_update(0, 2**20)
    streams = [await client.request() for _ in range(20)]
    for _ in range(4):
        await trio.sleep(6)
        for stream_id in streams:
            await client.window_update(stream_id, 5_000)
    for stream_id in streams:
        assert len((await client.response(stream_id)).body) == 20_000


async def test_a_stream_without_window_beside_a_download_that_never_pauses(serve):
    """Its time passes also while the writer always has something else to do."""

    async def app(scope, receive, send):
        if scope["path"] == "/busy":
            await start(send)
            while True:
                await send_body(send, b"x" * 16_384, more=True)
        await respond(send, b"x" * 100)

    client = await connect(serve, app, pair=partial(socket_like_pair, 1000), write_timeout=10)
    await client.window_update(0, 2**30)
    busy = await client.request(path="/busy")
    await client.window_update(busy, 2**30)
    await client.head(busy)
    client.auto_window = False
    await client.send_settings({SettingCode.INITIAL_WINDOW_SIZE: 0})
    stalled = await client.request()
    with trio.fail_after(100):
        while (frame := await slowly(client)).type != FrameType.RST_STREAM:
            pass
    assert frame.stream_id == stalled


async def test_a_connection_without_window(serve):
    client = await connect_exhausted(serve, sleeps, filler=WINDOW + 1000, write_timeout=7, disconnect_grace=0)
    began = trio.current_time()
    await client.request(path="/100")
    await client.done.wait()
    assert trio.current_time() == began + 7
    assert [(each.target, each.complete) for each in client.observer.ended] == [
        (b"/filler", False),
        (b"/100", False),
    ]


@pytest.mark.parametrize("requests", [1, 5])
async def test_a_client_that_reads_nothing(serve, requests):
    """Its windows are wide open, and its socket is full."""
    raised = []

    async def app(scope, receive, send):
        await start(send)
        try:
            while True:
                await send_body(send, b"x" * 10_000, more=True)
        except ClientDisconnected:
            raised.append(trio.current_time())
            raise

    client = await connect(serve, app, windows=2**30, pair=partial(socket_like_pair, 1000), write_timeout=7)
    await client.window_update(0, 2**30)
    began = trio.current_time()
    for _ in range(requests):
        await client.request()
    with trio.move_on_after(100):
        await client.done.wait()
    assert raised == [began + 7] * requests
    assert trio.current_time() == began + 7
    assert client.observer.failures == []


async def test_a_client_that_makes_the_server_answer_and_reads_nothing(serve):
    """Reading stops, what waits for it is bounded, and at last it is left."""
    client = begin(
        serve,
        hello,
        pair=partial(socket_like_pair, 1000),
        write_timeout=7,
        h2_control_frame_limit=inf,
        write_buffer_size=5000,
    )
    await client.send(PREFACE + encode_frame(FrameType.SETTINGS))
    ping = encode_frame(FrameType.PING, 0, 0, b"........")
    sent = 0
    began = trio.current_time()
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        while sent < 10_000_000:
            await client.send(ping * 100)
            sent += len(ping) * 100
    assert sent < 300_000
    await client.done.wait()
    assert trio.current_time() <= began + 10


async def test_no_write_timeout(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 100)

    client = await connect(serve, app, windows=0, write_timeout=inf)
    stream_id = await client.request()
    await trio.sleep(50_000)
    await client.window_update(stream_id, 100)
    assert (await client.response(stream_id)).body == b"x" * 100


# request_timeout


@pytest.mark.parametrize("begun", [False, True])
async def test_an_application_that_takes_too_long(serve, begun):
    async def app(scope, receive, send):
        await start(send)
        if begun:
            await send_body(send, b"half", more=True)
        await trio.sleep(float(scope["path"][1:]))
        await send_body(send, b"done")

    client = await connect(serve, app, request_timeout=7)
    await trio.sleep(3)
    began = trio.current_time()
    bad, good = await client.request(path="/100"), await client.request(path="/6")
    if begun:
        assert (await client.wait_reset(bad)).code == ErrorCode.INTERNAL_ERROR
    else:
        assert (await client.response(bad)).status == 504
    assert trio.current_time() == began + 7
    assert (await client.response(good)).body.endswith(b"done")
    assert client.observer.failures == []
    assert [(each.status, each.complete) for each in client.observer.ended] == [
        (200, True),
        (200, False) if begun else (504, True),
    ]


async def test_a_response_that_the_client_takes_too_long_for(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 100)

    client = await connect(serve, app, windows=10, request_timeout=7)
    began = trio.current_time()
    client.auto_window = False
    stream_id = await client.request()
    assert (await client.wait_reset(stream_id)).code == ErrorCode.INTERNAL_ERROR
    assert trio.current_time() == began + 7


# Many at once


async def test_1000_silent_connections(serve):
    first = begin(serve, hello, header_timeout=10)
    clients = [first, *(begin(serve, hello, context=first.context) for _ in range(999))]
    for client in clients:
        await client.send(PREFACE)
    await first.settle()
    other = await connect(serve, hello, context=first.context)
    assert (await other.fetch()).status == 200
    await trio.sleep(15)
    assert all(client.done.is_set() for client in clients)
