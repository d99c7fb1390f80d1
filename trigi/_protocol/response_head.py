"""The head of a response, as an application gives it: checked, and known again when it is the same.

The responses of an application differ in little beside their bodies. So the heads of the latest are kept, for as long
as there are not too many, and neither checked nor encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from trigi.exceptions import InvalidMessage

from .events import Headers
from .headers import check_headers, content_length
from .http1_encode import encode_head

__all__ = ["HOP_BY_HOP", "ResponseHead", "check_head"]

HOP_BY_HOP: Final = frozenset((b"connection", b"transfer-encoding", b"keep-alive"))
"""Headers of an application's that HTTP/1.1 does not pass on as they are: they are the server's business."""

NOT_PLAIN: Final = HOP_BY_HOP | {b"date", b"server"}

KNOWN_SIZE: Final = 2048
"""Bytes of a head that is worth remembering."""

KNOWN_LIMIT: Final = 256
"""How many heads are remembered, of all that applications send: then they are all forgotten."""

_known: Final[dict[tuple[Any, ...], ResponseHead]] = {}


class ResponseHead:
    """Status and headers of a final response, and what they say.

    Attributes:
        status: of the response.
        headers: its fields, as `check_headers` gives them.
        names: of its fields.
        length: of the body, in bytes, as its content-length announces it; `None` if there is none.
        lines: the head as HTTP/1.1 has it, without the empty line.
        is_plain: `lines` leave as they are, once the server's own fields are added: the body has its length.
    """

    __slots__ = ("headers", "is_plain", "length", "lines", "names", "status")

    def __init__(self, status: int, headers: Headers, where: str = "http.response.start") -> None:
        """As the class says; `where` is for the error.

        Raises:
            InvalidMessage: the content-length is no number, or more than one.
        """
        self.status = status
        self.headers = headers
        self.names = frozenset([name for name, _ in headers])
        self.length = content_length(headers, where)
        self.lines = encode_head(status, headers)[:-2]
        # RFC 9110, 8.6: no content-length with 204.
        self.is_plain = self.length is not None and status != 204 and NOT_PLAIN.isdisjoint(self.names)


def check_head(status: Any, headers: Iterable[Any], where: str) -> ResponseHead:
    """The head of a response with this status and these headers.

    The status must be final: 1xx are interim responses (RFC 9110, 15.2), after which a client goes on waiting.

    Args:
        status: from 200 to 999.
        headers: as for `check_headers`.
        where: the message's type, for the error.

    Raises:
        InvalidMessage: status or headers are not such, or contradict each other.
    """
    key = None
    # Of what is equal to an int, not all is one. (And what is equal to known headers is taken for them.)
    if type(status) is int and type(headers) is list:
        key = (status, *headers)
        try:
            head = _known.get(key)
        except TypeError:  # there is a list in it
            key = None
        else:
            if head is not None:
                return head
    if not isinstance(status, int) or isinstance(status, bool):
        raise InvalidMessage(f"{where}: status must be int, got {type(status).__name__}")
    if not 200 <= status <= 999:
        raise InvalidMessage(f"{where}: status must be from 200 to 999, got {status}")
    head = ResponseHead(int(status), check_headers(headers, where), where)
    if (
        key is not None
        and len(head.lines) <= KNOWN_SIZE
        # Whatever else there is might change, or equal what it should not.
        and all(type(field) is tuple and set(map(type, field)) == {bytes} for field in headers)
    ):
        if len(_known) >= KNOWN_LIMIT:
            _known.clear()
        _known[key] = head
    return head
