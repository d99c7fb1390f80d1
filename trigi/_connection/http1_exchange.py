"""A request and its response on HTTP/1.1: how a response gets on the wire, and what comes after it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import trio

from trigi._protocol.events import Data, Headers, Request
from trigi._protocol.headers import tokens
from trigi._protocol.http1_encode import LAST_CHUNK, encode_chunk, encode_head, encode_trailers
from trigi._protocol.response_head import HOP_BY_HOP
from trigi.exceptions import BadRequest
from trigi.typing import Message

from . import files
from .context import ServerContext
from .exchange import Exchange
from .transport import DISCARD_SECONDS, Transport
from .tunnel import ConnectionTunnel

__all__ = ["HTTP1Exchange", "RequestCycles"]


FRAMING = HOP_BY_HOP | {b"content-length"}
"""What is not passed on where the body's length is not its framing."""


class RequestCycles(ABC):
    """The connection, as far as an exchange has to do with it: one after the other, each until both sides are done.

    Attributes:
        transport: what responses are written to.
        context: what the server's connections share.
    """

    def __init__(self, transport: Transport, context: ServerContext) -> None:
        self.transport = transport
        self.context = context

    @abstractmethod
    def is_last(self, request: Request) -> bool:
        """Whether the response to this request is the connection's last, as far as is known now."""

    @abstractmethod
    def response_ended(self, now: float) -> None:
        """The open exchange's response is complete."""

    @abstractmethod
    def refuse_request(self, error: BadRequest) -> None:
        """Have the reader answer a request whose body does not come, and close."""

    @abstractmethod
    def stop(self) -> None:
        """Read no more: the reader ends, and the connection is closed."""

    @abstractmethod
    async def hand_over(self) -> bytes:
        """End the reader, leaving the stream to the caller: what it had read already."""


class HTTP1Exchange(Exchange):
    """A request and its response on HTTP/1.1.

    Attributes:
        must_close: the connection can't be used again after this.
        discarded: bytes of the request's body that came after the response was complete.
    """

    discarded = 0
    _chunked = False
    _ends_at_close = False

    def __init__(self, request: Request, connection: RequestCycles) -> None:
        super().__init__(request, connection.transport.info, connection.context)
        self.zero_copy = connection.transport.copies_files
        self.must_close = not request.keep_alive
        self._http1 = connection

    def to_message(self, piece: Data) -> Message:
        """What the application is told of the next piece of the body."""
        self.body_expected = piece.more
        return {"type": "http.request", "body": piece.data, "more_body": piece.more}

    async def send_data(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body, the first together with the head, the last together with the end."""
        parts = []
        if not self.head_sent:
            self.head_sent = True
            parts.append(self._encode_head())
        if data and not self.bodyless:
            self.bytes_sent += len(data)
            parts.append(encode_chunk(data) if self._chunked else data)
        if self._chunked and not more:
            parts.append(LAST_CHUNK)
        await self._write(parts)
        if not more:
            self.finish()

    async def send_file(self, descriptor: int, offset: int, count: int, *, more: bool) -> None:
        """Have the system copy what is more than one piece; that leaves in one write with the head."""
        if not self.zero_copy or self.bodyless or count <= files.PIECE:
            await super().send_file(descriptor, offset, count, more=more)
            return
        before, after = b"", b""
        if not self.head_sent:
            self.head_sent = True
            before = self._encode_head()
        if self._chunked:
            before += b"%x\r\n" % count
            after = b"\r\n" if more else b"\r\n" + LAST_CHUNK
        span = files.Span(descriptor, offset, count)
        try:
            await self._http1.transport.send_file(before, span, after, self._count_sent)
        except BaseException:
            self.abort()
            raise
        if not more:
            self.finish()

    def _count_sent(self, size: int) -> None:
        self.bytes_sent += size

    async def send_trailers(self, trailers: Headers) -> None:
        """End the response with trailers, if the client takes them."""
        if self._chunked:
            await self._write([encode_trailers(trailers if self.trailers_wanted else [])])
        else:
            await trio.lowlevel.checkpoint()
        self.finish()

    async def send_informational(self, status: int, headers: Headers) -> None:
        """Send an interim response, unless the head has left or the client is older than those."""
        if self.head_sent or self.request.http_version == "1.0" or self.ended:
            await trio.lowlevel.checkpoint()
            return
        await self._write([encode_head(status, headers)])

    def refuse_request(self, error: BadRequest) -> None:
        """Have the reader answer if nothing was sent, treat the client as gone, and close the connection."""
        self._http1.refuse_request(error)

    async def upgrade(self, headers: Headers) -> ConnectionTunnel:
        """Answer 101 with these headers, and give what the connection is from then on."""
        self.head_sent = True
        self.status = 101
        received = await self._http1.hand_over()
        await self._write([encode_head(101, headers)])
        return ConnectionTunnel(self._http1.transport, received)

    async def linger(self) -> None:
        """As `Transport.linger` does it."""
        if not self._http1.transport.broken:
            await self._http1.transport.linger(DISCARD_SECONDS)

    def finish(self) -> None:
        """The response is complete: the connection may go on to the next request."""
        if not self.ended:
            super().finish()
            self._http1.response_ended(self.started + self.duration)

    def abort(self) -> None:
        """Close the connection without the end of the response."""
        self.disconnect()
        self.must_close = True
        if self._ends_at_close:
            self._http1.transport.reset_on_close()
        self._http1.transport.give_up()
        self._http1.stop()

    async def _write(self, parts: list[bytes]) -> None:
        if not parts:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._http1.transport.write(parts)
        except BaseException:
            # Gone, or cancelled with half a write on the wire: either way this was the connection's last response.
            self.abort()
            raise

    def _encode_head(self) -> bytes:
        """The head with its framing (RFC 9112, 6): the application's length, else chunks, else up to the close."""
        head = self.head
        assert head is not None
        is_http_1_1 = self.request.http_version == "1.1"
        # The client was to send its body upon a 100 that it will not get: what comes next can't be told apart.
        unasked = self._continue_wanted and self.body_expected
        self.must_close |= unasked or self._http1.is_last(self.request)
        defaults = self.context.default_headers()
        if head.is_plain and is_http_1_1 and not self.must_close and not self.trailers_wanted:
            return b"%b%b\r\n" % (head.lines, defaults.lines)
        fields, names = head.headers, head.names
        connection = tokens(fields, b"connection") if b"connection" in names else []
        # RFC 9110, 8.6: never with 204. And trailers need chunks.
        has_length = b"content-length" in names and head.status != 204 and not self.trailers_wanted
        not_passed_on = HOP_BY_HOP if has_length else FRAMING
        if not_passed_on.isdisjoint(names):
            fields = fields.copy()
        else:
            fields = [field for field in fields if field[0] not in not_passed_on]
        if not has_length and not self.bodyless:
            if is_http_1_1:
                self._chunked = True
                fields.append((b"transfer-encoding", b"chunked"))
            else:
                self._ends_at_close = self.must_close = True
        self.must_close |= b"close" in connection
        if self.must_close:
            connection = [
                b"close",
                *(token for token in connection if token not in (b"close", b"keep-alive")),
            ]
        elif not is_http_1_1:
            connection = [b"keep-alive"]
        elif connection:
            connection = [token for token in connection if token != b"keep-alive"]
        if connection:
            fields.append((b"connection", b", ".join(connection)))
        if b"date" not in names and b"server" not in names:
            return encode_head(head.status, fields, defaults.lines)
        fields += [field for field in defaults.fields if field[0] not in names]
        return encode_head(head.status, fields)
