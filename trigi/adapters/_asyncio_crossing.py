"""How trio's thread and the thread of an asyncio loop tell each other that there is something new.

To wake a thread costs system calls and a switch of threads, many times what a message costs. So both directions
collect: what is left for the other side lies in a `deque`; a side that runs looks there before it waits; and one that
waits is woken once, at the end of the turn in which something was left for it.

Who wakes writes to a socket. That the writer is about to wait itself is what the kernel expects of sockets, and of
few other things: it runs the other thread where this one ran, with all that they share at hand. Both loops have their
own way to be woken from another thread, and each costs several times as much.

Every exchange of words between the threads is of one pattern, which needs no lock: one side writes, then looks at
the flag; the other sets the flag, then reads.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import trio

__all__ = ["Caller", "Crossing"]

SIGNALS = 4096
"""Bytes that are read at once: more than there ever are."""


class Caller(Protocol):
    """Somebody in trio whom asyncio has something to tell.

    Attributes:
        told: it is among those who are going to be woken.
    """

    told: bool

    def wake(self) -> None:
        """Called in trio's thread: there is something new."""

    def fail(self, error: BaseException) -> None:
        """Called in the loop's thread: what the caller has posted has raised this."""

    def lose(self) -> None:
        """Called in trio's thread: the loop has ended, or was left behind, and nothing comes from it any more."""


class Crossing(trio.abc.Instrument):
    """Between the trio loop in which it is made and an asyncio loop that does not run yet.

    As an instrument it is called by trio before and after each wait for I/O.

    Args:
        loop: the asyncio loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._trio_end, self._loop_end = socket.socketpair()
        self._trio_end.setblocking(False)
        self._loop_end.setblocking(False)
        # By trio, for asyncio
        self._posted: deque[tuple[Caller, Callable[..., None], tuple[Any, ...]]] = deque()
        self._loop_waits = True  # … perhaps, and has to be woken; whoever does that resets it
        # By asyncio, for trio
        self._ready: deque[Caller] = deque()
        self._trio_waits = False
        self._flushing = False
        self._listening = trio.CancelScope(shield=True)
        loop.add_reader(self._loop_end, self._wake_loop)
        trio.lowlevel.add_instrument(self)
        trio.lowlevel.spawn_system_task(self._listen)

    # In trio's thread

    def post(self, caller: Caller, function: Callable[..., None], *args: Any) -> None:
        """Have the loop call a function soon. If that raises, the caller fails."""
        self._posted.append((caller, function, args))

    def leave(self) -> None:
        """Hear nothing any more: the loop has ended, or is left behind."""
        self._listening.cancel()
        with suppress(KeyError):  # before
            trio.lowlevel.remove_instrument(self)

    def close(self) -> None:
        """Close the sockets, after the loop has ended; in any thread if trio has ended too."""
        self._trio_end.close()
        self._loop_end.close()

    def before_io_wait(self, timeout: float) -> None:
        """End of a turn of trio's: wake the loop if there is something for it."""
        if self._posted and self._loop_waits:
            self._loop_waits = False
            self._trio_end.send(b"!")
        self._trio_waits = timeout > 0
        if self._ready and self._trio_waits:  # left in this very turn
            self._trio_waits = False
            self._loop_end.send(b"!")

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        """Begin of a turn of trio's: wake whom asyncio has something for."""
        self._trio_waits = False
        self.wake_ready()

    def wake_ready(self) -> None:
        """Wake the callers who have been told."""
        while self._ready:
            caller = self._ready.popleft()
            caller.told = False
            caller.wake()

    async def _listen(self) -> None:
        """End trio's waits. When trio ends it is not cancelled with the others: they may still be told something."""
        with self._listening:
            while not self._listening.cancel_called:
                await trio.lowlevel.wait_readable(self._trio_end)
                with suppress(OSError):  # closed just now
                    self._trio_end.recv(SIGNALS)

    # In the loop's thread

    def tell(self, caller: Caller) -> None:
        """Wake a caller in trio, together with all others that this turn of the loop has something for."""
        if not caller.told:
            caller.told = True
            self._ready.append(caller)
            self._flush_soon()

    def _wake_loop(self) -> None:
        self._loop_end.recv(SIGNALS)
        self._call_posted()

    def _call_posted(self) -> None:
        for _ in range(len(self._posted)):  # what comes meanwhile waits its turn
            caller, function, args = self._posted.popleft()
            try:
                function(*args)
            except BaseException as error:  # noqa: BLE001 - raised again in trio; the others are still to be called
                caller.fail(error)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            with suppress(RuntimeError):  # it is closed, and what it has left is collected
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """End of a turn of the loop's: wake trio if there is something for it."""
        self._flushing = False
        self._loop_waits = True
        if self._posted:
            self._loop_waits = False
            self._loop.call_soon(self._call_posted)
        if self._ready and self._trio_waits:
            self._trio_waits = False
            self._loop_end.send(b"!")
