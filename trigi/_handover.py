"""What a task and a thread hand each other, beside context variables: what is handled, and what came of it."""

from __future__ import annotations

import sys
from typing import Generic, TypeVar

__all__ = ["Handled", "Outcome"]

R = TypeVar("R")


class Handled:
    """The exception that is handled on one side, to be handled on the other, and left as it was.

    Who gives up the handling of exceptions to a thread or a task sees it there in `sys.exc_info()`:

        try:
            handled.reraise()
        except BaseException:
            handled.restore()
            ...
    """

    def __init__(self) -> None:
        self.exception = sys.exception()
        if self.exception is not None:
            self._before = self.exception.__traceback__, self.exception.__context__

    def reraise(self) -> None:
        """Raise it, if there is one."""
        if self.exception is not None:
            raise self.exception

    def restore(self) -> None:
        """Take back what raising has added to it. Ctrl-C that has come instead is raised."""
        if sys.exception() is not self.exception:
            raise  # noqa: PLE0704 - it is handled where this is called
        if self.exception is not None:
            self.exception.__traceback__, self.exception.__context__ = self._before


class Outcome(Generic[R]):
    """The value or the exception that something ends with, on its way between threads."""

    def __init__(self) -> None:
        self._value: R
        self._error: BaseException | None = None

    def set_value(self, value: R) -> None:
        self._value = value

    def set_error(self, error: BaseException) -> None:
        self._error = error

    def unwrap(self) -> R:
        """Return the value, or raise the exception, once."""
        if self._error is None:
            value = self._value
            del self._value
            return value
        error, self._error = self._error, None
        try:
            raise error
        finally:
            del error  # it has this frame in its traceback
