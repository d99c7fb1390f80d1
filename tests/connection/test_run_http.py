"""An application's call: its messages are checked, its failures end its own request and nothing else.

The names in brackets are those of the checklist of ASGI's own demands.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from inspect import get_annotations

import pytest
import trio
import trio.testing

from tests.connection.conftest import (
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
from trigi._connection.observer import ExchangeReport, Observer
from trigi._connection.serve import serve_stream
from trigi.config import Config
from trigi.exceptions import ApplicationError, ClientDisconnected, InvalidMessage, UnexpectedMessage
from trigi.testing import HTTPClient, IncompleteResponse

STREAMS = ("memory", "socket")

START = {"type": "http.response.start", "status": 200}
BODY = {"type": "http.response.body", "body": b"x"}
REQUEST = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}


# Messages that are wrong


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (BODY, UnexpectedMessage),  # [HE-01]
        ({**BODY, "more_body": True}, UnexpectedMessage),
        ({"type": "http.response.trailers"}, UnexpectedMessage),
        ({"type": "no.such.message"}, UnexpectedMessage),  # [HE-03]
        ({"status": 200}, InvalidMessage),  # [HE-05]
        ({"type": b"http.response.start", "status": 200}, InvalidMessage),  # [HE-06]
        ({"type": "http.response.start"}, InvalidMessage),  # [HE-07]
        ({**START, "status": "200"}, InvalidMessage),  # [HE-08]
        ({**START, "status": None}, InvalidMessage),  # [HE-09]
        ({**START, "status": True}, InvalidMessage),
        ({**START, "status": 99}, InvalidMessage),
        ({**START, "status": 100}, InvalidMessage),  # interim: the client would wait for another
        ({**START, "status": 1000}, InvalidMessage),
        ({**START, "headers": [("name", b"value")]}, InvalidMessage),  # [HE-10]
        ({**START, "headers": [(b"name", "value")]}, InvalidMessage),  # [HE-11]
        ({**START, "headers": [(b"name", b"value", b"more")]}, InvalidMessage),  # [HE-12]
        ({**START, "headers": 1}, InvalidMessage),  # [HE-13]
        ({**START, "headers": [(b":status", b"200")]}, InvalidMessage),  # [HE-22]
        ({**START, "headers": [(b"", b"value")]}, InvalidMessage),
        ({**START, "headers": [(b"na me", b"value")]}, InvalidMessage),
        ({**START, "headers": [(b"name", b"a\r\nset-cookie: b")]}, InvalidMessage),  # [HT-23]
        ({**START, "headers": [(b"name", b"a\nb")]}, InvalidMessage),
        ({**START, "headers": [(b"name\r\n", b"a")]}, InvalidMessage),
        ({**START, "headers": [(b"name", b"a\0")]}, InvalidMessage),
        ({**START, "headers": [(b"content-length", b"-1")]}, InvalidMessage),
        ({**START, "headers": [(b"content-length", b"1"), (b"Content-Length", b"2")]}, InvalidMessage),
        ({**START, "trailers": 1}, InvalidMessage),
        ([("type", "http.response.start"), ("status", 200)], InvalidMessage),  # [HE-17]
        (None, InvalidMessage),  # [HE-18]
        ({"type": "websocket.send", "text": "x"}, UnexpectedMessage),  # [HE-19]
        ({"type": "lifespan.startup.complete"}, UnexpectedMessage),  # [HE-20]
        (REQUEST, UnexpectedMessage),  # [HE-21]
        ({"type": "http.response.early_hint", "links": ["</a>"]}, InvalidMessage),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:60],
)
async def test_wrong_messages_before_the_start(serve, message, error):
    """They raise, and change nothing: the application may catch that and answer. [HE-23, HE-24]"""

    async def app(scope, receive, send):
        for _ in range(2):
            with pytest.raises(error):
                await send(message)
        await respond(send, b"right")

    client = serve(app)
    response = await client.fetch()
    assert response.status == 200
    assert response.body == b"right"
    assert client.observer.failures == []
    assert (await client.fetch()).body == b"right"


@pytest.mark.parametrize("sent", [b"", b"first "], ids=["head held", "head sent"])
@pytest.mark.parametrize(
    ("message", "error"),
    [
        (START, UnexpectedMessage),  # [HE-02]
        ({"type": "no.such.message"}, UnexpectedMessage),  # [HE-04]
        ({"type": "http.response.trailers"}, UnexpectedMessage),
        ({**BODY, "body": "str"}, InvalidMessage),  # [HE-14]
        ({**BODY, "body": 5}, InvalidMessage),  # [HE-15]
        ({**BODY, "body": None}, InvalidMessage),
        ({**BODY, "more_body": "yes"}, InvalidMessage),  # [HE-16]
        ({**BODY, "more_body": 1}, InvalidMessage),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:60],
)
async def test_wrong_messages_after_the_start(serve, message, error, sent):
    async def app(scope, receive, send):
        await start(send)
        if sent:
            await send_body(send, sent, more=True)
        for _ in range(2):
            with pytest.raises(error):
                await send(message)
        await send_body(send, b"right")

    client = serve(app)
    assert (await client.fetch()).body == sent + b"right"
    assert client.observer.failures == []


async def test_wrong_trailers(serve):
    async def app(scope, receive, send):
        await start(send, trailers=True)
        await send_body(send, b"x")
        for message in (BODY, START):
            with pytest.raises(UnexpectedMessage):
                await send(message)
        with pytest.raises(InvalidMessage):
            await send({"type": "http.response.trailers", "headers": [(b"x", b"a\r\nb: c")]})
        await send({"type": "http.response.trailers", "headers": [(b"x", b"a")]})

    client = serve(app)
    response = await client.fetch(headers=[(b"te", b"trailers")])
    assert response.trailers == [(b"x", b"a")]


async def test_a_wrong_message_that_is_not_caught(serve):
    """Its error names what was allowed, and is logged."""

    async def app(scope, receive, send):
        await send(BODY)

    client = serve(app)
    assert (await client.fetch()).status == 500
    (failure,) = client.observer.failures
    assert (failure.state, failure.event) == ("START", "http.response.body")
    assert "http.response.start" in failure.allowed


@pytest.mark.parametrize("body", [bytearray(b"body"), memoryview(b"body")])
async def test_bodies_that_are_like_bytes(serve, body):
    async def app(scope, receive, send):
        await start(send)
        await send_body(send, body)

    assert (await serve(app).fetch()).body == b"body"


async def test_a_body_that_is_changed_after_it_was_sent(serve):
    """What is sent is what it was then."""

    async def app(scope, receive, send):
        body = bytearray(b"before")
        await start(send)
        await send_body(send, body, more=True)
        body[:] = b"after!"
        await send_body(send)

    assert (await serve(app).fetch()).body == b"before"


# The announced length


@pytest.mark.parametrize("pieces", [[b"12345678"], [b"123", b"45678"], [b"12345", b"6", b""]])
async def test_more_body_than_its_length(serve, pieces):
    """The surplus is not sent, `send` raises, and the connection is closed."""
    raised = []

    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"5")])
        with pytest.raises(InvalidMessage, match="more than"):
            for piece in pieces:
                await send_body(send, piece, more=True)
        raised.append(True)
        with pytest.raises(ClientDisconnected):
            await send_body(send)

    client = serve(app)
    await client.request()
    wire = await client.rest()
    assert raised
    assert b"6" not in wire.rpartition(b"\r\n\r\n")[2]
    (report,) = client.observer.ended
    assert not report.complete


@pytest.mark.parametrize("pieces", [[], [b"123"], [b"1", b"2"]])
async def test_less_body_than_its_length(serve, pieces):
    """The client can tell: the connection is closed before the announced end."""

    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"5")])
        for piece in pieces:
            await send_body(send, piece, more=True)
        await send_body(send)

    client = serve(app)
    with pytest.raises(IncompleteResponse) as caught:
        await client.fetch()
    if pieces:
        assert caught.value.response.body == b"".join(pieces)
    (failure,) = client.observer.failures
    assert isinstance(failure, InvalidMessage)
    assert "less than" in str(failure)


async def test_the_length_is_kept_before_trailers_too(serve):
    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"5")], trailers=True)
        with pytest.raises(InvalidMessage, match="less than"):
            await send_body(send, b"123")

    with pytest.raises(IncompleteResponse):
        await serve(app).fetch()


# Failing applications


class Oddity(BaseException):
    """No `Exception`."""


def failures():
    return [
        ValueError("plain"),
        ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]),
        KeyboardInterrupt(),
        SystemExit(3),
        Oddity(),
        BaseExceptionGroup("worse", [KeyboardInterrupt(), ValueError(1)]),
        BaseExceptionGroup("worst", [SystemExit(), BaseExceptionGroup("inner", [GeneratorExit()])]),
        ClientDisconnected("not of this request"),
        OSError("of the application's own"),
    ]


def leaves(error):
    """The exceptions of a group, and of the groups in it; a group may be another object than it was."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


each_failure = pytest.mark.parametrize("failure", failures(), ids=repr)


async def serves_on(client):
    """The connection is still in use, and so is the server."""
    return (await client.fetch("/hello")).body == b"hello"


@each_failure
async def test_raising_before_the_start(serve, failure):
    """500, and the connection serves on. [HE-25 to 27]"""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            await hello(scope, receive, send)
        else:
            raise failure

    client = serve(app)
    response = await client.fetch()
    assert response.status == 500
    assert response.body == b"500 Internal Server Error\n"
    assert response.header(b"content-type") == b"text/plain; charset=utf-8"
    (logged,) = client.observer.failures
    assert type(logged) is type(failure)
    assert leaves(logged) == leaves(failure)
    assert await serves_on(client)
    assert [(each.status, each.complete) for each in client.observer.ended] == [(500, True), (200, True)]


async def test_raising_after_the_start(serve):
    """Nothing has left yet, so it is as if there had been no start. [HE-28]"""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        await start(send, status=201, headers=[(b"x-secret", b"1"), (b"content-length", b"7")], trailers=True)
        raise ValueError

    client = serve(app)
    response = await client.fetch(headers=[(b"te", b"trailers")])
    assert response.status == 500
    assert response.header(b"x-secret") is None
    assert response.body == b"500 Internal Server Error\n"
    assert len(client.observer.failures) == 1
    assert await serves_on(client)


@pytest.mark.parametrize("length", [True, False])
@each_failure
async def test_raising_in_the_middle_of_the_body(serve, failure, length):
    """The client can tell. [HE-29]"""

    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"9")] if length else [])
        await send_body(send, b"half", more=True)
        raise failure

    client = serve(app)
    with pytest.raises(IncompleteResponse) as caught:
        await client.fetch()
    assert caught.value.response.body == b"half"
    (logged,) = client.observer.failures
    assert type(logged) is type(failure)
    assert leaves(logged) == leaves(failure)
    assert [(each.status, each.complete) for each in client.observer.ended] == [(200, False)]


async def test_raising_between_the_body_and_its_trailers(serve):
    async def app(scope, receive, send):
        await start(send, trailers=True)
        await send_body(send, b"whole")
        raise ValueError

    with pytest.raises(IncompleteResponse):
        await serve(app).fetch(headers=[(b"te", b"trailers")])


@each_failure
async def test_raising_after_a_complete_response(serve, failure):
    """The client has its response. [HE-30]"""

    async def app(scope, receive, send):
        await hello(scope, receive, send)
        await trio.sleep(1)
        if scope["path"] != "/hello":
            raise failure

    client = serve(app)
    assert (await client.fetch()).body == b"hello"
    assert await serves_on(client)
    await trio.sleep(2)
    (logged,) = client.observer.failures
    assert type(logged) is type(failure)
    assert leaves(logged) == leaves(failure)
    assert await serves_on(client)


async def test_returning_without_a_response(serve):
    """[HE-31]"""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            await hello(scope, receive, send)

    client = serve(app)
    assert (await client.fetch()).status == 500
    (failure,) = client.observer.failures
    assert isinstance(failure, ApplicationError)
    assert "START" in str(failure)
    assert await serves_on(client)


async def test_returning_after_the_start(serve):
    """[HE-32]"""

    async def app(scope, receive, send):
        await start(send)

    client = serve(app)
    assert (await client.fetch()).status == 500
    assert [str(failure) for failure in client.observer.failures] == [
        "the application returned in state BODY, its response incomplete"
    ]


@pytest.mark.parametrize("length", [True, False])
async def test_returning_in_the_middle_of_the_body(serve, length):
    """[HE-33, HE-34]"""

    async def app(scope, receive, send):
        await start(send, headers=[(b"content-length", b"4")] if length else [])
        await send_body(send, b"hal", more=True)

    client = serve(app)
    with pytest.raises(IncompleteResponse):
        await client.fetch()
    assert len(client.observer.failures) == 1
    assert not client.observer.ended[0].complete


async def test_failing_with_an_unread_body(serve):
    """The 500 leaves the connection in step."""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        raise ValueError

    client = serve(app)
    assert (await client.fetch(method="POST", body=b"x" * 100_000)).status == 500
    assert await serves_on(client)


async def test_failing_on_head(serve):
    """A 500 to HEAD has no body either."""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        raise ValueError

    client = serve(app)
    await client.request("HEAD")
    await client.request(target="/hello")
    assert (await client.response()).status == 500
    assert (await client.response()).body == b"hello"


async def test_a_failure_leaves_other_connections_alone(serve):
    """[HE-35]"""
    go_on = trio.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/fail":
            raise KeyboardInterrupt
        await start(send)
        await send_body(send, b"one", more=True)
        await go_on.wait()
        await send_body(send, b"two")

    steady = serve(app)
    failing = serve(app, context=steady.context)
    await steady.request()
    assert (await failing.fetch("/fail")).status == 500
    go_on.set()
    assert (await steady.response()).body == b"onetwo"


async def test_a_cancelled_of_the_applications_own(serve):
    """One that escaped its scope ends its own request, is logged, and cancels nothing."""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        with trio.CancelScope() as own:
            own.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                stray = error
        if scope["path"] == "/group":
            raise BaseExceptionGroup("with another", [stray, ValueError(1)])
        raise stray

    client = serve(app)
    assert (await client.fetch()).status == 500
    assert type(client.observer.failures[0]) is trio.Cancelled
    assert (await client.fetch("/group")).status == 500
    assert len(client.observer.failures[1].exceptions) == 2
    assert await serves_on(client)


async def test_cancelling_its_own_scope(serve):
    """The application's scope is in its hands: to cancel it is to give up the request."""

    async def app(scope, receive, send):
        scope["extensions"]["trigi"]["cancel_scope"].cancel()
        await trio.sleep_forever()

    client = serve(app)
    response = await client.fetch()
    assert response.status in (500, 504)
    assert client.observer.failures == []


# A client that left is not the application's failure


@pytest.mark.parametrize(
    "wrap",
    [
        lambda error: error,
        lambda error: ExceptionGroup("a nursery's", [error]),
        lambda error: ExceptionGroup("outer", [ExceptionGroup("inner", [error]), error]),
    ],
    ids=["bare", "group", "groups"],
)
async def test_the_error_of_send_may_pass(serve, wrap):
    async def app(scope, receive, send):
        await receive()
        assert await receive() == DISCONNECT
        try:
            await respond(send)
        except OSError as error:
            raise wrap(error) from None

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert client.observer.failures == []
    assert [each.complete for each in client.observer.ended] == [False]


@pytest.mark.parametrize("explicit", [True, False])
async def test_what_a_framework_makes_of_it_may_pass(serve, explicit):
    """Starlette raises `ClientDisconnect` from it, others their own."""

    async def app(scope, receive, send):
        await receive()
        await receive()
        try:
            await respond(send)
        except OSError as error:
            if explicit:
                raise RuntimeError("client gone") from error
            raise RuntimeError("client gone")  # noqa: B904

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert client.observer.failures == []


class Unsplittable(ExceptionGroup):
    """A group of an application's own making."""

    def split(self, condition):
        raise RuntimeError("not to be split")


async def test_a_group_that_can_not_be_split_is_a_failure(serve):
    error = Unsplittable("odd", [ValueError("one")])

    async def application(scope, receive, send):
        raise error

    client = serve(application)
    assert (await client.fetch()).status == 500
    assert client.observer.failures == [error]
    assert client.observer.bugs == []


async def test_what_else_is_in_the_group_is_a_failure(serve):
    own = ValueError("a failure")

    async def app(scope, receive, send):
        await receive()
        await receive()
        try:
            await respond(send)
        except OSError as error:
            raise ExceptionGroup("mixed", [error, ExceptionGroup("inner", [own])]) from None

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    (failure,) = client.observer.failures
    assert isinstance(failure, ExceptionGroup)
    assert failure.split(ValueError)[1] is None


async def test_failing_after_the_client_left(serve):
    """Is logged: it has nothing to do with it."""

    async def app(scope, receive, send):
        await receive()
        await receive()
        raise ValueError

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert len(client.observer.failures) == 1


async def test_a_loop_in_an_exceptions_causes(serve):
    """An application can build one; it is looked through once."""

    async def app(scope, receive, send):
        await receive()
        await receive()
        one, other = ValueError(1), ValueError(2)
        one.__cause__, other.__cause__ = other, one
        raise one

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert len(client.observer.failures) == 1


async def test_returning_after_the_client_left(serve):
    """Without a response is no failure: there was nobody to have it. [HD-16]"""

    async def app(scope, receive, send):
        await receive()
        await receive()

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert client.observer.failures == []


# What receive() gives without a checkpoint


async def test_a_message_that_is_there_comes_without_a_checkpoint(serve):
    """Frameworks ask for a disconnect inside a cancelled scope."""
    asked = []

    async def ask(receive):
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.testing.assert_no_checkpoints():
                asked.append((await receive())["type"])
        assert not scope.cancelled_caught

    async def app(scope, receive, send):
        if scope["method"] == "POST":
            await trio.testing.wait_all_tasks_blocked()
        await ask(receive)
        await respond(send)
        for _ in range(3):
            await ask(receive)

    client = serve(app)
    await client.fetch()
    await client.fetch(method="POST", body=b"body")
    assert asked == ["http.request", "http.disconnect", "http.disconnect", "http.disconnect"] * 2


async def test_a_disconnect_that_is_there_comes_without_a_checkpoint(serve):
    asked = []

    async def app(scope, receive, send):
        await receive()
        await trio.sleep(1)  # the client leaves
        for _ in range(3):
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                asked.append(await receive())

    client = serve(app)
    await client.request()
    await client.leave()
    await client.done.wait()
    assert asked == [DISCONNECT] * 3


@pytest.mark.parametrize("expect", [False, True], ids=["", "expecting 100"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_asking_for_a_disconnect_that_is_not_there(serve, method, expect):
    """In a cancelled scope, as Starlette does: nothing comes, nothing is lost, nothing breaks."""

    async def app(scope, receive, send):
        if method == "GET":
            await receive()
        for _ in range(3):
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                pytest.fail(f"got {await receive()}")
            assert cancelled.cancelled_caught
        if method == "GET":
            await respond(send)
        else:
            await echo(scope, receive, send)

    client = serve(app)
    headers = [(b"expect", b"100-continue")] if expect else []
    if method == "POST":
        await client.request("POST", headers=[*headers, (b"content-length", b"4")])
        await client.settle()
        if expect:
            assert (await client.informational()).status == 100
        await client.send(b"body")
        assert (await client.response()).body == b"body"
    else:
        assert (await client.fetch(headers=headers)).status == 200


async def test_a_body_read_with_short_timeouts_is_complete(serve):
    """Cancelled at whatever moment, `receive` loses nothing. [HR-17]"""

    async def app(scope, receive, send):
        body = b""
        more = True
        while more:
            with trio.move_on_after(0.01):
                message = await receive()
                body += message["body"]
                more = message["more_body"]
        await respond(send, body)

    client = serve(app)
    body = bytes(range(100))
    await client.request("POST", headers=[(b"content-length", b"100")])
    for number in range(100):
        await client.send(body[number : number + 1])
        await trio.sleep(0.007)
    assert (await client.response()).body == body


async def test_a_receive_cancelled_as_its_message_comes(serve):
    """At the same moment, in either order."""

    async def app(scope, receive, send):
        body = b""
        while len(body) < 100:
            with trio.CancelScope() as waiting:
                scopes.append(waiting)
                message = await receive()
                body += message["body"]
        await respond(send, body)

    scopes = []
    client = serve(app)
    body = bytes(range(100))
    await client.request("POST", headers=[(b"content-length", b"100")])
    for number in range(100):
        await client.settle()
        if number % 2:
            scopes[-1].cancel()
            await client.send(body[number : number + 1])
        else:
            await client.send(body[number : number + 1])
            scopes[-1].cancel()
    assert (await client.response()).body == body


# The end is not told before send() has returned


async def test_the_disconnect_comes_after_the_last_send(serve):
    """Quart and Django race the two, and cancel the one that loses. [HD-01, HD-17]"""
    order = []

    async def app(scope, receive, send):
        async def wait_for_disconnect():
            order.append((await receive())["type"])
            order.append((await receive())["type"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_disconnect)
            await start(send)
            await trio.sleep(1)
            await send_body(send, b"one", more=True)
            await trio.sleep(1)
            order.append("sending")
            await send_body(send, b"two")
            order.append("sent")

    client = serve(app, pair=trio.testing.lockstep_stream_pair)
    await client.request()
    await trio.sleep(10)  # its writes wait that long for the client to read
    assert (await client.response()).body == b"onetwo"
    await client.settle()
    assert order == ["http.request", "sending", "sent", "http.disconnect"]


async def test_cancelling_the_sender_at_the_disconnect(serve):
    """What a framework does that takes any disconnect for a reason to stop: the response is whole nevertheless."""

    async def app(scope, receive, send):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def cancel_upon_disconnect():
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            await respond(send, b"x" * 1_000_000)
            await trio.sleep(1000)

    client = serve(app, pair=lambda: socket_like_pair(1000))
    assert len((await client.fetch()).body) == 1_000_000
    assert len((await client.fetch()).body) == 1_000_000
    assert client.observer.failures == []


class SlowToCancel(trio.abc.HalfCloseableStream):
    """A stream whose write takes a moment longer when it is cancelled, as it may in TLS."""

    def __init__(self, stream):
        self._stream = stream

    async def send_all(self, data):
        try:
            await self._stream.send_all(data)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    async def wait_send_all_might_not_block(self):
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes=None):
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self):
        await self._stream.send_eof()

    async def aclose(self):
        await self._stream.aclose()


@pytest.mark.parametrize("waiting", [True, False])
async def test_the_disconnect_comes_after_a_send_that_fails(serve, waiting):
    """The client leaves while `send` waits for it: a `receive` that waits then, or comes then, is told after that."""
    order = []

    async def app(scope, receive, send):
        async def wait_for_disconnect():
            await receive()
            if not waiting:
                await trio.sleep(10.5)  # the client has left, `send` does not know yet
            order.append((await receive())["type"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_disconnect)
            with pytest.raises(ClientDisconnected):
                await respond(send, b"x" * 1000)
            order.append("raised")

    def pair():
        client, server = socket_like_pair(100)
        return client, SlowToCancel(server)

    client = serve(app, pair=pair)
    await client.request()
    await trio.sleep(10)
    await client.leave()
    await client.done.wait()
    assert order == ["raised", "http.disconnect"]


async def test_cancelling_after_the_response_cuts_nothing(serve):
    """Closing the connection is not done in the application's scope."""

    async def app(scope, receive, send):
        with trio.CancelScope() as own:
            await respond(send, b"x" * 10_000, headers=[(b"connection", b"close")])
            own.cancel()
            await trio.sleep_forever()
        scope["extensions"]["trigi"]["cancel_scope"].cancel()
        await trio.sleep_forever()

    client = serve(app, pair=lambda: socket_like_pair(100_000))
    response = await client.fetch()
    assert len(response.body) == 10_000
    assert await client.rest() == b""
    assert client.observer.failures == []


# Both sides of the checkpoints


async def test_sending_yields_to_others(serve):
    """A client that reads as fast as the application sends starves nobody."""

    async def app(scope, receive, send):
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        await start(send)
        while True:
            await send_body(send, b"x", more=True)

    busy = serve(app, disconnect_grace=0)
    client = serve(app, context=busy.context)
    await busy.request()
    for _ in range(10):
        assert (await client.fetch("/hello")).body == b"hello"


MANY = 10_000
"""Times that a loop goes round which nothing ends, when trigi is broken."""


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("body", [b"", b"x"])
async def test_a_cancelled_application_does_not_go_on_sending(serve, method, body):
    """Every body message is a cancellation point, also where nothing is written."""
    rounds = 0

    async def app(scope, receive, send):
        nonlocal rounds
        await start(send)
        scope["extensions"]["trigi"]["cancel_scope"].cancel()
        for rounds in range(MANY):  # noqa: B007 - told to the test
            await send_body(send, body, more=True)

    client = serve(app)
    await client.request(method)
    await client.rest()
    assert rounds < 2


async def test_what_is_sent_after_the_end_is_a_cancellation_point(serve):
    rounds = 0

    async def app(scope, receive, send):
        nonlocal rounds
        await respond(send)
        scope["extensions"]["trigi"]["cancel_scope"].cancel()
        for rounds in range(MANY):  # noqa: B007 - told to the test
            await send_body(send, b"late", more=True)

    client = serve(app)
    await client.fetch()
    await client.settle()
    assert rounds < 2


async def test_a_loop_of_sends_to_a_client_that_left(serve):
    """Ends with the grace, though the application goes on after each error."""
    rounds = 0

    async def app(scope, receive, send):
        nonlocal rounds
        await start(send)
        for rounds in range(MANY):  # noqa: B007 - told to the test
            with suppress(OSError):
                await send_body(send, b"x", more=True)

    client = serve(app, disconnect_grace=0)
    await client.request()
    await client.head()
    await client.leave()
    await client.done.wait()
    assert rounds < MANY - 1


@pytest.mark.parametrize("target", ["/", "/respond"])
async def test_a_loop_of_receives_after_the_end(serve, target):
    """Keeps nobody from running, and ends when the application is cancelled, though a message is always there."""
    rounds = 0

    async def app(scope, receive, send):
        nonlocal rounds
        if target == "/respond":
            await respond(send)
        for rounds in range(MANY):  # noqa: B007 - told to the test
            await receive()

    client = serve(app, disconnect_grace=0)
    await client.request()
    if target == "/":
        await client.settle()
        await client.leave()
    else:
        await client.response()
        client.scope.cancel()
    await client.done.wait()
    assert rounds < MANY - 1


# What is reported


async def test_what_is_reported_of_an_exchange(serve):
    async def app(scope, receive, send):
        body = await read_body(receive)
        await trio.sleep(2)
        await start(send, status=201, headers=[(b"X-One", b"1")])
        await send_body(send, body, more=True)
        await trio.sleep(1)
        await send_body(send, body)
        await trio.sleep(5)

    client = serve(app)
    await client.fetch("/path?query", method="POST", body=b"body")
    (exchange,) = client.observer.exchanges
    assert exchange.request.method == "POST"
    assert exchange.request.target == b"/path?query"
    assert exchange.status == 201
    assert exchange.response_headers == [(b"x-one", b"1")]
    assert exchange.bytes_sent == 8
    assert exchange.duration == 3
    assert exchange.complete
    assert not exchange.is_websocket
    assert exchange.connection.client is None
    assert client.observer.ended[0].at == exchange.started + 3  # with the response, not with the call


async def test_no_status_of_a_response_that_never_was(serve):
    async def app(scope, receive, send):
        await receive()
        await receive()

    client = serve(app)
    await client.request()
    await trio.sleep(2)
    await client.leave()
    await client.done.wait()
    (report,) = client.observer.ended
    assert (report.status, report.complete, report.bytes_sent, report.duration) == (None, False, 0, 2)


async def test_an_exchange_can_be_reported_before_it_has_ended(serve):
    """A failure is reported before the response to it: what there is to know is there, in its initial state."""
    seen = []

    class Reader(Recorder):
        def application_failed(self, exchange, error):
            super().application_failed(exchange, error)
            names = [*get_annotations(ExchangeReport), "response_headers", "is_websocket"]
            seen.append({name: getattr(exchange, name) for name in names})

    async def app(scope, receive, send):
        raise ValueError

    client = serve(app, context=ServerContext(app, Config(), observer=Reader()))
    assert (await client.fetch()).status == 500
    (report,) = seen
    assert report.pop("request").method == "GET"
    assert report.pop("connection").client is None
    assert report == {
        "status": None,
        "response_headers": [],
        "bytes_sent": 0,
        "duration": 0,
        "complete": False,
        "is_websocket": False,
    }


def test_control_c_is_not_the_applications():
    """It belongs to the program that serves: the application is cancelled by what that makes of it."""
    seen = []

    async def app(scope, receive, send):
        signal.raise_signal(signal.SIGINT)
        try:
            await trio.sleep(1)
        except BaseException as error:
            seen.append(type(error))
            raise

    class Failures(Observer):
        def application_failed(self, exchange, error):
            seen.append(error)

    async def main():
        client, server = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, server, ServerContext(app, Config(), observer=Failures()))
            await HTTPClient(client).request()
            await trio.sleep(1000)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which a background process does not have
    try:
        with pytest.raises(BaseExceptionGroup) as caught:
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.group_contains(KeyboardInterrupt)
    assert seen == [trio.Cancelled]
