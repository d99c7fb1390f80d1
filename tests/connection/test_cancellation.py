"""Cancellation and loss at every moment: nothing hangs, nothing escapes, everything is reported once and closed.

A scenario is run again and again. In the n-th run it is disturbed at the n-th step that any of its tasks takes, for
n = 1, 2, 3, … until a run ends before its turn. A step ends where a task waits, so every checkpoint is met, in the
server's tasks as in the application's and the client's.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import count

import pytest
import trio
import trio.testing

from tests.connection.conftest import (
    LONG,
    Recorder,
    echo,
    hello,
    read_body,
    respond,
    send_body,
    socket_like_pair,
    start,
)
from trigi._connection.context import ServerContext
from trigi._connection.serve import serve_stream
from trigi.config import Config
from trigi.exceptions import ApplicationError, ClientDisconnected
from trigi.testing import HTTPClient, IncompleteResponse

DISCONNECT = {"type": "http.disconnect"}


class Disturbance(trio.abc.Instrument):
    """Does something at the end of the n-th step."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.steps = 0
        self.act = None
        self.acted = False

    def after_task_step(self, task):
        if self.act is not None:
            self.steps += 1
            if self.steps >= self.turn and not self.acted:
                self.acted = True
                self.act()


# Scenarios: an application, what its client does, and how they are connected


async def two_requests(client):
    yield await client.fetch("/1")
    yield await client.fetch("/2")


async def streams(scope, receive, send):
    """Takes pieces, and answers each."""
    await send({"type": "http.response.early_hint", "links": [b"</a>"]})
    await start(send, trailers=True)
    more = True
    while more:
        message = await receive()
        if message == DISCONNECT:
            return
        more = message["more_body"]
        await send_body(send, message["body"], more=more)
    await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})


async def a_streamed_upload(client):
    await client.request("POST", headers=[(b"content-length", b"9"), (b"te", b"trailers")])
    for _ in range(3):
        await client.send(b"one")
        await trio.sleep(1)
    yield await client.response()
    await client.request("POST", headers=[(b"transfer-encoding", b"chunked")])
    for _ in range(3):
        await client.send(b"3\r\none\r\n")
        await trio.sleep(1)
    await client.send(b"0\r\n\r\n")
    yield await client.response()


async def an_expectation(client):
    await client.request("POST", headers=[(b"expect", b"100-continue"), (b"content-length", b"4")])
    await client.informational()
    await client.send(b"body")
    yield await client.response()
    yield await client.fetch()


async def slow_first(scope, receive, send):
    await trio.sleep(1 if scope["path"] == "/1" else 0)
    await respond(send, scope["raw_path"])


async def pipelined(client):
    await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in (1, 2, 3)))
    for _ in range(3):
        yield await client.response()


async def works_on(scope, receive, send):
    """Waits for the disconnect in one task, sends in another, and goes on after its response."""

    async def wait():
        while await receive() != DISCONNECT:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await start(send)
        await send_body(send, b"one", more=True)
        await trio.sleep(1)
        await send_body(send, b"two")
    await trio.sleep(3)


async def a_large_response(scope, receive, send):
    await respond(send, b"x" * 600)


async def slow_reader(client):
    await client.request()
    await trio.sleep(1)
    yield await client.response()
    yield await client.fetch()


async def unread_uploads(client):
    yield await client.fetch("/1", method="POST", body=b"x" * 1000)
    await client.request("POST", "/2", headers=[(b"content-length", b"1000000")])
    with suppress(trio.BrokenResourceError):
        await client.send(b"x" * 1000)
    yield await client.response()
    await client.rest()


async def a_stalled_upload(client):
    await client.request("POST", headers=[(b"content-length", b"10")])
    await client.send(b"half")
    yield await client.response()
    await client.rest()


async def nonsense(client):
    yield await client.fetch()
    await client.send(b"nonsense\r\n\r\n")
    yield await client.response()
    await client.rest()


async def a_bad_chunk(client):
    await client.request("POST", headers=[(b"transfer-encoding", b"chunked")])
    await client.send(b"4\r\nsome\r\n")
    await trio.sleep(1)
    await client.send(b"no\r\n")
    yield await client.response()
    await client.rest()


async def http_1_0(client):
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    yield await client.response()
    await client.rest()


async def too_slow(scope, receive, send):
    try:
        await trio.sleep(100)
    finally:
        with trio.move_on_after(1, shield=True):
            await trio.sleep(0.5)


async def fails(scope, receive, send):
    await read_body(receive)
    raise ValueError


async def fails_late(scope, receive, send):
    await start(send)
    await send_body(send, b"half", more=True)
    await trio.sleep(1)
    raise ValueError


async def leaves(client):
    await client.request("POST", headers=[(b"content-length", b"10")])
    await client.send(b"half")
    await trio.sleep(1)
    await trio.aclose_forcefully(client.stream)
    return
    yield


async def half_closes(client):
    await client.request("POST", body=b"body")
    await client.stream.send_eof()
    yield await client.response()
    await client.rest()


memory = trio.testing.memory_stream_pair
narrow = partial(socket_like_pair, 100)

SCENARIOS = {
    # name: application, client, streams, settings
    "hello": (hello, two_requests, memory, {}),
    "streaming": (streams, a_streamed_upload, memory, {}),
    "streaming in lockstep": (streams, a_streamed_upload, trio.testing.lockstep_stream_pair, {}),
    "streaming on a narrow stream": (streams, a_streamed_upload, narrow, {}),
    "100 continue": (echo, an_expectation, memory, {}),
    "100 continue on a narrow stream": (echo, an_expectation, partial(socket_like_pair, 10), {}),
    "pipelined": (slow_first, pipelined, memory, {}),
    "pipelined beyond the limit": (slow_first, pipelined, narrow, {"pipelined_size_limit": 10}),
    "background work": (works_on, two_requests, memory, {}),
    "large response": (a_large_response, slow_reader, narrow, {}),
    "unread uploads": (hello, unread_uploads, narrow, {}),
    "stalled upload": (echo, a_stalled_upload, memory, {"body_timeout": 3}),
    "stalled upload without grace": (
        echo,
        a_stalled_upload,
        memory,
        {"body_timeout": 3, "disconnect_grace": 0},
    ),
    "nonsense": (hello, nonsense, narrow, {}),
    "bad chunk": (echo, a_bad_chunk, memory, {}),
    "bad chunk into a stream": (streams, a_bad_chunk, narrow, {}),
    "HTTP/1.0": (works_on, http_1_0, memory, {}),
    "too slow": (too_slow, two_requests, memory, {"request_timeout": 3}),
    "failing": (fails, two_requests, memory, {}),
    "failing late": (fails_late, two_requests, narrow, {}),
    "leaving": (streams, leaves, memory, {}),
    "leaving without grace": (too_slow, leaves, memory, {"disconnect_grace": 0}),
    "half-closing": (slow_first, half_closes, narrow, {"half_close": True}),
    "too many": (works_on, two_requests, memory, {"concurrency_limit": 1}),
}

RIGHT = {
    b"hello",
    b"oneoneone",
    b"body",
    b"",
    b"/1",
    b"/2",
    b"/3",
    b"/",
    b"onetwo",
    b"x" * 600,
    b"sorry",
}


class Run:
    """One run of a scenario, and what must hold of it."""

    def __init__(self, scenario, disturbance):
        self.application, self.script, self.make_pair, settings = scenario
        self.disturbance = disturbance
        self.calls = 0
        self.responses = []
        self.observer = Recorder()
        self.context = ServerContext(self.call, Config(**settings), observer=self.observer)
        self.scope = trio.CancelScope()

    async def call(self, scope, receive, send):
        self.calls += 1
        await self.application(scope, receive, send)

    def arm(self):
        """When the server begins: what is to be done, and to what."""

    async def serve(self):
        with self.scope:
            await serve_stream(self.server, self.context)

    async def use(self):
        try:
            async for response in self.script(HTTPClient(self.client)):
                self.responses.append(response)
        except (IncompleteResponse, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the server was disturbed, or we were

    async def main(self):
        self.client, self.server = self.make_pair()
        with trio.fail_after(LONG):
            async with trio.open_nursery() as nursery:
                self.arm()
                nursery.start_soon(self.serve)
                await self.use()
                await trio.aclose_forcefully(self.client)
        with pytest.raises(trio.ClosedResourceError):
            await self.server.receive_some(1)

    def check(self):
        observer = self.observer
        assert observer.bugs == []
        assert self.context.running == set()
        assert self.context.connections == set()
        refused_before_the_call = [each for each in observer.ended if each.status == 503]
        assert len(observer.ended) == self.calls + len(refused_before_the_call)
        assert len(set(map(id, observer.exchanges))) == len(observer.exchanges)
        for response in self.responses:
            if response.header(b"content-length") is response.header(b"transfer-encoding") is None:
                continue  # its end is that of the connection: only a reset could tell, which these streams don't have
            if response.status == 200:
                assert response.body in RIGHT
            else:
                assert response.body == b"%d %b\n" % (response.status, response.reason)


class CancelConnection(Run):
    """From outside, as the server's end does it."""

    def arm(self):
        self.disturbance.act = self.scope.cancel


class LoseClient(Run):
    """The client goes away, without reading what is on its way."""

    def arm(self):
        self.disturbance.act = self.leave

    def leave(self):
        if isinstance(self.client, trio.StapledStream):
            self.client.send_stream.close()
            self.client.receive_stream.close()
        else:
            self.client.reset()


class CancelExchange(Run):
    """The scope around the application's call, as `request_timeout` and `disconnect_grace` do it."""

    async def call(self, scope, receive, send):
        self.disturbance.act = scope["extensions"]["trigi"]["cancel_scope"].cancel
        await super().call(scope, receive, send)


class CancelApplication(Run):
    """A scope of the application's own, after which it just returns."""

    async def call(self, scope, receive, send):
        with trio.CancelScope() as own:
            self.disturbance.act = own.cancel
            await super().call(scope, receive, send)


class CancelApplicationThatAnswers(Run):
    """A scope of the application's own, after which it tries to answer all the same."""

    async def call(self, scope, receive, send):
        with trio.CancelScope() as own:
            self.disturbance.act = own.cancel
            await super().call(scope, receive, send)
        if own.cancelled_caught:
            with suppress(ApplicationError, ClientDisconnected):
                await respond(send, b"sorry")


def run_at_every_step(kind, scenario):
    for turn in count(1):
        disturbance = Disturbance(turn)
        run = kind(scenario, disturbance)
        trio._core._run._r.seed(turn)  # the order of tasks, which trio leaves to chance
        try:
            trio.run(run.main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[disturbance])
            run.check()
        except BaseException as error:
            error.add_note(f"disturbed at step {turn}")
            raise
        if not disturbance.acted:
            break
        assert turn < 1000
    assert turn > 3


KINDS = [CancelConnection, LoseClient, CancelExchange, CancelApplication, CancelApplicationThatAnswers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS, ids=lambda name: name.replace(" ", "-"))
def test_at_every_step(kind, name):
    run_at_every_step(kind, SCENARIOS[name])


@pytest.mark.parametrize("kind", [CancelConnection, LoseClient])
def test_at_every_step_of_tls(kind, tls_pair):
    """From the handshake to the good-bye."""

    class OverTLS(kind):
        def leave(self):
            self.client = self.client.transport_stream
            super().leave()

    run_at_every_step(OverTLS, (hello, two_requests, tls_pair, {}))


# The connection as a whole


async def test_the_clean_up_of_an_application_is_waited_for(serve):
    """As long as it takes: who cancels decides how long that may be."""
    cleaned_up = []

    async def app(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
            cleaned_up.append(trio.current_time())

    client = serve(app)
    await client.request()
    await client.settle()
    began = trio.current_time()
    client.scope.cancel()
    await client.done.wait()
    assert cleaned_up == [began + 60]
    assert client.observer.failures == []
    assert [(each.status, each.complete) for each in client.observer.ended] == [(None, False)]


async def test_background_work_is_cancelled_with_the_connection(serve):
    ended = []

    async def app(scope, receive, send):
        await respond(send)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(scope["path"])

    client = serve(app)
    await client.fetch("/1")
    await client.fetch("/2")
    client.scope.cancel()
    await client.done.wait()
    assert sorted(ended) == ["/1", "/2"]
    assert all(each.complete for each in client.observer.ended)


async def test_what_else_fails_while_it_is_cancelled_is_reported(serve):
    """Without the `Cancelled` beside it, which is nobody's failure."""

    async def app(scope, receive, send):
        async def fail():
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in the clean-up")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    client = serve(app)
    await client.request()
    await client.settle()
    client.scope.cancel()
    await client.done.wait()
    (failure,) = client.observer.failures
    assert [str(each) for each in failure.exceptions] == ["in the clean-up"]


async def test_a_cancelled_connection_sends_nothing_more(serve):
    """Neither an error nor an end of the response: it is cut off."""

    async def app(scope, receive, send):
        await start(send)
        await send_body(send, b"half", more=True)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), pytest.raises(ClientDisconnected):
                await send_body(send, b"late")

    client = serve(app)
    await client.request()
    await client.settle()
    client.scope.cancel()
    with pytest.raises(IncompleteResponse) as caught:
        await client.response()
    assert caught.value.response.body == b"half"
    assert client.observer.failures == []


async def test_cancelling_during_the_moment_before_the_close(serve):
    """The wait for a client that is still sending is no shield."""
    client = serve(hello, pair=socket_like_pair)
    await client.request("POST", headers=[(b"content-length", b"10000000")])
    assert (await client.response()).status == 200
    await client.settle()
    began = trio.current_time()
    client.scope.cancel()
    await client.done.wait()
    assert trio.current_time() == began


async def test_a_bug_of_trigis_own_is_reported_and_stays_in_its_connection(serve):
    """Here in the stream, which raises what no stream raises."""

    class Odd(trio.abc.Stream):
        def __init__(self, stream):
            self._stream = stream

        async def send_all(self, data):
            await self._stream.send_all(data)

        async def wait_send_all_might_not_block(self):
            await self._stream.wait_send_all_might_not_block()

        async def receive_some(self, max_bytes=None):
            if await self._stream.receive_some(max_bytes) == b"raise":
                raise LookupError("odd")
            return b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

        async def aclose(self):
            await self._stream.aclose()

    def pair():
        client, server = trio.testing.memory_stream_pair()
        return client, Odd(server)

    cancelled = []

    async def app(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(True)

    odd = serve(app, pair=pair)
    other = serve(hello, context=ServerContext(hello, Config(), observer=Recorder()))
    await odd.send(b"GET")
    await odd.settle()
    await odd.send(b"raise")
    await odd.done.wait()
    (bug,) = odd.observer.bugs
    assert bug.split(LookupError)[1] is None
    assert cancelled == [True]
    assert [each.complete for each in odd.observer.ended] == [False]
    assert (await other.fetch()).status == 200
    odd.observer.bugs.clear()
