"""A request and its response on one stream of an HTTP/2 connection, and the WebSocket that it may become (RFC 8441)."""

from __future__ import annotations

from contextlib import suppress

import trio

from trigi._protocol.events import Headers, Request
from trigi._protocol.http2 import ErrorCode, HTTP2Codec
from trigi._protocol.http2_fields import CONNECTION_SPECIFIC
from trigi._protocol.scope import ConnectionInfo
from trigi.exceptions import BadRequest, ClientDisconnected
from trigi.typing import Message

from .context import ServerContext
from .exchange import Exchange
from .http2_writer import HTTP2Writer, Outgoing
from .transport import CLOSE_SECONDS, DISCARD_SIZE
from .tunnel import Tunnel

__all__ = ["HTTP2Exchange"]


class HTTP2Exchange(Exchange):
    """A request and its response on HTTP/2.

    Attributes:
        stream_id: of its stream.
        outgoing: what its stream has to send.
        tunnel: what the stream is once a WebSocket was accepted on it.
    """

    inbox_size = 2  # one piece as a rule, and the rest of what came when the client has gone

    def __init__(
        self,
        request: Request,
        connection: ConnectionInfo,
        context: ServerContext,
        codec: HTTP2Codec,
        writer: HTTP2Writer,
    ) -> None:
        super().__init__(request, connection, context)
        self.stream_id = request.stream_id
        self.outgoing = Outgoing(request.stream_id, request.priority)
        self.tunnel: StreamTunnel | None = None
        self._codec = codec
        self._writer = writer
        self._unread = bytearray()  # behind the message in the inbox
        self._unread_end = False
        self._unacknowledged = 0  # bytes that the application was not given, and the client can't send again
        self._discarded = 0

    # Called by the reader

    def take(self, data: bytes, *, more: bool) -> None:
        """A piece of the request's body has come. The stream's window bounds what can be waiting."""
        if self.tunnel is not None:
            self.tunnel.feed(data, more=more)
        elif self.settled:
            self._discard(len(data))
        else:
            self._unacknowledged += len(data)
            self._unread += data
            self._unread_end = not more
            self._pass_on()

    def lose(self) -> None:
        """The stream was reset, or the connection has gone."""
        self._writer.drop(self.outgoing)
        if self.tunnel is not None:
            self.tunnel.lose()
        else:
            self._pass_on(at_most=self.inbox_size)  # what came counts
            self.disconnect()

    def sent(self) -> None:
        """The end of the response has been handed to the transport."""
        if self.tunnel is None:
            self.finish()

    def _pass_on(self, *, at_most: int = 1) -> None:
        """Into the inbox, if the message before it was received: many small frames make one message."""
        if self.is_websocket or not (self._unread or self._unread_end) or not self.body_expected:
            return
        if len(self.inbox) >= at_most:
            return
        more = not self._unread_end
        self.body_expected = more
        self.deliver_nowait({"type": "http.request", "body": bytes(self._unread), "more_body": more})
        self._unread.clear()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded <= DISCARD_SIZE:
            self._writer.return_window(self.stream_id, size)
        elif self._codec.is_response_complete(self.stream_id):
            self._writer.reset(self.outgoing, ErrorCode.NO_ERROR)  # RFC 9113, 8.1

    # Called by the application's side

    def acknowledge(self, message: Message) -> None:
        """The application has a piece of the body: the client may send as much more."""
        size = len(message["body"])
        self._unacknowledged -= size
        if size:
            self._writer.return_window(self.stream_id, size)
        self._pass_on()

    async def send_data(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body, the first together with the head, the last together with the end."""
        if self.bodyless:
            data = b""
        if not self.head_sent:
            self.head_sent = True
            ends = not more and not data
            self._writer.send_fields(self.outgoing, self._response_fields(), ends=ends)
            if ends:
                return
        self.bytes_sent += len(data)
        if data or not more:
            await self._send(data, ends=not more)
        else:
            await trio.lowlevel.checkpoint()
        if not more:
            self._settle()

    async def send_trailers(self, trailers: Headers) -> None:
        """End the response with trailers, if the client takes them."""
        wanted = self.trailers_wanted and not self.bodyless
        fields = [field for field in trailers if field[0] not in CONNECTION_SPECIFIC]
        await self._send(b"", ends=True, trailers=fields if wanted else [])
        self._settle()

    async def send_informational(self, status: int, headers: Headers) -> None:
        """Send an interim response, unless the head has left."""
        if not self.head_sent and not self.ended:
            self._writer.send_fields(self.outgoing, [(b":status", b"%d" % status), *headers])
        await self._writer.wait_written()
        await trio.lowlevel.checkpoint()

    def refuse_request(self, error: BadRequest) -> None:
        """Answer, if nothing was sent, and treat the client as gone."""
        if self.settled:
            return
        self.context.observer.request_refused(self.connection, error)
        if self.head_sent:
            self.abort()
            return
        self.status = error.status_hint
        self.head_sent = True
        self.disconnect()
        self._writer.answer(self.outgoing, error.status_hint, self.context.default_headers().fields)

    async def upgrade(self, headers: Headers) -> StreamTunnel:
        """Answer 200 with these headers, and give the stream of bytes that the exchange is from then on."""
        self.head_sent = True
        self.status = 200
        self.tunnel = StreamTunnel(self.outgoing, self._writer)
        self.tunnel.feed(bytes(self._unread), more=not self._unread_end)
        self._writer.send_fields(self.outgoing, [(b":status", b"200"), *headers])
        await trio.lowlevel.checkpoint()
        return self.tunnel

    def finish(self) -> None:
        """The response is complete."""
        super().finish()
        self._settle()

    def _settle(self) -> None:
        """All of the response was handed over: what of the request is unread is not wanted any more."""
        self.answered = True
        size, self._unacknowledged = self._unacknowledged, 0
        self._unread.clear()
        if size and self.tunnel is None and self._codec.is_open(self.stream_id):
            self._discard(size)

    def abort(self) -> None:
        """Reset the stream: the others go on."""
        if self.tunnel is not None:
            self.tunnel.lose()
        self.disconnect()
        self._writer.reset(self.outgoing, ErrorCode.INTERNAL_ERROR)

    async def _send(self, data: bytes, *, ends: bool, trailers: Headers | None = None) -> None:
        try:
            await self._writer.send(self.outgoing, data, ends=ends, trailers=trailers)
        except BaseException:
            self.abort()  # gone, or cancelled in the middle of its message
            raise

    def _response_fields(self) -> Headers:
        """The head: without what belongs to connections of HTTP/1.1 (RFC 9113, 8.2.2)."""
        assert self.status is not None
        fields: Headers = [(b":status", b"%d" % self.status)]
        names = set()
        for field in self.response_headers:
            # RFC 9110, 8.6: no content-length with 204
            if field[0] in CONNECTION_SPECIFIC or (self.status == 204 and field[0] == b"content-length"):
                continue
            names.add(field[0])
            fields.append(field)
        fields += [field for field in self.context.default_headers().fields if field[0] not in names]
        return fields


class StreamTunnel(Tunnel):
    """The bytes of one HTTP/2 stream (RFC 8441, 5)."""

    def __init__(self, outgoing: Outgoing, writer: HTTP2Writer) -> None:
        self._outgoing = outgoing
        self._writer = writer
        self._received = bytearray()
        self._at_end = False
        self._lost = False
        self._closed = False
        self._changed = trio.lowlevel.ParkingLot()

    def feed(self, data: bytes, *, more: bool) -> None:
        """The reader has read these bytes: bounded by the stream's window."""
        self._received += data
        self._at_end = not more
        self._changed.unpark_all()

    def lose(self) -> None:
        """The stream was reset, or the connection has gone."""
        self._lost = True
        self._changed.unpark_all()

    async def receive_some(self, max_bytes: int) -> bytes:
        """What came; `b""` once the client has ended its side. Cancellation loses nothing."""
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self._received:
                data = bytes(self._received[:max_bytes])
                del self._received[:max_bytes]
                self._writer.return_window(self._outgoing.stream_id, len(data))
                return data
            if self._lost:
                raise trio.BrokenResourceError("the stream was reset")
            if self._at_end:
                return b""
            await self._changed.park()
        raise trio.ClosedResourceError

    async def send_all(self, data: bytes) -> None:
        """Send after what others have sent before; nothing at all waits for them."""
        if self._closed:  # by the session's reader, because there is nobody to read it
            raise ClientDisconnected("the client has disconnected")
        await self._writer.send(self._outgoing, data)

    async def aclose(self) -> None:
        """End this side of the stream. The client has a moment to take what was sent, and another to end its own."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        self._changed.unpark_all()
        ended = False
        try:
            with suppress(ClientDisconnected), trio.move_on_after(CLOSE_SECONDS):
                await self._writer.send(self._outgoing, b"", ends=True)
                ended = True
            await trio.lowlevel.checkpoint()
        finally:
            if not ended:
                self._writer.reset(self._outgoing, ErrorCode.CANCEL)
