"""A WebSocket client for tests, on any trio stream.

    async with open_connection(application) as stream:
        client = WebSocketClient(stream)
        await client.connect("/chat", subprotocols=["chat"])
        await client.send("Hello")
        assert await client.receive() == "Hello"
        await client.close()

It has no task of its own: what the server sends is read, and pings and close frames are answered, while the test waits
in a method that receives. So a client that is left alone is a peer that has fallen silent.

What is received is read strictly, by wsproto. What is sent may be what no decent client would send: `send_frame`
checks nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

__all__ = ["WebSocketClient", "WebSocketClosed", "WebSocketRejected", "encode_frame"]

Headers = list[tuple[bytes, bytes]]

READ_SIZE = 64 * 1024
MASKING_KEY = b"\x37\xfa\x21\x3d"
"""Of the frames that are made by hand: of RFC 6455's examples (5.7), for a test does the same each time."""


class WebSocketRejected(Exception):
    """The server answered the handshake with another response than 101.

    Attributes:
        status: of the response.
        headers: names in lower case, in the order sent.
        body: the whole of it.
    """

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        super().__init__(f"the server rejected the WebSocket: {status}, {body!r}")


class WebSocketClosed(Exception):
    """The server closed the WebSocket, or the connection. All messages that came before have been received.

    Attributes:
        code: of the server's close frame, 1005 if it had none; 1006 if the connection ended without a close frame.
        reason: of the server's close frame; often empty.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"the server closed: {code} {reason}".rstrip())


class WebSocketClient:
    """A WebSocket client on one connection.

    One task may send while another receives.

    Args:
        stream: the connection. It is the client's from then on, but may also be used directly.
        answers: whether pings and close frames are answered when they are read, as RFC 6455 demands.

    Attributes:
        subprotocol: what the server chose, `None` for nothing.
        headers: of the response that accepted, without those of the handshake itself.
        deflate: whether messages are compressed.
        pings: the payloads of the pings that were read and not yet taken by `receive_ping`.
        pongs: the same for pongs.
    """

    def __init__(self, stream: trio.abc.Stream, *, answers: bool = True) -> None:
        self.stream = stream
        self.answers = answers
        self.subprotocol: str | None = None
        self.headers: Headers = []
        self.deflate = False
        self.pings: deque[bytes] = deque()
        self.pongs: deque[bytes] = deque()
        self._messages: deque[str | bytes] = deque()
        self._pieces: list[Any] = []  # of a message that is incomplete
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._closed: tuple[int, str] | None = None
        self._writing = trio.Lock()

    # The handshake

    async def connect(
        self,
        target: str = "/",
        *,
        subprotocols: Iterable[str] = (),
        headers: Iterable[tuple[bytes, bytes]] = (),
        deflate: bool = False,
        host: str = "localhost",
        early_data: bytes = b"",
    ) -> None:
        """Ask for a WebSocket, and wait until the server has accepted.

        Args:
            target: path and query, sent as they are.
            subprotocols: offered in this order.
            headers: sent after those of the handshake.
            deflate: whether compression is offered (permessage-deflate, RFC 7692).
            host: the `host` header.
            early_data: bytes sent together with the request, as by a client that does not wait for the answer.

        Raises:
            WebSocketRejected: the server answered with another response.
            WebSocketClosed: the server closed the connection before it had answered.
            RemoteProtocolError: wsproto's; the answer was wrong.
        """
        await self.send_request(
            target,
            subprotocols=subprotocols,
            headers=headers,
            deflate=deflate,
            host=host,
            early_data=early_data,
        )
        await self.receive_answer()

    async def send_request(
        self,
        target: str = "/",
        *,
        subprotocols: Iterable[str] = (),
        headers: Iterable[tuple[bytes, bytes]] = (),
        deflate: bool = False,
        host: str = "localhost",
        early_data: bytes = b"",
    ) -> None:
        """The first half of `connect`: send the request, and wait for nothing."""
        request = Request(
            host=host,
            target=target,
            subprotocols=list(subprotocols),
            extra_headers=list(headers),
            extensions=[PerMessageDeflate()] if deflate else [],
        )
        await self._write(self._connection.send(request) + early_data)

    async def receive_answer(self) -> None:
        """The second half of `connect`: wait until the server has accepted.

        Raises: as `connect`.
        """
        answer = await self._next_event()
        if isinstance(answer, RejectConnection):
            raise WebSocketRejected(answer.status_code, list(answer.headers), await self._read_body(answer))
        assert isinstance(answer, AcceptConnection)
        self.subprotocol = answer.subprotocol
        self.headers = list(answer.extra_headers)
        self.deflate = bool(answer.extensions)

    # Messages

    async def send(self, message: str | bytes) -> None:
        """Send a message: text for `str`, binary for `bytes`."""
        await self._send_event(
            TextMessage(message) if isinstance(message, str) else BytesMessage(bytearray(message))
        )

    async def receive(self) -> str | bytes:
        """The next message, whole.

        Raises:
            WebSocketClosed: there is none, and none will come.
            RemoteProtocolError: wsproto's; the server broke the protocol.
        """
        while not self._messages:
            await self._read()
        return self._messages.popleft()

    async def ping(self, payload: bytes = b"") -> None:
        """Send a ping, and wait for nothing."""
        await self._send_event(Ping(payload))

    async def receive_pong(self) -> bytes:
        """The payload of the next pong. Messages that come before it are kept for `receive`."""
        while not self.pongs:
            await self._read()
        return self.pongs.popleft()

    async def receive_ping(self) -> bytes:
        """The payload of the next ping, answered. Messages that come before it are kept for `receive`."""
        while not self.pings:
            await self._read()
        return self.pings.popleft()

    async def close(self, code: int = 1000, reason: str = "") -> WebSocketClosed:
        """Close the WebSocket: send a close frame, wait for the server's, then for the end of the connection.

        Messages that still come are dropped.

        Returns:
            What the server closed with.
        """
        await self.send_close(code, reason)
        closed = await self.wait_closed()
        await self.wait_end()
        return closed

    async def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame, and wait for nothing. With 1005 it has neither code nor reason."""
        nothing = code == CloseReason.NO_STATUS_RCVD  # which wsproto knows by its identity
        await self._send_event(CloseConnection(CloseReason.NO_STATUS_RCVD if nothing else code, reason))

    async def wait_closed(self) -> WebSocketClosed:
        """Receive until the server closes: what it closed with. Messages that come before are dropped."""
        while True:
            try:
                await self.receive()
            except WebSocketClosed as closed:
                return closed

    async def wait_end(self) -> None:
        """Wait until the server has closed the connection. What it sends before is dropped."""
        while await self._receive():
            pass

    async def aclose(self) -> None:
        """Close the connection without a word."""
        await self.stream.aclose()

    # Frames

    async def send_frame(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True
    ) -> None:
        """Send a frame as it is given: see `encode_frame`."""
        await self._write(encode_frame(opcode, payload, fin=fin, rsv=rsv, masked=masked))

    async def _send_event(self, event: Event) -> None:
        await self._write(self._connection.send(event))

    async def _write(self, data: bytes) -> None:
        async with self._writing:  # a pong may go out while a message does
            await self.stream.send_all(data)

    async def _read(self) -> None:
        """Sort in what comes next, and answer it."""
        if self._closed is not None:
            raise WebSocketClosed(*self._closed)
        event = await self._next_event()
        if isinstance(event, Message):
            self._pieces.append(event.data)
            if event.message_finished:
                self._messages.append(("" if isinstance(event, TextMessage) else b"").join(self._pieces))
                self._pieces = []
        elif isinstance(event, Ping):
            self.pings.append(bytes(event.payload))
            await self._answer(event.response())
        elif isinstance(event, Pong):
            self.pongs.append(bytes(event.payload))
        else:
            assert isinstance(event, CloseConnection)
            if self._connection.state is ConnectionState.OPEN:
                raise RemoteProtocolError(f"the server broke the protocol: {event.code} {event.reason}")
            self._closed = (int(event.code), event.reason or "")
            await self._answer(event.response())

    async def _answer(self, event: Event) -> None:
        """Send what answers an event, unless both sides have closed, or nobody is there to read it."""
        if self.answers and self._connection.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            with suppress(trio.BrokenResourceError):
                await self._send_event(event)

    async def _next_event(self) -> Event:
        while True:
            for event in self._connection.events():
                return event
            data = await self._receive()
            if not data:
                self._closed = (1006, "")
                raise WebSocketClosed(*self._closed)
            self._connection.receive_data(data)

    async def _read_body(self, answer: RejectConnection) -> bytes:
        pieces = []
        more = answer.has_body
        while more:
            piece = await self._next_event()
            assert isinstance(piece, RejectData)
            pieces.append(bytes(piece.data))
            more = not piece.body_finished
        return b"".join(pieces)

    async def _receive(self) -> bytes:
        """What comes next, `b""` once the server has closed the connection, in whatever way."""
        try:
            return bytes(await self.stream.receive_some(READ_SIZE))
        except trio.BrokenResourceError:
            return b""


def encode_frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True
) -> bytes:
    """A client's frame (RFC 6455, 5.2), of which nothing is checked.

    Args:
        opcode: 0 goes on with a message, 1 begins text, 2 binary; 8 closes, 9 is a ping, 10 a pong.
        payload: up to 125 bytes for the last three.
        fin: whether it is the message's last.
        rsv: the reserved bits, 0 to 7; 4 says that the message is compressed.
        masked: whether it is masked, as every frame of a client's must be.
    """
    size = len(payload)
    head = bytearray([fin << 7 | rsv << 4 | opcode, masked << 7])
    if size <= 125:
        head[1] |= size
    elif size <= 0xFFFF:
        head[1] |= 126
        head += size.to_bytes(2, "big")
    else:
        head[1] |= 127
        head += size.to_bytes(8, "big")
    if not masked:
        return bytes(head) + payload
    mask = (MASKING_KEY * (size // 4 + 1))[:size]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
    return bytes(head) + MASKING_KEY + mixed.to_bytes(size, "big")
