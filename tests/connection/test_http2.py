"""HTTP/2: requests and responses of every shape, and streams that do not stand in each other's way.

What a client does wrong is in `test_http2_rfc9113`, leaving in `test_http2_disconnect`, waiting in
`test_http2_timeouts`, the end of a connection in `test_http2_shutdown`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.connection.conftest import (
    Recorder,
    echo,
    hello,
    read_body,
    respond,
    send_body,
    socket_like_pair,
    start,
)
from trigi._connection.context import ServerContext
from trigi._connection.transport import DISCARD_SIZE
from trigi.config import Config
from trigi.exceptions import InvalidMessage
from trigi.testing.http2 import ErrorCode, Flag, FrameType, HTTP2Client, SettingCode, StreamReset

DISCONNECT = {"type": "http.disconnect"}
WINDOW = 65536
"""What `h2_stream_window` is."""


class Witness(Recorder):
    """Remembers also what became of connections."""

    def __init__(self):
        super().__init__()
        self.connections_refused = []

    def connection_refused(self, connection, error):
        self.connections_refused.append(error)


class Client(HTTP2Client):
    """A client on a connection that is being served, and what is known of the server's side."""

    def __init__(self, served, **how):
        super().__init__(served.stream, **how)
        self.served = served
        self.context = served.context
        self.observer = served.observer
        self.done = served.done
        self.settle = served.settle
        self._held = None

    async def send(self, data):
        if self._held is None:
            await super().send(data)
        else:
            self._held += data

    @asynccontextmanager
    async def together(self):
        """What is sent in the block comes in one read."""
        self._held = bytearray()
        yield
        data, self._held = self._held, None
        await self.send(data)

    async def leave(self):
        await trio.aclose_forcefully(self.stream)

    async def frames(self, stream_id):
        """The frames of one stream, to its end: their types, whether they end the stream, and their sizes."""
        seen = []
        while not seen or not seen[-1][1]:
            frame = await self.frame(FrameType.HEADERS, FrameType.DATA)
            if frame.stream_id == stream_id:
                size = len(frame.payload) if frame.type == FrameType.DATA else 0
                seen.append((FrameType(frame.type), bool(frame.flags & Flag.END_STREAM), size))
        return seen

    async def take(self, stream_id, size):
        """Read this many bytes of a body, and give no window back."""
        data = b""
        while len(data) < size:
            data += await self.data(stream_id)
        return data


def begin(
    serve, application, *, context=None, pair=trio.testing.memory_stream_pair, auto_window=True, **settings
):
    """A client that has not said anything yet."""
    context = context or ServerContext(application, Config(**settings), observer=Witness())
    return Client(serve(application, context=context, pair=pair), auto_window=auto_window)


async def connect(serve, application, *, windows=None, **more):
    """A client that has got the server's settings; `windows` is what it allows on each stream."""
    client = begin(serve, application, **more)
    await client.connect({} if windows is None else {SettingCode.INITIAL_WINDOW_SIZE: windows})
    return client


async def connect_exhausted(serve, application, *, filler=WINDOW - 1, **more):
    """A client whose connection window is used up: stream 1 has got as much of `/filler`."""

    async def app(scope, receive, send):
        if scope["path"] == "/filler":
            await respond(send, b"f" * filler)
        else:
            await application(scope, receive, send)

    client = await connect(serve, app, windows=2**20, auto_window=False, **more)
    await client.take(await client.request(path="/filler"), WINDOW - 1)
    return client


def of_type(response, *names):
    return [field for field in response.headers if field[0] in names]


# Responses


async def test_a_response(serve):
    client = await connect(serve, hello)
    response = await client.fetch("/")
    assert (response.status, response.body, response.trailers) == (200, b"hello", [])
    assert [name for name, _ in response.headers] == [b"content-length", b"date", b"server"]
    assert response.header(b"content-length") == b"5"
    assert response.header(b"server") == b"trigi"


async def test_a_body_in_one_message_is_headers_and_one_data(serve):
    client = await connect(serve, hello)
    stream_id = await client.request()
    assert await client.frames(stream_id) == [(FrameType.HEADERS, False, 0), (FrameType.DATA, True, 5)]


async def test_a_body_in_several_messages(serve):
    async def app(scope, receive, send):
        await start(send)
        for piece in (b"one", b"", b"two", b"three"):
            await send_body(send, piece, more=True)
        await send_body(send, b"")

    client = await connect(serve, app)
    response = await client.fetch()
    assert response.body == b"onetwothree"
    assert response.header(b"content-length") is None
    assert response.header(b"transfer-encoding") is None


async def test_each_message_leaves_at_once(serve):
    """The head with the first, empty as it may be; nobody has to wait for more."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"", more=True)
        await go_on.wait()
        await send_body(send, b"x", more=True)
        await trio.sleep_forever()

    client = await connect(serve, app)
    stream_id = await client.request()
    assert (await client.head(stream_id)).status == 200
    go_on.set()
    assert await client.data(stream_id) == b"x"


@pytest.mark.parametrize("status", [200, 204, 304, 404, 599])
async def test_an_empty_body_is_headers_alone(serve, status):
    async def app(scope, receive, send):
        await start(send, status=status)
        await send_body(send)

    client = await connect(serve, app)
    stream_id = await client.request()
    assert await client.frames(stream_id) == [(FrameType.HEADERS, True, 0)]
    assert (await client.response(stream_id)).status == status


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404)])
@pytest.mark.parametrize("pieces", [[b"body"], [b"bo", b"dy"], [b"", b"body"], [b"body", b""]])
async def test_responses_that_have_no_body(serve, method, status, pieces):
    async def app(scope, receive, send):
        await start(send, status=status, headers=[(b"content-length", b"4")])
        for piece in pieces[:-1]:
            await send_body(send, piece, more=True)
        await send_body(send, pieces[-1])

    client = await connect(serve, app)
    stream_id = await client.request(method)
    assert sum(size for *_, size in await client.frames(stream_id)) == 0
    response = await client.response(stream_id)
    assert response.status == status
    assert response.header(b"content-length") == (None if status == 204 else b"4")
    (ended,) = client.observer.ended
    assert (ended.complete, ended.bytes_sent) == (True, 0)
    assert client.observer.failures == []


@pytest.mark.parametrize(
    "field",
    [
        (b"connection", b"close"),
        (b"connection", b"keep-alive, x-hop"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h3"),
    ],
)
async def test_fields_of_http_1_1_connections_are_left_out(serve, field):
    async def app(scope, receive, send):
        await start(send, headers=[(b"x-first", b"1"), field, (b"x-last", b"2")])
        await send_body(send, b"body")

    client = await connect(serve, app)
    response = await client.fetch()
    assert response.body == b"body"
    assert of_type(response, field[0]) == []
    assert [name for name, _ in response.headers][:2] == [b"x-first", b"x-last"]
    assert client.observer.failures == []


async def test_date_and_server_of_the_application(serve):
    async def app(scope, receive, send):
        await respond(
            send,
            headers=[(b"server", b"mine"), (b"date", b"today"), (b"set-cookie", b"a"), (b"set-cookie", b"b")],
        )

    client = await connect(serve, app)
    response = await client.fetch()
    assert of_type(response, b"server", b"date") == [(b"server", b"mine"), (b"date", b"today")]
    assert of_type(response, b"set-cookie") == [(b"set-cookie", b"a"), (b"set-cookie", b"b")]


async def test_without_date_and_server(serve):
    client = await connect(serve, hello, date_header=False, server_header=False)
    assert (await client.fetch()).headers == [(b"content-length", b"5")]


async def test_a_head_larger_than_a_frame(serve):
    async def app(scope, receive, send):
        await respond(send, b"ok", headers=[(b"x-%d" % n, b"%d" % n * 2000) for n in range(20)])

    client = await connect(serve, app)
    response = await client.fetch()
    assert response.header(b"x-19") == b"19" * 2000
    assert response.body == b"ok"


# Trailers


async def sends_trailers(scope, receive, send):
    await start(send, trailers=True)
    await send_body(send, b"body")
    await send({"type": "http.response.trailers", "headers": [(b"x-a", b"1")], "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": [(b"x-b", b"2"), (b"connection", b"close")]})


async def test_trailers(serve):
    client = await connect(serve, sends_trailers)
    stream_id = await client.request(headers=[(b"te", b"trailers")])
    assert [each[:2] for each in await client.frames(stream_id)] == [
        (FrameType.HEADERS, False),
        (FrameType.DATA, False),
        (FrameType.HEADERS, True),
    ]
    response = await client.response(stream_id)
    assert response.body == b"body"
    assert response.trailers == [(b"x-a", b"1"), (b"x-b", b"2")]
    assert [(each.complete, each.bytes_sent) for each in client.observer.ended] == [(True, 4)]


async def test_trailers_that_the_client_does_not_take(serve):
    client = await connect(serve, sends_trailers)
    response = await client.fetch()
    assert (response.body, response.trailers) == (b"body", [])
    assert client.observer.failures == []


@pytest.mark.parametrize("te", [True, False])
async def test_trailers_without_fields_and_without_a_body(serve, te):
    async def app(scope, receive, send):
        await start(send, trailers=True)
        await send_body(send)
        await send({"type": "http.response.trailers"})

    client = await connect(serve, app)
    response = await client.fetch(headers=[(b"te", b"trailers")] if te else [])
    assert (response.status, response.body, response.trailers) == (200, b"", [])
    assert (await client.fetch()).status == 200


async def test_a_response_is_not_complete_before_its_trailers(serve):
    async def app(scope, receive, send):
        await start(send, trailers=True)
        await send_body(send, b"body")

    client = await connect(serve, app)
    stream_id = await client.request(headers=[(b"te", b"trailers")])
    assert (await client.wait_reset(stream_id)).code == ErrorCode.INTERNAL_ERROR
    assert len(client.observer.failures) == 1


# Interim responses


async def test_early_hints(serve):
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>", b"</b.css>"]}

    async def app(scope, receive, send):
        await send(hint)
        await start(send)
        await send(hint)
        await send_body(send, b"a", more=True)
        await send(hint)  # too late
        await send_body(send, b"b")
        await send(hint)

    client = await connect(serve, app)
    response = await client.fetch()
    assert (response.status, response.body) == (200, b"ab")
    assert [(each.status, each.headers) for each in response.informational] == [
        (103, [(b"link", b"</a.css>"), (b"link", b"</b.css>")])
    ] * 2
    assert client.observer.failures == []


async def test_100_continue_at_the_first_receive(serve):
    async def app(scope, receive, send):
        await trio.sleep(5)
        await respond(send, await read_body(receive))

    client = await connect(serve, app)
    began = trio.current_time()
    stream_id = await client.request("POST", headers=[(b"expect", b"100-continue")], end_stream=False)
    assert (await client.informational(stream_id)).status == 100
    assert trio.current_time() == began + 5
    await client.send_body(stream_id, b"one", end_stream=False)
    await client.settle()
    await client.send_body(stream_id, b"two")
    response = await client.response(stream_id)
    assert response.body == b"onetwo"
    assert len(response.informational) == 1


async def test_no_100_continue_where_nobody_waits_for_the_body(serve):
    client = await connect(serve, hello)
    stream_id = await client.request("POST", headers=[(b"expect", b"100-continue")], end_stream=False)
    response = await client.response(stream_id)
    assert (response.status, response.informational) == (200, [])


async def test_no_100_continue_where_the_body_has_come(serve):
    async def app(scope, receive, send):
        await trio.sleep(5)
        await respond(send, await read_body(receive))

    client = await connect(serve, app)
    stream_id = await client.request("POST", headers=[(b"expect", b"100-continue")], end_stream=False)
    await client.send_body(stream_id, b"body")
    response = await client.response(stream_id)
    assert (response.body, response.informational) == (b"body", [])


# Applications that do not do as they should


async def test_what_is_sent_after_the_end_is_ignored(serve):
    async def app(scope, receive, send):
        await respond(send, b"body")
        await send_body(send, b"more", more=True)
        await send_body(send, b"more")
        seen.append(await receive())

    seen = []
    client = await connect(serve, app)
    for _ in range(2):
        assert (await client.fetch()).body == b"body"
    await client.settle()
    assert seen == [DISCONNECT] * 2
    assert client.observer.failures == []
    assert [each.bytes_sent for each in client.observer.ended] == [4, 4]


async def do_nothing(send):
    pass


async def only_start(send):
    await start(send, headers=[(b"content-length", b"10"), (b"x-mine", b"1")])


async def half(send):
    await only_start(send)
    await send_body(send, b"half", more=True)


async def empty_half(send):
    await start(send)
    await send_body(send, more=True)


@pytest.mark.parametrize("fails", [True, False], ids=["raises", "returns"])
@pytest.mark.parametrize("sends", [do_nothing, only_start])
async def test_an_application_that_ends_before_its_response_has_begun(serve, fails, sends):
    async def app(scope, receive, send):
        if scope["path"] == "/good":
            await respond(send, b"good")
            return
        await sends(send)
        if fails:
            raise ValueError

    client = await connect(serve, app)
    response = await client.fetch()
    assert (response.status, response.body) == (500, b"500 Internal Server Error\n")
    assert response.header(b"x-mine") is None
    assert (await client.fetch("/good")).body == b"good"
    assert len(client.observer.failures) == 1
    assert [(each.status, each.complete) for each in client.observer.ended] == [(500, True), (200, True)]


@pytest.mark.parametrize("fails", [True, False], ids=["raises", "returns"])
@pytest.mark.parametrize("sends", [half, empty_half])
async def test_an_application_that_ends_before_the_end_of_its_response(serve, fails, sends):
    go_on = trio.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/good":
            await go_on.wait()
            await respond(send, b"good")
            return
        await sends(send)
        if fails:
            raise ValueError

    client = await connect(serve, app)
    good, bad = await client.request(path="/good"), await client.request()
    assert (await client.wait_reset(bad)).code == ErrorCode.INTERNAL_ERROR
    go_on.set()
    assert (await client.response(good)).body == b"good"
    assert len(client.observer.failures) == 1
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False), (200, True)]


@pytest.mark.parametrize(
    "pieces",
    [[b"12345"], [b"12", b"345"], [b"123"], [b"12", b"3"], [b"1234", b"5"], [b""], [b"1234", b"", b"5"]],
)
async def test_a_body_of_another_length_than_announced(serve, pieces):
    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"4")])
        for piece in pieces[:-1]:
            await send_body(send, piece, more=True)
        await send_body(send, pieces[-1])

    client = await connect(serve, app)
    bad = await client.request()
    assert (await client.wait_reset(bad)).code == ErrorCode.INTERNAL_ERROR
    (failure,) = client.observer.failures
    assert isinstance(failure, InvalidMessage)
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]
    with pytest.raises(StreamReset):
        await client.fetch()


# Streams do not stand in each other's way


async def test_an_upload_that_nobody_reads_holds_no_other_stream(serve):
    async def app(scope, receive, send):
        if scope["path"] == "/deaf":
            await trio.sleep_forever()
        await echo(scope, receive, send)

    client = await connect(serve, app)
    for _ in range(20):  # more than the connection's window, all together
        stream_id = await client.request("POST", "/deaf", end_stream=False)
        await client.send_body(stream_id, b"x" * WINDOW, end_stream=False)
    assert (await client.fetch("/", method="POST", body=b"y" * 200_000)).body == b"y" * 200_000


async def test_a_stream_without_window_holds_no_other(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 100_000)

    client = await connect(serve, app, windows=0)
    held, other = await client.request(), await client.request()
    await client.head(held)
    await client.window_update(other, 200_000)
    assert (await client.response(other)).body == b"x" * 100_000
    await client.window_update(held, 100_000)
    assert (await client.response(held)).body == b"x" * 100_000


async def test_the_connections_window_is_reopened(serve):
    async def app(scope, receive, send):
        await respond(send, scope["raw_path"] * 5000)

    client = await connect_exhausted(serve, app, filler=100_000)
    streams = [await client.request(path=f"/{n}") for n in range(3)]
    await trio.sleep(5)
    await client.window_update(0, 100_000 - (WINDOW - 1) + 15_000)  # /filler's rest, and half of the others
    await client.settle()
    await client.window_update(0, 100_000)
    assert len((await client.response(1)).body) + WINDOW - 1 == 100_000
    for number, stream_id in enumerate(streams):
        assert (await client.response(stream_id)).body == b"/%d" % number * 5000


@pytest.mark.parametrize("trailers", [False, True])
async def test_an_end_needs_no_window(serve, trailers):
    """Only bytes of bodies are under flow control (RFC 9113, 5.2.1)."""

    async def app(scope, receive, send):
        await start(send, trailers=trailers)
        await send_body(send, more=True)
        await trio.sleep(1)
        await send_body(send)
        if trailers:
            await send({"type": "http.response.trailers", "headers": [(b"x-a", b"1")]})

    client = await connect_exhausted(serve, app, filler=WINDOW + 1)
    with trio.fail_after(5):
        response = await client.fetch(headers=[(b"te", b"trailers")])
    assert (response.status, response.body) == (200, b"")


async def test_large_downloads_interleave(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 500_000)

    client = await connect(serve, app, windows=2**20, pair=socket_like_pair)
    await client.window_update(0, 2**24)
    streams = [await client.request() for _ in range(3)]
    order = []
    sizes = dict.fromkeys(streams, 0)
    while sum(sizes.values()) < 1_500_000:
        frame = await client.frame(FrameType.DATA)
        sizes[frame.stream_id] += len(frame.payload)
        order.append(frame.stream_id)
        if sizes[frame.stream_id] == 500_000:
            assert min(sizes.values()) > 400_000
    assert set(order[6:9]) == set(streams)


async def test_what_comes_small_passes_what_is_large(serve):
    """A small response need not wait for the end of a large one that began before it."""

    async def app(scope, receive, send):
        await respond(send, b"x" * (10_000_000 if scope["path"] == "/large" else 10))

    client = await connect(serve, app, windows=2**30, pair=socket_like_pair)
    await client.window_update(0, 2**30)
    large = await client.request(path="/large")
    await client.head(large)
    small = await client.request(path="/small")
    await client.response(small)
    assert len(await client.data(large)) < 1_000_000


async def test_window_is_given_back_as_the_application_takes_data(serve):
    take = trio.Semaphore(0)

    async def app(scope, receive, send):
        for _ in range(2):
            await take.acquire()
            await receive()
        await trio.sleep_forever()

    client = await connect(serve, app)
    stream_id = await client.request("POST", end_stream=False)
    await client.send_body(stream_id, b"x" * WINDOW, end_stream=False)
    await client.ping()
    assert client.send_window(stream_id) == 0
    take.release()
    take.release()
    await client.settle()
    await client.ping()
    assert client.send_window(stream_id) >= WINDOW // 2


async def test_the_connections_window_is_given_back_on_receipt(serve):
    async def app(scope, receive, send):
        await trio.sleep_forever()

    client = await connect(serve, app)
    await client.ping()
    largest = client.window
    assert largest >= 2**20
    for _ in range(50):
        stream_id = await client.request("POST", end_stream=False)
        await client.send_body(stream_id, b"x" * WINDOW, end_stream=False)
    await client.ping()
    assert client.window >= largest // 2


async def test_an_upload_in_tiny_pieces_takes_no_more_memory_than_in_large_ones(serve):
    """What waits is one message, and one piece behind it."""
    messages = []

    async def app(scope, receive, send):
        await trio.sleep(10)
        while not messages or messages[-1]["more_body"]:
            messages.append(await receive())
        await respond(send)

    client = await connect(serve, app)
    stream_id = await client.request("POST", end_stream=False)
    sent = bytes(n % 251 for n in range(5000))
    for n in range(5000):
        await client.send_data(stream_id, sent[n : n + 1])
    await client.settle()
    await client.send_data(stream_id, b"", end_stream=True)
    assert (await client.response(stream_id)).status == 200
    assert b"".join(message["body"] for message in messages) == sent
    assert len(messages) <= 3


async def test_an_upload_arrives_whole_whatever_its_pieces(serve):
    client = await connect(serve, echo)
    body = bytes(n % 251 for n in range(300_000))
    stream_id = await client.request("POST", headers=[(b"content-length", b"300000")], end_stream=False)
    position = 0
    for size in (1, 10_000, 2, 55_000, 16_384, 1):
        await client.send_body(stream_id, body[position : position + size], end_stream=False)
        position += size
    await client.send_body(stream_id, body[position:])
    assert (await client.response(stream_id)).body == body


async def test_reading_and_writing_at_once(serve):
    async def app(scope, receive, send):
        await start(send)
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send_body(send, message["body"], more=more)

    client = await connect(serve, app, pair=lambda: socket_like_pair(3000))
    body = bytes(n % 251 for n in range(200_000))
    async with trio.open_nursery() as nursery:
        for _ in range(3):

            @nursery.start_soon
            async def exchange():
                stream_id = await client.request("POST", end_stream=False)
                nursery.start_soon(client.send_body, stream_id, body)
                assert (await client.response(stream_id)).body == body


async def test_a_download_that_nobody_reads_is_not_sent_ahead(serve):
    sent = 0

    async def app(scope, receive, send):
        nonlocal sent
        await start(send)
        while True:
            await send_body(send, b"x" * 1000, more=True)
            sent += 1000

    client = await connect(serve, app, windows=0)
    await client.request()
    await trio.sleep(20)
    assert sent == 0
    await client.window_update(1, 10_500)
    await trio.sleep(20)
    assert 9_000 <= sent <= 10_500


async def test_a_loop_of_small_sends_lets_others_run(serve):
    turns = 0

    async def app(scope, receive, send):
        async def count():
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        await start(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(1000):
                await send_body(send, b"x", more=True)
            nursery.cancel_scope.cancel()
        await send_body(send)

    client = await connect(serve, app)
    assert len((await client.fetch()).body) == 1000
    assert turns > 10


# The rest of an upload that has been answered


async def test_the_rest_of_an_upload_after_the_response(serve):
    client = await connect(serve, hello)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).body == b"hello"
    await client.send_body(stream_id, b"x" * 200_000)
    assert (await client.fetch()).status == 200
    assert len(client.observer.ended) == 2


async def test_an_upload_without_end_after_the_response(serve):
    client = await connect(serve, hello)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).body == b"hello"
    await client.send_body(stream_id, b"x" * 10_000_000)
    assert (await client.wait_reset(stream_id)).code == ErrorCode.NO_ERROR
    assert (await client.fetch()).status == 200


async def test_a_response_that_still_waits_is_not_lost_to_its_upload(serve):
    """The connection's window is used up, so that the response can't leave before the upload is too much."""

    async def app(scope, receive, send):
        await respond(send, b"early")

    client = await connect_exhausted(serve, app, filler=WINDOW + 1)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.head(stream_id)).status == 200
    with trio.move_on_after(1):
        await client.send_body(stream_id, b"x" * 4 * DISCARD_SIZE, end_stream=False)
    await client.window_update(0, 1000)
    assert (await client.response(stream_id)).body == b"early"


async def test_a_response_is_not_lost_to_an_unread_upload(serve):
    """However much of it a client may send."""

    async def app(scope, receive, send):
        await trio.sleep(1)
        await respond(send, b"early")

    client = await connect(serve, app, h2_stream_window=4 * DISCARD_SIZE)
    stream_id = await client.request("POST", end_stream=False)
    await client.send_body(stream_id, b"x" * 2 * DISCARD_SIZE, end_stream=False)
    assert (await client.response(stream_id)).body == b"early"


async def test_a_refusal_after_the_response_is_told_once(serve):
    """Every further piece is over the limit, too."""
    client = await connect(serve, hello, body_size_limit=10)
    stream_id = await client.request("POST", end_stream=False)
    assert (await client.response(stream_id)).body == b"hello"
    for _ in range(20):
        await client.send_data(stream_id, b"x" * 10)
    await client.settle()
    assert len(client.observer.refused) <= 1


async def test_a_body_that_is_too_large(serve):
    seen = []

    async def app(scope, receive, send):
        while not seen or seen[-1] != DISCONNECT:
            seen.append(await receive())

    client = await connect(serve, app, body_size_limit=10)
    stream_id = await client.request("POST", end_stream=False)
    for _ in range(4):
        await client.send_data(stream_id, b"12345")
        await client.settle()
    assert (await client.response(stream_id)).status == 413
    assert seen[-1] == DISCONNECT
    assert (await client.wait_reset(stream_id)).code == ErrorCode.NO_ERROR
    assert [each.limit for each in client.observer.refused] == ["body_size_limit"]
    assert [(each.status, each.complete) for each in client.observer.ended] == [(413, False)]


# How many


async def test_100_streams_at_once_and_not_one_more(serve):
    go_on = trio.Event()

    async def app(scope, receive, send):
        await go_on.wait()
        await respond(send, scope["raw_path"])

    client = await connect(serve, app)
    assert client.settings[SettingCode.MAX_CONCURRENT_STREAMS] == 100
    streams = [await client.request(path=f"/{n}") for n in range(100)]
    one_more = await client.request(path="/100")
    assert (await client.wait_reset(one_more)).code == ErrorCode.REFUSED_STREAM
    assert len(client.context.running) == 100
    go_on.set()
    for number, stream_id in enumerate(streams):
        assert (await client.response(stream_id)).body == b"/%d" % number
    assert (await client.fetch("/again")).body == b"/again"


async def cleans_up(scope, receive, send):
    """It takes 20 seconds to end, whatever is done to it."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)


async def test_a_stream_that_was_reset_counts_until_its_application_has_ended(serve):
    client = await connect(
        serve, cleans_up, h2_max_concurrent_streams=2, disconnect_grace=0, keep_alive_timeout=100
    )
    for _ in range(2):
        await client.reset(await client.request())
    await client.settle()
    assert (await client.wait_reset(await client.request())).code == ErrorCode.REFUSED_STREAM
    assert len(client.context.running) == 2
    await trio.sleep(21)
    last = await client.request()
    await client.settle()
    assert len(client.context.running) == 1
    await client.reset(last)


async def test_a_stream_that_was_refused_counts_until_its_application_has_ended(serve):
    """A client could otherwise have any number of them at once, by too large a body for each."""
    client = await connect(
        serve, cleans_up, h2_max_concurrent_streams=2, disconnect_grace=0, body_size_limit=10
    )
    for _ in range(10):
        stream_id = await client.request("POST", end_stream=False)
        await client.settle()
        await client.send_data(stream_id, b"x" * 11)
        await client.settle()
    assert len(client.context.running) <= 2


async def test_a_stream_that_broke_the_protocol_counts_until_its_application_has_ended(serve):
    client = await connect(serve, cleans_up, h2_max_concurrent_streams=2, disconnect_grace=0)
    for _ in range(10):
        stream_id = await client.request("POST", headers=[(b"content-length", b"1")], end_stream=False)
        await client.settle()
        with trio.move_on_after(0):
            await client.send_data(stream_id, b"xx")
        await client.settle()
    assert len(client.context.running) <= 2


async def test_2000_requests_leave_nothing_behind(serve):
    client = await connect(serve, echo)
    for number in range(2000):
        assert (await client.fetch(method="POST", body=b"%d" % number)).body == b"%d" % number
    await client.settle()
    (connection,) = client.context.connections
    codec, writer = connection._codec, connection._writer
    assert connection._exchanges == connection._closing == {}
    assert codec._streams == writer._streams == {}
    assert writer._blocked == set()
    assert connection._abandoned == set()
    assert codec._engine._h2.streams == {}
    assert len(codec._reset) == len(writer._schedule) == writer._queued == 0
    assert len(connection._applications.child_tasks) == 1  # the writer


async def test_1000_disturbed_requests_leave_nothing_behind(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 1000)

    client = await connect(serve, app, windows=500, disconnect_grace=0, h2_reset_limit=10_000)
    for number in range(1000):
        stream_id = await client.request("POST", end_stream=number % 2 == 0)
        await client.head(stream_id)
        await client.reset(stream_id)
    await client.settle()
    await trio.sleep(3)
    (connection,) = client.context.connections
    codec, writer = connection._codec, connection._writer
    assert connection._exchanges == connection._closing == {}
    assert codec._streams == writer._streams == {}
    assert writer._blocked == set()
    assert connection._abandoned == set()
    assert codec._engine._h2.streams == {}
    assert len(writer._schedule) == writer._queued == 0
    assert len(connection._applications.child_tasks) == 1


async def test_concurrency_limit(serve):
    """503 on the stream that is too many, and the others go on."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        await go_on.wait()
        await respond(send, b"done")

    client = await connect(serve, app, concurrency_limit=2)
    first, second = await client.request(), await client.request()
    for method, body in (("GET", None), ("POST", b"x" * 200_000)):
        response = await client.fetch(method=method, body=body)
        assert (response.status, response.header(b"retry-after")) == (503, b"1")
    assert [each.limit for each in client.observer.refused] == ["concurrency_limit"] * 2
    go_on.set()
    assert (await client.response(first)).body == (await client.response(second)).body == b"done"
    assert (await client.fetch()).status == 200
    assert [each.status for each in client.observer.ended] == [503, 503, 200, 200, 200]


# What is reported


async def test_each_exchange_is_reported_once(serve):
    async def app(scope, receive, send):
        match scope["path"]:
            case "/whole":
                await respond(send, b"12345")
            case "/half":
                await start(send, status=201)
                await send_body(send, b"123", more=True)
            case "/none":
                raise ValueError
            case "/gone":
                await trio.sleep_forever()

    client = await connect(serve, app, disconnect_grace=0)
    await client.fetch("/whole")
    await client.wait_reset(await client.request(path="/half"))
    await client.fetch("/none")
    await client.reset(await client.request(path="/gone"))
    await client.settle()
    assert [(each.target, each.status, each.complete, each.bytes_sent) for each in client.observer.ended] == [
        (b"/whole", 200, True, 5),
        (b"/half", 201, False, 3),
        (b"/none", 500, True, 26),
        (b"/gone", None, False, 0),
    ]


async def test_the_report_comes_with_the_end_of_the_response(serve):
    async def app(scope, receive, send):
        await trio.sleep(3)
        await respond(send, b"x" * 100)
        await trio.sleep(1000)

    client = await connect(serve, app, windows=10)
    stream_id = await client.request()
    await trio.sleep(5)
    assert client.observer.ended == []
    await client.window_update(stream_id, 1000)
    await client.response(stream_id)
    (ended,) = client.observer.ended
    assert (ended.duration, ended.bytes_sent, ended.complete) == (5, 100, True)


async def test_a_response_that_could_not_leave_is_not_reported_as_complete(serve):
    """The connection's window is used up: nothing of the body was ever sent."""
    client = await connect_exhausted(serve, hello, filler=WINDOW + 1)
    await client.head(await client.request(path="/small"))
    await trio.sleep(5)
    await client.leave()
    await client.done.wait()
    (report,) = [each for each in client.observer.ended if each.target == b"/small"]
    assert not report.complete
