"""The bridge between sync and async code keeps its promises. `SB-…` names those of asgiref's, read for trio.

Threads wait for each other with events that fail the test after some seconds; nothing sleeps for a given time.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import functools
import gc
import inspect
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import weakref
from contextlib import contextmanager

import pytest
import trio
import trio.lowlevel
import trio.testing

from trigi._crossing import first_of
from trigi._threads import Lane, Work, Worker
from trigi.sync import (
    ThreadSensitiveContext,
    async_to_sync,
    check_cancelled,
    current_limiter,
    sync_to_async,
)

SECONDS = 10
"""What hangs is given up after this."""

variable = contextvars.ContextVar("variable", default="unset")
here = threading.get_ident


class Flag(threading.Event):
    """An event that fails the test when it does not come."""

    def wait(self, timeout=SECONDS):
        assert super().wait(timeout), "waited in vain"

    async def wait_in_task(self):
        with trio.fail_after(SECONDS):
            while not self.is_set():  # noqa: ASYNC110 - a thread sets it
                await trio.sleep(0.001)


async def ident():
    """The thread of thread-sensitive code here."""
    return await sync_to_async(here)()


async def name_of_thread():
    return (await sync_to_async(threading.current_thread)()).name


def in_a_thread(function, *args):
    """Call it in a plain thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args).result(SECONDS)


def bridge_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("trigi")]


def run(function, *args):
    """Run a trio program, which must end, and leave no thread."""

    async def limited():
        with trio.fail_after(SECONDS):
            return await function(*args)

    result = trio.run(limited)
    assert not bridge_threads()
    return result


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    for thread in bridge_threads():
        thread.join(SECONDS)
    assert not bridge_threads()


@pytest.fixture(params=[True, False], ids=["sensitive", "pool"])
def to_async(request):
    """`sync_to_async`, for a chosen thread and for any."""
    return functools.partial(sync_to_async, thread_sensitive=request.param)


# sync_to_async: what it makes


async def test_decorator_forms():
    """SB-01: with and without arguments, and as a function."""

    @sync_to_async
    def plain(x, *, y=0):
        return x + y, here()

    @sync_to_async(thread_sensitive=False)
    def pooled(x):
        return x, here()

    assert (await plain(1, y=2))[0] == 3
    assert (await pooled(4))[0] == 4
    assert (await sync_to_async(abs)(-5)) == 5
    assert (await sync_to_async(thread_sensitive=True)(abs)(-5)) == 5
    assert here() not in {(await plain(1))[1], (await pooled(1))[1]}


class AsyncCallable:
    async def __call__(self):
        return "called"


async def async_function():
    return "awaited"


@pytest.mark.parametrize(
    "wrong", [1, "text", async_function, functools.partial(async_function), AsyncCallable(), trio.sleep]
)
def test_only_sync_functions(wrong):
    """SB-02."""
    with pytest.raises(TypeError, match=r"^sync_to_async can only be applied to sync functions\.$"):
        sync_to_async(wrong)
    with pytest.raises(TypeError, match="only be applied"):
        sync_to_async()(wrong)


async def test_a_class_is_called_in_the_thread():
    """SB-02: that its instances are async does not matter."""
    assert isinstance(await sync_to_async(AsyncCallable)(), AsyncCallable)


def test_options_that_contradict_each_other():
    """SB-03, and the same for the limiter."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with pytest.raises(TypeError, match=r"^executor must not be set when thread_sensitive is True$"):
            sync_to_async(abs, executor=executor)
        limiter = trio.CapacityLimiter(1)
        with pytest.raises(TypeError, match="limiter must not be set"):
            sync_to_async(abs, limiter=limiter)
        with pytest.raises(TypeError, match="limiter must not be set"):
            sync_to_async(abs, thread_sensitive=False, executor=executor, limiter=limiter)


async def test_metadata():
    """SB-04: name, docstring, attributes; and it is seen to be async."""

    def function(x: int) -> int:
        """It returns x."""
        return x

    function.context = "its own"
    function.limiter = "its own"
    wrapped = sync_to_async(function)
    assert (wrapped.__name__, wrapped.__doc__) == ("function", "It returns x.")
    assert wrapped.__wrapped__ is function
    assert wrapped.context == "its own"
    assert inspect.signature(wrapped) == inspect.signature(function)
    assert inspect.iscoroutinefunction(wrapped)
    assert await wrapped(1) == 1


async def test_a_callable_with_attributes_of_ours():
    """SB-04: an attribute `context` is not taken for the option."""

    class Callable:
        def __init__(self):
            self.context = "text"
            self.func = None

        def __call__(self):
            return self.context

    assert await sync_to_async(Callable())() == "text"


async def test_methods():
    """SB-04: bound methods have their `__self__`, and decorated ones are bound."""

    class Thing:
        def method(self, x):
            return self, x

        @sync_to_async
        def decorated(self, x):
            return self, x

        @sync_to_async(thread_sensitive=False)
        def pooled(self, x):
            return self, x

        @staticmethod
        @sync_to_async
        def static(x):
            return x

        @classmethod
        @sync_to_async
        def of_class(cls, x):
            return cls, x

    thing = Thing()
    assert sync_to_async(thing.method).__self__ is thing
    assert await sync_to_async(thing.method)(1) == (thing, 1)
    assert await thing.decorated(2) == (thing, 2)
    assert await thing.pooled(2) == (thing, 2)
    assert await Thing.decorated(thing, 3) == (thing, 3)
    assert await thing.static(4) == 4
    assert await thing.of_class(5) == (Thing, 5)
    assert inspect.iscoroutinefunction(thing.decorated)


def test_outside_of_trio():
    """SB-05: there is nobody to wait."""
    coroutine = sync_to_async(abs)(-1)
    with pytest.raises(RuntimeError, match="async context"):
        coroutine.send(None)


async def test_keyword_arguments_of_any_name(to_async):
    """SB-20, and the same from sync to async."""
    names = ["func", "call", "context", "task_context", "awaitable", "limiter", "self", "args", "crossing"]
    given = {name: index for index, name in enumerate(names)}

    def function(**kwargs):
        return kwargs

    async def async_echo(**kwargs):
        return kwargs

    assert await to_async(function)(**given) == given
    assert await to_async(lambda: async_to_sync(async_echo)(**given))() == given


# sync_to_async: which thread


async def test_async_outermost_shares_one_thread():
    """SB-07: all thread-sensitive code is on one thread, one call after the other, in the order of the calls."""
    order = []
    running = []

    def function(number):
        running.append(number)
        assert running == [number]
        order.append(number)
        running.remove(number)
        return here()

    threads = set()

    async def task(number):
        threads.add(await sync_to_async(function)(number))

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(task, number)
            await trio.lowlevel.cancel_shielded_checkpoint()
    assert threads == {await ident()}
    assert here() not in threads
    assert order == sorted(order)
    assert len(order) == 200


def test_two_trio_runs_share_one_thread():
    """SB-07: it is the process's."""
    both = threading.Barrier(2)

    async def main():
        thread = await ident()
        await trio.to_thread.run_sync(both.wait, SECONDS)
        assert await ident() == thread
        await trio.to_thread.run_sync(both.wait, SECONDS)
        return thread

    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        first, second = executor.submit(trio.run, main), executor.submit(trio.run, main)
        assert first.result(SECONDS) == second.result(SECONDS)
    assert not bridge_threads()


def test_sync_outermost_gets_its_own_thread_back():
    """SB-08: in the coroutine, in tasks it starts, and below further sync code."""

    async def inner():
        return await ident()

    async def outer():
        seen = [here(), await ident()]

        async def task():
            seen.append(await ident())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
        seen.append(await sync_to_async(async_to_sync(inner))())
        seen.append(await sync_to_async(async_to_sync(outer_again))())
        return seen

    async def outer_again():
        return await sync_to_async(async_to_sync(inner))()

    loop, *threads = async_to_sync(outer)()
    assert threads == [here()] * 4
    assert loop != here()
    loop, *threads, thread = in_a_thread(lambda: [*async_to_sync(outer)(), here()])
    assert threads == [thread] * 4


def test_tasks_that_left_the_context_come_to_the_outermost_thread():
    """SB-06: it belongs to the trio run as a whole."""
    seen = []

    async def task(done):
        seen.append(await ident())
        done.set()

    async def outer():
        done = trio.Event()
        trio.lowlevel.spawn_system_task(task, done, context=contextvars.Context())
        await done.wait()

    async_to_sync(outer)()
    assert seen == [here()]


async def test_the_innermost_waiting_thread_comes_first(to_async):
    """SB-06: before the context's, the outermost and the shared one, also when it is no thread-sensitive one itself."""

    def function():
        return here(), *async_to_sync(inner)()

    async def inner():
        async with ThreadSensitiveContext():
            return await ident(), await sync_to_async(ident_below)()

    def ident_below():
        return here(), async_to_sync(ident)()

    for around in (ThreadSensitiveContext(), trio.CancelScope()):
        if isinstance(around, ThreadSensitiveContext):
            async with around:
                thread, *others = await to_async(function)()
        else:
            thread, *others = await to_async(function)()
        assert others == [thread, (thread, thread)]


async def test_executor():
    """SB-09: of anybody's making, also with calls back."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:

        def function():
            return threading.current_thread().name, async_to_sync(named)()

        async def named():
            return await sync_to_async(lambda: threading.current_thread().name)()

        names = await sync_to_async(function, thread_sensitive=False, executor=executor)()
        assert names == ("mine_0", "mine_0")


async def test_an_executor_that_is_shut_down_before_the_call():
    """SB-09: the call fails, rather than wait for ever."""
    blocked = Flag()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.submit(blocked.wait)

    async def shut_down():
        await trio.testing.wait_all_tasks_blocked()
        executor.shutdown(wait=False, cancel_futures=True)
        blocked.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shut_down)
        with pytest.raises(concurrent.futures.CancelledError):
            await sync_to_async(here, thread_sensitive=False, executor=executor)()
    with pytest.raises(RuntimeError, match="after shutdown"):
        await sync_to_async(here, thread_sensitive=False, executor=executor)()


async def test_an_executor_that_does_not_get_as_far_as_the_call():
    """SB-09: its own failure is raised, also of calls that it had taken before."""
    may_fail = Flag()

    def fail():
        may_fail.wait()
        raise ValueError

    async def call(executor):
        with trio.fail_after(SECONDS), pytest.raises(concurrent.futures.BrokenExecutor):
            await sync_to_async(here, thread_sensitive=False, executor=executor)()

    with concurrent.futures.ThreadPoolExecutor(1, initializer=fail) as broken:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(call, broken)
            await trio.testing.wait_all_tasks_blocked()
            may_fail.set()


async def test_deadlock_detection():
    """SB-10: the thread waits for a trio run of its own, which wants the thread."""

    def starts_a_run():
        return trio.run(ident)

    def starts_a_run_without_context():
        return contextvars.Context().run(trio.run, ident)

    def waits_for_a_run():
        return in_a_thread(contextvars.copy_context().run, trio.run, ident)

    async def raises():
        for function in (starts_a_run, waits_for_a_run):
            for _ in range(2):
                with pytest.raises(RuntimeError, match="would deadlock"):
                    await sync_to_async(function)()
            assert await ident()

    await raises()
    with pytest.raises(RuntimeError, match="would deadlock"):
        await sync_to_async(starts_a_run_without_context)()
    async with ThreadSensitiveContext():
        await raises()
    await sync_to_async(async_to_sync(raises))()
    await sync_to_async(async_to_sync(raises), thread_sensitive=False)()
    # any other thread may do so
    shared = await ident()
    assert await sync_to_async(starts_a_run, thread_sensitive=False)() == shared
    assert await sync_to_async(async_to_sync(ident, force_new_loop=True))() == shared


async def test_no_deadlock_is_seen_where_none_is():
    """SB-10: the mark ends with the call, also for tasks that were started in it, and after an exception."""
    seen = []

    def start_a_task(nursery):
        async_to_sync(started)(nursery)
        raise ValueError

    async def started(nursery):
        nursery.start_soon(task)

    async def task():
        seen.append(await ident())

    async with trio.open_nursery() as nursery:
        with pytest.raises(ValueError):
            await sync_to_async(start_a_task)(nursery)
    assert seen == [await ident()]


def test_no_deadlock_is_seen_in_a_thread_that_was_used_before():
    """SB-10: who waited in it earlier is not waited for."""

    async def context_below():
        return contextvars.copy_context()

    context = async_to_sync(context_below)()
    assert context.run(run, ident) != here()


async def test_a_call_that_waits_for_another():
    """SB-11: on one thread the second waits for the first; without thread_sensitive they run side by side."""
    flag = Flag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync_to_async(flag.wait, thread_sensitive=False))
        nursery.start_soon(sync_to_async(flag.set, thread_sensitive=False))
    flag = threading.Event()
    waited = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync_to_async(lambda: waited.append(flag.wait(0.05))))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sync_to_async(flag.set))
    assert waited == [False]
    assert flag.is_set()


async def test_more_calls_than_threads():
    """SB-21: they wait, and none is lost."""
    current_limiter().total_tokens = 3
    lock = threading.Lock()
    running = most = done = 0

    def function():
        nonlocal running, most, done
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
            done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(sync_to_async(function, thread_sensitive=False))
    assert done == 200
    assert most <= 3


# sync_to_async: what goes in, and what comes out


async def test_context_variables(to_async):
    """SB-12: values go in, changes come back, after an exception too."""
    variable.set("task")

    def function(*, fail):
        assert variable.get() == "task"
        variable.set("thread")
        if fail:
            raise ValueError
        return variable.get()

    assert await to_async(function)(fail=False) == "thread"
    assert variable.get() == "thread"
    variable.set("task")
    with pytest.raises(ValueError):
        await to_async(function)(fail=True)
    assert variable.get() == "thread"


async def test_context_variables_by_identity():
    """SB-12: another object comes back even where it is equal."""
    before, after = [], []
    variable.set(before)
    await sync_to_async(variable.set)(after)
    assert variable.get() is after


async def test_context_variables_of_tasks_side_by_side(to_async):
    """SB-12: each has its own."""

    async def task(number):
        variable.set(number)
        await to_async(change)()
        assert variable.get() == number + 1000

    def change():
        variable.set(variable.get() + 1000)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(task, number)
    assert variable.get() == "unset"


async def test_a_context_of_its_own(to_async):
    """SB-13: changes stay there, also those of async code below."""
    variable.set("task")
    context = contextvars.copy_context()
    context.run(variable.set, "context")

    def function():
        assert variable.get() == "context"
        variable.set("changed")
        async_to_sync(below)()
        return variable.get()

    async def below():
        assert variable.get() == "changed"
        variable.set("changed below")

    assert await to_async(function, context=context)() == "changed below"
    assert variable.get() == "task"
    assert context[variable] == "changed below"


async def test_the_handled_exception_is_seen(to_async):
    """SB-14, SB-37: in both directions, and it is left as it was."""

    def function():
        return sys.exception(), async_to_sync(below)()

    async def below():
        await trio.lowlevel.checkpoint()
        return sys.exception()

    error = ValueError()
    error.__context__ = cause = KeyError()
    try:
        raise error
    except ValueError:
        before = error.__traceback__
        assert await to_async(function)() == (error, error)
        assert sys.exception() is error
        assert error.__traceback__ is before
        assert error.__context__ is cause
    assert await to_async(function)() == (None, None)


@pytest.mark.parametrize(
    "kind", [ValueError, SystemExit, StopAsyncIteration, KeyboardInterrupt, GeneratorExit]
)
async def test_exceptions_come_out_as_they_are(to_async, kind):
    """SB-15: any, and the traceback ends where it was raised."""

    def raise_it():
        raise error

    error = kind("text")
    with pytest.raises(kind) as caught:
        await to_async(raise_it)()
    assert caught.value is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "raise_it"


async def test_stop_iteration(to_async):
    """SB-16: it does not hang, and becomes what it becomes in a coroutine (PEP 479)."""
    with trio.fail_after(SECONDS), pytest.raises(RuntimeError, match="StopIteration") as caught:
        await to_async(next)(iter([]))
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_exceptions_are_not_kept(to_async):
    """An exception that was dealt with is freed at once, without the collector of cycles."""

    class Mine(Exception):
        pass

    references = []

    def function():
        raise Mine

    async def fail():
        raise Mine

    def from_thread():
        try:
            async_to_sync(fail)()
        except Mine as error:
            references.append(weakref.ref(error))

    gc.disable()
    try:
        try:
            await to_async(function)()
        except Mine as error:
            references.append(weakref.ref(error))
        await to_async(from_thread)()
        await trio.lowlevel.checkpoint()
        await to_async(here)()  # the thread has finished with the calls before
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


# Cancellation


async def test_a_call_that_waits_for_its_thread_is_never_run():
    """SB-19: thread-sensitive, in the pool, and in an executor."""
    current_limiter().total_tokens = 1
    ran = []
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        for options in (
            {},
            {"thread_sensitive": False},
            {"thread_sensitive": False, "limiter": trio.CapacityLimiter(1)},
            {"thread_sensitive": False, "executor": executor},
        ):
            blocked, started = Flag(), Flag()

            def block(started=started, blocked=blocked):
                started.set()
                blocked.wait()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(sync_to_async(block, **options))
                await started.wait_in_task()
                with trio.move_on_after(0) as scope:
                    await sync_to_async(ran.append, **options)("already cancelled")
                assert scope.cancelled_caught
                with trio.move_on_after(0.01) as scope:
                    await sync_to_async(ran.append, **options)("cancelled while it waits")
                assert scope.cancelled_caught
                assert not blocked.is_set()
                blocked.set()
            await sync_to_async(ran.append, **options)(1)
    assert ran == [1, 1, 1, 1]


async def test_a_running_function_is_waited_for(to_async):
    """SB-18, read for trio: the caller gets its result, and is cancelled at its next checkpoint."""
    started, go_on = Flag(), Flag()

    def function():
        started.set()
        go_on.wait()
        variable.set("came back")
        return "result"

    async with trio.open_nursery() as nursery:

        async def cancel():
            await started.wait_in_task()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()

        nursery.start_soon(cancel)
        with trio.CancelScope() as scope:
            assert await to_async(function)() == "result"
            assert variable.get() == "came back"
            await trio.lowlevel.checkpoint()
            pytest.fail("not cancelled")
    assert scope.cancelled_caught


@contextmanager
def cancelled_when(flag, nursery):
    """Cancel the block when a thread sets the flag."""

    async def cancel():
        await flag.wait_in_task()
        scope.cancel()

    nursery.start_soon(cancel)
    with trio.CancelScope() as scope:
        yield scope


async def test_abandon_on_cancel(to_async):
    """The caller is free at once; the thread goes on, and gets Cancelled where it crosses back."""
    started, go_on, ended = Flag(), Flag(), Flag()
    seen = []

    def function():
        variable.set("thread")
        started.set()
        go_on.wait()
        try:
            for cross in (async_to_sync(never), check_cancelled, async_to_sync(never)):
                try:
                    cross()
                except trio.Cancelled:
                    seen.append("cancelled")
        finally:
            ended.set()
        raise ValueError("dropped")

    async def never():
        pytest.fail("the request is gone")

    async with trio.open_nursery() as nursery:
        with cancelled_when(started, nursery) as scope:
            await to_async(function, abandon_on_cancel=True)()
        assert scope.cancelled_caught
        assert variable.get() == "unset"
        go_on.set()
        await ended.wait_in_task()
    assert seen == ["cancelled"] * 3


async def test_abandoned_sensitive_calls_keep_their_order():
    """What is abandoned still has the thread: the next call waits for it."""
    started, go_on = Flag(), Flag()
    order = []

    def function():
        started.set()
        go_on.wait()
        order.append("first")

    async with trio.open_nursery() as nursery:
        with cancelled_when(started, nursery):
            await sync_to_async(function, abandon_on_cancel=True)()
        nursery.start_soon(sync_to_async(order.append), "second")
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert order == ["first", "second"]


def test_a_function_that_outlives_its_trio_run():
    """SB-34, read for trio: it was cancelled, so it gets Cancelled, rather than a trio run that nobody waits for."""
    started, go_on, ended = Flag(), Flag(), Flag()
    seen = []

    def function():
        started.set()
        go_on.wait()
        try:
            async_to_sync(trio.sleep)(0)
        except BaseException as error:
            seen.append(type(error))
        finally:
            ended.set()

    async def main(**options):
        async with trio.open_nursery() as nursery:
            with cancelled_when(started, nursery):
                await sync_to_async(function, abandon_on_cancel=True, **options)()

    for options in ({}, {"thread_sensitive": False}):
        trio.run(functools.partial(main, **options))
        go_on.set()
        ended.wait()
        for flag in (started, go_on, ended):
            flag.clear()
    assert seen == [trio.Cancelled, trio.Cancelled]


async def test_code_that_crosses_back_after_its_cancellation(to_async):
    """It gets Cancelled there, its `finally` blocks run, and those may shield what they await."""
    started, go_on = Flag(), Flag()
    seen = []

    def function():
        started.set()
        go_on.wait()
        try:
            async_to_sync(trio.sleep)(0)
        except trio.Cancelled:
            seen.append("cancelled")
            raise
        finally:
            seen.append("finally")
            async_to_sync(clean_up)()
            with pytest.raises(trio.Cancelled):
                async_to_sync(ident)()

    async def clean_up():
        with trio.move_on_after(SECONDS, shield=True):
            await trio.lowlevel.checkpoint()
            assert await ident()
            seen.append("cleaned up")

    async with trio.open_nursery() as nursery:

        async def cancel():
            await started.wait_in_task()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()

        nursery.start_soon(cancel)
        with trio.CancelScope() as scope:
            await to_async(function)()
    assert scope.cancelled_caught
    assert seen == ["cancelled", "finally", "cleaned up"]


async def test_check_cancelled(to_async):
    """It raises in a thread whose caller has been cancelled, also after a crossing, and costs nothing before."""
    started, go_on = Flag(), Flag()
    seen = []

    def function():
        check_cancelled()
        async_to_sync(trio.sleep)(0)
        check_cancelled()
        started.set()
        with pytest.raises(trio.Cancelled):
            while True:
                check_cancelled()
        async_to_sync(shielded)()
        check_cancelled()

    async def shielded():
        seen.append("shielded")

    async with trio.open_nursery() as nursery:
        with cancelled_when(started, nursery) as scope:
            await to_async(function)()
        assert scope.cancelled_caught
    assert seen == ["shielded"]

    def cancelled_in_a_crossing(scope):
        async_to_sync(cancel)(scope)
        check_cancelled()

    async def cancel(scope):
        scope.cancel()

    with trio.CancelScope() as scope:
        await to_async(cancelled_in_a_crossing)(scope)
    assert scope.cancelled_caught
    assert go_on


async def test_check_cancelled_elsewhere():
    """In trio's own threads it is trio's; in tasks and in plain threads there is nobody to ask about."""
    await trio.to_thread.run_sync(check_cancelled)

    def cancelled(scope):
        trio.from_thread.run_sync(scope.cancel)
        with pytest.raises(trio.Cancelled):
            while True:
                check_cancelled()

    with trio.CancelScope() as scope:
        await trio.to_thread.run_sync(cancelled, scope)
    with pytest.raises(RuntimeError):
        check_cancelled()
    with pytest.raises(RuntimeError):
        in_a_thread(check_cancelled)


async def test_cancellation_reaches_the_coroutine(to_async):
    """SB-17: the coroutine that the thread waits for is cancelled, and through it the sync code and the caller."""
    started = Flag()
    seen = []

    def function():
        try:
            async_to_sync(inner)()
        finally:
            seen.append("sync")

    async def inner():
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            seen.append("async")

    async with trio.open_nursery() as nursery:
        with cancelled_when(started, nursery) as scope:
            await to_async(function)()
    assert scope.cancelled_caught
    assert seen == ["async", "sync"]


async def test_a_shielded_coroutine_is_waited_for(to_async):
    """SB-17: if it ends without Cancelled, the caller has its result."""
    started = Flag()

    def function():
        return async_to_sync(inner)()

    async def inner():
        with trio.CancelScope(shield=True):
            started.set()
            while not scope.cancel_called:
                await trio.lowlevel.checkpoint()
        return "result"

    async with trio.open_nursery() as nursery:
        with cancelled_when(started, nursery) as scope:
            assert await to_async(function)() == "result"
            assert trio.current_effective_deadline() == float("-inf")


async def test_a_caught_cancellation_lets_the_caller_go_on(to_async):
    """SB-17: sync code may catch it, as async code may."""

    def function(scope):
        try:
            async_to_sync(inner)(scope)
        except trio.Cancelled:
            return "caught"

    async def inner(scope):
        scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        assert await to_async(function)(scope) == "caught"


async def test_a_scope_in_the_coroutine_is_its_own(to_async):
    """A timeout around an inner call ends there, and nowhere else."""
    seen = []

    def outer():
        async_to_sync(middle)()
        check_cancelled()
        seen.append("outer went on")

    async def middle():
        with trio.CancelScope() as scope:
            await sync_to_async(inner)(scope)
        assert scope.cancelled_caught
        await trio.lowlevel.checkpoint()

    def inner(scope):
        try:
            async_to_sync(cancel_and_wait)(scope)
        finally:
            with pytest.raises(trio.Cancelled):
                check_cancelled()
            seen.append("inner")

    async def cancel_and_wait(scope):
        scope.cancel()
        await trio.sleep_forever()

    await to_async(outer)()
    assert seen == ["inner", "outer went on"]


# Four deep


class Nest:
    """Sync and async code, each calling the other, down to a depth; and it can stop, and block, at any level."""

    def __init__(self, options, depth=4):
        self.options = options
        self.depth = depth
        self.at = None
        self.reached = Flag()
        self.go_on = Flag()
        self.ended = []

    async def down(self, level):
        try:
            assert variable.get() == level
            if self.at == ("async", level):
                self.reached.set()
                await trio.sleep_forever()
            if level == self.depth:
                await trio.lowlevel.checkpoint()
            else:
                await sync_to_async(self.sync_down, **self.options[level])(level + 1)
        finally:
            self.ended.append(("async", level))

    def sync_down(self, level):
        try:
            variable.set(level)
            if self.at == ("sync", level):
                self.reached.set()
                self.go_on.wait()
            async_to_sync(self.down)(level)
            variable.set(level - 1)
        finally:
            self.ended.append(("sync", level))


SENSITIVE, POOL = {}, {"thread_sensitive": False}
MIXES = {
    "sensitive": [SENSITIVE] * 4,
    "pool": [POOL] * 4,
    "mixed": [SENSITIVE, POOL] * 2,
    "mixed-too": [POOL, SENSITIVE] * 2,
}
every_mix = pytest.mark.parametrize("options", MIXES.values(), ids=MIXES)
DOWN = [("async", 0), ("sync", 1), ("async", 1), ("sync", 2), ("async", 2), ("sync", 3), ("async", 3)]
DOWN += [("sync", 4), ("async", 4)]


@every_mix
async def test_four_deep(options):
    variable.set(0)
    nest = Nest(options)
    with trio.fail_after(SECONDS):
        await nest.down(0)
    assert nest.ended == DOWN[::-1]
    assert variable.get() == 0


@every_mix
@pytest.mark.parametrize("at", DOWN, ids=lambda at: f"{at[0]}{at[1]}")
async def test_four_deep_and_cancelled_at_each_crossing(options, at):
    """Whatever was entered is left, from the inside out."""
    variable.set(0)
    nest = Nest(options)
    nest.at = at

    async def cancel():
        await nest.reached.wait_in_task()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        nest.go_on.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with trio.fail_after(SECONDS), trio.CancelScope() as scope:
            await nest.down(0)
    assert scope.cancelled_caught
    entered = DOWN[: DOWN.index(at) + 1]
    if at[0] == "sync":
        # it crosses once more: the coroutine begins, and is cancelled where it would wait; sync code below never begins
        entered = DOWN[: DOWN.index(at) + 2]
    assert nest.ended == entered[::-1]


@every_mix
def test_deeper_than_python_goes(options):
    """It is a `RecursionError`, wherever the last call of Python's is: nothing is left half begun."""

    async def down(level):
        await sync_to_async(async_to_sync(down), **options[level % 4])(level + 1)

    async def frames_above(count):
        await (frames_above(count - 1) if count else down(0))

    def sweep():
        for count in range(40):
            with pytest.raises(RecursionError):
                run(frames_above, count)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        in_a_thread(sweep)
    finally:
        sys.setrecursionlimit(limit)


@every_mix
async def test_four_deep_from_many_tasks(options):
    """At once, with fewer threads than tasks: nobody waits for a thread that waits for it."""
    current_limiter().total_tokens = 2

    async def task():
        variable.set(0)
        nest = Nest(options)
        await nest.down(0)
        assert nest.ended == DOWN[::-1]

    with trio.fail_after(3 * SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(task)
    assert current_limiter().borrowed_tokens == 0


@every_mix
async def test_many_tasks_cancelled_at_once(options):
    """Wherever each of them is: all end, and no place of a thread is lost."""
    current_limiter().total_tokens = 5
    done = []

    async def task():
        variable.set(0)
        nest = Nest(options)
        await nest.down(0)
        done.append(nest)
        if len(done) == 20:
            nursery.cancel_scope.cancel()

    with trio.fail_after(3 * SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(task)
        await trio.testing.wait_all_threads_completed()
    assert current_limiter().borrowed_tokens == 0
    assert await ident()
    assert await sync_to_async(here, **POOL)()


class Programs:
    """Programs of sync and async code in each other, as the dice fall: with failures, timeouts, and tasks."""

    def __init__(self, seed):
        self.dice = random.Random(seed)

    async def main(self):
        current_limiter().total_tokens = self.dice.choice([1, 2, 5, 40])
        with trio.move_on_after(self.dice.choice([0.01, 0.05, SECONDS])):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(self.task)
        with trio.fail_after(SECONDS):
            while current_limiter().borrowed_tokens:  # noqa: ASYNC110 - abandoned functions go on for a moment
                await trio.sleep(0.001)

    async def task(self):
        with suppress_groups(ValueError):
            await self.in_task(5)

    async def in_task(self, depth):
        for _ in range(self.dice.randint(1, 3)):
            match self.dice.randint(1, 12) if depth else 1:
                case 1 | 2:
                    await trio.sleep(self.dice.choice([0, 0.001]))
                case 3:
                    raise ValueError
                case 4:
                    async with trio.open_nursery() as nursery:
                        for _ in range(2):
                            nursery.start_soon(self.in_task, depth - 1)
                case 5:
                    with trio.move_on_after(self.dice.choice([0, 0.001])):
                        await self.in_task(depth - 1)
                case 6:
                    async with ThreadSensitiveContext():
                        await self.in_task(depth - 1)
                case 7:
                    await sync_to_async(self.in_thread, abandon_on_cancel=True)(depth - 1)
                case 8 | 9:
                    await sync_to_async(self.in_thread, thread_sensitive=False)(depth - 1)
                case _:
                    await sync_to_async(self.in_thread)(depth - 1)

    def in_thread(self, depth):
        for _ in range(self.dice.randint(1, 3)):
            match self.dice.randint(1, 10) if depth else 1:
                case 1 | 2:
                    check_cancelled()
                case 3:
                    raise ValueError
                case 4:
                    async_to_sync(self.in_task, force_new_loop=True)(depth - 1)
                case _:
                    try:
                        with suppress_groups(ValueError):
                            async_to_sync(self.in_task)(depth - 1)
                    finally:
                        async_to_sync(self.clean_up)()

    async def clean_up(self):
        with trio.move_on_after(SECONDS, shield=True):
            assert await ident()


@contextmanager
def suppress_groups(kind):
    try:
        yield
    except* kind:
        pass


@pytest.mark.parametrize("seed", range(10))
def test_any_program_ends(seed):
    """And leaves neither a thread nor a place behind; from async code and from sync code."""
    trio.run(Programs(seed).main)
    async_to_sync(Programs(seed).main)()


# The limiter


async def test_stuck_functions_leave_trio_its_threads():
    """The limiter is not trio's: files and names can still be looked up."""
    limiter = current_limiter()
    assert limiter is not trio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 50
    go_on = Flag()
    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(sync_to_async(go_on.wait, **POOL))
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 50
        with trio.fail_after(SECONDS):
            assert await trio.Path(__file__).exists()
            assert await trio.socket.getaddrinfo("localhost", 80)
            assert await ident()
        go_on.set()


async def test_the_limiter_can_be_set():
    """For the trio run, and for one function."""
    assert current_limiter().total_tokens == 40
    assert current_limiter() is current_limiter()
    mine = trio.CapacityLimiter(1)
    seen = []

    def function():
        seen.append(
            trio.from_thread.run_sync(lambda: (mine.borrowed_tokens, current_limiter().borrowed_tokens))
        )

    await sync_to_async(function, thread_sensitive=False, limiter=mine)()
    assert seen == [(1, 0)]
    assert mine.borrowed_tokens == 0


def test_each_trio_run_has_a_limiter():
    async def main():
        return current_limiter()

    assert trio.run(main) is not trio.run(main)
    with pytest.raises(RuntimeError):
        current_limiter()


async def test_a_thread_that_calls_back_lends_its_place():
    """With one place in all, a thread whose coroutine needs a thread has it."""
    current_limiter().total_tokens = 1
    lock = threading.Lock()

    def outer():
        return async_to_sync(inner)()

    async def inner():
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(sync_to_async(alone, **POOL))
        return await sync_to_async(outer_again, **POOL)()

    def outer_again():
        return async_to_sync(sync_to_async(here, **POOL))()

    def alone():
        assert lock.acquire(blocking=False)
        lock.release()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(sync_to_async(outer, **POOL))
    assert current_limiter().borrowed_tokens == 0


async def test_a_thread_of_trio_s_lends_its_place():
    """Also when it calls back in trio's way; and only for as long as it waits."""
    current_limiter().total_tokens = 1
    lock = threading.Lock()
    released, waits = Flag(), trio.Event()

    def outer():
        trio.from_thread.run(inner)
        with lock:
            trio.from_thread.run_sync(nursery.start_soon, sync_to_async(alone, **POOL))
            trio.from_thread.run_sync(waits.set)
            released.wait()

    async def inner():
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(sync_to_async(alone, **POOL))
        await sync_to_async(async_to_sync(sync_to_async(here, **POOL)), **POOL)()

    def alone():
        assert lock.acquire(blocking=False)
        lock.release()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_to_async(outer, **POOL))
            await waits.wait()
            await trio.testing.wait_all_tasks_blocked()
            released.set()
    assert current_limiter().borrowed_tokens == 0


async def test_a_place_is_not_waited_for_alone():
    """Who cannot have the thread's own place takes one that becomes free elsewhere."""
    current_limiter().total_tokens = 2
    go_on, met, blocked = Flag(), Flag(), Flag()

    def block():
        blocked.set()
        go_on.wait()

    def outer():
        async_to_sync(inner)()

    async def inner():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_to_async(met.wait, **POOL))  # has the place of outer()
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(sync_to_async(met.set, **POOL))  # has that of block()
            await trio.testing.wait_all_tasks_blocked()
            assert not met.is_set()
            go_on.set()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_to_async(block, **POOL))
            await blocked.wait_in_task()
            nursery.start_soon(sync_to_async(outer, **POOL))
    assert current_limiter().borrowed_tokens == 0


async def test_trio_s_own_functions_work_in_the_pool():
    """In threads that are trio's, `trio.from_thread` does what it does."""
    assert await sync_to_async(lambda: trio.from_thread.run(async_function), **POOL)() == "awaited"


async def test_no_thread_can_be_started(monkeypatch, to_async):
    def fail(*_, **__):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        patch.setattr(trio.to_thread, "run_sync", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            async with ThreadSensitiveContext():
                await to_async(here)()
    async with ThreadSensitiveContext():
        assert await to_async(here)()


async def test_no_thread_can_be_started_for_a_cancelled_call(monkeypatch):
    """Both happen before the caller goes on; the cancellation was first."""
    scope = trio.CancelScope()

    async def fail(*_, **__):
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    with scope:
        await sync_to_async(here, **POOL)()
    assert scope.cancelled_caught


# async_to_sync


def test_async_to_sync_forms():
    """SB-30: decorators, methods, `__self__`, metadata."""

    @async_to_sync
    async def plain(x):
        """It returns x."""
        await trio.lowlevel.checkpoint()
        return x

    @async_to_sync(force_new_loop=True)
    async def with_options(x):
        return x

    class Thing:
        async def method(self, x):
            return self, x

        @async_to_sync
        async def decorated(self, x):
            return self, x

    thing = Thing()
    assert plain(1) == 1
    assert (plain.__name__, plain.__doc__) == ("plain", "It returns x.")
    assert not inspect.iscoroutinefunction(plain)
    assert with_options(2) == 2
    assert async_to_sync(thing.method).__self__ is thing
    assert async_to_sync(thing.method)(3) == (thing, 3)
    assert thing.decorated(4) == (thing, 4)
    assert async_to_sync(functools.partial(thing.method, 5))() == (thing, 5)
    assert async_to_sync(AsyncCallable())() == "called"
    assert async_to_sync()(async_function)() == "awaited"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is new in Python 3.12")
def test_a_mark_is_not_copied():
    """SB-30: what is sync is not seen as async because what it wraps was marked so."""

    def function():
        return async_function()

    marked = inspect.markcoroutinefunction(function)
    assert inspect.iscoroutinefunction(marked)
    assert async_to_sync(marked)() == "awaited"
    assert not inspect.iscoroutinefunction(async_to_sync(marked))


def test_something_not_marked_as_async():
    """SB-31: a warning at the line that passes it, and it works."""

    def gives_an_awaitable():
        return async_function()

    with pytest.warns(UserWarning, match="async_to_sync was passed a non-async-marked callable") as caught:
        function = async_to_sync(gives_an_awaitable)
    assert caught[0].filename == __file__
    assert function() == "awaited"
    with pytest.warns(UserWarning, match="non-async-marked") as caught:
        async_to_sync(force_new_loop=True)(gives_an_awaitable)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="non-async-marked"):
        function = async_to_sync(lambda: 1)
    with pytest.raises(TypeError, match="await"):
        function()


async def test_in_the_thread_that_trio_runs_in():
    """SB-32: an error that says what to do."""
    with pytest.raises(RuntimeError, match="just await the async function"):
        async_to_sync(async_function)()
    with pytest.raises(RuntimeError, match="just await"):
        async_to_sync(async_function, force_new_loop=True)()


async def test_the_coroutine_comes_back_to_its_trio_run(to_async):
    """SB-22, SB-33: to the very task that waits for the thread, in the thread that trio runs in."""
    thread, token, task = here(), trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()

    async def where():
        return here(), trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()

    assert await to_async(async_to_sync(where))() == (thread, token, task)
    assert (await trio.to_thread.run_sync(async_to_sync(where))) == (thread, token, task)
    # a function that was wrapped elsewhere is looked at when it is called
    assert await to_async(async_to_sync(to_async(async_to_sync(where))))() == (thread, token, task)


async def test_in_a_thread_of_trio_s():
    """SB-33: the same, but for thread-sensitive code, which cannot come back to it."""
    shared = await ident()

    def function():
        variable.set("thread")
        try:
            raise ValueError
        except ValueError:
            seen = async_to_sync(inner)()
        assert isinstance(seen, ValueError)
        assert variable.get() == "coroutine"
        return async_to_sync(ident)(), here()

    async def inner():
        assert variable.get() == "thread"
        variable.set("coroutine")
        return sys.exception()

    thread, own = await trio.to_thread.run_sync(function)
    assert thread == shared != own
    seen = []

    def cancelled():
        try:
            async_to_sync(trio.sleep_forever)()
        finally:
            seen.append("sync")
            async_to_sync(clean_up)()

    async def clean_up():
        with trio.move_on_after(SECONDS, shield=True):
            seen.append(await ident())

    with trio.move_on_after(0.01) as scope:
        await trio.to_thread.run_sync(cancelled)
    assert scope.cancelled_caught
    assert seen == ["sync", shared]


async def test_a_run_of_its_own(to_async):
    """SB-33: in plain threads, and where it is asked for; thread-sensitive code comes back to the thread."""

    async def where():
        return trio.lowlevel.current_trio_token(), here(), await ident()

    token = trio.lowlevel.current_trio_token()
    other, loop, sensitive = await to_async(lambda: in_a_thread(async_to_sync(where)))()
    assert other is not token
    thread = await to_async(here)()
    other, loop, sensitive = await to_async(async_to_sync(where, force_new_loop=True))()
    assert other is not token
    assert sensitive == thread or sensitive != loop
    assert loop not in {here(), sensitive}


async def test_a_run_of_its_own_is_cancelled_with_the_call(to_async):
    """Also when the call was cancelled before."""
    started = Flag()
    seen = []

    def function():
        try:
            async_to_sync(inner, force_new_loop=True)()
        finally:
            seen.append("sync")
            async_to_sync(shielded, force_new_loop=True)()
            with pytest.raises(trio.Cancelled):
                async_to_sync(trio.sleep_forever, force_new_loop=True)()

    async def inner():
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            seen.append("async")

    async def shielded():
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
            seen.append("shielded")

    async with trio.open_nursery() as nursery:
        with cancelled_when(started, nursery) as scope:
            await to_async(function)()
        assert scope.cancelled_caught
    assert seen == ["async", "sync", "shielded"]


def fork_and_run(queue):
    queue.put(async_to_sync(async_function)())
    context = contextvars.copy_context()
    queue.put(in_a_thread(context.run, trio.run, name_of_thread))
    os._exit(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_in_a_fork(to_async):
    """SB-35: a child does not wait for its parent's trio run, or for a thread that only the parent has."""
    fork = multiprocessing.get_context("fork")
    await ident()

    def function():
        queue = fork.SimpleQueue()
        child = fork.Process(target=fork_and_run, args=(queue,))
        child.start()
        child.join(SECONDS)
        child.kill()
        assert child.exitcode == 0
        return queue.get(), queue.get()

    assert await to_async(function)() == ("awaited", "trigi.sync shared")


def test_the_waiting_thread_works():
    """SB-36: it runs calls that come from below, one at a time, and all that came before the end."""
    seen = []

    async def outer():
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(sync_to_async(lambda number=number: seen.append((number, here()))))

    async_to_sync(outer)()
    assert sorted(seen) == [(number, here()) for number in range(100)]


def test_its_own_thread():
    """SB-36: thread-sensitive code that would wait for the thread that it is called in is an error."""

    async def outer():
        return await sync_to_async(lambda: trio.run(ident))()

    with pytest.raises(RuntimeError, match="would deadlock"):
        async_to_sync(outer)()


async def test_tasks_that_outlive_the_call(to_async):
    """SB-36, SB-39: their thread-sensitive code goes to the next thread up that waits, in the end to the shared one."""
    seen = {}
    go_on = [trio.Event(), trio.Event()]

    async def task(name, event):
        await event.wait()
        seen[name] = await ident()

    def outer(nursery):
        async_to_sync(middle)(nursery)
        return here()

    async def middle(nursery):
        async with trio.open_nursery() as inner_nursery:
            seen["inner thread"] = await to_async(inner)(nursery, inner_nursery)
            go_on[0].set()

    def inner(nursery, inner_nursery):
        async_to_sync(start)(nursery, inner_nursery)
        return here()

    async def start(nursery, inner_nursery):
        nursery.start_soon(task, "outer", go_on[1])
        inner_nursery.start_soon(task, "inner", go_on[0])

    async with trio.open_nursery() as nursery:
        thread = await to_async(outer)(nursery)
        assert seen["inner"] == thread
        go_on[1].set()
    assert seen["outer"] == await ident()


async def test_tasks_that_start_tasks_for_ever():
    """Nothing is kept of calls and crossings that are over."""
    alive = weakref.WeakSet()

    class Argument:
        pass

    async def generation(number):
        argument = Argument()
        alive.add(argument)
        if number:
            await sync_to_async(cross, thread_sensitive=number % 2 == 0)(number - 1, argument)

    def cross(number, _):
        async_to_sync(start)(number)

    async def start(number):
        nursery.start_soon(generation, number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(generation, 50)
        await trio.testing.wait_all_tasks_blocked()
        while nursery.child_tasks:
            gc.collect()
            assert len(alive) < 5
            await trio.sleep(0.001)


def test_context_variables_from_sync_code():
    """SB-37: values go in, changes come back, after an exception too."""

    async def coroutine(*, fail):
        assert variable.get() == "thread"
        variable.set("coroutine")
        await sync_to_async(variable.set)("below")
        if fail:
            raise ValueError

    def check():
        for fail in (False, True):
            variable.set("thread")
            if fail:
                with pytest.raises(ValueError):
                    async_to_sync(coroutine)(fail=True)
            else:
                async_to_sync(coroutine)(fail=False)
            assert variable.get() == "below"

    async def main():
        await sync_to_async(check)()
        assert variable.get() == "below"
        variable.set("task")
        await sync_to_async(check, **POOL)()
        assert variable.get() == "below"

    contextvars.copy_context().run(check)
    run(main)


def test_the_handled_exception_from_sync_code():
    """SB-37."""

    async def coroutine():
        return sys.exception()

    try:
        raise ValueError
    except ValueError:
        assert async_to_sync(coroutine)() is sys.exception() is not None
    assert async_to_sync(coroutine)() is None


@pytest.mark.parametrize(
    "kind", [ValueError, SystemExit, KeyboardInterrupt, StopAsyncIteration, GeneratorExit]
)
def test_exceptions_of_coroutines(kind):
    """SB-38: as they are, in a run of its own and in one that waits."""

    async def coroutine():
        await trio.lowlevel.checkpoint()
        raise error

    def check():
        with pytest.raises(kind) as caught:
            async_to_sync(coroutine)()
        assert caught.value is error
        assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "coroutine"

    error = kind("text")
    check()
    error = kind("text")
    run(sync_to_async(check))
    error = kind("text")
    run(sync_to_async(check, **POOL))


def test_stop_iteration_of_a_coroutine():
    """SB-38."""

    async def coroutine():
        raise StopIteration

    def check():
        with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
            async_to_sync(coroutine)()

    check()
    run(sync_to_async(check))


def test_called_where_an_exception_is_handled():
    """SB-40: it is not raised again, and is the context of what is raised then."""

    async def works():
        return 1

    async def fails():
        raise KeyError

    try:
        raise ValueError
    except ValueError:
        assert async_to_sync(works)() == 1
        with pytest.raises(KeyError) as caught:
            async_to_sync(fails)()
        assert caught.value.__context__ is sys.exception()


PROGRAM = """
import os, signal, threading, trio
from trigi.sync import async_to_sync, sync_to_async

async def main():
    try:
        await {what}
    finally:
        print("async", flush=True)

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

async def interrupt_and_wait():
    interrupt()
    await trio.sleep_forever()

try:
    {run}
except KeyboardInterrupt:
    print("interrupted", threading.active_count() <= 2)
"""


@pytest.mark.parametrize(
    ("what", "run"),
    [
        ("interrupt_and_wait()", "async_to_sync(main)()"),
        ("sync_to_async(async_to_sync(interrupt_and_wait))()", "async_to_sync(main)()"),
        (
            "sync_to_async(async_to_sync(interrupt_and_wait), thread_sensitive=False)()",
            "async_to_sync(main)()",
        ),
        ("interrupt_and_wait()", "trio.run(main)"),
        ("sync_to_async(async_to_sync(interrupt_and_wait))()", "trio.run(main)"),
        ("sync_to_async(async_to_sync(interrupt_and_wait), thread_sensitive=False)()", "trio.run(main)"),
    ],
)
def test_ctrl_c(what, run):
    """It ends a program whose main thread waits in `async_to_sync`, or is trio's: the coroutine ends first."""
    program = PROGRAM.format(what=what, run=run)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=3 * SECONDS, check=False
    )
    assert (done.stdout, done.stderr) == ("async\ninterrupted True\n", "")


PROGRAM_AT_EACH_LINE = """
import linecache, signal, sys, threading, trio
from trigi import _crossing, _handover, _threads, sync
from trigi.sync import ThreadSensitiveContext, async_to_sync, sync_to_async

files = {{module.__file__ for module in {files}}}

def trace(frame, event, arg):
    global lines
    name = frame.f_code.co_filename
    if name not in files:
        return None
    # a line that takes a lock is traced again where it gives it back; there, no signal handler can run
    if event == "line" and not linecache.getline(name, frame.f_lineno).strip().startswith("with self._lock"):
        lines += 1
        if lines in at:
            here.append((frame.f_code.co_qualname, frame.f_lineno))
            {interrupt}
    return trace

async def main():
    try:
        await sync_to_async(async_to_sync(below))()
    finally:
        with trio.CancelScope(shield=True):
            await sync_to_async(int)()

async def below():
    await sync_to_async(int)()

async def main_of_trio():
    async with ThreadSensitiveContext():
        await main()
    await sync_to_async(int, thread_sensitive=False)()

def run():
    {run}

def interrupted():
    global lines, here
    lines, here = 0, []
    sys.settrace(trace)
    try:
        run()
    except BaseException as error:
        return repr(error)
    finally:
        sys.settrace(None)

for second in {seconds}:
    first = 0
    while not first or here:
        first += 1
        at = {{first, first + second}}
        if (how := interrupted()) != "KeyboardInterrupt()" and here:
            print(here, how)
        run()
        if left := [thread.name for thread in threading.enumerate() if thread.name.startswith("trigi")]:
            print(here, left)
print(first > 100)
"""


@pytest.mark.parametrize("seconds", [(0,), (1, 4)], ids=["once", "twice"])
@pytest.mark.parametrize(
    ("files", "interrupt", "run"),
    [
        ("(_crossing, _handover, _threads)", "raise KeyboardInterrupt", "async_to_sync(main)()"),
        (
            "(_crossing, _handover, _threads, sync, threading)",
            "signal.raise_signal(signal.SIGINT)",
            "trio.run(main_of_trio)",
        ),
    ],
    ids=["main thread", "trio"],
)
def test_ctrl_c_at_each_line(files, interrupt, run, seconds):
    """Wherever it comes while the main thread is busy with a call, it ends the program, and nothing is lost."""
    program = PROGRAM_AT_EACH_LINE.format(files=files, interrupt=interrupt, run=run, seconds=seconds)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=6 * SECONDS, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_run_that_cannot_begin(monkeypatch):
    """What trio itself raises is raised where the thread waits."""

    def fail(*_):
        raise trio.TrioInternalError

    monkeypatch.setattr(trio, "run", fail)
    with pytest.raises(trio.TrioInternalError):
        async_to_sync(async_function)()


# Contexts, and the ends of threads


async def test_a_context_has_a_thread_of_its_own():
    """SB-50: the same in all of its tasks, another one in another context."""
    shared = await ident()
    threads = []

    async def request(barrier):
        async with ThreadSensitiveContext():
            thread = await ident()
            seen = set()

            async def task():
                seen.add(await ident())

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(task)
            seen.add(await sync_to_async(async_to_sync(ident))())
            assert seen == {thread}
            threads.append(thread)
            if len(threads) == 3:
                barrier.set()
            await barrier.wait()

    barrier = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(request, barrier)
    assert len({*threads, shared, here()}) == 5
    assert await ident() == shared


async def test_nested_contexts():
    """SB-50: the outermost counts, also when it is entered again."""
    context = ThreadSensitiveContext()
    async with context:
        thread = await ident()
        async with ThreadSensitiveContext():
            assert await ident() == thread
        async with context:
            assert await ident() == thread
        assert await ident() == thread
    assert await name_of_thread() == "trigi.sync shared"
    async with context:  # and it can be used again
        assert await name_of_thread() == "trigi.sync context"


async def test_a_context_that_sync_code_enters():
    """SB-50: what is entered in one crossing can be left in another one."""

    def function():
        context = ThreadSensitiveContext()
        async_to_sync(context.__aenter__)()
        names.append(async_to_sync(name_of_thread)())
        async_to_sync(context.__aexit__)(None, None, None)
        names.append(async_to_sync(name_of_thread)())

    names = []
    await trio.to_thread.run_sync(function)
    assert names == ["trigi.sync context", "trigi.sync shared"]


async def test_a_context_ends_its_thread():
    """SB-50, SB-51: when it is left, its thread is gone, with what belonged to it."""
    gone = Flag()
    storage = threading.local()

    class Connection:
        def __del__(self):
            gone.set()

    def connect():
        storage.connection = Connection()

    async with ThreadSensitiveContext():
        await sync_to_async(connect)()
        assert [thread.name for thread in bridge_threads()] == ["trigi.sync context"]
    assert gone.is_set()
    assert not bridge_threads()
    async with ThreadSensitiveContext():
        pass


async def test_leaving_a_context_waits_for_nobody_that_is_stuck():
    """SB-51: the loop goes on while its thread still runs something that was abandoned."""
    started, go_on = Flag(), Flag()

    def stuck():
        started.set()
        go_on.wait()

    async with trio.open_nursery() as nursery:
        async with ThreadSensitiveContext():
            with cancelled_when(started, nursery):
                await sync_to_async(stuck, abandon_on_cancel=True)()
        assert len(bridge_threads()) == 1
        await ident()
        go_on.set()


async def test_leaving_a_context_while_its_thread_waits_for_the_loop():
    """SB-51: a cancelled request whose sync code needs the loop to end has it."""
    started = Flag()
    seen = []

    def function():
        try:
            async_to_sync(wait)()
        finally:
            async_to_sync(clean_up)()

    async def wait():
        started.set()
        await trio.sleep_forever()

    async def clean_up():
        with trio.move_on_after(SECONDS, shield=True):
            seen.append(await sync_to_async(here)())

    async with trio.open_nursery() as nursery:
        with cancelled_when(started, nursery) as scope:
            async with ThreadSensitiveContext():
                await sync_to_async(function)()
    assert scope.cancelled_caught
    assert len(seen) == 1


async def test_calls_that_outlive_their_context():
    """SB-50: they get a thread for themselves."""
    seen = []
    go_on = trio.Event()

    async def task():
        await go_on.wait()
        seen.append(await ident())

    async with trio.open_nursery() as nursery:
        async with ThreadSensitiveContext():
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert len(seen) == 1


async def test_a_context_in_one_that_has_exited():
    """SB-50: it is the outermost one of the task that has outlived the other."""
    go_on = trio.Event()
    inner, outer = ThreadSensitiveContext(), ThreadSensitiveContext()

    async def task():
        await go_on.wait()
        for context in (inner, outer):
            async with context, ThreadSensitiveContext():
                thread = await sync_to_async(threading.current_thread)()
                await trio.testing.wait_all_tasks_blocked()
                with trio.move_on_after(0.05):  # were nobody to hold the thread, it would end
                    await trio.to_thread.run_sync(thread.join, abandon_on_cancel=True)
                assert thread.is_alive()
                assert await ident() == thread.ident
            assert not thread.is_alive()

    async with trio.open_nursery() as nursery:
        async with outer:
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()


class Step(Work):
    """It ends while it is looked at from elsewhere."""

    def __init__(self, calls):
        self.calls = calls
        self.began, self.go_on = Flag(), Flag()
        self.thread = None

    def run(self):
        self.thread = threading.current_thread()
        self.began.set()
        self.go_on.wait()

    def fail(self, error):
        raise error

    @property
    def ended(self):
        self.go_on.set()
        left = len(self.calls)
        for _ in range(50):
            if len(self.calls) < left:
                break
            time.sleep(0.001)
        return True


async def test_a_thread_that_is_left_while_a_call_ends():
    """The queue is looked at by one thread and taken from by another."""
    worker = Worker("trigi test")
    steps = [Step(worker._calls) for _ in range(3)]
    worker.hold()
    for step in steps:
        worker.submit(step)
    await steps[0].began.wait_in_task()
    await worker.release()
    assert not steps[0].thread.is_alive()


def test_a_chain_that_two_threads_shorten():
    """Tasks of several trio runs may have the same sync code above them."""

    class Ended(Lane):
        @property
        def ended(self):
            first.outer = None  # the other thread was faster
            return True

    first = Lane(Ended())
    assert first_of(first) is first
    assert first.outer is None


async def test_a_context_with_an_executor():
    """SB-52: it is used whatever is around, is not shut down, and only once."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        thread = executor.submit(here).result()

        async def check():
            context = ThreadSensitiveContext(executor=executor)
            async with context:
                assert await ident() == thread
                assert await sync_to_async(async_to_sync(ident))() == thread
                with pytest.raises(RuntimeError, match="only once"):
                    await context.__aenter__()
            with pytest.raises(RuntimeError, match="only once"):
                await context.__aenter__()

        await check()
        async with ThreadSensitiveContext():
            await check()
            assert await ident() != thread
        own = await sync_to_async(lambda: (async_to_sync(check)(), async_to_sync(ident)(), here()))()
        assert own[1] == own[2] != thread
        assert executor.submit(here).result() == thread

        async def task(go_on):
            await go_on.wait()
            with pytest.raises(RuntimeError, match="exited"):
                await ident()

        go_on = trio.Event()
        async with trio.open_nursery() as nursery:
            async with ThreadSensitiveContext(executor=executor):
                nursery.start_soon(task, go_on)
                await trio.testing.wait_all_tasks_blocked()
            go_on.set()


def test_threads_end_with_the_trio_run():
    """Neither the shared thread nor those of contexts outlive the run that used them."""

    async def main():
        await ident()
        async with ThreadSensitiveContext():
            await ident()
        assert len(bridge_threads()) == 1

    for _ in range(20):
        run(main)


def test_the_shared_thread_outlives_no_abandoned_call():
    """A call that the trio run has left behind ends by itself, and its thread with it."""
    started, go_on = Flag(), Flag()

    def stuck():
        started.set()
        go_on.wait()

    async def main():
        async with trio.open_nursery() as nursery:
            with cancelled_when(started, nursery):
                await sync_to_async(stuck, abandon_on_cancel=True)()

    trio.run(main)
    [thread] = bridge_threads()
    go_on.set()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_sensitive_code_at_the_very_end_of_a_run():
    """Async generators are finalised when the tasks are gone: their sync code still has a thread."""
    seen = []

    async def generator():
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                seen.append(await ident())

    async def main():
        seen.append(generator())
        await anext(seen[0])

    run(main)
    assert len(seen) == 2


def test_what_thread_sensitive_is_for():
    """A connection of sqlite3 refuses every thread but its own."""

    async def main():
        connection = await sync_to_async(sqlite3.connect)(":memory:")
        execute = sync_to_async(connection.execute)
        await execute("create table t (x)")
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(execute, "insert into t values (?)", (number,))
        [[count]] = await sync_to_async(lambda: connection.execute("select count(*) from t").fetchall())()
        await sync_to_async(connection.close)()
        return count

    assert run(main) == 20
    assert async_to_sync(main)() == 20
