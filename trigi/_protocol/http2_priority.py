"""Which stream is to be sent next, when several could be: the extensible priorities of RFC 9218.

The most urgent first. Of equally urgent ones, those that are useful in parts (*incremental*) take turns; those that
are useful only as a whole go one after the other, in the order in which they were asked for, and all of them together
have one turn among the others. A request that says nothing of its priority takes turns, so that large responses do not
wait for each other.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final, NamedTuple

__all__ = ["UNSIGNALLED", "Priority", "Schedule", "parse_priority"]

# RFC 9651: a member of a dictionary is a key with a value or without, and parameters, which mean nothing here.
_BARE = r'"(?:[^"\\]|\\.)*"|[^",;]*'
_MEMBER: Final = re.compile(
    rf"[ \t]*([a-z*][a-z0-9_.*-]*)(?:=({_BARE}))?(?:[ \t]*;[^,]*)?[ \t]*(?:,|\Z)", re.DOTALL
)


class Priority(NamedTuple):
    """RFC 9218, 4. The defaults are for a request that says nothing.

    Attributes:
        urgency: 0, the most urgent, to 7.
        incremental: whether parts of the response are useful before its end.
    """

    urgency: int = 3
    incremental: bool = True


UNSIGNALLED: Final = Priority()


def parse_priority(value: bytes) -> Priority:
    """The value of a `priority` field, or of PRIORITY_UPDATE. What it does not say, or wrongly, has its default."""
    urgency, incremental = 3, False
    text = value.decode("latin-1")
    position = 0
    while position < len(text):
        member = _MEMBER.match(text, position)
        if member is None:
            return UNSIGNALLED  # not a dictionary: it says nothing (RFC 9651, 4.2)
        position = member.end()
        match member[1], member[2]:
            case "u", number if number is not None and re.fullmatch("[0-7]", number):
                urgency = int(number)
            case "i", None | "?1":
                incremental = True
            case "i", "?0":
                incremental = False
    return Priority(urgency, incremental)


class Schedule:
    """The streams that have something to send, in the order in which to send it.

    `next()` says whose turn it is; after a piece of it was sent, `rotate()` gives the turn to the next.
    """

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._priorities: dict[int, Priority] = {}

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._priorities

    def __len__(self) -> int:
        return len(self._priorities)

    def add(self, stream_id: int, priority: Priority) -> None:
        """Put a stream behind those that are as urgent, unless it has its turn already."""
        if stream_id not in self._priorities:
            self._priorities[stream_id] = priority
            self._levels.setdefault(priority.urgency, _Level()).add(stream_id, priority)

    def remove(self, stream_id: int) -> None:
        """Take a stream out, if it is in."""
        priority = self._priorities.pop(stream_id, None)
        if priority is not None:
            level = self._levels[priority.urgency]
            level.remove(stream_id)
            if not level.turns:
                del self._levels[priority.urgency]

    def next(self) -> int | None:
        """Whose turn it is; `None` when nobody waits."""
        return self._levels[min(self._levels)].next() if self._levels else None

    def rotate(self) -> None:
        """Who had its turn goes behind the others."""
        if self._levels:
            self._levels[min(self._levels)].turns.rotate(-1)


class _Level:
    """Streams of one urgency: those that take turns, and a place for the first of those that go one by one."""

    def __init__(self) -> None:
        self.turns: deque[int | None] = deque()  # None: whoever is first in the sequence
        self.sequence: set[int] = set()

    def add(self, stream_id: int, priority: Priority) -> None:
        if priority.incremental:
            self.turns.append(stream_id)
            return
        if not self.sequence:
            self.turns.append(None)
        self.sequence.add(stream_id)

    def remove(self, stream_id: int) -> None:
        if stream_id not in self.sequence:
            self.turns.remove(stream_id)
            return
        self.sequence.discard(stream_id)
        if not self.sequence:
            self.turns.remove(None)

    def next(self) -> int:
        stream_id = self.turns[0]
        return min(self.sequence) if stream_id is None else stream_id
