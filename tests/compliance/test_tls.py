"""TLS on a real socket: what applications see of it, and clients that abuse it, after which others are served."""

from __future__ import annotations

import json
import socket
import ssl
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from trigi.testing.http2 import HTTP2Client

CLIENT_SECONDS = 20.0

HANDSHAKE_SECONDS = 1.0
"""Enough for a handshake on a busy machine, and not too long to be waited for."""

REFUSED = (18, 35, 52, 55, 56)
"""curl's words for a handshake that the server ends, which in TLS 1.3 the client has finished by then."""


async def show(scope, receive, send):
    """Answers with the TLS extension, over HTTP and over WebSocket."""
    seen = {"tls": scope["extensions"].get("tls"), "scheme": scope["scheme"], "client": scope["client"]}
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(seen)})
        return
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    body = json.dumps(seen | {"size": size}).encode()
    if scope["path"] == "/large":
        body = bytes(10_000_000)
    length = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve(serve, certificates):
    """The applications here have no lifespan, and a certificate unless they say otherwise."""
    return partial(serve, authority=certificates.authority, lifespan="off")


@pytest.fixture
async def server(serve, certificates):
    return await serve(show, certfile=certificates.server)


def certificates_of(path: str) -> list[str]:
    """The certificates in a file, as the extension gives them."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----\n"
    text = Path(path).read_text(encoding="ascii")
    return [begin + part.split(end)[0] + end for part in text.split(begin)[1:]]


# What an application sees


@pytest.mark.parametrize(("version", "number"), [("1.2", 0x0303), ("1.3", 0x0304)])
async def test_the_extension_as_curl_makes_it(server, curl, certificates, version, number):
    only = (f"--tlsv{version}", "--tls-max", version)
    answer = await curl(*only, "-v", "--cacert", certificates.ca, server.url)
    seen = json.loads(answer.out)
    assert seen["scheme"] == "https"
    assert seen["tls"] == {
        "server_cert": certificates_of(certificates.server)[0],
        "client_cert_chain": [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": number,
        "cipher_suite": seen["tls"]["cipher_suite"],
    }
    suites = {number: {0x1301, 0x1302, 0x1303}} if version == "1.3" else {number: range(0xC000, 0xD000)}
    assert seen["tls"]["cipher_suite"] in suites[number]
    assert "ALPN: server accepted h2" in answer.err


async def test_the_extension_of_a_websocket(serve, in_thread, certificates):
    server = await serve(show, certfile=certificates.server, ca_certs=certificates.ca, verify_mode="required")

    def talk(certificate):
        context = certificates.trust(certificate)
        with connect(server.websocket_url, ssl=context, proxy=None, open_timeout=CLIENT_SECONDS) as client:
            return json.loads(client.recv(CLIENT_SECONDS))

    seen = await in_thread(talk, certificates.client)
    assert seen["scheme"] == "wss"
    assert seen["tls"]["client_cert_name"].startswith("CN=Ada,")
    assert seen["tls"]["tls_version"] == 0x0304
    with pytest.raises((ConnectionClosed, InvalidHandshake, OSError)):
        await in_thread(talk, None)
    assert (await in_thread(talk, certificates.client))["client"] is not None


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("mode", ["required", "optional"])
async def test_client_certificates(serve, curl, certificates, version, mode):
    server = await serve(show, certfile=certificates.server, ca_certs=certificates.ca, verify_mode=mode)
    options = (f"--tlsv{version}", "--tls-max", version, "--cacert", certificates.ca)

    answer = await curl(*options, "--cert", certificates.client, server.url)
    seen = json.loads(answer.out)["tls"]
    chain = certificates_of(certificates.client)
    assert seen["client_cert_chain"][0] == chain[0]  # from Python 3.13 on with the others that curl has sent
    assert seen["client_cert_name"].startswith("CN=Ada,")
    assert "O=Engines" in seen["client_cert_name"]

    without = await curl(*options, server.url)
    if mode == "required":
        assert without.status in REFUSED
        await server.log.wait_for("PEER_DID_NOT_RETURN_A_CERTIFICATE")
    else:
        seen = json.loads(without.out)["tls"]
        assert (seen["client_cert_chain"], seen["client_cert_name"]) == ([], None)

    stranger = await curl(*options, "--cert", certificates.stranger, server.url)
    assert stranger.status in REFUSED
    await server.log.wait_for("CERTIFICATE_VERIFY_FAILED")
    assert (await curl(*options, "--cert", certificates.client, server.url)).status == 0


async def test_a_session_is_resumed_with_its_client_certificate(serve, in_thread, certificates):
    server = await serve(show, certfile=certificates.server, ca_certs=certificates.ca, verify_mode="required")
    context = certificates.trust(certificates.client)

    def visit(session):
        with (
            socket.create_connection(("127.0.0.1", server.port), CLIENT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            received = b"".join(iter(partial(client.recv, 65536), b""))
            return client.session, client.session_reused, json.loads(received.split(b"\r\n\r\n")[1])

    session, reused, first = await in_thread(visit, None)
    assert not reused
    for _ in range(2):
        session, reused, again = await in_thread(visit, session)
        assert reused
        assert again["tls"]["client_cert_name"] == first["tls"]["client_cert_name"]
        assert again["tls"]["client_cert_chain"][0] == first["tls"]["client_cert_chain"][0]


async def test_without_tls_there_is_no_extension(serve):
    server = await serve(show)
    async with server.client() as client:
        seen = (await client.get("/")).json()
    assert (seen["tls"], seen["scheme"]) == (None, "http")


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        (["h2", "http/1.1"], "h2"),
        (["http/1.1", "h2"], "h2"),
        (["http/1.1"], "http/1.1"),
        (["unheard/of"], None),
        ([], None),
    ],
)
async def test_alpn(server, certificates, offered, agreed):
    """A client that offers nothing that is spoken here is served all the same."""
    context = certificates.trust()
    if offered:
        context.set_alpn_protocols(offered)
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=context)
    if agreed == "h2":
        client = HTTP2Client(stream)
        await client.connect()
        assert (await client.fetch()).status == 200
    else:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = b"".join([data async for data in stream])
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert stream.selected_alpn_protocol() == agreed
    await stream.aclose()


async def test_a_context_of_the_callers_own(serve, certificates):
    """Its settings hold; which certificate is the server's, nobody can tell from it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = await serve(show, ssl_context=context)
    assert server.url.startswith("https://127.0.0.1:")
    async with server.client() as client:
        seen = (await client.get("/")).json()["tls"]
    assert (seen["server_cert"], seen["tls_version"]) == (None, 0x0303)


async def test_large_bodies_both_ways(server, curl, certificates):
    ca = ("--cacert", certificates.ca)
    answer = await curl(*ca, "-T", "-", server.url, stdin=bytes(10_000_000))
    assert json.loads(answer.out)["size"] == 10_000_000
    answer = await curl(*ca, "-w", "%{size_download}", "-o", "/dev/null", server.url + "/large", server.url)
    assert answer.out.startswith(b"10000000")
    async with server.client() as client:
        assert (await client.post("/", content=bytes(5_000_000))).json()["size"] == 5_000_000
        assert len((await client.get("/large")).content) == 10_000_000


async def test_the_command_line(serve_process, curl, certificates):
    """Certificate and key in two files, and a client's certificate asked for."""
    folder = str(Path(__file__).parent)
    options = ["--certfile", certificates.server_chain, "--keyfile", certificates.server_key]
    options += ["--ca-certs", certificates.ca, "--verify-mode", "required"]
    server = serve_process(*options, "--app-dir", folder, "--lifespan", "off", "large_bodies_app:app")
    assert server.url.startswith("https://127.0.0.1:")
    known = ("--cacert", certificates.ca, "--cert", certificates.client)
    assert (await curl(*known, "-T", "-", server.url, stdin=bytes(1_000_000))).out == b"1000000\n"
    assert (await curl("--cacert", certificates.ca, server.url)).status in REFUSED


async def test_tls_over_a_unix_socket(serve, curl, certificates, tmp_path):
    path = str(tmp_path / "socket")
    await serve(show, bind=[f"unix:{path}"], certfile=certificates.server)
    answer = await curl("--cacert", certificates.ca, "--unix-socket", path, "https://localhost/")
    seen = json.loads(answer.out)
    assert (seen["client"], seen["scheme"], seen["tls"]["tls_version"]) == (None, "https", 0x0304)


async def test_a_client_that_leaves_is_a_disconnect(serve, certificates):
    """With and without saying good-bye; while it waits, and while it is sent to."""
    ended = []

    async def wait(scope, receive, send):
        if scope["path"] == "/wait":
            await receive()
            assert (await receive())["type"] == "http.disconnect"
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            with pytest.raises(OSError, match="disconnected"):
                while True:
                    await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
        ended.append(scope["path"])

    server = await serve(wait, certfile=certificates.server)
    for path in ("/wait", "/stream"):
        for says_good_bye in (True, False):
            stream = await trio.open_ssl_over_tcp_stream(
                "127.0.0.1", server.port, ssl_context=certificates.trust(), https_compatible=True
            )
            await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            if path == "/stream":
                await stream.receive_some(1)
            if says_good_bye:
                await stream.aclose()
            await trio.aclose_forcefully(stream)
    await server.until(lambda: len(ended) == 4)
    await server.stop()
    assert server.log.errors == []


# Clients that abuse it


async def test_a_client_that_does_not_begin_its_handshake(serve, certificates):
    server = await serve(show, certfile=certificates.server, tls_handshake_timeout=HANDSHAKE_SECONDS)
    async with server.client() as client:
        await client.get("/")
        silent = await trio.open_tcp_stream("127.0.0.1", server.port)
        slow = await trio.open_tcp_stream("127.0.0.1", server.port)
        await slow.send_all(b"\x16\x03\x01")
        assert await silent.receive_some() == b""
        assert await slow.receive_some() == b""
        await server.log.wait_for("the TLS handshake took longer than tls_handshake_timeout")
        assert (await client.get("/")).status_code == 200
    for stream in (silent, slow):
        await stream.aclose()


async def test_a_client_that_does_not_go_on_with_its_handshake(serve, certificates):
    """It has had the server's answer, and says nothing more."""
    server = await serve(show, certfile=certificates.server, tls_handshake_timeout=HANDSHAKE_SECONDS)
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    await stream.send_all(client_hello(certificates))
    received = b"".join([data async for data in stream])
    assert received.startswith(b"\x16\x03")  # a handshake record
    await stream.aclose()
    await server.log.wait_for("the TLS handshake took longer than tls_handshake_timeout")
    async with server.client() as client:
        assert (await client.get("/")).status_code == 200


def client_hello(certificates) -> bytes:
    """The first message of a handshake."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = certificates.trust().wrap_bio(received, sent, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return sent.read()


async def test_a_client_that_speaks_http_to_the_tls_port(server, curl):
    answer = await curl(server.url.replace("https:", "http:"))
    assert answer.status in (1, 52, 56)  # whatever it makes of an alert, or of nothing
    await server.log.wait_for("HTTP_REQUEST")
    async with server.client() as client:
        with pytest.raises(httpx.TransportError):
            await client.get(server.url.replace("https:", "http:"))
        assert (await client.get("/")).status_code == 200


async def test_a_client_that_speaks_nonsense_to_the_tls_port(server):
    for nonsense in (b"\0" * 100, b"SSH-2.0-x\r\n" * 10, b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        with pytest.raises(trio.EndOfChannel):
            await converse(stream, nonsense)
        await stream.aclose()
    async with server.client() as client:
        assert (await client.get("/")).status_code == 200


async def converse(stream, data):
    """Send, and read to the end, which may be a reset: the server need not read what it can't understand."""
    try:
        await stream.send_all(data)
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass
    raise trio.EndOfChannel


async def test_a_client_that_speaks_tls_to_the_plain_port(serve, curl, certificates):
    server = await serve(show)
    answer = await curl("--cacert", certificates.ca, server.url.replace("http:", "https:"))
    assert answer.status == 35
    await server.log.wait_for("request refused with 400")
    async with server.client() as client:
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("size", [1, 50, -1, None])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_in_the_middle_of_the_handshake(server, certificates, size, reset):
    """After a part of its hello, after the whole (and not reading the answer), and after some of the answer."""
    hello = client_hello(certificates)
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    await stream.send_all(hello if size is None else hello[:size])
    if size is None:
        assert (await stream.receive_some(1)) == b"\x16"
    if reset:
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await trio.aclose_forcefully(stream)
    await server.log.wait_for("TLS handshake with 127.0.0.1:")
    async with server.client() as client:
        assert (await client.get("/")).status_code == 200


async def test_a_client_that_does_not_trust_the_server(server, curl, certificates):
    answer = await curl("--cacert", certificates.stranger, server.url)
    assert answer.status in (60, 77)
    answer = await curl(server.url)
    assert answer.status == 60
    await server.log.wait_for("TLS handshake with 127.0.0.1:")
    assert (await curl("--cacert", certificates.ca, server.url)).status == 0


async def test_a_client_that_breaks_the_encryption_of_its_request(server, certificates):
    """Behind a good handshake, a record that nobody has encrypted: a disconnect, and no error."""
    tcp = await trio.open_tcp_stream("127.0.0.1", server.port)
    stream = trio.SSLStream(tcp, certificates.trust(), server_hostname="127.0.0.1", https_compatible=True)
    await stream.send_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n12345")
    await tcp.send_all(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    with pytest.raises(trio.EndOfChannel):
        await converse(tcp, b"")
    await trio.aclose_forcefully(tcp)
    async with server.client() as client:
        assert (await client.get("/")).status_code == 200
    await server.stop()
    assert server.log.errors == []


async def test_many_handshakes_at_once(server):
    async with trio.open_nursery() as nursery:

        async def visit():
            async with server.client() as client:
                assert (await client.get("/")).status_code == 200

        for _ in range(30):
            nursery.start_soon(visit)


# Shutdown


async def test_a_response_that_ends_with_its_connection_ends_well(serve, curl, certificates):
    """OpenSSL takes a body that ends without close_notify for one that was cut off."""

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some"})

    server = await serve(page, certfile=certificates.server)
    answer = await curl("-0", "--cacert", certificates.ca, server.url)
    assert (answer.status, answer.out) == (0, b"some")


async def test_an_idle_connection_is_closed_at_once(serve, certificates):
    """After `keep_alive_timeout`, by close_notify: a client that has its next request then can tell."""
    server = await serve(show, certfile=certificates.server, keep_alive_timeout=0.05)
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=certificates.trust())
    await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    with trio.fail_after(1.5):
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK\r\n")
        while await stream.receive_some():
            pass
    await stream.aclose()


async def test_shutdown_closes_idle_connections_and_says_so(serve, certificates):
    """Each client reads an orderly end (close_notify), at once; those in their handshake are not waited for long."""
    server = await serve(
        show,
        certfile=certificates.server,
        keep_alive_timeout=CLIENT_SECONDS,
        tls_handshake_timeout=HANDSHAKE_SECONDS,
    )
    streams = []
    for number in range(5):
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", server.port, ssl_context=certificates.trust()
        )
        if number:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK\r\n")
        else:
            await stream.do_handshake()
        streams.append(stream)
    silent = await trio.open_tcp_stream("127.0.0.1", server.port)
    await server.stop()
    for stream in streams:
        assert await stream.receive_some() == b""  # which without close_notify would raise
        await stream.aclose()
    await silent.aclose()


async def test_shutdown_lets_a_response_finish(serve, certificates):
    begun = trio.Event()

    async def slow(scope, receive, send):
        begun.set()
        await scope["extensions"]["trigi"]["shutting_down"].wait()
        await show(scope, receive, send)

    server = await serve(slow, certfile=certificates.server)
    answers = []

    async def visit():
        async with server.client() as client:
            answers.append(await client.get("/"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        await begun.wait()
        await server.stop()
    assert [(answer.status_code, answer.headers["connection"]) for answer in answers] == [(200, "close")]


async def test_shutdown_is_not_held_up_by_a_client_that_does_not_read(serve, certificates):
    begun = trio.Event()

    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
            begun.set()

    server = await serve(flood, certfile=certificates.server, graceful_timeout=0.1)
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=certificates.trust())
    await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await begun.wait()
    with trio.fail_after(5):
        await server.stop()
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_is_told_what_is_wrong_with_its_handshake(serve, in_thread, certificates, version):
    """By an alert, which a reset of the connection must not overtake."""
    server = await serve(show, certfile=certificates.server, ca_certs=certificates.ca, verify_mode="required")
    context = certificates.trust()
    context.minimum_version = context.maximum_version = version

    def visit():
        with socket.create_connection(("127.0.0.1", server.port), CLIENT_SECONDS) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                    client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")  # more than the server reads of it
                    client.recv(1)
            except ssl.SSLError as error:
                return error.reason

    reasons = [await in_thread(visit) for _ in range(5)]
    assert set(reasons) <= {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
