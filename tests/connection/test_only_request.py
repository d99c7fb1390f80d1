"""A connection's only request is answered in the connection's own task; a reader begins when the application waits."""

from __future__ import annotations

import gc
import socket
import weakref
from contextvars import ContextVar

import pytest
import trio
import trio.testing

from tests.connection.conftest import Recorder, hello, read_body, respond, send_body, start
from trigi._connection import http1
from trigi._connection.context import ServerContext
from trigi._connection.serve import serve_stream
from trigi._connection.tls_stream import TLSStream
from trigi.config import Config
from trigi.exceptions import ClientDisconnected

STREAMS = ("socket",)

ONLY = b"GET /only HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
OLD = b"GET /only HTTP/1.0\r\n\r\n"


def remembering(application, tasks):
    """The same, and in which task each call was made."""

    async def remember(scope, receive, send):
        tasks.append(trio.lowlevel.current_task())
        await application(scope, receive, send)

    return remember


async def read_all(stream):
    """What comes up to the end of the stream."""
    return b"".join([data async for data in stream])


@pytest.mark.parametrize("request_", [ONLY, OLD])
async def test_it_is_answered_in_the_connection_s_own_task(serve, request_):
    tasks = []
    client = serve(remembering(hello, tasks))
    client.put(request_)
    response = await read_all(client.stream)
    assert response.endswith(b"\r\n\r\nhello")
    assert response.count(b"connection: close") == 1
    await client.done.wait()
    assert [task.name.rpartition(".")[2] for task in tasks] == ["serve"]
    assert [ended.complete for ended in client.observer.ended] == [True]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",
    ],
)
async def test_any_other_has_a_task_of_its_own(serve, request_):
    tasks = []
    client = serve(remembering(hello, tasks))
    client.put(request_)
    assert (await client.response("GET")).body == b"hello"
    assert [task.name for task in tasks] == ["trigi: application"]


async def test_one_that_comes_late_is_answered_too(serve):
    tasks = []
    client = serve(remembering(hello, tasks))
    await client.settle()
    client.put(ONLY)
    assert (await read_all(client.stream)).endswith(b"hello")
    assert [task.name for task in tasks] == ["trigi: application"]


async def test_one_of_which_the_end_comes_late_is_answered_too(serve):
    client = serve(hello)
    client.put(ONLY[:20])
    await client.settle()
    client.put(ONLY[20:])
    assert (await read_all(client.stream)).endswith(b"hello")


async def test_over_tls(tls_contexts):
    """Where the first bytes of the request come with the end of the handshake, or after it."""
    near, far = socket.socketpair()
    client_context, server_context = tls_contexts
    tasks = []
    context = ServerContext(remembering(hello, tasks), Config(), observer=Recorder())
    client = trio.SSLStream(
        trio.SocketStream(trio.socket.from_stdlib_socket(near)),
        client_context,
        server_hostname="localhost",
        https_compatible=True,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, TLSStream(far, server_context), context)
            await client.send_all(ONLY)
            assert (await read_all(client)).endswith(b"hello")
            await client.aclose()
    assert len(tasks) == 1
    assert context.observer.bugs == []


@pytest.mark.parametrize("waits", [False, True])
async def test_a_failing_application(serve, waits):
    async def application(scope, receive, send):
        if waits:
            await trio.sleep(1)
        raise ValueError("mine")

    client = serve(application)
    client.put(ONLY)
    assert (await read_all(client.stream)).startswith(b"HTTP/1.1 500 ")
    [failure] = client.observer.failures
    assert isinstance(failure, ValueError)


@pytest.mark.parametrize("waits", [False, True])
async def test_an_application_that_answers_nothing(serve, waits):
    async def application(scope, receive, send):
        if waits:
            await trio.sleep(1)

    client = serve(application)
    client.put(ONLY)
    assert (await read_all(client.stream)).startswith(b"HTTP/1.1 500 ")


async def test_an_application_that_can_t_be_awaited(serve):
    client = serve(lambda scope, receive, send: None)
    client.put(ONLY)
    assert (await read_all(client.stream)).startswith(b"HTTP/1.1 500 ")
    [failure] = client.observer.failures
    assert "can't be used in 'await'" in str(failure)


async def test_what_trio_throws_into_a_call_gets_there(serve):
    """It is thrown, rather than sent, for what is not trio's to be awaited."""
    seen = []

    class Foreign:
        def __await__(self):
            yield "for another loop"

    async def application(scope, receive, send):
        await trio.sleep(1)
        try:
            await Foreign()
        except TypeError as error:
            seen.append(error)
        await trio.sleep(1)
        await respond(send, b"hello")

    client = serve(application)
    client.put(ONLY)
    assert (await read_all(client.stream)).endswith(b"hello")
    assert "trio.run received unrecognized yield message" in str(seen)


async def test_the_call_of_a_connection_that_is_cancelled_is_cancelled(serve):
    cleaned_up = []

    async def application(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 3):
                await trio.sleep(1)
            cleaned_up.append(scope["path"])

    client = serve(application)
    client.put(ONLY)
    await client.settle()
    client.scope.cancel()
    await client.done.wait()
    assert cleaned_up == ["/only"]
    assert client.observer.failures == []


@pytest.mark.parametrize("how", ["leaves", "resets"])
async def test_a_client_that_leaves_is_noticed(serve, how):
    """At once, if the application asks, and it is cancelled after disconnect_grace."""
    seen = []

    async def application(scope, receive, send):
        assert await read_body(receive) == b""
        seen.append(((await receive())["type"], trio.current_time()))
        with pytest.raises(ClientDisconnected):
            await start(send)
            await send_body(send, b"a")
        try:
            await trio.sleep_forever()
        finally:
            seen.append(trio.current_time())

    client = serve(application, disconnect_grace=3)
    client.put(ONLY)
    await trio.sleep(5)
    if how == "resets":
        client.stream.direct.reset_on_close()
    left = trio.current_time()
    await client.leave()
    await client.done.wait()
    assert seen == [("http.disconnect", left), left + 3]
    assert client.observer.failures == []
    assert [ended.complete for ended in client.observer.ended] == [False]


async def test_a_client_that_says_that_it_will_say_no_more_is_answered(serve):
    async def application(scope, receive, send):
        await trio.sleep(1)
        await respond(send, b"hello")

    client = serve(application, half_close=True)
    client.put(ONLY)
    await client.stream.send_eof()
    assert (await read_all(client.stream)).endswith(b"hello")


async def test_a_client_that_does_not_read_is_given_up(serve):
    """The write waits, and its limit is kept."""

    async def application(scope, receive, send):
        await respond(send, bytes(100_000_000))

    client = serve(application, write_timeout=5)
    client.put(ONLY)
    with trio.fail_after(100):
        await client.done.wait()
    assert [ended.complete for ended in client.observer.ended] == [False]
    assert client.observer.failures == []


@pytest.mark.parametrize("request_", [ONLY, OLD])
async def test_an_application_that_goes_on_keeps_no_client_waiting_for_the_end(serve, request_):
    """A response without a length ends where the connection does."""
    go_on = trio.Event()
    ended = []

    async def application(scope, receive, send):
        await start(send)
        await send_body(send, b"hello")
        await go_on.wait()
        assert (await receive())["type"] == "http.disconnect"
        ended.append(scope["path"])

    client = serve(application)
    client.put(request_)
    assert b"hello" in await read_all(client.stream)
    assert not ended
    assert not client.done.is_set()
    go_on.set()
    await client.done.wait()
    assert ended == ["/only"]
    assert client.observer.failures == []


@pytest.mark.parametrize("waits", [(), ("before",), ("after",), ("before", "after")])
async def test_a_client_that_is_still_sending_can_read_the_response(serve, waits):
    """To close with unread bytes would be to reset (RFC 9112, 9.6)."""
    body = bytes(100_000)

    async def application(scope, receive, send):
        if "before" in waits:
            await trio.sleep(1)
        await respond(send, body)
        if "after" in waits:
            await trio.sleep(1)

    client = serve(application)
    client.put(ONLY)
    client.put(b"GET /more HTTP/1.1\r\n")
    received = b""
    with trio.fail_after(100):
        while not received.endswith(body):
            data = await client.stream.receive_some()
            assert data
            received += data
            client.put(b"more")
    assert [ended.target for ended in client.observer.ended] == [b"/only"]


async def test_what_comes_behind_it_is_bounded(serve):
    """And nobody reads on for a client that sends and sends."""
    waiting = trio.Event()

    async def application(scope, receive, send):
        await waiting.wait()
        await respond(send)

    client = serve(application, pipelined_size_limit=1000)
    client.put(ONLY)
    await client.settle()
    sent = 0
    with trio.move_on_after(10):
        while sent < 100_000_000:
            await client.stream.send_all(bytes(65536))
            sent += 65536
    assert sent < 10_000_000
    waiting.set()
    await client.done.wait()


async def test_its_deadline_is_kept(serve):
    async def application(scope, receive, send):
        await trio.sleep_forever()

    client = serve(application, request_timeout=5)
    client.put(ONLY)
    began = trio.current_time()
    assert (await read_all(client.stream)).startswith(b"HTTP/1.1 504 ")
    assert trio.current_time() == began + 5


async def test_one_too_many_is_refused(serve):
    async def application(scope, receive, send):
        await trio.sleep(1)
        await respond(send)

    first = serve(application, concurrency_limit=1)
    second = serve(application, context=first.context)
    for client in (first, second):
        client.put(ONLY)
    responses = [(await read_all(client.stream))[:13] for client in (first, second)]
    assert sorted(responses) == [b"HTTP/1.1 200 ", b"HTTP/1.1 503 "]


async def test_draining_waits_for_it(serve):
    async def application(scope, receive, send):
        await trio.sleep(1)
        await respond(send, b"hello")

    client = serve(application)
    client.put(ONLY)
    await client.settle()
    client.context.draining.set()
    for connection in list(client.context.connections):
        connection.drain()
    assert (await read_all(client.stream)).endswith(b"hello")


async def test_none_is_answered_once_the_server_drains(serve):
    context = ServerContext(hello, Config(), observer=Recorder())
    context.draining.set()
    client = serve(hello, context=context)
    client.put(ONLY)
    with pytest.raises(trio.BrokenResourceError):  # or the end, if the close found nothing unread
        assert await client.stream.receive_some() == b""
        raise trio.BrokenResourceError
    assert context.observer.ended == []


async def test_a_context_of_its_own(serve):
    variable = ContextVar("variable", default="unset")
    seen = []

    async def application(scope, receive, send):
        seen.append(variable.get())
        variable.set("set")
        await trio.sleep(1)
        await respond(send)

    first = serve(application)
    second = serve(application, context=first.context)
    for client in (first, second):
        client.put(ONLY)
        await read_all(client.stream)
    assert seen == ["unset"] * 2


async def test_a_client_that_leaves_in_the_middle_of_the_response(serve):
    async def application(scope, receive, send):
        await respond(send, bytes(10_000_000))

    client = serve(application)
    client.put(ONLY)
    assert await client.stream.receive_some(1000)
    await client.leave()
    await client.done.wait()
    assert client.observer.failures == []
    assert [ended.complete for ended in client.observer.ended] == [False]


@pytest.mark.interpreted
async def test_a_bug_of_the_reader_ends_one_connection(monkeypatch, make_pair):
    async def application(scope, receive, send):
        await trio.sleep(1)
        await respond(send)

    async def broken(self):
        raise ZeroDivisionError

    monkeypatch.setattr(http1.HTTP1Connection, "_read_requests", broken)
    observer = Recorder()
    client, server = make_pair()
    await client.send_all(ONLY)
    with trio.fail_after(60):
        await serve_stream(server, ServerContext(application, Config(), observer=observer))
    assert [type(bug) for bug in observer.bugs] == [ZeroDivisionError]
    await trio.aclose_forcefully(client)


class Something:
    """What can be kept."""


async def test_nothing_of_it_needs_the_collector(make_pair):
    kept = []

    async def application(scope, receive, send):
        scope["mine"] = something = Something()
        kept.append(weakref.ref(something))
        await respond(send)
        await trio.lowlevel.checkpoint()

    gc.collect()
    gc.disable()
    try:
        client, server = make_pair()
        await client.send_all(ONLY)
        await serve_stream(server, ServerContext(application, Config()))
        await trio.aclose_forcefully(client)
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()
