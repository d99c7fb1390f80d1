"""A connection that always has something to read, or room to write, leaves the others their turns."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress

import pytest
import trio
import trustme

from tests.connection.conftest import respond
from trigi._connection.context import ServerContext
from trigi._connection.serve import serve_stream
from trigi._connection.socket_stream import SocketStream
from trigi._connection.tls_stream import TLSStream
from trigi.config import Config
from trigi.testing.websocket import encode_frame

TURNS = 300
"""How often a flood may have its way before a request of another connection is answered."""


class Application:
    """Counts what the flood makes it do, and notes the count for each request of the other connection."""

    def __init__(self):
        self.count = 0
        self.noted = []

    async def __call__(self, scope, receive, send):
        match scope["path"]:
            case "/quiet":
                self.noted.append(self.count)
                await respond(send, b"quiet")
            case "/download":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
                    self.count += 1
            case "/trickle":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": b"x", "more_body": True})
                    self.count += 1
            case "/upload":
                while (await receive())["type"] == "http.request":
                    self.count += 1
            case "/small":
                self.count += 1
                await respond(send, b"small")
            case "/websocket":
                await receive()
                await send({"type": "websocket.accept"})
                while (await receive())["type"] == "websocket.receive":
                    self.count += 1


HEAD = b" HTTP/1.1\r\nhost: a\r\n"
UPGRADE = (
    b"GET /websocket" + HEAD + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
FLOODS = {
    "download": (b"GET /download" + HEAD + b"\r\n", b""),
    "trickle": (b"GET /trickle" + HEAD + b"\r\n", b""),
    "upload": (b"POST /upload" + HEAD + b"content-length: 1000000000000\r\n\r\n", bytes(1 << 20)),
    "pipelined": (b"", (b"GET /small" + HEAD + b"\r\n") * 1000),
    "websocket": (UPGRADE, encode_frame(1, b"x") * 10_000),
}


def flood(connection: socket.socket, first: bytes, again: bytes) -> None:
    """Write all the time, if there is something, and read all the time."""

    def read():
        with suppress(OSError):
            while connection.recv(1 << 20):
                pass

    reading = threading.Thread(target=read)
    reading.start()
    with suppress(OSError):
        connection.sendall(first)
        while again:
            connection.sendall(again)
    reading.join()


@pytest.mark.parametrize(("first", "again"), FLOODS.values(), ids=FLOODS)
async def test_others_have_their_turns(first, again):
    application = Application()
    context = ServerContext(application, Config())
    (near, far), (quiet, other) = socket.socketpair(), socket.socketpair()
    client = SocketStream(quiet)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, SocketStream(far), context)
        nursery.start_soon(serve_stream, SocketStream(other), context)
        nursery.start_soon(trio.to_thread.run_sync, flood, near, first, again)
        while application.count < 1000:
            await trio.lowlevel.checkpoint()
        for _ in range(20):
            began = application.count
            await client.send_all(b"GET /quiet" + HEAD + b"\r\n")
            answer = b""
            while not answer.endswith(b"quiet"):
                answer += await client.receive_some()
            assert application.noted[-1] - began < TURNS
            assert application.count - began < 2 * TURNS
        near.shutdown(socket.SHUT_RDWR)
        nursery.cancel_scope.cancel()
    near.close()
    await client.aclose()


@pytest.mark.parametrize("over_tls", [False, True])
async def test_a_single_large_message_leaves_others_their_turns(over_tls):
    turns = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        began = len(turns)
        await send({"type": "http.response.body", "body": bytes(50_000_000)})
        turns.append(len(turns) - began)

    near, far = socket.socketpair()
    authority = trustme.CA()
    contexts = [
        ssl.create_default_context(purpose) for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH)
    ]
    authority.issue_cert("localhost").configure_cert(contexts[0])
    authority.configure_trust(contexts[1])
    server = TLSStream(far, contexts[0]) if over_tls else SocketStream(far)

    def read():
        """In a thread of its own: the client never makes the server wait for long."""
        client = contexts[1].wrap_socket(near, server_hostname="localhost") if over_tls else near
        client.sendall(b"GET /" + HEAD + b"connection: close\r\n\r\n")
        size = 0
        while data := client.recv(1 << 20):
            size += len(data)
        client.close()
        return size

    async def count():
        while True:
            turns.append(1)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        nursery.start_soon(serve_stream, server, ServerContext(application, Config()))
        assert await trio.to_thread.run_sync(read) > 50_000_000
        nursery.cancel_scope.cancel()
    assert max(turns) >= 50_000_000 // (1 << 20)
