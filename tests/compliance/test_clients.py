"""trigi and clients that others have written: curl, httpx, http.client, websockets."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
import zlib
from functools import partial

import httpx
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect, unix_connect

CLIENT_SECONDS = 20.0


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


async def inspect(scope, receive, send):
    """Answers with what it was asked."""
    assert scope["type"] == "http"
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
        "server": scope["server"],
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        "size": len(body),
        "crc": zlib.crc32(body),
    }
    await respond(send, json.dumps(answer).encode(), headers=[(b"content-type", b"application/json")])


@pytest.fixture
def serve(serve):
    """The applications here have no lifespan."""
    return partial(serve, lifespan="off")


@pytest.fixture
async def server(serve):
    """A server of `inspect`, on TCP."""
    return await serve(inspect)


# curl


async def test_curl_gets(server, curl):
    answer = await curl("-i", server.url + "/a%20b/?q=%C3%A9&r", "-A", "a test")
    head, _, body = answer.out.decode().partition("\r\n\r\n")
    lines = head.split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert {line.split(":")[0] for line in lines[1:]} == {"content-type", "content-length", "date", "server"}
    seen = json.loads(body)
    assert (seen["method"], seen["path"], seen["query"]) == ("GET", "/a b/", "q=%C3%A9&r")
    assert (seen["version"], seen["scheme"], seen["size"]) == ("1.1", "http", 0)
    assert (seen["client"][0], seen["server"]) == ("127.0.0.1", ["127.0.0.1", server.port])
    assert seen["headers"]["user-agent"] == "a test"
    assert 'GET /a%20b/?q=%C3%A9&r HTTP/1.1" 200 ' in server.log.access[0]


async def test_curl_asks_for_the_head_alone(server, curl):
    answer = await curl("-I", "-w", "%{size_download} %{num_connects}\n", server.url, server.url)
    assert answer.status == 0
    ends = [part.split("\n")[0] for part in answer.out.decode().split("\r\n\r\n")[1:]]
    assert ends == ["0 1", "0 0"]  # the second on the first one's connection
    assert answer.out.count(b"HTTP/1.1 200 OK\r\n") == 2


@pytest.mark.parametrize(
    ("options", "length"),
    [
        (["-T", "-"], None),
        (["-T", "-", "-X", "POST", "-H", "expect: 100-continue"], None),
        (["--data-binary", "@-"], "1000000"),
        (["--data-binary", "@-", "-H", "expect:"], "1000000"),
        (["--data-binary", "@-", "-H", "transfer-encoding: chunked"], None),
        (["-F", "file=@-;filename=x"], ...),
    ],
)
async def test_curl_uploads(server, curl, options, length):
    content = bytes(range(250)) * 4000
    answer = await curl(*options, server.url, stdin=content)
    seen = json.loads(answer.out)
    if length is ...:
        assert seen["headers"]["content-type"].startswith("multipart/form-data")
        assert seen["size"] > len(content)
        return
    assert (seen["size"], seen["crc"]) == (len(content), zlib.crc32(content))
    assert seen["headers"].get("content-length") == length
    assert seen["headers"].get("transfer-encoding") == (None if length else "chunked")


async def test_curl_waits_for_100_continue(server, curl):
    """curl would wait longer than it may run, were there no 100."""
    waits = ("-v", "--expect100-timeout", "3600", "-H", "expect: 100-continue")
    answer = await curl(*waits, "--data-binary", "x" * 10_000, server.url)
    assert json.loads(answer.out)["size"] == 10_000
    assert "< HTTP/1.1 100 Continue" in answer.err


async def test_curl_is_refused_and_sends_nothing(serve, curl):
    """The application answers without reading: there is no 100, and the upload does not begin."""

    async def refuse(scope, receive, send):
        await respond(send, b"not from you\n", 403)

    server = await serve(refuse)
    waits = ("-v", "--expect100-timeout", "3600", "-H", "expect: 100-continue", "-w", "%{size_upload}")
    answer = await curl(*waits, "--data-binary", "@-", server.url, stdin=b"x" * 1_000_000)
    assert answer.out == b"not from you\n0"
    assert "100 Continue" not in answer.err


async def test_curl_is_refused_in_the_middle_of_its_upload(serve, curl):
    """It reads the answer, which a connection closed too early would have cost it."""

    async def refuse(scope, receive, send):
        await receive()
        await respond(send, b"enough\n", 413)

    server = await serve(refuse)
    for _ in range(5):
        answer = await curl(
            "-w", "%{http_code}", "-H", "expect:", "-T", "-", server.url, stdin=b"x" * 5_000_000
        )
        assert answer.out == b"enough\n413"


async def test_curl_speaks_http_1_0(serve, curl):
    async def page(scope, receive, send):
        assert scope["http_version"] == "1.0"
        headers = [(b"content-length", b"4")] if scope["path"] == "/sized" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"so", "more_body": True})
        await send({"type": "http.response.body", "body": b"me"})

    server = await serve(page)
    answer = await curl("-i", "-0", server.url)  # the end of the connection is the end of the body
    head, _, body = answer.out.decode().partition("\r\n\r\n")
    assert (answer.status, body) == (0, "some")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "transfer-encoding" not in head
    assert "connection: close" in head
    keep = ("-0", "-H", "connection: keep-alive", "-w", " %{num_connects}\n")
    answer = await curl(*keep, server.url + "/sized", server.url + "/sized")
    assert answer.out == b"some 1\nsome 0\n"


async def test_curl_uses_its_connection_again(server, curl):
    urls = [f"{server.url}/{number}" for number in range(20)]
    answer = await curl(*(part for url in urls for part in ("-o", "-", url)), "-w", "\n%{num_connects}\n")
    lines = answer.out.decode().splitlines()
    assert [json.loads(line)["path"] for line in lines[::2]] == [f"/{number}" for number in range(20)]
    assert lines[1::2] == ["1"] + ["0"] * 19


async def test_curl_asks_for_many_things_at_once(server, curl):
    answer = await curl("-Z", "--parallel-immediate", "--parallel-max", "40", f"{server.url}/[1-200]")
    paths = re.findall('"path": "/([0-9]+)"', answer.out.decode())
    assert sorted(map(int, paths)) == list(range(1, 201))


async def test_curl_over_a_unix_socket(serve, curl, tmp_path):
    path = str(tmp_path / "socket")
    server = await serve(inspect, bind=[f"unix:{path}"])
    assert server.url == f"unix:{path}"
    answer = await curl("--unix-socket", path, "http://any.host/a", "http://any.host/b")
    seen = json.loads(answer.out.split(b"}{")[0] + b"}")
    assert seen["server"] == [path, None]
    assert seen["client"] is None
    assert seen["headers"]["host"] == "any.host"
    assert server.log.access[0].startswith("unix - - ")
    await server.stop()
    assert not (tmp_path / "socket").exists()


async def test_curl_gets_trailers_and_early_hints(serve, curl):
    async def page(scope, receive, send):
        await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]})
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"body\n"})
        await send({"type": "http.response.trailers", "headers": [(b"x-checksum", b"1234")]})

    server = await serve(page)
    answer = await curl("-v", "-D", "-", "-o", "/dev/null", "-H", "te: trailers", server.url)
    heads = answer.out.decode().split("\r\n\r\n")
    assert heads[0].split("\r\n") == ["HTTP/1.1 103 Early Hints", "link: </style.css>; rel=preload"]
    assert heads[1].startswith("HTTP/1.1 200 OK\r\n")
    assert "x-checksum: 1234" in heads[1] + heads[2]
    answer = await curl("-i", server.url)  # without te, without
    assert answer.out.endswith(b"\r\n\r\nbody\n")
    assert b"x-checksum" not in answer.out


async def test_curl_sends_too_much(server, curl):
    answer = await curl(
        "-w", "%{http_code}\n", "-o", "/dev/null", "-H", "x-large: " + "x" * 70_000, server.url
    )
    assert answer.out == b"431\n"
    many = [part for number in range(120) for part in ("-H", f"x-{number}: 1")]
    assert (await curl("-w", "%{http_code}\n", "-o", "/dev/null", *many, server.url)).out == b"431\n"
    answer = await curl("-w", "%{http_code}\n", "-o", "/dev/null", server.url + "/" + "x" * 70_000)
    assert answer.out == b"414\n"
    assert server.log.access == [] or all('" 4' in line for line in server.log.access)
    assert len([text for record, text in server.log.records if "request refused" in text]) == 3


async def test_curl_is_killed_in_the_middle(serve, curl):
    """It is gone, nothing is logged as an error, and others are served."""
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
        nursery.start_soon(curl, server.url + "/endless")
        await begun.wait()
        nursery.cancel_scope.cancel()
    await ended.wait()
    assert (await curl(server.url)).out == b"short"
    await server.stop()
    assert server.log.errors == []


# httpx


async def test_httpx_keeps_to_one_connection(server):
    async with server.client() as client:
        ports = set()
        for number in range(100):
            answer = await client.request(["GET", "POST", "DELETE", "PATCH"][number % 4], f"/{number}")
            seen = answer.json()
            assert (seen["path"], seen["method"]) == (f"/{number}", answer.request.method)
            ports.add(seen["client"][1])
    assert len(ports) == 1


async def test_httpx_and_responses_without_a_body(serve):
    """The connection stays in step."""

    async def answer(scope, receive, send):
        status = int(scope["path"][1:])
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"" if status in (204, 304) else b"body"})

    server = await serve(answer)
    async with server.client(limits=httpx.Limits(max_connections=1)) as client:
        for status in (204, 200, 304, 200, 205, 404):
            response = await client.get(f"/{status}")
            assert (response.status_code, response.content) == (
                status,
                b"" if status in (204, 304) else b"body",
            )
        assert (await client.head("/200")).content == b""
        assert (await client.get("/200")).content == b"body"


async def test_httpx_streams_both_ways(server):
    async def pieces():
        for number in range(1000):
            yield b"%d," % number

    sent = b"".join([b"%d," % number for number in range(1000)])
    async with server.client() as client:
        seen = (await client.put("/", content=pieces())).json()
        assert (seen["size"], seen["crc"]) == (len(sent), zlib.crc32(sent))
        assert seen["headers"]["transfer-encoding"] == "chunked"


async def test_httpx_over_a_unix_socket(serve, tmp_path):
    path = str(tmp_path / "socket")
    await serve(inspect, bind=[f"unix:{path}"])
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with httpx.AsyncClient(transport=transport, base_url="http://any.host") as client:
        assert (await client.get("/a")).json()["path"] == "/a"


async def test_httpx_gives_up_waiting(serve):
    """A client's timeout is a disconnect."""
    left = trio.Event()

    async def wait(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    server = await serve(wait)
    async with server.client(timeout=httpx.Timeout(CLIENT_SECONDS, read=0.2)) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/")
    await left.wait()


async def test_httpx_without_trio(server, in_thread):
    def visit():
        with httpx.Client(base_url=server.url, trust_env=False, timeout=CLIENT_SECONDS) as client:
            return [client.post("/", content=b"x" * size).json()["size"] for size in (0, 1, 1_000_000)]

    assert await in_thread(visit) == [0, 1, 1_000_000]


async def test_two_addresses_of_one_server(serve, tmp_path, curl):
    path = str(tmp_path / "socket")
    server = await serve(inspect, bind=["127.0.0.1:0", f"unix:{path}", "127.0.0.1:0"])
    assert [url.split(":")[0] for url in server.urls] == ["http", "unix", "http"]
    for url in (server.urls[0], server.urls[2]):
        assert (await curl(url)).status == 0
    assert (await curl("--unix-socket", path, "http://x/")).status == 0


# http.client


async def test_http_client(server, in_thread):
    def visit():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=CLIENT_SECONDS)
        sizes = []
        for body in (b"", b"x" * 100_000, iter([b"a" * 1000, b"b" * 50_000])):
            is_iterator = not isinstance(body, bytes)
            connection.request("POST", "/a", body, encode_chunked=is_iterator)
            response = connection.getresponse()
            assert (response.status, response.reason, response.version) == (200, "OK", 11)
            assert not response.will_close
            sizes.append(json.loads(response.read())["size"])
        connection.request("GET", "/", headers={"connection": "close"})
        response = connection.getresponse()
        assert response.getheader("connection") == "close"
        response.read()
        connection.close()
        return sizes

    assert await in_thread(visit) == [0, 100_000, 51_000]


async def test_http_client_reads_a_chunked_response(serve, in_thread):
    async def page(scope, receive, send):
        await send(
            {"type": "http.response.start", "status": 299, "headers": [(b"x-a", b"1"), (b"x-a", b"2")]}
        )
        for number in range(100):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
        await send({"type": "http.response.body"})

    server = await serve(page)

    def visit():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=CLIENT_SECONDS)
        connection.request("GET", "/")
        with connection.getresponse() as response:
            assert response.chunked
            assert response.headers.get_all("x-a") == ["1", "2"]
            assert (response.status, response.reason) == (299, "")
            lines = [line.decode() for line in response]
        connection.close()
        return lines

    assert await in_thread(visit) == [f"{number}\n" for number in range(100)]


async def test_http_client_pipelines_by_hand(server):
    """Two requests in one write, and a third behind a body: three answers, in order."""
    client = await server.connect(
        "GET /1 HTTP/1.1",
        b"POST /2 HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody"
        b"GET /3 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    received = await client.read_all()
    assert [part[:2] for part in received.decode().split('"path": "')[1:]] == ["/1", "/2", "/3"]
    await client.leave()


async def test_shutdown_closes_idle_connections_at_once(server):
    """Those that have had an answer, and those that have asked for nothing yet; no client need react."""
    clients = [await server.connect() for _ in range(5)]
    for client in clients:
        await client.read_until(b'"crc": 0}')
    silent = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(5)]
    async with server.client() as client:
        await client.get("/")  # by now the silent ones were accepted
        with trio.fail_after(1.5):
            await server.stop()
    for client in clients:
        assert await client.read_all() == b""
        await client.leave()
    for stream in silent:
        assert await stream.receive_some() == b""
        await stream.aclose()


# websockets


async def echo(scope, receive, send):
    """Sends every message back; `close 4001 why` closes."""
    assert scope["type"] == "websocket"
    await receive()
    subprotocol = next((name for name in scope["subprotocols"] if name == "echo"), None)
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            scope["state"].setdefault("codes", []).append((message["code"], message["reason"]))
            return
        text = message.get("text")
        if text is not None and text.startswith("close "):
            _, code, reason = text.split(" ", 2)
            await send({"type": "websocket.close", "code": int(code), "reason": reason})
            return
        await send(
            {"type": "websocket.send", "text": text}
            if text is not None
            else {"type": "websocket.send", "bytes": message["bytes"]}
        )


MESSAGES = [
    "",
    "text",
    "é€😀",
    b"",
    b"\0\xff\r\n",
    "x" * 125,
    "x" * 126,
    b"x" * 65535,
    b"x" * 65536,
    "é" * 500_000,
]


@pytest.mark.parametrize("where", ["tcp", "tls", "unix"])
@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("server_compresses", [True, False])
async def test_websockets(serve, in_thread, certificates, tmp_path, *, where, compression, server_compresses):
    settings = {"bind": [f"unix:{tmp_path / 'socket'}"]} if where == "unix" else {}
    if where == "tls":
        settings["certfile"] = certificates.server
    server = await serve(echo, websocket_per_message_deflate=server_compresses, **settings)

    def open_client(**more):
        more |= {"compression": compression, "open_timeout": CLIENT_SECONDS}
        if where == "unix":
            return unix_connect(server.url.removeprefix("unix:"), uri="ws://any.host/", **more)
        if where == "tls":
            return connect(server.websocket_url, proxy=None, ssl=certificates.trust(), **more)
        return connect(server.websocket_url, proxy=None, **more)

    def talk():
        with open_client(subprotocols=["other", "echo"]) as client:
            assert client.subprotocol == "echo"
            assert bool(client.protocol.extensions) == (server_compresses and compression == "deflate")
            for message in MESSAGES:
                client.send(message)
                assert client.recv(CLIENT_SECONDS) == message
            client.send(["in ", "three ", "fragments"])
            assert client.recv(CLIENT_SECONDS) == "in three fragments"
            client.send(iter([b"a" * 100_000] * 10))
            assert client.recv(CLIENT_SECONDS) == b"a" * 1_000_000
            for payload in (b"", b"x" * 125):
                assert client.ping(payload).wait(CLIENT_SECONDS)
            for number in range(500):
                client.send(str(number))
            assert [client.recv(CLIENT_SECONDS) for _ in range(500)] == [str(number) for number in range(500)]
            client.send("close 4001 as you wish")
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(CLIENT_SECONDS)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as you wish")
            assert caught.value.rcvd_then_sent

    await in_thread(talk)
    assert len(server.log.access) == 1


@pytest.mark.parametrize(
    "offer",
    [
        {"server_max_window_bits": 9},
        {"client_max_window_bits": 9},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 10, "client_max_window_bits": True, "server_no_context_takeover": True},
    ],
)
async def test_websockets_and_what_its_compression_asks_for(serve, in_thread, offer):
    server = await serve(echo)

    def talk():
        factory = ClientPerMessageDeflateFactory(**offer)
        with connect(server.websocket_url, proxy=None, extensions=[factory], compression=None) as client:
            assert client.protocol.extensions
            for message in (*MESSAGES, *MESSAGES):
                client.send(message)
                assert client.recv(CLIENT_SECONDS) == message

    await in_thread(talk)


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_a_message_that_is_too_large(serve, in_thread, compression):
    """The limit is what was inflated, not what was sent; up to it, all is well."""
    server = await serve(echo, websocket_message_size_limit=1_000_000)

    def talk():
        with connect(server.websocket_url, proxy=None, compression=compression) as client:
            client.send(b"x" * 1_000_000)
            assert client.recv(CLIENT_SECONDS) == b"x" * 1_000_000
            with pytest.raises(ConnectionClosed) as caught:
                client.send(b"x" * 50_000_000)
                client.recv(CLIENT_SECONDS)
            return caught.value.rcvd.code

    for _ in range(3):
        assert await in_thread(talk) == 1009


async def test_closing_codes_and_reasons_pass_both_ways(serve, in_thread):
    codes = []

    async def remember(scope, receive, send):
        scope["state"]["codes"] = codes
        await echo(scope, receive, send)

    server = await serve(remember)
    endings = [(1000, ""), (1000, "bye"), (1001, ""), (3000, "é" * 60), (4999, "last")]

    def talk():
        for code, reason in endings:
            with connect(server.websocket_url, proxy=None) as client:
                client.close(code, reason)
        for code, reason in endings:
            with connect(server.websocket_url, proxy=None) as client:
                client.send(f"close {code} {reason}")
                with pytest.raises(ConnectionClosed) as caught:
                    client.recv(CLIENT_SECONDS)
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (code, reason)

    await in_thread(talk)
    assert codes == endings


async def test_pings_keep_a_silent_client_and_find_a_dead_one(serve, in_thread):
    """The library answers pings by itself. A socket that nobody reads behind does not, and is taken for gone."""
    codes = []

    async def remember(scope, receive, send):
        scope["state"]["codes"] = codes
        await echo(scope, receive, send)

    server = await serve(remember, websocket_ping_interval=0.05, websocket_ping_timeout=CLIENT_SECONDS)
    pings = threading.Semaphore(0)

    class Count(logging.Handler):
        def emit(self, record):
            if "> PONG" in self.format(record):
                pings.release()

    logger = logging.getLogger("tests.client")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(Count())

    def talk():
        with connect(server.websocket_url, proxy=None, logger=logger, ping_interval=None) as client:
            for _ in range(5):
                assert pings.acquire(timeout=CLIENT_SECONDS)
            client.send("still here")
            assert client.recv(CLIENT_SECONDS) == "still here"

    await in_thread(talk)

    impatient = await serve(remember, websocket_ping_interval=0.05, websocket_ping_timeout=0.05)
    client = await impatient.connect(
        "GET / HTTP/1.1",
        upgrade="websocket",
        connection="upgrade",
        sec_websocket_version="13",
        sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
    )
    await client.read_all()  # until the server gives it up
    assert client.received.count(b"\x89") >= 1
    await client.leave()
    assert codes == [(1000, ""), (1006, "")]


async def test_a_client_that_vanishes(serve, in_thread):
    codes = []

    async def remember(scope, receive, send):
        scope["state"]["codes"] = codes
        await echo(scope, receive, send)

    server = await serve(remember)

    def talk():
        with connect(server.websocket_url, proxy=None) as client:
            client.send("hello")
            assert client.recv(CLIENT_SECONDS) == "hello"
            client.socket.shutdown(socket.SHUT_RDWR)

    await in_thread(talk)
    await server.until(lambda: codes)
    assert codes == [(1006, "")]


async def test_a_client_that_does_not_read_holds_up_nobody(serve, in_thread):
    """Backpressure: the application waits in `send()`; other WebSockets are served, and shutdown is not held up."""
    sent = 0
    sent_some = trio.Event()

    async def flood(scope, receive, send):
        nonlocal sent
        if scope["path"] != "/flood":
            await echo(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": bytes(100_000)})
            sent += 1
            sent_some.set()

    server = await serve(flood, graceful_timeout=0.2, websocket_close_timeout=0.2)
    client = await server.connect(
        "GET /flood HTTP/1.1",
        upgrade="websocket",
        connection="upgrade",
        sec_websocket_version="13",
        sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
    )
    await sent_some.wait()

    def talk():
        with connect(server.websocket_url, proxy=None) as other:
            for number in range(100):
                other.send(str(number))
                assert other.recv(CLIENT_SECONDS) == str(number)

    await in_thread(talk)
    assert sent < 1000  # what sockets hold, and no more
    await server.stop()
    await client.leave()
