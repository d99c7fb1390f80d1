"""One call of an asyncio application: a trio task speaks with the server, an asyncio task runs the application.

    server   trio task                                        asyncio task             application
       <───── send() ◄─── outbox: at most QUEUE_SIZE ahead ◄────── send() ◄─────────────────┤
       ─────► receive() ─► inbox: at most QUEUE_SIZE ahead ──────► receive() ──────────────►│

This is trio's side, `_asyncio_task.py` the other. The trio task is the one that the server has called: it sends. A
second one, which receives, is begun when the application first waits for a message that was not there when the call
began: most requests never need it.

A `send` of the application's returns before the server has seen the message. What the server raises is raised by the
next `send`, and what was sent meanwhile is dropped, as it would never have been sent; so that the application is where
it was, as far as the server knows.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from math import inf

import trio

from trigi.exceptions import ApplicationError, ClientDisconnected
from trigi.typing import ASGI3Application, Message, Receive, Scope, Send

from ._asyncio_loop import LoopThread
from ._asyncio_messages import QUEUE_SIZE, is_disconnect, size_of
from ._asyncio_task import ApplicationTask

__all__ = ["Call"]

logger = logging.getLogger("trigi.error")


class Call(ApplicationTask):
    """One call of an application, served.

    Args:
        thread: where the application runs.
        application: an asyncio application.
        scope: what it is called with.

    Attributes:
        stopping: of a lifespan: no requests will follow, because it failed, was told to shut down, or was cancelled.
    """

    __slots__ = ("_all_read", "_dropping", "_lost", "_reader", "_sender", "stopping")

    def __init__(self, thread: LoopThread, application: ASGI3Application, scope: Scope) -> None:
        super().__init__(thread, application, scope)
        self.stopping = False
        self._sender = _Seat()
        self._reader = _Seat()
        self._lost = False  # the loop has ended first, or was left behind
        self._dropping = False
        self._all_read = False  # there is nothing more to receive

    async def run(self, receive: Receive, send: Send) -> None:
        """Call the application, and return when it has returned and the server has all that it sent.

        Raises:
            ApplicationError: it raised something that would end a program: `SystemExit`, `CancelledError`; or the loop
                was closed before it had ended.
            Exception: what it raised.

        Cancellation: cancels the asyncio task, and waits for it `cancel_timeout` seconds. If it has not ended then, it
        is logged and cut off.
        """
        await self._receive_at_once(receive)
        self._thread.enter(self)
        self._crossing.post(self, self._start, contextvars.copy_context())
        try:
            if await self._serve(send):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive_messages, receive)
                    await self._serve(send)
                    nursery.cancel_scope.cancel()
        except BaseException:
            self.stopping = True
            if not self._finished:
                await self._cancel()
            if self._finished:
                self._raise_own()
            raise
        finally:
            self._closed = True
            self._thread.leave(self)
        self._raise_errors()

    async def _receive_at_once(self, receive: Receive) -> None:
        """Take the messages that are there already, so that they need no switch of threads of their own."""
        with trio.CancelScope(deadline=-inf):
            while self._may_receive():
                message = await receive()
                self._put(message)
                if self._type == "lifespan" or not message.get("more_body"):
                    return

    def _put(self, message: Message) -> None:
        size = size_of(message)
        if is_disconnect(message):
            self._disconnected = self._all_read = True
        self.stopping = self.stopping or message["type"] == "lifespan.shutdown"
        self._read += size
        self._inbox.append((message, size))
        if self._receivers:
            self._crossing.post(self, self._wake_receivers)

    def _may_receive(self) -> bool:
        # What a lifespan is asked for means something to the server: so only when the application has asked.
        ahead = self._type != "lifespan" or not self._read
        return self._wanted or (ahead and self._read - self._taken < QUEUE_SIZE)

    async def _receive_messages(self, receive: Receive) -> None:
        """Receive ahead of the application, until there is nothing more to come."""
        while not self._all_read:
            while not self._may_receive():
                self._parked = True
                if not self._may_receive():  # the application may have taken something just now
                    await self._reader.wait()
                self._parked = False
            self._wanted = False
            try:
                self._put(await receive())
            except Exception as error:  # noqa: BLE001 - raised again by the application's receive()
                self._all_read = True
                self._inbox.append((error, 0))
                self._crossing.post(self, self._wake_receivers)

    async def _serve(self, send: Send) -> bool:
        """Send what the application sends until it has finished; `True` if it first wants to receive something."""
        while True:
            # Looked at first: what was sent before is in the outbox then.
            finished = self._finished or self._lost
            while self._outbox:
                await self._send_next(send)
            if finished:
                return False
            if self._wanted and not self._reading:
                self._reading = True
                return True
            await self._sender.wait()

    async def _send_next(self, send: Send) -> None:
        message, size, context = self._outbox.popleft()
        if message is None:  # the application knows of the error
            self._dropping = False
            return
        if not self._dropping:
            if context is not None:
                adopt(context)
            try:
                await send(message)
                self.stopping = self.stopping or message.get("type") == "lifespan.startup.failed"
            except Exception as error:  # noqa: BLE001 - raised again by the application's next send()
                self._dropping = True
                self._disconnected = self._disconnected or isinstance(error, OSError)
                self._send_error = error
        self._handled += size
        if self._handled >= self._send_target:
            self._crossing.post(self, self._wake_senders)

    def wake(self) -> None:
        """There is something new from asyncio."""
        self._sender.wake()
        if self._parked:
            self._reader.wake()

    def lose(self) -> None:
        """Nothing comes from asyncio any more."""
        if not self._finished:
            self._closed = self._lost = True
            self._sender.wake()

    async def _cancel(self) -> None:
        self._crossing.post(self, self._cancel_task)
        seconds = self._thread.cancel_timeout
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
            while not (self._finished or self._lost):
                await self._sender.wait()
        self._closed = True
        if not (self._finished or self._lost):  # what is lost has been logged as the loop's
            self._report_stuck(seconds)

    def _raise_own(self) -> None:
        """What the application raised of its own. The rest is of our making: a cancellation, and nobody to send to."""
        error, self._error = self._error, None
        ours = (asyncio.CancelledError, ClientDisconnected)
        if isinstance(error, BaseExceptionGroup):
            error = error.split(ours)[1]
        if error is None or isinstance(error, ours):
            return
        context = error.__context__
        try:
            raise_from_application(error)
        finally:
            error.__context__ = context  # and not trio's cancellation: it may say that the client had left
            del error, context  # or they would be part of a cycle

    def _report_stuck(self, seconds: float) -> None:
        request = (
            f"{self._scope.get('method', self._type)} {self._scope['path']!a}"
            if "path" in self._scope
            else self._type
        )
        if not self._cancelled or self._task is None:
            logger.error(
                "the asyncio loop is blocked: the task of %s was cancelled %.1f s ago, and is cut off\n%s",
                request,
                seconds,
                self._thread.stack(),
            )
        else:
            logger.error(
                "the asyncio task %s of %s has not ended %.1f s after it was cancelled: it is cut off\n%s",
                self._task.get_name(),
                request,
                seconds,
                self._thread.describe(self._task),
            )

    def _raise_errors(self) -> None:
        """What the application raised, else what the server did at a `send` after which there was none."""
        error, self._error = self._error, None
        send_error, self._send_error = self._send_error, None
        try:
            if error is not None:
                raise_from_application(error)
            if self._lost:
                raise ApplicationError("the asyncio loop was closed before the call had ended")
            # That the client has gone is nothing that an application has to know which has finished.
            if send_error is not None and not isinstance(send_error, OSError):
                raise send_error
        finally:
            del error, send_error  # or they would be part of a cycle


class _Seat:
    """Where one trio task waits until it is woken; who is woken before it waits does not wait."""

    __slots__ = ("_task", "_woken")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._woken = False

    async def wait(self) -> None:
        if not self._woken:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._woken = False

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        self._woken = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None


def adopt(context: contextvars.Context) -> None:
    """Set the context variables as they are in another context."""
    current = contextvars.copy_context()
    for variable, value in context.items():
        if variable not in current or current[variable] is not value:
            variable.set(value)


def raise_from_application(error: BaseException) -> None:
    """Raise what an application raised, so that it is the end of the call and of nothing else."""
    try:
        if not isinstance(error, Exception):
            raise ApplicationError(f"the application raised {error!r}") from error
        raise error
    finally:
        del error  # or it would be part of a cycle
