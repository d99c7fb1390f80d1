"""HTTP/1.1 bytes into events: every example whole, byte by byte and with a request behind it; limits; the wall.

The wall is what is refused. The mark in an example stands behind the byte that gets it refused: not one byte sooner
(what comes before may still become a request), not one later, and with the same answer however the bytes are cut.

Everything is run with three head parsers: h11, httptools, and a naive one that believes what it is given. That the
naive one passes shows that the strictness is the codec's.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trigi._protocol.events import HTTP2_PREFACE, NEED_DATA, PAUSED, Data, Request
from trigi._protocol.http1 import (
    BLANK_LINES_LIMIT,
    CHUNK_EXTENSIONS_LIMIT,
    CHUNK_LINE_LIMIT,
    HTTP1Codec,
)
from trigi._protocol.http1_h11 import parse_fields
from trigi._protocol.http1_head import KNOWN_SIZE, field_parser
from trigi.config import Config
from trigi.exceptions import BadRequest


def naive_parse(head):
    """Splits, checks nothing."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:-2])
    return [(name.lower(), value.strip(b" \t")) for name, _, value in lines]


PARSERS = {"h11": field_parser("h11"), "httptools": field_parser("httptools"), "naive": naive_parse}


@pytest.fixture(params=PARSERS.values(), ids=PARSERS, scope="module")
def parser(request):
    return request.param


# Reading


@dataclass
class Outcome:
    """What a codec made of some bytes."""

    requests: list[tuple[Request, bytes, bool]] = field(
        default_factory=list
    )  # head, body, and whether that is all
    refusal: tuple[int, str, str | None] | None = None
    waiting: bytes | None = None  # what no event has told of


def read(data, parser, *, cuts=(), **limits):
    """All requests in some bytes, given in pieces: each is read to its end and the next begun."""
    codec = HTTP1Codec(Config(**limits), parser)
    outcome = Outcome()
    for start, end in pairwise([0, *sorted(cuts), len(data)]):
        codec.receive_data(data[start:end])
        try:
            drain(codec, outcome.requests)
        except BadRequest as error:
            outcome.refusal = (error.status_hint, str(error), error.limit)
            return outcome
    outcome.waiting = codec.trailing_data
    assert codec.buffered == len(outcome.waiting)
    return outcome


def drain(codec, requests):
    while True:
        match codec.next_event():
            case Request() as request:
                assert not requests or requests[-1][2]
                requests.append((request, b"", not request.has_body))
            case Data(data, more):
                assert data or not more
                request, body, complete = requests[-1]
                assert not complete
                requests[-1] = (request, body + data, not more)
            case event if event is PAUSED:
                assert codec.buffered
                codec.start_next_cycle()
                assert not codec.request_complete
                continue
            case event:
                assert event is NEED_DATA
                return
        assert codec.request_complete is requests[-1][2]
        if codec.request_complete:
            assert codec.body_remaining == 0


NEXT = b"DELETE /next HTTP/1.1\r\nHost: next\r\n\r\n"


def read_three_ways(data, parser, **limits):
    """Whole, byte by byte, and with another request behind."""
    outcome = read(data, parser, **limits)
    assert read(data, parser, cuts=range(1, len(data)), **limits) == outcome
    if outcome.refusal is None and outcome.requests[-1][2]:
        behind = read(data + NEXT, parser, **limits)
        assert behind.requests[:-1] == outcome.requests
        assert behind.requests[-1][0].target == b"/next"
        assert behind.waiting == b""
    return outcome


def make(method="GET", target=b"/", headers=((b"host", b"a"),), **attributes):
    attributes = {"raw_path": target, "query_string": b"", "http_version": "1.1"} | attributes
    return Request(method=method, target=target, headers=list(headers), **attributes)


HOST = (b"host", b"a")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def get(*lines):
    return GET + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def fields(*more):
    return (HOST, *more)


# What is a request


TARGETS = {
    # target: path, query
    b"/": (b"/", b""),
    b"/a/b": (b"/a/b", b""),
    b"/a?b=c": (b"/a", b"b=c"),
    b"/a?": (b"/a", b""),
    b"/?a?b/c": (b"/", b"a?b/c"),
    b"/a%20b?%3F=%zz": (b"/a%20b", b"%3F=%zz"),
    b"//a/../b/./": (b"//a/../b/./", b""),
    b"/http://b/": (b"/http://b/", b""),
    b"/*": (b"/*", b""),
    b"/;a,b=c@d:e!$&'()+": (b"/;a,b=c@d:e!$&'()+", b""),
    b'/"<>\\^`{|}': (b'/"<>\\^`{|}', b""),
    b"/" + b"a" * 8000: (b"/" + b"a" * 8000, b""),
}


@pytest.mark.parametrize(("target", "path", "query"), [(t, *split) for t, split in TARGETS.items()])
def test_a_target_in_origin_form_is_a_path_and_a_query(parser, target, path, query):
    outcome = read_three_ways(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target, parser)
    assert outcome.requests == [(make(target=target, raw_path=path, query_string=query), b"", True)]


ABSOLUTE = {
    # target: host, path, query
    b"http://b": (b"b", b"/", b""),
    b"http://b/": (b"b", b"/", b""),
    b"HTTPS://B.example:443/c/d": (b"B.example:443", b"/c/d", b""),
    b"http://b?c=d": (b"b", b"/", b"c=d"),
    b"http://b/c?d?e": (b"b", b"/c", b"d?e"),
    b"http://[::1]:80//c": (b"[::1]:80", b"//c", b""),
    b"http://b:/": (b"b:", b"/", b""),
    b"http://b/c@d/http://e": (b"b", b"/c@d/http://e", b""),
    b"http://b?c@d/e": (b"b", b"/", b"c@d/e"),
}


@pytest.mark.parametrize(("target", "host", "path", "query"), [(t, *split) for t, split in ABSOLUTE.items()])
def test_the_host_of_a_target_in_absolute_form_is_the_host(parser, target, host, path, query):
    """RFC 9112, 3.2.2: whatever the field says."""
    outcome = read_three_ways(b"GET %b HTTP/1.1\r\nX: 1\r\nHost: a\r\nY: 2\r\n\r\n" % target, parser)
    headers = [(b"host", host), (b"x", b"1"), (b"y", b"2")]
    expected = make(target=target, headers=headers, raw_path=path, query_string=query)
    assert outcome.requests == [(expected, b"", True)]


def test_the_host_of_a_target_in_absolute_form_is_enough_in_http_1_0(parser):
    outcome = read_three_ways(b"GET http://b/ HTTP/1.0\r\n\r\n", parser)
    assert outcome.requests[0][0].headers == [(b"host", b"b")]


def test_options_may_ask_for_the_server_itself(parser):
    outcome = read_three_ways(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", parser)
    assert outcome.requests == [(make("OPTIONS", b"*"), b"", True)]


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PROPFIND", "get", "M-SEARCH", "!#$%&'*+-.^_`|~09azAZ", "M" * 300]
)
def test_a_method_is_any_token_as_it_was_sent(parser, method):
    outcome = read_three_ways(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode(), parser)
    assert outcome.requests == [(make(method), b"", True)]


@pytest.mark.parametrize("count", range(BLANK_LINES_LIMIT + 1))
def test_blank_lines_before_a_request_are_skipped(parser, count):
    outcome = read_three_ways(b"\r\n" * count + get(), parser)
    assert outcome.requests == [(make(), b"", True)]


def test_blank_lines_behind_a_request_are_skipped(parser):
    """As some clients send behind a body. They count for the request that they come before."""
    request = POST + b"Content-Length: 1\r\n\r\nx"
    blank = b"\r\n" * BLANK_LINES_LIMIT
    outcome = read_three_ways(request + blank + request + blank, parser)
    assert [(body, complete) for _, body, complete in outcome.requests] == [(b"x", True)] * 2
    assert outcome.waiting == b""


def test_names_become_lower_case_and_values_are_as_sent_without_white_space_around(parser):
    outcome = read_three_ways(
        get(
            b"X-Mixed-CASE: Kept As It Is",
            b"Tight:1",
            b"Wide: \t 1 \t",
            b"Empty:",
            b"Blank: \t ",
            b"Inside: a \t b,  c",
            b"Twice: 1",
            b"twice: 2",
            b"Colons: a:b: c",
            b"Latin: caf\xe9 \xa0\x85\xff",
            b"!#$%&'*+-.^_`|~09: tokens",
            b'Quoted: "a\\"b" (c)',
        ),
        parser,
    )
    assert outcome.requests[0][0].headers == [
        (b"host", b"a"),
        (b"x-mixed-case", b"Kept As It Is"),
        (b"tight", b"1"),
        (b"wide", b"1"),
        (b"empty", b""),
        (b"blank", b""),
        (b"inside", b"a \t b,  c"),
        (b"twice", b"1"),
        (b"twice", b"2"),
        (b"colons", b"a:b: c"),
        (b"latin", b"caf\xe9 \xa0\x85\xff"),
        (b"!#$%&'*+-.^_`|~09", b"tokens"),
        (b"quoted", b'"a\\"b" (c)'),
    ]


@pytest.mark.parametrize("host", ["", "a.example:8000", "[::1]", "A"])
def test_a_host_is_as_it_was_sent(parser, host):
    """Empty is right for a target that has no authority (RFC 9110, 7.2)."""
    outcome = read_three_ways(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), parser)
    assert outcome.requests[0][0].headers == [(b"host", host.encode())]


def test_http_1_0_needs_no_host(parser):
    outcome = read_three_ways(b"GET / HTTP/1.0\r\n\r\n", parser)
    assert outcome.requests == [(make(headers=[], http_version="1.0", keep_alive=False), b"", True)]


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        ("1.1", None, True),
        ("1.1", "keep-alive", True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.1", "keep-alive, close", False),
        ("1.1", "close, keep-alive", False),
        ("1.1", "x,close ,y", False),
        ("1.1", "closed", True),
        ("1.1", "", True),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "x, Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
        ("1.0", "close", False),
        ("1.0", "x", False),
    ],
)
def test_whether_the_connection_is_kept(parser, version, connection, keep_alive):
    line = "" if connection is None else f"Connection: {connection}\r\n"
    outcome = read_three_ways(f"GET / HTTP/{version}\r\nHost: a\r\n{line}\r\n".encode(), parser)
    assert outcome.requests[0][0].keep_alive is keep_alive


def test_connection_may_be_in_several_lines(parser):
    assert not read(get(b"Connection: x", b"Connection: close"), parser).requests[0][0].keep_alive


@pytest.mark.parametrize(
    ("version", "lines", "expects"),
    [
        ("1.1", "Expect: 100-continue\r\nContent-Length: 1", True),
        ("1.1", "Expect: 100-Continue\r\nTransfer-Encoding: chunked", True),
        ("1.1", "Expect: 100-continue\r\nContent-Length: 0", False),
        ("1.1", "Expect: 100-continue", False),
        ("1.1", "Expect: something-else", False),
        ("1.1", "Content-Length: 1", False),
        ("1.0", "Expect: 100-continue\r\nContent-Length: 1", False),
        ("1.0", "Expect: something-else\r\nContent-Length: 1", False),
    ],
)
def test_whether_100_continue_is_expected(parser, version, lines, expects):
    """RFC 9110, 10.1.1: not without a body, and not in HTTP/1.0."""
    outcome = read_three_ways(f"POST / HTTP/{version}\r\nHost: a\r\n{lines}\r\n\r\n".encode(), parser)
    assert outcome.requests[0][0].expects_continue is expects


@pytest.mark.parametrize(
    ("version", "line", "accepts"),
    [
        ("1.1", "TE: trailers", True),
        ("1.1", "te: gzip;q=0.5, Trailers", True),
        ("1.1", "TE: gzip", False),
        ("1.1", "Trailer: x", False),
        ("1.0", "TE: trailers", False),
    ],
)
def test_whether_trailers_are_accepted(parser, version, line, accepts):
    outcome = read_three_ways(f"GET / HTTP/{version}\r\nHost: a\r\n{line}\r\n\r\n".encode(), parser)
    assert outcome.requests[0][0].accepts_trailers is accepts


@pytest.mark.parametrize(
    ("version", "lines", "is_upgrade"),
    [
        ("1.1", "Connection: Upgrade\r\nUpgrade: websocket", True),
        ("1.1", "Connection: keep-alive, upgrade\r\nUpgrade: h2c, WebSocket", True),
        ("1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0", True),
        ("1.1", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk", False),
        ("1.1", "Upgrade: websocket", False),
        ("1.1", "Connection: Upgrade", False),
        ("1.1", "Connection: Upgrade\r\nUpgrade: websockets", False),
        ("1.0", "Connection: Upgrade\r\nUpgrade: websocket", False),
    ],
)
def test_whether_a_websocket_is_asked_for(parser, version, lines, is_upgrade):
    outcome = read_three_ways(f"GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n\r\n".encode(), parser)
    assert outcome.requests[0][0].is_upgrade is is_upgrade


# Bodies


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("line", [b"", b"Content-Length: 0\r\n", b"Content-Length: 000\r\n"])
def test_a_request_without_a_body_is_complete_with_its_head(parser, method, line):
    outcome = read_three_ways(method.encode() + b" / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n", parser)
    (request, body, complete) = outcome.requests[0]
    assert (request.has_body, body, complete) == (False, b"", True)


LENGTHS = {
    "5": b"hello",
    "005": b"hello",
    "1": b"\n",
    "4": b"\r\n\r\n",
    str(len(NEXT)): NEXT,
    "300": bytes(300),
}


@pytest.mark.parametrize(("length", "body"), LENGTHS.items(), ids=LENGTHS)
@pytest.mark.parametrize("line", ["Content-Length: %s", "content-length:%s", "CONTENT-LENGTH: \t%s\t "])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_body_of_some_length(parser, version, line, length, body):
    head = f"POST / HTTP/{version}\r\nHost: a\r\n{line % length}\r\n\r\n".encode()
    outcome = read_three_ways(head + body, parser)
    assert [(request.has_body, *rest) for request, *rest in outcome.requests] == [(True, body, True)]
    short = read(head + body[:-1], parser)
    assert short.requests == [(outcome.requests[0][0], body[:-1], False)]


CHUNKS = {
    "none": (b"0\r\n\r\n", b""),
    "one": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "several": (b"1\r\nh\r\n2\r\nel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
    "hex in either case": (b"a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n", b"01234567890123456789a"),
    "two digits": (b"10\r\n0123456789abcdef\r\n0\r\n\r\n", b"0123456789abcdef"),
    "leading zeros": (b"005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "16 digits": (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
    "line ends as data": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    "an end as data": (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    "extensions": (b'5;a;b=c;d="e f;";\xe9\t\r\nhello\r\n0;last\r\n\r\n', b"hello"),
    "empty extension": (b"5;\r\nhello\r\n0;\r\n\r\n", b"hello"),
    "trailers": (b"1\r\nx\r\n0\r\nA: b\r\nX-Sum:  c\td \xe9\r\nE:\r\n\r\n", b"x"),
    "trailers that would frame": (
        b"1\r\nx\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"x",
    ),
}


@pytest.mark.parametrize(("chunks", "body"), CHUNKS.values(), ids=CHUNKS)
def test_a_body_in_chunks(parser, chunks, body):
    outcome = read_three_ways(CHUNKED + chunks, parser)
    assert [(request.has_body, *rest) for request, *rest in outcome.requests] == [(True, body, True)]
    assert outcome.requests[0][0].headers == [
        HOST,
        (b"transfer-encoding", b"chunked"),
    ]  # no trailers among them
    for end in range(len(chunks)):
        assert read(CHUNKED + chunks[:end], parser).requests[0][2] is False


@pytest.mark.parametrize(
    "line", ["Transfer-Encoding: chunked", "TRANSFER-ENCODING:CHUNKED", "transfer-encoding:\tChunked \t"]
)
def test_chunked_is_chunked_in_any_case_and_with_white_space_around(parser, line):
    outcome = read_three_ways(POST + line.encode() + b"\r\n\r\n1\r\nx\r\n0\r\n\r\n", parser)
    assert outcome.requests[0][1:] == (b"x", True)


def events(codec):
    found = []
    while (event := codec.next_event()) not in (NEED_DATA, PAUSED):
        found.append(event)
    return found, event


def make_codec(parser, data=b"", **limits):
    codec = HTTP1Codec(Config(**limits), parser)
    codec.receive_data(data)
    return codec


def test_a_body_that_is_there_is_one_event_and_says_that_it_is_the_last(parser):
    """So that a short body is one message, and a reader is not stuck behind its end."""
    for data in (
        POST + b"Content-Length: 5\r\n\r\nhello",
        CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
    ):
        found, why = events(make_codec(parser, data))
        assert found[1:] == [Data(b"hello", more=False)]
        assert why is NEED_DATA


def test_the_end_of_chunks_that_comes_late_is_an_empty_last_event(parser):
    codec = make_codec(parser, CHUNKED + b"5\r\nhello\r\n")
    assert events(codec)[0][1:] == [Data(b"hello", more=True)]
    assert codec.buffered == 0
    codec.receive_data(b"0\r\n")
    assert events(codec) == ([], NEED_DATA)
    codec.receive_data(b"\r\n")
    assert events(codec) == ([Data(b"", more=False)], NEED_DATA)


def test_what_remains_of_a_body_is_known_if_its_length_is(parser):
    codec = make_codec(parser)
    assert codec.body_remaining is None
    codec.receive_data(POST + b"Content-Length: 5\r\n\r\n")
    events(codec)
    assert (codec.body_remaining, codec.request_complete) == (5, False)
    codec.receive_data(b"hell")
    events(codec)
    assert (codec.body_remaining, codec.request_complete) == (1, False)
    codec.receive_data(b"o")
    events(codec)
    assert (codec.body_remaining, codec.request_complete) == (0, True)
    codec = make_codec(parser, CHUNKED + b"5\r\nhell")
    events(codec)
    assert (codec.body_remaining, codec.request_complete) == (None, False)


def test_a_codec_is_idle_while_nothing_of_a_request_has_come(parser):
    codec = make_codec(parser)
    assert codec.idle
    for byte in POST + b"Content-Length: 1\r\n\r\nx":
        codec.receive_data(bytes((byte,)))
        events(codec)
        assert not codec.idle
    codec.start_next_cycle()
    assert codec.idle
    codec.receive_data(b"\r\n")
    events(codec)
    assert codec.idle  # a blank line is nothing of a request
    codec.receive_data(b"\x00")
    with pytest.raises(BadRequest):
        codec.next_event()
    assert not codec.idle


# Pipelining


def test_the_next_request_waits_until_this_one_is_done_with(parser):
    codec = make_codec(parser, GET + b"\r\n" + NEXT)
    assert events(codec) == ([make()], PAUSED)
    assert events(codec) == ([], PAUSED)
    assert (codec.buffered, codec.trailing_data) == (len(NEXT), NEXT)
    codec.receive_data(b"more")
    assert events(codec) == ([], PAUSED)
    assert (codec.buffered, codec.trailing_data) == (len(NEXT) + 4, NEXT + b"more")
    codec.start_next_cycle()
    assert events(codec) == ([make("DELETE", b"/next", [(b"host", b"next")])], PAUSED)
    assert codec.trailing_data == b"more"


def test_a_request_alone_waits_for_nothing(parser):
    codec = make_codec(parser, GET + b"\r\n")
    assert events(codec) == ([make()], NEED_DATA)
    codec.start_next_cycle()
    assert events(codec) == ([], NEED_DATA)


def test_a_cycle_is_not_left_in_its_middle(parser):
    codec = make_codec(parser)
    with pytest.raises(AssertionError):
        codec.start_next_cycle()
    codec.receive_data(POST + b"Content-Length: 1\r\n\r\n")
    events(codec)
    with pytest.raises(AssertionError):
        codec.start_next_cycle()


def test_what_follows_an_upgrade_belongs_to_the_new_protocol(parser):
    frame = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
    codec = make_codec(parser, get(b"Connection: Upgrade", b"Upgrade: websocket") + frame)
    (request,), why = events(codec)
    assert request.is_upgrade
    assert why is PAUSED
    assert codec.trailing_data == frame


def test_each_request_has_limits_of_its_own(parser):
    """Nothing that is counted is carried over to the next: fields, body, extensions, blank lines, trailers."""
    request = (
        b"\r\n" * BLANK_LINES_LIMIT
        + CHUNKED
        + b"4;"
        + b"e" * (CHUNK_LINE_LIMIT - 4)
        + b"\r\nbody\r\n0\r\nA: b\r\nC: d\r\n\r\n"
    )
    outcome = read(request * 6, parser, header_count_limit=2, body_size_limit=4)
    assert outcome.refusal is None
    assert [body for _, body, _ in outcome.requests] == [b"body"] * 6
    assert len(request) * 6 > CHUNK_EXTENSIONS_LIMIT


# Limits: exactly at them, and one past


def refused_at(data, parser, **limits):
    """How many bytes it took to be refused, and with which answer, byte by byte; the same when it comes whole."""
    codec = HTTP1Codec(Config(**limits), parser)
    outcome = Outcome()
    for count, byte in enumerate(data, 1):
        codec.receive_data(bytes((byte,)))
        try:
            drain(codec, outcome.requests)
        except BadRequest as error:
            outcome.refusal = (error.status_hint, str(error), error.limit)
            assert read(data, parser, **limits) == outcome
            return count, error.status_hint, error.limit
    return None


def padded(size, start=GET + b"X: "):
    """A head of this many bytes."""
    return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"


def test_a_head_at_its_limit_passes_and_one_past_it_is_431(parser):
    data = padded(200)
    assert len(read_three_ways(data, parser, head_size_limit=200).requests) == 1
    assert refused_at(data, parser, head_size_limit=199) == (200, 431, "head_size_limit")


def test_a_head_without_end_is_431_one_byte_past_the_limit(parser):
    assert refused_at(GET + b"X: " + b"x" * 300, parser, head_size_limit=200) == (201, 431, "head_size_limit")
    assert refused_at(GET + b"X: x\r\n" * 90, parser, head_size_limit=200) == (201, 431, "head_size_limit")


def test_a_head_whose_target_alone_is_too_long_is_414(parser):
    data = b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert refused_at(data, parser, head_size_limit=200) == (201, 414, "head_size_limit")
    assert refused_at(data[:202], parser, head_size_limit=200) == (201, 414, "head_size_limit")


def test_the_request_line_ends_just_at_the_limit_or_does_not(parser):
    line = b"GET /aaaa HTTP/1.1\r\n"
    data = line + b"Host: a\r\n\r\n"
    assert refused_at(data, parser, head_size_limit=len(line)) == (len(line) + 1, 431, "head_size_limit")
    assert refused_at(data, parser, head_size_limit=len(line) - 1) == (len(line), 414, "head_size_limit")


def test_the_default_limit_is_64_kib(parser):
    assert len(read(padded(65536), parser).requests) == 1
    assert read(padded(65537), parser).refusal[0] == 431
    assert read(b"GET /" + b"x" * 65536 + b" HTTP/1.1\r\nHost: a\r\n\r\n", parser).refusal[0] == 414


def test_a_head_of_any_size_will_do_if_there_is_no_limit(parser):
    outcome = read(
        padded(300_000) + GET + b"X: x\r\n" * 300 + b"\r\n",
        parser,
        head_size_limit=float("inf"),
        header_count_limit=float("inf"),
    )
    assert [len(request.headers) for request, *_ in outcome.requests] == [2, 301]


def test_blank_lines_are_no_part_of_the_head(parser):
    data = padded(200)
    assert len(read_three_ways(b"\r\n" * BLANK_LINES_LIMIT + data, parser, head_size_limit=200).requests) == 1


def test_as_many_fields_as_allowed_pass_and_one_more_is_431_at_its_end(parser):
    lines = [b"X: %d" % number for number in range(9)]
    assert len(read_three_ways(get(*lines), parser, header_count_limit=10).requests[0][0].headers) == 10
    data = get(*lines, b"Y: 1", b"Z: 2")
    assert refused_at(data, parser, header_count_limit=10) == (len(data) - 8, 431, "header_count_limit")


def test_the_default_is_100_fields(parser):
    assert len(read(get(*[b"X: x"] * 99), parser).requests[0][0].headers) == 100
    assert read(get(*[b"X: x"] * 100), parser).refusal[0] == 431


def test_a_body_at_its_limit_passes_and_one_past_it_is_413_before_the_application_hears_of_it(parser):
    def data(length):
        return POST + b"Content-Length: %d\r\n\r\n" % length + b"x" * length

    assert read_three_ways(data(10), parser, body_size_limit=10).requests[0][1:] == (b"x" * 10, True)
    assert refused_at(data(11), parser, body_size_limit=10) == (len(data(11)) - 11, 413, "body_size_limit")
    assert read(data(11), parser, body_size_limit=10).requests == []


def test_chunks_at_the_limit_pass_and_the_size_that_goes_past_it_is_413(parser):
    chunks = CHUNKED + b"6\r\n012345\r\n"
    assert read_three_ways(chunks + b"4\r\n6789\r\n0\r\n\r\n", parser, body_size_limit=10).requests[0][
        1:
    ] == (
        b"0123456789",
        True,
    )
    data = chunks + b"5\r\n6789a\r\n0\r\n\r\n"
    assert refused_at(data, parser, body_size_limit=10) == (len(chunks) + 3, 413, "body_size_limit")
    assert read(data, parser, body_size_limit=10).requests[0][1:] == (b"012345", False)


@pytest.mark.parametrize("length", ["9" * 19, "0" * 18 + "1"])
def test_a_content_length_may_have_19_digits(parser, length):
    outcome = read(POST + f"Content-Length: {length}\r\n\r\nx".encode(), parser)
    assert outcome.refusal is None
    assert outcome.requests[0][1] == b"x"


def test_a_chunk_size_may_have_16_digits(parser):
    outcome = read_three_ways(CHUNKED + b"F" * 16 + b"\r\nhello", parser)
    assert outcome.requests[0][1:] == (b"hello", False)


def test_the_line_of_a_chunk_at_its_limit_passes_and_one_past_it_is_refused(parser):
    def data(size):
        return CHUNKED + b"1;" + b"e" * (size - 4) + b"\r\nx\r\n0\r\n\r\n"

    assert read_three_ways(data(CHUNK_LINE_LIMIT), parser).requests[0][1:] == (b"x", True)
    assert refused_at(data(CHUNK_LINE_LIMIT + 1), parser) == (len(CHUNKED) + CHUNK_LINE_LIMIT, 400, None)
    endless = CHUNKED + b"1;" + b"e" * CHUNK_LINE_LIMIT
    assert read(endless, parser).refusal == (400, "chunk extension too long", None)


def test_all_chunk_extensions_at_their_limit_pass_and_one_byte_past_it_is_refused(parser):
    chunk = b"1;" + b"e" * 1023 + b"\r\nx\r\n"
    count = CHUNK_EXTENSIONS_LIMIT // 1024
    assert read_three_ways(CHUNKED + chunk * count + b"0\r\n\r\n", parser).requests[0][1:] == (
        b"x" * count,
        True,
    )
    data = CHUNKED + chunk * count + b"0;\r\n\r\n"
    assert refused_at(data, parser) == (len(data) - 2, 400, None)
    assert read(data, parser).refusal[1] == "too many chunk extensions"


def test_trailers_at_their_limits_pass_and_one_past_them_is_431(parser):
    head = CHUNKED + b"0\r\n"
    trailers = b"A: " + b"x" * 200 + b"\r\n\r\n"
    size = len(trailers)
    assert read_three_ways(head + trailers, parser, head_size_limit=size).requests[0][2]
    assert refused_at(head + trailers, parser, head_size_limit=size - 1) == (
        len(head) + size,
        431,
        "head_size_limit",
    )
    assert refused_at(head + b"x" * 300, parser, head_size_limit=200) == (
        len(head) + 201,
        431,
        "head_size_limit",
    )
    assert read_three_ways(head + b"A: b\r\n" * 5 + b"\r\n", parser, header_count_limit=5).requests[0][2]
    assert refused_at(head + b"A: b\r\n" * 6 + b"\r\n", parser, header_count_limit=5) == (
        len(head) + 36,
        431,
        "header_count_limit",
    )


def test_what_is_wrong_before_a_limit_is_told_rather_than_the_limit(parser):
    """And the other way round: the answer is to the first of them, also when both come in one packet."""
    long = b"X: " + b"x" * 300
    assert refused_at(GET + b"A b\r\n" + long, parser, head_size_limit=200)[1] == 400
    assert refused_at(GET + b"A: \x00" + long, parser, head_size_limit=200)[1] == 400
    assert refused_at(GET + long + b"\x00", parser, head_size_limit=200)[1] == 431
    assert refused_at(GET + b"A: b\r\n" * 3 + b"A b\r\n", parser, header_count_limit=3)[1] == 431
    assert refused_at(GET + b"A b\r\n" + b"A: b\r\n" * 3, parser, header_count_limit=3)[1] == 400
    assert refused_at(b"GET / HTTP/2.0\r\nA: \x00", parser)[1] == 505


@pytest.mark.parametrize(
    "start", [b"GET /", GET + b"X: ", CHUNKED + b"0\r\nX: "], ids=["target", "value", "trailer"]
)
def test_what_was_looked_at_is_not_looked_at_again(parser, start):
    """Or a head that comes byte by byte would cost the square of its size."""
    codec, requests = make_codec(parser, start), []
    for _ in range(50):
        drain(codec, requests)
        assert codec._searched == codec.buffered > 0
        codec.receive_data(b"x")


def test_the_limits_that_are_no_settings_are_these():
    assert (BLANK_LINES_LIMIT, CHUNK_LINE_LIMIT, CHUNK_EXTENSIONS_LIMIT) == (8, 4096, 16384)


# The wall

MARK = "\N{BALLOT X}"


def head(*lines):
    """Fields that are wrong only when all of them are known."""
    return "GET / HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines) + f"\r\n{MARK}"


def framing(*lines):
    return head("Host: a", *lines) + "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def line(text, before="GET / HTTP/1.1\r\n"):
    return f"{before}{text}\r\n{MARK}\r\n"


def chunks(text):
    return CHUNKED.decode() + text


NO_LENGTHS = "+5 -5 5,5 5,6 5, ,5 5; 0x5 5h 5.0 1e1 five 5_0 \"5\" '5' \xb2 5\xa0"
OTHER_CODINGS = (
    "gzip|identity|xchunked|chunkedx|x-chunked|gzip, chunked|chunked, gzip|chunked, identity|chunked;q=1|chunked; x"
    "|\"chunked\"|'chunked'|[chunked]|chunked:|chun ked|chunked chunked"
    "|chunked\xa0|\xa0chunked|\x85chunked|\xe7hunked|chunked\t\xff"
)
NO_HOSTS = r"""
    a/b / a?b a#b user@a user:password@a http://a a\b a:b a:80:80 :80 : a:+80 ::1 [::1 [::1]x [::g] [] <a> "a" é a%
"""
NO_TARGETS = r"""
    * a a/b ?b # . /a#b /# /a?b#c \a %2Fa a:80 example.org:80
    http:// http:///a http:/a http:a http://?b http://# http//a/ ://a/ h\ttp://a/
    http://u@a/ http://u:p@a/ http://@a/ http://a@/ http://a:80@b:80/ http://a@b@c/ http://:@a/ http://a\@b/
    http://a# http://a/#b http://a?b#c http://:80/ http://a:b/ http://a:80:80/ http://[::1/ http://[::1]b/ http://::1/
    http://a\b/ http://a%zz/ http://a<b>/ ftp://a/ ws://a/ file:///a javascript:a httpx://a/
"""

# (status, words of the reason): examples
WALL = {
    (400, "not an HTTP request"): {
        "TLS": f"\x16{MARK}\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "SSL 2": f"\x80{MARK}\x2e\x01\x00\x02",
        "NUL": f"\x00{MARK}GET / HTTP/1.1\r\n",
        "space": f" {MARK}GET / HTTP/1.1\r\n",
        "tab": f"\t{MARK}GET / HTTP/1.1\r\n",
        "LF": f"\n{MARK}GET / HTTP/1.1\r\n",
        "CR": f"\rG{MARK}ET / HTTP/1.1\r\n",
        "CR CR LF": f"\r\r{MARK}\nGET / HTTP/1.1\r\n",
        "LF behind a blank line": f"\r\n\n{MARK}GET / HTTP/1.1\r\n",
        "UTF-8 byte order mark": f"\xef{MARK}\xbb\xbfGET / HTTP/1.1\r\n",
        "DEL": f"\x7f{MARK}",
    },
    (400, "empty lines"): {
        "too many blank lines": "\r\n" * (BLANK_LINES_LIMIT + 1) + f"{MARK}GET / HTTP/1.1\r\n",
    },
    (400, "invalid byte in the request head"): {
        "tab for the first space": f"GET\t{MARK}/ HTTP/1.1\r\n",
        "tab for the second space": f"GET /\t{MARK}HTTP/1.1\r\n",
        "vertical tab in the target": f"GET /\x0b{MARK} HTTP/1.1\r\n",
        "form feed for a space": f"GET /\x0c{MARK}HTTP/1.1\r\n",
        "NUL in the target": f"GET /\x00{MARK} HTTP/1.1\r\n",
        "NUL in the method": f"GE\x00{MARK}T / HTTP/1.1\r\n",
        "DEL in the target": f"GET /\x7f{MARK} HTTP/1.1\r\n",
        "UTF-8 in the target": f"GET /\xc3{MARK}\xa9 HTTP/1.1\r\n",
        "no-break space": f"GET\xa0{MARK}/ HTTP/1.1\r\n",
        "LF behind the request line": f"GET / HTTP/1.1\n{MARK}Host: a\r\n\r\n",
        "LF and nothing else": f"GET / HTTP/1.1\n{MARK}\n",
        "CR behind the request line": f"GET / HTTP/1.1\rH{MARK}ost: a\r\n\r\n",
        "CR in the target": f"GET /\r {MARK}HTTP/1.1\r\n",
        "CR CR LF behind the request line": f"GET / HTTP/1.1\r\r{MARK}\nHost: a\r\n\r\n",
        "LF behind a field": f"GET / HTTP/1.1\r\nHost: a\n{MARK}\r\n",
        "LF LF at the end": f"GET / HTTP/1.1\r\nHost: a\r\n\n{MARK}",
        "LF in a value": f"GET / HTTP/1.1\r\nHost: a\r\nX: b\n{MARK}Content-Length: 5\r\n\r\n",
        "LF in a name": f"GET / HTTP/1.1\r\nHost: a\r\nX\n{MARK}Y: b\r\n\r\n",
        "CR in a value": f"GET / HTTP/1.1\r\nHost: a\r\nX: b\rC{MARK}ontent-Length: 5\r\n\r\n",
        "CR in a name": f"GET / HTTP/1.1\r\nHost: a\r\nX\rY{MARK}: b\r\n\r\n",
        "CR CR LF behind a field": f"GET / HTTP/1.1\r\nHost: a\r\r{MARK}\n\r\n",
        "CR LF CR and no LF": f"GET / HTTP/1.1\r\nHost: a\r\n\r\r{MARK}\n",
        "NUL in a value": f"GET / HTTP/1.1\r\nHost: a\x00{MARK}\r\n\r\n",
        "NUL in a name": f"GET / HTTP/1.1\r\nHo\x00{MARK}st: a\r\n\r\n",
        "control character in a value": f"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=\x01{MARK}\r\n\r\n",
        "DEL in a value": f"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f{MARK}\r\n\r\n",
        "vertical tab before chunked": f"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0b{MARK}chunked\r\n\r\n",
        "vertical tab behind chunked": f"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0b{MARK}\r\n\r\n",
        "form feed before a length": f"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\x0c{MARK}5\r\n\r\n",
        "obs-fold in the first line, space": f"GET / HTTP/1.1\r\n {MARK}Host: a\r\n\r\n",
        "obs-fold in the first line, tab": f"GET / HTTP/1.1\r\n\t{MARK}Host: a\r\n\r\n",
        "obs-fold in the second line": f"GET / HTTP/1.1\r\nHost: a\r\n {MARK}b\r\n\r\n",
        "obs-fold of chunked": f"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n {MARK}chunked\r\n\r\n",
        "obs-fold of white space at the end": f"GET / HTTP/1.1\r\nHost: a\r\n {MARK}\r\n\r\n",
    },
    (400, "invalid request line"): {
        "HTTP/0.9": line("GET /", ""),
        "a method": line("GET", ""),
        "no target": line("GET HTTP/1.1", ""),
        "no target, two spaces": line("GET  HTTP/1.1", ""),
        "no method": line("/ HTTP/1.1", ""),
        "two spaces before the target": line("GET  / HTTP/1.1", ""),
        "two spaces behind the target": line("GET /  HTTP/1.1", ""),
        "space behind the version": line("GET / HTTP/1.1 ", ""),
        "space in the target": line("GET /a b HTTP/1.1", ""),
        "space in the method": line("GE T / HTTP/1.1", ""),
        "method that is no token": line("GE@T / HTTP/1.1", ""),
        "method in quotes": line('"GET" / HTTP/1.1', ""),
        "method with a colon": line("GET: / HTTP/1.1", ""),
        "a field": line("Host: a", ""),
        "version in lower case": line("GET / http/1.1", ""),
        "version with a letter": line("GET / HTTP/1.1x", ""),
        "version of one digit": line("GET / HTTP/1", ""),
        "version without minor": line("GET / HTTP/1.", ""),
        "version without major": line("GET / HTTP/.1", ""),
        "version 11.1": line("GET / HTTP/11.1", ""),
        "version 1.10": line("GET / HTTP/1.10", ""),
        "version 1,1": line("GET / HTTP/1,1", ""),
        "version +1.1": line("GET / HTTP/+1.1", ""),
        "version with a space": line("GET / HTTP /1.1", ""),
        "version of letters": line("GET / HTTP/x.y", ""),
        "another protocol": line("GET / HTTPS/1.1", ""),
        "ICAP": line("OPTIONS / ICAP/1.0", ""),
        "no name of the protocol": line("GET / /1.1", ""),
        "SSH": line("SSH-2.0-OpenSSH_9.6", ""),
        "SMTP": line("EHLO example.org", ""),
        "JSON": line('{"jsonrpc": "2.0"}', ""),
        "PROXY protocol": line("PROXY TCP4 192.0.2.1 192.0.2.2 50000 80", ""),
        "a response": line("HTTP/1.1 200 OK", ""),
    },
    (505, "version"): {
        f"HTTP/{version}": line(f"GET / HTTP/{version}", "")
        for version in ("0.9", "0.0", "1.2", "1.9", "2.0", "3.0", "9.9")
    }
    | {"HTTP/2 by prior knowledge": f"PRI * HTTP/2.0\r\n{MARK}\r\nSM\r\n\r\n"},
    (400, "invalid line in the request head"): {
        "space before the colon": line("Host : a"),
        "tab before the colon": line("Host\t: a"),
        "space before the colon of Transfer-Encoding": line("Transfer-Encoding : chunked"),
        "space before the colon of Content-Length": line("Content-Length : 5"),
        "no colon": line("Host"),
        "no colon but a space": line("Host a"),
        "empty name": line(": a"),
        "only a colon": line(":"),
        "space in a name": line("X Y: a"),
        "tab in a name": line("X\tY: a"),
        "non-ASCII in a name": line("X\xe9: a"),
        "no-break space before the colon": line("Host\xa0: a"),
        "name in quotes": line('"Host": a'),
        "name in brackets": line("[Host]: a"),
        "name with a slash": line("X/Y: a"),
        "name with an at": line("X@Y: a"),
        "name with a comma": line("X,Y: a"),
        "name with a semicolon": line("X;Y: a"),
        "name with a backslash": line("X\\Y: a"),
        "a second request line": line("GET / HTTP/1.1"),
        "in the second line": line("Transfer-Encoding : chunked", "GET / HTTP/1.1\r\nHost: a\r\n"),
    },
    (400, "both Content-Length and Transfer-Encoding"): {
        "CL.TE": framing("Content-Length: 5", "Transfer-Encoding: chunked"),
        "TE.CL": framing("Transfer-Encoding: chunked", "Content-Length: 5"),
        "CL.TE with zero": framing("Content-Length: 0", "Transfer-Encoding: chunked"),
        "CL.TE with a bad length": framing("Content-Length: x", "Transfer-Encoding: chunked"),
        "CL.TE with another coding": framing("Content-Length: 5", "Transfer-Encoding: identity"),
        "CL.TE with an empty coding": framing("Content-Length: 5", "Transfer-Encoding:"),
        "CL.TE with tabs": framing("Content-Length:\t5", "Transfer-Encoding:\tchunked"),
        "in other letters": framing("content-LENGTH: 5", "TRANSFER-encoding: cHuNkEd"),
        "far apart": framing("Content-Length: 5", *["X: y"] * 50, "Transfer-Encoding: chunked"),
    },
    (400, "invalid Content-Length"): {
        f"length {value!r}": framing(f"Content-Length: {value}")
        for value in ("", "5 5", "5, 5", "1" * 20, "0" * 19 + "5", "9" * 5000, *NO_LENGTHS.split(" "))
    }
    | {
        "different ones": framing("Content-Length: 5", "Content-Length: 6"),
        "equal ones": framing("Content-Length: 5", "Content-Length: 5"),
        "the same number, written differently": framing("Content-Length: 5", "Content-Length: 05"),
        "one of them empty": framing("Content-Length: 5", "Content-Length:"),
        "white space without end": framing("Content-Length: 5" + " " * 5000 + "5"),
    },
    (400, "Transfer-Encoding must be chunked"): {
        "no coding": framing("Transfer-Encoding:"),
        "no coding, but a comma": framing("Transfer-Encoding: ,"),
        "chunked twice": framing("Transfer-Encoding: chunked, chunked"),
        "chunked in two lines": framing("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        "chunked and nothing": framing("Transfer-Encoding: chunked", "Transfer-Encoding:"),
        "chunked and a comma": framing("Transfer-Encoding: chunked,"),
        "a comma and chunked": framing("Transfer-Encoding: ,chunked"),
    },
    (501, "Transfer-Encoding must be chunked"): {
        f"coding {value!r}": framing(f"Transfer-Encoding: {value}") for value in OTHER_CODINGS.split("|")
    }
    | {
        "two lines, gzip first": framing("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
        "two lines, gzip last": framing("Transfer-Encoding: chunked", "Transfer-Encoding: gzip"),
    },
    (400, "Transfer-Encoding in HTTP/1.0"): {
        "chunked": f"GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{MARK}0\r\n\r\n",
        "chunked and keep-alive": (
            f"GET / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n{MARK}0\r\n\r\n"
        ),
    },
    (400, "Host"): {
        "no Host": head("X: y"),
        "no field": head(),
        "two": head("Host: a", "Host: b"),
        "two equal ones": head("Host: a", "Host: a"),
        "two, one empty": head("Host: a", "Host:"),
        "two in HTTP/1.0": f"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n{MARK}",
        "a bad one in HTTP/1.0": f"GET / HTTP/1.0\r\nHost: a b\r\n\r\n{MARK}",
        "two with an absolute target": f"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n{MARK}",
        "none with an absolute target": f"GET http://a/ HTTP/1.1\r\nX: y\r\n\r\n{MARK}",
        "a bad one with an absolute target": f"GET http://a/ HTTP/1.1\r\nHost: a/b\r\n\r\n{MARK}",
    }
    | {f"Host {value!r}": head(f"Host: {value}") for value in ("a b", "a\tb", *NO_HOSTS.split())},
    (400, "request target"): {
        f"target {target}": f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n{MARK}" for target in NO_TARGETS.split()
    }
    | {
        "asterisks for OPTIONS": f"OPTIONS ** HTTP/1.1\r\nHost: a\r\n\r\n{MARK}",
        "asterisk and query for OPTIONS": f"OPTIONS *?a HTTP/1.1\r\nHost: a\r\n\r\n{MARK}",
        "asterisk for options": f"options * HTTP/1.1\r\nHost: a\r\n\r\n{MARK}",
    },
    (501, "CONNECT"): {
        f"CONNECT {target}": f"CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n{MARK}\x16\x03\x01"
        for target in ("a:443", "/", "*", "http://a/", "[::1]:443")
    },
    (417, "expectation"): {
        f"Expect {value!r}": framing("Content-Length: 1", f"Expect: {value}")
        for value in ("200-ok", "100-continue, x", "100-continue;x", "100")
    },
    (400, "WebSocket handshake has no body"): {
        "a length": framing("Connection: Upgrade", "Upgrade: websocket", "Content-Length: 5"),
        "chunks": framing("Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked"),
    },
    (400, "invalid chunk size"): {
        "hex prefix": chunks(f"0x{MARK}5\r\nhello\r\n0\r\n\r\n"),
        "plus": chunks(f"+{MARK}5\r\nhello\r\n0\r\n\r\n"),
        "minus": chunks(f"-{MARK}5\r\nhello\r\n0\r\n\r\n"),
        "space before": chunks(f" {MARK}5\r\nhello\r\n0\r\n\r\n"),
        "tab before": chunks(f"\t{MARK}5\r\nhello\r\n0\r\n\r\n"),
        "space behind": chunks(f"5 {MARK}\r\nhello\r\n0\r\n\r\n"),
        "tab behind": chunks(f"5\t{MARK}\r\nhello\r\n0\r\n\r\n"),
        "space before an extension": chunks(f"5 {MARK};a\r\nhello\r\n0\r\n\r\n"),
        "space inside": chunks(f"1 {MARK}0\r\nhello\r\n0\r\n\r\n"),
        "empty": chunks(f"\r{MARK}\nhello\r\n0\r\n\r\n"),
        "empty with an extension": chunks(f";{MARK}a\r\nhello\r\n0\r\n\r\n"),
        "LF before": chunks(f"\n{MARK}5\r\nhello\r\n0\r\n\r\n"),
        "no digit": chunks(f"g{MARK}\r\nhello\r\n0\r\n\r\n"),
        "h behind": chunks(f"5h{MARK}\r\nhello\r\n0\r\n\r\n"),
        "fraction": chunks(f"5.{MARK}0\r\nhello\r\n0\r\n\r\n"),
        "comma": chunks(f"5,{MARK}5\r\nhello\r\n0\r\n\r\n"),
        "underscore": chunks(f"1_{MARK}0\r\nhello\r\n0\r\n\r\n"),
        "quotes": chunks(f'"{MARK}5"\r\nhello\r\n0\r\n\r\n'),
        "digits that are not ASCII": chunks(f"\xb2{MARK}\r\nhello\r\n0\r\n\r\n"),
        "17 digits": chunks(f"{'0' * 16}5{MARK}\r\nhello\r\n0\r\n\r\n"),
        "17 digits, huge": chunks(f"{'F' * 17}{MARK}\r\n"),
        "bare LF": chunks(f"5\n{MARK}hello\r\n0\r\n\r\n"),
        "bare CR": chunks(f"5\rh{MARK}ello\r\n0\r\n\r\n"),
        "CR CR LF": chunks(f"5\r\r{MARK}\nhello\r\n0\r\n\r\n"),
        "NUL": chunks(f"5\x00{MARK}\r\nhello\r\n0\r\n\r\n"),
        "bare LF behind the last": chunks(f"0\n{MARK}\r\n"),
        "in the second chunk": chunks(f"5\r\nhello\r\n-{MARK}1\r\n"),
        "bare LF behind an extension": chunks(f"5;a\n{MARK}hello\r\n0\r\n\r\n"),
        "bare CR in an extension": chunks(f"5;a\rb{MARK}\r\nhello\r\n0\r\n\r\n"),
        "NUL in an extension": chunks(f"5;a\x00{MARK}\r\nhello\r\n0\r\n\r\n"),
        "control character in an extension": chunks(f"5;a=\x0b{MARK}\r\nhello\r\n0\r\n\r\n"),
        "DEL in an extension": chunks(f"5;\x7f{MARK}\r\nhello\r\n0\r\n\r\n"),
    },
    (400, "chunk not ended by CRLF"): {
        "too much data": chunks(f"5\r\nhello!{MARK}\r\n0\r\n\r\n"),
        "no line end": chunks(f"5\r\nhello0{MARK}\r\n\r\n"),
        "bare LF": chunks(f"5\r\nhello\n{MARK}0\r\n\r\n"),
        "bare CR": chunks(f"5\r\nhello\r0{MARK}\r\n\r\n"),
        "space": chunks(f"5\r\nhello {MARK}\r\n0\r\n\r\n"),
        "too little data": chunks(f"6\r\nhello\r\n{MARK}0\r\n\r\n"),
        "in the second chunk": chunks(f"1\r\nx\r\n1\r\nxx{MARK}\r\n0\r\n\r\n"),
    },
    (400, "chunk extension too long"): {
        "a line without end": chunks(f"5;{'e' * (CHUNK_LINE_LIMIT - 2)}{MARK}eeee"),
    },
    (400, "invalid byte in the trailer section"): {
        "LF": chunks(f"0\r\nA: b\n{MARK}\r\n"),
        "LF at the end": chunks(f"0\r\nA: b\r\n\n{MARK}"),
        "LF instead of trailers": chunks(f"0\r\n\n{MARK}"),
        "CR": chunks(f"0\r\nA: b\rc{MARK}\r\n\r\n"),
        "CR instead of trailers": chunks(f"0\r\n\rA{MARK}: b\r\n\r\n"),
        "NUL": chunks(f"0\r\nA: \x00{MARK}\r\n\r\n"),
        "control character": chunks(f"0\r\nA: \x0b{MARK}\r\n\r\n"),
        "DEL": chunks(f"0\r\nA: \x7f{MARK}\r\n\r\n"),
        "obs-fold in the first line": chunks(f"0\r\n {MARK}A: b\r\n\r\n"),
        "obs-fold in the second line": chunks(f"0\r\nA: b\r\n\t{MARK}c\r\n\r\n"),
    },
    (400, "invalid line in the trailer section"): {
        "space before the colon": chunks(f"0\r\nA : b\r\n{MARK}\r\n"),
        "no colon": chunks(f"0\r\nA\r\n{MARK}\r\n"),
        "empty name": chunks(f"0\r\n: b\r\n{MARK}\r\n"),
        "space in a name": chunks(f"0\r\nA B: c\r\n{MARK}\r\n"),
        "a request": chunks(f"0\r\nGET / HTTP/1.1\r\n{MARK}Host: a\r\n\r\n"),
        "in the second line": chunks(f"0\r\nA: b\r\nC\r\n{MARK}\r\n"),
    },
}

BRICKS = {
    f"{status} {reason}: {name}": (status, reason, *(part.encode("latin-1") for part in text.split(MARK)))
    for (status, reason), examples in WALL.items()
    for name, text in examples.items()
}
EVERY_BRICK = pytest.mark.parametrize(("status", "reason", "until", "rest"), BRICKS.values(), ids=BRICKS)


@EVERY_BRICK
def test_what_is_no_request_is_refused_at_the_first_byte_that_shows_it(parser, status, reason, until, rest):
    assert refused_at(until + rest, parser) == (len(until), status, None)
    whole = read(until + rest, parser)
    assert re.search(reason, whole.refusal[1])
    assert read(until, parser) == whole
    assert not any(complete for _, _, complete in whole.requests)


@EVERY_BRICK
def test_what_is_no_request_is_refused_behind_a_request_too(parser, status, reason, until, rest):
    alone = read(until + rest, parser)
    behind = read(NEXT + until + rest, parser)
    assert behind.refusal == alone.refusal
    assert behind.requests == [*read(NEXT, parser).requests, *alone.requests]


@EVERY_BRICK
def test_after_a_refusal_nothing_is_read(parser, status, reason, until, rest):
    codec = make_codec(parser, until + rest)
    with pytest.raises(BadRequest) as first:
        drain(codec, [])
    codec.receive_data(NEXT)
    for _ in range(3):
        with pytest.raises(BadRequest) as again:
            codec.next_event()
        assert again.value is first.value


def test_data_before_a_refusal_is_told_first_however_it_came(parser):
    codec = make_codec(parser, CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n+")
    assert type(codec.next_event()) is Request
    assert codec.next_event() == Data(b"hello", more=True)
    assert not codec.request_complete
    with pytest.raises(BadRequest, match="invalid chunk size"):
        codec.next_event()


# The head parsers by themselves, where the codec lets nothing through that they would refuse


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
    ids=repr,
)
def test_h11_s_refusals_are_bad_requests(head, status):
    with pytest.raises(BadRequest) as caught:
        parse_fields(head)
    assert caught.value.status_hint == status
    assert str(caught.value)


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
def test_a_parser_gives_the_fields_in_plain_bytes(parse):
    headers = parse(b"GET /a?b HTTP/1.0\r\nHost: a\r\nX-Y: \t z \r\nx-y:\r\n\r\n")
    assert headers == [(b"host", b"a"), (b"x-y", b"z"), (b"x-y", b"")]
    assert type(headers) is list
    assert {type(part) for pair in headers for part in pair} == {bytes}


@pytest.mark.interpreted
def test_the_fastest_parser_that_is_installed_is_used(monkeypatch):
    assert field_parser("h11") is parse_fields
    assert field_parser("auto") is field_parser("httptools") is not parse_fields
    monkeypatch.delitem(sys.modules, "trigi._protocol.http1_httptools")
    monkeypatch.setitem(sys.modules, "httptools", None)
    assert field_parser("auto") is parse_fields


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_the_preface_of_http2_is_the_first_that_comes(cut):
    """Behind empty lines it is none, however these have come."""
    codec = HTTP1Codec(Config(), http2=True)
    data = b"\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    codec.receive_data(data[:cut])
    assert codec.next_event() is NEED_DATA
    codec.receive_data(data[cut:])
    with pytest.raises(BadRequest, match="version not supported"):
        codec.next_event()
    codec = HTTP1Codec(Config(), http2=True)
    codec.receive_data(data[4:])
    assert codec.next_event() is HTTP2_PREFACE


# What is the same again is not read again


def read_counting(data):
    """The requests, and the heads whose fields had to be split."""
    split = []

    def parser(head):
        split.append(head)
        return naive_parse(head)

    return [request for request, _, _ in read(data, parser).requests], split


def test_fields_that_are_the_same_again_are_split_once():
    heads = [
        b"GET /a?b HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
        b"HEAD /c HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
    ]
    requests, split = read_counting(b"".join(heads))
    assert split == heads[:1]
    fields = (HOST, (b"te", b"trailers"))
    assert requests == [
        make(target=b"/a?b", raw_path=b"/a", query_string=b"b", headers=fields, accepts_trailers=True),
        make("HEAD", b"/c", fields, accepts_trailers=True),
    ]


@pytest.mark.parametrize(
    "other",
    [
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    ],
    ids=repr,
)
def test_fields_that_are_not_the_same_are_split(other):
    first = GET + b"\r\n"
    requests, split = read_counting(first + other + first)
    assert split == [first, other, first]
    assert requests[1:2] == read_counting(other)[0]
    assert requests[2] == requests[0]


def test_a_head_that_is_the_same_again_is_the_same_request(parser):
    """Also behind another that begins like it, or when it comes in pieces, or with white space in front."""
    head = GET + b"\r\n"
    longer = GET + b"A: b\r\n\r\n"
    requests = [
        request for request, _, _ in read_three_ways(head * 2 + longer * 2 + b"\r\n" + head, parser).requests
    ]
    at_once = [request for request, _, _ in read(head * 2, parser).requests]
    assert at_once[0] is at_once[1]
    assert requests[0] == requests[1] == requests[4] == read(head, parser).requests[0][0]
    assert requests[2] == requests[3] == read(longer, parser).requests[0][0]


def test_bodies_follow_known_fields_as_they_follow_new_ones(parser):
    one = POST + b"Content-Length: 3\r\n\r\nabc"
    chunked = CHUNKED + b"1\r\nx\r\n0\r\n\r\n"
    outcome = read_three_ways(one + one + chunked + chunked + GET + b"\r\n", parser)
    assert [body for _, body, _ in outcome.requests] == [b"abc", b"abc", b"x", b"x", b""]


def test_a_target_s_authority_is_the_host_of_its_own_request_alone(parser):
    absolute = b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"
    outcome = read(GET + b"\r\n" + absolute + GET + b"\r\n", parser)
    assert [request.headers for request, _, _ in outcome.requests] == [[HOST], [(b"host", b"b")], [HOST]]


def test_a_target_is_checked_behind_known_fields_too(parser):
    assert read(GET + b"\r\n" + b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", parser).refusal == (
        400,
        "fragment in the request target",
        None,
    )


@pytest.mark.parametrize("more", [0, 1])
def test_many_fields_are_not_remembered(more):
    """An idle connection is to hold little memory, whatever its client has sent."""
    rest = b" HTTP/1.1\r\nHost: a\r\nA: \r\n\r\n"
    head = b"GET /" + rest.replace(b"A: ", b"A: " + b"a" * (KNOWN_SIZE - len(rest) + 1 + more))
    _, split = read_counting(head * 2)
    assert split == [head] * (1 + more)


# Any requests, any cut


TCHARS = "!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"
tokens = st.text(TCHARS, min_size=1, max_size=8).map(str.encode)
# Of the names that mean something only Connection, so that what is made is sure to be valid
names = tokens.map(lambda token: b"X-" + token) | st.sampled_from([b"Cookie", b"Connection", b"accept"])
inner = st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f") | st.just("\t")
values = st.text(inner, max_size=12).map(lambda text: text.strip(" \t").encode("latin-1"))
blanks = st.text(" \t", max_size=2).map(str.encode)
sizes = st.sampled_from(["{:x}", "{:X}", "0{:x}"])
extensions = st.sampled_from([b"", b";", b";a", b';a="b c";\xe9'])
trailers = st.lists(st.tuples(tokens, values), max_size=2)


@st.composite
def requests(draw):
    """The bytes of a request, and what it is."""
    method = draw(tokens.filter(lambda token: token != b"CONNECT"))
    path = b"/" + draw(st.text("/ab%;=", max_size=6)).encode()
    query = draw(st.none() | st.text("?&ab%=", max_size=4).map(str.encode))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    fields = [(b"Host", b"a.example:80"), *draw(st.lists(st.tuples(names, values), max_size=4))]
    pieces = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3))
    framing = draw(st.sampled_from(["none", "length", "chunks"] if version == b"1.1" else ["none", "length"]))
    body, wire = b"".join(pieces), b""
    if framing == "none":
        body = b""
    elif framing == "length":
        fields.append((b"Content-LENGTH", b"%d" % len(body)))
        wire = body
    else:
        fields.append((b"Transfer-encoding", b"Chunked"))
        for piece in [*pieces, b""]:
            wire += draw(sizes).format(len(piece)).encode() + draw(extensions) + b"\r\n"
            wire += piece + b"\r\n" if piece else b""
        wire += b"".join(b"%b:%b\r\n" % trailer for trailer in draw(trailers)) + b"\r\n"
    fields = draw(st.permutations(fields))
    target = path if query is None else path + b"?" + query
    head = b"\r\n" * draw(st.integers(0, 2)) + b"%b %b HTTP/%b\r\n" % (method, target, version)
    for name, value in fields:
        head += b"%b:%b%b%b\r\n" % (name, draw(blanks), value, draw(blanks))
    options = [
        option.strip(b" \t").lower()
        for name, value in fields
        if name == b"Connection"
        for option in value.split(b",")
    ]
    request = Request(
        method=method.decode(),
        target=target,
        raw_path=path,
        query_string=query or b"",
        http_version=version.decode(),
        headers=[(name.lower(), value) for name, value in fields],
        has_body=bool(body) or framing == "chunks",
        keep_alive=b"close" not in options and (version == b"1.1" or b"keep-alive" in options),
    )
    if framing == "chunks":
        request.headers = [
            (n, v) if n != b"transfer-encoding" else (n, b"chunked") for n, v in request.headers
        ]
    return head + b"\r\n" + wire, (request, body, True)


streams = st.lists(requests(), min_size=1, max_size=3)


def normal(outcome):
    """An outcome in which `Transfer-Encoding` is in lower case: h11 makes it so."""
    for request, _, _ in outcome.requests:
        request.headers = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in request.headers]
    return outcome


@settings(deadline=None)
@given(st.data(), streams)
def test_any_requests_cut_anywhere_are_what_was_sent(parser, data, streams):
    wire = b"".join(part for part, _ in streams)
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=8))
    outcome = normal(read(wire, parser, cuts=cuts))
    assert outcome == Outcome([expected for _, expected in streams], None, b"")


# Anything at all

DUST = [
    *(bytes((byte,)) for byte in (*range(0x21), *b'"#%,/:;@0A[\\x\x7f\x80\x85\xa0\xff')),
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n ",
    b"0\r\n\r\n",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b" HTTP/1.1\r\n",
    b"http://",
    b"CONNECT ",
    b"OPTIONS *",
]


@st.composite
def damaged(draw):
    """Requests in which a few bytes were lost, doubled, replaced or put in."""
    wire = b"".join(part for part, _ in draw(streams))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(wire)))
        end = draw(st.integers(start, min(len(wire), start + 4)))
        new = draw(st.sampled_from([b"", wire[start:end] * 2, *DUST]))
        wire = wire[:start] + new + wire[end:]
    return wire


STATUSES = {400, 413, 414, 417, 431, 501, 505}
LIMITS = {"head_size_limit": 120, "header_count_limit": 5, "body_size_limit": 40}
fuel = (
    damaged()
    | st.sampled_from([until + rest for _, _, until, rest in BRICKS.values()])
    | st.binary(max_size=60)
)


@settings(max_examples=300, deadline=None)
@given(st.data(), fuel, st.sampled_from([{}, LIMITS]))
def test_any_bytes_cut_anywhere_have_one_answer_and_that_is_a_bad_request_or_none(parser, data, wire, limits):
    """No other exception comes out, and the events before it are the same, too."""
    whole = read(wire, parser, **limits)
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=8))
    assert read(wire, parser, cuts=cuts, **limits) == whole
    assert read(wire, parser, cuts=range(1, len(wire)), **limits) == whole
    assert whole.refusal is None or whole.refusal[0] in STATUSES


@settings(deadline=None)
@given(fuel, st.sampled_from([{}, LIMITS]))
def test_any_bytes_have_the_same_answer_from_every_parser(wire, limits):
    """The reason may be in other words, as it is for the logs."""
    outcomes = [normal(read(wire, parse, **limits)) for parse in PARSERS.values()]
    for outcome in outcomes:
        assert outcome.requests == outcomes[0].requests
        assert (outcome.refusal or (None,))[0] == (outcomes[0].refusal or (None,))[0]


@settings(deadline=None)
@given(damaged())
@example(CHUNKED + b"5;a\r\nhello\r\n0\r\nA: b\r\n\r\n" + NEXT)
def test_what_is_taken_for_a_request_is_read_the_same_by_h11_alone(wire):
    """Two readers that disagree about where a request ends are what smuggling is made of."""
    while wire.startswith(b"\r\n"):  # h11 skips no blank lines
        wire = wire[2:]
    codec = make_codec(parse_fields, wire)
    ours = []
    try:
        while (event := codec.next_event()) not in (NEED_DATA, PAUSED):
            ours.append(event)
    except BadRequest:
        return
    if not codec.request_complete:
        return
    theirs = h11.Connection(h11.SERVER)
    theirs.receive_data(wire)
    request = theirs.next_event()
    body = b""
    while type(event := theirs.next_event()) is not h11.EndOfMessage:
        body += event.data
    assert (request.method.decode(), request.target) == (ours[0].method, ours[0].target)
    assert body == b"".join(event.data for event in ours[1:])
    assert theirs.trailing_data[0] == codec.trailing_data
