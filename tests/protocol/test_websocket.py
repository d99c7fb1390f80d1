"""Frames and messages: RFC 6455, sections 5 to 8, by section; RFC 7692; and the limits.

Frames are made by hand here. `receive` reads everything twice, whole and byte by byte, and wants the same events
and answers. The numbers in names (`5.5.2`, Autobahn `9.x`) are where the rule or the case comes from.
"""

from __future__ import annotations

import math
import os
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode as WebsocketsOpcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri
from wsproto import ConnectionType, WSConnection, events
from wsproto.extensions import PerMessageDeflate

from trigi._protocol.events import Request
from trigi._protocol.websocket import Closed, FrameGuard, Message, Pong, WebSocketCodec
from trigi._protocol.websocket_handshake import DeflateParameters, Handshake
from trigi.exceptions import InvalidMessage

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10
KEY = b"\x37\xfa\x21\x3d"  # RFC 6455, 5.7
LIMIT = 1 << 20


def masked(payload, key=KEY):
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return mixed.to_bytes(len(payload), "big")


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=True, announced=None, length_bytes=None):
    """A client's frame. `announced` and `length_bytes` are for lengths that are wrong, or in too long a form."""
    size = len(payload) if announced is None else announced
    if length_bytes is None:
        length_bytes = 0 if size <= 125 else 2 if size <= 0xFFFF else 8
    short = size if length_bytes == 0 else {2: 126, 8: 127}[length_bytes]
    head = bytes(((0x80 if fin else 0) | rsv | opcode, (0x80 if mask else 0) | short))
    head += size.to_bytes(length_bytes, "big") if length_bytes else b""
    return head + (KEY + masked(payload) if mask else payload)


def close_frame(code=None, reason=b""):
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def parse(data):
    """A server's frames as (first byte, payload)."""
    frames = []
    while data:
        first, size = data[0], data[1]
        start = {126: 4, 127: 10}.get(size, 2)
        if start > 2:
            size = int.from_bytes(data[2:start], "big")
            assert size > (125 if start == 4 else 0xFFFF), "not the shortest form"
        assert len(data) >= start + size
        frames.append((first, data[start : start + size]))
        data = data[start + size :]
    return frames


def make_codec(deflate=None, size=LIMIT, frames=1024):
    return WebSocketCodec(deflate, message_size_limit=size, frame_count_limit=frames)


def receive(data, *, before=None, **parameters):
    """The events and the parsed answers to some bytes, which are the same however the bytes are cut."""
    results = []
    for step in (len(data) or 1, 1 if len(data) < 10_000 else 61):  # long ones in short reads, to save time
        codec = make_codec(**parameters)
        if before:
            before(codec)
        found = []
        answers = b""
        for start in range(0, len(data), step):
            found += codec.receive_data(data[start : start + step])
            answers += codec.data_to_send()
        results.append((found, parse(answers)))
    assert results[0] == results[1]
    return results[0]


def failure(data, **parameters):
    """The close code of the only event: the same in the event and in the frame that is sent."""
    found, answers = receive(data, **parameters)
    assert all(isinstance(each, Message | Pong) for each in found[:-1])
    closed = found[-1]
    assert isinstance(closed, Closed)
    assert answers[-1] == (0x80 | CLOSE, closed.code.to_bytes(2, "big") + closed.reason.encode())
    assert len(closed.reason) > 0
    return closed.code


def deflated(payload, *, level=9, wbits=-15):
    compressor = zlib.compressobj(level, wbits=wbits)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def compressed_frame(payload, opcode=TEXT, **parameters):
    return frame(opcode, deflated(payload), rsv=RSV1, **parameters)


class TestFraming:
    """RFC 6455, 5.1, 5.2, 5.3, 5.6; Autobahn 1.x."""

    @pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 128, 65535, 65536, 65537])
    def test_lengths(self, size):
        text = ("*" * size, b"*" * size)
        assert receive(frame(TEXT, text[1]))[0] == [Message(text[0])]
        assert receive(frame(BINARY, b"\xfe" * size))[0] == [Message(b"\xfe" * size)]
        codec = make_codec()
        assert parse(codec.send_message(text[0])) == [(0x81, text[1])]
        assert parse(codec.send_message(b"\xfe" * size)) == [(0x82, b"\xfe" * size)]

    def test_examples_of_the_rfc(self):  # 5.7
        assert receive(bytes.fromhex("818537fa213d7f9f4d5158")) == ([Message("Hello")], [])
        codec = make_codec()
        assert codec.send_message("Hello") == bytes.fromhex("810548656c6c6f")
        assert codec.ping(b"Hello") == bytes.fromhex("890548656c6c6f")

    def test_server_does_not_mask(self):  # 5.1
        codec = make_codec()
        assert codec.send_message(b"abc")[1] & 0x80 == 0
        assert codec.ping()[1] & 0x80 == 0
        assert codec.close()[1] & 0x80 == 0

    def test_unmasked_frame(self):  # 5.1
        assert failure(frame(TEXT, b"Hello", mask=False)) == 1002
        assert failure(frame(PING, b"", mask=False)) == 1002

    @pytest.mark.parametrize(
        ("size", "length_bytes"),
        [(0, 2), (125, 2), (0, 8), (126, 8), (65535, 8), (1 << 63, 8), ((1 << 64) - 1, 8)],
    )
    def test_length_not_in_its_shortest_form_or_too_long(self, size, length_bytes):
        code = failure(frame(BINARY, announced=size, length_bytes=length_bytes), size=math.inf)
        assert code == 1002

    def test_binary_data_is_bytes(self):
        [message] = make_codec().receive_data(frame(BINARY, b"abc"))
        assert type(message.data) is bytes
        assert make_codec().send_message(b"abc") == b"\x82\x03abc"

    def test_several_in_one_read(self):
        data = frame(TEXT, b"a") + frame(BINARY, b"b") + frame(TEXT, b"")
        assert receive(data) == ([Message("a"), Message(b"b"), Message("")], [])

    def test_nothing_and_half_a_frame(self):
        codec = make_codec()
        assert codec.receive_data(b"") == []
        assert codec.receive_data(frame(TEXT, b"abc")[:-1]) == []
        assert codec.data_to_send() == b""
        assert codec.closed is None
        assert codec.receive_data(frame(TEXT, b"abc")[-1:]) == [Message("abc")]

    def test_line_ends_stay(self):
        data = frame(TEXT, b"a\r\nb\rc\n", fin=False) + frame(CONT, b"\r\n")
        assert receive(data)[0] == [Message("a\r\nb\rc\n\r\n")]


class TestPings:
    """RFC 6455, 5.5.2 and 5.5.3; Autobahn 2.x."""

    @pytest.mark.parametrize("payload", [b"", b"Hello", b"\x00\xff\xfe", b"\xfe" * 125])
    def test_ping_is_answered_with_its_payload(self, payload):
        assert receive(frame(PING, payload)) == ([], [(0x8A, payload)])

    def test_ping_too_long(self):
        assert failure(frame(PING, b"\xfe" * 126)) == 1002
        with pytest.raises(ValueError, match="125"):
            make_codec().ping(b"a" * 126)

    @pytest.mark.parametrize("payload", [b"", b"unasked", b"a" * 125])
    def test_pong(self, payload):
        assert receive(frame(PONG, payload)) == ([Pong(payload)], [])

    def test_many_in_order(self):
        payloads = [b"payload-%d" % number for number in range(10)]
        data = b"".join(frame(PING, payload) for payload in payloads)
        assert receive(data) == ([], [(0x8A, payload) for payload in payloads])

    def test_answers_leave_before_what_is_sent_later(self):
        codec = make_codec()
        codec.receive_data(frame(PING, b"1"))
        assert parse(codec.send_message("a")) == [(0x8A, b"1"), (0x81, b"a")]
        codec.receive_data(frame(PING, b"2"))
        assert parse(codec.ping()) == [(0x8A, b"2"), (0x89, b"")]
        codec.receive_data(frame(PING, b"3"))
        assert parse(codec.close()) == [(0x8A, b"3"), (0x88, b"\x03\xe8")]
        assert codec.data_to_send() == b""


class TestReservedBitsAndOpcodes:
    """RFC 6455, 5.2; Autobahn 3.x and 4.x."""

    @pytest.mark.parametrize("rsv", range(0x10, 0x80, 0x10))
    @pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
    def test_reserved_bits(self, rsv, opcode):
        assert failure(frame(TEXT, b"a") + frame(opcode, b"", rsv=rsv)) == 1002
        deflate = DeflateParameters()
        if rsv != RSV1 or opcode >= CLOSE:
            assert failure(frame(opcode, b"", rsv=rsv), deflate=deflate) == 1002

    def test_reserved_bits_in_a_continuation(self):
        data = frame(TEXT, b"a", fin=False) + frame(CONT, b"b", rsv=RSV1)
        assert failure(data) == 1002
        assert failure(data, deflate=DeflateParameters()) == 1002
        data = compressed_frame(b"a", fin=False) + frame(CONT, b"b", rsv=RSV1)
        assert failure(data, deflate=DeflateParameters()) == 1002

    @pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
    def test_reserved_opcodes(self, opcode):
        found, answers = receive(frame(TEXT, b"a") + frame(opcode, b"x") + frame(PING))
        assert [type(each) for each in found] == [Message, Closed]
        assert [first for first, _ in answers] == [0x88]
        assert found[1].code == 1002


class TestFragmentation:
    """RFC 6455, 5.4; Autobahn 5.x."""

    def test_pieces_make_one_message(self):
        data = frame(TEXT, b"one ", fin=False) + frame(CONT, b"two ", fin=False) + frame(CONT, b"three")
        assert receive(data) == ([Message("one two three")], [])
        data = frame(BINARY, b"\xff", fin=False) + frame(CONT, b"\xfe")
        assert receive(data * 2) == ([Message(b"\xff\xfe")] * 2, [])

    def test_empty_pieces(self):
        data = frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) + frame(CONT, b"")
        assert receive(data)[0] == [Message("")]
        data = frame(BINARY, b"", fin=False) + frame(CONT, b"x", fin=False) + frame(CONT, b"")
        assert receive(data)[0] == [Message(b"x")]

    def test_control_frames_between_pieces(self):
        data = frame(TEXT, b"a", fin=False) + frame(PING, b"1") + frame(PONG, b"2") + frame(CONT, b"b")
        assert receive(data) == ([Pong(b"2"), Message("ab")], [(0x8A, b"1")])

    @pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
    def test_fragmented_control_frame(self, opcode):  # 5.5
        assert failure(frame(opcode, b"", fin=False)) == 1002

    @pytest.mark.parametrize("fin", [True, False])
    def test_continuation_of_nothing(self, fin):
        assert failure(frame(CONT, b"a", fin=fin)) == 1002
        assert failure(frame(TEXT, b"a") + frame(CONT, b"a", fin=fin)) == 1002

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_message_inside_a_message(self, opcode):
        assert failure(frame(TEXT, b"a", fin=False) + frame(opcode, b"b")) == 1002
        assert (
            failure(frame(TEXT, b"a", fin=False) + frame(CONT, b"c", fin=False) + frame(opcode, b"b")) == 1002
        )

    def test_close_between_pieces(self):
        found, answers = receive(frame(TEXT, b"a", fin=False) + close_frame(1000))
        assert found == [Closed(1000, "")]
        assert answers == [(0x88, b"\x03\xe8")]


class TestUTF8:
    """RFC 6455, 8.1; Autobahn 6.x."""

    @pytest.mark.parametrize(
        "text", ["κόσμε", "\U0001f600" * 40, "\x00", "\ud7ff\ue000\ufffd\U0010ffff", "\ufffe\uffff"]
    )
    def test_valid(self, text):
        payload = text.encode()
        assert receive(frame(TEXT, payload))[0] == [Message(text)]
        pieces = [frame(CONT, payload[i : i + 1], fin=False) for i in range(1, len(payload))]
        data = frame(TEXT, payload[:1], fin=False) + b"".join(pieces) + frame(CONT)
        assert receive(data)[0] == [Message(text)]

    @pytest.mark.parametrize(
        "payload",
        [
            b"\xff",
            b"\x80",
            b"\xc0\xaf",  # overlong
            b"\xe0\x80\xaf",
            b"\xf0\x80\x80\xaf",
            b"\xed\xa0\x80",  # a surrogate
            b"\xed\xa0\x80\xed\xb0\x80",
            b"\xf4\x90\x80\x80",  # past U+10FFFF
            b"\xf8\x88\x80\x80\x80",
            "κόσμε".encode() + b"\xed\xa0\x80edited",
            "κόσμε".encode()[:-1],  # cut off
        ],
    )
    def test_invalid(self, payload):
        assert failure(frame(TEXT, payload)) == 1007
        assert failure(frame(TEXT, payload[:1], fin=False) + frame(CONT, payload[1:])) == 1007
        assert failure(compressed_frame(payload), deflate=DeflateParameters()) == 1007

    def test_fails_at_the_first_wrong_byte(self):  # Autobahn 6.4
        codec = make_codec()
        data = frame(TEXT, "κόσμε".encode() + b"\xf4\x90", announced=1000)
        assert codec.receive_data(data[:-1]) == []
        assert codec.receive_data(data[-1:]) == [Closed(1007, "invalid payload data")]

    def test_binary_may_be_anything(self):
        assert receive(frame(BINARY, b"\xff\xc0"))[0] == [Message(b"\xff\xc0")]

    def test_surrogates_are_not_sent(self):
        codec = make_codec()
        with pytest.raises(InvalidMessage, match="text"):
            codec.send_message("ab\ud800")
        with pytest.raises(InvalidMessage, match="reason"):
            codec.close(1000, "\udc00")
        assert not codec.close_sent
        assert codec.send_message("ab") == b"\x81\x02ab"


class TestClientCloses:
    """RFC 6455, 5.5.1 and 7; Autobahn 7.x."""

    @pytest.mark.parametrize(
        "code",
        [
            1000,
            1001,
            1002,
            1003,
            1007,
            1008,
            1009,
            1010,
            1011,
            1012,
            1013,
            1014,
            3000,
            3999,
            4000,
            4001,
            4999,
        ],
    )
    def test_valid_codes(self, code):
        found, answers = receive(close_frame(code, "Grüße".encode()))
        assert found == [Closed(code, "Grüße")]
        assert answers == [(0x88, code.to_bytes(2, "big"))]
        assert type(found[0].code) is int

    def test_no_code(self):
        assert receive(close_frame()) == ([Closed(1005, "")], [(0x88, b"")])

    def test_longest_reason(self):
        assert receive(close_frame(1000, b"*" * 123))[0] == [Closed(1000, "*" * 123)]

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
    def test_invalid_codes(self, code):
        assert failure(close_frame(code)) == 1002

    def test_malformed(self):
        assert failure(frame(CLOSE, b"\x03")) == 1002
        assert failure(close_frame(1014, b"\xff")) == 1007
        assert failure(close_frame(1000, b"*" * 124)) == 1002
        assert failure(close_frame(1000, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80")) == 1007

    def test_whatever_follows_is_ignored(self):
        rest = frame(PING, b"x") + frame(TEXT, b"a") + close_frame(4000) + b"junk" * 100
        assert receive(close_frame(4001, b"bye") + rest) == ([Closed(4001, "bye")], [(0x88, b"\x0f\xa1")])

    def test_messages_before_it_come_before_it(self):  # ASGI: WE-53
        data = frame(TEXT, b"a") + frame(PING, b"p") + frame(TEXT, b"b") + close_frame(1001)
        assert receive(data) == (
            [Message("a"), Message("b"), Closed(1001, "")],
            [(0x8A, b"p"), (0x88, b"\x03\xe9")],
        )

    def test_nothing_is_sent_after_the_answer(self):
        codec = make_codec(DeflateParameters())
        codec.receive_data(frame(PING, b"p") + close_frame(1000))
        assert codec.close_sent
        assert codec.closed == Closed(1000, "")
        assert parse(codec.send_message("a" * 100)) == [(0x8A, b"p"), (0x88, b"\x03\xe8")]  # what waited
        assert codec.send_message(b"a") == b""
        assert codec.ping() == b""
        assert codec.close(1011) == b""
        assert codec.data_to_send() == b""


class TestServerCloses:
    """RFC 6455, 5.5.1, 7.1.2 and 7.4."""

    @pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 4999])
    def test_close(self, code):
        codec = make_codec()
        assert parse(codec.close(code, "später")) == [(0x88, code.to_bytes(2, "big") + "später".encode())]
        assert codec.close_sent
        assert codec.closed is None
        assert codec.close() == codec.ping() == codec.send_message("a") == b""
        assert codec.receive_data(close_frame(code)) == [Closed(code, "")]
        assert codec.data_to_send() == b""
        assert codec.closed == Closed(code, "")

    def test_default(self):
        assert make_codec().close() == b"\x88\x02\x03\xe8"

    @pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 70000])
    def test_invalid_codes(self, code):
        codec = make_codec()
        with pytest.raises(InvalidMessage, match=str(code)):
            codec.close(code)
        assert not codec.close_sent

    @pytest.mark.parametrize(
        ("reason", "sent"),
        [
            ("*" * 200, "*" * 123),
            ("ü" * 100, "ü" * 61),
            ("\U0001f600" * 40, "\U0001f600" * 30),
            ("a" * 122 + "ü", "a" * 122),
        ],
    )
    def test_long_reason_is_cut_at_a_character(self, reason, sent):
        assert parse(make_codec().close(1000, reason)) == [(0x88, b"\x03\xe8" + sent.encode())]

    def test_until_the_client_answers_messages_are_dropped(self):
        data = frame(TEXT, b"a") + frame(PING) + frame(PONG, b"p") + frame(TEXT, b"b", fin=False)
        data += frame(CONT, b"c") + close_frame(4002, b"ok") + frame(TEXT, b"d")
        expected = ([Pong(b"p"), Closed(4002, "ok")], [])
        assert receive(data, before=lambda codec: codec.close(1000)) == expected

    def test_in_the_middle_of_a_message(self):
        codec = make_codec()
        assert codec.receive_data(frame(TEXT, b"a", fin=False)) == []
        codec.close()
        assert codec.receive_data(frame(CONT, b"b") + close_frame(1000)) == [Closed(1000, "")]

    def test_client_breaks_the_protocol_instead(self):
        expected = ([Closed(1002, "Invalid opcode 0x3")], [])
        assert receive(frame(3), before=lambda codec: codec.close(1000)) == expected

    def test_crossing_closes(self):
        """Both sides close at once: each has sent its frame, and neither answers."""
        codec = make_codec()
        assert codec.close(1001)
        assert codec.receive_data(close_frame(4000, b"me first")) == [Closed(4000, "me first")]
        assert codec.data_to_send() == b""


class TestEnd:
    """RFC 6455, 7.1.5: a connection that ends without a close frame."""

    def test_1006_once(self):
        codec = make_codec()
        assert codec.receive_eof() == [Closed(1006, "")]
        assert codec.receive_eof() == []
        assert codec.receive_data(frame(TEXT, b"a")) == []
        assert codec.closed == Closed(1006, "")
        assert codec.send_message("a" * 100) == codec.ping() == codec.close() == codec.data_to_send() == b""
        assert not codec.close_sent

    def test_in_a_message(self):
        codec = make_codec()
        codec.receive_data(frame(PING) + frame(TEXT, b"a", fin=False))
        assert codec.receive_eof() == [Closed(1006, "")]

    def test_after_the_own_close(self):
        codec = make_codec()
        codec.close(1000)
        assert codec.receive_eof() == [Closed(1006, "")]

    def test_after_the_clients_close(self):
        codec = make_codec()
        codec.receive_data(close_frame(1000))
        assert codec.receive_eof() == []
        assert codec.closed == Closed(1000, "")

    def test_after_a_violation(self):
        codec = make_codec()
        codec.receive_data(frame(3))
        assert codec.receive_eof() == []


class TestSizeLimit:
    """The limit holds in bytes of the message, and before the bytes are there; Autobahn 9.x passes below it."""

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_at_the_limit(self, opcode):
        [message] = receive(frame(opcode, b"a" * 1000), size=1000)[0]
        assert len(message.data) == 1000
        pieces = frame(opcode, b"a" * 600, fin=False) + frame(CONT, b"a" * 400)
        [message] = receive(pieces, size=1000)[0]
        assert len(message.data) == 1000

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_past_the_limit(self, opcode):
        assert failure(frame(opcode, b"a" * 1001), size=1000) == 1009
        pieces = frame(opcode, b"a" * 600, fin=False) + frame(PING, b"a" * 100) + frame(CONT, b"a" * 401)
        assert failure(pieces, size=1000) == 1009

    def test_refused_by_the_header_alone(self):
        assert failure(frame(BINARY, announced=(1 << 63) - 1)[:-4]) == 1009
        data = frame(BINARY, b"a" * 600, fin=False) + frame(CONT, announced=401)[:-4]
        assert failure(data, size=1000) == 1009

    def test_text_counts_as_utf8(self):
        assert receive(frame(TEXT, ("ü" * 50).encode()), size=100)[0] == [Message("ü" * 50)]
        assert failure(frame(TEXT, ("ü" * 51).encode()), size=100) == 1009
        assert failure(frame(TEXT, ("\U0001f600" * 26).encode()), size=100) == 1009

    def test_afresh_for_each_message(self):
        data = frame(BINARY, b"a" * 60, fin=False) + frame(CONT, b"a" * 40)
        assert receive(data * 3, size=100)[0] == [Message(b"a" * 100)] * 3

    def test_zero_and_infinity(self):
        assert receive(frame(TEXT), size=0)[0] == [Message("")]
        assert failure(frame(TEXT, b"a"), size=0) == 1009
        [message] = make_codec(size=math.inf).receive_data(frame(BINARY, bytes(3 << 20)))
        assert len(message.data) == 3 << 20
        assert make_codec(size=math.inf).receive_data(frame(BINARY, announced=1 << 62)) == []

    def test_control_frames_do_not_count(self):
        data = frame(TEXT, b"a", fin=False) + frame(PING, b"p" * 125) + frame(CONT, b"b")
        assert receive(data, size=2)[0] == [Message("ab")]
        assert receive(close_frame(1000, b"long reason"), size=2)[0] == [Closed(1000, "long reason")]

    @pytest.mark.parametrize("read", [1, 3, 1000])
    def test_memory_of_an_unfinished_message(self, read):
        """Short reads make no more of a message than it is: a list of them would."""
        data = frame(TEXT, b"a" * 30_000)[:-1]
        reads = [data[i : i + read] for i in range(0, len(data), read)]
        codec = make_codec()
        tracemalloc.start()
        try:
            for piece in reads:
                codec.receive_data(piece)
            assert tracemalloc.get_traced_memory()[1] < 60_000
        finally:
            tracemalloc.stop()

    def test_memory_after_the_end(self):
        """What was received of a message is let go when the message can't be completed any more."""
        for end in (
            lambda codec: codec.receive_eof(),
            lambda codec: codec.close(),
            lambda codec: codec.receive_data(frame(3)),
        ):
            codec = make_codec()
            codec.receive_data(frame(TEXT, b"a" * 1000, fin=False))
            end(codec)
            assert codec._partial is None


class TestFrameLimit:
    def test_at_the_limit(self):
        data = frame(TEXT, b"a", fin=False) + frame(CONT, b"b", fin=False) + frame(PING) + frame(CONT, b"c")
        assert receive(data * 2, frames=3)[0] == [Message("abc")] * 2
        assert receive(frame(TEXT, b"a") * 5, frames=1)[0] == [Message("a")] * 5

    @pytest.mark.parametrize("payload", [b"", b"a"])
    def test_past_the_limit(self, payload):
        data = frame(TEXT, payload, fin=False) + frame(CONT, payload, fin=False) * 3
        assert receive(data, frames=4) == ([], [])
        found, _ = receive(data + frame(CONT, payload), frames=4)
        assert found == [Closed(1009, "message in too many frames")]
        assert failure(data, frames=3) == 1009

    def test_infinity(self):
        data = frame(BINARY, b"", fin=False) + frame(CONT, b"a", fin=False) * 5000 + frame(CONT)
        assert make_codec(frames=math.inf).receive_data(data) == [Message(b"a" * 5000)]


class TestInflating:
    """RFC 7692, 6 and 7.2.2; Autobahn 12.x and 13.x."""

    deflate = DeflateParameters()

    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            ("f248cdc9c90700", "Hello"),  # 7.2.3.1
            ("f200110000", "Hello"),  # 7.2.3.2 reuses the window; here: one block refers to nothing
            ("000500faff48656c6c6f00", "Hello"),  # 7.2.3.3: a block without compression
            ("f348cdc9c9070000", "Hello"),  # 7.2.3.4: the last block is marked so
            ("f24805000000ffffcac9c90700", "Hello"),  # 7.2.3.5: two blocks
        ],
    )
    def test_examples_of_the_rfc(self, payload, message):
        first = b"" if payload != "f200110000" else frame(TEXT, bytes.fromhex("f248cdc9c90700"), rsv=RSV1)
        data = first + frame(TEXT, bytes.fromhex(payload), rsv=RSV1)
        assert receive(data, deflate=self.deflate)[0][-1] == Message(message)

    def test_compressed_or_not_message_by_message(self):
        data = (
            frame(TEXT, b"plain")
            + compressed_frame(b"small" * 50)
            + frame(BINARY, b"")
            + compressed_frame(b"", BINARY)
        )
        expected = [Message("plain"), Message("small" * 50), Message(b""), Message(b"")]
        assert receive(data, deflate=self.deflate)[0] == expected

    def test_fragments(self):
        """Only the first says that a message is compressed; pings and pongs between them change nothing."""
        payload = deflated(b"Hello, fragments " * 20)
        data = (
            frame(TEXT, payload[:5], rsv=RSV1, fin=False)
            + frame(PING, b"1")
            + frame(CONT, payload[5:9], fin=False)
        )
        data += (
            frame(PONG, b"2") + frame(CONT, b"", fin=False) + frame(CONT, payload[9:]) + frame(TEXT, b"plain")
        )
        expected = [Pong(b"2"), Message("Hello, fragments " * 20), Message("plain")]
        assert receive(data, deflate=self.deflate) == (expected, [(0x8A, b"1")])

    def test_window_is_kept(self):
        compressor = zlib.compressobj(wbits=-15)
        texts = [os.urandom(200).hex().encode()] * 3
        payloads = [(compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for text in texts]
        assert len(payloads[1]) < 50 < len(payloads[0])
        data = b"".join(frame(TEXT, payload, rsv=RSV1) + frame(TEXT, b"plain") for payload in payloads)
        found, _ = receive(data, deflate=self.deflate)
        assert found[::2] == [Message(text.decode()) for text in texts]

    def test_window_is_not_kept(self):
        parameters = DeflateParameters(client_no_context_takeover=True)
        data = compressed_frame(b"Hello " * 30) * 3
        assert receive(data, deflate=parameters)[0] == [Message("Hello " * 30)] * 3
        refers_back = frame(TEXT, bytes.fromhex("f200110000"), rsv=RSV1)
        data = frame(TEXT, bytes.fromhex("f248cdc9c90700"), rsv=RSV1) + refers_back
        found, _ = receive(data, deflate=parameters)
        assert found == [Message("Hello"), Closed(1007, "invalid payload data")]

    @pytest.mark.parametrize("bits", range(9, 16))
    def test_any_window_of_the_client(self, bits):
        text = os.urandom(30_000).hex()
        data = frame(TEXT, deflated(text.encode(), wbits=-bits), rsv=RSV1)
        assert make_codec(self.deflate).receive_data(data) == [Message(text)]

    def test_streams_that_end_inside_a_message(self):
        """Each block may be marked as the last (RFC 7692, 7.2.3.4): a new stream begins at the next byte."""
        streams = []
        for text in (b"one ", b"two ", b"three"):
            compressor = zlib.compressobj(wbits=-15)
            streams.append(compressor.compress(text) + compressor.flush())
        data = frame(TEXT, b"".join(streams) + b"\x00", rsv=RSV1) + compressed_frame(b"next")
        assert receive(data, deflate=self.deflate)[0] == [Message("one two three"), Message("next")]

    def test_many_streams_take_no_long_time(self):
        data = frame(TEXT, b"\x4b\x04\x00" * 40_000 + b"\x00", rsv=RSV1)
        before = time.process_time()
        assert make_codec(self.deflate).receive_data(data) == [Message("a" * 40_000)]
        assert time.process_time() - before < 2

    @pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x06", b"\x00\x05\x00\x00\x00Hello"])
    def test_invalid(self, payload):
        assert failure(frame(TEXT, payload + bytes(4), rsv=RSV1), deflate=self.deflate) == 1007

    def test_invalid_at_the_end(self):
        """A stored block that is cut off takes the end mark for its length."""
        assert failure(frame(TEXT, b"\x00\x01", rsv=RSV1), deflate=self.deflate) == 1007


class TestInflatingLimit:
    """A compressed message is refused while it is inflated, at one byte past the limit."""

    deflate = DeflateParameters()

    def test_at_and_past_the_limit(self):
        for size in (1, 1000, 4096, 70_000):
            data = compressed_frame(b"a" * size, BINARY)
            assert receive(data, deflate=self.deflate, size=size)[0] == [Message(b"a" * size)]
            assert failure(data, deflate=self.deflate, size=size - 1) == 1009

    def test_compressed_may_be_longer_than_inflated(self):
        text = os.urandom(2000)
        data = frame(BINARY, deflated(text, level=0), rsv=RSV1)
        assert receive(data, deflate=self.deflate, size=2000)[0] == [Message(text)]

    def test_text_counts_as_utf8(self):
        assert receive(compressed_frame(("ü" * 50).encode()), deflate=self.deflate, size=100)[0]
        assert failure(compressed_frame(("ü" * 51).encode()), deflate=self.deflate, size=100) == 1009

    def test_all_fragments_together(self):
        payload = deflated(os.urandom(300))
        pieces = [frame(CONT, payload[i : i + 50], fin=False) for i in range(50, len(payload), 50)]
        data = frame(BINARY, payload[:50], fin=False, rsv=RSV1) + frame(PING) + b"".join(pieces) + frame(CONT)
        assert (
            len(receive(data * 2, deflate=DeflateParameters(client_no_context_takeover=True), size=300)[0])
            == 2
        )
        assert failure(data, deflate=self.deflate, size=299) == 1009

    def test_afresh_for_each_message(self):
        data = compressed_frame(b"a" * 100, BINARY) + frame(BINARY, b"b" * 100)
        assert len(receive(data * 3, deflate=self.deflate, size=100)[0]) == 6
        assert (
            failure(compressed_frame(b"a" * 100) + frame(TEXT, b"b" * 101), deflate=self.deflate, size=100)
            == 1009
        )

    def test_infinity(self):
        data = compressed_frame(bytes(5 << 20), BINARY)
        assert make_codec(self.deflate, size=math.inf).receive_data(data) == [Message(bytes(5 << 20))]

    @pytest.mark.parametrize("read", [64, 65536])
    def test_bomb(self, read):
        """256 MiB in 256 KiB: no more than a few times the limit is ever taken."""
        compressor = zlib.compressobj(9, wbits=-15)
        payload = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(256))
        payload += compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
        data = frame(BINARY, payload, rsv=RSV1)
        assert len(data) < 300_000
        codec = make_codec(self.deflate, size=LIMIT)
        tracemalloc.start()
        try:
            found = []
            for start in range(0, len(data), read):
                found += codec.receive_data(data[start : start + read])
            assert tracemalloc.get_traced_memory()[1] < 6 * LIMIT
        finally:
            tracemalloc.stop()
        assert found == [Closed(1009, "message too big")]

    def test_bomb_of_bombs_inflates_one_byte_too_many(self):
        guard = FrameGuard(self.deflate, 10_000, math.inf)
        inflated = []

        class Counting:
            eof = False
            unused_data = b""

            def decompress(self, data, most):
                inflated.append(most)
                return bytes(most)

        guard._inflater = Counting()
        assert guard._inflate(bytes(1 << 20)) == 1009
        assert inflated == [10_001]

    def test_offers_nothing(self):
        assert FrameGuard(None, 1, 1).offer() is False


class TestCompressing:
    """RFC 7692, 7.2.1."""

    def inflate(self, frames, *, takeover=True):
        inflater = zlib.decompressobj(wbits=-15)
        for first, payload in frames:
            data = payload
            if first & RSV1:
                if not takeover:
                    inflater = zlib.decompressobj(wbits=-15)
                data = inflater.decompress(payload + b"\x00\x00\xff\xff")
                assert not payload.endswith(b"\x00\x00\xff\xff")
            yield first, data

    def test_messages(self):
        codec = make_codec(DeflateParameters())
        messages = ["", "short", "a" * 1000, b"a" * 1000, "", "ü" * 100, os.urandom(70_000)]
        sent = parse(b"".join(map(codec.send_message, messages)))
        got = list(self.inflate(sent))
        assert [data for _, data in got] == [
            each.encode() if isinstance(each, str) else each for each in messages
        ]
        assert [first for first, _ in got] == [0x81, 0x81, 0xC1, 0xC2, 0x81, 0xC1, 0xC2]

    def test_window_is_kept(self):
        codec = make_codec(DeflateParameters())
        text = os.urandom(100).hex()
        first, second = parse(codec.send_message(text)) + parse(codec.send_message(text))
        assert len(second[1]) < 20 < len(first[1])
        assert [data for _, data in self.inflate([first, second])] == [text.encode()] * 2

    def test_window_is_not_kept(self):
        codec = make_codec(DeflateParameters(server_no_context_takeover=True))
        text = os.urandom(100).hex()
        sent = parse(codec.send_message(text)) + parse(codec.send_message(text))
        assert [data for _, data in self.inflate(sent, takeover=False)] == [text.encode()] * 2

    @pytest.mark.parametrize("bits", range(9, 16))
    def test_agreed_window(self, bits):
        """A client with no larger window than it asked for can read it."""
        codec = make_codec(DeflateParameters(server_max_window_bits=bits))
        block = os.urandom(600)
        data = block + bytes(3000) + block
        [(_, payload)] = parse(codec.send_message(data))
        assert zlib.decompressobj(wbits=-bits).decompress(payload + b"\x00\x00\xff\xff") == data

    def test_without_an_agreement(self):
        assert parse(make_codec().send_message("a" * 1000)) == [(0x81, b"a" * 1000)]

    def test_control_frames_are_not_compressed(self):
        codec = make_codec(DeflateParameters())
        assert parse(codec.ping(b"a" * 100)) == [(0x89, b"a" * 100)]
        assert parse(codec.close(1000, "a" * 100)) == [(0x88, b"\x03\xe8" + b"a" * 100)]


# Other implementations at the client's end


def request_from(data):
    """The `Request` of an HTTP/1.1 head."""
    lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    fields = [line.split(b":", 1) for line in lines[1:]]
    headers = [(name.strip().lower(), value.strip()) for name, value in fields]
    return Request("GET", b"/", b"/", b"", "1.1", headers, is_upgrade=True)


def response_to(data, *, deflate):
    """The head of the response that accepts, and the parameters."""
    handshake = Handshake(request_from(data))
    assert handshake.status == 101
    subprotocol = handshake.subprotocols[0] if handshake.subprotocols else None
    headers, parameters = handshake.accept(subprotocol, [(b"x-server", b"trigi")], deflate=deflate)
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n", parameters


MESSAGES = [
    "",
    b"",
    "a",
    "Grüße \U0001f600" * 100,
    bytes(range(256)) * 10,
    "x" * 65536,
    os.urandom(200_000),
    "x" * 65536,
]

WSPROTO_OFFERS = [
    None,
    {},
    {"client_no_context_takeover": True},
    {"server_no_context_takeover": True},
    {"client_no_context_takeover": True, "server_no_context_takeover": True},
    {"client_max_window_bits": 9, "server_max_window_bits": 9},
    {"client_max_window_bits": 12, "server_max_window_bits": 10},
]


@pytest.mark.parametrize("offer", WSPROTO_OFFERS)
@pytest.mark.parametrize("wanted", [True, False])
def test_wsproto_client(offer, wanted):
    client = WSConnection(ConnectionType.CLIENT)
    extensions = [] if offer is None else [PerMessageDeflate(**offer)]
    request = events.Request(host="example.com", target="/", subprotocols=["chat"], extensions=extensions)
    response, parameters = response_to(client.send(request), deflate=wanted)
    assert (parameters is not None) is (wanted and offer is not None)
    client.receive_data(response)
    [accepted] = client.events()
    assert isinstance(accepted, events.AcceptConnection)
    assert accepted.subprotocol == "chat"

    codec = make_codec(parameters)
    for message in MESSAGES:
        kind = events.TextMessage if isinstance(message, str) else events.BytesMessage
        middle = len(message) // 2
        assert codec.receive_data(client.send(kind(message[:middle], message_finished=False))) == []
        assert codec.receive_data(client.send(kind(message[middle:]))) == [Message(message)]
        client.receive_data(codec.send_message(message))
        empty = "" if isinstance(message, str) else b""
        assert empty.join(event.data for event in client.events()) == message
    assert codec.receive_data(client.send(events.Ping(b"p"))) == []
    client.receive_data(codec.data_to_send())
    assert list(client.events()) == [events.Pong(b"p")]
    client.receive_data(codec.close(4000, "bye"))
    [closed] = client.events()
    assert (closed.code, closed.reason) == (4000, "bye")
    assert codec.receive_data(client.send(closed.response())) == [Closed(4000, "bye")]


WEBSOCKETS_OFFERS = [
    None,
    {},
    {"client_max_window_bits": True},
    {"client_max_window_bits": 10},
    {"server_max_window_bits": 9, "client_max_window_bits": 9},
    {"server_no_context_takeover": True, "client_no_context_takeover": True},
]


@pytest.mark.parametrize("offer", WEBSOCKETS_OFFERS)
def test_websockets_client(offer):
    factories = None if offer is None else [ClientPerMessageDeflateFactory(**offer)]
    client = ClientProtocol(parse_uri("ws://example.com/"), extensions=factories)
    client.send_request(client.connect())
    response, parameters = response_to(b"".join(client.data_to_send()), deflate=True)
    assert (parameters is None) is (offer is None)
    client.receive_data(response)
    client.events_received()
    assert client.state is OPEN

    codec = make_codec(parameters)
    for message in MESSAGES:
        if isinstance(message, str):
            client.send_text(message.encode())
        else:
            client.send_binary(message)
        assert codec.receive_data(b"".join(client.data_to_send())) == [Message(message)]
        client.receive_data(codec.send_message(message))
        [got] = client.events_received()
        text = got.opcode is WebsocketsOpcode.TEXT
        assert (got.data.decode() if text else bytes(got.data)) == message
    client.receive_data(codec.ping(b"are you there"))
    assert codec.receive_data(b"".join(client.data_to_send())) == [Pong(b"are you there")]
    client.send_close(4001, "bye")
    assert codec.receive_data(b"".join(client.data_to_send())) == [Closed(4001, "bye")]
    client.receive_data(codec.data_to_send())
    client.receive_eof()
    assert (client.close_code, client.close_rcvd.code, client.close_sent.reason) == (4001, 4001, "bye")


# Properties

payloads = st.binary(max_size=20) | st.sampled_from([b"", b"a" * 125, b"a" * 126, b"a" * 300])
texts = st.text(max_size=20).map(str.encode)
control = st.builds(frame, st.sampled_from([PING, PONG]), payloads.filter(lambda data: len(data) <= 125))


@st.composite
def messages(draw):
    """A message as frames, perhaps compressed, fragmented, and with control frames in between."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(texts if opcode == TEXT else payloads)
    rsv = draw(st.sampled_from([0, RSV1]))
    if rsv:
        payload = deflated(payload)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    pieces = [payload[i:j] for i, j in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    data = b""
    for number, piece in enumerate(pieces):
        first, last = number == 0, number == len(pieces) - 1
        data += frame(opcode if first else CONT, piece, fin=last, rsv=rsv if first else 0)
        if not last:
            data += draw(st.just(b"") | control)
    return data


anything = (
    messages()
    | control
    | st.builds(close_frame, st.sampled_from([None, 1000, 4000, 1005]), texts.map(lambda data: data[:100]))
    | st.builds(
        frame, st.integers(0, 15), payloads, fin=st.booleans(), rsv=st.sampled_from([0, RSV1, RSV2, RSV3])
    )
    | st.binary(max_size=20)
)
streams = st.lists(anything, max_size=6).map(b"".join)
agreements = st.none() | st.builds(DeflateParameters, client_no_context_takeover=st.booleans())


def outcome(data, cuts, **parameters):
    codec = make_codec(**parameters)
    found = []
    answers = b""
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        found += codec.receive_data(data[start:end])
        answers += codec.data_to_send()
    found += codec.receive_eof()
    return found, parse(answers)


@settings(max_examples=500, deadline=None)
@given(st.data(), streams, agreements)
def test_any_cut_of_the_bytes_gives_the_same_events(data, stream, deflate):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    whole = outcome(stream, [], deflate=deflate, size=200, frames=3)
    assert outcome(stream, cuts, deflate=deflate, size=200, frames=3) == whole
    assert outcome(stream, range(1, len(stream)), deflate=deflate, size=200, frames=3) == whole


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=60) | streams), agreements, st.integers(0, 100), st.integers(1, 3))
def test_any_bytes_end_well(reads, deflate, size, frames):
    """Nothing raises, there is one `Closed` and it is last, no message is over the limit, answers are frames."""
    codec = make_codec(deflate, size=size, frames=frames)
    found = []
    answers = b""
    for data in reads:
        found += codec.receive_data(data)
        answers += codec.data_to_send()
    found += codec.receive_eof()
    closed = [each for each in found if isinstance(each, Closed)]
    assert closed == [found[-1]] == [codec.closed]
    for each in found[:-1]:
        if isinstance(each, Message):
            assert len(each.data.encode() if isinstance(each.data, str) else each.data) <= size
    kinds = [first for first, _ in parse(answers)]
    assert all(first == 0x8A for first in kinds[:-1])
    assert (kinds[-1:] == [0x88]) is codec.close_sent


@settings(deadline=None)
@given(st.lists(messages(), max_size=8), st.booleans())
def test_valid_messages_all_arrive(parts, takeover):
    codec = make_codec(DeflateParameters(client_no_context_takeover=not takeover))
    found = codec.receive_data(b"".join(parts))
    assert sum(isinstance(each, Message) for each in found) == len(parts)
    assert codec.closed is None


short = st.text(max_size=20) | st.binary(max_size=20)
long = st.builds(lambda data, times: data * times, short, st.integers(10, 5000))


@settings(deadline=None)
@given(st.lists(short | long), st.booleans())
def test_what_is_sent_is_what_arrives(sent, takeover):
    codec = make_codec(DeflateParameters(server_no_context_takeover=not takeover))
    inflater = zlib.decompressobj(wbits=-15)
    for message in sent:
        [(first, payload)] = parse(codec.send_message(message))
        if first & RSV1:
            if not takeover:
                inflater = zlib.decompressobj(wbits=-15)
            payload = inflater.decompress(payload + b"\x00\x00\xff\xff")
        assert (payload.decode() if first & 1 else payload) == message
