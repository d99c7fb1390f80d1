"""The fields of a request's head, parsed with h11."""

from __future__ import annotations

import h11

from trigi.exceptions import BadRequest

from .events import Headers

__all__ = ["parse_fields"]


def parse_fields(head: bytes) -> Headers:
    """The fields of a complete head, names in lower case.

    An `h11.Connection` is made for each head: only its reading of the fields is used, and framing is decided by
    `http1_head`, alike for every parser.

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
    return list(request.headers)
