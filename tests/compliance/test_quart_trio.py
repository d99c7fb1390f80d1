"""Quart-Trio on a real socket: a framework that is trio all through, and races `receive()` against its handlers."""

from __future__ import annotations

import json

import pytest
import trio
from quart import Response, abort, jsonify, make_response, request, stream_with_context, websocket
from quart_trio import QuartTrio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from trigi.exceptions import LifespanFailed

CLIENT_SECONDS = 20.0


@pytest.fixture
def app(tmp_path, log):
    log.tolerate("ERROR app Exception on websocket", "ClientDisconnected")  # Quart logs that, as it comes
    return QuartTrio("app", root_path=str(tmp_path))


async def test_requests(serve, app):
    @app.get("/hello/<name>")
    async def hello(name):
        return jsonify(hello=name, q=request.args["q"], agent=request.headers["User-Agent"])

    @app.get("/sync")
    def in_a_thread():
        return "from a thread"

    @app.post("/json")
    async def echo():
        return await request.get_json(), 201, {"X-Seen": "yes"}

    @app.post("/form")
    async def form():
        file = (await request.files)["file"]
        return {"note": (await request.form)["note"], "file": file.read().decode()}

    server = await serve(app)
    async with server.client(headers={"user-agent": "a test"}) as client:
        answer = await client.get("/hello/Ada?q=%C3%A9")
        assert answer.json() == {"hello": "Ada", "q": "é", "agent": "a test"}
        assert (await client.get("/sync")).text == "from a thread"
        answer = await client.post("/json", json={"a": [1, None]})
        assert (answer.status_code, answer.json(), answer.headers["x-seen"]) == (201, {"a": [1, None]}, "yes")
        answer = await client.post("/form", data={"note": "é"}, files={"file": b"content"})
        assert answer.json() == {"note": "é", "file": "content"}
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.get("/json")).status_code == 405
        head = await client.head("/sync")
        assert (head.content, head.headers["content-length"]) == (b"", "13")


async def test_many_requests_one_after_the_other(serve, app):
    """The framework cancels whichever of `receive()` and its handler is later: no request must be hurt by that."""

    @app.post("/")
    async def echo():
        return await request.get_data()

    server = await serve(app)
    async with server.client() as client:
        for number in range(200):
            body = b"x" * (number * 100)
            answer = await client.post("/", content=body)
            assert (answer.status_code, answer.content) == (200, body)
    assert len(server.log.access) == 200
    assert all('" 200 ' in line for line in server.log.access)


async def test_a_request_body_is_streamed(serve, app):
    @app.post("/")
    async def upper():
        async def pieces():
            async for data in request.body:
                yield data.upper()

        return stream_with_context(pieces)()

    server = await serve(app)
    client = await server.connect("POST / HTTP/1.1", b"5\r\nfirst\r\n", transfer_encoding="chunked")
    await client.read_until(b"\r\n\r\n5\r\nFIRST\r\n")
    await client.send(b"6\r\nsecond\r\n0\r\n\r\n")
    assert await client.read_until(b"0\r\n\r\n") == b"6\r\nSECOND\r\n0\r\n\r\n"
    await client.leave()


async def test_a_response_is_streamed_and_ends_when_the_client_leaves(serve, app):
    """Quart cancels its handler itself, upon `http.disconnect`."""
    cleaned_up = trio.Event()

    @app.get("/")
    async def endless():
        async def words():
            try:
                while True:
                    yield b"word " * 100
                    await trio.sleep(0.001)
            finally:
                cleaned_up.set()

        response = await make_response(words())
        response.timeout = None
        return response

    server = await serve(app)
    client = await server.connect()
    await client.read_until(b"word ")
    await client.leave()
    await cleaned_up.wait()
    await server.stop()
    assert server.log.errors == []


async def test_a_handler_that_waits_is_cancelled_when_its_client_leaves(serve, app):
    begun, cancelled = trio.Event(), trio.Event()

    @app.get("/")
    async def wait():
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = await serve(app)
    client = await server.connect()
    await begun.wait()
    await client.leave()
    await cancelled.wait()
    await server.stop()
    assert server.log.errors == []


async def test_errors(serve, app):
    @app.get("/fails")
    async def fail():
        raise RuntimeError("one of ours")

    @app.get("/group")
    async def fail_in_a_nursery():
        async def fail(number):
            raise RuntimeError(f"number {number}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, 1)
            nursery.start_soon(fail, 2)

    @app.get("/refuses")
    async def refuse():
        abort(418)

    server = await serve(app)
    async with server.client() as client:
        assert (await client.get("/refuses")).status_code == 418
        assert server.log.errors == []
        assert (await client.get("/fails")).status_code == 500
        await server.log.expect("RuntimeError: one of ours")
        assert (await client.get("/group")).status_code == 500
        assert "RuntimeError: number 2" in await server.log.expect("RuntimeError: number 1")
        assert (await client.get("/refuses")).status_code == 418


async def test_lifespan_and_background_tasks(serve, app):
    """`before_serving`, `after_serving`, and work in the framework's nursery, which lives in the lifespan."""
    steps = []
    worked = trio.Event()

    @app.before_serving
    async def start():
        steps.append("up")
        app.nursery.start_soon(run_for_ever)

    async def run_for_ever():
        try:
            await trio.sleep_forever()
        finally:
            steps.append("cancelled")

    @app.after_serving
    async def stop():
        steps.append("down")

    @app.while_serving
    async def around():
        steps.append("in")
        yield
        steps.append("out")

    @app.get("/")
    async def page():
        app.add_background_task(work, "a word")
        return "page"

    async def work(word):
        steps.append(word)
        worked.set()

    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = 0.1
    server = await serve(app)
    assert steps == ["up", "in"]
    async with server.client() as client:
        assert (await client.get("/")).text == "page"
        await worked.wait()
    await server.stop()
    assert steps[:3] == ["up", "in", "a word"]
    assert sorted(steps[3:]) == ["cancelled", "down", "out"]


async def test_a_startup_that_fails(serve, log, app):
    @app.before_serving
    async def start():
        raise RuntimeError("no database")

    with pytest.raises(LifespanFailed, match="no database"):
        await serve(app)
    await log.expect("RuntimeError: no database")  # Quart logs it itself


async def test_a_websocket(serve, app, in_thread):
    closed = trio.Event()

    @app.websocket("/<room>")
    async def talk_back(room):
        if "token" not in websocket.args:
            abort(401)
        await websocket.accept(headers={"X-Room": room}, subprotocol="echo")
        try:
            while True:
                message = await websocket.receive()
                if message == "close":
                    await websocket.close(4001, "as you wish")
                    return
                await websocket.send(message)
        finally:
            closed.set()

    server = await serve(app)

    def talk():
        with pytest.raises(InvalidStatus) as refused, connect(server.websocket_url + "/green", proxy=None):
            pass
        assert refused.value.response.status_code == 401
        url = server.websocket_url + "/green?token"
        with connect(url, proxy=None, subprotocols=["echo"]) as client:
            assert (client.subprotocol, client.response.headers["X-Room"]) == ("echo", "green")
            for message in ("text", "é" * 100_000, b"\0\xff", b"x" * 1_000_000):
                client.send(message)
                assert client.recv(CLIENT_SECONDS) == message
            client.send("close")
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(CLIENT_SECONDS)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as you wish")
        with connect(url, proxy=None, subprotocols=["echo"]) as client:
            client.send("bye")
            assert client.recv(CLIENT_SECONDS) == "bye"

    await in_thread(talk)
    await closed.wait()


async def test_a_websocket_that_sends_and_receives_at_once(serve, app, in_thread):
    """Two tasks of one handler; when the client leaves, both are cancelled."""
    ended = []

    @app.websocket("/")
    async def both():
        async def send():
            try:
                number = 0
                while True:
                    await websocket.send_json({"number": number})
                    number += 1
                    await trio.sleep(0.001)
            finally:
                ended.append("sending")

        async def receive():
            try:
                while True:
                    await websocket.receive()
            finally:
                ended.append("receiving")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)

    server = await serve(app)

    def talk():
        # Without a bound on its queue: with one, it does not read on while it waits for its closing to be answered.
        with connect(server.websocket_url, proxy=None, max_queue=None) as client:
            for number in range(20):
                assert json.loads(client.recv(CLIENT_SECONDS)) == {"number": number}
                client.send("x" * number)

    await in_thread(talk)
    await server.stop()
    assert sorted(ended) == ["receiving", "sending"]
    assert server.log.errors == []


async def test_a_websocket_that_fails(serve, app, in_thread):
    @app.websocket("/")
    async def fail():
        await websocket.receive()
        raise RuntimeError("in a WebSocket")

    server = await serve(app)

    def talk():
        with connect(server.websocket_url, proxy=None) as client:
            client.send("hello")
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(CLIENT_SECONDS)
            return caught.value.rcvd.code

    assert await in_thread(talk) in (1000, 1011)  # Quart catches the error, and closes the WebSocket itself
    await server.log.expect("RuntimeError: in a WebSocket")


async def test_shutdown_lets_a_request_finish(serve, app):
    begun = trio.Event()
    answers = []

    @app.get("/")
    async def page():
        begun.set()
        await request.scope["extensions"]["trigi"]["shutting_down"].wait()
        return Response("in time")

    server = await serve(app)

    async def visit():
        async with server.client() as client:
            answers.append(await client.get("/"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        await begun.wait()
        server.begin_shutdown()
    assert [(answer.text, answer.headers["connection"]) for answer in answers] == [("in time", "close")]
