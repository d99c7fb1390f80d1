"""A whole process that serves: its logging, its signals, its way out. What the command line runs."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator

import trio

from trigi.config import Config
from trigi.logs import configure_logging
from trigi.typing import Application

from .application import load_application, split_target
from .serve import Server

__all__ = ["run"]

logger = logging.getLogger("trigi.error")


def run(app: Application | str, config: Config | None = None) -> None:
    """Serve `app` until the process is told to stop: the body of the command line.

    Configures logging, and starts an event loop. The first SIGINT or SIGTERM shuts down gracefully, as the
    `shutdown_trigger` of `serve` does; before the application has started up, and the second time, it cancels.
    Application calls that are still running `cleanup_timeout` seconds after that keep the process no longer: it logs
    them, and exits with status 1.

    Args:
        app: an application, or where to find it: `"module:attribute"`, looked up with `config.app_dir` on the path, or
            `"wsgi:module:attribute"`, which sets `config.interface`.
        config: the settings; all defaults when `None`.

    Raises:
        ApplicationLoadError: there is no application at `"module:attribute"`.
        ConfigError: a setting is wrong, or settings contradict each other.
        BindError: an address can't be listened on.
        LifespanFailed: the application's startup or shutdown failed.
    """
    config = Config() if config is None else config
    configure_logging(config)
    if isinstance(app, str):
        app, interface = split_target(app, config.interface)
        config = dataclasses.replace(config, interface=interface)
        app = load_application(app, app_dir=config.app_dir, factory=config.factory)
    server = Server(app, config, give_up=_exit)
    error = trio.run(_serve_until_told_to_stop, server, config)
    if error is not None:
        raise error


async def _serve_until_told_to_stop(server: Server, config: Config) -> Exception | None:
    """Serve under the process's signals; what went wrong is returned, for a nursery would wrap it in a group."""
    trio.to_thread.current_default_thread_limiter().total_tokens = config.thread_limit
    error: Exception | None = None
    startup = _Startup()
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_signals, signals, startup, stop, nursery.cancel_scope)
            try:
                await server.serve(None, None, stop.wait, startup)
            except Exception as raised:  # noqa: BLE001 - raised again by run()
                error = raised
            nursery.cancel_scope.cancel()
    return error


class _Startup:
    """Knows whether a server has started, being told like a nursery that waits for it."""

    def __init__(self) -> None:
        self.complete = False

    def started(self, _urls: object = None) -> None:
        """The server listens, and its application has started up."""
        self.complete = True
        # What was made until now stays until the end: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()


async def _watch_signals(
    signals: AsyncIterator[int], startup: _Startup, stop: trio.Event, everything: trio.CancelScope
) -> None:
    async for number in signals:
        name = signal.Signals(number).name
        if startup.complete and not stop.is_set():
            logger.info("%s: shutting down; again to stop at once", name)
            stop.set()
        else:
            logger.info("%s: stopping at once", name)
            everything.cancel()


def _exit() -> None:
    """Leave the process although something in it does not end: threads and tasks that ignore being cancelled."""
    logger.error("exiting with application calls still running")
    logging.shutdown()
    os._exit(1)
