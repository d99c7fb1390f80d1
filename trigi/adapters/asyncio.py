"""Applications that need asyncio, as ASGI 3 applications for servers that run on trio."""

from __future__ import annotations

import asyncio
import importlib
from math import inf
from typing import Literal, get_args

import trio

from trigi.exceptions import ConfigError
from trigi.typing import ASGI3Application, Receive, Scope, Send

from ._asyncio_call import Call
from ._asyncio_loop import LoopThread

__all__ = ["AsyncioAdapter"]

Loop = Literal["auto", "asyncio", "uvloop"]


class AsyncioAdapter:
    """An application that needs asyncio, as an ASGI 3 application for any ASGI server that runs on trio.

    All calls run in one asyncio loop, which has a thread of its own: lifespan, requests, WebSockets. An application
    that blocks this loop holds up its own requests, and not the server.

        async def serve_django():
            await trigi.serve(AsyncioAdapter(get_asgi_application()))

    The loop begins with the first call. If the application has a lifespan, the loop is closed when the lifespan's call
    ends: after `lifespan.shutdown`, a failed startup, or a cancellation. Otherwise it is closed by `aclose`, or when
    `trio.run` ends. Closing cancels the tasks that are left, and shuts down asynchronous generators and the default
    executor. A call after that begins another loop.

    Each call is one asyncio task, in a copy of the context of the trio task that the server calls in. Messages cross in
    batches: `send` returns before the server has taken the message, unless more than 128 KiB are waiting, and what the
    server raises is raised by the next `send`. After a disconnect, and for rare messages, it waits. `receive` reads
    ahead, after the application has first waited in it, 128 KiB at most.

    The extension `trigi` is not passed on: what is in it is trio's.

    Args:
        application: an ASGI 3 application.
        loop: `"uvloop"`, `"asyncio"`, or `"auto"` for uvloop where it is installed.
        cancel_timeout: seconds that a cancelled call has to end. After that it is logged, with its stack, and cut off.
        close_timeout: seconds that closing the loop may take. After that it is logged, and left behind.

    Raises:
        ConfigError: uvloop is not installed; a value is not allowed.
    """

    _asgi_single_callable = True  # what asgiref's detection looks at first

    def __init__(
        self,
        application: ASGI3Application,
        *,
        loop: Loop = "auto",
        cancel_timeout: float = 3.0,  # less than cleanup_timeout, so that the server need not give up first
        close_timeout: float = 10.0,
    ) -> None:
        for name, seconds in (("cancel_timeout", cancel_timeout), ("close_timeout", close_timeout)):
            if not 0 <= seconds <= inf:
                raise ConfigError(f"{name}: {seconds!r} is not a number of seconds, at least 0, or inf")
        self.application = application
        self._new_loop = _loop_factory(loop)
        self._cancel_timeout = cancel_timeout
        self._close_timeout = close_timeout
        self._thread: LoopThread | None = None
        self._lifespans = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call of the application.

        Raises:
            ApplicationError: the application raised `SystemExit`, `KeyboardInterrupt` or `asyncio.CancelledError`; or
                the loop was closed before it had ended.
            Exception: what else the application raised.
            RuntimeError: the application is being served under another `trio.run`.

        Cancellation: cancels the asyncio task, and waits for it `cancel_timeout` seconds at most.
        """
        call = Call(self._open(), self.application, _without_trio(scope))
        if scope["type"] != "lifespan":
            await call.run(receive, send)
            return
        self._lifespans += 1
        try:
            await call.run(receive, send)
        finally:
            self._lifespans -= 1
            # One that has ended by itself has no lifespan, or none that shuts down, and may well be served.
            if call.stopping and not self._lifespans:
                await self.aclose()

    async def aclose(self) -> None:
        """Close the loop, if there is one. A call that still runs in it is cancelled, and so fails.

        Cancellation: shielded, for `close_timeout` seconds.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.close(self._close_timeout)

    def _open(self) -> LoopThread:
        thread = self._thread
        if thread is None:
            thread = self._thread = LoopThread(self._new_loop(), cancel_timeout=self._cancel_timeout)
            trio.lowlevel.spawn_system_task(self._close_with_trio, thread)
        elif thread.token is not trio.lowlevel.current_trio_token():
            raise RuntimeError("an AsyncioAdapter serves under one trio.run at a time")
        return thread

    async def _close_with_trio(self, thread: LoopThread) -> None:
        """Close the loop when `trio.run` ends, unless that has happened before: trio cancels its system tasks last."""
        try:
            await thread.ended.wait()
        finally:
            if self._thread is thread:
                self._thread = None
                await thread.close(self._close_timeout)


def _loop_factory(loop: Loop) -> type[asyncio.AbstractEventLoop]:
    if loop not in get_args(Loop):
        raise ConfigError(f"loop: {loop!r} is not one of {', '.join(get_args(Loop))}")
    if loop != "asyncio":
        try:
            factory: type[asyncio.AbstractEventLoop] = importlib.import_module("uvloop").Loop
        except ImportError:
            if loop == "uvloop":
                raise ConfigError("loop: uvloop is not installed") from None
        else:
            return factory
    return asyncio.SelectorEventLoop


def _without_trio(scope: Scope) -> Scope:
    extensions = scope.get("extensions")
    if not extensions or "trigi" not in extensions:
        return scope
    passed = {name: value for name, value in extensions.items() if name != "trigi"}
    return {**scope, "extensions": passed}
