"""How a task and a thread call each other: what `trigi.sync` is made of.

A `Call` is one call of a sync function by a task. The task waits in `Call.wait()`, the thread works in `Call.run()`.
While it works it may cross back, again and again:

    task        Call.wait() ──────────── runs the coroutine ──────────────── returns, or raises
                   │                        ▲            │                       ▲
    thread         └─► Call.run(): function │            └─► goes on … ──────────┘
                                            └─ waits, in a lane

The coroutine runs in the very task that waits, so whatever cancels the task reaches it, and nothing has to be passed
on. This is what `trio.from_thread.run` does, with one difference: the thread that waits is not idle. It is a `Lane`,
and runs the thread-sensitive calls that the coroutine makes. trio gives a thread no choice of its own, so threads that
are chosen (lanes) are reached from here, and those that are not (`run_in_pool`) by `trio.to_thread.run_sync`.

What is written by one side is read by the other only after a message: `TrioToken.run_sync_soon` to the task, a lane's
bell to the thread. The one race, between the start of a call and its cancellation, is decided under a lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from math import inf
from typing import Any, TypeVar

import trio

from ._handover import Handled, Outcome
from ._threads import Lane, Place, Work

__all__ = [
    "Call",
    "Crossing",
    "calls_above",
    "check_depth",
    "current_call",
    "innermost_lane",
    "is_trio_thread",
    "lane_of_run",
    "run_from_trio_thread",
    "run_in_new_loop",
    "take_over",
]

R = TypeVar("R")
Link = TypeVar("Link", "Call[Any]", Lane)


class Here(threading.local):
    """What a thread knows of itself."""

    call: Call[Any] | None = None
    """The call that it runs."""
    forked = False
    """Whether it was forked off, and so works for nobody any more."""


here = Here()

calls_above: ContextVar[Call[Any] | None] = ContextVar("trigi.calls_above", default=None)
"""The innermost sync function below which this code runs; it knows the next one."""

innermost_lane: ContextVar[Lane | None] = ContextVar("trigi.innermost_lane", default=None)
"""The thread that waits for this async code, and so has time for its thread-sensitive calls; it knows the next one."""

lane_of_run: trio.lowlevel.RunVar[Lane | None] = trio.lowlevel.RunVar("trigi.lane_of_run", default=None)
"""The thread that waits for this trio run as a whole."""

INTERNAL: tuple[ContextVar[Any], ...] = (calls_above, innermost_lane)
"""What does not cross back with other changes."""

UNSET: Any = object()

HEADROOM = 60
"""How many calls deep what is done here may go: more than enough."""


def check_depth(headroom: int = HEADROOM) -> None:
    """Raise `RecursionError` before anything is begun: in its middle, the other side would wait for ever."""
    if headroom:
        check_depth(headroom - 1)
    elif trio.lowlevel.in_trio_run():
        trio.current_effective_deadline()  # is asked for in between, and goes one call deeper for each cancel scope


def current_call() -> Call[Any] | None:
    """The call that this thread runs."""
    return here.call


def forget_the_parent() -> None:
    """Belong to no trio run: in the only thread of the child of a fork."""
    here.call = None
    here.forked = True
    calls_above.set(None)
    innermost_lane.set(None)


os.register_at_fork(after_in_child=forget_the_parent)


def take_over(context: Context) -> None:
    """Set in the current context what is different in another one. A variable that was unset there stays."""
    for variable, value in context.items():
        if variable not in INTERNAL and variable.get(UNSET) is not value:
            variable.set(value)


def first_of(link: Link | None) -> Link | None:
    """The first of a chain that has not ended; others that have are taken out, for tasks that start tasks for ever.

    Several threads may do so at once: what has ended stays so, and whatever it is followed by stays behind it.
    """
    while link is not None and link.ended:
        link = link.outer
    rest = link
    while rest is not None:
        outer = rest.outer
        while outer is not None and outer.ended:
            outer = outer.outer
        if outer is not rest.outer:
            rest.outer = outer
        rest = outer
    return link


class Crossing(Outcome[R]):
    """A coroutine on its way from a thread into a task, and what came of it on its way back.

    Args:
        function: makes the coroutine, in the task.
    """

    def __init__(self, function: Callable[[], Awaitable[R]]) -> None:
        super().__init__()
        self.lane = Lane(first_of(innermost_lane.get()))
        self.received = False
        self.began = False
        self.scope = trio.CancelScope()
        self._function = function
        self._handled = Handled()
        self._token: trio.lowlevel.TrioToken | None = None
        self._cancelled = False
        self.context = copy_context()
        self.context.run(innermost_lane.set, self.lane)

    async def run(self) -> None:
        """Run the coroutine; its context is current already. Never raises."""
        self.began = True
        self._token = trio.lowlevel.current_trio_token()
        if self._cancelled:
            self.scope.cancel()
        try:
            with self.scope:
                self.set_value(await self._run())
        except BaseException as error:  # noqa: BLE001 - raised where the thread waits
            self.set_error(error)
        self.context = copy_context()

    @trio.lowlevel.disable_ki_protection
    async def _run(self) -> R:
        try:
            self._handled.reraise()
        except BaseException:  # noqa: BLE001 - the thread handles it
            self._handled.restore()
            return await self._function()
        return await self._function()

    async def run_in(self, task: trio.lowlevel.Task) -> None:
        """Run the coroutine in this task, which is the current one, with the thread's context variables."""
        old = task.context
        task.context = self.context
        await trio.lowlevel.cancel_shielded_checkpoint()  # a task's context is looked at when it goes on
        await self.run()
        task.context = old
        await trio.lowlevel.cancel_shielded_checkpoint()

    def cancel(self) -> None:
        """Cancel the coroutine, from any thread."""
        self._cancelled = True
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.scope.cancel, idempotent=True)

    def wait(self, start: Callable[[], object]) -> None:
        """Run the calls that come to this thread until the lane is ended, and take the context variables over.

        Ctrl-C in the main thread cancels the coroutine, and is raised when it has ended.

        Args:
            start: has the coroutine run. It is called again if Ctrl-C comes before it returns.
        """
        interrupt = None
        started = False
        call = here.call
        while True:
            try:
                here.call = call  # the end of another one that Ctrl-C has cut off has not put it back
                if interrupt is not None:
                    self.cancel()
                if not started:
                    start()
                    started = True
                self.lane.serve()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        take_over(self.context)
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt


class Call(Outcome[R], Work):
    """One call of a sync function by a task, in another thread.

    Args:
        function: the function, with its arguments.
        context: the context that it runs in.
        abandon_on_cancel: whether a cancelled task leaves the thread to itself.

    Attributes:
        outer: the call below which this one is made.
        lane: the lane that it was given to; `None` for the pool.
        limiter: where its thread is counted, for the pool.
        loan: its place in the limiter, for calls below it, as long as its thread only waits for them.
        waits: whether its thread waits in a crossing.
        running: whether the function has begun, and not ended.
        cancelled: whether the task has been cancelled.
        inner: a crossing into another trio run, which does not hear of the cancellation by itself.
    """

    def __init__(self, function: Callable[[], R], context: Context, *, abandon_on_cancel: bool) -> None:
        super().__init__()
        self.token = trio.lowlevel.current_trio_token()
        self.outer = first_of(calls_above.get())
        self.context = context
        self.limiter: trio.CapacityLimiter | None = None
        self.loan = trio.CapacityLimiter(1)
        self.waits = False
        self.running = False
        self.cancelled = False
        self.inner: Crossing[Any] | None = None
        self._task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self._host: tuple[trio.lowlevel.Task, Context] | None = None
        self._crossing: Crossing[Any] | None = None
        self._function = function
        self._abandon_on_cancel = abandon_on_cancel
        self._handled = Handled()
        self._lock = threading.Lock()
        self._begun = False
        self._given_up = False
        self._told = False
        self._raise_cancel: Callable[[], Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to run."""
        return self._given_up or (self._begun and not self.running)

    @property
    def lends(self) -> bool:
        """Whether its thread only waits: in a crossing, or in `trio.from_thread.run`.

        The latter runs in the task that waits in `trio.to_thread.run_sync`, and in another context meanwhile.
        """
        return self.waits or (self._host is not None and self._host[0].context is not self._host[1])

    # In the task

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> None:
        """Wait until the function has ended, and run what it crosses back with.

        Raises:
            trio.Cancelled: if the function had not begun, or is abandoned. A function that has begun is waited for.
        """
        while True:
            await trio.lowlevel.wait_task_rescheduled(self._abort)
            crossing, self._crossing = self._crossing, None
            if crossing is None:
                return
            self.waits = True
            await crossing.run_in(trio.lowlevel.current_task())
            self.waits = False
            self.cancelled = trio.current_effective_deadline() == -inf
            crossing.lane.end()

    def _abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        with self._lock:
            if not self._begun:
                self._given_up = True
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED
        self._raise_cancel = raise_cancel
        self.cancelled = True
        if self.inner is not None:
            self.inner.cancel()
        if not self._abandon_on_cancel:
            return trio.lowlevel.Abort.FAILED
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _receive(self, crossing: Crossing[Any] | None) -> None:
        """Go on: with a coroutine to run, or with the end. What is sent again, because of Ctrl-C, is ignored."""
        task = self._task
        if crossing is None:
            self._task = None
        elif crossing.received:
            return
        else:
            crossing.received = True
        if task is not None:
            self._crossing = crossing
            trio.lowlevel.reschedule(task)
        elif crossing is not None:
            crossing.lane.end()

    async def run_in_pool(self, limiter: trio.CapacityLimiter) -> None:
        """Run it in any thread of trio's, as many at once as the limiter allows, and wait for it as `wait()` does."""
        self.limiter = limiter
        lender = self.outer
        while lender is not None and not (lender.limiter is limiter and lender.lends):
            lender = lender.outer
        place = Place(limiter, lender.loan if lender is not None else None)
        waiting = Outcome[None]()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_in_thread, place)
                try:
                    await self.wait()
                    waiting.set_value(None)
                except BaseException as error:  # noqa: BLE001 - raised below, where no nursery makes a group of it
                    waiting.set_error(error)
                nursery.cancel_scope.cancel()  # nothing is left but to give back the place
        except BaseExceptionGroup as group:  # of Ctrl-C, which has come while the nursery waited
            raise group.exceptions[0] from None
        waiting.unwrap()

    @trio.lowlevel.enable_ki_protection
    async def _run_in_thread(self, place: Place) -> None:
        # The task in wait() is in the same scopes, and lets Cancelled pass, so it can end here.
        with suppress(trio.Cancelled):
            host = trio.lowlevel.current_task()
            self._host = host, host.context
            try:
                await trio.to_thread.run_sync(
                    self.run,
                    thread_name="trigi.sync",
                    abandon_on_cancel=self._abandon_on_cancel,
                    limiter=place,  # type: ignore[arg-type]  # trio documents that these two methods are enough
                )
            except Exception as error:  # noqa: BLE001 - no thread could be started
                self.set_error(error)
                self.fail(error)  # unless it has ended, by its cancellation
            finally:
                self._host = None

    def forget(self) -> None:
        """Let go of what the function was called with: tasks that were started below it may keep the call."""
        with self._lock:
            del self.context, self._function, self._handled

    # In the thread

    def run(self) -> None:
        """Run the function, unless the task has given it up. Raises nothing but Ctrl-C, to be called again then."""
        outer = here.call
        try:
            with self._lock:
                if self._given_up or self._begun:
                    return
                self.running = self._begun = True
                context, function, handled = self.context, self._function, self._handled
            here.call = self
            self.set_value(context.run(self._run, function, handled))
        except BaseException as error:
            if not self._begun:
                raise
            self.set_error(error)  # raised where the task waits
        finally:
            here.call = outer
            self._finish()

    def _run(self, function: Callable[[], R], handled: Handled) -> R:
        before = calls_above.set(self)
        try:
            try:
                handled.reraise()
            except BaseException:  # noqa: BLE001 - the task handles it
                handled.restore()
                return function()
            return function()
        finally:
            calls_above.reset(before)

    def fail(self, error: BaseException) -> None:
        """End the call, whose function has not begun, with an exception. From any thread."""
        with self._lock:
            if self._given_up or self._begun:
                return
            self.running = self._begun = True
        self.set_error(error)
        self._finish()

    def _finish(self) -> None:
        if self._begun and not self._told:
            self.running = False
            with suppress(trio.RunFinishedError):  # the task has abandoned it
                self.token.run_sync_soon(self._receive, None)
            self._told = True

    def cross(self, crossing: Crossing[Any]) -> None:
        """Run the coroutine in the task that waits, and wait for it.

        Raises:
            trio.Cancelled: if the task has abandoned the call.
        """

        def start() -> None:
            try:
                self.token.run_sync_soon(self._receive, crossing)
            except trio.RunFinishedError:
                crossing.lane.end()

        crossing.wait(start)
        if not crossing.began:
            self._raise()

    def _raise(self) -> None:
        assert self._raise_cancel is not None, "a task that is not cancelled waits for its call"
        self._raise_cancel()

    def check_cancelled(self) -> None:
        """Raise `trio.Cancelled` if the task has been cancelled."""
        if self.cancelled:
            crossing = Crossing(trio.lowlevel.checkpoint_if_cancelled)
            self.cross(crossing)
            crossing.unwrap()

    def raise_cancelled(self) -> None:
        """Raise `trio.Cancelled`, for what was cancelled elsewhere because of it."""
        self.check_cancelled()
        self._raise()


# Without a call of ours


def run_in_new_loop(crossing: Crossing[Any], call: Call[Any] | None) -> None:
    """Run a coroutine in a new trio run in a new thread, cancelled with the call that this thread runs."""
    began = threading.Event()
    tried = False

    async def main() -> None:
        lane_of_run.set(crossing.lane)
        await crossing.run()

    def run() -> None:
        began.set()
        try:
            crossing.context.run(trio.run, main)
        except BaseException as error:  # noqa: BLE001 - trio's, and raised where the thread waits
            crossing.set_error(error)
        finally:
            crossing.lane.end()

    def start() -> None:
        nonlocal tried
        if not tried:
            tried = True
            try:
                thread.start()
            except RuntimeError as error:
                if isinstance(error.__context__, KeyboardInterrupt):  # it came in the locks of Thread.start()
                    raise error.__context__ from None
                raise
        elif not began.wait(1):  # a second is long for a thread that was started; this one was not
            crossing.lane.end()

    thread = threading.Thread(target=run, name="trigi.sync loop")
    if call is not None:
        call.inner = crossing
        if call.cancelled:
            crossing.cancel()
    try:
        crossing.wait(start)
    finally:
        if began.is_set():
            thread.join()
        if call is not None:
            call.inner = None
    if call is not None and crossing.scope.cancelled_caught:
        call.raise_cancelled()


def is_trio_thread() -> bool:
    """Whether this thread was started by `trio.to_thread.run_sync`, in this process."""
    if here.forked:
        return False
    try:
        trio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    except trio.Cancelled:
        pass
    return True


def run_from_trio_thread(crossing: Crossing[Any]) -> None:
    """Run a coroutine in the task that waits for this thread of trio's.

    trio lets the thread do nothing meanwhile, so it is no lane for calls.

    Raises:
        trio.RunFinishedError: if that trio run has ended, and has abandoned this thread.
    """
    outer = crossing.lane.outer
    crossing.lane.end()

    async def run() -> None:
        innermost_lane.set(outer)
        await crossing.run()

    crossing.context.run(trio.from_thread.run, run)
    take_over(crossing.context)
