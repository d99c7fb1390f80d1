"""The access log's line: a format with Apache's atoms, compiled once into a function of an exchange.

What a client has sent is escaped: it can neither end the line, nor a quoted field, nor command a terminal.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ._connection.observer import ExchangeReport
from ._protocol.events import Headers
from ._protocol.scope import ConnectionInfo
from .exceptions import ConfigError

__all__ = [
    "ATOMS",
    "COMBINED_FORMAT",
    "JSON_MESSAGE_FORMAT",
    "Atom",
    "client_name",
    "compile_format",
    "escape",
    "header",
    "request_line",
]

COMBINED_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
"""Apache's combined format: what every log analyser reads."""

JSON_MESSAGE_FORMAT = "%(r)s %(s)s"
"""In JSON the rest is in fields of its own."""

# The backslash is escaped too, so that \x41 in a log always was one byte, and never those four characters.
_ESCAPES = {byte: f"\\x{byte:02x}" for byte in range(256) if not 0x20 <= byte < 0x7F or byte in b'"\\'}

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def escape(value: bytes | str) -> str:
    r"""Text in printable ASCII: quotes, backslashes and all other bytes become `\xHH`; `str` is taken as UTF-8."""
    if isinstance(value, str):
        value = value.encode(errors="backslashreplace")
    text = value.decode("latin-1")
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text  # nearly always, and several times faster
    return text.translate(_ESCAPES)


def header(headers: Headers, name: bytes) -> str | None:
    """The escaped value of a header field, its lines joined by commas; `None` when there is none."""
    values = [value for field, value in headers if field == name]
    return escape(b", ".join(values)) if values else None


def request_line(exchange: ExchangeReport) -> str:
    """The escaped request line, whatever the HTTP version."""
    request = exchange.request
    return f"{escape(request.method)} {escape(request.target)} HTTP/{request.http_version}"


def client_host(connection: ConnectionInfo) -> str:
    """The client's IP address, `"unix"` for a client of a unix socket, `"-"` when nothing is known."""
    client, server = connection.client, connection.server
    if client is not None and client.port is not None:
        return escape(client.host)
    return "unix" if (client or (server is not None and server.port is None)) else "-"


def client_name(connection: ConnectionInfo) -> str | None:
    """The client's address and port, `"unix"` for a client of a unix socket, `None` when nothing is known."""
    client = connection.client
    if client is not None and client.port is not None:
        return escape(str(client))
    host = client_host(connection)
    return None if host == "-" else host


@functools.lru_cache(maxsize=1)
def _log_date(second: int) -> str:
    """Apache's time stamp for a time in seconds since the epoch, in local time and in English anywhere."""
    now = time.localtime(second)
    return time.strftime(f"[%d/{_MONTHS[now.tm_mon - 1]}/%Y:%H:%M:%S %z]", now)


class Atom(NamedTuple):
    """One thing an access log can say: what it is, and how to get it from an exchange."""

    meaning: str
    of: Callable[[ExchangeReport], str]


ATOMS: Mapping[str, Atom] = {
    "h": Atom("the client's IP address, or unix", lambda it: client_host(it.connection)),
    "l": Atom("always -", lambda _: "-"),
    "u": Atom("always -: users are the application's business", lambda _: "-"),
    "t": Atom("the time at the response's end, in brackets", lambda _: _log_date(int(time.time()))),
    "r": Atom("the request line", request_line),
    "m": Atom("the method", lambda it: escape(it.request.method)),
    "U": Atom("the path as it was sent, without the query", lambda it: escape(it.request.raw_path)),
    "q": Atom("the query, without the ?", lambda it: escape(it.request.query_string)),
    "H": Atom("the protocol, HTTP/1.1", lambda it: f"HTTP/{it.request.http_version}"),
    "s": Atom("the status; - when no response was sent", lambda it: str(it.status or "-")),
    "B": Atom("bytes of the response's body", lambda it: str(it.bytes_sent)),
    "b": Atom("the same; - when there were none", lambda it: str(it.bytes_sent or "-")),
    "f": Atom("the Referer", lambda it: header(it.request.headers, b"referer") or "-"),
    "a": Atom("the User-Agent", lambda it: header(it.request.headers, b"user-agent") or "-"),
    "T": Atom("the duration in whole seconds", lambda it: str(int(it.duration))),
    "M": Atom("the duration in whole milliseconds", lambda it: str(int(it.duration * 1_000))),
    "D": Atom("the duration in whole microseconds", lambda it: str(int(it.duration * 1_000_000))),
    "L": Atom("the duration in seconds, with six decimals", lambda it: f"{it.duration:.6f}"),
    "p": Atom("the process id, in angle brackets", lambda _: f"<{os.getpid()}>"),
    "X": Atom("+, or X for a response that was cut off", lambda it: "+" if it.complete else "X"),
}
"""The atoms of an access log format, by their names; `%(h)s` in a format is the atom `h`.

Beside them there are `{NAME}i` and `{NAME}o` for headers of the request and the response, and `{NAME}e` for
variables of the server's environment. `-` stands for what is not there.
"""

_ATOM = re.compile(r"%%|%\(([^)]*)\)s|%")
_NAMED_ATOM = re.compile(r"\{([^{}]+)\}([ioe])")


def compile_format(template: str) -> Callable[[ExchangeReport], str]:
    """Make a function that writes the access log's line for an exchange; only the atoms used are computed.

    Args:
        template: text with atoms as `%(h)s`, and `%%` for a percent sign.

    Raises:
        ConfigError: an atom is not known, or a percent sign begins none.
    """
    getters: list[Callable[[ExchangeReport], str]] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "%":
            raise ConfigError(
                f"access_log_format: the % at position {match.start()} of {template!r} begins no atom: "
                "write %(h)s for the atom h, and %% for a percent sign"
            )
        if match[0] == "%%":
            return "%%"
        getters.append(_getter(match[1]))
        return "%s"

    line = _ATOM.sub(replace, template)
    return lambda exchange: line % tuple([get(exchange) for get in getters])


def _getter(name: str) -> Callable[[ExchangeReport], str]:
    if name in ATOMS:
        return ATOMS[name].of
    match = _NAMED_ATOM.fullmatch(name)
    if match is None:
        known = ", ".join([*ATOMS, "{header}i", "{header}o", "{VARIABLE}e"])
        raise ConfigError(f"access_log_format: {name!r} is not an atom; the atoms are {known}")
    if match[2] == "e":
        value = escape(os.environ.get(match[1], "")) or "-"
        return lambda _: value
    key = match[1].lower().encode()
    if match[2] == "i":
        return lambda exchange: header(exchange.request.headers, key) or "-"
    return lambda exchange: header(exchange.response_headers, key) or "-"
