"""WebSockets on the streams of an HTTP/2 connection (RFC 8441), between an application and the frames on the wire.

What a WebSocket does on any stream of bytes is tested in `test_run_websocket.py`. Here is what is different when that
stream is one of several: how it is opened and refused, how it ends, and that the others are not held up by it.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from math import inf

import pytest
import trio
import trio.testing
from trio.testing import memory_stream_pair, wait_all_tasks_blocked
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, Pong, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.connection.conftest import Recorder, hello, read_body, respond, socket_like_pair
from trigi._connection.context import ServerContext
from trigi._connection.http2 import HTTP2Connection
from trigi._connection.http2_writer import PIECES_AT_ONCE
from trigi._connection.run_websocket import READ_SIZE
from trigi._connection.serve import serve_stream
from trigi._connection.transport import CLOSE_SECONDS, DISCARD_SECONDS, Transport
from trigi._protocol.scope import ConnectionInfo, Endpoint
from trigi.config import Config
from trigi.exceptions import ApplicationError, ClientDisconnected, InvalidMessage, UnexpectedMessage
from trigi.testing.http2 import (
    ConnectionClosed,
    ErrorCode,
    Flag,
    FrameType,
    HTTP2Client,
    SettingCode,
    StreamReset,
)
from trigi.testing.websocket import encode_frame

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}
CLOSE_IT = {"type": "websocket.close"}
DENY = {"type": "websocket.http.response.start", "status": 401}
DENIAL_BODY = {"type": "websocket.http.response.body"}
LOST = {"type": "websocket.disconnect", "code": 1006, "reason": ""}

VERSION = (b"sec-websocket-version", b"13")
WINDOW = 65536
"""`h2_stream_window`, as it is unless set."""


# The client


class WebSocketClosed(Exception):
    """The server has ended the WebSocket: with a close frame, or with END_STREAM alone, which is 1006."""

    def __init__(self, code, reason):
        self.code = code
        self.reason = reason
        super().__init__(f"{code} {reason}")


class WebSocket:
    """The client's end of a WebSocket that was accepted: what comes is read strictly, by wsproto.

    It has no task of its own: what the server sends is read, and pings and close frames are answered, while the test
    waits in a method that receives.
    """

    def __init__(self, client, stream_id, response, *, answers):
        self.client = client
        self.stream_id = stream_id
        self.response = response
        self.pings = deque()
        self.pongs = deque()
        self._answers = answers
        self._messages = deque()
        self._pieces = []
        self._closed = None
        agreed = response.header(b"sec-websocket-extensions")
        extensions = [PerMessageDeflate()] if agreed else []
        for extension in extensions:
            extension.finalize(agreed.decode())
        self._connection = Connection(ConnectionType.CLIENT, extensions)

    async def send(self, message):
        event = TextMessage(message) if isinstance(message, str) else BytesMessage(bytearray(message))
        await self.write(self._connection.send(event))

    async def ping(self, payload=b""):
        await self.write(self._connection.send(Ping(payload)))

    async def send_close(self, code=1000, reason=""):
        await self.write(self._connection.send(CloseConnection(code, reason)))

    async def write(self, data):
        """These bytes, whatever they are."""
        await self.client.send_body(self.stream_id, data, end_stream=False)

    async def end(self):
        """End the client's side of the stream."""
        await self.client.send_data(self.stream_id, end_stream=True)

    async def receive(self):
        while not self._messages:
            await self._read()
        return self._messages.popleft()

    async def receive_ping(self):
        while not self.pings:
            await self._read()
        return self.pings.popleft()

    async def receive_pong(self):
        while not self.pongs:
            await self._read()
        return self.pongs.popleft()

    async def wait_closed(self):
        """What the server closed with, after which it has ended its side. Messages are dropped."""
        while True:
            try:
                await self.receive()
            except WebSocketClosed as closed:
                if closed.code != 1006:
                    assert await self.rest() == b""
                return closed

    async def close(self, code=1000, reason=""):
        """The whole of it: both close frames, and both ends of the stream."""
        await self.send_close(code, reason)
        closed = await self.wait_closed()
        await self.end()
        return closed

    async def rest(self):
        """The bytes that come until the server has ended its side."""
        data = b""
        while piece := await self.client.data(self.stream_id):
            data += piece
        return data

    async def frames(self):
        """The frames that come until the server has ended its side."""
        return parse(await self.rest())

    async def _read(self):
        if self._closed is not None:
            raise WebSocketClosed(*self._closed)
        for event in self._connection.events():
            await self._take(event)
            return
        data = await self.client.data(self.stream_id)
        if not data:
            self._closed = (1006, "")
            raise WebSocketClosed(*self._closed)
        self._connection.receive_data(data)

    async def _take(self, event):
        if isinstance(event, Message):
            self._pieces.append(event.data)
            if event.message_finished:
                self._messages.append(("" if isinstance(event, TextMessage) else b"").join(self._pieces))
                self._pieces = []
        elif isinstance(event, Ping):
            self.pings.append(bytes(event.payload))
            await self._answer(event.response())
        elif isinstance(event, Pong):
            self.pongs.append(bytes(event.payload))
        else:
            assert self._connection.state is not ConnectionState.OPEN, f"the server sent nonsense: {event}"
            self._closed = (int(event.code), event.reason or "")
            await self._answer(event.response())

    async def _answer(self, event):
        states = (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING)
        if self._answers and self._connection.state in states:
            await self.write(self._connection.send(event))


class Session:
    """A connection that is being served, and the HTTP/2 client at its other end."""

    def __init__(self, served, client, *, fails):
        self.served = served
        self.client = client
        self.observer = served.observer
        self.fails = fails

    async def ask(self, path="/", *, fields=(VERSION,), headers=(), protocol="websocket", **options):
        """Ask for a WebSocket, and wait for nothing: the stream's identifier."""
        return await self.client.request(
            "CONNECT", path, [*fields, *headers], protocol=protocol, end_stream=False, **options
        )

    async def open(self, path="/", *, subprotocols=(), deflate=False, headers=(), answers=True, early=b""):
        headers = list(headers)
        if subprotocols:
            headers.append((b"sec-websocket-protocol", ", ".join(subprotocols).encode()))
        if deflate:
            offer = f"permessage-deflate; {PerMessageDeflate().offer()}"
            headers.append((b"sec-websocket-extensions", offer.encode()))
        stream_id = await self.ask(path, headers=headers)
        if early:
            await self.client.send_body(stream_id, early, end_stream=False)
        return await self.opened(stream_id, answers=answers)

    async def opened(self, stream_id, *, answers=True):
        """The second half of `open`: wait until the server has accepted."""
        response = await self.client.head(stream_id)
        assert response.status == 200
        return WebSocket(self.client, stream_id, response, answers=answers)

    async def still_serves(self):
        assert (await self.client.fetch("/plain")).body == b"hello"

    def drain(self):
        self.served.context.draining.set()
        for connection in list(self.served.context.connections):
            connection.drain()


@pytest.fixture
async def connect(serve):
    """Begins to serve an application, which answers hello to plain requests, to an HTTP/2 client: a `Session`.

    Takes also: `h2`, the client's settings; `auto_window`; `fails`, whether the application is to fail.
    """
    sessions = []

    async def begin(application, *, h2=None, auto_window=True, fails=False, **options):
        async def both(scope, receive, send):
            await (application if scope["type"] == "websocket" else hello)(scope, receive, send)

        served = serve(both, **options)
        client = HTTP2Client(served.stream, auto_window=auto_window)
        await client.connect(h2)
        sessions.append(Session(served, client, fails=fails))
        return sessions[-1]

    yield begin
    for session in sessions:
        for failure in session.observer.failures:
            if not session.fails or leaves(failure, AssertionError | pytest.fail.Exception):
                raise failure
        assert bool(session.observer.failures) == session.fails


def leaves(error, kind):
    """What an exception or a group of them has of some kind."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each, kind)]
    return [error] if isinstance(error, kind) else []


def parse(data):
    """A server's frames as (first byte, payload)."""
    frames = []
    while data:
        first, size = data[0], data[1]
        assert size < 126
        assert len(data) >= 2 + size
        frames.append((first, data[2 : 2 + size]))
        data = data[2 + size :]
    return frames


def close_payload(code, reason=""):
    return code.to_bytes(2, "big") + reason.encode()


# Applications


def accepting(handler):
    async def application(scope, receive, send):
        assert await receive() == CONNECT
        await send(ACCEPT)
        await handler(receive, send)

    return application


def before_accept(handler):
    async def application(scope, receive, send):
        assert await receive() == CONNECT
        await handler(receive, send)

    return application


def sleep_for(seconds):
    async def handler(receive, send):
        await trio.sleep(seconds)

    return handler


async def echo(scope, receive, send):
    assert await receive() == CONNECT
    await send(ACCEPT)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def receive_all(receive):
    """Every message, up to and with the first `websocket.disconnect`."""
    messages = []
    while not messages or messages[-1]["type"] != "websocket.disconnect":
        messages.append(await receive())
    return messages


class Log:
    """An application that accepts, takes every message, and keeps them."""

    def __init__(self):
        self.messages = []
        self.done = trio.Event()

    async def __call__(self, scope, receive, send):
        assert await receive() == CONNECT
        await send(ACCEPT)
        self.messages += await receive_all(receive)
        self.done.set()


async def never(scope, receive, send):
    raise AssertionError("called")


def text(data):
    return {"type": "websocket.receive", "text": data}


class TestScope:
    async def test_all_of_it(self, connect):
        scopes = []

        async def application(scope, receive, send):
            scopes.append(scope)
            await send(ACCEPT)

        session = await connect(application)
        await session.open("/a%20b/%C3%A9?q=%20&r", headers=[(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3")])
        (scope,) = scopes
        trigi = scope["extensions"].pop("trigi")
        assert set(trigi) >= {"cancel_scope", "disconnect_grace", "shutting_down"}
        assert scope == {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "2",
            "scheme": "ws",
            "path": "/a b/é",
            "raw_path": b"/a%20b/%C3%A9",
            "query_string": b"q=%20&r",
            "root_path": "",
            "headers": [(b"host", b"localhost"), VERSION, (b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3")],
            "client": None,
            "server": None,
            "subprotocols": [],
            "state": {},
            "extensions": {"websocket.http.response": {}},
        }

    async def test_subprotocols(self, connect):
        scopes = []

        async def application(scope, receive, send):
            scopes.append(scope)
            await send(ACCEPT)

        session = await connect(application)
        await session.open(
            headers=[(b"sec-websocket-protocol", b"one, two"), (b"sec-websocket-protocol", b"three")]
        )
        assert scopes[0]["subprotocols"] == ["one", "two", "three"]

    async def test_endpoints_and_tls_of_the_connection(self, virtual_time):
        scopes = []

        async def application(scope, receive, send):
            scopes.append(scope)
            await send(ACCEPT)

        info = ConnectionInfo(Endpoint("192.0.2.1", 1234), Endpoint("192.0.2.2", 443), {"tls_version": 772})
        ours, theirs = memory_stream_pair()
        context = ServerContext(application, Config())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HTTP2Connection(Transport(theirs, info, 30), context).serve)
            client = HTTP2Client(ours)
            await client.connect()
            stream_id = await client.request(
                "CONNECT", "/", [VERSION], protocol="websocket", end_stream=False
            )
            assert (await client.head(stream_id)).status == 200
            await client.aclose()
        (scope,) = scopes
        assert (scope["client"], scope["server"]) == (("192.0.2.1", 1234), ("192.0.2.2", 443))
        assert scope["scheme"] == "wss"
        assert scope["extensions"]["tls"] == {"tls_version": 772}

    async def test_each_websocket_has_its_own_state(self, connect):
        states = []

        async def application(scope, receive, send):
            scope["state"]["mine"] = scope["path"]
            states.append(scope["state"])
            await echo(scope, receive, send)

        session = await connect(application, state={"shared": 1})
        await session.open("/1")
        await session.open("/2")
        assert states == [{"shared": 1, "mine": "/1"}, {"shared": 1, "mine": "/2"}]

    async def test_the_server_says_that_it_can(self, connect):
        """RFC 8441, 3."""
        session = await connect(echo)
        assert session.client.settings[SettingCode.ENABLE_CONNECT_PROTOCOL] == 1


class TestAccept:
    async def test_200_and_nothing_of_http_1(self, connect):
        """RFC 8441, 5: no key is answered, nothing is upgraded, and a CONNECT has no length."""
        session = await connect(echo, date_header=False, server_header=False)
        websocket = await session.open()
        assert (websocket.response.status, websocket.response.headers) == (200, [])

    async def test_nothing_is_answered_before(self, connect):
        go = trio.Event()

        @before_accept
        async def application(receive, send):
            await go.wait()
            await send(ACCEPT)

        session = await connect(application)
        stream_id = await session.ask()
        with trio.move_on_after(1000) as waiting:
            await session.client.head(stream_id)
        assert waiting.cancelled_caught
        go.set()
        await session.opened(stream_id)

    async def test_a_key_means_nothing(self, connect):
        """It is for HTTP/1.1 (RFC 8441, 5), and is neither asked for nor answered."""
        session = await connect(echo)
        websocket = await session.open(headers=[(b"sec-websocket-key", b"not even one")])
        assert websocket.response.header(b"sec-websocket-accept") is None
        await websocket.send("hello")
        assert await websocket.receive() == "hello"

    async def test_subprotocol(self, connect):
        async def application(scope, receive, send):
            await send({**ACCEPT, "subprotocol": scope["subprotocols"][1]})

        session = await connect(application)
        websocket = await session.open(subprotocols=["one", "two"])
        assert websocket.response.header(b"sec-websocket-protocol") == b"two"

    async def test_headers(self, connect):
        fields = [(b"x-b", b"1"), (b"X-A", b" 2 "), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]

        async def application(scope, receive, send):
            await send({**ACCEPT, "headers": iter([*fields, (b"Server", b"mine")])})

        session = await connect(application)
        headers = (await session.open()).response.headers
        assert headers[:5] == [
            (b"x-b", b"1"),
            (b"x-a", b"2"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"server", b"mine"),
        ]
        assert [name for name, _ in headers[5:]] == [b"date"]

    @pytest.mark.parametrize(
        "name",
        [
            b"connection",
            b"upgrade",
            b"transfer-encoding",
            b"content-length",
            b"sec-websocket-accept",
            b"sec-websocket-extensions",
            b"sec-websocket-protocol",
            b":status",
        ],
    )
    async def test_headers_that_are_not_the_applications(self, connect, name):
        @before_accept
        async def application(receive, send):
            with pytest.raises(InvalidMessage):
                await send({**ACCEPT, "headers": [(name, b"x")]})
            await send(ACCEPT)

        session = await connect(application)
        assert (await session.open()).response.header(name) is None

    async def test_the_exchange_reports_200(self, connect):
        session = await connect(echo)
        websocket = await session.open()
        await websocket.send("12345")
        await websocket.receive()
        await websocket.close()
        (exchange,) = session.observer.exchanges
        assert (exchange.status, exchange.is_websocket, exchange.complete) == (200, True, True)
        assert exchange.bytes_sent == 7

    @pytest.mark.parametrize("setting", [True, False])
    async def test_compression(self, connect, setting):
        session = await connect(echo, websocket_per_message_deflate=setting)
        websocket = await session.open(deflate=True)
        agreed = websocket.response.header(b"sec-websocket-extensions")
        assert (agreed is not None) == setting
        if setting:
            assert agreed.startswith(b"permessage-deflate; ")
        await websocket.send("again and " * 1000)
        assert await websocket.receive() == "again and " * 1000
        sent = session.observer.exchanges or session.served.context.running
        assert (next(iter(sent)).bytes_sent < 1000) == setting

    async def test_frames_that_came_before_the_answer(self, connect):
        early = b"".join(encode_frame(TEXT, b"%d" % i) for i in range(20))
        session = await connect(echo)
        websocket = await session.open(early=early)
        assert [await websocket.receive() for _ in range(20)] == [str(i) for i in range(20)]
        await websocket.send("after")
        assert await websocket.receive() == "after"

    async def test_half_a_frame_that_came_before_the_answer(self, connect):
        frame = encode_frame(TEXT, b"hello")
        session = await connect(echo)
        websocket = await session.open(early=frame[:4])
        await websocket.write(frame[4:])
        assert await websocket.receive() == "hello"

    async def test_more_than_a_window_before_the_answer(self, connect):
        """The client is held up, then nothing of it is lost."""
        go = trio.Event()

        @before_accept
        async def application(receive, send):
            await go.wait()
            await send(ACCEPT)
            message = await receive()
            await send({"type": "websocket.send", "text": str(len(message["bytes"]))})
            await receive()

        session = await connect(application)
        stream_id = await session.ask()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def talk():
                frame = encode_frame(BINARY, bytes(1_000_000))
                await session.client.send_body(stream_id, frame, end_stream=False)

            await trio.sleep(1000)
            assert session.client.send_window(stream_id) == 0
            await session.still_serves()
            go.set()
        websocket = await session.opened(stream_id)
        assert await websocket.receive() == "1000000"
        await websocket.close()

    async def test_accept_cancelled_by_the_application(self, connect):
        """The answer may have left, so the WebSocket is over, and the application learns of it."""
        outcomes = []

        @before_accept
        async def application(receive, send):
            with trio.CancelScope() as scope:
                scope.cancel()
                await send(ACCEPT)
            outcomes.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})
            await send(CLOSE_IT)

        session = await connect(application, disconnect_grace=inf)
        stream_id = await session.ask()
        assert (await session.client.wait_reset(stream_id)).code == ErrorCode.INTERNAL_ERROR
        await session.still_serves()
        assert outcomes == [LOST]


MALFORMED = {
    "END_STREAM": {"end_stream": True},
    "no path": {"path": None},
    "empty path": {"path": ""},
    "no scheme": {"scheme": None},
    "no authority": {"authority": None},
    "another method": {"method": "GET"},
    "connection": {"headers": [VERSION, (b"connection", b"Upgrade")]},
    "upgrade": {"headers": [VERSION, (b"upgrade", b"websocket")]},
}


class TestRefusal:
    @pytest.mark.parametrize("options", MALFORMED.values(), ids=MALFORMED)
    async def test_malformed(self, connect, options):
        """A stream error; the connection lives on."""
        session = await connect(never)
        options = {
            "method": "CONNECT",
            "headers": [VERSION],
            "protocol": "websocket",
            "end_stream": False,
        } | (options)
        stream_id = await session.client.request(**options)
        assert (await session.client.wait_reset(stream_id)).code == ErrorCode.PROTOCOL_ERROR
        await session.still_serves()
        assert len(session.observer.refused) == 1

    async def test_connect_without_a_protocol(self, connect):
        """It is a tunnel that is asked for, or nothing."""
        session = await connect(never)
        client = session.client
        tunnel = await client.request("CONNECT", None, scheme=None, authority="x:1", end_stream=False)
        assert (await client.response(tunnel)).status == 501
        nothing = await client.request("CONNECT", "/", [VERSION], end_stream=False)
        assert (await client.wait_reset(nothing)).code == ErrorCode.PROTOCOL_ERROR
        await session.still_serves()

    async def test_another_protocol(self, connect):
        session = await connect(never)
        stream_id = await session.ask(protocol="connect-udp")
        assert (await session.client.response(stream_id)).status == 501
        await session.still_serves()

    @pytest.mark.parametrize("version", [b"12", b"8", b"13, 8", None])
    async def test_426_for_another_version(self, connect, version):
        """Of what a 426 has, HTTP/2 knows no connection and no upgrade (RFC 9113, 8.2.2)."""
        session = await connect(never)
        fields = [] if version is None else [(b"sec-websocket-version", version)]
        response = await session.client.response(await session.ask(fields=fields))
        assert response.status == 426
        assert response.header(b"sec-websocket-version") == b"13"
        assert response.header(b"upgrade") is response.header(b"connection") is None
        assert len(session.observer.refused) == len(session.observer.ended) == 1
        await session.still_serves()

    @pytest.mark.parametrize(
        "field", [(b"sec-websocket-protocol", b"a b"), (b"sec-websocket-extensions", b"=")], ids=str
    )
    async def test_400(self, connect, field):
        session = await connect(never)
        response = await session.client.response(await session.ask(headers=[field]))
        assert (response.status, response.body) == (400, b"400 Bad Request\n")
        await session.still_serves()

    async def test_403(self, connect):
        received = []

        @before_accept
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 4001, "reason": "no"})
            received.extend([await receive(), await receive()])

        session = await connect(application)
        response = await session.client.response(await session.ask())
        assert (response.status, response.body) == (403, b"403 Forbidden\n")
        await wait_all_tasks_blocked()
        assert received == [LOST] * 2
        assert [(each.status, each.complete) for each in session.observer.ended] == [(403, True)]

    @pytest.mark.parametrize("ends", [True, False])
    async def test_the_streams_end_after_a_403(self, connect, ends):
        """The client has a moment to end its side; else it is told that nobody will read it."""
        session = await connect(before_accept(lambda receive, send: send(CLOSE_IT)))
        stream_id = await session.ask()
        await session.client.response(stream_id)
        if ends:
            await session.client.send_data(stream_id, encode_frame(TEXT, b"too late"), end_stream=True)
            with trio.move_on_after(4):
                await session.client.wait_reset(stream_id)
                pytest.fail("a stream was reset that had ended")
        else:
            began = trio.current_time()
            assert (await session.client.wait_reset(stream_id)).code == ErrorCode.NO_ERROR
            assert trio.current_time() - began == DISCARD_SECONDS

    async def test_a_stream_that_was_refused_makes_room_for_the_next(self, connect):
        session = await connect(
            before_accept(lambda receive, send: send(CLOSE_IT)), h2_max_concurrent_streams=1
        )
        for _ in range(5):
            stream_id = await session.ask()
            assert (await session.client.response(stream_id)).status == 403
            await session.client.send_data(stream_id, end_stream=True)

    async def test_503_past_the_concurrency_limit(self, connect):
        session = await connect(echo, concurrency_limit=1)
        first = await session.open()
        response = await session.client.response(await session.ask())
        assert (response.status, response.header(b"retry-after")) == (503, b"1")
        await first.close()
        await session.still_serves()

    async def test_504_when_the_handshake_takes_too_long(self, connect):
        session = await connect(before_accept(sleep_for(inf)), request_timeout=5)
        response = await session.client.response(await session.ask())
        assert (response.status, trio.current_time()) == (504, 5)

    async def test_request_timeout_is_over_with_the_handshake(self, connect):
        session = await connect(echo, request_timeout=5, websocket_ping_interval=inf)
        websocket = await session.open()
        await trio.sleep(1000)
        await websocket.send("hello")
        assert await websocket.receive() == "hello"

    async def test_application_raises_before_accept(self, connect):
        @before_accept
        async def application(receive, send):
            raise ValueError("mine")

        session = await connect(application, fails=True)
        assert (await session.client.response(await session.ask())).status == 500
        assert [str(each) for each in session.observer.failures] == ["mine"]
        await session.still_serves()

    async def test_application_returns_before_accept(self, connect):
        session = await connect(before_accept(sleep_for(1)), fails=True)
        assert (await session.client.response(await session.ask())).status == 500
        (error,) = session.observer.failures
        assert isinstance(error, ApplicationError)
        await session.still_serves()

    @pytest.mark.parametrize("leave", ["reset", "aclose"])
    async def test_client_that_leaves_before_the_answer(self, connect, leave):
        """1006, and the grace; what it is told then goes nowhere."""
        outcomes = []

        @before_accept
        async def application(receive, send):
            outcomes.append((await receive(), trio.current_time()))
            with pytest.raises(ClientDisconnected):
                await send(ACCEPT)
            await send(CLOSE_IT)
            try:
                await trio.sleep_forever()
            finally:
                outcomes.append(trio.current_time())

        session = await connect(application, disconnect_grace=5)
        stream_id = await session.ask()
        await trio.sleep(3)
        if leave == "reset":
            await session.client.reset(stream_id)
            await session.still_serves()
        else:
            await session.client.aclose()
        await trio.sleep(10)
        assert outcomes == [(LOST, 3), 8]
        assert [each.complete for each in session.observer.ended if each.target == b"/"] == [False]


class TestDenial:
    """The extension websocket.http.response."""

    async def test_response_with_status_headers_and_body(self, connect):
        received = []

        @before_accept
        async def application(receive, send):
            fields = [(b"x-b", b"1"), (b"X-A", b"2"), (b"connection", b"close"), (b"content-length", b"4")]
            await send({**DENY, "headers": iter(fields)})
            await send({**DENIAL_BODY, "body": b"nope"})
            received.append(await receive())

        session = await connect(application)
        response = await session.client.response(await session.ask())
        assert (response.status, response.body) == (401, b"nope")
        assert response.headers[:3] == [(b"x-b", b"1"), (b"x-a", b"2"), (b"content-length", b"4")]
        assert received == [LOST]
        await session.still_serves()  # it is a stream that has ended, not the connection

    @pytest.mark.parametrize("status", [200, 204, 299])
    async def test_a_status_that_would_accept_is_none(self, connect, status):
        """RFC 8441, 5: any of 200 to 299 accepts; the state is as it was."""

        @before_accept
        async def application(receive, send):
            with pytest.raises(InvalidMessage, match="accepts"):
                await send({**DENY, "status": status})
            await send({**DENY, "status": 300})
            await send(DENIAL_BODY)

        session = await connect(application)
        assert (await session.client.response(await session.ask())).status == 300

    async def test_parts_of_the_body_are_flushed(self, connect):
        turn = trio.testing.Sequencer()

        @before_accept
        async def application(receive, send):
            await send(DENY)
            async with turn(0):
                await send({**DENIAL_BODY, "body": b"one", "more_body": True})
            async with turn(2):
                await send({**DENIAL_BODY, "body": b"two", "more_body": True})
            async with turn(4):
                await send(DENIAL_BODY)

        session = await connect(application)
        stream_id = await session.ask()
        async with turn(1):
            assert await session.client.data(stream_id) == b"one"
        async with turn(3):
            assert await session.client.data(stream_id) == b"two"
        assert await session.client.data(stream_id) == b""

    async def test_only_the_body_may_follow(self, connect):
        @before_accept
        async def application(receive, send):
            await send(DENY)
            for message in (ACCEPT, CLOSE_IT, DENY):
                with pytest.raises(UnexpectedMessage, match="DENIAL_BODY"):
                    await send(message)
            await send({**DENIAL_BODY, "body": b"nope"})

        session = await connect(application)
        assert (await session.client.response(await session.ask())).body == b"nope"

    @pytest.mark.parametrize("how", ["raises", "returns", "too long", "too short"])
    async def test_cut_off(self, connect, how):
        @before_accept
        async def application(receive, send):
            headers = [(b"content-length", b"10")] if how.startswith("too") else []
            await send({**DENY, "headers": headers})
            await send({**DENIAL_BODY, "body": b"begun", "more_body": True})
            if how == "raises":
                raise ValueError
            if how.startswith("too"):
                await send({**DENIAL_BODY, "body": b"x" * (6 if how == "too long" else 4)})

        session = await connect(application, fails=True)
        stream_id = await session.ask()
        assert (await session.client.wait_reset(stream_id)).code == ErrorCode.INTERNAL_ERROR
        assert [each.complete for each in session.observer.ended] == [False]
        await session.still_serves()

    async def test_client_leaves_within_the_body(self, connect):
        told = []

        @before_accept
        async def application(receive, send):
            await send(DENY)
            await send({**DENIAL_BODY, "body": b"begun", "more_body": True})
            told.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send(DENIAL_BODY)

        session = await connect(application)
        stream_id = await session.ask()
        assert await session.client.data(stream_id) == b"begun"
        await session.client.reset(stream_id)
        await session.still_serves()
        assert told == [LOST]


class TestMessages:
    @pytest.mark.parametrize("deflate", [False, True])
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 16384, 65535, 65536, 1024 * 1024])
    async def test_sizes_both_ways(self, connect, size, deflate):
        session = await connect(echo)
        websocket = await session.open(deflate=deflate)
        for message in ("é" * (size // 2) + "e" * (size % 2), os.urandom(size)):
            await websocket.send(message)
            assert await websocket.receive() == message
        assert (await websocket.close()).code == 1000

    @pytest.mark.parametrize("padding", [None, 0, 255])
    async def test_cut_at_every_byte(self, connect, padding):
        """DATA frames are no borders of anything; padding is none of the WebSocket's."""
        log = Log()
        session = await connect(log)
        websocket = await session.open()
        frames = [
            encode_frame(TEXT, "é".encode(), fin=False),
            encode_frame(CONTINUATION, b"nd"),
            encode_frame(PING, b"?"),
            encode_frame(BINARY, bytes(200)),
            encode_frame(CLOSE, close_payload(4001, "bye")),
        ]
        for byte in b"".join(frames):
            await session.client.send_data(websocket.stream_id, bytes([byte]), padding=padding)
        assert await websocket.frames() == [(0x80 | PONG, b"?"), (0x80 | CLOSE, close_payload(4001))]
        assert log.messages == [
            text("énd"),
            {"type": "websocket.receive", "bytes": bytes(200)},
            {**LOST, "code": 4001, "reason": "bye"},
        ]

    async def test_cut_in_two_at_every_place(self, connect):
        data = encode_frame(TEXT, b"hello") + encode_frame(BINARY, b"x" * 200)
        session = await connect(echo)
        websocket = await session.open()
        for position in range(len(data) + 1):
            for piece in (data[:position], data[position:]):
                await session.client.send_data(websocket.stream_id, piece)
            assert [await websocket.receive(), await websocket.receive()] == ["hello", b"x" * 200]
        assert (await websocket.close()).code == 1000

    async def test_300_messages_in_one_frame(self, connect):
        """More than the queue takes: the reader waits, and loses none."""
        log = Log()
        numbers = [str(i) for i in range(300)]
        session = await connect(log, websocket_queue_size=3)
        websocket = await session.open()
        data = b"".join(encode_frame(TEXT, each.encode()) for each in numbers)
        await session.client.send_data(websocket.stream_id, data)
        await websocket.close(1001)
        await log.done.wait()
        assert log.messages == [*map(text, numbers), {**LOST, "code": 1001}]

    @pytest.mark.parametrize("deflate", [False, True])
    async def test_larger_than_every_window(self, connect, deflate):
        """The client gives its windows of 100 bytes back as it reads, the server its own as the application takes."""
        message = os.urandom(300_000)
        session = await connect(echo, h2={SettingCode.INITIAL_WINDOW_SIZE: 1000}, h2_stream_window=1000)
        websocket = await session.open(deflate=deflate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.send, message)
            assert await websocket.receive() == message
        assert (await websocket.close()).code == 1000

    async def test_order_of_300_messages_both_ways(self, connect):
        @accepting
        async def application(receive, send):
            for i in range(300):
                await send({"type": "websocket.send", "text": str(i)})
            while (message := await receive())["type"] == "websocket.receive":
                await send({**message, "type": "websocket.send"})

        numbers = [str(i) for i in range(300)]
        session = await connect(application)
        websocket = await session.open()
        assert [await websocket.receive() for _ in numbers] == numbers
        for each in numbers:
            await websocket.send(each)
        assert [await websocket.receive() for _ in numbers] == numbers

    async def test_send_and_receive_at_once(self, connect):
        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def talk():
                    for i in range(50):
                        await send({"type": "websocket.send", "text": f"tick {i}"})
                        await trio.sleep(1)

                while (message := await receive())["type"] == "websocket.receive":
                    await send({"type": "websocket.send", "text": f"got {message['text']}"})

        session = await connect(application, websocket_ping_interval=inf)
        websocket = await session.open()
        heard = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def talk():
                for i in range(20):
                    await websocket.send(str(i))
                    await trio.sleep(2)

            while len(heard) < 70:
                heard.append(await websocket.receive())
        await websocket.close()
        assert [each for each in heard if each.startswith("tick")] == [f"tick {i}" for i in range(50)]
        assert [each for each in heard if each.startswith("got")] == [f"got {i}" for i in range(20)]

    async def test_three_tasks_send_at_once(self, connect):
        """Every message arrives whole, and in its task's order, through a window that is smaller than one."""

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:
                for name in "abc":

                    @nursery.start_soon
                    async def talk(name=name):
                        for i in range(20):
                            await send({"type": "websocket.send", "text": f"{name}{i}" + 500 * name})

        session = await connect(application, h2={SettingCode.INITIAL_WINDOW_SIZE: 250})
        websocket = await session.open()
        heard = [await websocket.receive() for _ in range(60)]
        assert (await websocket.wait_closed()).code == 1000
        for name in "abc":
            mine = [each for each in heard if each.startswith(name)]
            assert mine == [f"{name}{i}" + 500 * name for i in range(20)]

    async def test_a_loop_of_sends_lets_others_run(self, connect):
        beats = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def beat():
                    while True:
                        beats.append(1)
                        await trio.lowlevel.checkpoint()

                for _ in range(400):
                    await send({"type": "websocket.send", "text": "x"})
                nursery.cancel_scope.cancel()

        session = await connect(application)
        assert (await (await session.open()).wait_closed()).code == 1000
        assert len(beats) >= 400 // PIECES_AT_ONCE

    async def test_a_client_that_gives_its_windows_back_for_every_message(self, connect):
        """Frames sent to it win new ones: also those that it has answered only when it came to read them."""

        @accepting
        async def application(receive, send):
            for _ in range(5000):
                await send({"type": "websocket.send", "text": "x"})
            await receive()

        session = await connect(application)
        websocket = await session.open()
        await trio.sleep(1)
        for _ in range(5000):
            assert await websocket.receive() == "x"
        assert (await websocket.close()).code == 1000

    async def test_a_body_limit_is_none_of_a_websocket(self, connect):
        """Nor is its timeout: what counts is the size of a message."""
        session = await connect(echo, body_size_limit=1000, body_timeout=1, websocket_ping_interval=inf)
        websocket = await session.open()
        for _ in range(5):
            await websocket.send("x" * 500)
            assert await websocket.receive() == "x" * 500
            await trio.sleep(10)
        assert (await websocket.close()).code == 1000

    async def test_a_client_that_expects_100_continue(self, connect):
        session = await connect(echo)
        websocket = await session.open(headers=[(b"expect", b"100-continue")])
        await websocket.send("hello")
        assert await websocket.receive() == "hello"
        assert websocket.response.informational == []


class TestKeepAlive:
    async def test_pings_are_answered_by_both(self, connect):
        session = await connect(echo, websocket_ping_interval=1, websocket_ping_timeout=1)
        websocket = await session.open()
        for seconds in range(1, 101):
            assert await websocket.receive_ping() == b""
            assert trio.current_time() == seconds
        await websocket.ping(b"you?")
        assert await websocket.receive_pong() == b"you?"
        assert (await websocket.close()).code == 1000

    async def test_a_client_that_answers_no_ping(self, connect):
        """It is given up, but only on this stream: HTTP/2's own pings are another matter."""
        told = []

        @accepting
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})

        session = await connect(application, websocket_ping_interval=20, websocket_ping_timeout=7)
        silent = await session.open(answers=False)
        closed = await silent.wait_closed()
        assert (closed.code, trio.current_time()) == (1006, 27)
        await session.still_serves()
        assert told == [(LOST, 27)]
        assert [each.complete for each in session.observer.ended if each.target == b"/"] == [False]

    async def test_an_application_that_is_behind_is_no_dead_peer(self, connect):
        log = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1000)
            log.extend(await receive_all(receive))

        session = await connect(
            application, websocket_queue_size=2, websocket_ping_interval=20, websocket_ping_timeout=20
        )
        websocket = await session.open()
        for i in range(200):
            await websocket.send(str(i))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.wait_closed)
            await trio.sleep(1100)
            await websocket.send_close(4001)
        assert log == [*(text(str(i)) for i in range(200)), {**LOST, "code": 4001}]

    async def test_the_connection_is_not_idle(self, connect):
        session = await connect(echo, keep_alive_timeout=5, websocket_ping_interval=inf)
        websocket = await session.open()
        await trio.sleep(1000)
        await websocket.close()
        began = trio.current_time()
        await session.client.wait_closed()
        assert trio.current_time() - began == 5


class TestClosing:
    @pytest.mark.parametrize(
        ("code", "reason"), [(1000, ""), (1001, "going"), (3000, "x"), (4001, "é" * 61), (4999, "")]
    )
    async def test_by_the_client(self, connect, code, reason):
        """Both are told; the server ends the stream without waiting for the client to do so."""
        log = Log()
        session = await connect(log)
        websocket = await session.open()
        await websocket.send_close(code, reason)
        assert await websocket.frames() == [(0x80 | CLOSE, close_payload(code))]
        assert log.messages == [{"type": "websocket.disconnect", "code": code, "reason": reason}]
        assert [each.complete for each in session.observer.ended] == [True]
        await websocket.end()
        await session.still_serves()

    async def test_by_the_client_without_a_code(self, connect):
        log = Log()
        session = await connect(log)
        websocket = await session.open()
        await websocket.write(encode_frame(CLOSE))
        assert await websocket.frames() == [(0x80 | CLOSE, b"")]
        assert log.messages == [{**LOST, "code": 1005}]

    async def test_by_the_client_together_with_the_end_of_the_stream(self, connect):
        """The close frame counts, with whatever came before; it is answered."""
        log = Log()
        session = await connect(log)
        websocket = await session.open()
        data = encode_frame(TEXT, b"one") + encode_frame(CLOSE, close_payload(4001, "bye"))
        await session.client.send_data(websocket.stream_id, data, end_stream=True)
        assert await websocket.frames() == [(0x80 | CLOSE, close_payload(4001))]
        await log.done.wait()
        assert log.messages == [text("one"), {"type": "websocket.disconnect", "code": 4001, "reason": "bye"}]
        assert [each.complete for each in session.observer.ended] == [True]

    @pytest.mark.parametrize(
        ("message", "code", "reason"),
        [
            ({}, 1000, ""),
            ({"code": 1001, "reason": None}, 1001, ""),
            ({"code": 4001, "reason": "bye"}, 4001, "bye"),
            ({"code": 1011, "reason": "é" * 100}, 1011, "é" * 61),
        ],
    )
    async def test_by_the_application(self, connect, message, code, reason):
        log = []

        @accepting
        async def application(receive, send):
            await send({**CLOSE_IT, **message})
            log.extend([await receive(), await receive()])

        session = await connect(application)
        websocket = await session.open()
        closed = await websocket.wait_closed()
        assert (closed.code, closed.reason) == (code, reason)
        await websocket.end()
        await session.still_serves()
        told = {"type": "websocket.disconnect", "code": code, "reason": message.get("reason") or ""}
        assert log == [told, told]
        assert session.observer.ended[0].complete

    async def test_the_end_of_the_stream_waits_for_the_clients_close_frame(self, connect):
        """Not a byte more, and no END_STREAM, before the closing handshake is over."""
        session = await connect(accepting(lambda receive, send: send(CLOSE_IT)))
        websocket = await session.open(answers=False)
        frame = await session.client.frame(FrameType.DATA)
        assert (frame.flags, parse(frame.payload)) == (0, [(0x80 | CLOSE, close_payload(1000))])
        with trio.move_on_after(9) as waiting:
            await session.client.frame()
        assert waiting.cancelled_caught
        await websocket.send_close()
        frame = await session.client.frame(FrameType.DATA)
        assert (frame.flags, frame.payload) == (Flag.END_STREAM, b"")

    @pytest.mark.parametrize("ends", [True, False])
    async def test_a_client_that_does_not_end_its_side(self, connect, ends):
        """It has a moment for that; then it is told that nobody reads, and that nothing was wrong."""
        session = await connect(echo)
        websocket = await session.open()
        await websocket.send_close()
        await websocket.wait_closed()
        if ends:
            await websocket.end()
            with trio.move_on_after(4):
                await session.client.wait_reset(websocket.stream_id)
                pytest.fail("a stream was reset that had ended")
        else:
            began = trio.current_time()
            assert (await session.client.wait_reset(websocket.stream_id)).code == ErrorCode.NO_ERROR
            assert trio.current_time() - began == DISCARD_SECONDS
        await session.still_serves()

    async def test_what_comes_after_the_close_is_dropped(self, connect):
        session = await connect(echo)
        websocket = await session.open()
        await websocket.send_close()
        await websocket.wait_closed()
        for _ in range(3):
            await session.client.send_data(websocket.stream_id, encode_frame(TEXT, b"and another thing"))
            await session.still_serves()
        await websocket.end()
        await session.still_serves()

    async def test_a_websocket_that_was_closed_makes_room_for_the_next(self, connect):
        session = await connect(echo, h2_max_concurrent_streams=1)
        for _ in range(5):
            websocket = await session.open()
            await websocket.close()

    @pytest.mark.parametrize("answer", [4003, None])
    async def test_the_applications_code_stands_whatever_the_client_answers(self, connect, answer):
        outcomes = []

        @accepting
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 4002, "reason": "mine"})
            outcomes.append(await receive())
            await trio.sleep(100)
            outcomes.append("not cancelled")

        session = await connect(application)
        websocket = await session.open(answers=False)
        await websocket.write(encode_frame(CLOSE, b"" if answer is None else close_payload(answer)))
        await trio.sleep(200)
        assert outcomes[-1] == "not cancelled"
        assert outcomes[0]["code"] in (4002, answer or 1005)

    async def test_close_timeout(self, connect):
        """A client that never answers the close frame: the stream ends, the connection does not."""
        session = await connect(accepting(lambda receive, send: send(CLOSE_IT)), websocket_close_timeout=7)
        websocket = await session.open(answers=False)
        assert await websocket.frames() == [(0x80 | CLOSE, close_payload(1000))]
        assert trio.current_time() == 7
        assert (await session.client.wait_reset(websocket.stream_id)).code == ErrorCode.NO_ERROR
        assert trio.current_time() == 7 + DISCARD_SECONDS
        await session.still_serves()

    async def test_close_timeout_of_a_client_that_keeps_talking(self, connect):
        session = await connect(accepting(lambda receive, send: send(CLOSE_IT)), websocket_close_timeout=7)
        websocket = await session.open(answers=False)
        with suppress(StreamReset), trio.fail_after(100):
            while True:
                await websocket.write(encode_frame(TEXT, b"and another thing" * 1000))
                with trio.move_on_after(0.5):
                    await session.client.wait_reset(websocket.stream_id)
                    break
        assert trio.current_time() <= 7 + DISCARD_SECONDS + 1
        await session.still_serves()

    async def test_close_frame_that_nobody_reads(self, connect):
        """It waits behind a message that has no window, and not for ever."""
        outcomes = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def talk():
                    with pytest.raises(ClientDisconnected):
                        await send({"type": "websocket.send", "bytes": bytes(10_000)})

                await wait_all_tasks_blocked()
                with pytest.raises(ClientDisconnected):
                    await send(CLOSE_IT)
                outcomes.append(trio.current_time())

        session = await connect(
            application,
            auto_window=False,
            h2={SettingCode.INITIAL_WINDOW_SIZE: 100},
            websocket_close_timeout=7,
        )
        websocket = await session.open()
        assert (await session.client.wait_reset(websocket.stream_id)).code == ErrorCode.CANCEL
        assert 7 <= outcomes[0] <= 7 + CLOSE_SECONDS
        assert [each.complete for each in session.observer.ended] == [False]

    async def test_application_returns(self, connect):
        session = await connect(accepting(sleep_for(1)))
        websocket = await session.open()
        assert (await websocket.wait_closed()).code == 1000
        await websocket.end()
        await session.still_serves()

    async def test_application_raises(self, connect):
        """1011, logged once; the others live on."""

        @accepting
        async def application(receive, send):
            raise ValueError("mine")

        session = await connect(application, fails=True)
        websocket = await session.open()
        closed = await websocket.wait_closed()
        assert (closed.code, closed.reason) == (1011, "")
        assert [str(each) for each in session.observer.failures] == ["mine"]
        await session.still_serves()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    async def test_exceptions_that_are_no_errors_end_this_websocket_only(self, connect, error):
        async def application(scope, receive, send):
            if scope["path"] == "/fails":
                await send(ACCEPT)
                raise error
            await echo(scope, receive, send)

        session = await connect(application, fails=True)
        other = await session.open()
        websocket = await session.open("/fails")
        assert (await websocket.wait_closed()).code == 1011
        await other.send("hello")
        assert await other.receive() == "hello"

    async def test_both_close_at_once(self, connect):
        """The application's close frame waits behind a message when the client's comes: it still gets its turn."""
        outcomes = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, {"type": "websocket.send", "bytes": bytes(100)})
                await trio.sleep(1)
                nursery.start_soon(send, {**CLOSE_IT, "code": 4002})
            outcomes.append(await receive())

        session = await connect(application, auto_window=False, h2={SettingCode.INITIAL_WINDOW_SIZE: 10})
        websocket = await session.open()
        await trio.sleep(1.5)
        await websocket.send_close(4001)
        await trio.sleep(0.1)
        await session.client.window_update(websocket.stream_id, 1000)
        assert await websocket.frames() == [(0x82, bytes(100)), (0x88, close_payload(4002))]
        assert outcomes == [{**LOST, "code": 4002}]
        assert [each.complete for each in session.observer.ended] == [True]


class TestProtocolErrors:
    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            (encode_frame(TEXT, b"\xff"), 1007),
            (encode_frame(TEXT, b"x" * 1001), 1009),
            (encode_frame(TEXT, b"x" * 999, fin=False) + encode_frame(CONTINUATION, b"yy"), 1009),
            (encode_frame(TEXT, fin=False) + encode_frame(CONTINUATION, fin=False) * 4, 1009),
            (encode_frame(TEXT, b"x", masked=False), 1002),
            (encode_frame(3, b"x"), 1002),
        ],
    )
    async def test_both_sides_are_told(self, connect, bad, code):
        """It is an error of the WebSocket, not of the stream, and not of the connection."""
        log = Log()
        session = await connect(log, websocket_message_size_limit=1000, websocket_frame_count_limit=4)
        websocket = await session.open()
        await websocket.write(encode_frame(TEXT, b"before") + bad + encode_frame(TEXT, b"after"))
        ((first, payload),) = await websocket.frames()
        assert (first, int.from_bytes(payload[:2], "big")) == (0x88, code)
        assert log.messages[0] == text("before")
        assert log.messages[1:] == [{**LOST, "code": code, "reason": payload[2:].decode()}]
        await session.still_serves()

    @pytest.mark.parametrize(
        ("opcode", "payload", "code"),
        [(3, bytes(500_000), 1002), (TEXT, b"\xff" * 500_000, 1007), (BINARY, bytes(500_001), 1009)],
    )
    async def test_client_in_the_middle_of_a_message_can_read_why(self, connect, opcode, payload, code):
        """Then its stream is reset, and the rest of the message is not wanted."""
        session = await connect(Log(), websocket_message_size_limit=500_000)
        websocket = await session.open(answers=False)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def talk():
                with suppress(StreamReset):
                    await websocket.write(encode_frame(opcode, payload))

            assert (await websocket.wait_closed()).code == code
        assert (await session.client.wait_reset(websocket.stream_id)).code == ErrorCode.NO_ERROR
        await session.still_serves()

    async def test_too_big_only_when_inflated(self, connect):
        log = Log()
        session = await connect(log, websocket_message_size_limit=1000)
        websocket = await session.open(deflate=True)
        await websocket.send("x" * 1000)
        await websocket.send("x" * 1001)
        assert (await websocket.wait_closed()).code == 1009
        assert [each.get("code") for each in log.messages] == [None, 1009]

    async def test_trailers_end_the_stream(self, connect):
        """There is nothing that they could say."""
        log = Log()
        session = await connect(log)
        websocket = await session.open()
        await websocket.write(encode_frame(TEXT, b"one"))
        await session.client.send_headers(websocket.stream_id, [(b"x-late", b"1")], end_stream=True)
        await log.done.wait()
        assert log.messages == [text("one"), LOST]
        await session.still_serves()

    async def test_more_than_the_window(self, connect):
        """That is an error of the whole connection, whatever the stream carries."""
        log = Log()
        session = await connect(log, h2_stream_window=100)
        websocket = await session.open()
        await session.client.send_data(websocket.stream_id, bytes(101))
        assert (await session.client.wait_closed()).code == ErrorCode.FLOW_CONTROL_ERROR
        await log.done.wait()
        assert log.messages == [LOST]


class TestDisconnect:
    async def test_a_reset_is_the_loss_of_one(self, connect):
        """At once, for ever, and of that one alone."""
        told = {}

        async def application(scope, receive, send):
            assert await receive() == CONNECT
            await send(ACCEPT)
            told[scope["path"]] = [await receive(), await receive(), trio.current_time()]
            if told[scope["path"]][0] == LOST:
                with pytest.raises(ClientDisconnected):
                    await send({"type": "websocket.send", "text": "x"})
                await send(CLOSE_IT)

        session = await connect(application)
        one, two = await session.open("/one"), await session.open("/two")
        await trio.sleep(3)
        await session.client.reset(one.stream_id)
        await session.still_serves()
        assert told == {"/one": [LOST, LOST, 3]}
        await two.send("still")
        await two.send("here")
        assert (await two.wait_closed()).code == 1000
        assert told["/two"] == [text("still"), text("here"), 3]
        complete = {each.target: each.complete for each in session.observer.ended}
        assert (complete[b"/one"], complete[b"/two"]) == (False, True)

    @pytest.mark.parametrize("leave", ["close", "reset", "goaway"])
    async def test_the_loss_of_the_connection_is_that_of_all(self, connect, leave):
        told = []

        @accepting
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})

        session = await connect(application, pair=socket_like_pair)
        for _ in range(3):
            await session.open()
        await trio.sleep(3)
        if leave == "reset":
            session.served.stream.reset()
        else:
            if leave == "goaway":
                await session.client.send_goaway()
            await session.client.aclose()
        await session.served.done.wait()
        assert told == [(LOST, 3)] * 3
        assert [each.complete for each in session.observer.ended] == [False] * 3

    async def test_a_goaway_alone_ends_no_websocket(self, connect):
        session = await connect(echo)
        websocket = await session.open()
        await session.client.send_goaway()
        await trio.sleep(10)
        await websocket.send("hello")
        assert await websocket.receive() == "hello"
        assert (await websocket.close()).code == 1000
        await session.client.wait_closed()
        assert trio.current_time() == 10

    async def test_the_end_of_the_stream_without_a_close_frame(self, connect):
        """As the loss of a connection: 1006, and what came before counts."""
        log = Log()
        session = await connect(log)
        websocket = await session.open()
        await session.client.send_data(websocket.stream_id, encode_frame(TEXT, b"one"), end_stream=True)
        assert (await websocket.wait_closed()).code == 1006
        assert log.messages == [text("one"), LOST]
        assert [each.complete for each in session.observer.ended] == [False]
        await session.still_serves()

    async def test_the_end_of_the_stream_in_the_middle_of_a_frame(self, connect):
        log = Log()
        session = await connect(log)
        websocket = await session.open()
        data = encode_frame(TEXT, b"one") + encode_frame(TEXT, b"half")[:-1]
        await session.client.send_data(websocket.stream_id, data, end_stream=True)
        assert (await websocket.wait_closed()).code == 1006
        assert log.messages == [text("one"), LOST]

    @pytest.mark.parametrize("leave", ["reset", "end", "close", "aclose"])
    async def test_grace(self, connect, leave):
        """Cancelled that long after the disconnect; its cleanup runs."""
        times = []

        @accepting
        async def application(receive, send):
            try:
                await trio.sleep_forever()
            finally:
                times.append(trio.current_time())
                with trio.move_on_after(3, shield=True):
                    await trio.sleep(2)
                    times.append(trio.current_time())

        session = await connect(application, disconnect_grace=4)
        websocket = await session.open()
        await trio.sleep(1)
        await {
            "reset": lambda: session.client.reset(websocket.stream_id),
            "end": websocket.end,
            "close": websocket.close,
            "aclose": session.client.aclose,
        }[leave]()
        await trio.sleep(100)
        assert times == [5, 7]
        assert session.served.context.running == set()

    async def test_grace_set_by_the_application(self, connect):
        times = []

        async def application(scope, receive, send):
            scope["extensions"]["trigi"]["disconnect_grace"] = 77
            await send(ACCEPT)
            try:
                await trio.sleep_forever()
            finally:
                times.append(trio.current_time())

        session = await connect(application)
        websocket = await session.open()
        await session.client.reset(websocket.stream_id)
        await trio.sleep(100)
        assert times == [77]

    async def test_a_stream_that_was_reset_counts_until_its_application_has_ended(self, connect):
        session = await connect(
            accepting(sleep_for(inf)), h2_max_concurrent_streams=1, disconnect_grace=5, keep_alive_timeout=inf
        )
        websocket = await session.open()
        await session.client.reset(websocket.stream_id)
        refused = await session.ask()
        assert (await session.client.wait_reset(refused)).code == ErrorCode.REFUSED_STREAM
        await trio.sleep(5.5)
        await session.open()

    async def test_a_send_that_waits_is_told_at_once(self, connect):
        order = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def listen():
                    order.append(await receive())

                with pytest.raises(ClientDisconnected):
                    await send({"type": "websocket.send", "bytes": bytes(100_000)})
                order.append(("send has ended", trio.current_time()))

        session = await connect(application, auto_window=False)
        websocket = await session.open()
        await trio.sleep(3)
        await session.client.reset(websocket.stream_id)
        await session.client.window_update(0, 2**20)
        await session.still_serves()
        assert order == [("send has ended", 3), LOST]

    async def test_messages_before_a_loss_that_nobody_has_taken_yet(self, connect):
        """What was read is not taken back by a reset."""
        log = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1)
            log.extend(await receive_all(receive))

        session = await connect(application)
        websocket = await session.open()
        for i in range(5):
            await websocket.send(str(i))
        await wait_all_tasks_blocked()
        await session.client.reset(websocket.stream_id)
        await trio.sleep(2)
        assert log == [*(text(str(i)) for i in range(5)), LOST]

    async def test_a_client_that_closes_its_sending_side(self, connect):
        """With `half_close` a request that is whole would be answered. A WebSocket is never whole."""
        log = Log()
        session = await connect(log, pair=socket_like_pair, half_close=True, websocket_ping_interval=inf)
        await session.open()
        await session.client.stream.send_eof()
        with trio.move_on_after(100):
            await log.done.wait()
        assert log.messages == [LOST]


class TestBackpressure:
    async def test_messages_that_nobody_takes(self, connect):
        """The window is not given back: not more is held than the queue, one read, and a window."""
        go = trio.Event()
        log = []

        @accepting
        async def application(receive, send):
            await go.wait()
            log.extend(await receive_all(receive))

        session = await connect(application, websocket_queue_size=4, websocket_ping_interval=inf)
        websocket = await session.open()
        sent = []

        async def talk():
            for _ in range(100):
                await websocket.send(bytes(10_000))
                sent.append(10_000)
            await websocket.send_close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await trio.sleep(1000)
            assert sum(sent) <= 5 * 10_000 + READ_SIZE + WINDOW
            assert session.client.send_window(websocket.stream_id) < 10_000
            # Others may send: their streams have their own windows, and the connection's is given back.
            stream_id = await session.client.request("POST", "/plain", end_stream=False)
            await session.client.send_body(stream_id, bytes(50_000))
            assert (await session.client.response(stream_id)).body == b"hello"
            go.set()
        assert (await websocket.wait_closed()).code == 1000
        assert len(log) == 101

    async def test_more_stalled_websockets_than_the_connections_window_has(self, connect):
        """What none of them takes does not stop the one that does."""

        async def application(scope, receive, send):
            if scope["path"] == "/lively":
                await echo(scope, receive, send)
                return
            await send(ACCEPT)
            await trio.sleep_forever()

        session = await connect(application, websocket_queue_size=1, websocket_ping_interval=inf)
        for _ in range(30):
            websocket = await session.open("/stalled")
            with trio.move_on_after(1):
                await websocket.send(os.urandom(1_000_000))
        lively = await session.open("/lively")
        for _ in range(3):
            message = os.urandom(1_000_000)
            await lively.send(message)
            assert await lively.receive() == message

    async def test_send_waits_for_a_client_that_gives_no_window(self, connect):
        """And goes on when it does."""
        progress = []

        @accepting
        async def application(receive, send):
            for i in range(10):
                await send({"type": "websocket.send", "bytes": bytes(10_000)})
                progress.append(i)

        session = await connect(
            application,
            auto_window=False,
            h2={SettingCode.INITIAL_WINDOW_SIZE: 15_000},
            websocket_ping_interval=inf,
        )
        websocket = await session.open()
        await trio.sleep(20)
        assert progress == [0]
        await session.client.window_update(websocket.stream_id, 10_000)
        await trio.sleep(1)
        assert progress == [0, 1]
        await session.client.window_update(websocket.stream_id, 100_000)
        await session.client.window_update(0, 100_000)
        for _ in range(10):
            assert await websocket.receive() == bytes(10_000)
        assert (await websocket.wait_closed()).code == 1000

    async def test_side_by_side_with_one_that_is_stalled(self, connect):
        """Two WebSockets and plain requests on one connection: one client gives no window to one of them."""

        async def application(scope, receive, send):
            assert await receive() == CONNECT
            await send(ACCEPT)
            if scope["path"] == "/stalled":
                await send({"type": "websocket.send", "text": "s" * 5000})
            while (message := await receive())["type"] == "websocket.receive":
                await send({**message, "type": "websocket.send"})

        session = await connect(
            application,
            auto_window=False,
            h2={SettingCode.INITIAL_WINDOW_SIZE: 1000},
            websocket_ping_interval=inf,
        )
        client = session.client
        stalled, lively = await session.open("/stalled"), await session.open("/lively")
        for _ in range(10):
            message = "x" * 900
            await lively.send(message)
            assert await lively.receive() == message
            await client.window_update(lively.stream_id, 904)
            await session.still_serves()
            await trio.sleep(1)
        await client.window_update(stalled.stream_id, 10_000)
        assert await stalled.receive() == "s" * 5000
        for websocket in (stalled, lively):
            assert (await websocket.close(4001)).code == 4001
        await session.still_serves()

    async def test_write_timeout(self, connect):
        """A WebSocket on which the client takes nothing is given up, the others are not."""
        outcomes = []

        async def application(scope, receive, send):
            assert await receive() == CONNECT
            await send(ACCEPT)
            if scope["path"] == "/stalled":
                with pytest.raises(ClientDisconnected):
                    await send({"type": "websocket.send", "bytes": bytes(10_000)})
                outcomes.extend([trio.current_time(), await receive()])
                with pytest.raises(ClientDisconnected):
                    await send({"type": "websocket.send", "text": "x"})
                await send(CLOSE_IT)
                return
            while (message := await receive())["type"] == "websocket.receive":
                await send({**message, "type": "websocket.send"})

        session = await connect(
            application,
            auto_window=False,
            h2={SettingCode.INITIAL_WINDOW_SIZE: 1000},
            write_timeout=9,
            websocket_ping_interval=inf,
        )
        lively, stalled = await session.open("/lively"), await session.open("/stalled")
        assert (await session.client.wait_reset(stalled.stream_id)).code == ErrorCode.INTERNAL_ERROR
        assert outcomes == [9, LOST]
        await lively.send("hello")
        assert await lively.receive() == "hello"
        assert (await lively.close()).code == 1000
        complete = {each.target: each.complete for each in session.observer.ended}
        assert complete == {b"/stalled": False, b"/lively": True}

    async def test_a_client_that_reads_nothing_at_all(self, connect):
        """The connection is given up, and with it every WebSocket."""
        told = []

        @accepting
        async def application(receive, send):
            with pytest.raises(ClientDisconnected):
                while True:
                    await send({"type": "websocket.send", "bytes": bytes(5000)})
            told.append((await receive(), trio.current_time()))

        session = await connect(
            application,
            pair=lambda: socket_like_pair(1024),
            h2={SettingCode.INITIAL_WINDOW_SIZE: 2**31 - 1},
            write_timeout=9,
            websocket_ping_interval=inf,
        )
        await session.ask()
        await session.ask()
        await session.served.done.wait()
        assert told == [(LOST, 9)] * 2

    async def test_two_who_only_talk(self, connect):
        """An echo, and a client that sends and never gives a window: given up, not for ever in each other's way."""
        session = await connect(
            echo, auto_window=False, websocket_queue_size=1, write_timeout=9, websocket_ping_interval=inf
        )
        await session.client.window_update(0, 2**20)
        websocket = await session.open()
        with pytest.raises(StreamReset):
            while True:
                await websocket.send("x" * 500)
        assert trio.current_time() == 9
        await session.still_serves()


class TestCancellation:
    @pytest.mark.parametrize("deflate", [False, True])
    async def test_send_cancelled_by_the_application(self, connect, deflate):
        """The WebSocket is over, and nothing comes after the message that was cut: the others know nothing of it."""
        outcomes = []

        @accepting
        async def application(receive, send):
            with trio.move_on_after(1) as scope:
                await send({"type": "websocket.send", "bytes": os.urandom(100_000)})
            outcomes.append(scope.cancelled_caught)
            outcomes.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x" * 200})
            await send(CLOSE_IT)

        session = await connect(application, auto_window=False, disconnect_grace=inf)
        websocket = await session.open(deflate=deflate)
        other = await session.open()
        with pytest.raises((WebSocketClosed, StreamReset)) as ended:
            await websocket.receive()
        assert not isinstance(ended.value, WebSocketClosed) or ended.value.code == 1006
        assert outcomes[:2] == [True, LOST]
        await session.client.reset(other.stream_id)
        await session.client.window_update(0, 2**20)
        await session.still_serves()

    async def test_send_cancelled_when_the_client_is_only_slow(self, connect):
        """Whether it gets the whole message or not, it gets nothing behind it, and no close frame."""

        @accepting
        async def application(receive, send):
            with trio.move_on_after(1):
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
            assert await receive() == LOST

        session = await connect(application, auto_window=False)
        websocket = await session.open()
        await trio.sleep(1.5)
        await session.client.window_update(0, 2**20)
        await session.client.window_update(websocket.stream_id, 2**20)
        messages = []
        with pytest.raises((WebSocketClosed, StreamReset)) as ended:
            while True:
                messages.append(await websocket.receive())
        assert messages in ([], [bytes(100_000)])
        assert not isinstance(ended.value, WebSocketClosed) or ended.value.code == 1006
        await session.still_serves()

    async def test_cancelled_before_it_began_a_send_leaves_all_as_it_was(self, connect):
        @accepting
        async def application(receive, send):
            with trio.CancelScope() as scope:
                scope.cancel()
                await send({"type": "websocket.send", "bytes": bytes(100)})
            await send({"type": "websocket.send", "text": "sent " * 20})

        session = await connect(application)
        websocket = await session.open(deflate=True)
        with suppress(WebSocketClosed):
            message = await websocket.receive()
            message = await websocket.receive() if message == bytes(100) else message
            assert message == "sent " * 20

    async def test_cancel_scope_of_the_extension(self, connect):
        async def application(scope, receive, send):
            await send(ACCEPT)
            scope["extensions"]["trigi"]["cancel_scope"].cancel()
            await trio.sleep_forever()

        session = await connect(application)
        assert (await (await session.open()).wait_closed()).code == 1000
        await session.still_serves()

    @pytest.mark.parametrize("name", ["echo", "reset", "deny", "drain", "raise"])
    def test_the_connection_cancelled_at_every_step(self, name):
        """No hang, nothing comes out, each exchange is reported once, every call ends."""
        step = 0
        finished = False
        while not finished:
            step += 1
            finished = trio.run(cancelled_at, name, step, clock=trio.testing.MockClock(autojump_threshold=0))
        assert step > 20


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after so many steps of tasks: at each number once, it meets every checkpoint there is."""

    def __init__(self, step):
        self.scope = trio.CancelScope()
        self.left = step

    def after_task_step(self, task):
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def scripted(scope, receive, send):
    match scope["path"]:
        case "/deny":
            await send(DENY)
            await send({**DENIAL_BODY, "body": b"one", "more_body": True})
            await send({**DENIAL_BODY, "body": b"two"})
        case "/raise":
            await send(ACCEPT)
            raise ValueError("mine")
        case _:
            await echo(scope, receive, send)


async def script(session, name):
    """What the client does: two WebSockets side by side."""
    other = await session.open("/echo")
    if name == "deny":
        await session.client.response(await session.ask("/deny"))
    else:
        websocket = await session.open(f"/{name}", deflate=True)
        if name == "reset":
            await websocket.send("hello")
            await session.client.reset(websocket.stream_id)
        elif name == "drain":
            session.drain()
            await websocket.wait_closed()
        elif name == "raise":
            await websocket.wait_closed()
        else:
            await websocket.send("hello " * 100)
            await websocket.receive()
            await websocket.close(4001, "bye")
    if name == "drain":
        await other.wait_closed()
    else:
        await other.send("hello")
        await other.receive()


async def cancelled_at(name, step):
    """Whether all was over before the step."""
    canceller = CancelAtStep(step)
    trio.lowlevel.add_instrument(canceller)
    calls = []

    async def application(scope, receive, send):
        calls.append("begun")
        try:
            await scripted(scope, receive, send)
        finally:
            calls.append("ended")

    class Wire:
        stream, server = socket_like_pair(1024)
        context = ServerContext(application, Config(), observer=Recorder())
        observer = context.observer

    session = Session(Wire, HTTP2Client(Wire.stream), fails=True)
    finished = False

    async def act():
        with suppress(
            WebSocketClosed, EOFError, StreamReset, trio.BrokenResourceError, trio.ClosedResourceError
        ):
            await session.client.connect()
            await script(session, name)
        await Wire.stream.aclose()

    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            with canceller.scope:
                await serve_stream(Wire.server, Wire.context)
                finished = True
            with pytest.raises(trio.ClosedResourceError):
                await Wire.server.receive_some(1)
            await Wire.stream.aclose()
    assert calls.count("begun") == calls.count("ended")
    assert Wire.observer.bugs == []
    assert len(Wire.observer.exchanges) == len(set(map(id, Wire.observer.exchanges)))
    assert len(Wire.observer.exchanges) >= len(calls) // 2
    assert [str(each) for each in Wire.observer.failures] in ([], ["mine"])
    assert Wire.context.running == Wire.context.connections == set()
    return finished and canceller.left > 0


class TestRaces:
    """Two things that end a WebSocket at once, in whatever order tasks happen to run: the connection survives."""

    @pytest.fixture
    async def race(self, connect):
        """Has the first thing done, and the second some steps later; each WebSocket beside another one."""

        async def run(first, second, *, application=echo, **settings):
            settings = {"websocket_ping_interval": 20} | settings
            for steps in list(range(12)) * 4:  # which of two tasks runs first is left to chance
                session = await connect(application, **settings)
                websocket = await session.open(answers=False)
                stream_id = await session.client.request("POST", "/plain", end_stream=False)
                await wait_all_tasks_blocked()
                await first(session, websocket)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                await second(session, websocket)
                await wait_all_tasks_blocked()
                await session.client.send_body(stream_id, b"")
                assert (await session.client.response(stream_id)).body == b"hello"
                assert session.observer.bugs == []
                await session.client.aclose()

        return run

    @staticmethod
    async def end(session, websocket):
        await websocket.end()

    @staticmethod
    async def send_close(session, websocket):
        await websocket.send_close()

    @staticmethod
    async def reset(session, websocket):
        await session.client.reset(websocket.stream_id)

    @staticmethod
    async def break_the_protocol(session, websocket):
        await websocket.write(encode_frame(3))

    FIRST = (end, send_close, reset, break_the_protocol)

    @pytest.mark.parametrize("first", FIRST)
    async def test_the_client_leaves_and_the_server_shuts_down(self, race, first):
        async def drain(session, websocket):
            session.drain()

        await race(first, drain)

    @pytest.mark.parametrize("first", FIRST)
    async def test_the_client_leaves_and_a_ping_is_due(self, race, first, autojump_clock):
        async def let_time_pass(session, websocket):
            autojump_clock.jump(20)

        await race(first, let_time_pass, keep_alive_timeout=inf)

    @pytest.mark.parametrize("first", FIRST)
    async def test_the_client_leaves_and_a_close_has_timed_out(self, race, first, autojump_clock):
        @accepting
        async def application(receive, send):
            await send(CLOSE_IT)

        async def let_time_pass(session, websocket):
            autojump_clock.jump(10)

        await race(first, let_time_pass, application=application, keep_alive_timeout=inf)

    @pytest.mark.parametrize("first", FIRST)
    @pytest.mark.parametrize("then", ["speaks", "closes", "returns"])
    async def test_the_client_leaves_and_the_application_goes_on(self, race, first, then):
        go = []

        @accepting
        async def application(receive, send):
            go.append(trio.Event())
            await go[-1].wait()
            with suppress(ClientDisconnected):
                if then == "speaks":
                    await send({"type": "websocket.send", "bytes": bytes(100_000)})
                if then == "closes":
                    await send({**CLOSE_IT, "code": 4001})

        async def let_it_go_on(session, websocket):
            go[-1].set()

        await race(first, let_it_go_on, application=application)

    @pytest.mark.parametrize("first", FIRST[:2])
    async def test_the_client_leaves_and_then_resets(self, race, first):
        """Which is a reset of a stream that has, or has not yet, ended."""
        await race(first, self.reset)


class TestDraining:
    async def test_both_sides_are_told(self, connect):
        told = []

        @accepting
        async def application(receive, send):
            told.extend(await receive_all(receive))
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})
            await send(CLOSE_IT)

        session = await connect(application)
        websocket = await session.open()
        await websocket.send("before")
        await wait_all_tasks_blocked()
        session.drain()
        assert (await websocket.wait_closed()).code == 1012
        await websocket.end()
        closed = await session.client.wait_closed()
        assert (closed.code, closed.last_stream_id) == (ErrorCode.NO_ERROR, websocket.stream_id)
        await session.served.done.wait()
        assert trio.current_time() <= DISCARD_SECONDS  # the client does not close its side
        assert told == [text("before"), {**LOST, "code": 1012}]
        assert [each.complete for each in session.observer.ended] == [True]

    async def test_several(self, connect):
        session = await connect(echo)
        websockets = [await session.open() for _ in range(5)]
        session.drain()
        for websocket in websockets:
            assert (await websocket.wait_closed()).code == 1012
            await websocket.end()
        await session.served.done.wait()
        assert trio.current_time() <= DISCARD_SECONDS  # the client does not close its side

    async def test_grace(self, connect):
        times = []

        @accepting
        async def application(receive, send):
            try:
                await trio.sleep_forever()
            finally:
                times.append(trio.current_time())

        session = await connect(application, disconnect_grace=4)
        websocket = await session.open()
        await trio.sleep(1)
        session.drain()
        await websocket.wait_closed()
        await websocket.end()
        await session.served.done.wait()
        assert times == [5]

    async def test_client_that_does_not_answer(self, connect):
        session = await connect(echo, websocket_close_timeout=7)
        await session.open(answers=False)
        session.drain()
        await session.served.done.wait()
        assert 7 <= trio.current_time() <= 7 + 2 * DISCARD_SECONDS

    async def test_client_that_gives_no_window(self, connect):
        """The application is told at once all the same, and shutdown waits no longer than for closing."""
        told = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def talk():
                    with pytest.raises(ClientDisconnected):
                        await send({"type": "websocket.send", "bytes": bytes(10_000)})

                await trio.sleep(2)
                with pytest.raises(ClientDisconnected):
                    await send({"type": "websocket.send", "text": "more"})
                told.append(trio.current_time())
                nursery.cancel_scope.cancel()
            told.append(await receive())

        session = await connect(
            application,
            auto_window=False,
            h2={SettingCode.INITIAL_WINDOW_SIZE: 100},
            websocket_close_timeout=7,
            websocket_ping_interval=inf,
        )
        await session.open()
        await trio.sleep(1)
        session.drain()
        await session.served.done.wait()
        assert told == [2, {**LOST, "code": 1012}]
        assert trio.current_time() <= 1 + 7 + CLOSE_SECONDS

    async def test_while_connecting(self, connect):
        """The handshake is finished first; an accept is followed by the close."""
        go = trio.Event()
        log = []

        @before_accept
        async def application(receive, send):
            await go.wait()
            await send(ACCEPT)
            log.extend(await receive_all(receive))

        session = await connect(application)
        stream_id = await session.ask()
        await wait_all_tasks_blocked()
        session.drain()
        await trio.sleep(10)
        go.set()
        websocket = await session.opened(stream_id)
        assert (await websocket.wait_closed()).code == 1012
        await websocket.end()
        await session.served.done.wait()
        assert log == [{**LOST, "code": 1012}]

    async def test_a_websocket_that_comes_too_late(self, connect):
        """The goodbye was answered: later streams can be tried elsewhere."""
        session = await connect(echo)
        websocket = await session.open()
        session.drain()
        closed = await websocket.wait_closed()
        assert closed.code == 1012
        await session.client.ping()  # by now it has the answer to its own
        late = await session.ask()
        with pytest.raises((StreamReset, ConnectionClosed)):
            await session.client.head(late)
        await websocket.end()
        await session.served.done.wait()

    async def test_side_by_side_with_a_request(self, connect):
        """That is finished first."""

        async def application(scope, receive, send):
            await echo(scope, receive, send)

        session = await connect(application)
        websocket = await session.open()
        stream_id = await session.client.request("POST", "/plain", end_stream=False)
        await wait_all_tasks_blocked()
        session.drain()
        assert (await websocket.wait_closed()).code == 1012
        await websocket.end()
        await session.client.send_body(stream_id, b"x")
        assert (await session.client.response(stream_id)).body == b"hello"
        await session.served.done.wait()


class TestSideBySide:
    async def test_thirty_websockets_at_once(self, connect):
        """Each echoes its own, through windows that are smaller than a message."""
        session = await connect(echo, h2={SettingCode.INITIAL_WINDOW_SIZE: 500}, h2_stream_window=500)

        async def talk(number):
            websocket = await session.open(f"/{number}", deflate=bool(number % 2))
            for size in (1, 100, 5000):
                message = f"{number} " * size
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(websocket.send, message)
                    assert await websocket.receive() == message
            assert (await websocket.close(4000 + number)).code == 4000 + number

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(talk, number)
        await session.still_serves()
        assert {each.status for each in session.observer.ended} == {200}
        assert len(session.observer.ended) == 31

    async def test_messages_beside_a_large_response(self, serve):
        """They take turns: a message does not wait until the response has ended."""

        async def application(scope, receive, send):
            if scope["type"] == "websocket":
                await echo(scope, receive, send)
            else:
                await respond(send, bytes(5_000_000))

        served = serve(application)
        client = HTTP2Client(served.stream)
        await client.connect({SettingCode.INITIAL_WINDOW_SIZE: 2**30})
        session = Session(served, client, fails=False)
        websocket = await session.open()
        stream_id = await client.request("GET", "/large")
        await websocket.send("hello")
        received = 0
        while frame := await client.frame(FrameType.DATA):
            if frame.stream_id == websocket.stream_id:
                break
            received += len(frame.payload)
        assert received < 1_000_000
        # The rest of the client's window is that of the connection: given back as it reads.
        assert len((await client.response(stream_id)).body) == 5_000_000

    async def test_an_upload_beside_a_websocket(self, serve):
        async def application(scope, receive, send):
            if scope["type"] == "websocket":
                await echo(scope, receive, send)
            else:
                await respond(send, str(len(await read_body(receive))).encode())

        served = serve(application)
        client = HTTP2Client(served.stream)
        await client.connect()
        session = Session(served, client, fails=False)
        websocket = await session.open()
        stream_id = await client.request("POST", end_stream=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_body, stream_id, bytes(1_000_000))
            for number in range(100):
                await websocket.send(str(number))
                assert await websocket.receive() == str(number)
        assert (await client.response(stream_id)).body == b"1000000"
        assert (await websocket.close()).code == 1000
