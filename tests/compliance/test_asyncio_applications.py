"""What needs asyncio, on real sockets: Django, Channels, FastAPI with asyncpg on PostgreSQL, Redis, aiohttp."""

# No `from __future__ import annotations`: FastAPI reads them, and finds no local names in strings.

import asyncio
import gc
import json
import os
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import httpx
import pytest
import quart
import redis.asyncio as redis
import trio
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.compliance import django_site
from tests.compliance.databases import running_postgresql, running_redis
from trigi.adapters.asyncio import AsyncioAdapter


@pytest.fixture
def site():
    django_site.EVENTS.clear()
    return django_site


# Django


async def test_django_views_of_both_kinds(serve, site):
    server = await serve(site.app, interface="asyncio")
    async with server.client() as client:
        answer = (await client.post("/async?a=1&b=%C3%A9", content=b"x" * 300_000)).json()
        assert answer == {"method": "POST", "body": 300_000, "query": {"a": "1", "b": "é"}}
        answer = (await client.get("/sync")).json()
        assert answer["method"] == "GET"
        assert answer["thread"] != threading.get_ident()
        assert (await client.head("/async")).status_code == 200
        assert (await client.get("/nowhere")).status_code == 404
    # which has no lifespan, and says so by raising
    assert "the application has no lifespan: it raised ValueError" in server.log.text


async def test_django_many_requests_at_once(serve, site):
    server = await serve(site.app, interface="asyncio")
    statuses = []
    async with server.client() as client, trio.open_nursery() as nursery:

        async def get(path):
            statuses.append((await client.get(path)).status_code)

        for number in range(60):
            nursery.start_soon(get, ("/async", "/sync", "/notes")[number % 3])
    assert statuses == [200] * 60


async def test_django_orm_and_sessions(serve, site):
    server = await serve(site.app, interface="asyncio")
    async with server.client() as client:
        before = (await client.get("/notes")).json()["notes"]
        assert (await client.post("/notes", data={"text": "né"})).status_code == 201
        assert (await client.get("/notes")).json()["notes"] == [*before, "né"]
        server.log.tolerate("rolled back")
        assert (await client.get("/rollback")).status_code == 500
        assert (await client.get("/notes")).json()["notes"] == [*before, "né"]
        assert [(await client.get("/visits")).text for _ in range(3)] == ["1", "2", "3"]
    async with server.client() as client:
        assert (await client.get("/visits")).text == "1"


async def test_django_streams(serve, site):
    server = await serve(site.app, interface="asyncio")
    async with server.client() as client:
        async with client.stream("GET", "/stream") as response:
            pieces = [piece async for piece in response.aiter_raw()]
        assert b"".join(pieces) == b"0\n1\n2\n3\n4\n"
        assert len(pieces) > 1
        with pytest.warns(Warning, match="synchronous iterators"):
            assert (await client.get("/sync-stream")).text == "0\n1\n2\n3\n4\n"


async def test_django_uploads_and_static_files(serve, site):
    server = await serve(site.app, interface="asyncio")
    large = os.urandom(3_000_000)
    async with server.client() as client:
        answer = await client.post("/upload", files={"one": ("a.bin", large), "two": ("b.txt", b"text")})
        assert answer.json() == {"one": ["a.bin", 3_000_000], "two": ["b.txt", 4]}
        response = await client.get("/static/large.bin")
        assert response.content == (site.FOLDER / "static" / "large.bin").read_bytes()
        assert (await client.get("/static/nothing")).status_code == 404


async def test_django_failures(serve, site):
    server = await serve(site.app, interface="asyncio")
    server.log.tolerate("in the view")  # Django logs it, and answers
    async with server.client() as client:
        assert (await client.get("/failing")).status_code == 500
        assert (await client.get("/async")).status_code == 200


async def test_django_learns_of_a_client_that_leaves(serve, site):
    server = await serve(site.app, interface="asyncio")
    raw = await server.connect("GET /endless HTTP/1.1")
    await raw.read_until(b"xxx")
    await raw.leave()
    # Django leaves a generator that was not waiting itself to the collector.
    await server.until(lambda: gc.collect() >= 0 and "stream ended" in site.EVENTS)
    raw = await server.connect("GET /slow HTTP/1.1")
    await server.until(lambda: "slow began" in site.EVENTS)
    await raw.leave()
    await server.until(lambda: "slow cancelled" in site.EVENTS)  # Django's own doing


async def test_django_over_http2_and_tls(serve, site, certificates):
    server = await serve(
        site.app, interface="asyncio", certfile=certificates.server, authority=certificates.authority
    )
    async with server.client(http1=False, http2=True) as client:
        response = await client.post("/async", content=b"x" * 500_000)
        assert (response.http_version, response.json()["body"]) == ("HTTP/2", 500_000)


async def test_django_in_a_process_of_its_own(serve_process, in_thread):
    """As `trigi --interface asyncio` runs it, until SIGTERM."""
    root = Path(__file__).parents[2]
    process = serve_process(
        "--interface", "asyncio", "--app-dir", str(root), "tests.compliance.django_site:app"
    )
    async with httpx.AsyncClient(base_url=process.url, trust_env=False) as client:
        assert (await client.get("/async")).status_code == 200
        assert (await client.post("/notes", data={"text": "one"})).status_code == 201
    began = time.monotonic()
    await in_thread(process.stop)
    assert time.monotonic() - began < 5


async def test_beside_trio_applications(serve, site):
    """Which need no thread, and are not held up by it."""
    django = AsyncioAdapter(site.app)

    async def app(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/trio":
            await trio.lowlevel.checkpoint()
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"trio"})
        else:
            await django(scope, receive, send)

    server = await serve(app)
    async with server.client() as client:
        assert (await client.get("/trio")).text == "trio"
        assert (await client.get("/async")).json()["method"] == "GET"
    await server.stop()
    await django.aclose()


async def test_django_without_the_flag_is_told_of_it(serve):
    """Not Django itself, which trio might run as far as it does; but what everything does that needs asyncio."""
    app = FastAPI()

    @app.get("/")
    async def home():
        await asyncio.sleep(0.1)

    server = await serve(app)
    server.log.tolerate("no running event loop")
    async with server.client() as client:
        assert (await client.get("/")).status_code == 500
    assert "it needs asyncio (--interface asyncio)" in server.log.text


# Channels


async def test_channels_consumers(serve, site, in_thread):
    server = await serve(site.channels_app, interface="asyncio")
    url = server.websocket_url

    def converse():
        with connect(f"{url}/echo", subprotocols=["echo"], proxy=None) as websocket:
            assert websocket.subprotocol == "echo"
            for data in ("text", b"bytes", "x" * 200_000, "é"):
                websocket.send(data)
                assert websocket.recv() == data
            websocket.send("count")
            assert int(websocket.recv()) >= 0
            websocket.send("close")
            with pytest.raises(ConnectionClosed) as caught:
                websocket.recv()
        for path in ("json", "async-json"):
            with connect(f"{url}/{path}", proxy=None) as websocket:
                for number in range(20):
                    websocket.send(json.dumps({"number": number}))
                    assert json.loads(websocket.recv()) == {"got": {"number": number}}
        return caught.value.rcvd

    closed = await in_thread(converse)
    assert (closed.code, closed.reason) == (4002, "as you wish")
    await server.until(lambda: site.EVENTS)
    async with server.client() as client:
        response = await client.post("/poll", content=b"x" * 100_000)
        assert response.json() == {"size": 100_000}
        assert (await client.get("/async")).json()["method"] == "GET"


async def test_channels_groups(serve, site, in_thread):
    server = await serve(site.channels_app, interface="asyncio")
    url = server.websocket_url

    def converse():
        room = f"{url}/chat/tea"
        with connect(room, proxy=None) as one, connect(room, proxy=None) as two:
            with connect(f"{url}/chat/coffee", proxy=None) as other:
                for number in range(50):
                    one.send(f"hello {number}")
                    assert (one.recv(), two.recv()) == (f"hello {number}",) * 2
                with pytest.raises(TimeoutError):
                    other.recv(timeout=0.05)
            two.close(4001)
            one.send("alone")
            assert one.recv() == "alone"
        with pytest.raises(InvalidStatus) as caught:
            connect(f"{url}/chat/closed", proxy=None)
        return caught.value.response.status_code

    assert await in_thread(converse) == 403
    await server.until(lambda: len(site.EVENTS) >= 3)
    assert ("left", "tea", 4001) in site.EVENTS


async def test_channels_at_shutdown(serve, site, in_thread):
    """A WebSocket is closed with 1012, and its consumer told."""
    server = await serve(site.channels_app, interface="asyncio")
    connected = threading.Event()

    def converse():
        with connect(f"{server.websocket_url}/chat/tea", proxy=None) as websocket:
            connected.set()
            with pytest.raises(ConnectionClosed) as caught:
                websocket.recv()
        return caught.value.rcvd.code

    codes = []
    async with trio.open_nursery() as nursery:

        async def client():
            codes.append(await in_thread(converse))

        nursery.start_soon(client)
        await server.until(connected.is_set)
        await server.stop()
    assert codes == [1012]
    assert ("left", "tea", 1012) in site.EVENTS


# Quart


async def test_quart(serve, in_thread):
    app = quart.Quart(__name__)
    events = []

    @app.before_serving
    async def begin():
        events.append("begun")

    @app.after_serving
    async def end():
        events.append("ended")

    @app.post("/echo")
    async def echo():
        await asyncio.sleep(0.001)
        return await quart.request.get_data()

    @app.websocket("/ws")
    async def ws():
        while True:
            await quart.websocket.send(await quart.websocket.receive())

    server = await serve(app, interface="asyncio")

    def converse():
        with connect(f"{server.websocket_url}/ws", proxy=None) as client:
            client.send("text")
            return client.recv()

    assert await in_thread(converse) == "text"
    async with server.client() as client:
        assert (await client.post("/echo", content=b"x" * 200_000)).content == b"x" * 200_000
    await server.stop()
    assert events == ["begun", "ended"]


# FastAPI, with databases


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a PostgreSQL."""
    with running_postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """The URL of a Redis."""
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_fastapi_with_asyncpg(serve, postgresql, loop):
    events = []

    @asynccontextmanager
    async def lifespan(app):
        app.state.pool = await asyncpg.create_pool(postgresql, min_size=2, max_size=5)
        await app.state.pool.execute(
            "drop table if exists tea; create table tea (id serial primary key, name text)"
        )
        events.append("opened")
        yield
        await app.state.pool.close()
        events.append("closed")

    app = FastAPI(lifespan=lifespan)

    @app.post("/tea/{name}")
    async def add(name: str):
        async with app.state.pool.acquire() as connection, connection.transaction():
            number = await connection.fetchval("insert into tea (name) values ($1) returning id", name)
            if name == "coffee":
                raise LookupError("this is no coffee")
        return {"id": number}

    @app.get("/tea")
    async def names():
        async with app.state.pool.acquire() as connection, connection.transaction():
            return [row["name"] async for row in connection.cursor("select name from tea order by name")]

    @app.get("/slow")
    async def slow():
        events.append("slow")
        try:
            await app.state.pool.fetchval("select pg_sleep(60)")
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    @app.get("/sync")
    def in_a_thread():
        return threading.current_thread().name

    server = await serve(AsyncioAdapter(app, loop=loop), disconnect_grace=0)
    async with server.client() as client:
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(client.post, f"/tea/{number:02}")
        server.log.tolerate("this is no coffee")
        assert (await client.post("/tea/coffee")).status_code == 500
        assert (await client.get("/tea")).json() == [f"{number:02}" for number in range(40)]
        assert (await client.get("/sync")).json() != "MainThread"
        # A query whose client has left is cancelled, and its connection is free again.
        for _ in range(6):
            events.clear()
            raw = await server.connect("GET /slow HTTP/1.1")
            await server.until(lambda: "slow" in events)
            await raw.leave()
            await server.until(lambda: "cancelled" in events)
        assert len((await client.get("/tea")).json()) == 40
    await server.stop()
    assert events[-1] == "closed"


async def test_fastapi_with_redis(serve, redis_server, in_thread):
    @asynccontextmanager
    async def lifespan(app):
        app.state.redis = redis.from_url(redis_server, decode_responses=True)
        yield
        await app.state.redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/count/{name}")
    async def count(name: str):
        return await app.state.redis.incr(name)

    @app.post("/publish/{text}")
    async def publish(text: str):
        return await app.state.redis.publish("news", text)

    @app.get("/events")
    async def events():
        async def read():
            async with app.state.redis.pubsub() as pubsub:
                await pubsub.subscribe("news")
                async for message in pubsub.listen():
                    yield f"data: {message['data']}\n\n"

        return StreamingResponse(read(), media_type="text/event-stream")

    @app.websocket("/news")
    async def news(websocket: WebSocket):
        await websocket.accept()
        async with app.state.redis.pubsub() as pubsub:
            await pubsub.subscribe("news")
            async for message in pubsub.listen():
                await websocket.send_text(str(message["data"]))
                if message["data"] == "end":
                    break
        await websocket.close(4000)

    server = await serve(app, interface="asyncio", disconnect_grace=0)
    async with server.client() as client:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(client.post, "/count/visits")
        assert (await client.post("/count/visits")).json() == 51
        raw = await server.connect("GET /events HTTP/1.1")
        await raw.read_until(b"data: 1\n\n")  # subscribed
        await client.post("/publish/hello")
        await raw.read_until(b"data: hello\n\n")
        await raw.leave()

        def converse():
            with connect(f"{server.websocket_url}/news", proxy=None) as websocket:
                received = [websocket.recv()]
                subscribed.set()
                try:
                    while True:
                        received.append(websocket.recv())
                except ConnectionClosed as closed:
                    return received, closed.rcvd.code

        subscribed = threading.Event()
        async with trio.open_nursery() as nursery:

            async def listen():
                received, code = await in_thread(converse)
                assert (received, code) == (["1", "one", "two", "end"], 4000)

            nursery.start_soon(listen)
            await server.until(subscribed.is_set)
            for text in ("one", "two", "end"):
                await client.post(f"/publish/{text}")


async def test_an_aiohttp_client_in_a_handler(serve):
    """Which asks another server, under trio, in the same process."""

    async def upstream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        for number in range(100):
            await send({"type": "http.response.body", "body": b"%03d" % number * 1000, "more_body": True})
        await send({"type": "http.response.body"})

    @asynccontextmanager
    async def lifespan(app):
        async with aiohttp.ClientSession() as app.state.session:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/proxy")
    async def proxy():
        async def pieces():
            async with app.state.session.get(other.url) as response:
                async for piece in response.content.iter_any():
                    yield piece

        return StreamingResponse(pieces())

    other = await serve(upstream, lifespan="off")
    server = await serve(app, interface="asyncio")
    async with server.client() as client, trio.open_nursery() as nursery:

        async def get():
            response = await client.get("/proxy")
            assert response.content == b"".join(b"%03d" % number * 1000 for number in range(100))

        for _ in range(10):
            nursery.start_soon(get)
    await server.stop()  # before the other, whose connections it keeps


async def test_a_client_that_does_not_read_holds_the_application(serve):
    app = FastAPI()
    sent = []

    @app.get("/")
    async def endless():
        async def pieces():
            while True:
                sent.append(65536)
                yield bytes(65536)

        return StreamingResponse(pieces())

    server = await serve(app, interface="asyncio", disconnect_grace=0)
    raw = await server.connect()
    count = -1
    while count != len(sent) or not sent:
        count = len(sent)
        await trio.sleep(0.3)
    assert sum(sent) < 30_000_000  # what the system buffers, and a little
    await raw.leave()


async def test_a_server_does_not_wait_for_what_blocks_its_loop(serve):
    app = FastAPI()
    go_on = threading.Event()

    @app.get("/block")
    async def block():
        go_on.wait(10)

    async def mixed(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/trio":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"trio"})
        else:
            await blocking(scope, receive, send)

    blocking = AsyncioAdapter(app)
    server = await serve(mixed)
    raw = await server.connect("GET /block HTTP/1.1")
    async with server.client() as client:
        for _ in range(20):
            assert (await client.get("/trio", timeout=1)).text == "trio"
    go_on.set()
    await raw.read_until(b"HTTP/1.1 200")
    await raw.leave()
