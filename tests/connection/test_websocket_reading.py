"""Over a socket, an application that waits for a message reads it itself: nothing is lost, doubled or overtaken."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, suppress
from math import inf

import pytest
import trio

from tests.connection.conftest import Recorder, WatchedSocket
from trigi._connection import run_websocket
from trigi._connection.context import ServerContext
from trigi._connection.serve import serve_stream
from trigi._connection.socket_stream import SocketStream
from trigi.config import Config
from trigi.testing.websocket import WebSocketClient, encode_frame

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
QUIET = 0.01


class Served:
    """A WebSocket that is open, and whose application does what `session` does."""

    def __init__(self, session, **settings):
        self._session = session
        near, far = socket.socketpair()
        self.socket = WatchedSocket(far)
        self.server, self.stream = SocketStream(self.socket), SocketStream(near)
        self.client = WebSocketClient(self.stream)
        self.context = ServerContext(self._application, Config(**settings), observer=Recorder())
        self.task = None

    async def _application(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        self.task = trio.lowlevel.current_task()
        await self._session(receive, send)


@asynccontextmanager
async def serving(session, **settings):
    served = Served(session, **settings)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, served.server, served.context)
            await served.client.connect("/")
            for _ in range(10):  # until the session waits, if it ever does
                await trio.lowlevel.checkpoint()
            served.socket.read.clear()
            yield served
            await trio.aclose_forcefully(served.stream)
    assert served.context.observer.failures == []
    assert served.context.observer.bugs == []
    assert served.context.running == set()


async def echo(receive, send):
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def test_who_waits_for_a_message_reads_it():
    async with serving(echo) as served:
        for text in ("a", "é" * 1000, ""):
            await served.client.send(text)
            assert await served.client.receive() == text
        assert [task for task, _ in served.socket.read] == [served.task] * 3


async def test_the_reader_reads_what_the_application_does_not_wait_for():
    async def session(receive, send):
        await trio.testing.wait_all_tasks_blocked(QUIET)
        await echo(receive, send)

    async with serving(session) as served:
        await served.client.send("a")
        await served.client.send("b")
        assert [await served.client.receive() for _ in range(2)] == ["a", "b"]
        assert served.task not in [task for task, _ in served.socket.read]


SEQUENCES = {
    "fragments": [(TEXT, b"ab", False), (CONTINUATION, b"c", True)],
    "a ping between fragments": [(TEXT, b"ab", False), (PING, b"", True), (CONTINUATION, b"c", True)],
    "large": [(TEXT, b"x" * 300_000, True)],
    "a ping in front": [(PING, b"", True), (TEXT, b"abc", True)],
}


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("frames", SEQUENCES.values(), ids=SEQUENCES)
async def test_messages_of_every_kind_come_in_their_order(frames, deflate):
    data = b"".join(encode_frame(opcode, payload, fin=fin) for opcode, payload, fin in frames)
    text = b"".join(payload for opcode, payload, _ in frames if opcode != PING).decode()
    one, two = (encode_frame(TEXT, each) for each in (b"1", b"2"))
    async with serving(echo, websocket_per_message_deflate=deflate) as served:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send():
                for each in (one, data, two, data + one, one + two, data[:3], data[3:] + one[:1], one[1:]):
                    await served.stream.send_all(each)
                    await trio.testing.wait_all_tasks_blocked(QUIET)

            received = [await served.client.receive() for _ in range(9)]
        assert received == ["1", text, "2", text, "1", "1", "2", text, "1"]


@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize("pause", [0, 0.0005])
async def test_a_cancelled_receive_loses_nothing(size, pause):
    count = 300
    received = []

    async def session(receive, send):
        while len(received) < count:
            with trio.move_on_after(pause) as scope:
                message = await receive()
                received.append(int(message["text"]))
            if scope.cancelled_caught:
                await trio.lowlevel.checkpoint()
        await send({"type": "websocket.send", "text": "done"})

    async with serving(session, websocket_queue_size=size) as served:
        for number in range(count):
            await served.client.send(str(number))
            for _ in range(number % 4):
                await trio.lowlevel.checkpoint()
            if not number % 50:
                await trio.sleep(2 * pause)
        assert await served.client.receive() == "done"
    assert received == list(range(count))


async def test_a_receive_that_is_cancelled_as_the_message_comes_leaves_it_to_the_next():
    """Nor does its client's leaving go unseen meanwhile."""
    go_on, scopes, received = trio.Event(), [], []

    async def session(receive, send):
        with trio.CancelScope() as scope:
            scopes.append(scope)
            received.append(await receive())
        await go_on.wait()
        while not received or received[-1]["type"] == "websocket.receive":
            received.append(await receive())

    for late in range(4):
        go_on, scopes, received = trio.Event(), [], []
        async with serving(session) as served:
            await served.client.send("a")
            for _ in range(late):
                await trio.lowlevel.checkpoint()
            scopes[0].cancel()
            await trio.testing.wait_all_tasks_blocked(QUIET)
            await served.stream.send_all(encode_frame(PING, b"alive"))
            await served.stream.send_all(encode_frame(CLOSE, b""))
            await trio.testing.wait_all_tasks_blocked(QUIET)
            assert served.context.observer.ended, "the close was read, though nobody receives"
            go_on.set()
        assert [message.get("text") for message in received] == ["a", None]


async def test_of_two_that_wait_each_message_goes_to_one():
    count = 200
    received = []

    async def session(receive, send):
        async def take():
            while (message := await receive())["type"] == "websocket.receive":
                received.append(int(message["text"]))
                if len(received) == count:
                    await send({"type": "websocket.send", "text": "done"})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)

    async with serving(session) as served:
        for number in range(count):
            await served.client.send(str(number))
            for _ in range(number % 3):
                await trio.lowlevel.checkpoint()
        assert await served.client.receive() == "done"
        await served.client.close()
    assert sorted(received) == list(range(count))


async def test_a_ping_is_answered_while_the_application_waits():
    async with serving(echo) as served:
        await served.stream.send_all(encode_frame(PING, b"abc"))
        answer = await served.stream.receive_some(100)
        assert answer == bytes([0x80 | PONG, 3]) + b"abc"
        await served.client.send("a")
        assert await served.client.receive() == "a"


async def test_messages_that_the_application_reads_are_signs_of_life():
    async with serving(echo, websocket_ping_interval=0.05, websocket_ping_timeout=0.05) as served:
        began = trio.current_time()
        while trio.current_time() < began + 0.3:
            await served.stream.send_all(encode_frame(TEXT, b"a"))
            await trio.sleep(0.01)
        assert not served.context.observer.ended


@pytest.mark.parametrize("settings", [{}, {"websocket_ping_interval": inf}])
@pytest.mark.parametrize("end", ["close", "leave", "reset message", "both"])
async def test_the_end_is_told_to_who_waits(settings, end):
    told = []

    async def session(receive, send):
        while (message := await receive())["type"] == "websocket.receive":
            told.append(message["text"])
        told.append(message["code"])

    async with serving(session, **settings) as served:
        await served.client.send("a")
        match end:
            case "close":
                await served.client.close(4000)
            case "leave":
                await served.stream.aclose()
            case "reset message":
                await served.stream.send_all(encode_frame(TEXT, b"\xff"))
            case "both":
                await served.stream.send_all(encode_frame(TEXT, b"b") + encode_frame(CLOSE, b"\x0f\xa0"))
                await served.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(QUIET)
    expected = {
        "close": ["a", 4000],
        "leave": ["a", 1006],
        "reset message": ["a", 1007],
        "both": ["a", "b", 4000],
    }
    assert told == expected[end]


async def test_what_comes_as_the_reader_is_about_to_read_does_not_overtake():
    """The application has left two messages to the reader, and waits again before that has read them."""
    for _ in range(20):
        received = []

        async def session(receive, send, received=received):
            while (message := await receive())["type"] == "websocket.receive":
                received.append(message["text"])

        async with serving(session) as served:

            def send_more(data, served=served):
                if data.endswith(b"2"):
                    served.stream.direct.send_nowait(encode_frame(TEXT, b"3"))

            served.socket.on_read = send_more
            frames = [encode_frame(TEXT, text, masked=True) for text in (b"1", b"2")]
            frames = [frame[:2] + bytes(4) + text for frame, text in zip(frames, (b"1", b"2"), strict=True)]
            await served.stream.send_all(b"".join(frames))
            await trio.testing.wait_all_tasks_blocked(QUIET)
        assert received == ["1", "2", "3"]


@pytest.mark.interpreted
@pytest.mark.parametrize("answer", [CLOSE, PING])
async def test_what_comes_as_a_message_is_on_its_way_is_seen_at_once(monkeypatch, answer):
    """The application has been given a message, and does something else than to receive the next."""
    for _ in range(10):
        go_on = trio.Event()

        async def session(receive, send, go_on=go_on):
            await receive()
            await go_on.wait()
            await receive()

        async with serving(session, websocket_ping_interval=inf) as served:
            deliver = run_websocket.WebSocketCall._deliver

            async def deliver_and_send(self, data, served=served, deliver=deliver):
                await deliver(self, data)
                if data == "2":
                    served.stream.direct.send_nowait(encode_frame(answer, b""))

            monkeypatch.setattr(run_websocket.WebSocketCall, "_deliver", deliver_and_send)
            await served.stream.send_all(encode_frame(TEXT, b"1") + encode_frame(TEXT, b"2"))
            await trio.testing.wait_all_tasks_blocked(QUIET)
            with trio.fail_after(5):
                assert (await served.stream.receive_some(1))[0] == 0x80 | (PONG if answer == PING else CLOSE)
            monkeypatch.undo()
            go_on.set()


async def test_a_cancelled_receive_takes_no_place_in_the_queue():
    """So that the reader is not held up by it, and goes on to answer pings."""
    for _ in range(10):
        scopes, go_on = [], trio.Event()

        async def session(receive, send, scopes=scopes, go_on=go_on):
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await receive()
            await go_on.wait()

        async with serving(session, websocket_queue_size=1) as served:
            served.stream.direct.send_nowait(encode_frame(TEXT, b"1"))
            scopes[0].cancel()
            await trio.testing.wait_all_tasks_blocked(QUIET)
            await served.stream.send_all(encode_frame(PING, b""))
            with trio.fail_after(5):
                assert (await served.stream.receive_some(1))[0] == 0x80 | PONG
            go_on.set()


async def test_after_the_server_s_close_the_reader_reads_though_somebody_waits_for_a_message():
    """One task of the application sends what the client does not take, another receives."""

    async def session(receive, send):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with suppress(OSError):
                await send({"type": "websocket.send", "bytes": bytes(4_000_000)})

    async with serving(session, websocket_close_timeout=30, disconnect_grace=inf) as served:
        await trio.testing.wait_all_tasks_blocked(QUIET)
        [exchange] = served.context.running
        exchange.on_drain()
        await trio.testing.wait_all_tasks_blocked(QUIET)
        served.socket.read.clear()
        served.stream.direct.send_nowait(encode_frame(CLOSE, b""))
        await trio.testing.wait_all_tasks_blocked(QUIET)
        assert served.socket.read
        with trio.fail_after(5):
            while await served.stream.receive_some(1 << 16):
                pass
