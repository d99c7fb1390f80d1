"""An HTTP/1.1 connection: what an application sees of requests, what a client sees of responses, and what comes next.

The names in brackets are those of the checklist of ASGI's and HTTP's own demands.
"""

from __future__ import annotations

import re
import socket
import time
from contextvars import ContextVar
from http import HTTPStatus

import pytest
import trio
import trio.testing

from tests.connection.conftest import (
    OVER_MEMORY,
    Recorder,
    WatchedSocket,
    echo,
    hello,
    read_body,
    respond,
    send_body,
    socket_like_pair,
    start,
)
from trigi._connection.context import ServerContext
from trigi._connection.serve import serve_stream
from trigi._connection.socket_stream import SocketStream
from trigi._connection.transport import DISCARD_SECONDS, DISCARD_SIZE, WRITE_SIZE
from trigi.config import Config
from trigi.exceptions import InvalidMessage
from trigi.testing import IncompleteResponse

STREAMS = ("memory", "socket")

FRAMING = {b"content-length", b"transfer-encoding", b"connection", b"date", b"server"}
DATE = re.compile(rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")


class ScopeKeeper:
    """An application that keeps its scopes and answers with nothing."""

    def __init__(self) -> None:
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        await respond(send)

    @property
    def scope(self):
        return self.scopes[-1]


@pytest.fixture
def keeper():
    return ScopeKeeper()


def own_headers(response):
    """The headers that the application gave."""
    return [pair for pair in response.headers if pair[0] not in FRAMING]


# The scope: HS of the checklist


@OVER_MEMORY
async def test_a_whole_scope(serve, keeper):
    """[HS-01 to 06, 09, 13 to 16, 19, 20, 24 to 28, 35]"""
    client = serve(keeper, state={"db": "open"})
    await client.send(
        b"PROPFIND /a%20b?x=%20&y HTTP/1.1\r\nHost: example.org\r\nX-One: 1\r\nConnection: Keep-Alive\r\n\r\n"
    )
    await client.response()
    assert type(keeper.scope) is dict
    assert set(keeper.scope["extensions"].pop("trigi")) == {
        "cancel_scope",
        "disconnect_grace",
        "nursery",
        "shutting_down",
    }
    assert keeper.scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "PROPFIND",
        "scheme": "http",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"x=%20&y",
        "root_path": "",
        "headers": [(b"host", b"example.org"), (b"x-one", b"1"), (b"connection", b"Keep-Alive")],
        "client": None,
        "server": None,
        "state": {"db": "open"},
        "extensions": {
            "http.response.early_hint": {},
            "http.response.pathsend": {},
            "http.response.trailers": {},
        },
    }


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("/+%C3%A9", ("/+é", b"/+%C3%A9", b"")),  # [HS-10]
        ("/%2541%2F", ("/%41/", b"/%2541%2F", b"")),  # [HS-11] decoded once
        ("/%ff", ("/\ufffd", b"/%ff", b"")),  # [HS-12] not UTF-8
        ("/?a?b=%3F", ("/", b"/", b"a?b=%3F")),  # [HS-14] after the first question mark, as it is
        ("/?", ("/", b"/", b"")),  # [HS-15]
        ("//a/../b;c=d/./", ("//a/../b;c=d/./", b"//a/../b;c=d/./", b"")),  # [HS-32] nothing is normalised
        ("http://other.org/x?y", ("/x", b"/x", b"y")),  # [HS-30] absolute-form
        ("http://other.org", ("/", b"/", b"")),
        ("/" + "a" * 8000, ("/" + "a" * 8000, b"/" + b"a" * 8000, b"")),  # [HS-38]
    ],
)
async def test_targets(serve, keeper, target, seen):
    client = serve(keeper)
    response = await client.fetch(target)
    assert response.status == 200
    scope = keeper.scope
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == seen


async def test_the_authority_of_the_target_replaces_the_host(serve, keeper):
    client = serve(keeper)
    await client.fetch("http://target.org/", headers=[(b"x-first", b"1"), (b"host", b"field.org")])
    assert keeper.scope["headers"] == [(b"host", b"target.org"), (b"x-first", b"1")]


async def test_options_asterisk(serve, keeper):
    """[HS-31]"""
    client = serve(keeper)
    response = await client.fetch("*", method="OPTIONS")
    assert response.status == 200
    assert keeper.scope["path"] == "*"


@pytest.mark.parametrize(("sent", "seen"), [("get", "GET"), ("HEAD", "HEAD"), ("Propfind", "PROPFIND")])
async def test_methods_are_upper_case(serve, keeper, sent, seen):
    """[HS-07, HS-08]"""
    client = serve(keeper)
    await client.fetch(method=sent)
    assert keeper.scope["method"] == seen


async def test_http_1_0_in_the_scope(serve, keeper):
    """[HS-05]"""
    client = serve(keeper)
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    await client.response()
    assert keeper.scope["http_version"] == "1.0"


async def test_request_headers_as_they_were_sent(serve, keeper):
    """Duplicates, their order, and obs-text are kept; white space around values is not part of them.

    [HS-21 to 23]
    """
    client = serve(keeper)
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: 2\r\nY:\r\nx:\t 1 \r\nZ: \xff\xfe\r\n\r\n")
    await client.response()
    assert keeper.scope["headers"] == [
        (b"host", b"a"),
        (b"x", b"2"),
        (b"y", b""),
        (b"x", b"1"),
        (b"z", b"\xff\xfe"),
    ]


async def test_many_and_long_request_headers(serve, keeper):
    """[HS-37]"""
    client = serve(keeper)
    headers = [(b"x-%d" % n, b"v" * (4000 if n == 63 else 10)) for n in range(64)]
    await client.fetch(headers=headers)
    assert keeper.scope["headers"][1:] == headers


@pytest.mark.parametrize("path", ["/api/x", "/x"])
async def test_root_path_is_part_of_the_path(serve, keeper, path):
    """Whether or not the proxy in front strips it. [HS-17, HS-18]"""
    client = serve(keeper, root_path="/api")
    await client.fetch(path)
    assert keeper.scope["root_path"] == "/api"
    assert keeper.scope["path"] == "/api/x"
    assert keeper.scope["raw_path"] == path.encode()


async def test_scopes_share_nothing(serve):
    """What one application does to its scope, the next does not see. [HS-29, HS-36]"""
    state = {"db": []}
    seen = []

    async def vandal(scope, receive, send):
        extension = scope["extensions"]["trigi"]
        seen.append(
            (
                {key: dict(value) if isinstance(value, dict) else value for key, value in scope.items()},
                list(scope["headers"]),
                set(scope["extensions"]),
                extension["disconnect_grace"],
            )
        )
        del seen[-1][0]["extensions"]["trigi"], seen[-1][0]["headers"]
        scope["headers"].clear()
        scope["asgi"].clear()
        scope["state"]["mine"] = 1
        extension["disconnect_grace"] = 1000
        scope["extensions"].clear()
        scope["new"] = 1
        await respond(send)

    client = serve(vandal, state=state)
    await client.fetch()
    await client.fetch()
    assert seen[0] == seen[1]
    assert seen[0][0]["state"]["db"] is state["db"]  # a shallow copy
    assert state == {"db": []}


@pytest.mark.parametrize(("at_once", "waits"), [(True, 0), (False, 1)])
async def test_after_the_last_request_nothing_is_waited_for_if_it_is_answered_at_once(
    monkeypatch, at_once, waits
):
    """To begin to wait for a socket, and to stop that, costs as much as a small request."""
    client, stream = map(SocketStream, socket.socketpair())
    receive_some = stream.receive_some
    sizes = []

    async def counting(max_bytes=None):
        sizes.append(max_bytes)
        return await receive_some(max_bytes)

    async def application(scope, receive, send):
        if not at_once:
            await trio.testing.wait_all_tasks_blocked()
        await respond(send, b"hello")

    monkeypatch.setattr(stream, "receive_some", counting)
    async with client:
        await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        with trio.fail_after(60):
            await serve_stream(stream, ServerContext(application, Config()))
        assert (await client.receive_some()).endswith(b"hello")
    assert len(sizes) == waits


@pytest.mark.parametrize("more", [b"\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_what_comes_while_the_last_request_is_answered_cuts_off_no_response(more):
    """To close before it is read would be to reset the connection (RFC 9112, 9.6)."""
    body = bytes(200_000)

    async def application(scope, receive, send):
        await respond(send, body)

    def read_slowly():
        time.sleep(0.1)
        received = b""
        while data := client.recv(65536):
            received += data
        return received

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        client.settimeout(60)
        client.connect(listener.getsockname())
        accepted = WatchedSocket(listener.accept()[0])
        accepted.on_read = lambda _: client.send(more) if len(accepted.read) == 1 else None
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, SocketStream(accepted), ServerContext(application, Config()))
            received = await trio.to_thread.run_sync(read_slowly)
    assert received.endswith(b"\r\n\r\n" + body)


async def test_context_variables_stay_in_their_request(serve):
    """[HT-33]"""
    variable = ContextVar("variable", default=b"unset")

    async def app(scope, receive, send):
        seen = variable.get()
        variable.set(scope["raw_path"])
        await respond(send, seen)

    client = serve(app)
    assert (await client.fetch("/first")).body == b"unset"
    assert (await client.fetch("/second")).body == b"unset"


async def test_receive_and_send_are_async_functions(serve):
    """Some frameworks ask. [HS-33]"""
    from inspect import iscoroutinefunction  # noqa: PLC0415

    async def app(scope, receive, send):
        await respond(send, b"%d%d" % (iscoroutinefunction(receive), iscoroutinefunction(send)))

    assert (await serve(app).fetch()).body == b"11"


async def test_the_scope_over_tls(serve, tls_pair, keeper):
    """Each has its own copy of what is known of TLS. [HS-09]"""
    observer = Recorder()
    context = ServerContext(
        keeper, Config(), observer=observer, describe_tls=lambda stream: {"tls_version": 0x0304}
    )
    client = serve(keeper, pair=tls_pair, context=context)
    await client.fetch()
    assert keeper.scope["scheme"] == "https"
    assert keeper.scope["extensions"]["tls"] == {"tls_version": 0x0304}
    keeper.scope["extensions"]["tls"].clear()
    await client.fetch()
    assert keeper.scope["extensions"]["tls"] == {"tls_version": 0x0304}


async def test_an_unknown_upgrade_is_ignored(serve, keeper):
    """[HS-39]"""
    client = serve(keeper)
    response = await client.fetch(headers=[(b"connection", b"upgrade"), (b"upgrade", b"h2c, foo/2")])
    assert response.status == 200
    assert keeper.scope["type"] == "http"
    assert (await client.fetch()).status == 200


# Request bodies: HR of the checklist


async def test_no_body_is_one_empty_last_message(serve):
    """[HR-01, HR-04, HR-14]"""
    messages = []

    async def app(scope, receive, send):
        messages.append(await receive())
        await respond(send)

    client = serve(app)
    await client.fetch()
    await client.fetch(method="POST", body=b"")
    assert messages == [{"type": "http.request", "body": b"", "more_body": False}] * 2
    assert [type(value) for value in messages[0].values()] == [str, bytes, bool]


@pytest.mark.parametrize("size", [1, 70_000, 8 * 1024 * 1024])
async def test_bodies_with_a_length(serve, size):
    """[HR-02, HR-05]"""
    messages = []

    async def app(scope, receive, send):
        while not messages or messages[-1]["more_body"]:
            messages.append(await receive())
        await respond(send)

    client = serve(app)
    body = bytes(n % 251 for n in range(size))
    assert (await client.fetch(method="POST", body=body)).status == 200
    assert b"".join(message["body"] for message in messages) == body
    assert all(type(message["body"]) is bytes for message in messages)
    assert (len(messages) > 1) is (size > 65536)


async def test_chunked_bodies_without_their_coding(serve):
    """[HR-03]"""
    client = serve(echo)
    await client.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;extension=1\r\nhello\r\n1\r\n \r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    )
    assert (await client.response()).body == b"hello 0123456789"
    assert (await client.fetch()).body == b""


@pytest.mark.parametrize("chunked", [False, True])
async def test_pieces_of_a_body_are_passed_on_as_they_come(serve, chunked):
    """The application runs before the body is there, and can answer to its first piece. [HR-06, HR-07]"""

    async def app(scope, receive, send):
        await start(send)
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send_body(send, b"got " + message["body"], more=more)

    client = serve(app)
    framing = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"6")
    await client.request("POST", headers=[framing])
    await client.settle()
    await client.send(b"3\r\none\r\n" if chunked else b"one")
    await client.head()
    assert await client.data() == b"got one"
    await client.send(b"3\r\ntwo\r\n0\r\n\r\n" if chunked else b"two")
    assert (await client.response()).body == b"got two"


async def test_after_the_body_receive_waits(serve):
    """There is no second empty message, however long it takes. [HR-08]"""

    async def app(scope, receive, send):
        await read_body(receive)
        with trio.move_on_after(1000):
            pytest.fail(f"got {await receive()}")
        with trio.move_on_after(0):
            pytest.fail(f"got {await receive()}")
        await respond(send, b"waited")

    client = serve(app)
    assert (await client.fetch()).body == b"waited"
    assert (await client.fetch(method="POST", body=b"x")).body == b"waited"


async def test_expect_100_continue(serve):
    """100 is sent when the application first waits for the body, and once. [HR-12]"""
    wanted = trio.Event()

    async def app(scope, receive, send):
        await wanted.wait()
        await echo(scope, receive, send)

    client = serve(app)
    await client.request("POST", headers=[(b"expect", b"100-continue"), (b"content-length", b"4")])
    with trio.move_on_after(100):
        pytest.fail(f"got {await client.informational()}")
    wanted.set()
    assert (await client.informational()).status == 100
    await client.send(b"bo")
    await client.settle()
    await client.send(b"dy")
    response = await client.response()
    assert response.body == b"body"
    assert response.header(b"connection") is None
    assert [(each.status, each.headers) for each in response.informational] == [(100, [])]
    assert (await client.fetch()).status == 200  # and the connection is used again


async def test_no_100_continue_for_a_body_that_is_there(serve):
    client = serve(echo)
    await client.request("POST", headers=[(b"expect", b"100-continue")], body=b"body")
    response = await client.response()
    assert response.body == b"body"
    assert response.informational == []


async def test_no_100_continue_without_a_body(serve):
    client = serve(echo)
    response = await client.fetch(headers=[(b"expect", b"100-continue")])
    assert response.informational == []


async def test_no_100_continue_for_http_1_0(serve):
    client = serve(echo)
    await client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    await client.settle()
    await client.send(b"ok")
    response = await client.response()
    assert response.body == b"ok"
    assert response.informational == []


async def test_refusing_an_expected_body(serve):
    """No 100 for an application that answers without reading; what then follows can't be told apart. [HR-13]"""
    client = serve(hello)
    response = await client.fetch(
        method="POST", headers=[(b"expect", b"100-continue"), (b"content-length", b"4")]
    )
    assert response.body == b"hello"
    assert response.informational == []
    assert response.header(b"connection") == b"close"
    assert await client.rest() == b""


async def test_no_100_continue_after_the_response_began(serve):
    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"1", more=True)
        await send_body(send, await read_body(receive) or b"")

    client = serve(app)
    await client.request("POST", headers=[(b"expect", b"100-continue"), (b"content-length", b"4")])
    response = await client.head()
    await client.send(b"body")
    await client.response()
    assert response.body == b"1body"
    assert response.informational == []


# Request bodies that the application does not read


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_small_unread_body_is_skipped(serve, chunked):
    """Also when it comes after the response. [HR-09]"""
    client = serve(hello)
    size = DISCARD_SIZE - 1000
    framing = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % size)
    await client.request("POST", headers=[framing])
    assert (await client.response()).header(b"connection") is None
    body = b"x" * size
    await client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body)
    assert (await client.fetch()).status == 200


async def test_an_unread_body_that_was_there_is_skipped(serve):
    client = serve(hello)
    assert (await client.fetch(method="POST", body=b"unread")).status == 200
    assert (await client.fetch(method="POST", body=b"x" * 200_000)).status == 200
    assert (await client.fetch()).status == 200


async def test_a_partly_read_body_is_skipped(serve):
    async def app(scope, receive, send):
        await receive()
        await respond(send)

    client = serve(app)
    await client.request("POST", headers=[(b"content-length", b"6")])
    await client.send(b"one")
    assert (await client.response()).status == 200
    await client.settle()
    await client.send(b"two")
    assert (await client.fetch()).status == 200


async def test_a_large_unread_body_closes_the_connection(serve):
    """Known from its length: the client is told."""
    client = serve(hello)
    await client.request("POST", headers=[(b"content-length", b"%d" % (DISCARD_SIZE + 1))])
    response = await client.response()
    assert response.body == b"hello"
    assert response.header(b"connection") == b"close"
    assert await client.rest() == b""


async def test_a_large_unread_chunked_body_closes_the_connection(serve):
    """Not known before it comes."""
    client = serve(hello)
    await client.request("POST", headers=[(b"transfer-encoding", b"chunked")])
    response = await client.response()
    assert response.body == b"hello"
    assert response.header(b"connection") is None
    for _ in range(5):
        await client.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await client.settle()
    assert await client.rest() == b""
    assert len(client.observer.ended) == 1


async def test_an_unread_body_that_does_not_come_closes_the_connection(serve):
    client = serve(hello)
    await client.request("POST", headers=[(b"content-length", b"4")])
    assert (await client.response()).body == b"hello"
    began = trio.current_time()
    assert await client.rest() == b""
    assert trio.current_time() - began == DISCARD_SECONDS


async def test_bytes_of_an_unread_body_win_no_time(serve):
    client = serve(hello)
    await client.request("POST", headers=[(b"content-length", b"1000")])
    assert (await client.response()).body == b"hello"
    began = trio.current_time()

    async def trickle():
        while True:
            await trio.sleep(0.5)
            await client.send(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert await client.rest() == b""
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == DISCARD_SECONDS


async def test_a_client_that_is_still_sending_can_read_its_refusal(serve):
    """Closing with unread bytes would reset the connection: the server reads on for a moment (RFC 9112, 9.6)."""

    async def app(scope, receive, send):
        await respond(send, b"too large", status=413)

    client = serve(app, pair=socket_like_pair)
    await client.request("POST", headers=[(b"content-length", b"10000000")])
    with trio.move_on_after(1):
        while True:
            await client.send(b"x" * 10_000)
            await trio.sleep(0.01)
    response = await client.response()
    assert response.status == 413
    assert response.body == b"too large"


async def test_a_client_that_sends_for_ever_after_its_refusal_is_left(serve):
    client = serve(hello, pair=socket_like_pair)
    await client.request("POST", headers=[(b"content-length", b"10000000000")])
    assert (await client.response()).status == 200
    began = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await client.send(b"x" * 10_000)
            await trio.sleep(0.1)
    assert trio.current_time() - began <= DISCARD_SECONDS + 0.2


# Responses: HT of the checklist


@pytest.mark.parametrize("status", [200, 201, 404, 418, 503, HTTPStatus.ACCEPTED, 299, 999])
async def test_statuses_and_their_reasons(serve, status):
    """[HT-01, HT-29]"""

    async def app(scope, receive, send):
        await respond(send, status=status)

    response = await serve(app).fetch()
    assert response.status == status
    assert response.reason == (HTTPStatus(status).phrase.encode() if status not in (299, 999) else b"")


async def test_response_headers_as_they_were_given(serve):
    """Order, duplicates, obs-text, and names in whatever case. [HT-02, HT-22, HT-34]"""
    headers = [
        (b"X-One", b"1"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"a=1"),
        (b"x-obs", b"\xff\x80"),
        (b"set-cookie", b"b=2"),
        (b"x-long", b"v" * 20_000),
        *[(b"x-%d" % n, b"") for n in range(60)],
    ]

    async def app(scope, receive, send):
        await respond(send, b"x", headers=headers)

    response = await serve(app).fetch()
    assert own_headers(response) == [(name.lower(), value) for name, value in headers]


@OVER_MEMORY
@pytest.mark.parametrize(
    "headers",
    [
        [[b"x", b"1"], [b"y", b"2"]],
        ((b"x", b"1"), (b"y", b"2")),
        (pair for pair in [(b"x", b"1"), (b"y", b"2")]),
        {b"x": b"1", b"y": b"2"}.items(),
    ],
    ids=["lists", "tuples", "generator", "items"],
)
async def test_headers_are_any_iterable(serve, headers):
    """[HT-04]"""

    async def app(scope, receive, send):
        await start(send, headers=headers)
        await send_body(send)

    assert own_headers(await serve(app).fetch()) == [(b"x", b"1"), (b"y", b"2")]


async def test_headers_and_body_may_be_missing(serve):
    """[HT-03, HT-10, HT-11]"""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "unknown": 1})
        await send({"type": "http.response.body", "unknown": 1})

    client = serve(app)
    response = await client.fetch()
    assert response.status == 200
    assert response.body == b""
    assert response.header(b"transfer-encoding") == b"chunked"
    assert (await client.fetch()).status == 200


async def test_a_content_length_is_used_as_it_is(serve):
    """[HT-05, HT-31]"""
    client = serve(hello)
    await client.request()
    wire = bytes(await client.stream.receive_some())
    assert wire.lower().count(b"content-length") == 1
    assert b"transfer-encoding" not in wire.lower()
    assert wire.endswith(b"\r\n\r\nhello")


async def test_without_a_length_the_response_is_chunked(serve):
    """[HT-06, HT-14]"""

    async def app(scope, receive, send):
        await start(send)
        for piece in (b"", b"one", b"", b"twothree", b""):
            await send_body(send, piece, more=True)
        await send_body(send, b"four")

    client = serve(app)
    await client.request()
    await client.settle()
    wire = bytes(await client.stream.receive_some())
    assert wire.endswith(b"\r\n\r\n3\r\none\r\n8\r\ntwothree\r\n4\r\nfour\r\n0\r\n\r\n")
    response = await client.fetch()
    assert response.body == b"onetwothreefour"
    assert response.header(b"content-length") is None


@pytest.mark.parametrize(
    "headers", [[(b"transfer-encoding", b"chunked")], [(b"Transfer-Encoding", b"gzip, chunked")]]
)
@pytest.mark.parametrize("length", [True, False])
async def test_a_transfer_encoding_of_the_application_is_ignored(serve, headers, length):
    """And `keep-alive`, which is the server's business as well. [HT-08, HT-09]"""

    async def app(scope, receive, send):
        await start(
            send,
            headers=[
                *headers,
                (b"keep-alive", b"timeout=5"),
                *([(b"content-length", b"5")] if length else []),
            ],
        )
        await send_body(send, b"5\r\nx\n")

    client = serve(app)
    for _ in range(2):
        response = await client.fetch()
        assert response.body == b"5\r\nx\n"
        assert response.header(b"transfer-encoding") == (None if length else b"chunked")
        assert response.header(b"keep-alive") is None


def measured_pair(sizes):
    """A memory stream whose server's writes are noted by their sizes."""
    client, server = trio.testing.memory_stream_pair()

    def pump():
        data = server.send_stream.get_data_nowait()
        sizes.append(len(data))
        client.receive_stream.put_data(data)

    async def pump_as_async():
        pump()

    server.send_stream.send_all_hook = pump_as_async
    return client, server


async def test_small_head_and_body_leave_in_one_piece(serve):
    """One write is one packet, and one system call."""
    sizes = []
    client = serve(hello, pair=lambda: measured_pair(sizes))
    await client.fetch()
    assert len(sizes) == 1


async def test_large_pieces_are_written_piecewise(serve):
    """16 MiB arrive as they were sent, in writes that each can make progress. [HT-13, HT-19]"""
    body = bytes(range(256)) * 65536
    sizes = []

    async def app(scope, receive, send):
        await respond(send, body)

    client = serve(app, pair=lambda: measured_pair(sizes))
    response = await client.fetch()
    assert response.body == body
    assert max(sizes) == WRITE_SIZE


async def test_1000_small_pieces_in_order(serve):
    """[HT-13]"""

    async def app(scope, receive, send):
        await start(send)
        for number in range(1000):
            await send_body(send, b"%d," % number, more=True)
        await send_body(send)

    assert (await serve(app).fetch()).body == b"".join(b"%d," % number for number in range(1000))


@pytest.mark.parametrize("length", [True, False])
async def test_each_piece_is_sent_at_once(serve, length):
    """And the response is over with its last message, not with the application. [HT-12, HT-15]"""
    go_on = trio.Event()

    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"6")] if length else [])
        await send_body(send, b"one", more=True)
        await go_on.wait()
        await send_body(send, b"two")
        await trio.sleep(1000)

    client = serve(app)
    await client.request()
    await client.head()
    assert await client.data() == b"one"
    with trio.move_on_after(100):
        pytest.fail(f"got {await client.data()}")
    go_on.set()
    assert (await client.response()).body == b"two"
    assert (await client.fetch()).status == 200
    await client.leave()
    await client.done.wait()


async def test_the_start_is_held_until_the_first_body_message(serve):
    """An empty one will do: it sends the head alone."""

    async def app(scope, receive, send):
        await start(send)
        await trio.sleep(10)
        await send_body(send, b"", more=True)
        await trio.sleep(10)
        await send_body(send, b"")

    client = serve(app)
    began = trio.current_time()
    await client.request()
    await client.head()
    assert trio.current_time() - began == 10
    await client.response()
    assert trio.current_time() - began == 20


async def test_what_is_sent_after_the_end_is_ignored(serve):
    """[HT-16, HT-17]"""

    async def app(scope, receive, send):
        await respond(send, b"hello")
        await send_body(send, b"late", more=True)
        await send_body(send, b"late")

    client = serve(app)
    await client.request()
    await client.settle()
    assert (await client.response()).body == b"hello"
    assert (await client.fetch()).body == b"hello"
    assert client.observer.failures == []


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("HEAD", 404), ("GET", 204), ("GET", 304), ("HEAD", 204)]
)
@pytest.mark.parametrize("length", [True, False])
async def test_responses_without_body(serve, method, status, length):
    """Whatever the application sends: its headers are kept, and the connection stays in step. [HT-20, HT-21]"""

    async def app(scope, receive, send):
        if scope["path"] == "/next":
            await hello(scope, receive, send)
            return
        await start(
            send, status=status, headers=[(b"x", b"1"), *([(b"content-length", b"9")] if length else [])]
        )
        await send_body(send, b"some ", more=True)
        await send_body(send, b"body")

    client = serve(app)
    await client.request(method)
    await client.request(target="/next")
    response = await client.response()
    assert response.status == status
    assert own_headers(response) == [(b"x", b"1")]
    assert response.header(b"transfer-encoding") is None
    # RFC 9110, 8.6: HEAD and 304 tell the length that there would be, 204 has none to tell
    assert response.header(b"content-length") == (b"9" if length and status != 204 else None)
    assert response.header(b"connection") is None
    assert (await client.response()).body == b"hello"
    assert client.observer.ended[0].bytes_sent == 0


async def test_head_may_be_answered_without_the_body_that_was_announced(serve):
    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"1000")])
        await send_body(send)

    client = serve(app)
    response = await client.fetch(method="HEAD")
    assert response.header(b"content-length") == b"1000"
    assert (await client.fetch(method="HEAD")).status == 200
    assert client.observer.failures == []


async def test_date_and_server_once(serve):
    client = serve(hello)
    for _ in range(2):
        response = await client.fetch()
        names = [name for name, _ in response.headers]
        assert sorted(names) == sorted(set(names))
        assert DATE.fullmatch(response.header(b"date"))
        assert response.header(b"server") == b"trigi"


async def test_date_and_server_of_the_application(serve):
    """[HT-31]"""

    async def app(scope, receive, send):
        await respond(send, headers=[(b"Date", b"today"), (b"Server", b"mine")])

    response = await serve(app).fetch()
    assert [value for name, value in response.headers if name in (b"date", b"server")] == [b"today", b"mine"]


async def test_date_and_server_switched_off(serve):
    client = serve(hello, date_header=False, server_header=False)
    assert {name for name, _ in (await client.fetch()).headers} == {b"content-length"}
    client = serve(hello, date_header=False)
    assert {name for name, _ in (await client.fetch()).headers} == {b"content-length", b"server"}


async def test_the_date_is_that_of_the_response(serve, monkeypatch):
    now = 1_000_000_000.25
    monkeypatch.setattr("time.time", lambda: now)
    client = serve(hello)
    assert (await client.fetch()).header(b"date") == b"Sun, 09 Sep 2001 01:46:40 GMT"
    now += 0.5
    assert (await client.fetch()).header(b"date") == b"Sun, 09 Sep 2001 01:46:40 GMT"
    now += 0.25
    assert (await client.fetch()).header(b"date") == b"Sun, 09 Sep 2001 01:46:41 GMT"


# Interim responses and trailers


async def test_early_hints(serve):
    async def app(scope, receive, send):
        await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>"]})
        await send({"type": "http.response.early_hint", "links": [b"</c.js>"]})
        await start(send)
        await send({"type": "http.response.early_hint", "links": [b"</d.js>"]})  # the head is still held
        await send_body(send, b"x", more=True)
        await send({"type": "http.response.early_hint", "links": [b"</late.js>"]})  # too late, and ignored
        await send_body(send, b"y")

    client = serve(app)
    response = await client.fetch()
    assert response.body == b"xy"
    assert [(each.status, each.headers) for each in response.informational] == [
        (103, [(b"link", b"</a.css>; rel=preload"), (b"link", b"</b.js>")]),
        (103, [(b"link", b"</c.js>")]),
        (103, [(b"link", b"</d.js>")]),
    ]
    assert (await client.fetch()).body == b"xy"


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.early_hint", "links": [b"</a.css>"]},
        {"type": "http.response.start", "status": 200, "trailers": True},
    ],
)
async def test_what_http_1_0_can_not_carry_is_not_in_its_scope(serve, message):
    async def app(scope, receive, send):
        [*refused] = {"http.response.early_hint", "http.response.trailers"} - scope["extensions"].keys()
        with pytest.raises(InvalidMessage, match=r"the extension .* is not in this scope"):
            await send(message)
        await respond(send, b"%d" % len(refused))

    client = serve(app)
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    response = await client.response()
    assert response.body == b"2"
    assert response.informational == []


async def with_trailers(scope, receive, send):
    """Trailers in two messages, upon `/length` next to a content-length."""
    headers = [(b"content-length", b"7")] if scope["path"] == "/length" else []
    await start(send, headers=[*headers, (b"trailer", b"x-sum")], trailers=True)
    await send_body(send, b"one", more=True)
    await send_body(send, b"more")
    await send({"type": "http.response.trailers", "headers": [(b"X-Sum", b"1")], "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"2")]})


@pytest.mark.parametrize("target", ["/", "/length"])
async def test_trailers_for_a_client_that_takes_them(serve, target):
    client = serve(with_trailers)
    response = await client.fetch(target, headers=[(b"te", b"deflate, Trailers")])
    assert response.body == b"onemore"
    assert response.trailers == [(b"x-sum", b"1"), (b"x-sum", b"2")]
    assert response.header(b"transfer-encoding") == b"chunked"  # trailers need it
    assert response.header(b"content-length") is None
    assert (await client.fetch()).status == 200
    assert client.observer.ended[0].complete


@pytest.mark.parametrize("target", ["/", "/length"])
async def test_no_trailers_for_a_client_that_does_not_ask(serve, target):
    client = serve(with_trailers)
    response = await client.fetch(target)
    assert response.body == b"onemore"
    assert response.trailers == []
    assert response.header(b"content-length") == (b"7" if target == "/length" else None)
    assert (await client.fetch()).status == 200
    assert client.observer.ended[0].complete


async def test_trailers_of_a_response_without_body(serve):
    client = serve(with_trailers)
    response = await client.fetch(method="HEAD", headers=[(b"te", b"trailers")])
    assert response.trailers == []
    assert (await client.fetch()).status == 200


async def test_trailers_end_the_response(serve):
    """Not the last piece of the body: until they come, the response is not complete."""

    async def app(scope, receive, send):
        await start(send, trailers=True)
        await send_body(send, b"body")

    client = serve(app)
    with pytest.raises(IncompleteResponse) as caught:
        await client.fetch(headers=[(b"te", b"trailers")])
    assert caught.value.response.body == b"body"
    assert "TRAILERS" in str(client.observer.failures[0])


# The next request


async def test_keep_alive(serve, keeper):
    """Three requests on one connection, one call for each. [HT-26]"""
    client = serve(keeper)
    for number in range(3):
        response = await client.fetch(f"/{number}")
        assert response.header(b"connection") is None
    assert [scope["path"] for scope in keeper.scopes] == ["/0", "/1", "/2"]
    assert [each.target for each in client.observer.ended] == [b"/0", b"/1", b"/2"]
    assert all(each.complete for each in client.observer.ended)


@pytest.mark.parametrize("header", [b"close", b"Close", b"keep-alive, CLOSE", b"te , close"])
async def test_connection_close_from_the_client(serve, header):
    """[HT-27]"""
    client = serve(hello)
    response = await client.fetch(headers=[(b"connection", header)])
    assert response.header(b"connection") == b"close"
    assert response.body == b"hello"
    assert await client.rest() == b""
    await client.done.wait()


async def test_connection_close_from_the_application(serve):
    """[HT-28]"""

    async def app(scope, receive, send):
        await respond(
            send, b"bye", headers=[(b"Connection", b"close, X-Hop"), (b"connection", b"keep-alive")]
        )

    client = serve(app)
    response = await client.fetch()
    assert response.header(b"connection") == b"close, x-hop"
    assert await client.rest() == b""


@pytest.mark.parametrize(("given", "sent"), [(b"keep-alive", None), (b"Keep-Alive, x-hop", b"x-hop")])
async def test_keep_alive_is_not_said_to_http_1_1(serve, given, sent):
    async def app(scope, receive, send):
        await respond(send, b"", headers=[(b"connection", given)])

    client = serve(app)
    assert (await client.fetch()).header(b"connection") == sent
    assert (await client.fetch()).status == 200


async def test_requests_behind_a_close_are_not_read(serve, keeper):
    client = serve(keeper)
    await client.request(headers=[(b"connection", b"close")])
    await client.request(target="/next")
    await client.response()
    assert await client.rest() == b""
    assert len(keeper.scopes) == 1


async def test_http_1_0_closes(serve):
    """Without a length its body ends with the connection. [HT-07, HT-27]"""

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"one", more=True)
        await send_body(send, b"two")

    client = serve(app)
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    wire = await client.rest()
    assert wire.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close\r\n" in wire
    assert b"transfer-encoding" not in wire
    assert wire.endswith(b"\r\n\r\nonetwo")


async def test_http_1_0_keep_alive(serve):
    client = serve(hello)
    for _ in range(2):
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response = await client.response()
        assert response.header(b"connection") == b"keep-alive"
        assert response.body == b"hello"


async def test_http_1_0_keep_alive_needs_a_length(serve):
    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"hello")

    client = serve(app)
    await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    response = await client.response()
    assert response.header(b"connection") == b"close"
    assert response.body == b"hello"


async def test_keep_alive_max_requests(serve):
    client = serve(hello, keep_alive_max_requests=2)
    assert (await client.fetch()).header(b"connection") is None
    assert (await client.fetch()).header(b"connection") == b"close"
    assert await client.rest() == b""


@pytest.mark.parametrize("whole", [True, False])
async def test_pipelined_requests_in_order(serve, whole):
    """One call after the other, the answers in order, also when the first is the slowest. [HR-11]"""
    running = 0

    async def app(scope, receive, send):
        nonlocal running
        running += 1
        assert running == 1
        body = await read_body(receive)
        await trio.sleep({"/a": 30, "/b": 20, "/c": 10}[scope["path"]])
        await start(send)
        await send_body(send, scope["raw_path"], more=True)
        running -= 1
        await send_body(send, body)

    client = serve(app)
    wire = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none"
        b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n\r\n"
        b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
    )
    for data in [wire] if whole else [wire[n : n + 1] for n in range(len(wire))]:
        await client.send(data)
        await client.settle()
    assert [(await client.response()).body for _ in range(3)] == [b"/aone", b"/b", b"/ctwo"]


async def test_more_pipelined_than_is_read_ahead(serve):
    """Nothing is lost when reading stops at the limit, and it goes on by itself."""

    async def app(scope, receive, send):
        await trio.sleep(1)
        await respond(send, scope["raw_path"] + (await read_body(receive))[-5:])

    client = serve(app, pipelined_size_limit=1000, pair=lambda: socket_like_pair(100))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send_all():
            for number in range(20):
                body = b"x" * 700 + b"%05d" % number
                await client.request("POST", f"/{number}", body=body)

        for number in range(20):
            assert (await client.response()).body == b"/%d%05d" % (number, number)


async def test_background_work_does_not_hold_up_the_next_request(serve):
    """And is not ended by it, nor by the client's leaving. [HT-32]"""
    finished = []

    async def app(scope, receive, send):
        await respond(send, b"done")
        await trio.sleep(1000)
        finished.append(scope["path"])

    client = serve(app)
    began = trio.current_time()
    for number in range(3):
        assert (await client.fetch(f"/{number}")).body == b"done"
    assert trio.current_time() == began
    await client.leave()
    await client.done.wait()
    assert sorted(finished) == ["/0", "/1", "/2"]
    assert trio.current_time() - began == 1000
    assert [each.duration for each in client.observer.ended] == [0, 0, 0]


async def test_connections_are_served_at_once(serve):
    """[HT-30, HE-35]"""
    arrived = 0
    all_there = trio.Event()

    async def app(scope, receive, send):
        nonlocal arrived
        arrived += 1
        if arrived == 50:
            all_there.set()
        await all_there.wait()
        if scope["path"] == "/7":
            raise ValueError("this one only")
        await respond(send, scope["raw_path"])

    first = serve(app)
    clients = [first, *(serve(app, context=first.context) for _ in range(49))]
    for number, client in enumerate(clients):
        await client.request(target=f"/{number}")
    for number, client in enumerate(clients):
        response = await client.response()
        if number == 7:
            assert response.status == 500
        else:
            assert response.body == b"/%d" % number
    assert len(first.context.connections) == 50


# The limit of applications at once


async def test_concurrency_limit(serve):
    """Past it 503, at once; the connection is used again, and so is the slot."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        await go_on.wait()
        await respond(send, b"served")

    busy = serve(app, concurrency_limit=1)
    client = serve(app, context=busy.context)
    await busy.request()
    await busy.settle()
    response = await client.fetch(method="POST", body=b"unread")
    assert response.status == 503
    assert response.header(b"retry-after") == b"1"
    assert response.header(b"connection") is None
    go_on.set()
    assert (await busy.response()).body == b"served"
    assert (await client.fetch()).body == b"served"
    assert [each.status for each in client.observer.ended] == [503, 200, 200]
    assert [(each.status_hint, each.limit) for each in client.observer.refused] == [
        (503, "concurrency_limit")
    ]
    assert client.observer.failures == []


async def test_concurrency_limit_for_requests_that_come_together(serve):
    """Not one more than the limit, though none of their applications has begun when the others are counted."""

    async def app(scope, receive, send):
        await trio.sleep(1)
        await respond(send)

    client = serve(app, concurrency_limit=2)
    clients = [client, *(serve(app, context=client.context) for _ in range(4))]
    async with trio.open_nursery() as nursery:
        for each in clients:
            nursery.start_soon(each.request)
    statuses = [(await each.response()).status for each in clients]
    assert sorted(statuses) == [200, 200, 503, 503, 503]


async def test_background_work_counts_for_the_concurrency_limit(serve):
    async def app(scope, receive, send):
        await respond(send)
        await trio.sleep(10)

    client = serve(app, concurrency_limit=1, keep_alive_timeout=100)
    assert (await client.fetch()).status == 200
    assert (await client.fetch()).status == 503
    await trio.sleep(10)
    assert (await client.fetch()).status == 200


async def test_failed_calls_free_their_slot(serve):
    async def app(scope, receive, send):
        raise ValueError("fails")

    client = serve(app, concurrency_limit=1)
    for _ in range(3):
        assert (await client.fetch()).status == 500


@OVER_MEMORY
async def test_a_client_that_leaves_before_its_503(serve):
    async def app(scope, receive, send):
        await trio.sleep(10)

    busy = serve(app, concurrency_limit=1, disconnect_grace=0)
    await busy.request()
    await busy.settle()
    client = serve(app, context=busy.context)
    client.stream.receive_stream.close()
    await client.request()
    await client.done.wait()
    assert [(each.status, each.complete) for each in client.observer.ended] == [(503, False)]


# Shutting down


def drain(client):
    client.context.draining.set()
    for connection in list(client.context.connections):
        connection.drain()


async def test_drain_closes_an_idle_connection(serve):
    client = serve(hello)
    await client.fetch()
    began = trio.current_time()
    drain(client)
    assert await client.rest() == b""
    assert trio.current_time() == began


async def test_drain_before_the_connection_begins(serve):
    client = serve(hello)
    client.context.draining.set()
    began = trio.current_time()
    assert await client.rest() == b""
    assert trio.current_time() == began


@pytest.mark.parametrize("late", [False, True])
async def test_drain_in_the_handshake(serve, tls_pair, late):
    """Which is no failure of the client's."""
    client = serve(hello, pair=tls_pair)
    if not late:
        await client.settle()
    began = trio.current_time()
    drain(client)
    assert await client.stream.transport_stream.receive_some() == b""
    assert trio.current_time() == began
    assert client.observer.handshakes == []


async def test_drain_closes_a_connection_without_any_request(serve):
    client = serve(hello)
    await client.settle()
    drain(client)
    assert await client.rest() == b""


async def test_drain_finishes_an_open_exchange(serve):
    """And says that it is the last; requests behind it are not read."""

    async def app(scope, receive, send):
        await trio.sleep(10)
        await respond(send, scope["raw_path"])

    client = serve(app)
    await client.request(target="/1")
    await client.request(target="/2")
    await client.settle()
    drain(client)
    response = await client.response()
    assert response.body == b"/1"
    assert response.header(b"connection") == b"close"
    assert await client.rest() == b""


async def test_drain_in_the_middle_of_a_response(serve):
    """Its head did not know, so the close must do."""

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"one", more=True)
        await trio.sleep(10)
        await send_body(send, b"two")

    client = serve(app)
    await client.request()
    await client.settle()
    drain(client)
    response = await client.response()
    assert response.header(b"connection") is None
    assert response.body == b"onetwo"
    assert await client.rest() == b""


async def test_drain_closes_while_background_work_goes_on(serve):
    async def app(scope, receive, send):
        await respond(send)
        await trio.sleep(10)

    client = serve(app)
    await client.fetch()
    began = trio.current_time()
    drain(client)
    assert await client.rest() == b""
    assert trio.current_time() == began
    await client.done.wait()
    assert trio.current_time() - began == 10
