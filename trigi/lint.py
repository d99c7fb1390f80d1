"""Check an application, and the server below it, against the whole of ASGI: HTTP and WebSocket 2.5, lifespan 2.0.

A server checks what it needs and forgives the rest, so that other people's applications run. `lint` forgives nothing.
The tables below are the specification's lists of keys. Keys that it does not know are allowed, as it wants, but in
messages their values must be plain data.

That messages come in the right order is checked by the server itself, always. What it lets pass, `lint` does not:
anything after the end of a response, and an early hint before its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ._checks import (
    Key,
    Keys,
    Wrong,
    check_keys,
    data,
    dictionary,
    field_value,
    flag,
    headers,
    integer,
    keys,
    list_of,
    may,
    must,
    nullable,
    one_of,
    pair,
    plain,
    string,
    text,
    whole,
)
from ._protocol.asgi import EXTENSION_OF, HTTP, HTTP_SEND, event_of
from .exceptions import InvalidMessage, TrigiError, UnexpectedMessage
from .typing import ASGI3Application, Message, Receive, Scope, Send

__all__ = ["lint"]

# What a scope has


def not_empty(value: Any, path: str) -> None:
    """A `str` of something."""
    string(value, path)
    if not value:
        raise Wrong(f"{path} must not be empty")


def method(value: Any, path: str) -> None:
    """A method's name, in upper case."""
    not_empty(value, path)
    if value != value.upper():
        raise Wrong(f"{path} must be in upper case, got {value!r}")


def absent(_: Any, path: str) -> None:
    """Nothing: the key belongs to another kind of scope."""
    raise Wrong(f"{path} must not be there")


def anything(_: Any, __: str) -> None:
    """Objects too: what a lifespan keeps, and what a server gives by an extension of its own."""


def versions(*spec_versions: str) -> Key:
    """`scope["asgi"]`."""
    known = {"version": must(one_of("2.0", "3.0")), "spec_version": may(one_of(*spec_versions))}
    return must(keys(known, plain))


TLS: Keys = {
    "server_cert": must(nullable(text)),
    "client_cert_chain": may(list_of(text)),
    "client_cert_name": may(nullable(text)),
    "client_cert_error": may(nullable(not_empty)),
    "tls_version": must(nullable(whole(0, 0xFFFF))),
    "cipher_suite": must(nullable(whole(0, 0xFFFF))),
}

CONNECTION_SCOPE: Keys = {
    "type": must(string),
    "asgi": versions("2.0", "2.1", "2.2", "2.3", "2.4", "2.5"),
    "path": must(text),
    "raw_path": may(nullable(data)),
    "root_path": may(text),
    "headers": must(headers()),
    "client": may(nullable(pair(string, integer))),
    "server": may(nullable(pair(string, nullable(integer)))),
    "state": may(keys({}, anything)),
    "extensions": may(keys({"tls": may(keys(TLS, plain))}, keys({}, anything))),
}

SCOPES: Mapping[str, Keys] = {
    "http": CONNECTION_SCOPE
    | {
        "http_version": must(one_of("1.0", "1.1", "2", "3")),
        "method": must(method),
        "scheme": may(not_empty),
        "query_string": must(data),
    },
    "websocket": CONNECTION_SCOPE
    | {
        "http_version": may(one_of("1.1", "2", "3")),
        "method": may(absent),
        "scheme": may(not_empty),
        "query_string": may(data),
        "subprotocols": may(list_of(text)),
    },
    "lifespan": {
        "type": must(string),
        "asgi": versions("1.0", "2.0"),
        "state": may(keys({}, anything)),
    },
}


# What a server sends

RECEIVED: Mapping[str, Mapping[str, Keys]] = {
    "http": {
        "http.request": {"body": may(data), "more_body": may(flag)},
        "http.disconnect": {},
    },
    "websocket": {
        "websocket.connect": {},
        "websocket.receive": {"bytes": may(nullable(data)), "text": may(nullable(text))},
        "websocket.disconnect": {"code": must(whole()), "reason": may(nullable(text))},
    },
    "lifespan": {
        "lifespan.startup": {},
        "lifespan.shutdown": {},
    },
}

RECEIVE_ORDER: Mapping[str, tuple[str, ...]] = {
    "http": ("http.request", "http.request+more_body", "http.disconnect"),
    "http.request+more_body": ("http.request", "http.request+more_body", "http.disconnect"),
    "http.request": ("http.disconnect",),
    "http.disconnect": ("http.disconnect",),
    "websocket": ("websocket.connect",),
    "websocket.connect": ("websocket.receive", "websocket.disconnect"),
    "websocket.receive": ("websocket.receive", "websocket.disconnect"),
    "websocket.disconnect": ("websocket.disconnect",),
    "lifespan": ("lifespan.startup",),
    "lifespan.startup": ("lifespan.shutdown",),
    "lifespan.shutdown": (),
}
"""What may follow a scope, and then each event. A disconnect is given as often as it is asked for."""


# What an application sends


def close_code(value: Any, path: str) -> None:
    """A code that a close frame can have (RFC 6455, 7.4, and the IANA registry)."""
    integer(value, path)
    if not (1000 <= value <= 1003 or 1007 <= value <= 1014 or 3000 <= value <= 4999):
        raise Wrong(f"{path} must be from 1000 to 1003, 1007 to 1014 or 3000 to 4999")


def close_reason(value: Any, path: str) -> None:
    """What fits into a close frame beside its code (RFC 6455, 5.5)."""
    text(value, path)
    if len(value.encode()) > 123:
        raise Wrong(f"{path} must be at most 123 bytes of UTF-8, got {len(value.encode())}")


START: Keys = {"status": must(whole(200, 999)), "headers": may(headers(b"transfer-encoding"))}
BODY: Keys = {"body": may(data), "more_body": may(flag)}


def absolute_path(value: Any, path: str) -> None:
    """The path of a file, from the root."""
    text(value, path)
    if not PurePath(value).is_absolute():
        raise Wrong(f"{path} must be absolute, got {value!r}")


def open_file(value: Any, path: str) -> None:
    """A file that the system has open; `SENT` has no other value that is not plain data."""
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "fileno")):
        raise Wrong(f"{path} must be an open file, got {type(value).__name__}")


SENT: Mapping[str, Mapping[str, Keys]] = {
    "http": {
        "http.response.start": START | {"trailers": may(flag)},
        "http.response.body": BODY,
        "http.response.early_hint": {"links": must(list_of(field_value))},
        "http.response.pathsend": {"path": must(absolute_path)},
        "http.response.zerocopysend": {
            "file": must(open_file),
            "offset": may(whole(0)),
            "count": may(whole(0)),
            "more_body": may(flag),
        },
        "http.response.trailers": {
            "headers": must(headers(b"transfer-encoding", b"content-length", b"trailer")),
            "more_trailers": may(flag),
        },
    },
    "websocket": {
        "websocket.accept": {
            "subprotocol": may(nullable(not_empty)),
            "headers": may(headers(b"sec-websocket-protocol")),
        },
        "websocket.send": {"bytes": may(nullable(data)), "text": may(nullable(text))},
        "websocket.close": {"code": may(close_code), "reason": may(nullable(close_reason))},
        "websocket.http.response.start": START,
        "websocket.http.response.body": BODY,
    },
    "lifespan": {
        "lifespan.startup.complete": {},
        "lifespan.startup.failed": {"message": may(text)},
        "lifespan.shutdown.complete": {},
        "lifespan.shutdown.failed": {"message": may(text)},
    },
}

ONE_OF_TWO: Mapping[str, tuple[str, str]] = {
    "websocket.receive": ("bytes", "text"),
    "websocket.send": ("bytes", "text"),
}
"""Keys of which exactly one is not `None`."""

FORGIVEN: Mapping[HTTP, frozenset[str]] = {
    HTTP.START: frozenset({"http.response.early_hint"}),
    HTTP.COMPLETE: frozenset(HTTP_SEND[HTTP.COMPLETE]),
}
"""What a server lets pass, although the specification has it otherwise."""


# Putting them to use


def check_scope(scope: Any) -> None:
    """Check what an application is called with."""
    dictionary(scope, "scope")
    one_of(*SCOPES)(scope.get("type"), "scope: type")
    kind = scope["type"]
    check_keys(scope, SCOPES[kind], anything, f"{kind} scope: ")
    if (
        kind != "lifespan"
        and scope["path"] != "*"
        and not scope["path"].startswith(scope.get("root_path", ""))
    ):
        raise Wrong(f"{kind} scope: path must begin with root_path")


def check_message(message: Any, known: Mapping[str, Keys]) -> None:
    """Check one message by itself."""
    dictionary(message, "a message")
    if "type" not in message:
        raise Wrong("a message: type is missing")
    one_of(*known)(message["type"], "a message: type")
    kind = message["type"]
    check_keys(message, known[kind], plain, f"{kind}: ")
    if kind in ONE_OF_TWO and sum(message.get(key) is not None for key in ONE_OF_TWO[kind]) != 1:
        raise Wrong(f"{kind}: exactly one of {' and '.join(ONE_OF_TWO[kind])} must not be None")


def lint(application: ASGI3Application) -> ASGI3Application:
    """The application, with everything checked that it and its server say to each other.

    Its `send()` raises `InvalidMessage` with the path to the value that is wrong
    (`http.response.start: headers[2][1] must be bytes, got str`), or `UnexpectedMessage`, before the server has seen
    anything of it. For a wrong scope, or out of `receive()`, a `TrigiError` says that the server is to blame.
    """

    async def checked(scope: Scope, receive: Receive, send: Send) -> Any:
        try:
            check_scope(scope)
        except Wrong as wrong:
            raise _server_bug(wrong) from None
        call = LintedCall(scope, receive, send)
        return await application(scope, call.receive, call.send)

    return checked


class LintedCall:
    """One call of an application: where it is, and where its server."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._kind: str = scope["type"]
        self._extensions = frozenset(scope.get("extensions", ()))
        self._received: str = scope["type"]
        self._state = HTTP.START

    async def receive(self) -> Message:
        """The server's `receive`, checked."""
        message = await self._receive()
        try:
            self._received = self._check_received(message)
        except Wrong as wrong:
            raise _server_bug(wrong) from None
        return message

    def _check_received(self, message: Message) -> str:
        check_message(message, RECEIVED[self._kind])
        event: str = message["type"] + ("+more_body" if message.get("more_body") else "")
        if event not in RECEIVE_ORDER[self._received]:
            raise Wrong(f"{event} must not come after {self._received}")
        return event

    async def send(self, message: Message) -> None:
        """The server's `send`, after the check."""
        try:
            self._check_sent(message)
        except Wrong as wrong:
            raise InvalidMessage(str(wrong)) from None
        event = event_of(message)
        before = self._state
        forgiven = FORGIVEN.get(before, frozenset())
        if event in forgiven:
            raise UnexpectedMessage(before, event, sorted(HTTP_SEND[before].keys() - forgiven))
        self._state = HTTP_SEND[before].get(event, before)
        try:
            await self._send(message)
        except BaseException:
            self._state = before  # the server has not taken it
            raise

    def _check_sent(self, message: Message) -> None:
        check_message(message, SENT[self._kind])
        extension = EXTENSION_OF.get(event_of(message))
        if extension is not None and extension not in self._extensions:
            raise Wrong(f"{message['type']}: the extension {extension} is not in this scope")


def _server_bug(wrong: Wrong) -> TrigiError:
    return TrigiError(f"a bug in the server, not in the application: {wrong}")
