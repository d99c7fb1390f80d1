"""What `start_response()` may be called with (PEP 3333, "The start_response() Callable")."""

from __future__ import annotations

import re
from typing import Any

from trigi.exceptions import ApplicationError

__all__ = ["check_start"]

# Code and reason separated by one space, no control characters. An interim response (1xx) is not the application's to
# give.
STATUS = re.compile(r"[2-9][0-9]{2}(?: [^\x00-\x1f\x7f]*)?")
NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
LENGTH = re.compile(r"[0-9]{1,19}")
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

# PEP 3333, "Other HTTP Features": these are "the exclusive province of the actual web server".
HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    )
)


def check_start(status: Any, headers: Any) -> tuple[int, list[tuple[bytes, bytes]], int | None]:
    """What `start_response()` was called with, as ASGI has it: the code, the headers, and the length they promise.

    Raises:
        ApplicationError: it is not what PEP 3333 says.
    """
    if not isinstance(status, str):
        raise ApplicationError(f"status must be str, got {type(status).__name__}")
    if not STATUS.fullmatch(status):
        raise ApplicationError(f"status must be like '200 OK', from 200 to 999, got {status!r}")
    if not isinstance(headers, list):
        raise ApplicationError(f"response_headers must be a list, got {type(headers).__name__}")
    fields: list[tuple[bytes, bytes]] = []
    length: int | None = None
    for field in headers:
        if (
            not isinstance(field, tuple)
            or len(field) != 2
            or not all(isinstance(part, str) for part in field)
        ):
            raise ApplicationError(f"a header must be a tuple of two str, got {field!r}")
        name, value = field
        lower = name.lower()
        if not NAME.fullmatch(name):
            raise ApplicationError(f"{name!r} is not a valid header name")
        if lower in HOP_BY_HOP:
            raise ApplicationError(f"header {name} is the server's business")
        if CONTROLS.search(value):
            raise ApplicationError(f"the value of header {name} has a control character: {value!r}")
        try:
            fields.append((lower.encode("ascii"), value.encode("latin-1")))
        except UnicodeEncodeError:
            raise ApplicationError(
                f"the value of header {name} has characters beyond U+00FF: {value!r}"
            ) from None
        if lower == "content-length" and LENGTH.fullmatch(value):
            length = int(value)  # of several, or others, the server has its own opinion
    return int(status[:3]), fields, length
