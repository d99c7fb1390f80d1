"""The fields of a request's head, parsed with httptools, which is llhttp: some ten times as fast as h11.

llhttp knows a list of methods, and h11 takes any token. So what httptools refuses, h11 decides; what it takes has
passed the codec, which is stricter than both. A head is read alike by either.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from . import http1_h11
from .events import Headers

__all__ = ["parse_fields"]


class _Fields:
    """What the parser has found."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))


def parse_fields(head: bytes) -> Headers:
    """The fields of a complete head, names in lower case.

    A parser is made for each head: only its reading of the fields is used, and framing is decided by `http1_head`,
    alike for every parser.

    Raises:
        BadRequest: h11 refuses it too.
    """
    found = _Fields()
    try:
        HttpRequestParser(found).feed_data(head)
    except HttpParserUpgrade:  # the head is complete
        pass
    except HttpParserError:
        return http1_h11.parse_fields(head)
    return found.headers
