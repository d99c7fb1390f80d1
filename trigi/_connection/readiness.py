"""Which sockets have something to be read, from one registration for as long as each of them is open.

To wait for a socket by `trio.lowlevel.wait_readable` registers it with the system each time, and nobody learns of it
while nobody waits. Here a socket is registered once, and whoever has registered it is told each time that something
has come: edge-triggered, so that being told costs nothing to those who do not want to know yet.

All registrations are in one epoll object, for whose own descriptor one task waits in trio's way, so that the event loop
does. It is one of trio's system tasks, as its event loop is one for all of a run.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

__all__ = ["Readiness"]

HAS_EPOLL = hasattr(select, "epoll")

BYTES: Final = 1
"""`EPOLLIN`: there is something to be read."""

EVENTS_AT_ONCE: Final = 256
"""Sockets that are told of before other tasks have their turns."""


class Readiness:
    """The sockets of one run of trio's. Only where the system has epoll.

    An instrument (`trio.abc.Instrument`, of which it has what it needs): who is told runs in the same turn of the event
    loop. A task that was woken, and told others, would have them run in the next.

    Attributes:
        turn: of the event loop, counted: a task that finds the same number again has let nobody else run.
    """

    _current: Final[trio.lowlevel.RunVar[Readiness]] = trio.lowlevel.RunVar("readiness")

    @classmethod
    def current(cls) -> Readiness | None:
        """The one of this run, `None` where the system can't."""
        if not HAS_EPOLL:
            return None
        try:
            return cls._current.get()
        except LookupError:
            readiness = cls()
            cls._current.set(readiness)
            # Compiled, it can't derive from trio's class.
            trio.lowlevel.add_instrument(readiness)  # type: ignore[arg-type]
            trio.lowlevel.spawn_system_task(readiness._keep_awake)
            return readiness

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.turn = 0
        self._has_failed = False
        self._told: dict[int, Callable[[bool], None]] = {}

    def watch(self, descriptor: int, tell: Callable[[bool], None]) -> None:
        """Tell whenever something has come to a socket, beginning with what is there; it must neither block nor raise.

        What is told is whether there is more to it than bytes: the end, an error, a byte that is urgent.

        Raises:
            OSError: the system can't watch any more sockets.
        """
        self._epoll.register(descriptor, BYTES | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET)
        self._told[descriptor] = tell

    def forget(self, descriptor: int) -> None:
        """The socket is about to be closed, which is the end of its registration."""
        self._told.pop(descriptor, None)

    def after_io_wait(self, _timeout: float) -> None:
        """Tell what has come: trio calls it in each turn of its event loop, before it chooses the tasks that run."""
        self.turn += 1
        told = self._told
        try:
            for descriptor, events in self._epoll.poll(0, EVENTS_AT_ONCE):
                tell = told.get(descriptor)
                if tell is not None:
                    tell(events != BYTES)
        except BaseException:
            # trio logs it, and calls this no more: nobody must wait for what it would tell.
            self._has_failed = True
            trio.lowlevel.notify_closing(self._epoll)
            raise

    async def _keep_awake(self) -> None:
        """Have trio's event loop wait for these sockets, too."""
        with self._epoll:
            try:
                while not self._has_failed:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                raise RuntimeError("the sockets' readiness is no longer told")
            finally:
                with suppress(KeyError):
                    trio.lowlevel.remove_instrument(self)  # type: ignore[arg-type]
