"""Checks of values, to be put together into tables: each says where the wrong value is, and what it must be.

A value is plain data (ASGI, "Events"): `bytes`, `str`, `int` in 64 bits, finite `float`, `list` or `tuple`, `dict`
with `str` keys, `bool`, `None`. Subclasses of these are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ._protocol.headers import INVALID_IN_VALUE, TOKEN

__all__ = [
    "Check",
    "Key",
    "Keys",
    "Wrong",
    "check_keys",
    "data",
    "dictionary",
    "field_value",
    "flag",
    "headers",
    "integer",
    "keys",
    "list_of",
    "may",
    "must",
    "nullable",
    "one_of",
    "pair",
    "plain",
    "string",
    "text",
    "whole",
]

Check = Callable[[Any, str], None]
"""Takes a value and the path to it, and raises `Wrong` with a sentence that begins with the path."""


class Wrong(Exception):
    """A value is not what it must be."""


class Key(NamedTuple):
    """What a dictionary has under one key."""

    check: Check
    required: bool


Keys = dict[str, Key]


# What values can be


def instance_of(kind: type, name: str) -> Check:
    """An instance of `kind`. A `bool` is no `int`."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise Wrong(f"{path} must be {name}, got {type(value).__name__}")

    return check


data = instance_of(bytes, "bytes")
string = instance_of(str, "str")
flag = instance_of(bool, "bool")
integer = instance_of(int, "int")
dictionary = instance_of(dict, "a dict")


def text(value: Any, path: str) -> None:
    """A `str` that UTF-8 can say: no lone surrogates."""
    string(value, path)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Wrong(f"{path} must be text that UTF-8 can encode, got {value[error.start]!r} in it") from None


def whole(minimum: int = -(2**63), maximum: int = 2**63 - 1) -> Check:
    """An `int` from `minimum` to `maximum`."""

    def check(value: Any, path: str) -> None:
        integer(value, path)
        if not minimum <= value <= maximum:
            # Python refuses to write an int of some thousand digits.
            got = f", got {value}" if value.bit_length() <= 64 else ""
            raise Wrong(f"{path} must be from {minimum} to {maximum}{got}")

    return check


def one_of(*allowed: str) -> Check:
    """One of a few strings."""

    def check(value: Any, path: str) -> None:
        string(value, path)
        if value not in allowed:
            raise Wrong(f"{path} must be one of {', '.join(map(repr, allowed))}, got {value!r}")

    return check


def nullable(check: Check) -> Check:
    """The same, or `None`."""
    return lambda value, path: None if value is None else check(value, path)


def list_of(item: Check) -> Check:
    """A list or tuple of anything that is alike. Another iterable could be read only once, or is not plain."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list | tuple):
            raise Wrong(f"{path} must be a list or tuple, got {type(value).__name__}")
        for index, each in enumerate(value):
            item(each, f"{path}[{index}]")

    return check


def pair(first: Check, second: Check) -> Check:
    """A list or tuple of two."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list | tuple) or len(value) != 2:
            size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
            raise Wrong(f"{path} must be a list or tuple of two, got {type(value).__name__}{size}")
        first(value[0], f"{path}[0]")
        second(value[1], f"{path}[1]")

    return check


def plain(value: Any, path: str) -> None:
    """Anything that an event may hold."""
    if value is None or isinstance(value, bytes | str | bool):
        return
    if isinstance(value, int):
        whole()(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Wrong(f"{path} must be a finite float, got {value}")
    elif isinstance(value, list | tuple):
        list_of(plain)(value, path)
    elif isinstance(value, dict):
        keys({}, plain)(value, path)
    else:
        raise Wrong(f"{path} must be plain data, got {type(value).__name__}")


def check_keys(value: dict[Any, Any], known: Keys, other: Check, prefix: str, suffix: str = "") -> None:
    """Check a dict by a table of its keys, what the table does not have by `other`."""
    for key in known:
        if known[key].required and key not in value:
            raise Wrong(f"{prefix}{key}{suffix} is missing")
    for key, each in value.items():
        string(key, f"{prefix}{key!r}{suffix}, a key,")
        check = known[key].check if key in known else other
        check(each, f"{prefix}{key}{suffix}")


def keys(known: Keys, other: Check) -> Check:
    """A dict inside another."""

    def check(value: Any, path: str) -> None:
        dictionary(value, path)
        check_keys(value, known, other, f"{path}[", "]")

    return check


def must(check: Check) -> Key:
    """A key that has to be there."""
    return Key(check, required=True)


def may(check: Check) -> Key:
    """A key that has a default."""
    return Key(check, required=False)


# What headers can be


def field_name(*forbidden: bytes) -> Check:
    """A header's name: in lower case (ASGI), a token (RFC 9110, 5.6.2), and none that has no place here."""

    def check(value: Any, path: str) -> None:
        data(value, path)
        if value.startswith(b":"):
            raise Wrong(f"{path} must not be a pseudo header, got {value!r}")
        if not TOKEN.fullmatch(value):
            raise Wrong(f"{path} must be a valid header name, got {value!r}")
        if value != value.lower():
            raise Wrong(f"{path} must be in lower case, got {value!r}")
        if value in forbidden:
            raise Wrong(f"{path} must not be {value.decode()} here")

    return check


def field_value(value: Any, path: str) -> None:
    """A header's value: no control characters (RFC 9110, 5.5)."""
    data(value, path)
    if INVALID_IN_VALUE.search(value):
        raise Wrong(f"{path} must not have control characters, got {value!r}")


def headers(*forbidden: bytes) -> Check:
    """A list of names and values."""
    return list_of(pair(field_name(*forbidden), field_value))
