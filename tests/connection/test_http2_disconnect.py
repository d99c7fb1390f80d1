"""HTTP/2: a client that resets a stream, or leaves with all of them; and what comes with that in one read."""

from __future__ import annotations

from functools import partial
from math import inf
from random import Random

import pytest
import trio
import trio.testing

from tests.connection.conftest import echo, hello, read_body, respond, send_body, socket_like_pair, start
from tests.connection.test_http2 import WINDOW, connect, connect_exhausted
from trigi.exceptions import ClientDisconnected
from trigi.testing.http2 import ErrorCode, StreamReset

DISCONNECT = {"type": "http.disconnect"}


class Waiter:
    """An application that reads its request's body, waits for the disconnect, and notes when each came."""

    def __init__(self):
        self.body = b""
        self.told = []

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/good":
            await trio.sleep(1)
            await respond(send, b"good")
            return
        while len(self.told) < 3:
            message = await receive()
            if message == DISCONNECT:
                self.told.append(trio.current_time())
            else:
                self.body += message["body"]


@pytest.fixture
def waiter():
    return Waiter()


async def reset_stream(client, stream_id):
    await client.reset(stream_id)


async def close(client, stream_id):
    await client.leave()


async def reset_connection(client, stream_id):
    client.stream.reset()


async def send_eof(client, stream_id):
    await client.stream.send_eof()


LEAVES = [reset_stream, close, reset_connection, send_eof]


# Reaching receive()


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_it_reaches_a_waiting_receive_at_once_and_for_ever(serve, waiter, leave, method):
    client = await connect(serve, waiter, pair=socket_like_pair)
    stream_id = await client.request(method, end_stream=method == "GET")
    if method == "POST":
        await client.send_body(stream_id, b"body")
    await trio.sleep(1000)
    began = trio.current_time()
    await leave(client, stream_id)
    await client.settle()
    assert waiter.told == [began] * 3
    assert waiter.body == (b"body" if method == "POST" else b"")
    assert [each.complete for each in client.observer.ended] == [False]
    assert client.observer.failures == []


async def test_a_reset_reaches_one_application_alone(serve, waiter):
    client = await connect(serve, waiter)
    good, bad = await client.request(path="/good"), await client.request("POST", end_stream=False)
    await client.settle()
    await client.reset(bad)
    assert (await client.response(good)).body == b"good"
    assert (await client.fetch("/good")).body == b"good"
    assert len(waiter.told) == 3


@pytest.mark.parametrize("leave", [close, reset_connection, send_eof])
async def test_the_end_of_the_connection_reaches_all(serve, leave):
    told = []

    async def app(scope, receive, send):
        while await receive() != DISCONNECT:
            pass
        told.append(scope["path"])

    client = await connect(serve, app, pair=socket_like_pair)
    for number in range(50):
        await client.request("POST" if number % 2 else "GET", f"/{number}", end_stream=not number % 2)
    await client.settle()
    await leave(client, 0)
    await client.done.wait()
    assert sorted(told) == sorted(f"/{number}" for number in range(50))
    assert len(client.observer.ended) == 50


@pytest.mark.parametrize("leave", [reset_stream, close])
async def test_what_was_received_before_it_is_given_first(serve, waiter, leave):
    """All that came of an upload is still there for an application that asks late; then the disconnect."""

    async def app(scope, receive, send):
        await trio.sleep(3)
        await waiter(scope, receive, send)

    client = await connect(serve, app)
    stream_id = await client.request("POST", end_stream=False)
    for piece in (b"one", b"two", b"three"):
        await client.send_data(stream_id, piece)
        await client.settle()
    await leave(client, stream_id)
    await trio.sleep(10)
    assert b"onetwothree".startswith(waiter.body)
    assert len(waiter.told) == 3
    assert client.observer.failures == []


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_client_that_closes_right_after_its_request(serve, waiter, pieces):
    """The whole body still arrives, then the disconnect. [HD-20]"""

    async def app(scope, receive, send):
        await trio.sleep(1)
        await waiter(scope, receive, send)

    client = await connect(serve, app)
    stream_id = await client.request("POST", end_stream=False)
    for number in range(pieces):
        await client.send_data(stream_id, b"whole", end_stream=number == pieces - 1)
        await client.settle()
    await client.leave()
    await client.done.wait()
    assert waiter.body == b"whole" * pieces
    assert len(waiter.told) == 3
    assert client.observer.failures == []


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("leave", [close, send_eof])
async def test_a_body_that_is_cut_off_by_the_end_of_the_connection(serve, half_close, leave):
    """The disconnect at once, and no false end of the body: what is missing can't come any more. [HD-11]"""
    messages = []

    async def app(scope, receive, send):
        while not messages or messages[-1] != DISCONNECT:
            messages.append(await receive())
        ended.append(trio.current_time())

    ended = []
    client = await connect(serve, app, half_close=half_close, pair=socket_like_pair)
    stream_id = await client.request("POST", end_stream=False)
    await client.send_data(stream_id, b"half")
    await trio.sleep(2)
    began = trio.current_time()
    await leave(client, stream_id)
    await client.done.wait()
    assert messages == [{"type": "http.request", "body": b"half", "more_body": True}, DISCONNECT]
    assert ended == [began]


async def test_half_close(serve):
    """A client that has said all it wants is still answered, on all its streams."""

    async def app(scope, receive, send):
        body = await read_body(receive)
        await trio.sleep(7)
        await respond(send, scope["raw_path"] + body)

    client = await connect(serve, app, half_close=True)
    streams = [await client.request("POST", f"/{n}", end_stream=False) for n in range(3)]
    for stream_id in streams:
        await client.send_body(stream_id, b"body")
    client.answers = False
    client.auto_window = False
    await client.stream.send_eof()
    for number, stream_id in enumerate(streams):
        assert (await client.response(stream_id)).body == b"/%dbody" % number
    assert (await client.wait_closed()).code == ErrorCode.NO_ERROR
    await client.done.wait()
    assert [each.complete for each in client.observer.ended] == [True] * 3


async def test_half_close_of_an_idle_connection(serve):
    client = await connect(serve, hello, half_close=True)
    await client.fetch()
    began = trio.current_time()
    client.answers = False
    await client.stream.send_eof()
    await client.done.wait()
    assert trio.current_time() == began


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("leave", [close, reset_connection])
async def test_a_client_that_leaves_during_a_download(serve, half_close, leave):
    """With half_close it is the next write that fails."""
    raised = []

    async def app(scope, receive, send):
        await start(send)
        try:
            while True:
                await send_body(send, b"x" * 1000, more=True)
                await trio.sleep(1)
        except ClientDisconnected:
            raised.append(trio.current_time())
            raise

    client = await connect(serve, app, half_close=half_close, pair=socket_like_pair)
    stream_id = await client.request()
    await client.data(stream_id)
    began = trio.current_time()
    await leave(client, stream_id)
    await client.done.wait()
    assert len(raised) == 1
    assert raised[0] <= began + 5
    assert client.observer.failures == []


@pytest.mark.parametrize("half_close", [False, True])
async def test_a_write_that_fails_is_a_disconnect(serve, half_close):
    """A client that has stopped reading, though not sending, has left as well."""
    seen = []

    async def app(scope, receive, send):
        await receive()
        await start(send)
        with pytest.raises(ClientDisconnected):
            while True:
                await send_body(send, b"x" * 1000, more=True)
                await trio.sleep(1)
        seen.append(await receive())

    client = await connect(serve, app, half_close=half_close)
    client.stream.receive_stream.close()
    await client.request()
    began = trio.current_time()
    await client.done.wait()
    assert trio.current_time() <= began + 5
    assert seen == [DISCONNECT]
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]


# What send() tells of it


@pytest.mark.parametrize("leave", LEAVES)
async def test_send_raises_an_oserror(serve, leave):
    """Whatever is sent, and however often."""
    raised = []

    async def app(scope, receive, send):
        await receive()
        await receive()
        for message in (
            {"type": "http.response.early_hint", "links": []},
            {"type": "http.response.start", "status": 200},
            {"type": "http.response.start", "status": 200},
            {"type": "http.response.body", "body": b"x"},
        ):
            with pytest.raises(OSError, match="client has disconnected") as caught:
                await send(message)
            raised.append(type(caught.value))

    client = await connect(serve, app, pair=socket_like_pair)
    stream_id = await client.request()
    await client.settle()
    await leave(client, stream_id)
    await client.settle()
    assert raised == [ClientDisconnected] * 4
    assert client.observer.failures == []


@pytest.mark.parametrize("leave", LEAVES)
async def test_a_send_that_waits_raises_when_the_client_leaves(serve, leave):
    """[HD-14]"""
    raised = []

    async def app(scope, receive, send):
        await start(send)
        try:
            await send_body(send, b"x" * 100_000, more=True)
        except OSError:
            raised.append(trio.current_time())
            raise

    client = await connect(serve, app, pair=socket_like_pair, windows=1000)
    stream_id = await client.request()
    await trio.sleep(7)
    began = trio.current_time()
    await leave(client, stream_id)
    await client.settle()
    assert raised == [began]
    assert client.observer.failures == []


async def test_tasks_that_send_at_once_are_all_told(serve):
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

    client = await connect(serve, app, windows=100)
    stream_id = await client.request()
    await trio.sleep(7)
    began = trio.current_time()
    await client.reset(stream_id)
    await client.settle()
    assert raised == [began] * 3


# The application is cancelled


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("grace", [0, 5, 60.5])
@pytest.mark.parametrize("of_request", [False, True])
async def test_it_is_cancelled_after_its_grace(serve, leave, grace, of_request):
    ended = []

    async def app(scope, receive, send):
        if of_request:
            scope["extensions"]["trigi"]["disconnect_grace"] = grace
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            ended.append(trio.current_time())

    setting = 17 if of_request else grace
    client = await connect(serve, app, disconnect_grace=setting, pair=socket_like_pair)
    stream_id = await client.request()
    await client.settle()
    began = trio.current_time()
    await leave(client, stream_id)
    await trio.sleep(100)
    assert ended == [began + grace, began + grace + 3]
    assert client.observer.failures == []
    assert client.context.running == set()


@pytest.mark.parametrize("leave", LEAVES)
async def test_without_end_of_its_grace_it_is_never_cancelled(serve, leave):
    ended = []

    async def app(scope, receive, send):
        await receive()
        await receive()
        await trio.sleep(10_000)
        ended.append(trio.current_time())

    client = await connect(serve, app, disconnect_grace=inf, pair=socket_like_pair)
    began = trio.current_time()
    stream_id = await client.request()
    await client.settle()
    await leave(client, stream_id)
    await trio.sleep(20_000)
    assert ended == [began + 10_000]


async def test_the_others_are_not_cancelled(serve):
    async def app(scope, receive, send):
        await trio.sleep(10)
        await respond(send, b"x" * 200_000)

    client = await connect(serve, app, disconnect_grace=0)
    streams = [await client.request() for _ in range(10)]
    await client.settle()
    for stream_id in streams[::2]:
        await client.reset(stream_id)
    for stream_id in streams[1::2]:
        assert len((await client.response(stream_id)).body) == 200_000
    assert sorted(each.complete for each in client.observer.ended) == [False] * 5 + [True] * 5


@pytest.mark.parametrize("leave", LEAVES)
async def test_work_after_the_response_goes_on(serve, leave):
    """Nothing is cancelled, and nothing else waits for it."""
    ended = []

    async def app(scope, receive, send):
        await respond(send, b"done")
        if scope["path"] == "/works":
            assert await receive() == DISCONNECT
            await trio.sleep(50)
            ended.append(trio.current_time())

    client = await connect(serve, app, disconnect_grace=0, pair=socket_like_pair)
    began = trio.current_time()
    stream_id = await client.request(path="/works")
    assert (await client.response(stream_id)).body == b"done"
    assert (await client.fetch("/other")).body == b"done"
    if leave is not reset_stream:  # there is nothing to reset any more
        await leave(client, stream_id)
    await trio.sleep(100)
    assert ended == [began + 50]
    assert [each.complete for each in client.observer.ended] == [True, True]


async def test_a_reset_after_the_response_leaves_its_work_alone(serve):
    """The upload is open still, so that the client may reset the stream."""
    ended = []

    async def app(scope, receive, send):
        await respond(send, b"done")
        await trio.sleep(50)
        ended.append(True)

    client = await connect(serve, app, disconnect_grace=0, keep_alive_timeout=1000)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).body == b"done"
    await client.reset(stream_id)
    await trio.sleep(100)
    assert ended == [True]
    assert [each.complete for each in client.observer.ended] == [True]


# What comes in one read


STEPS = {
    "piece": lambda client, stream_id: client.send_data(stream_id, b"abc"),
    "last piece": lambda client, stream_id: client.send_data(stream_id, b"def", end_stream=True),
    "end": lambda client, stream_id: client.send_data(stream_id, b"", end_stream=True),
    "window": lambda client, stream_id: client.window_update(stream_id, 1000),
    "connection window": lambda client, stream_id: client.window_update(0, 1000),
    "no window": lambda client, stream_id: client.window_update(stream_id, 0),
    "settings": lambda client, stream_id: client.send_settings({}),
    "reset": lambda client, stream_id: client.reset(stream_id),
}


async def request_with(client, *steps):
    """A request and what goes with it, in one write."""
    async with client.together():
        stream_id = await client.request("POST", end_stream=False)
        for step in steps:
            await STEPS[step](client, stream_id)
    return stream_id


async def follow_with(client, stream_id, *steps):
    async with client.together():
        for step in steps:
            await STEPS[step](client, stream_id)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        ["piece"],
        ["piece", "piece"],
        ["last piece"],
        ["end"],
        ["piece", "window"],
        ["piece", "connection window"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("answers", [False, True])
async def test_a_request_and_its_reset(serve, waiter, steps, answers):
    """The application has not even begun, and is told all the same."""

    async def app(scope, receive, send):
        await waiter(scope, receive, send)
        if answers:
            await respond(send)

    client = await connect(serve, app)
    await request_with(client, *steps, "reset")
    await trio.sleep(1)
    assert len(waiter.told) == 3
    assert b"abcabcdef".find(waiter.body) >= 0
    assert [each.complete for each in client.observer.ended] == [False]
    assert client.observer.failures == client.observer.bugs == []
    assert (await client.fetch("/good")).body == b"good"


async def test_a_request_and_its_reset_with_an_application_that_only_sends(serve):
    """Nothing is sent on a stream that has gone: the connection would not survive it."""

    async def app(scope, receive, send):
        await respond(send, b"x")

    client = await connect(serve, app)
    await request_with(client, "piece", "reset")
    await client.settle()
    assert client.observer.bugs == client.observer.failures == []
    assert (await client.fetch()).body == b"x"


async def test_a_request_and_an_error_of_its_stream(serve, waiter):
    """As a reset, but it is the server's."""
    client = await connect(serve, waiter)
    await request_with(client, "piece", "no window")
    await trio.sleep(1)
    assert len(waiter.told) == 3
    assert client.observer.failures == client.observer.bugs == []


@pytest.mark.parametrize("pieces", [1, 2])
async def test_too_large_a_body_and_a_reset(serve, pieces):
    client = await connect(serve, hello, body_size_limit=2)
    await request_with(client, *["piece"] * pieces, "reset")
    await client.settle()
    assert client.observer.bugs == []
    assert (await client.fetch()).body == b"hello"


async def test_too_large_a_body_and_a_reset_of_a_running_application(serve, waiter):
    client = await connect(serve, waiter, body_size_limit=2)
    stream_id = await client.request("POST", end_stream=False)
    await client.settle()
    await follow_with(client, stream_id, "piece", "reset")
    await client.settle()
    assert client.observer.bugs == []
    assert len(waiter.told) == 3
    assert (await client.fetch("/good")).body == b"good"


@pytest.mark.parametrize(
    "steps",
    [
        ["window", "reset"],
        ["connection window", "reset"],
        ["settings", "reset"],
        ["reset", "window"],
        ["reset", "connection window"],
        ["reset", "settings"],
    ],
    ids=" ".join,
)
async def test_more_window_and_a_reset_of_what_waits_for_it(serve, steps):
    async def app(scope, receive, send):
        await respond(send, b"x" * (1000 if scope["path"] == "/" else 5))

    client = await connect(serve, app, windows=10)
    stream_id = await client.request()
    await client.head(stream_id)
    await client.settle()
    await follow_with(client, stream_id, *steps)
    await client.settle()
    assert client.observer.bugs == []
    assert [each.complete for each in client.observer.ended] == [False]
    assert (await client.fetch("/other")).body == b"xxxxx"


async def test_the_end_of_an_upload_and_a_reset_after_the_response(serve):
    client = await connect(serve, hello)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).body == b"hello"
    await follow_with(client, stream_id, "last piece", "reset")
    assert (await client.fetch()).body == b"hello"


@pytest.mark.parametrize("seed", range(20))
async def test_frames_of_many_streams_in_one_read(serve, seed):
    """Whatever comes together: nothing breaks, and who was not reset is answered."""
    random = Random(seed)

    async def app(scope, receive, send):
        body = await read_body(receive)
        if body is not None:
            await respond(send, body + b"x" * 100)

    client = await connect(
        serve, app, windows=50, disconnect_grace=random.choice([0, 5]), h2_reset_limit=10_000
    )
    for _ in range(20):
        alive, queue = [], []
        for _ in range(5):
            steps = [
                "piece",
                "window",
                "last piece",
                random.choice(["window", "connection window", "settings"]),
            ]
            if random.random() < 0.6:
                steps[random.randrange(5) :] = ["reset"]
            queue.append(steps)
        while queue:
            size = random.randint(1, len(queue))
            async with client.together():
                for steps in queue[:size]:
                    stream_id = await client.request("POST", end_stream=False)
                    for step in steps:
                        await STEPS[step](client, stream_id)
                    if "reset" not in steps:
                        alive.append(stream_id)
            del queue[:size]
            await client.settle()
        for stream_id in alive:
            assert (await client.response(stream_id)).body == b"abcdef" + b"x" * 100
    assert client.observer.failures == client.observer.bugs == []
    assert len(client.observer.ended) == 100


# What was waiting goes with its stream


async def test_a_reset_frees_the_others_from_the_connections_window(serve):
    """The window was used up by a stream that is no more: nothing waits for it, and so nobody stalls."""

    async def app(scope, receive, send):
        await trio.sleep(50)
        await respond(send, b"late")

    client = await connect_exhausted(serve, app, filler=WINDOW + 1000, write_timeout=10)
    late = await client.request()
    await client.reset(1)
    await trio.sleep(45)
    await client.window_update(0, 1000)
    assert (await client.response(late)).body == b"late"


async def test_reset_streams_leave_room_in_the_buffer(serve):
    """What they had waiting no longer counts: a small piece need not wait."""
    sent = []

    async def app(scope, receive, send):
        if scope["path"] == "/large":
            with pytest.raises(ClientDisconnected):
                await respond(send, b"x" * 60_000)
            return
        await start(send)
        await send_body(send, b"small", more=True)
        sent.append(trio.current_time())
        await trio.sleep_forever()

    client = await connect(serve, app, windows=10, write_timeout=inf)
    for _ in range(3):
        stream_id = await client.request(path="/large")
        await client.settle()
        await client.reset(stream_id)
    began = trio.current_time()
    await client.request()
    await trio.sleep(1)
    assert sent == [began]


async def test_uploads_of_a_reset_stream_do_not_use_up_the_connection(serve):
    async def app(scope, receive, send):
        if scope["path"] == "/deaf":
            await trio.sleep_forever()
        await echo(scope, receive, send)

    client = await connect(serve, app, disconnect_grace=0)
    for _ in range(50):
        stream_id = await client.request("POST", "/deaf", end_stream=False)
        await client.send_body(stream_id, b"x" * WINDOW, end_stream=False)
        await client.reset(stream_id)
    assert (await client.fetch(method="POST", body=b"y" * 100_000)).body == b"y" * 100_000


async def test_an_application_that_ends_after_its_stream_was_reset(serve):
    """However it ends, the connection lives."""

    async def app(scope, receive, send):
        if scope["path"] == "/good":
            await respond(send, b"good")
            return
        await start(send)
        await send_body(send, b"half", more=True)
        await receive()
        await receive()
        match scope["path"]:
            case "/raises":
                raise ValueError
            case "/sends":
                await send_body(send, b"rest")

    client = await connect(serve, app)
    for path in ("/raises", "/sends", "/returns"):
        stream_id = await client.request(path=path)
        await client.data(stream_id)
        await client.reset(stream_id)
        await client.settle()
        assert (await client.fetch("/good")).body == b"good"
    assert [type(each) for each in client.observer.failures] == [ValueError]


async def test_the_end_of_the_server_side_is_no_disconnect_for_others(serve):
    async def app(scope, receive, send):
        if scope["path"] == "/bad":
            raise ValueError
        message = await receive()
        with trio.move_on_after(10):
            message = await receive()
        seen.append(message)
        await respond(send)

    seen = []
    client = await connect(serve, app)
    good = await client.request()
    assert (await client.fetch("/bad")).status == 500
    await client.response(good)
    assert seen == [{"type": "http.request", "body": b"", "more_body": False}]


async def test_a_response_that_is_cut_off_can_be_told_from_a_whole_one(serve):
    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"half", more=True)
        raise ValueError

    client = await connect(serve, app, pair=partial(socket_like_pair, 100))
    with pytest.raises(StreamReset) as caught:
        await client.fetch()
    assert caught.value.code == ErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize("leave", LEAVES)
async def test_what_came_for_an_application_that_has_returned_is_dropped(serve, leave):
    """It has asked for more than there was, answered without the rest, and its answer waits for a window."""

    async def app(scope, receive, send):
        await receive()
        with trio.move_on_after(1):
            await receive()
        await trio.sleep(1)
        await respond(send, b"answer")

    client = await connect_exhausted(serve, app, pair=socket_like_pair)
    stream_id = await client.request("POST", end_stream=False)
    await client.send_body(stream_id, b"a", end_stream=False)
    await trio.sleep(1.5)
    await client.send_body(stream_id, b"b", end_stream=False)
    await client.settle()
    await client.send_body(stream_id, b"c")
    await trio.sleep(1)
    await leave(client, stream_id)
    await client.settle()
    assert client.observer.bugs == []
