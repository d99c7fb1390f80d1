"""Responses as bytes: exactly these, and h11's client reads from them what was meant."""

from __future__ import annotations

from http import HTTPStatus

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trigi._protocol.http1_encode import (
    LAST_CHUNK,
    encode_chunk,
    encode_error,
    encode_head,
    encode_trailers,
    reason_phrase,
)

UNREGISTERED = (299, 420, 599, 600, 999)
# By RFC 9110; Python before 3.13 has the old names
RENAMED = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


def read(data, method="GET"):
    """The events of an independent client, to the end of the response."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    events = []
    while not events or type(events[-1]) is not h11.EndOfMessage:
        event = client.next_event()
        assert event is not h11.NEED_DATA, "the response is incomplete"
        events.append(event)
    assert client.trailing_data[0] == b""
    return events


def test_a_head_is_a_status_line_and_fields_in_order():
    fields = [(b"b", b"1"), (b"a", b"2"), (b"b", b""), (b"c", b"caf\xe9")]
    assert encode_head(200, fields) == b"HTTP/1.1 200 OK\r\nb: 1\r\na: 2\r\nb: \r\nc: caf\xe9\r\n\r\n"


def test_a_head_without_fields_ends_all_the_same():
    assert encode_head(100, []) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert encode_head(299, []) == b"HTTP/1.1 299 \r\n\r\n"  # the space is part of the line (RFC 9112, 4)


@pytest.mark.parametrize("status", sorted({status.value for status in HTTPStatus} | set(UNREGISTERED)))
def test_every_status_has_its_phrase_if_it_has_one(status):
    phrase = "" if status in UNREGISTERED else RENAMED.get(status, HTTPStatus(status).phrase)
    assert reason_phrase(status) == phrase
    assert encode_head(status, []) == f"HTTP/1.1 {status} {phrase}\r\n\r\n".encode()


@pytest.mark.parametrize("status", [200, 204, 304, 404, 299, 999])
def test_a_client_reads_the_head_that_was_meant(status):
    fields = [(b"set-cookie", b"a=b"), (b"set-cookie", b"c=d"), (b"content-length", b"0")]
    response, _ = read(encode_head(status, fields))
    assert response.status_code == status
    assert response.reason == reason_phrase(status).encode()
    assert list(response.headers) == fields


@pytest.mark.parametrize(
    ("data", "chunk"),
    [(b"a", b"1\r\na\r\n"), (b"\r\n", b"2\r\n\r\n\r\n"), (b"x" * 255, b"ff\r\n" + b"x" * 255 + b"\r\n")],
    ids=["one", "line end", "255"],
)
def test_a_chunk_is_its_size_in_hex_and_its_data(data, chunk):
    assert encode_chunk(data) == chunk


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    st.lists(st.tuples(st.sampled_from([b"x-a", b"x-b"]), st.sampled_from([b"", b"1", b"a b"])), max_size=3),
)
def test_a_client_reads_the_chunks_and_trailers_that_were_meant(pieces, trailers):
    wire = encode_head(200, [(b"transfer-encoding", b"chunked")]) + b"".join(map(encode_chunk, pieces))
    _, *data, end = read(wire + encode_trailers(trailers))
    assert b"".join(piece.data for piece in data) == b"".join(pieces)
    assert list(end.headers) == trailers


def test_the_last_chunk_is_the_one_without_trailers():
    assert encode_trailers([]) == LAST_CHUNK == b"0\r\n\r\n"
    assert encode_trailers([(b"a", b"1"), (b"b", b"")]) == b"0\r\na: 1\r\nb: \r\n\r\n"


@pytest.mark.parametrize("status", [400, 408, 413, 414, 417, 421, 426, 431, 501, 503, 505, 499])
def test_an_error_is_a_whole_response_and_the_last(status):
    own = [(b"date", b"now"), (b"retry-after", b"1")]
    response, body, _ = read(encode_error(status, own))
    assert response.status_code == status
    assert bytes(body.data) == f"{status} {reason_phrase(status)}\n".encode()
    assert list(response.headers) == [
        *own,
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body.data)).encode()),
        (b"connection", b"close"),
    ]
    assert own == [(b"date", b"now"), (b"retry-after", b"1")]
