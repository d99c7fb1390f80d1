"""One HTTP/2 connection: a reader, a writer, and an application call for each stream.

The reader never waits for an application: what a client may send before it does is bounded by its streams' windows.
It does wait while the client does not read what the server had to answer.
"""

from __future__ import annotations

from math import inf

import trio

from trigi._protocol.events import (
    Data,
    Goodbye,
    Pause,
    Pong,
    Prioritized,
    Refused,
    Request,
    Reset,
    WindowOpened,
)
from trigi._protocol.http2 import ErrorCode, HTTP2Codec, HTTP2Event
from trigi.exceptions import BadConnection, BadRequest

from .context import ServerContext
from .direct import READ_SIZE
from .http2_exchange import HTTP2Exchange
from .http2_writer import HTTP2Writer
from .run_http import run_http
from .run_websocket import run_websocket
from .transport import DISCARD_SECONDS, Transport

__all__ = ["HTTP2Connection"]


EVENTS_AT_ONCE = 128
"""How many events of one read are handled before others have their turn: a client may send very small frames."""


class HTTP2Connection:
    """The streams of one connection.

    Args:
        transport: the connection.
        context: the server's.
        received: what was read of it already.
    """

    def __init__(self, transport: Transport, context: ServerContext, received: bytes = b"") -> None:
        self.transport = transport
        self.context = context
        self._received = received
        config = context.config
        self._codec = HTTP2Codec(config)
        self._writer = HTTP2Writer(
            transport,
            self._codec,
            buffer_size=config.write_buffer_size,
            timeout=config.write_timeout,
            on_sent=self._response_sent,
            on_ended=self._stream_ended,
            on_stalled=self._stalled,
            on_broken=self._broken,
        )
        self._exchanges: dict[int, HTTP2Exchange] = {}
        self._abandoned: set[HTTP2Exchange] = set()  # without a stream, while their applications work on
        self._reading = trio.CancelScope()
        self._idle_since = trio.current_time()
        self._open_head: int | None = None
        self._head_since = self._idle_since  # when it began, or the preface did
        self._draining = False
        self._stopping = False
        self._client_finished = False
        self._closing: dict[int, trio.Event] = {}  # streams whose request goes on after the response

    async def serve(self) -> None:
        """Serve until the client or the server has enough, and every call has ended; then close in order."""
        self.context.connections.add(self)
        if self.context.draining.is_set():  # it has begun since this connection was accepted
            self.drain()
        try:
            async with trio.open_nursery() as self._applications:
                self._applications.start_soon(self._writer.run, name="trigi: writer")
                try:
                    await self._read()
                finally:
                    self._stopping = True
                    for exchange in list(self._exchanges.values()):
                        exchange.lose()
                    for closed in self._closing.values():
                        closed.set()
                await self._writer.finish()
                if not self.transport.broken:  # a client may be sending, if only windows
                    await self.transport.linger(DISCARD_SECONDS)
                await self.transport.close()
        finally:
            self.context.connections.discard(self)

    def drain(self) -> None:
        """Close now if no stream is open, else after the last: which that is, the client learns first."""
        if not self._exchanges:
            self.stop()
            return
        if not self._draining:
            self._draining = True
            self._codec.begin_goodbye()
            self._writer.wake()
        for exchange in list(self._exchanges.values()):
            if exchange.on_drain is not None:
                exchange.on_drain()

    def stop(self) -> None:
        """Read no more: the reader ends, and the connection is closed."""
        if not self._stopping:
            self._stopping = True
            self._codec.say_goodbye()
            self._reading.cancel()

    # The reader

    async def _read(self) -> None:
        await self._take(self._received)
        while True:
            await self._writer.wait_written()
            if self._stopping:
                return
            with trio.CancelScope(deadline=self._deadline()) as self._reading:
                await self._receive()
            if self._reading.cancelled_caught and trio.current_time() >= self._deadline():
                self._time_out()

    def _deadline(self) -> float:
        """Until when something must have come: of the preface, of a head, or a request."""
        config = self.context.config
        if self._open_head is not None or not self._codec.established:
            return self._head_since + config.header_timeout
        return inf if self._exchanges else self._idle_since + config.keep_alive_timeout

    async def _receive(self) -> None:
        if self._client_finished:
            await trio.sleep_forever()  # the end of the last stream cancels it
        try:
            data = await self.transport.stream.receive_some(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if data:
            await self._take(data)
        elif self.context.config.half_close and self._exchanges:
            self._client_finished = True
            for exchange in list(self._exchanges.values()):
                if not self._codec.is_request_complete(exchange.stream_id):
                    self._writer.reset(exchange.outgoing, ErrorCode.CANCEL)
                    exchange.lose()
        else:
            self.transport.give_up()
            self.stop()

    async def _take(self, data: bytes | bytearray) -> None:
        """Handle everything that was read."""
        now = trio.current_time()
        if not self._codec.established:
            self._idle_since = now
        self._codec.receive_data(data, now)
        handled = 0
        while not isinstance(event := self._codec.next_event(), Pause):
            self._handle(event)
            handled += 1
            if handled % EVENTS_AT_ONCE == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()
        open_head = self._codec.open_head
        if open_head != self._open_head:
            self._open_head = open_head
            self._head_since = now
        self._writer.wake()

    def _handle(self, event: HTTP2Event) -> None:
        match event:
            case Request():
                self._start_exchange(event)
            case Data():
                exchange = self._exchanges.get(event.stream_id)
                if exchange is not None:
                    exchange.take(event.data, more=event.more)
                    if not self._codec.is_open(event.stream_id):
                        self._stream_ended(event.stream_id)
            case WindowOpened():
                self._writer.open_window(event.stream_id)
            case Reset():
                self._reset(event)
            case Refused():
                self._refuse(event)
            case Prioritized():
                exchange = self._exchanges.get(event.stream_id)
                if exchange is not None:
                    self._writer.prioritize(exchange.outgoing, event.priority)
            case Pong():
                if self._draining:
                    self._codec.say_goodbye()
            case Goodbye():
                self._draining = True
                if not self._exchanges:
                    self.stop()
            case BadConnection():
                self.context.observer.connection_refused(self.transport.info, event)
                self.stop()

    def _start_exchange(self, request: Request) -> None:
        context, config = self.context, self.context.config
        exchange = HTTP2Exchange(request, self.transport.info, context, self._codec, self._writer)
        self._exchanges[request.stream_id] = exchange
        if self._codec.streams_ever >= config.keep_alive_max_requests:
            self._draining = True
            self._codec.say_goodbye()
        if len(context.running) >= config.concurrency_limit:
            error = BadRequest("too many requests at once", status_hint=503, limit="concurrency_limit")
            context.observer.request_refused(self.transport.info, error)
            self._applications.start_soon(
                exchange.respond, 503, [(b"retry-after", b"1")], name="trigi: refusal"
            )
            return
        context.running.add(exchange)  # now: another may be counted before its task begins
        self._applications.start_soon(self._run, exchange, name="trigi: application")

    async def _run(self, exchange: HTTP2Exchange) -> None:
        try:
            await (run_websocket if exchange.is_websocket else run_http)(exchange)
        finally:
            self._abandoned.discard(exchange)
            self._codec.abandoned = len(self._abandoned)

    def _reset(self, event: Reset) -> None:
        if event.error is not None:
            self.context.observer.request_refused(self.transport.info, event.error)
        exchange = self._exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.lose()

    def _refuse(self, event: Refused) -> None:
        exchange = self._exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.refuse_request(event.error)
            if not self._codec.is_open(event.stream_id):
                self._stream_ended(event.stream_id)
        elif self._codec.is_open(event.stream_id):
            self.context.observer.request_refused(self.transport.info, event.error)
            self._codec.answer(
                event.stream_id, event.error.status_hint, self.context.default_headers().fields
            )

    def _time_out(self) -> None:
        if self._open_head is not None or not self._codec.established:
            error = BadConnection(
                "the request's head did not come", error_code="NO_ERROR", limit="header_timeout"
            )
            self.context.observer.connection_refused(self.transport.info, error)
        self.stop()

    # Called by the writer

    def _response_sent(self, stream_id: int) -> None:
        """The end of a response is on its way."""
        exchange = self._exchanges.get(stream_id)
        if exchange is not None:
            exchange.sent()
            self._stream_ended(stream_id)

    def _stream_ended(self, stream_id: int) -> None:
        """This side of a stream has ended, or both have."""
        exchange = self._exchanges.get(stream_id)
        if exchange is None:
            return
        if self._codec.is_open(stream_id) and not self._stopping:
            self._closing[stream_id] = trio.Event()
            self._applications.start_soon(
                self._discard_rest, exchange, self._closing[stream_id], name="trigi: discarding"
            )
            return
        del self._exchanges[stream_id]
        if not exchange.complete and exchange in self.context.running:
            self._abandoned.add(exchange)
            self._codec.abandoned = len(self._abandoned)
        if stream_id in self._closing:
            self._closing.pop(stream_id).set()
        if not self._exchanges:
            self._idle_since = trio.current_time()
            self._reading.deadline = self._deadline()
            if self._draining or self._client_finished:
                self.stop()

    async def _discard_rest(self, exchange: HTTP2Exchange, closed: trio.Event) -> None:
        """Give the client a moment to end a request that has been answered (RFC 9113, 8.1)."""
        with trio.move_on_after(DISCARD_SECONDS):
            await closed.wait()
        if self._codec.is_open(exchange.stream_id):
            self._writer.reset(exchange.outgoing, ErrorCode.NO_ERROR)

    def _stalled(self, stream_id: int) -> None:
        """A client takes nothing on a stream, for `write_timeout`."""
        if stream_id in self._exchanges:
            self._exchanges[stream_id].abort()

    def _broken(self) -> None:
        """A client takes nothing at all, or has gone."""
        self.transport.give_up()
        self.stop()
