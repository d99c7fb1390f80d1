"""`serve` inside a trio program: what it listens on, what it says, what it raises, and what it leaves alone.

Where a socket is the point, it is a real one on this machine; the rest is in memory and virtual time.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import ssl
import stat
import sys
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from tests.server.conftest import App, MemoryListener, hello, respond
from trigi import Config, serve
from trigi.exceptions import ApplicationLoadError, BindError, ConfigError, LifespanFailed
from trigi.testing import HTTPClient
from trigi.testing.websocket import WebSocketClient

REAL_SECONDS = 20
"""What a test on real sockets may take; none takes as much as one."""


@asynccontextmanager
async def running(app, config, **options):
    """A server in a task; gives its URLs, and shuts it down at the end."""
    stop = trio.Event()
    with trio.fail_after(REAL_SECONDS):
        async with trio.open_nursery() as nursery:
            options = {"shutdown_trigger": stop.wait} | options
            yield await nursery.start(partial(serve, app, config, **options))
            stop.set()


@asynccontextmanager
async def connected(url: str):
    """A client of a server at `http://HOST:PORT`, or at the path of a unix socket."""
    if url.startswith("http"):
        host, port = url.rsplit("/", 1)[1].rsplit(":", 1)
        stream = await trio.open_tcp_stream(host, int(port))
    else:
        stream = await trio.open_unix_socket(url)
    async with stream:
        yield HTTPClient(stream)


async def fetch(url: str) -> bytes:
    async with connected(url) as client:
        return (await client.fetch()).body


def bound_to(*binds: str, **settings) -> Config:
    return Config(bind=binds or ["127.0.0.1:0"], **settings)


# Where it listens


async def test_start_gives_the_real_addresses(log):
    async with running(hello, bound_to("127.0.0.1:0", "127.0.0.1:0")) as urls:
        assert len(set(urls)) == 2
        for url in urls:
            assert url.startswith("http://127.0.0.1:")
            assert not url.endswith(":0")
            assert await fetch(url) == b"hello"
        assert log.lines[-2:] == [f"INFO listening on {url}" for url in urls]


async def test_the_addresses_are_given_when_the_startup_is_complete(autojump_clock):
    async def application(scope, receive, send):
        await receive()
        await trio.sleep(5)
        await send({"type": "lifespan.startup.complete"})
        await receive()

    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, application, listeners=[MemoryListener()]))
        assert trio.current_time() == 5
        assert urls == ["MemoryListener"]
        nursery.cancel_scope.cancel()


async def test_an_address_answers_no_longer_when_it_has_ended():
    async with running(hello, bound_to()) as urls:
        (url,) = urls
    with pytest.raises(OSError, match="failed"):
        await fetch(url)
    async with running(hello, bound_to(url.removeprefix("http://"))) as urls:  # and is free again, at once
        assert urls == [url]
        assert await fetch(url) == b"hello"


async def test_twice_in_one_program():
    async def other(scope, receive, send):
        await (respond(send, b"other") if scope["type"] == "http" else hello(scope, receive, send))

    async with running(hello, bound_to()) as (one,):
        async with running(other, bound_to()) as (two,):
            assert await fetch(one) == b"hello"
            assert await fetch(two) == b"other"
        assert await fetch(one) == b"hello"


async def test_listeners_of_ones_own():
    """They are served as they are, and closed at the end."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with running(hello, bound_to("nonsense"), listeners=iter(listeners)) as (url,):
        assert await fetch(url) == b"hello"
    with pytest.raises(trio.ClosedResourceError):
        await listeners[0].accept()


@pytest.mark.parametrize("target", ["http", "websocket"])
async def test_scopes_know_the_sockets_addresses(target):
    scopes = []

    async def application(scope, receive, send):
        scopes.append(scope)
        await (hello(scope, receive, send) if scope["type"] != "websocket" else receive())

    async with running(application, bound_to(lifespan="off")) as (url,), connected(url) as client:
        if target == "http":
            await client.fetch()
        else:
            await WebSocketClient(client.stream).send_request()
            assert (await client.head()).status == 500  # it was not accepted
        (scope,) = scopes
        assert scope["server"] == client.stream.socket.getpeername()
        assert scope["client"] == client.stream.socket.getsockname()


class Passing(trio.abc.Listener[trio.SocketStream]):
    """A listener of somebody's own, whose streams are trio's."""

    def __init__(self, listener):
        self._listener = listener

    async def accept(self):
        return await self._listener.accept()

    async def aclose(self):
        await self._listener.aclose()


async def test_sockets_of_a_listener_of_ones_own_are_sockets(log):
    """Files can be copied to them, and a response that only the end of the connection ends is cut by a reset."""
    scopes = []

    async def application(scope, receive, send):
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("in the middle")

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with (
        running(application, Config(lifespan="off"), listeners=[Passing(listener)]),
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    assert "http.response.zerocopysend" in scopes[0]["extensions"]
    assert len(log.troubles) == 1


# TLS


@asynccontextmanager
async def https(tls, stream):
    client = trio.SSLStream(stream, tls.client, server_hostname=tls.host, https_compatible=True)
    yield HTTPClient(client)
    await trio.aclose_forcefully(client)


async def scheme(scope, receive, send):
    await respond(send, f"{scope['scheme']} {'tls' in scope['extensions']}".encode())


async def test_ssl_context(tls):
    async with running(scheme, bound_to(lifespan="off"), ssl_context=tls.server) as (url,):
        assert url.startswith("https://127.0.0.1:")
        async with connected(url) as plain, https(tls, plain.stream) as client:
            assert (await client.fetch()).body == b"https True"


async def test_ssl_context_that_is_also_a_clients(tls):
    """Only a client can check the name of whom it talks to."""
    authority = trustme.CA()
    authority.configure_trust(tls.server)
    tls.server.verify_mode = ssl.CERT_REQUIRED
    tls.server.check_hostname = True
    authority.issue_cert("client.example").configure_cert(tls.client)
    async with (
        running(scheme, bound_to(lifespan="off"), ssl_context=tls.server) as (url,),
        connected(url) as plain,
        https(tls, plain.stream) as client,
    ):
        assert (await client.fetch()).body == b"https True"


async def test_certfile(tmp_path):
    authority = trustme.CA()
    path = tmp_path / "server.pem"
    authority.issue_cert("server.example").private_key_and_cert_chain_pem.write_to_path(path)
    async with running(scheme, bound_to(lifespan="off", certfile=str(path))) as (url,):
        assert url.startswith("https://")


async def test_an_ssl_listener_of_ones_own(serving, tls):
    async with serving(scheme, lifespan="off", ssl_context=tls.server) as served:
        assert served.urls == ["MemoryListener"]
        async with https(tls, served.listener.connect()) as client:
            assert (await client.fetch()).body == b"https True"


async def test_a_client_without_tls_disturbs_nobody(serving, tls, log):
    async with serving(scheme, lifespan="off", ssl_context=tls.server) as served:
        plain = served.connect()
        await plain.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await plain.rest()
        async with https(tls, served.listener.connect()) as client:
            assert (await client.fetch()).status == 200
    assert log.troubles == []


# Unix sockets


async def test_unix_socket(tmp_path, monkeypatch):
    """Requests and WebSockets are served; the scope has the path, and no client; the file goes with the server."""
    monkeypatch.chdir(tmp_path)
    scopes, came, left = [], trio.Event(), trio.Event()

    async def application(scope, receive, send):
        scopes.append(scope)
        await receive()
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": (await receive())["text"]})
        elif scope["path"] == "/wait":
            came.set()
            assert (await receive())["type"] == "http.disconnect"
            left.set()
        else:
            await respond(send, b"hello")

    async with running(application, bound_to("unix:app.sock", lifespan="off", uds_mode=0o600)) as urls:
        assert urls == ["unix:app.sock"]
        assert stat.S_IMODE((tmp_path / "app.sock").stat().st_mode) == 0o600
        async with connected("app.sock") as client:
            assert (await client.fetch()).body == b"hello"
        async with connected("app.sock") as client:
            websocket = WebSocketClient(client.stream)
            await websocket.connect()
            await websocket.send("echo")
            assert await websocket.receive() == "echo"
            await websocket.close()
        async with connected("app.sock") as client:
            await client.request(target="/wait")
            await came.wait()
        with trio.fail_after(1):
            await left.wait()
    assert [scope["server"] for scope in scopes] == [("app.sock", None)] * 3
    assert [scope["client"] for scope in scopes] == [None] * 3
    assert list(tmp_path.iterdir()) == []


async def test_a_stale_unix_socket_is_replaced(tmp_path):
    path = tmp_path / "app.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as dead:
        await dead.bind(str(path))
    assert path.is_socket()
    async with running(hello, bound_to(f"unix:{path}")):
        assert await fetch(str(path)) == b"hello"
        with pytest.raises(BindError, match="in use"):
            await serve(hello, bound_to(f"unix:{path}"))
        assert await fetch(str(path)) == b"hello"
    assert not path.exists()


# What is raised


async def raised_by(*args, **options) -> BaseException:
    """What comes out of `serve`, which is the same whether it is awaited or started."""
    with pytest.raises(BaseException) as awaited:
        await serve(*args, **options)
    async with trio.open_nursery() as nursery:
        with pytest.raises(BaseException) as started:
            await nursery.start(partial(serve, *args, **options))
    assert type(awaited.value) is type(started.value)
    assert str(awaited.value) == str(started.value)
    return awaited.value


async def test_a_port_in_use(tmp_path):
    """What was opened before it is closed again, and the application is not asked."""
    app = App()
    (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = taken.socket.getsockname()
    error = await raised_by(app, bound_to(f"unix:{tmp_path}/app.sock", f"{host}:{port}"))
    await taken.aclose()
    assert type(error) is BindError
    assert error.errno == errno.EADDRINUSE
    assert str(error).startswith(f"cannot listen on {host}:{port}: address already in use")
    assert app.events == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("app", "config", "kind", "text"),
    [
        (hello, bound_to("nonsense"), ConfigError, "bind: 'nonsense' has no port"),
        (hello, Config(access_log_format="%Z"), ConfigError, "access_log_format"),
        (hello, bound_to(certfile="/no/such/file.pem"), ConfigError, "certfile"),
        (hello, bound_to("unix:/no/such/folder/app.sock"), BindError, "there is no folder /no/such/folder"),
        (hello, bound_to("fd://999"), BindError, "fd://999"),
        ("module:app", bound_to(), ApplicationLoadError, "str"),
        (lambda: None, bound_to(), ApplicationLoadError, "is it a factory?"),
    ],
)
async def test_errors_come_bare(app, config, kind, text):
    error = await raised_by(app, config)
    assert type(error) is kind
    assert text in str(error)
    assert "\n" not in str(error)


async def test_a_failed_startup_comes_bare():
    async def application(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    error = await raised_by(application, bound_to())
    assert type(error) is LifespanFailed
    assert str(error) == "lifespan startup failed: no database"


async def test_options_that_contradict_each_other(tls):
    one = MemoryListener()
    for options in (
        {"listeners": [one], "ssl_context": tls.server},
        {"listeners": [one], "config": bound_to(certfile="server.pem")},
    ):
        error = await raised_by(hello, **options)
        assert type(error) is ConfigError
        assert "trio.SSLListener" in str(error)


async def test_no_listeners_are_not_the_default_ones():
    error = await raised_by(hello, bound_to("127.0.0.1:0"), listeners=[])
    assert type(error) is ConfigError


# What it leaves alone


async def test_no_signals_and_no_logging():
    def surroundings():
        loggers = [None, "trigi", "trigi.access", "trigi.error"]
        return (
            {number: signal.getsignal(number) for number in signal.valid_signals()},
            [
                (logger.handlers[:], logger.level, logger.propagate, logger.filters[:])
                for logger in map(logging.getLogger, loggers)
            ],
            trio.to_thread.current_default_thread_limiter().total_tokens,
            sys.path[:],
            sys.excepthook,
            Path.cwd(),
            os.environ.copy(),
        )

    before = surroundings()
    async with running(hello, bound_to(thread_limit=7, log_level="debug", log_json=True)) as (url,):
        assert surroundings() == before
        assert await fetch(url) == b"hello"
        assert surroundings() == before
    assert surroundings() == before


async def test_nothing_is_printed(capfd):
    async with running(hello, bound_to()) as (url,):
        assert await fetch(url) == b"hello"
    assert capfd.readouterr() == ("", "")


# Which applications


class ASGI2:
    def __init__(self, scope):
        if scope["type"] != "http":
            raise NotImplementedError
        self.scope = scope

    async def __call__(self, receive, send):
        await respond(send, b"asgi2")


async def test_asgi_2(serving):
    async with serving(ASGI2) as served:
        assert (await served.connect().fetch()).body == b"asgi2"


async def test_lint(serving):
    """What a server forgives, `lint` does not."""

    async def application(scope, receive, send):
        await respond(send, b"hello")
        try:
            await send({"type": "http.response.body"})
        except Exception as error:
            seen.append(type(error).__name__)

    for lint, expected in (False, []), (True, ["UnexpectedMessage"]):
        seen = []
        async with serving(application, lint=lint, lifespan="off") as served:
            assert (await served.connect().fetch()).body == b"hello"
        assert seen == expected


# How many at once


async def test_connection_limit(serving):
    """The third connection waits until one has ended, and is served then."""
    async with serving(hello, connection_limit=2, keep_alive_timeout=inf, header_timeout=inf) as served:
        first, second, third = (served.connect() for _ in range(3))
        await third.request()
        assert (await first.fetch()).status == 200
        await trio.testing.wait_all_tasks_blocked()
        # One has been taken out of the backlog, to have it at hand; it has no task and is not read.
        with trio.move_on_after(100) as timeout:
            await third.response()
        assert timeout.cancelled_caught
        assert (await second.fetch()).status == 200
        await second.aclose()
        assert (await third.response()).body == b"hello"


async def test_connection_limit_holds_for_all_listeners_together(autojump_clock):
    listeners = [MemoryListener(), MemoryListener()]
    clients = [HTTPClient(listener.connect()) for listener in listeners for _ in range(2)]
    most, now = 0, 0

    async def application(scope, receive, send):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await trio.sleep(1)
        now -= 1
        await respond(send)

    async def fetch_once(client):
        assert (await client.fetch(headers=[(b"connection", b"close")])).status == 200

    async with trio.open_nursery() as serving:
        config = Config(connection_limit=2, lifespan="off")
        await serving.start(partial(serve, application, config, listeners=listeners))
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(fetch_once, client)
        serving.cancel_scope.cancel()
    assert most == 2


async def test_a_connection_that_waits_for_its_turn_does_not_hold_the_shutdown(serving):
    async with serving(App(), connection_limit=1, keep_alive_timeout=inf) as served:
        first, second = served.connect(), served.connect()
        await second.request()
        assert (await first.fetch()).status == 200
        served.stop.set()
        await first.aclose()
        assert await served.wait_ended() == 0
        assert await second.rest() == b""


async def test_concurrency_limit(serving, log):
    """Past it: 503 with Retry-After, without asking the application. Background work counts too."""
    ends = trio.Event()
    began = []

    async def http(scope, receive, send):
        began.append(scope["path"])
        if scope["path"] == "/background":
            await respond(send)
            await ends.wait()
        else:
            await ends.wait()
            await respond(send)

    async with serving(App(http), concurrency_limit=2) as served:
        background, waiting, refused = (served.connect() for _ in range(3))
        assert (await background.fetch("/background")).status == 200
        await waiting.request(target="/waiting")
        await trio.testing.wait_all_tasks_blocked()
        response = await refused.fetch("/refused")
        assert response.status == 503
        assert response.header(b"retry-after") is not None
        ends.set()
        assert (await waiting.response()).status == 200
        assert (await refused.fetch("/again")).status == 200
    assert began == ["/background", "/waiting", "/again"]
    assert log.troubles == []


async def test_concurrency_limit_for_requests_that_come_at_once(serving):
    async def http(scope, receive, send):
        await trio.sleep(1)
        await respond(send)

    async with serving(App(http), concurrency_limit=1) as served:
        clients = [served.connect() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.request)
        assert sorted([(await client.response()).status for client in clients]) == [200, 503, 503]


# What goes wrong in one place and stays there


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
@pytest.mark.parametrize("limit", [inf, 5])
async def test_a_listener_that_is_out_of_resources_goes_on(serving, log, code, limit):
    """And says so, but not for every attempt."""
    async with serving(hello, connection_limit=limit) as served:
        for _ in range(3):
            served.listener.fail(OSError(code, os.strerror(code)))
        client = served.connect()
        assert (await client.fetch()).body == b"hello"
        assert 0 < trio.current_time() < 5
    error = f"[Errno {code}] {os.strerror(code)}"
    assert log.troubles == [f"ERROR no connection can be accepted for now: {error}"]


@pytest.mark.parametrize("error", [ValueError("broken"), OSError(errno.ENETDOWN, "down")])
@pytest.mark.parametrize("limit", [inf, 5])
async def test_a_listener_that_breaks_ends_the_server(serving, error, limit, log):
    """Bare, after the application's calls and its lifespan have ended in order."""
    app = App()

    async def http(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            app.note("cancelled")

    app._http = http
    async with serving(app, connection_limit=limit) as served:
        await served.connect().request()
        await trio.testing.wait_all_tasks_blocked()
        served.listener.fail(error)
        await served.wait_ended()
        assert served.raised() is error
    assert app.events == ["startup", "cancelled", "shutdown"]
    assert log.troubles == []


async def test_one_of_several_listeners_that_breaks_closes_the_others(autojump_clock):
    error, cause = ValueError("broken"), KeyError("why")
    error.__cause__ = cause
    broken, whole = MemoryListener(), MemoryListener()
    broken.fail(error)
    with pytest.raises(ValueError) as caught:
        await serve(hello, listeners=[whole, broken])
    assert caught.value is error
    assert error.__context__ is None  # nor are groups seen in its traceback
    assert error.__cause__ is cause
    assert whole.closed
    assert broken.closed


class Odd(BaseException):
    """None of Python's."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        Odd("x"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        BaseExceptionGroup("x", [KeyboardInterrupt(), ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_no_failure_of_a_request_ends_the_server(serving, log, error):
    async def http(scope, receive, send):
        if scope["path"] == "/fails":
            raise error
        await respond(send, b"fine")

    app = App(http)
    async with serving(app) as served:
        kept = served.connect()
        assert (await served.connect().fetch("/fails")).status == 500
        assert (await kept.fetch()).body == b"fine"
        assert (await served.connect().fetch()).body == b"fine"
    assert app.events == ["startup", "shutdown"]
    assert log.troubles == ['ERROR application failed on "GET /fails HTTP/1.1" from -']


async def raise_again(error):
    raise error


async def raise_in_a_group(error):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_again, error)


async def raise_as_a_framework_does(error):
    raise RuntimeError("the client has gone") from error


@pytest.mark.parametrize("raise_it", [raise_again, raise_in_a_group, raise_as_a_framework_does])
async def test_that_a_client_has_left_is_no_error(serving, log, raise_it):
    seen = []

    async def http(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        try:
            await respond(send)
        except OSError as error:
            seen.append(error)
            await raise_it(error)

    async with serving(App(http)) as served:
        client = served.connect()
        await client.request()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert len(seen) == 1
    assert log.troubles == []


async def test_no_bug_of_one_connection_ends_the_server(serving, log, monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    async with serving(hello) as served:
        with monkeypatch.context() as patched:
            patched.setattr("trigi._connection.serve.HTTP1Connection", broken)
            assert await served.connect().rest() == b""
        assert (await served.connect().fetch()).body == b"hello"
    assert log.troubles == ["ERROR connection from - ended by a bug in trigi: please report it"]
