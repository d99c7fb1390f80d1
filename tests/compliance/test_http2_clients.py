"""HTTP/2 and clients that others have written: curl, httpx, nghttp, h2load, Chromium; and frameworks behind it."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import subprocess
from contextlib import aclosing
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trio
from fastapi import BackgroundTasks, Depends, FastAPI
from quart_trio import QuartTrio
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.compliance.conftest import CLIENT_SECONDS, need
from tests.compliance.test_browser import CHROMIUM, OPTIONS, find
from trigi.testing.http2 import HTTP2Client, SettingCode
from trigi.testing.websocket import encode_frame

MIB = 1024**2

FOLDER = str(Path(__file__).parent)

# Starlette leaves its own generators, and those it is given, to the collector when a client leaves; trio warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(starlette|.*words)[^ ]*' was garbage:ResourceWarning"
)


async def read_body(receive):
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def respond(send, body, status=200, headers=()):
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def sha(data):
    return hashlib.sha256(data).hexdigest()


async def inspect(scope, receive, send):
    """Answers with what it was asked; `/bytes/123` with that many, in pieces, `/hints` with hints and trailers."""
    if scope["path"].startswith("/bytes/"):
        data = content(int(scope["path"].split("/")[2]))
        length = (b"content-length", b"%d" % len(data))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        for start in range(0, len(data), 100_000):
            piece = data[start : start + 100_000]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})
        return
    if scope["path"] == "/hints":
        await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]})
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"body\n"})
        await send({"type": "http.response.trailers", "headers": [(b"x-checksum", b"1234")]})
        return
    body = await read_body(receive)
    if body is None:
        return
    answer = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "version": scope["http_version"],
        "scheme": scope["scheme"],
        "client": scope["client"],
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        "size": len(body),
        "sha": sha(body),
    }
    await respond(send, json.dumps(answer).encode(), headers=[(b"content-type", b"application/json")])


@cache
def content(size):
    """So many bytes, no two pieces of them alike."""
    return b"".join(b"%07d\n" % number for number in range(size // 8 + 1))[:size]


@pytest.fixture
def serve(serve, certificates):
    """The applications here have no lifespan; clients trust the certificate, if there is one."""
    return partial(serve, authority=certificates.authority, lifespan="off")


@pytest.fixture
async def server(serve, certificates):
    """A server of `inspect`, over TLS."""
    return await serve(inspect, certfile=certificates.server)


@pytest.fixture
async def clear(serve):
    """A server of `inspect`, in clear."""
    return await serve(inspect)


@pytest.fixture
def trust(certificates):
    return ("--cacert", certificates.ca)


PRIOR = "--http2-prior-knowledge"


# curl


async def test_curl_agrees_on_http2_over_tls(server, curl, trust):
    answer = await curl("-v", "-i", "--http2", *trust, server.url + "/a%20b/?q=%C3%A9&r", "-A", "a test")
    assert "ALPN: server accepted h2" in answer.err
    head, _, body = answer.out.decode().partition("\r\n\r\n")
    lines = head.split("\r\n")
    assert lines[0].rstrip() == "HTTP/2 200"
    assert {line.split(":")[0] for line in lines[1:]} == {"content-type", "content-length", "date", "server"}
    seen = json.loads(body)
    assert (seen["method"], seen["path"], seen["query"]) == ("GET", "/a b/", "q=%C3%A9&r")
    assert (seen["version"], seen["scheme"], seen["size"]) == ("2", "https", 0)
    assert seen["headers"] == {"host": f"127.0.0.1:{server.port}", "user-agent": "a test", "accept": "*/*"}
    assert 'GET /a%20b/?q=%C3%A9&r HTTP/2" 200 ' in server.log.access[0]


async def test_curl_knows_that_it_is_http2(clear, curl):
    answer = await curl("-w", "\n%{http_version}", PRIOR, clear.url)
    body, _, version = answer.out.decode().rpartition("\n")
    assert (version, json.loads(body)["version"], json.loads(body)["scheme"]) == ("2", "2", "http")


async def test_curl_over_a_unix_socket(serve, curl, tmp_path):
    path = str(tmp_path / "socket")
    await serve(inspect, bind=[f"unix:{path}"])
    answer = await curl("--unix-socket", path, PRIOR, "http://any.host/a")
    seen = json.loads(answer.out)
    assert (seen["version"], seen["client"], seen["headers"]["host"]) == ("2", None, "any.host")


async def test_http_1_and_http_2_on_one_port(server, clear, curl, trust):
    for url, options in ((server.url, trust), (clear.url, ())):
        versions = {}
        for option in ("--http1.0", "--http1.1", "--http2", PRIOR):
            answer = await curl(option, *options, "-w", "\n%{http_version}", url)
            versions[option] = answer.out.decode().rpartition("\n")[2]
        # In clear, --http2 asks for an upgrade (h2c), which RFC 9113 has done away with: it is answered by HTTP/1.1.
        upgraded = "2" if url == server.url else "1.1"
        prior = "2"
        assert versions == {"--http1.0": "1.1", "--http1.1": "1.1", "--http2": upgraded, PRIOR: prior}


async def test_curl_asks_for_the_head_alone(server, curl, trust):
    answer = await curl(*trust, "-I", "-w", "%{size_download} %{num_connects}\n", server.url, server.url)
    assert answer.status == 0
    ends = [part.split("\n")[0] for part in answer.out.decode().split("\r\n\r\n")[1:]]
    assert ends == ["0 1", "0 0"]
    assert answer.out.count(b"HTTP/2 200") == 2


@pytest.mark.parametrize(
    ("options", "length"),
    [
        (["-T", "-"], None),
        (["-T", "-", "-X", "POST", "-H", "expect: 100-continue"], None),
        (["--data-binary", "@-"], "1000000"),
        (["--data-binary", "@-", "-H", "expect:"], "1000000"),
    ],
)
async def test_curl_uploads(server, curl, trust, options, length):
    data = content(1_000_000)
    answer = await curl(*trust, *options, server.url, stdin=data)
    seen = json.loads(answer.out)
    assert (seen["size"], seen["sha"]) == (len(data), sha(data))
    assert seen["headers"].get("content-length") == length
    assert "transfer-encoding" not in seen["headers"]


async def test_curl_uploads_a_form(server, curl, trust):
    answer = await curl(*trust, "-F", "file=@-;filename=x", server.url, stdin=content(1_000_000))
    seen = json.loads(answer.out)
    assert seen["headers"]["content-type"].startswith("multipart/form-data")
    assert seen["size"] > 1_000_000


async def test_curl_downloads_20_mib(server, curl, trust):
    answer = await curl(*trust, f"{server.url}/bytes/{20 * MIB}")
    assert (answer.status, sha(answer.out)) == (0, sha(content(20 * MIB)))


async def test_curl_waits_for_100_continue(clear, curl):
    """curl would wait longer than it may run, were there no 100."""
    waits = ("-v", "--expect100-timeout", "3600", "-H", "expect: 100-continue")
    answer = await curl(*waits, PRIOR, "--data-binary", "x" * 10_000, clear.url)
    assert json.loads(answer.out)["size"] == 10_000
    assert "< HTTP/2 100" in answer.err


async def test_curl_is_refused_and_sends_nothing(serve, curl):
    """The application answers without reading: there is no 100, and the upload does not begin."""

    async def refuse(scope, receive, send):
        await respond(send, b"not from you\n", 403)

    server = await serve(refuse)
    waits = ("-v", "--expect100-timeout", "3600", "-H", "expect: 100-continue", "-w", "%{size_upload}")
    answer = await curl(*waits, PRIOR, "--data-binary", "@-", server.url, stdin=b"x" * 1_000_000)
    assert answer.out == b"not from you\n0"
    assert "100 Continue" not in answer.err


async def test_curl_is_refused_in_the_middle_of_its_upload(serve, curl, trust, certificates):
    """It reads the answer, and can use the connection for something else."""

    async def refuse(scope, receive, send):
        if scope["method"] == "GET":
            await respond(send, b"fine\n")
            return
        await receive()
        await respond(send, b"enough\n", 413)

    server = await serve(refuse, certfile=certificates.server)
    say = (*trust, "-w", "%{http_code} %{num_connects}\n")
    for _ in range(3):
        upload = (*say, "-H", "expect:", "-T", "-", server.url)
        answer = await curl(*upload, "--next", "-sS", *say, server.url, stdin=b"x" * 5_000_000)
        assert answer.out == b"enough\n413 1\nfine\n200 0\n"


async def test_curl_uses_its_connection_again(server, curl, trust):
    urls = [f"{server.url}/{number}" for number in range(20)]
    parts = (part for url in urls for part in ("-o", "-", url))
    answer = await curl(*trust, *parts, "-w", "\n%{num_connects}\n")
    lines = answer.out.decode().splitlines()
    assert [json.loads(line)["path"] for line in lines[::2]] == [f"/{number}" for number in range(20)]
    assert lines[1::2] == ["1"] + ["0"] * 19


async def test_curl_asks_for_many_things_at_once(server, curl, trust):
    """It waits with the others for what its first connection can do, and needs no second one."""
    answer = await curl(*trust, "-Z", "--parallel-max", "40", f"{server.url}/[1-200]")
    said = answer.out.decode()
    assert sorted(map(int, re.findall('"path": "/([0-9]+)"', said))) == list(range(1, 201))
    assert len(set(re.findall(r'"client": \["127.0.0.1", (\d+)\]', said))) == 1


async def test_curl_after_so_many_requests_goes_on_elsewhere(serve, curl, trust, certificates):
    """The last of them is answered; GOAWAY says that the next one needs another connection."""
    server = await serve(inspect, certfile=certificates.server, keep_alive_max_requests=5)
    urls = [f"{server.url}/{number}" for number in range(20)]
    answer = await curl(
        *trust, *(part for url in urls for part in ("-o", "-", url)), "-w", "\n%{num_connects}\n"
    )
    lines = answer.out.decode().splitlines()
    assert [json.loads(line)["path"] for line in lines[::2]] == [f"/{number}" for number in range(20)]
    assert lines[1::2] == ["1", "0", "0", "0", "0"] * 4


async def test_curl_gets_trailers_and_early_hints(clear, curl):
    answer = await curl(PRIOR, "-D", "-", "-o", "/dev/null", "-H", "te: trailers", clear.url + "/hints")
    heads = re.split(r"(?=HTTP/2 )", answer.out.decode())[1:]
    assert heads[0].split() == ["HTTP/2", "103", "link:", "</style.css>;", "rel=preload"]
    assert heads[1].startswith("HTTP/2 200")
    assert "x-checksum: 1234" in heads[1]
    answer = await curl(PRIOR, "-i", clear.url + "/hints")  # without te, without
    assert answer.out.endswith(b"\r\n\r\nbody\n")
    assert b"x-checksum" not in answer.out


async def test_curl_sends_a_large_head(clear, curl):
    """It takes several frames, and is below the limit."""
    fields = {f"x-{number}": f"{number}{'~' * 7000}" for number in range(6)}
    options = [part for name in fields for part in ("-H", f"{name}: {fields[name]}")]
    answer = await curl(PRIOR, *options, clear.url)
    seen = json.loads(answer.out)["headers"]
    assert {name: seen[name] for name in fields} == fields


async def test_curl_sends_too_much(serve, curl):
    """Each is answered, with 431: a path is a field among others."""
    server = await serve(inspect, head_size_limit=10_000)
    say = (PRIOR, "-w", "%{http_code}\n", "-o", "/dev/null")
    for size in (12_000, 35_000):
        assert (await curl(*say, "-H", f"x-large: {'~' * size}", server.url)).out == b"431\n"
    many = [part for number in range(120) for part in ("-H", f"x-{number}: 1")]
    assert (await curl(*say, *many, server.url)).out == b"431\n"
    assert (await curl(*say, server.url + "/" + "x" * 12_000)).out == b"431\n"
    assert len([text for _, text in server.log.records if "request refused" in text]) == 4
    assert (await curl(*say, server.url)).out == b"200\n"


async def test_curl_is_killed_in_the_middle(serve, curl):
    begun, ended = trio.Event(), trio.Event()

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while scope["path"] == "/endless":
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
                begun.set()
        finally:
            ended.set()
        await send({"type": "http.response.body", "body": b"short"})

    server = await serve(endless)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(curl, PRIOR, server.url + "/endless")
        await begun.wait()
        nursery.cancel_scope.cancel()
    await ended.wait()
    assert (await curl(PRIOR, server.url)).out == b"short"
    await server.stop()
    assert server.log.errors == []


async def test_curl_is_still_reading_when_the_server_shuts_down(serve, curl):
    """It gets all of it, and the connection ends after that."""
    begun = trio.Event()

    async def slow(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        begun.set()
        await scope["extensions"]["trigi"]["shutting_down"].wait()
        await trio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"y" * 1_000_000})

    server = await serve(slow)
    answers = []

    async def visit():
        answers.append(await curl(PRIOR, server.url))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        await begun.wait()
        await server.stop()
    assert [(answer.status, len(answer.out)) for answer in answers] == [(0, 1_001_000)]


# Memory


@pytest.fixture
def process(serve_process):
    if not Path("/proc/self/status").exists():
        pytest.skip("what memory a process has is read from /proc, which this system has not")
    return serve_process("--app-dir", FOLDER, "--lifespan", "off", "large_bodies_app:app")


MEMORY = 100 * MIB
"""What the process may have resident at most, of which Python and its libraries take some 40 MiB."""

LARGE = 256 * MIB


async def test_an_upload_of_256_mib(process, curl, tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(LARGE)
    answer = await curl(PRIOR, "-T", str(path), process.url, seconds=60)
    assert answer.out.decode() == f"{LARGE}\n"
    assert process.peak_memory < MEMORY
    path.unlink()


async def test_a_download_of_256_mib(process, curl):
    url = f"{process.url}/{LARGE}"
    answer = await curl(PRIOR, "-o", "/dev/null", "-w", "%{size_download}", url, seconds=60)
    assert answer.out.decode() == str(LARGE)
    assert process.peak_memory < MEMORY


async def test_downloads_on_streams_that_stall(process):
    """A client asks a hundred times for 64 MiB, and takes none of it: what waits is one message each."""
    size = 64 * MIB
    before = process.peak_memory
    client = HTTP2Client(await trio.open_tcp_stream("127.0.0.1", process.port), auto_window=False)
    await client.connect({SettingCode.INITIAL_WINDOW_SIZE: 0})
    for _ in range(100):
        await client.head(await client.request(path=f"/{size}"))
    await client.ping()
    assert process.peak_memory - before < 20 * MIB
    await client.window_update(0, 10 * MIB)
    await client.window_update(101, 10 * MIB)  # one of them goes on
    received = 0
    while received < 10 * MIB:
        received += len(await client.data(101))
    assert process.peak_memory - before < 20 * MIB
    await client.aclose()


async def test_uploads_to_an_application_that_does_not_read(serve_process, tmp_path):
    """A hundred streams of each of three clients send as much as is taken: a window each."""
    (tmp_path / "idle_app.py").write_text(IDLE, encoding="utf-8")
    server = serve_process(
        "--app-dir", str(tmp_path), "--lifespan", "off", "--graceful-timeout", "0", "idle_app:app"
    )
    before = server.peak_memory
    for _ in range(3):
        client = HTTP2Client(await trio.open_tcp_stream("127.0.0.1", server.port))
        await client.connect()
        for _ in range(100):
            stream_id = await client.request("PUT", end_stream=False)
            window = client.send_window(stream_id)
            await client.send_body(stream_id, bytes(window), end_stream=False)
        await client.ping()
        await client.aclose()
    assert server.peak_memory - before < 40 * MIB


IDLE = """
import trio

async def app(scope, receive, send):
    await trio.sleep_forever()
"""


# httpx


async def test_httpx_over_tls_and_in_clear(server, clear):
    async with server.client(http2=True) as client:
        answer = await client.get("/a")
        assert (answer.http_version, answer.json()["version"], answer.json()["scheme"]) == (
            "HTTP/2",
            "2",
            "https",
        )
    async with clear.client(http1=False, http2=True) as client:
        answer = await client.get("/a")
        assert (answer.http_version, answer.json()["scheme"]) == ("HTTP/2", "http")


async def test_httpx_and_both_versions_at_once(server):
    """Clients of both on the same port, at the same time."""
    answers = []

    async def visit(http2):
        async with server.client(http2=http2) as client:
            for number in range(10):
                answer = await client.post(f"/{number}", content=b"x" * 50_000)
                answers.append((answer.http_version, answer.json()["version"], answer.json()["size"]))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(visit, bool(number % 2))
    assert len(answers) == 100
    assert set(answers) == {("HTTP/2", "2", 50_000), ("HTTP/1.1", "1.1", 50_000)}


async def test_httpx_keeps_to_one_connection(server):
    async with server.client(http2=True) as client:
        ports = set()
        for number in range(100):
            answer = await client.request(["GET", "POST", "DELETE", "PATCH"][number % 4], f"/{number}")
            seen = answer.json()
            assert (seen["path"], seen["method"]) == (f"/{number}", answer.request.method)
            ports.add(seen["client"][1])
    assert len(ports) == 1


async def test_httpx_asks_for_many_things_at_once_on_one_connection(serve, certificates):
    """They meet in the middle, so that all of them are there at the same time."""
    here, met = [], trio.Event()

    async def meet(scope, receive, send):
        if scope["path"] != "/first":
            here.append(scope["client"])
            if len(here) == 100:
                met.set()
            await met.wait()
        await respond(send, scope["path"].encode())

    server = await serve(meet, certfile=certificates.server)
    answers = {}
    async with server.client(http2=True) as client:
        await client.get("/first")  # the others know from it what they may do
        async with trio.open_nursery() as nursery:

            async def visit(number):
                answers[number] = (await client.get(f"/{number}")).text

            for number in range(100):
                nursery.start_soon(visit, number)
    assert answers == {number: f"/{number}" for number in range(100)}
    assert len(set(here)) == 1


async def test_httpx_has_more_to_ask_than_it_may_at_once(serve, certificates):
    server = await serve(inspect, certfile=certificates.server, h2_max_concurrent_streams=5)
    answers = {}
    async with server.client(http2=True) as client:
        await client.get("/first")
        async with trio.open_nursery() as nursery:

            async def visit(number):
                seen = (await client.post(f"/{number}", content=b"x" * 10_000)).json()
                answers[number] = (seen["path"], seen["size"])

            for number in range(200):
                nursery.start_soon(visit, number)
    assert answers == {number: (f"/{number}", 10_000) for number in range(200)}


async def test_httpx_uploads_and_downloads_at_once(server):
    """5 MiB up, 20 MiB down, and small things between them, on one connection; each is what was sent."""
    large, upward = content(20 * MIB), content(5 * MIB)
    done = []

    async def pieces():
        for start in range(0, len(upward), 50_000):
            yield upward[start : start + 50_000]

    async def upload(sent):
        seen = (await client.put("/", content=sent)).json()
        assert (seen["size"], seen["sha"]) == (len(upward), sha(upward))
        done.append("up")

    async def download():
        hashed = hashlib.sha256()
        async with client.stream("GET", f"/bytes/{len(large)}") as answer:
            async for piece in answer.aiter_bytes():
                hashed.update(piece)
        assert hashed.hexdigest() == sha(large)
        done.append("down")

    async def small():
        for number in range(50):
            assert (await client.get(f"/{number}")).json()["path"] == f"/{number}"
        done.append("small")

    async with server.client(http2=True) as client:
        await client.get("/first")
        async with trio.open_nursery() as nursery:
            for act in (partial(upload, upward), partial(upload, pieces()), download, small):
                nursery.start_soon(act)
    assert sorted(done) == ["down", "small", "up", "up"]
    assert len({line.split()[0] for line in server.log.access}) == 1


async def test_httpx_and_responses_without_a_body(serve):
    async def answer(scope, receive, send):
        status = int(scope["path"][1:])
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"" if status in (204, 304) else b"body"})

    server = await serve(answer)
    async with server.client(http1=False, http2=True) as client:
        for status in (204, 200, 304, 200, 205, 404):
            response = await client.get(f"/{status}")
            assert (response.status_code, response.content) == (
                status,
                b"" if status in (204, 304) else b"body",
            )
        assert (await client.head("/200")).content == b""
        assert (await client.get("/200")).content == b"body"


async def test_httpx_after_a_pause_goes_on_elsewhere(serve):
    """An idle connection is closed, in such a way that the client can tell."""
    server = await serve(inspect, keep_alive_timeout=0.1)
    ports = set()
    async with server.client(http1=False, http2=True) as client:
        for _ in range(3):
            ports.add((await client.get("/")).json()["client"][1])
            await trio.sleep(0.5)
    assert len(ports) == 3


async def test_httpx_is_cut_off(serve):
    """One response is; the client can tell, and its connection is as good as before."""

    async def fail(scope, receive, send):
        if scope["path"] == "/":
            await respond(send, b"%d" % scope["client"][1])
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        raise RuntimeError("in the middle")

    server = await serve(fail)
    async with server.client(http1=False, http2=True) as client:
        before = (await client.get("/")).text
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/fails")
        await server.log.expect("RuntimeError: in the middle")
        assert (await client.get("/")).text == before


async def test_httpx_without_trio(server, in_thread, certificates):
    def visit():
        with httpx.Client(
            base_url=server.url,
            http2=True,
            trust_env=False,
            timeout=CLIENT_SECONDS,
            verify=certificates.trust(),
        ) as client:
            answers = [client.post("/", content=b"x" * size) for size in (0, 1, 1_000_000)]
            return [(answer.http_version, answer.json()["size"]) for answer in answers]

    assert await in_thread(visit) == [("HTTP/2", 0), ("HTTP/2", 1), ("HTTP/2", 1_000_000)]


# nghttp


class Frames(NamedTuple):
    """What nghttp has said: all of it, and what it got, as `HEADERS 13 END_STREAM END_HEADERS`."""

    out: str
    received: list[str]


@pytest.fixture
def nghttp():
    """Runs nghttp with these arguments, verbosely, in the test's own event loop."""
    need("nghttp")

    async def run(*args: str, stdin: bytes = b"") -> Frames:
        command = ["nghttp", "-v", "--no-verify-peer", "-t", f"{CLIENT_SECONDS:.0f}", *args]
        done = await trio.run_process(
            command, stdin=stdin, capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
        out = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode("utf-8", "replace"))
        assert done.returncode == 0, out
        received = []
        for match in re.finditer(
            r"recv (\w+) frame <length=\d+, flags=0x\w\w, stream_id=(\d+)>(?:\n +; ([A-Z_| ]+))?$",
            out,
            re.MULTILINE,
        ):
            flags = (match[3] or "").replace("|", "").split()
            received.append(" ".join([match[1], match[2], *flags]))
        return Frames(out, received)

    return run


async def test_nghttp_sees_the_frames(clear, nghttp):
    frames = await nghttp("-n", "-H", "te: trailers", clear.url + "/hints")
    stream = re.search(r"send HEADERS frame <[^>]*stream_id=(\d+)>", frames.out)[1]
    of_connection = [each for each in frames.received if each.split()[1] == "0"]
    assert of_connection[0] == "SETTINGS 0"
    assert "SETTINGS 0 ACK" in of_connection
    assert [each for each in frames.received if each.split()[1] == stream] == [
        f"HEADERS {stream} END_HEADERS",  # 103
        f"HEADERS {stream} END_HEADERS",
        f"DATA {stream}",
        f"HEADERS {stream} END_STREAM END_HEADERS",  # trailers
    ]
    fields = re.findall(rf"recv \(stream_id={stream}\) (:?[\w-]+): (.*)", frames.out)
    assert fields[:3] == [(":status", "103"), ("link", "</style.css>; rel=preload"), (":status", "200")]
    assert fields[-1] == ("x-checksum", "1234")
    for setting in (
        "SETTINGS_MAX_CONCURRENT_STREAMS(0x03):100",
        "SETTINGS_ENABLE_CONNECT_PROTOCOL(0x08):1",
        "SETTINGS_NO_RFC7540_PRIORITIES(0x09):1",
    ):
        assert setting in frames.out


async def test_nghttp_is_told_of_the_end(serve, nghttp):
    server = await serve(inspect, keep_alive_max_requests=1)
    frames = await nghttp("-n", server.url)
    stream = re.search(r"send HEADERS frame <[^>]*stream_id=(\d+)>", frames.out)[1]
    assert "GOAWAY 0" in frames.received
    assert f"(last_stream_id={stream}, error_code=NO_ERROR(0x00), opaque_data(0)=[])" in frames.out
    assert "recv (stream_id=" + stream + ") :status: 200" in frames.out


async def test_nghttp_over_tls(server, nghttp):
    frames = await nghttp("-n", server.url)
    assert "The negotiated protocol: h2" in frames.out
    assert ":status: 200" in frames.out


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--no-content-length"],
        ["--trailer", "x-sum: 1"],
        ["--expect-continue"],
        ["-b", "255"],
        ["-c", "0"],
        ["-c", "65536", "--encoder-header-table-size", "65536"],
        ["-w", "14", "-W", "14"],
        ["--no-dep"],
    ],
    ids=" ".join,
)
async def test_nghttp_uploads(clear, nghttp, tmp_path, options):
    """With padding, trailers, tables and windows of other sizes; each four times, at once."""
    path = tmp_path / "data"
    path.write_bytes(content(300_000))
    frames = await nghttp(*options, "-m", "4", "-d", str(path), "-H", ":method: PUT", clear.url)
    assert frames.out.count(sha(content(300_000))) == 4
    assert "RST_STREAM" not in frames.out
    assert (":status: 100" in frames.out) == ("--expect-continue" in options)


@pytest.mark.parametrize("bits", ["10", "16", "30"])
async def test_nghttp_downloads_through_any_window(clear, nghttp, bits):
    frames = await nghttp("-n", "-w", bits, "-m", "10", f"{clear.url}/bytes/1000000")
    ends = [each for each in frames.received if each.startswith("DATA") and each.endswith("END_STREAM")]
    assert len(ends) == 10
    sizes = map(int, re.findall(r"recv DATA frame <length=(\d+),", frames.out))
    assert sum(sizes) == 10_000_000


async def test_nghttp_sends_a_head_in_several_frames(clear, nghttp):
    """CONTINUATION, which nghttp does not tell of."""
    frames = await nghttp("-n", "--continuation", clear.url)
    assert "continuation-test-6" in frames.out
    assert ":status: 200" in frames.out


# h2load


@pytest.fixture
def h2load():
    """Runs h2load with these arguments, in the test's own event loop: what became of the requests."""
    need("h2load")

    async def run(*args: str) -> dict[str, int]:
        done = await trio.run_process(
            ["h2load", *args], stdin=b"", capture_stdout=True, capture_stderr=True, check=False
        )
        out = done.stdout.decode()
        assert done.returncode == 0, out + done.stderr.decode()
        (line,) = re.findall(r"^(?:requests|status codes): .*$\n^status codes: .*$", out, re.MULTILINE)
        return {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", line)}

    return run


@pytest.fixture
async def small(serve, certificates):
    async def page(scope, receive, send):
        body = await read_body(receive)
        if body is not None:
            await respond(send, b"hello" if scope["method"] == "GET" else b"%d" % len(body))

    return partial(serve, page, access_log=False)


@pytest.mark.parametrize(
    "options",
    [
        ["-n", "5000", "-c", "10", "-m", "100"],
        ["-n", "1000", "-c", "50", "-m", "10"],
        ["-n", "1000", "-c", "1", "-m", "100"],
        ["-n", "500", "-c", "5", "-m", "20", "-w", "1", "-W", "1"],
        ["-n", "500", "-c", "5", "-m", "20", "-d", "DATA"],
        ["-n", "500", "-c", "5", "--h1"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("tls", [False, True])
async def test_h2load(small, h2load, certificates, tmp_path, *, options, tls):
    """Not one fails."""
    data = tmp_path / "data"
    data.write_bytes(bytes(20_000))
    server = await small(certfile=certificates.server) if tls else await small()
    options = [str(data) if option == "DATA" else option for option in options]
    said = await h2load(*options, server.url)
    number = int(options[1])
    assert (said["succeeded"], said["2xx"]) == (number, number)
    assert said["failed"] == said["errored"] == said["timeout"] == 0


async def test_h2load_and_a_shutdown(small, h2load):
    """What was begun is answered, the rest is refused; nobody waits."""
    server = await small()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def visit():
            said = await h2load("-n", "100000", "-c", "10", "-m", "100", server.url)
            assert said["2xx"] > 0
            assert said["3xx"] == said["4xx"] == said["5xx"] == 0

        await trio.sleep(0.5)
        await server.stop()


# Chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser that trusts everyone."""
    options = webdriver.ChromeOptions()
    options.binary_location = find(*CHROMIUM)
    profile = tmp_path_factory.mktemp("http2_profile")
    for option in (*OPTIONS, f"--user-data-dir={profile}", "--ignore-certificate-errors"):
        options.add_argument(option)
    driver = webdriver.Chrome(options, Service(find("chromedriver")))
    driver.set_script_timeout(CLIENT_SECONDS)
    yield driver
    driver.quit()


class Page:
    """An application for a page: the page, things to load, a stream without end, and a WebSocket."""

    def __init__(self):
        self.websockets = []
        self.codes = []
        self.ports = set()
        self.stopped = trio.Event()

    async def __call__(self, scope, receive, send):
        self.ports.add(scope["client"][1])
        if scope["type"] == "websocket":
            await self.websocket(scope, receive, send)
        elif scope["path"] == "/endless":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                while True:
                    await send({"type": "http.response.body", "body": b"word ", "more_body": True})
                    await trio.sleep(0.01)
            finally:
                self.stopped.set()
        elif scope["path"] == "/sha":
            body = await read_body(receive)
            await respond(send, sha(body).encode())
        elif scope["path"].startswith("/bytes/"):
            await inspect(scope, receive, send)
        elif scope["path"] == "/":
            await respond(
                send, b"<!doctype html><title>h2</title>", headers=[(b"content-type", b"text/html")]
            )
        else:
            await respond(send, scope["http_version"].encode())

    async def websocket(self, scope, receive, send):
        await receive()
        self.websockets.append((scope["http_version"], scope["scheme"], scope["client"][1]))
        await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.codes.append((message["code"], message["reason"]))
                return
            if message.get("text") == "close":
                await send({"type": "websocket.close", "code": 4002, "reason": "as you wish"})
            else:
                await send({**message, "type": "websocket.send"})


@pytest.fixture
async def page(serve, certificates, browser, in_thread):
    """The application, its server, and a function that has the browser run a script on the page and waits for it."""
    application = Page()
    server = await serve(application, certfile=certificates.server)
    await in_thread(browser.get, server.url + "/")

    async def run(script):
        wrapped = (
            f"const done = arguments[0]; (async () => {{ {script} }})().then(done, e => done(String(e)))"
        )
        return await in_thread(browser.execute_async_script, wrapped)

    yield application, server, run
    await in_thread(browser.get, "about:blank")


async def test_chromium_speaks_http2(page):
    _, server, run = page
    protocol = 'performance.getEntriesByType("navigation")[0].nextHopProtocol'
    assert await run(f"return {protocol}") == "h2"
    assert 'GET / HTTP/2" 200' in server.log.access[0]


async def test_chromium_loads_many_things_at_once(page):
    application, _, run = page
    assert (
        await run(
            """
            const answers = await Promise.all([...Array(200).keys()].map(n => fetch(`/${n}`).then(r => r.text())));
            return answers.join("")
            """
        )
        == "2" * 200
    )
    assert len(application.ports) == 1


async def test_chromium_uploads_and_downloads(page):
    _, _, run = page
    data = content(2_000_000)
    answer = await run(
        """
        const body = await (await fetch("/bytes/2000000")).arrayBuffer();
        return await (await fetch("/sha", {method: "POST", body})).text()
        """
    )
    assert answer == sha(data)


async def test_chromium_walks_away_from_a_stream(page):
    """By RST_STREAM: the application is told, and everything else goes on, on the same connection."""
    application, _, run = page
    answer = await run(
        """
        const controller = new AbortController();
        const response = await fetch("/endless", {signal: controller.signal});
        const reader = response.body.getReader();
        const {value} = await reader.read();
        controller.abort();
        return new TextDecoder().decode(value).slice(0, 5)
        """
    )
    assert answer == "word "
    await application.stopped.wait()
    assert await run('return await (await fetch("/after")).text()') == "2"
    assert len(application.ports) == 1


TALK = """
    const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket", ["other", "echo"]);
    socket.binaryType = "arraybuffer";
    const next = () => new Promise((resolve, reject) => {
        socket.onmessage = event => resolve(event.data);
        socket.onerror = () => reject("failed");
    });
    await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = () => reject("not open") });
    const said = [socket.protocol];
"""


async def test_chromium_opens_a_websocket_on_the_same_connection(page):
    """RFC 8441, since it has a connection that can. Messages, both ways, of any size."""
    application, _, run = page
    answer = await run(
        TALK
        + """
        for (const message of ["text", "é€😀", "x".repeat(1000000), new Uint8Array(300000).buffer]) {
            socket.send(message);
            const answer = await next();
            said.push(answer.byteLength ?? answer.length);
        }
        socket.close(4001, "bye");
        const closed = await new Promise(resolve => { socket.onclose = resolve });
        return [...said, closed.code, closed.wasClean]
        """
    )
    assert answer == ["other", 4, 4, 1_000_000, 300_000, 4001, True]
    ((version, scheme, port),) = application.websockets
    assert (version, scheme) == ("2", "wss")
    assert application.ports == {port}
    assert application.codes == [(4001, "bye")]


async def test_chromium_is_told_why_its_websocket_was_closed(page):
    application, _, run = page
    answer = await run(
        TALK
        + """
        socket.send("close");
        const closed = await new Promise(resolve => { socket.onclose = resolve });
        return [closed.code, closed.reason, closed.wasClean]
        """
    )
    assert answer == [4002, "as you wish", True]
    assert application.websockets[0][0] == "2"


async def test_chromium_closes_the_tab_of_a_websocket(page, browser, in_thread):
    """By RST_STREAM, without a close frame."""
    application, server, run = page
    await run(TALK + "window.socket = socket; return said")

    def close():
        browser.switch_to.new_window("tab")  # without another tab, the browser would end
        other, first = browser.current_window_handle, browser.window_handles[0]
        browser.switch_to.window(first)
        browser.close()
        browser.switch_to.window(other)

    await in_thread(close)
    await server.until(lambda: application.codes)
    assert application.codes[0][0] in (1001, 1006)
    await in_thread(browser.get, server.url + "/")
    assert await run('return await (await fetch("/after")).text()') == "2"


async def test_chromium_is_told_when_the_server_stops(page):
    _, server, run = page
    await run(
        TALK
        + "window.theEnd = new Promise(resolve => { socket.onclose = e => resolve(e.code) }); return said"
    )
    await server.stop()
    assert await run("return await window.theEnd") == 1012


# Frameworks


@pytest.fixture
def in_clear(serve):
    """Serves an application in clear, and gives its server and an `httpx` client of it that speaks HTTP/2 only."""

    async def begin(application, **settings):
        server = await serve(application, **settings)
        return server, server.client(http1=False, http2=True)

    return begin


async def open_http2(server, **settings):
    """A client that can do what httpx can't: leave one stream."""
    client = HTTP2Client(await trio.open_tcp_stream("127.0.0.1", server.port))
    await client.connect(**settings)
    return client


async def test_starlette(in_clear):
    done = trio.Event()

    async def user(request: Request):
        return JSONResponse({"id": request.path_params["id"], "url": str(request.url)})

    async def tell():
        done.set()

    async def echo(request: Request):
        return Response(await request.body(), background=BackgroundTask(tell))

    async def cookie(request: Request):
        response = PlainTextResponse(request.cookies.get("seen", "never") + request.cookies.get("other", ""))
        response.set_cookie("seen", "once")
        response.set_cookie("other", "too")
        return response

    server, client = await in_clear(
        Starlette(
            routes=[
                Route("/users/{id:int}", user),
                Route("/echo", echo, methods=["POST"]),
                Route("/cookie", cookie),
            ]
        )
    )
    async with client:
        assert (await client.get("/users/3?q=é")).json() == {"id": 3, "url": f"{server.url}/users/3?q=%C3%A9"}
        answer = await client.post("/echo", content=b"x" * 200_000)
        assert (len(answer.content), answer.http_version) == (200_000, "HTTP/2")
        await done.wait()
        first, second = [await client.get("/cookie") for _ in range(2)]
        assert (first.text, second.text) == ("never", "oncetoo")
        assert len(first.headers.get_list("set-cookie")) == 2
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.head("/cookie")).content == b""


async def test_each_piece_of_a_starlette_stream_is_sent_at_once(in_clear):
    asked = trio.Event()

    async def words():
        yield "one "
        await asked.wait()
        yield "two"

    async def page(request):
        return StreamingResponse(words(), media_type="text/plain")

    _, client = await in_clear(Starlette(routes=[Route("/", page)]))
    pieces = []
    async with client, client.stream("GET", "/") as answer:
        async for piece in answer.aiter_text():
            pieces.append(piece)
            asked.set()
    assert pieces == ["one ", "two"]


@pytest.mark.parametrize("where", ["waiting", "sending", "stalled"])
async def test_a_reset_stops_a_starlette_stream(serve, where):
    """The generator's clean-up runs, nothing is logged as an error, and another stream goes on meanwhile."""
    cleaned_up, go_on = trio.Event(), trio.Event()

    async def words():
        try:
            while True:
                yield b"word " * 1000
                if where == "waiting":
                    await trio.sleep(1000)
        finally:
            cleaned_up.set()

    async def page(request):
        return Closing(words())

    async def other(request):
        await go_on.wait()
        return PlainTextResponse("other")

    class Closing(StreamingResponse):
        async def stream_response(self, send):
            async with aclosing(self.body_iterator):
                await super().stream_response(send)

    routes = [Route("/", page), Route("/other", other)]
    server = await serve(Starlette(routes=routes), disconnect_grace=0.05)
    client = await open_http2(server)
    other_id = await client.request(path="/other")
    stream_id = await client.request(path="/")
    assert (await client.data(stream_id)).startswith(b"word ")
    if where == "sending":
        for _ in range(20):
            await client.data(stream_id)
    await client.reset(stream_id)
    await cleaned_up.wait()
    go_on.set()
    assert (await client.response(other_id)).body == b"other"
    await client.aclose()
    await server.stop()
    assert server.log.errors == []
    assert len(server.log.access) == 2


async def test_a_reset_of_an_upload_to_starlette(serve):
    outcomes = []

    async def upload(request: Request):
        try:
            async for _ in request.stream():
                pass
        except ClientDisconnect:
            outcomes.append(request.url.path)
            raise

    server = await serve(Starlette(routes=[Route("/", upload, methods=["POST"])]))
    client = await open_http2(server)
    stream_id = await client.request("POST", "/", end_stream=False)
    await client.send_body(stream_id, b"some", end_stream=False)
    await client.reset(stream_id)
    await server.until(lambda: outcomes)
    assert (await client.fetch("/nowhere")).status == 404
    await client.aclose()
    await server.stop()
    assert server.log.errors == []


async def test_a_reset_cancels_a_handler_that_waits(serve):
    begun, cancelled = trio.Event(), trio.Event()

    async def page(request):
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = await serve(Starlette(routes=[Route("/", page)]), disconnect_grace=0)
    client = await open_http2(server)
    stream_id = await client.request()
    await begun.wait()
    await client.reset(stream_id)
    await cancelled.wait()
    assert (await client.fetch("/nowhere")).status == 404
    await client.aclose()
    await server.stop()
    assert server.log.errors == []


async def test_a_starlette_background_task_holds_up_nothing(in_clear):
    may_end, ended = trio.Event(), trio.Event()

    async def work():
        await may_end.wait()
        ended.set()

    async def page(request: Request):
        return PlainTextResponse(f"{request.client.port}", background=BackgroundTask(work))

    server, client = await in_clear(Starlette(routes=[Route("/", page)]), disconnect_grace=0)
    async with client:
        ports = {(await client.get("/")).text for _ in range(5)}
    assert len(ports) == 1
    assert not ended.is_set()
    may_end.set()  # after the client has left: that cancels nothing
    await ended.wait()
    assert len(server.log.access) == 5


async def test_starlette_errors(in_clear):
    async def fail(request):
        raise RuntimeError("one of ours")

    async def fine(request):
        return PlainTextResponse("fine")

    server, client = await in_clear(Starlette(routes=[Route("/fail", fail), Route("/fine", fine)]))
    async with client:
        assert (await client.get("/fail")).status_code == 500
        logged = await server.log.expect("RuntimeError: one of ours")
        assert 'application failed on "GET /fail HTTP/2" from 127.0.0.1:' in logged
        assert (await client.get("/fine")).text == "fine"


async def test_a_starlette_websocket(serve):
    codes = []

    async def talk(websocket: WebSocket):
        await websocket.accept(subprotocol="echo", headers=[(b"x-greeting", b"hello")])
        codes.append(await websocket.receive_text())
        await websocket.send_json({"q": websocket.query_params["q"], "url": str(websocket.url)})
        await websocket.close(4123, "as you wish")

    server = await serve(Starlette(routes=[WebSocketRoute("/", talk)]))
    client = await open_http2(server)
    fields = [(b"sec-websocket-version", b"13"), (b"sec-websocket-protocol", b"echo")]
    authority = f"127.0.0.1:{server.port}"
    stream_id = await client.request(
        "CONNECT", "/?q=1", fields, protocol="websocket", authority=authority, end_stream=False
    )
    head = await client.head(stream_id)
    assert (head.status, head.header(b"sec-websocket-protocol"), head.header(b"x-greeting")) == (
        200,
        b"echo",
        b"hello",
    )
    await client.send_body(stream_id, encode_frame(1, b"text"), end_stream=False)
    message = json.dumps({"q": "1", "url": f"ws://{authority}/?q=1"}, separators=(",", ":")).encode()
    said = (
        b"\x81" + bytes([len(message)]) + message + b"\x88\x0d" + (4123).to_bytes(2, "big") + b"as you wish"
    )
    received = b""
    while len(received) < len(said):
        received += await client.data(stream_id)
    assert received == said
    await client.send_body(stream_id, encode_frame(8, (4123).to_bytes(2, "big")))
    assert await client.data(stream_id) == b""
    assert codes == ["text"]
    await client.aclose()


async def test_fastapi(in_clear):
    events = []
    app = FastAPI()

    async def resource():
        events.append("opened")
        yield "resource"
        events.append("closed")

    opened = Depends(resource)

    @app.get("/async/{number}")
    async def in_the_loop(number: int, tasks: BackgroundTasks, thing: str = opened):
        tasks.add_task(events.append, "in the background")
        return {"number": number, "thing": thing}

    @app.get("/sync/{number}")
    def in_a_thread(number: int):
        return {"number": number}

    @app.post("/items")
    async def create(item: dict[str, str]):
        return item

    _, client = await in_clear(app)
    async with client:
        assert (await client.get("/async/3")).json() == {"number": 3, "thing": "resource"}
        assert (await client.get("/sync/4")).json() == {"number": 4}
        assert (await client.post("/items", json={"a": "é"})).json() == {"a": "é"}
        assert (await client.post("/items", content=b"{")).status_code == 422
        answers = []
        async with trio.open_nursery() as nursery:

            async def visit(number):
                answers.append((await client.get(f"/sync/{number}")).json()["number"])

            for number in range(80):
                nursery.start_soon(visit, number)
    assert sorted(answers) == list(range(80))
    assert events == ["opened", "in the background", "closed"] or sorted(events) == [
        "closed",
        "in the background",
        "opened",
    ]


async def test_a_reset_stops_a_fastapi_stream_and_closes_its_dependency(serve):
    events = []
    app = FastAPI()

    async def resource():
        events.append("opened")
        try:
            yield "word "
        finally:
            events.append("closed")

    opened = Depends(resource)

    @app.get("/")
    async def endless(word: str = opened):
        async def words():
            while True:
                yield word * 1000

        return StreamingResponse(words())

    server = await serve(app, disconnect_grace=0.05)
    client = await open_http2(server)
    stream_id = await client.request()
    assert (await client.data(stream_id)).startswith(b"word ")
    await client.reset(stream_id)
    await server.until(lambda: gc.collect() >= 0 and "closed" in events)
    assert (await client.fetch("/nowhere")).status == 404
    await client.aclose()
    await server.stop()
    assert server.log.errors == []


async def test_quart_trio(serve, tmp_path):
    app = QuartTrio("app", root_path=str(tmp_path))
    cancelled = trio.Event()

    @app.get("/hello/<name>")
    async def hello(name):
        return {"hello": name}

    @app.get("/wait")
    async def wait():
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = await serve(app)
    async with server.client(http1=False, http2=True) as client:
        answer = await client.get("/hello/Ada")
        assert (answer.json(), answer.http_version) == ({"hello": "Ada"}, "HTTP/2")
    raw = await open_http2(server)
    stream_id = await raw.request(path="/wait")
    await trio.sleep(0.1)
    await raw.reset(stream_id)
    await cancelled.wait()
    assert (await raw.fetch("/hello/Ada")).status == 200
    await raw.aclose()
    await server.stop()
    assert server.log.errors == []
