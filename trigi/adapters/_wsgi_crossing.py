"""From the thread of a WSGI call back to its trio task, and what the two exchange there.

The thread calls `Crossing.run`, and what is run is run by the task that waits for the thread: cancelled with it, so
that a cancelled request reaches sync code here. Other threads that the application has started may cross as well: async
views of Flask and Django run in one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio

from trigi.exceptions import ClientDisconnected
from trigi.typing import Message, Send

__all__ = ["Crossing", "Outbox"]

T = TypeVar("T")

WINDOW = 256 * 1024
"""Bytes of the response that may wait to be sent while the application goes on."""

PIECE = 64 * 1024
"""Bytes in one message, of blocks that are smaller: what `write_timeout` applies to."""

SLOW_SECONDS = 0.01
"""Between two blocks: an application this slow has each sent before it goes on, and so learns at once that its client
has left. One thread hop is a hundredth of that."""

END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class Crossing:
    """How the threads of one WSGI call reach its trio task.

    Attributes:
        thread: the identifier of the thread that the application is running in.
        closed: the request is over, or cancelled.
    """

    def __init__(self) -> None:
        self.thread: int | None = None
        self.closed = False
        self._token = trio.lowlevel.current_trio_token()
        self._scopes: set[trio.CancelScope] = set()

    def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Have trio run `function(*args)`, and wait for it.

        Raises:
            trio.Cancelled: the request was cancelled, and this is the thread that the application was called in.
            OSError: it was cancelled, or is over, and this is another thread.
        """
        if threading.get_ident() == self.thread:
            return trio.from_thread.run(function, *args)
        self.check()  # trio itself may be over
        return trio.from_thread.run(self._run_for_another_thread, function, *args, trio_token=self._token)

    def soon(self, function: Callable[[], None]) -> None:
        """Have trio call `function()`, and wait for nothing."""
        self._token.run_sync_soon(function)

    def check(self) -> None:
        """Raise if the request was cancelled, as `run` does."""
        if threading.get_ident() == self.thread:
            trio.from_thread.check_cancelled()
        elif self.closed:
            raise ClientDisconnected("the request is over")

    def close(self) -> None:
        """In trio: the request is over, or cancelled. Other threads than the application's own are turned away."""
        self.closed = True
        for scope in self._scopes:
            scope.cancel()

    async def _run_for_another_thread(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        # trio runs this in a task of its own, which the request's cancellation does not reach.
        with trio.CancelScope() as scope:
            if not self.closed:
                self._scopes.add(scope)
                try:
                    return await function(*args)
                finally:
                    self._scopes.discard(scope)
        raise ClientDisconnected("the request is over")


class Outbox:
    """What a thread has given to be sent: blocks of bytes, and ASGI messages; in order, and no more than `WINDOW`.

    A block is sent as soon as the task gets to it, while the thread goes on (PEP 3333, "Buffering and Streaming": the
    server is to "guarantee that it will continue transmitting the block to the client, even while the application is
    producing its next block"). Those that gather meanwhile go in one message.

    Attributes:
        failure: what `send()` raised; nothing is sent any more.
    """

    def __init__(self, crossing: Crossing) -> None:
        self.failure: Exception | None = None
        self._crossing = crossing
        self._lock = threading.Lock()  # of the next four, which both sides write
        self._items: list[bytes | Message] = []
        self._unsent = 0  # bytes
        self._is_awake = False  # the task knows that there are items
        self._last = False  # the response is complete with what is put
        self._put_at = time.monotonic()
        self._sending = False
        self._ended = False  # the thread has
        self._news = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()

    # In a thread

    def put(self, *items: bytes | Message, last: bool = False, wake: bool = True) -> None:
        """Have these sent, the `last` of them with the end of the response.

        Without `wake` they are sent when the thread ends: it is about to.

        Raises:
            ClientDisconnected: there is nobody to send to.
            ApplicationError: the server has refused what was sent.
            trio.Cancelled: as for `Crossing.run`.
        """
        self._crossing.check()
        size = sum(map(_size, items))
        with self._lock:
            self._raise_failure()
            if wake and not self._is_awake:
                self._crossing.soon(self._wake)  # first: it fails where Python allows no more calls
                self._is_awake = True
            self._items.extend(items)
            self._unsent += size
            self._last = last
            is_crowded = self._unsent > WINDOW
        if last:
            return
        before, self._put_at = self._put_at, time.monotonic()
        if is_crowded:
            self._crossing.run(self._wait_for_room)
            self._raise_failure()
        elif self._put_at - before > SLOW_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Wait until everything is sent. Raises as `put` does."""
        self._crossing.run(self._wait_until_sent)
        self._raise_failure()

    def check(self) -> None:
        """Raise as `put` does."""
        self._crossing.check()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if isinstance(self.failure, OSError):
            raise ClientDisconnected("the client has left") from self.failure
        if self.failure is not None:
            raise self.failure

    # In trio

    async def deliver(self, send: Send) -> None:
        """Send what is put in, until the thread has ended.

        Cancellation: nothing more is sent.
        """
        while True:
            await self._news.wait()
            self._news = trio.Event()
            ended = self._ended
            await self._send_all(send)
            if ended:
                return

    def end(self) -> None:
        """The thread has ended."""
        self._ended = True
        self._news.set()

    def _wake(self) -> None:
        self._news.set()

    async def _send_all(self, send: Send) -> None:
        with self._lock:
            items, self._items = self._items, []
            last, self._last = self._last, False
            self._is_awake = False
        self._sending = True
        for message, size in _messages(items, last=last):
            if self.failure is None:
                try:
                    await send(message)
                except Exception as error:  # noqa: BLE001 - for the thread, and for whoever awaits the call
                    self.failure = error
            with self._lock:
                self._unsent -= size
            self._progress.unpark_all()
        self._sending = False
        self._progress.unpark_all()

    async def _wait_for_room(self) -> None:
        while self._unsent > WINDOW // 2 and self.failure is None:
            await self._progress.park()

    async def _wait_until_sent(self) -> None:
        while (self._items or self._sending) and self.failure is None:
            await self._progress.park()


def _messages(items: list[bytes | Message], *, last: bool) -> Iterator[tuple[Message, int]]:
    """ASGI messages of these items, each with the bytes of the response in it. What is no block is a message."""
    batches = list(_joined(items))
    while batches:
        batch = batches.pop(0)
        if isinstance(batch, bytes):
            more_body = bool(batches) or not last
            yield {"type": "http.response.body", "body": batch, "more_body": more_body}, len(batch)
        else:
            yield batch, 0
            # A file is always the last of its response. What follows the start may be nothing.
            if last and not batches and batch["type"] == "http.response.start":
                yield dict(END), 0
    if last and not items:
        yield dict(END), 0


def _joined(items: list[bytes | Message]) -> Iterator[bytes | Message]:
    """The same with small blocks made into larger ones, up to `PIECE`."""
    blocks: list[bytes] = []
    size = 0
    for item in items:
        if (blocks and size + _size(item) > PIECE) or not isinstance(item, bytes):
            if blocks:
                yield b"".join(blocks)
            blocks, size = [], 0
        if isinstance(item, bytes):
            blocks.append(item)
            size += len(item)
        else:
            yield item
    if blocks:
        yield b"".join(blocks)


def _size(item: bytes | Message) -> int:
    return len(item) if isinstance(item, bytes) else 0
