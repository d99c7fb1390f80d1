"""Every wait for a client has an end: when it comes, what the client sees of it, what the application, what the log."""

from __future__ import annotations

from functools import partial
from math import inf

import pytest
import trio
import trio.testing

from tests.connection.conftest import (
    echo,
    hello,
    read_body,
    respond,
    send_body,
    socket_like_pair,
    start,
)
from trigi._connection.transport import CLOSE_SECONDS, DISCARD_SECONDS, WRITE_SIZE
from trigi.exceptions import ClientDisconnected
from trigi.testing import IncompleteResponse

STREAMS = ("memory", "socket")

DISCONNECT = {"type": "http.disconnect"}


@pytest.fixture
def elapsed():
    """Seconds since the fixture was made, or since it was called last."""
    last = None

    def measure():
        nonlocal last
        now = trio.current_time()
        seconds, last = 0.0 if last is None else now - last, now
        return seconds

    return measure


async def trickle(client, data, seconds):
    """Send one byte after the other."""
    for number in range(len(data)):
        await client.send(data[number : number + 1])
        await trio.sleep(seconds)


# header_timeout


async def test_a_client_that_says_nothing_is_left_without_a_word(serve, elapsed):
    client = serve(hello, header_timeout=7)
    elapsed()
    assert await client.rest() == b""
    assert elapsed() == 7
    assert client.observer.refused == []


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n\r\nGET"])
async def test_half_a_head(serve, elapsed, sent):
    """408, within `header_timeout` of its first byte."""
    client = serve(hello, header_timeout=7)
    await trio.sleep(5)
    await client.send(sent)
    elapsed()
    response = await client.response()
    assert elapsed() == 7
    assert response.status == 408
    assert response.header(b"connection") == b"close"
    assert await client.rest() == b""
    (refused,) = client.observer.refused
    assert refused.limit == "header_timeout"
    assert client.observer.ended == []


async def test_more_bytes_win_no_time_for_the_head(serve, elapsed):
    client = serve(hello, header_timeout=7)
    elapsed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle, client, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x" * 1000, 1)
        assert (await client.response()).status == 408
        assert elapsed() == 7
        nursery.cancel_scope.cancel()


async def test_empty_lines_win_no_time_at_all(serve, elapsed):
    """They are no head: the client has not begun one."""
    client = serve(hello, header_timeout=7)
    elapsed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle, client, b"\r\n\r\n\r\n\r\n", 2)
        assert await client.rest() == b""
        assert elapsed() == 7
        nursery.cancel_scope.cancel()


async def test_a_slow_head_within_its_time(serve):
    client = serve(hello, header_timeout=7)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    await trickle(client, head, 6.9 / len(head))
    assert (await client.response()).status == 200


async def test_half_a_head_of_a_later_request(serve, elapsed):
    """Its time is that of its own first byte, not the keep-alive's."""
    client = serve(hello, header_timeout=7, keep_alive_timeout=5)
    await client.fetch()
    await trio.sleep(4)
    await client.send(b"GET")
    elapsed()
    assert (await client.response()).status == 408
    assert elapsed() == 7
    assert len(client.observer.ended) == 1


async def test_half_a_head_behind_an_open_exchange(serve, elapsed):
    """Its time begins when it is its turn."""

    async def app(scope, receive, send):
        await trio.sleep(100)
        await respond(send)

    client = serve(app, header_timeout=7)
    await client.request()
    await client.send(b"GET / HTTP/1.1\r\n")
    assert (await client.response()).status == 200
    elapsed()
    assert (await client.response()).status == 408
    assert elapsed() == 7


async def test_no_header_timeout(serve):
    client = serve(hello, header_timeout=inf)
    await client.send(b"GET / HTTP/1.1\r\n")
    await trio.sleep(50_000)
    await client.send(b"Host: a\r\n\r\n")
    assert (await client.response()).status == 200


async def test_a_408_that_nobody_reads(serve, elapsed):
    client = serve(hello, header_timeout=7, write_timeout=3, pair=lambda: socket_like_pair(10))
    await client.send(b"GET")
    elapsed()
    await client.done.wait()
    assert elapsed() == 7 + 3


# keep_alive_timeout


async def test_an_idle_connection(serve, elapsed):
    """Closed without a word, `keep_alive_timeout` after the end of the last response."""

    async def app(scope, receive, send):
        await trio.sleep(100)
        await respond(send)
        await trio.sleep(3)

    client = serve(app, keep_alive_timeout=6)
    await client.fetch()
    elapsed()
    assert await client.rest() == b""
    assert elapsed() == 6
    assert client.observer.refused == []


async def test_the_default_of_keep_alive(serve, elapsed):
    client = serve(hello)
    await client.fetch()
    elapsed()
    assert await client.rest() == b""
    assert elapsed() == 5


async def test_an_idle_connection_after_a_body(serve, elapsed):
    client = serve(echo, keep_alive_timeout=6)
    for _ in range(2):
        await client.fetch(method="POST", body=b"body")
        elapsed()
        await trio.sleep(5)
    assert await client.rest() == b""
    assert elapsed() == 6


async def test_an_idle_connection_with_an_empty_line(serve, elapsed):
    """Which old clients send after a body."""
    client = serve(hello, keep_alive_timeout=6)
    await client.fetch()
    elapsed()
    await trio.sleep(2)
    await client.send(b"\r\n")
    assert await client.rest() == b""
    assert elapsed() == 6


async def test_no_keep_alive_timeout(serve):
    client = serve(hello, keep_alive_timeout=inf)
    for _ in range(3):
        assert (await client.fetch()).status == 200
        await trio.sleep(10_000)


async def test_no_keep_alive_at_all(serve, elapsed):
    """0 closes after each response, but for requests that have come already."""
    client = serve(hello, keep_alive_timeout=0)
    elapsed()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
    for _ in range(3):
        assert (await client.response()).status == 200
    assert await client.rest() == b""
    assert elapsed() == 0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("begun", [b"", b"GET /late HTTP/1.1\r\n"])
async def test_a_request_that_comes_as_the_time_ends(serve, autojump_clock, begun, late):
    """The event loop may find both at once, the bytes and the end of their time, above all when it was busy.

    The request is answered: it is not begun, and then dropped.
    """
    told = []

    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await receive()
            with trio.move_on_after(1):
                told.append(await receive())
        await respond(send)

    client = serve(app, keep_alive_timeout=5, header_timeout=5)
    await client.fetch()
    await client.send(begun)
    await client.settle()
    rest = b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n".removeprefix(begun)
    if late:
        autojump_clock.jump(5)
        client.put(rest)
    else:
        client.put(rest)
        autojump_clock.jump(5)
    assert (await client.response()).status == 200
    assert told == []


# body_timeout


@pytest.mark.parametrize("grace", [0, 5, inf])
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 10\r\n\r\n",
        b"Content-Length: 10\r\n\r\nsome",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n",
    ],
)
async def test_a_stalled_body(serve, elapsed, head, grace):
    """The application is told of a disconnect, the client gets 408, and the log has the limit."""
    messages = []

    async def app(scope, receive, send):
        while DISCONNECT not in messages:
            messages.append(await receive())
        messages.append(await receive())

    client = serve(app, body_timeout=7, disconnect_grace=grace)
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + head)
    elapsed()
    response = await client.response()
    assert elapsed() == 7
    assert response.status == 408
    assert response.header(b"connection") == b"close"
    assert await client.rest() == b""
    assert messages[-2:] == [DISCONNECT] * 2
    (refused,) = client.observer.refused
    assert refused.limit == "body_timeout"
    assert [(each.status, each.complete) for each in client.observer.ended] == [(408, False)]
    assert client.observer.failures == []


async def test_a_stalled_body_and_an_application_that_goes_on(serve):
    """It is treated as one whose client has left: `send` raises, after the grace it is cancelled."""
    seen = []

    async def app(scope, receive, send):
        assert await receive() == DISCONNECT
        with pytest.raises(ClientDisconnected):
            await respond(send)
        began = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            seen.append(trio.current_time() - began)

    client = serve(app, disconnect_grace=3)
    await client.request("POST", headers=[(b"content-length", b"10")])
    assert (await client.response()).status == 408
    await client.done.wait()
    assert seen == [3]


async def test_a_stalled_body_after_the_response_began(serve, elapsed):
    """There is nothing left to say: the response is cut off."""
    messages = []

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"some", more=True)
        messages.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send_body(send)

    client = serve(app, body_timeout=7)
    await client.request("POST", headers=[(b"content-length", b"10")])
    elapsed()
    with pytest.raises(IncompleteResponse) as caught:
        await client.response()
    assert elapsed() == 7
    assert caught.value.response.status == 200
    await client.done.wait()
    await client.settle()
    assert messages == [DISCONNECT]
    assert client.observer.refused[0].limit == "body_timeout"


async def test_the_time_of_a_body_is_that_of_its_next_piece(serve):
    client = serve(echo, body_timeout=7)
    await client.request("POST", headers=[(b"content-length", b"5")])
    await trickle(client, b"hello", 6)
    assert (await client.response()).body == b"hello"


async def test_the_time_of_a_body_is_that_of_waiting_for_it(serve):
    """What the application does itself takes as long as it takes."""

    async def app(scope, receive, send):
        await trio.sleep(1000)
        body = (await receive())["body"]
        await trio.sleep(1000)
        await respond(send, body + await read_body(receive))

    client = serve(app, body_timeout=7)
    await client.request("POST", headers=[(b"content-length", b"8")])
    await trio.sleep(1)
    await client.send(b"some")
    await trio.sleep(1002)
    await client.send(b"more")
    assert (await client.response()).body == b"somemore"


async def test_waiting_for_the_disconnect_takes_for_ever(serve):
    """The body is read: `body_timeout` has no part in what comes then."""

    async def app(scope, receive, send):
        await read_body(receive)
        with trio.move_on_after(10_000):
            await receive()
        await respond(send)

    client = serve(app)
    assert (await client.fetch()).status == 200
    assert (await client.fetch(method="POST", body=b"x")).status == 200


async def test_no_body_timeout(serve):
    client = serve(echo, body_timeout=inf)
    await client.request("POST", headers=[(b"content-length", b"1")])
    await trio.sleep(50_000)
    await client.send(b"x")
    assert (await client.response()).body == b"x"


async def test_an_application_that_waits_for_a_body_less_long(serve):
    """Its own timeout is its own affair."""

    async def app(scope, receive, send):
        with trio.move_on_after(6.9):
            pytest.fail(f"got {await receive()}")
        await respond(send, b"too slow", status=408)

    client = serve(app, body_timeout=7)
    await client.request("POST", headers=[(b"content-length", b"1")])
    assert (await client.response()).body == b"too slow"


async def test_a_stalled_body_and_a_receive_that_is_cancelled_then(serve):
    """Its task is cancelled in the moment that it finds the body stalled: the client gets its 408 whole."""

    async def app(scope, receive, send):
        with trio.move_on_after(7):
            await receive()
        await trio.sleep(100)

    client = serve(app, body_timeout=7, disconnect_grace=inf)
    await client.request("POST", headers=[(b"content-length", b"1")])
    response = await client.response()
    assert response.status in (408, 500)
    assert response.body.endswith(b"\n")


async def test_a_stalled_body_and_a_client_that_reads_nothing(serve, elapsed):
    """The application does not wait for the 408 to be read."""
    seen = []

    async def app(scope, receive, send):
        assert await receive() == DISCONNECT
        seen.append(elapsed())

    client = serve(app, body_timeout=7, write_timeout=3, pair=lambda: socket_like_pair(200))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
    client.server._outgoing.data += b"x" * 200  # what it has not read of earlier responses
    elapsed()
    await client.done.wait()
    assert seen == [7]
    assert elapsed() == 3


# write_timeout


async def test_a_client_that_reads_nothing(serve, elapsed):
    """`send` raises, the response is cut off, the connection closed."""
    seen = []

    async def app(scope, receive, send):
        await start(send)
        with pytest.raises(ClientDisconnected, match="write_timeout"):
            await send_body(send, b"x" * 10_000, more=True)
        seen.append(elapsed())
        with pytest.raises(ClientDisconnected):
            await send_body(send, b"more")
        seen.extend([await receive(), await receive()])

    client = serve(app, write_timeout=7, pair=lambda: socket_like_pair(1000))
    await client.request()
    elapsed()
    await client.done.wait()
    assert seen == [7, {"type": "http.request", "body": b"", "more_body": False}, DISCONNECT]
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]
    assert client.observer.failures == []


async def test_what_is_read_wins_time(serve):
    """The timeout is for making progress, not for the whole of a large write."""

    async def app(scope, receive, send):
        await respond(send, b"x" * 20 * WRITE_SIZE)

    client = serve(app, write_timeout=7, pair=lambda: socket_like_pair(WRITE_SIZE))
    await client.request()
    size = 0
    await client.head()
    while data := await client.data():
        size += len(data)
        await trio.sleep(6)
    assert size == 20 * WRITE_SIZE


async def test_a_few_bytes_win_no_time(serve, elapsed):
    """A client can't hold a write by reading a byte now and then."""

    async def app(scope, receive, send):
        await respond(send, b"x" * 20 * WRITE_SIZE)

    client = serve(app, write_timeout=7, pair=lambda: socket_like_pair(1000))
    await client.request()
    elapsed()
    with trio.move_on_after(100):
        while not client.done.is_set():
            await trio.sleep(1)
            if not client.done.is_set():
                await client.stream.receive_some(1)
    assert elapsed() <= 8


async def test_no_write_timeout(serve):
    async def app(scope, receive, send):
        await respond(send, b"x" * 10_000)

    client = serve(app, write_timeout=inf, pair=lambda: socket_like_pair(1000))
    await client.request()
    await trio.sleep(50_000)
    assert len((await client.response()).body) == 10_000


async def test_an_error_that_nobody_reads(serve, elapsed):
    async def app(scope, receive, send):
        raise ValueError

    client = serve(app, write_timeout=7, pair=lambda: socket_like_pair(100))
    await client.request()
    elapsed()
    await client.done.wait()
    assert elapsed() == 7


# request_timeout


async def test_an_application_that_takes_too_long(serve, elapsed):
    """504; its clean-up ran; the connection is used again."""
    cleaned_up = []

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        try:
            await trio.sleep_forever()
        finally:
            cleaned_up.append(elapsed())

    client = serve(app, request_timeout=7)
    for _ in range(2):
        elapsed()
        response = await client.fetch()
        assert response.status == 504
        assert response.body == b"504 Gateway Timeout\n"
        assert cleaned_up[-1] == 7
    assert (await client.fetch("/hello")).status == 200
    assert client.observer.failures == []
    assert [(each.status, each.complete) for each in client.observer.ended] == [
        (504, True),
        (504, True),
        (200, True),
    ]


async def test_the_time_of_a_request_is_one_for_all_of_it(serve, elapsed):
    """Neither its body nor its response put it off."""

    async def app(scope, receive, send):
        await start(send)
        while True:
            await receive()
            await send_body(send, b"x", more=True)

    client = serve(app, request_timeout=7)
    await client.request("POST", headers=[(b"content-length", b"1000")])
    elapsed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle, client, b"x" * 1000, 0.5)
        with pytest.raises(IncompleteResponse):
            await client.response()
        assert elapsed() == 7
        nursery.cancel_scope.cancel()


async def test_too_long_after_the_start(serve):
    """The head is still held, so it is as if there had been no start."""

    async def app(scope, receive, send):
        await start(send)
        await trio.sleep_forever()

    assert (await serve(app, request_timeout=7).fetch()).status == 504


async def test_too_long_in_the_middle_of_the_body(serve):
    """The client can tell."""

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"half", more=True)
        await trio.sleep_forever()

    client = serve(app, request_timeout=7)
    with pytest.raises(IncompleteResponse) as caught:
        await client.fetch()
    assert caught.value.response.body == b"half"
    assert client.observer.failures == []
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]


async def test_too_long_in_a_write(serve, elapsed):
    async def app(scope, receive, send):
        await respond(send, b"x" * 10_000)

    client = serve(app, request_timeout=7, pair=lambda: socket_like_pair(1000))
    await client.request()
    elapsed()
    await client.done.wait()
    assert elapsed() == 7
    assert not client.observer.ended[0].complete


async def test_too_long_after_the_response(serve, elapsed):
    """Background work is part of the call. The client has its response, the connection is used again."""
    ended = []

    async def app(scope, receive, send):
        await respond(send)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(elapsed())

    client = serve(app, request_timeout=7, keep_alive_timeout=100)
    elapsed()
    assert (await client.fetch()).status == 200
    await trio.sleep(8)
    assert ended == [7]
    assert (await client.fetch()).status == 200
    assert client.observer.failures == []


async def test_too_long_and_the_clean_up_fails(serve):
    """504, and the failure is logged."""

    async def app(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    client = serve(app, request_timeout=7)
    assert (await client.fetch()).status == 504
    assert [str(failure) for failure in client.observer.failures] == ["in the clean-up"]


async def test_too_long_and_the_cancellation_is_kept_from_trigi(serve):
    """A framework may catch it: it took too long nevertheless."""

    async def app(scope, receive, send):
        try:
            await trio.sleep_forever()
        except BaseException:
            return

    client = serve(app, request_timeout=7)
    assert (await client.fetch()).status == 504


async def test_too_long_in_one_of_its_tasks(serve):
    """What the others raise then is logged, the cancellation is not."""

    async def app(scope, receive, send):
        async def fail_at_the_end():
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_the_end)
            nursery.start_soon(trio.sleep_forever)

    client = serve(app, request_timeout=7)
    assert (await client.fetch()).status == 504
    (failure,) = client.observer.failures
    assert isinstance(failure, ExceptionGroup)
    assert [type(each) for each in failure.exceptions] == [ValueError]


async def test_too_long_and_its_response_comes_then(serve):
    """An application may answer for itself, in its clean-up."""

    async def app(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                await respond(send, b"sorry", status=503)

    client = serve(app, request_timeout=7)
    assert (await client.fetch()).body == b"sorry"
    assert (await client.fetch()).status == 503


async def test_no_request_timeout(serve):
    async def app(scope, receive, send):
        await trio.sleep(50_000)
        await respond(send)

    assert (await serve(app).fetch()).status == 200


async def test_the_application_moves_its_own_deadline(serve):
    """Through the `trigi` extension."""

    async def app(scope, receive, send):
        scope["extensions"]["trigi"]["cancel_scope"].deadline = trio.current_time() + 50
        await trio.sleep(40)
        await respond(send)

    assert (await serve(app, request_timeout=7).fetch()).status == 200


# Closing


async def test_a_client_that_does_not_say_goodbye_in_tls(serve, tls_pair, elapsed):
    """And takes none: the connection is closed all the same."""
    client = serve(hello, pair=lambda: tls_pair(partial(socket_like_pair, 4000)))
    await client.fetch()
    client.server.transport_stream._outgoing.size = 0  # it reads nothing from here on
    elapsed()
    await client.done.wait()
    assert 5 <= elapsed() <= 5 + DISCARD_SECONDS + CLOSE_SECONDS


async def test_a_close_that_fails(serve):
    """A stream may find at its end that it is broken."""

    class BrokenAtTheEnd(trio.abc.Stream):
        def __init__(self, stream):
            self._stream = stream
            self.closes = 0

        async def send_all(self, data):
            await self._stream.send_all(data)

        async def wait_send_all_might_not_block(self):
            await self._stream.wait_send_all_might_not_block()

        async def receive_some(self, max_bytes=None):
            return await self._stream.receive_some(max_bytes)

        async def aclose(self):
            self.closes += 1
            await self._stream.aclose()
            if self.closes == 1:
                raise trio.BrokenResourceError

    def pair():
        client, server = trio.testing.memory_stream_pair()
        return client, BrokenAtTheEnd(server)

    client = serve(hello, pair=pair)
    assert (await client.fetch(headers=[(b"connection", b"close")])).body == b"hello"
    await client.done.wait()


# tls_handshake_timeout


async def test_a_handshake_that_takes_too_long(serve, tls_pair, elapsed):
    client = serve(hello, pair=tls_pair, tls_handshake_timeout=7)
    raw = client.stream.transport_stream
    elapsed()
    assert await raw.receive_some() == b""
    assert elapsed() == 7
    (error,) = client.observer.handshakes
    assert "tls_handshake_timeout" in str(error)


async def test_something_else_than_a_handshake(serve, tls_pair):
    client = serve(hello, pair=tls_pair)
    await client.stream.transport_stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
    await client.done.wait()
    assert len(client.observer.handshakes) == 1


async def test_a_client_that_leaves_in_its_handshake(serve, tls_pair):
    client = serve(hello, pair=tls_pair)
    await trio.aclose_forcefully(client.stream.transport_stream)
    await client.done.wait()
    assert len(client.observer.handshakes) == 1


async def test_a_deadline_that_means_nothing_any_more_loses_no_piece_of_a_body(serve, autojump_clock):
    """It passes in the moment in which a piece comes for which there is no room."""

    async def app(scope, receive, send):
        await trio.sleep(100)
        await respond(send, await read_body(receive))

    client = serve(app, header_timeout=10)
    await client.request("POST", headers=[(b"content-length", b"3")])
    await client.send(b"a")
    await client.settle()
    await client.send(b"b")  # the reader is to be scheduled by this
    autojump_clock.jump(20)
    await client.settle()
    await client.send(b"c")
    assert (await client.response()).body == b"abc"
