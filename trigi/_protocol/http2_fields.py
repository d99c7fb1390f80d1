"""The field section of an HTTP/2 request becomes a `Request` (RFC 9113, 8)."""

from __future__ import annotations

import re
from typing import Final

from trigi.config import Config
from trigi.exceptions import BadRequest

from .events import Headers, Request
from .headers import LENGTH, TOKEN, is_host
from .http2_priority import UNSIGNALLED, Priority, parse_priority

__all__ = ["CONNECTION_SPECIFIC", "FIELD_OVERHEAD", "Malformed", "check_trailers", "read_request"]

PSEUDO_FIELDS: Final = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})

CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
"""Fields of HTTP/1.1's connections, which HTTP/2 has none of (RFC 9113, 8.2.2)."""

FIELD_OVERHEAD: Final = 32
"""Bytes that each field counts for beside its name and value (RFC 9113, 6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE)."""

# RFC 9113, 8.2.1: a token without capitals; no control characters, and no white space at the ends.
NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
VALUE: Final = re.compile(rb"(?![ \t])[\t\x20-\x7e\x80-\xff]*(?<![ \t])")
SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*")  # RFC 3986, 3.1
PATH: Final = re.compile(rb"/[\x21\x22\x24-\x7e]*")  # in origin-form: no fragment, no control, no white space


class Malformed(Exception):
    """A request that is not one: the answer is to reset its stream (RFC 9113, 8.1.1)."""


def read_request(
    fields: Headers, *, stream_id: int, has_body: bool, config: Config
) -> tuple[Request, int | None]:
    """The request that a field section makes, and the length that it announces for its body.

    Raises:
        Malformed: it is none.
        BadRequest: it is one, but is refused.
    """
    pseudo, headers = _split(fields)
    method = pseudo.get(b":method", b"")
    if not TOKEN.fullmatch(method):
        raise Malformed("no valid :method")
    protocol = pseudo.get(b":protocol")
    if method == b"CONNECT" and protocol is None:
        if set(pseudo) != {b":method", b":authority"}:
            raise Malformed("a CONNECT request has :method and :authority, and nothing else")
        raise BadRequest("CONNECT is not supported", status_hint=501)
    if protocol is not None and method != b"CONNECT":
        raise Malformed(":protocol without CONNECT")  # RFC 8441, 4
    if not SCHEME.fullmatch(pseudo.get(b":scheme", b"")):
        raise Malformed("no valid :scheme")
    path = pseudo.get(b":path", b"")
    if not PATH.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
        raise Malformed("no valid :path")
    _check_size(fields, config)
    length, headers = _read_fields(headers, pseudo.get(b":authority"))
    values = dict(headers)
    expects_continue = has_body and b"expect" in values
    if expects_continue and values[b"expect"].lower() != b"100-continue":
        raise BadRequest("unknown expectation", status_hint=417)
    if protocol is not None and protocol.lower() != b"websocket":
        raise BadRequest(f"no protocol {protocol!r} over CONNECT", status_hint=501)
    if not has_body and (length or protocol is not None):
        raise Malformed("the body is missing that the header announced")
    if length is not None and length > config.body_size_limit:
        raise BadRequest("request body too large", status_hint=413, limit="body_size_limit")
    raw_path, _, query_string = path.partition(b"?")
    request = Request(
        method=method.decode("ascii"),
        target=path,
        raw_path=raw_path,
        query_string=query_string,
        http_version="2",
        headers=headers,
        has_body=has_body and protocol is None,
        expects_continue=expects_continue,
        accepts_trailers=b"te" in values,
        is_upgrade=protocol is not None,
        stream_id=stream_id,
        priority=_priority(headers) if b"priority" in values else UNSIGNALLED,
    )
    return request, length


def _priority(headers: Headers) -> Priority:
    return parse_priority(b", ".join([value for name, value in headers if name == b"priority"]))


def check_trailers(fields: Headers, *, ends: bool, missing: int | None) -> None:
    """The same rules, but that there are no pseudo-fields (RFC 9113, 8.1). ASGI has no place for them.

    Args:
        fields: a second field section on a stream.
        ends: whether it ends the request.
        missing: bytes of the body that have not come.

    Raises:
        Malformed: they are not trailers.
    """
    pseudo, _ = _split(fields)
    if pseudo or not ends:
        raise Malformed("trailers that have pseudo-fields, or do not end the request")
    if missing:
        raise Malformed("less body than the content-length said")


def _split(fields: Headers) -> tuple[dict[bytes, bytes], Headers]:
    """Pseudo-fields and fields, each valid as RFC 9113, 8.2 and 8.3, have them."""
    pseudo: dict[bytes, bytes] = {}
    headers: Headers = []
    for name, value in fields:
        if not VALUE.fullmatch(value):
            raise Malformed(f"invalid value of {name!r}")
        if name[:1] == b":":
            if headers or name in pseudo or name not in PSEUDO_FIELDS:
                raise Malformed(f"{name!r} twice, unknown, or behind a field")
            pseudo[name] = value
            continue
        if not NAME.fullmatch(name):
            raise Malformed(f"invalid name of a field: {name!r}")
        if name in CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
            raise Malformed(f"{name!r} has no place in HTTP/2")
        headers.append((name, value))
    return pseudo, headers


def _check_size(fields: Headers, config: Config) -> None:
    if len(fields) > config.header_count_limit:
        raise BadRequest("too many fields in the request head", status_hint=431, limit="header_count_limit")
    size = sum([len(name) + len(value) for name, value in fields]) + FIELD_OVERHEAD * len(fields)
    if size > config.head_size_limit:
        raise BadRequest("request head too large", status_hint=431, limit="head_size_limit")


def _read_fields(headers: Headers, authority: bytes | None) -> tuple[int | None, Headers]:
    """The announced length, and the fields as HTTP/1.1 would have them: one `host`, one `cookie`."""
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    cookies: list[bytes] = []
    rest: Headers = []
    for field in headers:
        match field[0]:
            case b"host":
                hosts.append(field[1])
            case b"cookie":
                if not cookies:
                    rest.append(field)  # its place
                cookies.append(field[1])
                continue
            case b"content-length":
                lengths.append(field[1])
        rest.append(field)
    if len(hosts) > 1 or not all(map(is_host, hosts)):
        raise Malformed("more than one host, or an invalid one")
    if authority is None and not hosts:
        raise Malformed("neither :authority nor host")
    if len(lengths) > 1 or (lengths and not LENGTH.fullmatch(lengths[0])):
        raise Malformed("invalid content-length")
    if authority is not None:
        if not authority or not is_host(authority):
            raise Malformed("invalid :authority")  # RFC 9113, 8.3.1: no userinfo, and not empty
        # It replaces the field (ASGI HTTP 2.5, "HTTP Connection Scope").
        rest = [(b"host", authority), *(field for field in rest if field[0] != b"host")]
    if len(cookies) > 1:  # crumbs (RFC 9113, 8.2.3)
        joined = (b"cookie", b"; ".join(cookies))
        rest = [joined if field[0] == b"cookie" else field for field in rest]
    return int(lengths[0]) if lengths else None, rest
