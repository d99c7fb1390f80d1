"""A scope becomes the environ of PEP 3333: what the request says, in a new dict of native strings.

Native strings are bytes in disguise: each character is one byte, from U+0000 to U+00FF (PEP 3333, "Unicode Issues").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from trigi.typing import Scope

__all__ = ["make_environ"]

TLS_VERSIONS = {0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
"""As mod_ssl and OpenSSL name them, by their number on the wire."""


def make_environ(scope: Scope) -> dict[str, Any]:
    """What of an environ is about the request: all but the `wsgi.` variables that are objects.

    Args:
        scope: of type `http`.
    """
    script_name, path_info = _split_path(scope)
    query = scope.get("query_string", b"")
    target = scope.get("raw_path") or scope["path"].encode()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": script_name,
        "PATH_INFO": path_info,
        "QUERY_STRING": query.decode("latin-1"),
        "REQUEST_URI": (target + b"?" + query if query else target).decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_SOFTWARE": "trigi",
        "REMOTE_ADDR": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input_terminated": True,
    }
    environ["RAW_URI"] = environ["REQUEST_URI"]
    _add_headers(environ, scope["headers"])
    _add_addresses(environ, scope)
    if environ["wsgi.url_scheme"] == "https":
        environ["HTTPS"] = "on"
        _add_tls(environ, (scope.get("extensions") or {}).get("tls"))
    return environ


def _split_path(scope: Scope) -> tuple[str, str]:
    """SCRIPT_NAME and PATH_INFO, percent-decoded.

    The bytes are those of `raw_path`, which need not be UTF-8. But a middleware may have changed `path` alone; then
    that counts.
    """
    root: bytes = scope.get("root_path", "").rstrip("/").encode()
    path: bytes = unquote_to_bytes(scope.get("raw_path") or b"")
    text = path.decode(errors="replace")
    if scope["path"] not in (text, root.decode() + text):
        path = scope["path"].encode(errors="surrogateescape")
    if root and (path == root or path.startswith(root + b"/")):
        path = path[len(root) :]
    return root.decode("latin-1"), path.decode("latin-1")


def _add_headers(environ: dict[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    """One variable for each name; of several fields the values are joined.

    A name with an underscore is left out: it would be the variable of another name, with a hyphen, that a proxy may
    have checked.
    """
    for name, value in headers:
        if b"_" in name:
            continue
        variable = name.decode("latin-1").upper().replace("-", "_")
        if variable not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            variable = "HTTP_" + variable
        text = value.decode("latin-1")
        if variable in environ:
            separator = "; " if variable == "HTTP_COOKIE" else ","
            text = environ[variable] + separator + text
        environ[variable] = text


def _add_addresses(environ: dict[str, Any], scope: Scope) -> None:
    """The client's address, if it has one; and the server's, which can't be missing: else what the client calls it."""
    client = scope.get("client")
    if client is not None:
        environ["REMOTE_ADDR"] = client[0]
        if client[1] is not None:
            environ["REMOTE_PORT"] = str(client[1])
    server = scope.get("server")
    if server is not None and server[1] is not None:
        environ["SERVER_NAME"], environ["SERVER_PORT"] = server[0], str(server[1])
        return
    host: str = environ.get("HTTP_HOST", "")  # a unix socket has no name that could stand in a URL
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not port.isdecimal():
        name, port = name or host, ""
    environ["SERVER_NAME"] = name or "localhost"
    environ["SERVER_PORT"] = port or ("443" if environ["wsgi.url_scheme"] == "https" else "80")


def _add_tls(environ: dict[str, Any], tls: dict[str, Any] | None) -> None:
    """What is known of the handshake, under the names of Apache's mod_ssl."""
    if tls is None:
        return
    version = tls.get("tls_version")
    if version is not None:
        environ["SSL_PROTOCOL"] = TLS_VERSIONS.get(version, f"{version:#06x}")
    chain = list(tls.get("client_cert_chain") or ())
    error = tls.get("client_cert_error")
    environ["SSL_CLIENT_VERIFY"] = f"FAILED:{error}" if error else "SUCCESS" if chain else "NONE"
    if chain:
        environ["SSL_CLIENT_CERT"] = chain[0]
    if tls.get("client_cert_name"):
        environ["SSL_CLIENT_S_DN"] = tls["client_cert_name"].encode().decode("latin-1")
