"""Which stream is next: the schedule against a naive one, and the `priority` field (RFC 9218, RFC 9651)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trigi._protocol.http2_priority import UNSIGNALLED, Priority, Schedule, parse_priority

# The field


@pytest.mark.parametrize(
    ("value", "urgency", "incremental"),
    [
        (b"", 3, False),
        (b"   ", 3, False),
        (b"u=0", 0, False),
        (b"u=7", 7, False),
        (b"i", 3, True),
        (b"i=?1", 3, True),
        (b"i=?0", 3, False),
        (b"u=5, i", 5, True),
        (b"i,u=5", 5, True),
        (b"u=5 \t,\t i", 5, True),
        (b"  u=5  ", 5, False),
        # the last of two counts
        (b"u=1, u=5", 5, False),
        (b"i, i=?0", 3, False),
        (b"i=?0, i", 3, True),
        # integers
        (b"u=05", 5, False),
        (b"u=-0", 0, False),
        # parameters mean nothing
        (b"i;x", 3, True),
        (b"u=2;x=1;y, i", 2, True),
        (b"u=2; x=1;  y, i", 2, True),
        (b'u=2;x="a,b", i', 2, True),
        (b'u=2;x="\\",i=?0", i', 2, True),
        # nor do other members
        (b"x, u=2", 2, False),
        (b"x=token, u=2", 2, False),
        (b"x=a/b:c*!#, u=2", 2, False),
        (b'x="a, u=5", u=2', 2, False),
        (b'x="\\"", u=2', 2, False),
        (b"x=-1.5, u=2", 2, False),
        (b"x=:YWJj:, u=2", 2, False),
        (b"x=@1659578233, u=2", 2, False),
        (b'x=%"%c3%bc", u=2', 2, False),
        (b"x=(1 2 3), u=2", 2, False),
        (b'x=("a, b" "c");q=1, u=2', 2, False),
        (b"x=(), u=2", 2, False),
        (b"*x=1, u=2", 2, False),
        (b"a_b-c.d*=1, u=2", 2, False),
        # values of another kind, or out of range, are as if they were not there
        (b"u=8, i", 3, True),
        (b"u=-1, i", 3, True),
        (b"u=10, i", 3, True),
        (b"u=1.0, i", 3, True),
        (b'u="1", i', 3, True),
        (b"u=?1, i", 3, True),
        (b"u, i", 3, True),
        (b"u=a, i", 3, True),
        (b"u=(1), i", 3, True),
        (b"i=1, u=2", 2, False),
        (b'i="?1", u=2', 2, False),
        (b"i=a, u=2", 2, False),
    ],
)
def test_a_priority(value, urgency, incremental):
    assert parse_priority(value) == Priority(urgency, incremental)


@pytest.mark.parametrize(
    "value",
    [
        b"u=1,",  # RFC 9651, 4.2.2: no trailing comma
        b"u=1, ",
        b",u=1",
        b"u=1,,i",
        b"u=1 i",
        b"u=1;",
        b"u=",
        b"u= 1",
        b"u =1",
        b"u==1",
        b"u=1 2",
        b"U=1",
        b"1=1",
        b"-u=1",
        b"=1",
        b"u=1, !",
        b'u=1, x="a',
        b'u=1, x="a\\b"',
        b'u=1, x="a\x00"',
        b"u=1, x=\xc3\xbc",
        b"u=1, i=?2",
        b"u=1, i=?",
        b"u=1, x=(1",
        b"u=1, x=)",
        b"u=1, x=:a",
        b"u=1, x=1.",
        b"u=1, x=-",
        b"u=1, x=@1.5",
        b"u=1, x=1234567890123456",
        b"\x00",
        b"u=1\x00",
        b"u=1\n",
        b"\xff",
        b'"',
    ],
)
def test_what_is_no_dictionary_says_nothing(value):
    assert parse_priority(value) == UNSIGNALLED


@given(st.binary(max_size=30) | st.text('ui=?01789,; "\\().:a', max_size=30).map(str.encode))
def test_anything_is_some_priority(value):
    urgency, incremental = parse_priority(value)
    assert 0 <= urgency <= 7
    assert type(incremental) is bool


@pytest.mark.parametrize(
    "value",
    [
        b'u=%b"',
        b"u=1%b\x00",
        b"u%b\x00",
        b"u=1;%b\x00",
        b"u=1;a=%b\x00",
        b'x="%b',
        b'u=%bx"',
        b"%b\x00",
    ],
)
@pytest.mark.parametrize(
    "filling", [b" ", b"\t", b"a", b";", b"a;", b" ;", b",", b"\\", b"u=1,", b'"', b"(", b"1"]
)
def test_its_time_is_linear(value, filling):
    """A client may send 16 KiB of it in one frame, and many of those. This is more, and would take an hour."""
    value %= filling * (2**20 // len(filling))
    began = time.perf_counter()
    assert type(parse_priority(value)) is Priority
    assert time.perf_counter() - began < 10


# The schedule


class Naive:
    """As the docstring of the module says it, without any thought for speed."""

    def __init__(self):
        self.streams = {}
        self.turns = []  # of all urgencies; "sequence of u" stands for all that go one by one

    @staticmethod
    def place(stream_id, priority):
        return stream_id if priority.incremental else f"sequence of {priority.urgency}"

    def urgency(self, place):
        return next(p.urgency for s, p in self.streams.items() if self.place(s, p) == place)

    def add(self, stream_id, priority):
        if stream_id not in self.streams:
            self.streams[stream_id] = priority
            place = self.place(stream_id, priority)
            if place not in self.turns:
                self.turns.append(place)

    def remove(self, stream_id):
        priority = self.streams.pop(stream_id, None)
        if priority is not None:
            place = self.place(stream_id, priority)
            if place not in {self.place(s, p) for s, p in self.streams.items()}:
                self.turns.remove(place)

    def first(self):
        return min(self.turns, key=self.urgency, default=None)  # min gives the first of several

    def next(self):
        first = self.first()
        if isinstance(first, str):
            return min(s for s, p in self.streams.items() if self.place(s, p) == first)
        return first

    def rotate(self):
        if self.turns:
            first = self.first()
            self.turns.remove(first)
            self.turns.append(first)


priorities = st.builds(Priority, st.integers(0, 3), st.booleans())
stream_ids = st.integers(0, 6).map(lambda number: 2 * number + 1)


class ScheduleMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.schedule = Schedule()
        self.naive = Naive()

    @rule(stream_id=stream_ids, priority=priorities)
    def add(self, stream_id, priority):
        self.schedule.add(stream_id, priority)
        self.naive.add(stream_id, priority)

    @rule(stream_id=stream_ids)
    def remove(self, stream_id):
        self.schedule.remove(stream_id)
        self.naive.remove(stream_id)

    @rule(stream_id=stream_ids, priority=priorities)
    def change(self, stream_id, priority):
        for each in self.schedule, self.naive:
            each.remove(stream_id)
            each.add(stream_id, priority)

    @rule()
    def rotate(self):
        self.schedule.rotate()
        self.naive.rotate()

    @precondition(lambda self: self.naive.streams)
    @rule()
    def finish_next(self):
        self.schedule.remove(self.schedule.next())
        self.naive.remove(self.naive.next())

    @invariant()
    def same(self):
        assert self.schedule.next() == self.naive.next()
        assert len(self.schedule) == len(self.naive.streams)
        assert all((number in self.schedule) == (number in self.naive.streams) for number in range(15))


TestSchedule = ScheduleMachine.TestCase


def drain(schedule, pieces):
    """Send so many pieces of each stream: the order."""
    seen = []
    while (stream_id := schedule.next()) is not None:
        seen.append(stream_id)
        pieces[stream_id] -= 1
        schedule.rotate()
        if not pieces[stream_id]:
            schedule.remove(stream_id)
    return seen


def test_an_empty_schedule():
    schedule = Schedule()
    assert schedule.next() is None
    schedule.rotate()
    schedule.remove(1)
    assert len(schedule) == 0
    assert 1 not in schedule


def test_urgency():
    schedule = Schedule()
    for stream_id, urgency in ((1, 7), (3, 0), (5, 3)):
        schedule.add(stream_id, Priority(urgency, incremental=True))
    assert drain(schedule, {1: 2, 3: 2, 5: 2}) == [3, 3, 5, 5, 1, 1]


def test_turns():
    schedule = Schedule()
    for stream_id in (5, 1, 3):
        schedule.add(stream_id, Priority(3, incremental=True))
    assert drain(schedule, {1: 3, 3: 1, 5: 2}) == [5, 1, 3, 5, 1, 1]


def test_one_after_the_other():
    schedule = Schedule()
    for stream_id in (5, 1, 3):
        schedule.add(stream_id, Priority(3, incremental=False))
    assert drain(schedule, {1: 2, 3: 2, 5: 2}) == [1, 1, 3, 3, 5, 5]


def test_those_that_go_one_by_one_have_one_turn_together():
    schedule = Schedule()
    for stream_id in (1, 3):
        schedule.add(stream_id, Priority(3, incremental=False))
    for stream_id in (5, 7):
        schedule.add(stream_id, Priority(3, incremental=True))
    assert drain(schedule, {1: 2, 3: 2, 5: 2, 7: 2}) == [1, 5, 7, 1, 5, 7, 3, 3]


def test_a_stream_that_is_in_already_keeps_its_turn():
    schedule = Schedule()
    for stream_id in (1, 3, 1):
        schedule.add(stream_id, Priority(3, incremental=True))
    assert len(schedule) == 2
    assert drain(schedule, {1: 1, 3: 1}) == [1, 3]
