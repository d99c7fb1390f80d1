"""What an application may send, and when: the rules of ASGI as tables.

There is one table for each kind of scope. It maps a state and an event to the next state; what is not in it is
not allowed. An *event* is a message's type together with the flag that changes the next state: a
`http.response.body` with `more_body` is another event than one without.

Two things are not in the tables, on purpose. That the client has gone is no state of the application's: `send()`
asks for it first and raises `ClientDisconnected`. And that a message's values are right is the business of the
`check_*` functions below, so that a message is refused before it changes the state: an application may catch the
error and send a better one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from trigi.exceptions import InvalidMessage, UnexpectedMessage
from trigi.typing import Message

from .events import Headers
from .headers import check_headers
from .response_head import ResponseHead, check_head

__all__ = [
    "EXTENSIONS",
    "EXTENSION_OF",
    "HTTP",
    "HTTP_SEND",
    "LIFESPAN_SEND",
    "WEBSOCKET_SEND",
    "Lifespan",
    "WebSocket",
    "advance",
    "check_body",
    "check_close",
    "check_descriptor",
    "check_links",
    "check_path",
    "check_range",
    "check_start",
    "check_text",
    "check_trailers",
    "check_websocket_data",
    "event_of",
]


class State(StrEnum):
    """Where an application is: the tables' states."""

    __hash__ = str.__hash__  # an enum's own is no function of C's, and each message looks its state up


class HTTP(State):
    """Where an application is in its response."""

    START = "START"
    BODY = "BODY"
    MORE_BODY = "MORE_BODY"
    BODY_THEN_TRAILERS = "BODY_THEN_TRAILERS"
    MORE_BODY_THEN_TRAILERS = "MORE_BODY_THEN_TRAILERS"
    TRAILERS = "TRAILERS"
    COMPLETE = "COMPLETE"


class WebSocket(State):
    """Where an application is in its WebSocket."""

    CONNECTING = "CONNECTING"
    DENIAL_BODY = "DENIAL_BODY"
    OPEN = "OPEN"
    CLOSED = "CLOSED"


class Lifespan(State):
    """Where an application is in its lifespan."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


# Messages after the end of a response are ignored (ASGI HTTP, "Response Body"), so COMPLETE leads to itself.
# An early hint is taken before the start and after it; what has left can't be preceded any more, and a hint that
# comes that late is ignored.
# A path is the whole of the body, so it is not taken after a piece of one: hence the two states for more of it.
HTTP_SEND: Mapping[HTTP, Mapping[str, HTTP]] = {
    HTTP.START: {
        "http.response.start": HTTP.BODY,
        "http.response.start+trailers": HTTP.BODY_THEN_TRAILERS,
        "http.response.early_hint": HTTP.START,
    },
    HTTP.BODY: {
        "http.response.body+more_body": HTTP.MORE_BODY,
        "http.response.body": HTTP.COMPLETE,
        "http.response.zerocopysend+more_body": HTTP.MORE_BODY,
        "http.response.zerocopysend": HTTP.COMPLETE,
        "http.response.pathsend": HTTP.COMPLETE,
        "http.response.early_hint": HTTP.BODY,
    },
    HTTP.MORE_BODY: {
        "http.response.body+more_body": HTTP.MORE_BODY,
        "http.response.body": HTTP.COMPLETE,
        "http.response.zerocopysend+more_body": HTTP.MORE_BODY,
        "http.response.zerocopysend": HTTP.COMPLETE,
        "http.response.early_hint": HTTP.MORE_BODY,
    },
    HTTP.BODY_THEN_TRAILERS: {
        "http.response.body+more_body": HTTP.MORE_BODY_THEN_TRAILERS,
        "http.response.body": HTTP.TRAILERS,
        "http.response.zerocopysend+more_body": HTTP.MORE_BODY_THEN_TRAILERS,
        "http.response.zerocopysend": HTTP.TRAILERS,
        "http.response.pathsend": HTTP.TRAILERS,
        "http.response.early_hint": HTTP.BODY_THEN_TRAILERS,
    },
    HTTP.MORE_BODY_THEN_TRAILERS: {
        "http.response.body+more_body": HTTP.MORE_BODY_THEN_TRAILERS,
        "http.response.body": HTTP.TRAILERS,
        "http.response.zerocopysend+more_body": HTTP.MORE_BODY_THEN_TRAILERS,
        "http.response.zerocopysend": HTTP.TRAILERS,
        "http.response.early_hint": HTTP.MORE_BODY_THEN_TRAILERS,
    },
    HTTP.TRAILERS: {
        "http.response.trailers+more_trailers": HTTP.TRAILERS,
        "http.response.trailers": HTTP.COMPLETE,
    },
    HTTP.COMPLETE: {
        "http.response.body": HTTP.COMPLETE,
        "http.response.body+more_body": HTTP.COMPLETE,
        "http.response.zerocopysend": HTTP.COMPLETE,
        "http.response.zerocopysend+more_body": HTTP.COMPLETE,
        "http.response.pathsend": HTTP.COMPLETE,
        "http.response.trailers": HTTP.COMPLETE,
        "http.response.trailers+more_trailers": HTTP.COMPLETE,
        "http.response.early_hint": HTTP.COMPLETE,
    },
}

# The denial response (extension websocket.http.response) has no trailers and takes no hints.
WEBSOCKET_SEND: Mapping[WebSocket, Mapping[str, WebSocket]] = {
    WebSocket.CONNECTING: {
        "websocket.accept": WebSocket.OPEN,
        "websocket.close": WebSocket.CLOSED,
        "websocket.http.response.start": WebSocket.DENIAL_BODY,
    },
    WebSocket.DENIAL_BODY: {
        "websocket.http.response.body+more_body": WebSocket.DENIAL_BODY,
        "websocket.http.response.body": WebSocket.CLOSED,
    },
    WebSocket.OPEN: {
        "websocket.send": WebSocket.OPEN,
        "websocket.close": WebSocket.CLOSED,
    },
    WebSocket.CLOSED: {},
}

LIFESPAN_SEND: Mapping[Lifespan, Mapping[str, Lifespan]] = {
    Lifespan.STARTING: {
        "lifespan.startup.complete": Lifespan.RUNNING,
        "lifespan.startup.failed": Lifespan.FAILED,
    },
    Lifespan.RUNNING: {},
    Lifespan.STOPPING: {
        "lifespan.shutdown.complete": Lifespan.STOPPED,
        "lifespan.shutdown.failed": Lifespan.FAILED,
    },
    Lifespan.STOPPED: {},
    Lifespan.FAILED: {},
}

FLAGS = {
    "http.response.start": "trailers",
    "http.response.body": "more_body",
    "http.response.zerocopysend": "more_body",
    "http.response.trailers": "more_trailers",
    "websocket.http.response.body": "more_body",
}
"""The flag of a message that makes it another event; each is a `bool`, false when it is missing."""

EXTENSIONS: Mapping[str, str] = {
    "http.response.early_hint": "http.response.early_hint",
    "http.response.pathsend": "http.response.pathsend",
    "http.response.trailers": "http.response.trailers",
    "http.response.zerocopysend": "http.response.zerocopysend",
    "websocket.http.response.start": "websocket.http.response",
    "websocket.http.response.body": "websocket.http.response",
}
"""What must be in the scope's extensions for a message to be allowed at all."""

EXTENSION_OF: Mapping[str, str] = {
    **EXTENSIONS,
    **{f"{type_}+{FLAGS[type_]}": extension for type_, extension in EXTENSIONS.items() if type_ in FLAGS},
    "http.response.start+trailers": "http.response.trailers",
}
"""The same for events. One that is not in it needs none."""

S = TypeVar("S", bound=State)


def event_of(message: Message) -> str:
    """The event that a message is: its type, with its flag if that is set.

    Raises:
        InvalidMessage: not a mapping, no `type`, or a `type` or flag of the wrong Python type.
    """
    try:
        type_ = message["type"]
    except KeyError:
        raise InvalidMessage("a message needs a 'type'") from None
    except TypeError:
        raise InvalidMessage(f"a message must be a dict, got {type(message).__name__}") from None
    if not isinstance(type_, str):
        raise InvalidMessage(f"type must be str, got {type(type_).__name__}")
    flag = FLAGS.get(type_)
    if flag is None:
        return type_
    value = message.get(flag, False)
    if value is False:
        return type_
    if value is True:
        return type_ + "+" + flag  # not an f-string: it would give a member of an enum its name
    raise InvalidMessage(f"{type_}: {flag} must be bool, got {type(value).__name__}")


def advance(table: Mapping[S, Mapping[str, S]], state: S, event: str) -> S:
    """The state after `event`.

    Raises:
        UnexpectedMessage: the table does not have it.
    """
    next_state = table[state].get(event)
    if next_state is None:
        raise UnexpectedMessage(state, event, table[state])
    return next_state


def check_start(message: Message) -> ResponseHead:
    """The head of the response that a `http.response.start` (or its twin for WebSockets) begins."""
    try:
        status = message["status"]
    except KeyError:
        raise InvalidMessage(f"{message['type']}: status is missing") from None
    return check_head(status, message.get("headers", ()), message["type"])


def check_body(message: Message) -> bytes:
    """The body of a `http.response.body`, or of its twin for WebSockets."""
    body = message.get("body", b"")
    if not isinstance(body, bytes):
        if isinstance(body, bytearray | memoryview):
            return bytes(body)
        raise InvalidMessage(f"{message['type']}: body must be bytes, got {type(body).__name__}")
    return body if type(body) is bytes else bytes(memoryview(body))  # a subclass may lie about its length


def check_path(message: Message) -> str:
    """The path of a `http.response.pathsend`; absolute or not, since frameworks pass on what they were given."""
    path: Any = message.get("path")
    if not isinstance(path, str):
        raise InvalidMessage(f"{message['type']}: path must be str, got {type(path).__name__}")
    return path


def check_descriptor(message: Message) -> int:
    """The descriptor of the open file of a `http.response.zerocopysend`: itself, or from its `fileno()`."""
    file: Any = message.get("file")
    descriptor: Any = file
    try:
        if not isinstance(file, int):
            descriptor = file.fileno()
    except (
        AttributeError,
        OSError,
        ValueError,
    ) as error:  # it never has one; this one has none; it is closed
        raise InvalidMessage(
            f"{message['type']}: file must be open and have a descriptor, got {type(file).__name__}: {error}"
        ) from error
    if not isinstance(descriptor, int) or isinstance(descriptor, bool) or not 0 <= descriptor < 2**31:
        raise InvalidMessage(f"{message['type']}: file must have a descriptor, got {descriptor!r} for one")
    return descriptor


def check_range(message: Message) -> tuple[int | None, int | None]:
    """Offset and count of a `http.response.zerocopysend`: `None` for the current position, and for up to the end."""
    values = message.get("offset"), message.get("count")
    for key, value in zip(("offset", "count"), values, strict=True):
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidMessage(f"{message['type']}: {key} must be int, got {type(value).__name__}")
        if not 0 <= value < 2**63:
            raise InvalidMessage(f"{message['type']}: {key} must be from 0 to 2**63 - 1")
    return values


def check_trailers(message: Message) -> Headers:
    """The fields of a `http.response.trailers`."""
    return check_headers(message.get("headers", ()), message["type"])


def check_links(message: Message) -> Headers:
    """The `link` fields of a `http.response.early_hint`."""
    links = message.get("links", ())
    if isinstance(links, str | bytes) or not isinstance(links, Iterable):
        raise InvalidMessage(f"{message['type']}: links must be a list of bytes, got {type(links).__name__}")
    return check_headers(_as_fields(links), message["type"])


def _as_fields(links: Iterable[Any]) -> Iterator[tuple[bytes, Any]]:
    """One after the other: compiled, a generator expression would take them all before the first is checked."""
    for link in links:
        yield b"link", link


def check_websocket_data(message: Message) -> str | bytes:
    """What a `websocket.send` sends: exactly one of `text` and `bytes` is not `None`."""
    text: Any = message.get("text")
    data: Any = message.get("bytes")
    if (text is None) is (data is None):
        raise InvalidMessage("websocket.send: exactly one of text and bytes must be given")
    if text is not None:
        if not isinstance(text, str):
            raise InvalidMessage(f"websocket.send: text must be str, got {type(text).__name__}")
        return text
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    if not isinstance(data, bytes):
        raise InvalidMessage(f"websocket.send: bytes must be bytes, got {type(data).__name__}")
    return data


def check_close(message: Message) -> tuple[int, str]:
    """Code and reason of a `websocket.close`."""
    code = message.get("code", 1000)
    if not isinstance(code, int) or isinstance(code, bool):
        raise InvalidMessage(f"websocket.close: code must be int, got {type(code).__name__}")
    return int(code), check_text(message, "reason") or ""


def check_text(message: Message, key: str) -> str | None:
    """An optional `str` of a message: `None` when it is missing or `None`."""
    text = message.get(key)
    if text is not None and not isinstance(text, str):
        raise InvalidMessage(f"{message['type']}: {key} must be str, got {type(text).__name__}")
    return text
