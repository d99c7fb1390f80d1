"""WSGIAdapter: PEP 3333 from an ASGI server, in memory. The threads are real, and nothing waits for a time to pass."""

from __future__ import annotations

import contextvars
import gc
import gzip
import inspect
import io
import logging
import sys
import threading
import weakref
from contextlib import asynccontextmanager, suppress
from wsgiref.validate import validator

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trigi import Config
from trigi._connection.observer import Observer
from trigi.adapters import WSGIAdapter, _wsgi_crossing
from trigi.exceptions import ApplicationError, ClientDisconnected
from trigi.testing import HTTPClient, IncompleteResponse, open_connection
from trigi.testing.websocket import WebSocketClient, WebSocketRejected

SECONDS = 20
"""What a thread waits for the test is given up after this."""

TEXT = [("Content-Type", "text/plain")]


class Failures(Observer):
    """Remembers what applications raised."""

    def __init__(self) -> None:
        self.errors = []

    def application_failed(self, exchange, error) -> None:
        self.errors.append(error)


@asynccontextmanager
async def served(application, *, observer=None, **config):
    """A client of an application; unless the observer is given, nothing may fail."""
    failures = Failures() if observer is None else observer
    async with open_connection(
        application, Config(**{"interface": "wsgi"} | config), observer=failures
    ) as stream:
        yield HTTPClient(stream)
    assert trio.testing.active_thread_count() == 0
    if observer is None:
        assert failures.errors == []


async def fetch(application, target="/", *, observer=None, config=None, **request):
    async with served(application, observer=observer, **(config or {})) as client:
        return await client.fetch(target, **request)


def http_scope(**more):
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
        "extensions": {},
    } | more


class Conversation:
    """One call of an adapter without a server: what it receives is given, what it sends is kept.

    Attributes:
        sent: the messages.
        unread: the messages that it has not received.
    """

    def __init__(self, *messages) -> None:
        self.sent = []
        self.unread = list(messages) or [{"type": "http.request", "body": b"", "more_body": False}]
        self.may_send = trio.Event()
        self.may_send.set()

    async def receive(self):
        await trio.lowlevel.checkpoint()
        if not self.unread:
            await trio.sleep_forever()
        return self.unread.pop(0)

    async def send(self, message):
        self.sent.append(message)
        await self.may_send.wait()

    async def run(self, application, **scope):
        adapter = application if isinstance(application, WSGIAdapter) else WSGIAdapter(application)
        await adapter(http_scope(**scope), self.receive, self.send)
        return self.sent

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent)


def body_messages(*pieces, complete=True):
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    return [*messages, {"type": "http.request", "body": b"", "more_body": False} if complete else DISCONNECT]


DISCONNECT = {"type": "http.disconnect"}


def answering(function):
    """An application that answers with what this makes of the environ."""

    def application(environ, start_response):
        body = function(environ)
        start_response("200 OK", TEXT)
        return [body]

    return application


# The environ


async def environ_of(**scope):
    seen = []

    def application(environ, start_response):
        seen.append(environ)
        start_response("204 No Content", [])
        return []

    await Conversation().run(application, **scope)
    return seen[0]


async def test_the_whole_environ():
    environ = await environ_of(
        method="POST",
        path="/shop/caf\u00e9",
        raw_path=b"/shop/caf%C3%A9",
        root_path="/shop",
        query_string=b"a=%20&b",
        client=("10.0.0.1", 5000),
        server=("127.0.0.1", 8000),
        headers=[
            (b"host", b"example.org"),
            (b"content-type", b"text/plain"),
            (b"content-length", b"3"),
            (b"cookie", b"a=1"),
            (b"x-more", b"1"),
            (b"cookie", b"b=2"),
            (b"x-more", b"\xe9"),
            (b"x_more", b"shadow"),
            (b"content_length", b"99"),
        ],
    )
    assert type(environ) is dict
    for name in ("wsgi.input", "wsgi.errors", "wsgi.file_wrapper"):
        environ.pop(name)
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/shop",
        "PATH_INFO": "/caf\u00c3\u00a9",
        "QUERY_STRING": "a=%20&b",
        "REQUEST_URI": "/shop/caf%C3%A9?a=%20&b",
        "RAW_URI": "/shop/caf%C3%A9?a=%20&b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "trigi",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "10.0.0.1",
        "REMOTE_PORT": "5000",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "3",
        "HTTP_HOST": "example.org",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_MORE": "1,\u00e9",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


@pytest.mark.parametrize(
    ("scope", "script_name", "path_info"),
    [
        ({"path": "/a b/\ufffd", "raw_path": b"/a%20b/%ff"}, "", "/a b/\u00ff"),
        ({"path": "/app", "raw_path": b"/app", "root_path": "/app"}, "/app", ""),
        ({"path": "/app/x", "raw_path": b"/x", "root_path": "/app"}, "/app", "/x"),  # a proxy stripped it
        ({"path": "/app/x", "raw_path": b"/app/x", "root_path": "/app"}, "/app", "/x"),
        ({"path": "/application", "raw_path": b"/application", "root_path": "/app"}, "/app", "/application"),
        (
            {"path": "/x", "raw_path": b"/app/x", "root_path": "/app"},
            "/app",
            "/x",
        ),  # as old middleware mounts
        ({"path": "/changed", "raw_path": b"/was"}, "", "/changed"),
        ({"path": "/\u00e9", "raw_path": None}, "", "/\u00c3\u00a9"),
        ({"path": "/\u00e9/x", "raw_path": b"/%C3%A9/x", "root_path": "/\u00e9"}, "/\u00c3\u00a9", "/x"),
        ({"path": "*", "raw_path": b"*", "method": "OPTIONS"}, "", "*"),
    ],
)
async def test_paths(scope, script_name, path_info):
    environ = await environ_of(**scope)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


@pytest.mark.parametrize(
    ("server", "host", "scheme", "name", "port"),
    [
        (("::1", 8000), b"example.org", "http", "::1", "8000"),
        (("/run/app.sock", None), b"example.org:8080", "http", "example.org", "8080"),
        (("/run/app.sock", None), b"example.org", "https", "example.org", "443"),
        (("/run/app.sock", None), b"[::1]", "http", "[::1]", "80"),
        (("/run/app.sock", None), b"[::1]:81", "http", "[::1]", "81"),
        (None, b"", "http", "localhost", "80"),
        (None, b":81", "http", "localhost", "81"),
    ],
)
async def test_the_name_and_port_of_the_server(server, host, scheme, name, port):
    environ = await environ_of(server=server, headers=[(b"host", host)], scheme=scheme)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)
    assert environ["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in environ


async def test_tls():
    tls = {
        "server_cert": None,
        "client_cert_chain": ["PEM 1", "PEM 2"],
        "client_cert_name": "CN=Ada",
        "client_cert_error": None,
        "tls_version": 0x0304,
        "cipher_suite": None,
    }
    environ = await environ_of(scheme="https", extensions={"tls": tls})
    assert environ["wsgi.url_scheme"] == "https"
    assert {name: value for name, value in environ.items() if name.startswith(("SSL", "HTTPS"))} == {
        "HTTPS": "on",
        "SSL_PROTOCOL": "TLSv1.3",
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_CERT": "PEM 1",
        "SSL_CLIENT_S_DN": "CN=Ada",
    }


async def test_each_request_has_an_environ_of_its_own():
    def application(environ, start_response):
        assert "mine" not in environ
        environ["mine"] = True
        start_response("204 No Content", [])
        return []

    async with served(application) as client:
        assert (await client.fetch()).status == 204
        assert (await client.fetch()).status == 204


async def test_context_variables_of_the_task_are_visible():
    variable = contextvars.ContextVar("variable")
    variable.set(b"from the task")

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield variable.get()
        variable.set(b", from the thread")
        yield variable.get()

    talk = Conversation()
    await talk.run(application)
    assert talk.body == b"from the task, from the thread"


async def test_trio_can_be_reached_from_the_thread():
    async def answer():
        await trio.lowlevel.checkpoint()
        return b"from trio"

    assert (await fetch(answering(lambda _: trio.from_thread.run(answer)))).body == b"from trio"


async def test_what_is_written_to_errors_is_logged(caplog):
    def application(environ, start_response):
        errors = environ["wsgi.errors"]
        errors.write("one line\n")
        errors.writelines(["a ", "second ", "one"])
        errors.flush()
        errors.write("several\nlines\n")
        errors.write("without an end")
        start_response("204 No Content", [])
        return []

    await fetch(application)
    records = [record for record in caplog.records if record.name == "trigi.error"]
    assert [record.getMessage() for record in records] == [
        "one line",
        "a second one",
        "several\nlines",
        "without an end",
    ]
    assert {record.levelno for record in records} == {logging.ERROR}


# The validator of the standard library


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_the_validator_finds_nothing(method):
    @validator
    def application(environ, start_response):
        body = environ["wsgi.input"]
        lines = [body.readline(), body.read(4), *body.readlines(), *body]
        environ["wsgi.errors"].flush()
        write = start_response("200 OK", TEXT)
        write(b"first, ")
        return [b"".join(lines), b"", b"."]

    body = b"a line\nand more\nof\nthem" if method == "POST" else None
    response = await fetch(application, "/a%20path?query", method=method, body=body)
    assert response.status == 200
    assert response.body == {
        "GET": b"first, .",
        "HEAD": b"",
        "POST": b"first, a line\nand more\nof\nthem.",
    }.get(method)


# The body of the request


OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "readlines"]), st.integers(-1, 40)),
    st.tuples(st.sampled_from(["read", "readline", "readlines", "__iter__"])),
    st.just(("read", None)),
)


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.text("ab\n", max_size=20).map(str.encode), max_size=8),
    operations=st.lists(OPERATIONS, max_size=8),
)
def test_the_input_reads_like_a_file(pieces, operations):
    """However the body is split into messages."""
    file = io.BufferedReader(io.BytesIO(b"".join(pieces)))

    def read(body):
        for name, *args in operations:
            result = getattr(body, name)(*args)
            yield list(result) if name == "__iter__" else result
        yield body.read()
        yield body.read(1)

    def application(environ, start_response):
        assert list(read(environ["wsgi.input"])) == list(read(file))
        start_response("204 No Content", [])
        return []

    trio.run(Conversation(*body_messages(*pieces)).run, application)


async def test_it_can_be_wrapped_as_any_binary_file():
    def application(environ, start_response):
        assert environ["wsgi.input"].read1(3) == b"gr\xc3"
        text = io.TextIOWrapper(environ["wsgi.input"], encoding="utf-8", errors="replace")
        start_response("200 OK", TEXT)
        return [repr(text.read()).encode()]

    talk = Conversation(*body_messages(b"gr\xc3", b"\xbc\xc3", b"\x9fe"))
    await talk.run(application)
    assert talk.body == "'\ufffd\u00dfe'".encode()


async def test_no_more_is_received_than_was_asked_for():
    pieces = [b"x" * 65536] * 16
    talk = Conversation(*body_messages(*pieces))
    unread = []

    def application(environ, start_response):
        body = environ["wsgi.input"]
        unread.append(len(talk.unread))
        body.read(1)
        unread.append(len(talk.unread))
        body.read(65536)
        unread.append(len(talk.unread))
        body.readline(100)
        unread.append(len(talk.unread))
        assert len(body.read(10 * 65536)) == 10 * 65536
        unread.append(len(talk.unread))
        start_response("204 No Content", [])
        return []

    await talk.run(application)
    assert unread == [17, 16, 15, 15, 5]


async def test_the_input_streams_while_the_response_does():
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        for line in environ["wsgi.input"]:
            yield line.upper()

    async with served(application) as client:
        await client.request("POST", headers=[(b"transfer-encoding", b"chunked")])
        for line in (b"one\n", b"two\n", b"three\n"):
            await client.send(b"%x\r\n%b\r\n" % (len(line), line))
            if line == b"one\n":
                await client.head()
            assert await client.data() == line.upper()
        await client.send(b"0\r\n\r\n")
        assert await client.data() == b""


async def test_100_continue_comes_at_the_first_read():
    def application(environ, start_response):
        if environ["PATH_INFO"] == "/read":
            environ["wsgi.input"].read(1)
        start_response("200 OK", TEXT)
        yield b""  # at which the client is looked for
        yield b"done"

    headers = [(b"expect", b"100-continue"), (b"content-length", b"5")]
    async with served(application) as client:
        await client.request("POST", "/read", headers=headers)
        assert (await client.informational()).status == 100
        await client.send(b"hello")
        assert (await client.response()).body == b"done"
    async with served(application) as client:
        await client.request("POST", "/", headers=headers)
        response = await client.response()
        assert (response.body, response.informational) == (b"done", [])


@pytest.mark.parametrize(
    "read",
    [
        lambda body: body.read(),
        lambda body: body.read(10),
        lambda body: body.readline(),
        lambda body: body.readlines(),
        list,
    ],
)
async def test_a_body_that_is_cut_off_has_no_end(read):
    errors = []

    def application(environ, start_response):
        body = environ["wsgi.input"]
        assert body.read(3) == b"abc"
        for _ in range(2):
            try:
                read(body)
            except OSError as error:
                errors.append(error)
        start_response("400 Bad Request", [])
        return []

    await Conversation(*body_messages(b"abc", b"de", complete=False)).run(application)
    assert [type(error) for error in errors] == [ClientDisconnected] * 2


async def test_another_thread_may_read():
    """As async views of Flask and Django do."""

    def application(environ, start_response):
        read = []
        thread = threading.Thread(target=lambda: read.append(environ["wsgi.input"].read()))
        thread.start()
        thread.join()
        write = start_response("200 OK", TEXT)
        thread = threading.Thread(target=write, args=(b"read ",))
        thread.start()
        thread.join()
        return read

    assert (await fetch(application, method="POST", body=b"the body")).body == b"read the body"


async def test_one_message_is_received_at_a_time():
    """While one thread waits for the body, another looks whether the client is there: the pieces keep their order."""
    talk = Conversation(*body_messages(b"the ", b"body"))
    may_receive, receives, most = trio.Event(), 0, 0

    async def receive():
        nonlocal receives, most
        receives += 1
        most = max(most, receives)
        try:
            await may_receive.wait()
            return await talk.receive()
        finally:
            receives -= 1

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        read = []
        threads = [
            threading.Thread(target=lambda: read.append(environ["wsgi.input"].read())) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked)
        write(b"")
        trio.from_thread.run_sync(may_receive.set)
        for thread in threads:
            thread.join()
        return read

    await WSGIAdapter(application)(http_scope(), receive, talk.send)
    assert talk.body == b"the body"
    assert most == 1


async def test_many_threads_may_read():
    """None of the body is lost between them, and none comes twice."""

    def application(environ, start_response):
        read = []

        def read_all():
            while piece := environ["wsgi.input"].read(7):
                read.append(piece)

        threads = [threading.Thread(target=read_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        start_response("200 OK", TEXT)
        return [bytes(sorted(b"".join(read)))]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            talk = Conversation(*body_messages(*[b"0123456789"] * 500))
            await talk.run(application)
            assert talk.body == bytes(sorted(b"0123456789" * 500))
    finally:
        sys.setswitchinterval(interval)


async def test_another_thread_that_reads_ends_with_the_request():
    errors = []

    def read(environ):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            errors.append(error)

    def application(environ, start_response):
        thread = threading.Thread(target=read, args=(environ,))
        thread.start()
        thread.join()
        thread = threading.Thread(target=read, args=(environ,))
        thread.start()
        thread.join()
        start_response("204 No Content", [])
        return []

    with trio.CancelScope() as scope:
        talk = Conversation(*body_messages(b"abc"))
        talk.unread.pop()

        async def receive():
            if not talk.unread:
                scope.cancel()
            return await talk.receive()

        await WSGIAdapter(application)(http_scope(), receive, talk.send)
    assert scope.cancelled_caught
    assert [str(error) for error in errors] == ["the request is over"] * 2


async def test_an_input_that_was_kept_gives_nothing_of_another_request():
    """Which may have the same thread."""
    kept, errors = [], []

    def application(environ, start_response):
        kept.append(environ["wsgi.input"])
        try:
            if len(kept) == 2:
                kept[0].read()
        except OSError as error:
            errors.append(error)
        start_response("204 No Content", [])
        return []

    for body in (b"first", b"second"):
        await Conversation(*body_messages(body)).run(application)
    assert [str(error) for error in errors] == ["the request is over"]


def test_an_input_that_was_kept_until_trio_has_ended():
    kept = []

    def application(environ, start_response):
        kept.append(environ["wsgi.input"])
        start_response("204 No Content", [])
        return []

    trio.run(Conversation().run, application)
    with pytest.raises(ClientDisconnected, match="the request is over"):
        kept[0].read()


# The response


async def test_each_block_leaves_before_the_next_is_asked_for():
    seen = threading.Semaphore(0)

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        for number in b"123":
            yield b"%c" % number
            assert seen.acquire(timeout=SECONDS)

    async with served(application) as client:
        await client.request()
        await client.head()
        for number in b"123":
            assert await client.data() == b"%c" % number
            seen.release()
        assert await client.data() == b""


async def test_what_is_written_leaves_before_write_is_called_again():
    seen = threading.Semaphore(0)

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        for number in b"123":
            write(b"%c" % number)
            assert seen.acquire(timeout=SECONDS)
        return [b"4"]

    async with served(application) as client:
        await client.request()
        await client.head()
        for number in b"123":
            assert await client.data() == b"%c" % number
            seen.release()
        assert await client.data() == b"4"
        assert await client.data() == b""


async def test_blocks_that_gather_are_sent_together():
    talk = Conversation()
    talk.may_send = trio.Event()

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield from [b"%03d " % number for number in range(1000)]
        trio.from_thread.run_sync(talk.may_send.set)

    await talk.run(application)
    assert talk.body == b"".join(b"%03d " % number for number in range(1000))
    assert len(talk.sent) < 10


async def test_what_is_not_sent_is_bounded():
    talk = Conversation()
    talk.may_send = trio.Event()
    produced = []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        for _ in range(64):
            produced.append(65536)
            yield b"x" * 65536

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run, application)
        while sum(produced) <= 256 * 1024:  # noqa: ASYNC110 - threads tell nobody
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sum(produced) == 256 * 1024 + 65536
        talk.may_send.set()
    assert len(talk.body) == 64 * 65536


async def test_write_where_python_allows_no_more_calls(monkeypatch):
    """It raises; and what is written later does not wait for what was not sent."""
    soon = _wsgi_crossing.Crossing.soon

    def no_more_calls(self, function):
        monkeypatch.setattr(_wsgi_crossing.Crossing, "soon", soon)
        raise RecursionError

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        write(b"begun")
        assert sent.wait(SECONDS)
        monkeypatch.setattr(_wsgi_crossing.Crossing, "soon", no_more_calls)
        with pytest.raises(RecursionError):
            write(b"not sent")
        for _ in range(16):
            write(b"x" * 65536)
        return []

    sent = threading.Event()
    async with served(application) as client:
        await client.request()
        await client.head()
        body = await client.data()
        await trio.testing.wait_all_tasks_blocked()
        sent.set()
        with trio.fail_after(SECONDS):
            while data := await client.data():
                body += data
    assert body == b"begun" + b"x" * 65536 * 16


async def test_headers_wait_for_the_first_block_that_is_not_empty():
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b""
        try:
            raise LookupError
        except LookupError:
            start_response("404 Not Found", [("X-Other", "1")], sys.exc_info())
        yield b""
        yield b"not there"

    response = await fetch(application)
    assert (response.status, response.body) == (404, b"not there")
    assert response.header(b"x-other") == b"1"
    assert response.header(b"content-type") is None


async def test_exc_info_comes_too_late():
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"begun"
        try:
            raise LookupError("mine")
        except LookupError:
            start_response("500 Oops", [], sys.exc_info())

    failures = Failures()
    async with served(application, observer=failures) as client:
        await client.request()
        with pytest.raises(IncompleteResponse) as caught:
            await client.response()
    assert caught.value.response.body == b"begun"
    assert [str(error) for error in failures.errors] == ["mine"]


async def test_start_response_may_come_with_the_first_step():
    class Late:
        def __init__(self, environ, start_response) -> None:
            self.start_response = start_response

        def __iter__(self):
            self.start_response("299 Whatever", [("X-A", "1"), ("x-b", "\u00e9"), ("X-A", "2")])
            yield b"late"

    response = await fetch(Late)
    assert (response.status, response.body) == (299, b"late")
    assert response.headers[:3] == [(b"x-a", b"1"), (b"x-b", b"\xe9"), (b"x-a", b"2")]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("status", "headers", "result", "length", "body"),
    [
        ("200 OK", [], [], b"0", b""),
        ("200 OK", [], [b"", b""], b"0", b""),
        ("200 OK", [], iter([]), b"0", b""),
        ("200 OK", [], [b"hello"], b"5", b"hello"),
        ("200 OK", [], (b"hel", b"", b"lo"), b"5", b"hello"),
        ("200 OK", [], iter([b"hello"]), None, b"hello"),
        ("200 OK", [("Content-Length", "5")], iter([b"hel", b"lo"]), b"5", b"hello"),
        ("200 OK", [("Content-Length", "5")], iter([b"hello", b" and more"]), b"5", b"hello"),
        ("200 OK", [("Content-Length", "0")], [b"hello"], b"0", b""),
        ("204 No Content", [], [], None, b""),
        ("204 No Content", [], [b"hello"], None, b""),
        ("304 Not Modified", [], [b"hello"], None, b""),
        ("304 Not Modified", [("Content-Length", "5")], [], b"5", b""),
        ("200", [], [b"no phrase"], b"9", b"no phrase"),
    ],
)
async def test_lengths(method, status, headers, result, length, body):  # noqa: PLR0917 - a row of the table
    def application(environ, start_response):
        if environ["PATH_INFO"] == "/next":
            start_response("200 OK", [])
            return [b"next"]
        start_response(status, headers)
        return result

    async with served(application) as client:
        response = await client.fetch("/", method=method)
        if method == "HEAD":
            body = b""
            length = None if length == b"0" and not headers else length
        assert response.status == int(status[:3])
        assert (response.header(b"content-length"), response.body) == (length, body)
        assert (await client.fetch("/next")).body == b"next"  # the connection is in order


async def test_no_step_follows_the_last_byte_of_the_content_length():
    steps = []

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "4")])
        for number in range(10):
            steps.append(number)
            yield b"xx"

    assert (await fetch(application)).body == b"xxxx"
    assert steps == [0, 1]


async def test_write_beyond_the_content_length():
    def application(environ, start_response):
        write = start_response("200 OK", [("Content-Length", "4")])
        write(b"1234")
        with pytest.raises(ApplicationError, match=r"write\(\): 1 bytes more than the Content-Length"):
            write(b"5")
        return [b"6"]

    assert (await fetch(application)).body == b"1234"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_write_after_the_end(method):
    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        return Closing([b"hello"], lambda: write(b"more"))

    failures = Failures()
    response = await fetch(application, method=method, observer=failures)
    assert response.body == (b"hello" if method == "GET" else b"")
    [error] = failures.errors
    assert type(error) is ApplicationError
    assert str(error) == "write() was called after the end of the response"


async def test_nothing_may_be_written_after_the_end():
    """Whoever flushes then has no client that has left, although the connection is closed."""
    closed = threading.Event()

    def application(environ, start_response):
        write = start_response("200 OK", [("Content-Length", "4")])
        write(b"1234")
        assert closed.wait(SECONDS)
        write(b"")
        return [b"", b""]

    async with served(application) as client:
        await client.request(headers=[(b"connection", b"close")])
        assert (await client.response()).body == b"1234"
        await trio.testing.wait_all_tasks_blocked()
        closed.set()


async def test_less_than_the_content_length():
    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return iter([b"1234"])

    failures = Failures()
    async with served(application, observer=failures) as client:
        await client.request()
        with pytest.raises(IncompleteResponse):
            await client.response()
    [error] = failures.errors
    assert str(error) == "http.response.body: 1 bytes less than the content-length said"


def starting(*args):
    def application(environ, start_response):
        start_response(*args)
        return [b"body"]

    return application


def twice(environ, start_response):
    start_response("200 OK", [])
    start_response("200 OK", [])


def nothing(environ, start_response):
    return [b"body"]


def text(environ, start_response):
    start_response("200 OK", [])
    yield "text"


def written_text(environ, start_response):
    start_response("200 OK", [])("text")


@pytest.mark.parametrize(
    ("application", "words"),
    [
        (starting(b"200 OK", []), "status must be str, got bytes"),
        (starting(200, []), "status must be str, got int"),
        (starting("OK", []), "status must be like '200 OK', from 200 to 999, got 'OK'"),
        (starting("100 Continue", []), "status must be like '200 OK', from 200 to 999, got '100 Continue'"),
        (starting("200 OK\r\n", []), "status must be like '200 OK', from 200 to 999, got '200 OK\\r\\n'"),
        (starting("200 OK", ()), "response_headers must be a list, got tuple"),
        (starting("200 OK", [("a", b"b")]), "a header must be a tuple of two str, got ('a', b'b')"),
        (starting("200 OK", [("a", "b", "c")]), "a header must be a tuple of two str, got ('a', 'b', 'c')"),
        (starting("200 OK", [["a", "b"]]), "a header must be a tuple of two str, got ['a', 'b']"),
        (starting("200 OK", [("a b", "c")]), "'a b' is not a valid header name"),
        (
            starting("200 OK", [("a", "b\r\nc: d")]),
            "the value of header a has a control character: 'b\\r\\nc: d'",
        ),
        (
            starting("200 OK", [("a", "\u20ac")]),
            "the value of header a has characters beyond U+00FF: '\u20ac'",
        ),
        (starting("200 OK", [("Connection", "close")]), "header Connection is the server's business"),
        (
            starting("200 OK", [("transfer-encoding", "x")]),
            "header transfer-encoding is the server's business",
        ),
        (twice, "start_response() was called before: a second call needs exc_info"),
        (nothing, "start_response() was not called before the body"),
        (lambda environ, start_response: [], "start_response() was not called before the body"),
        (text, "a WSGI application gives blocks of bytes, got str"),
        (written_text, "write() takes bytes, got str"),
    ],
)
async def test_what_breaks_the_rules(application, words):
    failures = Failures()
    assert (await fetch(application, observer=failures)).status == 500
    [error] = failures.errors
    assert type(error) is ApplicationError
    assert str(error) == words


async def test_what_the_server_refuses_reaches_the_application_and_the_log():
    """What only it checks: here that a content-length is a number."""
    seen = []

    def application(environ, start_response):
        write = start_response("200 OK", [("Content-Length", "many")])
        try:
            for _ in range(10_000_000):
                write(b"x")
        except ApplicationError as error:
            seen.append(error)
        return []

    failures = Failures()
    assert (await fetch(application, observer=failures)).status == 500
    assert failures.errors == seen
    assert "content-length must be one number" in str(seen[0])


async def test_the_error_of_an_application():
    def application(environ, start_response):
        raise LookupError("mine")

    failures = Failures()
    assert (await fetch(application, observer=failures)).status == 500
    [error] = failures.errors
    assert str(error) == "mine"
    assert error.__traceback__.tb_next is not None
    names = []
    frame = error.__traceback__
    while frame is not None:
        names.append(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    assert names[-2:] == ["_run_in_thread", "application"]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
async def test_an_exit_ends_only_the_request(error):
    def application(environ, start_response):
        if environ["PATH_INFO"] == "/exit":
            raise error
        start_response("204 No Content", [])
        return []

    failures = Failures()
    async with served(application, observer=failures) as client:
        assert (await client.fetch("/exit")).status == 500
        assert (await client.fetch("/")).status == 204
    assert failures.errors == [error]


@pytest.mark.parametrize("kind", [ClientDisconnected, ApplicationError])
async def test_no_call_waits_for_the_collector(kind):
    """Although it has kept what the server said."""
    kept = []

    def application(environ, start_response):
        kept.append(weakref.ref(environ["wsgi.input"]))
        start_response("200 OK", TEXT)
        return [b"hello"]

    async def run():
        talk = Conversation()

        async def send(message):
            raise kind

        with suppress(ApplicationError):
            await WSGIAdapter(application)(http_scope(), talk.receive, send)

    gc.disable()
    try:
        await run()
        await trio.testing.wait_all_tasks_blocked()
        assert kept[0]() is None
    finally:
        gc.enable()


# The end: `close`


class Closing:
    """An iterable that wants to be closed."""

    def __init__(self, blocks, close) -> None:
        self.blocks = iter(blocks)
        self.close = close

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.blocks)


async def test_everything_is_in_one_thread():
    threads = []

    def note():
        threads.append(threading.get_ident())

    def blocks():
        note()
        yield b"1"
        note()
        yield b"2"

    def application(environ, start_response):
        note()
        start_response("200 OK", TEXT)
        return Closing(blocks(), note)

    await fetch(application)
    assert len(threads) == 4
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


@pytest.mark.parametrize("blocks", [[], [b"x"], [b"x", b"y"]])
async def test_close_comes_after_the_response(blocks):
    """Which does not wait for it."""
    answered = threading.Event()

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        return Closing(blocks, lambda: calls.append(answered.wait(SECONDS)))

    calls = []
    async with served(application) as client:
        assert (await client.fetch()).body == b"".join(blocks)
        answered.set()
    assert calls == [True]


async def test_close_comes_when_the_iteration_fails():
    def blocks():
        yield b"begun"
        raise LookupError("mine")

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        return Closing(blocks(), lambda: calls.append("close"))

    calls = []
    failures = Failures()
    async with served(application, observer=failures) as client:
        await client.request()
        with pytest.raises(IncompleteResponse) as caught:
            await client.response()
    assert caught.value.response.body == b"begun"
    assert [str(error) for error in failures.errors] == ["mine"]
    assert calls == ["close"]


async def test_what_close_raises_is_an_error_of_the_application():
    def application(environ, start_response):
        def close():
            raise LookupError("mine")

        start_response("200 OK", TEXT)
        return Closing([b"hello"], close)

    failures = Failures()
    assert (await fetch(application, observer=failures)).body == b"hello"
    assert [str(error) for error in failures.errors] == ["mine"]


# The client leaves, the request is cancelled


@pytest.fixture
def slow(monkeypatch):
    """Applications are taken for slow, however fast they are."""
    monkeypatch.setattr(_wsgi_crossing, "SLOW_SECONDS", 0)


async def test_when_the_client_has_left_the_next_step_raises_and_close_is_called(slow):
    left, steps = threading.Event(), []

    def blocks():
        yield b"begun"
        assert left.wait(SECONDS)
        try:
            for number in range(1000):
                steps.append(number)
                yield b"x" * 65536
        finally:
            steps.append("finally")

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        return blocks()

    async with served(application) as client:
        await client.request()
        await client.head()
        assert await client.data() == b"begun"
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
    assert steps == [0, "finally"]


async def test_on_a_server_whose_send_does_not_raise():
    """As it need not before HTTP 2.4: there `receive()` alone tells."""
    talk = Conversation()
    steps = []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"begun"
        talk.unread.append(DISCONNECT)
        for number in range(1000):
            steps.append(number)
            yield b"x"

    async def receive():
        if not talk.unread:
            await trio.sleep_forever()
        return talk.unread.pop(0)

    scope = http_scope(asgi={"version": "3.0", "spec_version": "2.3"})
    with pytest.raises(ClientDisconnected):
        await WSGIAdapter(application)(scope, receive, talk.send)
    assert steps == [0]


@pytest.mark.parametrize("step", [b"", b"x"])
async def test_one_that_has_nothing_to_send_learns_of_it_too(slow, step):
    left, steps = threading.Event(), []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        if step:
            yield b"begun"
        else:
            trio.from_thread.run_sync(begun.set)
        assert left.wait(SECONDS)
        steps.append(1)
        yield step
        steps.append(2)

    begun = trio.Event()
    async with served(application) as client:
        await client.request()
        if step:
            await client.head()
        else:
            await begun.wait()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
    assert steps == [1]


async def test_a_fast_application_learns_of_it_before_the_window_is_full():
    left, steps = threading.Event(), []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"begun"
        assert left.wait(SECONDS)
        for number in range(1000):
            steps.append(number)
            yield b"x" * 65536

    async with served(application) as client:
        await client.request()
        await client.head()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
    assert len(steps) <= 6


async def test_when_the_client_has_left_write_raises(slow):
    left, raised = threading.Event(), []

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        write(b"begun")
        assert left.wait(SECONDS)
        try:
            write(b"x")
        except OSError as error:
            raised.append(type(error))
            raise
        return []

    async with served(application) as client:
        await client.request()
        await client.head()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
    assert raised == [ClientDisconnected]


async def test_when_the_client_has_left_write_raises_where_no_body_is_sent():
    """Else a client could have a thread for ever, by HEAD."""
    raised = []

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        try:
            while True:
                write(b"x")
        except OSError as error:
            raised.append(type(error))
            raise

    async with served(application) as client:
        await client.request("HEAD")
        await client.head()
        await client.aclose()
    assert raised == [ClientDisconnected]


async def test_a_client_that_leaves_before_the_answer_is_no_error():
    left = threading.Event()

    def application(environ, start_response):
        trio.from_thread.run_sync(begun.set)
        assert left.wait(SECONDS)
        start_response("200 OK", TEXT)
        return Closing([b"hello"], lambda: calls.append("close"))

    begun, calls = trio.Event(), []
    async with served(application) as client:
        await client.request()
        await begun.wait()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
    assert calls == ["close"]


@pytest.mark.parametrize(
    "cross",
    [
        lambda environ, write: environ["wsgi.input"].read(),
        lambda environ, write: write(b"x"),
        lambda environ, write: write(b""),
        lambda environ, write: trio.from_thread.check_cancelled(),
    ],
    ids=["read", "write", "empty", "check"],
)
async def test_a_cancelled_request_raises_at_the_next_crossing(cross):
    cancelled, raised = threading.Event(), []

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        trio.from_thread.run_sync(begun.set)
        assert cancelled.wait(SECONDS)
        try:
            cross(environ, write)
        except BaseException as error:
            raised.append(type(error))
            raise
        return []

    begun = trio.Event()
    talk = Conversation()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run, application)
        await begun.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        cancelled.set()
    assert raised == [trio.Cancelled]
    assert talk.sent == []


async def test_what_fails_while_a_request_is_cancelled_is_an_error_of_the_application():
    def application(environ, start_response):
        try:
            while True:
                trio.from_thread.run(trio.sleep, 0)
        finally:
            raise LookupError("mine")

    failures = Failures()
    config = {"request_timeout": 0.5}
    assert (await fetch(application, observer=failures, config=config)).status == 504
    [error] = failures.errors
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert str(error) == "mine"


async def test_what_fails_while_it_is_cancelled_comes_in_a_group_of_which_the_cancellation_is_taken():
    def application(environ, start_response):
        try:
            trio.from_thread.run(trio.sleep_forever)
        finally:
            raise LookupError("mine")

    async def receive():
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        with trio.move_on_after(0.05):
            await WSGIAdapter(application)(http_scope(), receive, Conversation().send)
    [error] = caught.value.exceptions
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert str(error) == "mine"


async def test_what_failed_before_close_was_cancelled_is_not_lost():
    def application(environ, start_response):
        def blocks():
            try:
                yield environ["wsgi.input"].read()
            finally:
                raise LookupError("mine")

        start_response("200 OK", TEXT)
        return Closing(blocks(), lambda: trio.from_thread.run(trio.sleep_forever))

    async def receive():
        scope.cancel()
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught, trio.CancelScope() as scope:
        await WSGIAdapter(application)(http_scope(), receive, Conversation().send)
    [error] = caught.value.exceptions
    assert str(error) == "mine"


async def test_what_failed_before_the_rest_was_sent_is_not_lost():
    """The thread has ended; what it has produced is on its way when the request is cancelled."""

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"begun"
        raise LookupError("mine")

    talk = Conversation()
    talk.may_send = trio.Event()
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.run, application)
            while not talk.sent or trio.testing.active_thread_count():  # noqa: ASYNC110 - threads tell nobody
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    [error] = caught.value.exceptions
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert str(error) == "mine"


@pytest.mark.parametrize("waits_for", ["body", "room"])
async def test_a_thread_that_waits_is_cancelled(waits_for):
    raised = []
    talk = Conversation(*body_messages(b"a"))
    talk.unread.pop()
    talk.may_send = trio.Event()

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        try:
            if waits_for == "body":
                environ["wsgi.input"].read()
            else:
                while True:
                    write(b"x" * 65536)
        except BaseException as error:
            raised.append(type(error))
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run, application)
        await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.cancel_scope.cancel()
    assert raised == [trio.Cancelled]


async def test_past_the_request_timeout_it_is_504():
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        while True:
            yield b""

    response = await fetch(application, config={"request_timeout": 0.05})
    assert response.status == 504


async def test_a_thread_that_does_not_end_is_named_with_its_stack(caplog):
    released = threading.Event()

    def endless_work():
        assert released.wait(SECONDS)

    def application(environ, start_response):
        endless_work()
        start_response("204 No Content", [])
        return []

    async with served(application, request_timeout=0.05, cleanup_timeout=0.05) as client:
        await client.request("GET", "/path?query")
        while "still running" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody
            await trio.sleep(0.001)
        released.set()
        assert (await client.response()).status == 504
    [record] = [record for record in caplog.records if "still running" in record.getMessage()]
    assert (record.name, record.levelname) == ("trigi.error", "WARNING")
    assert "was cancelled, on GET /path?query, in thread" in record.getMessage()
    assert "in endless_work\n" in record.getMessage()


# Threads


async def test_calls_beyond_the_threads_wait_and_beyond_the_queue_are_refused():
    release = threading.Event()
    running = []

    def application(environ, start_response):
        running.append(environ["PATH_INFO"])
        assert release.wait(SECONDS)
        start_response("200 OK", TEXT)
        return [environ["PATH_INFO"].encode()]

    adapter = WSGIAdapter(application, threads=2, queue=2)
    talks = [Conversation() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for number, talk in enumerate(talks):
            scope = {"path": f"/{number}", "raw_path": b"/%d" % number}
            nursery.start_soon(lambda talk=talk, scope=scope: talk.run(adapter, **scope))
            await trio.testing.wait_all_tasks_blocked()
        refused = Conversation()
        [start, body] = await refused.run(adapter)
        assert start["status"] == 503
        assert (b"retry-after", b"1") in start["headers"]
        assert body["body"] == b"503 Service Unavailable\n"
        while len(running) < 2:  # noqa: ASYNC110 - threads tell nobody
            await trio.sleep(0.001)
        assert sorted(running) == ["/0", "/1"]
        release.set()
    assert [talk.body for talk in talks] == [b"/0", b"/1", b"/2", b"/3"]
    assert (await Conversation().run(adapter))[0]["status"] == 200


async def test_one_that_waits_for_a_thread_can_be_cancelled():
    release = threading.Event()
    calls = []

    def application(environ, start_response):
        calls.append(1)
        assert release.wait(SECONDS)
        start_response("204 No Content", [])
        return []

    adapter = WSGIAdapter(application, threads=1, queue=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Conversation().run, adapter)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01) as scope:
            await Conversation().run(adapter)
        assert scope.cancelled_caught
        release.set()
    assert calls == [1]
    assert (await Conversation().run(adapter))[0]["status"] == 204


async def test_one_thread_is_not_multithreaded():
    seen = []

    def application(environ, start_response):
        seen.append(environ["wsgi.multithread"])
        start_response("204 No Content", [])
        return []

    await Conversation().run(WSGIAdapter(application, threads=1))
    assert seen == [False]


# Files


def sending(file, headers=(), block_size=3):
    def application(environ, start_response):
        start_response("200 OK", list(headers))
        return environ["wsgi.file_wrapper"](file, block_size)

    return application


ZERO_COPY = {"http.response.zerocopysend": {}, "http.response.pathsend": {}}
PATH = {"http.response.pathsend": {}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def start(length):
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % length)]}


@pytest.mark.parametrize("buffering", [-1, 0])
async def test_a_file_is_given_to_the_server_open(path, buffering):
    file = path.open("rb", buffering)
    sent = await Conversation().run(sending(file), extensions=ZERO_COPY)
    message = {"type": "http.response.zerocopysend", "file": file, "offset": 0, "count": 10}
    assert sent == [start(10), message]
    assert file.closed


async def test_from_where_it_is_for_as_long_as_was_said(path):
    file = path.open("rb")
    assert file.read(2) == b"01"
    headers = [("Content-Length", "5")]
    sent = await Conversation().run(sending(file, headers), extensions=ZERO_COPY)
    assert sent == [
        start(5),
        {"type": "http.response.zerocopysend", "file": file, "offset": 2, "count": 5},
    ]


async def test_a_file_is_given_to_the_server_by_its_path(path):
    sent = await Conversation().run(sending(path.open("rb")), extensions=PATH)
    assert sent == [start(10), {"type": "http.response.pathsend", "path": str(path)}]


@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("extensions", [{}, PATH, ZERO_COPY])
@pytest.mark.parametrize("kind", ["file", "unlinked", "gzip", "memory", "empty"])
async def test_what_can_not_be_given_away_is_read(path, kind, extensions, offset):
    if kind == "gzip":
        path.write_bytes(gzip.compress(b"0123456789"))
        file = gzip.open(path)  # noqa: SIM115 - the application closes it
    elif kind == "memory":
        file = io.BytesIO(b"0123456789")
    else:
        if kind == "empty":
            path.write_bytes(b"")
        file = path.open("rb")
        if kind == "unlinked":
            path.unlink()
    file.seek(offset)
    talk = Conversation()
    await talk.run(sending(file), extensions=extensions)
    content = b"" if kind == "empty" else b"0123456789"[offset:]
    if kind not in ("gzip", "memory") and talk.sent[-1]["type"] != "http.response.body":
        assert extensions
        assert kind != "empty"
    else:
        assert talk.body == content
    assert file.closed


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_server_sends_it(path, method):
    response = await fetch(sending(path.open("rb")), method=method)
    assert (response.status, response.body) == (200, b"0123456789" if method == "GET" else b"")


async def test_the_file_is_open_until_it_is_sent(path):
    talk = Conversation()
    talk.may_send = trio.Event()
    file = path.open("rb")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: talk.run(sending(file), extensions=ZERO_COPY))
        while not talk.sent:  # noqa: ASYNC110 - see above
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not file.closed
        talk.may_send.set()
    assert file.closed


# Other scopes


async def test_lifespan_is_answered():
    talk = Conversation({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await WSGIAdapter(nothing)({"type": "lifespan"}, talk.receive, talk.send)
    assert talk.sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def test_a_websocket_is_refused():
    failures = Failures()
    async with open_connection(nothing, Config(interface="wsgi"), observer=failures) as stream:
        with pytest.raises(WebSocketRejected) as caught:
            await WebSocketClient(stream).connect()
    assert caught.value.status == 403
    assert failures.errors == []


async def test_other_scopes_are_not_known():
    with pytest.raises(NotImplementedError, match="'telnet'"):
        await WSGIAdapter(nothing)({"type": "telnet"}, None, None)


def test_it_is_seen_as_asgi_3():
    adapted = WSGIAdapter(nothing)
    assert adapted._asgi_single_callable
    assert inspect.iscoroutinefunction(adapted.__call__)
    inspect.signature(adapted).bind("scope", "receive", "send")


async def test_what_it_says_to_its_server_is_right():
    @validator
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        return iter([environ["wsgi.input"].read(-1), b"."])

    response = await fetch(application, method="POST", body=b"linted", config={"lint": True})
    assert response.body == b"linted."
