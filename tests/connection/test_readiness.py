"""What is told of sockets: each time that something has come, whoever waits or not."""

from __future__ import annotations

import contextlib
import select
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trigi._connection import readiness
from trigi._connection.readiness import EVENTS_AT_ONCE, Readiness
from trigi._connection.socket_stream import SocketStream

pytestmark = pytest.mark.skipif(not readiness.HAS_EPOLL, reason="the system has no epoll")

QUIET = 0.02
"""Seconds in which nothing must be told: what there is to tell comes without waiting for anything."""


@pytest.fixture
def pair():
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    with ends[0], ends[1]:
        yield ends


async def test_each_arrival_is_told_once(pair):
    """Also if nobody reads, and what was there before."""
    near, far = pair
    told = []
    near.send(b"a")
    Readiness.current().watch(far.fileno(), told.append)
    await wait_all_tasks_blocked(QUIET)
    assert told == [False]
    near.send(b"b")
    await wait_all_tasks_blocked(QUIET)
    assert told == [False, False]
    assert far.recv(10) == b"ab"
    await wait_all_tasks_blocked(QUIET)
    assert told == [False, False]


@pytest.mark.parametrize("data", [b"", b"last"])
async def test_the_end_is_told_as_such(pair, data):
    near, far = pair
    told = []
    Readiness.current().watch(far.fileno(), told.append)
    near.send(data)
    near.close()
    await wait_all_tasks_blocked(QUIET)
    assert told[-1] is True


async def test_nothing_is_told_of_a_socket_that_is_forgotten(pair):
    near, far = pair
    told = []
    Readiness.current().watch(far.fileno(), told.append)
    for _ in range(2):
        Readiness.current().forget(far.fileno())
    near.send(b"a")
    await wait_all_tasks_blocked(QUIET)
    assert told == []


async def test_more_sockets_than_are_told_of_at_once():
    pairs = [socket.socketpair() for _ in range(EVENTS_AT_ONCE + 10)]
    told = set()
    for number, (near, far) in enumerate(pairs):
        Readiness.current().watch(far.fileno(), lambda _, number=number: told.add(number))
        near.send(b"a")
    await wait_all_tasks_blocked(QUIET)
    assert told == set(range(len(pairs)))
    for near, far in pairs:
        near.close()
        far.close()


async def test_there_is_one_for_a_run_of_trio():
    current = Readiness.current()
    assert Readiness.current() is current
    assert await trio.to_thread.run_sync(trio.from_thread.run_sync, Readiness.current) is current


def test_it_ends_with_trio():
    async def run():
        Readiness.current()
        await wait_all_tasks_blocked()
        return Readiness.current()

    one, other = trio.run(run), trio.run(run)
    assert one is not other
    assert one._epoll.closed
    assert other._epoll.closed


def test_no_system_no_readiness(monkeypatch):
    monkeypatch.setattr(readiness, "HAS_EPOLL", False)

    async def run():
        return Readiness.current()

    assert trio.run(run) is None


# What the streams make of it


async def streams(count=1):
    pairs = [socket.socketpair() for _ in range(count)]
    return [(near, SocketStream(far)) for near, far in pairs]


@pytest.mark.parametrize("size", [3, 4])
async def test_what_comes_together_with_the_end_is_read_and_then_the_end(size):
    """Of both the system tells once."""
    [(near, stream)] = await streams()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read():
            assert await stream.receive_some(size) == b"abc"
            with trio.fail_after(60):
                assert await stream.receive_some(size) == b""
                assert await stream.receive_some(size) == b""

        await wait_all_tasks_blocked()
        near.send(b"abc")
        near.close()
    await stream.aclose()


async def test_a_reset_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        stream = SocketStream(listening.accept()[0])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read():
            with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()

        await wait_all_tasks_blocked()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.close()
    await stream.aclose()


async def test_who_claims_what_has_come_reads_it_and_who_waits_waits_on():
    [(near, stream)] = await streams()
    asked = []

    def claim():
        asked.append(stream.direct.receive_nowait(2))
        return True

    stream.direct.claim = claim
    got = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read():
            got.append(await stream.receive_some(10))

        await wait_all_tasks_blocked()
        near.send(b"a")
        await wait_all_tasks_blocked(QUIET)
        assert (asked, got) == ([b"a"], [])
        near.send(b"bcd")  # more than is read: the rest is left to who waits
        await wait_all_tasks_blocked(QUIET)
        assert (asked, got) == ([b"a", b"bc"], [b"d"])
    near.close()
    await stream.aclose()


async def test_what_is_given_back_is_read_next():
    [(near, stream)] = await streams()
    got = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read():
            got.append(await stream.receive_some(2))
            got.append(await stream.receive_some(10))

        await wait_all_tasks_blocked()
        stream.direct.give_back(b"abc")
        await wait_all_tasks_blocked(QUIET)
        assert got == [b"ab", b"c"]
    assert not stream.direct.has_unread()
    stream.direct.give_back(b"d")
    assert stream.direct.has_unread()
    assert await stream.receive_some() == b"d"
    near.close()
    await stream.aclose()


async def test_a_descriptor_that_is_used_again_is_another_socket():
    for _ in range(3):
        [(near, stream)] = await streams()
        number = stream.direct.socket.fileno()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await wait_all_tasks_blocked()
            near.send(b"a")
        await stream.aclose()
        near.close()
        [(near, stream)] = await streams()
        with trio.move_on_after(QUIET) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        near.send(b"b")
        assert await stream.receive_some() == b"b"
        await stream.aclose()
        near.close()
        assert number >= 0


async def test_an_urgent_byte_hides_nothing_behind_it():
    """Where it stands a read ends, and of what follows the system has told already."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        stream = SocketStream(listening.accept()[0])
    for urgent_first in (False, True):
        near.send(b"abc")
        if urgent_first:
            near.send(b"!", socket.MSG_OOB)
            near.send(b"def")
        received = await stream.receive_some()
        if not urgent_first:
            near.send(b"!", socket.MSG_OOB)
            near.send(b"def")
        with trio.fail_after(60):
            while len(received) < 6:
                received += await stream.receive_some()
        assert received == b"abcdef"
    near.close()
    await stream.aclose()


class FullEpoll(contextlib.AbstractContextManager):
    """There is no room for registrations."""

    def __init__(self):
        self._epoll = select.epoll()

    def __exit__(self, *_):
        self._epoll.close()

    def __getattr__(self, name):
        return getattr(self._epoll, name)

    def register(self, descriptor, events):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["epoll", "register"])
async def test_a_system_that_can_watch_no_more_is_waited_for_in_trio_s_way(monkeypatch, where):
    def fail():
        raise OSError(24, "Too many open files")

    [(near, stream)] = await streams()
    epoll = FullEpoll() if where == "register" else None
    monkeypatch.setattr(select, "epoll", fail if epoll is None else lambda: epoll)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read():
            with trio.fail_after(60):
                assert await stream.receive_some() == b"a"
                assert await stream.receive_some() == b"b"

        for data in (b"a", b"b"):
            await wait_all_tasks_blocked(QUIET)
            near.send(data)
    near.close()
    await stream.aclose()


# Its part in the event loop


async def test_turns_are_counted():
    """From the first on."""
    current = Readiness.current()
    turn = current.turn
    await trio.lowlevel.checkpoint_if_cancelled()
    assert current.turn == turn
    await trio.lowlevel.checkpoint()
    assert current.turn == turn + 1


async def test_who_is_told_runs_in_the_same_turn(pair):
    """As who waits in trio's way does."""
    near, far = pair
    current = Readiness.current()
    turns = []

    async def wait_for_both():
        waiting = trio.lowlevel.current_task()
        current.watch(far.fileno(), lambda _: trio.lowlevel.reschedule(waiting))
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        turns.append(current.turn)

    async def wait_in_trio_s_way():
        await trio.lowlevel.wait_readable(far)
        turns.append(current.turn)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_both)
        nursery.start_soon(wait_in_trio_s_way)
        await wait_all_tasks_blocked()
        near.send(b"a")
    assert turns[0] == turns[1]
    current.forget(far.fileno())


def tell_wrongly(_):
    raise ZeroDivisionError


def test_what_is_told_and_raises_ends_the_run(pair, caplog):
    """It may not; but nobody must wait for ever for what would not be told."""

    async def run():
        near, far = pair
        Readiness.current().watch(far.fileno(), tell_wrongly)
        near.send(b"a")
        await trio.sleep(60)

    with pytest.raises(trio.TrioInternalError) as raised:
        trio.run(run)
    assert "no longer told" in repr(raised.value.__cause__)
    assert "ZeroDivisionError" in caplog.text


def test_so_it_does_when_the_event_loop_was_not_told_anything_itself(pair):
    """Then what has come is taken from under its nose."""

    async def run():
        near, far = pair
        current = Readiness.current()
        await wait_all_tasks_blocked()
        current.watch(far.fileno(), tell_wrongly)
        near.send(b"a")
        with pytest.raises(ZeroDivisionError):
            current.after_io_wait(0)
        await trio.sleep(60)

    with pytest.raises(trio.TrioInternalError):
        trio.run(run)


def test_nothing_is_called_after_the_run(caplog):
    async def run():
        Readiness.current()
        await wait_all_tasks_blocked()

    for _ in range(3):
        trio.run(run)
    assert caplog.text == ""
