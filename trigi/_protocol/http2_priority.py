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

# A dictionary of RFC 9651: its members' keys and values. All quantifiers are possessive, so that no text, however it is
# made, is read twice.
_KEY = r"[a-z*][a-z0-9_.*-]*+"
_BARE_ITEM = (
    r"(?>-?+(?>[0-9]{1,12}+\.[0-9]{1,3}+|[0-9]{1,15}+)(?![0-9.])"  # a decimal, an integer
    r'|"(?>[ !#-\[\]-~]|\\["\\])*+"'  # a string
    r"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*+"  # a token
    r"|:[A-Za-z0-9+/=]*+:"  # bytes
    r"|\?[01]"  # a boolean
    r"|@-?+[0-9]{1,15}+(?![0-9.])"  # a date
    r'|%"(?>[ !#$&-~]|%[0-9a-f]{2})*+")'  # a string for display
)
_PARAMETERS = rf"(?>; *+{_KEY}(?>={_BARE_ITEM})?+)*+"
_INNER_LIST = rf"\( *+(?>{_BARE_ITEM}{_PARAMETERS}(?=[ )]) *+)*+\)"
_MEMBER: Final = re.compile(rf"({_KEY})(?>=({_BARE_ITEM}|{_INNER_LIST}))?+{_PARAMETERS}")
_COMMA: Final = re.compile(r"[ \t]*+,[ \t]*+(?!\Z)")


class Priority(NamedTuple):
    """RFC 9218, 4. The defaults are trigi's, for a request that says nothing: a field that does not say has others.

    Attributes:
        urgency: 0, the most urgent, to 7.
        incremental: whether parts of the response are useful before its end.
    """

    urgency: int = 3
    incremental: bool = True


UNSIGNALLED: Final = Priority()


def parse_priority(value: bytes) -> Priority:
    """The value of a `priority` field, or of PRIORITY_UPDATE. What it does not say, or wrongly, has its default."""
    text = value.decode("latin-1").strip(" ")
    members: dict[str, str | None] = {}
    position = 0
    while position < len(text):
        separator = _COMMA.match(text, position) if members else None
        member = _MEMBER.match(text, separator.end() if separator else position)
        if member is None or (members and separator is None):
            return UNSIGNALLED  # no dictionary says nothing (RFC 9651, 4.2)
        members[member[1]] = member[2]
        position = member.end()
    number = members.get("u") or ""
    urgency = int(number) if re.fullmatch("-?[0-9]+", number) else UNSIGNALLED.urgency
    if not 0 <= urgency <= 7:
        urgency = UNSIGNALLED.urgency
    return Priority(urgency, members.get("i", "?0") in (None, "?1"))


class Schedule:
    """The streams that have something to send, in the order in which to send it.

    `next()` says whose turn it is; who takes it calls `rotate()`, so that the next turn is another's.
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
            level = self._levels.get(priority.urgency)
            if level is None:
                level = self._levels[priority.urgency] = _Level()
            level.add(stream_id, priority)

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
