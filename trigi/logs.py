"""What a server says while it works, through the standard `logging`.

There are two loggers: `trigi.access` has a record for each response, `trigi.error` all else. Nothing that a client
has sent reaches them as it is: `escape` makes it printable ASCII, in which no line, quoted field or terminal
command can begin or end. Records carry their facts once more, as the `dict` `record.trigi`, for formatters and
filters of your own. What is about a request has

    client          "127.0.0.1:50412", "[::1]:50412", "unix" for a unix socket's, or None
    method, target  of the request, escaped
    http_version    "1.0", "1.1" or "2"
    host            the request's Host, escaped, or None
    websocket       whether the request asked for a WebSocket

a record of `trigi.access` also

    status          int, or None when no response was sent; 101 for a WebSocket that was accepted
    bytes           of the response's body, int
    duration        seconds from the request's head to the response's end, float
    complete        False when the response was cut off
    referer, user_agent     escaped, or None

and a refused request `client`, `status`, `reason` and `limit` (a setting's name, or None).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TextIO

from ._access_format import (
    ATOMS,
    COMBINED_FORMAT,
    JSON_MESSAGE_FORMAT,
    Atom,
    client_name,
    compile_format,
    escape,
    header,
    request_line,
)
from ._connection.observer import ExchangeReport, Observer
from ._protocol.scope import ConnectionInfo, Endpoint
from .config import Config
from .exceptions import BadConnection, BadRequest

__all__ = [
    "ATOMS",
    "COMBINED_FORMAT",
    "Atom",
    "JSONFormatter",
    "LogObserver",
    "TextFormatter",
    "compile_format",
    "configure_logging",
    "escape",
]

_ASYNCIO_SIGNS = (
    "no running event loop",  # asyncio.get_running_loop(), and so nearly all of asyncio
    "There is no current event loop",  # asyncio.get_event_loop()
    "unrecognized yield message",  # trio, of a Future or what asyncio.sleep(0) yields
    "unknown async library",  # sniffio
    "Timeout should be used inside a task",  # asyncio.timeout()
    "cannot determine the parent task",  # asyncio.TaskGroup()
)
"""What an exception says that comes of asyncio's own functions where no asyncio runs."""

P = ParamSpec("P")

access_logger = logging.getLogger("trigi.access")
error_logger = logging.getLogger("trigi.error")

# What commands a terminal, or ends a line in some reader's eyes: C0 but for tab and line feed, DEL, C1, and the two
# separators of Unicode.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in b"\t\n"} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}

_PACKAGE = str(Path(__file__).parent) + os.sep


def request_fields(exchange: ExchangeReport) -> dict[str, Any]:
    """What is known of an exchange from its beginning, under the names documented above."""
    request = exchange.request
    return {
        "client": client_name(exchange.connection),
        "method": escape(request.method),
        "target": escape(request.target),
        "http_version": request.http_version,
        "host": header(request.headers, b"host"),
        "websocket": exchange.is_websocket,
    }


def access_fields(exchange: ExchangeReport) -> dict[str, Any]:
    """What is known of an exchange at its end, under the names documented above."""
    headers = exchange.request.headers
    return request_fields(exchange) | {
        "status": exchange.status,
        "bytes": exchange.bytes_sent,
        "duration": exchange.duration,
        "complete": exchange.complete,
        "referer": header(headers, b"referer"),
        "user_agent": header(headers, b"user-agent"),
    }


def _never_raises(hook: Callable[P, None]) -> Callable[P, None]:
    """What a log handler or filter raises must not end a connection: it is printed, as `logging` does."""

    @functools.wraps(hook)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:  # noqa: BLE001 - see above
            if logging.raiseExceptions:
                with contextlib.suppress(Exception):  # no stderr, or a closed one
                    traceback.print_exc()

    return call


class LogObserver(Observer):
    """Logs what a server reports: responses to `trigi.access`, all else to `trigi.error`.

    Args:
        config: `access_log`, `access_log_format`, `log_json` and `lifespan` are read.

    Raises:
        ConfigError: the format has an atom that is not known.
    """

    def __init__(self, config: Config) -> None:
        default = JSON_MESSAGE_FORMAT if config.log_json else COMBINED_FORMAT
        self._write_line = compile_format(config.access_log_format or default)
        self._config = config

    @_never_raises
    def exchange_ended(self, exchange: ExchangeReport) -> None:
        """One line at INFO."""
        if self._config.access_log and access_logger.isEnabledFor(logging.INFO):
            access_logger.info(self._write_line(exchange), extra={"trigi": access_fields(exchange)})

    @_never_raises
    def application_failed(self, exchange: ExchangeReport, error: BaseException) -> None:
        """One record at ERROR, with the traceback from the application's first frame on."""
        fields = request_fields(exchange)
        error_logger.error(
            'application failed on "%s" from %s%s',
            request_line(exchange),
            fields["client"] or "-",
            self._asyncio_hint(error),
            exc_info=_application_error(error),
            extra={"trigi": fields},
        )

    @_never_raises
    def application_stuck(self, exchange: ExchangeReport, seconds: float) -> None:
        """One line at WARNING."""
        fields = request_fields(exchange)
        error_logger.warning(
            'application still running %.1f s after it was cancelled, on "%s" from %s',
            seconds,
            request_line(exchange),
            fields["client"] or "-",
            extra={"trigi": fields},
        )

    @_never_raises
    def background_failed(self, name: str, error: BaseException) -> None:
        """One record at ERROR, with the traceback from the application's first frame on."""
        error_logger.error(
            "application failed in its background task %s",
            escape(name),
            exc_info=_application_error(error),
            extra={"trigi": {"task": name}},
        )

    @_never_raises
    def background_stuck(self, name: str, seconds: float) -> None:
        """One line at WARNING."""
        error_logger.warning(
            "application still running %.1f s after it was cancelled, in its background task %s",
            seconds,
            escape(name),
            extra={"trigi": {"task": name}},
        )

    @_never_raises
    def lifespan_failed(self, stage: str, error: BaseException) -> None:
        """One record at ERROR, with the traceback.

        Only where it is not known whether the application has a lifespan, one line at INFO: to raise is how one
        says that it has none. At DEBUG that line has its traceback too.
        """
        if stage == "starting" and self._config.lifespan == "auto":
            error_logger.info(
                "the application has no lifespan: it raised %s (--lifespan on makes that an error)%s",
                describe(error),
                self._asyncio_hint(error),
                exc_info=_application_error(error) if error_logger.isEnabledFor(logging.DEBUG) else None,
            )
        else:
            error_logger.error(
                "application failed in its lifespan, %s%s",
                stage,
                self._asyncio_hint(error),
                exc_info=_application_error(error),
            )

    def _asyncio_hint(self, error: BaseException) -> str:
        """Which flag an application needs that has met asyncio's functions under trio, to end a line."""
        if self._config.interface == "asyncio" or not _comes_of_asyncio(error):
            return ""
        return ": it needs asyncio (--interface asyncio)"

    @_never_raises
    def request_refused(self, connection: ConnectionInfo, error: BadRequest) -> None:
        """One line at INFO: the fault is the client's."""
        client, status, reason = client_name(connection), error.status_hint, escape(str(error))
        error_logger.info(
            "request refused with %s from %s: %s",
            status,
            client or "-",
            reason,
            extra={"trigi": {"client": client, "status": status, "reason": reason, "limit": error.limit}},
        )

    @_never_raises
    def connection_refused(self, connection: ConnectionInfo, error: BadConnection) -> None:
        """One line at INFO, as for a request."""
        client, reason = client_name(connection), escape(str(error))
        error_logger.info(
            "connection ended, from %s: %s",
            client or "-",
            reason,
            extra={"trigi": {"client": client, "reason": reason, "limit": error.limit}},
        )

    @_never_raises
    def connection_failed(self, client: Endpoint | None, error: BaseException) -> None:
        """One record at ERROR, with the whole traceback."""
        name = client_name(ConnectionInfo(client))
        error_logger.error(
            "connection from %s ended by a bug in trigi: please report it",
            name or "-",
            exc_info=(type(error), error, error.__traceback__),
            extra={"trigi": {"client": name}},
        )

    @_never_raises
    def handshake_failed(self, client: Endpoint | None, error: BaseException) -> None:
        """One line at INFO: whoever scans ports for what they speak causes one."""
        name = client_name(ConnectionInfo(client))
        reason = describe(error.__cause__ or error)  # trio wraps what OpenSSL says
        error_logger.info(
            "TLS handshake with %s failed: %s", name or "-", reason, extra={"trigi": {"client": name}}
        )


def describe(error: BaseException) -> str:
    """An exception in one escaped line."""
    return escape(f"{type(error).__name__}: {error}")


def _application_error(
    error: BaseException,
) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """The exception for `logging`, its traceback from the first frame outside trigi on, if there is one."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.tb_next
    return type(error), error, frame or error.__traceback__


def _comes_of_asyncio(error: BaseException | None) -> bool:
    """Whether it, one in its group, or one that it was raised for says so."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, BaseExceptionGroup):
            return any(_comes_of_asyncio(each) for each in error.exceptions)
        said = " ".join(each for each in error.args if isinstance(each, str))  # str() of it may raise
        if any(sign in said for sign in _ASYNCIO_SIGNS):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


class TextFormatter(logging.Formatter):
    """Text in which every record begins at the margin, and nothing else does.

    The second and following lines of a record, like those of a traceback, are indented, and control characters
    escaped: an exception's message may have come from a client.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        text = super().format(record)
        return text if text.isprintable() else text.translate(_CONTROLS).replace("\n", "\n  ")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """Local time in ISO 8601, with milliseconds and the offset to UTC."""
        if datefmt is not None:
            return super().formatTime(record, datefmt)
        return datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(" ", "milliseconds")


class JSONFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: `time` (UTC), `level`, `logger`, `message`, and what `record.trigi` has.

    An exception is text under `exception`, a stack under `stack`. A value that JSON has no word for is given by its
    `repr`, so that no record is lost.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record's object, without a line end."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        fields = getattr(record, "trigi", None)
        if isinstance(fields, dict):
            entry |= {key: fields[key] for key in fields if isinstance(key, str) and key not in entry}
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps({key: _plain(value) for key, value in entry.items()})


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit the message, or whose str() raises
        return f"{_plain(record.msg)} {_plain(record.args)}"


def _plain(value: object) -> Any:
    """The value if JSON has it, else text that says it."""
    is_whole = isinstance(value, int) and value.bit_length() < 64  # what is larger, few readers take
    if value is None or is_whole or (isinstance(value, float) and math.isfinite(value)):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - somebody else's __repr__, or an int of some thousand digits
        text = f"<{type(value).__name__} without a repr>"
    return text.encode(errors="backslashreplace").decode()  # lone surrogates are no JSON


def configure_logging(config: Config) -> None:
    """Send `trigi.access` to stdout and all else of trigi's to stderr, as `config` says.

    For a program that is trigi's own, like the command line: whoever embeds a server has logging configured already,
    or has not because they want none. The loggers above `trigi` are left alone; handlers on `trigi` and
    `trigi.access` are replaced, so that calling this again does no harm.
    """
    line = TextFormatter("%(message)s")  # which has its own time
    text = TextFormatter("%(asctime)s %(levelname)s %(message)s")
    _replace_handlers(access_logger, sys.stdout, JSONFormatter() if config.log_json else line)
    logger = logging.getLogger("trigi")
    _replace_handlers(logger, sys.stderr, JSONFormatter() if config.log_json else text)
    logger.setLevel(config.log_level.upper())


def _replace_handlers(logger: logging.Logger, stream: TextIO, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.propagate = False
