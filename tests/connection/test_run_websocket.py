"""WebSockets, from the handshake to the close, between an application and the bytes on the wire.

Numbers like WE-17 are those of the project's ASGI checklist. Time is virtual, and streams are in memory: those that
`socket_like_pair` makes hold only so many bytes, as a kernel's buffers do, and can be reset.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf

import pytest
import trio
import trio.testing
from trio.testing import memory_stream_pair, wait_all_tasks_blocked
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.uri import parse_uri
from wsproto.utilities import ACCEPT_GUID, RemoteProtocolError

from tests.connection.conftest import PAIRS, socket_like_pair
from trigi._connection.context import ServerContext
from trigi._connection.http1 import HTTP1Connection
from trigi._connection.observer import Observer
from trigi._connection.serve import serve_stream
from trigi._connection.transport import DISCARD_SECONDS, Transport
from trigi._protocol.scope import ConnectionInfo, Endpoint
from trigi.config import Config
from trigi.exceptions import ApplicationError, ClientDisconnected, InvalidMessage, UnexpectedMessage
from trigi.testing import HTTPClient
from trigi.testing.websocket import WebSocketClient, WebSocketClosed, WebSocketRejected, encode_frame

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}
CLOSE_IT = {"type": "websocket.close"}
DENY = {"type": "websocket.http.response.start", "status": 401}
LOST = {"type": "websocket.disconnect", "code": 1006, "reason": ""}

# The handshake of RFC 6455, 1.2, and the answer to it.
KEY = (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")
KEY_ACCEPTED = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = [
    (b"host", b"localhost"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    KEY,
    (b"sec-websocket-version", b"13"),
]

narrow_pair = partial(socket_like_pair, 1024)
"""A connection that takes a small message or two, then a writer waits for the other side to read."""

HANG = 10_000
"""Virtual seconds after which a test has failed."""


# What the tests share


@pytest.fixture(autouse=True)
def virtual_time(request, autojump_clock):
    """No test waits for real. (pytest-trio takes a clock only from a test that names it.)"""

    def run(test, *, clock, instruments):
        return trio.run(test, clock=clock or autojump_clock, instruments=instruments)

    if request.node.get_closest_marker("trio"):
        request.node.add_marker(pytest.mark.trio(run=run), append=False)


@pytest.fixture(autouse=True, params=PAIRS.values(), ids=PAIRS)
def default_pair(request, monkeypatch):
    """Over a socket, an application that waits for a message reads it itself."""
    monkeypatch.setattr(Served, "pair", staticmethod(request.param))


class Recorder(Observer):
    def __init__(self):
        self.ended = []
        self.failures = []
        self.refused = []
        self.bugs = []

    def exchange_ended(self, exchange):
        self.ended.append(exchange)

    def application_failed(self, exchange, error):
        self.failures.append(error)

    def request_refused(self, connection, error):
        self.refused.append(error)

    def connection_failed(self, client, error):
        self.bugs.append(error)


class Served:
    """One connection that is being served: the client's end of it, and the server's insides.

    Attributes:
        pair: makes its two ends, if a test says nothing else.
    """

    pair = staticmethod(memory_stream_pair)

    def __init__(self, application, settings, stream, server, *, answers=True):
        self.observer = Recorder()
        self.context = ServerContext(application, Config(**settings), observer=self.observer)
        self.stream = stream
        self.server = server
        self.client = WebSocketClient(stream, answers=answers)
        self.http = HTTPClient(stream)
        self.finished = trio.Event()

    def drain(self):
        self.context.draining.set()
        for connection in list(self.context.connections):
            connection.drain()

    async def is_silent(self, seconds):
        """Whether the server sends nothing for so long."""
        with trio.move_on_after(seconds) as waiting:
            await self.stream.receive_some(1)
        return waiting.cancelled_caught

    def check(self, *, fails=False):
        """What must be true of any connection that is over. Its application fails only where a test wants it to."""
        for failure in self.observer.failures:
            if not fails or leaves(failure, AssertionError | pytest.fail.Exception):
                raise failure
        assert bool(self.observer.failures) == fails
        assert self.observer.bugs == []
        assert len(self.observer.ended) == len({id(each) for each in self.observer.ended})
        assert not self.context.running
        assert not self.context.connections


def leaves(error, kind):
    """What an exception or a group of them has of some kind."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each, kind)]
    return [error] if isinstance(error, kind) else []


@asynccontextmanager
async def serving(application, *, streams=None, answers=True, fails=False, **settings):
    client_end, server_end = (streams or Served.pair)()
    served = Served(application, settings, client_end, server_end, answers=answers)

    async def serve():
        await serve_stream(server_end, served.context)
        served.finished.set()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                yield served
            finally:
                await trio.aclose_forcefully(client_end)
    served.check(fails=fails)


def parse(data):
    """A server's frames as (first byte, payload); their masks must be missing, their lengths short."""
    frames = []
    while data:
        first, size = data[0], data[1]
        start = {126: 4, 127: 10}.get(size, 2)
        if start > 2:
            size = int.from_bytes(data[2:start], "big")
            assert size > (125 if start == 4 else 0xFFFF)
        assert len(data) >= start + size
        frames.append((first, data[start : start + size]))
        data = data[start + size :]
    return frames


def close_payload(code, reason=""):
    return code.to_bytes(2, "big") + reason.encode()


async def read_rest(stream):
    """What the server sends until it closes the connection."""
    data = b""
    with suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some(65536):
            data += piece
    return data


async def read_exactly(stream, size):
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, f"the server closed after {data!r}"
        data += piece
    return data


def request(fields=HANDSHAKE, *, target=b"/", method=b"GET"):
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    return method + b" " + target + b" HTTP/1.1\r\n" + lines + b"\r\n"


async def open_raw(stream):
    """Shake hands, and leave the stream to the test: what follows the response is frames."""
    await stream.send_all(request())
    await read_head(stream)


async def read_head(stream):
    """The response that accepts, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await read_exactly(stream, 1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return head


async def open_through(stream):
    """As `open_raw`, on a wire so narrow that the request is not written before it is read."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, request())
        await read_head(stream)


def text(data):
    return {"type": "websocket.receive", "text": data}


def accepting(handler):
    """An application that accepts and goes on with `handler(receive, send)`."""

    async def application(scope, receive, send):
        assert await receive() == CONNECT
        await send(ACCEPT)
        await handler(receive, send)

    return application


def before_accept(handler):
    """An application that has been asked to connect, and goes on with `handler(receive, send)`."""

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

    async def __call__(self, scope, receive, send):
        assert await receive() == CONNECT
        await send(ACCEPT)
        self.messages += await receive_all(receive)


class TestScope:
    async def scope_of(self, *, settings=None, **options):
        scopes = []

        async def application(scope, receive, send):
            scopes.append(scope)
            await send(ACCEPT)

        async with serving(application, **(settings or {})) as served:
            await served.client.connect(**options)
        return scopes[0]

    async def test_all_of_it(self):
        """WS-01 to WS-11, WS-18."""
        scope = await self.scope_of(target="/a%20b/%C3%A9%2F?q=%20&r")
        trigi = scope["extensions"].pop("trigi")
        assert set(trigi) >= {"cancel_scope", "disconnect_grace", "shutting_down"}
        names = [name for name, _ in scope.pop("headers")]
        assert scope.pop("server") in (None, ("", None))  # in memory, and of a nameless socket
        assert names == [
            b"host",
            b"upgrade",
            b"connection",
            b"sec-websocket-key",
            b"sec-websocket-version",
        ]
        assert scope == {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/a b/é/",
            "raw_path": b"/a%20b/%C3%A9%2F",
            "query_string": b"q=%20&r",
            "root_path": "",
            "client": None,
            "subprotocols": [],
            "state": {},
            "extensions": {"websocket.http.response": {}},
        }

    async def test_headers_keep_their_order_and_what_is_twice(self):
        """WS-12; names in lower case (WS-11)."""
        scope = await self.scope_of(headers=[(b"X-B", b"1"), (b"x-a", b"2"), (b"x-b", b"3")])
        assert scope["headers"][-3:] == [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3")]

    async def test_subprotocols_in_the_order_of_the_client(self):
        """WS-15."""
        scope = await self.scope_of(subprotocols=["chat.v2", "chat.v1", "other"])
        assert scope["subprotocols"] == ["chat.v2", "chat.v1", "other"]

    async def test_subprotocols_of_several_lines(self):
        """WS-16."""
        lines = [(b"sec-websocket-protocol", b"one, two"), (b"sec-websocket-protocol", b"three")]
        scope = await self.scope_of(headers=lines)
        assert scope["subprotocols"] == ["one", "two", "three"]

    async def test_root_path(self):
        """WS-19."""
        scope = await self.scope_of(target="/x", settings={"root_path": "/mounted"})
        assert (scope["root_path"], scope["path"]) == ("/mounted", "/mounted/x")

    async def test_endpoints_and_tls_of_the_connection(self):
        """WS-13, WS-14, WS-05: whatever stream it is, the connection knows."""
        scopes = []

        async def application(scope, receive, send):
            scopes.append(scope)

        info = ConnectionInfo(Endpoint("192.0.2.1", 1234), Endpoint("192.0.2.2", 443), {"tls_version": 772})
        client, server = memory_stream_pair()
        context = ServerContext(application, Config())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HTTP1Connection(Transport(server, info, 30), context).serve)
            with pytest.raises(WebSocketRejected):
                await WebSocketClient(client).connect()
            await client.aclose()
        assert scopes[0]["client"] == ("192.0.2.1", 1234)
        assert scopes[0]["server"] == ("192.0.2.2", 443)
        assert scopes[0]["scheme"] == "wss"
        assert scopes[0]["extensions"]["tls"] == {"tls_version": 772}

    async def test_state_is_a_copy(self):
        states = []

        async def application(scope, receive, send):
            scope["state"]["mine"] = 1
            states.append(scope["state"])

        async with serving(application, fails=True) as served:
            served.context.state["shared"] = 2
            for _ in range(2):
                with pytest.raises(WebSocketRejected):
                    await WebSocketClient(served.stream).connect()
        assert states == [{"shared": 2, "mine": 1}] * 2
        assert served.context.state == {"shared": 2}


def without(*names):
    return [field for field in HANDSHAKE if field[0] not in names]


BAD_HANDSHAKES = {
    "no key": without(b"sec-websocket-key"),
    "two keys": [*HANDSHAKE, KEY],
    "short key": [*without(b"sec-websocket-key"), (b"sec-websocket-key", b"c2hvcnQ=")],
    "no token as subprotocol": [*HANDSHAKE, (b"sec-websocket-protocol", b"a b")],
    "no extension": [*HANDSHAKE, (b"sec-websocket-extensions", b"=")],
}


class TestBadHandshakes:
    """WE-47; behaviour, section 7. The application is not called."""

    @staticmethod
    async def never(scope, receive, send):
        raise AssertionError("called")

    @pytest.mark.parametrize("fields", BAD_HANDSHAKES.values(), ids=BAD_HANDSHAKES)
    async def test_400(self, fields):
        async with serving(self.never) as served:
            response = await served.http.fetch(headers=fields)
            assert response.status == 400
            assert response.body == b"400 Bad Request\n"
            assert len(served.observer.refused) == len(served.observer.ended) == 1

    async def test_400_for_another_method(self):
        async with serving(self.never) as served:
            assert (await served.http.fetch(method="PUT", headers=HANDSHAKE)).status == 400

    async def test_400_for_a_body(self):
        """Its bytes could be taken for frames."""
        async with serving(self.never) as served:
            assert (await served.http.fetch(headers=HANDSHAKE, body=b"body")).status == 400

    @pytest.mark.parametrize("version", [b"12", b"8", b"13, 8", None])
    async def test_426_for_another_version(self, version):
        fields = without(b"sec-websocket-version")
        if version is not None:
            fields.append((b"sec-websocket-version", version))
        async with serving(self.never) as served:
            response = await served.http.fetch(headers=fields)
            assert response.status == 426
            assert response.header(b"sec-websocket-version") == b"13"
            assert response.header(b"upgrade") == b"websocket"
            assert b"upgrade" in response.header(b"connection").lower()

    async def test_the_connection_can_be_used_again(self):
        """The bad request was a whole request all the same."""
        async with serving(echo) as served:
            assert (await served.http.fetch(headers=BAD_HANDSHAKES["no key"])).status == 400
            await served.client.connect()
            await served.client.send("hello")
            assert await served.client.receive() == "hello"

    async def test_client_that_has_left_is_not_answered(self):
        async with serving(self.never) as served:
            await served.stream.send_all(request(BAD_HANDSHAKES["no key"]))
            await served.stream.aclose()
            await served.finished.wait()
            assert len(served.observer.ended) == 1


class TestAccept:
    async def head(self, application, fields=HANDSHAKE, **settings):
        """The head of the response, as status line and fields."""
        async with serving(application, **settings) as served:
            await served.stream.send_all(request(fields))
            data = b""
            while b"\r\n\r\n" not in data:
                data += await served.stream.receive_some(65536)
        lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
        return lines[0], [tuple(line.split(b": ", 1)) for line in lines[1:]]

    async def test_nothing_is_answered_before(self):
        """WE-02, WE-03."""
        go = trio.Event()
        events = []

        async def application(scope, receive, send):
            events.append(await receive())
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def wait_for_more():
                    events.append(await receive())

                await go.wait()
                nursery.cancel_scope.cancel()
            await send(ACCEPT)

        async with serving(application) as served:
            await served.client.send_request(early_data=encode_frame(TEXT, b"early"))
            assert await served.is_silent(1000)
            assert events == [CONNECT]
            go.set()
            await served.client.receive_answer()

    async def test_101(self):
        """WE-04, WE-06: the example of RFC 6455, 1.3."""
        status, fields = await self.head(echo, date_header=False, server_header=False)
        assert status == b"HTTP/1.1 101 Switching Protocols"
        assert sorted((name.lower(), value) for name, value in fields) == [
            (b"connection", b"Upgrade"),
            (b"sec-websocket-accept", KEY_ACCEPTED),
            (b"upgrade", b"websocket"),
        ]

    async def test_subprotocol(self):
        """WE-05."""

        async def application(scope, receive, send):
            await send({**ACCEPT, "subprotocol": scope["subprotocols"][1]})

        async with serving(application) as served:
            await served.client.connect(subprotocols=["one", "two"])
            assert served.client.subprotocol == "two"

    @pytest.mark.parametrize("keys", [{}, {"subprotocol": None}])
    async def test_no_subprotocol(self, keys):
        """WE-06."""

        async def application(scope, receive, send):
            await send({**ACCEPT, **keys})

        async with serving(application) as served:
            await served.client.connect(subprotocols=["one"])
            assert served.client.subprotocol is None

    async def test_headers(self):
        """WE-07: in their order, with what is twice; any iterable."""
        fields = [(b"x-b", b"1"), (b"X-A", b" 2 "), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]

        async def application(scope, receive, send):
            await send({**ACCEPT, "headers": iter(fields)})

        async with serving(application) as served:
            await served.client.connect()
            assert served.client.headers[:4] == [
                (b"x-b", b"1"),
                (b"x-a", b"2"),
                (b"set-cookie", b"a=1"),
                (b"set-cookie", b"b=2"),
            ]

    async def test_date_and_server_unless_the_application_has_its_own(self):
        async def application(scope, receive, send):
            await send({**ACCEPT, "headers": [(b"Server", b"mine")]})

        async with serving(application) as served:
            await served.client.connect()
            assert [value for name, value in served.client.headers if name == b"server"] == [b"mine"]
            assert [name for name, _ in served.client.headers].count(b"date") == 1

    async def test_the_exchange_reports_101(self):
        async with serving(echo) as served:
            await served.client.connect()
            await served.client.send("12345")
            await served.client.receive()
            await served.client.close()
            await served.finished.wait()
            (exchange,) = served.observer.ended
            assert (exchange.status, exchange.is_websocket, exchange.complete) == (101, True, True)
            assert exchange.bytes_sent == 7

    async def test_accept_before_connect_was_received(self):
        async def application(scope, receive, send):
            await send(ACCEPT)
            await send({"type": "websocket.send", "text": "hello"})
            assert await receive() == CONNECT

        async with serving(application) as served:
            await served.client.connect()
            assert await served.client.receive() == "hello"
            await served.client.close()

    async def test_frames_that_came_with_the_request(self):
        """The reader of requests may have read them already: none is lost."""
        early = b"".join(encode_frame(TEXT, b"%d" % i) for i in range(20))
        async with serving(echo) as served:
            await served.client.connect(early_data=early)
            assert [await served.client.receive() for _ in range(20)] == [str(i) for i in range(20)]
            await served.client.send("after")
            assert await served.client.receive() == "after"

    async def test_half_a_frame_that_came_with_the_request(self):
        frame = encode_frame(TEXT, b"hello")
        async with serving(echo) as served:
            await served.client.connect(early_data=frame[:4])
            await served.stream.send_all(frame[4:])
            assert await served.client.receive() == "hello"

    async def test_request_byte_by_byte(self):
        async with serving(echo) as served:
            for byte in request() + encode_frame(TEXT, b"hello"):
                await served.stream.send_all(bytes([byte]))
            answer = b""
            while not answer.endswith(b"hello"):
                answer += await served.stream.receive_some(65536)
            assert answer.startswith(b"HTTP/1.1 101 ")
            await served.stream.send_all(encode_frame(CLOSE))
            rest = answer.partition(b"\r\n\r\n")[2] + await read_rest(served.stream)
            assert parse(rest) == [(0x80 | TEXT, b"hello"), (0x80 | CLOSE, b"")]

    async def test_more_early_data_than_is_read_ahead(self):
        """The bound of what is read ahead holds, and nothing behind it is lost."""
        go = trio.Event()

        @before_accept
        async def application(receive, send):
            await go.wait()
            await send(ACCEPT)
            message = await receive()
            await send({"type": "websocket.send", "text": str(len(message["bytes"]))})
            await receive()

        streams = partial(socket_like_pair, 4096)
        async with serving(application, streams=streams, pipelined_size_limit=8192) as served:
            async with trio.open_nursery() as nursery:
                early = encode_frame(BINARY, bytes(1_000_000))
                nursery.start_soon(partial(served.client.send_request, early_data=early))
                await trio.sleep(1000)
                assert served.server.unread == 4096  # the server has stopped reading
                go.set()
                await served.client.receive_answer()
            assert await served.client.receive() == "1000000"

    async def test_after_other_requests_on_the_same_connection(self):
        async def application(scope, receive, send):
            if scope["type"] == "websocket":
                await echo(scope, receive, send)
            else:
                await send({"type": "http.response.start", "status": 204})
                await send({"type": "http.response.body"})

        async with serving(application) as served:
            assert (await served.http.fetch()).status == 204
            await served.client.connect()
            await served.client.send("hello")
            assert await served.client.receive() == "hello"

    async def test_accepted_by_one_task_used_by_another_at_once(self):
        """A send() that comes while the accept is on its way waits for it."""

        async def application(scope, receive, send):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, ACCEPT)
                await trio.sleep(1)  # the client takes nothing yet, so that the accept is under way
                nursery.start_soon(send, {"type": "websocket.send", "text": "hello"})

        async with serving(application, streams=partial(socket_like_pair, 16)) as served:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.client.send_request)
                await trio.sleep(10)
                await served.client.receive_answer()
            assert await served.client.receive() == "hello"
            await served.client.close()


class TestRefusal:
    """The application, or the server for it, answers with something else than 101."""

    async def test_close_before_accept_is_403(self):
        """WE-08, WE-38: and then there is nothing more to receive."""
        received = []

        @before_accept
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 4001, "reason": "no"})
            received.append(await receive())
            received.append(await receive())

        async with serving(application) as served:
            with pytest.raises(WebSocketRejected) as rejected:
                await served.client.connect()
            assert rejected.value.status == 403
            assert rejected.value.body == b"403 Forbidden\n"
            await wait_all_tasks_blocked()
            assert received == [LOST] * 2
            assert [each.status for each in served.observer.ended] == [403]

    async def test_reason_that_is_a_list(self):
        """FastAPI gives the errors it found as one. A 403 has no reason, so nobody minds."""

        @before_accept
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 1008, "reason": [{"type": "missing", "loc": ("query", "q")}]})

        async with serving(application) as served:
            with pytest.raises(WebSocketRejected, match="403"):
                await served.client.connect()

    async def test_the_connection_lives_on_after_a_403(self):
        attempts = []

        async def application(scope, receive, send):
            attempts.append(scope)
            await (send(CLOSE_IT) if len(attempts) == 1 else echo(scope, receive, send))

        async with serving(application) as served:
            with pytest.raises(WebSocketRejected):
                await served.client.connect()
            second = WebSocketClient(served.stream)
            await second.connect()
            await second.send("hello")
            assert await second.receive() == "hello"

    async def test_messages_after_the_403(self):
        errors = []

        @before_accept
        async def application(receive, send):
            await send(CLOSE_IT)
            for message in (ACCEPT, CLOSE_IT, {"type": "websocket.send", "text": "x"}, DENY):
                with pytest.raises(UnexpectedMessage) as error:
                    await send(message)
                errors.append(error.value.state)

        async with serving(application) as served:
            with pytest.raises(WebSocketRejected):
                await served.client.connect()
            await wait_all_tasks_blocked()
            assert errors == ["CLOSED"] * 4
            assert await served.is_silent(1)

    async def test_application_raises_before_accept(self):
        """WE-35, WX-22: 500, logged once."""

        @before_accept
        async def application(receive, send):
            raise ValueError("mine")

        async with serving(application, fails=True) as served:
            with pytest.raises(WebSocketRejected) as rejected:
                await served.client.connect()
            assert rejected.value.status == 500
            assert [str(each) for each in served.observer.failures] == ["mine"]

    async def test_application_returns_before_accept(self):
        """WE-36: 500, logged with the state."""

        @before_accept
        async def application(receive, send):
            pass

        async with serving(application, fails=True) as served:
            with pytest.raises(WebSocketRejected) as rejected:
                await served.client.connect()
            assert rejected.value.status == 500
            (error,) = served.observer.failures
            assert isinstance(error, ApplicationError)
            assert "CONNECTING" in str(error)

    async def test_503_past_the_concurrency_limit(self):
        async with serving(echo, concurrency_limit=1) as served:
            served.context.running.add(object())
            with pytest.raises(WebSocketRejected) as rejected:
                await served.client.connect()
            assert rejected.value.status == 503
            assert (b"retry-after", b"1") in rejected.value.headers
            served.context.running.clear()

    async def test_an_open_websocket_counts_as_running(self):
        async with serving(echo) as served:
            await served.client.connect()
            assert len(served.context.running) == 1
            await served.client.close()
            assert not served.context.running

    async def test_accept_that_outlives_the_call(self):
        """The application has returned, but a task that it started elsewhere is accepting: then it is closed."""
        async with trio.open_nursery() as elsewhere:

            @before_accept
            async def application(receive, send):
                elsewhere.start_soon(send, ACCEPT)
                await trio.sleep(1)

            async with serving(application, streams=partial(socket_like_pair, 16)) as served:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(served.client.send_request)
                    await trio.sleep(2)
                    await served.client.receive_answer()
                assert (await served.client.wait_closed()).code == 1000
                await served.finished.wait()

    async def test_client_leaves_before_accept(self):
        """WE-37: a waiting receive() is told at once."""
        told = []

        @before_accept
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))
            with pytest.raises(ClientDisconnected):
                await send(ACCEPT)
            with pytest.raises(ClientDisconnected):
                await send(DENY)
            with trio.testing.assert_checkpoints():
                await send(CLOSE_IT)  # nothing to close
            told.append((await receive(), trio.current_time()))

        async with serving(application) as served:
            await served.client.send_request()
            await trio.sleep(7)
            await served.client.aclose()
            left = trio.current_time()
            await served.finished.wait()
        assert told == [(LOST, left)] * 2
        (exchange,) = served.observer.ended
        assert (exchange.status, exchange.complete) == (None, False)

    async def test_client_leaves_while_accept_is_on_its_way(self):
        """Whichever is first: the application is told, and nothing hangs."""
        outcomes = []

        @before_accept
        async def application(receive, send):
            await trio.sleep(1)
            try:
                await send(ACCEPT)
            except ClientDisconnected:
                outcomes.append("send")
            outcomes.append(await receive())

        for leave in ("aclose", "reset"):
            outcomes.clear()
            async with serving(application, streams=narrow_pair) as served:
                await served.client.send_request()
                await trio.sleep(1)  # both tasks are awake at the same time now
                if leave == "reset":
                    served.stream.reset()
                else:
                    await served.stream.aclose()
                await served.finished.wait()
            assert outcomes[-1] == LOST
            assert len(served.observer.ended) == 1

    async def test_client_that_takes_no_answer(self):
        """An accept that nobody reads is given up like every write."""
        outcomes = []

        @before_accept
        async def application(receive, send):
            began = trio.current_time()
            with pytest.raises(ClientDisconnected):
                await send(ACCEPT)
            outcomes.append(trio.current_time() - began)
            outcomes.append(await receive())

        async with serving(
            application, streams=partial(socket_like_pair, 16), write_timeout=3, pipelined_size_limit=1
        ) as served:
            await served.client.send_request()
            await served.finished.wait()
        assert outcomes == [3, LOST]

    @pytest.mark.parametrize("seconds", [0, 1])
    async def test_accept_cancelled_by_the_application(self, seconds):
        """Part of the answer may have left, so the WebSocket is over, and the application learns of it."""
        outcomes = []

        @before_accept
        async def application(receive, send):
            with trio.move_on_after(seconds):
                await send(ACCEPT)
            outcomes.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})
            await send(CLOSE_IT)

        async with serving(
            application, streams=partial(socket_like_pair, 16), disconnect_grace=inf
        ) as served:
            await served.client.send_request()
            await served.finished.wait()
        assert outcomes == [LOST]
        assert len(served.observer.ended) == 1


DENIAL_BODY = {"type": "websocket.http.response.body"}


class TestDenial:
    """The extension websocket.http.response."""

    async def test_response_with_status_headers_and_body(self):
        """ED-01, ED-07."""
        received = []

        @before_accept
        async def application(receive, send):
            fields = [(b"x-b", b"1"), (b"X-A", b"2"), (b"x-b", b"3"), (b"content-length", b"4")]
            await send({**DENY, "headers": iter(fields)})
            await send({**DENIAL_BODY, "body": b"nope"})
            received.append(await receive())

        async with serving(application) as served:
            response = await served.http.fetch(headers=HANDSHAKE)
            assert response.status == 401
            assert response.headers[:4] == [
                (b"x-b", b"1"),
                (b"x-a", b"2"),
                (b"x-b", b"3"),
                (b"content-length", b"4"),
            ]
            assert response.header(b"connection") == b"close"
            assert response.body == b"nope"
            assert await served.http.rest() == b""
            await served.finished.wait()
            assert received == [LOST]
            assert [(each.status, each.complete) for each in served.observer.ended] == [(401, True)]

    async def test_nothing_may_follow(self):
        refused = []

        @before_accept
        async def application(receive, send):
            await send(DENY)
            await send({**DENIAL_BODY, "body": b"nope"})
            for message in (DENIAL_BODY, {**DENIAL_BODY, "more_body": True}, DENY, ACCEPT, CLOSE_IT):
                with pytest.raises(UnexpectedMessage) as error:
                    await send(message)
                refused.append(error.value.state)

        async with serving(application) as served:
            assert (await served.http.fetch(headers=HANDSHAKE)).body == b"nope"
            assert await served.http.rest() == b""
        assert refused == ["CLOSED"] * 5

    async def test_parts_of_the_body_are_flushed(self):
        """ED-02, ED-08."""
        turn = trio.testing.Sequencer()

        @before_accept
        async def application(receive, send):
            await send(DENY)
            async with turn(0):
                await send({**DENIAL_BODY, "body": b"one", "more_body": True})
            async with turn(2):
                await send({**DENIAL_BODY, "body": b"two", "more_body": True})
            async with turn(4):
                await send({**DENIAL_BODY, "body": b"three", "more_body": False})

        async with serving(application) as served:
            await served.http.request(headers=HANDSHAKE)
            response = await served.http.head()
            assert response.header(b"transfer-encoding") == b"chunked"
            async with turn(1):
                assert await served.http.data() == b"one"
            async with turn(3):
                assert await served.http.data() == b"two"
            assert await served.http.data() == b"three"
            assert await served.http.data() == b""

    async def test_everything_but_the_status_may_be_missing(self):
        """ED-03."""

        @before_accept
        async def application(receive, send):
            await send(DENY)
            await send(DENIAL_BODY)

        async with serving(application) as served:
            response = await served.http.fetch(headers=HANDSHAKE)
            assert (response.status, response.body) == (401, b"")

    async def test_any_final_status(self):
        """ED-10."""

        @before_accept
        async def application(receive, send):
            await send({**DENY, "status": 200})
            await send({**DENIAL_BODY, "body": b"fine"})

        async with serving(application) as served:
            response = await served.http.fetch(headers=HANDSHAKE)
            assert (response.status, response.body) == (200, b"fine")

    async def test_trailers_are_no_part_of_it(self):
        """The extension has none, so the key means nothing, and the response ends with its body."""

        @before_accept
        async def application(receive, send):
            await send({**DENY, "trailers": True})
            await send({**DENIAL_BODY, "body": b"nope"})

        async with serving(application) as served:
            assert (await served.http.fetch(headers=HANDSHAKE)).body == b"nope"
            assert await served.http.rest() == b""

    @pytest.mark.parametrize(
        "message",
        [ACCEPT, CLOSE_IT, DENY, {"type": "websocket.send", "text": "x"}],
        ids=lambda each: each["type"],
    )
    async def test_only_the_body_may_follow(self, message):
        """ED-04; the application may catch the error and end the response."""

        @before_accept
        async def application(receive, send):
            await send(DENY)
            with pytest.raises(UnexpectedMessage, match="DENIAL_BODY"):
                await send(message)
            await send({**DENIAL_BODY, "body": b"nope"})

        async with serving(application) as served:
            assert (await served.http.fetch(headers=HANDSHAKE)).body == b"nope"

    async def test_body_before_start(self):
        """ED-05."""

        @before_accept
        async def application(receive, send):
            with pytest.raises(UnexpectedMessage, match="CONNECTING"):
                await send(DENIAL_BODY)
            await send(ACCEPT)

        async with serving(application) as served:
            await served.client.connect()

    @pytest.mark.parametrize(
        "message",
        [
            {"type": DENY["type"]},
            {**DENY, "status": "401"},
            {**DENY, "status": 101},
            {**DENY, "headers": 5},
            {**DENY, "headers": None},
            {**DENY, "headers": [("x", "y")]},
            {**DENY, "headers": [(b"x", b"a\r\nb")]},
            {**DENY, "headers": [(b"content-length", b"many")]},
        ],
        ids=str,
    )
    async def test_invalid_start(self, message):
        """ED-06: it raises with the type that was sent, and leaves the state as it was."""

        @before_accept
        async def application(receive, send):
            with pytest.raises(InvalidMessage, match=r"^websocket\.http\.response\.start: "):
                await send(message)
            await send(ACCEPT)

        async with serving(application) as served:
            await served.client.connect()

    @pytest.mark.parametrize(
        "message", [{**DENIAL_BODY, "body": "str"}, {**DENIAL_BODY, "more_body": 1}], ids=str
    )
    async def test_invalid_body(self, message):
        @before_accept
        async def application(receive, send):
            await send(DENY)
            with pytest.raises(InvalidMessage, match=r"^websocket\.http\.response\.body: "):
                await send(message)
            await send({**DENIAL_BODY, "body": b"nope"})

        async with serving(application) as served:
            assert (await served.http.fetch(headers=HANDSHAKE)).body == b"nope"

    async def test_after_accept(self):
        """ED-09."""

        @accepting
        async def application(receive, send):
            for message in (DENY, DENIAL_BODY):
                with pytest.raises(UnexpectedMessage, match="OPEN"):
                    await send(message)
            await send({"type": "websocket.send", "text": "still here"})

        async with serving(application) as served:
            await served.client.connect()
            assert await served.client.receive() == "still here"

    @pytest.mark.parametrize("body", [b"too short", b"much too long"])
    async def test_body_of_another_length(self, body):
        """Raises, and the client can tell that the response is not whole."""

        @before_accept
        async def application(receive, send):
            await send({**DENY, "headers": [(b"content-length", b"10")]})
            await send({**DENIAL_BODY, "body": body[:1], "more_body": True})
            await send({**DENIAL_BODY, "body": body[1:]})

        async with serving(application, fails=True) as served:
            await served.http.request(headers=HANDSHAKE)
            await served.http.head()
            assert len(await served.http.rest()) < 10
            (error,) = served.observer.failures
            assert isinstance(error, InvalidMessage)
            assert [each.complete for each in served.observer.ended] == [False]

    async def test_application_returns_after_the_start(self):
        """Nothing has left yet: 500."""

        @before_accept
        async def application(receive, send):
            await send(DENY)

        async with serving(application, fails=True) as served:
            assert (await served.http.fetch(headers=HANDSHAKE)).status == 500
            (error,) = served.observer.failures
            assert "DENIAL_BODY" in str(error)

    @pytest.mark.parametrize("raises", [False, True])
    async def test_application_ends_within_the_body(self, raises):
        """The connection ends without the last chunk."""

        @before_accept
        async def application(receive, send):
            await send(DENY)
            await send({**DENIAL_BODY, "body": b"begun", "more_body": True})
            if raises:
                raise ValueError

        async with serving(application, fails=True) as served:
            await served.http.request(headers=HANDSHAKE)
            await served.http.head()
            assert await served.http.data() == b"begun"
            assert await served.http.rest() == b""
            assert len(served.observer.failures) == 1
            assert [each.complete for each in served.observer.ended] == [False]

    async def test_client_leaves_within_the_body(self):
        told = []

        @before_accept
        async def application(receive, send):
            await send(DENY)
            await send({**DENIAL_BODY, "body": b"begun", "more_body": True})
            told.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send(DENIAL_BODY)

        async with serving(application) as served:
            await served.http.request(headers=HANDSHAKE)
            await served.http.head()
            await served.http.aclose()
            await served.finished.wait()
        assert told == [LOST]


class TestMessages:
    @pytest.mark.parametrize("deflate", [False, True])
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1024 * 1024])
    async def test_sizes_both_ways(self, size, deflate):
        """WE-15, WE-16."""
        async with serving(echo) as served:
            await served.client.connect(deflate=deflate)
            assert served.client.deflate is deflate
            for message in ("é" * (size // 2) + "e" * (size % 2), os.urandom(size)):
                await served.client.send(message)
                assert await served.client.receive() == message
            assert (await served.client.close()).code == 1000

    async def test_one_key_of_two(self):
        """WE-09, WE-10, WE-15, WE-42: of text and bytes, one is there, also when it is empty."""
        log = Log()
        async with serving(log) as served:
            await served.client.connect()
            for message in ("text", b"bytes", "", b""):
                await served.client.send(message)
            await served.client.close()
        assert log.messages == [
            text("text"),
            {"type": "websocket.receive", "bytes": b"bytes"},
            text(""),
            {"type": "websocket.receive", "bytes": b""},
            {"type": "websocket.disconnect", "code": 1000, "reason": ""},
        ]
        assert [type(message.get("bytes")) for message in log.messages[:4]] == [type(None), bytes] * 2

    async def test_what_may_be_sent(self):
        """WE-13, WE-14: None for the other key, other keys, and what is like bytes. No frame is masked."""

        @accepting
        async def application(receive, send):
            await send({"type": "websocket.send", "text": "a", "bytes": None, "more": 1})
            await send({"type": "websocket.send", "bytes": b"b", "text": None})
            await send({"type": "websocket.send", "bytes": bytearray(b"c")})
            await send({"type": "websocket.send", "bytes": memoryview(b"d")})
            await send({"type": "websocket.send", "text": ""})
            await send({"type": "websocket.send", "bytes": b""})
            await receive()

        async with serving(application) as served:
            await open_raw(served.stream)
            await served.stream.send_all(encode_frame(CLOSE))
            assert parse(await read_rest(served.stream)) == [
                (0x81, b"a"),
                (0x82, b"b"),
                (0x82, b"c"),
                (0x82, b"d"),
                (0x81, b""),
                (0x82, b""),
                (0x88, b""),
            ]

    async def test_fragments_with_a_ping_between(self):
        """WE-11, WE-12: one message, and the ping is none of the application's business."""
        log = Log()
        async with serving(log) as served:
            client = served.client
            await client.connect()
            await client.send_frame(TEXT, b"one ", fin=False)
            await client.send_frame(PING, b"in between")
            assert await client.receive_pong() == b"in between"
            await client.send_frame(CONTINUATION, b"", fin=False)
            await client.send_frame(CONTINUATION, b"message")
            await client.close()
        assert log.messages[:-1] == [text("one message")]

    async def test_pongs_that_nobody_asked_for(self):
        log = Log()
        async with serving(log) as served:
            await served.client.connect()
            await served.client.send_frame(PONG, b"here I am")
            await served.client.close()
        assert len(log.messages) == 1

    async def test_order_of_300_messages_both_ways(self):
        """WE-39, WE-40."""
        log = []

        @accepting
        async def application(receive, send):
            for i in range(300):
                await send({"type": "websocket.send", "text": str(i)})
            while (message := await receive())["type"] == "websocket.receive":
                log.append(message["text"])
                await send({**message, "type": "websocket.send"})

        numbers = [str(i) for i in range(300)]
        async with serving(application) as served:
            await served.client.connect()
            assert [await served.client.receive() for _ in numbers] == numbers
            for each in numbers:
                await served.client.send(each)
            assert [await served.client.receive() for _ in numbers] == numbers
        assert log == numbers

    async def test_300_messages_in_one_packet(self):
        """More than the queue takes: the reader waits, and loses none."""
        log = Log()
        numbers = [str(i) for i in range(300)]
        async with serving(log, websocket_queue_size=3) as served:
            await served.client.connect()
            await served.stream.send_all(b"".join(encode_frame(TEXT, each.encode()) for each in numbers))
            await served.client.close(1001)
        assert log.messages == [*map(text, numbers), {**LOST, "code": 1001}]

    async def test_send_and_receive_at_once(self):
        """WE-41: neither waits for the other."""

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

        async with serving(application, websocket_ping_interval=inf) as served:
            client = served.client
            await client.connect()
            heard = []
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def talk():
                    for i in range(20):
                        await client.send(str(i))
                        await trio.sleep(2)

                while len(heard) < 70:
                    heard.append(await client.receive())
            await client.close()
        assert [each for each in heard if each.startswith("tick")] == [f"tick {i}" for i in range(50)]
        assert [each for each in heard if each.startswith("got")] == [f"got {i}" for i in range(20)]

    @pytest.mark.parametrize("deflate", [False, True])
    async def test_three_tasks_send_at_once(self, deflate):
        """WE-52: every message arrives whole, and in its task's order."""

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:
                for name in "abc":

                    @nursery.start_soon
                    async def talk(name=name):
                        for i in range(20):
                            await send({"type": "websocket.send", "text": f"{name}{i}" + 500 * name})

        async with serving(application, streams=partial(socket_like_pair, 100)) as served:
            await served.client.connect(deflate=deflate)
            heard = [await served.client.receive() for _ in range(60)]
            await served.client.close()
        for name in "abc":
            mine = [each for each in heard if each.startswith(name)]
            assert mine == [f"{name}{i}" + 500 * name for i in range(20)]

    async def test_cancelled_receive_loses_nothing(self):
        """WE-51: cancelled while it waits, at the moment when something comes, and before it began."""
        log = []

        @accepting
        async def application(receive, send):
            for i in range(30):
                with trio.move_on_after(i / 10):
                    log.append(await receive())
            log.extend(await receive_all(receive))

        async with serving(application) as served:
            await served.client.connect()
            for i in range(40):
                await served.client.send(str(i))
                await trio.sleep(1)
            await served.client.close()
        assert log[:-1] == [text(str(i)) for i in range(40)]

    async def test_receive_gives_what_is_there_without_a_checkpoint(self):
        """Behaviour 9.1: also inside a cancelled scope."""
        log = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1)
            with trio.CancelScope() as scope:
                scope.cancel()
                log.append(await receive())
                log.append(await receive())

        async with serving(application) as served:
            await served.client.connect()
            await served.client.send("hello")
            await served.client.close()
        assert log == [text("hello"), {**LOST, "code": 1000}]

    async def test_cancelled_before_it_began_a_send_leaves_all_as_it_was(self):
        @accepting
        async def application(receive, send):
            with trio.CancelScope() as scope:
                scope.cancel()
                await send({"type": "websocket.send", "text": "never sent " * 20})
            assert scope.cancelled_caught
            await send({"type": "websocket.send", "text": "sent " * 20})

        async with serving(application) as served:
            await served.client.connect(deflate=True)
            assert await served.client.receive() == "sent " * 20
            assert (await served.client.wait_closed()).code == 1000

    async def test_a_loop_of_sends_lets_others_run(self):
        """Behaviour 9.1."""
        beats = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def beat():
                    while True:
                        beats.append(1)
                        await trio.lowlevel.checkpoint()

                for _ in range(1000):
                    await send({"type": "websocket.send", "text": "x"})
                nursery.cancel_scope.cancel()

        async with serving(application) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 1000
        assert len(beats) >= 10

    async def test_another_client_with_compression(self):
        """WE-48: the websockets library, with its defaults."""
        async with serving(echo) as served:
            protocol = ClientProtocol(
                parse_uri("ws://localhost/"), extensions=[ClientPerMessageDeflateFactory()]
            )
            protocol.send_request(protocol.connect())

            async def flush():
                for data in protocol.data_to_send():
                    if data:
                        await served.stream.send_all(data)

            async def receive():
                while not (events := protocol.events_received()):
                    data = await served.stream.receive_some(65536)
                    protocol.receive_data(data) if data else protocol.receive_eof()
                    await flush()
                return events

            await flush()
            (response,) = await receive()
            assert response.status_code == 101
            assert "permessage-deflate" in response.headers["Sec-WebSocket-Extensions"]
            for message in (b"short", b"long and the same again " * 1000):
                protocol.send_text(message)
                await flush()
                (frame,) = await receive()
                assert frame.data == message
            protocol.send_close(1001)
            await flush()
            await receive()
            protocol.receive_eof()
            assert (protocol.close_code, protocol.close_rcvd.code) == (1001, 1001)


class TestDeflate:
    async def test_agreed_only_if_the_setting_allows(self):
        async with serving(echo, websocket_per_message_deflate=False) as served:
            await served.client.connect(deflate=True)
            assert not served.client.deflate

    async def test_compressed_on_the_wire(self):
        async with serving(echo) as served:
            await served.stream.send_all(
                request([*HANDSHAKE, (b"sec-websocket-extensions", b"permessage-deflate")])
            )
            data = b""
            while b"\r\n\r\n" not in data:
                data += await served.stream.receive_some(65536)
            assert b"sec-websocket-extensions: permessage-deflate\r\n" in data.lower()
            message = b"again and " * 1000
            compressor = zlib.compressobj(wbits=-15)
            deflated = (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            await served.stream.send_all(encode_frame(TEXT, deflated, rsv=4) + encode_frame(CLOSE))
            frames = parse(await read_rest(served.stream))
            # The close frame is answered first, so that it depends on the application's speed what comes before it.
            assert frames[-1] == (0x88, b"")

    async def test_too_big_only_when_inflated(self):
        log = Log()
        async with serving(log, websocket_message_size_limit=1000) as served:
            await served.client.connect(deflate=True)
            await served.client.send("x" * 1000)
            await served.client.send("x" * 1001)
            assert (await served.client.wait_closed()).code == 1009
        assert log.messages == [
            text("x" * 1000),
            {"type": "websocket.disconnect", "code": 1009, "reason": "message too big"},
        ]


class TestClosing:
    @pytest.mark.parametrize(
        ("code", "reason"), [(1000, ""), (1001, "going"), (3000, "x"), (4001, "é" * 61), (4999, "")]
    )
    async def test_by_the_client(self, code, reason):
        """WE-17, WE-18, WE-22, WE-42: both the code and the reason, an answer, and the connection's end."""
        log = Log()
        async with serving(log) as served:
            await served.client.connect()
            closed = await served.client.close(code, reason)
            assert closed.code == code
            await served.finished.wait()
        assert log.messages == [{"type": "websocket.disconnect", "code": code, "reason": reason}]
        assert [each.complete for each in served.observer.ended] == [True]

    async def test_by_the_client_without_a_code(self):
        """WE-19."""
        log = Log()
        async with serving(log) as served:
            await served.client.connect()
            await served.client.send_close(1005)
            assert (await served.client.wait_closed()).code == 1005
        assert log.messages == [{**LOST, "code": 1005}]

    async def test_disconnect_for_ever(self):
        """I4."""
        log = []

        @accepting
        async def application(receive, send):
            log.extend([await receive() for _ in range(3)])

        async with serving(application) as served:
            await served.client.connect()
            await served.client.close(4001, "bye")
        assert log == [{"type": "websocket.disconnect", "code": 4001, "reason": "bye"}] * 3

    async def test_messages_before_the_close_frame_come_first(self):
        """WE-53: all in one packet, more than the queue takes."""
        log = Log()
        async with serving(log, websocket_queue_size=2) as served:
            await served.client.connect()
            packet = b"".join(encode_frame(TEXT, b"%d" % i) for i in range(10))
            await served.stream.send_all(packet + encode_frame(CLOSE, close_payload(4001, "bye")))
            assert (await served.client.wait_closed()).code == 4001
        assert log.messages == [
            *(text(str(i)) for i in range(10)),
            {"type": "websocket.disconnect", "code": 4001, "reason": "bye"},
        ]

    async def test_messages_and_a_close_frame_of_a_client_that_does_not_stay_for_the_answer(self):
        """What it sent counts, though the answer finds nobody."""
        go = trio.Event()
        log = []

        @before_accept
        async def application(receive, send):
            await send(ACCEPT)
            await go.wait()
            log.extend(await receive_all(receive))

        packet = encode_frame(TEXT, b"one") + encode_frame(TEXT, b"two")
        async with serving(application) as served:
            await served.client.connect()
            await served.stream.send_all(packet + encode_frame(CLOSE, close_payload(4001, "bye")))
            await served.stream.aclose()
            await wait_all_tasks_blocked()
            go.set()
            await served.finished.wait()
        assert log == [
            text("one"),
            text("two"),
            {"type": "websocket.disconnect", "code": 4001, "reason": "bye"},
        ]

    async def test_messages_and_a_ping_of_a_client_that_does_not_stay_for_the_answer(self):
        """WE-54."""
        log = Log()
        async with serving(log) as served:
            await served.client.connect()
            await served.stream.send_all(encode_frame(TEXT, b"one") + encode_frame(PING, b"?"))
            await served.stream.aclose()
            await served.finished.wait()
        assert log.messages == [text("one"), LOST]

    async def test_messages_and_then_the_loss(self):
        """WE-54."""
        log = Log()
        async with serving(log, websocket_queue_size=2) as served:
            await served.client.connect()
            await served.stream.send_all(b"".join(encode_frame(TEXT, b"%d" % i) for i in range(10)))
            await served.stream.aclose()
            await served.finished.wait()
        assert log.messages == [*(text(str(i)) for i in range(10)), LOST]

    @pytest.mark.parametrize("leave", ["aclose", "reset"])
    async def test_loss_without_a_close_frame(self, leave):
        """WE-20, WE-21: FIN and RST, at once."""
        told = []

        @accepting
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))

        async with serving(application, streams=narrow_pair) as served:
            await served.client.connect()
            await trio.sleep(3)
            if leave == "reset":
                served.stream.reset()
            else:
                await served.stream.aclose()
            left = trio.current_time()
            await served.finished.wait()
        assert told == [(LOST, left)]
        assert [each.complete for each in served.observer.ended] == [False]

    @pytest.mark.parametrize(
        ("message", "code", "reason"),
        [
            ({}, 1000, ""),
            ({"reason": None}, 1000, ""),
            ({"code": 1001, "reason": ""}, 1001, ""),
            ({"code": 4001, "reason": "bye"}, 4001, "bye"),
            ({"code": 1011, "reason": "é" * 100}, 1011, "é" * 61),
        ],
    )
    async def test_by_the_application(self, message, code, reason):
        """WE-23, WE-24, WE-25, WE-26: the client is told, and the application hears its own words."""
        log = []

        @accepting
        async def application(receive, send):
            await send({**CLOSE_IT, **message})
            log.append(await receive())
            log.append(await receive())

        async with serving(application) as served:
            await served.client.connect()
            closed = await served.client.wait_closed()
            assert (closed.code, closed.reason) == (code, reason)
            await served.client.wait_end()
            await served.finished.wait()
        told = {"type": "websocket.disconnect", "code": code, "reason": message.get("reason") or ""}
        assert log == [told, told]
        assert [each.complete for each in served.observer.ended] == [True]

    async def test_a_waiting_receive_learns_of_the_applications_close_after_it_was_sent(self):
        """Behaviour 9.3: frameworks race the two, and cancel the loser."""
        order = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def listen():
                    order.append((await receive())["code"])

                await wait_all_tasks_blocked()
                await send({**CLOSE_IT, "code": 4002})
                order.append("sent")

        async with serving(application) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 4002
        assert order == ["sent", 4002]

    async def test_nothing_on_the_wire_after_the_applications_close(self):
        """WE-27: neither messages, nor another close, nor pings, nor answers to pings."""
        refused = []

        @accepting
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 4001})
            for message in ({"type": "websocket.send", "text": "x"}, CLOSE_IT, ACCEPT):
                with pytest.raises(UnexpectedMessage, match="CLOSED"):
                    await send(message)
                refused.append(message)
            await trio.sleep(5)

        async with serving(application, websocket_ping_interval=1) as served:
            await open_raw(served.stream)
            await served.stream.send_all(encode_frame(PING, b"?") * 3)
            await trio.sleep(6)
            await served.stream.send_all(encode_frame(CLOSE))
            frames = parse(await read_rest(served.stream))
        assert len(refused) == 3
        assert [each for each in frames if each[0] != 0x80 | PONG] == [(0x88, close_payload(4001))]
        assert frames[-1] == (0x88, close_payload(4001))

    async def test_nothing_on_the_wire_after_the_answer_to_the_clients_close(self):
        """WE-27, and WE-28: what is sent before the application knows is dropped, then send() raises."""
        outcomes = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1)  # both have been read
            await send({"type": "websocket.send", "text": "nobody hears this"})
            outcomes.extend(await receive_all(receive))
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "nor this"})
            await send(CLOSE_IT)

        async with serving(application, websocket_queue_size=1) as served:
            await open_raw(served.stream)
            packet = encode_frame(TEXT, b"1") + encode_frame(TEXT, b"2")
            await served.stream.send_all(packet + encode_frame(CLOSE, close_payload(1001)))
            assert parse(await read_rest(served.stream)) == [(0x88, close_payload(1001))]
        assert outcomes == [text("1"), text("2"), {**LOST, "code": 1001}]

    async def test_closing_what_the_client_has_closed_but_nobody_has_heard(self):
        """The client's close frame was there first and is answered: that is how it ended."""
        outcomes = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1)  # a message fills the queue, behind it waits the client's close
            await send({**CLOSE_IT, "code": 4002})
            outcomes.extend(await receive_all(receive))

        async with serving(application, websocket_queue_size=1) as served:
            await open_raw(served.stream)
            packet = encode_frame(TEXT, b"1") + encode_frame(TEXT, b"2")
            await served.stream.send_all(packet + encode_frame(CLOSE, close_payload(4001, "bye")))
            assert parse(await read_rest(served.stream)) == [(0x88, close_payload(4001))]
        assert outcomes == [text("1"), {"type": "websocket.disconnect", "code": 4001, "reason": "bye"}]

    async def test_close_after_the_clients_close_does_nothing(self):
        @accepting
        async def application(receive, send):
            await receive()
            await send({**CLOSE_IT, "code": 4002})
            await send(CLOSE_IT)

        async with serving(application) as served:
            await served.client.connect()
            assert (await served.client.close(4001)).code == 4001

    @pytest.mark.parametrize("answer", [4003, 1005])
    async def test_the_applications_code_stands_whatever_the_client_answers(self, answer):
        """WE-26. Here the answer is there before the application's send() returns."""
        outcomes = []

        @accepting
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 4002, "reason": "mine"})
            outcomes.append(await receive())
            await trio.sleep(100)  # what comes after its own close is the application's business
            outcomes.append("not cancelled")

        async with serving(application, streams=partial(socket_like_pair, 8)) as served:
            await open_raw(served.stream)
            payload = b"" if answer == 1005 else close_payload(answer)
            await served.stream.send_all(encode_frame(CLOSE, payload)[:8])
            await served.finished.wait()
        assert outcomes == [
            {"type": "websocket.disconnect", "code": 4002, "reason": "mine"},
            "not cancelled",
        ]

    async def test_both_close_at_once(self):
        """The application's close frame waits behind a message when the client's comes: it still gets its turn."""
        outcomes = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, {"type": "websocket.send", "bytes": bytes(1000)})
                await trio.sleep(1)
                nursery.start_soon(send, {**CLOSE_IT, "code": 4002})
            outcomes.append(await receive())

        async with serving(application, streams=partial(socket_like_pair, 100)) as served:
            await open_through(served.stream)
            await trio.sleep(2)
            await served.stream.send_all(encode_frame(CLOSE, close_payload(4001)))
            await trio.sleep(1)
            frames = parse(await read_rest(served.stream))
            assert frames == [(0x82, bytes(1000)), (0x88, close_payload(4002))]
        assert outcomes == [{**LOST, "code": 4002}]
        assert [each.complete for each in served.observer.ended] == [True]

    async def test_both_close_at_once_and_the_client_does_not_stay(self):
        outcomes = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, {"type": "websocket.send", "bytes": bytes(1000)})
                await trio.sleep(1)
                try:
                    await send({**CLOSE_IT, "code": 4002})
                finally:
                    outcomes.append(await receive())

        async with serving(application, streams=partial(socket_like_pair, 100)) as served:
            await open_through(served.stream)
            await trio.sleep(2)
            await served.stream.send_all(encode_frame(CLOSE, close_payload(4001)))
            await trio.sleep(1)
            served.stream.reset()
            await served.finished.wait()
        assert outcomes == [{**LOST, "code": 4002}]
        assert [each.complete for each in served.observer.ended] == [False]

    async def test_messages_after_the_applications_close_are_dropped(self):
        """What was in the queue can still be had; the client's close is waited for through a flood."""
        log = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1)
            await send({**CLOSE_IT, "code": 4001})
            log.extend(await receive_all(receive))

        async with serving(application, websocket_queue_size=2) as served:
            client = served.client
            await client.connect()
            for i in range(10):
                await client.send(str(i))
            await trio.sleep(2)
            for i in range(100):
                await served.stream.send_all(encode_frame(TEXT, b"%d" % i))
            assert (await client.wait_closed()).code == 4001
            await client.wait_end()
        assert log[-1] == {**LOST, "code": 4001}
        assert log[:-1] == [text("0"), text("1")]

    async def test_close_timeout(self):
        """A client that never answers the close frame."""
        async with serving(
            accepting(lambda receive, send: send(CLOSE_IT)), answers=False, websocket_close_timeout=7
        ) as served:
            await served.client.connect()
            began = trio.current_time()
            assert (await served.client.wait_closed()).code == 1000
            await served.client.wait_end()
            assert trio.current_time() - began == 7
            await served.finished.wait()

    async def test_close_timeout_of_a_client_that_keeps_talking(self):
        async with serving(
            accepting(lambda receive, send: send(CLOSE_IT)), answers=False, websocket_close_timeout=7
        ) as served:
            await served.client.connect()
            began = trio.current_time()
            with suppress(trio.BrokenResourceError):
                while True:
                    await served.client.send("and another thing")
                    await trio.sleep(0.5)
            assert trio.current_time() - began <= 8

    async def test_close_frame_that_nobody_reads(self):
        """It waits behind what was sent before, and not for ever."""
        outcomes = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def talk():
                    with pytest.raises(ClientDisconnected):
                        await send({"type": "websocket.send", "bytes": bytes(10_000)})

                await wait_all_tasks_blocked()
                began = trio.current_time()
                with pytest.raises(ClientDisconnected):
                    await send(CLOSE_IT)
                outcomes.append(trio.current_time() - began)

        async with serving(application, streams=narrow_pair, websocket_close_timeout=7) as served:
            await served.client.connect()
            await served.finished.wait()
        assert outcomes == [7]
        assert [each.complete for each in served.observer.ended] == [False]

    async def test_application_returns(self):
        """WE-34: 1000."""
        async with serving(accepting(sleep_for(1))) as served:
            await served.client.connect()
            closed = await served.client.wait_closed()
            assert (closed.code, closed.reason) == (1000, "")
            await served.client.wait_end()
            await served.finished.wait()

    async def test_application_returns_while_a_flood_is_unread(self):
        """The reader does not hang on a queue that nobody will empty."""
        async with serving(accepting(sleep_for(5)), websocket_queue_size=1) as served:
            client = served.client
            await client.connect()
            for i in range(100):
                await client.send(str(i))
            assert (await client.wait_closed()).code == 1000
            await client.wait_end()
            await served.finished.wait()
            assert trio.current_time() == 5

    async def test_application_raises(self):
        """WE-32, WE-33, WX-22: 1011, logged once."""

        @accepting
        async def application(receive, send):
            raise ValueError("mine")

        async with serving(application, fails=True) as served:
            await served.client.connect()
            closed = await served.client.wait_closed()
            assert (closed.code, closed.reason) == (1011, "")
            await served.client.wait_end()
            await served.finished.wait()
            assert [str(each) for each in served.observer.failures] == ["mine"]

    async def test_application_raises_a_group(self):
        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise ValueError("mine")

        async with serving(application, fails=True) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 1011
            (group,) = served.observer.failures
            assert [str(each) for each in group.exceptions] == ["mine"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    async def test_exceptions_that_are_no_errors_end_this_websocket_only(self, error):
        """Behaviour 1.5."""

        @accepting
        async def application(receive, send):
            raise error

        async with serving(application, fails=True) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 1011
            assert [type(each) for each in served.observer.failures] == [error]

    async def test_application_raises_after_its_own_close(self):
        @accepting
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 4001})
            raise ValueError("mine")

        async with serving(application, fails=True) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 4001
            await served.client.wait_end()
            assert [str(each) for each in served.observer.failures] == ["mine"]

    async def test_application_raises_after_the_clients_close(self):
        @accepting
        async def application(receive, send):
            await receive()
            raise ValueError("mine")

        async with serving(application, fails=True) as served:
            await served.client.connect()
            assert (await served.client.close(4001)).code == 4001
            await served.finished.wait()
            assert [str(each) for each in served.observer.failures] == ["mine"]

    async def test_application_returns_and_the_client_takes_no_close_frame(self):
        async def application(scope, receive, send):
            await send(ACCEPT)
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(1):
                    await receive()  # connect
                    await receive()
                nursery.cancel_scope.cancel()

        async with serving(application, streams=partial(socket_like_pair, 1), websocket_close_timeout=7) as (
            served
        ):
            await open_through(served.stream)
            await served.finished.wait()
            assert [each.complete for each in served.observer.ended] == [False]


class TestProtocolErrors:
    """WE-46; behaviour, section 7."""

    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            (encode_frame(TEXT, b"\xff"), 1007),
            (encode_frame(TEXT, b"x" * 1001), 1009),
            (encode_frame(TEXT, b"x" * 999, fin=False) + encode_frame(CONTINUATION, b"yy"), 1009),
            (encode_frame(TEXT, fin=False) + encode_frame(CONTINUATION, fin=False) * 4, 1009),
            (encode_frame(TEXT, b"x", masked=False), 1002),
            (encode_frame(3, b"x"), 1002),
            (encode_frame(TEXT, b"x", rsv=1), 1002),
            (encode_frame(CONTINUATION, b"x"), 1002),
            (encode_frame(CLOSE, b"\x03"), 1002),
            (encode_frame(CLOSE, close_payload(1005)), 1002),
            (encode_frame(CLOSE, b"\x03\xe8\xff"), 1007),
        ],
    )
    async def test_both_sides_are_told(self, bad, code):
        log = Log()
        async with serving(log, websocket_message_size_limit=1000, websocket_frame_count_limit=4) as served:
            await open_raw(served.stream)
            await served.stream.send_all(encode_frame(TEXT, b"before") + bad + encode_frame(TEXT, b"after"))
            ((first, payload),) = parse(await read_rest(served.stream))
            assert (first, int.from_bytes(payload[:2], "big")) == (0x88, code)
            await served.finished.wait()
        assert log.messages[0] == text("before")
        assert log.messages[1] == {
            "type": "websocket.disconnect",
            "code": code,
            "reason": payload[2:].decode(),
        }
        assert len(log.messages) == 2
        assert log.messages[1]["reason"]

    @pytest.mark.parametrize(
        ("opcode", "payload", "code"),
        [(3, bytes(500_000), 1002), (TEXT, b"\xff" * 500_000, 1007), (BINARY, bytes(500_001), 1009)],
    )
    async def test_client_in_the_middle_of_a_message_can_read_why(self, opcode, payload, code):
        """Closing with bytes unread would reset the connection, and the close frame be lost."""
        async with serving(Log(), streams=narrow_pair, websocket_message_size_limit=500_000) as served:
            await served.client.connect()
            await served.client.send_frame(opcode, payload)
            assert (await served.client.wait_closed()).code == code
            await served.client.wait_end()

    async def test_client_that_never_stops_is_not_read_for_ever(self):
        async with serving(Log(), streams=narrow_pair) as served:
            await served.client.connect()
            with suppress(trio.BrokenResourceError):
                while True:
                    await served.client.send_frame(3, bytes(500))
                    await trio.sleep(0.1)
            await served.finished.wait()
            assert trio.current_time() <= DISCARD_SECONDS + 0.2

    async def test_send_raises_from_then_on(self):
        outcomes = []

        @accepting
        async def application(receive, send):
            outcomes.append((await receive())["code"])
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})
            outcomes.append("raised")

        async with serving(application) as served:
            await open_raw(served.stream)
            await served.stream.send_all(encode_frame(3))
            await served.finished.wait()
        assert outcomes == [1002, "raised"]


class TestDisconnect:
    """Behaviour, section 1: after the client left."""

    async def test_send_raises(self):
        """WE-28, WE-29: `ClientDisconnected`, an `OSError`, each time."""
        errors = []

        @accepting
        async def application(receive, send):
            await receive()
            for _ in range(3):
                with pytest.raises(OSError) as error:
                    await send({"type": "websocket.send", "text": "x"})
                errors.append(type(error.value))

        async with serving(application) as served:
            await served.client.connect()
            await served.client.aclose()
        assert errors == [ClientDisconnected] * 3

    async def test_send_raises_also_if_nobody_receives(self):
        """The application only sends: the first write that fails tells it."""
        outcomes = []

        @accepting
        async def application(receive, send):
            with pytest.raises(ClientDisconnected):
                while True:
                    await send({"type": "websocket.send", "text": "tick"})
                    await trio.sleep(1)
            outcomes.append(await receive())

        async with serving(application) as served:
            await served.client.connect()
            await trio.sleep(10)
            await served.client.aclose()
            await served.finished.wait()
        assert outcomes == [LOST]
        assert trio.current_time() < 12

    async def test_a_waiting_receive_learns_of_the_loss_after_the_send_has_ended(self):
        """Behaviour 9.3."""
        order = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def listen():
                    order.append(await receive())

                with pytest.raises(ClientDisconnected):
                    await send({"type": "websocket.send", "bytes": bytes(10_000)})
                order.append("send has ended")

        async with serving(application, streams=narrow_pair) as served:
            await served.client.connect()
            await wait_all_tasks_blocked()
            served.stream.reset()
        assert order == ["send has ended", LOST]

    @pytest.mark.parametrize("leave", ["close", "aclose"])
    async def test_grace(self, leave):
        """WE-30, behaviour 1.3: cancelled that long after the disconnect, its cleanup runs."""
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

        async with serving(application, disconnect_grace=5) as served:
            await served.client.connect()
            await trio.sleep(1)
            await getattr(served.client, leave)()
            left = trio.current_time()
            await served.finished.wait()
        assert times == [left + 5, left + 7]

    async def test_grace_of_nothing(self):
        async with serving(accepting(sleep_for(inf)), disconnect_grace=0) as served:
            await served.client.connect()
            await served.client.aclose()
            await served.finished.wait()
        assert trio.current_time() == 0

    async def test_grace_without_end(self):
        async with serving(accepting(sleep_for(1000)), disconnect_grace=inf) as served:
            await served.client.connect()
            await served.client.aclose()
            await served.finished.wait()
        assert trio.current_time() == 1000

    async def test_grace_set_by_the_application(self):
        async def application(scope, receive, send):
            scope["extensions"]["trigi"]["disconnect_grace"] = 77
            await send(ACCEPT)
            await trio.sleep_forever()

        async with serving(application) as served:
            await served.client.connect()
            await served.client.aclose()
            await served.finished.wait()
        assert trio.current_time() == 77

    async def test_before_accept(self):
        async with serving(before_accept(sleep_for(inf))) as served:
            await served.client.send_request()
            await trio.sleep(1)
            await served.client.aclose()
            await served.finished.wait()
            assert trio.current_time() == 6

    async def test_own_close_does_not_cancel(self):
        """Behaviour 1.3: nobody has left, so what the application does then is its own business."""
        done = []

        @accepting
        async def application(receive, send):
            await send(CLOSE_IT)
            await trio.sleep(1000)
            done.append(True)

        async with serving(application) as served:
            await served.client.connect()
            await served.client.wait_closed()
            await served.client.wait_end()
            assert trio.current_time() == 0  # and the client does not wait for it
            await served.finished.wait()
        assert done == [True]

    @pytest.mark.parametrize("how", ["bare", "group", "wrapped", "cause"])
    async def test_client_disconnected_that_comes_back_is_not_logged(self, how):
        """WE-31, behaviour 9.6."""

        @accepting
        async def application(receive, send):
            await receive()
            message = {"type": "websocket.send", "text": "x"}
            if how == "bare":
                await send(message)
            elif how == "group":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, message)
                    async with trio.open_nursery() as inner:
                        inner.start_soon(send, message)
            elif how == "wrapped":
                try:
                    await send(message)
                except OSError:
                    raise RuntimeError("the framework's own") from None
            else:
                try:
                    await send(message)
                except OSError as error:
                    raise RuntimeError("the framework's own") from error

        async with serving(application) as served:
            await served.client.connect()
            await served.client.aclose()
            await served.finished.wait()

    async def test_what_else_is_in_the_group_is_logged(self):
        @accepting
        async def application(receive, send):
            await receive()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, {"type": "websocket.send", "text": "x"})
                raise ValueError("mine")

        async with serving(application, fails=True) as served:
            await served.client.connect()
            await served.client.aclose()
            await served.finished.wait()
            (group,) = served.observer.failures
            assert [str(each) for each in group.exceptions] == ["mine"]


INVALID_BEFORE_ACCEPT = {
    "WX-01": ({"type": "websocket.send", "text": "x"}, UnexpectedMessage),
    "WX-03": ({"type": "websocket.unknown"}, UnexpectedMessage),
    "WX-05": ({}, InvalidMessage),
    "type int": ({"type": 1}, InvalidMessage),
    "WX-14": ({"type": "http.response.start", "status": 200}, UnexpectedMessage),
    "WX-16": (["websocket.accept"], InvalidMessage),
    "None": (None, InvalidMessage),
    "WX-17": ({**ACCEPT, "subprotocol": b"one"}, InvalidMessage),
    "WX-18": ({**ACCEPT, "headers": [("x", "y")]}, InvalidMessage),
    "headers None": ({**ACCEPT, "headers": None}, InvalidMessage),
    "CR LF": ({**ACCEPT, "headers": [(b"x", b"a\r\nb: c")]}, InvalidMessage),
    "WX-19": ({**ACCEPT, "headers": [(b"Sec-WebSocket-Protocol", b"one")]}, InvalidMessage),
    "WX-20": ({**ACCEPT, "headers": [(b":status", b"200")]}, InvalidMessage),
    "upgrade": ({**ACCEPT, "headers": [(b"upgrade", b"x")]}, InvalidMessage),
    "connection": ({**ACCEPT, "headers": [(b"connection", b"x")]}, InvalidMessage),
    "accept": ({**ACCEPT, "headers": [(b"sec-websocket-accept", b"x")]}, InvalidMessage),
    "extensions": ({**ACCEPT, "headers": [(b"sec-websocket-extensions", b"x")]}, InvalidMessage),
    "content-length": ({**ACCEPT, "headers": [(b"content-length", b"0")]}, InvalidMessage),
    "transfer-encoding": ({**ACCEPT, "headers": [(b"transfer-encoding", b"chunked")]}, InvalidMessage),
    "WX-23": ({**ACCEPT, "subprotocol": "two"}, InvalidMessage),
    "empty subprotocol": ({**ACCEPT, "subprotocol": ""}, InvalidMessage),
    "WX-12": ({**CLOSE_IT, "code": "1000"}, InvalidMessage),
    "WX-13": ({**CLOSE_IT, "reason": b"x"}, InvalidMessage),
}


INVALID_AFTER_ACCEPT = {
    "WX-02": (ACCEPT, UnexpectedMessage),
    "WX-04": ({"type": "websocket.unknown"}, UnexpectedMessage),
    "WX-05": ({}, InvalidMessage),
    "WX-06": ({"type": "websocket.send", "text": "x", "bytes": b"x"}, InvalidMessage),
    "both empty": ({"type": "websocket.send", "text": "", "bytes": b""}, InvalidMessage),
    "WX-07": ({"type": "websocket.send"}, InvalidMessage),
    "WX-08": ({"type": "websocket.send", "text": None, "bytes": None}, InvalidMessage),
    "WX-09": ({"type": "websocket.send", "text": b"x"}, InvalidMessage),
    "WX-10": ({"type": "websocket.send", "bytes": "x"}, InvalidMessage),
    "WX-11": ({"type": "websocket.send", "text": 1}, InvalidMessage),
    "surrogate": ({"type": "websocket.send", "text": "\ud800"}, InvalidMessage),
    "WX-12": ({**CLOSE_IT, "code": "1000"}, InvalidMessage),
    "code None": ({**CLOSE_IT, "code": None}, InvalidMessage),
    "code 1005": ({**CLOSE_IT, "code": 1005}, InvalidMessage),
    "code 1006": ({**CLOSE_IT, "code": 1006}, InvalidMessage),
    "code 1015": ({**CLOSE_IT, "code": 1015}, InvalidMessage),
    "code 999": ({**CLOSE_IT, "code": 999}, InvalidMessage),
    "code 5000": ({**CLOSE_IT, "code": 5000}, InvalidMessage),
    "WX-13": ({**CLOSE_IT, "reason": b"x"}, InvalidMessage),
    "reason surrogate": ({**CLOSE_IT, "reason": "\ud800"}, InvalidMessage),
    "WX-15": ({"type": "http.response.start", "status": 200}, UnexpectedMessage),
    "ED-09": (DENY, UnexpectedMessage),
}


class TestInvalidMessages:
    """Each raises at its send(), leaves the state as it was, and nothing of it on the wire (WX-21)."""

    @pytest.mark.parametrize(("message", "error"), INVALID_BEFORE_ACCEPT.values(), ids=INVALID_BEFORE_ACCEPT)
    async def test_before_accept(self, message, error):
        @before_accept
        async def application(receive, send):
            with pytest.raises(error):
                await send(message)
            await send({**ACCEPT, "subprotocol": "one"})
            await send({"type": "websocket.send", "text": "went on"})

        async with serving(application) as served:
            await served.client.connect(subprotocols=["one"])
            assert served.client.subprotocol == "one"
            assert await served.client.receive() == "went on"
            assert (await served.client.wait_closed()).code == 1000

    @pytest.mark.parametrize(("message", "error"), INVALID_BEFORE_ACCEPT.values(), ids=INVALID_BEFORE_ACCEPT)
    async def test_before_accept_and_let_through(self, message, error):
        """WX-24: 500, and the server lives on."""

        @before_accept
        async def application(receive, send):
            await send(message)

        async with serving(application, fails=True) as served:
            with pytest.raises(WebSocketRejected) as rejected:
                await served.client.connect(subprotocols=["one"])
            assert rejected.value.status == 500
            assert [type(each) for each in served.observer.failures] == [error]

    @pytest.mark.parametrize("deflate", [False, True])
    @pytest.mark.parametrize(("message", "error"), INVALID_AFTER_ACCEPT.values(), ids=INVALID_AFTER_ACCEPT)
    async def test_after_accept(self, message, error, deflate):
        @accepting
        async def application(receive, send):
            await send({"type": "websocket.send", "text": "before " * 20})
            with pytest.raises(error):
                await send(message)
            await send({"type": "websocket.send", "text": "after " * 20})
            await send({**CLOSE_IT, "code": 4001})

        async with serving(application) as served:
            await served.client.connect(deflate=deflate)
            assert await served.client.receive() == "before " * 20
            assert await served.client.receive() == "after " * 20
            assert (await served.client.wait_closed()).code == 4001

    @pytest.mark.parametrize(("message", "error"), INVALID_AFTER_ACCEPT.values(), ids=INVALID_AFTER_ACCEPT)
    async def test_after_accept_and_let_through(self, message, error):
        @accepting
        async def application(receive, send):
            await send(message)

        async with serving(application, fails=True) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 1011
            assert [type(each) for each in served.observer.failures] == [error]


class TestBackpressure:
    async def test_the_socket_is_not_read_while_the_queue_is_full(self):
        """WE-44."""
        go = trio.Event()
        log = []

        @accepting
        async def application(receive, send):
            await go.wait()
            log.extend(await receive_all(receive))

        message = bytes(50_000)
        async with serving(
            application,
            streams=partial(socket_like_pair, 10_000),
            websocket_queue_size=4,
            websocket_ping_interval=inf,
        ) as served:
            await served.client.connect()
            sent = []

            async def talk():
                for _ in range(30):
                    await served.client.send(message)
                    sent.append(message)
                await served.client.send_close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                await trio.sleep(1000)
                # What is queued, what the reader holds, what one read may hold besides, what is on the wire.
                assert len(sent) <= 4 + 1 + 1
                go.set()
            assert (await served.client.wait_closed()).code == 1000
        assert len(log) == 31

    @pytest.mark.parametrize("size", [1, 5])
    async def test_size_of_the_queue(self, size):
        """So many messages can be had after the loss, and one that the reader held."""
        log = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1)
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})
            log.extend(await receive_all(receive))

        async with serving(
            application, streams=partial(socket_like_pair, 10_000), websocket_queue_size=size
        ) as served:
            await served.client.connect()
            await served.stream.send_all(encode_frame(TEXT, b"x") * 100)
            await wait_all_tasks_blocked()
            served.stream.reset()
            await served.finished.wait()
        assert len(log) == size + 1  # with the disconnect

    async def test_send_waits_for_a_client_that_does_not_read(self):
        """WE-43, and goes on when it does."""
        progress = []
        connected = trio.Event()

        @accepting
        async def application(receive, send):
            await connected.wait()  # or the client would read the first one with the handshake
            for i in range(10):
                await send({"type": "websocket.send", "bytes": bytes(10_000)})
                progress.append(i)

        async with serving(
            application, streams=partial(socket_like_pair, 15_000), websocket_ping_interval=inf
        ) as served:
            await served.client.connect()
            connected.set()
            await trio.sleep(20)
            assert progress == [0]
            for _ in range(10):
                assert await served.client.receive() == bytes(10_000)
            assert (await served.client.wait_closed()).code == 1000

    @pytest.mark.parametrize("streams", [narrow_pair, trio.testing.lockstep_stream_pair])
    async def test_write_timeout(self, streams):
        """A client that takes nothing is given up."""
        outcomes = []

        @accepting
        async def application(receive, send):
            began = trio.current_time()
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "bytes": bytes(10_000)})
            outcomes.append(trio.current_time() - began)
            outcomes.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})
            await send(CLOSE_IT)

        async with serving(
            application, streams=streams, write_timeout=9, websocket_ping_interval=inf
        ) as served:
            await served.client.connect()
            await served.finished.wait()
        assert outcomes == [9, LOST]
        assert [each.complete for each in served.observer.ended] == [False]

    async def test_write_timeout_of_an_answer(self):
        """A client that sends pings and reads no pongs."""
        told = []

        @accepting
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))

        async with serving(
            application,
            streams=partial(socket_like_pair, 100),
            write_timeout=9,
            websocket_ping_interval=inf,
        ) as served:
            await served.client.connect()
            with suppress(trio.BrokenResourceError):
                while True:
                    await served.client.ping(bytes(100))
            await served.finished.wait()
        assert told == [(LOST, 9)]

    async def test_write_timeout_of_a_ping(self):
        told = []

        @accepting
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))

        async with serving(
            application, streams=partial(socket_like_pair, 1), write_timeout=3, websocket_ping_interval=20
        ) as served:
            await open_through(served.stream)
            await served.finished.wait()
        assert told == [(LOST, 23)]

    async def test_two_who_only_talk(self):
        """An echo, and a client that sends and never reads: given up, not for ever in each other's way."""
        async with serving(
            echo, streams=partial(socket_like_pair, 1000), websocket_queue_size=1, write_timeout=9
        ) as served:
            await served.client.connect()
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await served.client.send("x" * 500)
            await served.finished.wait()
            assert trio.current_time() == 9


class TestKeepAlive:
    async def test_dead_peer(self):
        """Found after the interval and the timeout; then as any loss."""
        told = []

        @accepting
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})

        async with serving(application, websocket_ping_interval=20, websocket_ping_timeout=7) as served:
            await served.client.connect()
            await served.finished.wait()
        assert told == [(LOST, 27)]

    async def test_pings_are_answered_by_a_client_that_lives(self):
        """WE-49, WE-50."""
        async with serving(echo, websocket_ping_interval=1, websocket_ping_timeout=1) as served:
            client = served.client
            await client.connect()
            for seconds in range(1, 101):
                assert await client.receive_ping() == b""
                assert trio.current_time() == seconds
            await client.send("hello")
            assert await client.receive() == "hello"
            assert (await client.close()).code == 1000

    async def test_a_client_that_answers_no_ping_but_talks_lives(self):
        """Whatever comes is a sign of life."""
        log = Log()
        async with serving(
            log, answers=False, websocket_ping_interval=20, websocket_ping_timeout=20
        ) as served:
            client = served.client
            await client.connect()
            for i in range(20):
                await trio.sleep(15)
                await client.send(str(i))
            await client.send_close(4001)
            await served.finished.wait()
        assert len(log.messages) == 21
        assert log.messages[-1]["code"] == 4001

    async def test_a_late_pong(self):
        """Within the timeout, and then not."""
        told = []

        @accepting
        async def application(receive, send):
            told.append((await receive(), trio.current_time()))

        async with serving(
            application, answers=False, websocket_ping_interval=10, websocket_ping_timeout=10
        ) as served:
            client = served.client
            await client.connect()
            await client.receive_ping()
            await trio.sleep(9)
            await client.send_frame(PONG)  # at 19
            await client.receive_ping()
            assert trio.current_time() == 29
            await trio.sleep(10.5)
            with suppress(trio.BrokenResourceError):
                await client.send_frame(PONG)
            await served.finished.wait()
        assert told == [(LOST, 39)]

    @pytest.mark.parametrize("messages", [5, 200])
    async def test_an_application_that_is_behind_is_no_dead_peer(self, messages):
        """Nothing is read while the queue is full, so no pong is: that is not the client's doing."""
        log = []

        @accepting
        async def application(receive, send):
            await trio.sleep(1000)
            log.extend(await receive_all(receive))

        async with serving(
            application, websocket_queue_size=2, websocket_ping_interval=20, websocket_ping_timeout=20
        ) as served:
            client = served.client
            await client.connect()
            for i in range(messages):
                await client.send(str(i))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.wait_closed)  # answers pings all the time
                await trio.sleep(1100)
                await client.send_close(4001)
        assert len(log) == messages + 1
        assert log[-1]["code"] == 4001

    async def test_an_application_that_has_just_caught_up(self):
        """From then on the client has the whole timeout again: its pong may have waited behind other things."""
        told = []

        @accepting
        async def application(receive, send):
            await trio.sleep(39.5)
            told.extend(await receive_all(receive))

        async with serving(
            application,
            answers=False,
            websocket_queue_size=1,
            websocket_ping_interval=20,
            websocket_ping_timeout=20,
        ) as served:
            client = served.client
            await client.connect()
            for i in range(3):
                await client.send(str(i))
            await trio.sleep(41)
            await client.send_frame(PONG)
            await client.send_close(4001)
            await served.finished.wait()
        assert told[-1]["code"] == 4001

    async def test_an_application_that_is_always_a_little_behind(self):
        """It takes a message a second, and the client always has more."""
        log = []

        @accepting
        async def application(receive, send):
            while (message := await receive())["type"] == "websocket.receive":
                log.append(message)
                await trio.sleep(1)

        async with serving(
            application, websocket_queue_size=1, websocket_ping_interval=3, websocket_ping_timeout=1
        ) as served:
            client = served.client
            await client.connect()
            for i in range(100):
                await client.send(str(i))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.wait_closed)
                await trio.sleep(98.5)
                assert len(log) == 99
                await client.send_close(4001)
        assert len(log) == 100

    async def test_a_dead_peer_of_an_application_that_caught_up(self):
        """The allowance lasts as long as the application is behind, no longer."""
        told = []

        @accepting
        async def application(receive, send):
            await trio.sleep(100)
            told.append((await receive_all(receive), trio.current_time()))

        async with serving(
            application, websocket_queue_size=1, websocket_ping_interval=20, websocket_ping_timeout=20
        ) as served:
            await served.client.connect()
            for i in range(5):
                await served.client.send(str(i))
            await served.finished.wait()
        ((messages, when),) = told
        assert len(messages) == 6
        assert 120 <= when <= 160

    async def test_inf_switches_off(self):
        async with serving(echo, websocket_ping_interval=inf) as served:
            await open_raw(served.stream)
            assert await served.is_silent(HANG / 2)

    async def test_ping_timeout_of_inf_waits_for_ever(self):
        async with serving(echo, websocket_ping_interval=1, websocket_ping_timeout=inf) as served:
            await open_raw(served.stream)
            await trio.sleep(HANG / 2)
            assert await served.stream.receive_some(100) == bytes([0x80 | PING, 0])
            assert await served.is_silent(10)
            await served.stream.send_all(encode_frame(CLOSE))
            await served.finished.wait()

    async def test_no_ping_before_accept(self):
        async with serving(before_accept(sleep_for(100)), websocket_ping_interval=1) as served:
            await served.client.send_request()
            assert await served.is_silent(99)

    async def test_closing_while_a_ping_is_being_written(self):
        """Neither tears the other: the client reads slowly, and gets both."""

        @accepting
        async def application(receive, send):
            await trio.sleep(20.5)
            await send({**CLOSE_IT, "code": 4001})
            assert (await receive())["code"] == 4001

        async with serving(
            application, streams=partial(socket_like_pair, 1), websocket_ping_interval=20
        ) as served:
            await open_through(served.stream)
            await trio.sleep(22)
            data = await read_exactly(served.stream, 6)
            assert parse(data) == [(0x80 | PING, b""), (0x80 | CLOSE, close_payload(4001))]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.stream.send_all, encode_frame(CLOSE))
                assert await read_rest(served.stream) == b""
            await served.finished.wait()
            assert [each.complete for each in served.observer.ended] == [True]

    async def test_a_ping_without_an_answer_does_not_cut_the_close_short(self):
        """Once the close frame is sent, its own timeout is the one that counts."""

        @accepting
        async def application(receive, send):
            await trio.sleep(25)
            await send(CLOSE_IT)

        async with serving(
            application,
            websocket_ping_interval=20,
            websocket_ping_timeout=20,
            websocket_close_timeout=100,
        ) as served:
            await served.client.connect()
            await served.finished.wait()
            assert trio.current_time() == 125

    async def test_closing_while_a_ping_waits_behind_a_message(self):
        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, {"type": "websocket.send", "bytes": bytes(100)})
                await trio.sleep(20.5)
                await send({**CLOSE_IT, "code": 4001})

        async with serving(
            application, streams=partial(socket_like_pair, 10), websocket_ping_interval=20
        ) as served:
            await open_through(served.stream)
            await trio.sleep(22)
            assert await served.client.stream.receive_some(0x10) != b""
            rest = b""
            while not rest.endswith(close_payload(4001)):
                piece = await served.stream.receive_some(100)
                assert piece
                rest += piece
            await trio.aclose_forcefully(served.stream)
            await served.finished.wait()


class TestTimeouts:
    async def test_request_timeout_of_the_handshake(self):
        async with serving(before_accept(sleep_for(inf)), request_timeout=5) as served:
            with pytest.raises(WebSocketRejected) as rejected:
                await served.client.connect()
            assert rejected.value.status == 504
            assert trio.current_time() == 5

    async def test_request_timeout_is_over_with_the_handshake(self):
        async with serving(echo, request_timeout=5) as served:
            client = served.client
            await client.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.receive_pong)
                await trio.sleep(100)
                nursery.cancel_scope.cancel()
            await client.send("hello")
            assert await client.receive() == "hello"

    async def test_deadline_that_the_application_has_set_itself(self):
        """The extension's cancel scope is the application's: accepting does not undo it."""
        times = []

        async def application(scope, receive, send):
            scope["extensions"]["trigi"]["cancel_scope"].deadline = trio.current_time() + 50
            try:
                await send(ACCEPT)
                await trio.sleep_forever()
            finally:
                times.append(trio.current_time())

        async with serving(application, request_timeout=60, websocket_ping_interval=inf) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 1000
        assert times == [50]


class TestDraining:
    """Behaviour, section 2: 1012 and websocket.disconnect, then the grace."""

    async def test_both_sides_are_told(self):
        told = []

        @accepting
        async def application(receive, send):
            told.extend(await receive_all(receive))
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x"})
            await send(CLOSE_IT)

        async with serving(application) as served:
            client = served.client
            await client.connect()
            await client.send("before")
            await wait_all_tasks_blocked()
            served.drain()
            assert (await client.wait_closed()).code == 1012
            await client.wait_end()
            await served.finished.wait()
            assert trio.current_time() == 0
        assert told == [text("before"), {**LOST, "code": 1012}]
        assert [each.complete for each in served.observer.ended] == [True]

    async def test_grace(self):
        times = []

        @accepting
        async def application(receive, send):
            try:
                await trio.sleep_forever()
            finally:
                times.append(trio.current_time())

        async with serving(application, disconnect_grace=4) as served:
            await served.client.connect()
            await trio.sleep(1)
            served.drain()
            await served.client.wait_closed()
            await served.finished.wait()
        assert times == [5]

    async def test_client_that_does_not_answer(self):
        async with serving(echo, answers=False, websocket_close_timeout=7) as served:
            await served.client.connect()
            served.drain()
            await served.finished.wait()
            assert trio.current_time() == 7

    async def test_client_that_reads_nothing(self):
        """The application is told at once all the same, and shutdown waits no longer than the close timeout."""
        told = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def talk():
                    with pytest.raises(ClientDisconnected):
                        await send({"type": "websocket.send", "bytes": bytes(10_000)})

                await wait_all_tasks_blocked()
                await trio.sleep(1)
                with pytest.raises(ClientDisconnected):
                    await send({"type": "websocket.send", "text": "more"})
                told.append(trio.current_time())
                nursery.cancel_scope.cancel()
            told.append(await receive())

        async with serving(
            application, streams=narrow_pair, websocket_close_timeout=7, websocket_ping_interval=inf
        ) as served:
            await served.client.connect()
            await trio.sleep(0.5)
            served.drain()
            await served.finished.wait()
            assert trio.current_time() <= 7.5
        assert told == [1, {**LOST, "code": 1012}]

    @pytest.mark.parametrize(
        "application", [accepting(sleep_for(0.5)), accepting(lambda receive, _: receive())]
    )
    async def test_application_that_returns_while_the_close_frame_is_being_written(self, application):
        """It has done nothing wrong, and the client gets the whole frame."""
        async with serving(
            application,
            streams=partial(socket_like_pair, 1),
            websocket_close_timeout=7,
            websocket_ping_interval=inf,
        ) as served:
            await open_through(served.stream)
            served.drain()
            await trio.sleep(1)
            assert parse(await read_exactly(served.stream, 4)) == [(0x88, close_payload(1012))]
            await served.finished.wait()

    async def test_application_that_closes_at_the_same_time(self):
        """Its own code stands: that is what is on the wire."""
        told = []

        @accepting
        async def application(receive, send):
            await send({**CLOSE_IT, "code": 4001})
            told.append(await receive())

        async with serving(application, streams=partial(socket_like_pair, 1)) as served:
            await open_through(served.stream)
            await wait_all_tasks_blocked()
            served.drain()
            await wait_all_tasks_blocked()
            assert parse(await read_exactly(served.stream, 4)) == [(0x88, close_payload(4001))]
            await served.stream.aclose()
            await served.finished.wait()
        assert told == [{**LOST, "code": 4001}]

    async def test_full_queue(self):
        """The reader, which waits for the application, does not hold it up."""
        async with serving(accepting(sleep_for(inf)), websocket_queue_size=1) as served:
            client = served.client
            await client.connect()
            for i in range(20):
                await client.send(str(i))
            await wait_all_tasks_blocked()
            served.drain()
            assert (await client.wait_closed()).code == 1012
            await client.wait_end()
            await served.finished.wait()
            assert trio.current_time() == 5

    async def test_while_connecting(self):
        """The handshake is finished first; an accept is followed by the close."""
        go = trio.Event()
        log = []

        @before_accept
        async def application(receive, send):
            await go.wait()
            await send(ACCEPT)
            log.extend(await receive_all(receive))

        async with serving(application) as served:
            await served.client.send_request()
            await wait_all_tasks_blocked()
            served.drain()
            assert await served.is_silent(10)
            go.set()
            await served.client.receive_answer()
            assert (await served.client.wait_closed()).code == 1012
            await served.finished.wait()
        assert log == [{**LOST, "code": 1012}]

    async def test_while_connecting_and_refused(self):
        go = trio.Event()

        @before_accept
        async def application(receive, send):
            await go.wait()
            await send(CLOSE_IT)

        async with serving(application) as served:
            await served.http.request(headers=HANDSHAKE)
            await wait_all_tasks_blocked()
            served.drain()
            go.set()
            response = await served.http.response()
            assert (response.status, response.header(b"connection")) == (403, b"close")
            await served.finished.wait()

    async def test_while_the_accept_is_on_its_way(self):
        told = []

        @before_accept
        async def application(receive, send):
            await send(ACCEPT)
            told.extend(await receive_all(receive))

        async with serving(application, streams=partial(socket_like_pair, 16)) as served:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.client.send_request)
                await trio.sleep(1)
                served.drain()
                await trio.sleep(1)
                await served.client.receive_answer()
            assert (await served.client.wait_closed()).code == 1012
            await served.finished.wait()
        assert told == [{**LOST, "code": 1012}]

    async def test_twice(self):
        async with serving(echo) as served:
            await open_raw(served.stream)
            served.drain()
            served.drain()
            await wait_all_tasks_blocked()
            served.drain()
            await served.stream.send_all(encode_frame(CLOSE))
            assert parse(await read_rest(served.stream)) == [(0x88, close_payload(1012))]
            await served.finished.wait()

    async def test_after_the_client_has_left(self):
        async with serving(accepting(sleep_for(inf))) as served:
            await served.client.connect()
            await served.client.close(4001)
            served.drain()
            await served.finished.wait()
            assert trio.current_time() == 5

    async def test_after_the_application_was_told_of_a_loss(self):
        """I4: what it was told stays true."""
        told = []

        @accepting
        async def application(receive, send):
            with trio.move_on_after(1):
                await send({"type": "websocket.send", "bytes": bytes(10_000)})
            told.append(await receive())
            await trio.sleep(2)
            told.append(await receive())

        async with serving(application, streams=narrow_pair) as served:
            await served.client.connect()
            await trio.sleep(2)
            served.drain()
            await served.finished.wait()
        assert told == [LOST, LOST]

    async def test_after_the_websocket_while_an_earlier_request_still_works(self):
        """The connection is there until the last application call on it has ended."""

        async def application(scope, receive, send):
            if scope["type"] == "websocket":
                await echo(scope, receive, send)
            else:
                await send({"type": "http.response.start", "status": 204})
                await send({"type": "http.response.body"})
                await trio.sleep(100)

        async with serving(application) as served:
            assert (await served.http.fetch()).status == 204
            await served.client.connect()
            await served.client.close()
            await trio.sleep(10)
            assert served.context.connections
            served.drain()
            await served.finished.wait()
            assert trio.current_time() == 100


class TestCancellation:
    @pytest.mark.parametrize("deflate", [False, True])
    async def test_send_cancelled_by_the_application(self, deflate):
        """A frame is torn, and a compression window has moved on: the WebSocket ends, and all winds up."""
        outcomes = []

        @accepting
        async def application(receive, send):
            with trio.move_on_after(1) as scope:
                await send({"type": "websocket.send", "bytes": os.urandom(10_000)})
            outcomes.append(scope.cancelled_caught)
            outcomes.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "x" * 200})
            await send(CLOSE_IT)

        async with serving(application, streams=narrow_pair, disconnect_grace=inf) as served:
            await served.client.connect(deflate=deflate)
            await served.finished.wait()
            with pytest.raises(WebSocketClosed, match="1006"):
                await served.client.receive()
        assert outcomes == [True, LOST]
        assert len(served.observer.ended) == 1

    async def test_send_cancelled_while_it_waits_for_another(self):
        """Nothing of it is on the wire, but the compression window has moved on."""
        outcomes = []

        @accepting
        async def application(receive, send):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def talk():
                    with pytest.raises(ClientDisconnected):
                        await send({"type": "websocket.send", "bytes": os.urandom(10_000)})

                await wait_all_tasks_blocked()
                with trio.move_on_after(1):
                    await send({"type": "websocket.send", "text": "x" * 200})
            outcomes.append(await receive())

        async with serving(application, streams=narrow_pair, disconnect_grace=inf) as served:
            await served.client.connect(deflate=True)
            await served.finished.wait()
        assert outcomes == [LOST]

    async def test_close_cancelled_by_the_application(self):
        @accepting
        async def application(receive, send):
            with trio.move_on_after(1) as scope:
                await send(CLOSE_IT)
            assert scope.cancelled_caught
            assert (await receive())["type"] == "websocket.disconnect"

        async with serving(application, streams=partial(socket_like_pair, 1), disconnect_grace=inf) as served:
            await open_through(served.stream)
            await served.finished.wait()
            assert trio.current_time() == 1
            assert [each.complete for each in served.observer.ended] == [False]

    async def test_cancel_scope_of_the_extension(self):
        """The application may cancel its own call: then it has returned."""

        async def application(scope, receive, send):
            await send(ACCEPT)
            scope["extensions"]["trigi"]["cancel_scope"].cancel()
            await trio.sleep_forever()

        async with serving(application) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 1000

    async def test_stray_cancelled(self):
        """A `Cancelled` of another scope, let out by mistake, is a failure like any other."""

        @accepting
        async def application(receive, send):
            stray = []
            with trio.CancelScope() as scope:
                scope.cancel()
                try:
                    await trio.lowlevel.checkpoint()
                except trio.Cancelled as cancelled:
                    stray.append(cancelled)
                    raise
            raise stray[0]

        async with serving(application, fails=True) as served:
            await served.client.connect()
            assert (await served.client.wait_closed()).code == 1011
            assert len(served.observer.failures) == 1


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after so many steps of tasks: at each number once, it meets every checkpoint there is."""

    def __init__(self, step):
        self.scope = trio.CancelScope()
        self.left = step

    def after_task_step(self, task):
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def talk_and_close(served):
    await served.client.connect(deflate=True, early_data=encode_frame(PING, b"early"))
    await served.client.send("hello " * 100)
    await served.client.receive()
    await served.client.ping(b"x")
    await served.client.close(4001, "bye")


async def listen_to_the_end(served):
    await served.client.connect()
    await served.client.wait_closed()
    await served.client.wait_end()


async def leave(served):
    await served.client.connect()
    await served.client.send("hello")
    await served.client.aclose()


async def leave_early(served):
    await served.client.send_request()
    await wait_all_tasks_blocked()
    await served.client.aclose()


async def read_nothing(served):
    await served.client.connect()
    await trio.sleep(50)


async def be_drained(served):
    await served.client.connect()
    served.drain()
    await served.client.wait_closed()
    await served.client.wait_end()


async def be_denied(served):
    await served.http.fetch(headers=HANDSHAKE)
    await served.http.rest()


@before_accept
async def deny(receive, send):
    await send(DENY)
    await send({**DENIAL_BODY, "body": b"one", "more_body": True})
    await send({**DENIAL_BODY, "body": b"two"})
    await receive()


@accepting
async def close_first(receive, send):
    await send({"type": "websocket.send", "text": "hello"})
    await send({**CLOSE_IT, "code": 4001})
    await receive()


@accepting
async def raise_error(receive, send):
    raise ValueError("mine")


@accepting
async def talk_to_nobody(receive, send):
    with trio.move_on_after(40):
        await send({"type": "websocket.send", "bytes": bytes(10_000)})
    await receive()


SCENARIOS = {
    "echo": (echo, talk_and_close),
    "client leaves": (echo, leave),
    "client leaves early": (before_accept(lambda receive, send: receive()), leave_early),
    "client is silent": (echo, read_nothing),
    "application closes": (close_first, listen_to_the_end),
    "application returns": (accepting(sleep_for(1)), listen_to_the_end),
    "application raises": (raise_error, listen_to_the_end),
    "application refuses": (before_accept(lambda receive, send: send(CLOSE_IT)), be_denied),
    "application denies": (deny, be_denied),
    "client reads nothing": (talk_to_nobody, read_nothing),
    "server drains": (echo, be_drained),
    "bad handshake": (echo, lambda served: served.http.fetch(headers=without(b"sec-websocket-key"))),
}


@pytest.mark.parametrize(("application", "client"), SCENARIOS.values(), ids=SCENARIOS)
def test_cancelled_at_every_step(application, client):
    """The whole connection is: no hang, nothing comes out, each exchange is reported once, every call ends."""
    step = 0
    finished = False
    while not finished:
        step += 1
        canceller = CancelAtStep(step)
        calls = []

        async def counted(scope, receive, send, calls=calls):
            calls.append("begun")
            try:
                await application(scope, receive, send)
            finally:
                calls.append("ended")

        async def main(canceller=canceller, application=counted):
            client_end, server_end = narrow_pair()
            served = Served(application, {"request_timeout": 1000}, client_end, server_end)

            async def act():
                with suppress(
                    WebSocketClosed,
                    WebSocketRejected,
                    EOFError,
                    trio.BrokenResourceError,
                    trio.ClosedResourceError,
                ):
                    await client(served)
                await client_end.aclose()

            with trio.fail_after(HANG):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(act)
                    with canceller.scope:
                        await serve_stream(server_end, served.context)
                        served.finished.set()
                    if not served.finished.is_set():
                        with pytest.raises(trio.ClosedResourceError):
                            await server_end.receive_some(1)
                        await client_end.aclose()
            return served

        served = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[canceller])
        served.check(fails=bool(served.observer.failures))
        finished = served.finished.is_set() and canceller.left > 0
        assert calls in ([], ["begun", "ended"])
        assert len(served.observer.ended) <= 1
        assert len(served.observer.ended) >= len(calls) // 2
        assert [str(each) for each in served.observer.failures] in ([], ["mine"])
    assert step > 20


class TestClient:
    """The tests' own client: it must not overlook what a server does wrong."""

    @asynccontextmanager
    async def answered(self, data, *, accept=KEY_ACCEPTED, answers=True):
        """A client whose handshake is accepted, and what a server sends after that."""
        stream, server = memory_stream_pair()
        client = WebSocketClient(stream, answers=answers)
        await client.send_request()
        head = bytes(await server.receive_some())
        if accept is KEY_ACCEPTED:
            key = head.partition(b"Sec-WebSocket-Key: ")[2][:24]
            accept = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID).digest())
        await server.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + data
        )
        yield client, server

    async def test_wrong_accept_key(self):
        async with self.answered(b"", accept=b"wrong") as (client, _):
            with pytest.raises(RemoteProtocolError):
                await client.receive_answer()

    @pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 101 ", b"HTTP/1.1 403 \r\ncontent-length: 5\r\n\r\nab"])
    async def test_server_that_closes_before_it_has_answered(self, sent):
        stream, server = memory_stream_pair()
        client = WebSocketClient(stream)
        await client.send_request()
        await server.send_all(sent)
        await server.aclose()
        with pytest.raises(WebSocketClosed, match="1006"):
            await client.receive_answer()

    @pytest.mark.parametrize(
        "bad", [b"\x83\x00", b"\x81\x01\xff", b"\xf1\x00", b"\x80\x00", b"\x89\x7e\x00\x7e"]
    )
    async def test_server_that_breaks_the_protocol(self, bad):
        async with self.answered(b"\x81\x02ok" + bad + bytes(126)) as (client, _):
            await client.receive_answer()
            assert await client.receive() == "ok"
            with pytest.raises(RemoteProtocolError):
                await client.receive()

    async def test_what_comes_is_kept_apart_and_in_order(self):
        frames = b"\x01\x01a\x89\x01?\x80\x01b\x8a\x01!\x82\x01c\x88\x05\x0f\xa1bye"
        async with self.answered(frames) as (client, server):
            await client.receive_answer()
            assert await client.receive_pong() == b"!"
            assert await client.receive_ping() == b"?"
            assert [await client.receive(), await client.receive()] == ["ab", b"c"]
            for _ in range(2):
                with pytest.raises(WebSocketClosed) as closed:
                    await client.receive()
                assert (closed.value.code, closed.value.reason) == (4001, "bye")
            answers = bytes(await server.receive_some())
            assert (answers[0], answers[7]) == (0x8A, 0x88)

    async def test_silent_if_so_wanted(self):
        async with self.answered(b"\x89\x00\x88\x00", answers=False) as (client, server):
            await client.receive_answer()
            assert (await client.wait_closed()).code == 1005
            await client.aclose()
            assert await server.receive_some() == b""

    async def test_server_that_does_not_wait_for_the_answer(self):
        async with self.answered(b"\x88\x02\x03\xe8 and more") as (client, server):
            await client.receive_answer()
            await server.aclose()
            assert (await client.wait_closed()).code == 1000
            await client.wait_end()

    async def test_end_of_the_connection(self):
        async with self.answered(b"\x81\x05to be") as (client, server):
            await client.receive_answer()
            await server.aclose()
            assert await client.receive() == "to be"
            with pytest.raises(WebSocketClosed, match="1006"):
                await client.receive()
