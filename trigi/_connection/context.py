"""What all connections of one server share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, NamedTuple, Protocol

import trio

from trigi._protocol.events import Headers
from trigi._protocol.http1_encode import encode_fields
from trigi._protocol.http1_head import field_parser
from trigi.config import Config
from trigi.typing import ASGI3Application

from .observer import ExchangeReport, Observer

__all__ = ["Background", "Connection", "DefaultHeaders", "ServerContext"]


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
        nursery: around all connections, for what they start beside themselves; `None` without a server, when each
            connection has its own.
        background: the applications' tasks that outlive their requests; `None` likewise.
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
        self.nursery: trio.Nursery | None = None
        self.background: Background | None = None
        self.running: set[ExchangeReport] = set()
        self._defaults = DefaultHeaders([], b"")
        self._defaults_expire = 0.0

    def within(self, nursery: trio.Nursery, background: Background) -> ServerContext:
        """The same, all of it shared, but for these."""
        context = ServerContext(
            self.application,
            self.config,
            state=self.state,
            observer=self.observer,
            describe_tls=self.describe_tls,
        )
        context.connections = self.connections
        context.draining = self.draining
        context.running = self.running
        context.nursery = nursery
        context.background = background
        return context

    def default_headers(self) -> DefaultHeaders:
        """The `date` and `server` headers that a response gets if it has none of its own."""
        now = time.time()
        if now >= self._defaults_expire:
            self._defaults_expire = math.floor(now) + 1.0
            fields: Headers = []
            if self.config.date_header:
                fields.append((b"date", formatdate(now, usegmt=True).encode("ascii")))
            if self.config.server_header:
                fields.append((b"server", b"trigi"))
            self._defaults = DefaultHeaders(fields, encode_fields(fields))
        return self._defaults
