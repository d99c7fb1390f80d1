"""A client that leaves: who is told, when, and what becomes of the application.

The names in brackets are those of the checklist of ASGI's own demands.
"""

from __future__ import annotations

from functools import partial
from math import inf, nan

import pytest
import trio
import trio.testing

from tests.connection.conftest import (
    OVER_MEMORY,
    hello,
    read_body,
    respond,
    send_body,
    socket_like_pair,
    start,
)
from trigi.exceptions import ClientDisconnected

STREAMS = ("memory", "socket")

DISCONNECT = {"type": "http.disconnect"}


class Waiter:
    """An application that reads its request's body, waits for the disconnect, and notes when each came."""

    def __init__(self):
        self.body = b""
        self.told = []

    async def __call__(self, scope, receive, send):
        while len(self.told) < 3:
            message = await receive()
            if message == DISCONNECT:
                self.told.append(trio.current_time())
            else:
                self.body += message["body"]


@pytest.fixture
def waiter():
    return Waiter()


# Reaching receive()


async def close(client):
    await client.leave()


async def reset(client):
    client.stream.reset()


async def send_eof(client):
    await client.stream.send_eof()


@pytest.mark.parametrize("leave", [close, reset, send_eof])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("headers", [[], [(b"connection", b"close")]])
async def test_it_reaches_a_waiting_receive_at_once_and_for_ever(serve, waiter, leave, method, headers):
    client = serve(waiter, pair=socket_like_pair)
    await client.request(method, headers=headers, body=b"body" if method == "POST" else None)
    await trio.sleep(1000)
    began = trio.current_time()
    await leave(client)
    await client.done.wait()
    assert waiter.told == [began] * 3
    assert waiter.body == (b"body" if method == "POST" else b"")
    assert [each.complete for each in client.observer.ended] == [False]


async def test_it_is_seen_by_an_application_that_asks_later(serve, waiter):
    async def app(scope, receive, send):
        await trio.sleep(3)
        await waiter(scope, receive, send)

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert len(waiter.told) == 3


async def test_it_reaches_every_task_that_waits(serve):
    told = []

    async def app(scope, receive, send):
        async def wait():
            assert await receive() == DISCONNECT
            told.append(True)

        await receive()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)

    client = serve(app)
    await client.request()
    await client.settle()
    await client.leave()
    await client.done.wait()
    assert told == [True] * 3


async def test_it_is_seen_while_a_pipelined_request_waits(serve, waiter):
    client = serve(waiter)
    await client.request()
    await client.request(target="/next")
    await client.send(b"GET /half")
    await trio.sleep(1)
    began = trio.current_time()
    await client.leave()
    await client.done.wait()
    assert waiter.told == [began] * 3
    assert [each.target for each in client.observer.ended] == [b"/"]  # nobody waits for the other's answer


async def test_it_is_seen_during_a_streamed_response(serve):
    """[HD-13]"""
    told = []

    async def app(scope, receive, send):
        async def wait():
            await receive()
            assert await receive() == DISCONNECT
            told.append(trio.current_time())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await start(send)
            while True:
                await send_body(send, b"x", more=True)
                await trio.sleep(10)

    client = serve(app)
    await client.request()
    await client.head()
    await trio.sleep(105)
    began = trio.current_time()
    await client.leave()
    await client.done.wait()
    assert told == [began]


async def test_a_client_that_closes_right_after_its_request(serve, waiter):
    """The whole body still arrives, then the disconnect. [HD-20]"""
    client = serve(waiter)
    await client.request("POST", body=b"whole")
    await client.leave()
    await client.done.wait()
    assert waiter.body == b"whole"
    assert len(waiter.told) == 3


async def test_a_client_that_closes_right_after_a_get(serve):
    messages = []

    async def app(scope, receive, send):
        messages.extend([await receive(), await receive()])

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert messages == [{"type": "http.request", "body": b"", "more_body": False}, DISCONNECT]


@pytest.mark.parametrize(
    "cut_off",
    [
        b"Content-Length: 10\r\n\r\nhalf",
        b"Content-Length: 10\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
@pytest.mark.parametrize("half_close", [False, True])
async def test_a_body_that_is_cut_off(serve, cut_off, half_close):
    """The disconnect, and no false end of the body. [HD-11, HD-12]"""
    messages = []

    async def app(scope, receive, send):
        while not messages or messages[-1] != DISCONNECT:
            messages.append(await receive())
        with pytest.raises(ClientDisconnected):
            await respond(send)

    client = serve(app, half_close=half_close)
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + cut_off)
    await client.settle()
    await client.stream.send_eof()
    assert await client.rest() == b""
    await client.done.wait()
    assert all(message["more_body"] for message in messages[:-1])
    assert b"".join(message["body"] for message in messages[:-1]) == (b"half" if b"half" in cut_off else b"")


async def test_a_head_that_is_cut_off(serve):
    client = serve(hello)
    await client.send(b"GET / HTTP/1.1\r\nHo")
    await client.stream.send_eof()
    assert await client.rest() == b""
    assert client.observer.ended == client.observer.refused == []


async def test_a_client_that_never_sends_a_byte(serve):
    client = serve(hello)
    await client.leave()
    await client.done.wait()
    assert client.observer.ended == client.observer.refused == []


async def test_after_a_complete_response_it_is_always_there(serve):
    """Also with the request's body unread. [HD-01, HD-02]"""
    seen = []

    async def app(scope, receive, send):
        await respond(send)
        seen.extend([await receive(), await receive()])

    client = serve(app)
    await client.fetch()
    await client.fetch(method="POST", body=b"unread")
    assert seen == [DISCONNECT] * 4


async def test_a_receive_that_waits_is_told_of_the_end_of_the_response(serve):
    """The client is still there, and asks for more. [HD-17]"""
    seen = []

    async def app(scope, receive, send):
        async def wait():
            assert (await receive())["type"] == "http.request"
            seen.append(await receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            await respond(send)

    client = serve(app)
    for _ in range(2):
        await client.fetch()
    await client.settle()
    assert seen == [DISCONNECT] * 2


# What send() tells of it


async def test_send_raises_an_oserror(serve):
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

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert raised == [ClientDisconnected] * 4


@pytest.mark.parametrize("leave", [close, reset, send_eof])
async def test_a_send_that_waits_for_the_client_raises_when_that_leaves(serve, leave):
    """[HD-14]"""
    raised = []

    async def app(scope, receive, send):
        await start(send)
        try:
            await send_body(send, b"x" * 100_000, more=True)
        except OSError:
            raised.append(trio.current_time())
            raise

    client = serve(app, pair=lambda: socket_like_pair(1000))
    await client.request()
    await trio.sleep(7)
    began = trio.current_time()
    await leave(client)
    await client.done.wait()
    assert raised == [began]
    assert client.observer.failures == []


@OVER_MEMORY
async def test_a_write_that_fails_is_a_disconnect(serve):
    """A client that has stopped reading, though not sending, has left as well."""
    seen = []

    async def app(scope, receive, send):
        with pytest.raises(ClientDisconnected):
            await respond(send)
        seen.extend([await receive(), await receive()])

    client = serve(app)
    client.stream.receive_stream.close()
    await client.request()
    await client.done.wait()
    assert seen == [{"type": "http.request", "body": b"", "more_body": False}, DISCONNECT]
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]


@OVER_MEMORY
async def test_a_100_continue_that_cannot_be_written_is_a_disconnect(serve):
    """`receive` tells it as it tells every other."""
    seen = []

    async def app(scope, receive, send):
        seen.append(await receive())

    client = serve(app)
    client.stream.receive_stream.close()
    await client.request("POST", headers=[(b"expect", b"100-continue"), (b"content-length", b"4")])
    await client.done.wait()
    assert seen == [DISCONNECT]
    assert client.observer.failures == []


@OVER_MEMORY
async def test_an_error_that_cannot_be_written(serve):
    """A 500 to a client that has gone."""

    async def app(scope, receive, send):
        raise ValueError

    client = serve(app)
    client.stream.receive_stream.close()
    await client.request()
    await client.done.wait()
    assert [(each.status, each.complete) for each in client.observer.ended] == [(500, False)]
    assert len(client.observer.failures) == 1


# The grace


class Worker:
    """An application that works on, and notes how long it was let."""

    def __init__(self, seconds=inf, *, grace=None, respond=False):
        self.seconds = seconds
        self.grace = grace
        self.respond = respond
        self.worked = None
        self.cleaned_up = False

    async def __call__(self, scope, receive, send):
        if self.grace is not None:
            scope["extensions"]["trigi"]["disconnect_grace"] = self.grace
        if self.respond:
            await respond(send)
        await receive()
        while (await receive()) != DISCONNECT:
            pass
        began = trio.current_time()
        try:
            await trio.sleep(self.seconds)
        finally:
            self.worked = trio.current_time() - began
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                self.cleaned_up = True


async def run_worker(serve, worker, **settings):
    client = serve(worker, **settings)
    await client.request()
    await client.settle()
    await client.leave()
    await client.done.wait()
    assert worker.cleaned_up
    assert client.observer.failures == []
    return worker.worked


@pytest.mark.parametrize("grace", [0, 0.5, 5, 60])
async def test_the_grace(serve, grace):
    """The application may work on for so long; then it is cancelled, and its clean-up runs."""
    assert await run_worker(serve, Worker(), disconnect_grace=grace) == grace


async def test_the_grace_is_five_seconds(serve):
    assert await run_worker(serve, Worker()) == 5


async def test_an_infinite_grace(serve):
    assert await run_worker(serve, Worker(20_000), disconnect_grace=inf) == 20_000


async def test_who_is_ready_before_the_grace_is_not_cancelled(serve):
    assert await run_worker(serve, Worker(2)) == 2


@pytest.mark.parametrize(("grace", "worked"), [(0, 0), (1, 1), (2.5, 2.5), (inf, 100), (60, 60)])
async def test_the_grace_of_one_exchange(serve, grace, worked):
    """The application sets its own."""
    assert await run_worker(serve, Worker(100, grace=grace)) == worked


@pytest.mark.parametrize("grace", ["10", -1, nan, None, [3]])
async def test_a_grace_that_is_none(serve, grace):
    """What the application wrote there is no time: that of the settings holds."""

    class Wrong(Worker):
        async def __call__(self, scope, receive, send):
            scope["extensions"]["trigi"]["disconnect_grace"] = grace
            await super().__call__(scope, receive, send)

    assert await run_worker(serve, Wrong()) == 5


async def test_the_grace_of_one_exchange_is_not_that_of_the_next(serve):
    first, second = Worker(100, grace=50), Worker(100)

    async def app(scope, receive, send):
        await {"/1": first, "/2": second}[scope["path"]](scope, receive, send)

    one = serve(app)
    other = serve(app, context=one.context)
    await one.request(target="/1")
    await other.request(target="/2")
    await one.settle()
    await one.leave()
    await other.leave()
    await one.done.wait()
    await other.done.wait()
    assert (first.worked, second.worked) == (50, 5)


async def test_the_grace_is_also_no_longer_than_the_request_may_last(serve):
    """`request_timeout` is not put off by a disconnect."""
    assert await run_worker(serve, Worker(), request_timeout=2) == 2


@pytest.mark.parametrize("grace", [0, 5])
async def test_background_work_is_not_cancelled(serve, grace):
    """After a complete response the client may leave, and nobody minds."""
    worker = Worker(1000, respond=True)
    assert await run_worker(serve, worker, disconnect_grace=grace) == 1000


async def test_the_open_exchange_is_cancelled_and_the_background_work_of_earlier_ones_is_not(serve):
    background, opened = Worker(1000, respond=True), Worker(1000)

    async def app(scope, receive, send):
        await {"/1": background, "/2": opened}[scope["path"]](scope, receive, send)

    client = serve(app)
    await client.fetch("/1")
    await client.request(target="/2")
    await client.settle()
    await client.leave()
    await client.done.wait()
    assert (background.worked, opened.worked) == (1000, 5)
    assert [(each.target, each.complete) for each in client.observer.ended] == [(b"/1", True), (b"/2", False)]


async def test_an_application_that_ignores_its_cancellation(serve):
    """Holds its connection's task up, but no other connection. [HD-18]"""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        with trio.CancelScope(shield=True):
            await trio.sleep(1000)
        return None

    stuck = serve(app)
    await stuck.request()
    await stuck.leave()
    await trio.sleep(100)
    assert not stuck.done.is_set()
    other = serve(app, context=stuck.context)
    assert (await other.fetch("/hello")).body == b"hello"


async def test_a_client_that_left_does_not_disturb_others(serve):
    """[HD-18]"""

    async def app(scope, receive, send):
        await receive()
        await trio.sleep(10)
        await respond(send, b"x" * 100_000)

    leaving = serve(app)
    clogged = serve(app, context=leaving.context, pair=lambda: socket_like_pair(100))
    steady = serve(app, context=leaving.context)
    for client in (leaving, clogged, steady):
        await client.request()
    await leaving.leave()
    assert len((await steady.response()).body) == 100_000


# A client that closes its sending side only


async def answers_late(scope, receive, send):
    body = await read_body(receive)
    await trio.sleep(20)
    await respond(send, body)


async def test_half_close_is_a_disconnect(serve):
    client = serve(answers_late)
    await client.request("POST", body=b"body")
    await client.stream.send_eof()
    assert await client.rest() == b""
    assert [each.complete for each in client.observer.ended] == [False]


async def test_half_close_allowed(serve):
    """The client gets its answer, then the connection is closed."""
    client = serve(answers_late, half_close=True, pair=socket_like_pair)
    began = trio.current_time()
    await client.request("POST", body=b"body")
    await client.stream.send_eof()
    assert (await client.response()).body == b"body"
    assert await client.rest() == b""
    assert trio.current_time() - began == 20
    await client.done.wait()
    assert trio.current_time() - began == 20


async def test_half_close_allowed_behind_pipelined_requests(serve):
    """All are answered."""
    client = serve(answers_late, half_close=True, pair=socket_like_pair)
    for number in range(3):
        await client.request("POST", body=b"%d" % number)
    await client.stream.send_eof()
    assert [(await client.response()).body for _ in range(3)] == [b"0", b"1", b"2"]
    assert await client.rest() == b""
    await client.done.wait()


async def test_half_close_allowed_behind_more_than_is_read_ahead(serve):
    client = serve(answers_late, half_close=True, pipelined_size_limit=10, pair=socket_like_pair)
    for number in range(3):
        await client.request("POST", body=b"%d" % number)
    await client.stream.send_eof()
    assert [(await client.response()).body for _ in range(3)] == [b"0", b"1", b"2"]
    assert await client.rest() == b""


@pytest.mark.parametrize("cut_off", [b"GET / HT", b"\r\n"])
async def test_half_close_allowed_behind_a_head_that_is_cut_off(serve, cut_off):
    client = serve(answers_late, half_close=True, pair=socket_like_pair)
    began = trio.current_time()
    await client.request("POST", body=b"body")
    await client.send(cut_off)
    await client.stream.send_eof()
    assert (await client.response()).body == b"body"
    assert await client.rest() == b""
    assert trio.current_time() - began == 20
    assert len(client.observer.ended) == 1


async def test_half_close_allowed_behind_a_body_that_is_cut_off(serve):
    """The request before it is answered; this one's application is told at once that no more comes."""
    messages = []

    async def app(scope, receive, send):
        if scope["path"] == "/1":
            await trio.sleep(1)
            await respond(send, b"1")
            return
        while not messages or messages[-1] != DISCONNECT:
            messages.append(await receive())
        messages.append(trio.current_time())

    client = serve(app, half_close=True, pair=socket_like_pair)
    began = trio.current_time()
    await client.request(target="/1")
    await client.request("POST", "/2", headers=[(b"content-length", b"10")])
    await client.send(b"half")
    await client.stream.send_eof()
    assert (await client.response()).body == b"1"
    assert await client.rest() == b""
    await client.done.wait()
    assert messages == [
        {"type": "http.request", "body": b"half", "more_body": True},
        DISCONNECT,
        began + 1,
    ]


async def test_half_close_allowed_between_requests(serve):
    client = serve(hello, half_close=True, pair=socket_like_pair)
    await client.fetch()
    began = trio.current_time()
    await client.stream.send_eof()
    assert await client.rest() == b""
    await client.done.wait()
    assert trio.current_time() == began


async def test_half_close_allowed_and_the_response_fails(serve):
    """The client then leaves for good: the write tells."""
    client = serve(answers_late, half_close=True, pair=socket_like_pair)
    await client.request("POST", body=b"body")
    await client.stream.send_eof()
    await client.leave()
    await client.done.wait()
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]
    assert client.observer.failures == []


# While the application is behind


async def test_a_disconnect_behind_an_unread_body(serve, waiter):
    """The pieces that came are given first, however many the client had sent before it left."""

    async def app(scope, receive, send):
        await trio.sleep(1)
        await waiter(scope, receive, send)

    client = serve(app)
    await client.request("POST", headers=[(b"content-length", b"1000000")])
    await client.send(b"x" * 500_000)
    await client.leave()
    await client.done.wait()
    assert waiter.body == b"x" * 500_000
    assert len(waiter.told) == 3


# TLS


@pytest.mark.parametrize("say_goodbye", [True, False])
async def test_it_is_seen_through_tls(serve, tls_pair, waiter, say_goodbye):
    """With and without the alert that TLS has for it."""
    client = serve(waiter, pair=tls_pair)
    await client.request()
    await trio.sleep(1000)
    began = trio.current_time()
    if say_goodbye:
        with trio.move_on_after(1):
            await client.aclose()
    else:
        await trio.aclose_forcefully(client.stream.transport_stream)
    await client.done.wait()
    assert waiter.told == [began] * 3


async def test_a_send_that_waits_raises_through_tls(serve, tls_pair):
    raised = []

    async def app(scope, receive, send):
        try:
            await respond(send, b"x" * 100_000)
        except OSError:
            raised.append(trio.current_time())
            raise

    client = serve(app, pair=lambda: tls_pair(partial(socket_like_pair, 1000)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.request)
        await trio.sleep(7)
        began = trio.current_time()
        client.stream.transport_stream.reset()
    await client.done.wait()
    assert raised == [began]


async def test_responses_and_keep_alive_through_tls(serve, tls_pair):
    client = serve(hello, pair=tls_pair)
    for _ in range(2):
        assert (await client.fetch()).body == b"hello"
    response = await client.fetch(headers=[(b"connection", b"close")])
    assert response.body == b"hello"
    assert await client.rest() == b""


async def test_a_refused_upload_through_tls(serve, tls_pair):
    """TLS can't be half closed: the server reads on for a moment without having said that it is done."""

    async def app(scope, receive, send):
        await respond(send, b"no", status=413)

    client = serve(app, pair=lambda: tls_pair(socket_like_pair))
    await client.request("POST", headers=[(b"content-length", b"10000000")])
    with trio.move_on_after(1):
        while True:
            await client.send(b"x" * 10_000)
            await trio.sleep(0.01)
    response = await client.response()
    assert (response.status, response.body) == (413, b"no")
