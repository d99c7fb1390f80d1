"""A request and its connection become a scope: what an application is called with.

Scopes are new for every call, down to `asgi`, `extensions` and `state`, so that what one application changes in
its own no other sees. Of the values only `state` is shared, and that by a shallow copy (ASGI lifespan, "Lifespan
State").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from .events import Request

__all__ = ["ConnectionInfo", "Endpoint", "http_scope", "lifespan_scope", "websocket_scope"]

SPEC_VERSION = "2.5"
"""Of the HTTP and WebSocket specifications: 2.4 brought the `OSError` out of `send()`, 2.5 the close reason."""

LIFESPAN_SPEC_VERSION = "2.0"


class Endpoint(NamedTuple):
    """An address with its kind: host and port, or the path of a unix socket and `None`."""

    host: str
    port: int | None

    def __str__(self) -> str:
        if self.port is None:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class ConnectionInfo:
    """What is known of a connection before its first request.

    Attributes:
        client: the peer, `None` where it has no address (unix and memory streams).
        server: the address it came in by, `None` where there is none (memory streams).
        tls: the `tls` extension, `None` without TLS.
    """

    client: Endpoint | None = None
    server: Endpoint | None = None
    tls: dict[str, Any] | None = None


def http_scope(
    request: Request,
    connection: ConnectionInfo,
    root_path: str,
    state: dict[str, Any],
    extension: dict[str, Any],
    *,
    extensions: Iterable[str],
) -> dict[str, Any]:
    """The scope of an HTTP request (ASGI HTTP 2.5, "HTTP Connection Scope").

    Args:
        request: its head.
        connection: where it came from.
        root_path: where the application is mounted.
        state: what its startup has left.
        extension: the value of trigi's own extension.
        extensions: the names of ASGI's that work here.
    """
    scope = _request_scope(request, connection, root_path, state, extension)
    scope["type"] = "http"
    scope["scheme"] = "http" if connection.tls is None else "https"
    scope["method"] = request.method.upper()
    for name in extensions:
        scope["extensions"][name] = {}
    return scope


def websocket_scope(
    request: Request,
    connection: ConnectionInfo,
    root_path: str,
    state: dict[str, Any],
    extension: dict[str, Any],
    *,
    subprotocols: Iterable[str],
) -> dict[str, Any]:
    """The scope of a WebSocket (ASGI WebSocket 2.5, "Websocket Connection Scope"): it has no `method`."""
    scope = _request_scope(request, connection, root_path, state, extension)
    scope["type"] = "websocket"
    scope["scheme"] = "ws" if connection.tls is None else "wss"
    scope["subprotocols"] = list(subprotocols)
    scope["extensions"]["websocket.http.response"] = {}
    return scope


def _request_scope(
    request: Request,
    connection: ConnectionInfo,
    root_path: str,
    state: dict[str, Any],
    extension: dict[str, Any],
) -> dict[str, Any]:
    """What the two kinds of scope that begin with a request have in common."""
    extensions: dict[str, Any] = {"trigi": extension}
    if connection.tls is not None:
        extensions["tls"] = _copy_tls(connection.tls)
    return {
        "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
        "http_version": request.http_version,
        "path": mounted_path(request.raw_path, root_path),
        "raw_path": request.raw_path,
        "query_string": request.query_string,
        "root_path": root_path,
        "headers": list(request.headers),
        "client": connection.client,
        "server": connection.server,
        "state": state.copy(),
        "extensions": extensions,
    }


def lifespan_scope(state: dict[str, Any]) -> dict[str, Any]:
    """The scope of the lifespan call: `state` is the dict that the application fills."""
    return {
        "type": "lifespan",
        "asgi": {"version": "3.0", "spec_version": LIFESPAN_SPEC_VERSION},
        "state": state,
    }


def mounted_path(raw_path: bytes, root_path: str) -> str:
    """The path, percent-decoded once and as UTF-8, with `root_path` in front of it.

    A proxy may strip the prefix that an application is mounted at or pass it on; the application sees the same
    path either way. Bytes that are not UTF-8 become U+FFFD; `raw_path` still has them. Nothing else is normalised.
    The `*` of `OPTIONS *` is no path, and stays what it is.
    """
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    if not root_path or path in ("*", root_path) or path.startswith(root_path + "/"):
        return path
    return root_path + path


def _copy_tls(tls: dict[str, Any]) -> dict[str, Any]:
    """The extension, with a list of its own for the client's chain."""
    copied = tls.copy()
    if "client_cert_chain" in tls:
        copied["client_cert_chain"] = list(tls["client_cert_chain"])
    return copied
