"""The task that a connection's application calls share: it is kept, and leaves nothing of one call to the next."""

from __future__ import annotations

import gc
import random
import socket
import weakref
from contextvars import ContextVar
from functools import partial

import pytest
import trio

from tests.connection.conftest import Recorder, WatchedSocket, hello, read_body, respond, send_body, start
from trigi._connection.context import ServerContext
from trigi._connection.direct import READ_SIZE
from trigi._connection.serve import serve_stream
from trigi._connection.socket_stream import SocketStream
from trigi.config import Config
from trigi.exceptions import ApplicationError

STREAMS = ("memory", "socket")


def remembering(application, tasks):
    """The same, and in which task each call was made."""

    async def remember(scope, receive, send):
        tasks.append(trio.lowlevel.current_task())
        await application(scope, receive, send)

    return remember


async def test_a_connection_s_calls_are_made_in_one_task(serve):
    tasks = []
    client = serve(remembering(hello, tasks))
    for _ in range(3):
        await client.fetch("/")
    assert len(tasks) == 3
    assert len(set(tasks)) == 1


async def test_a_task_is_one_connection_s_own(serve):
    tasks = []
    application = remembering(hello, tasks)
    for _ in range(2):
        await serve(application).fetch("/")
    assert len(set(tasks)) == 2


async def test_calls_one_after_the_other_have_contexts_of_their_own(serve):
    """Also behind a checkpoint, and in tasks that the application starts."""
    variable = ContextVar("variable", default="unset")
    seen = []

    async def look():
        seen.append(variable.get())

    async def application(scope, receive, send):
        await look()
        await trio.lowlevel.checkpoint()
        await look()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
        variable.set(scope["path"])
        await trio.lowlevel.checkpoint()
        await look()
        await respond(send)

    client = serve(application)
    await client.fetch("/a")
    await client.fetch("/b")
    assert seen == [*["unset"] * 3, "/a", *["unset"] * 3, "/b"]


@pytest.mark.parametrize("answered", [False, True])
async def test_a_task_in_which_a_call_failed_is_not_used_again(serve, answered):
    tasks = []

    async def application(scope, receive, send):
        if answered:
            await respond(send)
        raise ValueError

    client = serve(remembering(application, tasks))
    assert (await client.fetch("/")).status == (await client.fetch("/")).status == (200 if answered else 500)
    assert len(set(tasks)) == 2
    assert [type(error) for error in client.observer.failures] == [ValueError] * 2


async def test_a_task_in_which_a_call_left_its_response_incomplete_is_not_used_again(serve):
    tasks = []

    async def application(scope, receive, send):
        pass

    client = serve(remembering(application, tasks))
    assert (await client.fetch("/")).status == (await client.fetch("/")).status == 500
    assert len(set(tasks)) == 2
    assert [type(error) for error in client.observer.failures] == [ApplicationError] * 2


async def test_a_scope_that_a_call_has_left_open_does_not_cancel_the_next_call(serve):
    """It is a fault, and told."""

    async def application(scope, receive, send):
        if scope["path"] == "/leaves":
            trio.move_on_after(1).__enter__()
        else:
            await trio.sleep(2)
        await respond(send)

    client = serve(application)
    assert (await client.fetch("/leaves")).status == 200
    assert (await client.fetch("/sleeps")).status == 200
    [failure] = client.observer.failures
    assert isinstance(failure, RuntimeError)


async def test_a_call_that_goes_on_after_its_response_does_not_hold_up_the_next(serve):
    tasks = []
    go_on = trio.Event()

    async def application(scope, receive, send):
        await respond(send)
        if scope["path"] == "/slow":
            await go_on.wait()

    client = serve(remembering(application, tasks))
    for target in ("/slow", "/", "/"):
        assert (await client.fetch(target)).status == 200
    assert tasks[0] is not tasks[1] is tasks[2]
    go_on.set()
    await client.settle()
    assert (await client.fetch("/")).status == 200
    assert tasks[3] is tasks[1], "the task that was overtaken has ended"


async def test_an_idle_connection_keeps_nothing_of_its_last_request(serve):
    variable = ContextVar("variable")
    kept = []

    def something():
        made = type("Something", (), {})()
        kept.append(weakref.ref(made))
        return made

    async def application(scope, receive, send):
        scope["mine"] = something()
        scope["extensions"]["trigi"]["mine"] = something()
        variable.set(something())
        await respond(send)

    client = serve(application)
    await client.fetch("/")
    await client.settle()
    client.observer.exchanges.clear()
    gc.collect()
    assert [reference() for reference in kept] == [None] * 3


async def test_the_task_ends_with_its_connection(serve):
    """`serve` sees that it does; here for each way in which a connection ends while the task waits."""
    for end in ("leave", "drain", "cancel", "time out"):
        client = serve(hello, keep_alive_timeout=5)
        await client.fetch("/")
        await client.settle()
        match end:
            case "leave":
                await client.leave()
            case "drain":
                client.context.draining.set()
                for connection in list(client.context.connections):
                    connection.drain()
            case "cancel":
                client.scope.cancel()
            case "time out":
                await trio.sleep(6)
        with trio.fail_after(1):
            await client.done.wait()


async def test_the_task_ends_after_the_call_during_which_its_connection_ended(serve):
    go_on = trio.Event()

    async def application(scope, receive, send):
        await start(send)
        await send_body(send, b"x")
        await go_on.wait()

    client = serve(application)
    await client.fetch("/")
    await client.leave()
    await client.settle()
    assert not client.done.is_set()
    go_on.set()
    with trio.fail_after(1):
        await client.done.wait()


async def test_a_request_is_not_lost_while_an_overtaken_call_returns():
    """In one moment a request has come, its client has left, and a call ends that went on after its response."""
    seen = []

    async def application(scope, receive, send):
        seen.append(scope["path"])
        await respond(send)
        if scope["path"] == "/slow":
            await go_on.wait()

    context = ServerContext(application, Config())
    for _ in range(30):  # trio lets the tasks of one moment run in any order
        go_on = trio.Event()
        client, server = socket.socketpair()
        with client, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_stream, SocketStream(server), context)
                for target in (b"/slow", b"/"):
                    client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
                    await trio.lowlevel.wait_readable(client)
                    assert client.recv(4096).startswith(b"HTTP/1.1 200")
                client.send(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n")
                client.close()
                go_on.set()
        assert context.running == set()
    assert seen == ["/slow", "/", "/last"] * 30


# Over a socket, the task that waits for the next request reads it


def watched_pair():
    client, server = socket.socketpair()
    return SocketStream(client), SocketStream(WatchedSocket(server))


async def readers_of(serve, application, *pieces, between=b"", **settings):
    """Which of the pieces, that come after an answered request, the application's task has read."""
    tasks = []
    client = serve(remembering(application, tasks), pair=watched_pair, **settings)
    await client.fetch("/")
    client.server.direct.socket.read.clear()
    for piece in pieces:
        await client.stream.send_all(piece)
        await client.settle()
    return client, [task in tasks for task, _ in client.server.direct.socket.read]


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"


async def body(scope, receive, send):
    await respond(send, await read_body(receive) or b"none")


@pytest.mark.parametrize("request_", [GET, POST + b"abc"], ids=["GET", "POST"])
async def test_a_whole_request_is_read_where_it_is_answered(serve, request_):
    client, by_application = await readers_of(serve, body, request_, request_)
    assert by_application == [True, True]
    for _ in range(2):
        assert (await client.response()).body == (b"abc" if request_ != GET else b"none")


@pytest.mark.parametrize(
    ("pieces", "by_application"),
    [
        ([GET[:10], GET[10:]], [True, True]),
        ([POST, b"abc"], [True, False]),
        ([POST + b"a", b"b", b"c"], [True, False, False]),
        ([POST + b"abc" + GET[:5], GET[5:]], [True, True]),
        ([GET + GET], [True]),
    ],
)
async def test_the_reader_takes_over_what_has_not_come_whole(serve, pieces, by_application):
    client, found = await readers_of(serve, body, *pieces)
    assert found == by_application
    sent = b"".join(pieces)
    bodies = [(await client.response()).body for _ in range(sent.count(b"HTTP/1.1"))]
    assert bodies == [b"abc"] * sent.count(POST) + [b"none"] * sent.count(GET)
    assert (await client.fetch("/")).body == b"none"


async def test_the_reader_answers_what_is_no_request(serve):
    client, by_application = await readers_of(serve, body, b"GET / HTTP/1.1\r\nno field\r\n\r\n")
    assert (await client.response()).status == 400
    assert by_application[0]
    assert len(client.observer.refused) == 1
    assert await client.rest() == b""


async def test_the_reader_sees_a_client_leave_between_requests(serve):
    client, _ = await readers_of(serve, body)
    await client.leave()
    with trio.fail_after(1):
        await client.done.wait()


async def test_a_read_that_was_full_leaves_nothing_unread(serve):
    """There may be more in the socket, of which nothing will be told."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    size = READ_SIZE - len(head % READ_SIZE)
    whole = head % size + bytes(size)
    assert len(whole) == READ_SIZE
    client, _ = await readers_of(serve, body, whole + GET)
    assert (await client.response()).body == bytes(size)
    assert (await client.response()).body == b"none"


async def test_too_many_requests_at_once_are_refused_wherever_they_were_read(serve):
    context = ServerContext(hello, Config(concurrency_limit=1), observer=Recorder())
    client, other = (serve(hello, pair=watched_pair, context=context) for _ in range(2))
    await client.fetch("/")
    context.running.add(other)
    assert (await client.fetch("/")).status == 503
    context.running.discard(other)
    assert (await client.fetch("/")).status == 200


@pytest.mark.parametrize("end", ["time out", "drain", "cancel"])
async def test_a_task_that_is_to_read_ends_with_its_connection(serve, autojump_clock, end):
    """In the moment in which a request has come, and before it was read."""
    client = serve(hello, pair=watched_pair, keep_alive_timeout=5)
    await client.fetch("/")
    await client.settle()
    client.put(GET)
    match end:
        case "time out":
            autojump_clock.jump(5)
        case "drain":
            client.context.draining.set()
            for connection in list(client.context.connections):
                connection.drain()
        case "cancel":
            client.scope.cancel()
    with trio.fail_after(1):
        if end == "time out":
            assert (await client.response()).status == 200
            await client.leave()
        await client.done.wait()


async def test_a_client_that_is_refused_and_does_not_read_keeps_nothing(serve):
    """While the reader waits to write its 400, nobody reads in its place."""
    for size in range(1000, 16_000, 250):  # a response that leaves no room for another, but is written
        client = serve(partial(respond_with, size), pair=watched_pair, write_timeout=1000)
        client.server.direct.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        client.put(GET)
        await client.settle()
        [connection] = client.context.connections
        if connection._exchange is None:
            client.put(b"\0")
            await client.settle()
            if not connection._stopping:
                break
        await client.leave()
    else:
        pytest.fail("no response fits")
    for _ in range(100):
        client.stream.direct.send_nowait(bytes(65536))
        await client.settle()
    assert connection._codec.buffered <= READ_SIZE
    await client.leave()


async def respond_with(size, scope, receive, send):
    await respond(send, bytes(size))


async def test_a_body_s_piece_that_nobody_wants_ends_its_request_all_the_same(serve):
    """The application's task is to read, and before it does the reader has read the head, and refused the request."""
    context = ServerContext(hello, Config(concurrency_limit=1), observer=Recorder())
    client = serve(hello, pair=watched_pair, context=context)
    await client.fetch("/")
    await client.settle()
    [connection] = context.connections
    other = object()
    context.running.add(other)
    client.put(POST)
    assert connection._claim()
    assert connection._receive_nowait()
    connection._start_exchange(connection._codec.next_event())
    client.put(b"abc")
    assert (await client.response()).status == 503
    context.running.discard(other)
    with trio.fail_after(1):
        assert (await client.fetch("/")).status == 200


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_no_piece_of_a_large_body_is_lost_whoever_reads_it(serve, framing):
    """Its first piece is read with the head, and the reader called while the application is behind."""
    body = random.Random(1).randbytes(400_000)
    if framing == "length":
        request = POST.replace(b"3", b"%d" % len(body)) + body
    else:
        request = POST.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked")
        request += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    async def application(scope, receive, send):
        received, more = b"", True
        while more:
            await trio.sleep(1)
            message = await receive()
            received += message["body"]
            more = message["more_body"]
        await respond(send, received)

    client = serve(application, pair=watched_pair)
    await client.fetch("/")
    await client.settle()
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.stream.send_all, request)
            assert (await client.response()).body == body


@pytest.mark.parametrize("waits", ["_cancel", "_wait_no_more"])
def test_control_c_as_a_task_begins_to_wait_ends_the_program_and_no_more(monkeypatch, waits):
    """The task of the calls, or the reader: marked as waiting, it would be woken after it has ended."""
    wait_task_rescheduled = trio.lowlevel.wait_task_rescheduled
    pressed = []

    def interrupted(abort):
        if not pressed and getattr(abort, "__name__", "").endswith(waits):
            pressed.append(abort)
            raise KeyboardInterrupt
        return wait_task_rescheduled(abort)

    async def run():
        client, server = socket.socketpair()
        with client, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_stream, SocketStream(server), ServerContext(hello, Config()))
                client.send(GET)
                await trio.sleep_forever()

    monkeypatch.setattr(trio.lowlevel, "wait_task_rescheduled", interrupted)
    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(run)
    assert pressed
    assert caught.group_contains(KeyboardInterrupt)
    assert not caught.group_contains(trio.TrioInternalError)
