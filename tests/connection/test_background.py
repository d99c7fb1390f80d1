"""Background tasks: they outlive their requests, and nothing that goes wrong in one of them reaches anything else."""

from __future__ import annotations

import contextvars
from functools import partial

import pytest
import trio

from tests.connection.conftest import respond
from trigi.testing import open_connection
from trigi.testing.websocket import WebSocketClient


def starts(function, *args, **more):
    """An application whose requests each start a task, and answer."""

    async def app(scope, receive, send):
        scope["extensions"]["trigi"]["nursery"].start_soon(function, *args, **more)
        await respond(send, b"accepted")

    return app


async def test_a_task_outlives_its_request_and_its_connection(serve):
    done = []

    async def work(number):
        await trio.sleep(100)
        done.append((number, trio.current_time()))

    client = serve(starts(work, 1))
    began = trio.current_time()
    assert (await client.fetch()).body == b"accepted"
    await client.leave()
    await client.done.wait()  # no server, so that the connection waits for it
    assert done == [(1, began + 100)]


async def test_a_task_is_in_no_cancel_scope_of_its_request(serve):
    """Neither that of a disconnect's, nor of the request's time limit."""
    done = []

    async def work():
        await trio.sleep(100)
        done.append(True)

    async def app(scope, receive, send):
        scope["extensions"]["trigi"]["nursery"].start_soon(work)
        await trio.sleep_forever()

    client = serve(app, disconnect_grace=1, request_timeout=5)
    await client.request()
    await client.settle()
    await client.leave()
    await client.done.wait()
    assert done == [True]
    assert client.observer.failures == []


async def test_a_task_has_the_context_variables_of_its_request(serve):
    variable = contextvars.ContextVar("variable")
    seen = []

    async def work():
        seen.append(variable.get())

    async def app(scope, receive, send):
        variable.set(scope["path"])
        scope["extensions"]["trigi"]["nursery"].start_soon(work)
        await respond(send)

    client = serve(app)
    for path in ("/1", "/2"):
        await client.fetch(path)
    assert seen == ["/1", "/2"]


ODD = {
    "an exception": ValueError("x"),
    "a group": ExceptionGroup("g", [ValueError("x")]),
    "SystemExit": SystemExit(1),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "KeyboardInterrupt in a group": BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError("x")]),
    "GeneratorExit": GeneratorExit(),
}


@pytest.mark.parametrize("error", ODD.values(), ids=ODD)
async def test_whatever_a_task_raises_is_reported_and_ends_nothing_else(serve, error):
    done = []

    async def fail():
        await trio.sleep(1)
        raise error

    async def work():
        await trio.sleep(2)
        done.append(True)

    async def app(scope, receive, send):
        nursery = scope["extensions"]["trigi"]["nursery"]
        nursery.start_soon(work)
        nursery.start_soon(fail, name="the one that fails")
        await respond(send)

    client = serve(app)
    await client.fetch()
    await trio.sleep(3)
    assert done == [True]
    assert (await client.fetch()).status == 200
    ((name, reported),) = client.observer.background
    assert name == "the one that fails"
    assert repr(reported) == repr(error)  # a group may be another one with the same exceptions
    assert client.observer.failures == []


async def test_a_stray_cancelled_is_reported(serve):
    """One that comes from elsewhere: nobody has cancelled this task."""
    strays = []
    with trio.CancelScope() as elsewhere:
        elsewhere.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as stray:
            strays.append(stray)
            raise

    async def fail():
        raise strays[0]

    client = serve(starts(fail))
    assert (await client.fetch()).status == 200
    await client.settle()
    assert [type(error) for _, error in client.observer.background] == [trio.Cancelled]
    strays.clear()


async def test_a_task_that_is_told_of_the_disconnect_has_not_failed(serve):
    async def app(scope, receive, send):
        async def work():
            await trio.sleep(10)
            await send({"type": "http.response.body"})

        await send({"type": "http.response.start", "status": 200})
        scope["extensions"]["trigi"]["nursery"].start_soon(work)
        await trio.sleep_forever()

    client = serve(app)
    await client.request()
    await client.settle()
    await client.leave()
    await client.done.wait()
    assert client.observer.background == []


async def test_the_name_is_the_functions_if_there_is_none(serve):
    async def fail(*args):
        raise ValueError

    client = serve(starts(partial(fail, 1)))
    await client.fetch()
    await client.settle()
    assert client.observer.background[0][0].endswith("<locals>.fail")


# start


async def test_start_waits_until_the_task_has_started(serve):
    async def work(first, *, task_status):
        await trio.sleep(5)
        task_status.started(first + 1)
        await trio.sleep(5)
        raise ValueError("later")

    async def app(scope, receive, send):
        value = await scope["extensions"]["trigi"]["nursery"].start(work, 1, name="work")
        await respond(send, b"%d" % value)

    client = serve(app)
    began = trio.current_time()
    assert (await client.fetch()).body == b"2"
    assert trio.current_time() == began + 5
    assert client.observer.background == []
    await trio.sleep(10)
    assert [(name, str(error)) for name, error in client.observer.background] == [("work", "later")]


async def test_what_is_raised_before_the_start_is_the_callers(serve):
    async def work(*, task_status):
        await trio.sleep(1)
        raise LookupError("early")

    async def returns(*, task_status):
        await trio.sleep(1)

    raised = []

    async def app(scope, receive, send):
        for function in (work, returns):
            try:
                await scope["extensions"]["trigi"]["nursery"].start(function)
            except Exception as error:
                raised.append(type(error))
        await respond(send)

    client = serve(app)
    assert (await client.fetch()).status == 200
    assert raised == [LookupError, RuntimeError]
    assert client.observer.background == []


async def test_a_start_that_is_given_up_cancels_the_task(serve):
    cancelled = []

    async def work(*, task_status):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time())

    async def app(scope, receive, send):
        with trio.move_on_after(3):
            await scope["extensions"]["trigi"]["nursery"].start(work)
        await respond(send)

    client = serve(app)
    began = trio.current_time()
    assert (await client.fetch()).status == 200
    assert cancelled == [began + 3]
    assert client.observer.background == []


# The end


async def test_its_cancel_scope_ends_all_tasks_and_takes_no_more(serve):
    ended = []

    async def work(number):
        try:
            await trio.sleep_forever()
        finally:
            ended.append(number)

    async def app(scope, receive, send):
        nursery = scope["extensions"]["trigi"]["nursery"]
        nursery.start_soon(work, 1)
        nursery.start_soon(work, 2)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
        with pytest.raises(RuntimeError, match="no more can be started"):
            nursery.start_soon(work, 3)
        with pytest.raises(RuntimeError, match="no more can be started"):
            await nursery.start(work, 3)
        await trio.sleep(1)
        with pytest.raises(RuntimeError, match="no more can be started"):
            nursery.start_soon(work, 3)
        await respond(send, b"done")

    client = serve(app)
    assert (await client.fetch()).body == b"done"
    assert sorted(ended) == [1, 2]
    assert client.observer.background == []


async def test_a_cancelled_connection_without_a_server_cancels_its_tasks(serve):
    refused = []

    async def work():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
            refused.append("cleaned up")

    async def app(scope, receive, send):
        nursery = scope["extensions"]["trigi"]["nursery"]
        nursery.start_soon(work)
        await respond(send)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            try:
                nursery.start_soon(work)
            except RuntimeError as error:
                refused.append(str(error))

    client = serve(app)
    await client.fetch()
    began = trio.current_time()
    client.scope.cancel()
    await client.done.wait()
    assert trio.current_time() == began + 10
    assert refused == [
        "background tasks are being cancelled, or have ended: no more can be started",
        "cleaned up",
    ]
    assert client.observer.background == []


async def test_a_task_may_start_another_after_the_last_request(serve):
    done = []

    async def second():
        await trio.sleep(10)
        done.append("second")

    async def first(nursery):
        await trio.sleep(10)
        nursery.start_soon(second)

    async def app(scope, receive, send):
        nursery = scope["extensions"]["trigi"]["nursery"]
        nursery.start_soon(first, nursery)
        await respond(send)

    client = serve(app)
    await client.fetch()
    await client.leave()
    await client.done.wait()
    assert done == ["second"]


async def test_with_open_connection_the_block_waits_for_it(autojump_clock):
    done = []

    async def work():
        await trio.sleep(100)
        done.append(True)

    async with open_connection(starts(work)) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"accepted" in await stream.receive_some()
        assert done == []
    assert done == [True]


async def test_a_websocket_has_it_too(autojump_clock):
    done = []

    async def work():
        await trio.sleep(100)
        done.append(True)

    async def app(scope, receive, send):
        await receive()
        scope["extensions"]["trigi"]["nursery"].start_soon(work)
        await send({"type": "websocket.close"})

    async with open_connection(app) as stream:
        client = WebSocketClient(stream)
        with pytest.raises(Exception, match="403"):
            await client.connect("/")
    assert done == [True]
