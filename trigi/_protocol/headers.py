"""Header fields: which names and values are valid, and what the common ones say (RFC 9110, 5)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from trigi.exceptions import InvalidMessage

from .events import Headers

__all__ = ["LENGTH", "TOKEN", "check_headers", "content_length", "is_host", "tokens"]

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110, 5.6.2: method names, field names, codings, subprotocols."""

# RFC 9110, 5.5: visible characters, obs-text, and white space between them. That leaves out CR, LF and NUL, by which
# a response could be split, and every other control character.
INVALID_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# RFC 9110, 8.6. 19 digits are less than 2**63.
LENGTH = re.compile(rb"[0-9]{1,19}")

# RFC 9110, 7.2: uri-host [":" port]. A registered name as RFC 3986 has it, or an address in brackets. Empty when the
# target has no authority, but a port alone is none (RFC 9110, 4.2.1). Possessive: nothing is tried twice.
HOST = re.compile(
    rb"(?:(?:[A-Za-z0-9\-._~!$&'()*+,;=]++|%[0-9A-Fa-f]{2})++(?::[0-9]*)?)?"
    rb"|\[[0-9A-Fa-f:.]+\](?::[0-9]*)?"
    rb"|\[v[0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+,;=:]+\](?::[0-9]*)?",
)

# The names of an application's headers are few: once found valid they are known, in lower case. The bound is for an
# application that makes up names without end.
_KNOWN_NAMES: dict[bytes, bytes] = {}
_KNOWN_NAMES_LIMIT = 1024


def check_headers(headers: Iterable[Any], where: str) -> Headers:
    """An application's headers as a list of pairs: names in lower case, values without surrounding white space.

    Args:
        headers: any iterable of two-item iterables of `bytes`; an iterator is used up.
        where: the message's type, for the error.

    Raises:
        InvalidMessage: something else, or a name or value that RFC 9110 does not allow.
    """
    try:
        fields = iter(headers)
    except TypeError:
        raise InvalidMessage(f"{where}: headers must be iterable, got {type(headers).__name__}") from None
    checked = []
    for field in fields:
        try:
            name, value = field
        except (TypeError, ValueError):
            raise InvalidMessage(f"{where}: headers must be pairs of bytes, got {field!r}") from None
        if not isinstance(name, bytes):
            raise InvalidMessage(f"{where}: header names must be bytes, got {type(name).__name__} {name!r}")
        if not isinstance(value, bytes):
            raise InvalidMessage(
                f"{where}: value of header {name!r} must be bytes, got {type(value).__name__} {value!r}"
            )
        known = _KNOWN_NAMES.get(name) or _check_name(name, where)
        if INVALID_IN_VALUE.search(value):
            raise InvalidMessage(f"{where}: value of header {name!r} has a control character: {value!r}")
        checked.append((known, value.strip(b" \t")))
    return checked


def _check_name(name: bytes, where: str) -> bytes:
    if not TOKEN.fullmatch(name):
        raise InvalidMessage(f"{where}: {name!r} is not a valid header name")
    lower = name.lower()
    if len(_KNOWN_NAMES) < _KNOWN_NAMES_LIMIT:
        _KNOWN_NAMES[name] = lower
    return lower


def content_length(headers: Headers, where: str) -> int | None:
    """The length that an application announced for its body, in bytes.

    Raises:
        InvalidMessage: not a number, or more than one.
    """
    values = [value for name, value in headers if name == b"content-length"]
    if not values:
        return None
    if len(values) > 1 or not LENGTH.fullmatch(values[0]):
        raise InvalidMessage(f"{where}: content-length must be one number, got {b', '.join(values)!r}")
    return int(values[0])


def tokens(headers: Headers, name: bytes) -> list[bytes]:
    """The items of a comma-separated header, of all its lines, in lower case and order."""
    return [
        item
        for header, value in headers
        if header == name
        for item in (part.strip(b" \t").lower() for part in value.split(b","))
        if item
    ]


def is_host(value: bytes) -> bool:
    """Whether a `Host` is what RFC 9110, 7.2 allows."""
    return HOST.fullmatch(value) is not None
