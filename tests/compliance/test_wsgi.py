"""WSGI on real sockets: Flask, Django and Bottle, the validator of the standard library, many clients, large bodies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from wsgiref.validate import validator

import bottle
import flask
import httpx
import pytest
import trio
import trio.testing
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from trigi.adapters import WSGIAdapter

SECONDS = 20
"""What a thread waits for the test is given up after this."""

GIB = 1024**3
MIB = 1024**2

MEMORY = 100 * MIB
"""What the process may have resident at most, of which Python and its libraries take some 40 MiB."""

LARGE_SECONDS = 120.0
"""What curl may take for a GiB."""

FOLDER = str(Path(__file__).parent)


@pytest.fixture
def serve_wsgi(serve):
    return partial(serve, interface="wsgi")


# Flask


@pytest.fixture
def app(tmp_path):
    return flask.Flask("app", root_path=str(tmp_path))


async def test_flask(serve_wsgi, app, tmp_path):
    (tmp_path / "file.txt").write_bytes(b"0123456789" * 10_000)
    app.secret_key = "of a test"

    @app.get("/hello/<name>")
    def hello(name):
        flask.session["name"] = name
        return flask.jsonify(hello=name, q=flask.request.args["q"], address=flask.request.remote_addr)

    @app.get("/again")
    def again():
        return flask.session["name"]

    @app.post("/json")
    def echo():
        return flask.request.get_json(), 201, {"X-Seen": "yes"}

    @app.post("/form")
    def form():
        return {"note": flask.request.form["note"], "file": flask.request.files["file"].read().decode()}

    @app.post("/async")
    async def in_a_loop():
        return flask.request.get_data()[::-1]

    @app.get("/file")
    def file():
        return flask.send_file(tmp_path / "file.txt", conditional=True)

    @app.get("/away")
    def away():
        return flask.redirect("/again")

    server = await serve_wsgi(app)
    async with server.client(follow_redirects=True) as client:
        answer = await client.get("/hello/Ad%C3%A9?q=%C3%A9")
        assert answer.json() == {"hello": "Adé", "q": "é", "address": "127.0.0.1"}
        assert (await client.get("/away")).text == "Adé"
        answer = await client.post("/json", json={"a": [1, None]})
        assert (answer.status_code, answer.json(), answer.headers["x-seen"]) == (201, {"a": [1, None]}, "yes")
        answer = await client.post("/form", data={"note": "é"}, files={"file": b"content" * 100_000})
        assert answer.json() == {"note": "é", "file": "content" * 100_000}
        assert (await client.post("/async", content=b"abc")).text == "cba"
        answer = await client.get("/file")
        assert (answer.content, answer.headers["content-length"]) == (b"0123456789" * 10_000, "100000")
        answer = await client.get("/file", headers={"range": "bytes=5-14"})
        assert (answer.status_code, answer.content) == (206, b"5678901234")
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.get("/json")).status_code == 405
        head = await client.head("/file")
        assert (head.content, head.headers["content-length"]) == (b"", "100000")


async def test_flask_reads_chunks(serve_wsgi, app):
    @app.post("/")
    def index():
        return flask.jsonify(length=flask.request.content_length, body=flask.request.get_data(as_text=True))

    async def pieces():
        for piece in (b"one ", b"two ", b"three"):
            yield piece

    server = await serve_wsgi(app)
    async with server.client() as client:
        answer = await client.post("/", content=pieces())
    assert answer.json() == {"length": None, "body": "one two three"}


async def test_flask_streams_with_its_context(serve_wsgi, app):
    @app.get("/")
    def index():
        def lines():
            for number in range(3):
                yield f"{flask.request.args['word']} {number}\n"

        return flask.stream_with_context(lines())

    server = await serve_wsgi(app)
    async with server.client() as client, client.stream("GET", "/?word=é") as answer:
        assert [line async for line in answer.aiter_lines()] == ["é 0", "é 1", "é 2"]
        assert "transfer-encoding" in answer.headers


async def test_an_error_in_flask(serve_wsgi, app, log):
    log.tolerate("mine")  # as Flask and the server report it

    @app.get("/")
    def index():
        raise LookupError("mine")

    server = await serve_wsgi(app)
    async with server.client() as client:
        assert (await client.get("/")).status_code == 500
    await log.wait_for("LookupError: mine")


async def test_a_client_that_leaves_flask_in_the_middle(serve_wsgi, app):
    ended = threading.Event()

    @app.get("/")
    def index():
        def blocks():
            try:
                while True:
                    yield b"x" * 65536
            finally:
                ended.set()

        return flask.Response(blocks())

    server = await serve_wsgi(app)
    raw = await server.connect()
    await raw.read_until(b"\r\n\r\n")
    await raw.leave()
    await server.until(ended.is_set)
    await server.until(lambda: trio.testing.active_thread_count() == 0)


async def test_a_client_that_leaves_in_the_middle_of_its_upload(serve_wsgi):
    errors = []

    def application(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            errors.append(error)
            raise

    server = await serve_wsgi(application)
    raw = await server.connect("POST / HTTP/1.1", b"half", content_length="8")
    await server.until(lambda: trio.testing.active_thread_count() == 1)
    await raw.leave()
    await server.until(lambda: errors)
    assert "left before the end of the request's body" in str(errors[0])
    await server.until(lambda: trio.testing.active_thread_count() == 0)


# Django


DJANGO_APP = Path(FOLDER, "wsgi_django_app.py").read_text(encoding="ascii")


@pytest.fixture
def django(serve_process):
    return serve_process("--app-dir", FOLDER, "wsgi:wsgi_django_app:app")


async def test_django(django, curl):
    url = django.url

    async def get(*args):
        return (await curl(*args)).out.decode()

    answer = await get("-b", "a=1; b=2", f"{url}/echo/Ad%C3%A9?q=%C3%A9")
    assert '"name": "Ad\\u00e9", "path": "/echo/Ad\\u00e9", "get": {"q": "\\u00e9"}' in answer
    assert '"cookies": {"a": "1", "b": "2"}' in answer
    assert f'"url": "{url}/echo/Ad%C3%A9?q=%C3%A9"' in answer
    answer = await get("-F", "note=é", "-F", f"file=@{__file__}", f"{url}/echo/form")
    assert '"post": {"note": "\\u00e9"}, "files": {"file": "\\"\\"\\"WSGI on"}' in answer
    assert await get("--data-binary", "x" * 100_000, f"{url}/body") == "100000"
    assert await get("--data-binary", "view", f"{url}/async") == "async view"
    assert await get(f"{url}/stream") == "0\n1\n2\n"
    assert await get(f"{url}/file") == DJANGO_APP
    head = (await get("-I", f"{url}/file")).lower()
    assert f"content-length: {len(DJANGO_APP)}\r\n" in head
    assert await get("-o", "/dev/null", "-w", "%{http_code}", f"{url}/failing") == "500"
    assert await get("-o", "/dev/null", "-w", "%{http_code}", f"{url}/nowhere") == "404"
    with trio.fail_after(SECONDS):
        while django.stderr.count("request finished\n") < 9:  # noqa: ASYNC110 - a process tells nobody
            await trio.sleep(0.005)
    assert django.stderr.count("stream closed\n") == 1


async def test_a_client_that_leaves_django_in_the_middle(django):
    stream = await trio.open_tcp_stream("127.0.0.1", django.port)
    await stream.send_all(b"GET /stream?count=1000000000 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
    assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
    await trio.aclose_forcefully(stream)
    with trio.fail_after(SECONDS):
        while "request finished\n" not in django.stderr:  # noqa: ASYNC110 - see above
            await trio.sleep(0.005)
    assert "stream closed\n" in django.stderr


# Bottle


async def test_bottle(serve_wsgi, tmp_path):
    (tmp_path / "file.txt").write_bytes(b"content")
    app = bottle.Bottle()

    @app.get("/hello/<name>")
    def hello(name):
        return {"hello": name, "q": bottle.request.query.q}

    @app.post("/form")
    def form():
        return bottle.request.forms.note + bottle.request.files.file.file.read().decode()

    @app.post("/body")
    def body():
        return bottle.request.body.read()

    @app.get("/file")
    def file():
        return bottle.static_file("file.txt", root=str(tmp_path))

    @app.get("/lines")
    def lines():
        yield "one\n"
        yield "two\n"

    server = await serve_wsgi(app)
    async with server.client() as client:
        assert (await client.get("/hello/Ada?q=1")).json() == {"hello": "Ada", "q": "1"}
        answer = await client.post("/form", data={"note": "é"}, files={"file": b"content"})
        assert answer.text == "écontent"
        assert (await client.post("/body", content=b"one two")).text == "one two"
        assert (await client.get("/file")).text == "content"
        assert (await client.get("/lines")).text == "one\ntwo\n"
        assert (await client.get("/nowhere")).status_code == 404


# PEP 3333


@validator
def strict(environ, start_response):
    body = environ["wsgi.input"]
    pieces = [body.read(3), body.readline(), *body]
    assert body.read(1) == b""
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("X-Twice", "1"), ("X-Twice", "é")])
    write(b"written, ")
    return iter([b"", environ["SERVER_PROTOCOL"].encode(), b" ", *pieces])


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("tls", [False, True])
async def test_the_validator_finds_nothing(serve_wsgi, certificates, http2, tls):
    more = {}
    if tls:
        more = {
            "certfile": certificates.server,
            "authority": certificates.authority,
        }
    server = await serve_wsgi(strict, **more)
    protocol = b"HTTP/2" if http2 else b"HTTP/1.1"
    async with server.client(http1=not http2, http2=http2) as client:
        for _ in range(2):
            answer = await client.post("/a%20b?q", content=b"abcdef\nghi\n")
            assert answer.content == b"written, " + protocol + b" abcdef\nghi\n"
            assert (
                answer.headers.raw.count((b"X-Twice", b"1")) + answer.headers.raw.count((b"x-twice", b"1"))
                == 1
            )
        answer = await client.get("/")
        assert answer.content == b"written, " + protocol + b" "


async def test_on_a_unix_socket(serve_wsgi, tmp_path):
    seen = []

    @validator
    def application(environ, start_response):
        seen.append({name: environ[name] for name in ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR")})
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    path = tmp_path / "sock"
    await serve_wsgi(application, bind=[f"unix:{path}"])
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://example.org:8080/")).text == "hello"
    assert seen == [{"SERVER_NAME": "example.org", "SERVER_PORT": "8080", "REMOTE_ADDR": ""}]


# Threads


async def test_200_requests_at_once_into_40_threads(serve_wsgi):
    """None is lost, those of a connection are answered in order, and no thread is left."""
    lock = threading.Lock()
    running, most = 0, 0
    all_threads = threading.Barrier(40)

    def application(environ, start_response):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        all_threads.wait(SECONDS)  # 200 are five times 40
        with lock:
            running -= 1
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    server = await serve_wsgi(application)
    answers = {}

    async def ask(number):
        raw = await server.connect(f"GET /{number} HTTP/1.1", connection="close")
        answers[number] = (await raw.read_all()).rpartition(b"\r\n\r\n")[2]
        await raw.leave()

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(ask, number)
    assert answers == {number: b"/%d" % number for number in range(200)}
    assert most == 40
    await server.until(lambda: trio.testing.active_thread_count() == 0)


async def test_pipelined_requests_are_answered_in_order(serve_wsgi):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "3")])
        return [environ["PATH_INFO"][1:].encode()]

    server = await serve_wsgi(application)
    requests = b"".join(b"GET /%03d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(100))
    raw = await server.connect("GET /abc HTTP/1.1", body=requests)
    for wanted in (b"abc", *(b"%03d" % number for number in range(100))):
        assert await raw.read_until(b"\r\n\r\n" + wanted)
    await raw.leave()


async def test_beyond_the_queue_it_is_503(serve):
    release = threading.Event()

    def application(environ, start_response):
        assert release.wait(SECONDS)
        start_response("204 No Content", [])
        return []

    adapter = WSGIAdapter(application, threads=1, queue=1)
    server = await serve(adapter)
    waiting = [await server.connect(connection="close") for _ in range(2)]
    await server.until(lambda: adapter._calls == 2)
    async with server.client() as client:
        refused = await client.get("/")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    release.set()
    for raw in waiting:
        assert (await raw.read_all()).startswith(b"HTTP/1.1 204")
        await raw.leave()


async def test_the_adapter_can_be_part_of_an_asgi_application(serve):
    """By a path, next to what is async: the rest is Starlette's."""

    def old(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{environ['SCRIPT_NAME']} {environ['PATH_INFO']}".encode()]

    async def new(request):
        return PlainTextResponse("new")

    server = await serve(Starlette(routes=[Route("/new", new), Mount("/old", WSGIAdapter(old))]))
    async with server.client() as client:
        assert (await client.get("/new")).text == "new"
        assert (await client.get("/old/a/b")).text == "/old /a/b"


STUCK = """
import sys
import threading

def never_ending():
    print("in the application", file=sys.stderr, flush=True)
    threading.Event().wait()

def app(environ, start_response):
    never_ending()
"""


def test_a_process_whose_thread_does_not_end_says_where_it_is(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    command = [sys.executable, "-m", "trigi", "--bind", "127.0.0.1:0", "--interface", "wsgi", "stuck:app"]
    limits = ["--graceful-timeout", "0.1", "--cleanup-timeout", "0.3"]
    process = subprocess.Popen([*command, *limits], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    lines = []
    in_the_application = threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if "in the application" in line:
                in_the_application.set()
            if "listening on" in line:
                listening.set()

    listening = threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert listening.wait(SECONDS)
        port = int(lines[-1].rsplit(":", 1)[1])

        async def ask():
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /path HTTP/1.1\r\nhost: x\r\n\r\n")
                await trio.to_thread.run_sync(in_the_application.wait, SECONDS)
                process.send_signal(signal.SIGTERM)
                assert await stream.receive_some() == b""

        trio.run(ask)
        assert process.wait(SECONDS) == 1
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
    rest = "".join(lines)
    assert "WSGI application still running 0.3 s after it was cancelled, on GET /path, in thread" in rest
    assert "in never_ending\n" in rest
    assert rest.endswith("exiting with application calls still running\n")


# Large bodies


@pytest.fixture
def large(serve_process):
    if not Path("/proc/self/status").exists():
        pytest.skip("what memory a process has is read from /proc, which this system has not")
    return serve_process("--app-dir", FOLDER, "wsgi:wsgi_large_app:app")


async def test_an_upload_of_a_gib(large, curl):
    curl_ = f"curl -q -sS --noproxy '*' --max-time {LARGE_SECONDS} -T - {large.url}"
    answer = await trio.run_process(f"head -c {GIB} /dev/zero | {curl_}", shell=True, capture_stdout=True)
    assert answer.stdout.decode() == f"{GIB}\n"
    assert large.peak_memory < MEMORY


@pytest.mark.parametrize(("path", "size"), [("", GIB), ("/lines", 64 * MIB)])
async def test_a_download(large, curl, path, size):
    url = f"{large.url}{path}/{size}"
    answer = await curl("-o", "/dev/null", "-w", "%{size_download}", url, seconds=LARGE_SECONDS)
    assert answer.out.decode() == str(size)
    assert large.peak_memory < MEMORY


async def test_a_download_of_a_client_that_stalls(large, curl):
    """What waits is in the kernel, and a window of it in the server."""
    size = 64 * MIB
    before = large.peak_memory
    streams = []
    for _ in range(10):
        stream = await trio.open_tcp_stream("127.0.0.1", large.port)
        await stream.send_all(f"GET /{size} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
        streams.append(stream)
    for _ in range(10):  # the server has sent what it could, to each, before it has answered all of these
        answer = await curl("-o", "/dev/null", "-w", "%{size_download}", f"{large.url}/{MIB}")
        assert answer.out.decode() == str(MIB)
    assert large.peak_memory - before < 20 * MIB
    received = []

    async def read(stream):
        received.append(12 + sum([len(data) async for data in stream]))
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(read, stream)
    assert len(received) == 10
    assert all(size < count < size + 1000 for count in received)
    assert large.peak_memory < MEMORY


async def test_a_file_is_sent_in_little_memory(serve_process, curl, tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(GIB)
    (tmp_path / "file_app.py").write_text(FILE)
    server = serve_process("wsgi:file_app:app")
    answer = await curl("-o", "/dev/null", "-w", "%{size_download}", server.url, seconds=LARGE_SECONDS)
    assert answer.out.decode() == str(GIB)
    assert server.peak_memory < MEMORY
    (tmp_path / "sparse").unlink()


FILE = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return environ["wsgi.file_wrapper"](open("sparse", "rb"))
"""


async def test_the_body_of_a_slow_client_is_read_piece_by_piece(serve_wsgi):
    """What the application has read is what the client has sent, and no more is awaited."""
    read = []

    def application(environ, start_response):
        for line in environ["wsgi.input"]:
            read.append(line)  # noqa: PERF402 - one by one, as they come
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % len(read)]

    server = await serve_wsgi(application)
    raw = await server.connect("POST / HTTP/1.1", content_length="8", connection="close")
    for line in (b"one\n", b"two\n"):
        await raw.send(line)
        await server.until(lambda line=line: line in read)
    assert (await raw.read_all()).endswith(b"\r\n\r\n2")
    await raw.leave()
