"""The task that makes an HTTP/1.1 connection's application calls, one after the other."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import Any

import trio

from .exchange import Exchange
from .run_http import run_http

__all__ = ["ApplicationTask"]


class ApplicationTask:
    """A task that waits for the next request when it has answered one: to make another costs more.

    Each call has a context of its own all the same, copied from the reader's. A task whose call has failed ends, since
    nobody knows what is left in it. So does one that another has overtaken: the application went on after its response.

    Args:
        nursery: where the task lives.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._waiting: trio.lowlevel.Task | None = None
        self._next: Exchange | None = None
        self._closed = False

    def start(self, exchange: Exchange) -> None:
        """Have the application called."""
        if self._waiting is None:
            self._nursery.start_soon(self._answer, exchange)
            return
        self._waiting.context = copy_context()  # from its next step on, which is where the call begins
        self._wake(exchange)

    def close(self) -> None:
        """No other request will come: the task ends, or will after the call that it makes."""
        self._closed = True
        if self._waiting is not None:
            self._wake(None)

    async def _answer(self, exchange: Exchange | None) -> None:
        while exchange is not None:
            succeeded = await run_http(exchange)
            if not succeeded or self._closed or self._waiting is not None:
                return
            self._waiting = trio.lowlevel.current_task()
            self._waiting.context, exchange = Context(), None  # an idle connection keeps nothing of the call
            await trio.lowlevel.wait_task_rescheduled(self._cancel)
            exchange, self._next = self._next, None

    def _wake(self, exchange: Exchange | None) -> None:
        assert self._waiting is not None
        trio.lowlevel.reschedule(self._waiting)
        self._waiting = None
        self._next = exchange

    def _cancel(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED
