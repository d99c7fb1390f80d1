"""One call of an asyncio application: a trio task speaks with the server, an asyncio task runs the application.

    server   trio task                                        asyncio task             application
       <───── send() ◄─── outbox: at most QUEUE_SIZE ahead ◄────── send() ◄─────────────────┤
       ─────► receive() ─► inbox: at most QUEUE_SIZE ahead ──────► receive() ──────────────►│

Each side writes its own attributes, and puts into a `deque` or takes from it; none waits for a lock. The trio task is
the one that the server has called: it sends. A second one, which receives, is begun when the application first waits
for a message that was not there when the call began: most requests never need it.

A `send` of the application's returns before the server has seen the message. What the server raises is raised by the
next `send`, and what was sent meanwhile is dropped, as it would never have been sent; so that the application is where
it was, as far as the server knows.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections import deque
from math import inf
from typing import cast

import trio

from trigi.exceptions import ApplicationError, ClientDisconnected
from trigi.typing import ASGI3Application, Message, Receive, Scope, Send

from ._asyncio_loop import LoopThread

__all__ = ["Call"]

QUEUE_SIZE = 128 * 1024
"""Bytes of messages that one side may be ahead of the other: two pieces of the usual 64 KiB, one under way."""

MESSAGE_SIZE = 512
"""Bytes that a message counts for beside its data: so at most 256 empty ones are queued."""

logger = logging.getLogger("trigi.error")


class Call:
    """One call of an application.

    Args:
        thread: where the application runs.
        application: an asyncio application.
        scope: what it is called with.

    Attributes:
        told: see `Caller`.
        stopping: of a lifespan: no requests will follow, because it failed, was told to shut down, or was cancelled.
    """

    def __init__(self, thread: LoopThread, application: ASGI3Application, scope: Scope) -> None:
        self.told = False
        self.stopping = False
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
        # Trio's own
        self._sender = _Seat()
        self._reader = _Seat()
        self._lost = False  # the loop has ended first, or was left behind
        self._dropping = False
        self._all_read = False  # there is nothing more to receive
        # asyncio's own
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._receivers: list[asyncio.Future[None]] = []
        self._senders: list[tuple[int, asyncio.Future[None]]] = []
        self._was_told = False

    # In trio

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
        if self._type == "http" and self._scope.get("http_version", "2") < "2" and not has_body(self._scope["headers"]):
            self._put(await receive())
            return
        with trio.CancelScope() as scope:
            scope.cancel()
            while self._may_receive():
                message = await receive()
                self._put(message)
                if self._type == "lifespan" or not message.get("more_body"):
                    return

    def _put(self, message: Message) -> None:
        data = message.get("body") or message.get("bytes") or message.get("text") or b""
        size = MESSAGE_SIZE + sys.getsizeof(data)
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

    # In asyncio

    def _start(self, context: contextvars.Context) -> None:
        if not self._closed:
            library = getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)
            if library is not None and library in context:
                context.run(library.set, None)  # trio was started by anyio.run
            self._task = self._thread.loop.create_task(self._call(), context=context)
            self._task.add_done_callback(self._finish)

    async def _call(self) -> None:
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
        size = size_ahead(message)
        context = contextvars.copy_context() if self._type == "lifespan" else None
        if size is None or self._disconnected:
            ahead, size = 0, size or MESSAGE_SIZE
        else:
            ahead, message = QUEUE_SIZE, copy(message)
        self._queued += size
        self._outbox.append((message, size, context))
        target = self._queued - ahead
        if not ahead or target > self._handled:
            await self._wait_handled(target)
            self._check()
        elif (
            message["type"] != "http.response.start"
        ):  # no server sends that before it has a piece of the body
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

    def _wake_senders(self) -> None:
        for target, waiter in self._senders:
            if (self._closed or target <= self._handled) and not waiter.done():
                waiter.set_result(None)

    def _wake_receivers(self) -> None:
        for waiter in self._receivers:
            if not waiter.done():
                waiter.set_result(None)


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


def has_body(headers) -> bool:
    for name, _ in headers:
        if name in (b"content-length", b"transfer-encoding"):
            return True
    return False


def is_disconnect(message: Message) -> bool:
    """Whether it is the last that there is to receive."""
    return cast("str", message["type"]).endswith(".disconnect")


def size_ahead(message: Message) -> int | None:
    """What a message counts for in the outbox; `None` if the application has to wait until the server has handled it.

    It has not for what a response and a conversation consist of, if that can't change any more: all else is rare, or
    means something that must not be used again too early, like a file.
    """
    if type(message) is not dict:
        return None
    match message.get("type"):
        case "http.response.body":
            data = message.get("body", b"")
        case "http.response.start":
            return MESSAGE_SIZE if type(message.get("headers", ())) in (list, tuple) else None
        case "websocket.send":
            data = message.get("text") or message.get("bytes")
        case _:
            return None
    return MESSAGE_SIZE + sys.getsizeof(data) if type(data) in (bytes, str) else None


def copy(message: Message) -> Message:
    """A message as it is now, of those with a `size_ahead`: the application may use it again, and its headers."""
    copied = dict(message)
    headers = copied.get("headers")
    if isinstance(headers, (list, tuple)):
        copied["headers"] = [pair.copy() if type(pair) is list else pair for pair in headers]
    return copied


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
