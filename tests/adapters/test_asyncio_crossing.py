"""Crossing: who wakes whom, and how often."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import uvloop

from trigi.adapters._asyncio_crossing import Crossing

SECONDS = 10
"""What hangs is given up after this."""


def block(seconds):
    """Neither trio nor its tasks go on."""
    time.sleep(seconds)


def descriptors():
    return set(Path("/proc/self/fd").iterdir())


class Caller:
    """What it is told, it counts."""

    def __init__(self):
        self.told = False
        self.woken = 0
        self.event = trio.Event()
        self.error = None

    def wake(self):
        self.woken += 1
        self.event.set()

    def fail(self, error):
        self.error = error

    def lose(self):
        raise AssertionError


class Counting(Crossing):
    """Counts what it costs: how often either side is woken through the socket."""

    def __init__(self, loop):
        self.loop_wakes = self.trio_wakes = 0
        super().__init__(loop)
        self._trio_end = Counter(self._trio_end, self.count_loop_wake)
        self._loop_end = Counter(self._loop_end, self.count_trio_wake)

    def count_loop_wake(self):
        self.loop_wakes += 1

    def count_trio_wake(self):
        self.trio_wakes += 1


class Counter:
    """One end of the socket."""

    def __init__(self, end, count):
        self._end = end
        self._count = count

    def send(self, data):
        self._count()
        return self._end.send(data)

    def __getattr__(self, name):
        return getattr(self._end, name)


@asynccontextmanager
async def crossing(factory=asyncio.SelectorEventLoop, *, end=True):
    loop = factory()
    between = Counting(loop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with trio.fail_after(SECONDS):
            yield between
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        if end:
            between.leave()
            between.close()


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.Loop])
def factory(request):
    return request.param


async def test_what_is_posted_in_one_turn_wakes_the_loop_once(factory):
    async with crossing(factory) as between:
        callers = [Caller() for _ in range(10)]
        order = []
        for number, caller in enumerate(callers):
            between.post(caller, order.append, number)
            between.post(caller, between.tell, caller)
        block(0.05)
        assert not order  # this turn has not ended
        for caller in callers:
            await caller.event.wait()
        assert order == list(range(10))
        assert between.loop_wakes == 1
        assert between.trio_wakes <= 1  # what was told in one turn of the loop's; none if trio did not wait
        assert [caller.woken for caller in callers] == [1] * 10


async def test_many_round_trips(factory):
    async def go_round():
        for _ in range(300):
            caller = Caller()
            between.post(caller, between.tell, caller)
            await caller.event.wait()
            assert caller.woken == 1

    async with crossing(factory) as between, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(go_round)


async def test_a_loop_that_runs_looks_by_itself(factory):
    def work():
        working.set()
        go_on.wait(SECONDS)

    async with crossing(factory) as between:
        working, go_on = threading.Event(), threading.Event()
        first, second = Caller(), Caller()
        between.post(first, work)
        await trio.to_thread.run_sync(working.wait)
        between.post(second, between.tell, second)
        await trio.sleep(0.05)
        go_on.set()
        await second.event.wait()
        assert between.loop_wakes == 1


async def test_what_is_told_while_trio_runs_does_not_wait(factory):
    """Neither if trio is about to wait for nothing else, nor if it goes on by itself."""
    async with crossing(factory) as between:
        for busy in (False, True):
            caller, told = Caller(), threading.Event()
            for function, *args in ((between.tell, caller), (between._loop.call_soon, told.set)):
                between.post(caller, function, *args)
            await trio.lowlevel.checkpoint()  # it is called at the end of this turn
            wakes = between.trio_wakes
            told.wait(SECONDS)
            if busy:
                await trio.lowlevel.checkpoint()
                assert caller.woken
                assert between.trio_wakes == wakes
            else:
                begun = trio.current_time()
                await caller.event.wait()
                assert trio.current_time() - begun < 1
            assert caller.woken == 1


async def test_what_raises_fails_its_caller_and_no_other(factory):
    def fail():
        raise LookupError("no")

    async with crossing(factory) as between:
        first, second = Caller(), Caller()
        between.post(first, fail)
        between.post(second, between.tell, second)
        await second.event.wait()
        assert str(first.error) == "no"
        assert second.error is None


async def test_nothing_is_left(factory):
    before = descriptors()
    for _ in range(3):
        async with crossing(factory) as between:
            caller = Caller()
            between.post(caller, between.tell, caller)
            await caller.event.wait()
        between.leave()  # once more: it was left before it was closed
        await trio.testing.wait_all_tasks_blocked()
    assert descriptors() <= before


async def test_what_is_told_after_the_loop_was_closed_is_dropped():
    async with crossing() as between:
        pass
    caller = Caller()
    between.tell(caller)
    assert not caller.woken


async def test_a_socket_that_is_closed_as_it_is_heard():
    """The byte that ends trio's wait may be the last."""
    async with crossing(end=False) as between:
        pass
    between._loop_end.send(b"!")
    block(0.01)

    def end():
        between.leave()
        between.close()

    trio.lowlevel.current_trio_token().run_sync_soon(end)
    await trio.testing.wait_all_tasks_blocked(0.01)
