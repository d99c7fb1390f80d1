"""What a codec can say: the events that bytes from a client turn into.

A codec gives a `Request`, then the `Data` of its body, the last with `more` false. A request without a body is a
`Request` alone, with `has_body` false. Where there is no event to give, one of two sentinels says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

__all__ = ["NEED_DATA", "PAUSED", "Data", "Headers", "Pause", "Request"]

Headers = list[tuple[bytes, bytes]]
"""Header fields as pairs of name and value, in the order of the message; names in lower case."""


class Pause(Enum):
    """Why a codec has no event."""

    NEED_DATA = auto()
    PAUSED = auto()


NEED_DATA: Final = Pause.NEED_DATA
"""Nothing until more bytes have come."""

PAUSED: Final = Pause.PAUSED
"""This request is read to its end; the next one is not read before `start_next_cycle()`."""


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


@dataclass(slots=True)
class Data:
    """A piece of a request's body: may be empty when it is the last. `more` says whether another follows."""

    data: bytes
    more: bool
