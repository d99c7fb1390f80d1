"""Shutting down: what happens when, how long it takes at most, and that the lifespan's shutdown is always last.

Time is virtual, so that the seconds are exact: `ended_at` is when the last of them had passed.
"""

from __future__ import annotations

import random
import signal
from math import inf

import pytest
import trio
import trio.testing

from tests.server.conftest import App, MemoryListener, hello, respond
from trigi import Config, serve
from trigi.testing import HTTPClient, IncompleteResponse

UPLOAD = [(b"content-length", b"100000")]


def working(app: App, seconds: float, *, cleanup: float = 0):
    """Notes its beginning, its end, and its clean-up when it is cancelled."""

    async def http(scope, receive, send):
        path = scope["path"]
        app.note(f"{path} began")
        try:
            await trio.sleep(seconds)
            await respond(send, b"done")
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            app.note(f"{path} cancelled")
            raise
        app.note(f"{path} finished")

    return http


async def request(served, target: str = "/", **more) -> HTTPClient:
    """A client whose request has reached the application."""
    client = served.connect()
    await client.request(target=target, **more)
    await trio.testing.wait_all_tasks_blocked()
    return client


async def wait_closed(stream: trio.abc.Stream) -> float:
    """Wait until the server has closed the connection, without a further byte; when it did."""
    assert await stream.receive_some(1) == b""
    return trio.current_time()


# What ends when


async def test_nothing_is_left_to_wait_for(serving):
    app = App()
    async with serving(app) as served:
        await trio.sleep(100)
        served.stop.set()
        assert await served.wait_ended() == 100
    assert app.events == ["startup", "shutdown"]


async def test_idle_connections_are_closed_at_once(serving):
    async with serving(hello, keep_alive_timeout=inf) as served:
        clients = [served.connect() for _ in range(3)]
        for client in clients:
            assert (await client.fetch()).body == b"hello"
        await trio.sleep(100)
        served.stop.set()
        for client in clients:
            assert await wait_closed(client.stream) == 100
            await client.aclose()
        assert await served.wait_ended() == 100


async def test_idle_connections_are_closed_though_their_clients_do_not_notice(serving):
    """As those of a pool, which looks at a connection when it needs one."""
    async with serving(hello, keep_alive_timeout=inf) as served:
        client = served.connect()
        assert (await client.fetch()).body == b"hello"
        await trio.sleep(100)
        served.stop.set()
        assert await served.wait_ended() == 100


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
@pytest.mark.parametrize("closes", [True, False])
async def test_connections_without_a_request_are_told_at_once_and_closed_within_two_seconds(
    serving, sent, closes
):
    """Bytes may be on their way that nobody will read, so closing before the client does might reset it."""
    async with serving(hello, header_timeout=inf) as served:
        client = served.connect()
        await client.send(sent)
        await trio.sleep(100)
        served.stop.set()
        assert await wait_closed(client.stream) == 100
        if closes:
            await client.aclose()
            assert await served.wait_ended() == 100
        else:
            assert await served.wait_ended() <= 102


async def test_a_request_in_flight_is_completed_and_its_connection_closed(serving):
    app = App()
    app._http = working(app, 3)
    async with serving(app) as served:
        client = await request(served)
        served.stop.set()
        response = await client.response()
        assert response.body == b"done"
        assert response.header(b"connection") == b"close"
        assert await wait_closed(client.stream) == 3
        assert await served.wait_ended() == 3
    assert app.events == ["startup", "/ began", "/ finished", "shutdown"]


async def test_what_does_not_end_is_cancelled_and_its_clean_up_awaited(serving):
    app = App()
    app._http = working(app, inf, cleanup=2)
    async with serving(app, graceful_timeout=10) as served:
        client = await request(served)
        served.stop.set()
        with pytest.raises(IncompleteResponse):
            await client.response()
        assert await served.wait_ended() == 12
    assert app.events == ["startup", "/ began", "/ cancelled", "shutdown"]
    assert app.times["/ cancelled"] == app.times["shutdown"] == 12


@pytest.mark.parametrize(("timeout", "ended"), [(0, 0), (10, 10), (inf, 50)])
async def test_graceful_timeout(serving, timeout, ended):
    app = App()
    app._http = working(app, 50)
    async with serving(app, graceful_timeout=timeout) as served:
        await request(served)
        served.stop.set()
        assert await served.wait_ended() == ended


async def test_everything_at_once(serving, log):
    """Idle, short and endless: each in its own time, and the lifespan's shutdown strictly last."""
    app = App()

    async def http(scope, receive, send):
        seconds = {"/quick": 0, "/short": 3, "/endless": inf}
        await working(app, seconds[scope["path"]])(scope, receive, send)

    app._http = http
    async with serving(app, graceful_timeout=10) as served:
        idle = await request(served, "/quick")
        assert (await idle.response()).header(b"connection") is None
        short = await request(served, "/short")
        endless = await request(served, "/endless")
        served.stop.set()
        assert await wait_closed(idle.stream) == 0
        assert (await short.response()).body == b"done"
        assert await wait_closed(short.stream) == 3
        with pytest.raises(IncompleteResponse):
            await endless.response()
        await served.wait_ended()
    assert app.events[-3:] == ["/short finished", "/endless cancelled", "shutdown"]
    assert [app.times[event] for event in app.events[-3:]] == [3, 10, 10]
    assert log.lines[-1] == "INFO stopped: waited 10.0 s for 2 application calls, of which 1 were cancelled"
    assert log.troubles == []


@pytest.mark.parametrize("seed", range(8))
async def test_the_report_counts_what_was_cancelled(serving, log, seed, monkeypatch):
    """Whatever order trio runs the tasks in that wake at the same time."""
    monkeypatch.setattr("trio._core._run._r", random.Random(seed))

    async def http(scope, receive, send):
        await trio.sleep_forever()

    async with serving(App(http), graceful_timeout=10) as served:
        await request(served, "/a")
        await request(served, "/b")
        served.stop.set()
    assert log.lines[-1] == "INFO stopped: waited 10.0 s for 2 application calls, of which 2 were cancelled"


async def test_background_work_is_awaited_though_the_connection_is_closed_at_once(serving):
    app = App()

    async def http(scope, receive, send):
        await respond(send, b"done")
        await trio.sleep(4)
        app.note("worked")

    app._http = http
    async with serving(app, keep_alive_timeout=inf) as served:
        client = await request(served)
        assert (await client.response()).body == b"done"
        served.stop.set()
        assert await wait_closed(client.stream) == 0
        assert await served.wait_ended() == 4
    assert app.events == ["startup", "worked", "shutdown"]


async def test_background_work_that_does_not_end_is_cancelled(serving):
    app = App()

    async def http(scope, receive, send):
        await respond(send, b"done")
        try:
            await trio.sleep_forever()
        finally:
            app.note("cancelled")

    app._http = http
    async with serving(app, graceful_timeout=10) as served:
        client = await request(served)
        await client.aclose()
        served.stop.set()
        assert await served.wait_ended() == 10
    assert app.events == ["startup", "cancelled", "shutdown"]


async def test_a_response_that_has_begun_is_the_connections_last(serving):
    """It could not say `Connection: close` any more; the close itself has to."""

    async def http(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await trio.sleep(3)
        await send({"type": "http.response.body", "body": b"2"})

    async with serving(App(http), keep_alive_timeout=inf) as served:
        client = await request(served)
        assert (await client.head()).header(b"connection") is None
        served.stop.set()
        assert (await client.response()).body == b"12"
        assert await wait_closed(client.stream) == 3


async def test_a_pipelined_request_is_not_begun(serving):
    app = App()
    app._http = working(app, 3)
    async with serving(app) as served:
        client = await request(served, "/first")
        await client.request(target="/second")
        await trio.testing.wait_all_tasks_blocked()
        served.stop.set()
        assert (await client.response()).body == b"done"
        assert await client.rest() == b""
    assert app.events == ["startup", "/first began", "/first finished", "shutdown"]


async def test_no_connection_is_accepted_any_more(serving):
    app = App()
    app._http = working(app, 3)
    async with serving(app) as served:
        await request(served)
        served.stop.set()
        await trio.testing.wait_all_tasks_blocked()
        assert served.listener.closed
        late = served.listener
        with pytest.raises(trio.ClosedResourceError):
            late.connect()
        assert await served.wait_ended() == 3


async def test_applications_are_told_by_the_extension(serving):
    app = App()

    async def http(scope, receive, send):
        stopping = scope["extensions"]["trigi"]["shutting_down"]
        assert not stopping.is_set()
        await stopping.wait()
        app.note("told")
        await respond(send)

    app._http = http
    async with serving(app) as served:
        client = await request(served)
        await trio.sleep(100)
        served.stop.set()
        assert (await client.response()).status == 200
        assert await served.wait_ended() == 100
    assert app.events == ["startup", "told", "shutdown"]


async def test_a_long_poll_that_waits_in_receive_is_let_go(serving):
    app = App()

    async def http(scope, receive, send):
        await receive()
        try:
            app.note((await receive())["type"])
        finally:
            app.note("let go")

    app._http = http
    async with serving(app, graceful_timeout=10) as served:
        client = await request(served)
        served.stop.set()
        assert await served.wait_ended() == 10
        assert await client.rest() == b""
    assert app.events == ["startup", "let go", "shutdown"]


# WebSockets


async def test_websockets_are_closed_with_1012_and_their_applications_told(serving):
    app = App()

    async def websocket(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        app.note(f"{message['type']} {message['code']}")
        await trio.sleep(1)
        app.note("ended")

    app._websocket = websocket
    async with serving(app, websocket_ping_interval=inf) as served:
        client = await served.connect_websocket()
        await trio.sleep(100)
        served.stop.set()
        assert (await client.wait_closed()).code == 1012
        await client.wait_end()
        assert await served.wait_ended() == 101
    assert app.events == ["startup", "websocket.disconnect 1012", "ended", "shutdown"]
    assert app.times["websocket.disconnect 1012"] == 100


async def test_a_websocket_that_is_accepted_while_draining_is_closed_at_once(serving):
    async def websocket(scope, receive, send):
        await receive()
        await trio.sleep(3)
        await send({"type": "websocket.accept"})
        assert (await receive())["code"] == 1012

    async with serving(App(websocket=websocket)) as served, trio.open_nursery() as nursery:

        async def connect():
            client = await served.connect_websocket()
            assert (await client.wait_closed()).code == 1012
            assert trio.current_time() == 3

        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        served.stop.set()
        assert await served.wait_ended() == 3


async def test_a_websocket_client_that_does_not_answer_the_close(serving):
    async def websocket(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"

    async with serving(App(websocket=websocket), websocket_close_timeout=7) as served:
        client = await served.connect_websocket(answers=False)
        served.stop.set()
        assert (await client.wait_closed()).code == 1012
        assert await served.wait_ended() == 7


async def test_a_websocket_application_that_does_not_heed_the_disconnect(serving):
    app = App()

    async def websocket(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await trio.sleep_forever()
        finally:
            app.note("cancelled")

    app._websocket = websocket
    async with serving(app, disconnect_grace=5) as served:
        client = await served.connect_websocket()
        served.stop.set()
        assert (await client.wait_closed()).code == 1012
        assert await served.wait_ended() == 5
    assert app.events == ["startup", "cancelled", "shutdown"]


# Clients that hold on


PATIENT = {
    "header_timeout": inf,
    "body_timeout": inf,
    "write_timeout": inf,
    "keep_alive_timeout": inf,
    "websocket_ping_interval": inf,
    "websocket_close_timeout": inf,
    "disconnect_grace": inf,
    "tls_handshake_timeout": inf,
    "graceful_timeout": 10,
}
"""No other limit helps."""


async def test_a_client_that_reads_nothing(serving):
    """Its connection takes nothing that it does not read at that moment."""

    async def http(scope, receive, send):
        await respond(send, b"x" * 1_000_000)

    app = App(http)
    async with serving(app, pair=trio.testing.lockstep_stream_pair, **PATIENT) as served:
        await request(served)
        served.stop.set()
        assert await served.wait_ended() == 10
    assert app.events == ["startup", "shutdown"]


async def test_a_websocket_client_that_reads_nothing(serving):
    async def websocket(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "x" * 1_000_000})

    app = App(websocket=websocket)
    async with serving(app, pair=trio.testing.lockstep_stream_pair, **PATIENT) as served:
        await served.connect_websocket()
        served.stop.set()
        assert await served.wait_ended() == 10
    assert app.events == ["startup", "shutdown"]


async def test_a_client_that_sends_nothing_of_the_body_it_promised(serving):
    async def http(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        raise AssertionError("the body is never complete")

    app = App(http)
    async with serving(app, **PATIENT) as served:
        await request(served, method="POST", headers=UPLOAD)
        served.stop.set()
        assert await served.wait_ended() == 10
    assert app.events == ["startup", "shutdown"]


@pytest.mark.parametrize(
    "begin", [b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n"]
)
async def test_a_client_that_drips(serving, begin):
    """A byte a second: of a head it is cut off two seconds later, of a body when the rest is cancelled."""

    async def http(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async with serving(App(http), **PATIENT) as served, trio.open_nursery() as nursery:
        client = served.connect()

        async def drip():
            await client.send(begin)
            while True:
                await client.send(b"x")
                await trio.sleep(1)

        async def drip_until_closed():
            with pytest.raises(trio.BrokenResourceError):
                await drip()

        nursery.start_soon(drip_until_closed)
        await trio.sleep(4.5)
        served.stop.set()
        assert await served.wait_ended() == (14.5 if begin.startswith(b"POST") else 6.5)


async def test_a_tls_client_that_reads_nothing_more(serving, tls):
    """It would not even take the alert that says good-bye."""
    pair = trio.testing.lockstep_stream_pair
    async with serving(hello, pair=pair, ssl_context=tls.server, **PATIENT) as served:
        transport = served.listener.connect()
        stream = trio.SSLStream(transport, tls.client, server_hostname=tls.host, https_compatible=True)
        assert (await HTTPClient(stream).fetch()).body == b"hello"
        await trio.sleep(100)
        served.stop.set()
        assert await served.wait_ended() <= 102


async def test_a_client_that_never_begins_its_tls_handshake(serving, tls):
    """Its connection is as idle as any."""
    app = App()
    async with serving(app, ssl_context=tls.server, **PATIENT) as served:
        served.connect()
        await trio.testing.wait_all_tasks_blocked()
        served.stop.set()
        assert await served.wait_ended() == 0
    assert app.events == ["startup", "shutdown"]


# Applications that hold on


async def test_clean_up_that_takes_too_long_is_reported(serving, log):
    app = App()
    app._http = working(app, inf, cleanup=7)
    async with serving(app, graceful_timeout=10, cleanup_timeout=5) as served:
        await request(served, "/slow?a=b")
        served.stop.set()
        await trio.sleep(14.9)
        assert log.troubles == []
        await trio.sleep(0.2)
        assert log.troubles == [
            'WARNING application still running 5.0 s after it was cancelled, on "GET /slow?a=b HTTP/1.1" from -'
        ]
        assert await served.wait_ended() == 17
    assert len(log.troubles) == 1
    assert app.events[-2:] == ["/slow cancelled", "shutdown"]


async def test_clean_up_that_is_quick_enough_is_not_reported(serving, log):
    app = App()
    app._http = working(app, inf, cleanup=4.9)
    async with serving(app, graceful_timeout=10, cleanup_timeout=5) as served:
        await request(served)
        served.stop.set()
        assert await served.wait_ended() == 14.9
    assert log.troubles == []


async def test_clean_up_that_takes_too_long_after_serve_was_cancelled(serving, log):
    app = App()
    app._http = working(app, inf, cleanup=7)
    async with serving(app, graceful_timeout=10, cleanup_timeout=5) as served:
        await request(served)
        await trio.sleep(100)
        served.scope.cancel()
        assert await served.wait_ended() == 107
    assert [line.split(",")[0] for line in log.troubles] == [
        "WARNING application still running 5.0 s after it was cancelled"
    ]
    assert app.events[-2:] == ["/ cancelled", "shutdown"]


async def test_a_program_of_its_own_may_give_up(serving, log):
    """What `run` does: after the report, for nothing else would end the calls."""
    app = App()
    app._http = working(app, inf, cleanup=1000)
    gave_up = []

    def give_up():
        gave_up.append(trio.current_time())
        assert len(log.troubles) == 1

    async with serving(app, give_up=give_up, graceful_timeout=10, cleanup_timeout=5) as served:
        await request(served)
        served.stop.set()
        await served.wait_ended()
    assert gave_up == [15]


@pytest.mark.parametrize("what", ["listener", "trigger"])
async def test_clean_up_that_takes_too_long_after_something_broke(serving, log, what):
    """What broke is raised when the clean-up is over; a program of its own does not wait for that."""
    app = App()
    app._http = working(app, inf, cleanup=7)
    gave_up, error = [], ValueError("broken")

    def give_up():
        gave_up.append(trio.current_time())

    async with serving(app, give_up=give_up, cleanup_timeout=5) as served:
        await request(served)
        if what == "listener":
            served.listener.fail(error)
        else:
            served.stop.fail(error)
        assert await served.wait_ended() == 7
        assert served.raised() is error
    assert gave_up == [5]
    assert len(log.troubles) == 1
    assert app.events[-2:] == ["/ cancelled", "shutdown"]


async def test_what_is_left_when_the_report_comes_is_named(serving, log):
    """Two are cancelled, one of them does not end."""
    app = App()

    async def http(scope, receive, send):
        await working(app, inf, cleanup=7 if scope["path"] == "/stuck" else 1)(scope, receive, send)

    app._http = http
    async with serving(app, graceful_timeout=10, cleanup_timeout=5) as served:
        await request(served, "/quick")
        await request(served, "/stuck")
        served.stop.set()
        assert await served.wait_ended() == 17
    (warning,) = log.troubles
    assert "/stuck" in warning
    assert "2 application calls, of which 2 were cancelled" in log.lines[-1]


# The trigger


async def serve_in_memory(app, listener, trigger, **settings):
    await serve(app, Config(**settings), listeners=[listener], shutdown_trigger=trigger)


async def test_a_trigger_that_returns_at_once(autojump_clock):
    app, listener = App(), MemoryListener()
    await serve_in_memory(app, listener, trio.lowlevel.checkpoint)
    assert app.events == ["startup", "shutdown"]
    assert listener.closed


async def test_what_a_trigger_returns_does_not_matter(autojump_clock):
    async def trigger():
        return "stopped"

    app = App()
    assert await serve_in_memory(app, MemoryListener(), trigger) is None


async def test_a_trigger_is_not_called_before_the_startup_is_complete(autojump_clock):
    called = []

    async def application(scope, receive, send):
        await receive()
        await trio.sleep(5)
        await send({"type": "lifespan.startup.complete"})
        await receive()

    async def trigger():
        called.append(trio.current_time())

    await serve_in_memory(application, MemoryListener(), trigger)
    assert called == [5]


async def test_what_a_trigger_raises_comes_out_as_it_is(autojump_clock, log):
    """Nothing is waited for: what it means is not known, least of all that the server may take its time."""
    app, listener, error = App(), MemoryListener(), ValueError("pulled too hard")
    app._http = working(app, inf, cleanup=2)
    client = HTTPClient(listener.connect())
    await client.request()

    async def trigger():
        await trio.sleep(1)
        raise error

    with pytest.raises(ValueError) as caught:
        await serve_in_memory(app, listener, trigger)
    assert caught.value is error
    assert app.events == ["startup", "/ began", "/ cancelled", "shutdown"]
    assert app.times["shutdown"] == 3
    assert listener.closed
    assert log.troubles == []


async def test_a_trigger_that_was_cancelled_by_its_own_scope(autojump_clock):
    """It returns, as any other."""

    async def trigger():
        with trio.move_on_after(3):
            await trio.sleep_forever()

    app = App()
    await serve_in_memory(app, MemoryListener(), trigger)
    assert app.times == {"startup": 0, "shutdown": 3}


# Cancelling serve()


@pytest.mark.parametrize("stop_first", [False, True])
async def test_cancelling_cancels_the_application_calls_and_runs_the_shutdown(serving, log, stop_first):
    app = App()
    app._http = working(app, inf, cleanup=2)
    async with serving(app) as served:
        idle = served.connect()
        busy = await request(served)
        await trio.sleep(5)
        if stop_first:
            served.stop.set()
            await trio.sleep(5)
        served.scope.cancel()
        assert await served.wait_ended() == trio.current_time() == (12 if stop_first else 7)
        for client in idle, busy:
            assert await client.rest() == b""
    assert app.events == ["startup", "/ began", "/ cancelled", "shutdown"]
    assert log.troubles == []


async def test_a_deadline_of_the_caller_that_passes_while_draining(serving):
    app = App()
    app._http = working(app, inf)
    async with serving(app, graceful_timeout=1000) as served:
        await request(served)
        served.stop.set()
        served.scope.deadline = 20
        assert await served.wait_ended() == 20
    assert app.events == ["startup", "/ began", "/ cancelled", "shutdown"]


async def test_cancelling_while_a_websocket_is_open(serving):
    app = App()

    async def websocket(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await receive()
        finally:
            app.note("cancelled")

    app._websocket = websocket
    async with serving(app) as served:
        client = await served.connect_websocket()
        served.scope.cancel()
        assert await served.wait_ended() == 0
        assert (await client.wait_closed()).code == 1006
    assert app.events == ["startup", "cancelled", "shutdown"]


def slow_lifespan(app: App, *, startup: float = 0, shutdown: float = 0):
    async def application(scope, receive, send):
        if scope["type"] != "lifespan":
            await hello(scope, receive, send)
            return
        try:
            await receive()
            await trio.sleep(startup)
            app.note("started")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            app.note("stopping")
            await trio.sleep(shutdown)
            app.note("stopped")
            await send({"type": "lifespan.shutdown.complete"})
        except trio.Cancelled:
            app.note("cancelled")
            raise

    return application


async def test_cancelling_during_the_startup(autojump_clock, log):
    """There is nothing to shut down: the call is cancelled, and nobody is told of a shutdown."""
    app, listener = App(), MemoryListener()
    with trio.move_on_after(3) as scope:
        await serve(slow_lifespan(app, startup=10), listeners=[listener])
    assert scope.cancelled_caught
    assert app.times == {"cancelled": 3}
    assert listener.closed
    assert log.lines == []


async def test_cancelling_during_the_lifespans_shutdown(serving, log):
    app = App()
    async with serving(slow_lifespan(app, shutdown=10)) as served:
        served.stop.set()
        await trio.sleep(5)
        served.scope.cancel()
        assert await served.wait_ended() == 10
    assert app.events == ["started", "stopping", "stopped"]
    assert log.troubles == []


async def test_a_cancelled_server_waits_for_the_lifespans_shutdown_no_longer_than_it_may(serving, log):
    app = App()
    async with serving(slow_lifespan(app, shutdown=inf), shutdown_timeout=10) as served:
        await trio.sleep(5)
        served.scope.cancel()
        assert await served.wait_ended() == 15
    assert app.events == ["started", "stopping", "cancelled"]
    assert log.troubles == ["ERROR application failed in its lifespan, stopping"]
    error = log.records[-1].exc_info[1]
    assert str(error) == "lifespan shutdown failed: took longer than shutdown_timeout (10 s)"


async def test_cancelling_before_anything(autojump_clock, log):
    app, listeners = App(), [MemoryListener(), MemoryListener()]
    with trio.CancelScope() as scope:
        scope.cancel()
        await serve(app, listeners=listeners)
    assert scope.cancelled_caught
    assert all(listener.closed for listener in listeners)
    assert log.lines == []


async def test_cancelling_comes_out_as_one_cancelled(autojump_clock):
    """A caller who wants to look at it need not take groups apart."""

    async def call():
        with pytest.raises(trio.Cancelled):
            await serve(hello, listeners=[MemoryListener(), MemoryListener()])
        raised.append(True)

    raised = []
    with trio.move_on_after(1):
        await call()
    assert raised


def test_control_c():
    """It reaches whoever serves, bare and in order, not the application that happens to run at the moment."""
    app, listener = App(), MemoryListener()

    async def http(scope, receive, send):
        signal.raise_signal(signal.SIGINT)
        app.note("goes on")
        try:
            await trio.sleep_forever()
        finally:
            app.note("cancelled")

    async def main():
        await HTTPClient(listener.connect()).request()
        await serve(app, listeners=[listener])

    app._http = http
    with pytest.raises(BaseException) as caught:
        trio.run(main)
    assert type(caught.value) is KeyboardInterrupt
    assert app.events == ["startup", "goes on", "cancelled", "shutdown"]
    assert listener.closed


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any task, counted from when it is armed."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.scope: trio.CancelScope | None = None

    def before_task_step(self, task):
        if self.scope is not None:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


def run_and_cancel_at(step: int) -> tuple[bool, list[str]]:
    """A whole life of a server, cancelled at a step: whether it came to that, and what the application saw."""
    app, listener = App(), MemoryListener()
    canceller = CancelAtStep(step)

    async def application(scope, receive, send):
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        async with trio.open_nursery() as nursery:
            await receive()
            await trio.sleep(1)
            await send({"type": "lifespan.startup.complete"})
            app.note("started")
            nursery.start_soon(trio.sleep_forever)
            await receive()
            app.note("stopping")
            await trio.sleep(1)
            app.note("stopped")
            await send({"type": "lifespan.shutdown.complete"})
            nursery.cancel_scope.cancel()

    async def http(scope, receive, send):
        app.note("began")
        try:
            async with trio.open_nursery() as nursery:  # whose groups must not get out
                nursery.start_soon(trio.sleep, 1)
                await respond(send, b"done")
                await trio.sleep(1)
        finally:
            app.note("ended")

    async def websocket(scope, receive, send):
        app.note("began")
        try:
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
        finally:
            app.note("ended")

    app._http, app._websocket = http, websocket

    async def talk(request_head):
        """A client that does not close, so that only the server can have ended the connection."""
        stream = listener.connect()
        await stream.send_all(request_head)
        while await stream.receive_some():
            pass

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            nursery.start_soon(talk, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
            nursery.start_soon(talk, WEBSOCKET_REQUEST)
            nursery.start_soon(talk, b"")

            async def trigger():
                await trio.sleep(0.5)

            with trio.CancelScope() as canceller.scope:
                try:
                    await serve_in_memory(application, listener, trigger, websocket_close_timeout=3)
                except BaseException as error:
                    assert type(error) is trio.Cancelled  # noqa: PT017
                    raise
            canceller.scope = None
            for stream in listener.accepted:
                with pytest.raises(trio.ClosedResourceError):
                    await stream.receive_some(1)
            # Connections that nobody has accepted are the kernel's to close, and here the test's.
            nursery.cancel_scope.deadline = trio.current_time() + 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[canceller])
    assert listener.closed
    return canceller.left <= 0, app.events


WEBSOCKET_REQUEST = (
    b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def test_cancelling_at_every_step(log):
    """Before the start, in the startup, while serving, while draining, in the lifespan's shutdown, at the very end."""
    step, reached, lives = 0, True, set()
    while reached:
        step += 1
        reached, events = run_and_cancel_at(step)
        assert events.count("began") == events.count("ended")
        if "started" in events:
            assert events[0] == "started"
            assert events[-2:] == ["stopping", "stopped"]
        else:
            assert events == []
        lives.add(tuple(events))
    assert step > 100
    assert lives >= {(), ("started", "stopping", "stopped")}
    assert max(map(len, lives)) == 3 + 4 * 2
    assert log.troubles == []


# Background tasks


def background(app: App, seconds: float, *, cleanup: float = 0, answers: bool = True):
    """Starts a background task that takes so long; notes what becomes of it."""

    async def work():
        try:
            await trio.sleep(seconds)
            app.note("done")
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            app.note("cancelled")
            raise

    async def http(scope, receive, send):
        scope["extensions"]["trigi"]["nursery"].start_soon(work)
        await respond(send)

    return http


async def test_background_tasks_end_before_the_lifespan(serving):
    app = App()
    app._http = background(app, 10)
    async with serving(app) as served:
        assert (await served.connect().fetch()).status == 200
        await trio.sleep(3)
        served.stop.set()
        assert await served.wait_ended() == 10
    assert app.events == ["startup", "done", "shutdown"]


async def test_background_tasks_are_cancelled_after_the_graceful_timeout(serving, log):
    """Their clean-up is waited for, before the lifespan's shutdown."""
    app = App()
    app._http = background(app, inf, cleanup=2)
    async with serving(app, graceful_timeout=30) as served:
        client = served.connect()
        assert (await client.fetch()).status == 200
        await client.aclose()
        await trio.sleep(100)
        served.stop.set()
        assert await served.wait_ended() == 132
    assert app.events == ["startup", "cancelled", "shutdown"]
    assert log.troubles == []


async def test_a_request_and_a_background_task_share_the_graceful_timeout(serving):
    """What a request starts while the server shuts down is no exception."""
    app = App()
    start_background = background(app, inf)

    async def http(scope, receive, send):
        await trio.sleep(20)
        await start_background(scope, receive, send)

    app._http = http
    async with serving(app, graceful_timeout=30) as served:
        client = await request(served)
        served.stop.set()
        assert (await client.response()).status == 200
        assert await served.wait_ended() == 30
    assert app.events == ["startup", "cancelled", "shutdown"]


async def test_cancelling_the_server_cancels_background_tasks(serving):
    app = App()
    app._http = background(app, inf, cleanup=2)
    async with serving(app) as served:
        assert (await served.connect().fetch()).status == 200
        await trio.sleep(100)
        served.scope.cancel()
        assert await served.wait_ended() == 102
    assert app.events == ["startup", "cancelled", "shutdown"]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_no_background_task_is_started_once_they_are_being_cancelled(serving, cancelled):
    app = App()

    async def http(scope, receive, send):
        nursery = scope["extensions"]["trigi"]["nursery"]
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            with pytest.raises(RuntimeError, match="no more can be started"):
                nursery.start_soon(trio.sleep, 1)
            app.note("refused")

    app._http = http
    async with serving(app, graceful_timeout=5) as served:
        await request(served)
        (served.scope.cancel if cancelled else served.stop.set)()
        await served.wait_ended()
    assert app.events == ["startup", "refused", "shutdown"]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_background_task_starts_no_other_while_it_is_cancelled(serving, cancelled):
    """Though no request is left, and nobody else waits for it."""
    app = App()

    async def work(nursery):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            with pytest.raises(RuntimeError, match="no more can be started"):
                nursery.start_soon(work, nursery)
            app.note("refused")

    async def http(scope, receive, send):
        nursery = scope["extensions"]["trigi"]["nursery"]
        nursery.start_soon(work, nursery)
        await respond(send)

    app._http = http
    async with serving(app, graceful_timeout=5) as served:
        client = served.connect()
        assert (await client.fetch()).status == 200
        await client.aclose()
        await trio.sleep(1)
        served.stop.set()
        await trio.sleep(2)
        if cancelled:
            served.scope.cancel()
        assert await served.wait_ended() == (4 if cancelled else 7)
    assert app.events == ["startup", "refused", "shutdown"]


async def test_a_background_task_that_does_not_end_is_named(serving, log):
    app = App()
    app._http = background(app, inf, cleanup=20)
    gave_up = []
    async with serving(
        app, graceful_timeout=5, cleanup_timeout=5, give_up=lambda: gave_up.append(True)
    ) as served:
        assert (await served.connect().fetch()).status == 200
        served.stop.set()
        assert await served.wait_ended() == 25
    (line,) = log.troubles
    assert line.startswith(
        "WARNING application still running 5.0 s after it was cancelled, in its background task "
    )
    assert line.endswith("background.<locals>.work")
    assert gave_up == [True]
    assert app.events == ["startup", "cancelled", "shutdown"]


async def test_a_background_task_that_fails_ends_nothing(serving, log):
    app = App()

    async def fail():
        raise SystemExit("no")

    async def http(scope, receive, send):
        scope["extensions"]["trigi"]["nursery"].start_soon(fail, name="fail")
        await respond(send)

    app._http = http
    async with serving(app) as served:
        client = served.connect()
        for _ in range(2):
            assert (await client.fetch()).status == 200
        assert log.troubles == ["ERROR application failed in its background task fail"] * 2
    assert app.events == ["startup", "shutdown"]
