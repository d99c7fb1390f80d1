"""The vocabulary of ASGI as types: scopes, messages, and the callables that pass them.

`Scope` and `Message` are what a server and an application exchange; the `TypedDict` classes say what is inside
each kind of scope. The names follow the ASGI specification (https://asgi.readthedocs.io, version 3.0; HTTP and
WebSocket 2.5, lifespan 2.0).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Literal, NotRequired, TypedDict
from wsgiref import types as wsgi_types

__all__ = [
    "ASGI2Application",
    "ASGI3Application",
    "ASGIVersions",
    "Application",
    "HTTPScope",
    "LifespanScope",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "TLSExtension",
    "WSGIApplication",
    "WebSocketScope",
]

Scope = MutableMapping[str, Any]
"""What an application is called with: a `dict` that lives as long as the call (ASGI, "Connection Scope")."""

Message = MutableMapping[str, Any]
"""One event, received or sent: a `dict` with a `str` under `"type"` (ASGI, "Events")."""

Receive = Callable[[], Awaitable[Message]]
"""Awaited without arguments, gives the next message for the application."""

Send = Callable[[Message], Awaitable[None]]
"""Awaited with one message of the application's; returns when it has been handed to the transport."""

ASGI3Application = Callable[[Scope, Receive, Send], Awaitable[Any]]
"""The single callable of ASGI 3: `await application(scope, receive, send)`."""

ASGI2Application = Callable[[Scope], Callable[[Receive, Send], Awaitable[Any]]]
"""The double callable of ASGI 2: `await application(scope)(receive, send)`."""

WSGIApplication = wsgi_types.WSGIApplication
"""The callable of PEP 3333: `application(environ, start_response)`."""

Application = ASGI3Application | ASGI2Application | WSGIApplication
"""Anything that trigi can serve without an adapter of the caller's; a WSGI application if it is told so."""


class ASGIVersions(TypedDict):
    """The value of `scope["asgi"]`."""

    version: Literal["2.0", "3.0"]
    spec_version: NotRequired[str]


class TLSExtension(TypedDict):
    """The value of `scope["extensions"]["tls"]` (ASGI TLS extension 0.2)."""

    server_cert: str | None
    client_cert_chain: Iterable[str]
    client_cert_name: str | None
    client_cert_error: str | None
    tls_version: int | None
    cipher_suite: int | None


class HTTPScope(TypedDict):
    """The scope of one HTTP request (ASGI HTTP 2.5, "HTTP Connection Scope")."""

    type: Literal["http"]
    asgi: ASGIVersions
    http_version: Literal["1.0", "1.1", "2", "3"]
    method: str
    scheme: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    headers: Iterable[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    state: dict[str, Any]
    extensions: dict[str, dict[str, Any]]


class WebSocketScope(TypedDict):
    """The scope of one WebSocket (ASGI WebSocket 2.5, "Websocket Connection Scope"). It has no `method`."""

    type: Literal["websocket"]
    asgi: ASGIVersions
    http_version: Literal["1.1", "2", "3"]
    scheme: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    headers: Iterable[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    subprotocols: Iterable[str]
    state: dict[str, Any]
    extensions: dict[str, dict[str, Any]]


class LifespanScope(TypedDict):
    """The scope of the one lifespan call of a server (ASGI lifespan 2.0)."""

    type: Literal["lifespan"]
    asgi: ASGIVersions
    state: dict[str, Any]
