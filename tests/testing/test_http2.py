"""The HTTP/2 client: h2 understands what it sends, and it understands what h2 sends; what is wrong it does not take."""

from __future__ import annotations

import struct
from contextlib import asynccontextmanager, suppress

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
import trio
import trio.testing

from trigi.testing.http2 import (
    PREFACE,
    ConnectionClosed,
    ErrorCode,
    Flag,
    Frame,
    FrameType,
    HTTP2Client,
    HTTP2Response,
    SettingCode,
    StreamReset,
    Violation,
    encode_frame,
)

DATA, HEADERS, CONTINUATION = FrameType.DATA, FrameType.HEADERS, FrameType.CONTINUATION
SETTINGS, GOAWAY, RST_STREAM = FrameType.SETTINGS, FrameType.GOAWAY, FrameType.RST_STREAM
PING, WINDOW_UPDATE = FrameType.PING, FrameType.WINDOW_UPDATE
END_STREAM, END_HEADERS, PADDED, ACK = Flag.END_STREAM, Flag.END_HEADERS, Flag.PADDED, Flag.ACK


class Peer:
    """h2 as a server, which reads when the test says so."""

    def __init__(self, stream):
        self.stream = stream
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self.h2.initiate_connection()
        self.events = []

    async def flush(self):
        await self.stream.send_all(self.h2.data_to_send())

    async def read(self):
        """Take what has come, and answer it."""
        events = self.h2.receive_data(await self.stream.receive_some())
        self.events += events
        await self.flush()
        return events

    async def respond(self, stream_id, body=b"", headers=(), **more):
        self.h2.send_headers(stream_id, [(":status", "200"), *headers], end_stream=not body, **more)
        if body:
            self.h2.send_data(stream_id, body, end_stream=True)
        await self.flush()

    async def until(self, kind):
        while not self.seen(kind):
            await self.read()

    def seen(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def pair():
    """A client, and the server's end of its stream."""
    ours, theirs = trio.testing.memory_stream_pair()
    return HTTP2Client(ours), theirs


@asynccontextmanager
async def connected(client, stream, settings=None):
    """A client and a peer, once their settings are known to both."""
    peer = Peer(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.connect, settings)
        await peer.until(h2.events.RemoteSettingsChanged)
    await peer.until(h2.events.SettingsAcknowledged)
    yield peer


async def test_what_is_sent_first(pair):
    client, stream = pair
    await client.connect({SettingCode.ENABLE_PUSH: 0, 0x1A2A: 7}, wait=False)
    assert await stream.receive_some() == (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        b"\x00\x00\x0c\x04\x00\x00\x00\x00\x00"
        b"\x00\x02\x00\x00\x00\x00"
        b"\x1a\x2a\x00\x00\x00\x07"
    )


def test_a_frame():
    assert encode_frame(0x42, 0x81, 0x80000001, b"abc") == b"\x00\x00\x03\x42\x81\x80\x00\x00\x01abc"
    assert encode_frame(0, size=2**24 - 1) == b"\xff\xff\xff\x00\x00\x00\x00\x00\x00"


async def test_connecting(pair):
    client, stream = pair
    async with connected(client, stream, {SettingCode.INITIAL_WINDOW_SIZE: 1000}) as peer:
        assert client.settings[SettingCode.MAX_FRAME_SIZE] == 16384
        assert peer.h2.remote_settings.initial_window_size == 1000
        assert peer.seen(h2.events.SettingsAcknowledged)


async def test_a_request(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        assert await client.request("PUT", "/a?b", [(b"x", b"1"), (b"x", b"2")]) == 1
        request, ended = await peer.read()
        assert request.headers == [
            (b":method", b"PUT"),
            (b":scheme", b"http"),
            (b":authority", b"localhost"),
            (b":path", b"/a?b"),
            (b"x", b"1"),
            (b"x", b"2"),
        ]
        assert isinstance(ended, h2.events.StreamEnded)
        assert await client.request(stream_id=7) == 7
        assert await client.request() == 9
        await peer.read()
        assert [event.stream_id for event in peer.seen(h2.events.RequestReceived)] == [1, 7, 9]


async def test_a_response(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request()
        await peer.read()
        peer.h2.send_headers(stream_id, [(":status", "103"), ("link", "</a>")])
        peer.h2.send_headers(stream_id, [(":status", "200"), ("x", "1"), ("x", "2")])
        peer.h2.send_data(stream_id, b"hello ", pad_length=5)
        peer.h2.send_data(stream_id, b"world")
        peer.h2.send_headers(stream_id, [("x-sum", "3")], end_stream=True)
        await peer.flush()
        response = await client.response(stream_id)
        assert response == HTTP2Response(
            200,
            [(b"x", b"1"), (b"x", b"2")],
            b"hello world",
            [(b"x-sum", b"3")],
            [HTTP2Response(103, [(b"link", b"</a>")])],
        )
        assert response.header(b"x") == b"1, 2"
        assert response.header(b"y") is None


async def test_a_response_piece_by_piece(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request()
        await peer.read()
        peer.h2.send_headers(stream_id, [(":status", "103")])
        await peer.flush()
        assert (await client.informational(stream_id)).status == 103
        peer.h2.send_headers(stream_id, [(":status", "200")])
        peer.h2.send_data(stream_id, b"one")
        await peer.flush()
        assert (await client.head(stream_id)).body == b""
        assert await client.data(stream_id) == b"one"
        peer.h2.send_data(stream_id, b"two", end_stream=True)
        await peer.flush()
        assert await client.data(stream_id) == b"two"
        assert await client.data(stream_id) == b""


@pytest.mark.parametrize("status", [200, 304])
async def test_a_response_without_a_body(pair, status):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request("HEAD" if status == 200 else "GET")
        await peer.read()
        fields = [(":status", str(status)), ("content-length", "1000")]
        peer.h2.send_headers(stream_id, fields, end_stream=True)
        await peer.flush()
        assert (await client.response(stream_id)).body == b""


async def test_a_request_with_a_body_and_trailers(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request("POST", end_stream=False)
        await client.send_data(stream_id, b"one", padding=3)
        await client.send_data(stream_id, b"two")
        await client.send_headers(stream_id, [(b"x-sum", b"3")], end_stream=True, padding=0)
        await peer.until(h2.events.StreamEnded)
        assert [event.data for event in peer.seen(h2.events.DataReceived)] == [b"one", b"two"]
        assert peer.seen(h2.events.DataReceived)[0].flow_controlled_length == 7
        (trailers,) = peer.seen(h2.events.TrailersReceived)
        assert trailers.headers == [(b"x-sum", b"3")]


async def test_a_large_head_is_cut(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        await client.request(headers=[(b"x", b"~" * 20_000)])  # which Huffman makes longer
        data = await stream.receive_some()
        assert data[:4] == b"\x00\x40\x00\x01"
        assert data[9 + 16384 + 3] == CONTINUATION
        (request, _) = peer.h2.receive_data(data)
        assert request.headers[-1] == (b"x", b"~" * 20_000)


async def test_a_body_is_sent_as_the_windows_allow(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request("POST", end_stream=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_body, stream_id, b"x" * 100_000)
            size = 0
            while size < 100_000:
                for event in await peer.read():
                    if isinstance(event, h2.events.DataReceived):
                        size += len(event.data)
                        assert len(event.data) <= 16384
                        assert size <= 65535 or client.window >= 0
                        peer.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
                        await peer.flush()
        assert peer.seen(h2.events.StreamEnded)
        assert client.send_window(stream_id) <= 65535


async def test_a_setting_changes_the_window_of_open_streams(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request("POST", end_stream=False)
        await client.send_data(stream_id, b"x" * 100)
        await peer.read()
        peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 50})
        await peer.flush()
        await client.frame(SETTINGS)
        assert client.send_window(stream_id) == -50
        assert client.window == 65435


async def test_sending_a_body_ends_when_no_more_is_wanted(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request("POST", end_stream=False)
        await peer.read()
        await peer.respond(stream_id, b"enough")
        peer.h2.reset_stream(stream_id, ErrorCode.NO_ERROR)
        await peer.flush()
        await client.send_body(stream_id, b"x" * 100_000)
        assert (await client.response(stream_id)).body == b"enough"


async def test_windows_are_given_back(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request()
        await peer.read()
        peer.h2.send_headers(stream_id, [(":status", "200")])
        for _ in range(20):
            peer.h2.send_data(stream_id, b"x" * 16384)
            await peer.flush()
            assert len(await client.data(stream_id) if _ else await after_head(client, stream_id)) == 16384
            await peer.read()
        assert peer.h2.local_flow_control_window(stream_id) == 65535


async def after_head(client, stream_id):
    await client.head(stream_id)
    return await client.data(stream_id)


async def test_windows_are_kept(pair):
    client, stream = pair
    client.auto_window = False
    async with connected(client, stream) as peer:
        stream_id = await client.request()
        await peer.read()
        await peer.respond(stream_id, b"hello")
        await client.response(stream_id)
        await client.window_update(0, 3)
        await client.window_update(stream_id, 2)
        await peer.read()
        assert [(event.stream_id, event.delta) for event in peer.seen(h2.events.WindowUpdated)] == [(0, 3)]
        assert peer.h2.outbound_flow_control_window == 65533


async def test_pings(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping, b"12345678")
            await peer.read()
        peer.h2.ping(b"abcdefgh")
        await peer.flush()
        assert await client.frame(PING) == Frame(PING, 0, 0, b"abcdefgh")
        (event,) = await peer.read()
        assert isinstance(event, h2.events.PingAckReceived)


async def test_nothing_is_answered_if_not_wanted(pair):
    client, stream = pair
    client.answers = False
    await stream.send_all(encode_frame(SETTINGS) + encode_frame(PING, 0, 0, b"abcdefgh"))
    assert (await client.frame()).type == SETTINGS
    assert (await client.frame()).type == PING
    await client.aclose()
    assert await stream.receive_some() == b""


async def test_a_reset(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        first, second = await client.request(), await client.request()
        await peer.read()
        peer.h2.reset_stream(first, ErrorCode.REFUSED_STREAM)
        await peer.respond(second, b"hello")
        with pytest.raises(StreamReset, match=r"stream 1: .*REFUSED_STREAM") as caught:
            await client.response(first)
        assert caught.value.stream_id == 1
        assert caught.value.code is ErrorCode.REFUSED_STREAM
        assert (await client.wait_reset(first)).code is ErrorCode.REFUSED_STREAM
        assert (await client.response(second)).body == b"hello"


async def test_a_reset_behind_the_whole_response(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request(end_stream=False)
        await peer.read()
        await peer.respond(stream_id, b"hello")
        peer.h2.reset_stream(stream_id, ErrorCode.NO_ERROR)
        await peer.flush()
        await client.wait_reset(stream_id)
        assert (await client.response(stream_id)).body == b"hello"


async def test_what_was_on_its_way_when_the_client_reset(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request()
        await peer.read()
        await client.reset(stream_id)
        await peer.respond(stream_id, b"hello", [(b"x", b"1")])
        await peer.read()
        other = await client.request()
        await peer.read()
        await peer.respond(other, b"hello", [(b"x", b"1")])
        assert (await client.response(other)).headers == [(b"x", b"1")]


async def test_goaway(pair):
    """What it lets the server still answer is still read."""
    client, stream = pair
    async with connected(client, stream) as peer:
        first, second = await client.request(), await client.request()
        await peer.read()
        await stream.send_all(encode_frame(GOAWAY, 0, 0, struct.pack(">LL", first, 0) + b"bye"))
        with pytest.raises(ConnectionClosed, match=r"NO_ERROR.*last stream 1, b'bye'") as caught:
            await client.response(second)
        assert caught.value.code is ErrorCode.NO_ERROR
        assert caught.value.last_stream_id == 1
        assert caught.value.debug_data == b"bye"
        await peer.respond(first, b"hello")
        assert (await client.response(first)).body == b"hello"
        await stream.aclose()
        assert await client.wait_closed() is client.goaway
        assert (await client.response(first)).body == b"hello"
        with pytest.raises(ConnectionClosed):
            await client.frame()


async def test_goaway_with_an_error(pair):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request()
        await peer.read()
        peer.h2.close_connection(ErrorCode.PROTOCOL_ERROR)
        await peer.flush()
        with pytest.raises(ConnectionClosed) as caught:
            await client.response(stream_id)
        assert caught.value.code is ErrorCode.PROTOCOL_ERROR
        await peer.stream.aclose()
        assert (await client.wait_closed()).code is ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("data", [b"", b"\x00\x00\x05"])
async def test_the_end_without_a_word(pair, data):
    client, stream = pair
    async with connected(client, stream) as peer:
        stream_id = await client.request()
        await peer.read()
        await stream.send_all(data)
        await stream.aclose()
        with pytest.raises(ConnectionClosed, match=r"^the server closed the connection$") as caught:
            await client.response(stream_id)
        assert caught.value.code is None


async def test_unknown_frames_settings_and_codes_are_taken(pair):
    client, stream = pair
    await stream.send_all(
        encode_frame(SETTINGS, 0, 0, struct.pack(">HL", 0x1A2A, 7))
        + encode_frame(0x42, 0xFF, 9, b"abc")
        + encode_frame(GOAWAY, 0, 0, struct.pack(">LL", 0, 99))
    )
    assert (await client.frame()).type is not None
    assert client.settings == {0x1A2A: 7}
    assert await client.frame() == Frame(0x42, 0xFF, 9, b"abc")
    assert (await client.frame()).type == GOAWAY
    assert client.goaway.code == 99


async def test_several_tasks(pair, autojump_clock):
    """Whoever waits gets what is for it, whoever of them reads; also when that one gives up."""
    client, stream = pair
    bodies = {}

    async def wait_for(stream_id, timeout):
        with trio.move_on_after(timeout):
            bodies[stream_id] = (await client.response(stream_id)).body

    async with connected(client, stream) as peer:
        ids = [await client.request() for _ in range(4)]
        await peer.read()
        async with trio.open_nursery() as nursery:
            for number, stream_id in enumerate(ids):
                nursery.start_soon(wait_for, stream_id, 10 if number else 1)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await client.frame()
            await trio.sleep(2)
            for stream_id in ids[2], ids[1], ids[3]:
                await peer.respond(stream_id, b"%d" % stream_id)
                await trio.testing.wait_all_tasks_blocked()
                assert bodies[stream_id] == b"%d" % stream_id
    assert len(bodies) == 3


async def test_the_table_of_the_decoder_follows_the_settings(pair):
    client, stream = pair
    async with connected(client, stream, {SettingCode.HEADER_TABLE_SIZE: 0}) as peer:
        for _ in range(2):
            stream_id = await client.request(headers=[(b"x", b"1")])
            await peer.read()
            await peer.respond(stream_id, headers=[("x", "1")])
            assert (await client.response(stream_id)).headers == [(b"x", b"1")]


# Strictness


def block(*fields):
    return hpack.Encoder().encode([(b":status", b"200"), *fields])


OK = block()
HEAD = encode_frame(HEADERS, END_HEADERS, 1, OK)

VIOLATIONS = {
    "frame too large": encode_frame(DATA, 0, 1, size=16385),
    "reserved bit": encode_frame(PING, 0, 0x80000000, bytes(8)),
    "undefined flag": encode_frame(PING, 0x40, 0, bytes(8)),
    "PUSH_PROMISE": encode_frame(FrameType.PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
    "SETTINGS on a stream": encode_frame(SETTINGS, 0, 1),
    "SETTINGS of 5 bytes": encode_frame(SETTINGS, 0, 0, bytes(5)),
    "ACK with settings": encode_frame(SETTINGS, ACK, 0, bytes(6)),
    "ACK of nothing": encode_frame(SETTINGS, ACK),
    "ENABLE_PUSH": encode_frame(SETTINGS, 0, 0, struct.pack(">HL", SettingCode.ENABLE_PUSH, 1)),
    "large window": encode_frame(SETTINGS, 0, 0, struct.pack(">HL", SettingCode.INITIAL_WINDOW_SIZE, 2**31)),
    "small frames": encode_frame(SETTINGS, 0, 0, struct.pack(">HL", SettingCode.MAX_FRAME_SIZE, 16383)),
    "PING of 7 bytes": encode_frame(PING, 0, 0, bytes(7)),
    "PING on a stream": encode_frame(PING, 0, 1, bytes(8)),
    "PING answered that was not sent": encode_frame(PING, ACK, 0, bytes(8)),
    "GOAWAY of 7 bytes": encode_frame(GOAWAY, 0, 0, bytes(7)),
    "GOAWAY on a stream": encode_frame(GOAWAY, 0, 1, bytes(8)),
    "GOAWAY taken back": b"".join(encode_frame(GOAWAY, 0, 0, struct.pack(">LL", last, 0)) for last in (1, 3)),
    "RST_STREAM of 3 bytes": encode_frame(RST_STREAM, 0, 1, bytes(3)),
    "RST_STREAM on an idle stream": encode_frame(RST_STREAM, 0, 3, bytes(4)),
    "RST_STREAM on the connection": encode_frame(RST_STREAM, 0, 0, bytes(4)),
    "two RST_STREAMs": encode_frame(RST_STREAM, 0, 1, bytes(4)) * 2,
    "DATA behind RST_STREAM": HEAD + encode_frame(RST_STREAM, 0, 1, bytes(4)) + encode_frame(DATA, 0, 1),
    "WINDOW_UPDATE of 0": encode_frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "WINDOW_UPDATE of too much": encode_frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 2**31 - 1)),
    "WINDOW_UPDATE of too much on a stream": encode_frame(WINDOW_UPDATE, 0, 1, struct.pack(">L", 2**31 - 1)),
    "WINDOW_UPDATE on an idle stream": encode_frame(WINDOW_UPDATE, 0, 3, bytes([0, 0, 0, 1])),
    "DATA before HEADERS": encode_frame(DATA, 0, 1, b"x"),
    "DATA on the connection": encode_frame(DATA, 0, 0, b"x"),
    "DATA on an idle stream": encode_frame(DATA, 0, 3, b"x"),
    "DATA behind END_STREAM": HEAD + encode_frame(DATA, END_STREAM, 1) + encode_frame(DATA, 0, 1),
    "more than the window": HEAD + encode_frame(DATA, 0, 1, bytes(16384)) * 4,
    "all padding": HEAD + encode_frame(DATA, PADDED, 1, b"\x01"),
    "padding that is not zero": HEAD + encode_frame(DATA, PADDED, 1, b"\x01xx"),
    "no padding": HEAD + encode_frame(DATA, PADDED, 1),
    "HEADERS on an idle stream": encode_frame(HEADERS, END_HEADERS, 3, OK),
    "HEADERS behind END_STREAM": encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, OK) * 2,
    "trailers without END_STREAM": HEAD + encode_frame(HEADERS, END_HEADERS, 1, b"\0\x01x\x011"),
    "trailers with :status": HEAD + encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, OK),
    "PING in a block": encode_frame(HEADERS, 0, 1, OK) + encode_frame(PING, 0, 0, bytes(8)),
    "CONTINUATION of another stream": encode_frame(HEADERS, 0, 1, OK) + encode_frame(CONTINUATION, 0, 3),
    "CONTINUATION of nothing": encode_frame(CONTINUATION, END_HEADERS, 1, OK),
    "invalid HPACK": encode_frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff"),
    "no fields": encode_frame(HEADERS, END_HEADERS, 1),
    "no :status": encode_frame(HEADERS, END_HEADERS, 1, b"\0\x01x\x011"),
    ":status second": encode_frame(HEADERS, END_HEADERS, 1, b"\0\x01x\x011\x88"),
    ":status twice": encode_frame(HEADERS, END_HEADERS, 1, OK * 2),
    ":status of two digits": encode_frame(HEADERS, END_HEADERS, 1, b"\x08\x0220"),
    "101": encode_frame(HEADERS, END_HEADERS, 1, b"\x08\x03101"),
    "interim response with END_STREAM": encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x08\x03103"),
    "upper case": encode_frame(HEADERS, END_HEADERS, 1, block((b"X", b"1"))),
    "no name": encode_frame(HEADERS, END_HEADERS, 1, block((b"", b"1"))),
    "line feed": encode_frame(HEADERS, END_HEADERS, 1, block((b"x", b"1\n2"))),
    "blank around a value": encode_frame(HEADERS, END_HEADERS, 1, block((b"x", b"1 "))),
    "connection-specific": encode_frame(HEADERS, END_HEADERS, 1, block((b"transfer-encoding", b"chunked"))),
    "short body": encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, block((b"content-length", b"1"))),
    "body of 204": encode_frame(HEADERS, END_HEADERS, 1, b"\x89") + encode_frame(DATA, END_STREAM, 1, b"x"),
}


@pytest.mark.parametrize("wire", VIOLATIONS.values(), ids=[name.replace(" ", "-") for name in VIOLATIONS])
async def test_violations(pair, wire):
    client, stream = pair
    client.auto_window = False
    stream_id = await client.request()
    await stream.send_all(encode_frame(SETTINGS) + wire)
    await stream.aclose()
    with pytest.raises(Violation):
        with suppress(StreamReset):
            await client.response(stream_id)
        await client.wait_closed()


async def test_the_first_frame_must_be_settings(pair):
    client, stream = pair
    await stream.send_all(encode_frame(PING, 0, 0, bytes(8)))
    with pytest.raises(Violation, match="not SETTINGS"):
        await client.connect()


async def test_a_body_for_head(pair):
    client, stream = pair
    stream_id = await client.request("HEAD")
    await stream.send_all(encode_frame(SETTINGS) + HEAD + encode_frame(DATA, END_STREAM, 1, b"x"))
    with pytest.raises(Violation, match="body of 1 bytes"):
        await client.response(stream_id)


async def test_settings_bind_the_server_once_it_has_acknowledged_them(pair):
    client, stream = pair
    client.auto_window = False
    await client.connect({SettingCode.INITIAL_WINDOW_SIZE: 2, SettingCode.MAX_FRAME_SIZE: 20_000}, wait=False)
    stream_id = await client.request()
    await stream.send_all(encode_frame(SETTINGS) + HEAD + encode_frame(DATA, 0, 1, b"xxx"))
    await client.head(stream_id)
    assert await client.data(stream_id) == b"xxx"
    await stream.send_all(encode_frame(SETTINGS, ACK) + encode_frame(PING, 0, 0, bytes(8)))
    await client.frame(PING)
    await client.window_update(stream_id, 20_001)
    await stream.send_all(encode_frame(DATA, 0, 1, b"x" * 20_000))
    assert len(await client.data(stream_id)) == 20_000
    await stream.send_all(encode_frame(DATA, 0, 1, b"x"))
    with pytest.raises(Violation, match="window"):
        await client.data(stream_id)


async def test_a_table_must_shrink_as_acknowledged(pair):
    client, stream = pair
    await client.connect({SettingCode.HEADER_TABLE_SIZE: 0}, wait=False)
    stream_id = await client.request()
    await stream.send_all(encode_frame(SETTINGS) + encode_frame(SETTINGS, ACK) + HEAD)
    with pytest.raises(Violation, match="decoded"):
        await client.head(stream_id)


async def test_nothing_that_is_sent_is_checked(pair):
    client, stream = pair
    await client.send(b"\r\n")
    await client.send_frame(0xFF, 0xFF, 0xFFFFFFFF, b"junk")
    await client.send_headers(0, b"\x82", end_headers=False, end_stream=True)
    await client.send_goaway(ErrorCode.CANCEL, 2, b"bye")
    assert await stream.receive_some() == (
        b"\r\n"
        b"\x00\x00\x04\xff\xff\xff\xff\xff\xffjunk"
        b"\x00\x00\x01\x01\x01\x00\x00\x00\x00\x82"
        b"\x00\x00\x0b\x07\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x08bye"
    )
    assert PREFACE.startswith(b"PRI")
