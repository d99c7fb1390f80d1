"""HTTP/2: one exchange is disturbed at every step, and the others on its connection stay whole.

As in `test_cancellation`, a scenario is run again and again, and in the n-th run disturbed at the n-th step that any of
its tasks takes. On two streams of one connection the same is done; the disturbance is for one of them.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import count

import pytest
import trio
import trio.testing

from tests.connection.conftest import LONG, read_body, respond, send_body, socket_like_pair, start
from tests.connection.test_cancellation import Disturbance
from tests.connection.test_http2 import Witness
from trigi._connection.context import ServerContext
from trigi._connection.serve import serve_stream
from trigi.config import Config
from trigi.exceptions import ApplicationError, ClientDisconnected
from trigi.testing.http2 import (
    ConnectionClosed,
    ErrorCode,
    FrameType,
    HTTP2Client,
    HTTP2Response,
    SettingCode,
    StreamReset,
    encode_frame,
)

DISCONNECT = {"type": "http.disconnect"}
LETTERS = bytes(range(100))
OTHER, DISTURBED = 1, 3


# Applications, and the bodies that their responses have


async def uploads(scope, receive, send):
    body = await read_body(receive)
    if body is not None:
        await respond(send, b"%d" % len(body))


async def downloads(scope, receive, send):
    await respond(send, LETTERS)


async def streams(scope, receive, send):
    """Takes pieces, answers each, and ends with trailers."""
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


async def works_on(scope, receive, send):
    """Waits for the disconnect in one task, sends in another, and goes on after its response."""

    async def wait():
        while await receive() != DISCONNECT:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await start(send)
        await send_body(send, LETTERS, more=True)
        await trio.sleep(1)
        await send_body(send, b"end")
    await trio.sleep(3)


async def answers_early(scope, receive, send):
    await respond(send, b"early")


async def sends_from_two_tasks(scope, receive, send):
    await start(send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(send_body, send, b"x" * 50, more=True))
        nursery.start_soon(partial(send_body, send, b"x" * 50, more=True))
    await send_body(send)


SCENARIOS = {
    # application, size of the upload, body of the response
    "upload": (uploads, 80, b"80"),
    "download": (downloads, 0, LETTERS),
    "both": (streams, 80, b"u" * 80),
    "background work": (works_on, 0, LETTERS + b"end"),
    "early answer": (answers_early, 80, b"early"),
    "two tasks": (sends_from_two_tasks, 0, b"x" * 100),
}

LOST = (StreamReset, ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)


class Client(HTTP2Client):
    """Sends nothing on a stream that it has reset."""

    async def send_data(self, stream_id, *data, **more):
        if self._streams[stream_id].left:
            raise StreamReset(stream_id, ErrorCode.CANCEL)
        await super().send_data(stream_id, *data, **more)


class Run:
    """One run of a scenario, and what must hold of it."""

    def __init__(self, scenario, pair, disturbance, **settings):
        self.application, self.upload, self.body = scenario
        self.make_pair = pair
        self.disturbance = disturbance
        self.calls = 0
        self.responses = {}
        self.observer = Witness()
        settings = {"h2_stream_window": 50, "disconnect_grace": 1} | settings
        self.context = ServerContext(self.call, Config(**settings), observer=self.observer)
        self.scope = trio.CancelScope()

    async def call(self, scope, receive, send):
        self.calls += 1
        if scope["path"] == f"/{DISTURBED}":
            await self.call_disturbed(scope, receive, send)
        else:
            await self.application(scope, receive, send)

    async def call_disturbed(self, scope, receive, send):
        await self.application(scope, receive, send)

    def arm(self):
        """When the requests have been sent: what is to be done, and to what."""

    async def serve(self):
        with self.scope:
            await serve_stream(self.server, self.context)

    async def fetch(self, stream_id):
        client = self.http
        method = "POST" if self.upload else "GET"
        with suppress(*LOST):
            await client.request(method, f"/{stream_id}", [(b"te", b"trailers")], end_stream=not self.upload)
            if stream_id == DISTURBED:
                self.arm()
            async with trio.open_nursery() as nursery:
                if self.upload:
                    nursery.start_soon(self.send_body, stream_id)
                try:
                    self.responses[stream_id] = await client.response(stream_id)
                except LOST as error:
                    self.responses[stream_id] = error

    async def send_body(self, stream_id):
        with suppress(*LOST):
            await self.http.send_body(stream_id, b"u" * 40, end_stream=False)
            await trio.sleep(1)
            await self.http.send_body(stream_id, b"u" * 40)

    async def main(self):
        self.client, self.server = self.make_pair()
        self.http = Client(self.client)
        with trio.fail_after(LONG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.serve)
                with suppress(*LOST):
                    await self.http.connect({SettingCode.INITIAL_WINDOW_SIZE: 60})
                    async with trio.open_nursery() as requests:
                        for stream_id in (OTHER, DISTURBED):
                            requests.start_soon(self.fetch, stream_id)
                            await trio.testing.wait_all_tasks_blocked()
                    await self.http.ping()
                await trio.aclose_forcefully(self.client)
        with pytest.raises(trio.ClosedResourceError):
            await self.server.receive_some(1)

    def check(self):
        observer = self.observer
        assert observer.bugs == []
        assert self.context.running == set()
        assert self.context.connections == set()
        assert len(observer.ended) == self.calls
        assert len(set(map(id, observer.exchanges))) == len(observer.exchanges)
        self.check_other()
        disturbed = self.responses.get(DISTURBED)
        if isinstance(disturbed, HTTP2Response) and disturbed.status == 200:
            assert disturbed.body in (self.body, b"sorry")

    def check_other(self):
        response = self.responses[OTHER]
        assert not isinstance(response, BaseException), response
        assert (response.status, response.body) == (200, self.body)
        if self.application is streams:
            assert response.trailers == [(b"x-sum", b"1")]


class CancelExchange(Run):
    """The scope around the application's call, as `request_timeout` and `disconnect_grace` do it."""

    async def call_disturbed(self, scope, receive, send):
        self.disturbance.act = scope["extensions"]["trigi"]["cancel_scope"].cancel
        await self.application(scope, receive, send)


class CancelApplication(Run):
    """A scope of the application's own, after which it just returns."""

    async def call_disturbed(self, scope, receive, send):
        with trio.CancelScope() as own:
            self.disturbance.act = own.cancel
            await self.application(scope, receive, send)


class CancelApplicationThatAnswers(Run):
    """A scope of the application's own, after which it tries to answer all the same."""

    async def call_disturbed(self, scope, receive, send):
        with trio.CancelScope() as own:
            self.disturbance.act = own.cancel
            await self.application(scope, receive, send)
        if own.cancelled_caught:
            with suppress(ApplicationError, ClientDisconnected):
                await respond(send, b"sorry")


class ResetStream(Run):
    """The client resets the stream, in the midst of whatever it does."""

    def arm(self):
        self.disturbance.act = self.reset

    def reset(self):
        stream = self.http._streams[DISTURBED]
        stream.left = True
        stream.reset = ErrorCode.CANCEL  # so that nobody waits for it
        self.http._read_one.unpark_all()
        trio.lowlevel.spawn_system_task(self.send_reset)

    async def send_reset(self):
        payload = ErrorCode.CANCEL.to_bytes(4)
        with suppress(*LOST):
            await self.http.send(encode_frame(FrameType.RST_STREAM, 0, DISTURBED, payload))


class CancelConnection(Run):
    """From outside, as the server's end does it."""

    def arm(self):
        self.disturbance.act = self.scope.cancel

    def check_other(self):
        response = self.responses.get(OTHER)
        assert response is None or isinstance(response, BaseException) or response.body == self.body


class LoseClient(CancelConnection):
    """The client goes away, without reading what is on its way."""

    def arm(self):
        self.disturbance.act = self.leave

    def leave(self):
        if isinstance(self.client, trio.StapledStream):
            self.client.send_stream.close()
            self.client.receive_stream.close()
        else:
            self.client.reset()


def run_at_every_step(kind, *scenario, **settings):
    for turn in count(1):
        disturbance = Disturbance(turn)
        run = kind(*scenario, disturbance, **settings)
        trio._core._run._r.seed(turn)  # the order of tasks, which trio leaves to chance
        try:
            trio.run(run.main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[disturbance])
            run.check()
        except BaseException as error:
            error.add_note(f"disturbed at step {turn}")
            raise
        if not disturbance.acted:
            break
        assert turn < 1500
    assert turn > 3
    assert all(not isinstance(each, BaseException) for each in run.responses.values())


KINDS = [
    CancelExchange,
    CancelApplication,
    CancelApplicationThatAnswers,
    ResetStream,
    CancelConnection,
    LoseClient,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS, ids=lambda name: name.replace(" ", "-"))
def test_at_every_step(kind, name):
    run_at_every_step(kind, SCENARIOS[name], trio.testing.memory_stream_pair)


@pytest.mark.parametrize("kind", [CancelExchange, ResetStream, CancelConnection])
@pytest.mark.parametrize("grace", [0, 1])
def test_at_every_step_on_a_narrow_stream(kind, grace):
    run_at_every_step(kind, SCENARIOS["both"], partial(socket_like_pair, 100), disconnect_grace=grace)
