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

from trigi._protocol.events import HTTP2_PREFACE, PAUSED, Data, Request
from trigi._protocol.http1 import HTTP1Codec
from trigi._protocol.http1_encode import encode_error
from trigi.exceptions import BadRequest, ClientDisconnected

from .application_task import ApplicationTask
from .context import ServerContext
from .direct import READ_SIZE
from .http1_exchange import HTTP1Exchange, RequestCycles
from .readiness import Readiness
from .run_http import run_http
from .run_websocket import run_websocket
from .transport import DISCARD_SECONDS, DISCARD_SIZE, Transport

__all__ = ["HTTP1Connection"]


class HTTP1Connection(RequestCycles):
    """The requests of one connection, one after the other.

    Only `_end_cycle` decides whether the connection is used again (I9).
    """

    def __init__(self, transport: Transport, context: ServerContext) -> None:
        super().__init__(transport, context)
        self._codec = HTTP1Codec(context.config, context.parse_fields, http2=transport.info.tls is None)
        self._is_http2 = False
        self._exchange: HTTP1Exchange | None = None
        self._undelivered: tuple[HTTP1Exchange, Data] | None = None  # a piece of a request's body
        self._requests = 0
        self._deadline = trio.current_time() + context.config.header_timeout
        self._application_task: ApplicationTask | None = None
        self._reading: trio.CancelScope | None = None  # around the reader's wait, from its first on
        self._late_reader: trio.Event | None = None  # one was started, and has not ended
        self._peeked: Request | None = None  # the reader's next event
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
        self.context.connections.add(self)
        try:
            if self.context.draining.is_set():  # it has begun since this connection was accepted
                self.drain()
            only = self._read_only_request()
            if only is not None:
                await self._answer_only_request(only)
            else:
                await self._answer_requests()
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
        if self._application_task is not None:
            self._application_task.close()
        self._interrupt_reader()

    async def _answer_requests(self) -> None:
        async with trio.open_nursery() as self._applications:
            direct = self.transport.direct
            self._application_task = ApplicationTask(
                self._applications, self._read_in_its_place, None if direct is None else Readiness.current()
            )
            if direct is not None:
                direct.claim = self._claim
            await self._read_to_the_end()

    # A request that is the only one

    def _read_only_request(self) -> HTTP1Exchange | None:
        """Begin the exchange if the first request has come by now, without a body, and is to be the last."""
        try:
            if (
                self._stopping
                or not self._receive_nowait()
                or type(event := self._codec.next_event()) is not Request
            ):
                return None
        except BadRequest:
            return None  # the codec says so again
        is_only = not (event.keep_alive or event.has_body or event.is_upgrade)
        if is_only and len(self.context.running) < self.context.config.concurrency_limit:
            return self._open_exchange(event)
        self._peeked = event
        return None

    async def _answer_only_request(self, exchange: HTTP1Exchange) -> None:
        """Answer it here and now: a nursery and two tasks cost as much as all the rest.

        While the application waits for anything there must be a reader all the same. It closes the connection after the
        response, too, if the application goes on.
        """
        self.context.running.add(exchange)
        exchange.on_wait = self._start_late_reader
        await run_http(exchange)
        self.stop()
        if self._late_reader is not None:
            await self._late_reader.wait()
        else:
            await self._close()

    def _start_late_reader(self) -> None:
        assert self.context.nursery is not None
        self._late_reader = trio.Event()
        self.context.nursery.start_soon(self._read_late, self._late_reader, name="trigi: reader")

    async def _read_late(self, done: trio.Event) -> None:
        try:
            await self._read_to_the_end()
        except Exception as error:  # noqa: BLE001 - as `serve_stream`
            self.context.observer.connection_failed(self.transport.info.client, error)
        finally:
            done.set()

    # The reader

    async def _read_to_the_end(self) -> None:
        """Read until there is nothing more to be read, end the exchange that is open then, and close."""
        try:
            await self._read_requests()
        finally:
            if self.transport.direct is not None:
                self.transport.direct.claim = None
            if self._application_task is not None:
                self._application_task.close()
            if self._reader_done is not None:
                self._reader_done.set()
            elif self._exchange is not None and not self._exchange.ended:
                self._exchange.abort()
        if self._reader_done is None and not self._is_http2:
            await self._close()

    async def _read_requests(self) -> None:
        while True:
            try:
                with trio.CancelScope(deadline=self._deadline) as reading:
                    self._reading = reading
                    await self._read()
            except BadRequest as error:
                self._refused = error
            if self._refused is not None:
                await self._refuse_request(self._refused)
            if self._stopping:
                return
            # What was read in the same moment may have moved the deadline, and so may what is read now.
            is_late = reading.cancelled_caught and trio.current_time() >= self._deadline
            if is_late and not self._woken and not self._receive_nowait():
                await self._time_out()
            self._woken = False

    async def _read(self) -> None:
        while not self._stopping and self._refused is None:
            if self._undelivered is not None:
                await self._pass_on(*self._undelivered)
                continue
            event = self._peeked or self._codec.next_event()
            self._peeked = None
            if type(event) is Request:
                self._start_exchange(event)
            elif type(event) is Data:
                assert self._exchange is not None
                self._undelivered = self._exchange, event
            elif event is HTTP2_PREFACE:
                self._is_http2 = self._stopping = True
            else:
                await self._receive(paused=event is PAUSED)

    def _open_exchange(self, request: Request) -> HTTP1Exchange:
        self._head_begun = False
        self._requests += 1
        self._deadline = inf
        exchange = self._exchange = HTTP1Exchange(request, self)
        return exchange

    def _start_exchange(self, request: Request) -> HTTP1Exchange:
        exchange = self._open_exchange(request)
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
            assert self._application_task is not None
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
        if self._exchange is None and codec.buffered and not self._head_begun:
            self._head_begun = True
            self._set_deadline(trio.current_time() + self.context.config.header_timeout)
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

    def _claim(self) -> bool:
        """Whether the application's task reads what has come: between requests, if it is free."""
        assert self._application_task is not None
        return self._exchange is None and self._application_task.claim()

    def _read_in_its_place(self) -> None:
        """Do what the reader would do; leave to it what takes more than that."""
        if self._exchange is not None or not self._read_at_once():
            self._woken = True
            self._interrupt_reader()

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

    def _interrupt_reader(self) -> None:
        """Have the reader look at the connection's state again."""
        if self._reading is not None:
            self._reading.cancel()

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._reading is not None and deadline < self._reading.deadline:  # to set it costs
            self._reading.deadline = deadline

    def response_ended(self, now: float) -> None:
        """The open exchange's response is complete."""
        if self._reader_done is None:
            self._end_cycle(now)
            if self._exchange is None and self._codec.buffered:
                self._woken = True
                self._interrupt_reader()

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
        self._interrupt_reader()

    async def hand_over(self) -> bytes:
        """End the reader, leaving the stream to the caller: what it had read already."""
        self._reader_done = trio.Event()
        self.stop()
        await self._reader_done.wait()
        return self._codec.trailing_data
