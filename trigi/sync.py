"""Sync code in async code and the other way round, for trio programs, with the names and promises of asgiref.sync.

    await sync_to_async(function)(…)    a sync function in a thread
    async_to_sync(function)(…)          an async function from sync code: in the trio run that the thread belongs to,
                                        or, where there is none, in one of its own
    async with ThreadSensitiveContext() a thread of its own for the thread-sensitive code below
    check_cancelled()                   in sync code: has whoever waits for it been cancelled?
    current_limiter()                   how many threads there may be at once, without the thread-sensitive ones

Everything works in any trio program; a server is not needed. `docs/explanation/threads.md` says what is promised about
threads, context variables and cancellation.

How a task and a thread call each other is in `_crossing.py`, what threads there are in `_threads.py`. Here is which of
them is taken, and which trio run.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any, ParamSpec, Self, TypeVar, overload

import trio

from ._crossing import (
    Call,
    Crossing,
    check_depth,
    current_call,
    innermost_lane,
    is_trio_thread,
    lane_of_run,
    run_from_trio_thread,
    run_in_new_loop,
    take_over,
)
from ._threads import ExecutorLane, Lane, Worker

__all__ = ["ThreadSensitiveContext", "async_to_sync", "check_cancelled", "current_limiter", "sync_to_async"]

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 40
"""How many threads a limiter allows at first: as many as trio's own."""

limiter_of_run: trio.lowlevel.RunVar[trio.CapacityLimiter | None] = trio.lowlevel.RunVar(
    "trigi.limiter_of_run", default=None
)
holds_shared: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("trigi.holds_shared", default=False)
"""Whether a trio run keeps the thread that all share."""

shared_worker = Worker("trigi.sync shared")
"""The one thread for thread-sensitive code that no other belongs to, shared by all trio runs of the process."""
os.register_at_fork(after_in_child=shared_worker.forget)


def current_limiter() -> trio.CapacityLimiter:
    """The limiter of `sync_to_async(…, thread_sensitive=False)` in this trio run: 40 threads, until it is changed.

        trigi.sync.current_limiter().total_tokens = 100

    It is not trio's, so functions that are stuck keep neither files nor name resolution waiting. A thread that calls
    back into trio lends its place to what it waits for: by `async_to_sync`, and by `trio.from_thread.run` unless that
    is given a `trio_token` or `abandon_on_cancel` is set. Thread-sensitive code needs no place.

    Raises:
        RuntimeError: outside of trio.
    """
    limiter = limiter_of_run.get()
    if limiter is None:
        limiter = trio.CapacityLimiter(THREADS)
        limiter_of_run.set(limiter)
    return limiter


def check_cancelled() -> None:
    """In a thread of `sync_to_async`, or of `trio.to_thread`: raise if whoever waits for it has been cancelled.

    To be called now and then in a loop that takes long. Costs next to nothing as long as nobody is cancelled.

    Raises:
        trio.Cancelled: if so; to be let out of the function.
        RuntimeError: in other threads.
    """
    call = current_call()
    if call is None or trio.lowlevel.in_trio_run():
        trio.from_thread.check_cancelled()
    else:
        call.check_cancelled()


# From async to sync


@overload
def sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: Context | None = None,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def sync_to_async(
    func: None = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: Context | None = None,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, Coroutine[Any, Any, R]]]: ...


def sync_to_async(
    func: Callable[..., Any] | None = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: Context | None = None,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> Any:
    """Make an async function of a sync one, which is run in a thread. Also a decorator, of methods too.

    The function sees the caller's context variables and the exception that is handled there; its changes of the
    variables come back, also when it raises. What it raises is raised in the caller, as it is; only `StopIteration`
    becomes a `RuntimeError`, as in every coroutine (PEP 479).

    Args:
        func: the function; without it, a decorator is returned.
        thread_sensitive: whether it must run in the same thread as the other sensitive code around it, one call after
            the other. That is the thread of the sync code that waits for the caller; else that of the
            `ThreadSensitiveContext`; else that of the sync code that started the trio run; else one of the process.
            If false, it runs in any thread, beside other calls.
        executor: run it there. With `thread_sensitive=False` only.
        context: the context to run it in, instead of a copy of the caller's. Changes stay there.
        limiter: bounds the number of threads, instead of `current_limiter()`. With `thread_sensitive=False` only.
        abandon_on_cancel: whether a cancelled caller leaves the running function to itself.

    Raises:
        TypeError: for an async function, or options that contradict each other.
        RuntimeError: by the call, if it would wait for a thread that waits for it.

    Cancellation: a function that has not begun is never run. One that runs is waited for, and its result returned or
    its exception raised: `trio.Cancelled`, if it crosses back or calls `check_cancelled()`. With `abandon_on_cancel`
    the caller is free at once, what the function returns or raises is dropped, and where it crosses back it gets
    `trio.Cancelled`.
    """
    if thread_sensitive and executor is not None:
        raise TypeError("executor must not be set when thread_sensitive is True")
    if limiter is not None and (thread_sensitive or executor is not None):
        raise TypeError("limiter must not be set when thread_sensitive is True or executor is set")

    def decorate(func: Any) -> Callable[..., Coroutine[Any, Any, Any]]:
        if not callable(func) or is_async(func):
            raise TypeError("sync_to_async can only be applied to sync functions.")

        @functools.wraps(func)
        @trio.lowlevel.enable_ki_protection  # Ctrl-C ends the wait, or the coroutine that the function waits for
        async def call_in_thread(*args: Any, **kwargs: Any) -> Any:
            await trio.lowlevel.checkpoint_if_cancelled()
            check_depth()
            call = Call(
                functools.partial(func, *args, **kwargs),
                copy_context() if context is None else context,
                abandon_on_cancel=abandon_on_cancel,
            )
            try:
                if thread_sensitive:
                    submit_sensitive(call)
                    await call.wait()
                elif executor is not None:
                    ExecutorLane(executor).submit(call)
                    await call.wait()
                else:
                    await call.run_in_pool(current_limiter() if limiter is None else limiter)
                if context is None:
                    take_over(call.context)
                return call.unwrap()
            finally:
                call.forget()
                del call  # an exception that it carries has this frame in its traceback

        keep_self(call_in_thread, func)
        return call_in_thread

    return decorate if func is None else decorate(func)


def submit_sensitive(call: Call[Any]) -> None:
    """Give a thread-sensitive call to the thread that it belongs to."""
    lane = innermost_lane.get()
    while lane is not None:
        if submit(call, lane):
            return
        lane = lane.outer  # its sync code has gone on, and this task has outlived it
    if (context := thread_sensitive_context.get()) is not None:
        submit(call, context.lane)
        return
    lane = lane_of_run.get()
    if lane is None or not submit(call, lane):
        hold_shared_worker()
        submit(call, shared_worker)


def submit(call: Call[Any], lane: Lane) -> bool:
    """Give a call to a thread, unless that has ended, or waits for this very call.

    A trio run that was started in or below a function of that thread, and not by `async_to_sync`, is one that the
    function waits for.
    """
    if lane.ended:  # and its thread may be anyone's by now
        return False
    above = call.outer
    while above is not None:
        if above.running and above.lane is lane and above.token is not call.token:
            raise RuntimeError("Single thread executor already being used, would deadlock")
        above = above.outer
    if lane.thread_id == threading.get_ident():
        raise RuntimeError("Single thread executor already being used, would deadlock")
    call.lane = lane
    return lane.submit(call)


def hold_shared_worker() -> None:
    """Keep the shared thread until this trio run ends."""
    if holds_shared.get():
        return
    with suppress(RuntimeError):  # it is at its end already
        trio.lowlevel.spawn_system_task(hold_until_the_end, context=Context())
        holds_shared.set(True)
        shared_worker.hold()


async def hold_until_the_end() -> None:
    """A task of the trio run, which is cancelled when the others have ended."""
    try:
        await trio.sleep_forever()
    finally:
        await shared_worker.release()


class ThreadSensitiveContext:
    """A block whose thread-sensitive code has a thread of its own, instead of the one that all share.

        async with ThreadSensitiveContext():
            await sync_to_async(function)()

    The thread is the same for all of the block, also in tasks that are started there, and another one in another
    context. Of nested contexts the outermost counts. Below sync code that waits in `async_to_sync` a context changes
    nothing: that thread comes first. The thread begins with the first call and ends with the block. Calls of tasks
    that outlive the block run in a new one.

    Args:
        executor: run the code there, whatever is around the block. It should have one thread, and is the caller's to
            shut down. Such a context is entered once, and tasks that outlive it get a `RuntimeError`.

    Raises:
        RuntimeError: when a context with an executor is entered again.

    Cancellation: leaving the block waits for the end of an idle thread, for a second at most, shielded. It does not
    wait for a thread that still runs something.
    """

    def __init__(self, *, executor: Executor | None = None) -> None:
        self._own = None if executor is None else ExecutorLane(executor)
        self._worker = Worker("trigi.sync context")
        self._before: tuple[ThreadSensitiveContext | None, Lane | None] | None = None
        self._depth = 0
        self._exited = False

    @property
    def lane(self) -> Lane:
        """The thread for its calls."""
        if self._own is None:
            return self._worker
        if self._exited:
            raise RuntimeError(
                "ThreadSensitiveContext has exited: tasks must not outlive one with an executor"
            )
        return self._own

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._own is not None and (self._before is not None or self._exited):
            raise RuntimeError("ThreadSensitiveContext with an executor can be entered only once")
        around = thread_sensitive_context.get()
        if self._own is None and around is not None and not around._exited:  # noqa: SLF001 - of this class
            self._depth += 1
            return self
        self._exited = False
        self._before = around, innermost_lane.get()
        thread_sensitive_context.set(self)
        if self._own is not None:
            innermost_lane.set(None)
        self._worker.hold()
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(self, *_: object) -> None:
        if self._depth:
            self._depth -= 1
            return
        assert self._before is not None, "it is left more often than it was entered"
        around, lane = self._before
        thread_sensitive_context.set(around)
        if self._own is not None:
            innermost_lane.set(lane)
        self._before = None
        self._exited = True
        await self._worker.release()


thread_sensitive_context: ContextVar[ThreadSensitiveContext | None] = ContextVar(
    "trigi.thread_sensitive_context", default=None
)


# From sync to async


@overload
def async_to_sync(
    awaitable: Callable[P, Awaitable[R]], *, force_new_loop: bool = False
) -> Callable[P, R]: ...


@overload
def async_to_sync(
    awaitable: None = None, *, force_new_loop: bool = False
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, R]]: ...


def async_to_sync(awaitable: Callable[..., Any] | None = None, *, force_new_loop: bool = False) -> Any:
    """Make a sync function of an async one, for sync code. Also a decorator, of methods too.

    In a thread of `sync_to_async` or `trio.to_thread` the coroutine runs in the trio run that this thread works for, in
    the very task that waits for it. In any other thread it runs in a trio run of its own, in a new thread. While this
    thread waits, it runs the thread-sensitive code that the coroutine comes to; only one of `trio.to_thread` cannot.

    The coroutine sees the thread's context variables and the exception that is handled there; its changes of the
    variables come back, also when it raises. What it raises is raised here, as it is.

    Args:
        awaitable: the async function; without it, a decorator is returned.
        force_new_loop: whether it always runs in a trio run of its own.

    Raises:
        RuntimeError: by the call, in a thread that trio runs in: there, `await` the function.

    Warns:
        UserWarning: for something that is not marked as async. It is called and awaited all the same.

    Cancellation: a coroutine runs in the scopes of the task that waits for this thread. So `trio.Cancelled` is raised
    in it where it waits, and from there in the sync code, if the task is cancelled, or was before. Ctrl-C in the main
    thread cancels the coroutine, and is raised when it has ended.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if not is_async(function):
            warnings.warn(
                "async_to_sync was passed a non-async-marked callable",
                stacklevel=2 if awaitable is None else 3,
            )

        @functools.wraps(function)
        def run_from_thread(*args: Any, **kwargs: Any) -> Any:
            if trio.lowlevel.in_trio_run():
                raise RuntimeError(
                    "You cannot use async_to_sync in the thread that trio runs in: just await the async function."
                )
            check_depth()
            crossing = Crossing(functools.partial(function, *args, **kwargs))
            call = current_call()
            try:
                if call is not None and not force_new_loop:
                    call.cross(crossing)
                elif call is not None or force_new_loop or not is_trio_thread():
                    run_in_new_loop(crossing, call)
                else:
                    run_from_trio_thread(crossing)
                return crossing.unwrap()
            finally:
                del crossing  # an exception that it carries has this frame in its traceback

        for mark in ("_is_coroutine_marker", "_is_coroutine"):  # of inspect and asyncio, copied by wraps()
            vars(run_from_thread).pop(mark, None)
        keep_self(run_from_thread, function)
        return run_from_thread

    return decorate if awaitable is None else decorate(awaitable)


# What both directions need


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine, as far as that can be seen."""
    if inspect.iscoroutinefunction(function):
        return True
    return not isinstance(function, type) and inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - whether it is async is asked, not whether it is there
    )


def keep_self(wrapper: Callable[..., Any], function: Callable[..., Any]) -> None:
    """Show the object that a method is bound to."""
    if hasattr(function, "__self__"):
        wrapper.__self__ = function.__self__  # type: ignore[attr-defined]
