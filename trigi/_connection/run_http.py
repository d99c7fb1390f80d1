"""An application on one `http` scope: its messages, checked by the tables, become calls on an exchange."""

from __future__ import annotations

import os

import trio

from trigi._protocol.asgi import (
    EXTENSION_OF,
    HTTP,
    HTTP_SEND,
    advance,
    check_body,
    check_descriptor,
    check_links,
    check_path,
    check_range,
    check_start,
    check_trailers,
    event_of,
)
from trigi._protocol.events import Headers
from trigi._protocol.response_head import ResponseHead
from trigi._protocol.scope import http_scope
from trigi.exceptions import ApplicationError, InvalidMessage
from trigi.typing import Message

from . import files
from .application import call_application
from .exchange import Exchange

__all__ = ["HTTPCall", "run_http"]

START, COMPLETE = HTTP.START, HTTP.COMPLETE  # where every response comes by


async def run_http(exchange: Exchange) -> bool:
    """Call the application, and answer for it where it did not: 500, 504, or the response is cut off.

    Returns:
        Whether the application did all it should, and nothing it should not.
    """
    context = exchange.context
    call = HTTPCall(exchange)
    scope = http_scope(
        exchange.request,
        exchange.connection,
        context.config.root_path,
        context.state,
        exchange.extension,
        extensions=exchange.extensions,
    )
    try:
        failure = await call_application(exchange, scope, exchange.receive, call.send)
        if failure is not None:
            context.observer.application_failed(exchange, failure)
        if exchange.settled:
            return failure is None
        await trio.lowlevel.checkpoint_if_cancelled()
        timed_out = exchange.cancel_scope.cancel_called  # whatever the application made of it
        if failure is None and not timed_out:
            failure = ApplicationError(
                f"the application returned in state {call.state}, its response incomplete"
            )
            context.observer.application_failed(exchange, failure)
        await exchange.respond(504 if timed_out else 500)
        return False
    finally:
        if not exchange.settled:
            exchange.abort()
        exchange.release()


class HTTPCall:
    """What an application has sent so far.

    Attributes:
        state: where it is in `HTTP_SEND`.
    """

    __slots__ = ("_exchange", "_remaining", "_trailers", "state")

    def __init__(self, exchange: Exchange) -> None:
        self.state = START
        self._exchange = exchange
        self._remaining: int | None = None  # bytes of body that the content-length still promises
        self._trailers: Headers | None = None

    async def send(self, message: Message) -> None:
        """Take one message of the application's (ASGI HTTP 2.5, "Response Start" and following).

        Raises:
            ClientDisconnected: the client has gone.
            UnexpectedMessage: not now; the state is as it was.
            InvalidMessage: not so; the state is as it was, unless the body has not the length it was to have.

        Cancellation: during a write leaves the response cut off.
        """
        event = event_of(message)
        exchange = self._exchange
        if exchange.disconnected:
            await exchange.refuse_to_send()
        extension = EXTENSION_OF.get(event)
        if extension is not None and extension not in exchange.extensions:
            raise InvalidMessage(f"{message['type']}: the extension {extension} is not in this scope")
        state = advance(HTTP_SEND, self.state, event)
        if self.state is COMPLETE:
            await trio.lowlevel.checkpoint()
        elif self.state is START and state is not START:
            head = check_start(message)
            self._remaining = head.length
            self.state = state
            exchange.start_response(head, trailers=state is HTTP.BODY_THEN_TRAILERS)
        else:
            exchange.begin_sending()
            try:
                if message["type"] == "http.response.body":
                    data = check_body(message)
                    self._take_body(len(data), state, event)
                    await exchange.send_data(data, more=state is not COMPLETE)
                else:
                    await self._send_special(message, event, state)
            finally:
                exchange.end_sending()

    async def _send_special(self, message: Message, event: str, state: HTTP) -> None:
        """Take a message that belongs to an extension."""
        exchange = self._exchange
        match message["type"]:
            case "http.response.trailers":
                self._trailers = (self._trailers or []) + check_trailers(message)
                self.state = state
                if state is COMPLETE:
                    await exchange.send_trailers(self._trailers)
            case "http.response.early_hint":
                await exchange.send_informational(103, check_links(message))
            case "http.response.pathsend":
                span = await files.open_path(check_path(message))
                try:
                    await self._send_file(span, event)
                finally:
                    os.close(span.descriptor)
            case "http.response.zerocopysend":
                await self._send_file(
                    await files.measure(check_descriptor(message), *check_range(message)), event
                )

    async def _send_file(self, span: files.Span, event: str) -> None:
        """Send a file that was opened meanwhile, if it still may be sent."""
        exchange = self._exchange
        exchange.check_connected()
        state = advance(HTTP_SEND, self.state, event)
        if self.state is COMPLETE:
            return
        if (
            event == "http.response.pathsend"
            and self._remaining is None
            and exchange.status not in (204, 304)
        ):
            assert exchange.status is not None
            length = (b"content-length", b"%d" % span.size)  # known, although the application did not say it
            head = ResponseHead(exchange.status, [*exchange.response_headers, length])
            exchange.start_response(head, trailers=state is HTTP.TRAILERS)
        self._take_body(span.size, state, event)
        await exchange.send_file(*span, more=state is not COMPLETE)

    def _take_body(self, size: int, state: HTTP, event: str) -> None:
        """Go on to `state` with so many bytes of body, unless the response has not the length it was to have."""
        exchange = self._exchange
        if self._remaining is not None and not exchange.bodyless:
            self._remaining -= size
            is_last = state is COMPLETE or state is HTTP.TRAILERS
            if self._remaining < 0 or (is_last and self._remaining > 0):
                exchange.abort()
                how_much = f"{abs(self._remaining)} bytes {'more' if self._remaining < 0 else 'less'}"
                type_ = event.removesuffix("+more_body")
                raise InvalidMessage(f"{type_}: {how_much} than the content-length said")
        self.state = state
