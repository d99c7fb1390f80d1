"""HTTP/2: what no client would do, several things of it at once, and what it must not cost."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
import trio

from tests.connection.conftest import hello, respond, socket_like_pair, start
from tests.connection.test_http2 import DISCONNECT, WINDOW, connect, connect_exhausted
from trigi._protocol.http2_rates import RATE_SECONDS
from trigi.testing.http2 import ConnectionClosed, ErrorCode, Flag, FrameType, encode_frame

VIOLATIONS = {
    "a window too large by SETTINGS": encode_frame(FrameType.SETTINGS, 0, 0, struct.pack(">HL", 4, 2**31)),
    "push": encode_frame(FrameType.SETTINGS, 0, 0, struct.pack(">HL", 2, 7)),
    "a window too large": encode_frame(FrameType.WINDOW_UPDATE, 0, 0, struct.pack(">L", 2**31 - 1)),
    "more than the window": encode_frame(FrameType.DATA, 0, 1, bytes(16_384)) * 4,
}


@pytest.mark.parametrize("violation", VIOLATIONS)
async def test_what_came_before_a_violation_can_still_be_received(serve, violation):
    """The application that does so later meets nothing of the library's."""
    seen = []

    async def app(scope, receive, send):
        await trio.sleep(1)
        while not seen or seen[-1] != DISCONNECT:
            seen.append(await receive())

    client = await connect(serve, app)
    await client.request("POST", end_stream=False)
    body = encode_frame(FrameType.DATA, 0, 1, bytes(16_384))
    await client.settle()
    await client.send(body)
    await client.settle()
    await client.send(body + VIOLATIONS[violation])
    await client.wait_closed()
    await client.done.wait()
    assert sum(len(message.get("body", b"")) for message in seen) >= 2 * 16_384
    assert client.observer.failures == []


async def test_a_long_header_takes_no_long_time(serve):
    """Huffman's code is left out where it would take a time quadratic in the length."""
    value = b"%7B" * 60_000

    async def app(scope, receive, send):
        await respond(send, headers=[(b"location", value)], status=307)

    client = await connect(serve, app)
    assert (await client.fetch()).header(b"location") == value
    stream_id = await client.request()
    parts = []
    while sum(map(len, parts)) < len(value):
        frame = await client.frame(FrameType.HEADERS, FrameType.CONTINUATION)
        assert frame.stream_id == stream_id
        parts.append(frame.payload)
    assert value in b"".join(parts)  # as it is


async def test_changes_of_the_memory_for_compression_do_not_pile_up(serve):
    async def app(scope, receive, send):
        await trio.sleep(1000)
        await respond(send)

    client = await connect(serve, app, h2_control_frame_limit=100_000)
    await client.request()
    for number in range(20_000):
        payload = struct.pack(">HL", 1, number % 2 * 4096)
        await client.send(encode_frame(FrameType.SETTINGS, 0, 0, payload))
    await client.settle()
    (connection,) = client.context.connections
    assert connection._codec._rates._control_frames > 19_000  # they have come
    assert len(connection._codec._engine._encoder.table_size_changes) <= 2


@pytest.mark.parametrize("update", [b"\x20", b"\x3f\x00", b"\x3f\x80\x00"])
async def test_a_head_of_table_size_updates(serve, update):
    client = await connect(serve, hello)
    await client.send_headers(1, update * 17 + client.encode([(b":method", b"GET")]), end_stream=True)
    assert (await client.wait_closed()).code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(FrameType.GOAWAY, 0, 0, bytes(8)),
        encode_frame(FrameType.DATA, 0, 1, b"x"),
        encode_frame(FrameType.HEADERS, Flag.END_HEADERS, 1, b"\x82"),
    ],
    ids=["GOAWAY", "DATA on a reset stream", "HEADERS on a reset stream"],
)
async def test_frames_of_no_use_are_counted(serve, frame):
    async def app(scope, receive, send):
        await trio.sleep(RATE_SECONDS / 2)

    client = await connect(serve, app, h2_control_frame_limit=50)
    stream_id = await client.request("POST", end_stream=False)
    await client.window_update(stream_id, 0)
    assert (await client.wait_reset(stream_id)).code == ErrorCode.PROTOCOL_ERROR
    await client.request()
    with suppress(trio.BrokenResourceError):
        for _ in range(60):
            await client.send(frame)
    assert (await client.wait_closed()).code == ErrorCode.ENHANCE_YOUR_CALM


async def test_a_reader_that_waits_for_its_client_to_read_ends_with_it(serve):
    """It was waiting, with nothing left to read, when the writer gave the client up."""
    told = []

    async def app(scope, receive, send):
        if scope["path"] == "/large":
            await respond(send, b"x" * 500_000)
        await receive()
        told.append(await receive())
        told.append(trio.current_time())

    client = await connect(
        serve, app, windows=2**20, pair=socket_like_pair, write_timeout=7, write_buffer_size=1000
    )
    await client.window_update(0, 2**20)
    await client.request(path="/poll")
    await client.request(path="/large")
    await client.settle()
    await client.send(encode_frame(FrameType.PING, 0, 0, bytes(8)) * 200)
    await client.settle()
    began = trio.current_time()
    await trio.sleep(100)
    assert told == [DISCONNECT, began + 7]


async def test_padding_of_the_last_piece(serve):
    """Of a request whose response is complete: there is no stream any more whose window it could be."""
    client = await connect(serve, hello)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).body == b"hello"
    for _ in range(127):  # and the next is half of a window
        await client.send_data(stream_id, b"", padding=255)
    await client.send_data(stream_id, b"", padding=255, end_stream=True)
    assert (await client.fetch()).body == b"hello"


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_body_that_is_too_large_after_the_response(serve, at_once):
    """Nobody is refused, and nothing stays behind."""
    client = await connect(serve, hello, body_size_limit=10, keep_alive_timeout=3)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).body == b"hello"
    await client.send_data(stream_id, b"x" * 11, end_stream=at_once)
    if not at_once:
        await client.send_data(stream_id, b"x", end_stream=True)
    await client.settle()
    assert client.observer.refused == []
    assert (await client.wait_closed()).code == ErrorCode.NO_ERROR
    assert trio.current_time() == 3


async def test_a_body_that_is_too_large_with_its_end(serve):
    async def app(scope, receive, send):
        while await receive() != DISCONNECT:
            pass

    client = await connect(serve, app, body_size_limit=10, keep_alive_timeout=3)
    stream_id = await client.request("POST", end_stream=False)
    await client.settle()
    await client.send_data(stream_id, b"x" * 11, end_stream=True)
    assert (await client.response(stream_id)).status == 413
    await client.wait_closed()
    assert trio.current_time() == 3


async def test_a_goaway_is_not_taken_back(serve):
    """Whoever was told that a stream was not processed may try it again elsewhere (RFC 9113, 6.8)."""

    async def app(scope, receive, send):
        await trio.sleep(10)

    client = await connect(serve, app, keep_alive_max_requests=1)
    first = await client.request()
    second = await client.request()
    await client.settle()
    await client.send_frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(4))
    last = []
    with suppress(ConnectionClosed):
        while True:
            frame = await client.frame(FrameType.GOAWAY)
            last.append(struct.unpack(">L", frame.payload[:4])[0])
    assert last
    assert set(last) == {first}
    assert second > first


async def test_work_after_the_response_is_not_cancelled_while_that_waits_for_a_window(serve):
    """The application has done its part."""
    done = []

    async def app(scope, receive, send):
        await respond(send, b"small")
        await trio.sleep(20)
        done.append(trio.current_time())

    client = await connect_exhausted(serve, app, filler=WINDOW + 1, disconnect_grace=0)
    stream_id = await client.request()
    await client.head(stream_id)
    began = trio.current_time()
    await trio.sleep(1)
    await client.reset(stream_id)
    await trio.sleep(50)
    assert done == [began + 20]
    (report,) = [each for each in client.observer.ended if each.target == b"/"]
    assert not report.complete


async def test_very_small_frames_let_others_run(serve):
    """A read full of them is not handled in one go."""
    ticks = []

    async def app(scope, receive, send):
        if scope["path"] == "/clock":
            await start(send)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
                ticks.append(connection._codec._reader._buffer.__len__())
        else:
            await trio.sleep(10)

    client = await connect(serve, app, pair=lambda: socket_like_pair(1_000_000))
    (connection,) = client.context.connections
    upload = await client.request("POST", end_stream=False)
    await client.settle()
    async with client.together():
        await client.request(path="/clock")
        await client.send(encode_frame(FrameType.DATA, 0, upload, b"x") * 5000)
    await client.settle()
    assert len({size for size in ticks if size}) > 5
