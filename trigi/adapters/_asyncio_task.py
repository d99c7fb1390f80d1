"""The application's side of a call: the asyncio task that runs it, with `receive` and `send` as it sees them."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from abc import ABC, abstractmethod
from collections import deque
from math import inf

from trigi.exceptions import ClientDisconnected
from trigi.typing import ASGI3Application, Message, Scope

from ._asyncio_loop import LoopThread
from ._asyncio_messages import MESSAGE_SIZE, QUEUE_SIZE, is_disconnect, to_queue

__all__ = ["ApplicationTask"]


class ApplicationTask(ABC):
    """An asyncio task that runs an application; whoever serves it in trio is a subclass.

    Each side writes its own attributes, and puts into a `deque` or takes from it; none waits for a lock.

    Args:
        thread: where the application runs.
        application: an asyncio application.
        scope: what it is called with.

    Attributes:
        told: see `Caller`.
    """

    __slots__ = (
        "_application",
        "_cancelled",
        "_closed",
        "_crossing",
        "_disconnected",
        "_error",
        "_finished",
        "_handled",
        "_inbox",
        "_outbox",
        "_parked",
        "_queued",
        "_read",
        "_reading",
        "_receivers",
        "_scope",
        "_send_error",
        "_send_target",
        "_senders",
        "_taken",
        "_task",
        "_thread",
        "_type",
        "_wanted",
        "_was_told",
        "told",
    )

    def __init__(self, thread: LoopThread, application: ASGI3Application, scope: Scope) -> None:
        self.told = False
        self._thread = thread
        self._crossing = thread.crossing
        self._application = application
        self._scope = scope
        self._type: str = scope["type"]
        # From trio to asyncio
        self._inbox: deque[tuple[Message | Exception, int]] = deque()
        self._read = 0  # bytes ever put there
        self._reading = False  # the second trio task runs
        self._parked = False  # … and waits until it may go on
        self._handled = 0  # bytes of messages that the server has taken, or refused
        self._send_error: Exception | None = None
        self._disconnected = False  # from now on each send waits for what the server says
        self._closed = False  # nothing passes any more; either side sets it
        # From asyncio to trio
        self._outbox: deque[tuple[Message | None, int, contextvars.Context | None]] = deque()
        self._queued = 0  # bytes ever put there
        self._taken = 0  # bytes that the application has received
        self._wanted = False  # the application waits for a message
        self._send_target = inf  # how many bytes handled a sender waits for
        self._finished = False
        self._error: BaseException | None = None
        # asyncio's own
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._receivers: list[asyncio.Future[None]] = []
        self._senders: list[tuple[int, asyncio.Future[None]]] = []
        self._was_told = False

    @abstractmethod
    def wake(self) -> None:
        """See `Caller`."""

    @abstractmethod
    def lose(self) -> None:
        """See `Caller`."""

    # Called by the loop, for trio

    def _start(self, context: contextvars.Context) -> None:
        if not self._closed:
            library = getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)
            if library is not None and library in context:
                context.run(library.set, None)  # trio was started by anyio.run
            self._task = self._thread.loop.create_task(self._call(), context=context)
            self._task.add_done_callback(self._finish)

    async def _call(self) -> None:
        if self._task is not None:  # as it is if a task factory of the application's begins it at once
            self._task.remove_done_callback(self._finish)  # for which the loop would need another turn
        try:
            await self._application(self._scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - raised again in trio; asyncio's loop is not to see it
            self._error = error
        self._finish()

    def _finish(self, task: asyncio.Task[None] | None = None) -> None:
        """The application has ended; `task` if it was cancelled before it began."""
        if self._finished:
            return
        if task is not None:
            self._error = asyncio.CancelledError()
        self._closed = True
        self._wake_receivers()
        self._wake_senders()
        self._finished = True
        self._crossing.tell(self)

    def fail(self, error: BaseException) -> None:
        """What was posted has raised this: a task factory of the application's, perhaps."""
        if not self._finished:
            self._error = error
            self._finish()

    def _cancel_task(self) -> None:
        self._closed = self._cancelled = True
        self._wake_receivers()
        self._wake_senders()
        if self._task is None:
            self._finish(None)
        else:
            self._thread.cancel(self._task)

    def _wake_senders(self) -> None:
        for target, waiter in self._senders:
            if (self._closed or target <= self._handled) and not waiter.done():
                waiter.set_result(None)

    def _wake_receivers(self) -> None:
        for waiter in self._receivers:
            if not waiter.done():
                waiter.set_result(None)

    # Called by the application

    async def receive(self) -> Message:
        """The application's `receive`. Cancellation loses no message."""
        while not self._inbox:
            if self._closed:
                return await self._receive_nothing()
            waiter = self._thread.loop.create_future()
            self._receivers.append(waiter)
            try:
                self._wanted = True
                if not self._inbox:  # trio looks at the receivers after it has put something there
                    if not self._reading or self._parked:
                        self._crossing.tell(self)
                    await waiter
            finally:
                self._receivers.remove(waiter)
        self._wanted = False
        message, size = self._inbox[0]
        if isinstance(message, Exception):
            raise message
        if is_disconnect(message):  # it stays, for whoever asks again
            if self._was_told:
                await asyncio.sleep(0)
            self._was_told = True
            return dict(message)
        self._inbox.popleft()
        self._taken += size
        if self._parked and self._read - self._taken < QUEUE_SIZE:
            self._crossing.tell(self)
        return message

    async def _receive_nothing(self) -> Message:
        """What is to be said to an application that asks after its call has ended."""
        await asyncio.sleep(0)
        if self._type == "websocket":
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        if self._type == "http":
            return {"type": "http.disconnect"}
        await self._thread.loop.create_future()
        raise AssertionError  # pragma: no cover - nobody sets it

    async def send(self, message: Message) -> None:
        """The application's `send`. Cancellation: the message is sent all the same.

        Raises:
            ClientDisconnected: the call was cancelled or has ended.
            Exception: what the server said of this message, or of one before.
        """
        self._check()
        context = contextvars.copy_context() if self._type == "lifespan" else None
        queued = None if self._disconnected else to_queue(message)
        message, size = queued or (message, MESSAGE_SIZE)
        self._queued += size
        self._outbox.append((message, size, context))
        target = self._queued - QUEUE_SIZE if queued else self._queued
        if target > self._handled or not queued:
            await self._wait_handled(target)
            self._check()
        elif message["type"] != "http.response.start":  # no server sends that before a piece of the body
            self._crossing.tell(self)

    def _check(self) -> None:
        error = self._send_error
        if error is not None:
            self._send_error = None
            self._outbox.append((None, 0, None))
            try:
                raise error
            finally:
                del error  # or it would be part of a cycle
        if self._closed:
            raise ClientDisconnected("the call was cancelled, or has ended")

    async def _wait_handled(self, target: int) -> None:
        waiter = (target, self._thread.loop.create_future())
        self._senders.append(waiter)
        self._set_send_target()
        try:
            self._crossing.tell(self)
            # trio looks at the target after it has handled something
            if self._handled < target and not self._closed:
                await waiter[1]
        finally:
            self._senders.remove(waiter)
            self._set_send_target()

    def _set_send_target(self) -> None:
        self._send_target = min((target for target, _ in self._senders), default=inf)
