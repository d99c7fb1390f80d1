"""Every exception that trigi raises on purpose.

The class says whose fault it is:

    TrigiError
    ├── ConfigError                 a setting is wrong: which, where it came from, what is allowed
    ├── BindError                   an address could not be listened on (also an OSError)
    ├── ApplicationLoadError        "module:attribute" could not be loaded
    ├── ApplicationError            the application broke ASGI
    │   ├── UnexpectedMessage       … a message that is not allowed in this state
    │   └── InvalidMessage          … a message with a missing or wrong value
    ├── ClientError                 the client broke HTTP, or left
    │   ├── BadRequest              carries the status to answer with
    │   ├── BadConnection           … HTTP/2 so that its connection had to end
    │   └── ClientDisconnected      the client is gone (also an OSError, as ASGI 2.4 asks)
    └── LifespanFailed              the application's startup or shutdown failed

Anything else that comes out of trigi is a bug of trigi's, and worth a report.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ApplicationError",
    "ApplicationLoadError",
    "BadConnection",
    "BadRequest",
    "BindError",
    "ClientDisconnected",
    "ClientError",
    "ConfigError",
    "InvalidMessage",
    "LifespanFailed",
    "TrigiError",
    "UnexpectedMessage",
]


class TrigiError(Exception):
    """The root of all exceptions that trigi raises on purpose."""


class ConfigError(TrigiError, ValueError):
    """A setting is wrong. The message names the setting, where it came from, and what is allowed."""


class BindError(TrigiError, OSError):
    """An address could not be listened on: in use, not permitted, not there. The message names the address."""


class ApplicationLoadError(TrigiError):
    """The application could not be loaded from `"module:attribute"`. The message says how far it got.

    `__cause__` is the application's own exception if its module raised while it was imported, else `None`.
    """


class ApplicationError(TrigiError):
    """The application broke ASGI. Raised out of the `send()` that was wrong, or logged where there is none.

    Or PEP 3333, as a WSGI application: raised out of `start_response()` or `write()`, or logged.
    """


class UnexpectedMessage(ApplicationError):
    """The application sent a message that is not allowed in the state it is in.

    Attributes:
        state: the name of the state.
        event: the message's type, with the flag that matters (`"http.response.body+more_body"`).
        allowed: what would have been allowed.
    """

    def __init__(self, state: str, event: str, allowed: Iterable[str]) -> None:
        self.state = state
        self.event = event
        self.allowed = tuple(allowed)
        expected = " or ".join(self.allowed) if self.allowed else "nothing more"
        super().__init__(f"{event} is not allowed in state {state}: expected {expected}")


class InvalidMessage(ApplicationError):
    """The application sent a message with a missing or wrong value. The message names the key."""


class ClientError(TrigiError):
    """The client broke HTTP, or left before it had its answer."""


class BadRequest(ClientError):
    """A request that is refused before any application sees it.

    Attributes:
        status_hint: the status to answer with: 400, 408, 413, 414, 417, 421, 426, 431, 501, 503 or 505.
        limit: the setting whose limit was passed, if it was one.
    """

    def __init__(self, reason: str, *, status_hint: int = 400, limit: str | None = None) -> None:
        self.status_hint = status_hint
        self.limit = limit
        super().__init__(reason if limit is None else f"{reason} (limit: {limit})")


class BadConnection(ClientError):
    """An HTTP/2 connection that is ended because of what the client sent on it.

    Attributes:
        error_code: what GOAWAY says: `"PROTOCOL_ERROR"` or another of RFC 9113, section 7.
        limit: the setting whose limit was passed, if it was one.
    """

    def __init__(self, reason: str, *, error_code: str, limit: str | None = None) -> None:
        self.error_code = error_code
        self.limit = limit
        described = f"{error_code}: {reason}"
        super().__init__(described if limit is None else f"{described} (limit: {limit})")


class ClientDisconnected(ClientError, OSError):
    """The client has gone: raised by `send()` from then on (ASGI HTTP and WebSocket 2.4).

    An application may let it pass, also inside an exception group: trigi knows it and does not log it.
    """


class LifespanFailed(TrigiError):
    """The application's startup or shutdown failed.

    Attributes:
        stage: `"startup"` or `"shutdown"`.
    """

    def __init__(self, stage: str, message: str) -> None:
        self.stage = stage
        super().__init__(f"lifespan {stage} failed: {message}" if message else f"lifespan {stage} failed")
