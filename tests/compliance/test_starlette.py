"""Starlette on a real socket: what the framework relies on, seen by its applications and by their clients."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import socket
import threading
from contextlib import aclosing, asynccontextmanager
from math import inf

import anyio
import httpx
import pytest
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

CLIENT_SECONDS = 20.0

# Starlette leaves its own generators, and those it is given, to the collector when a client leaves; trio warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(starlette|.*words)[^ ]*' was garbage:ResourceWarning"
)


def websocket(server, path="/", **more):
    """A WebSocket client, to be used in a thread."""
    return connect(server.websocket_url + path, proxy=None, open_timeout=CLIENT_SECONDS, **more)


# Requests and responses


async def test_routing_and_json(serve):
    async def user(request: Request):
        return JSONResponse({"id": request.path_params["id"], "q": request.query_params.getlist("q")})

    async def create(request: Request):
        return JSONResponse({"got": await request.json(), "by": request.headers["user-agent"]}, 201)

    class Item(HTTPEndpoint):
        async def get(self, request):
            return PlainTextResponse("an item")

    async def old(request):
        return RedirectResponse("/users/7")

    async def cookie(request):
        response = PlainTextResponse(request.cookies.get("seen", "never"))
        response.set_cookie("seen", "once")
        response.set_cookie("other", "too")
        return response

    server = await serve(
        Starlette(
            routes=[
                Route("/users/{id:int}", user),
                Route("/users", create, methods=["POST"]),
                Route("/item", Item),
                Route("/old", old),
                Route("/cookie", cookie),
            ]
        )
    )
    async with server.client(headers={"user-agent": "a test"}) as client:
        assert (await client.get("/users/3?q=a%20b&q=%C3%A9")).json() == {"id": 3, "q": ["a b", "é"]}
        created = await client.post("/users", json={"name": "Ada"})
        assert (created.status_code, created.json()) == (201, {"got": {"name": "Ada"}, "by": "a test"})
        assert (await client.get("/nowhere")).status_code == 404
        wrong = await client.get("/users")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert (await client.get("/item")).text == "an item"
        head = await client.head("/item")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.get("/old", follow_redirects=True)).json()["id"] == 7
        assert (await client.get("/item/", follow_redirects=True)).text == "an item"
        first, second = [await client.get("/cookie") for _ in range(2)]
        assert (first.text, second.text) == ("never", "once")
        assert len(first.headers.get_list("set-cookie")) == 2


async def test_head_has_the_headers_of_get_and_no_body(serve):
    async def page(request):
        return PlainTextResponse("some text")

    server = await serve(Starlette(routes=[Route("/", page)]))
    async with server.client() as client:
        for _ in range(2):  # the connection stays in step
            head = await client.head("/")
            assert (head.headers["content-length"], head.content) == ("9", b"")
            assert (await client.get("/")).text == "some text"


# Files


@pytest.fixture(params=["http", "https"])
async def serve_file(request, serve, certificates, tmp_path):
    """Serves a large file by `FileResponse`, with and without TLS; gives the server, the content, and what was sent."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1024 * 1024) * 64)
    sent = []

    async def download(request):
        return FileResponse("large" if request.url.path == "/relative" else path)

    app = Starlette(
        routes=[
            Route("/", download),
            Route("/relative", download),
            Mount("/static", StaticFiles(directory=tmp_path)),
        ]
    )

    async def watched(scope, receive, send):
        async def note(message):
            sent.append(message["type"])
            await send(message)

        await app(scope, receive, note)

    tls = {"certfile": certificates.server, "authority": certificates.authority}
    return await serve(watched, **(tls if request.param == "https" else {})), path, sent


async def hashed(response):
    digest = hashlib.sha256()
    async for piece in response.aiter_raw():
        digest.update(piece)
    return digest.digest()


async def test_a_file_response_is_sent_by_its_path(serve_file):
    """Starlette leaves it to the server, if that says that it can."""
    server, path, sent = serve_file
    content = path.read_bytes()
    async with server.client() as client:
        for url in ("/", "/static/large"):
            sent.clear()
            async with client.stream("GET", url) as response:
                assert await hashed(response) == hashlib.sha256(content).digest()
            assert response.headers["content-length"] == str(len(content))
            assert sent == ["http.response.start", "http.response.pathsend"]


async def test_a_file_response_to_head(serve_file):
    server, path, _ = serve_file
    async with server.client() as client:
        head = await client.head("/")
        assert (head.headers["content-length"], head.content) == (str(64 * 1024 * 1024), b"")
        etag = head.headers["etag"]
        unchanged = await client.get("/static/large", headers={"if-none-match": etag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        async with client.stream("GET", "/") as response:
            assert await hashed(response) == hashlib.sha256(path.read_bytes()).digest()


async def test_ranges_of_a_file_response(serve_file):
    """They are Starlette's own."""
    server, path, sent = serve_file
    content = path.read_bytes()
    async with server.client() as client:
        part = await client.get("/", headers={"range": "bytes=1000-200000"})
        assert (part.status_code, part.content) == (206, content[1000:200001])
        parts = await client.get("/", headers={"range": "bytes=0-9,-10"})
        assert parts.status_code == 206
        assert content[:10] in parts.content
        assert content[-10:] in parts.content
        beyond = await client.get("/", headers={"range": f"bytes={len(content)}-"})
        assert beyond.status_code == 416
    assert "http.response.pathsend" not in sent


async def test_a_file_response_with_a_relative_path(serve_file, monkeypatch):
    """As anybody writes it."""
    server, path, sent = serve_file
    monkeypatch.chdir(path.parent)
    async with server.client() as client, client.stream("GET", "/relative") as response:
        assert await hashed(response) == hashlib.sha256(path.read_bytes()).digest()
    assert "http.response.pathsend" in sent


async def test_a_client_that_leaves_a_file_response(serve, tmp_path):
    """Its response is reported with what was sent of it, and no error is logged."""
    path = tmp_path / "large"
    path.write_bytes(bytes(64 * 1024 * 1024))
    server = await serve(Starlette(routes=[Route("/", lambda request: FileResponse(path))]))
    client = await server.connect()
    await client.read_until(b"\r\n\r\n")
    await client.leave()
    await server.until(lambda: server.log.access)
    sent = int(re.search(r'" 200 (\d+)', server.log.access[0])[1])
    assert 0 < sent < 64 * 1024 * 1024


async def test_an_open_file_is_copied_by_the_system(serve, tmp_path):
    """The extension `http.response.zerocopysend`, which no framework uses by itself."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(16 * 1024 * 1024))
    content = path.read_bytes()

    async def app(scope, receive, send):
        assert "http.response.zerocopysend" in scope["extensions"]
        with path.open("rb") as file:
            await send({"type": "http.response.start", "status": 200})
            message = {"type": "http.response.zerocopysend", "file": file}
            await send(message | {"offset": 8 * 1024 * 1024, "more_body": True})
            await send({"type": "http.response.body", "body": b"-", "more_body": True})
            await send(message | {"offset": 0, "count": 8 * 1024 * 1024})

    server = await serve(app, lifespan="off")
    async with server.client() as client:
        for _ in range(2):
            assert (await client.get("/")).content == content[len(content) // 2 :] + b"-" + content[
                : len(content) // 2
            ]


# Threads


async def test_a_sync_endpoint_runs_in_a_thread_and_can_call_back(serve):
    async def here(text):
        await trio.lowlevel.checkpoint()
        return f"{text} {threading.get_ident()}"

    def endpoint(request):
        return PlainTextResponse(f"{anyio.from_thread.run(here, 'called')} {threading.get_ident()}")

    server = await serve(Starlette(routes=[Route("/", endpoint)]))
    async with server.client() as client:
        word, loop, thread = (await client.get("/")).text.split()
    assert (word, int(loop)) == ("called", threading.get_ident())
    assert int(thread) != threading.get_ident()


async def test_an_upload_is_streamed_through(serve):
    """Each piece of the request's body comes back before the next is sent."""

    async def echo(request: Request):
        async def pieces():
            async for piece in request.stream():
                if piece:
                    yield piece

        return StreamingResponse(pieces())

    server = await serve(Starlette(routes=[Route("/", echo, methods=["POST"])]))
    client = await server.connect("POST / HTTP/1.1", b"5\r\nfirst\r\n", transfer_encoding="chunked")
    await client.read_until(b"\r\n\r\n5\r\nfirst\r\n")
    await client.send(b"6\r\nsecond\r\n0\r\n\r\n")
    assert await client.read_until(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"
    await client.leave()


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_is_read_in_pieces(serve, chunked):
    async def count(request: Request):
        sizes = [len(piece) async for piece in request.stream()]
        return JSONResponse([sum(sizes), max(sizes) <= 1 << 20, "content-length" in request.headers])

    async def body():
        for _ in range(100):
            yield b"x" * 50_000

    server = await serve(Starlette(routes=[Route("/", count, methods=["POST"])]))
    async with server.client() as client:
        content = body() if chunked else b"x" * 5_000_000
        for _ in range(2):
            answer = await client.post("/", content=content)
            assert answer.json() == [5_000_000, True, not chunked]
            content = body() if chunked else content


async def test_a_client_that_leaves_in_the_middle_of_its_upload(serve):
    """`request.stream()` raises; whether the application catches that or not, it is no error."""
    outcomes = []

    async def upload(request: Request):
        try:
            async for _ in request.stream():
                pass
        except ClientDisconnect:
            outcomes.append(request.url.path)
            if request.url.path == "/caught":
                return PlainTextResponse("nobody reads this")
            raise

    server = await serve(Starlette(routes=[Route("/{how}", upload, methods=["POST"])]))
    for path in ("/caught", "/raised"):
        client = await server.connect(f"POST {path} HTTP/1.1", b"some", content_length="100")
        await client.leave()
        await server.until(lambda path=path: path in outcomes)
    await server.stop()
    assert outcomes == ["/caught", "/raised"]
    assert server.log.errors == []


async def test_gzip_middleware(serve):
    async def words():
        for _ in range(100):
            yield "the same words again and again "

    async def page(request):
        return StreamingResponse(words(), media_type="text/plain")

    server = await serve(Starlette(routes=[Route("/", page)], middleware=[Middleware(GZipMiddleware)]))
    async with server.client() as client:
        answer = await client.get("/")
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.text == "the same words again and again " * 100


# Streams, and clients that leave


async def test_each_piece_of_a_stream_is_sent_at_once(serve):
    asked = trio.Event()

    async def words():
        yield "one "
        await asked.wait()
        yield "two"

    async def page(request):
        return StreamingResponse(words(), media_type="text/plain")

    server = await serve(Starlette(routes=[Route("/", page)]))
    pieces = []
    async with server.client() as client, client.stream("GET", "/") as answer:
        async for piece in answer.aiter_text():
            pieces.append(piece)
            asked.set()
    assert pieces == ["one ", "two"]


@pytest.mark.parametrize("where", ["waiting", "sending"])
async def test_the_client_leaves_a_stream(serve, where):
    """The generator's clean-up runs, in its own task, and nothing is logged as an error."""
    cleaned_up = trio.Event()

    async def words():
        try:
            while True:
                yield b"word " * 1000
                await trio.sleep(0 if where == "sending" else 1000)
        finally:
            cleaned_up.set()

    async def page(request):
        return Closing(words())

    class Closing(StreamingResponse):
        """A response that closes its generator itself, as trio wants of whoever iterates over one."""

        async def stream_response(self, send):
            async with aclosing(self.body_iterator):
                await super().stream_response(send)

    server = await serve(Starlette(routes=[Route("/", page)]), disconnect_grace=0.05)
    client = await server.connect()
    await client.read_until(b"word word word")
    await client.leave()
    await cleaned_up.wait()
    await server.stop()
    assert server.log.errors == []
    assert len(server.log.access) == 1


async def test_the_client_leaves_a_stream_whose_generator_nobody_closes(serve):
    """Starlette does not close the generator that it leaves by an exception: the collector does, through trio."""
    cleaned_up = trio.Event()

    async def words():
        try:
            while True:
                yield b"word " * 1000
        finally:
            cleaned_up.set()

    async def page(request):
        return StreamingResponse(words())

    server = await serve(Starlette(routes=[Route("/", page)]))
    client = await server.connect()
    await client.read_until(b"word word word")
    await client.leave()
    await server.until(lambda: gc.collect() >= 0 and cleaned_up.is_set())
    await server.stop()
    assert server.log.errors == []


async def test_disconnect_grace_lets_an_ordinary_handler_finish(serve):
    begun, left, finished = trio.Event(), trio.Event(), trio.Event()

    async def page(request: Request):
        begun.set()
        while not await request.is_disconnected():  # noqa: ASYNC110 - as users of Starlette write it
            await trio.sleep(0.005)
        left.set()
        finished.set()
        return PlainTextResponse("too late")

    server = await serve(Starlette(routes=[Route("/", page)]))
    client = await server.connect()
    await begun.wait()
    await client.leave()
    await finished.wait()
    await server.stop()
    assert server.log.errors == []


async def test_a_handler_that_waits_is_cancelled_when_its_client_leaves(serve):
    begun, cancelled = trio.Event(), trio.Event()

    async def page(request):
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = await serve(Starlette(routes=[Route("/", page)]), disconnect_grace=0)
    client = await server.connect()
    await begun.wait()
    await client.leave()
    await cancelled.wait()
    await server.stop()
    assert server.log.errors == []


async def pass_through(request, call_next):
    response = await call_next(request)
    response.headers.append("x-seen", "yes")
    return response


MIDDLEWARE = [Middleware(BaseHTTPMiddleware, dispatch=pass_through)] * 2


async def test_base_http_middleware(serve):
    async def tell():
        done.set()

    async def echo(request: Request):
        return Response(await request.body(), background=BackgroundTask(tell))

    done = trio.Event()
    server = await serve(Starlette(routes=[Route("/", echo, methods=["POST"])], middleware=MIDDLEWARE))
    async with server.client() as client:
        for _ in range(3):
            answer = await client.post("/", content=b"x" * 200_000)
            assert (len(answer.content), answer.headers.get_list("x-seen")) == (200_000, ["yes", "yes"])
    assert done.is_set()


@pytest.mark.parametrize("how", ["waits", "asks"])
async def test_base_http_middleware_and_a_handler_whose_client_leaves(serve, how):
    """One that waits for the disconnect gets it.

    `request.is_disconnected()` never tells so beneath this middleware, whatever the server or the event loop: it asks
    within a cancelled scope, and the middleware loses the answer. Such a handler is cancelled after the grace.
    """
    begun, left = trio.Event(), trio.Event()

    async def page(request: Request):
        assert (await request.receive())["type"] == "http.request"
        begun.set()
        try:
            if how == "waits":
                assert (await request.receive())["type"] == "http.disconnect"
            else:
                while not await request.is_disconnected():  # noqa: ASYNC110 - as users of Starlette write it
                    await trio.sleep(0.005)
        finally:
            left.set()
        return PlainTextResponse("too late")

    grace = 0.05 if how == "asks" else inf
    server = await serve(Starlette(routes=[Route("/", page)], middleware=MIDDLEWARE), disconnect_grace=grace)
    client = await server.connect()
    await begun.wait()
    await client.leave()
    await left.wait()
    await server.stop()
    assert server.log.errors == []


async def test_base_http_middleware_that_asks_whether_the_client_has_left(serve):
    begun, left = trio.Event(), trio.Event()

    async def watch(request: Request, call_next):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_next, request)
            await begun.wait()
            while not await request.is_disconnected():  # noqa: ASYNC110 - as users of Starlette write it
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        left.set()
        return PlainTextResponse("too late")

    async def page(request):
        begun.set()
        await trio.sleep_forever()

    server = await serve(
        Starlette(routes=[Route("/", page)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=watch)]),
        disconnect_grace=inf,
    )
    client = await server.connect()
    await begun.wait()
    await client.leave()
    await left.wait()
    await server.stop()
    assert server.log.errors == []


async def test_base_http_middleware_and_a_stream_whose_client_leaves(serve):
    cleaned_up = trio.Event()

    async def words():
        try:
            while True:
                yield b"word " * 1000
                await trio.sleep(0.001)
        finally:
            cleaned_up.set()

    async def page(request):
        return StreamingResponse(words())

    server = await serve(Starlette(routes=[Route("/", page)], middleware=MIDDLEWARE), disconnect_grace=0.05)
    client = await server.connect()
    await client.read_until(b"word word word")
    await client.leave()
    await cleaned_up.wait()
    await server.stop()
    assert server.log.errors == []


# Background tasks


async def test_a_background_task_does_not_hold_up_the_next_request(serve):
    """Two requests on one connection: the first one's background task ends after the second one's answer."""
    ports, may_end, ended = [], trio.Event(), trio.Event()

    async def work():
        await may_end.wait()
        ended.set()

    async def page(request: Request):
        ports.append(request.client.port)
        return PlainTextResponse("done", background=BackgroundTask(work))

    async def other(request: Request):
        ports.append(request.client.port)
        return PlainTextResponse("other")

    server = await serve(Starlette(routes=[Route("/", page), Route("/other", other)]), disconnect_grace=0)
    async with server.client() as client:
        assert (await client.get("/")).text == "done"
        assert (await client.get("/other")).text == "other"
    assert len(set(ports)) == 1
    await server.until(lambda: len(server.log.access) == 2)
    assert not ended.is_set()
    may_end.set()  # after the client has left: that cancels nothing
    await ended.wait()


async def test_shutdown_waits_for_background_tasks(serve):
    begun, may_end, ended = trio.Event(), trio.Event(), trio.Event()

    async def work():
        begun.set()
        await may_end.wait()
        ended.set()

    async def page(request: Request):
        return PlainTextResponse("done", background=BackgroundTask(work))

    at_the_end = []

    @asynccontextmanager
    async def lifespan(app):
        yield
        at_the_end.append(ended.is_set())

    server = await serve(Starlette(routes=[Route("/", page)], lifespan=lifespan))
    async with server.client() as client:
        await client.get("/")
    await begun.wait()
    server.begin_shutdown()
    with trio.move_on_after(0.1):
        await server.done.wait()
    assert not server.done.is_set()
    may_end.set()
    await server.done.wait()
    assert at_the_end == [True]


async def test_a_background_task_that_fails_is_logged_and_harms_nobody(serve):
    async def fail():
        raise RuntimeError("after the response")

    async def page(request):
        return PlainTextResponse("done", background=BackgroundTask(fail))

    server = await serve(Starlette(routes=[Route("/", page)]))
    async with server.client() as client:
        assert (await client.get("/")).text == "done"
        await server.log.expect("RuntimeError: after the response")
        assert (await client.get("/")).text == "done"


# Errors


async def test_errors(serve):
    async def fail(request):
        raise RuntimeError("one of ours")

    async def teapot(request):
        raise HTTPException(418, "short and stout", headers={"x-spout": "yes"})

    async def known(request):
        raise KeyError("known")

    async def answer_known(request, error):
        return PlainTextResponse("known", 409)

    server = await serve(
        Starlette(
            routes=[Route("/fail", fail), Route("/teapot", teapot), Route("/known", known)],
            exception_handlers={KeyError: answer_known},
        )
    )
    async with server.client() as client:
        teapot_ = await client.get("/teapot")
        assert (teapot_.status_code, teapot_.text, teapot_.headers["x-spout"]) == (
            418,
            "short and stout",
            "yes",
        )
        assert (await client.get("/known")).status_code == 409
        assert server.log.errors == []
        assert (await client.get("/fail")).status_code == 500
        logged = await server.log.expect("RuntimeError: one of ours")
        assert "Traceback (most recent call last)" in logged
        assert 'application failed on "GET /fail HTTP/1.1" from 127.0.0.1:' in logged
        assert "in fail\n" in logged
        assert (
            len([text for text in server.log.text.split("application failed") if "one of ours" in text]) == 1
        )
        assert (await client.get("/teapot")).status_code == 418


async def test_a_stream_that_fails_is_cut_off(serve):
    """The client can tell; the next connection is served."""

    async def words():
        yield b"some"
        raise RuntimeError("in the middle")

    async def page(request):
        headers = {"content-length": "100"} if "length" in request.query_params else {}
        return StreamingResponse(words(), headers=headers)

    server = await serve(Starlette(routes=[Route("/", page)]))
    async with server.client() as client:
        for query in ("", "?length"):
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await client.get("/" + query)
        await server.log.expect("RuntimeError: in the middle")
        assert (await client.get("/nowhere")).status_code == 404


# WebSocket


class Echo(WebSocketEndpoint):
    encoding = "bytes"

    async def on_connect(self, websocket):
        await websocket.accept(subprotocol="echo", headers=[(b"x-greeting", b"hello")])

    async def on_receive(self, websocket, data):
        await websocket.send_bytes(data)

    async def on_disconnect(self, websocket, close_code):
        websocket.app.state.closed.append(close_code)


async def test_a_websocket_endpoint(serve, in_thread):
    app = Starlette(routes=[WebSocketRoute("/", Echo)])
    app.state.closed = []
    server = await serve(app)

    def talk():
        with websocket(server, subprotocols=["other", "echo"]) as client:
            assert client.subprotocol == "echo"
            assert client.response.headers["x-greeting"] == "hello"
            for message in (b"", b"\0\xff", b"x" * 1_000_000):
                client.send(message)
                assert client.recv(CLIENT_SECONDS) == message
            client.close(4001, "enough")
        with websocket(server, subprotocols=["echo"]) as client:
            client.send(b"x")
            client.recv(CLIENT_SECONDS)
            client.socket.shutdown(socket.SHUT_RDWR)  # vanishes

    await in_thread(talk)
    await server.until(lambda: len(app.state.closed) == 2)
    assert app.state.closed == [4001, 1006]


async def test_a_websocket_of_text_and_json(serve, in_thread):
    async def talk_back(websocket: WebSocket):
        await websocket.accept()
        assert await websocket.receive_text() == "json"
        await websocket.send_json({"q": websocket.query_params["q"], "é": [1, None]})
        await websocket.send_json(await websocket.receive_json(), mode="binary")
        await websocket.close(4123, "as you wish")

    server = await serve(Starlette(routes=[WebSocketRoute("/", talk_back)]))

    def talk():
        with websocket(server, "/?q=1") as client:
            client.send("json")
            assert json.loads(client.recv(CLIENT_SECONDS)) == {"q": "1", "é": [1, None]}
            client.send('{"a": "b"}')
            answer = client.recv(CLIENT_SECONDS)
            assert isinstance(answer, bytes)
            assert json.loads(answer) == {"a": "b"}
            with pytest.raises(ConnectionClosedError) as caught:
                client.recv(CLIENT_SECONDS)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4123, "as you wish")

    await in_thread(talk)


async def test_websocket_endings(serve, in_thread):
    """Denied with a response and without; returned from; failed."""

    async def deny(websocket: WebSocket):
        await websocket.send_denial_response(JSONResponse({"why": "no"}, 401, {"x-why": "no"}))

    async def close(websocket: WebSocket):
        await websocket.close()

    async def leave(websocket: WebSocket):
        await websocket.accept()

    async def fail(websocket: WebSocket):
        await websocket.accept()
        raise RuntimeError("in a WebSocket")

    async def fail_early(websocket: WebSocket):
        raise RuntimeError("before accepting")

    async def forbid(websocket: WebSocket):
        raise HTTPException(403, "forbidden to you")

    handlers = {
        "deny": deny,
        "close": close,
        "leave": leave,
        "fail": fail,
        "early": fail_early,
        "forbid": forbid,
    }
    server = await serve(Starlette(routes=[WebSocketRoute(f"/{name}", handlers[name]) for name in handlers]))

    def refusal(path):
        with pytest.raises(InvalidStatus) as caught, websocket(server, path):
            pass
        return caught.value.response

    def closing(path):
        with (
            websocket(server, path) as client,
            pytest.raises((ConnectionClosedOK, ConnectionClosedError)) as caught,
        ):
            client.recv(CLIENT_SECONDS)
        return caught.value.rcvd.code

    def talk():
        denied = refusal("/deny")
        assert (denied.status_code, json.loads(denied.body), denied.headers["x-why"]) == (
            401,
            {"why": "no"},
            "no",
        )
        assert refusal("/close").status_code == 403
        assert refusal("/nowhere").status_code == 403
        assert refusal("/forbid").status_code == 403
        assert closing("/leave") == 1000
        assert closing("/fail") == 1011
        assert refusal("/early").status_code == 500

    await in_thread(talk)
    await server.log.expect("RuntimeError: in a WebSocket")
    await server.log.expect("RuntimeError: before accepting")


async def test_a_websocket_that_only_sends_ends_when_its_client_leaves(serve, in_thread):
    """Starlette turns the `OSError` of `send()` into a `WebSocketDisconnect` with 1006."""
    codes = []

    async def tell(websocket: WebSocket):
        await websocket.accept()
        try:
            while True:
                await websocket.send_text("tick")
                await trio.sleep(0.001)
        except WebSocketDisconnect as disconnect:
            codes.append(disconnect.code)
            raise

    server = await serve(Starlette(routes=[WebSocketRoute("/", tell)]))

    def talk():
        # Without a bound on its queue: with one, it does not read on while it waits for its closing to be answered.
        with websocket(server, max_queue=None) as client:
            client.recv(CLIENT_SECONDS)
            client.close(1001)

    await in_thread(talk)
    await server.until(lambda: codes)
    await server.stop()
    assert codes == [1006]
    assert server.log.errors == []


async def test_shutdown_closes_websockets(serve, in_thread):
    codes, open_ = [], trio.Event()

    async def wait(websocket: WebSocket):
        await websocket.accept()
        await websocket.send_text("hello")
        open_.set()
        try:
            await websocket.receive_text()
        except WebSocketDisconnect as disconnect:
            codes.append(disconnect.code)

    server = await serve(Starlette(routes=[WebSocketRoute("/", wait)]))

    def talk():
        with websocket(server) as client:
            client.recv(CLIENT_SECONDS)
            with pytest.raises(ConnectionClosedError) as caught:
                client.recv(CLIENT_SECONDS)
            return caught.value.rcvd.code

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _():
            codes.append(await in_thread(talk))

        await open_.wait()
        await server.stop()
    assert codes == [1012, 1012]


# Lifespan, state, files


async def test_lifespan_state(serve):
    steps = []

    @asynccontextmanager
    async def lifespan(app):
        steps.append("up")
        async with trio.open_nursery() as nursery:
            yield {"nursery": nursery, "list": steps}
            nursery.cancel_scope.cancel()
        steps.append("down")

    async def page(request: Request):
        request.state.own = True
        request.state.nursery.start_soon(trio.sleep_forever)
        return JSONResponse([request.state.list, sorted(request.state._state)])

    server = await serve(Starlette(routes=[Route("/", page)], lifespan=lifespan))
    async with server.client() as client:
        assert (await client.get("/")).json() == [["up"], ["list", "nursery", "own"]]
        assert (await client.get("/")).json() == [["up"], ["list", "nursery", "own"]]
    assert steps == ["up"]
    await server.stop()
    assert steps == ["up", "down"]


async def test_static_files(serve, tmp_path):
    content = bytes(range(256)) * 4096  # 1 MiB
    (tmp_path / "large.bin").write_bytes(content)
    (tmp_path / "index.html").write_text("<!doctype html>")
    app = Starlette(routes=[Mount("/files", StaticFiles(directory=tmp_path, html=True))])
    server = await serve(app)
    async with server.client() as client:
        whole = await client.get("/files/large.bin")
        assert whole.content == content
        assert whole.headers["content-length"] == str(len(content))
        assert (await client.get("/files/")).text == "<!doctype html>"
        head = await client.head("/files/large.bin")
        assert (head.content, head.headers["content-length"]) == (b"", str(len(content)))

        unchanged = await client.get("/files/large.bin", headers={"if-none-match": whole.headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")

        part = await client.get("/files/large.bin", headers={"range": "bytes=1000-99999"})
        assert (part.status_code, part.content) == (206, content[1000:100_000])
        assert part.headers["content-range"] == f"bytes 1000-99999/{len(content)}"
        several = await client.get("/files/large.bin", headers={"range": "bytes=0-9,100-109"})
        assert several.headers["content-type"].startswith("multipart/byteranges")
        assert content[100:110] in several.content
        beyond = await client.get("/files/large.bin", headers={"range": f"bytes={len(content)}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(content)}")

        assert (await client.get("/files/none.bin")).status_code == 404
        assert (await client.get("/files/%2e%2e/%2e%2e/etc/passwd")).status_code == 404
        assert (await client.get("/files/large.bin")).content == content


async def test_many_clients_at_once(serve):
    """None waits for another: all meet in the middle."""
    here, met = [], trio.Event()

    async def meet(request: Request):
        here.append(request.path_params["number"])
        if len(here) == 100:
            met.set()
        await met.wait()
        return PlainTextResponse(str(request.path_params["number"]))

    server = await serve(Starlette(routes=[Route("/{number:int}", meet)]))
    answers = {}
    async with (
        server.client(limits=httpx.Limits(max_connections=None)) as client,
        trio.open_nursery() as nursery,
    ):

        async def visit(number):
            answers[number] = (await client.get(f"/{number}")).text

        for number in range(100):
            nursery.start_soon(visit, number)
    assert answers == {number: str(number) for number in range(100)}
