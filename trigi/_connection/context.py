"""What all connections of one server share: the application, the settings, and whom to tell what happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import trio

from .._protocol.scope import ConnectionInfo, Endpoint
from ..config import Config
from ..exceptions import BadRequest
from ..typing import ASGI3Application

if TYPE_CHECKING:  # a cycle of types only: an exchange holds its context, and is what the observer is shown
    from .exchange import Exchange

__all__ = ["Connection", "Observer", "ServerContext"]


class Observer:
    """What a server reports while it works; a subclass overrides what it wants to hear.

    Every method is called in the middle of the work: it must neither block nor raise.
    """

    def exchange_ended(self, exchange: Exchange) -> None:
        """A response is complete, or will never be; a WebSocket is closed. Once for each exchange."""

    def application_failed(self, exchange: Exchange, error: BaseException) -> None:
        """An application raised, broke ASGI, or returned without finishing its response."""

    def application_stuck(self, exchange: Exchange, seconds: float) -> None:
        """An application was cancelled that many seconds ago and is still running."""

    def request_refused(self, connection: ConnectionInfo, error: BadRequest) -> None:
        """A request was answered with an error, or cut off, before an application saw it."""

    def connection_failed(self, client: Endpoint | None, error: BaseException) -> None:
        """A connection ended by an exception that is a bug of trigi's. Its siblings live on."""

    def handshake_failed(self, client: Endpoint | None, error: BaseException) -> None:
        """A TLS handshake failed or timed out."""


class Connection(Protocol):
    """What a server can ask of a connection, whatever its HTTP version."""

    def drain(self) -> None:
        """Finish what is open, start nothing: close now when idle, else after the open exchange."""


class ServerContext:
    """What all connections of one server share.

    Attributes:
        application: the ASGI 3 application.
        config: the settings.
        state: the lifespan's state; each scope gets a shallow copy.
        observer: whom to tell.
        describe_tls: gives the `tls` extension of a stream whose handshake is done, or `None` without TLS.
        connections: every connection that can be asked to drain.
        draining: set once the server has begun to shut down.
        running: how many application calls are running (bounded by `concurrency_limit`).
    """

    def __init__(
        self,
        application: ASGI3Application,
        config: Config,
        *,
        state: dict[str, Any] | None = None,
        observer: Observer | None = None,
        describe_tls: Callable[[trio.abc.Stream], dict[str, Any]] | None = None,
    ) -> None:
        self.application = application
        self.config = config
        self.state = {} if state is None else state
        self.observer = Observer() if observer is None else observer
        self.describe_tls = describe_tls
        self.connections: set[Connection] = set()
        self.draining = trio.Event()
        self.running = 0
