"""FastAPI on a real socket: endpoints of both kinds, dependencies that clean up, forms, streams, WebSockets."""

# No `from __future__ import annotations`: FastAPI reads them, and finds no local names in strings.

import gc
import json
import threading
from typing import Annotated, Any

import anyio
import httpx
import pytest
import trio
from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Request,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
)
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

CLIENT_SECONDS = 20.0

# Starlette leaves its own generators, and those it is given, to the collector when a client leaves; trio warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(starlette|.*words)[^ ]*' was garbage:ResourceWarning"
)


class Item(BaseModel):
    name: str
    price: float = 1.5


async def test_endpoints_of_both_kinds_and_validation(serve):
    app = FastAPI()

    @app.get("/async/{number}")
    async def in_the_loop(
        number: int, q: str = "none", agent: Annotated[str, Header(alias="user-agent")] = ""
    ):
        return {"number": number, "q": q, "agent": agent, "thread": threading.get_ident()}

    @app.get("/sync/{number}")
    def in_a_thread(number: int):
        return {"number": number, "thread": threading.get_ident()}

    @app.post("/items", status_code=201)
    async def create(item: Item) -> Item:
        return item

    @app.put("/items")
    def change(item: Item) -> Item:
        return item

    server = await serve(app)
    async with server.client(headers={"user-agent": "a test"}) as client:
        assert (await client.get("/async/3?q=é")).json() == {
            "number": 3,
            "q": "é",
            "agent": "a test",
            "thread": threading.get_ident(),
        }
        other = (await client.get("/sync/4")).json()
        assert other["number"] == 4
        assert other["thread"] != threading.get_ident()
        assert (await client.get("/sync/four")).status_code == 422
        created = await client.post("/items", json={"name": "tea"})
        assert (created.status_code, created.json()) == (201, {"name": "tea", "price": 1.5})
        assert (await client.put("/items", json={"name": "tea", "price": 2})).json()["price"] == 2
        assert (await client.post("/items", json={})).status_code == 422
        assert (await client.post("/items", content=b"{")).status_code == 422
        schema = (await client.get("/openapi.json")).json()
        assert "/items" in schema["paths"]
        assert "swagger" in (await client.get("/docs")).text


async def test_many_sync_endpoints_at_once(serve):
    """They meet in their threads, more often than there are threads."""
    app = FastAPI()
    barrier = threading.Barrier(20)

    @app.get("/")
    def meet():
        return barrier.wait(CLIENT_SECONDS)

    server = await serve(app)
    places: list[int] = []
    async with (
        server.client(limits=httpx.Limits(max_connections=None)) as client,
        trio.open_nursery() as nursery,
    ):

        async def visit():
            places.append((await client.get("/")).json())

        for _ in range(60):
            nursery.start_soon(visit)
    assert sorted(places) == sorted(list(range(20)) * 3)


# Dependencies with yield


def application_with_dependency(events: list[str]) -> Any:
    """An application whose endpoints depend on something that is opened and closed."""
    app = FastAPI()

    async def resource():
        events.append("open")
        try:
            yield events
        except BaseException as error:
            events.append(type(error).__name__)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()  # clean-up that has to wait
            events.append("closed")

    def sync_resource():
        events.append("open in a thread")
        try:
            yield events
        finally:
            events.append("closed in a thread")

    async_dependency = Annotated[list, Depends(resource)]
    sync_dependency = Annotated[list, Depends(sync_resource)]

    @app.get("/")
    async def use(got: async_dependency, other: sync_dependency):
        got.append("used")

    @app.get("/fails")
    async def fail(got: async_dependency):
        raise RuntimeError("with a dependency")

    @app.get("/refuses")
    async def refuse(got: async_dependency):
        raise HTTPException(409, "not now")

    @app.get("/waits")
    async def wait(got: async_dependency):
        got.append("waiting")
        await trio.sleep_forever()

    @app.get("/streams")
    async def stream(got: async_dependency):
        async def words():
            while True:
                yield "word " * 10
                await trio.sleep(0.001)

        return StreamingResponse(words())

    @app.websocket("/")
    async def talk(websocket: WebSocket, got: async_dependency, token: str = ""):
        if token != "right":
            raise WebSocketException(4003, "wrong token")
        await websocket.accept()
        try:
            while True:
                await websocket.send_json({"events": got, "heard": await websocket.receive_text()})
        except WebSocketDisconnect:
            got.append("client gone")

    return app


async def test_a_dependency_is_closed_after_the_response(serve):
    events: list[str] = []
    server = await serve(application_with_dependency(events))
    async with server.client() as client:
        assert (await client.get("/")).json() is None
        await server.until(lambda: "closed" in events)
    assert events == ["open", "open in a thread", "used", "closed in a thread", "closed"]


async def test_a_dependency_is_closed_when_the_endpoint_fails(serve):
    events: list[str] = []
    server = await serve(application_with_dependency(events))
    async with server.client() as client:
        assert (await client.get("/refuses")).status_code == 409
        assert events == ["open", "HTTPException", "closed"]
        events.clear()
        assert (await client.get("/fails")).status_code == 500
        await server.log.expect("RuntimeError: with a dependency")
        assert events == ["open", "RuntimeError", "closed"]


async def test_a_dependency_is_closed_when_the_client_leaves(serve):
    events: list[str] = []
    server = await serve(application_with_dependency(events), disconnect_grace=0)
    client = await server.connect("GET /waits HTTP/1.1")
    await server.until(lambda: "waiting" in events)
    await client.leave()
    await server.until(lambda: "closed" in events)
    assert events == ["open", "waiting", "Cancelled", "closed"]
    assert server.log.errors == []


async def test_a_dependency_of_a_stream_is_closed_when_the_client_leaves(serve):
    """(The stream's own generator is left to the collector by Starlette.)"""
    events: list[str] = []
    server = await serve(application_with_dependency(events))
    client = await server.connect("GET /streams HTTP/1.1")
    await client.read_until(b"word ")
    await client.leave()
    await server.until(lambda: "closed" in events)
    await server.stop()
    assert server.log.errors == []


async def test_a_websocket_with_a_dependency(serve, in_thread):
    events: list[str] = []
    server = await serve(application_with_dependency(events))

    def talk():
        with pytest.raises(InvalidStatus) as caught, connect(server.websocket_url, proxy=None):
            pass
        assert caught.value.response.status_code == 403
        assert events == ["open", "WebSocketException", "closed"]
        events.clear()
        with connect(server.websocket_url + "?token=right", proxy=None) as client:
            client.send("hello")
            assert json.loads(client.recv(CLIENT_SECONDS)) == {"events": ["open"], "heard": "hello"}
            assert events == ["open"]

    await in_thread(talk)
    await server.until(lambda: "closed" in events)
    assert events == ["open", "client gone", "closed"]


async def test_a_websocket_whose_parameters_are_wrong(serve, in_thread):
    """FastAPI closes it with a reason that is a list, which no close frame will carry."""
    app = FastAPI()

    @app.websocket("/{number}")
    async def talk_back(websocket: WebSocket, number: int):
        raise AssertionError

    server = await serve(app)

    def refused():
        with pytest.raises(InvalidStatus) as caught, connect(server.websocket_url + "/four", proxy=None):
            pass
        return caught.value.response.status_code

    assert await in_thread(refused) == 403


async def test_a_websocket_closed_by_an_exception_after_it_was_accepted(serve, in_thread):
    app = FastAPI()

    @app.websocket("/")
    async def talk_back(websocket: WebSocket):
        await websocket.accept()
        await websocket.receive_text()
        raise WebSocketException(4100, "enough")

    server = await serve(app)

    def talk():
        with connect(server.websocket_url, proxy=None) as client:
            client.send("hello")
            with pytest.raises(ConnectionClosedError) as caught:
                client.recv(CLIENT_SECONDS)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4100, "enough")

    await in_thread(talk)


# Forms, streams, background tasks


async def test_an_uploaded_file_and_a_form(serve):
    app = FastAPI()

    @app.post("/")
    async def upload(
        file: UploadFile, note: Annotated[str, Form()], more: Annotated[list[UploadFile], File()]
    ):
        content = await file.read()
        return {
            "name": file.filename,
            "type": file.content_type,
            "size": len(content),
            "same": content == b"\0\xff\r\n" * 500_000,
            "note": note,
            "more": [(await each.read()).decode() for each in more],
        }

    @app.post("/form")
    def form(a: Annotated[str, Form()], b: Annotated[int, Form()] = 2):
        return [a, b]

    server = await serve(app)
    async with server.client() as client:
        files = [
            ("file", ("bytes.bin", b"\0\xff\r\n" * 500_000, "application/x-bytes")),
            ("more", ("1.txt", b"one")),
            ("more", ("2.txt", b"two")),
        ]
        answer = await client.post("/", files=files, data={"note": "é&="})
        assert answer.json() == {
            "name": "bytes.bin",
            "type": "application/x-bytes",
            "size": 2_000_000,
            "same": True,
            "note": "é&=",
            "more": ["one", "two"],
        }
        assert (await client.post("/form", data={"a": "x y", "b": "3"})).json() == ["x y", 3]
        assert (await client.post("/form", data={"b": "3"})).status_code == 422


async def test_an_upload_of_a_client_that_leaves(serve):
    app = FastAPI()
    called = []

    @app.post("/")
    async def upload(file: UploadFile):
        called.append(file)

    server = await serve(app)
    client = await server.connect(
        "POST / HTTP/1.1",
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nsome of it',
        content_type="multipart/form-data; boundary=b",
        content_length="100000",
    )
    await client.leave()
    await server.log.wait_for('"POST / HTTP/1.1"')
    await server.stop()
    assert called == []
    assert server.log.errors == []


async def test_streams_of_both_kinds(serve):
    app = FastAPI()
    threads = set()

    @app.get("/async")
    async def from_the_loop():
        async def words():
            for number in range(100):
                yield f"{number},"

        return StreamingResponse(words(), media_type="text/plain")

    @app.get("/sync")
    def from_a_thread():
        def words():
            for number in range(100):
                threads.add(threading.get_ident())
                yield f"{number},"

        return StreamingResponse(words(), media_type="text/plain")

    server = await serve(app)
    async with server.client() as client:
        expected = "".join(f"{number}," for number in range(100))
        assert (await client.get("/async")).text == expected
        assert (await client.get("/sync")).text == expected
    assert threads
    assert threading.get_ident() not in threads


async def test_a_sync_stream_ends_when_its_client_leaves(serve):
    """(Starlette leaves its own wrapper around the generator to the collector.)"""
    app = FastAPI()
    steps, closed = [], threading.Event()

    @app.get("/")
    def endless():
        def words():
            try:
                while True:
                    steps.append(None)
                    yield "word " * 1000
            finally:
                closed.set()

        return StreamingResponse(words())

    server = await serve(app)
    client = await server.connect()
    await client.read_until(b"word ")
    await client.leave()
    await server.until(lambda: gc.collect() >= 0 and closed.is_set())
    await server.stop()
    assert server.log.errors == []


async def test_a_sync_endpoint_whose_client_leaves_runs_to_its_end(serve):
    """A thread can't be cancelled: it is waited for, and the next request is served meanwhile."""
    app = FastAPI()
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    @app.get("/")
    def work():
        begun.set()
        may_end.wait(CLIENT_SECONDS)
        ended.set()

    @app.get("/other")
    def other():
        return "other"

    server = await serve(app, disconnect_grace=0)
    client = await server.connect()
    assert await trio.to_thread.run_sync(begun.wait, CLIENT_SECONDS)
    await client.leave()
    async with server.client() as another:
        assert (await another.get("/other")).json() == "other"
    assert not ended.is_set()
    may_end.set()
    await server.stop()
    assert ended.is_set()
    assert server.log.errors == []


async def test_a_sync_endpoint_can_call_back_until_its_request_is_cancelled(serve):
    app = FastAPI()
    begun, stopped = threading.Event(), threading.Event()

    @app.get("/")
    def work():
        begun.set()
        try:
            while True:
                anyio.from_thread.run(trio.sleep, 0.001)
        finally:
            stopped.set()

    server = await serve(app, disconnect_grace=0)
    client = await server.connect()
    assert await trio.to_thread.run_sync(begun.wait, CLIENT_SECONDS)
    await client.leave()
    assert await trio.to_thread.run_sync(stopped.wait, CLIENT_SECONDS)
    await server.stop()
    assert server.log.errors == []


async def test_background_tasks_of_both_kinds(serve):
    app = FastAPI()
    done: list[str] = []

    def in_a_thread(word):
        done.append(word)

    async def in_the_loop(word):
        await trio.lowlevel.checkpoint()
        done.append(word)

    @app.get("/")
    async def page(tasks: BackgroundTasks):
        tasks.add_task(in_a_thread, "one")
        tasks.add_task(in_the_loop, "two")
        return "page"

    server = await serve(app)
    async with server.client() as client:
        assert (await client.get("/")).json() == "page"
        await server.until(lambda: "two" in done)
    assert done == ["one", "two"]


async def test_an_event_stream_notices_that_its_client_has_left(serve):
    app = FastAPI()
    left = trio.Event()

    @app.get("/events")
    async def events(request: Request):
        async def lines():
            number = 0
            while not await request.is_disconnected():
                yield f"id: {number}\ndata: tick\n\n"
                number += 1
                await trio.sleep(0.01)
            left.set()

        return StreamingResponse(lines(), media_type="text/event-stream")

    server = await serve(app)
    client = await server.connect("GET /events HTTP/1.1")
    await client.read_until(b"id: 2\ndata: tick\n\n")
    await client.leave()
    await server.log.wait_for('"GET /events HTTP/1.1" 200')
    await server.stop()
    assert server.log.errors == []
