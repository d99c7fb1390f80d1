"""What a connection holds is bounded while it lives, and gone when it ends."""

from __future__ import annotations

from math import inf

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from tests.connection.conftest import Recorder
from trigi._connection.context import ServerContext
from trigi.config import Config
from trigi.testing.websocket import WebSocketClient


async def accept(receive, send):
    await receive()
    await send({"type": "websocket.accept"})


async def receive_until_disconnected(receive):
    messages = []
    while (message := await receive())["type"] == "websocket.receive":
        messages.append(message)
    return messages


async def test_unread_messages_are_bounded_by_the_memory_they_take(serve):
    go_on = trio.Event()
    received = []

    async def application(scope, receive, send):
        await accept(receive, send)
        await go_on.wait()
        received.extend(await receive_until_disconnected(receive))

    served = serve(
        application, websocket_message_size_limit=3000, websocket_queue_size=32, websocket_ping_interval=inf
    )
    client = WebSocketClient(served.stream)
    await client.connect("/")
    texts = [f"{number:1000}" for number in range(10)]
    for text in texts:
        await client.send(text)
        await wait_all_tasks_blocked()
    (exchange,) = served.context.running
    assert len(exchange.inbox) == 2
    go_on.set()
    await client.close()
    await wait_all_tasks_blocked()
    assert [message["text"] for message in received] == texts


async def test_a_message_as_large_as_all_may_be_is_delivered(serve):
    """Its object is larger than its bytes, which must not keep it out."""
    received = []

    async def application(scope, receive, send):
        await accept(receive, send)
        received.extend(await receive_until_disconnected(receive))

    served = serve(application, websocket_message_size_limit=1000)
    client = WebSocketClient(served.stream)
    await client.connect("/")
    await client.send("€" * 333)
    await client.send(b"x" * 1000)
    await client.close()
    await wait_all_tasks_blocked()
    assert received == [
        {"type": "websocket.receive", "text": "€" * 333},
        {"type": "websocket.receive", "bytes": b"x" * 1000},
    ]


async def test_closing_ends_the_wait_for_room(serve):
    """The reader must come to the client's close frame, or the close timeout would pass."""
    close = trio.Event()

    async def application(scope, receive, send):
        await accept(receive, send)
        await close.wait()
        await send({"type": "websocket.close", "code": 4000})

    served = serve(application, websocket_message_size_limit=1000, websocket_ping_interval=inf)
    client = WebSocketClient(served.stream)
    await client.connect("/")
    for _ in range(5):
        await client.send("x" * 900)
    await wait_all_tasks_blocked()
    began = trio.current_time()
    close.set()
    assert (await client.wait_closed()).code == 4000
    await client.wait_end()
    assert trio.current_time() == began


async def test_what_was_not_received_is_dropped_with_the_application(serve):
    async def application(scope, receive, send):
        await accept(receive, send)
        await trio.sleep(1)

    served = serve(application)
    client = WebSocketClient(served.stream)
    await client.connect("/")
    (exchange,) = served.context.running
    for _ in range(5):
        await client.send("unread")
    await wait_all_tasks_blocked()
    assert len(exchange.inbox) == 5
    await client.wait_closed()
    await wait_all_tasks_blocked()
    assert len(exchange.inbox) == 0


async def test_a_closing_websocket_takes_no_slot_of_the_applications(serve):
    async def application(scope, receive, send):
        if scope["type"] == "websocket":
            await accept(receive, send)
            return
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    context = ServerContext(application, Config(concurrency_limit=1), observer=Recorder())
    deaf = WebSocketClient(serve(application, context=context).stream, answers=False)
    await deaf.connect("/")
    await wait_all_tasks_blocked()
    other = serve(application, context=context)
    await other.request()
    assert (await other.response()).status == 204


async def test_a_websocket_that_swallows_its_timeout_is_answered_with_504(serve):
    async def application(scope, receive, send):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return

    served = serve(application, request_timeout=3)
    client = WebSocketClient(served.stream)
    await client.send_request("/")
    response = await served.response("GET")
    assert response.status == 504


@pytest.mark.parametrize("grace", ["removed", None, "soon", -1, float("nan"), 10**400])
async def test_an_application_that_breaks_its_disconnect_grace_gets_the_setting(serve, grace):
    ended = []

    async def application(scope, receive, send):
        extension = scope["extensions"]["trigi"]
        extension["disconnect_grace"] = grace
        if grace == "removed":
            extension.clear()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    served = serve(application, disconnect_grace=7)
    await served.request()
    await wait_all_tasks_blocked()
    left = trio.current_time()
    await trio.aclose_forcefully(served.stream)
    await served.done.wait()
    assert ended == [left + 7]


async def test_a_connection_that_comes_during_the_drain_is_closed(serve):
    async def application(scope, receive, send):
        raise AssertionError

    context = ServerContext(application, Config(header_timeout=inf), observer=Recorder())
    context.draining.set()
    served = serve(application, context=context)
    assert await served.stream.receive_some() == b""


async def test_a_tls_handshake_is_ended_by_the_drain(serve, tls_pair):
    async def application(scope, receive, send):
        raise AssertionError

    context = ServerContext(application, Config(tls_handshake_timeout=inf), observer=Recorder())

    def silent_pair():
        client, server = tls_pair()
        return client.transport_stream, server

    served = serve(application, context=context, pair=silent_pair)
    await wait_all_tasks_blocked()
    for connection in list(context.connections):
        connection.drain()
    await served.done.wait()
    assert await served.stream.receive_some() == b""
