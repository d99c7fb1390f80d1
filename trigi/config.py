"""Every setting of trigi, in one list.

A setting is one field of `Config`. Its metadata says all there is to know about it, so that the command
line, the environment, the TOML file (`_settings.py`) and the reference in the documentation are made from
this list, and adding a setting is adding a field.

Names put the biggest word first (`websocket_ping_interval`, `websocket_ping_timeout`), so that lists of them
sort. Times are float seconds, sizes are bytes, and `math.inf` switches a limit off.
"""
# ruff: noqa: RUF009 - setting() is dataclasses.field() with a description: nothing in it can be changed

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf, nan
from typing import Any, Literal, TypeVar, get_args

from .exceptions import ConfigError

__all__ = ["Config", "Setting"]

T = TypeVar("T")

Interface = Literal["auto", "asgi3", "asgi2", "wsgi", "asyncio"]
Lifespan = Literal["auto", "on", "off"]
HTTPParser = Literal["auto", "h11", "httptools"]
VerifyMode = Literal["none", "optional", "required"]
LogLevel = Literal["critical", "error", "warning", "info", "debug"]

Kind = Literal["text", "texts", "flag", "choice", "mode", "whole", "size", "seconds"]
"""What values a setting takes, and how it is read from text: `whole` is a count, `size` a count of bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What there is to know about one setting, beside its name and its type.

    Attributes:
        default: the value when nothing is said.
        kind: what values it takes.
        group: the heading under which it is listed.
        help: what it does, in a sentence.
        unit: what its number counts (`"s"`, `"bytes"`, `"requests"`), or nothing.
        choices: all allowed values, for the kind `choice`.
        short: a second, short spelling on the command line (`"-b"`).
        metavar: the shape of its value in `--help`.
        minimum: the smallest number allowed.
        maximum: the largest number allowed; `inf` also allows `inf` itself.
        secret: never shown, neither in a `repr` nor in an error.
    """

    default: Any
    kind: Kind
    group: str
    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    short: str | None = None
    metavar: str | None = None
    minimum: int = 1
    maximum: float = inf
    secret: bool = False

    @property
    def allowed(self) -> str:
        """What values are allowed, to end the sentence "it is not …"."""
        of_unit = f" of {self.unit}" if self.unit else ""
        match self.kind:
            case "text":
                return "a string" if self.default == "" else "a string that is not empty"
            case "texts":
                return "a list of one or more strings that are not empty"
            case "flag":
                return "true or false"
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "mode":
                return "an octal file mode from 0 to 777 (0o777 where a number is written)"
            case "seconds":
                return "a number of seconds, at least 0, or inf"
            case "size" if self.maximum == inf:
                return (
                    f"a whole number{of_unit}, at least {self.minimum}, or inf (in text also 64KiB, MiB, GiB)"
                )
            case "whole" if self.maximum == inf:
                return f"a whole number{of_unit}, at least {self.minimum}, or inf"
            case "whole" | "size":
                return f"a whole number{of_unit} from {self.minimum} to {self.maximum}"

    def allows(self, value: object) -> bool:
        """Whether the value is allowed, whatever the other settings are."""
        # what is no number becomes NaN, which is neither above nor below anything
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else nan
        match self.kind:
            case "text":
                fits = isinstance(value, str) and (value != "" or self.default == "")
                return fits or (value is None and self.default is None)
            case "texts":
                return (
                    isinstance(value, tuple) and value != () and all(v and isinstance(v, str) for v in value)
                )
            case "flag":
                return isinstance(value, bool)
            case "choice":
                return value in self.choices
            case "mode":
                return value is None or (isinstance(number, int) and 0 <= number <= 0o777)
            case "seconds":  # an int beyond the largest float cannot be added to the clock's time
                return number == inf or 0 <= number <= sys.float_info.max
            case "whole" | "size":  # nor compared with a count, where that is compiled
                is_countable = isinstance(number, int) and number <= sys.float_info.max
                return (is_countable or number == inf) and self.minimum <= number <= self.maximum

    def check(self, value: object, name: str) -> Any:
        """The value as `Config` keeps it: a list, or a single string, becomes a tuple where one is wanted.

        Args:
            value: the value to check.
            name: what to call the setting in an error: its name, or where the value came from.

        Raises:
            ConfigError: the value is not allowed.
        """
        if self.kind == "texts" and isinstance(value, str | list):
            value = (value,) if isinstance(value, str) else tuple(value)
        if not self.allows(value):
            raise ConfigError(f"{name}: {'the value' if self.secret else repr(value)} is not {self.allowed}")
        return value


def setting(default: T, kind: Kind, group: str, help: str, **more: Any) -> T:  # noqa: A002 - argparse's own word
    """A field of `Config`, with its `Setting` under `"setting"` in its metadata."""
    described = Setting(default=default, kind=kind, group=group, help=help, **more)
    return dataclasses.field(default=default, repr=not described.secret, metadata={"setting": described})


def seconds(default: float, help: str) -> float:  # noqa: A002 - see setting
    """A field of `Config` that is a time."""
    return setting(default, "seconds", "Timeouts", help, unit="s")


def limit(default: float, unit: str, help: str) -> float:  # noqa: A002 - see setting
    """A field of `Config` that is a bound: of bytes, or of things counted."""
    return setting(default, "size" if unit == "bytes" else "whole", "Limits", help, unit=unit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings of a server: a frozen value that does nothing.

    Making one opens no socket, reads no file and configures no logging; it only checks the values. Every
    field has a default, is given by keyword, and holds a plain value (`str`, `bool`, `int`, `float`, `None`,
    a tuple of `str`), so that a `Config` can be compared, copied with `dataclasses.replace`, written as JSON:

        config = Config(bind=["127.0.0.1:8000", "unix:/run/app.sock"], request_timeout=60)

    What each setting does is told once, in its field's `help`: `trigi --help` and the settings reference in
    the documentation show it. Times are seconds, at least 0; counts and sizes are whole numbers, at least 1;
    both take `math.inf` to switch the limit off. A list, or a single string, given for a tuple becomes one.

    Raises:
        ConfigError: a value, or a combination of values, is not allowed. The message is one line: which
            setting, the value, what is allowed.
    """

    # Binding

    bind: tuple[str, ...] = setting(
        ("127.0.0.1:8000",),
        "texts",
        "Binding",
        "Where to listen: host:port, [::1]:port, unix:PATH, or fd://N for an open socket. May be repeated.",
        short="-b",
        metavar="ADDRESS",
    )
    backlog: int = setting(
        2048,
        "whole",
        "Binding",
        "Connections the kernel may hold that are not accepted yet.",
        unit="connections",
        maximum=2**31 - 1,  # listen() takes a C int
    )
    uds_mode: int | None = setting(
        None,
        "mode",
        "Binding",
        "File mode of the unix sockets that are created; without it the umask decides.",
    )

    # Application

    interface: Interface = setting(
        "auto",
        "choice",
        "Application",
        "How the application is called: as ASGI 3, as ASGI 2, as WSGI, in an asyncio loop, or, of the first two, as "
        "its signature says.",
        choices=get_args(Interface),
    )
    factory: bool = setting(
        False, "flag", "Application", "The target is called without arguments and returns the application."
    )
    app_dir: str = setting(
        ".",
        "text",
        "Application",
        "Directory from which the target's module can be imported.",
        metavar="DIRECTORY",
    )
    root_path: str = setting(
        "",
        "text",
        "Application",
        "Path under which the application is mounted: it begins with / and does not end with one.",
        metavar="PATH",
    )
    lifespan: Lifespan = setting(
        "auto",
        "choice",
        "Application",
        "Whether the application is told of startup and shutdown: always, never, or if it takes part.",
        choices=get_args(Lifespan),
    )
    lint: bool = setting(
        False,
        "flag",
        "Application",
        "Check every message of the application and of the server against the whole specification. Slow: for "
        "development.",
    )

    # TLS

    certfile: str | None = setting(
        None, "text", "TLS", "Certificate chain, in PEM. Serves HTTPS instead of HTTP.", metavar="FILE"
    )
    keyfile: str | None = setting(
        None, "text", "TLS", "Private key, in PEM, if it is not in the certificate's file.", metavar="FILE"
    )
    keyfile_password: str | None = setting(
        None,
        "text",
        "TLS",
        "Password of the private key. Every user of the machine can read it on a command line: better in the "
        "environment.",
        metavar="PASSWORD",
        secret=True,
    )
    ca_certs: str | None = setting(
        None,
        "text",
        "TLS",
        "Certificates of the authorities that clients' certificates are verified with, in PEM.",
        metavar="FILE",
    )
    verify_mode: VerifyMode = setting(
        "none",
        "choice",
        "TLS",
        "Whether clients are asked for a certificate, and whether they must have one.",
        choices=get_args(VerifyMode),
    )
    ciphers: str | None = setting(
        None, "text", "TLS", "Ciphers of TLS 1.2, as OpenSSL lists them.", metavar="CIPHERS"
    )

    # HTTP and WebSocket

    http: HTTPParser = setting(
        "auto",
        "choice",
        "HTTP",
        "What parses the heads of HTTP/1.1 requests: h11, httptools (installed by trigi[fast]), or, with auto, "
        "httptools if it is installed. They take and refuse the same.",
        choices=get_args(HTTPParser),
    )
    date_header: bool = setting(True, "flag", "HTTP", "Send a date header with each response.")
    server_header: bool = setting(True, "flag", "HTTP", "Send a server header with each response.")
    half_close: bool = setting(
        False,
        "flag",
        "HTTP",
        "Answer a client that closes its sending side after its request, instead of taking it as gone.",
    )
    websocket_per_message_deflate: bool = setting(
        True, "flag", "WebSocket", "Compress messages if the client can (permessage-deflate)."
    )

    # Timeouts

    tls_handshake_timeout: float = seconds(10, "A TLS handshake.")
    header_timeout: float = seconds(
        10, "A request's head, from its first byte to its last; more bytes win no more time."
    )
    keep_alive_timeout: float = seconds(5, "A connection waiting for its next request.")
    body_timeout: float = seconds(30, "The next piece of a request's body that the application waits for.")
    write_timeout: float = seconds(30, "Each 64 KiB of a write, while the client does not read.")
    request_timeout: float = seconds(inf, "One call of the application. Past it: 504, or a cut connection.")
    disconnect_grace: float = seconds(5, "What the application may still do after its client left.")
    websocket_ping_interval: float = seconds(20, "Between two pings; more than 0.")
    websocket_ping_timeout: float = seconds(20, "The pong that answers a ping.")
    websocket_close_timeout: float = seconds(10, "The client's part of the closing handshake.")
    startup_timeout: float = seconds(60, "The application's startup.")
    shutdown_timeout: float = seconds(60, "The application's shutdown.")
    graceful_timeout: float = seconds(30, "At shutdown: requests that are being answered.")
    cleanup_timeout: float = seconds(5, "At shutdown: the clean-up of requests that were cancelled.")

    # Limits

    head_size_limit: float = limit(65536, "bytes", "A request's line and headers. Past it: 431, or 414.")
    header_count_limit: float = limit(100, "headers", "The headers of one request. Past it: 431.")
    body_size_limit: float = limit(inf, "bytes", "A request's body. Past it: 413.")
    pipelined_size_limit: float = limit(
        65536, "bytes", "What is read ahead while a request is being answered."
    )
    keep_alive_max_requests: float = limit(inf, "requests", "Requests on one connection; then it is closed.")
    connection_limit: float = limit(inf, "connections", "Open connections. Past it, accepting waits.")
    concurrency_limit: float = limit(
        inf, "applications", "Applications running at once. Past it: 503 with Retry-After."
    )
    websocket_message_size_limit: float = limit(
        16 * 1024 * 1024, "bytes", "One WebSocket message, after inflation. Past it: close code 1009."
    )
    websocket_frame_count_limit: float = limit(1024, "frames", "Frames of one WebSocket message.")
    websocket_queue_size: float = limit(
        32, "messages", "WebSocket messages the application has not taken. Past it, the socket is not read."
    )
    write_buffer_size: float = limit(
        65536,
        "bytes",
        "HTTP/2: what of all responses on a connection waits to be written before their senders do.",
    )
    h2_max_concurrent_streams: float = limit(
        100, "streams", "HTTP/2: open streams of one connection. Past it: REFUSED_STREAM for the next."
    )
    h2_stream_window: int = setting(
        65536,
        "size",
        "Limits",
        "HTTP/2: what a client may send of a request's body before the application takes it.",
        unit="bytes",
        maximum=2**31 - 1,  # RFC 9113, 6.9.2
    )
    h2_reset_limit: float = limit(
        100,
        "streams",
        "HTTP/2: streams of one connection that the client has reset in 10 s. Past it, it is closed.",
    )
    h2_control_frame_limit: float = limit(
        1000, "frames", "HTTP/2: frames without use in 10 s, such as PING. Past it, the connection is closed."
    )
    thread_limit: float = limit(
        40,
        "threads",
        "Threads of trio's default limiter. Set by trigi.run, and so by the command line, only.",
    )
    wsgi_threads: float = limit(40, "threads", "WSGI: requests served at once, each in a thread.")
    wsgi_queue_size: float = limit(
        1000, "requests", "WSGI: requests that wait for a thread. Past it: 503 with Retry-After."
    )

    # Logging

    log_level: LogLevel = setting(
        "info",
        "choice",
        "Logging",
        "The least severe messages that are logged.",
        choices=get_args(LogLevel),
    )
    access_log: bool = setting(True, "flag", "Logging", "Log one line for each response.")
    access_log_format: str | None = setting(
        None,
        "text",
        "Logging",
        "Format of that line, with Apache's atoms (%(h)s %(r)s %(s)s …); without it, Apache's combined format.",
        metavar="FORMAT",
    )
    log_json: bool = setting(False, "flag", "Logging", "Log in JSON, one object a line.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = field.metadata["setting"].check(getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)  # the class is frozen from here on
        self._check_tls()
        if self.http == "httptools" and find_spec("httptools") is None:
            raise ConfigError("http: httptools is not installed: pip install 'trigi[fast]'")
        if self.root_path and (self.root_path[0] != "/" or self.root_path[-1] == "/"):
            raise ConfigError(
                f"root_path: {self.root_path!r} is not a path that begins with / and does not end with one"
            )
        if self.websocket_ping_interval == 0:
            raise ConfigError(
                "websocket_ping_interval: 0 would ping without a pause: more than 0, or inf for none"
            )

    def _check_tls(self) -> None:
        """Refuse settings of TLS that would silently do nothing, or less than was meant."""
        if self.certfile is None:
            for name in ("keyfile", "keyfile_password", "ca_certs", "ciphers", "verify_mode"):
                if getattr(self, name) not in (None, "none"):
                    raise ConfigError(f"{name}: needs a certfile")
        if self.verify_mode != "none" and self.ca_certs is None:
            raise ConfigError(f"verify_mode: {self.verify_mode!r} needs ca_certs to verify certificates with")
        if self.verify_mode == "none" and self.ca_certs is not None:
            raise ConfigError(
                "ca_certs: verifies no one with verify_mode 'none': allowed are optional, required"
            )
