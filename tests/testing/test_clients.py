"""The HTTP/1.1 client: what it sends is what it was given, what it reads is read strictly."""

from __future__ import annotations

import h11
import pytest
import trio
import trio.testing

from trigi.testing import HTTPClient, IncompleteResponse, InformationalResponse, open_connection


@pytest.fixture
def connection():
    """A client, and the server's end of its stream."""
    ours, theirs = trio.testing.memory_stream_pair()
    return HTTPClient(ours), theirs


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: 1\r\nx: 2\r\n\r\nhello"


@pytest.mark.parametrize(
    ("arguments", "wire"),
    [
        ({}, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        (
            {"method": "PUT", "target": "/a?b", "body": b"body"},
            b"PUT /a?b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nbody",
        ),
        ({"method": "POST", "body": b""}, b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"),
        (
            {"headers": [(b"X", b"1"), (b"Host", b"other"), (b"X", b"2")]},
            b"GET / HTTP/1.1\r\nX: 1\r\nHost: other\r\nX: 2\r\n\r\n",
        ),
        (
            {"headers": [(b"Content-Length", b"9")], "body": b"short"},
            b"GET / HTTP/1.1\r\nhost: localhost\r\nContent-Length: 9\r\n\r\nshort",
        ),
        (
            {"headers": [(b"Transfer-Encoding", b"chunked")], "body": b"0\r\n\r\n"},
            b"GET / HTTP/1.1\r\nhost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ],
)
async def test_requests(connection, arguments, wire):
    client, server = connection
    await client.request(**arguments)
    await client.aclose()
    assert await server.receive_some() == wire


async def test_a_response(connection):
    client, server = connection
    await server.send_all(OK)
    response = await client.response()
    assert response.status == 200
    assert response.reason == b"OK"
    assert response.http_version == b"1.1"
    assert response.headers == [(b"content-length", b"5"), (b"x", b"1"), (b"x", b"2")]
    assert response.body == b"hello"
    assert response.trailers == []
    assert response.informational == []
    assert response.header(b"x") == b"1, 2"
    assert response.header(b"y") is None


async def test_a_chunked_response_with_trailers_and_interim_responses(connection):
    client, server = connection
    await server.send_all(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    response = await client.response()
    assert response.body == b"hello world"
    assert response.trailers == [(b"x-sum", b"1")]
    assert response.informational == [
        InformationalResponse(100, []),
        InformationalResponse(103, [(b"link", b"</a>")]),
    ]
    await server.send_all(OK)
    assert (await client.response()).informational == []


async def test_a_response_piece_by_piece(connection):
    client, server = connection
    await server.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert (await client.informational()).status == 100
    await server.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
    response = await client.head()
    assert response.body == b""
    assert [each.status for each in response.informational] == [100]
    assert await client.data() == b"one"
    await server.send_all(b"two" + OK)
    assert await client.data() == b"two"
    assert await client.data() == b""
    assert (await client.response()).body == b"hello"


async def test_the_rest_of_a_response(connection):
    client, server = connection
    await server.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nonetwo")
    response = await client.head()
    assert await client.response() is response
    assert response.body == b"onetwo"


async def test_pipelined_responses(connection):
    """Read in the order of the requests: what a response is to decides whether it has a body."""
    client, server = connection
    for method in ("GET", "HEAD", "GET"):
        await client.request(method)
    await server.send_all(OK + OK.removesuffix(b"hello") + OK + b"junk")
    assert [(await client.response()).body for _ in range(3)] == [b"hello", b"", b"hello"]
    await server.aclose()
    assert await client.rest() == b"junk"


async def test_the_method_of_a_request_that_was_sent_as_bytes(connection):
    client, server = connection
    await client.send(b"HEAD / HTTP/1.1\r\n\r\n")
    await server.send_all(OK.removesuffix(b"hello"))
    assert (await client.response("HEAD")).body == b""


async def test_a_response_that_ends_with_the_connection(connection):
    client, server = connection
    await server.send_all(b"HTTP/1.1 200 OK\r\n\r\nhello")
    await server.aclose()
    assert (await client.response()).body == b"hello"


@pytest.mark.parametrize(
    ("wire", "status", "body"),
    [
        (b"", None, None),
        (b"HTTP/1.1 200 OK\r\nContent-", None, None),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 200, b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", 200, b""),
    ],
)
async def test_incomplete_responses(connection, wire, status, body):
    """They are told from complete ones, with what came of them."""
    client, server = connection
    await server.send_all(wire)
    await server.aclose()
    with pytest.raises(IncompleteResponse, match="closed before") as caught:
        await client.response()
    if status is None:
        assert caught.value.response is None
    else:
        assert (caught.value.response.status, caught.value.response.body) == (status, body)


async def test_a_connection_that_breaks():
    """By a reset, say: it is closed."""

    class Broken(trio.abc.Stream):
        async def send_all(self, data):
            raise trio.BrokenResourceError

        async def wait_send_all_might_not_block(self):
            raise trio.BrokenResourceError

        async def receive_some(self, max_bytes=None):
            raise trio.BrokenResourceError

        async def aclose(self):
            await trio.lowlevel.checkpoint()

    with pytest.raises(IncompleteResponse):
        await HTTPClient(Broken()).response()
    assert await HTTPClient(Broken()).rest() == b""


@pytest.mark.parametrize(
    "wire",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
)
async def test_what_is_not_http(connection, wire):
    client, server = connection
    await server.send_all(wire)
    with pytest.raises(h11.RemoteProtocolError):
        await client.response()


async def test_a_final_response_instead_of_an_interim_one(connection):
    client, server = connection
    await server.send_all(OK)
    with pytest.raises(h11.RemoteProtocolError, match="interim"):
        await client.informational()


async def test_against_an_application():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": scope["method"].encode()})

    async with open_connection(application) as stream:
        client = HTTPClient(stream)
        assert (await client.fetch("/")).body == b"GET"
        assert (await client.fetch("/", method="POST", body=b"x")).body == b"POST"
