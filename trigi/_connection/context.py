"""What all connections of one server share: the application, the settings, and whom to tell what happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from email.utils import formatdate
from typing import Any, NamedTuple, Protocol

import trio

from trigi._protocol.events import Headers, Request
from trigi._protocol.http1_encode import encode_fields
from trigi._protocol.http1_head import field_parser
from trigi._protocol.scope import ConnectionInfo, Endpoint
from trigi.config import Config
from trigi.exceptions import BadConnection, BadRequest
from trigi.typing import ASGI3Application

__all__ = ["Background", "Connection", "DefaultHeaders", "ExchangeReport", "Observer", "ServerContext"]


class ExchangeReport(Protocol):
    """What an observer may read of an exchange; `Exchange` says what each means."""

    request: Request
    connection: ConnectionInfo
    status: int | None
    bytes_sent: int
    duration: float
    complete: bool

    @property
    def response_headers(self) -> Headers:
        """As the application gave them."""

    @property
    def is_websocket(self) -> bool:
        """Whether the request asks for a WebSocket."""


class Observer:
    """What a server reports while it works; a subclass overrides what it wants to hear.

    Every method is called in the middle of the work: it must neither block nor raise.
    """

    def exchange_ended(self, exchange: ExchangeReport) -> None:
        """A response is complete, or will never be; a WebSocket is closed. Once for each exchange."""

    def application_failed(self, exchange: ExchangeReport, error: BaseException) -> None:
        """An application raised, broke ASGI, or returned without finishing its response."""

    def application_stuck(self, exchange: ExchangeReport, seconds: float) -> None:
        """An application was cancelled that many seconds ago and is still running."""

    def background_failed(self, name: str, error: BaseException) -> None:
        """A background task of an application's raised."""

    def background_stuck(self, name: str, seconds: float) -> None:
        """A background task was cancelled that many seconds ago and is still running."""

    def request_refused(self, connection: ConnectionInfo, error: BadRequest) -> None:
        """A request was answered with an error, or cut off, before an application saw it."""

    def connection_refused(self, connection: ConnectionInfo, error: BadConnection) -> None:
        """An HTTP/2 connection is ended because of what the client sent, or did not send."""

    def connection_failed(self, client: Endpoint | None, error: BaseException) -> None:
        """A connection ended by an exception that is a bug of trigi's. Its siblings live on."""

    def lifespan_failed(self, stage: str, error: BaseException) -> None:
        """The lifespan call raised: in `"starting"` (taken for "not supported"), `"serving"` or `"stopping"`."""

    def handshake_failed(self, client: Endpoint | None, error: BaseException) -> None:
        """A TLS handshake failed or timed out."""


class Connection(Protocol):
    """What a server can ask of a connection, whatever its HTTP version."""

    def drain(self) -> None:
        """Finish what is open, start nothing: close now when idle, else after the open exchange."""


class Background(Protocol):
    """Where applications start tasks that outlive their requests; `background.Background` says how."""

    @property
    def names(self) -> list[str]:
        """What the tasks that are running are called."""

    def close(self) -> None:
        """Take no more tasks."""


class DefaultHeaders(NamedTuple):
    """Headers that the server adds to a response.

    Attributes:
        fields: they, new every second.
        lines: the same as HTTP/1.1 has them, each with its CRLF.
    """

    fields: Headers
    lines: bytes


class ServerContext:
    """What all connections of one server share.

    Attributes:
        application: the ASGI 3 application.
        config: the settings.
        state: the lifespan's state; each scope gets a shallow copy.
        parse_fields: splits the fields of HTTP/1.1 requests.
        observer: whom to tell.
        describe_tls: gives the `tls` extension of a stream whose handshake is done, or `None` without TLS.
        connections: every connection that can be asked to drain.
        draining: set once the server has begun to shut down.
        background: the applications' tasks that outlive their requests; `None` without a server, when each connection
            has its own.
        running: the exchanges whose applications are running (bounded by `concurrency_limit`).
    """

    def __init__(
        self,
        application: ASGI3Application,
        config: Config,
        *,
        state: dict[str, Any] | None = None,
        observer: Observer | None = None,
        describe_tls: Callable[[trio.abc.Stream], dict[str, Any] | None] | None = None,
    ) -> None:
        self.application = application
        self.config = config
        self.state = {} if state is None else state
        self.parse_fields = field_parser(config.http)
        self.observer = Observer() if observer is None else observer
        self.describe_tls = describe_tls
        self.connections: set[Connection] = set()
        self.draining = trio.Event()
        self.background: Background | None = None
        self.running: set[ExchangeReport] = set()
        self._defaults = DefaultHeaders([], b"")
        self._defaults_expire = 0.0

    def with_background(self, background: Background) -> ServerContext:
        """The same, all of it shared, but for `background`."""
        context = copy(self)
        context.background = background
        return context

    def default_headers(self) -> DefaultHeaders:
        """The `date` and `server` headers that a response gets if it has none of its own."""
        now = time.time()
        if now >= self._defaults_expire:
            self._defaults_expire = int(now) + 1
            fields: Headers = []
            if self.config.date_header:
                fields.append((b"date", formatdate(now, usegmt=True).encode("ascii")))
            if self.config.server_header:
                fields.append((b"server", b"trigi"))
            self._defaults = DefaultHeaders(fields, encode_fields(fields))
        return self._defaults
