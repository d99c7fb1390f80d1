"""What the tests of a whole server share: one without a network, in virtual time, and one on real sockets.

`serving` runs `serve` on a listener in memory. What holds for every test is checked when it ends: `serve` returned,
raised nothing that the test has not looked at, or one `Cancelled` if it was cancelled, closed the listener, and closed
every stream it had accepted.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
import trustme

from trigi import Config
from trigi._server.serve import Server
from trigi.testing import HTTPClient
from trigi.testing.websocket import WebSocketClient

LONG = 100_000.0
"""Virtual seconds after which whatever still runs hangs: more than all timeouts of a test together."""

REAL_SECONDS = 20.0
"""What a test on real sockets may take; none takes as much as one."""


def pytest_runtest_setup(item):
    """Let `autojump_clock` work for a test that has it through another fixture; pytest-trio wants it named."""
    if item.get_closest_marker("trio") and "autojump_clock" in item.fixturenames:

        def run(test, *, clock, instruments):
            return trio.run(test, clock=clock or item.funcargs["autojump_clock"], instruments=instruments)

        item.add_marker(pytest.mark.trio(run=run), append=False)


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener without a network.

    Attributes:
        pair: makes the two ends of a connection.
        accepted: the server's ends, as they were accepted.
        closed: `aclose()` was called.
    """

    def __init__(self, pair: Callable[[], tuple[Any, Any]] = trio.testing.memory_stream_pair) -> None:
        self.pair = pair
        self.accepted: list[trio.abc.Stream] = []
        self.closed = False
        self._backlog_in, self._backlog = trio.open_memory_channel[trio.abc.Stream | BaseException](inf)

    def connect(self) -> Any:
        """The client's end of a new connection, which waits to be accepted."""
        client, server = self.pair()
        self._backlog_in.send_nowait(server)
        return client

    def fail(self, error: BaseException) -> None:
        """Have `accept()` raise this, when it comes to it."""
        self._backlog_in.send_nowait(error)

    async def accept(self) -> trio.abc.Stream:
        try:
            item = await self._backlog.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None
        if isinstance(item, BaseException):
            raise item
        self.accepted.append(item)
        return item

    async def aclose(self) -> None:
        """Close it, and every connection that nobody has accepted."""
        self.closed = True
        self._backlog_in.close()
        while self._backlog.statistics().current_buffer_used:
            item = self._backlog.receive_nowait()
            if isinstance(item, trio.abc.Stream):
                with trio.CancelScope(shield=True):
                    await item.aclose()
        await trio.lowlevel.checkpoint()


class Trigger:
    """What a server waits for: to be told to shut down, or that something has gone wrong."""

    def __init__(self) -> None:
        self._pulled = trio.Event()
        self._error: BaseException | None = None

    def set(self) -> None:
        self._pulled.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._pulled.set()

    async def wait(self) -> None:
        await self._pulled.wait()
        if self._error is not None:
            raise self._error


class Served:
    """A server that runs in a task of its own.

    Attributes:
        listener: its only one.
        stop: set it, and the server shuts down gracefully; or have it fail.
        scope: around `serve`.
        ended: `serve` has returned, or raised.
        ended_at: when.
        urls: what it said when it had started.
    """

    def __init__(
        self,
        application: Any,
        listener: MemoryListener,
        config: Config,
        ssl_context: ssl.SSLContext | None,
        give_up: Callable[[], None] | None,
    ) -> None:
        self.listener = listener
        self.stop = Trigger()
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.ended_at = inf
        self.urls: list[str] = []
        self._serve = Server(application, config, give_up or (lambda: None)).serve
        self._listener = listener if ssl_context is None else trio.SSLListener(listener, ssl_context)
        self._error: BaseException | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        class Started:
            def started(_, urls: list[str]) -> None:  # noqa: N805
                self.urls = urls
                task_status.started()

        with self.scope:
            try:
                await self._serve([self._listener], None, self.stop.wait, Started())
            except BaseException as error:
                self._error = error
                if not isinstance(error, Exception):
                    raise
            finally:
                self.ended_at = trio.current_time()
                self.ended.set()

    def connect(self) -> HTTPClient:
        return HTTPClient(self.listener.connect())

    async def connect_websocket(self, target: str = "/", *, answers: bool = True) -> WebSocketClient:
        client = WebSocketClient(self.listener.connect(), answers=answers)
        await client.connect(target)
        return client

    async def wait_ended(self) -> float:
        """Wait for the end; when it came."""
        await self.ended.wait()
        return self.ended_at

    def raised(self) -> BaseException | None:
        """What `serve` raised, which is thereby expected."""
        error, self._error = self._error, None
        return error


@asynccontextmanager
async def _serving(
    application: Any,
    *,
    pair: Callable[[], tuple[Any, Any]] = trio.testing.memory_stream_pair,
    ssl_context: ssl.SSLContext | None = None,
    give_up: Callable[[], None] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    served = Served(application, MemoryListener(pair), Config(**settings), ssl_context, give_up)
    async with trio.open_nursery() as nursery:
        await nursery.start(served.run)
        try:
            with trio.fail_after(LONG):
                yield served
        finally:
            served.stop.set()
            with trio.move_on_after(LONG):
                await served.ended.wait()
            nursery.cancel_scope.cancel()
    assert served.ended_at < LONG, "serve() did not end"
    error = served.raised()
    assert error is None or (type(error) is trio.Cancelled and served.scope.cancel_called)
    assert served.listener.closed
    for stream in served.listener.accepted:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)


@pytest.fixture
def serving(autojump_clock):
    """An async context manager that serves an application in virtual time, and gives a `Served`."""
    return _serving


class TLS(NamedTuple):
    """Both sides of it, with the host name that the server's certificate is for."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    host: str = "server.example"


@pytest.fixture(scope="session")
def tls() -> TLS:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert(TLS._field_defaults["host"]).configure_cert(server)
    authority.configure_trust(client)
    return TLS(server, client)


class Log(logging.Handler):
    """What is logged to `trigi.error`.

    Attributes:
        records: all of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        """Level and message of each record, without tracebacks."""
        return [f"{record.levelname} {record.getMessage()}" for record in self.records]

    @property
    def troubles(self) -> list[str]:
        """Those from WARNING on."""
        return [line for line in self.lines if not line.startswith(("INFO", "DEBUG"))]


@pytest.fixture
def log():
    logger = logging.getLogger("trigi.error")
    handler, level = Log(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


# What applications under test do again and again.


class App:
    """An application that notes what happens to it.

    Its lifespan starts up and shuts down without trouble; requests and WebSockets go to the functions given.

    Attributes:
        events: what was noted, in order.
        times: when, by what it was.
    """

    def __init__(self, http: Any = None, websocket: Any = None) -> None:
        self.events: list[str] = []
        self.times: dict[str, float] = {}
        self._http = hello if http is None else http
        self._websocket = websocket

    def note(self, event: str) -> None:
        self.events.append(event)
        self.times[event] = trio.current_time()

    async def __call__(self, scope, receive, send):
        match scope["type"]:
            case "lifespan":
                assert (await receive())["type"] == "lifespan.startup"
                self.note("startup")
                await send({"type": "lifespan.startup.complete"})
                assert (await receive())["type"] == "lifespan.shutdown"
                self.note("shutdown")
                await send({"type": "lifespan.shutdown.complete"})
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await self._websocket(scope, receive, send)


async def respond(send, body=b"", *, status=200):
    """A response with a content-length."""
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def hello(scope, receive, send):
    """The smallest application, without a lifespan."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await respond(send, b"hello")
