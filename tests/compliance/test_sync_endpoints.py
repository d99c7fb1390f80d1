"""Sync endpoints of Starlette's and FastAPI's, and sync streams, which both run in trio's threads, on real sockets.

A thread can't be cancelled, and there are 40: none may be lost, whatever clients do.
"""

# No `from __future__ import annotations`: FastAPI reads them, and finds no local names in strings.

import gc
import logging
import threading
from contextvars import ContextVar
from typing import Annotated

import httpx
import pytest
import trio
from fastapi import Depends, FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from trigi.testing.http2 import HTTP2Client

SECONDS = 20.0
"""What a thread waits for the test, or for other threads, is given up after this."""

THREADS = 40
"""Of trio's default limiter."""

# Starlette forgets its own generators, without closing them, when a client leaves; trio warns.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'starlette[^ ]*' was garbage:ResourceWarning")


@pytest.fixture(autouse=True)
def no_collector():
    """Nothing that a client has left behind waits for the collector."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
async def serve(serve, monkeypatch):
    """As for all tests; and when one has ended, its server has no more threads, while it still runs."""
    monkeypatch.setattr(
        "trio._core._thread_cache.IDLE_TIMEOUT", 0.1
    )  # else 10 s, which they idle before they end
    before = set(threading.enumerate())
    yield serve
    with trio.fail_after(SECONDS):
        await free_threads()
        while set(threading.enumerate()) - before:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.005)


async def free_threads(used=0):
    """Wait until only so many threads are in use."""
    limiter = trio.to_thread.current_default_thread_limiter()
    while limiter.borrowed_tokens != used:  # noqa: ASYNC110 - nobody tells
        await trio.sleep(0.005)
    assert limiter.total_tokens == THREADS


def with_starlette(endpoints):
    """An application of sync functions by their paths, which return what is JSON, or a response."""

    def route(path, function):
        def endpoint(request):
            answer = function(**request.path_params)
            return answer if isinstance(answer, Response) else JSONResponse(answer)

        return Route(path, endpoint)

    return Starlette(routes=[route(path, endpoints[path]) for path in endpoints])


def with_fastapi(endpoints):
    """The same of FastAPI's."""
    app = FastAPI()
    for path, function in endpoints.items():
        app.get(path)(function)
    return app


both = pytest.mark.parametrize("framework", [with_starlette, with_fastapi])


class Gate:
    """What sync code waits at, until the test lets it go on.

    Attributes:
        waiting: who has come.
        gone: who has gone on.
    """

    def __init__(self):
        self.waiting = []
        self.gone = []
        self._open = threading.Event()

    def open(self):
        self._open.set()

    def wait(self, who=None):
        self.waiting.append(who)
        assert self._open.wait(SECONDS), "the test has not let it go on"
        self.gone.append(who)


def many(server, **more):
    """A client with as many connections as it needs."""
    return server.client(limits=httpx.Limits(max_connections=None), **more)


async def get_all(client, paths):
    """Get all of them at once; gives what came, by path."""
    responses = {}

    async def get(path):
        responses[path] = await client.get(path)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(get, path)
    return responses


async def meet(client, path):
    """Every thread is free: as many requests as there are meet in their threads."""
    responses = await get_all(client, [f"{path}?{number}" for number in range(THREADS)])
    assert sorted(response.json() for response in responses.values()) == list(range(THREADS))


async def http2_client(server):
    """A client that can do what httpx can't: leave one stream, and go on after GOAWAY."""
    client = HTTP2Client(await trio.open_tcp_stream("127.0.0.1", server.port))
    await client.connect()
    return client


async def leave_all(connections):
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(connection.leave)


class Departures:
    """Middleware that counts the clients the server has seen leave before they had their answer.

    Attributes:
        count: how many.
    """

    def __init__(self, app):
        self.count = 0
        self._app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def watch():
            while (await receive())["type"] != "http.disconnect":
                pass
            self.count += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await self._app(scope, receive, send)
            nursery.cancel_scope.cancel()


# Answers


@both
@pytest.mark.parametrize("version", [1, 2])
async def test_many_more_requests_than_threads(serve, framework, version):
    """Each gets its own answer, and they run in all threads at once."""
    barrier = threading.Barrier(THREADS)  # 200 are five times as many
    running, most, threads = set(), [], set()

    def endpoint(number: int):
        running.add(number)
        threads.add(threading.get_ident())
        barrier.wait(SECONDS)
        most.append(len(running))
        barrier.wait(SECONDS)
        running.discard(number)
        return {"number": number, "text": f"{number}," * 5000}

    server = await serve(framework({"/{number:int}": endpoint}))
    async with many(server, http1=version == 1, http2=version == 2) as client:
        responses = await get_all(client, [f"/{number}" for number in range(200)])
        assert {response.http_version for response in responses.values()} == {
            "HTTP/1.1" if version == 1 else "HTTP/2"
        }
        await free_threads()
    assert len(responses) == 200
    for number in range(200):
        assert responses[f"/{number}"].json() == {"number": number, "text": f"{number}," * 5000}
    assert max(most) == THREADS
    assert threading.get_ident() not in threads


@both
@pytest.mark.parametrize("version", [1, 2])
async def test_many_streams_at_once(serve, framework, version):
    """A stream takes a thread for each of its steps, and gives it back in between."""

    def endpoint(number: int):
        return StreamingResponse(f"{number}:{line}\n" for line in range(20))

    server = await serve(framework({"/{number:int}": endpoint}))
    async with many(server, http1=version == 1, http2=version == 2) as client:
        responses = await get_all(client, [f"/{number}" for number in range(100)])
    for number in range(100):
        assert responses[f"/{number}"].text == "".join(f"{number}:{line}\n" for line in range(20))


@both
async def test_requests_that_wait_for_a_thread(serve, framework):
    """They are answered when one is free; what needs none is answered meanwhile."""
    gate = Gate()
    sync = framework({"/wait": gate.wait, "/quick": lambda: "quick"})

    async def app(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/async":
            await JSONResponse("async")(scope, receive, send)
        else:
            await sync(scope, receive, send)

    server = await serve(app)
    async with many(server) as client, trio.open_nursery() as nursery:
        nursery.start_soon(get_all, client, [f"/wait?{number}" for number in range(THREADS)])
        await server.until(lambda: len(gate.waiting) == THREADS)
        answers = []

        @nursery.start_soon
        async def _():
            answers.append((await client.get("/quick")).json())

        limiter = trio.to_thread.current_default_thread_limiter()
        await server.until(lambda: limiter.statistics().tasks_waiting == 1)
        assert (await client.get("/async")).json() == "async"
        assert answers == []
        gate.open()
    assert answers == ["quick"]


# Context variables

user: ContextVar[str] = ContextVar("user", default="nobody")


class PlainMiddleware:
    """Takes the user from a header into a context variable."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        name = dict(scope.get("headers", ())).get(b"x-user")
        if name is not None:
            user.set(name.decode())
        await self._app(scope, receive, send)


async def set_user(request, call_next):
    """The same, as Starlette's middleware is usually written."""
    if "x-user" in request.headers:
        user.set(request.headers["x-user"])
    return await call_next(request)


@both
@pytest.mark.parametrize("kind", ["plain", "BaseHTTPMiddleware"])
async def test_context_variables_of_middleware(serve, framework, kind):
    """Are seen in a sync endpoint and in a sync stream; each request's by itself."""
    barrier = threading.Barrier(20)

    def endpoint(number: int):
        barrier.wait(SECONDS)
        return user.get()

    def stream(number: int):
        def pieces():
            barrier.wait(SECONDS)
            yield f'"{user.get()}'
            barrier.wait(SECONDS)
            yield f'{user.get()}"'

        return StreamingResponse(pieces())

    app = framework({"/endpoint/{number:int}": endpoint, "/stream/{number:int}": stream})
    if kind == "plain":
        app.add_middleware(PlainMiddleware)
    else:
        app.add_middleware(BaseHTTPMiddleware, dispatch=set_user)
    server = await serve(app)
    async with many(server) as client:
        for path, times in (("endpoint", 1), ("stream", 2)):
            answers = {}

            async def get(name, path=path, answers=answers):
                answers[name] = (await client.get(f"/{path}/0", headers={"x-user": name})).json()

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(get, f"user{number}")
            assert answers == {name: name * times for name in (f"user{number}" for number in range(20))}


@both
async def test_context_variables_of_the_request_before(serve, framework):
    """Are not seen by the next one on the same connection."""
    app = framework({"/": lambda: user.get()})  # noqa: PLW0108 - FastAPI reads signatures
    app.add_middleware(PlainMiddleware)
    server = await serve(app)
    async with server.client(limits=httpx.Limits(max_connections=1)) as client:
        assert (await client.get("/", headers={"x-user": "Ada"})).json() == "Ada"
        assert (await client.get("/")).json() == "nobody"


# Dependencies


class Session:
    """A sync dependency.

    Attributes:
        open: those that are open.
        closed: how the others ended.
    """

    def __init__(self):
        self.closed = []
        self.open = set()

    def __call__(self):
        me = object()
        self.open.add(me)
        how = "closed"
        try:
            yield me
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            assert threading.current_thread() is not threading.main_thread()
            self.open.remove(me)
            self.closed.append(how)


async def test_sync_dependencies(serve):
    """As many as wanted are opened and closed, while all threads are in use: closing needs none of them."""
    session = Session()
    dependency = Annotated[object, Depends(session)]
    app, gate, barrier = FastAPI(), Gate(), threading.Barrier(20)

    @app.get("/meet/{number}")
    def endpoint(number: int, mine: dependency):
        assert mine in session.open
        barrier.wait(SECONDS)
        return number

    @app.get("/fails")
    def fail(mine: dependency):
        raise LookupError("in a sync endpoint, with a dependency")

    @app.get("/refuses")
    def refuse(mine: dependency):
        raise HTTPException(409)

    @app.get("/stream")
    def stream(mine: dependency):
        return StreamingResponse(str(mine in session.open) for _ in range(3))

    @app.get("/endless")
    def endless(mine: dependency):
        def pieces():
            while mine in session.open:
                yield b"piece" * 1000

        return StreamingResponse(pieces())

    @app.get("/waits")
    def wait(mine: dependency):
        gate.wait()
        assert mine in session.open

    server = await serve(app, disconnect_grace=0)
    async with many(server) as client:
        responses = await get_all(client, [f"/meet/{number}" for number in range(60)])
        assert [responses[f"/meet/{number}"].json() for number in range(60)] == list(range(60))
        await server.until(lambda: len(session.closed) == 60)
        assert session.closed == ["closed"] * 60

        session.closed.clear()
        assert (await client.get("/fails")).status_code == 500
        await server.log.expect("LookupError: in a sync endpoint, with a dependency")
        assert (await client.get("/refuses")).status_code == 409
        assert (await client.get("/stream")).text == "TrueTrueTrue"
        await server.until(lambda: len(session.closed) == 3)
        assert session.closed == ["LookupError", "HTTPException", "closed"]

        session.closed.clear()
        connections = [await server.connect("GET /endless HTTP/1.1") for _ in range(20)]
        for connection in connections:
            await connection.read_until(b"piece")
        await leave_all(connections)
        await server.until(lambda: len(session.closed) == 20)
        assert session.open == set()

        connections = [await server.connect("GET /waits HTTP/1.1") for _ in range(20)]
        await server.until(lambda: len(gate.waiting) == 20)
        await leave_all(connections)
        responses = await get_all(client, [f"/meet/{number}" for number in range(20)])
        assert len(session.open) >= 20  # those whose clients have left still have theirs
        assert gate.gone == []
        gate.open()
        await server.until(lambda: not session.open)
        assert len(gate.gone) == 20


# Failures


@both
@pytest.mark.parametrize("version", [1, 2])
async def test_a_sync_endpoint_that_fails(serve, framework, version):
    """Is answered with 500 and logged, once; by itself or among others."""

    def fail(number: int):
        raise LookupError(f"in the sync endpoint {number:03}")

    server = await serve(framework({"/{number:int}": fail, "/fine": lambda: "fine"}))
    server.log.tolerate("LookupError: in the sync endpoint")
    async with many(server, http1=version == 1, http2=version == 2) as client:
        responses = await get_all(client, [f"/{number}" for number in range(100)])
        assert [response.status_code for response in responses.values()] == [500] * 100
        assert (await client.get("/fine")).json() == "fine"
    logged = [text for record, text in server.log.records if record.levelno >= logging.ERROR]
    assert len(logged) == 100
    for number in range(100):
        [text] = [text for text in logged if f"in the sync endpoint {number:03}" in text]
        assert "in fail\n" in text  # the traceback goes into the thread


@both
@pytest.mark.parametrize("version", [1, 2])
async def test_a_sync_stream_that_fails(serve, framework, version):
    """In its middle: the response is cut off; before its first piece: 500. Either is logged once."""
    closed = []

    def stream(number: int):
        def pieces():
            try:
                for _ in range(number):
                    yield b"piece"
                raise LookupError("in a sync stream")
            finally:
                closed.append(number)

        return StreamingResponse(pieces())

    server = await serve(framework({"/{number:int}": stream, "/fine": lambda: "fine"}))
    server.log.tolerate("LookupError: in a sync stream")
    async with many(server, http1=version == 1, http2=version == 2) as client:
        for number in (3, 1):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"/{number}")
        assert (await client.get("/0")).status_code == 500
        assert (await client.get("/fine")).json() == "fine"
    assert closed == [3, 1, 0]
    assert len([record for record, _ in server.log.records if record.levelno >= logging.ERROR]) == 3


# Clients that leave


class Stream:
    """A sync stream without an end.

    Attributes:
        begun: how many have been.
        closed: how many have been closed.
        gate: what each waits at between its first piece and its second, if anything.
    """

    def __init__(self, gate=None):
        self.begun = 0
        self.closed = []
        self.gate = gate

    def __call__(self):
        return StreamingResponse(self._pieces())

    def _pieces(self):
        self.begun += 1
        try:
            yield b"first"
            if self.gate is not None:
                self.gate.wait()
            while True:
                yield b"piece" * 1000
        finally:
            self.closed.append(self)

    def has_closed(self, count):
        """Whether so many have been closed. (Starlette forgets them; nobody else may keep them for the collector.)"""
        return len(self.closed) == count


async def visit_until(stop, client, path, answers):
    """Be another client, all the time until something is so."""
    while not stop():
        answers.append((await client.get(path)).json())


@both
@pytest.mark.parametrize("grace", [0, 5])
async def test_clients_that_leave_sync_streams(serve, framework, grace):
    """20 at once, while others are answered: the streams are closed, and every thread is free again."""
    barrier, stream = threading.Barrier(THREADS), Stream()
    app = framework({"/stream": stream, "/meet": lambda: barrier.wait(SECONDS), "/other": lambda: "other"})
    server = await serve(app, disconnect_grace=grace)
    answers, all_closed = [], []
    async with many(server) as client:
        connections = [await server.connect("GET /stream HTTP/1.1") for _ in range(20)]
        for connection in connections:
            await connection.read_until(b"piece")
        assert stream.closed == []
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(visit_until, lambda: all_closed, client, "/other", answers)
            await server.until(lambda: len(answers) >= 10)
            await leave_all(connections)
            await server.until(lambda: stream.has_closed(20))
            all_closed.append(True)
        await free_threads()
        await meet(client, "/meet")
    assert set(answers) == {"other"}


@both
@pytest.mark.parametrize("grace", [0, 5])
async def test_clients_that_leave_sync_streams_that_are_at_work(serve, framework, grace):
    """A thread that is at the next piece is waited for; then the stream is closed."""
    gate, barrier = Gate(), threading.Barrier(THREADS)
    stream = Stream(gate)
    app = Departures(
        framework({"/stream": stream, "/meet": lambda: barrier.wait(SECONDS), "/other": lambda: "other"})
    )
    server = await serve(app, disconnect_grace=grace)
    async with many(server) as client:
        connections = [await server.connect("GET /stream HTTP/1.1") for _ in range(20)]
        for connection in connections:
            await connection.read_until(b"first")
        await server.until(lambda: len(gate.waiting) == 20)
        await leave_all(connections)
        await server.until(lambda: app.count == 20)
        responses = await get_all(client, [f"/other?{number}" for number in range(100)])
        assert {response.json() for response in responses.values()} == {"other"}
        assert stream.closed == gate.gone == []
        await free_threads(20)  # the others'
        gate.open()
        await server.until(lambda: stream.has_closed(20))
        await free_threads()
        await meet(client, "/meet")


@both
@pytest.mark.parametrize("grace", [0, 5])
async def test_clients_that_leave_sync_streams_over_http2(serve, framework, grace):
    """20 streams of a connection are reset, 10 go on, and others are answered on it."""
    barrier, stream = threading.Barrier(THREADS), Stream()
    app = framework({"/stream": stream, "/meet": lambda: barrier.wait(SECONDS), "/other": lambda: "other"})
    server = await serve(app, disconnect_grace=grace)
    client = await http2_client(server)
    streams = [await client.request(path="/stream") for _ in range(30)]
    for each in streams:
        assert b"first" in await client.data(each)
    async with trio.open_nursery() as nursery:
        for each in streams[10:]:
            nursery.start_soon(client.reset, each)
    answers = [(await client.fetch("/other")).body for _ in range(20)]
    assert answers == [b'"other"'] * 20
    await server.until(lambda: stream.has_closed(20))
    for each in streams[:10]:
        assert await client.data(each)
    assert len(stream.closed) == 20
    await client.aclose()
    await server.until(lambda: stream.has_closed(30))
    await free_threads()
    async with many(server) as client:
        await meet(client, "/meet")


@both
async def test_clients_that_do_not_read_hold_no_thread(serve, framework):
    """More of them than there are threads."""
    barrier, stream = threading.Barrier(THREADS), Stream()
    app = framework({"/stream": stream, "/meet": lambda: barrier.wait(SECONDS)})
    server = await serve(app)
    connections = [await server.connect("GET /stream HTTP/1.1") for _ in range(THREADS + 20)]
    await server.until(lambda: stream.begun == len(connections))
    await free_threads()  # each waits for its client
    async with many(server) as client:
        await meet(client, "/meet")
    assert stream.closed == []
    await leave_all(connections)
    await server.until(lambda: stream.has_closed(len(connections)))


@both
@pytest.mark.parametrize("grace", [0, 5])
async def test_sync_endpoints_whose_clients_leave_run_to_their_end(serve, framework, grace):
    """They are not abandoned, whatever was cancelled; other requests are served meanwhile."""
    gate, barrier = Gate(), threading.Barrier(THREADS)

    def wait(number: int):
        gate.wait(number)
        return number

    app = Departures(
        framework(
            {
                "/wait/{number:int}": wait,
                "/meet": lambda: barrier.wait(SECONDS),
                "/other": lambda: "other",
            }
        )
    )
    server = await serve(app, disconnect_grace=grace)
    async with many(server) as client:
        connections = [await server.connect(f"GET /wait/{number} HTTP/1.1") for number in range(20)]
        await server.until(lambda: len(gate.waiting) == 20)
        await leave_all(connections)
        await server.until(lambda: app.count == 20)
        responses = await get_all(client, [f"/other?{number}" for number in range(100)])
        assert {response.json() for response in responses.values()} == {"other"}
        assert gate.gone == []
        await free_threads(20)
        gate.open()
        await server.until(lambda: len(gate.gone) == 20)
        assert sorted(gate.gone) == list(range(20))
        await free_threads()
        await meet(client, "/meet")


@both
async def test_a_request_whose_client_leaves_while_it_waits_for_a_thread(serve, framework):
    """Is never begun."""
    gate, begun = Gate(), []

    def begin(number: int):
        begun.append(number)

    server = await serve(framework({"/wait": gate.wait, "/begin/{number:int}": begin}), disconnect_grace=0)
    limiter = trio.to_thread.current_default_thread_limiter()
    async with many(server) as client, trio.open_nursery() as nursery:
        nursery.start_soon(get_all, client, [f"/wait?{number}" for number in range(THREADS)])
        await server.until(lambda: len(gate.waiting) == THREADS)
        connections = [await server.connect(f"GET /begin/{number} HTTP/1.1") for number in range(20)]
        await server.until(lambda: limiter.statistics().tasks_waiting == 20)
        await leave_all(connections)
        await server.until(lambda: limiter.statistics().tasks_waiting == 0)
        gate.open()
    await free_threads()
    assert begun == []


# Shutdown


async def is_closed(server):
    """Wait until the server accepts no more connections."""
    while True:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        except OSError:
            return
        await stream.aclose()


def sync_code_of_both_kinds(framework, gate):
    def wait(number: int):
        gate.wait(number)
        return number

    def stream(number: int):
        def pieces():
            yield f"{number}"
            gate.wait(number)
            yield "!"

        return StreamingResponse(pieces())

    return framework({"/wait/{number:int}": wait, "/stream/{number:int}": stream})


STREAMS = {f"/stream/{number}": f"{number}!" for number in range(10)}
WAITS = {f"/wait/{number}": str(number) for number in range(60)}


async def shut_down(server, gate):
    """Shut down, while so many run, and the rest waits for a thread."""
    limiter = trio.to_thread.current_default_thread_limiter()
    await server.until(lambda: limiter.statistics().tasks_waiting == len(STREAMS) + len(WAITS) - THREADS)
    # A thread that has begun may not have come so far.
    await server.until(lambda: len(gate.waiting) == THREADS)
    server.begin_shutdown()
    await is_closed(server)
    assert not server.done.is_set()
    assert gate.gone == []
    gate.open()
    await server.done.wait()
    assert len(gate.gone) == len(STREAMS) + len(WAITS)
    assert "for 70 application calls, of which 0 were cancelled" in server.log.text


@both
async def test_shutdown_waits_for_sync_endpoints(serve, framework):
    """For those that run, for those that wait for a thread, and for streams."""
    gate, responses = Gate(), {}
    server = await serve(sync_code_of_both_kinds(framework, gate))

    async def get(client, paths):
        responses.update(await get_all(client, paths))

    async with many(server) as client, trio.open_nursery() as nursery:
        nursery.start_soon(get, client, STREAMS)
        await server.until(lambda: len(gate.waiting) == len(STREAMS))
        nursery.start_soon(get, client, WAITS)
        await shut_down(server, gate)
    assert {path: responses[path].text for path in responses} == STREAMS | WAITS


@both
async def test_shutdown_waits_for_sync_endpoints_over_http2(serve, framework):
    gate = Gate()
    server = await serve(sync_code_of_both_kinds(framework, gate))
    client = await http2_client(server)
    sent = {path: await client.request(path=path) for path in STREAMS}
    await server.until(lambda: len(gate.waiting) == len(STREAMS))
    sent |= {path: await client.request(path=path) for path in WAITS}
    responses = {}

    async def receive(path):
        responses[path] = (await client.response(sent[path])).body.decode()

    async def receive_all():
        async with trio.open_nursery() as receiving:
            for path in sent:
                receiving.start_soon(receive, path)
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_all)
        await shut_down(server, gate)
    assert responses == STREAMS | WAITS


@both
async def test_shutdown_past_its_timeout(serve, framework):
    """Says which sync endpoints still run, and lets them end; those that wait for a thread never begin."""
    gate, begun = Gate(), []

    def wait(number: int):
        gate.wait(number)

    def begin(number: int):
        begun.append(number)

    app = framework({"/wait/{number:int}": wait, "/begin/{number:int}": begin})
    server = await serve(app, graceful_timeout=0.1, cleanup_timeout=0.1)
    limiter = trio.to_thread.current_default_thread_limiter()
    connections = [await server.connect(f"GET /wait/{number} HTTP/1.1") for number in range(THREADS)]
    await server.until(lambda: len(gate.waiting) == THREADS)
    connections += [await server.connect(f"GET /begin/{number} HTTP/1.1") for number in range(10)]
    await server.until(lambda: limiter.statistics().tasks_waiting == 10)
    server.begin_shutdown()
    for number in range(THREADS):
        await server.log.wait_for(
            f'still running 0.1 s after it was cancelled, on "GET /wait/{number} HTTP/1.1"'
        )
    assert not server.done.is_set()
    assert gate.gone == []
    gate.open()
    await server.stop()
    assert sorted(gate.gone) == list(range(THREADS))
    assert begun == []
    for connection in connections:
        assert await connection.read_all() == b""
    await leave_all(connections)
