"""Requests that can't be read: an error, a close, one line for the log, and a server that serves on.

What exactly is refused is tested where it is decided, at the codec; here is one of each kind, end to end.
"""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from tests.connection.conftest import echo, hello, read_body, respond, send_body, socket_like_pair, start
from trigi.exceptions import BadRequest, ClientDisconnected
from trigi.testing import HTTPClient, IncompleteResponse

DISCONNECT = {"type": "http.disconnect"}

BAD_HEADS = {  # a name, then the bytes, the status that answers them, and the limit that they pass
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        None,
    ),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        400,
        None,
    ),
    "signed length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\n", 400, None),
    "list of lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\n", 400, None),
    "long length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12345678901234567890\r\n\r\n", 400, None),
    "unknown coding": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, None),
    "chunked twice": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        400,
        None,
    ),
    "chunks in 1.0": (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400, None),
    "folded line": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400, None),
    "bare carriage return": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", 400, None),
    "bare line feed": (b"GET / HTTP/1.1\nHost: a\n\n", 400, None),
    "NUL": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", 400, None),
    "blank before the colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400, None),
    "empty name": (b"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", 400, None),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, None),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, None),
    "invalid host": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, None),
    "invalid target": (b"GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 400, None),
    "control in the target": (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400, None),
    "raw UTF-8 in the target": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400, None),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, None),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 501, None),
    "unknown expectation": (
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 4\r\n\r\n",
        417,
        None,
    ),
    "large head": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, 431, "head_size_limit"),
    "long target": (b"GET /" + b"x" * 70_000, 414, "head_size_limit"),
    "many fields": (
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
        431,
        "header_count_limit",
    ),
    "large body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413, "body_size_limit"),
    "empty lines": (b"\r\n" * 20, 400, None),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, None),
    "nonsense": (b"\xff\xfe\x00", 400, None),
}

each_bad_head = pytest.mark.parametrize(
    ("wire", "status", "limit"), BAD_HEADS.values(), ids=[name.replace(" ", "-") for name in BAD_HEADS]
)

BAD_CHUNKS = {
    "sign": b"+4\r\nmore\r\n",
    "0x": b"0x4\r\nmore\r\n",
    "blank": b"4 \r\nmore\r\n",
    "bare line feed": b"4\nmore\r\n",
    "17 digits": b"00000000000000004\r\nmore\r\n",
    "no end": b"4\r\nmore\n\n",
    "long extension": b"4;" + b"x" * 5000,
    "many extensions": b"1;%b\r\nx\r\n" % (b"x" * 4000) * 5,
    "bad trailer": b"0\r\nno colon\r\n\r\n",
    "folded trailer": b"0\r\nX: 1\r\n 2\r\n\r\n",
}

each_bad_chunk = pytest.mark.parametrize(
    "chunk", BAD_CHUNKS.values(), ids=[name.replace(" ", "-") for name in BAD_CHUNKS]
)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


# Heads


@each_bad_head
@pytest.mark.parametrize("number", [1, 2])
async def test_a_bad_head(serve, number, wire, status, limit):
    """Answered with an error, and nothing behind it is read as a request; the server serves on."""
    calls = []

    async def app(scope, receive, send):
        calls.append(scope["path"])
        await respond(send)

    client = serve(app, body_size_limit=1000)
    if number == 2:
        await client.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.send(wire + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    if number == 2:
        assert (await client.response()).status == 200
    response = await client.response()
    assert response.status == status
    assert response.header(b"connection") == b"close"
    assert response.header(b"content-type") == b"text/plain; charset=utf-8"
    assert response.header(b"date") is not None
    assert response.header(b"server") == b"trigi"
    assert response.body == b"%d %b\n" % (status, response.reason)
    assert await client.rest() == b""
    assert calls == (["/first"] if number == 2 else [])
    (refused,) = client.observer.refused
    assert isinstance(refused, BadRequest)
    assert refused.limit == limit
    assert client.observer.failures == []
    assert len(client.observer.ended) == len(calls)
    assert (await serve(app, context=client.context).fetch("/other")).status == 200


@each_bad_head
async def test_a_bad_head_byte_by_byte(serve, wire, status, limit):
    """The same answer, as soon as what is wrong has come."""
    client = serve(hello, body_size_limit=1000, pair=lambda: socket_like_pair(100_000))
    for number in range(0, len(wire), max(1, len(wire) // 1000)):
        await client.send(wire[number : number + max(1, len(wire) // 1000)])
        await client.settle()
        if client.observer.refused:
            break
    response = await client.response()
    assert response.status == status
    assert client.observer.refused[0].limit == limit
    assert client.observer.exchanges == []


async def test_date_and_server_of_an_error_switched_off(serve):
    client = serve(hello, date_header=False, server_header=False)
    await client.send(b"nonsense\r\n\r\n")
    response = await client.response()
    assert {name for name, _ in response.headers} == {b"content-type", b"content-length", b"connection"}


async def test_a_bad_head_behind_an_open_exchange(serve):
    """It waits its turn: the answers stay in order."""

    async def app(scope, receive, send):
        await trio.sleep(10)
        await respond(send, b"first")

    client = serve(app)
    await client.request()
    await client.send(b"nonsense\r\n\r\n")
    assert (await client.response()).body == b"first"
    assert (await client.response()).status == 400
    assert await client.rest() == b""


async def test_a_bad_head_while_earlier_work_goes_on(serve):
    """Which it does not disturb."""
    finished = []

    async def app(scope, receive, send):
        await respond(send)
        await trio.sleep(100)
        finished.append(True)

    client = serve(app, disconnect_grace=0)
    await client.fetch()
    await client.send(b"nonsense\r\n\r\n")
    assert (await client.response()).status == 400
    await client.done.wait()
    assert finished == [True]


async def test_an_error_reaches_a_client_that_is_still_sending(serve):
    """Closing with unread bytes would reset the connection: the server reads on for a moment."""
    client = serve(hello, pair=socket_like_pair)
    with trio.move_on_after(1):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: no\r\n\r\n")
        while True:
            await client.send(b"x" * 10_000)
            await trio.sleep(0.01)
    assert (await client.response()).status == 400


async def test_a_bad_head_of_a_client_that_left(serve):
    client = serve(hello)
    client.stream.receive_stream.close()
    await client.send(b"nonsense\r\n\r\n")
    await client.done.wait()
    assert len(client.observer.refused) == 1


# Bodies


@each_bad_chunk
async def test_a_bad_chunk_before_the_response(serve, chunk):
    """The application is told of a disconnect, the client gets 400: one answer, not two."""
    messages = []

    async def app(scope, receive, send):
        while DISCONNECT not in messages:
            messages.append(await receive())
        with pytest.raises(ClientDisconnected):
            await respond(send, b"never seen")

    client = serve(app)
    await client.send(CHUNKED + b"4\r\nsome\r\n")
    await client.settle()
    await client.send(chunk + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    response = await client.response()
    assert response.status == 400
    assert await client.rest() == b""
    assert len(client.observer.refused) == 1
    assert client.observer.failures == []
    assert [(each.status, each.complete) for each in client.observer.ended] == [(400, False)]
    assert all(message["more_body"] for message in messages[:-1])


async def test_a_bad_chunk_and_an_application_that_waits_for_something_else(serve):
    """The client has its answer at once, the application its grace."""
    cancelled = []

    async def app(scope, receive, send):
        began = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time() - began)

    client = serve(app, disconnect_grace=3)
    await client.send(CHUNKED + b"no\r\n")
    assert (await client.response()).status == 400
    await client.done.wait()
    assert cancelled == [3]


@pytest.mark.parametrize("grace", [0, 5])
async def test_a_bad_chunk_in_the_middle_of_the_response(serve, grace):
    """There is no room for an error: the response is cut off."""

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"half", more=True)
        assert await read_body(receive) is None
        with pytest.raises(ClientDisconnected):
            await send_body(send)

    client = serve(app, disconnect_grace=grace)
    await client.send(CHUNKED)
    await client.head()
    assert await client.data() == b"half"
    await client.send(b"no\r\n")
    with pytest.raises(IncompleteResponse):
        await client.response()
    assert len(client.observer.refused) == 1
    assert client.observer.failures == []


async def test_a_bad_chunk_while_the_response_waits_for_its_reader(serve):
    """The write that goes on is ended, not joined by another."""
    raised = []

    async def app(scope, receive, send):
        with pytest.raises(ClientDisconnected):
            await respond(send, b"x" * 10_000)
        raised.append(trio.current_time())

    client = serve(app, pair=lambda: socket_like_pair(1000))
    await client.send(CHUNKED)
    await trio.sleep(7)
    began = trio.current_time()
    await client.send(b"no\r\n")
    await client.done.wait()
    assert raised == [began]
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]


async def test_a_bad_chunk_while_an_interim_response_is_written(serve):
    """The error waits for it: one goes on the wire after the other."""

    async def app(scope, receive, send):
        await send({"type": "http.response.early_hint", "links": [b"<%b>" % (b"x" * 2000)]})
        await trio.sleep_forever()

    client = serve(app, pair=lambda: socket_like_pair(1000), disconnect_grace=10)
    await client.send(CHUNKED)
    await client.settle()
    await client.send(b"no\r\n")
    await trio.sleep(5)
    response = await client.response()
    assert response.status == 400
    assert [each.status for each in response.informational] == [103]


async def test_a_bad_chunk_after_the_response(serve):
    """The client has its response; then the connection is closed."""
    client = serve(hello)
    await client.send(CHUNKED)
    assert (await client.response()).body == b"hello"
    await client.send(b"no\r\n")
    assert await client.rest() == b""
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, True)]
    assert len(client.observer.refused) == 1


async def test_a_chunked_body_that_grows_too_large(serve):
    """413, when the limit is passed, though the application has begun to read."""
    seen = []

    async def app(scope, receive, send):
        seen.append(await read_body(receive))

    client = serve(app, body_size_limit=10)
    await client.send(CHUNKED + b"8\r\n12345678\r\n")
    await client.settle()
    await client.send(b"8\r\n")
    response = await client.response()
    assert response.status == 413
    assert client.observer.refused[0].limit == "body_size_limit"
    assert seen == [None]


async def test_a_body_as_large_as_the_limit(serve):
    client = serve(echo, body_size_limit=10)
    assert (await client.fetch(method="POST", body=b"1234567890")).status == 200
    await client.send(CHUNKED + b"8\r\n12345678\r\n2\r\n90\r\n0\r\n\r\n")
    assert (await client.response()).body == b"1234567890"


async def test_the_body_of_the_next_request_begins_at_nothing(serve):
    """The limit is for each body by itself."""
    client = serve(echo, body_size_limit=10)
    for _ in range(3):
        await client.send(CHUNKED + b"8\r\n12345678\r\n0\r\n\r\n")
        assert (await client.response()).body == b"12345678"


# Over TLS, and for others


async def test_plain_http_on_a_tls_port(serve, tls_pair):
    client = serve(hello, pair=tls_pair)
    raw = HTTPClient(client.stream.transport_stream)
    await raw.request()
    await raw.rest()
    await client.done.wait()
    assert len(client.observer.handshakes) == 1


async def test_a_bad_request_over_tls(serve, tls_pair):
    client = serve(hello, pair=partial(tls_pair, socket_like_pair))
    await client.send(b"nonsense\r\n\r\n")
    assert (await client.response()).status == 400
    assert await client.rest() == b""


async def test_a_bad_request_leaves_other_connections_alone(serve):
    async def app(scope, receive, send):
        await trio.sleep(10)
        await respond(send, b"steady")

    steady = serve(app)
    bad = serve(app, context=steady.context)
    await steady.request()
    await bad.send(b"nonsense\r\n\r\n")
    assert (await bad.response()).status == 400
    assert (await steady.response()).body == b"steady"
