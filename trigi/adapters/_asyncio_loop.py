"""An asyncio event loop in a thread of its own: its life, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from trigi.exceptions import ApplicationError

from ._asyncio_crossing import Caller, Crossing

__all__ = ["LoopThread"]

logger = logging.getLogger("trigi.error")

_HERE = str(Path(__file__).parent)


class LoopThread:
    """An asyncio loop that runs in a thread of its own, from its creation until `close`.

    Args:
        loop: the loop; nobody else runs it.
        cancel_timeout: seconds that a cancelled asyncio task has to end.

    Attributes:
        loop: the asyncio loop.
        crossing: between trio and the loop.
        token: of the trio loop that it belongs to.
        cancel_timeout: as given.
        ended: the loop is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, cancel_timeout: float) -> None:
        self.loop = loop
        self.token = trio.lowlevel.current_trio_token()
        self.cancel_timeout = cancel_timeout
        self.ended = trio.Event()
        self.crossing = Crossing(loop)
        self._serving = True
        self._cancelled_at = -inf  # in the loop's time, when `cancel` was called last
        self._closing = False
        self._callers: set[Caller] = set()
        # A daemon, so that an application that blocks it for ever can't keep the process.
        self._thread = threading.Thread(target=self._run, name="trigi-asyncio", daemon=True)
        self._thread.start()

    # In trio's thread

    def enter(self, caller: Caller) -> None:
        """A caller is going to wait for what the loop does, until it calls `leave`.

        Raises:
            ApplicationError: the loop is being closed.
        """
        if self._closing:
            raise ApplicationError("the asyncio loop was closed before the call began")
        self._callers.add(caller)

    def leave(self, caller: Caller) -> None:
        """A caller waits no more."""
        self._callers.discard(caller)

    async def close(self, seconds: float) -> None:
        """End the loop: its tasks, its asynchronous generators, its executor, in that order.

        Args:
            seconds: how long that is waited for. An application that blocks the loop is left behind, and logged.

        Cancellation: shielded, for that time.
        """
        if not self._closing:
            self._closing = True
            with suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(self._stop)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
            await self.ended.wait()
        if self.ended.is_set():
            self._thread.join()
        else:
            logger.error(
                "the asyncio loop has not ended after %.1f s: it is left behind\n%s", seconds, self.stack()
            )
            self._lose_callers()
            self.crossing.leave()

    def stack(self) -> str:
        """Where the thread is now."""
        return format_stack(self._thread_frames())

    def describe(self, task: asyncio.Task[Any]) -> str:
        """Where a task is now: where it waits, or what it blocks the loop with."""
        frames: list[FrameType] = []
        awaited: Any = task.get_coro()
        while awaited is not None:
            frame = next(
                (f for f in (getattr(awaited, f"{kind}_frame", None) for kind in ("cr", "gi", "ag")) if f),
                None,
            )
            if frame is None:
                break
            if getattr(awaited, "cr_running", False):
                return self.stack()
            frames.append(frame)
            awaited = next(
                (a for a in (getattr(awaited, f"{kind}_{of}", None) for kind, of in AWAITED) if a), None
            )
        return format_stack(frames)

    def _thread_frames(self) -> list[FrameType]:
        frames = []
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - documented, of the library
        while frame is not None:
            if frame.f_code.co_filename.startswith(_HERE):
                break  # what is below is the same for all
            frames.append(frame)
            frame = frame.f_back
        return frames[::-1]

    def _lose_callers(self) -> None:
        for caller in self._callers:
            caller.lose()

    def _set_ended(self) -> None:
        self._closing = True
        self.crossing.wake_ready()
        self._lose_callers()
        self.crossing.leave()
        self.crossing.close()
        self.ended.set()

    # In the loop's thread

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task, but not once more if the loop is being closed: that cancels all."""
        if self._serving:
            self._cancelled_at = self.loop.time()
            task.cancel()

    def _stop(self) -> None:
        if self._serving:
            self.loop.stop()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._survive(self.loop.run_forever)
            self._serving = False
            end = _End(self._end(), loop=self.loop)  # whatever the application's task factory does
            while not end.done():
                self._survive(self.loop.run_until_complete, end)
        finally:
            self.loop.close()
            try:
                self.token.run_sync_soon(self._set_ended)
            except trio.RunFinishedError:
                self.crossing.close()

    def _survive(self, run: Callable[..., object], *args: Any) -> None:
        """Run the loop, which asyncio leaves when a task raises one of these: it is that task's end, and no more."""
        try:
            run(*args)
        except (SystemExit, KeyboardInterrupt):
            logger.exception("an asyncio task of the application's raised what would end a process")
        except Exception:
            logger.exception("the asyncio loop failed")
            time.sleep(FAILURE_SECONDS)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        # What a call has cancelled just now cleans up, and has its time for that before it is cancelled again.
        begun = self.loop.time()
        seconds = self._cancelled_at + self.cancel_timeout - begun
        spared = {task for task in tasks if task.cancelling()} if seconds > 0 else set()
        for task in tasks - spared:
            task.cancel()
        if spared:
            _, stuck = await asyncio.wait(spared, timeout=seconds)
            for task in stuck:
                task.cancel()
        if tasks:
            seconds = begun + self.cancel_timeout - self.loop.time()
            ended, stuck = await asyncio.wait(tasks, timeout=max(seconds, LAST_SECONDS))
            for task in ended:
                if not task.cancelled() and (error := task.exception()) is not None:
                    logger.error("an asyncio task failed while the loop was closed: %r", task, exc_info=error)
            for task in stuck:
                logger.error(
                    "%r swallowed its cancellation: it is left behind\n%s", task, self.describe(task)
                )
        try:
            await self.loop.shutdown_asyncgens()
        finally:
            await self.loop.shutdown_default_executor()


class _End(asyncio.Task[None]):
    """A task that nobody cancels, as the application's clean-up may all that it finds."""

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002
        return False


LAST_SECONDS = 0.1
"""That a task has at least after the last cancellation: so closing takes hardly longer than `cancel_timeout`."""

FAILURE_SECONDS = 0.1
"""Until a loop that has failed itself is run again: what fails again and again is not to take all of a processor."""

AWAITED = (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await"))
"""What a coroutine, a generator and an asynchronous generator each call what they wait for."""


def format_stack(frames: list[FrameType]) -> str:
    """A stack as in a traceback, without the line end."""
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return "".join(summary.format()).rstrip()
