"""What a codec can say: the events that bytes from a client turn into.

A codec gives a `Request`, then the `Data` of its body, the last with `more` false. A request without a body is a
`Request` alone, with `has_body` false.

HTTP/1.1 has one request at a time, and where there is no event to give, a sentinel says why. On HTTP/2 there are many,
told apart by their stream identifiers, and what happens to them and to their connection are events, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from trigi.exceptions import BadRequest

from .http2_priority import UNSIGNALLED, Priority

__all__ = [
    "HTTP2_PREFACE",
    "NEED_DATA",
    "PAUSED",
    "Data",
    "Goodbye",
    "Headers",
    "Pause",
    "Pong",
    "Prioritized",
    "Refused",
    "Request",
    "Reset",
    "WindowOpened",
]

Headers = list[tuple[bytes, bytes]]
"""Header fields as pairs of name and value, in the order of the message; names in lower case."""


class Pause(Enum):
    """Why a codec has no event."""

    NEED_DATA = auto()
    PAUSED = auto()
    HTTP2_PREFACE = auto()


NEED_DATA: Final = Pause.NEED_DATA
"""Nothing until more bytes have come."""

PAUSED: Final = Pause.PAUSED
"""This request is read to its end; the next one is not read before `start_next_cycle()`."""

HTTP2_PREFACE: Final = Pause.HTTP2_PREFACE
"""The client speaks HTTP/2, without having asked (RFC 9113, 3.3): what was received belongs to another codec."""


@dataclass(slots=True)
class Request:
    """The head of a request, checked.

    Attributes:
        method: as sent; methods are case-sensitive (RFC 9110, 9.1).
        target: as sent, for logs.
        raw_path: the path of the target, percent-encoded as it was sent.
        query_string: what followed the first `?`, or empty.
        http_version: `"1.0"`, `"1.1"` or `"2"`.
        headers: names in lower case, values without surrounding white space.
        has_body: whether `Data` follows.
        keep_alive: whether the client would use this connection again (HTTP/1 only).
        expects_continue: whether the client waits for `100 Continue` before it sends the body.
        accepts_trailers: whether the client said `TE: trailers`.
        is_upgrade: whether the client asks for a WebSocket here.
        stream_id: of the stream, odd; 0 on HTTP/1.
        priority: how urgent the response is (HTTP/2 only).
    """

    method: str
    target: bytes
    raw_path: bytes
    query_string: bytes
    http_version: str
    headers: Headers
    has_body: bool = False
    keep_alive: bool = True
    expects_continue: bool = False
    accepts_trailers: bool = False
    is_upgrade: bool = False
    stream_id: int = 0
    priority: Priority = UNSIGNALLED


@dataclass(slots=True)
class Data:
    """A piece of a request's body: may be empty when it is the last. `more` says whether another follows."""

    data: bytes
    more: bool
    stream_id: int = 0


# HTTP/2 only


@dataclass(slots=True)
class Reset:
    """A stream has ended before its time: the client reset it, or broke HTTP on it, and `error` says how."""

    stream_id: int
    error: BadRequest | None = None


@dataclass(slots=True)
class Refused:
    """A request that is well-formed, and refused all the same: it is to be answered with `error.status_hint`."""

    stream_id: int
    error: BadRequest


@dataclass(slots=True)
class WindowOpened:
    """The client takes more on a stream, or, with 0, on several."""

    stream_id: int


@dataclass(slots=True)
class Prioritized:
    """The client has changed the priority of a response."""

    stream_id: int
    priority: Priority


@dataclass(slots=True)
class Pong:
    """The client has answered a ping: it has read what was sent before that."""


@dataclass(slots=True)
class Goodbye:
    """The client will open no more streams."""
