"""Serve an application inside a trio program: three nested scopes, and their graceful end.

    lifespan                 started up before the first connection, shut down after the last application call
    └─ work                  the applications' background tasks, and around their end
       └─ connections        every connection
          └─ accepting       the accept loops; cancelled first

Shutting down is leaving these scopes from the inside out; nothing polls.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import trio

from trigi._connection.background import open_background
from trigi._connection.context import ServerContext
from trigi._connection.serve import serve_stream
from trigi.config import Config
from trigi.exceptions import ConfigError, LifespanFailed
from trigi.lint import lint
from trigi.logs import LogObserver
from trigi.typing import Application

from .application import to_asgi3
from .bind import open_listeners
from .lifespan import LifespanCall, open_lifespan
from .listeners import (
    DirectListener,
    LimitedListener,
    UnixListener,
    close_listeners,
    listener_urls,
)
from .tls import SSLContext, TLSDescriber, create_ssl_context, prepare_ssl_context

__all__ = ["serve"]

logger = logging.getLogger("trigi.error")

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Why the system can't accept anybody now, and may in a moment."""

EXHAUSTED_SECONDS = 0.1
TELLING_SECONDS = 1.0
"""How often that is tried again, and how often told."""


async def serve(
    app: Application,
    config: Config | None = None,
    *,
    listeners: Iterable[trio.abc.Listener[Any]] | None = None,
    ssl_context: SSLContext | None = None,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until cancelled, or until `shutdown_trigger` returns.

    No signal is touched, and no logging is configured: what happens goes to the loggers `trigi.access` and
    `trigi.error`.

    Args:
        app: an ASGI 3 application, or an ASGI 2 or WSGI one as `config.interface` says.
        config: the settings; all defaults when `None`.
        listeners: listeners to serve instead of `config.bind`, taken as they are; they are closed at the end. For TLS
            on them give `trio.SSLListener`.
        ssl_context: for TLS on `config.bind`, instead of `config.certfile` and its companions. trigi sets the
            context's ALPN protocols.
        shutdown_trigger: an async callable. When it returns, the server shuts down gracefully: it accepts no more
            connections, closes idle ones, lets open requests finish for `graceful_timeout` seconds, cancels the rest,
            and runs the lifespan's shutdown after the last of them.
        task_status: `await nursery.start(serve, app)` gives the addresses as URLs, once they are listened on and the
            application has started up: `["http://127.0.0.1:8000"]`.

    Raises:
        ConfigError: a setting is wrong, or settings contradict each other.
        ApplicationLoadError: `app` can't be called as an application is.
        BindError: an address can't be listened on.
        LifespanFailed: the application's startup or shutdown failed.

    Cancellation: cancels every application call, waits for them, and then runs the lifespan's shutdown, shielded,
    for at most `shutdown_timeout` seconds.
    """
    server = Server(app, Config() if config is None else config)
    await server.serve(listeners, ssl_context, shutdown_trigger or trio.sleep_forever, task_status)


class Server:
    """One run of `serve`.

    Args:
        app: as for `serve`.
        config: the settings.
        give_up: called when application calls are still running `cleanup_timeout` seconds after they were cancelled.
            Nothing can end them from here, but a program that has nothing else to do may exit.
    """

    def __init__(self, app: Application, config: Config, give_up: Callable[[], None] = lambda: None) -> None:
        application = to_asgi3(app, config.interface, config)
        self._application = lint(application) if config.lint else application
        self._config = config
        self._observer = LogObserver(config)
        self._give_up = give_up
        self._waited_for = 0
        self._cancelled = 0

    async def serve(
        self,
        listeners: Iterable[trio.abc.Listener[Any]] | None,
        ssl_context: SSLContext | None,
        shutdown_trigger: Callable[[], Awaitable[object]],
        task_status: trio.TaskStatus[list[str]],
    ) -> None:
        """As the function `serve` says."""
        if listeners is not None and (ssl_context is not None or self._config.certfile is not None):
            raise ConfigError("listeners are served as they are: for TLS on them give trio.SSLListener")
        certfile = self._config.certfile if ssl_context is None else None
        if ssl_context is not None:
            prepare_ssl_context(ssl_context)
        elif certfile is not None:
            ssl_context = create_ssl_context(self._config)
        opened: list[trio.abc.Listener[Any]] = list(
            await open_listeners(self._config) if listeners is None else listeners
        )
        if not opened:
            raise ConfigError("listeners: there is none in it to serve")
        try:
            urls = listener_urls(opened, tls=ssl_context is not None)

            def announce() -> None:
                for url in urls:
                    logger.info("listening on %s", url)
                task_status.started(urls)

            opened = [
                DirectListener(each, ssl_context)
                if isinstance(each, trio.SocketListener | UnixListener)
                else each
                for each in opened
            ]
            async with open_lifespan(
                self._application, self._config, self._observer, self._report_stuck_lifespan
            ) as lifespan:
                context = ServerContext(
                    self._application,
                    self._config,
                    state=lifespan.state,
                    observer=self._observer,
                    describe_tls=TLSDescriber(certfile),
                )
                with unwrapped_errors():
                    await self._serve_connections(context, opened, lifespan, shutdown_trigger, announce)
        finally:
            await close_listeners(opened)

    async def _serve_connections(
        self,
        context: ServerContext,
        listeners: list[trio.abc.Listener[Any]],
        lifespan: LifespanCall,
        shutdown_trigger: Callable[[], Awaitable[object]],
        announce: Callable[[], None],
    ) -> None:
        closed = trio.Event()
        began = 0.0
        async with trio.open_nursery() as watching:
            try:
                async with (
                    trio.open_nursery() as work,
                    open_background(work, self._observer) as context.background,
                    trio.open_nursery() as connections,
                ):
                    context.nursery = connections
                    watching.start_soon(self._watch_clean_up, context, work.cancel_scope, closed)
                    try:
                        async with trio.open_nursery() as accepting:
                            # In the startup's context, so that its context variables reach every request.
                            lifespan.context.run(
                                accepting.start_soon, self._accept, listeners, context, connections
                            )
                            announce()
                            await shutdown_trigger()
                            context.draining.set()
                            accepting.cancel_scope.cancel()
                    except BaseException:
                        watching.cancel_scope.cancel()  # which is how it learns that calls are being cancelled
                        raise
                    began = trio.current_time()
                    self._waited_for = len(context.running)
                    for connection in list(context.connections):
                        connection.drain()
            finally:
                closed.set()
                watching.cancel_scope.cancel()
        logger.info(
            "stopped: waited %.1f s for %d application calls, of which %d were cancelled",
            trio.current_time() - began,
            self._waited_for,
            self._cancelled,
        )

    async def _accept(
        self, listeners: list[trio.abc.Listener[Any]], context: ServerContext, connections: trio.Nursery
    ) -> None:
        """Accept for ever: at most `connection_limit` connections at once, the next one waits in the kernel."""
        limit = self._config.connection_limit
        slots = None if limit == inf else trio.Semaphore(int(limit), max_value=int(limit))
        if slots is not None:
            listeners = [LimitedListener(listener, slots) for listener in listeners]

        async def serve_one(stream: trio.abc.Stream) -> None:
            try:
                await serve_stream(stream, context)
            finally:
                if slots is not None:
                    slots.release()

        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._accept_from, listener, connections, serve_one)

    async def _accept_from(
        self,
        listener: trio.abc.Listener[trio.abc.Stream],
        connections: trio.Nursery,
        serve_one: Callable[[trio.abc.Stream], Awaitable[None]],
    ) -> None:
        """Accept from one listener, and close it at the end."""
        told = -inf
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in EXHAUSTED:
                        raise
                    if trio.current_time() >= told + TELLING_SECONDS:
                        told = trio.current_time()
                        logger.error("no connection can be accepted for now: %s", error)  # noqa: TRY400 - no bug
                    await trio.sleep(EXHAUSTED_SECONDS)
                else:
                    connections.start_soon(serve_one, stream)

    async def _watch_clean_up(
        self, context: ServerContext, work: trio.CancelScope, closed: trio.Event
    ) -> None:
        """Cancel what does not end within `graceful_timeout`, and report the application calls that do not end then.

        The report comes as well when it is somebody else who cancels.
        """
        try:
            await context.draining.wait()
            await trio.sleep(self._config.graceful_timeout)
            self._cancelled = len(context.running)  # before any of them knows
            work.cancel()
        finally:
            background = context.background
            assert background is not None
            background.close()
            seconds = self._config.cleanup_timeout
            with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
                await closed.wait()
            if not closed.is_set():
                for exchange in context.running:
                    self._observer.application_stuck(exchange, seconds)
                for name in background.names:
                    self._observer.background_stuck(name, seconds)
                self._give_up()

    def _report_stuck_lifespan(self, failure: LifespanFailed | None) -> None:
        logger.warning(
            "application still running %.1f s after it was cancelled, in its lifespan%s",
            self._config.cleanup_timeout,
            "" if failure is None else f": {failure}",
        )
        self._give_up()


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise an exception as it was raised, without the groups that nurseries put it in, if it is the only one.

    What was only cancelled for it does not count; if everything was only cancelled, one `Cancelled` says so.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled, errors = group.split(trio.Cancelled)
        error = cancelled if errors is None else errors
        while isinstance(error, BaseExceptionGroup) and (errors is None or len(error.exceptions) == 1):
            error = error.exceptions[0]
    if error is not None:
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # which was not the group
