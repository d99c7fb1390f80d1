"""A request's head, parsed with httptools, which is llhttp: some ten times as fast as h11.

llhttp knows a list of methods, and h11 takes any token. So what httptools refuses, h11 decides; what it takes has
passed the codec, which is stricter than both. A head is read alike by either.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from . import http1_h11
from .events import Headers

__all__ = ["parse_head"]


class _Head:
    """What the parser has found."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: Headers = []

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))


def parse_head(head: bytes) -> tuple[bytes, bytes, bytes, Headers]:
    """Method, target, version (`b"1.1"`) and headers of a complete head, names in lower case.

    A parser is made for each head: only its reading of the request line and the fields is used, and framing is
    decided by `http1.HTTP1Codec`, alike for every parser.

    Raises:
        BadRequest: h11 refuses it too.
    """
    found = _Head()
    parser = HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:  # the head is complete
        pass
    except HttpParserError:
        return http1_h11.parse_head(head)
    return parser.get_method(), found.target, parser.get_http_version().encode(), found.headers
