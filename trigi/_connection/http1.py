"""One HTTP/1.1 connection: a reader that lives as long as it does, and an application call for each request.

The reader parses what comes, has the application called for each request, and passes the request's body on to it. It
goes on reading while the application works, up to a bound, so that a client's leaving is seen at once. Responses are
written by the application's own task, but for what refuses a request.

Between two requests the application's task reads for the reader, where it can be known at any time that something has
come: most requests come whole, and whoever reads one can answer it then and there. What takes more than that, and
everything that takes time, is the reader's.

The reader waits in one cancel scope, `_reading`, and other tasks talk to it through that: they bring its deadline
forward, or cancel it for the reader to look at the connection's state again. Its deadline may be too early: to look
again in vain, once in a while, costs less than to move it for every request.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf

import trio

from trigi._protocol.events import HTTP2_PREFACE, PAUSED, Data, Headers, Request
from trigi._protocol.headers import tokens
from trigi._protocol.http1 import HTTP1Codec
from trigi._protocol.http1_encode import LAST_CHUNK, encode_chunk, encode_error, encode_head, encode_trailers
from trigi._protocol.response_head import HOP_BY_HOP
from trigi.exceptions import BadRequest, ClientDisconnected
from trigi.typing import Message

from . import files
from .application_task import ApplicationTask
from .context import ServerContext
from .direct import READ_SIZE
from .exchange import Exchange
from .run_websocket import run_websocket
from .transport import DISCARD_SECONDS, DISCARD_SIZE, Transport
from .tunnel import ConnectionTunnel

__all__ = ["HTTP1Connection"]


FRAMING = HOP_BY_HOP | {b"content-length"}
"""What is not passed on where the body's length is not its framing."""


class HTTP1Connection:
    """The requests of one connection, one after the other.

    Only `_end_cycle` decides whether the connection is used again (I9).
    """

    def __init__(self, transport: Transport, context: ServerContext) -> None:
        self.transport = transport
        self.context = context
        self._codec = HTTP1Codec(context.config, context.parse_fields, http2=transport.info.tls is None)
        self._is_http2 = False
        self._exchange: HTTP1Exchange | None = None
        self._undelivered: tuple[HTTP1Exchange, Data] | None = None  # a piece of a request's body
        self._requests = 0
        self._deadline = trio.current_time() + context.config.header_timeout
        self._reading = trio.CancelScope()
        self._head_begun = False
        self._woken = False
        self._refused: BadRequest | None = None
        self._stopping = False
        self._client_finished = False
        self._reader_done: trio.Event | None = None  # somebody waits to take the stream over

    async def serve(self) -> bytes | None:
        """Serve until the client or the server has enough, and every application call has ended; then close in order.

        Returns:
            What was read, if it is the beginning of HTTP/2: then the stream is left open.
        """
        direct = self.transport.direct
        try:
            async with trio.open_nursery() as self._applications:
                self._application_task = ApplicationTask(self._applications, self._read_in_its_place)
                self.context.connections.add(self)
                if self.context.draining.is_set():  # it has begun since this connection was accepted
                    self.drain()
                if direct is not None:
                    direct.claim = self._claim
                try:
                    await self._read_requests()
                finally:
                    if direct is not None:
                        direct.claim = None
                    self._application_task.close()
                    if self._reader_done is not None:
                        self._reader_done.set()
                    elif self._exchange is not None and not self._exchange.ended:
                        self._exchange.abort()
                if self._reader_done is None and not self._is_http2:
                    await self._close()
        finally:
            self._exchange = self._undelivered = None  # so that no collector is needed for them
            self.context.connections.discard(self)
        return self._codec.trailing_data if self._is_http2 else None

    def drain(self) -> None:
        """Close now if no exchange is open, else after it."""
        if self._exchange is None:
            self.stop()
        elif self._exchange.on_drain is not None:
            self._exchange.on_drain()

    def stop(self) -> None:
        """Read no more: the reader ends, and the connection is closed."""
        self._stopping = True
        self._application_task.close()
        self._reading.cancel()

    # The reader

    async def _read_requests(self) -> None:
        self._read_at_once()  # as a rule the first request has come by now
        if self._exchange is not None and self._exchange.must_close and await self._may_have_ended():
            return
        while True:
            try:
                with trio.CancelScope(deadline=self._deadline) as self._reading:
                    await self._read()
            except BadRequest as error:
                self._refused = error
            if self._refused is not None:
                await self._refuse_request(self._refused)
            if self._stopping:
                return
            # What was read in the same moment may have moved the deadline, and so may what is read now.
            is_late = self._reading.cancelled_caught and trio.current_time() >= self._deadline
            if is_late and not self._woken and not self._receive_nowait():
                await self._time_out()
            self._woken = False

    async def _read(self) -> None:
        while not self._stopping and self._refused is None:
            if self._undelivered is not None:
                await self._pass_on(*self._undelivered)
                continue
            event = self._codec.next_event()
            if type(event) is Request:
                self._start_exchange(event)
            elif type(event) is Data:
                assert self._exchange is not None
                self._undelivered = self._exchange, event
            elif event is HTTP2_PREFACE:
                self._is_http2 = self._stopping = True
            else:
                await self._receive(paused=event is PAUSED)

    def _start_exchange(self, request: Request) -> HTTP1Exchange:
        self._head_begun = False
        self._requests += 1
        self._deadline = inf
        exchange = self._exchange = HTTP1Exchange(request, self)
        config = self.context.config
        if len(self.context.running) >= config.concurrency_limit:
            error = BadRequest("too many requests at once", status_hint=503, limit="concurrency_limit")
            self.context.observer.request_refused(self.transport.info, error)
            self._applications.start_soon(
                exchange.respond, 503, [(b"retry-after", b"1")], name="trigi: refusal"
            )
            return exchange
        self.context.running.add(exchange)  # now: another may be counted before its task begins
        if request.is_upgrade:
            self._applications.start_soon(run_websocket, exchange, name="trigi: WebSocket")
        else:
            self._application_task.start(exchange)
        return exchange

    async def _pass_on(self, exchange: HTTP1Exchange, piece: Data) -> None:
        """Cancelled, the piece is still to be passed on."""
        await exchange.deliver(exchange.to_message(piece))
        self._undelivered = None
        if exchange.ended and exchange is self._exchange:
            self._end_cycle(trio.current_time(), discarded=len(piece.data))

    async def _receive(self, *, paused: bool) -> None:
        """Wait for bytes, if there is anything to wait for, or for the end of the exchange if there are enough.

        What a deadline means meanwhile depends on what is being waited for, and is seen to first.
        """
        codec = self._codec
        if self._client_finished and not codec.request_complete:
            if self._exchange is None:
                self._stopping = True
            else:
                self._client_left()
            return
        if self._client_finished or (paused and codec.buffered >= self.context.config.pipelined_size_limit):
            await trio.sleep_forever()  # the end of the exchange cancels it
        if self._exchange is None:
            if codec.buffered and not self._head_begun:
                self._head_begun = True
                self._set_deadline(trio.current_time() + self.context.config.header_timeout)
        elif codec.request_complete and self._exchange.must_close and await self._may_have_ended():
            return
        try:
            data = await self.transport.stream.receive_some(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._client_left()
            return
        if data:
            codec.receive_data(data)
        elif self.context.config.half_close and codec.request_complete:
            self._client_finished = True
        else:
            self._client_left()

    async def _may_have_ended(self) -> bool:
        """Whether the last response has left, once the application has had its turn.

        Then there is nothing to wait for: whoever closes looks whether anything has come.
        """
        for _ in range(2):  # the first time the application may come after this task, not the second
            await trio.lowlevel.cancel_shielded_checkpoint()
            if self._stopping:
                return True
        return False

    def _claim(self) -> bool:
        """Whether the application's task reads what has come: between requests, if it is free."""
        return self._exchange is None and self._application_task.claim()

    def _read_in_its_place(self) -> None:
        """Do what the reader would do; leave to it what takes more than that."""
        if self._exchange is not None or not self._read_at_once():
            self._woken = True
            self._reading.cancel()

    def _read_at_once(self) -> bool:
        """Read a request that has come whole: whether that was all there was."""
        codec = self._codec
        try:
            if not self._stopping and self._receive_nowait() and type(event := codec.next_event()) is Request:
                exchange = self._start_exchange(event)
                if event.has_body and type(piece := codec.next_event()) is Data:
                    exchange.deliver_nowait(exchange.to_message(piece))  # it is the first
                return codec.request_complete
        except BadRequest:
            pass  # the codec says so again
        return False

    def _receive_nowait(self) -> bool:
        """Take what there is, as far as that can be known: whether there was anything."""
        direct = self.transport.direct
        if direct is None:
            return False
        try:
            data = direct.receive_nowait(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        if data:
            self._codec.receive_data(data)
        return bool(data)

    def _client_left(self) -> None:
        self.transport.give_up()
        self._stopping = True

    async def _time_out(self) -> None:
        if self._exchange is None and self._codec.buffered:
            await self._refuse_request(
                BadRequest("the request's head did not come", status_hint=408, limit="header_timeout"),
            )
        self.stop()

    async def _refuse_request(self, error: BadRequest) -> None:
        """Answer a request that can't be read with an error if nothing was answered yet, and close."""
        exchange = self._exchange
        self.context.observer.request_refused(self.transport.info, error)
        if exchange is None or not exchange.head_sent:
            if exchange is not None:
                exchange.status = error.status_hint
                exchange.head_sent = True
                exchange.disconnect()
            with suppress(ClientDisconnected):
                await self.transport.write(
                    [encode_error(error.status_hint, self.context.default_headers().fields)]
                )
        elif not exchange.ended:
            exchange.abort()
        self.stop()

    async def _close(self) -> None:
        """Close so that the client can read what was sent to it last, if it may still be sending itself."""
        codec = self._codec
        if not (self.transport.broken or codec.idle) and (
            codec.buffered or not codec.request_complete or self.transport.has_unread()
        ):
            await self.transport.linger(DISCARD_SECONDS)
        await self.transport.close()

    # Called by the exchange, and by the reader itself

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._reading.deadline:  # noqa: PLR1730 - to set it costs, even to what it is
            self._reading.deadline = deadline

    def response_ended(self, now: float) -> None:
        """The open exchange's response is complete."""
        if self._reader_done is None:
            self._end_cycle(now)
            if self._exchange is None and self._codec.buffered:
                self._woken = True
                self._reading.cancel()

    def _end_cycle(self, now: float, discarded: int = 0) -> None:
        """Go on to the next request if this one is over on both sides, or see that it will be, or close."""
        exchange = self._exchange
        assert exchange is not None
        if exchange.must_close or self.context.draining.is_set():
            self.stop()
        elif self._codec.request_complete:
            self._exchange = None
            if self._client_finished and not self._codec.buffered:
                self.stop()
                return
            self._codec.start_next_cycle()
            self._set_deadline(now + self.context.config.keep_alive_timeout)
        else:
            exchange.discarded += discarded
            if max(exchange.discarded, self._codec.body_remaining or 0) > DISCARD_SIZE:
                self.stop()
            elif self._deadline == inf:
                self._set_deadline(now + DISCARD_SECONDS)

    def is_last(self, request: Request) -> bool:
        """Whether the response to this request is the connection's last, as far as is known now."""
        return (
            not request.keep_alive
            or self._stopping
            or self.context.draining.is_set()
            or self._requests >= self.context.config.keep_alive_max_requests
            or (request.has_body and (self._codec.body_remaining or 0) > DISCARD_SIZE)
        )

    def refuse_request(self, error: BadRequest) -> None:
        """Have the reader answer a request whose body does not come, and close."""
        self._refused = error
        self._reading.cancel()

    async def hand_over(self) -> bytes:
        """End the reader, leaving the stream to the caller: what it had read already."""
        self._reader_done = trio.Event()
        self.stop()
        await self._reader_done.wait()
        return self._codec.trailing_data


class HTTP1Exchange(Exchange):
    """A request and its response on HTTP/1.1.

    Attributes:
        must_close: the connection can't be used again after this.
        discarded: bytes of the request's body that came after the response was complete.
    """

    discarded = 0
    _chunked = False
    _ends_at_close = False

    def __init__(self, request: Request, connection: HTTP1Connection) -> None:
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
