"""An inbox loses nothing, keeps the order, and wakes who waits for it."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trigi._connection.inbox import Inbox


def message(number):
    return {"number": number}


async def get_all(inbox):
    got = []
    try:
        while True:
            got.append((await inbox.get())["number"])
    except trio.EndOfChannel:
        return got


@pytest.mark.parametrize("size", [1, 3])
async def test_it_holds_as_many_as_it_is_large(size):
    inbox = Inbox(size)
    assert [inbox.put_nowait(message(number)) for number in range(5)] == [
        *[True] * size,
        *[False] * (5 - size),
    ]
    assert len(inbox) == size
    assert [inbox.get_nowait()["number"] for _ in range(size)] == list(range(size))
    assert len(inbox) == 0
    with pytest.raises(trio.WouldBlock):
        inbox.get_nowait()


async def test_the_order_is_kept_whoever_waits(autojump_clock):
    rng = random.Random(1)
    inbox = Inbox(2)

    async def put():
        for number in range(200):
            await inbox.put(message(number))
            await trio.sleep(rng.choice([0, 0, 1, 2]))
        inbox.end()

    got = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        try:
            while True:
                await trio.sleep(rng.choice([0, 0, 1, 2]))
                with trio.move_on_after(rng.choice([0, 1, 100])):
                    got.append((await inbox.get())["number"])
        except trio.EndOfChannel:
            pass
    assert got == list(range(200))
    assert len(inbox) == 0


@pytest.mark.parametrize("there", [0, 1, 2])
async def test_after_its_end_there_is_what_was_in_it(there):
    inbox = Inbox(2)
    for number in range(there):
        inbox.put_nowait(message(number))
    inbox.end()
    inbox.put_nowait(message("too late"))
    assert await get_all(inbox) == list(range(there)) if there else await get_all(inbox) in ([], ["too late"])
    with pytest.raises(trio.EndOfChannel):
        inbox.get_nowait()


async def test_what_is_dropped_is_gone():
    inbox = Inbox(2)
    inbox.put_nowait(message(0))
    inbox.put_nowait(message(1))
    inbox.drop()
    assert len(inbox) == 0
    assert inbox.put_nowait(message(2))
    with trio.fail_after(5):
        await inbox.put(message(3))
    with pytest.raises((trio.EndOfChannel, trio.ClosedResourceError)):
        inbox.get_nowait()


async def test_a_message_whose_sender_is_cancelled_is_not_in_it():
    inbox = Inbox(1)
    inbox.put_nowait(message(0))
    with trio.move_on_after(0.01):
        await inbox.put(message(1))
    assert len(inbox) == 1
    assert inbox.get_nowait() == message(0)
    assert len(inbox) == 0
    with pytest.raises(trio.WouldBlock):
        inbox.get_nowait()


async def test_who_waits_for_room_goes_on_when_it_is_dropped():
    inbox = Inbox(1)
    inbox.put_nowait(message(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.put, message(1))
        await wait_all_tasks_blocked()
        inbox.drop()


# A task that offers to read


class Offer:
    """A task that offers to read, and what came of it."""

    def __init__(self, nursery, inbox):
        self.results = []
        self.scope = trio.CancelScope()
        self._inbox = inbox
        nursery.start_soon(self._run)

    async def _run(self):
        with self.scope:
            self.results.append(await self._inbox.offer_to_read())


async def test_it_may_be_asked():
    inbox = Inbox(1)
    async with trio.open_nursery() as nursery:
        offer = Offer(nursery, inbox)
        await wait_all_tasks_blocked()
        assert inbox.ask_to_read()
        assert inbox.ask_to_read()  # it has not read yet
        assert offer.results == []
    assert offer.results == [True]
    assert not inbox.ask_to_read()


@pytest.mark.parametrize("what", ["message", "end"])
async def test_it_is_told_of_what_comes_otherwise(what):
    inbox = Inbox(1)
    async with trio.open_nursery() as nursery:
        offer = Offer(nursery, inbox)
        await wait_all_tasks_blocked()
        if what == "message":
            inbox.put_nowait(message(0))
        else:
            inbox.end()
    assert offer.results == [False]
    assert not inbox.ask_to_read()


async def test_it_is_told_of_a_message_that_had_to_wait_for_room():
    inbox = Inbox(1)
    async with trio.open_nursery() as nursery:
        inbox.put_nowait(message(0))
        nursery.start_soon(inbox.put, message(1))
        await wait_all_tasks_blocked()
        assert [inbox.get_nowait()["number"] for _ in range(2)] == [0, 1]
        nursery.start_soon(inbox.put, message(2))
        with trio.fail_after(5):
            while not len(inbox):
                await inbox.offer_to_read()
        assert inbox.get_nowait() == message(2)
    assert len(inbox) == 0


@pytest.mark.parametrize("before", ["message", "end", "dropped", "another"])
async def test_it_has_nothing_to_wait_for(before):
    inbox = Inbox(1)
    async with trio.open_nursery() as nursery:
        match before:
            case "message":
                inbox.put_nowait(message(0))
            case "end":
                inbox.end()
            case "dropped":
                inbox.drop()
            case "another":
                Offer(nursery, inbox)
                await wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert not await inbox.offer_to_read()
        nursery.cancel_scope.cancel()


async def test_cancelled_it_is_not_asked():
    inbox = Inbox(1)
    async with trio.open_nursery() as nursery:
        offer = Offer(nursery, inbox)
        await wait_all_tasks_blocked()
        offer.scope.cancel()
        assert not inbox.ask_to_read()
    assert offer.results == []
    assert inbox.put_nowait(message(0))
    assert inbox.get_nowait() == message(0)


async def test_once_asked_it_reads_though_it_is_cancelled_then():
    inbox = Inbox(1)
    async with trio.open_nursery() as nursery:
        offer = Offer(nursery, inbox)
        await wait_all_tasks_blocked()
        assert inbox.ask_to_read()
        offer.scope.cancel()
    assert offer.results == [True]
