"""Shutting down: what happens when, how long it takes at most, and that the lifespan's shutdown is always last.

Time is virtual, so that the seconds are exact: `ended_at` is when the last of them had passed.
"""

from __future__ import annotations

import random
from math import inf

import pytest
import trio
import trio.testing

from tests.server.conftest import App, hello, respond
from trigi import Config, serve
from trigi._server.serve import Server
from trigi.exceptions import LifespanFailed
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
    async with serving(hello, keep_alive_timeout=inf, header_timeout=inf) as served:
        silent = served.connect()
        half = served.connect()
        await half.send(b"GET / HT")
        kept = served.connect()
        assert (await kept.fetch()).body == b"hello"
        await trio.sleep(100)
        served.stop.set()
        for client in silent, half, kept:
            assert await wait_closed(client.stream) == 100
        assert await served.wait_ended() == 100


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


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n"])
async def test_a_client_that_drips(serving, begin):
    """A byte a second: of a head it is cut off at once, of a body when the rest is cancelled."""

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
        assert await served.wait_ended() == (14.5 if begin.startswith(b"POST") else 4.5)


async def test_a_client_that_never_begins_its_tls_handshake(serving, tls):
    """It holds no longer than a request may; see the report on what would be better."""
    app = App()
    async with serving(app, ssl_context=tls.server, **PATIENT) as served:
        served.connect()
        await trio.testing.wait_all_tasks_blocked()
        served.stop.set()
        assert await served.wait_ended() == 0
    assert app.events == ["startup", "shutdown"]


# Applications that hold on


@pytest.fixture
def stuck():
    """An application whose requests end when this event says so, cancelled or not."""
    return trio.Event()


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
