"""The task that makes an HTTP/1.1 connection's application calls, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import trio

from .call_scope import KeptScope
from .exchange import Exchange
from .readiness import Readiness
from .run_http import run_http

__all__ = ["ApplicationTask"]


class ApplicationTask:
    """A task that waits for the next request when it has answered one: to make another costs more.

    While it waits it may be asked to read, too: who reads a request and answers it in one go has no need to wake
    anybody.

    Each call has a context of its own all the same, copied from the reader's: but what an application keeps by the task
    itself, the next call finds. A task whose call has failed ends, since nobody knows what is left in it. So does one
    that another has overtaken: the application went on after its response.

    Args:
        nursery: where the task lives.
        read: read what has come, and `start` what there is to answer, if that needs no waiting.
        readiness: knows when the task has waited for something, if anybody does.
    """

    def __init__(self, nursery: trio.Nursery, read: Callable[[], None], readiness: Readiness | None) -> None:
        self._nursery = nursery
        self._readiness = readiness
        self._read: Callable[[], None] | None = read  # until no other request will come
        self._context = copy_context()
        self._task: trio.lowlevel.Task | None = None  # that has the newest call; no other waits
        self._waiting = False
        self._reading = False
        self._next: Exchange | None = None  # for the one that has been waiting

    def start(self, exchange: Exchange) -> None:
        """Have the application called."""
        if self._waiting or self._reading:
            self._next = exchange
            self._wake()
        else:
            self._task = None  # until it has begun
            self._nursery.start_soon(self._answer, exchange, name="trigi: application")

    def claim(self) -> bool:
        """Have the task read, if it has nothing else to do."""
        self._reading |= self._waiting
        self._wake()
        return self._reading

    def close(self) -> None:
        """No other request will come: the task ends, or will after the call that it makes."""
        self._read = None  # what knows this task is not kept by it, and need not wait for the collector
        self._wake()

    async def _answer(self, exchange: Exchange | None) -> None:
        task = self._task = trio.lowlevel.current_task()
        with KeptScope(self._readiness) as kept:
            while exchange is not None:
                exchange.cancel_scope.kept = kept
                if not await run_http(exchange) or self._task is not task:
                    return
                exchange = None
                while exchange is None and self._read is not None:
                    self._waiting = True
                    task.context = (
                        self._context.copy()
                    )  # from its next step on, which is where the call begins
                    try:
                        await trio.lowlevel.wait_task_rescheduled(self._cancel)
                    except BaseException:  # Ctrl-C may come before it waits
                        self._waiting = False
                        raise
                    if self._reading and self._next is None and self._read is not None:
                        self._read()
                    self._reading = False
                    exchange, self._next = self._next, None

    def _wake(self) -> None:
        if self._waiting:
            assert self._task is not None
            self._waiting = False
            trio.lowlevel.reschedule(self._task)

    def _cancel(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        self._waiting = False
        return trio.lowlevel.Abort.SUCCEEDED
