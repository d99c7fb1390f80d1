"""AsyncioAdapter: an asyncio application as one for trio, and two loops that share its messages.

The clock is the clock: trio's autojump_clock would take a wait for the other thread for idleness.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import sys
import threading
import time
import traceback
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

import trigi
from trigi._server.application import to_asgi3
from trigi.adapters import ASGI2Adapter
from trigi.adapters._asyncio_call import Call
from trigi.adapters._asyncio_messages import MESSAGE_SIZE, QUEUE_SIZE
from trigi.adapters.asyncio import AsyncioAdapter
from trigi.exceptions import ApplicationError, ClientDisconnected, ConfigError, InvalidMessage
from trigi.testing import HTTPClient, IncompleteResponse, open_connection
from trigi.testing.websocket import WebSocketClient

SECONDS = 20
"""What hangs is given up after this."""

LATE = 0.2
"""Seconds after which something that has not happened does not happen."""


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No thread of a loop outlives its trio.run."""
    yield
    gc.collect()  # so that what was forgotten is told in the test that forgot it
    assert "trigi-asyncio" not in [thread.name for thread in threading.enumerate()]


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    return request.param


@asynccontextmanager
async def serving(application, *, config=None, **options):
    """A connection to an asyncio application."""
    adapter = AsyncioAdapter(application, **options)
    with trio.fail_after(SECONDS):
        async with open_connection(adapter, config) as stream:
            yield HTTPClient(stream)
        await adapter.aclose()


async def respond(send, body=b"", status=200):
    await send({"type": "http.response.start", "status": status})
    await send({"type": "http.response.body", "body": body})


HTTP = {"type": "http", "method": "GET", "path": "/a", "headers": []}


class Server:
    """A server's side of one call, step by step.

    Attributes:
        sent: what the application has sent.
        received: how often it was asked for a message.
    """

    def __init__(self, *messages, error=None):
        self.sent = []
        self.received = 0
        self.gate = trio.Event()  # sends wait for it
        self.gate.set()
        self.error = error
        self._in, self._out = trio.open_memory_channel(100)
        for message in messages:
            self.give(message)

    def give(self, message):
        self._in.send_nowait(message)

    async def receive(self):
        """As trigi's: what is there already is given without a checkpoint."""
        try:
            message = self._out.receive_nowait()
        except trio.WouldBlock:
            message = await self._out.receive()
        self.received += 1
        return message

    async def send(self, message):
        await self.gate.wait()
        if self.error is not None and message["type"] in self.error:
            raise self.error.pop(message["type"])
        self.sent.append(message)

    @property
    def is_asked(self):
        """Whether somebody waits for a message."""
        return self._out.statistics().tasks_waiting_receive > 0

    @property
    def types(self):
        return [message["type"].partition(".")[2] for message in self.sent]


async def call(application, server, scope=HTTP, **options):
    adapter = AsyncioAdapter(application, **options)
    try:
        with trio.fail_after(SECONDS):
            await adapter(dict(scope), server.receive, server.send)
    finally:
        await adapter.aclose()


async def until(condition):
    with trio.fail_after(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another loop
            await trio.sleep(0.002)


# Requests


async def test_a_request_runs_in_the_loop(loop):
    async def application(scope, receive, send):
        await asyncio.sleep(0)
        message = await receive()
        names.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        await respond(send, message["body"].upper())

    names = []
    async with serving(application, loop=loop) as client:
        assert (await client.fetch("/", method="POST", body=b"hello")).body == b"HELLO"
        assert (await client.fetch("/")).body == b""
    assert names == [loop, loop]


async def test_an_upload_and_a_download_arrive_whole(loop):
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    pieces = [bytes([number]) * 50_000 for number in range(100)]
    async with serving(application, loop=loop) as client, trio.open_nursery() as nursery:
        await client.request("POST", headers=[(b"content-length", b"5000000")])

        async def upload():
            for piece in pieces:
                await client.send(piece)

        nursery.start_soon(upload)
        response = await client.response()
    assert response.body == b"".join(pieces)


async def test_many_calls_at_once(loop):
    async def application(scope, receive, send):
        await asyncio.sleep(0.001)
        await respond(send, scope["path"].encode())

    adapter = AsyncioAdapter(application, loop=loop)
    bodies = {}

    async def one(number):
        server = Server({"type": "http.request", "body": b"", "more_body": False})
        await adapter(HTTP | {"path": str(number)}, server.receive, server.send)
        bodies[number] = server.sent[1]["body"]

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, number)
    assert bodies == {number: str(number).encode() for number in range(300)}
    await adapter.aclose()


async def test_a_websocket(loop):
    async def application(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        closed.append((message["code"], message["reason"]))

    closed = []
    adapter = AsyncioAdapter(application, loop=loop)
    with trio.fail_after(SECONDS):
        async with open_connection(adapter) as stream:
            client = WebSocketClient(stream)
            await client.connect()
            for text in ("one", "two", "three"):
                await client.send(text)
            assert [await client.receive() for _ in range(3)] == ["ONE", "TWO", "THREE"]
            await client.close(4001, "enough")
            await until(lambda: closed)
        await adapter.aclose()
    assert closed == [(4001, "enough")]


async def test_lint():
    """Nothing that crosses is other than ASGI wants it."""

    async def application(scope, receive, send):
        message = await receive()
        assert "trigi" not in scope["extensions"]  # which is trio's
        await respond(send, message["body"])

    async with serving(application, config=trigi.Config(lint=True)) as client:
        assert (await client.fetch("/", method="POST", body=b"abc")).body == b"abc"


async def test_asgi_2_applications():
    class Application:
        def __init__(self, scope):
            self.path = scope["path"]

        async def __call__(self, receive, send):
            await asyncio.sleep(0)
            await respond(send, self.path.encode())

    adapter = to_asgi3(Application, "asyncio")
    assert isinstance(adapter, AsyncioAdapter)
    assert isinstance(adapter.application, ASGI2Adapter)
    server = Server()
    await adapter(dict(HTTP), server.receive, server.send)
    assert server.sent[1]["body"] == b"/a"


def test_the_interface_is_named_and_never_guessed():
    async def application(scope, receive, send): ...

    assert to_asgi3(application, "auto") is application
    adapter = to_asgi3(application, "asyncio")
    assert isinstance(adapter, AsyncioAdapter)
    assert adapter.application is application
    assert to_asgi3(adapter, "asyncio") is adapter
    assert to_asgi3(adapter, "auto") is adapter
    assert inspect.iscoroutinefunction(adapter.__call__)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loop": "twisted"}, "loop: 'twisted' is not one of auto, asyncio, uvloop"),
        ({"cancel_timeout": -1}, "cancel_timeout: -1 is not a number of seconds, at least 0, or inf"),
        (
            {"close_timeout": float("nan")},
            "close_timeout: nan is not a number of seconds, at least 0, or inf",
        ),
    ],
)
def test_what_is_not_allowed(options, words):
    with pytest.raises(ConfigError) as caught:
        AsyncioAdapter(respond, **options)
    assert str(caught.value) == words


def test_uvloop_is_needed_only_if_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert AsyncioAdapter(respond)._new_loop is asyncio.SelectorEventLoop
    with pytest.raises(ConfigError, match="loop: uvloop is not installed"):
        AsyncioAdapter(respond, loop="uvloop")


# Messages in batches


async def test_the_first_message_comes_with_the_call():
    async def application(scope, receive, send):
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        turns = []
        loop.call_soon(turns.append, 1)
        assert (await receive())["body"] == b"abc"
        assert not turns  # it did not wait
        await respond(send)
        assert task is asyncio.current_task()

    server = Server({"type": "http.request", "body": b"abc", "more_body": False})
    await call(application, server)
    # no message was asked for behind it, and nothing that must wait for the application
    assert server.received == 1
    assert server.types == ["response.start", "response.body"]


async def test_nothing_is_asked_of_the_client_before_the_application_asks():
    """A `100 Continue` is sent when the application first waits for the body."""

    async def application(scope, receive, send):
        if scope["path"] == "/refuse":
            await respond(send, status=413)
        else:
            await respond(send, (await receive())["body"])

    async with serving(application) as client:
        for target in ("/", "/refuse"):
            await client.request(
                "POST", target, headers=[(b"content-length", b"3"), (b"expect", b"100-continue")]
            )
            if target == "/":
                assert (await client.informational()).status == 100
                await client.send(b"abc")
                assert (await client.response()).body == b"abc"
            else:
                response = await client.response()
                assert (response.status, response.informational) == (413, [])


async def test_the_head_travels_with_the_first_piece_of_the_body():
    """It wakes nobody by itself. (But trio takes it along when it looks anyway, as when the call begins.)"""

    async def application(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await asyncio.sleep(LATE)
        seen.append(server.types[:])
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        async with asyncio.timeout(SECONDS):
            while len(server.sent) < 2:  # noqa: ASYNC110 - what is waited for happens in another loop
                await asyncio.sleep(0.002)
        await send({"type": "http.response.body", "body": b"2"})

    seen = []
    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, application, server)
        await until(lambda: server.is_asked)
        await trio.testing.wait_all_tasks_blocked()  # nothing is left to be looked at
        server.give({"type": "http.request", "body": b"", "more_body": False})
    assert seen == [[]]
    assert server.types == ["response.start", "response.body", "response.body"]


async def test_what_was_sent_is_what_it_was_when_it_was_sent():
    async def application(scope, receive, send):
        message = {"type": "http.response.body", "more_body": True}
        buffer = bytearray(1)
        await send({"type": "http.response.start", "status": 200})
        for number in range(3):
            message["body"] = bytes([number])
            await send(message)
        for number in range(3):
            buffer[0] = number
            message["body"] = buffer
            await send(message)

    class Copying(Server):
        async def send(self, message):
            await super().send(dict(message) | {"body": bytes(message.get("body", b""))})

    server = Copying()
    await call(application, server)
    assert [message["body"][0] for message in server.sent[1:]] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("kind", [list, tuple, iter])
async def test_headers_are_what_they_were_when_they_were_sent(kind):
    async def application(scope, receive, send):
        pair = [b"name", b"value"]
        headers = [pair, (b"other", b"value")]
        await send({"type": "http.response.start", "status": 200, "headers": kind(headers)})
        pair[1] = b"changed"
        headers.clear()
        await send({"type": "http.response.body"})

    class Copying(Server):
        async def send(self, message):
            headers = [tuple(pair) for pair in message.get("headers", ())]
            await super().send(message | {"headers": headers})

    server = Copying()
    await call(application, server)
    assert server.sent[0]["headers"] == [(b"name", b"value"), (b"other", b"value")]


async def test_the_server_has_a_file_before_send_returns():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.zerocopysend", "file": 3})
        seen.append(len(server.sent))

    seen = []
    server = Server()
    await call(application, server)
    assert seen == [2]


# Backpressure


async def test_a_send_waits_above_the_mark_and_only_there():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        for _ in range(10):
            await send({"type": "http.response.body", "body": bytes(QUEUE_SIZE // 4), "more_body": True})
            passed.append(time.monotonic())
        await send({"type": "http.response.body"})

    passed = []
    server = Server()
    server.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, application, server)
        await until(lambda: len(passed) == 3)
        await trio.sleep(LATE)
        assert len(passed) == 3
        server.gate.set()
    assert len(passed) == 10
    assert len(server.sent) == 12


async def test_empty_messages_count():
    async def application(scope, receive, send):
        with suppress(ClientDisconnected):
            while True:
                await send({"type": "http.response.body", "body": b"", "more_body": True})
                passed.append(True)

    passed = []
    server = Server()
    server.gate = trio.Event()
    with trio.move_on_after(1):
        await call(application, server)
    assert 0 < len(passed) <= QUEUE_SIZE // MESSAGE_SIZE


async def test_what_the_application_does_not_receive_is_not_read():
    async def application(scope, receive, send):
        await receive()
        started.set()
        await asyncio.get_running_loop().run_in_executor(None, go_on.wait)
        for _ in range(19):
            await receive()
        await respond(send)

    started, go_on = threading.Event(), threading.Event()
    piece = {"type": "http.request", "body": bytes(QUEUE_SIZE // 4), "more_body": True}
    server = Server(*[piece] * 19, piece | {"more_body": False})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, application, server)
        await until(started.is_set)
        await trio.sleep(LATE)
        assert server.received <= 6
        go_on.set()
    assert server.received == 20


# receive


async def test_a_cancelled_receive_loses_nothing(loop):
    async def application(scope, receive, send):
        number = 0
        while number < 200:
            try:
                message = await asyncio.wait_for(receive(), 0.0005)
            except TimeoutError:
                continue
            assert message["body"] == str(number).encode()
            number += 1
        await respond(send)

    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: call(application, server, loop=loop))
        for number in range(200):
            server.give({"type": "http.request", "body": str(number).encode(), "more_body": True})
            await trio.sleep(0.0003)


async def test_several_receivers_share_the_messages():
    async def application(scope, receive, send):
        messages = await asyncio.gather(*[receive() for _ in range(5)])
        assert sorted(message["body"] for message in messages) == [b"0", b"1", b"2", b"3", b"4"]
        await respond(send)

    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, application, server)
        for number in range(5):
            await trio.sleep(0.01)
            server.give({"type": "http.request", "body": b"%d" % number, "more_body": True})


async def test_a_disconnect_is_told_for_ever_and_lets_others_run():
    async def application(scope, receive, send):
        await receive()
        ticks = []
        asyncio.get_running_loop().call_later(0.01, ticks.append, 1)
        while not ticks:
            assert (await receive()) == {"type": "http.disconnect"}
        done.append(True)

    done = []
    await call(application, Server({"type": "http.request"}, {"type": "http.disconnect"}))
    assert done


async def test_what_receive_raises_is_raised_by_the_applications():
    async def receive():
        raise LookupError("of the server")

    async def application(scope, receive, send):
        with pytest.raises(LookupError, match="of the server"):
            await receive()
        await respond(send)

    server = Server({"type": "http.request", "body": b"", "more_body": False})
    first = server.receive

    async def once():
        return await (first() if not server.received else receive())

    async def twice(scope, receive, send):
        await receive()
        await application(scope, receive, send)

    server.receive = once
    await call(twice, server)
    assert len(server.sent) == 2


# send, and disconnects


async def test_what_the_server_says_of_a_message_is_raised_by_the_next_send():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"dropped", "more_body": True})
        await asyncio.sleep(LATE)
        with pytest.raises(InvalidMessage, match="wrong"):
            await send({"type": "http.response.body", "body": b"not sent", "more_body": True})
        await respond(send, b"sorry", 500)

    server = Server(error={"http.response.start": InvalidMessage("wrong")})
    await call(application, server)
    assert [(message.get("status"), message.get("body")) for message in server.sent] == [
        (500, None),
        (None, b"sorry"),
    ]


async def test_what_the_server_says_of_the_last_message_ends_the_call():
    async def application(scope, receive, send):
        await respond(send)

    with pytest.raises(InvalidMessage, match="wrong"):
        await call(application, Server(error={"http.response.body": InvalidMessage("wrong")}))


async def test_a_client_that_leaves_is_told_of_and_cancels_nothing():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await receive()
        started.set()
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(ClientDisconnected) as caught:
            await send({"type": "http.response.body", "body": b"2", "more_body": True})
        assert isinstance(caught.value, OSError)
        await asyncio.sleep(LATE)
        ended.append(True)

    started, ended = threading.Event(), []
    async with serving(application) as client:
        await client.request()
        await until(started.is_set)
        await client.aclose()
        await until(lambda: ended)


async def test_one_whose_first_send_met_a_client_that_had_left_is_told_so():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(ClientDisconnected):
            await send({"type": "http.response.body", "body": b"2"})
        ended.append(True)

    ended = []
    server = Server(
        {"type": "http.request", "body": b"", "more_body": False},
        error={"http.response.body": ClientDisconnected("left")},
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, application, server)
        await trio.sleep(LATE)
        server.give({"type": "http.disconnect"})
    assert ended


async def test_one_that_only_sends_learns_of_it_too():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
                sending.set()
                await asyncio.sleep(0.001)
        except ClientDisconnected:
            ended.append(True)
            raise

    sending, ended = threading.Event(), []
    async with serving(application) as client:
        await client.request()
        await until(sending.is_set)
        await client.aclose()
        await until(lambda: ended)


async def test_after_the_call_there_is_nobody_to_talk_to():
    """What an application leaves behind holds its `receive` and `send`."""

    async def application(scope, receive, send):
        async def leftover():
            messages.append(await receive())
            messages.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send({"type": "http.response.body", "body": b"late"})
            messages.append(None)

        left.append(asyncio.create_task(leftover()))
        await receive()
        await asyncio.sleep(0.01)
        await respond(send)

    left, messages = [], []
    adapter = AsyncioAdapter(application)
    server = Server({"type": "http.request"})
    await adapter(dict(HTTP), server.receive, server.send)
    await until(lambda: len(messages) == 3)
    assert messages[:2] == [{"type": "http.disconnect"}] * 2
    assert len(server.sent) == 2


# Cancellation


@pytest.mark.parametrize("where", ["sleep", "receive", "send"])
async def test_cancellation_is_the_tasks(where, loop):
    async def application(scope, receive, send):
        try:
            started.set()
            if where == "sleep":
                await asyncio.sleep(SECONDS)
            elif where == "receive":
                await receive()
            else:
                while True:
                    await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        except asyncio.CancelledError:
            events.append("cancelled")
            await asyncio.sleep(0.01)
            events.append("cleaned up")
            raise

    started, events = threading.Event(), []
    server = Server()
    server.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: call(application, server, loop=loop))
        await until(started.is_set)
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert events == ["cancelled", "cleaned up"]
    assert nursery.cancel_scope.cancelled_caught


async def test_a_task_that_is_cancelled_before_it_begins():
    async def application(scope, receive, send):
        began.append(True)

    began = []
    adapter = AsyncioAdapter(application)
    with trio.fail_after(SECONDS):
        with trio.CancelScope() as scope:
            scope.cancel()
            await adapter(dict(HTTP), trio.sleep_forever, Server().send)
        assert scope.cancelled_caught
    await adapter.aclose()
    assert not began


async def test_a_timeout_of_the_servers_is_a_504(loop):
    async def application(scope, receive, send):
        try:
            await asyncio.sleep(SECONDS)
        finally:
            with pytest.raises(ClientDisconnected):
                await respond(send)
            ended.append(True)

    ended = []
    async with serving(application, loop=loop, config=trigi.Config(request_timeout=0.1)) as client:
        assert (await client.fetch("/")).status == 504
    assert ended


async def test_disconnect_grace_cancels():
    async def application(scope, receive, send):
        started.set()
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            cancelled.append(time.monotonic())
            raise

    started, cancelled = threading.Event(), []
    async with serving(application, config=trigi.Config(disconnect_grace=LATE)) as client:
        await client.request()
        await until(started.is_set)
        left = time.monotonic()
        await client.aclose()
        await until(lambda: cancelled)
    assert cancelled[0] - left >= LATE


async def test_what_the_clean_up_raises_is_not_lost():
    async def application(scope, receive, send):
        try:
            started.set()
            await asyncio.sleep(SECONDS)
        finally:
            raise LookupError("in the clean-up")

    started = threading.Event()
    adapter = AsyncioAdapter(application)

    async def cancel_later():
        await until(started.is_set)
        scope.cancel()

    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_later)
        with pytest.raises(LookupError, match="in the clean-up"), trio.CancelScope() as scope:
            await adapter(dict(HTTP), server.receive, server.send)
    await adapter.aclose()


async def test_what_was_raised_while_the_server_still_sends_is_not_lost():
    async def application(scope, receive, send):
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        ended.append(asyncio.current_task())
        try:
            raise OSError("first")
        except OSError:
            raise LookupError("before the end")  # noqa: B904 - so that it has a context

    ended = []
    server = Server()
    server.gate = trio.Event()
    adapter = AsyncioAdapter(application)

    async def cancel_later():
        await until(lambda: ended and ended[0].done())
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_later)
        with pytest.raises(LookupError, match="before the end") as caught, trio.CancelScope() as scope:
            await adapter(dict(HTTP), server.receive, server.send)
    assert str(caught.value.__context__) == "first"
    await adapter.aclose()


async def test_a_task_that_swallows_its_cancellation_is_named_and_cut_off(loop, caplog):
    async def stubborn():
        while not go_on:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)

    async def application(scope, receive, send):
        started.set()
        await stubborn()
        with suppress(ClientDisconnected):
            await respond(send)
        ended.append(True)

    started, go_on, ended = threading.Event(), [], []
    server = Server()
    adapter = AsyncioAdapter(application, loop=loop, cancel_timeout=0.1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(adapter, dict(HTTP), server.receive, server.send)
        await until(started.is_set)
        nursery.cancel_scope.cancel()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("trigi.error", "ERROR")
    assert "of GET '/a' has not ended 0.1 s after it was cancelled: it is cut off" in record.getMessage()
    assert "in stubborn" in record.getMessage()
    assert "await asyncio.sleep(0.02)" in record.getMessage()
    go_on.append(True)
    await until(lambda: ended)
    await adapter.aclose()
    assert server.sent == []


async def test_an_application_that_blocks_its_loop_does_not_stop_the_server(caplog):
    async def application(scope, receive, send):
        if scope["path"] == "/block":
            blocked.set()
            go_on.wait(SECONDS)
        await respond(send)

    blocked, go_on = threading.Event(), threading.Event()
    adapter = AsyncioAdapter(application, cancel_timeout=0.1, close_timeout=0.1)

    async def beside(scope, receive, send):
        if scope["path"] == "/trio":
            await respond(send, b"trio")
        else:
            await adapter(scope, receive, send)

    try:
        with trio.fail_after(SECONDS):
            config = trigi.Config(disconnect_grace=0)
            async with open_connection(beside, config) as first, open_connection(beside, config) as second:
                await HTTPClient(first).request("GET", "/block")
                await until(blocked.is_set)
                assert (await HTTPClient(second).fetch("/trio")).body == b"trio"
                await HTTPClient(second).request("GET", "/behind")
                await trio.sleep(0.02)
            await adapter.aclose()
    finally:
        go_on.set()
    texts = sorted(record.getMessage() for record in caplog.records if record.name == "trigi.error")
    assert len(texts) == 3
    assert "the asyncio loop has not ended after 0.1 s: it is left behind" in texts[0]
    assert "the asyncio loop is blocked: the task of GET '/behind' was cancelled 0.1 s ago" in texts[1]
    assert "the asyncio loop is blocked: the task of GET '/block' was cancelled 0.1 s ago" in texts[2]
    for text in texts:
        assert "go_on.wait(SECONDS)" in text
        assert "bootstrap" not in text
    await until(lambda: "trigi-asyncio" not in [thread.name for thread in threading.enumerate()])


# Exceptions


async def test_an_exception_comes_across_with_its_traceback(loop):
    async def deep():
        await asyncio.sleep(0)
        raise LookupError("deep down")

    async def application(scope, receive, send):
        await deep()

    with pytest.raises(LookupError, match="deep down") as caught:
        await call(application, Server(), loop=loop)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == ["application", "deep"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_what_would_end_a_program_ends_the_call(error, loop):
    async def application(scope, receive, send):
        if scope["path"] == "/a":
            raise error
        await respond(send)

    adapter = AsyncioAdapter(application, loop=loop)
    server = Server()
    with pytest.raises(ApplicationError, match=type(error).__name__) as caught:
        await adapter(dict(HTTP), server.receive, server.send)
    assert caught.value.__cause__ is error
    await adapter(HTTP | {"path": "/b"}, server.receive, server.send)
    assert len(server.sent) == 2
    await adapter.aclose()


async def test_what_would_end_a_program_in_a_task_of_the_applications(loop, caplog):
    async def application(scope, receive, send):
        async def child():
            raise SystemExit(3)

        task = asyncio.create_task(child())
        await asyncio.wait([task])
        assert isinstance(task.exception(), SystemExit)
        await respond(send)

    server = Server()
    await call(application, server, loop=loop)
    assert len(server.sent) == 2
    assert "an asyncio task of the application's raised what would end a process" in caplog.text


async def test_a_failure_is_a_500_and_logged_from_the_applications_frame_on(caplog):
    async def application(scope, receive, send):
        raise LookupError("in the application")

    async with serving(application, config=trigi.Config(interface="asyncio")) as client:
        assert (await client.fetch("/")).status == 500


async def test_a_failure_behind_the_head_cuts_the_response_off():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        raise LookupError("in the application")

    async with serving(application) as client:
        with pytest.raises(IncompleteResponse):
            await client.fetch("/")


async def test_both_errors_are_told():
    """The application fails after a message that the server refuses: its own error comes first."""

    async def application(scope, receive, send):
        await respond(send)
        raise LookupError("of the application")

    with pytest.raises(LookupError, match="of the application"):
        await call(application, Server(error={"http.response.body": InvalidMessage("wrong")}))


async def test_no_call_waits_for_the_collector():
    async def application(scope, receive, send):
        if scope["path"] == "/raise":
            raise LookupError
        task = asyncio.create_task(receive())
        await asyncio.sleep(0)
        task.cancel()
        await respond(send)

    def calls():
        return sum(isinstance(each, Call) for each in gc.get_objects())

    adapter = AsyncioAdapter(application)
    server = Server()
    gc.collect()
    before = calls()  # of other tests, whose failures pytest remembers
    gc.disable()
    try:
        for _ in range(20):
            with suppress(LookupError):
                await adapter(HTTP | {"path": "/raise"}, trio.sleep_forever, server.send)
            await adapter(dict(HTTP), trio.sleep_forever, server.send)
        await trio.sleep(LATE)
        assert calls() == before
    finally:
        gc.enable()
    await adapter.aclose()


# Context variables

variable = contextvars.ContextVar("variable", default="unset")


async def test_a_call_runs_in_a_copy_of_the_callers_context(loop):
    async def application(scope, receive, send):
        seen.append(variable.get())
        variable.set("set by the application")
        await asyncio.sleep(0)
        seen.append(variable.get())

    seen = []
    variable.set("set by the server")
    await call(application, Server(), loop=loop)
    assert seen == ["set by the server", "set by the application"]
    assert variable.get() == "set by the server"


# Lifespan


class Lifespan:
    """An application with a lifespan, that writes down what happens in which loop.

    Attributes:
        events: what has happened.
    """

    def __init__(self):
        self.events = []

    async def __call__(self, scope, receive, send):
        loop = asyncio.get_running_loop()
        if scope["type"] == "http":
            self.events.append(("request", variable.get()))
            assert loop is scope["state"]["loop"]
            await respond(send)
            return
        assert await receive() == {"type": "lifespan.startup"}
        scope["state"]["loop"] = loop
        self.events.append("startup")
        self.background = asyncio.create_task(self.run())
        self.generator = self.generate()
        await anext(self.generator)
        variable.set("set in startup")
        await send({"type": "lifespan.startup.complete"})
        assert await receive() == {"type": "lifespan.shutdown"}
        self.events.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    async def run(self):
        try:
            await asyncio.sleep(SECONDS)
        finally:
            self.events.append("task cancelled")

    async def generate(self):
        try:
            yield
        finally:
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.01)
            self.events.append("generator closed")


async def test_the_order_of_a_life(loop):
    application = Lifespan()
    adapter = AsyncioAdapter(application, loop=loop)
    stop = trio.Event()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:

            async def serve(task_status):
                await trigi.serve(
                    adapter,
                    trigi.Config(bind="127.0.0.1:0"),
                    shutdown_trigger=stop.wait,
                    task_status=task_status,
                )

            [url] = await nursery.start(serve)
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
            assert (await HTTPClient(stream).fetch("/")).status == 200
            await stream.aclose()
            stop.set()
    assert application.events == [
        "startup",
        ("request", "set in startup"),
        "shutdown",
        "task cancelled",
        "generator closed",
    ]
    assert adapter._thread is None  # closed with the lifespan, not with trio.run


@pytest.mark.parametrize("config", [{"lifespan": "off"}, {"lifespan": "auto"}], ids=str)
def test_without_a_lifespan_the_loop_ends_with_trio(config, loop):
    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            raise ValueError("no lifespan here")
        loops.append(asyncio.get_running_loop())
        await respond(send)

    async def main():
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                [url] = await nursery.start(trigi.serve, adapter, trigi.Config(bind="127.0.0.1:0", **config))
                stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
                client = HTTPClient(stream)
                for _ in range(2):
                    assert (await client.fetch("/")).status == 200
                await stream.aclose()
                nursery.cancel_scope.cancel()
        assert not loops[0].is_closed()

    adapter = AsyncioAdapter(application, loop=loop)
    for _ in range(2):
        loops = []
        trio.run(main)
        assert loops[0] is loops[1]
        assert loops[0].is_closed()


@pytest.mark.parametrize("ends", ["returns", "raises"])
async def test_a_lifespan_that_ends_early_does_not_end_the_loop(ends):
    """What the startup has made belongs to the loop that the requests will run in."""

    async def application(scope, receive, send):
        if scope["type"] == "http":
            assert asyncio.get_running_loop() is scope["state"]["loop"]
            await respond(send)
            return
        scope["state"]["loop"] = asyncio.get_running_loop()
        await receive()
        await send({"type": "lifespan.startup.complete"})
        if ends == "raises":
            raise LookupError("while serving")

    adapter = AsyncioAdapter(application)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            [url] = await nursery.start(trigi.serve, adapter, trigi.Config(bind="127.0.0.1:0"))
            await trio.sleep(LATE)
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
            assert (await HTTPClient(stream).fetch("/")).status == 200
            await stream.aclose()
            nursery.cancel_scope.cancel()
    await adapter.aclose()


async def test_a_lifespan_that_is_cancelled_ends_the_loop():
    async def application(scope, receive, send):
        await receive()
        await asyncio.sleep(SECONDS)

    adapter = AsyncioAdapter(application)
    with pytest.raises(trigi.exceptions.LifespanFailed, match="startup_timeout"):
        await trigi.serve(adapter, trigi.Config(bind="127.0.0.1:0", startup_timeout=0.1))
    assert adapter._thread is None


async def test_a_failed_startup_is_the_servers_to_tell():
    async def application(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    adapter = AsyncioAdapter(application)
    with pytest.raises(trigi.exceptions.LifespanFailed, match="no database"):
        await trigi.serve(adapter, trigi.Config(bind="127.0.0.1:0"))
    assert adapter._thread is None


async def test_what_a_closing_loop_cannot_end_is_named(caplog):
    async def stubborn():
        while not go_on:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def failing():
        try:
            await asyncio.sleep(SECONDS)
        finally:
            raise LookupError("at the end")

    async def application(scope, receive, send):
        tasks.extend([asyncio.create_task(stubborn()), asyncio.create_task(failing())])
        await asyncio.sleep(0)
        await respond(send)

    tasks, go_on = [], []
    await call(application, Server(), loop="asyncio", cancel_timeout=0.1)
    texts = [record.getMessage() for record in caplog.records if record.name == "trigi.error"]
    assert len(texts) == 2
    assert "an asyncio task failed while the loop was closed" in texts[0]
    assert "swallowed its cancellation: it is left behind" in texts[1]
    assert "in stubborn" in texts[1]
    with suppress(RuntimeError):  # asyncio.sleep() in a closed loop
        go_on.append(True)
        tasks[0].get_coro().close()
    tasks[0]._log_destroy_pending = False


CLOSED = "the asyncio loop was closed before the call"


async def test_a_call_that_a_closing_loop_cannot_end_fails(loop):
    async def application(scope, receive, send):
        tasks.append(asyncio.current_task())
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(SECONDS)

    async def one():
        with pytest.raises(ApplicationError, match=f"{CLOSED} had ended"):
            await adapter(dict(HTTP), server.receive, server.send)

    tasks = []
    server = Server()
    adapter = AsyncioAdapter(application, loop=loop, cancel_timeout=0.05)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await until(lambda: tasks)
            await adapter.aclose()
    tasks[0]._log_destroy_pending = False
    tasks[0].get_coro().close()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_call_in_a_loop_that_is_left_behind_ends(cancelled, caplog):
    async def application(scope, receive, send):
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(0)
        blocked.set()
        go_on.wait(SECONDS)
        await respond(send)

    async def one():
        with trio.CancelScope() as scope:
            if cancelled:
                nursery.start_soon(cancel_later, scope)
            with pytest.raises(trio.Cancelled if cancelled else ApplicationError) as caught:
                await adapter(dict(HTTP), server.receive, server.send)
        assert cancelled or str(caught.value) == f"{CLOSED} had ended"

    async def cancel_later(scope):
        await until(lambda: blocked.is_set() and server.sent)
        scope.cancel()

    blocked, go_on = threading.Event(), threading.Event()
    server = Server()
    adapter = AsyncioAdapter(application, cancel_timeout=SECONDS / 4, close_timeout=0.05)
    try:
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                await until(lambda: blocked.is_set() and server.sent)
                await trio.sleep(0.02)
                await adapter.aclose()
    finally:
        go_on.set()
    [text] = [record.getMessage() for record in caplog.records if record.name == "trigi.error"]
    assert "it is left behind" in text
    await until(lambda: "trigi-asyncio" not in [thread.name for thread in threading.enumerate()])
    assert [message["body"] for message in server.sent] == [b"x"]


async def test_a_call_that_comes_too_late_for_its_loop_fails():
    async def application(scope, receive, send):
        began.append(True)

    async def receive():
        with trio.CancelScope(shield=True):
            receiving.set()
            await closed.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def one():
        with pytest.raises(ApplicationError, match=f"{CLOSED} began"):
            await adapter(dict(HTTP), receive, Server().send)

    began = []
    receiving, closed = trio.Event(), trio.Event()
    adapter = AsyncioAdapter(application)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await receiving.wait()
            await adapter.aclose()
            closed.set()
    assert not began


async def test_a_task_factory_that_raises_fails_its_call(loop):
    async def application(scope, receive, send):
        if scope["path"] == "/set":
            asyncio.get_running_loop().set_task_factory(factory)
            sets.append(True)
            await asyncio.get_running_loop().run_in_executor(None, int)
        await receive()
        await respond(send)

    def factory(loop, coroutine, **options):
        if fail.pop():
            coroutine.close()
            raise LookupError("no more tasks")
        return asyncio.Task(coroutine, loop=loop, **options)

    async def one(path):
        server = Server()
        if path == "/set":
            await begin.wait()
        else:
            server.give({"type": "http.request", "body": b"", "more_body": False})
        try:
            await adapter(HTTP | {"path": path}, server.receive, server.send)
        except LookupError as error:
            ends.append(str(error))
        else:
            ends.append(server.types)

    sets, ends, fail, begin = [], [], [True, False, True], trio.Event()
    begin.set()
    adapter = AsyncioAdapter(application, loop=loop)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "/set")
            await until(lambda: sets)
            for _ in range(3):
                nursery.start_soon(one, "/")
            await until(lambda: len(ends) == 3)
            nursery.cancel_scope.cancel()
        await adapter.aclose()
    assert sorted(ends, key=str) == [["response.start", "response.body"]] + ["no more tasks"] * 2
    assert "asyncio_0" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks")
async def test_a_task_factory_that_begins_tasks_at_once():
    async def application(scope, receive, send):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        body = (await receive())["body"]
        if scope["path"] == "/wait":
            await asyncio.sleep(0)
        await respond(send, body)

    adapter = AsyncioAdapter(application, loop="asyncio")
    for path in ("/", "/", "/wait"):
        server = Server({"type": "http.request", "body": b"abc", "more_body": False})
        with trio.fail_after(SECONDS):
            await adapter(HTTP | {"path": path}, server.receive, server.send)
        assert server.types == ["response.start", "response.body"]
        assert server.sent[1]["body"] == b"abc"
    await adapter.aclose()


async def test_an_application_begins_although_there_is_nothing_to_receive(loop):
    """Somebody before it has received all there was."""

    async def application(scope, receive, send):
        await respond(send, b"early")

    server = Server()
    with trio.fail_after(SECONDS):
        await call(application, server, HTTP | {"http_version": "1.1", "headers": []}, loop=loop)
    assert server.sent[1]["body"] == b"early"


async def test_closing_leaves_what_cleans_up_already_its_time(loop):
    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        child = asyncio.create_task(clean_up("child"))
        try:
            started.set()
            await child
        finally:
            await clean_up("call")

    async def clean_up(name):
        try:
            if name == "child":
                await asyncio.sleep(SECONDS)
        finally:
            await asyncio.sleep(0.1)
            events.append(name)

    started, events = threading.Event(), []
    adapter = AsyncioAdapter(application, loop=loop)
    lifespan = Server({"type": "lifespan.startup"})
    server = Server()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adapter, {"type": "lifespan"}, lifespan.receive, lifespan.send)
            await until(lambda: lifespan.sent)
            nursery.start_soon(adapter, dict(HTTP), server.receive, server.send)
            await until(started.is_set)
            nursery.cancel_scope.cancel()
    assert adapter._thread is None
    assert events == ["child", "call"]


async def test_what_is_cancelled_while_the_loop_closes_is_not_cancelled_twice():
    async def application(scope, receive, send):
        try:
            started.set()
            await asyncio.sleep(SECONDS)
        finally:
            cancelled.set()
            await asyncio.sleep(0.1)
            events.append("cleaned up")

    started, cancelled, events = threading.Event(), threading.Event(), []
    adapter = AsyncioAdapter(application)
    server = Server()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery, trio.open_nursery() as calls:
            calls.start_soon(adapter, dict(HTTP), server.receive, server.send)
            await until(started.is_set)
            nursery.start_soon(adapter.aclose)
            await until(cancelled.is_set)
            calls.cancel_scope.cancel()
    assert events == ["cleaned up"]


async def test_closing_cancels_again_what_has_swallowed_its_cancellation():
    async def application(scope, receive, send):
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(SECONDS)
        try:
            await asyncio.sleep(SECONDS)
        finally:
            events.append("cancelled again")

    started, events = threading.Event(), []
    adapter = AsyncioAdapter(application, cancel_timeout=0.2)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adapter, dict(HTTP), Server().receive, Server().send)
            await until(started.is_set)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(0.02)
                await adapter.aclose()
    assert events == ["cancelled again"]


async def test_clean_up_that_cancels_all_tasks_does_not_cancel_the_closing(loop, caplog):
    async def background():
        try:
            await asyncio.sleep(SECONDS)
        finally:
            for task in asyncio.all_tasks():
                task.cancel()

    async def generate():
        try:
            yield
        finally:
            events.append("generator closed")

    async def application(scope, receive, send):
        kept.extend([asyncio.create_task(background()), generate()])
        await anext(kept[1])
        await asyncio.get_running_loop().run_in_executor(None, int)
        await respond(send)

    kept, events = [], []
    await call(application, Server(), loop=loop)
    assert events == ["generator closed"]
    assert not [record for record in caplog.records if record.name == "trigi.error"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]


async def test_two_trio_runs_can_not_share_one():
    async def application(scope, receive, send):
        await respond(send)

    adapter = AsyncioAdapter(application)
    server = Server()
    await adapter(dict(HTTP), server.receive, server.send)

    async def elsewhere():
        await adapter(dict(HTTP), server.receive, server.send)

    with pytest.raises(RuntimeError, match="under one trio"):
        await trio.to_thread.run_sync(trio.run, elsewhere)
    await adapter.aclose()


def test_under_anyio_run():
    """Which leaves a context variable that says trio."""
    anyio = pytest.importorskip("anyio")

    async def application(scope, receive, send):
        await anyio.sleep(0.001)
        assert await anyio.to_thread.run_sync(lambda: 7) == 7
        await respond(send)

    server = Server()
    anyio.run(call, application, server, backend="trio")
    assert len(server.sent) == 2


# The hint


@pytest.mark.parametrize("kind", ["sleep", "yield", "group", "timeout", "get_event_loop", "wrapped"])
async def test_a_failure_that_comes_of_asyncio_under_trio_says_which_flag(kind, caplog):
    async def application(scope, receive, send):
        match kind:
            case "sleep":
                await asyncio.sleep(1)
            case "yield":
                await asyncio.sleep(0)
            case "group":
                async with asyncio.TaskGroup():
                    pass
            case "timeout":
                async with asyncio.timeout(1):
                    await receive()
            case "get_event_loop":
                asyncio.get_running_loop()
            case "wrapped":
                try:
                    await asyncio.sleep(1)
                except RuntimeError as error:
                    raise ExceptionGroup("several", [ValueError("one"), LookupError("other")]) from error

    caplog.set_level(logging.ERROR, "trigi.error")
    observer = trigi.logs.LogObserver(trigi.Config())
    async with open_connection(application, observer=observer) as stream:
        assert (await HTTPClient(stream).fetch("/")).status == 500
    [record] = [record for record in caplog.records if record.name == "trigi.error"]
    expected = kind != "wrapped"
    assert record.getMessage().endswith(": it needs asyncio (--interface asyncio)") is expected


async def test_a_lifespan_that_needs_asyncio_says_so_too(caplog):
    async def application(scope, receive, send):
        await receive()
        await asyncio.sleep(1)

    caplog.set_level(logging.INFO, "trigi.error")
    for lifespan in ("on", "auto"):
        with trio.move_on_after(LATE), suppress(trigi.exceptions.LifespanFailed):
            await trigi.serve(application, trigi.Config(bind="127.0.0.1:0", lifespan=lifespan))
    texts = [record.getMessage() for record in caplog.records if "it needs asyncio" in record.getMessage()]
    assert len(texts) == 2


async def test_with_the_flag_it_is_not_told_to_use_it(caplog):
    async def application(scope, receive, send):
        await asyncio.get_running_loop().run_in_executor(None, asyncio.get_running_loop)

    config = trigi.Config(interface="asyncio")
    adapter = to_asgi3(application, "asyncio")
    async with open_connection(adapter, config, observer=trigi.logs.LogObserver(config)) as stream:
        assert (await HTTPClient(stream).fetch("/")).status == 500
    await adapter.aclose()
    assert "no running event loop" in caplog.text
    assert "--interface" not in caplog.text


async def test_an_exception_without_words_is_logged_all_the_same(caplog):
    class Mute(RuntimeError):
        def __str__(self):
            raise LookupError

    async def application(scope, receive, send):
        raise Mute(1)

    async with open_connection(application, observer=trigi.logs.LogObserver(trigi.Config())) as stream:
        assert (await HTTPClient(stream).fetch("/")).status == 500
    assert "application failed" in caplog.text


async def test_other_failures_give_no_such_advice(caplog):
    async def application(scope, receive, send):
        raise RuntimeError("no luck")

    observer = trigi.logs.LogObserver(trigi.Config())
    async with open_connection(application, observer=observer) as stream:
        await HTTPClient(stream).fetch("/")
    assert "--interface" not in caplog.text
