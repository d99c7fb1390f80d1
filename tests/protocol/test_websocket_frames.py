"""Frames that are whole messages are read at once, and nobody can tell: wsproto would have said the same.

What the frames mean is tested in `test_websocket.py`. Here is who reads them, and that it makes no difference: a codec
that leaves every byte to wsproto is the reference, read by read.
"""

from __future__ import annotations

import math
import os
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from runpy import run_path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import trigi
from trigi._protocol import websocket_frames
from trigi._protocol.websocket import Closed, Message, WebSocketCodec
from trigi._protocol.websocket_frames import SHORT, STRETCH, FrameReader, unmask, unmask_in_python
from trigi._protocol.websocket_handshake import DeflateParameters

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10
KEY = b"\x37\xfa\x21\x3d"  # RFC 6455, 5.7
LIMIT = 1 << 20


def xor(payload, key):
    """RFC 6455, 5.3, as it stands there."""
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def frame(opcode, payload=b"", *, fin=True, rsv=0, key=KEY, length=None, length_size=None):
    """A client's frame. `key` is `None` for one without a mask; `length_size` is for lengths in too long a form."""
    length = len(payload) if length is None else length
    if length_size is None:
        length_size = 0 if length <= 125 else 2 if length <= 0xFFFF else 8
    short = {0: length, 2: 126, 8: 127}[length_size]
    head = bytes(((0x80 if fin else 0) | rsv | opcode, (0x80 if key else 0) | short))
    head += length.to_bytes(length_size, "big") if length_size else b""
    return head + (key + xor(payload, key) if key else payload)


def deflated(payload):
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def make_codec(deflate=None, size=LIMIT, frames=1024):
    return WebSocketCodec(deflate, message_size_limit=size, frame_count_limit=frames)


class Recording:
    """What stands in front of wsproto, and notes what it is given."""

    def __init__(self, connection):
        self.given = b""
        self._connection = connection

    def receive_data(self, data):
        self.given += data
        self._connection.receive_data(data)

    def __getattr__(self, name):
        return getattr(self._connection, name)


def recorded(**parameters):
    codec = make_codec(**parameters)
    codec._connection = Recording(codec._connection)
    return codec


class NoReader:
    """In the place of `FrameReader`: every byte is wsproto's, as it comes."""

    missing = 0

    def __init__(self):
        self._data = b""

    def feed(self, data):
        self._data = data

    def take(self, *, may_read):
        data, self._data = self._data, b""
        return data or None

    def clear(self):
        self._data = b""


def reference(**parameters):
    codec = make_codec(**parameters)
    # What is compiled can't be replaced: one that may read nothing comes near.
    codec._reader = NoReader() if websocket_frames.__file__.endswith(".py") else FrameReader(-1)
    return codec


@pytest.fixture(params=["as installed", "in Python"])
def unmasking(request, monkeypatch):
    if request.param == "in Python":
        monkeypatch.setattr(websocket_frames, "unmask", unmask_in_python)


class TestUnmasking:
    """RFC 6455, 5.3."""

    @pytest.mark.parametrize("function", [unmask, unmask_in_python], ids=["as installed", "in Python"])
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_every_size(self, function, kind):
        edges = (SHORT, STRETCH, 2 * STRETCH)
        for size in [*range(10), *(edge + more for edge in edges for more in range(-3, 4))]:
            payload = os.urandom(size)
            unmasked = function(kind(payload), KEY)
            assert unmasked == xor(payload, KEY)
            assert type(unmasked) is bytes

    @given(st.binary(max_size=2000), st.binary(min_size=4, max_size=4))
    def test_both_are_the_same(self, payload, key):
        assert unmask(payload, key) == unmask_in_python(payload, key) == xor(payload, key)
        assert unmask(bytearray(payload), bytearray(key)) == unmask_in_python(
            bytearray(payload), bytearray(key)
        )

    def test_websockets_is_taken_where_it_is_installed(self, monkeypatch):
        assert unmask is not unmask_in_python
        monkeypatch.setitem(sys.modules, "websockets.speedups", None)
        without = run_path(str(Path(trigi.__file__).parent / "_protocol" / "websocket_frames.py"))
        assert without["unmask"] is without["unmask_in_python"]


@pytest.mark.usefixtures("unmasking")
class TestWhatIsReadHere:
    """A message in one plain frame. wsproto does not see it."""

    @pytest.mark.parametrize("size", [0, 1, 125, 126, SHORT, SHORT + 1, 65535, 65536, 200_000])
    def test_whole_messages(self, size):
        binary, text = os.urandom(size), os.urandom(size // 2 + 1).hex()[:size]
        data = frame(BINARY, binary) + frame(TEXT, text.encode()) + frame(BINARY, b"end")
        codec = recorded(size=max(size, 3))
        found = codec.receive_data(data)
        assert found == [Message(binary), Message(text), Message(b"end")]
        assert type(found[0].data) is bytes
        assert codec._connection.given == b""

    @pytest.mark.parametrize("size", [0, 5, 130, 70_000])
    @pytest.mark.parametrize("read", [1, 7, 4096])
    def test_a_binary_frame_in_pieces(self, size, read):
        payload = os.urandom(size)
        data = frame(BINARY, payload) * 2
        codec = recorded()
        found = []
        for start in range(0, len(data), read):
            found += codec.receive_data(data[start : start + read])
        assert found == [Message(payload)] * 2
        assert codec._connection.given == b""

    def test_between_what_is_not(self):
        """wsproto gets exactly the frames that are its own, and the others come in their places."""
        its_own = [
            frame(PING, b"ping"),
            frame(TEXT, b"a", fin=False) + frame(PONG, b"") + frame(CONT, b"", fin=False) + frame(CONT, b"b"),
            frame(BINARY, deflated(b"c"), rsv=RSV1),
            frame(TEXT, deflated(b"d"), rsv=RSV1, fin=False) + frame(CONT, b""),
        ]
        between = frame(BINARY, b"between")
        data = between.join([b"", *its_own, b""])
        for read in (1, 2, 5, len(data)):
            codec = recorded(deflate=DeflateParameters())
            found = []
            for start in range(0, len(data), read):
                found += codec.receive_data(data[start : start + read])
            messages = [each.data for each in found if isinstance(each, Message)]
            assert messages == [b"between", b"between", "ab", b"between", b"c", b"between", "d", b"between"]
            assert codec._connection.given == b"".join(its_own)

    def test_text_that_is_incomplete_is_not(self):
        data = frame(TEXT, b"text" * 50)
        codec = recorded()
        assert codec.receive_data(data[:10]) == []
        assert codec._connection.given == data[:10]
        assert codec.receive_data(data[10:] + frame(TEXT, b"next")) == [Message("text" * 50), Message("next")]
        assert codec._connection.given == data

    def test_text_that_is_not_utf8_is_not(self):
        data = frame(TEXT, b"\xff")
        codec = recorded()
        found = codec.receive_data(frame(TEXT, b"a") + data + frame(TEXT, b"b"))
        assert found == [Message("a"), Closed(1007, "invalid payload data")]
        assert codec._connection.given == data


class TestWhatIsKept:
    def test_memory_of_an_unfinished_message(self):
        data = frame(BINARY, bytes(30_000))[:-1]
        for read in (1, 3, 1000):
            reads = [data[i : i + read] for i in range(0, len(data), read)]
            codec = make_codec()
            tracemalloc.start()
            try:
                for piece in reads:
                    codec.receive_data(piece)
                assert tracemalloc.get_traced_memory()[1] < 60_000
            finally:
                tracemalloc.stop()

    def test_memory_of_a_message_when_it_is_complete(self):
        """For a moment there are the frame and the message; in Python also the stretches of which it is joined."""
        data = frame(BINARY, bytes(1 << 20), key=b"\0\0\0\0")
        reads = [data[i : i + 4096] for i in range(0, len(data), 4096)]
        codec = make_codec()
        tracemalloc.start()
        try:
            found = [event for piece in reads for event in codec.receive_data(piece)]
            size, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert found == [Message(bytes(1 << 20))]
        assert size < 1.1 * (1 << 20)
        assert peak < (3.3 if unmask is unmask_in_python else 2.3) * (1 << 20)

    def test_what_was_announced_takes_no_memory(self):
        codec = make_codec(size=math.inf)
        tracemalloc.start()
        try:
            codec.receive_data(frame(BINARY, b"a", length=1 << 40))
            assert tracemalloc.get_traced_memory()[1] < 10_000
        finally:
            tracemalloc.stop()

    def test_a_long_read_is_not_kept_for_its_end(self):
        codec = make_codec()
        tracemalloc.start()
        try:
            codec.receive_data(frame(BINARY, b"a") * 10_000 + b"\x82")
            assert tracemalloc.get_traced_memory()[0] < 10_000
        finally:
            tracemalloc.stop()

    def test_short_reads_take_no_long_time(self):
        data = frame(BINARY, bytes(4 << 20), key=b"\0\0\0\0")
        reads = [data[i : i + 64] for i in range(0, len(data), 64)]
        codec = make_codec(size=math.inf)
        before = time.process_time()
        found = [event for piece in reads for event in codec.receive_data(piece)]
        assert time.process_time() - before < 2
        assert found == [Message(bytes(4 << 20))]

    def test_memory_after_the_end(self):
        """What was received of a message is let go when nobody will get it."""
        for end in (WebSocketCodec.receive_eof, WebSocketCodec.close):
            codec = make_codec()
            codec.receive_data(frame(BINARY, bytes(1000))[:-1])
            assert codec._reader._buffer
            end(codec)
            assert not codec._reader._buffer
        codec = make_codec()
        codec.receive_data(frame(3) + bytes(1000))
        assert not codec._reader._buffer

    def test_the_server_closes_in_the_middle_of_a_frame(self):
        """At every byte of it: the message is dropped, also if it is whole, and what follows is read."""
        data = frame(BINARY, b"a" * 200)
        for end in range(len(data)):
            codec = make_codec()
            assert codec.receive_data(data[:end]) == []
            codec.close()
            found = codec.receive_data(data[end:] + frame(BINARY, b"b") + frame(CLOSE, b"\x03\xe8"))
            assert found == [Closed(1000, "")]

    def test_missing(self):
        """How much is known to come: of a frame that is kept here, and of one that is wsproto's."""
        codec = make_codec()
        assert codec.missing == 0
        for data in (frame(BINARY, bytes(100_000)), frame(TEXT, bytes(100_000))):
            codec.receive_data(frame(PING) + data[:1])
            assert 0 < codec.missing < 10
            codec.receive_data(data[1:1000])
            assert codec.missing == len(data) - 1000
            codec.receive_data(data[1000:-1])
            assert codec.missing == 1
            assert len(codec.receive_data(data[-1:])) == 1
            assert codec.missing == 0


# The same as wsproto alone

keys = st.binary(min_size=4, max_size=4)
sizes = st.sampled_from([0, 1, 2, 3, 5, 20, 100, 124, 125, 126, 127, 300, SHORT, SHORT + 1, 1000])
binaries = st.builds(lambda seed, size: (seed * (size + 1))[:size], st.binary(min_size=1, max_size=30), sizes)
texts = st.builds(
    lambda seed, times: (seed * times).encode(), st.text(max_size=20), st.sampled_from([1, 1, 10, 50])
)
not_utf8 = st.builds(
    lambda before, wrong: before + wrong, texts, st.sampled_from([b"\xff", b"\xce", b"\xed\xa0\x80"])
)
payloads = binaries | texts | not_utf8

whole = st.builds(frame, st.just(TEXT), texts, key=keys) | st.builds(
    frame, st.just(BINARY), payloads, key=keys
)
control = st.builds(frame, st.sampled_from([PING, PONG]), binaries.map(lambda data: data[:125]), key=keys)
fragments = st.builds(
    lambda first, between, rest, last: b"".join([first, *between, *rest, last]),
    st.builds(frame, st.sampled_from([TEXT, BINARY]), payloads, fin=st.just(False), key=keys),
    st.lists(control, max_size=1),
    st.lists(st.builds(frame, st.just(CONT), payloads, fin=st.just(False), key=keys) | control, max_size=2),
    st.builds(frame, st.sampled_from([CONT, CONT, CONT, TEXT, BINARY]), payloads, key=keys),
)
compressed = st.builds(
    frame,
    st.sampled_from([TEXT, BINARY]),
    payloads.map(deflated),
    fin=st.booleans(),
    rsv=st.just(RSV1),
    key=keys,
)
closing = st.builds(
    frame, st.just(CLOSE), st.sampled_from([b"", b"\x03", b"\x03\xe8", b"\x0f\xa0bye", b"\x03\xed"])
)
not_masked = st.builds(frame, st.sampled_from([TEXT, BINARY]), payloads, key=st.none())
too_long_a_form = st.builds(
    lambda opcode, payload, longer: frame(
        opcode, payload, length_size=8 if longer or len(payload) > 125 else 2
    ),
    st.sampled_from([CONT, TEXT, BINARY, PING, 3]),
    payloads,
    st.booleans(),
)
anything = st.builds(
    frame,
    st.integers(0, 15),
    payloads,
    fin=st.booleans(),
    rsv=st.sampled_from([0, RSV1, RSV2, RSV3]),
    key=keys,
)
cut_off = st.builds(lambda data, end: data[:end], whole | fragments, st.integers(0, 20))
junk = st.binary(max_size=20)
valid = whole | whole | control | fragments | compressed
streams = st.builds(
    lambda begin, end: b"".join([*begin, *end]),
    st.lists(valid, max_size=4),
    st.lists(valid | closing | not_masked | too_long_a_form | anything | cut_off | junk, max_size=3),
)
agreements = st.none() | st.builds(DeflateParameters, client_no_context_takeover=st.booleans())
limits = st.fixed_dictionaries(
    {"deflate": agreements, "size": st.sampled_from([0, 5, 125, 126, 300, SHORT, 1000, math.inf])}
)


def kinds(found):
    """Events with the types that `==` does not tell apart."""
    return [(each, type(each.data) if isinstance(each, Message) else None) for each in found]


def assert_same(reads, close_before, parameters):
    """Read by read, and whatever the server closes before (or never: -1)."""
    codec, judge = make_codec(frames=3, **parameters), reference(frames=3, **parameters)
    for number, read in enumerate(reads):
        if number == close_before:
            assert codec.close(1001) == judge.close(1001)
        found = codec.receive_data(read)
        assert kinds(found) == kinds(judge.receive_data(read))
        assert codec.data_to_send() == judge.data_to_send()
        assert codec.closed == judge.closed
        assert codec.close_sent is judge.close_sent
        if codec.closed is None:
            # Here the header counts, too: at most 9 bytes of it when it has begun.
            assert 0 <= codec.missing - judge.missing <= 9
    assert codec.receive_eof() == judge.receive_eof()


@settings(max_examples=1000, deadline=None)
@given(st.data(), streams, limits)
def test_the_same_as_wsproto_alone(data, stream, parameters):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reads = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert_same(reads, data.draw(st.just(-1) | st.integers(0, len(reads))), parameters)


@settings(max_examples=200, deadline=None)
@given(streams, limits, st.just(-1) | st.integers(0, 200))
@example(frame(BINARY, bytes(1001)), {"deflate": None, "size": 1000}, -1)
@example(frame(BINARY, length=1 << 62), {"deflate": None, "size": 1000}, -1)
@example(frame(BINARY, length=1 << 63), {"deflate": None, "size": math.inf}, -1)
@example(frame(CONT, b"a"), {"deflate": None, "size": 1000}, -1)
@example(frame(3, bytes(300)), {"deflate": None, "size": 1000}, -1)
@example(frame(PING, bytes(126)), {"deflate": None, "size": 1000}, -1)
def test_the_same_byte_by_byte(stream, parameters, close_before):
    """What is wrong is refused at the same byte."""
    assert_same([stream[i : i + 1] for i in range(len(stream))], close_before, parameters)


@pytest.mark.parametrize("opcode", [CONT, TEXT, BINARY, 3, CLOSE, PING])
@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize(
    ("length", "length_size"),
    [(0, 0), (125, 0), (0, 2), (125, 2), (126, 2), (65535, 2), (0, 8), (126, 8), (65535, 8), (65536, 8)],
)
def test_every_form_of_a_length_within_and_past_the_limit(opcode, key, length, length_size):
    data = frame(opcode, bytes(length), key=key, length_size=length_size)
    reads = [*(data[i : i + 1] for i in range(20)), data[20:]]
    for size in (length - 1, length, length + 1):
        assert_same(reads, -1, {"deflate": None, "size": max(size, 0)})


WHOLE = frame(BINARY, b"abc")
OTHERS = {
    "nothing": b"",
    "less": WHOLE[:-1],
    "half a header": WHOLE[:1],
    "more": WHOLE + WHOLE[:1],
    "two": WHOLE * 2,
    "ping": frame(PING, b"abc"),
    "ping behind": WHOLE + frame(PING, b""),
    "fragment": frame(TEXT, b"a", fin=False),
    "no text": frame(TEXT, b"\xff"),
    "too large": frame(BINARY, bytes(101)),
    "unmasked": b"\x82\x00",
}


class TestOneMessageAlone:
    """`receive_message`: all or nothing."""

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 70_000])
    def test_it_is_taken(self, opcode, size):
        codec = recorded(size=70_000)
        for _ in range(2):
            message = codec.receive_message(frame(opcode, b"x" * size))
            assert message == ("x" * size if opcode == TEXT else b"x" * size)
        assert codec.missing == 0
        assert codec._connection.given == b""

    @pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
    def test_nothing_else_is(self, data):
        """And then nothing has been received: it all is there for `receive_data`."""
        codec, other = make_codec(size=100), make_codec(size=100)
        assert codec.receive_message(data) is None
        assert codec.missing == other.missing
        assert codec.receive_data(data) == other.receive_data(data)
        assert codec.data_to_send() == other.data_to_send()
        assert codec.closed == other.closed
        assert codec.receive_data(WHOLE) == other.receive_data(WHOLE)

    @pytest.mark.parametrize(
        "before", [WHOLE[:3], frame(TEXT, b"a", fin=False), frame(PING, b"abc")[:4]], ids=repr
    )
    def test_behind_what_is_incomplete_nothing_is(self, before):
        codec, other = make_codec(), make_codec()
        for each in (codec, other):
            assert each.receive_data(before) == []
        assert codec.receive_message(WHOLE) is None
        assert codec.receive_data(WHOLE) == other.receive_data(WHOLE)

    def test_after_a_close_nothing_is(self):
        codec = make_codec()
        codec.close()
        assert codec.receive_message(WHOLE) is None
        codec = make_codec()
        codec.receive_eof()
        assert codec.receive_message(WHOLE) is None
