"""Work that outlives its request: tasks of the server's, which its applications start, and whose failures end there.

A request's task may work on after its response too, but it is a call of an application: it counts for
`concurrency_limit`, and what it starts ends with it. The tasks here belong to nobody but the server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from .application import failure_of
from .observer import Observer

__all__ = ["Background", "open_background"]


@asynccontextmanager
async def open_background(nursery: trio.Nursery, observer: Observer) -> AsyncIterator[Background]:
    """Open the tasks' nursery inside `nursery`: after the block it takes no more of them, and waits for the last."""
    background = Background(observer)
    await nursery.start(background.hold)
    try:
        yield background
    finally:
        background.finish()


class Background:
    """A nursery for an application's tasks: `scope["extensions"]["trigi"]["nursery"]`.

    It is like a `trio.Nursery`, but an exception out of a task is logged, and ends that task alone. The tasks are not
    in the cancel scope of the request that starts them: the server waits for them when it shuts down, for
    `graceful_timeout` together with everything else, then cancels them, and runs the lifespan's shutdown after the
    last. How many there are is the application's business.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._nursery: trio.Nursery | None = None
        self._finished = trio.Event()
        self._closed = False

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """Around all of the tasks, whoever has started them. Cancelled, it takes no more of them."""
        return self._open_nursery().cancel_scope

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any, name: object = None) -> None:
        """Start a task, as `trio.Nursery.start_soon` does; `name` is for the log and for debuggers.

        Raises:
            RuntimeError: the server is cancelling its tasks, or has ended.
        """
        nursery = self._nursery_for_more()
        nursery.start_soon(self._run, async_fn, args, name=async_fn if name is None else name)

    async def start(self, async_fn: Callable[..., Awaitable[object]], *args: Any, name: object = None) -> Any:
        """Start a task and wait until it says `task_status.started(value)`; gives the value, as `trio.Nursery.start`.

        Raises:
            RuntimeError: the server is cancelling its tasks, or has ended; the task ended without saying that.
            BaseException: what the task raised before it said that.

        Cancellation: of a caller who still waits cancels the task.
        """
        nursery = self._nursery_for_more()
        return await nursery.start(self._run_started, async_fn, args, name=async_fn if name is None else name)

    @property
    def names(self) -> list[str]:
        """What the tasks that are running are called."""
        return [] if self._nursery is None else sorted(task.name for task in self._nursery.child_tasks)

    async def hold(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep the nursery open until `finish`, and then for the last task."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await self._finished.wait()
        finally:
            self.close()

    def finish(self) -> None:
        """No request is left that could start a task: the last task is the end."""
        self._finished.set()

    def close(self) -> None:
        """Take no more tasks: those that are running are being cancelled."""
        self._closed = True

    def _open_nursery(self) -> trio.Nursery:
        assert self._nursery is not None
        return self._nursery

    def _nursery_for_more(self) -> trio.Nursery:
        nursery = self._open_nursery()
        if self._closed or nursery.cancel_scope.cancel_called:
            raise RuntimeError("background tasks are being cancelled, or have ended: no more can be started")
        return nursery

    @trio.lowlevel.enable_ki_protection
    async def _run(self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        try:
            await async_fn(*args)
        except BaseException as error:  # noqa: BLE001 - as `call_application`
            self._report(error)

    @trio.lowlevel.enable_ki_protection
    async def _run_started(
        self,
        async_fn: Callable[..., Awaitable[object]],
        args: tuple[Any, ...],
        *,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        status = _Status(task_status)
        try:
            await async_fn(*args, task_status=status)
        except BaseException as error:
            if not status.called:  # it is the caller's, who still waits
                raise
            self._report(error)

    def _report(self, error: BaseException) -> None:
        failure = failure_of(error, disconnected=True)
        if failure is not None:
            self._observer.background_failed(trio.lowlevel.current_task().name, failure)


class _Status:
    """A `task_status` that knows whether it was called.

    Attributes:
        called: it was; exceptions are the task's own from then on.
    """

    def __init__(self, inner: trio.TaskStatus[Any]) -> None:
        self.called = False
        self._inner = inner

    def started(self, value: Any = None) -> None:
        """As trio's."""
        self._inner.started(value)
        self.called = True
