"""The codec of HTTP/2, alone: whatever a client sends becomes events and an answer, and never an exception."""

import itertools
from math import inf

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded
from hpack import Encoder
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trigi._protocol.events import NEED_DATA, Data, Pong, Refused, Request, WindowOpened
from trigi._protocol.http2 import RESETS_REMEMBERED, ErrorCode, HTTP2Codec
from trigi._protocol.http2_frames import PREFACE, FrameType, encode_frame
from trigi.config import Config
from trigi.exceptions import BadConnection

GET = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/")]
POST = [(":method", "POST"), *GET[1:]]
OK = [(b":status", b"200")]
SETTINGS = encode_frame(FrameType.SETTINGS, 0, 0)


def receive(codec, data, now=0.0):
    """All events of these bytes."""
    codec.receive_data(data, now)
    return list(iter(codec.next_event, NEED_DATA))


class Pair:
    """The codec, and a client's h2 on the other side."""

    def __init__(self, **config):
        self.codec = HTTP2Codec(Config(**config))
        self.client = H2Connection(H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.now = 0.0
        self.exchange()

    def to_server(self):
        return receive(self.codec, self.client.data_to_send(), self.now)

    def to_client(self):
        return self.client.receive_data(self.codec.data_to_send())

    def exchange(self):
        """Until both have said all they have to: the events of the server."""
        events = []
        while data := self.client.data_to_send():
            events += receive(self.codec, data, self.now)
            self.to_client()
        return events

    def raw(self, *frames):
        return receive(self.codec, b"".join(frames), self.now)


def of_type(events, kind):
    return [event for event in events if type(event) is kind]


def test_a_request_and_its_response():
    pair = Pair()
    pair.client.send_headers(1, POST)
    pair.client.send_data(1, b"ab")
    pair.client.send_data(1, b"c", end_stream=True)
    request, first, last = pair.to_server()
    assert (request.method, request.stream_id, request.has_body) == ("POST", 1, True)
    assert (first, last) == (Data(b"ab", more=True, stream_id=1), Data(b"c", more=False, stream_id=1))
    pair.codec.send_headers(1, OK, end_stream=False)
    pair.codec.send_data(1, b"hello", end_stream=True)
    events = pair.to_client()
    assert [type(event) for event in events] == [ResponseReceived, DataReceived, StreamEnded]
    assert not pair.codec.is_open(1)


def test_a_stream_is_open_until_both_sides_have_ended():
    pair = Pair()
    pair.client.send_headers(1, POST)
    pair.to_server()
    pair.codec.send_headers(1, OK, end_stream=True)
    assert pair.codec.is_open(1)
    assert pair.codec.is_response_complete(1)
    pair.client.send_data(1, b"", end_stream=True)
    pair.to_server()
    assert not pair.codec.is_open(1)


def test_the_window_of_a_stream_is_given_back_by_halves():
    pair = Pair(h2_stream_window=100_000)
    pair.exchange()
    pair.client.send_headers(1, POST)
    for _ in range(4):
        pair.client.send_data(1, bytes(15_000))
    pair.exchange()
    assert pair.client.local_flow_control_window(1) == 40_000
    pair.codec.return_window(1, 49_999)
    pair.to_client()
    assert pair.client.local_flow_control_window(1) == 40_000
    pair.codec.return_window(1, 1)
    pair.to_client()
    assert pair.client.local_flow_control_window(1) == 90_000


def test_the_window_of_the_connection_is_given_back_on_receipt():
    pair = Pair(h2_stream_window=2**20)
    stream_id = -1
    for _ in range(3):
        stream_id += 2
        pair.client.send_headers(stream_id, POST)
        while pair.client.local_flow_control_window(stream_id) >= 16_384:
            pair.client.send_data(stream_id, bytes(16_384))
        pair.exchange()
    assert pair.client.outbound_flow_control_window > 400_000


@pytest.mark.parametrize("rate", ["h2_reset_limit", "h2_control_frame_limit"])
def test_rates_are_for_ten_seconds(rate):
    pair = Pair(**{rate: 5})
    pair.now = 10.0

    def bother():
        if rate == "h2_control_frame_limit":
            return pair.raw(encode_frame(FrameType.PING, 0, 0, bytes(8)))
        pair.client.send_headers(pair.client.get_next_available_stream_id(), GET, end_stream=True)
        pair.client.reset_stream(pair.client.highest_outbound_stream_id)
        return pair.to_server()

    for _ in range(5):
        assert not of_type(bother(), BadConnection)
        pair.now += 1
    pair.now = 20.0
    for _ in range(5):
        assert not of_type(bother(), BadConnection)
    [error] = of_type(bother(), BadConnection)
    assert (error.error_code, error.limit) == ("ENHANCE_YOUR_CALM", rate)


def test_frames_that_are_sent_win_control_frames():
    pair = Pair(h2_control_frame_limit=10)
    pair.client.send_headers(1, GET, end_stream=True)
    pair.to_server()
    pair.codec.send_headers(1, OK, end_stream=False)
    for _ in range(100):
        pair.codec.send_data(1, b"x", end_stream=False)
        pair.to_client()
        pair.client.increment_flow_control_window(1, 1)
        pair.client.increment_flow_control_window(1)
        pair.client.ping(bytes(8))
        assert not of_type(pair.to_server(), BadConnection)


def test_abandoned_streams_count_as_open():
    pair = Pair(h2_max_concurrent_streams=2)

    def opens(stream_id):
        frame = encode_frame(FrameType.HEADERS, 0x5, stream_id, Encoder().encode(GET))
        return len(of_type(pair.raw(frame), Request)) == 1

    assert opens(1)
    pair.codec.abandoned = 1
    assert not opens(3)
    assert pair.codec.data_to_send() == encode_frame(FrameType.RST_STREAM, 0, 3, b"\0\0\0\7")
    pair.codec.abandoned = 0
    assert opens(5)
    assert not opens(7)


def test_how_many_resets_are_remembered():
    pair = Pair(h2_reset_limit=inf)
    for number in range(RESETS_REMEMBERED + 1):
        pair.client.send_headers(1 + 2 * number, POST)
        pair.to_server()
        pair.codec.reset(1 + 2 * number, ErrorCode.CANCEL)
        pair.to_client()
    assert pair.raw(encode_frame(FrameType.DATA, 0, 3, b"x")) == []
    [error] = pair.raw(encode_frame(FrameType.DATA, 0, 1, b"x"))
    assert error.error_code == "STREAM_CLOSED"


def test_goodbye_in_two_steps():
    pair = Pair()
    pair.client.send_headers(1, GET, end_stream=True)
    pair.to_server()
    pair.codec.begin_goodbye()
    sent = pair.codec.data_to_send()
    goaway = encode_frame(FrameType.GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0")
    assert sent.startswith(goaway)
    assert sent[len(goaway) + 3] == FrameType.PING
    pair.client.send_headers(3, GET, end_stream=True)
    assert len(of_type(pair.to_server(), Request)) == 1
    assert of_type(pair.raw(encode_frame(FrameType.PING, 1, 0, b"goodbye.")), Pong)
    pair.codec.say_goodbye()
    assert pair.codec.data_to_send() == encode_frame(FrameType.GOAWAY, 0, 0, b"\0\0\0\3\0\0\0\0")
    pair.codec.say_goodbye()
    assert pair.codec.data_to_send() == b""
    pair.client.send_headers(5, GET, end_stream=True)
    assert pair.to_server() == []
    assert pair.codec.data_to_send() == encode_frame(FrameType.RST_STREAM, 0, 5, b"\0\0\0\7")


def test_an_answer_in_the_servers_name_ends_both_sides():
    pair = Pair()
    pair.client.send_headers(1, [(":method", "CONNECT"), (":authority", "localhost:443")])
    [refused] = pair.to_server()
    assert type(refused) is Refused
    pair.codec.answer(1, refused.error.status_hint, [(b"server", b"trigi")])
    response, ended, reset = pair.to_client()
    assert dict(response.headers)[b":status"] == b"501"
    assert (type(ended), reset.error_code) == (StreamEnded, ErrorCode.NO_ERROR)


def test_made_up_settings_are_not_kept():
    pair = Pair(h2_control_frame_limit=inf)
    for code in range(0x1000, 0x1100):
        pair.raw(encode_frame(FrameType.SETTINGS, 0, 0, code.to_bytes(2) + bytes(4)))
    assert len(pair.codec._engine._h2.remote_settings) < 10


def test_the_memory_for_compression_is_the_servers_choice():
    pair = Pair()
    pair.raw(encode_frame(FrameType.SETTINGS, 0, 0, b"\0\1\xff\xff\xff\xff"))
    assert pair.codec._engine._h2.encoder.header_table_size == 4096


# Anything at all


def headers(stream_id, fields, flags):
    return encode_frame(FrameType.HEADERS, flags, stream_id, Encoder().encode(fields, huffman=False))


stream_ids = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 2, 9])
some_fields = st.sampled_from(
    [GET, POST, [*POST, ("content-length", "3")], [("x-trailer", "1")], [("Bad", "1")], GET[1:], []]
)
frames = st.one_of(
    st.builds(headers, stream_ids, some_fields, st.sampled_from([0x4, 0x5, 0x0, 0x1])),
    st.builds(encode_frame, st.just(0), st.sampled_from([0, 1, 8, 9]), stream_ids, st.binary(max_size=8)),
    st.builds(
        lambda stream_id, increment: encode_frame(8, 0, stream_id, increment.to_bytes(4)),
        stream_ids,
        st.sampled_from([0, 1, 100, 2**31 - 1, 2**32 - 1]),
    ),
    st.builds(lambda stream_id: encode_frame(3, 0, stream_id, b"\0\0\0\x08"), stream_ids),
    st.builds(
        lambda code, value: encode_frame(4, 0, 0, code.to_bytes(2) + value.to_bytes(4)),
        st.integers(0, 10),
        st.sampled_from([0, 1, 2, 16_384, 65_535, 2**31 - 1, 2**32 - 1]),
    ),
    st.builds(encode_frame, st.integers(0, 17), st.integers(0, 255), stream_ids, st.binary(max_size=12)),
)


@settings(max_examples=400, deadline=None)
@given(sent=st.lists(frames, max_size=12), answers=st.booleans(), data=st.data())
@example(sent=[headers(1, POST, 0x4), encode_frame(0, 9, 1, b"\2ab\0\0")], answers=True, data=None)
def test_any_frames_become_events_and_never_an_exception(sent, answers, data):
    """However they are split; with answers, as the connection above gives them."""
    whole = PREFACE + SETTINGS + b"".join(sent)
    cuts = [] if data is None else sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    results = []
    for bounds in ([0, len(whole)], [0, *cuts, len(whole)]):
        codec = HTTP2Codec(Config())
        told = []
        for start, end in itertools.pairwise(bounds):
            events = receive(codec, whole[start:end])
            told += [repr(event) for event in events]
            assert all(type(event) is not BadConnection for event in events[:-1])
            if events and type(events[-1]) is BadConnection:
                break
        else:
            if answers:
                answer_all(codec)
        results.append((told, codec.data_to_send()))
    assert results[0] == results[1]


def answer_all(codec):
    for stream_id in (1, 3, 5, 7, 9):
        if codec.is_open(stream_id):
            codec.return_window(stream_id, 8)
            codec.send_headers(stream_id, OK, end_stream=False)
            size = min(codec.window(stream_id), codec.connection_window, 5)
            codec.send_data(stream_id, b"hello"[: max(size, 0)], end_stream=True)


def test_nothing_is_read_after_the_end():
    codec = HTTP2Codec(Config())
    events = receive(codec, PREFACE + SETTINGS + encode_frame(FrameType.PING, 0, 1, bytes(8)))
    assert [type(event) for event in events] == [WindowOpened, BadConnection]
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    [*_, end] = client.receive_data(codec.data_to_send())
    assert (type(end), end.error_code) == (ConnectionTerminated, ErrorCode.PROTOCOL_ERROR)
