"""RFC 9113 section by section, from outside: frames go in, the exact answers come back.

What a client does wrong is either a stream error, after which the connection serves on, or a connection error: GOAWAY
with the code and with the last stream that was looked at, then the end. Each case of h2spec has its like here.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from math import inf
from random import Random

import hpack
import pytest
import trio
import trio.testing

from tests.connection.conftest import read_body, respond, send_body, start
from trigi.testing.http2 import (
    PREFACE,
    ConnectionClosed,
    ErrorCode,
    Flag,
    FrameType,
    HTTP2Client,
    SettingCode,
    StreamReset,
    encode_frame,
)
from trigi.testing.websocket import encode_frame as encode_websocket_frame

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    FrameType.DATA,
    FrameType.HEADERS,
    FrameType.PRIORITY,
    FrameType.RST_STREAM,
    FrameType.SETTINGS,
    FrameType.PUSH_PROMISE,
    FrameType.PING,
    FrameType.GOAWAY,
    FrameType.WINDOW_UPDATE,
    FrameType.CONTINUATION,
)
PRIORITY_UPDATE = FrameType.PRIORITY_UPDATE
UNKNOWN = 0x42
END_STREAM, END_HEADERS, PADDED, PRIORITIZED, ACK = (
    Flag.END_STREAM,
    Flag.END_HEADERS,
    Flag.PADDED,
    Flag.PRIORITY,
    Flag.ACK,
)
WHOLE = END_STREAM | END_HEADERS

PROTOCOL_ERROR = ErrorCode.PROTOCOL_ERROR
FLOW_CONTROL_ERROR = ErrorCode.FLOW_CONTROL_ERROR
STREAM_CLOSED = ErrorCode.STREAM_CLOSED
FRAME_SIZE_ERROR = ErrorCode.FRAME_SIZE_ERROR
REFUSED_STREAM = ErrorCode.REFUSED_STREAM
COMPRESSION_ERROR = ErrorCode.COMPRESSION_ERROR
ENHANCE_YOUR_CALM = ErrorCode.ENHANCE_YOUR_CALM


def block(*fields):
    """A field block that neither needs nor changes the table, so that it can be sent at any time."""
    return hpack.Encoder().encode([(name, value, True) for name, value in fields])


def pseudo(method=b"GET", path=b"/", authority=b"localhost", scheme=b"http"):
    fields = [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path)]
    return [(name, value) for name, value in fields if value is not None]


GET = block(*pseudo())
POST = block(*pseudo(b"POST"))
UNPRIORITIZED = struct.pack(">LB", 0, 15)


def number(value):
    return struct.pack(">L", value)


def setting(code, value):
    return struct.pack(">HL", code, value)


def cases(table):
    """A parametrisation by a table whose keys are names."""
    return {"argvalues": [*table.values()], "ids": [name.replace(" ", "-") for name in table]}


class Application:
    """Echoes the request's body, when it may.

    Attributes:
        calls: the scopes.
        bodies: by path: what was received, `None` if the client left before its end.
        gates: by path: what a call waits for before it responds.
    """

    def __init__(self, *held):
        self.calls = []
        self.bodies = {}
        self.gates = {path: trio.Event() for path in held}

    async def __call__(self, scope, receive, send):
        self.calls.append(scope)
        path = scope["path"]
        self.bodies[path] = body = await read_body(receive)
        if path in self.gates:
            await self.gates[path].wait()
        if body is not None:
            await respond(send, body)

    @property
    def paths(self):
        return [scope["path"] for scope in self.calls]


class Client(HTTP2Client):
    """A client that knows what it is connected to.

    Attributes:
        served: the connection as `serve` gave it.
        app: the application.
    """

    served = app = None

    def sent(self, *frames):
        """The bytes of frames that are about to be sent as bytes; given as the arguments of `send_frame`."""
        wire = b""
        for kind, flags, stream_id, payload in map(_filled, frames):
            self._count_sent(kind, flags, stream_id, payload)
            wire += encode_frame(kind, flags, stream_id, payload)
        return wire

    async def send_all(self, frames):
        """Send frames, given as the arguments of `send_frame`, as far as the server takes them."""
        with suppress(trio.BrokenResourceError):
            for frame in frames:
                await self.send_frame(*frame)

    async def serves_on(self):
        """Check that the connection is not disturbed."""
        response = await self.fetch("/after", headers=[(b"x-after", b"1")])
        assert (response.status, response.body) == (200, b"")


@pytest.fixture
def connect(serve):
    """Connects a client to an application, through the preface and both sides' SETTINGS."""

    async def connect(
        app=None, *, settings=None, answers=True, auto_window=True, preface=True, **configuration
    ):
        app = app or Application()
        served = serve(app, **configuration)
        client = Client(served.stream, answers=answers, auto_window=auto_window)
        client.served, client.app = served, app
        if preface:
            await client.connect(settings)
        return client

    return connect


async def stream_error(client, stream_id, code):
    """Check that the stream is reset, with this code or one of these, and that the connection serves on."""
    assert (await client.wait_reset(stream_id)).code in _codes(code)
    await client.serves_on()


async def connection_error(client, code, *, last=range(2)):
    """Check that the connection ends, with this code or one of these; that the `last` stream is one of these, too."""
    with trio.fail_after(100):
        closed = await client.wait_closed()
    assert closed.code in _codes(code), closed
    assert closed.last_stream_id in last


async def either_error(client, stream_id, code):
    """Check that the stream or the connection ends with this code or one of these."""
    try:
        assert (await client.wait_reset(stream_id)).code in _codes(code)
    except ConnectionClosed:
        await connection_error(client, code, last=range(stream_id + 1))


def _codes(code):
    return code if isinstance(code, set) else {code}


# 3.4 The preface


async def test_the_server_begins_with_its_settings(connect):
    client = await connect(preface=False, h2_max_concurrent_streams=42)
    await client.send(PREFACE)
    frame = await client.frame()
    assert frame.type == SETTINGS
    assert client.settings[SettingCode.MAX_CONCURRENT_STREAMS] == 42
    assert client.settings[SettingCode.ENABLE_CONNECT_PROTOCOL] == 1
    assert client.settings[SettingCode.NO_RFC7540_PRIORITIES] == 1
    assert SettingCode.ENABLE_PUSH not in client.settings


async def test_the_preface_and_a_request_at_once(connect):
    """Nobody has to wait for the other's SETTINGS."""
    client = await connect(preface=False)
    await client.send(PREFACE + client.sent((SETTINGS,), (HEADERS, WHOLE, 1, GET)))
    assert (await client.response(1)).status == 200


async def test_byte_by_byte(connect):
    client = await connect(preface=False)
    wire = PREFACE + client.sent((SETTINGS,), (HEADERS, WHOLE, 1, GET))
    for position in range(len(wire)):
        await client.send(wire[position : position + 1])
        await client.served.settle()
    assert (await client.response(1)).status == 200


@pytest.mark.parametrize(
    "preface",
    [
        b"INVALID CONNECTION PREFACE\r\n\r\n",
        PREFACE[:-4] + b"XX\r\n",
        b"PRI * HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_preface_is_no_http2(connect, preface):
    client = await connect(preface=False)
    await client.send(preface + encode_frame(SETTINGS))
    with suppress(trio.BrokenResourceError):
        await client.stream.send_eof()
    answer = await client.served.rest()
    goaway = encode_frame(GOAWAY, 0, 0, number(0) + number(PROTOCOL_ERROR))
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")) or answer == b"" or answer.endswith(goaway)
    assert client.app.calls == []


@pytest.mark.parametrize("size", [1, 3, 14, 23])
async def test_the_end_inside_the_preface(connect, size):
    client = await connect(preface=False)
    await client.send(PREFACE[:size])
    await client.stream.send_eof()
    assert (await client.served.rest()).startswith((b"", b"HTTP/1.1 400"))
    assert client.app.calls == []


@pytest.mark.parametrize(
    "frame",
    [
        (PING, 0, 0, bytes(8)),
        (HEADERS, WHOLE, 1, GET),
        (UNKNOWN, 0, 0, b""),
        (WINDOW_UPDATE, 0, 0, number(1)),
    ],
    ids=["PING", "HEADERS", "unknown", "WINDOW_UPDATE"],
)
async def test_the_first_frame_must_be_settings(connect, frame):
    client = await connect(preface=False)
    await client.send(PREFACE)
    await client.send_all([frame])
    await connection_error(client, PROTOCOL_ERROR)
    assert client.app.calls == []


async def test_the_settings_need_not_be_acknowledged_for_requests(connect):
    client = await connect(answers=False)
    await client.serves_on()


async def test_upgrading_is_no_way_to_http2(connect):
    """3.1: the upgrade to h2c is no more."""
    client = await connect(preface=False)
    headers = [(b"connection", b"upgrade, http2-settings"), (b"upgrade", b"h2c"), (b"http2-settings", b"")]
    response = await client.served.fetch("/", headers=headers)
    assert (response.status, response.http_version) == (200, b"1.1")


@pytest.mark.parametrize("wire", [PREFACE, PREFACE + encode_frame(SETTINGS, size=6)], ids=["no", "half"])
async def test_settings_that_do_not_come(connect, wire):
    client = await connect(preface=False, answers=False, header_timeout=10)
    await client.send(wire)
    await client.wait_closed()
    assert trio.current_time() <= 10


# Connection errors, on a connection that has answered one request. Unless it says so, the last stream is the first.

TOO_LARGE = bytes(16385)
AFTER_HEADERS = [(HEADERS, END_STREAM, 3, GET[:3])]

CONNECTION_ERRORS = {
    # 4.2 Frame size
    "4.2 large HEADERS": ([(HEADERS, WHOLE, 3, TOO_LARGE)], FRAME_SIZE_ERROR),
    "4.2 large SETTINGS": ([(SETTINGS, 0, 0, bytes(6 * 2731))], FRAME_SIZE_ERROR),
    "4.2 large PING": ([(PING, 0, 0, TOO_LARGE)], FRAME_SIZE_ERROR),
    "4.2 large GOAWAY": ([(GOAWAY, 0, 0, TOO_LARGE)], FRAME_SIZE_ERROR),
    "4.2 large unknown frame": ([(UNKNOWN, 0, 0, TOO_LARGE)], FRAME_SIZE_ERROR),
    "4.2 large CONTINUATION": ([*AFTER_HEADERS, (CONTINUATION, END_HEADERS, 3, TOO_LARGE)], FRAME_SIZE_ERROR),
    # 4.3 Field blocks: nothing comes between their frames
    "4.3 DATA in a block": ([*AFTER_HEADERS, (DATA, 0, 3, b"x")], PROTOCOL_ERROR),
    "4.3 HEADERS in a block": ([*AFTER_HEADERS, (HEADERS, WHOLE, 3, GET)], PROTOCOL_ERROR),
    "4.3 HEADERS of another stream in a block": ([*AFTER_HEADERS, (HEADERS, WHOLE, 5, GET)], PROTOCOL_ERROR),
    "4.3 PRIORITY in a block": ([*AFTER_HEADERS, (PRIORITY, 0, 3, UNPRIORITIZED)], PROTOCOL_ERROR),
    "4.3 PRIORITY of another stream in a block": (
        [*AFTER_HEADERS, (PRIORITY, 0, 5, UNPRIORITIZED)],
        PROTOCOL_ERROR,
    ),
    "4.3 RST_STREAM in a block": ([*AFTER_HEADERS, (RST_STREAM, 0, 3, number(8))], PROTOCOL_ERROR),
    "4.3 SETTINGS in a block": ([*AFTER_HEADERS, (SETTINGS,)], PROTOCOL_ERROR),
    "4.3 SETTINGS ACK in a block": ([*AFTER_HEADERS, (SETTINGS, ACK)], PROTOCOL_ERROR),
    "4.3 PING in a block": ([*AFTER_HEADERS, (PING, 0, 0, bytes(8))], PROTOCOL_ERROR),
    "4.3 GOAWAY in a block": ([*AFTER_HEADERS, (GOAWAY, 0, 0, bytes(8))], PROTOCOL_ERROR),
    "4.3 WINDOW_UPDATE in a block": ([*AFTER_HEADERS, (WINDOW_UPDATE, 0, 0, number(1))], PROTOCOL_ERROR),
    "5.5 unknown frame in a block": ([*AFTER_HEADERS, (UNKNOWN, 0, 0, b"x")], PROTOCOL_ERROR),
    "5.5 unknown frame of the stream in a block": ([*AFTER_HEADERS, (UNKNOWN, 0, 3, b"x")], PROTOCOL_ERROR),
    "4.3 CONTINUATION of another stream": (
        [*AFTER_HEADERS, (CONTINUATION, END_HEADERS, 5, GET[3:])],
        PROTOCOL_ERROR,
    ),
    # 5.1 Idle streams
    "5.1 DATA on an idle stream": ([(DATA, END_STREAM, 3, b"x")], PROTOCOL_ERROR),
    "5.1 RST_STREAM on an idle stream": ([(RST_STREAM, 0, 3, number(8))], PROTOCOL_ERROR),
    "5.1 WINDOW_UPDATE on an idle stream": ([(WINDOW_UPDATE, 0, 3, number(100))], PROTOCOL_ERROR),
    "5.1 CONTINUATION on an idle stream": ([(CONTINUATION, END_HEADERS, 3, GET)], PROTOCOL_ERROR),
    "5.1 DATA on a stream of the server's": ([(DATA, END_STREAM, 2, b"x")], PROTOCOL_ERROR),
    "5.1 RST_STREAM on a stream of the server's": ([(RST_STREAM, 0, 2, number(8))], PROTOCOL_ERROR),
    "5.1 WINDOW_UPDATE on a stream of the server's": ([(WINDOW_UPDATE, 0, 2, number(100))], PROTOCOL_ERROR),
    # 5.1 Closed streams: ended by both sides
    "5.1 DATA on a closed stream": ([(DATA, 0, 1, b"x")], STREAM_CLOSED),
    "5.1 DATA with END_STREAM on a closed stream": ([(DATA, END_STREAM, 1, b"x")], STREAM_CLOSED),
    "5.1 HEADERS on a closed stream": ([(HEADERS, WHOLE, 1, GET)], STREAM_CLOSED),
    "5.1 CONTINUATION on a closed stream": (
        [(CONTINUATION, END_HEADERS, 1, GET)],
        {STREAM_CLOSED, PROTOCOL_ERROR},
    ),
    # 5.1.1 Stream identifiers
    "5.1.1 even": ([(HEADERS, WHOLE, 2, GET)], PROTOCOL_ERROR),
    "5.1.1 high and even": ([(HEADERS, WHOLE, 0x7FFFFFFE, GET)], PROTOCOL_ERROR),
    # 6.1 DATA
    "6.1 DATA on the connection": ([(DATA, 0, 0, b"x")], PROTOCOL_ERROR),
    # 6.2 HEADERS
    "6.2 HEADERS on the connection": ([(HEADERS, WHOLE, 0, GET)], PROTOCOL_ERROR),
    "6.2 as much padding as payload": ([(HEADERS, WHOLE | PADDED, 3, b"\x01")], PROTOCOL_ERROR),
    "6.2 more padding than payload": (
        [(HEADERS, WHOLE | PADDED, 3, bytes([len(GET) + 1]) + GET)],
        PROTOCOL_ERROR,
    ),
    "6.2 more padding than payload beside a priority": (
        [(HEADERS, WHOLE | PADDED | PRIORITIZED, 3, bytes([len(GET) + 1]) + UNPRIORITIZED + GET)],
        PROTOCOL_ERROR,
    ),
    "6.2 no room for the length of padding": (
        [(HEADERS, WHOLE | PADDED, 3, b"")],
        {FRAME_SIZE_ERROR, PROTOCOL_ERROR},
    ),
    "6.2 no room for the priority": (
        [(HEADERS, WHOLE | PRIORITIZED, 3, bytes(4))],
        {FRAME_SIZE_ERROR, PROTOCOL_ERROR},
    ),
    # 6.3 PRIORITY
    "6.3 PRIORITY on the connection": ([(PRIORITY, 0, 0, UNPRIORITIZED)], PROTOCOL_ERROR),
    # 6.4 RST_STREAM
    "6.4 RST_STREAM on the connection": ([(RST_STREAM, 0, 0, number(8))], PROTOCOL_ERROR),
    "6.4 RST_STREAM of 3 bytes": (
        [(HEADERS, END_HEADERS, 3, POST), (RST_STREAM, 0, 3, bytes(3))],
        FRAME_SIZE_ERROR,
    ),
    "6.4 RST_STREAM of 5 bytes": (
        [(HEADERS, END_HEADERS, 3, POST), (RST_STREAM, 0, 3, bytes(5))],
        FRAME_SIZE_ERROR,
    ),
    "6.4 RST_STREAM of nothing": (
        [(HEADERS, END_HEADERS, 3, POST), (RST_STREAM, 0, 3, b"")],
        FRAME_SIZE_ERROR,
    ),
    # 6.5 SETTINGS
    "6.5 ACK with settings": ([(SETTINGS, ACK, 0, setting(0x3, 1))], FRAME_SIZE_ERROR),
    "6.5 ACK with one byte": ([(SETTINGS, ACK, 0, b"x")], FRAME_SIZE_ERROR),
    "6.5 SETTINGS on a stream": ([(SETTINGS, 0, 1, setting(0x3, 1))], PROTOCOL_ERROR),
    "6.5 SETTINGS on an idle stream": ([(SETTINGS, 0, 3, b"")], PROTOCOL_ERROR),
    "6.5 SETTINGS of 3 bytes": ([(SETTINGS, 0, 0, bytes(3))], FRAME_SIZE_ERROR),
    "6.5 SETTINGS of 7 bytes": ([(SETTINGS, 0, 0, bytes(7))], FRAME_SIZE_ERROR),
    "6.5.2 ENABLE_PUSH": ([(SETTINGS, 0, 0, setting(SettingCode.ENABLE_PUSH, 2))], PROTOCOL_ERROR),
    "6.5.2 INITIAL_WINDOW_SIZE": (
        [(SETTINGS, 0, 0, setting(SettingCode.INITIAL_WINDOW_SIZE, 2**31))],
        FLOW_CONTROL_ERROR,
    ),
    "6.5.2 MAX_FRAME_SIZE small": (
        [(SETTINGS, 0, 0, setting(SettingCode.MAX_FRAME_SIZE, 16383))],
        PROTOCOL_ERROR,
    ),
    "6.5.2 MAX_FRAME_SIZE large": (
        [(SETTINGS, 0, 0, setting(SettingCode.MAX_FRAME_SIZE, 2**24))],
        PROTOCOL_ERROR,
    ),
    "6.5.2 a bad setting behind a good one": (
        [(SETTINGS, 0, 0, setting(SettingCode.ENABLE_PUSH, 0) + setting(SettingCode.ENABLE_PUSH, 2))],
        PROTOCOL_ERROR,
    ),
    "RFC 9218 2.1 NO_RFC7540_PRIORITIES": (
        [(SETTINGS, 0, 0, setting(SettingCode.NO_RFC7540_PRIORITIES, 2))],
        PROTOCOL_ERROR,
    ),
    # 6.6 PUSH_PROMISE
    "6.6 PUSH_PROMISE": ([(PUSH_PROMISE, END_HEADERS, 1, number(2) + GET)], PROTOCOL_ERROR),
    "6.6 PUSH_PROMISE on an open stream": (
        [(HEADERS, END_HEADERS, 3, POST), (PUSH_PROMISE, END_HEADERS, 3, number(2) + GET)],
        PROTOCOL_ERROR,
    ),
    "6.6 PUSH_PROMISE on the connection": ([(PUSH_PROMISE, END_HEADERS, 0, number(2) + GET)], PROTOCOL_ERROR),
    # 6.7 PING
    "6.7 PING on a stream": ([(PING, 0, 1, bytes(8))], PROTOCOL_ERROR),
    "6.7 PING of 6 bytes": ([(PING, 0, 0, bytes(6))], FRAME_SIZE_ERROR),
    "6.7 PING of 9 bytes": ([(PING, 0, 0, bytes(9))], FRAME_SIZE_ERROR),
    "6.7 PING of nothing": ([(PING, 0, 0, b"")], FRAME_SIZE_ERROR),
    "6.7 ACK of 6 bytes": ([(PING, ACK, 0, bytes(6))], FRAME_SIZE_ERROR),
    # 6.8 GOAWAY
    "6.8 GOAWAY on a stream": ([(GOAWAY, 0, 1, bytes(8))], PROTOCOL_ERROR),
    "6.8 GOAWAY of 7 bytes": ([(GOAWAY, 0, 0, bytes(7))], FRAME_SIZE_ERROR),
    # 6.9 WINDOW_UPDATE
    "6.9 nothing for the connection": ([(WINDOW_UPDATE, 0, 0, number(0))], PROTOCOL_ERROR),
    "6.9 nothing but the reserved bit": ([(WINDOW_UPDATE, 0, 0, number(2**31))], PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE of 3 bytes": ([(WINDOW_UPDATE, 0, 0, bytes(3))], FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of 5 bytes": ([(WINDOW_UPDATE, 0, 0, bytes(5))], FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of 3 bytes on a stream": (
        [(HEADERS, END_HEADERS, 3, POST), (WINDOW_UPDATE, 0, 3, bytes(3))],
        FRAME_SIZE_ERROR,
    ),
    "6.9.1 more than all for the connection": (
        [(WINDOW_UPDATE, 0, 0, number(2**31 - 1))],
        FLOW_CONTROL_ERROR,
    ),
    "6.9.1 more than all for the connection in two steps": (
        [(WINDOW_UPDATE, 0, 0, number(2**30))] * 2,
        FLOW_CONTROL_ERROR,
    ),
    "6.9.2 settings that give a stream more than all": (
        [
            (HEADERS, END_HEADERS, 3, POST),
            (WINDOW_UPDATE, 0, 3, number(2**31 - 1 - 65535)),
            (SETTINGS, 0, 0, setting(SettingCode.INITIAL_WINDOW_SIZE, 65536)),
        ],
        FLOW_CONTROL_ERROR,
    ),
    # 6.10 CONTINUATION
    "6.10 CONTINUATION behind the end of a block": (
        [(HEADERS, END_HEADERS, 3, POST), (CONTINUATION, END_HEADERS, 3, b"")],
        PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION behind CONTINUATION": (
        [*AFTER_HEADERS, (CONTINUATION, END_HEADERS, 3, GET[3:]), (CONTINUATION, END_HEADERS, 3, b"")],
        PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION behind DATA": (
        [(HEADERS, END_HEADERS, 3, POST), (DATA, 0, 3, b"x"), (CONTINUATION, END_HEADERS, 3, b"")],
        PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION on the connection": ([(CONTINUATION, END_HEADERS, 0, GET)], PROTOCOL_ERROR),
    "6.10 CONTINUATION on the connection in a block": (
        [*AFTER_HEADERS, (CONTINUATION, END_HEADERS, 0, GET[3:])],
        PROTOCOL_ERROR,
    ),
    # RFC 9218, 7.1
    "PRIORITY_UPDATE on a stream": ([(PRIORITY_UPDATE, 0, 1, number(3) + b"u=1")], PROTOCOL_ERROR),
    "PRIORITY_UPDATE of the connection": ([(PRIORITY_UPDATE, 0, 0, number(0) + b"u=1")], PROTOCOL_ERROR),
    "PRIORITY_UPDATE of 3 bytes": (
        [(PRIORITY_UPDATE, 0, 0, bytes(3))],
        {FRAME_SIZE_ERROR, PROTOCOL_ERROR},
    ),
}


@pytest.mark.parametrize(("frames", "code"), **cases(CONNECTION_ERRORS))
async def test_connection_errors(connect, frames, code):
    client = await connect()
    await client.fetch()
    await client.send_all(frames)
    opened = max([stream_id for kind, _, stream_id, *_ in map(_filled, frames) if kind == HEADERS], default=1)
    await connection_error(client, code, last=range(1, max(opened, 1) + 1))


def _filled(frame):
    return (*frame, *(0, 0, 0, b"")[len(frame) :])


@pytest.mark.parametrize(("frames", "code"), **cases(CONNECTION_ERRORS))
async def test_connection_errors_are_the_end(connect, frames, code):
    """What comes behind the error, even in the same segment, is not looked at; whoever was being answered is told."""
    app = Application("/held")
    client = await connect(app)
    await client.fetch()
    held = await client.request(path="/held")
    await client.served.settle()
    # the second stream is in use
    moved = [
        (kind, flags, stream_id + 2 if stream_id in {3, 5} else stream_id, payload)
        for kind, flags, stream_id, payload in map(_filled, frames)
    ]
    behind = (HEADERS, WHOLE, 101, block(*pseudo(path=b"/behind")))
    await client.send(client.sent(*moved, behind))
    with trio.fail_after(100):
        closed = await client.wait_closed()
    assert closed.code in _codes(code)
    assert closed.last_stream_id >= held
    assert closed.last_stream_id < 101
    app.gates["/held"].set()
    await client.served.settle()
    assert "/behind" not in app.paths
    assert len(client.served.observer.exchanges) == len(app.calls)


async def test_a_connection_error_before_any_stream(connect):
    client = await connect()
    await client.send_frame(PING, 0, 1, bytes(8))
    await connection_error(client, PROTOCOL_ERROR, last=[0])


# 4.1, 5.5 What is ignored

IGNORED = {
    "4.1 unknown frame": [(UNKNOWN, 0, 0, b"junk")],
    "4.1 unknown frame with flags": [(UNKNOWN, 0xFF, 0, b"junk")],
    "4.1 unknown empty frame": [(0xFF, 0, 0, b"")],
    "4.1 unknown frame on a closed stream": [(UNKNOWN, 0, 1, b"junk")],
    "4.1 unknown frame on an idle stream": [(UNKNOWN, 0, 99, b"junk")],
    "4.1 unknown frame of the largest size": [(UNKNOWN, 0, 0, bytes(16384))],
    "5.1 PRIORITY on an idle stream": [(PRIORITY, 0, 99, UNPRIORITIZED)],
    "5.1 PRIORITY on a closed stream": [(PRIORITY, 0, 1, UNPRIORITIZED)],
    "5.1 RST_STREAM on a closed stream": [(RST_STREAM, 0, 1, number(8))],
    "5.1 WINDOW_UPDATE on a closed stream": [(WINDOW_UPDATE, 0, 1, number(100))],
    "5.3 PRIORITY of weight 256": [(PRIORITY, 0, 3, struct.pack(">LB", 0, 255))],
    "5.3 PRIORITY with a dependency": [(PRIORITY, 0, 3, struct.pack(">LB", 1, 15))],
    "5.3 PRIORITY with an exclusive dependency": [(PRIORITY, 0, 3, struct.pack(">LB", 2**31 + 1, 15))],
    "6.3 PRIORITY on a stream of the server's": [(PRIORITY, 0, 2, UNPRIORITIZED)],
    "6.5.2 unknown setting": [(SETTINGS, 0, 0, setting(0xFF, 0xFFFFFFFF))],
    "6.5.2 GREASE": [(SETTINGS, 0, 0, b"".join(setting(0x0A0A + 0x1010 * each, each) for each in range(15)))],
    "6.5.2 MAX_CONCURRENT_STREAMS of 0": [(SETTINGS, 0, 0, setting(SettingCode.MAX_CONCURRENT_STREAMS, 0))],
    "6.5.2 MAX_HEADER_LIST_SIZE of 0": [(SETTINGS, 0, 0, setting(SettingCode.MAX_HEADER_LIST_SIZE, 0))],
    "6.5.2 ENABLE_PUSH": [(SETTINGS, 0, 0, setting(SettingCode.ENABLE_PUSH, 1))],
    "6.5.2 ENABLE_CONNECT_PROTOCOL": [(SETTINGS, 0, 0, setting(SettingCode.ENABLE_CONNECT_PROTOCOL, 1))],
    "6.7 answer to no PING": [(PING, ACK, 0, b"12345678")],
    "7 RST_STREAM with an unknown code": [
        (HEADERS, END_HEADERS, 3, POST),
        (RST_STREAM, 0, 3, number(0xFFFFFFFF)),
    ],
    "6.9 reserved bit of WINDOW_UPDATE": [(WINDOW_UPDATE, 0, 0, number(2**31 + 1))],
    "RFC 9218 PRIORITY_UPDATE of a closed stream": [(PRIORITY_UPDATE, 0, 0, number(1) + b"u=1, i")],
    "RFC 9218 PRIORITY_UPDATE of an idle stream": [(PRIORITY_UPDATE, 0, 0, number(3) + b"u=1, i")],
    "RFC 9218 PRIORITY_UPDATE that cannot be read": [(PRIORITY_UPDATE, 0, 0, number(3) + b"\xff;;(")],
    "RFC 9218 PRIORITY_UPDATE without a value": [(PRIORITY_UPDATE, 0, 0, number(3))],
    "RFC 7838 ALTSVC": [(0xA, 0, 0, b"\x00\x00")],
}


@pytest.mark.parametrize("frames", **cases(IGNORED))
async def test_ignored(connect, frames):
    client = await connect()
    await client.fetch()
    await client.send_all(frames)
    await client.serves_on()


async def test_undefined_flags_are_ignored(connect):
    """4.1: "Unused flags MUST be ignored on receipt"."""
    client = await connect()
    await client.send_frame(PING, 0xFE, 0, b"12345678")
    assert (await client.frame(PING)).payload == b"12345678"
    await client.send_frame(HEADERS, END_HEADERS | 0xD2 & ~PADDED & ~PRIORITIZED, 1, POST)
    await client.send_frame(DATA, 0xF6 | END_STREAM, 1, b"hello")
    assert (await client.response(1)).body == b"hello"
    await client.send_frame(SETTINGS, 0xFE, 0, b"")
    await client.send_frame(WINDOW_UPDATE, 0xFF, 0, number(1))
    await client.send_frame(HEADERS, 0xD2 & ~PADDED & ~PRIORITIZED | END_STREAM, 3, GET[:5])
    await client.send_frame(CONTINUATION, 0xFF, 3, GET[5:])
    assert (await client.response(3)).status == 200
    while client._unacknowledged:
        await client.frame()


async def test_the_reserved_bit_is_ignored(connect):
    client = await connect()
    await client.send_frame(PING, 0, 2**31, b"12345678")
    assert (await client.frame(PING)).payload == b"12345678"
    client._stream(1)
    await client.send(encode_frame(HEADERS, WHOLE, 2**31 + 1, GET))
    assert (await client.response(1)).status == 200


async def test_the_largest_frame(connect):
    client = await connect()
    stream_id = await client.request("POST", end_stream=False)
    await client.send_data(stream_id, b"x" * 16384, end_stream=True)
    assert (await client.response(stream_id)).body == b"x" * 16384


async def test_a_frame_that_is_too_large(connect):
    client = await connect()
    stream_id = await client.request("POST", end_stream=False)
    with suppress(trio.BrokenResourceError):
        await client.send_data(stream_id, TOO_LARGE)
    await either_error(client, stream_id, FRAME_SIZE_ERROR)


# 4.3, 6.10 Field blocks in pieces


async def test_a_block_in_many_pieces(connect):
    client = await connect()
    whole = block(*pseudo(path=b"/pieces"), (b"x", b"y" * 40))
    await client.send_frame(HEADERS, END_STREAM, 1, b"")
    for position in range(len(whole)):
        await client.send_frame(CONTINUATION, 0, 1, whole[position : position + 1])
    await client.send_frame(CONTINUATION, END_HEADERS, 1, b"")
    assert (await client.response(1)).status == 200
    assert (b"x", b"y" * 40) in [tuple(field) for field in client.app.calls[0]["headers"]]


async def test_end_stream_is_of_headers_whatever_continues_them(connect):
    client = await connect()
    await client.send_frame(HEADERS, 0, 1, POST[:3])
    await client.send_frame(
        CONTINUATION, END_HEADERS | END_STREAM, 1, POST[3:]
    )  # END_STREAM means nothing here
    await client.send_data(1, b"hello", end_stream=True)
    assert (await client.response(1)).body == b"hello"


@pytest.mark.parametrize(
    ("flags", "payload"),
    [
        (PADDED, b"\x00" + GET),
        (PADDED, b"\x05" + GET + bytes(5)),
        (PADDED, b"\xff" + GET + bytes(255)),
        (PRIORITIZED, UNPRIORITIZED + GET),
        (PRIORITIZED, struct.pack(">LB", 2**31 + 77, 255) + GET),
        (PRIORITIZED | PADDED, b"\x05" + UNPRIORITIZED + GET + bytes(5)),
    ],
)
async def test_padding_and_priority_of_headers(connect, flags, payload):
    client = await connect()
    await client.send_frame(HEADERS, WHOLE | flags, 1, payload)
    assert (await client.response(1)).status == 200
    await client.serves_on()


async def test_padded_headers_that_continue(connect):
    client = await connect()
    await client.send_frame(HEADERS, END_STREAM | PADDED, 1, b"\x03" + GET[:4] + bytes(3))
    await client.send_frame(CONTINUATION, END_HEADERS, 1, GET[4:])
    assert (await client.response(1)).status == 200


# 5.1 States of streams

HALF_CLOSED = {
    "DATA": [(DATA, 0, 1, b"x")],
    "DATA with END_STREAM": [(DATA, END_STREAM, 1, b"x")],
    "empty DATA": [(DATA, 0, 1, b"")],
    "HEADERS": [(HEADERS, END_HEADERS, 1, GET)],
    "HEADERS with END_STREAM": [(HEADERS, WHOLE, 1, block((b"x", b"1")))],
    "HEADERS in pieces": [(HEADERS, END_STREAM, 1, GET[:3]), (CONTINUATION, END_HEADERS, 1, GET[3:])],
}


@pytest.mark.parametrize("frames", **cases(HALF_CLOSED))
async def test_half_closed(connect, frames):
    """5.1: "it MUST respond with a stream error … of type STREAM_CLOSED"."""
    client = await connect(Application("/held"))
    assert await client.request(path="/held") == 1
    await client.served.settle()
    await client.send_all(frames)
    await stream_error(client, 1, STREAM_CLOSED)
    assert client.app.paths == ["/held", "/after"]
    client.app.gates["/held"].set()


async def test_continuation_on_a_half_closed_stream(connect):
    client = await connect(Application("/held"))
    await client.request(path="/held")
    await client.served.settle()
    await client.send_all([(CONTINUATION, END_HEADERS, 1, GET)])
    await connection_error(client, {PROTOCOL_ERROR, STREAM_CLOSED}, last=[1])
    client.app.gates["/held"].set()


async def test_what_may_come_on_a_half_closed_stream(connect):
    client = await connect(Application("/held"))
    await client.request(path="/held")
    await client.send_frame(PRIORITY, 0, 1, UNPRIORITIZED)
    await client.window_update(1, 100)
    await client.send_frame(UNKNOWN, 0, 1, b"junk")
    client.app.gates["/held"].set()
    assert (await client.response(1)).status == 200


@pytest.mark.parametrize(
    "frames",
    [
        [(DATA, 0, 1, b"x")],
        [(DATA, END_STREAM, 1, b"x")],
        [(HEADERS, WHOLE, 1, GET)],
    ],
    ids=["DATA", "DATA-with-END_STREAM", "HEADERS"],
)
@pytest.mark.parametrize("ended", [False, True], ids=["open", "half-closed"])
async def test_behind_a_reset_of_the_clients(connect, frames, ended):
    """5.1: the client "MUST NOT send frames other than PRIORITY on a closed stream"."""
    client = await connect(Application("/held"))
    await client.request("POST", "/held", end_stream=ended)
    await client.served.settle()
    await client.reset(1)
    await client.served.settle()
    await client.send_all(frames)
    await either_error(client, 1, STREAM_CLOSED)
    client.app.gates["/held"].set()


async def test_what_may_come_behind_a_reset_of_the_clients(connect):
    client = await connect()
    await client.request("POST", end_stream=False)
    await client.reset(1)
    await client.send_frame(PRIORITY, 0, 1, UNPRIORITIZED)
    await client.window_update(1, 100)
    await client.reset(1)
    await client.serves_on()


async def test_frames_on_a_stream_that_the_server_has_reset(connect):
    """5.1: they are ignored, but for the state of compression, which is the connection's."""
    client = await connect()
    await client.send_headers(1, [*pseudo(b"POST"), (b"Bad", b"1")])
    assert (await client.wait_reset(1)).code is PROTOCOL_ERROR
    await client.send_data(1, b"x")
    await client.send_headers(1, [(b"x-trailer", b"1")], end_stream=True)
    await client.window_update(1, 100)
    await client.send_frame(PRIORITY, 0, 1, UNPRIORITIZED)
    await client.reset(1)
    response = await client.fetch("/table", headers=[(b"x-trailer", b"1")])
    assert response.status == 200
    assert (b"x-trailer", b"1") in [tuple(field) for field in client.app.calls[-1]["headers"]]


async def test_the_windows_of_streams_that_the_server_has_reset_are_given_back(connect):
    client = await connect()
    window = client.window
    for _ in range(4):
        stream_id = client._next_stream_id
        await client.send_headers(stream_id, [*pseudo(b"POST"), (b"Bad", b"1")])
        size = min(client.window, client.send_window(stream_id))
        for start_ in range(0, size, 16384):
            await client.send_data(stream_id, bytes(min(16384, size - start_)))
        await client.wait_reset(stream_id)
        await client.serves_on()
    while client.window < window // 2:
        await client.frame()


async def test_identifiers_may_be_skipped(connect):
    client = await connect()
    for stream_id in 5, 7, 1001, 2**31 - 1:
        await client.request(stream_id=stream_id)
        assert (await client.response(stream_id)).status == 200


async def test_an_identifier_that_was_passed_over(connect):
    """5.1.1: "An endpoint that receives an unexpected stream identifier MUST respond with a connection error"."""
    client = await connect()
    await client.request(stream_id=5)
    await client.response(5)
    await client.send_all([(HEADERS, WHOLE, 3, GET)])
    await connection_error(client, {PROTOCOL_ERROR, STREAM_CLOSED}, last=[5])
    assert len(client.app.calls) == 1


@pytest.mark.parametrize("frame", [(DATA, END_STREAM, 3, b"x")], ids=["DATA"])
async def test_frames_on_an_identifier_that_was_passed_over(connect, frame):
    client = await connect()
    await client.request(stream_id=5)
    await client.response(5)
    await client.send_all([frame])
    await connection_error(client, {PROTOCOL_ERROR, STREAM_CLOSED}, last=[5])


# 5.1.2 Concurrency


async def test_more_streams_than_allowed(connect):
    client = await connect(Application("/one", "/two"), h2_max_concurrent_streams=2)
    assert client.settings[SettingCode.MAX_CONCURRENT_STREAMS] == 2
    await client.request(path="/one")
    await client.request("POST", "/two", end_stream=False)
    refused = await client.request(path="/three", headers=[(b"x-table", b"1")])
    with pytest.raises(StreamReset) as caught:
        await client.response(refused)
    assert caught.value.code is REFUSED_STREAM
    client.app.gates["/one"].set()
    assert (await client.response(1)).status == 200
    assert (await client.fetch("/four", headers=[(b"x-table", b"1")])).status == 200
    client.app.gates["/two"].set()
    await client.send_data(3, b"hello", end_stream=True)
    assert (await client.response(3)).body == b"hello"
    assert sorted(client.app.paths) == ["/four", "/one", "/two"]


async def test_as_many_streams_as_allowed(connect):
    client = await connect(Application("/held"))
    assert client.settings[SettingCode.MAX_CONCURRENT_STREAMS] == 100
    ids = [await client.request(path="/held") for _ in range(101)]
    assert (await client.wait_reset(ids[-1])).code is REFUSED_STREAM
    client.app.gates["/held"].set()
    for stream_id in ids[:-1]:
        assert (await client.response(stream_id)).status == 200


async def test_the_last_request_of_a_connection(connect):
    """6.8: streams above the last one were not processed, which the client learns."""
    client = await connect(Application("/held"), keep_alive_max_requests=2)
    await client.fetch()
    held = await client.request(path="/held")
    late = await client.request(path="/late")
    with pytest.raises((ConnectionClosed, StreamReset)) as caught:
        await client.response(late)
    assert caught.value.code in {ErrorCode.NO_ERROR, REFUSED_STREAM}
    client.app.gates["/held"].set()
    assert (await client.response(held)).status == 200
    await connection_error(client, ErrorCode.NO_ERROR, last=[held])
    assert client.app.paths == ["/", "/held"]


# 5.3 Priority


@pytest.mark.parametrize(
    "frame",
    [
        (PRIORITY, 0, 1, struct.pack(">LB", 1, 15)),
        (HEADERS, WHOLE | PRIORITIZED, 1, struct.pack(">LB", 1, 15) + GET),
    ],
    ids=["PRIORITY", "HEADERS"],
)
async def test_a_stream_that_depends_on_itself(connect, frame):
    client = await connect()
    await client.send_all([frame])
    await either_error(client, 1, PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 4, 6])
async def test_the_size_of_priority(connect, size):
    """6.3: "a stream error … of type FRAME_SIZE_ERROR"."""
    client = await connect()
    await client.request("POST", end_stream=False)
    await client.send_all([(PRIORITY, 0, 1, bytes(size))])
    await stream_error(client, 1, FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    "value", [b"", b"u=0, i", b"u=9", b"u", b"i=?2", b'u=1;x="', b"\xff\x00", b"u=" + b"9" * 16000]
)
async def test_priorities_that_cannot_be_read(connect, value):
    """RFC 9218, 5: what cannot be parsed is as if it were not there."""
    client = await connect(Application("/held"))
    stream_id = await client.request(path="/held")
    await client.send_frame(PRIORITY_UPDATE, 0, 0, number(stream_id) + value)
    await client.serves_on()
    client.app.gates["/held"].set()
    assert (await client.response(stream_id)).status == 200
    if value.isascii():
        assert (await client.fetch(headers=[(b"priority", value)])).status == 200


# 6.1 DATA


@pytest.mark.parametrize("padding", [0, 1, 255])
async def test_padding_of_data(connect, padding):
    client = await connect()
    stream_id = await client.request("POST", end_stream=False, headers=[(b"content-length", b"10")])
    await client.send_data(stream_id, b"hello", padding=padding)
    await client.send_data(stream_id, b"", padding=padding)
    await client.send_data(stream_id, b"world", end_stream=True, padding=padding)
    assert (await client.response(stream_id)).body == b"helloworld"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x06hello", PROTOCOL_ERROR),
        (b"\xffhello", PROTOCOL_ERROR),
        (b"\x01", PROTOCOL_ERROR),
        (b"", {PROTOCOL_ERROR, FRAME_SIZE_ERROR}),
    ],
)
async def test_bad_padding_of_data(connect, payload, code):
    """6.1: "the recipient MUST treat this as a connection error … of type PROTOCOL_ERROR"."""
    client = await connect()
    await client.request("POST", end_stream=False)
    await client.send_all([(DATA, END_STREAM | PADDED, 1, payload)])
    await connection_error(client, code)
    await client.served.settle()
    assert client.app.bodies.get("/") is None


async def test_padding_counts_for_the_windows(connect):
    """Enough padding to use up every window several times, which only comes back if it is counted."""
    client = await connect()
    stream_id = await client.request("POST", end_stream=False)
    window = client.window
    sent = 0
    while sent < 3 * window:
        while min(client.window, client.send_window(stream_id)) < 1000:
            await client.frame()
        await client.send_data(stream_id, b"x" * 100, padding=255)
        sent += 356
    await client.send_data(stream_id, end_stream=True)
    assert (await client.response(stream_id)).body.strip(b"x") == b""


# 6.4 RST_STREAM


async def test_a_reset_is_the_disconnect(connect):
    client = await connect()
    await client.request("POST", "/left", end_stream=False)
    await client.send_data(1, b"hello")
    await client.served.settle()
    await client.reset(1)
    await client.serves_on()
    assert client.app.bodies["/left"] is None


async def test_a_reset_ends_a_download(connect):
    ended = []

    async def app(scope, receive, send):
        if scope["path"] != "/endless":
            await respond(send)
            return
        try:
            await start(send)
            while True:
                await send_body(send, bytes(10_000), more=True)
        finally:
            ended.append(True)

    client = await connect(app)
    stream_id = await client.request(path="/endless")
    assert (await client.head(stream_id)).status == 200
    assert await client.data(stream_id)
    await client.reset(stream_id)
    await client.serves_on()
    await trio.sleep(20)
    assert ended == [True]


# 6.5 SETTINGS


async def test_settings_are_acknowledged_once_each_in_order(connect):
    client = await connect()
    for _ in range(3):
        await client.send_settings({SettingCode.INITIAL_WINDOW_SIZE: 70_000})
    await client.send_settings({})
    for _ in range(4):
        frame = await client.frame(SETTINGS)
        assert (frame.flags, frame.payload) == (ACK, b"")
    await client.serves_on()


async def test_a_window_holds_once_it_is_acknowledged(connect):
    """6.5.3: the client may use the initial window before it knows of a smaller one."""
    client = await connect(preface=False, h2_stream_window=100)
    data = bytes(10_000)
    await client.send(PREFACE + client.sent((SETTINGS,), (HEADERS, END_HEADERS, 1, POST), (DATA, 0, 1, data)))
    await client.frame(SETTINGS)
    await client.served.settle()
    await client.send_body(1, data)
    assert (await client.response(1)).body == data * 2
    other = await client.request("POST", end_stream=False)
    assert client.send_window(other) == 100
    await client.send_body(other, data)
    assert (await client.response(other)).body == data


async def test_the_last_of_equal_settings_counts(connect):
    client = await connect(sized(5), auto_window=False)
    code = SettingCode.INITIAL_WINDOW_SIZE
    await client.send_settings([(code, 100), (code, 3)])
    stream_id = await client.request()
    assert (await client.frame(DATA)).payload == b"xxx"
    await client.served.settle()
    await client.window_update(stream_id, 2)
    assert (await client.frame(DATA)).payload == b"xx"


async def test_a_table_of_no_size(connect):
    """The strict client would see an index into a table that must be empty."""
    client = await connect(sized(5), settings={SettingCode.HEADER_TABLE_SIZE: 0})
    for _ in range(3):
        assert (await client.fetch()).status == 200


async def test_a_table_that_shrinks_and_grows(connect):
    client = await connect(sized(5))
    for size in 4096, 100, 0, 4096, 2**32 - 1, 60:
        await client.send_settings({SettingCode.HEADER_TABLE_SIZE: size})
        await client.frame(SETTINGS)
        for _ in range(2):
            assert (await client.fetch()).status == 200


async def test_larger_frames_need_not_be_sent_but_may(connect):
    client = await connect(
        sized(200_000),
        settings={SettingCode.MAX_FRAME_SIZE: 2**24 - 1, SettingCode.INITIAL_WINDOW_SIZE: 2**31 - 1},
    )
    assert len((await client.fetch()).body) == 200_000


# 6.7 PING


async def test_pings_are_answered(connect):
    client = await connect()
    for payload in b"12345678", bytes(8), b"\xff" * 8:
        await client.send_frame(PING, 0, 0, payload)
        frame = await client.frame(PING)
        assert (frame.flags, frame.stream_id, frame.payload) == (ACK, 0, payload)


async def test_answers_to_pings_are_not_answered(connect):
    client = await connect()
    await client.send(encode_frame(PING, ACK, 0, b"12345678"))
    await client.send_frame(PING, 0, 0, b"abcdefgh")
    assert (await client.frame(PING)).payload == b"abcdefgh"


async def test_pings_are_answered_while_a_request_is(connect):
    client = await connect(Application("/held"))
    stream_id = await client.request(path="/held")
    await client.ping()
    client.app.gates["/held"].set()
    assert (await client.response(stream_id)).status == 200


# 6.8 GOAWAY


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.INTERNAL_ERROR, 0xFFFFFFFF])
async def test_a_client_that_goes_away_is_answered_first(connect, code):
    client = await connect(Application("/held"))
    stream_id = await client.request("POST", "/held", end_stream=False)
    await client.send_goaway(code, debug_data=b"bye")
    await client.served.settle()
    await client.send_data(stream_id, b"hello", end_stream=True)
    client.app.gates["/held"].set()
    assert (await client.response(stream_id)).body == b"hello"
    begun = trio.current_time()
    assert (await client.wait_closed()).code in {None, ErrorCode.NO_ERROR}
    assert trio.current_time() - begun <= 5


async def test_an_idle_client_that_goes_away(connect):
    client = await connect()
    await client.fetch()
    await client.send_goaway()
    assert (await client.wait_closed()).code in {None, ErrorCode.NO_ERROR}


async def test_an_idle_connection_ends_with_goaway(connect):
    client = await connect()
    await client.fetch()
    closed = await client.wait_closed()
    assert (closed.code, closed.last_stream_id) == (ErrorCode.NO_ERROR, 1)


# 6.9 Flow control


def sized(size):
    """An application that answers with so many bytes."""

    async def app(scope, receive, send):
        await respond(send, b"x" * size)

    return app


async def test_a_window_of_one_byte(connect):
    client = await connect(sized(3), settings={SettingCode.INITIAL_WINDOW_SIZE: 1}, auto_window=False)
    stream_id = await client.request()
    for _ in range(3):
        assert (await client.frame(DATA)).payload == b"x"
        await client.served.settle()
        await client.window_update(stream_id, 1)
    assert (await client.response(stream_id)).body == b"xxx"


async def test_a_window_of_nothing_lets_heads_through(connect):
    client = await connect(sized(3), settings={SettingCode.INITIAL_WINDOW_SIZE: 0}, auto_window=False)
    stream_id = await client.request()
    other = await client.request("HEAD")
    assert (await client.head(stream_id)).status == 200
    assert (await client.response(other)).status == 200
    await client.window_update(stream_id, 3)
    assert (await client.response(stream_id)).body == b"xxx"


async def test_a_window_that_settings_open(connect):
    """6.9.2: a change of the initial size changes the windows of all open streams."""
    client = await connect(sized(3), settings={SettingCode.INITIAL_WINDOW_SIZE: 0}, auto_window=False)
    stream_id = await client.request()
    await client.head(stream_id)
    await client.send_settings({SettingCode.INITIAL_WINDOW_SIZE: 1})
    assert (await client.frame(DATA)).payload == b"x"
    await client.send_settings({SettingCode.INITIAL_WINDOW_SIZE: 3})
    assert (await client.frame(DATA)).payload == b"xx"


async def test_a_window_below_zero(connect):
    """6.9.2: "A change to SETTINGS_INITIAL_WINDOW_SIZE can cause the available space … to become negative"."""
    client = await connect(sized(10), settings={SettingCode.INITIAL_WINDOW_SIZE: 3}, auto_window=False)
    stream_id = await client.request()
    assert (await client.frame(DATA)).payload == b"xxx"
    await client.send_settings({SettingCode.INITIAL_WINDOW_SIZE: 1})  # the window is -2
    await client.frame(SETTINGS)
    await client.window_update(stream_id, 2)  # 0
    await client.ping()
    assert await client.data(stream_id) == b"xxx"
    assert not client._streams[stream_id].body
    await client.window_update(stream_id, 1)  # 1
    assert (await client.frame(DATA)).payload == b"x"
    await client.window_update(stream_id, 100)
    assert (await client.response(stream_id)).body == b"x" * 7


async def test_the_window_of_the_connection(connect):
    client = await connect(
        sized(50_000), settings={SettingCode.INITIAL_WINDOW_SIZE: 2**31 - 1}, auto_window=False
    )
    first, second = await client.request(), await client.request()
    await client.served.settle()
    await client.ping()
    streams = client._streams[first], client._streams[second]
    assert sum(stream.size for stream in streams) == 65535
    await client.window_update(0, 50_000)
    assert len((await client.response(first)).body) == 50_000
    assert len((await client.response(second)).body) == 50_000


async def test_an_empty_end_needs_no_window(connect):
    """6.9.1: "Frames with zero length with the END_STREAM flag set … MAY be sent if there is no available space"."""
    client = await connect(sized(0), settings={SettingCode.INITIAL_WINDOW_SIZE: 0}, auto_window=False)
    assert (await client.fetch()).status == 200


async def test_the_largest_windows(connect):
    client = await connect(sized(100_000), settings={SettingCode.INITIAL_WINDOW_SIZE: 2**31 - 1})
    await client.window_update(0, 2**31 - 1 - 65535)
    client.auto_window = False
    assert len((await client.fetch()).body) == 100_000


@pytest.mark.parametrize(
    ("sizes", "code"),
    [([0], PROTOCOL_ERROR), ([2**31 - 1], FLOW_CONTROL_ERROR), ([2**30, 2**30], FLOW_CONTROL_ERROR)],
)
@pytest.mark.parametrize("ended", [False, True], ids=["open", "half-closed"])
async def test_bad_updates_of_a_stream(connect, sizes, code, ended):
    client = await connect(Application("/held"))
    await client.request("POST", "/held", end_stream=ended)
    await client.served.settle()
    for size in sizes:
        await client.window_update(1, size)
    await stream_error(client, 1, code)
    client.app.gates["/held"].set()


async def test_more_than_a_streams_window(connect):
    """The application does not read, so nothing is given back."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        if scope["method"] == "POST":
            await go_on.wait()
        await respond(send)

    client = await connect(app)
    stream_id = await client.request("POST", end_stream=False)
    await client.served.settle()
    size = client.send_window(stream_id)
    with suppress(trio.BrokenResourceError):
        for start_ in range(0, size, 16384):
            await client.send_data(stream_id, bytes(min(16384, size - start_)))
        await client.ping()
        assert client._streams[stream_id].reset is None
        await client.send_data(stream_id, b"x")
    await either_error(client, stream_id, FLOW_CONTROL_ERROR)
    go_on.set()


async def test_more_than_the_connections_window(connect):
    """Nothing is sent but what fits all windows of streams."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        await go_on.wait()

    client = await connect(app, answers=False, h2_max_concurrent_streams=1000, h2_reset_limit=10_000)
    with suppress(trio.BrokenResourceError):
        data = encode_frame(DATA, 0, 1, bytes(16384))
        await client.request("POST", end_stream=False)
        # at once, so that the server has no moment to give any of it back
        count = max(client.window, client.send_window(1)) // 16384 + 1
        client._streams[1].send_window -= 16384 * count
        await client.send(data * count)
    await either_error(client, 1, FLOW_CONTROL_ERROR)
    go_on.set()


async def test_uploads_go_on_as_the_application_reads(connect):
    client = await connect()
    body = bytes(range(256)) * 8192  # 2 MiB: more than the windows
    assert (await client.fetch(method="POST", body=body)).body == body


async def test_an_upload_that_is_not_read_holds_no_other(connect):
    go_on = trio.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/slow":
            await go_on.wait()
        body = await read_body(receive)
        await respond(send, b"%d" % len(body))

    client = await connect(app)
    stream_id = await client.request("POST", "/slow", end_stream=False)
    window = client.send_window(stream_id)
    await client.send_body(stream_id, bytes(window), end_stream=False)
    size = 2**20
    assert (await client.fetch("/fast", method="POST", body=bytes(size))).body == b"%d" % size
    go_on.set()
    await client.send_body(stream_id, bytes(window))
    assert (await client.response(stream_id)).body == b"%d" % (2 * window)


# 8.1 Messages


async def test_a_request_of_each_form(connect):
    client = await connect()
    assert (await client.fetch(method="GET")).body == b""
    assert (await client.fetch(method="HEAD")).body == b""
    assert (await client.fetch(method="POST", body=b"hello")).body == b"hello"
    assert (await client.fetch(method="POST", body=b"")).body == b""
    assert (await client.fetch(method="GET", body=b"hello")).body == b"hello"
    assert (await client.fetch("*", method="OPTIONS")).status == 200
    assert (
        await client.fetch(method="POST", headers=[(b"content-length", b"5")], body=b"hello")
    ).body == b"hello"
    assert (await client.fetch(method="GET", headers=[(b"content-length", b"0")])).body == b""


async def test_trailers(connect):
    client = await connect()
    stream_id = await client.request("POST", end_stream=False, headers=[(b"trailer", b"x-sum")])
    await client.send_data(stream_id, b"hello")
    await client.send_headers(stream_id, [(b"x-sum", b"1")], end_stream=True)
    assert (await client.response(stream_id)).body == b"hello"


async def test_trailers_without_data(connect):
    client = await connect()
    stream_id = await client.request("POST", end_stream=False)
    await client.send_headers(stream_id, [(b"x-sum", b"1")], end_stream=True)
    assert (await client.response(stream_id)).body == b""


BAD_TRAILERS = {
    "without END_STREAM": ([(b"x", b"1")], False),
    ":path": ([(b":path", b"/")], True),
    ":method": ([(b":method", b"POST")], True),
    ":status": ([(b":status", b"200")], True),
    "unknown pseudo-header": ([(b":test", b"x")], True),
    "pseudo-header behind others": ([(b"x", b"1"), (b":path", b"/")], True),
    "a second request": (pseudo(b"POST"), False),
    "upper case": ([(b"X", b"1")], True),
    "bad value": ([(b"x", b"1\n2")], True),
    "connection-specific": ([(b"connection", b"close")], True),
}


@pytest.mark.parametrize(("fields", "end_stream"), **cases(BAD_TRAILERS))
@pytest.mark.parametrize("data", [b"", b"hello"], ids=["no-data", "data"])
async def test_bad_trailers(connect, fields, end_stream, data):
    client = await connect()
    await client.request("POST", "/bad", end_stream=False)
    if data:
        await client.send_data(1, data)
    await client.send_headers(1, fields, end_stream=end_stream)
    await stream_error(client, 1, PROTOCOL_ERROR)
    assert client.app.bodies.get("/bad") is None


# 8.1.1, 8.2, 8.3 Malformed requests


def connect_fields(**others):
    return pseudo(b"CONNECT", **{"path": None, "scheme": None, "authority": b"localhost:443"} | others)


WEBSOCKET = [
    *pseudo(b"CONNECT", path=b"/chat"),
    (b":protocol", b"websocket"),
    (b"sec-websocket-version", b"13"),
]


def without(fields, name):
    return [field for field in fields if field[0] != name]


def doubled(name, value):
    return [*pseudo(), (name, value)]


MALFORMED = {
    # 8.3.1
    "8.3.1 no :method": without(pseudo(), b":method"),
    "8.3.1 no :scheme": without(pseudo(), b":scheme"),
    "8.3.1 no :path": without(pseudo(), b":path"),
    "8.3.1 no pseudo-headers": [(b"host", b"localhost")],
    "8.3.1 nothing": [],
    "8.3.1 empty :path": pseudo(path=b""),
    "8.3.1 empty :method": pseudo(method=b""),
    "8.3.1 two :method": doubled(b":method", b"GET"),
    "8.3.1 two :scheme": doubled(b":scheme", b"http"),
    "8.3.1 two :authority": doubled(b":authority", b"localhost"),
    "8.3.1 two :path": doubled(b":path", b"/"),
    "8.3.1 :path without slash": pseudo(path=b"index.html"),
    "8.3.1 :path of * with GET": pseudo(path=b"*"),
    "8.3.1 :path with a blank": pseudo(path=b"/a b"),
    "8.3.1 :path with a control": pseudo(path=b"/a\x01b"),
    "8.3.1 :path with NUL": pseudo(path=b"/a\x00b"),
    "8.3.1 :path with line feed": pseudo(path=b"/a HTTP/1.1\r\nx: y"),
    "8.3.1 :path with raw UTF-8": pseudo(path=b"/\xc3\xa9"),
    "8.3.1 :method that is no token": pseudo(method=b"GE T"),
    "8.3.1 :method with line feed": pseudo(method=b"GET / HTTP/1.1\r\nx: y\r\n"),
    "8.3.1 no :authority and no host": pseudo(authority=None),
    "8.3.1 empty :authority and no host": pseudo(authority=b""),
    "8.3.1 :authority with userinfo": pseudo(authority=b"user@localhost"),
    "8.3.1 :authority with a blank": pseudo(authority=b"local host"),
    "8.3.1 :authority with a path": pseudo(authority=b"localhost/x"),
    "8.3.1 two hosts": [*pseudo(authority=None), (b"host", b"a"), (b"host", b"b")],
    "8.3.1 host with a blank": [*pseudo(authority=None), (b"host", b"a b")],
    # 8.3
    "8.3 unknown pseudo-header": doubled(b":test", b"ok"),
    "8.3 only a colon": doubled(b":", b"ok"),
    "8.3 :status": doubled(b":status", b"200"),
    "8.3 pseudo-header behind others": [*pseudo(path=None), (b"x", b"1"), (b":path", b"/")],
    "8.3 :authority behind others": [*pseudo(authority=None), (b"x", b"1"), (b":authority", b"localhost")],
    "8.3 upper case": [(name.upper() if name == b":path" else name, value) for name, value in pseudo()],
    # 8.2.1
    "8.2.1 upper case": doubled(b"X-Test", b"ok"),
    "8.2.1 one upper-case letter": doubled(b"x-tesT", b"ok"),
    "8.2.1 empty name": doubled(b"", b"ok"),
    "8.2.1 name with a blank": doubled(b"x y", b"ok"),
    "8.2.1 name that begins with a blank": doubled(b" x", b"ok"),
    "8.2.1 name with a colon": doubled(b"x:y", b"ok"),
    "8.2.1 name with NUL": doubled(b"x\x00", b"ok"),
    "8.2.1 name with a line feed": doubled(b"x\r\ny", b"ok"),
    "8.2.1 name with DEL": doubled(b"x\x7f", b"ok"),
    "8.2.1 name with 0x80": doubled(b"x\x80", b"ok"),
    "8.2.1 name with UTF-8": doubled(b"\xc3\xa9", b"ok"),
    "8.2.1 value with NUL": doubled(b"x", b"1\x002"),
    "8.2.1 value with a line feed": doubled(b"x", b"1\n2"),
    "8.2.1 value with a carriage return": doubled(b"x", b"1\r2"),
    "8.2.1 value that begins with a blank": doubled(b"x", b" 1"),
    "8.2.1 value that ends with a blank": doubled(b"x", b"1 "),
    "8.2.1 value that begins with a tab": doubled(b"x", b"\t1"),
    "8.2.1 value that ends with a tab": doubled(b"x", b"1\t"),
    "8.2.1 value of a blank": doubled(b"x", b" "),
    # 8.2.2
    "8.2.2 connection": doubled(b"connection", b"keep-alive"),
    "8.2.2 connection close": doubled(b"connection", b"close"),
    "8.2.2 proxy-connection": doubled(b"proxy-connection", b"keep-alive"),
    "8.2.2 keep-alive": doubled(b"keep-alive", b"timeout=5"),
    "8.2.2 transfer-encoding": doubled(b"transfer-encoding", b"chunked"),
    "8.2.2 upgrade": doubled(b"upgrade", b"websocket"),
    "8.2.2 te": doubled(b"te", b"gzip"),
    "8.2.2 te trailers and more": doubled(b"te", b"trailers, deflate;q=0.5"),
    # 8.1.1
    "8.1.1 content-length of an empty body": doubled(b"content-length", b"1"),
    "8.1.1 content-length that is no number": doubled(b"content-length", b"zero"),
    "8.1.1 content-length with a sign": doubled(b"content-length", b"+0"),
    "8.1.1 content-length below zero": doubled(b"content-length", b"-1"),
    "8.1.1 empty content-length": doubled(b"content-length", b""),
    "8.1.1 two content-lengths": [*pseudo(), (b"content-length", b"0"), (b"content-length", b"1")],
    # 8.5
    "8.5 CONNECT with :path": connect_fields(path=b"/"),
    "8.5 CONNECT with :scheme": connect_fields(scheme=b"http"),
    "8.5 CONNECT without :authority": connect_fields(authority=None),
    # RFC 8441, 4
    "RFC 8441 :protocol without CONNECT": doubled(b":protocol", b"websocket"),
    "RFC 8441 two :protocol": [*WEBSOCKET[:-1], (b":protocol", b"websocket")],
    "RFC 8441 without :path": without(WEBSOCKET, b":path"),
    "RFC 8441 without :scheme": without(WEBSOCKET, b":scheme"),
    "RFC 8441 without :authority": without(WEBSOCKET, b":authority"),
}


@pytest.mark.parametrize("fields", **cases(MALFORMED))
async def test_malformed(connect, fields):
    """A stream error, and the application is not called; the state of compression goes on."""
    client = await connect(Application("/held"))
    held = await client.request(path="/held")
    stream_id = held + 2
    await client.send_headers(stream_id, [*fields, (b"x-after", b"1")] if fields else [], end_stream=True)
    await stream_error(client, stream_id, PROTOCOL_ERROR)
    assert sorted(client.app.paths) == ["/after", "/held"]
    client.app.gates["/held"].set()
    assert (await client.response(held)).status == 200


async def test_the_body_of_a_malformed_request(connect):
    """It may be on its way already."""
    client = await connect()
    await client.send_headers(1, doubled(b"Bad", b"1"))
    for _ in range(3):
        await client.send_data(1, bytes(16384))
    await client.send_data(1, end_stream=True)
    await stream_error(client, 1, PROTOCOL_ERROR)


LENGTHS = {
    "less": (5, [b"hell"]),
    "less in two pieces": (5, [b"he", b"ll"]),
    "nothing": (5, [b""]),
    "more": (5, [b"hello!"]),
    "more in two pieces": (5, [b"hello", b"!"]),
    "more than nothing": (0, [b"x"]),
}


@pytest.mark.parametrize(("length", "pieces"), **cases(LENGTHS))
@pytest.mark.parametrize("trailers", [False, True], ids=["data", "trailers"])
async def test_a_body_of_another_length(connect, length, pieces, trailers):
    """8.1.1: malformed if content-length "does not equal the sum of the DATA frame payload lengths"."""
    client = await connect()
    await client.request("POST", "/bad", [(b"content-length", b"%d" % length)], end_stream=False)
    *pieces, last = pieces
    for piece in pieces:
        await client.send_data(1, piece)
    await client.send_data(1, last, end_stream=not trailers)
    if trailers:
        await client.send_headers(1, [(b"x-sum", b"1")], end_stream=True)
    await stream_error(client, 1, PROTOCOL_ERROR)
    assert client.app.bodies.get("/bad") is None


async def test_more_than_was_promised_is_refused_at_once(connect):
    client = await connect()
    await client.request("POST", "/bad", [(b"content-length", b"5")], end_stream=False)
    await client.send_data(1, b"hello!")
    await stream_error(client, 1, PROTOCOL_ERROR)


WELL_FORMED = {
    "te": doubled(b"te", b"trailers"),
    "value with a blank inside": doubled(b"x", b"1 2\t3"),
    "empty value": doubled(b"x", b""),
    "value above ASCII": doubled(b"x", b"\xc3\xa9\xff"),
    "every letter of a token": doubled(b"!#$%&'*+-.^_`|~09az", b"ok"),
    "any order of pseudo-headers": pseudo()[::-1],
    "host instead of :authority": [*pseudo(authority=None), (b"host", b"localhost")],
    "another :scheme": pseudo(scheme=b"https"),
    "unknown method": pseudo(method=b"PURGE"),
    "empty query": pseudo(path=b"/?"),
    "content-length of 0": doubled(b"content-length", b"0"),
    "priority": doubled(b"priority", b"u=1, i"),
}


@pytest.mark.parametrize("fields", **cases(WELL_FORMED))
async def test_well_formed(connect, fields):
    client = await connect()
    await client.send_headers(1, fields, end_stream=True)
    assert (await client.response(1)).status == 200


# 8.3.1 What the application is told


async def test_the_scope(connect):
    client = await connect()
    await client.send_headers(
        1,
        [
            *pseudo(b"GET", b"/a%20b/%C3%A9?c=%20&d", b"example.org:8080", b"https"),
            (b"accept", b"*/*"),
            (b"x", b"1"),
            (b"x", b"2"),
        ],
        end_stream=True,
    )
    await client.response(1)
    (scope,) = client.app.calls
    assert scope["type"] == "http"
    assert scope["http_version"] == "2"
    assert scope["method"] == "GET"
    assert scope["scheme"] == "http"  # of the connection: the client may say what it likes
    assert scope["path"] == "/a b/é"
    assert scope["raw_path"] == b"/a%20b/%C3%A9"
    assert scope["query_string"] == b"c=%20&d"
    assert [tuple(field) for field in scope["headers"]] == [
        (b"host", b"example.org:8080"),
        (b"accept", b"*/*"),
        (b"x", b"1"),
        (b"x", b"2"),
    ]


async def test_the_method_is_in_upper_case(connect):
    client = await connect()
    await client.fetch(method="get")
    assert client.app.calls[0]["method"] == "GET"


@pytest.mark.parametrize(
    ("authority", "hosts", "expected"),
    [
        (b"one", [], b"one"),
        (b"one", [b"one"], b"one"),
        (b"one", [b"other"], b"one"),
        (None, [b"other"], b"other"),
    ],
)
async def test_host(connect, authority, hosts, expected):
    """8.3.1: the recipient "MUST NOT use the Host header field" if there is an `:authority`, which so replaces it."""
    client = await connect()
    fields = [*pseudo(authority=authority), (b"x", b"1"), *((b"host", host) for host in hosts)]
    await client.send_headers(1, fields, end_stream=True)
    assert (await client.response(1)).status == 200
    headers = [tuple(field) for field in client.app.calls[0]["headers"]]
    assert sorted(headers) == [(b"host", expected), (b"x", b"1")]
    if authority is not None:
        assert headers[0] == (b"host", expected)


@pytest.mark.parametrize(
    ("crumbs", "expected"),
    [
        ([b"a=1"], [b"a=1"]),
        ([b"a=1", b"b=2"], [b"a=1; b=2"]),
        ([b"a=1", b"b=2; c=3", b"d=4"], [b"a=1; b=2; c=3; d=4"]),
    ],
)
async def test_cookies(connect, crumbs, expected):
    """8.2.3: crumbs "MUST be concatenated into a single octet string using the two-octet delimiter"."""
    client = await connect()
    headers = []
    for number_, crumb in enumerate(crumbs):
        headers += [(b"cookie", crumb), (b"x", b"%d" % number_)]
    await client.fetch(headers=headers)
    received = client.app.calls[0]["headers"]
    assert [value for name, value in received if name == b"cookie"] == expected
    assert [value for name, value in received if name == b"x"] == [
        b"%d" % each for each in range(len(crumbs))
    ]


# 8.5 CONNECT, RFC 8441


@pytest.mark.parametrize(
    "fields",
    [connect_fields(), [*without(WEBSOCKET, b":protocol")[:-1], (b":protocol", b"connect-udp")]],
    ids=["plain", "connect-udp"],
)
async def test_connect(connect, fields):
    client = await connect()
    await client.send_headers(1, fields)
    assert (await client.head(1)).status == 501
    await client.serves_on()
    assert client.app.paths == ["/after"]


async def chat(scope, receive, send):
    """Echoes messages; to /no it does not talk."""
    if scope["type"] == "http":
        await respond(send)
        return
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/no":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"X-One", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def test_a_websocket(connect):
    client = await connect(chat)
    assert client.settings[SettingCode.ENABLE_CONNECT_PROTOCOL] == 1
    await client.send_headers(1, [*WEBSOCKET, (b"sec-websocket-protocol", b"chat")])
    response = await client.head(1)
    assert response.status == 200
    assert response.header(b"sec-websocket-protocol") == b"chat"
    assert response.header(b"sec-websocket-accept") is None
    assert response.header(b"x-one") == b"1"
    for text in b"one", b"two":
        await client.send_data(1, encode_websocket_frame(1, text))
        assert await client.data(1) == b"\x81\x03" + text
    await client.serves_on()
    await client.send_data(1, encode_websocket_frame(8, b"\x03\xe8"))
    assert await client.data(1) == b"\x88\x02\x03\xe8"
    assert await client.data(1) == b""  # END_STREAM is the end of the connection
    await client.send_data(1, end_stream=True)
    await client.serves_on()


async def test_a_websocket_is_rejected(connect):
    client = await connect(chat)
    await client.send_headers(1, [*pseudo(b"CONNECT", b"/no"), (b":protocol", b"websocket"), WEBSOCKET[-1]])
    assert (await client.response(1)).status == 403
    await client.serves_on()


async def test_the_scope_of_a_websocket(connect):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await chat(scope, receive, send)

    client = await connect(app)
    fields = [*pseudo(b"CONNECT", b"/a%20b?c"), (b":protocol", b"websocket")]
    await client.send_headers(1, [*fields, WEBSOCKET[-1], (b"sec-websocket-protocol", b"chat, talk")])
    await client.head(1)
    (scope,) = scopes
    assert scope["type"] == "websocket"
    assert scope["http_version"] == "2"
    assert scope["scheme"] == "ws"
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c")
    assert scope["subprotocols"] == ["chat", "talk"]
    assert tuple(scope["headers"][0]) == (b"host", b"localhost")
    assert "method" not in scope
    await client.reset(1)
    await client.serves_on()


async def test_a_websocket_that_is_reset_is_disconnected(connect):
    disconnects = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await respond(send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        disconnects.append(await receive())

    client = await connect(app)
    await client.send_headers(1, WEBSOCKET)
    await client.head(1)
    await client.reset(1)
    await client.serves_on()
    assert [(message["type"], message["code"]) for message in disconnects] == [("websocket.disconnect", 1006)]


async def test_headers_on_a_websocket(connect):
    """8.5: frames "other than DATA or stream management frames … MUST be treated as a stream error"."""
    client = await connect(chat)
    await client.send_headers(1, WEBSOCKET)
    await client.head(1)
    await client.send_headers(1, [(b"x-trailer", b"1")], end_stream=True)
    await stream_error(client, 1, {*ErrorCode})


# RFC 7541 Compression errors


def literal(name, value, kind=0x00):
    """A literal field without Huffman's code."""
    return bytes([kind, len(name)]) + name + bytes([len(value)]) + value


HPACK_ERRORS = {
    "2.3.3 index beyond the tables": GET + b"\xff\x00",
    "2.3.3 index behind the last": GET + b"\xbf",
    "2.3.3 name beyond the tables": GET + b"\x7f\x80\x01\x01x",
    "2.3.3 name beyond the tables, not indexed": GET + b"\x0f\xff\x00\x01x",
    "4.2 update behind a field": GET + b"\x20",
    "4.2 update between fields": GET[:1] + b"\x20" + GET[1:],
    "5.1 integer that is too large": b"\xff" + b"\xff" * 20 + b"\x01" + GET,
    "5.1 integer that goes on for ever": b"\xff" + b"\x80" * 100,
    "5.1 integer that is cut": GET + b"\xff\x80",
    "5.2 more than 7 bits of padding": GET + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff",
    "5.2 padding that is not of ones": GET + b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90",
    "5.2 EOS": GET + b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\xff\xff\xff\xff\xff\xff\xff",
    "5.2 string that is cut": GET + b"\x00\x05ab",
    "5.2 value that is cut": GET + b"\x00\x01a\x05b",
    "5.2 no value": GET + b"\x00\x01a",
    "5.2 no name": GET + b"\x40",
    "6.1 index 0": GET + b"\x80",
    "6.3 update above the limit": b"\x3f\xe2\x1f" + GET,
    "6.3 update far above the limit": b"\x3f\xff\xff\xff\x07" + GET,
}


@pytest.mark.parametrize("fragment", **cases(HPACK_ERRORS))
@pytest.mark.parametrize("trailers", [False, True], ids=["head", "trailers"])
async def test_compression_errors(connect, fragment, trailers):
    """RFC 9113, 4.3: "A decoding error in a field block MUST be treated as a connection error"."""
    client = await connect()
    await client.fetch()
    if trailers:
        await client.request("POST", end_stream=False)
    await client.send_all([(HEADERS, WHOLE, 3, fragment)])
    await connection_error(client, COMPRESSION_ERROR, last=[1, 3])
    assert len(client.app.calls) == 1 + trailers


async def test_a_compression_error_on_a_closed_stream_is_one(connect):
    """The state of compression is the connection's."""
    client = await connect()
    await client.send_headers(1, doubled(b"Bad", b"1"))
    await client.wait_reset(1)
    await client.send_all([(HEADERS, WHOLE, 1, b"\x80")])
    await connection_error(client, COMPRESSION_ERROR)


REPRESENTATIONS = {
    "6.1 indexed": b"\x90",  # accept-encoding: gzip, deflate
    "6.2.1 incremental, indexed name": b"\x53\x03*/*",
    "6.2.1 incremental, indexed name, Huffman": b"\x53\x83\xf9\x63\xe7",
    "6.2.1 incremental, new name": literal(b"x", b"1", 0x40),
    "6.2.1 incremental, new name, Huffman": b"\x40\x81\xf3\x81\x0f",
    "6.2.2 not indexed, indexed name": b"\x0f\x04\x03*/*",
    "6.2.2 not indexed, indexed name, Huffman": b"\x0f\x04\x83\xf9\x63\xe7",
    "6.2.2 not indexed, new name": literal(b"x", b"1"),
    "6.2.2 not indexed, new name, Huffman": b"\x00\x81\xf3\x81\x0f",
    "6.2.3 never indexed, indexed name": b"\x1f\x04\x03*/*",
    "6.2.3 never indexed, indexed name, Huffman": b"\x1f\x04\x83\xf9\x63\xe7",
    "6.2.3 never indexed, new name": literal(b"x", b"1", 0x10),
    "6.2.3 never indexed, new name, Huffman": b"\x10\x81\xf3\x81\x0f",
    "5.2 empty Huffman": b"\x00\x01x\x80",
    "an entry and its index": literal(b"x", b"1", 0x40) + b"\xbe",
    "an entry and its name": literal(b"x", b"1", 0x40) + b"\x7e\x012",
}


@pytest.mark.parametrize("fragment", **cases(REPRESENTATIONS))
async def test_each_representation(connect, fragment):
    client = await connect()
    await client.send_frame(HEADERS, WHOLE, 1, GET + fragment)
    assert (await client.response(1)).status == 200
    expected = [*hpack.Decoder().decode(GET + fragment, raw=True)][4:]
    assert [tuple(field) for field in client.app.calls[0]["headers"][1:]] == [
        tuple(field) for field in expected
    ]


@pytest.mark.parametrize(
    "updates",
    [b"\x20", b"\x3f\xe1\x1f", b"\x20\x3f\xe1\x1f", b"\x3f\x01\x3f\x64"],
    ids=["0", "4096", "0-and-4096", "two"],
)
async def test_updates_of_the_table(connect, updates):
    client = await connect()
    await client.send_frame(HEADERS, WHOLE, 1, updates + GET + literal(b"x", b"1", 0x40))
    assert (await client.response(1)).status == 200
    await client.send_frame(HEADERS, WHOLE, 3, GET)
    assert (await client.response(3)).status == 200


async def test_an_entry_that_is_larger_than_the_table(connect):
    """RFC 7541, 4.4: it "causes the table to be emptied", and is no error."""
    client = await connect()
    block_ = GET + literal(b"x", b"1", 0x40) + b"\x40\x01y\x7f\xa1\x1f" + b"z" * 4128
    await client.send_frame(HEADERS, WHOLE, 1, block_)
    assert (await client.response(1)).status == 200
    await client.send_all([(HEADERS, WHOLE, 3, GET + b"\xbe")])
    await connection_error(client, COMPRESSION_ERROR, last=[1, 3])


# Limits


async def test_a_large_head(connect):
    client = await connect(head_size_limit=1000)
    response = await client.fetch(headers=[(b"x", b"y" * 2000), (b"x-table", b"1")])
    assert response.status == 431
    await client.serves_on()
    assert (await client.fetch("/table", headers=[(b"x-table", b"1")])).status == 200
    assert client.app.paths == ["/after", "/table"]


async def test_a_large_head_in_pieces(connect):
    client = await connect()
    response = await client.fetch(headers=[(b"x%d" % each, b"~" * 3000) for each in range(30)])
    assert response.status == 431
    await client.serves_on()


@pytest.mark.parametrize("size", [15_000, 17_000, 40_000, 60_000])
@pytest.mark.parametrize("kind", ["head", "trailers"])
async def test_a_head_of_several_frames(connect, size, kind):
    """Large, but allowed; its block goes on in CONTINUATION."""
    client = await connect()
    large = literal(b"x", b"")[:-1] + _length(size) + b"y" * size
    if kind == "head":
        await client.send_headers(1, GET + large, end_stream=True)
    else:
        await client.send_headers(1, POST)
        await client.send_headers(1, large, end_stream=True)
    assert (await client.response(1)).status == 200
    await client.serves_on()


def _length(size):
    """The length of a string without Huffman's code (RFC 7541, 5.1)."""
    size -= 127
    octets = b"\x7f"
    while size >= 128:
        octets += bytes([size % 128 + 128])
        size //= 128
    return octets + bytes([size])


async def test_many_fields(connect):
    client = await connect()
    assert (await client.fetch(headers=[(b"x", b"1")] * 101)).status == 431
    assert (await client.fetch(headers=[(b"x", b"1")] * 90)).status == 200
    await client.serves_on()


async def test_a_large_head_whose_body_is_still_to_come(connect):
    client = await connect()
    stream_id = await client.request("POST", headers=[(b"x", b"1")] * 101, end_stream=False)
    assert (await client.response(stream_id)).status == 431
    await client.send_data(stream_id, b"hello", end_stream=True)
    await client.serves_on()


async def test_a_compression_bomb(connect):
    """One byte each stands for 3000."""
    client = await connect()
    bomb = GET + b"\x40\x01x\x7f\xb9\x16" + b"y" * 3000 + b"\xbe" * 12_000
    await client.send_all([(HEADERS, WHOLE, 1, bomb)])
    await connection_error(client, ENHANCE_YOUR_CALM)
    assert client.app.calls == []


async def test_a_bomb_of_tiny_fields(connect):
    """Each takes the server much more than its one byte."""
    client = await connect()
    await client.send_all([(HEADERS, WHOLE, 1, GET + b"\x90" * 16_000)])
    try:
        assert (await client.response(1)).status == 431
    except ConnectionClosed as closed:
        assert closed.code is ENHANCE_YOUR_CALM  # noqa: PT017 - either will do


@pytest.mark.parametrize("size", [0, 1, 1000, 16384])
async def test_continuation_for_ever(connect, size):
    client = await connect()
    await client.send_frame(HEADERS, END_STREAM, 1, GET)
    count = 2000 if size <= 1 else 4 * 2**20 // size
    await client.send_all([(CONTINUATION, 0, 1, b"\x90" * size)] * count)
    await connection_error(client, ENHANCE_YOUR_CALM)
    assert client.app.calls == []


async def test_a_body_that_is_announced_too_large(connect):
    client = await connect(body_size_limit=1000)
    stream_id = await client.request("POST", headers=[(b"content-length", b"1001")], end_stream=False)
    assert (await client.response(stream_id)).status == 413
    await client.send_data(stream_id, bytes(1001), end_stream=True)
    await client.serves_on()


async def test_a_body_that_becomes_too_large(connect):
    client = await connect(body_size_limit=1000)
    stream_id = await client.request("POST", "/large", end_stream=False)
    await client.send_data(stream_id, bytes(1000))
    await client.served.settle()
    await client.send_data(stream_id, b"x")
    assert (await client.response(stream_id)).status == 413
    await client.send_data(stream_id, bytes(1000), end_stream=True)
    await client.serves_on()
    assert client.app.bodies.get("/large") is None


async def test_a_head_that_does_not_end(connect):
    client = await connect(header_timeout=10, keep_alive_timeout=100)
    await client.send_frame(HEADERS, END_STREAM, 1, GET)
    for _ in range(4):
        await trio.sleep(3)
        with suppress(trio.BrokenResourceError):
            await client.send_frame(CONTINUATION, 0, 1, b"\x90")
    begun = trio.current_time()
    await client.wait_closed()
    assert trio.current_time() == begun
    assert client.app.calls == []


@pytest.mark.parametrize("held", [False, True], ids=["", "beside-a-stream"])
async def test_heads_that_take_their_time_one_after_the_other(connect, held):
    """Each has `header_timeout` to itself, though the next always begins where one ends."""
    client = await connect(Application("/held"), header_timeout=10, keep_alive_timeout=100)
    if held:
        await client.request(path="/held")
    await client.send_frame(HEADERS, END_STREAM, 3, GET[:2])
    for stream_id in range(3, 15, 2):
        await trio.sleep(4)
        await client.send(
            client.sent(
                (CONTINUATION, END_HEADERS, stream_id, GET[2:]), (HEADERS, END_STREAM, stream_id + 2, GET[:2])
            )
        )
        assert (await client.response(stream_id)).status == 200
    for gate in client.app.gates.values():
        gate.set()


# Floods

FLOODS = {
    "PING": (PING, 0, 0, bytes(8)),
    "PING ACK": (PING, ACK, 0, bytes(8)),
    "SETTINGS": (SETTINGS, 0, 0, b""),
    "SETTINGS with settings": (SETTINGS, 0, 0, setting(SettingCode.INITIAL_WINDOW_SIZE, 1)),
    "SETTINGS ACK": (SETTINGS, ACK, 0, b""),
    "PRIORITY": (PRIORITY, 0, 99, UNPRIORITIZED),
    "PRIORITY_UPDATE": (PRIORITY_UPDATE, 0, 0, number(99) + b"u=1"),
    "RST_STREAM on a closed stream": (RST_STREAM, 0, 1, number(8)),
    "WINDOW_UPDATE of the connection": (WINDOW_UPDATE, 0, 0, number(1)),
    "WINDOW_UPDATE of a closed stream": (WINDOW_UPDATE, 0, 1, number(1)),
    "WINDOW_UPDATE of an open stream": (WINDOW_UPDATE, 0, 3, number(1)),
    "empty DATA": (DATA, 0, 3, b""),
    "DATA of padding": (DATA, PADDED, 3, b"\x00"),
    "unknown": (UNKNOWN, 0, 0, b""),
}


@pytest.mark.parametrize("frame", **cases(FLOODS))
async def test_a_flood(connect, frame):
    client = await connect(keep_alive_timeout=inf)
    await client.fetch()
    stream_id = await client.request("POST", end_stream=False)
    await client.served.settle()
    await client.send_all([frame] * 900)
    await client.ping()
    await client.send_all([frame] * 200)
    await connection_error(client, ENHANCE_YOUR_CALM, last=[1, stream_id])


async def test_a_flood_of_continuation(connect):
    client = await connect()
    await client.send_frame(HEADERS, END_STREAM, 1, GET)
    await client.send_all([(CONTINUATION, 0, 1, b"")] * 1001)
    await connection_error(client, ENHANCE_YOUR_CALM)


async def test_frames_that_take_their_time_are_no_flood(connect):
    client = await connect(keep_alive_timeout=inf)
    for _ in range(5):
        for _ in range(900):
            await client.send_frame(PING, 0, 0, bytes(8))
        await client.ping()
        await trio.sleep(10)
    await client.serves_on()


async def test_a_download_is_no_flood(connect):
    """Two WINDOW_UPDATEs for each DATA, all at one moment."""
    client = await connect(sized(20 * 2**20))
    assert len((await client.fetch()).body) == 20 * 2**20
    assert len((await client.fetch()).body) == 20 * 2**20


async def test_an_upload_in_small_pieces_is_no_flood(connect):
    client = await connect()
    stream_id = await client.request("POST", end_stream=False)
    for _ in range(3000):
        await client.send_data(stream_id, b"x")
    await client.send_data(stream_id, end_stream=True)
    assert (await client.response(stream_id)).body == b"x" * 3000


async def until_disconnected(scope, receive, send):
    """Answers nothing but /after."""
    if scope["path"] == "/after":
        await respond(send)
        return
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_rapid_reset(connect):
    """CVE-2023-44487."""
    client = await connect(until_disconnected)
    for _ in range(100):
        await client.reset(await client.request())
    await client.serves_on()
    with suppress(trio.BrokenResourceError):
        for _ in range(10):
            await client.reset(await client.request())
    await connection_error(client, ENHANCE_YOUR_CALM, last=range(203, 300))


async def test_rapid_reset_at_once(connect):
    """All in one segment: hardly more applications are called than streams may be open, for some end meanwhile."""
    client = await connect(app := Application())
    frames = []
    for stream_id in range(1, 3000, 2):
        frames += [(HEADERS, WHOLE, stream_id, GET), (RST_STREAM, 0, stream_id, number(8))]
    await client.send(client.sent(*frames))
    await connection_error(client, ENHANCE_YOUR_CALM, last=range(3000))
    assert len(app.calls) <= 110


async def test_resets_that_take_their_time(connect):
    client = await connect(until_disconnected, keep_alive_timeout=inf)
    for _ in range(4):
        for _ in range(90):
            await client.reset(await client.request())
        await client.ping()
        await trio.sleep(10)
    await client.serves_on()


async def test_calls_that_outlive_their_streams_count(connect):
    """A stream that was reset is closed; the application that works on is not."""
    client = await connect(Application("/held"), h2_max_concurrent_streams=10)
    for _ in range(10):
        stream_id = await client.request(path="/held")
        await client.served.settle()
        await client.reset(stream_id)
    assert (await client.wait_reset(await client.request(path="/held"))).code is REFUSED_STREAM
    assert len(client.app.calls) == 10
    client.app.gates["/held"].set()
    await client.served.settle()
    await client.serves_on()


PROVOCATIONS = {
    "WINDOW_UPDATE of 0": (WINDOW_UPDATE, number(0)),
    "WINDOW_UPDATE of too much": (WINDOW_UPDATE, number(2**31 - 1)),
    "DATA behind END_STREAM": (DATA, b"x"),
    "HEADERS behind END_STREAM": (HEADERS, b""),
    "PRIORITY of 4 bytes": (PRIORITY, bytes(4)),
}


@pytest.mark.parametrize(("kind", "payload"), **cases(PROVOCATIONS))
async def test_made_you_reset(connect, kind, payload):
    """CVE-2025-8671: resets that the client provokes are as dear as its own."""
    client = await connect(until_disconnected)
    flags = WHOLE if kind == HEADERS else 0
    with suppress(trio.BrokenResourceError):
        for _ in range(101):
            stream_id = await client.request()
            await client.send_frame(kind, flags, stream_id, payload)
    await connection_error(client, ENHANCE_YOUR_CALM, last=range(202))


async def test_a_flood_of_malformed_requests(connect):
    client = await connect()
    with suppress(trio.BrokenResourceError):
        for stream_id in range(1, 3001, 2):
            await client.send_frame(HEADERS, WHOLE, stream_id, GET[:1])
    await connection_error(client, ENHANCE_YOUR_CALM, last=range(3001))
    assert client.app.calls == []


async def test_a_flood_of_refused_requests(connect):
    client = await connect(Application("/held"), h2_max_concurrent_streams=1)
    await client.request(path="/held")
    with suppress(trio.BrokenResourceError):
        for _ in range(1500):
            await client.request()
    await connection_error(client, ENHANCE_YOUR_CALM, last=range(1, 3003))
    client.app.gates["/held"].set()


# Responses

EMPTY = {
    "HEAD": ("HEAD", 200, b"hello"),
    "HEAD without a body": ("HEAD", 200, b""),
    "204": ("GET", 204, b""),
    "304": ("GET", 304, b""),
    "empty": ("GET", 200, b""),
}


@pytest.mark.parametrize(("method", "status", "body"), **cases(EMPTY))
async def test_responses_without_a_body(connect, method, status, body):
    async def app(scope, receive, send):
        await start(send, status=status)
        await send_body(send, body)

    client = await connect(app)
    await client.request(method)
    frame = await client.frame(HEADERS, DATA)
    assert frame.type == HEADERS
    if not frame.flags & END_STREAM:
        assert (status, method) == (200, "GET")
        frame = await client.frame(HEADERS, DATA)
        assert (frame.type, frame.flags, frame.payload) == (DATA, END_STREAM, b"")
    response = await client.response(1)
    assert (response.status, response.body) == (status, b"")


async def test_the_headers_of_a_response(connect):
    """8.2: in lower case, and none of the connection's."""
    dropped = [
        (b"Connection", b"close"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Connection", b"close"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
    ]

    async def app(scope, receive, send):
        await start(
            send, headers=[(b"X-Upper", b"1"), *dropped, (b"set-cookie", b"a"), (b"set-cookie", b"b")]
        )
        await send_body(send, b"hello")

    client = await connect(app)
    response = await client.fetch()
    assert response.body == b"hello"
    assert response.header(b"x-upper") == b"1"
    assert response.header(b"date") is not None
    assert response.header(b"server") == b"trigi"
    assert [value for name, value in response.headers if name == b"set-cookie"] == [b"a", b"b"]
    assert not {name.lower() for name, _ in dropped} & {name for name, _ in response.headers}


@pytest.mark.parametrize("frame_size", [16384, 100_000])
async def test_a_large_head_of_a_response(connect, frame_size):
    async def app(scope, receive, send):
        await start(send, headers=[(b"x", b"~" * 40_000)], trailers=True)
        await send_body(send, b"hello")
        await send({"type": "http.response.trailers", "headers": [(b"y", b"~" * 40_000)]})

    client = await connect(app, settings={SettingCode.MAX_FRAME_SIZE: frame_size})
    response = await client.fetch(headers=[(b"te", b"trailers")])
    assert response.header(b"x") == b"~" * 40_000
    assert response.body == b"hello"
    assert response.trailers == [(b"y", b"~" * 40_000)]


async def test_a_response_in_pieces(connect):
    go_on = trio.Event()

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"one", more=True)
        await go_on.wait()
        await send_body(send, b"two")

    client = await connect(app)
    stream_id = await client.request()
    await client.head(stream_id)
    assert await client.data(stream_id) == b"one"
    go_on.set()
    assert await client.data(stream_id) == b"two"
    assert await client.data(stream_id) == b""


async def test_a_response_with_trailers(connect):
    async def app(scope, receive, send):
        await start(send, trailers=True)
        await send_body(send, b"hello")
        await send({"type": "http.response.trailers", "headers": [(b"X-Sum", b"1")]})

    client = await connect(app)
    response = await client.fetch(headers=[(b"te", b"trailers")])
    assert (response.body, response.trailers) == (b"hello", [(b"x-sum", b"1")])


async def test_a_response_before_the_end_of_the_request(connect):
    """8.1: it "MAY request that the client abort transmission", by RST_STREAM with NO_ERROR."""

    async def app(scope, receive, send):
        await respond(send, b"enough")

    client = await connect(app)
    response = await client.fetch(method="POST", body=bytes(2**20))
    assert (response.status, response.body) == (200, b"enough")
    assert (await client.fetch()).status == 200


async def test_an_application_that_fails(connect):
    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await start(send)
            await send_body(send, b"hello", more=True)
        if scope["path"] != "/after":
            raise RuntimeError("on purpose")
        await respond(send)

    client = await connect(app)
    assert (await client.fetch()).status == 500
    stream_id = await client.request(path="/late")
    with pytest.raises(StreamReset) as caught:
        await client.response(stream_id)
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    await client.serves_on()


async def test_a_response_that_is_too_short(connect):
    """8.1.1: a response whose content-length is not true is malformed: it must not seem to be whole."""

    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"10")] if scope["path"] != "/after" else ())
        await send_body(send, b"hello" if scope["path"] != "/after" else b"")

    client = await connect(app)
    stream_id = await client.request()
    with pytest.raises(StreamReset):
        await client.response(stream_id)
    await client.serves_on()


async def test_streams_are_independent(connect):
    client = await connect(Application("/one", "/two"))
    one, two, three = [await client.request(path=path) for path in ("/one", "/two", "/three")]
    assert (await client.response(three)).status == 200
    client.app.gates["/two"].set()
    assert (await client.response(two)).status == 200
    await client.reset(one)
    await client.serves_on()
    client.app.gates["/one"].set()


async def test_continue(connect):
    """An expectation is met when the application reads (RFC 9110, 10.1.1)."""
    client = await connect()
    stream_id = await client.request("POST", headers=[(b"expect", b"100-continue")], end_stream=False)
    assert (await client.informational(stream_id)).status == 100
    await client.send_data(stream_id, b"hello", end_stream=True)
    assert (await client.response(stream_id)).body == b"hello"


# Noise: whatever comes, nothing but an answer, a stream error or a connection error comes of it. `serve` checks that
# none was a bug.


async def ends_in_order(client):
    """Leave the connection after whatever it was sent, and see that what the server said was HTTP/2."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await client.stream.send_eof()
    with trio.fail_after(1000):
        await client.wait_closed()


@pytest.mark.parametrize("seed", range(5))
async def test_field_blocks_of_noise(connect, seed):
    random = Random(seed)
    for _ in range(40):
        client = await connect()
        beginning = GET[: random.randrange(len(GET) + 1)]
        noise = random.randbytes(random.choice([1, 3, 10, 100, 1000]))
        await client.send_all([(HEADERS, WHOLE, 1, beginning + noise), (HEADERS, WHOLE, 3, GET)])
        await ends_in_order(client)


@pytest.mark.parametrize("seed", range(5))
async def test_frames_of_noise(connect, seed):
    random = Random(seed)
    for _ in range(40):
        client = await connect()
        frames = [(HEADERS, random.choice([END_HEADERS, WHOLE]), stream_id, POST) for stream_id in (1, 3, 5)]
        for _ in range(random.randrange(1, 10)):
            kind, flags = random.randrange(12), random.choice([0, 1, 4, 5, 8, 0x20, random.randrange(256)])
            payload = random.choice(
                [b"", bytes(4), bytes(8), UNPRIORITIZED, GET, random.randbytes(random.randrange(40))]
            )
            frames.append((kind, flags, random.choice([0, 1, 2, 3, 5, 7]), payload))
        await client.send_all(frames)
        await ends_in_order(client)


@pytest.mark.parametrize("seed", range(5))
async def test_a_conversation_with_an_error(connect, seed):
    """One byte is another than it was."""
    random = Random(seed)
    for _ in range(40):
        client = await connect(preface=False)
        wire = bytearray(
            PREFACE
            + client.sent(
                (SETTINGS, 0, 0, setting(SettingCode.INITIAL_WINDOW_SIZE, 100)),
                (HEADERS, END_HEADERS, 1, block(*pseudo(b"POST"), (b"content-length", b"5"))),
                (PRIORITY_UPDATE, 0, 0, number(1) + b"u=1"),
                (DATA, PADDED, 1, b"\x02hello\0\0"),
                (HEADERS, END_STREAM, 3, GET[:5]),
                (CONTINUATION, END_HEADERS, 3, GET[5:]),
                (WINDOW_UPDATE, 0, 1, number(100)),
                (HEADERS, WHOLE, 1, block((b"x-sum", b"1"))),
                (PING, 0, 0, b"12345678"),
                (RST_STREAM, 0, 3, number(8)),
                (HEADERS, WHOLE, 5, block(*WEBSOCKET)),
                (DATA, 0, 5, encode_websocket_frame(1, b"hello")),
                (GOAWAY, 0, 0, bytes(8)),
            )
        )
        wire[random.randrange(len(PREFACE), len(wire))] = random.randrange(256)
        await client.send(bytes(wire))
        await client.served.settle()
        await trio.aclose_forcefully(client.stream)
