"""The lifespan: every way an application may behave in it, and what becomes of the server then.

Most tests run `open_lifespan` alone, the rest a whole server in memory. Time is virtual.
"""

from __future__ import annotations

import contextvars
import signal
from contextlib import asynccontextmanager
from functools import partial
from math import inf

import pytest
import trio
import trio.testing

from tests.server.conftest import MemoryListener, hello, respond
from trigi import Config, serve
from trigi._connection.observer import Observer
from trigi._server.lifespan import open_lifespan
from trigi.exceptions import InvalidMessage, LifespanFailed, UnexpectedMessage
from trigi.testing import HTTPClient

STARTUP = {"type": "lifespan.startup"}
STARTED = {"type": "lifespan.startup.complete"}
SHUTDOWN = {"type": "lifespan.shutdown"}
STOPPED = {"type": "lifespan.shutdown.complete"}

pytestmark = pytest.mark.usefixtures("autojump_clock")


class Recorder(Observer):
    """Remembers what a lifespan raised."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, BaseException]] = []

    def lifespan_failed(self, stage, error):
        self.failures.append((stage, error))


@pytest.fixture
def observer():
    return Recorder()


async def live(application, observer=None, *, served: float = 0, report_stuck=lambda _: None, **settings):
    """One lifespan, around a server that does nothing for some seconds; the seconds from startup to shutdown."""
    config = Config(**settings)
    async with open_lifespan(application, config, observer or Recorder(), report_stuck):
        began = trio.current_time()
        await trio.sleep(served)
    return began


def served_by(lifespan):
    """An application with this lifespan, that says hello."""

    async def application(scope, receive, send):
        await (lifespan if scope["type"] == "lifespan" else hello)(scope, receive, send)

    return application


async def fetch_and_stop(served):
    """The server serves, and shuts down in no time."""
    client = served.connect()
    assert (await client.fetch()).body == b"hello"
    before = trio.current_time()
    served.stop.set()
    assert await served.wait_ended() - before <= 2


# The life of a lifespan that is as the specification has it


async def test_the_scope_and_the_events():
    seen = []

    async def application(scope, receive, send):
        seen.append(dict(scope))
        seen.append(await receive())
        await send(STARTED)
        seen.append(await receive())
        await send(STOPPED)

    await live(application, lint=True)
    assert seen == [
        {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}},
        STARTUP,
        SHUTDOWN,
    ]


async def test_the_block_is_entered_when_the_startup_is_complete():
    async def application(scope, receive, send):
        await receive()
        await trio.sleep(2)
        await send(STARTED)
        await receive()

    assert await live(application) == 2


async def test_the_shutdown_comes_after_the_block_and_is_waited_for():
    times = []

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        times.append(trio.current_time())
        await trio.sleep(1.5)
        await send(STOPPED)

    await live(application, served=10)
    assert times == [10]
    assert trio.current_time() == 11.5


async def test_what_comes_after_the_last_word_is_waited_for_too():
    """A middleware cleans up when the application inside it has said that it has."""
    done = []

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        await send(STOPPED)
        await trio.sleep(3)
        done.append(trio.current_time())

    await live(application)
    assert done == [3]


async def test_it_is_called_once(serving):
    calls = []

    async def lifespan(scope, receive, send):
        calls.append(trio.lowlevel.current_trio_token())
        await receive()
        await send(STARTED)
        await receive()
        await send(STOPPED)

    async with serving(served_by(lifespan)) as served:
        await fetch_and_stop(served)
    assert calls == [trio.lowlevel.current_trio_token()]


async def test_connections_wait_for_the_startup(autojump_clock):
    """A client that connects before it is complete is served after it."""
    log = []

    async def application(scope, receive, send):
        log.append((scope["type"], trio.current_time()))
        if scope["type"] == "lifespan":
            await receive()
            await trio.sleep(2)
            await send(STARTED)
            await receive()
            return
        await respond(send)

    listener = MemoryListener()
    client = HTTPClient(listener.connect())
    await client.request()
    with trio.move_on_after(5):
        await serve(application, listeners=[listener])
    assert log == [("lifespan", 0), ("http", 2)]


async def test_off_means_that_it_is_not_called(serving):
    async def lifespan(scope, receive, send):
        raise AssertionError("called")

    async with serving(served_by(lifespan), lifespan="off") as served:
        await fetch_and_stop(served)


async def test_receive_and_send_are_coroutine_functions():
    async def application(scope, receive, send):
        first = receive()
        assert hasattr(first, "cr_code")
        assert await first == STARTUP
        second = send(STARTED)
        assert hasattr(second, "cr_code")
        await second
        await receive()

    await live(application)


async def test_a_cancelled_receive_loses_nothing():
    seen = []

    async def application(scope, receive, send):
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            seen.append(await receive())
        await send(STARTED)
        with trio.move_on_after(5):
            await receive()
        seen.append(await receive())
        await send(STOPPED)

    await live(application, served=10)
    assert seen == [STARTUP, SHUTDOWN]


# Applications without a lifespan, or with half of one


async def raises_at_once(scope, receive, send):
    raise NotImplementedError(scope["type"])


async def raises_on_startup(scope, receive, send):
    await receive()
    raise RuntimeError("unknown event")


async def returns_at_once(scope, receive, send):
    pass


async def returns_on_startup(scope, receive, send):
    await receive()


async def exits(scope, receive, send):
    raise SystemExit(1)


async def raises_in_a_nursery(scope, receive, send):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise RuntimeError("in a group")


WITHOUT = [raises_at_once, raises_on_startup, returns_at_once, returns_on_startup, exits, raises_in_a_nursery]


@pytest.mark.parametrize("lifespan", WITHOUT)
async def test_auto_serves_applications_without_a_lifespan(serving, log, lifespan):
    """And sends them no event again. That one raised is said in one line, and is no error."""
    async with serving(served_by(lifespan)) as served:
        await fetch_and_stop(served)
    raised = [line for line in log.lines if "the application has no lifespan: it raised" in line]
    assert len(raised) == (0 if lifespan.__name__.startswith("returns") else 1)
    assert "ERROR" not in "".join(log.lines)


@pytest.mark.parametrize("application", WITHOUT)
async def test_on_wants_a_lifespan(application, observer):
    with pytest.raises(LifespanFailed) as caught:
        await live(application, observer, lifespan="on")
    error = caught.value
    assert error.stage == "startup"
    assert str(error).startswith("lifespan startup failed: ")
    assert str(error).endswith(" before startup was complete")
    if application.__name__.startswith("returns"):
        assert "the application returned" in str(error)
        assert observer.failures == []
    else:
        assert observer.failures == [("starting", error.__cause__)]
        assert repr(error.__cause__) in str(error)


async def returns_after_startup(scope, receive, send):
    await receive()
    await send(STARTED)


async def test_an_application_that_returns_after_startup_is_served(serving, log):
    async with serving(served_by(returns_after_startup), lifespan="on") as served:
        await fetch_and_stop(served)
    assert log.troubles == []


@pytest.mark.parametrize("seconds", [0, 5])
async def test_an_application_that_raises_while_serving_is_served_on(serving, log, seconds):
    async def lifespan(scope, receive, send):
        await receive()
        await send(STARTED)
        await trio.sleep(seconds)
        raise RuntimeError("background task died")

    async with serving(served_by(lifespan)) as served:
        await trio.sleep(10)
        await fetch_and_stop(served)
    assert log.troubles == ["ERROR application failed in its lifespan, serving"]
    (record,) = (record for record in log.records if record.levelname == "ERROR")
    assert str(record.exc_info[1]) == "background task died"


# A startup that fails


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"message": "no database"}, "lifespan startup failed: no database"),
        ({"message": ""}, "lifespan startup failed"),
        ({}, "lifespan startup failed"),
        ({"message": None}, "lifespan startup failed"),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_startup_failed(mode, message, text, observer):
    """Nothing is served, and no shutdown is sent."""
    seen = []

    async def application(scope, receive, send):
        seen.append(await receive())
        await send({"type": "lifespan.startup.failed", **message})
        seen.append("not raised")
        seen.append(await receive())

    with pytest.raises(LifespanFailed) as caught:
        async with open_lifespan(application, Config(lifespan=mode), observer):
            raise AssertionError("not reached")
    assert str(caught.value) == text
    assert caught.value.stage == "startup"
    assert caught.value.__cause__ is None
    assert seen == [STARTUP, "not raised"]
    assert trio.current_time() == 0
    assert observer.failures == []


@pytest.mark.parametrize(
    ("message", "text"), [("no database", "no database"), ("", "it raised RuntimeError('refused')")]
)
@pytest.mark.parametrize("seconds", [0, 3])
async def test_startup_failed_and_then_raised(message, text, seconds, observer):
    """As Starlette does. What it raises is the cause, also when it cleans up before, and is not logged as well."""
    error = RuntimeError("refused")

    async def application(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": message})
        await trio.sleep(seconds)
        raise error

    with pytest.raises(LifespanFailed) as caught:
        await live(application, observer)
    assert str(caught.value) == f"lifespan startup failed: {text}"
    assert caught.value.__cause__ is error
    assert observer.failures == []


async def test_startup_failed_by_an_application_that_swallows_what_send_raises(observer):
    async def application(scope, receive, send):
        await receive()
        try:
            await send({"type": "lifespan.startup.failed", "message": "no"})
        except BaseException as error:
            raise AssertionError("it is a valid event") from error

    with pytest.raises(LifespanFailed, match=r"^lifespan startup failed: no$"):
        await live(application, observer)


async def test_clean_up_after_startup_failed_is_awaited():
    cleaned = []

    async def application(scope, receive, send):
        await receive()
        await trio.sleep(1)
        try:
            await send({"type": "lifespan.startup.failed", "message": "no"})
        finally:
            await trio.sleep(3)
            cleaned.append(trio.current_time())

    with pytest.raises(LifespanFailed, match=r"failed: no$"):
        await live(application)
    assert cleaned == [4]


async def test_clean_up_after_startup_failed_has_what_is_left_of_startup_timeout():
    async def application(scope, receive, send):
        await receive()
        await trio.sleep(1)
        await send({"type": "lifespan.startup.failed", "message": "no"})
        await trio.sleep_forever()

    with pytest.raises(LifespanFailed, match=r"failed: no$"):
        await live(application, startup_timeout=10)
    assert trio.current_time() == 10


async def test_a_startup_that_takes_too_long(observer):
    ended = []

    async def application(scope, receive, send):
        try:
            await receive()
            await receive()
        finally:
            ended.append(trio.current_time())

    with pytest.raises(
        LifespanFailed, match=r"^lifespan startup failed: took longer than startup_timeout \(10 s\)$"
    ):
        await live(application, observer, startup_timeout=10)
    assert ended == [10]
    assert observer.failures == []


async def test_a_startup_may_take_as_long_as_it_likes():
    async def application(scope, receive, send):
        await receive()
        await trio.sleep(50_000)
        await send(STARTED)
        await receive()

    assert await live(application, startup_timeout=inf) == 50_000


async def test_clean_up_of_a_startup_that_took_too_long_is_awaited_and_its_failure_told(observer):
    error = RuntimeError("in the clean-up")

    async def application(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            raise error

    with pytest.raises(LifespanFailed, match="took longer"):
        await live(application, observer, startup_timeout=10)
    assert trio.current_time() == 12
    assert observer.failures == [("stopping", error)]  # and not: it is served without lifespan


async def test_a_failed_startup_leaves_no_listener_open(autojump_clock):
    async def application(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    listeners = [MemoryListener(), MemoryListener()]
    with pytest.raises(LifespanFailed) as caught:
        await serve(application, listeners=listeners)
    assert type(caught.value) is LifespanFailed
    assert all(listener.closed for listener in listeners)


async def test_a_failed_startup_comes_bare_out_of_nursery_start(autojump_clock):
    async def application(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    async with trio.open_nursery() as nursery:
        with pytest.raises(LifespanFailed):
            await nursery.start(partial(serve, application, listeners=[MemoryListener()]))


# Messages that are not allowed

INVALID = [
    ({"type": "lifespan.nonsense"}, UnexpectedMessage),
    ({"type": "http.response.start", "status": 200}, UnexpectedMessage),
    ({"type": "lifespan.startup"}, UnexpectedMessage),
    ({"type": "lifespan.shutdown.complete"}, UnexpectedMessage),
    ({"type": "lifespan.shutdown.failed"}, UnexpectedMessage),
    ({"type": "lifespan.startup.failed", "message": b"bytes"}, InvalidMessage),
    ({"type": 7}, InvalidMessage),
    ({"type": None}, InvalidMessage),
    ({}, InvalidMessage),
    ([], InvalidMessage),
    ("lifespan.startup.complete", InvalidMessage),
    (None, InvalidMessage),
]


@pytest.mark.parametrize(("message", "error"), INVALID)
async def test_invalid_messages_raise_and_change_nothing(message, error):
    async def application(scope, receive, send):
        await receive()
        with pytest.raises(error):
            await send(message)
        await send(STARTED)
        assert await receive() == SHUTDOWN
        await send(STOPPED)
        done.append(True)

    done = []
    await live(application, lifespan="on")
    assert done


@pytest.mark.parametrize(
    "messages",
    [
        [STARTED, STARTED],
        [STARTED, {"type": "lifespan.startup.failed"}],
        [STARTED, STOPPED],
        [{"type": "lifespan.startup.failed"}, STARTED],
        [{"type": "lifespan.startup.failed"}, {"type": "lifespan.startup.failed"}],
    ],
)
async def test_a_second_word_on_the_startup_raises(messages):
    raised = []

    async def application(scope, receive, send):
        await receive()
        await send(messages[0])
        with pytest.raises(UnexpectedMessage):
            await send(messages[1])
        raised.append(True)

    with trio.CancelScope() as scope:
        try:
            await live(application)
        except LifespanFailed:
            assert messages[0] != STARTED
        scope.cancel()
    assert raised


async def test_a_second_word_on_the_shutdown_raises():
    raised = []

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        await send(STOPPED)
        for message in STOPPED, {"type": "lifespan.shutdown.failed"}, STARTED:
            with pytest.raises(UnexpectedMessage) as caught:
                await send(message)
            raised.append(str(caught.value))

    await live(application)
    assert raised[0] == "lifespan.shutdown.complete is not allowed in state STOPPED: expected nothing more"
    assert len(raised) == 3


# A shutdown that fails


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"message": "disk full"}, "lifespan shutdown failed: disk full"),
        ({}, "lifespan shutdown failed"),
    ],
)
async def test_shutdown_failed(message, text, observer):
    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        await send({"type": "lifespan.shutdown.failed", **message})

    with pytest.raises(LifespanFailed) as caught:
        await live(application, observer)
    assert str(caught.value) == text
    assert caught.value.stage == "shutdown"
    assert observer.failures == []


async def test_shutdown_failed_and_then_raised(observer):
    error = OSError("disk full")

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "Traceback …"})
        raise error

    with pytest.raises(LifespanFailed, match=r"Traceback …$") as caught:
        await live(application, observer)
    assert caught.value.__cause__ is error
    assert observer.failures == []


@pytest.mark.parametrize("last_word", [None, STOPPED])
async def test_a_shutdown_that_raises_has_failed(last_word, observer):
    """Whether it said before that it was complete, or not."""
    error = OSError("disk full")

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        if last_word is not None:
            await send(last_word)
        raise error

    with pytest.raises(LifespanFailed) as caught:
        await live(application, observer)
    assert str(caught.value) == "lifespan shutdown failed: it raised OSError('disk full')"
    assert caught.value.__cause__ is error
    assert observer.failures == [("stopping", error)]


async def test_a_shutdown_that_returns_without_a_word_is_complete(observer):
    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()

    await live(application, observer)
    assert observer.failures == []


@pytest.mark.parametrize("last_word", [None, STOPPED])
async def test_a_shutdown_that_takes_too_long(last_word, observer):
    ended = []

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        if last_word is not None:
            await send(last_word)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    with pytest.raises(
        LifespanFailed, match=r"^lifespan shutdown failed: took longer than shutdown_timeout \(10 s\)$"
    ):
        await live(application, observer, served=5, shutdown_timeout=10)
    assert ended == [15]
    assert observer.failures == []


async def test_a_message_counts_more_than_the_time_it_took(observer):
    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "disk full"})
        await trio.sleep_forever()

    with pytest.raises(LifespanFailed, match=r"failed: disk full$"):
        await live(application, observer, shutdown_timeout=10)
    assert trio.current_time() == 10


@pytest.mark.parametrize("last_word", [STOPPED, {"type": "lifespan.shutdown.failed"}])
async def test_an_application_that_asks_for_more_after_its_last_word_is_let_go(last_word, observer):
    ended = []

    async def application(scope, receive, send):
        try:
            while True:
                message = await receive()
                await send(STARTED if message == STARTUP else last_word)
        finally:
            ended.append(trio.current_time())

    try:
        await live(application, observer)
    except LifespanFailed:
        assert last_word != STOPPED
    assert ended == [0]
    assert observer.failures == []


async def test_an_application_with_tasks_of_its_own_is_let_go_quietly(observer):
    """Its nursery makes a group of the cancellations, which is no failure."""

    async def application(scope, receive, send):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            while True:
                message = await receive()
                await send(STARTED if message == STARTUP else STOPPED)

    await live(application, observer)
    assert observer.failures == []


async def test_what_fails_while_it_is_let_go_is_told_without_the_cancellations(observer):
    error = RuntimeError("in the clean-up")

    async def application(scope, receive, send):
        async def task():
            try:
                await trio.sleep_forever()
            finally:
                raise error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            nursery.start_soon(trio.sleep_forever)
            while True:
                message = await receive()
                await send(STARTED if message == STARTUP else STOPPED)

    await live(application, observer)
    ((stage, failure),) = observer.failures
    assert stage == "stopping"
    assert isinstance(failure, ExceptionGroup)
    assert failure.exceptions == (error,)


async def test_the_shutdown_is_sent_once(observer):
    """A second receive() waits: there is no third event, and the same one over and over would keep a loop busy."""
    seen = []

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        while True:
            seen.append(await receive())

    with pytest.raises(LifespanFailed, match="took longer than shutdown_timeout"):
        await live(application, observer, shutdown_timeout=10)
    assert seen == [SHUTDOWN]
    assert trio.current_time() == 10


async def test_what_the_block_raises_counts_more_than_a_failed_shutdown_which_is_logged(observer):
    error = ValueError("in the block")

    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "disk full"})

    with pytest.raises(ValueError) as caught:
        async with open_lifespan(application, Config(), observer):
            raise error
    assert caught.value is error
    ((stage, failure),) = observer.failures
    assert stage == "stopping"
    assert str(failure) == "lifespan shutdown failed: disk full"


async def test_a_server_whose_shutdown_fails_ends_and_raises_it_bare(serving, log):
    async def lifespan(scope, receive, send):
        await receive()
        await send(STARTED)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "disk full"})

    async with serving(served_by(lifespan)) as served:
        served.stop.set()
        await served.wait_ended()
        error = served.raised()
    assert type(error) is LifespanFailed
    assert str(error) == "lifespan shutdown failed: disk full"
    assert log.troubles == []  # whoever catches it will say so


# A call that does not end though it is cancelled


@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_a_call_that_ignores_its_end_is_reported(when):
    reports = []

    async def application(scope, receive, send):
        await receive()
        if when == "shutdown":
            await send(STARTED)
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    def report(failure):
        reports.append((str(failure), trio.current_time()))

    with pytest.raises(LifespanFailed, match=f"{when} failed: took longer"):
        await live(
            application, report_stuck=report, startup_timeout=10, shutdown_timeout=10, cleanup_timeout=5
        )
    assert reports == [(f"lifespan {when} failed: took longer than {when}_timeout (10 s)", 15)]
    assert trio.current_time() == 100


async def test_a_call_that_ends_in_time_is_not_reported():
    async def application(scope, receive, send):
        await receive()
        await send(STARTED)
        with trio.CancelScope(shield=True):
            await trio.sleep(14.9)

    def report(failure):
        raise AssertionError(failure)

    with pytest.raises(LifespanFailed):
        await live(application, report_stuck=report, shutdown_timeout=10, cleanup_timeout=5)
    assert trio.current_time() == 14.9


async def test_a_stuck_lifespan_is_logged_and_a_program_of_its_own_may_give_up(serving, log):
    gave_up = []

    async def lifespan(scope, receive, send):
        await receive()
        await send(STARTED)
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    give_up = lambda: gave_up.append(trio.current_time())
    settings = {"shutdown_timeout": 10, "cleanup_timeout": 5}
    async with serving(served_by(lifespan), give_up=give_up, **settings) as served:
        served.stop.set()
        await served.wait_ended()
        assert type(served.raised()) is LifespanFailed
    assert gave_up == [15]
    (warning,) = log.troubles
    assert warning == (
        "WARNING application still running 5.0 s after it was cancelled, in its lifespan: "
        "lifespan shutdown failed: took longer than shutdown_timeout (10 s)"
    )


async def test_a_cancelled_startup_that_does_not_end_is_reported():
    reports = []

    async def application(scope, receive, send):
        await receive()
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    with trio.move_on_after(3):
        await live(application, report_stuck=reports.append, cleanup_timeout=5)
    assert reports == [None]
    assert trio.current_time() == 100


# Ctrl-C


def test_control_c_during_a_blocking_startup_is_the_programs():
    """It neither ends the application's startup, nor is it lost there as an error of the application's."""
    seen = []

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            signal.raise_signal(signal.SIGINT)
            seen.append("startup goes on")
            await send(STARTED)
            seen.append(await receive())
            await send(STOPPED)

    with pytest.raises(BaseException) as caught:
        trio.run(lambda: serve(application, listeners=[MemoryListener()]))
    assert type(caught.value) is KeyboardInterrupt
    assert seen == ["startup goes on", SHUTDOWN]


# State


@asynccontextmanager
async def stateful(serving, http, **state):
    """A server whose lifespan has put things into its state; gives that state too."""
    kept = {}

    async def application(scope, receive, send):
        if scope["type"] != "lifespan":
            await http(scope, receive, send)
            return
        await receive()
        assert scope["state"] == {}
        scope["state"].update(state)
        kept["state"] = scope["state"]
        await send(STARTED)
        await receive()
        await send(STOPPED)

    async with serving(application) as served:
        yield served, kept["state"]


async def test_state_is_the_same_objects_in_a_dict_of_each_requests_own(serving):
    scopes = []

    async def http(scope, receive, send):
        scopes.append(scope)
        assert "mark" not in scope["state"]
        scope["state"]["mark"] = len(scopes)
        await respond(send)

    pool = object()
    async with stateful(serving, http, pool=pool) as (served, state):
        kept = served.connect()
        for client in kept, kept, served.connect():
            assert (await client.fetch()).status == 200
        assert state == {"pool": pool}
    assert all(scope["state"]["pool"] is pool for scope in scopes)
    assert [scope["state"]["mark"] for scope in scopes] == [1, 2, 3]
    assert state == {"pool": pool}


async def test_requests_at_once_do_not_see_each_others_state(serving):
    async def http(scope, receive, send):
        scope["state"][scope["path"]] = True
        await trio.sleep(1)
        await respond(send, repr(sorted(scope["state"])).encode())

    async with stateful(serving, http) as (served, state):
        clients = {path: served.connect() for path in ("/a", "/b")}
        for path, client in clients.items():
            await client.request(target=path)
        for path, client in clients.items():
            assert (await client.response()).body == repr([path]).encode()
        assert state == {}


async def test_state_in_websockets(serving):
    async def websocket(scope, receive, send):
        await receive()
        assert scope["state"] == {"pool": pool}
        assert scope["state"]["pool"] is pool
        scope["state"]["mark"] = True
        await send({"type": "websocket.accept"})

    pool = object()
    async with stateful(serving, websocket, pool=pool) as (served, state):
        for _ in range(2):
            client = await served.connect_websocket()
            assert (await client.wait_closed()).code == 1000
        assert state == {"pool": pool}


async def test_state_is_there_without_a_lifespan(serving):
    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            raise NotImplementedError
        assert scope["state"] == {}
        scope["state"]["mark"] = True
        await respond(send)

    for mode in "auto", "off":
        async with serving(application, lifespan=mode) as served:
            client = served.connect()
            assert [(await client.fetch()).status for _ in range(2)] == [200, 200]


async def test_the_shutdown_finds_the_state_as_it_was_left(serving):
    found = []

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["pool"] = []
            await send(STARTED)
            await receive()
            found.append(scope["state"])
            await send(STOPPED)
        else:
            scope["state"]["pool"].append(1)
            scope["state"]["more"] = 1
            await respond(send)

    async with serving(application) as served:
        await served.connect().fetch()
    assert found == [{"pool": [1]}]


# Context variables

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")


@asynccontextmanager
async def sets_the_variable(value):
    """What an application's own context manager does on its way in."""
    token = VARIABLE.set(value)
    try:
        yield
    finally:
        VARIABLE.reset(token)


async def answer_with_variable(scope, receive, send):
    before = VARIABLE.get("unset")
    VARIABLE.set("leaked")
    await respond(send, before.encode())


def in_context_manager():
    async def application(scope, receive, send):
        if scope["type"] != "lifespan":
            await answer_with_variable(scope, receive, send)
            return
        await receive()
        async with sets_the_variable("startup"):
            await send(STARTED)
            VARIABLE.set("after startup")
            await receive()
            VARIABLE.set("startup")
        await send(STOPPED)

    return application


async def test_context_variables_of_the_startup_reach_requests_and_stay_in_theirs(serving):
    VARIABLE.set("outside")
    async with serving(in_context_manager()) as served:
        kept = served.connect()
        for client in kept, kept, served.connect():
            assert (await client.fetch()).body == b"startup"
    assert VARIABLE.get() == "outside"


async def test_context_variables_reach_websockets(serving):
    seen = []

    async def application(scope, receive, send):
        if scope["type"] == "websocket":
            seen.append(VARIABLE.get())
            await receive()
            await send({"type": "websocket.accept"})
            return
        await in_context_manager()(scope, receive, send)

    async with serving(application) as served:
        client = await served.connect_websocket()
        await client.wait_closed()
    assert seen == ["startup"]


@pytest.mark.parametrize("mode", ["auto", "off"])
async def test_without_a_lifespan_requests_have_the_context_of_serve(autojump_clock, mode):
    VARIABLE.set("outside")

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            VARIABLE.set("not complete")
            raise NotImplementedError
        await answer_with_variable(scope, receive, send)

    listener = MemoryListener()
    client = HTTPClient(listener.connect())

    async def trigger():
        assert (await client.fetch()).body == b"outside"

    await serve(application, Config(lifespan=mode), listeners=[listener], shutdown_trigger=trigger)


async def test_the_trigger_does_not_see_the_startups_context(autojump_clock):
    """It belongs to the caller."""
    VARIABLE.set("outside")
    seen = []

    async def trigger():
        seen.append(VARIABLE.get())

    await serve(in_context_manager(), listeners=[MemoryListener()], shutdown_trigger=trigger)
    assert seen == ["outside"]
