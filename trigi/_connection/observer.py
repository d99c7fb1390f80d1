"""Whom a server tells what happens on its connections."""

from __future__ import annotations

from typing import Protocol

from trigi._protocol.events import Headers, Request
from trigi._protocol.scope import ConnectionInfo, Endpoint
from trigi.exceptions import BadConnection, BadRequest

__all__ = ["ExchangeReport", "Observer"]


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
