"""A request's head, parsed with h11."""

from __future__ import annotations

import h11

from trigi.exceptions import BadRequest

from .events import Headers

__all__ = ["parse_head"]


def parse_head(head: bytes) -> tuple[bytes, bytes, bytes, Headers]:
    """Method, target, version (`b"1.1"`) and headers of a complete head, names in lower case.

    An `h11.Connection` is made for each head: only its reading of the request line and the fields is used, and
    framing is decided by `http1.HTTP1Codec`, alike for every parser.

    Raises:
        BadRequest: h11 refuses it; 400, or what h11 hints at.
    """
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    try:
        request = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequest(str(error), status_hint=error.error_status_hint) from error
    if not isinstance(request, h11.Request):  # a head that ends before h11's does; never seen
        raise BadRequest("incomplete request head")
    return request.method, request.target, request.http_version, list(request.headers)
