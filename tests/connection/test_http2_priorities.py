"""HTTP/2: whose turn it is when the client can't take everything at once (RFC 9218)."""

from __future__ import annotations

import struct
from functools import partial
from itertools import groupby

import pytest
import trio
import trio.testing

from tests.connection.conftest import respond, send_body, socket_like_pair, start
from tests.connection.test_http2 import WINDOW, connect_exhausted
from trigi.testing.http2 import ErrorCode, FrameType

SIZE = 60_000
FRAME = 16_384


async def large(scope, receive, send):
    await respond(send, b"x" * SIZE)


def priority(value):
    return [(b"priority", value)]


async def update(client, stream_id, value):
    await client.send_frame(FrameType.PRIORITY_UPDATE, 0, 0, struct.pack(">L", stream_id) + value)


async def order(client, size=None):
    """The streams in the order in which their DATA came, for so many bytes of it."""
    seen = []
    while size > 0:
        frame = await client.frame(FrameType.DATA)
        size -= len(frame.payload)
        seen.append(frame.stream_id)
    return seen


async def give(client, size):
    """Let the server send so many bytes: the order of the streams they are of."""
    await client.settle()
    await client.window_update(0, size)
    return await order(client, size)


def runs(order):
    return [stream_id for stream_id, _ in groupby(order)]


async def test_the_most_urgent_first(serve):
    client = await connect_exhausted(serve, large)
    urgencies = [5, 1, 7, 0, 3, 6, 2, 4]
    streams = [await client.request(headers=priority(b"u=%d" % urgency)) for urgency in urgencies]
    by_urgency = [stream_id for _, stream_id in sorted(zip(urgencies, streams, strict=True))]
    assert runs(await give(client, 8 * SIZE)) == by_urgency


@pytest.mark.parametrize("value", [b"i", b"u=3, i", b"i=?1", None])
async def test_incremental_ones_take_turns(serve, value):
    """Also those that say nothing of it: that is the server's to decide."""
    client = await connect_exhausted(serve, large)
    headers = [] if value is None else priority(value)
    streams = [await client.request(headers=headers) for _ in range(3)]
    seen = await give(client, 3 * SIZE)
    assert [set(seen[begin : begin + 3]) for begin in range(0, 9, 3)] == [set(streams)] * 3


@pytest.mark.parametrize("value", [b"u=3", b"i=?0", b""])
async def test_others_come_one_after_the_other(serve, value):
    """In the order in which they were asked for, whoever began to send first."""

    async def app(scope, receive, send):
        await trio.sleep(float(scope["path"][1:]))
        await large(scope, receive, send)

    client = await connect_exhausted(serve, app)
    streams = [await client.request(path=f"/{3 - number}", headers=priority(value)) for number in range(3)]
    await trio.sleep(5)
    assert runs(await give(client, 3 * SIZE)) == streams


async def test_those_that_go_one_by_one_have_one_turn_together(serve):
    """However many they are, and though each is done with one frame."""

    async def app(scope, receive, send):
        await respond(send, b"x" * int(scope["path"][1:]))

    client = await connect_exhausted(serve, app)
    one_by_one = [await client.request(path="/100", headers=priority(b"u=3")) for _ in range(5)]
    incremental = await client.request(path=f"/{3 * FRAME}", headers=priority(b"u=3, i"))
    seen = await give(client, 5 * 100 + 3 * FRAME)
    assert [stream_id for stream_id in seen if stream_id != incremental] == one_by_one
    assert [seen.index(incremental), *runs(seen)[1::2][1:3]] == [1, incremental, incremental]


async def test_a_more_urgent_one_that_comes_later_comes_first(serve):
    client = await connect_exhausted(serve, large)
    late = await client.request(headers=priority(b"u=5"))
    assert runs(await give(client, FRAME)) == [late]
    urgent = await client.request(headers=priority(b"u=1"))
    assert runs(await give(client, 2 * SIZE - FRAME)) == [urgent, late]


async def test_an_urgent_one_without_window_holds_no_other(serve):
    client = await connect_exhausted(serve, large)
    await client.send_settings({4: 1000})
    urgent = await client.request(headers=priority(b"u=0"))
    other = await client.request(headers=priority(b"u=7"))
    await client.window_update(other, SIZE)
    await client.window_update(0, 3 * SIZE)
    assert runs(await order(client, 1000 + SIZE)) == [urgent, other]
    await client.window_update(urgent, SIZE)
    assert runs(await order(client, SIZE - 1000)) == [urgent]


async def test_a_priority_update_changes_what_is_still_to_be_sent(serve):
    client = await connect_exhausted(serve, large)
    first, second = [await client.request(headers=priority(b"u=3")) for _ in range(2)]
    assert runs(await give(client, FRAME)) == [first]
    await update(client, second, b"u=1")
    assert runs(await give(client, SIZE)) == [second]
    third = await client.request(headers=priority(b"u=3"))
    await update(client, first, b"u=7")
    assert runs(await give(client, 2 * SIZE - FRAME)) == [third, first]


async def test_a_priority_update_of_a_stream_without_window(serve):
    """It holds once there is some."""
    client = await connect_exhausted(serve, large)
    await client.send_settings({4: 10})
    first, second = [await client.request(headers=priority(b"u=3")) for _ in range(2)]
    await client.settle()
    await client.window_update(0, 20 + 2 * SIZE)
    await order(client, 20)  # now both have used theirs up, and the connection has some left
    await client.settle()
    await update(client, second, b"u=1")
    async with client.together():
        await client.window_update(first, SIZE)
        await client.window_update(second, SIZE)
    assert runs(await order(client, 2 * (SIZE - 10))) == [second, first]


async def test_a_priority_update_makes_a_stream_incremental(serve):
    client = await connect_exhausted(serve, large)
    streams = [await client.request(headers=priority(b"u=3")) for _ in range(2)]
    await client.settle()
    for stream_id in streams:
        await update(client, stream_id, b"u=3, i")
    assert len(runs(await give(client, 2 * SIZE))) >= 6


@pytest.mark.parametrize("stream_id", [1, 5, 2**31 - 1])
async def test_a_priority_update_of_another_stream_is_harmless(serve, stream_id):
    client = await connect_exhausted(serve, large)
    await update(client, stream_id, b"u=0")
    await client.ping()
    await client.window_update(0, SIZE)
    assert len((await client.fetch()).body) == SIZE
    await update(client, 3, b"u=0")
    await client.ping()


@pytest.mark.parametrize(
    "value",
    [b"u=8", b"u=-1", b"u=1.5", b"u", b"u=?1", b"i=2", b"!", b"u=1,", b'"', b"=", b"u=" + b" " * 5000 + b'"'],
)
async def test_a_priority_that_is_none_is_ignored(serve, value):
    client = await connect_exhausted(serve, large)
    await client.window_update(0, SIZE)
    assert len((await client.fetch(headers=priority(value)[: value[-1:] not in (b" ", b"\t")])).body) == SIZE
    last = await client.request()
    await update(client, last, value)
    await client.window_update(0, SIZE)
    assert len((await client.response(last)).body) == SIZE


async def test_a_priority_in_several_fields(serve):
    """They are one list (RFC 9651, 3)."""
    client = await connect_exhausted(serve, large)
    other = await client.request(headers=priority(b"u=2"))
    urgent = await client.request(headers=[*priority(b"u=1"), *priority(b"i")])
    assert runs(await give(client, 2 * SIZE)) == [urgent, other]


async def test_the_priorities_of_rfc_7540_mean_nothing(serve):
    client = await connect_exhausted(serve, large)
    streams = [await client.request() for _ in range(2)]
    await client.send_frame(FrameType.PRIORITY, 0, streams[0], struct.pack(">LB", streams[1], 255))
    assert len(runs(await give(client, 2 * SIZE))) >= 6


async def test_a_stream_that_was_reset_gives_its_turn_away(serve):
    client = await connect_exhausted(serve, large)
    streams = [await client.request(headers=priority(b"u=3")) for _ in range(3)]
    assert runs(await give(client, FRAME)) == streams[:1]
    await client.reset(streams[0], ErrorCode.CANCEL)
    assert runs(await give(client, 2 * SIZE)) == streams[1:]


@pytest.mark.parametrize("piece", [1000, 10_000, 100_000])
async def test_urgency_holds_for_responses_that_come_in_pieces(serve, piece):
    """The urgent one has most of a narrow connection, though its next piece is not there yet when one was sent."""
    total = 1_000_000

    async def app(scope, receive, send):
        await start(send)
        for _ in range(total // piece):
            await send_body(send, b"x" * piece, more=True)
        await send_body(send)

    client = await connect_exhausted(serve, app, pair=partial(socket_like_pair, 10_000))
    await client.window_update(0, 2**30)
    other = await client.request(headers=priority(b"u=7"))
    urgent = await client.request(headers=priority(b"u=0"))
    sizes = {other: 0, urgent: 0}
    while sizes[urgent] < total:
        frame = await client.frame(FrameType.DATA)
        sizes[frame.stream_id] += len(frame.payload)
        await client.settle()
    assert sizes[other] <= total / 4


async def test_the_window_of_these_tests_is_used_up(serve):
    client = await connect_exhausted(serve, large)
    await client.request()
    with trio.move_on_after(5) as scope:
        await client.frame(FrameType.DATA)
    assert scope.cancelled_caught
    assert client._receive_window == 0
    assert client._stream(1).size == WINDOW - 1
