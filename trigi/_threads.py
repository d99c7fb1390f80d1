"""The threads of `trigi.sync`: lanes, which run the calls that are given to them in order, and places among many.

trio lets nobody choose a thread, so those that are chosen are lanes of our own. All others are trio's, and counted by a
`Place`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

import trio

__all__ = ["ExecutorLane", "Lane", "Place", "Work", "Worker"]

JOIN_TIMEOUT = 1.0
"""Seconds that the end of a block, or of a trio run, waits for an idle thread to end: for its thread-locals to go."""


class Work(ABC):
    """What a lane runs.

    Attributes:
        lane: the thread that it was given to; `None` for any.
    """

    lane: Lane | None = None

    @abstractmethod
    def run(self) -> None:
        """Do it, unless it was given up or done before. Raises nothing but Ctrl-C, to be called again then."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """End it with an exception, before it has begun. From any thread."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether nothing of it is left to run."""


class Lane:
    """A thread that runs calls one after the other, while it waits for something else.

    Attributes:
        outer: the lane to turn to when this one has ended.
        thread_id: the thread's `threading.get_ident()`, when it is known.
    """

    def __init__(self, outer: Lane | None = None) -> None:
        self.outer = outer
        self.thread_id: int | None = threading.get_ident()
        self._lock = threading.Lock()
        self._bell: SimpleQueue[None] = SimpleQueue()  # no condition: its Python code is not safe from Ctrl-C
        self._calls: deque[Work] = deque()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it takes no more calls."""
        return self._ended

    def submit(self, work: Work) -> bool:
        """Have the call run after those before it; false when the lane has ended."""
        with self._lock:
            if self._ended:
                return False
            self._bell.put(None)
            self._calls.append(work)
            return True

    def end(self) -> None:
        """Take no more calls. Those that are there are still run."""
        with self._lock:
            self._ended = True
            self._bell.put(None)

    def serve(self) -> None:
        """Run calls until the lane is ended; in its own thread."""
        ran = False
        while (work := self._next(ran=ran)) is not None:
            work.run()
            ran = True

    def _next(self, *, ran: bool) -> Work | None:
        """Wait for work. It leaves the queue when it has run, so that Ctrl-C in between cannot lose it.

        Args:
            ran: whether the first in the queue is one that has run.
        """
        with self._lock:
            if ran:
                self._calls.popleft()
        while True:
            with self._lock:
                if self._calls:
                    return self._calls[0]
                if self._ended:
                    return None
            self._bell.get()


class Worker(Lane):
    """A thread of its own, for thread-sensitive calls that nobody waits for in a thread.

    It is started by the first call, and ends by itself when nobody holds it and nothing is left to run.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.thread_id = None
        self._name = name
        self._holders = 0
        self._thread: threading.Thread | None = None

    def forget(self) -> None:
        """Begin anew, in the child of a fork, where the thread does not exist."""
        self.__init__(self._name)  # type: ignore[misc]  # the lock, too, may be held by a thread that is not there

    def hold(self) -> None:
        """Keep the thread between calls."""
        with self._lock:
            self._holders += 1

    async def release(self) -> None:
        """Let the thread end, and wait until it has, unless somebody else holds it or it has calls to run.

        Cancellation: none; it waits for `JOIN_TIMEOUT` at most.
        """
        with self._lock:
            self._holders -= 1
            self._bell.put(None)
            thread = self._thread
            ends = not self._holders and all(work.ended for work in self._calls)
        if thread is not None and ends:
            with trio.move_on_after(JOIN_TIMEOUT, shield=True):
                await trio.to_thread.run_sync(
                    thread.join, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
                )

    def submit(self, work: Work) -> bool:
        with self._lock:
            if self._thread is None:
                # A daemon, as trio's threads are: a call that was abandoned does not keep the process.
                thread = threading.Thread(target=self.serve, name=self._name, daemon=True)
                thread.start()  # it goes on when the lock is free
                self._thread = thread
            self._bell.put(None)
            self._calls.append(work)
            return True

    def _next(self, *, ran: bool) -> Work | None:
        with self._lock:
            self.thread_id = None
            if ran:
                self._calls.popleft()
        while True:
            with self._lock:
                if self._calls:
                    self.thread_id = threading.get_ident()
                    return self._calls[0]
                if not self._holders:
                    self._thread = None
                    return None
            self._bell.get()


class ExecutorLane(Lane):
    """The threads of somebody else's executor."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self.thread_id = None
        self._executor = executor

    def submit(self, work: Work) -> bool:
        self._executor.submit(work.run).add_done_callback(partial(self._check, work))
        return True

    @staticmethod
    def _check(work: Work, future: Future[None]) -> None:
        if future.cancelled():  # by Executor.shutdown(cancel_futures=True)
            work.fail(CancelledError("the executor was shut down before the call began"))
        elif (error := future.exception()) is not None:  # the executor's own: it could not begin
            work.fail(error)


class Place:
    """A place among the threads of a limiter: one of its own, or that of the thread above, which waits meanwhile.

    So a thread that calls back never waits for a place that is its own, and no more threads run at once than the
    limiter allows. It is a limiter, as far as `trio.to_thread.run_sync` asks for one.
    """

    def __init__(self, limiter: trio.CapacityLimiter, loan: trio.CapacityLimiter | None) -> None:
        self._limiters = [limiter] if loan is None else [limiter, loan]
        self._taken: list[trio.CapacityLimiter] = []

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Take the first place that is free. Cancellation: takes none."""
        for limiter in self._limiters:
            with suppress(trio.WouldBlock):
                limiter.acquire_on_behalf_of_nowait(borrower)
                self._taken.append(limiter)
                return
        while not self._taken:
            await trio.lowlevel.checkpoint_if_cancelled()
            async with trio.open_nursery() as nursery:
                for limiter in self._limiters:
                    nursery.start_soon(self._acquire, limiter, borrower, nursery.cancel_scope)
        for limiter in self._taken[1:]:
            limiter.release_on_behalf_of(borrower)

    @trio.lowlevel.enable_ki_protection
    async def _acquire(
        self, limiter: trio.CapacityLimiter, borrower: object, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.Cancelled):  # by the other one; by the outside too, and then the loop says so
            await limiter.acquire_on_behalf_of(borrower)
            self._taken.append(limiter)
            scope.cancel()

    def release_on_behalf_of(self, borrower: object) -> None:
        """Give the place back."""
        self._taken[0].release_on_behalf_of(borrower)
