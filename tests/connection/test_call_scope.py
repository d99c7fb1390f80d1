"""A call's cancel scope: it is that call's alone, whether it was made for it or serves one call after the other."""

from __future__ import annotations

from math import inf

import pytest
import trio
import trio.testing

from tests.connection.conftest import respond
from trigi._connection.call_scope import CallScope, KeptScope
from trigi._connection.readiness import HAS_EPOLL, Readiness

STREAMS = ("memory", "socket")


def scope_of(scope):
    return scope["extensions"]["trigi"]["cancel_scope"]


# As a scope of trio's


@pytest.fixture(params=[False, True], ids=["made", "kept"])
async def make(request):
    """Makes scopes of calls, all of them in the task that asks first, which has one to keep or not."""
    if request.param and not HAS_EPOLL:
        pytest.skip("nothing is kept where nobody counts the turns of the event loop")
    readiness = Readiness.current() if request.param else None
    await trio.testing.wait_all_tasks_blocked()  # it has begun
    kept = []

    def make(deadline=inf):
        if not kept:
            kept.append(KeptScope(readiness))
        return call_scope(kept[0], deadline)

    return make


async def test_it_can_be_cancelled(make):
    with make() as scope:
        assert not scope.cancel_called
        scope.cancel()
        assert scope.cancel_called
        await trio.sleep_forever()
    assert scope.cancel_called
    assert scope.cancelled_caught
    with make() as scope:
        await trio.lowlevel.checkpoint()
    assert not scope.cancel_called
    assert not scope.cancelled_caught


async def test_it_can_be_cancelled_before(make):
    scope = make()
    scope.cancel()
    assert scope.cancel_called
    with scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("reason", [(), ("because",)])
async def test_a_reason_is_trio_s(make, reason):
    with make() as scope:
        scope.cancel(*reason)
        with pytest.raises(trio.Cancelled) as raised:
            await trio.sleep_forever()
    assert not reason or raised.value.reason == reason[0]


@pytest.mark.parametrize("before", [True, False])
async def test_it_has_a_deadline(make, before, autojump_clock):
    began = trio.current_time()
    scope = make(began + 5) if before else make()
    with scope:
        if not before:
            assert scope.deadline == inf
            scope.deadline = began + 5
        assert scope.deadline == trio.current_effective_deadline() == began + 5
        await trio.sleep_forever()
    assert trio.current_time() == began + 5
    assert scope.cancel_called
    assert scope.cancelled_caught


async def test_a_deadline_that_has_passed_unnoticed_was_reached(make, autojump_clock):
    with make() as scope:
        scope.deadline = trio.current_time() - 1
        assert scope.cancel_called
    assert scope.cancel_called
    assert not scope.cancelled_caught


async def test_a_deadline_can_be_taken_back(make, autojump_clock):
    scope = make(trio.current_time() + 5)
    scope.deadline = inf
    with scope:
        await trio.sleep(10)
    assert not scope.cancel_called


async def test_it_can_be_a_shield(make, autojump_clock):
    with trio.move_on_after(1) as outer:
        with make() as scope:
            scope.shield = True
            assert scope.shield
            await trio.sleep(10)
        await trio.lowlevel.checkpoint()
    assert outer.cancelled_caught
    assert not scope.cancel_called


async def test_it_can_be_a_shield_from_the_beginning(make, autojump_clock):
    with trio.move_on_after(1) as outer:
        scope = make()
        scope.shield = True
        with scope:
            await trio.sleep(10)
            scope.shield = False
            await trio.lowlevel.checkpoint()
    assert outer.cancelled_caught
    assert not scope.cancelled_caught


async def test_exceptions_pass(make):
    with pytest.raises(ZeroDivisionError), make():
        raise ZeroDivisionError
    with make() as scope:
        scope.cancel()
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_what_is_around_is_not_caught(make):
    with trio.CancelScope() as outer, make() as scope:
        outer.cancel()
        await trio.sleep_forever()
    assert outer.cancelled_caught
    assert not scope.cancelled_caught


async def test_after_the_call_nothing_changes_anything(make):
    with make() as scope:
        pass
    with make():
        scope.cancel()
        scope.deadline = -inf
        scope.shield = True
        await trio.lowlevel.checkpoint()
        assert trio.current_effective_deadline() == inf


# Kept from one call to the next


def call_scope(kept, deadline=inf):
    scope = CallScope(deadline)
    scope.kept = kept
    return scope


@pytest.fixture
async def readiness():
    if not HAS_EPOLL:
        pytest.skip("the system has no epoll")
    readiness = Readiness.current()
    await trio.testing.wait_all_tasks_blocked()
    return readiness


async def test_a_scope_that_nothing_was_done_with_is_kept(readiness):
    with KeptScope(readiness) as kept:
        with call_scope(kept) as scope:
            assert not scope.cancel_called
            assert scope.deadline == inf
            first = kept.take()
        with call_scope(kept):
            assert kept.take() is first
    assert kept.give_up() is None


@pytest.mark.parametrize("use", ["cancels", "deadline", "shield", "waits", "fails"])
async def test_any_other_is_not(readiness, use):
    with KeptScope(readiness) as kept:
        try:
            with call_scope(kept) as scope:
                first = kept.take()
                match use:
                    case "cancels":
                        scope.cancel()
                    case "deadline":
                        scope.deadline = inf
                    case "shield":
                        scope.shield = False
                    case "waits":
                        await trio.lowlevel.checkpoint()
                    case "fails":
                        raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert kept.give_up() is None
        with call_scope(kept):
            assert kept.take() is not first


async def test_a_call_with_a_deadline_leaves_the_kept_one_alone(readiness, autojump_clock):
    with KeptScope(readiness) as kept:
        with call_scope(kept):
            first = kept.take()
        with call_scope(kept, trio.current_time() + 1) as scope:
            await trio.sleep(2)
        assert scope.cancelled_caught
        with call_scope(kept):
            assert kept.take() is first
        await trio.lowlevel.checkpoint()


async def test_without_a_count_of_turns_none_is_kept():
    with KeptScope(None) as kept:
        with call_scope(kept):
            pass
        assert kept.give_up() is None


async def test_a_scope_with_a_deadline_that_a_call_leaves_open_is_told_at_its_end(readiness):
    with KeptScope(readiness) as kept, pytest.raises(RuntimeError, match="Cancel scope stack corrupted"):
        with call_scope(kept):
            trio.move_on_after(1000).__enter__()
        pytest.fail("it was not told")


async def test_a_nursery_that_a_call_leaves_open_is_told_at_its_end(readiness):
    told = []

    async def task():
        try:
            with KeptScope(readiness) as kept:
                with call_scope(kept):
                    await trio.open_nursery().__aenter__()
                told.append("nothing")
        except RuntimeError as error:
            told.append(str(error))

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="Nursery stack corrupted")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
    assert "Cancel scope stack corrupted" in told[0]


# As an application sees it


async def test_one_that_is_kept_beyond_its_call_cancels_no_other(serve):
    scopes = []

    async def application(scope, receive, send):
        if scope["path"] == "/first":
            scopes.append(scope_of(scope))
        else:
            scopes[0].cancel()
            scopes[0].deadline = -inf
            await trio.sleep(1)
        await respond(send)

    client = serve(application)
    for target in ("/first", "/second", "/first", "/third"):
        assert (await client.fetch(target)).status == 200
    assert client.observer.failures == []


@pytest.mark.parametrize("waits", [False, True])
async def test_a_call_that_cancels_itself_is_the_only_one(serve, waits):
    async def application(scope, receive, send):
        if scope["path"] == "/cancels":
            if waits:
                await trio.sleep(1)
            scope_of(scope).cancel()
            await trio.lowlevel.checkpoint()
            pytest.fail("it was not cancelled")
        await respond(send)

    client = serve(application)
    statuses = [(await client.fetch(target)).status for target in ("/", "/cancels")]
    assert statuses == [200, 504]


async def test_the_client_s_leaving_cancels_a_call_in_a_kept_scope(serve):
    seen = []

    async def application(scope, receive, send):
        if scope["path"] == "/waits":
            try:
                await trio.sleep_forever()
            finally:
                seen.append(trio.current_time())
        await respond(send)

    client = serve(application, disconnect_grace=3)
    for _ in range(3):
        assert (await client.fetch("/")).status == 200
    await client.request("GET", "/waits")
    await client.settle()
    left = trio.current_time()
    await client.leave()
    await client.done.wait()
    assert seen == [left + 3]


@pytest.mark.parametrize("cancelled", ["never", "while idle", "in a call"])
async def test_a_scope_without_a_deadline_that_a_call_has_left_open_reaches_no_other_connection(
    serve, cancelled
):
    """It is noticed when it does something, or with the connection's last call."""
    left_open = trio.CancelScope()

    async def application(scope, receive, send):
        match scope["path"]:
            case "/leaves":
                left_open.__enter__()
            case "/waits":
                await trio.sleep(1)
                if cancelled == "in a call":
                    left_open.cancel()
                await trio.sleep(1)
        await respond(send)

    client = serve(application)
    other = serve(application, context=client.context)
    assert (await client.fetch("/leaves")).status == 200
    is_kept = HAS_EPOLL and hasattr(client.stream, "direct")  # over memory no scope is
    if cancelled == "while idle":
        left_open.cancel()
        await client.settle()
    if cancelled == "while idle" and is_kept:
        with pytest.raises(trio.BrokenResourceError):
            await client.fetch("/")
        told = client.observer.bugs
        assert "Cancel scope stack corrupted" in str(told[0].exceptions)
    else:
        response = await client.fetch("/waits")
        assert response.status == (500 if cancelled == "in a call" and is_kept else 200)
        assert (await client.fetch("/")).status == 200
        told = client.observer.failures
        assert "Cancel scope stack corrupted" in str(told[0])
    assert len(told) == 1
    told.clear()
    assert (await other.fetch("/waits")).status == 200
    assert client.observer.failures == []
