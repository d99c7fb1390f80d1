"""The cancel scope around an application's call, which costs something only if it is made use of.

To enter one of trio's, and to exit it, is a quarter of a small request. A call that returns in the turn of the event
loop in which it began, and did nothing with its scope, leaves it as it was: then it serves the next call of that task,
too. What an application is given is not trio's own, therefore: if it is kept, it cancels nobody else's call.
"""

from __future__ import annotations

from math import inf
from types import TracebackType
from typing import Self

import trio

from .readiness import Readiness

__all__ = ["CallScope", "KeptScope"]


class KeptScope:
    """A cancel scope for all calls of one task that leave it as it was: a context manager around them all.

    Args:
        readiness: counts the turns of the event loop. Without, no scope is kept.
    """

    def __init__(self, readiness: Readiness | None) -> None:
        self._readiness = readiness
        self._task = trio.lowlevel.current_task()
        self._nurseries = len(self._task.child_nurseries)  # around this
        self._scope: trio.CancelScope | None = None
        self._turn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        scope = self.give_up()
        return None if scope is None else scope.__exit__(exc_type, exc, tb)

    def take(self) -> trio.CancelScope:
        """An entered scope without a deadline, for a call that begins now."""
        if self._readiness is not None:
            self._turn = self._readiness.turn
        scope = self._scope
        if scope is None:
            scope = self._scope = trio.CancelScope()
            scope.__enter__()
        return scope

    def is_kept(self) -> bool:
        """Whether it is, for all that the call has done that ends now: it did not wait, and leaves nothing open.

        What it could leave open is a nursery, or a cancel scope. One without a deadline is noticed only when this one
        is exited.
        """
        scope, readiness = self._scope, self._readiness
        if scope is None or readiness is None or readiness.turn != self._turn:
            return False
        if len(self._task.child_nurseries) != self._nurseries:
            return False
        scope.shield = True  # for this moment, so that only deadlines inside count, and nothing outside costs
        deadline = trio.current_effective_deadline()
        scope.shield = False
        return deadline == inf

    def give_up(self) -> trio.CancelScope | None:
        """The scope, to be exited by the caller: the next call is given another."""
        scope, self._scope = self._scope, None
        return scope


class CallScope:
    """The cancel scope of one call: a context manager, to be entered once, with what a `trio.CancelScope` has.

    It can be cancelled, and given a deadline, before the call as well. After the call that changes nothing.

    Args:
        deadline: by trio's clock.

    Attributes:
        kept: where to have a scope from, if the task has one.
        cancelled_caught: whether the call ended because the scope was cancelled.
    """

    def __init__(self, deadline: float) -> None:
        self.kept: KeptScope | None = None
        self.cancelled_caught = False
        self._deadline = deadline
        self._shield = False
        self._cancel_called = False
        self._scope: trio.CancelScope | None = None  # during the call
        self._taken: KeptScope | None = None  # where that is from
        self._used = False

    def __enter__(self) -> Self:
        if self.kept is not None and self._deadline == inf and not self._used:
            self._taken = self.kept
            self._scope = self.kept.take()
        else:
            self._scope = trio.CancelScope(deadline=self._deadline, shield=self._shield)
            if self._cancel_called:
                self._scope.cancel()
            self._scope.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        scope, self._scope = self._scope, None
        assert scope is not None
        if self._taken is not None:
            if exc is None and not self._used and self._taken.is_kept():
                return None
            self._taken.give_up()
        try:
            return scope.__exit__(exc_type, exc, tb)
        finally:
            self._cancel_called = scope.cancel_called
            self.cancelled_caught = scope.cancelled_caught

    @property
    def cancel_called(self) -> bool:
        """Whether it was cancelled, or its deadline has passed, before the call was over."""
        return self._cancel_called if self._scope is None else self._scope.cancel_called

    def cancel(self, reason: str | None = None) -> None:
        """Cancel the call.

        Args:
            reason: as trio takes it; dropped by a trio that does not.
        """
        self._used = self._cancel_called = True
        if self._scope is not None:
            if reason is None:
                self._scope.cancel()
            else:
                self._scope.cancel(reason)

    @property
    def deadline(self) -> float:
        """When the call is cancelled, by trio's clock. It can be set."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        if self._scope is not None:
            self._used = True
            self._scope.deadline = deadline
        self._deadline = deadline

    @property
    def shield(self) -> bool:
        """Whether the call is shielded from a cancellation of what is around it. It can be set."""
        return self._shield

    @shield.setter
    def shield(self, shield: bool) -> None:
        self._used = True
        if self._scope is not None:
            self._scope.shield = shield
        self._shield = shield
