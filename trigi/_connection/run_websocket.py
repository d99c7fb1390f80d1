"""An application on one `websocket` scope, over whatever tunnel its exchange becomes.

The application's call is the body of a nursery. Once it has accepted, the nursery has two more tasks: a reader
(bytes -> codec -> messages into the exchange's inbox) and one that keeps the connection alive.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from math import inf

import trio

from trigi._protocol.asgi import (
    WEBSOCKET_SEND,
    WebSocket,
    advance,
    check_body,
    check_close,
    check_start,
    check_text,
    check_websocket_data,
    event_of,
)
from trigi._protocol.headers import check_headers
from trigi._protocol.scope import websocket_scope
from trigi._protocol.websocket import Closed, Message, WebSocketCodec
from trigi._protocol.websocket_handshake import UPGRADE_REQUIRED_HEADERS, Handshake
from trigi.exceptions import ApplicationError, BadRequest, ClientDisconnected, InvalidMessage
from trigi.typing import Message as ASGIMessage

from .application import call_application
from .direct import DirectSocket
from .exchange import Exchange
from .run_http import HTTPCall
from .tunnel import Tunnel

__all__ = ["run_websocket"]

# RFC 6455, 7.4.1, and the IANA registry
NORMAL_CLOSURE = 1000
ABNORMAL_CLOSURE = 1006
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
VIOLATIONS = (1002, 1007, 1009)

READ_SIZE = 32 * 1024
"""Bytes asked for at once. Full of the smallest frames that wsproto reads, they keep the event loop for some 50 ms."""

LARGE_READ_SIZE = 256 * 1024
"""The same in the middle of a frame that has as many."""


async def run_websocket(exchange: Exchange) -> None:
    """Call the application, and answer or close for it where it did not."""
    context = exchange.context
    try:
        handshake = Handshake(exchange.request)
    except BadRequest as error:
        context.running.discard(exchange)  # no application is called
        context.observer.request_refused(exchange.connection, error)
        headers = list(UPGRADE_REQUIRED_HEADERS) if error.status_hint == 426 else []
        await exchange.respond(error.status_hint, headers)
        return
    scope = websocket_scope(
        exchange.request,
        exchange.connection,
        context.config.root_path,
        context.state,
        exchange.extension,
        subprotocols=handshake.subprotocols,
    )
    try:
        async with trio.open_nursery() as session:
            call = WebSocketCall(exchange, handshake, session)
            failure = await call_application(exchange, scope, call.receive, call.send)
            if failure is not None:
                context.observer.application_failed(exchange, failure)
            await trio.lowlevel.checkpoint_if_cancelled()
            await call.finish(failed=failure is not None)
    finally:
        if not exchange.settled:
            exchange.abort()
        exchange.release()


class WebSocketCall:
    """One WebSocket: what the application has sent so far, and what the client has.

    Attributes:
        state: where the application is in `WEBSOCKET_SEND`.
    """

    def __init__(self, exchange: Exchange, handshake: Handshake, session: trio.Nursery) -> None:
        self.state = WebSocket.CONNECTING
        self._exchange = exchange
        self._config = exchange.context.config
        self._handshake = handshake
        self._session = session
        self._denial = HTTPCall(exchange)
        self._connect_given = False
        self._accepted = trio.Event()
        self._tunnel: Tunnel | None = None
        self._codec: WebSocketCodec | None = None
        self._closed = Closed(ABNORMAL_CLOSURE, "")  # what `websocket.disconnect` will say
        self._reading = trio.CancelScope()
        self._keeping_alive = trio.CancelScope()
        self._heard = trio.Event()  # something came since the last ping
        self._unread = 0  # bytes of memory that the messages in the inbox take
        self._room = trio.Event()  # they have become fewer, or nobody wants them any more
        self._direct: DirectSocket | None = None  # that the application may read, too
        self._delivering = False
        self._reader_done = trio.Event()

    # The application's side

    async def receive(self) -> ASGIMessage:
        """The next message of a `websocket` scope; `websocket.disconnect` for ever after the end.

        As `Exchange.receive`: no checkpoint for what is there already, and cancellation loses nothing.
        """
        if not self._connect_given:
            self._connect_given = True
            return {"type": "websocket.connect"}
        if self._direct is not None and await self._exchange.inbox.offer_to_read():
            data = self._read_in_its_place()
            if data is not None:
                return _to_message(data)
        message = await self._exchange.next_message()
        if message is not None:
            self._unread -= sys.getsizeof(message.get("text", message.get("bytes")))
            self._room.set()
            return message
        return {"type": "websocket.disconnect", "code": self._closed.code, "reason": self._closed.reason}

    def _share_reading(self, tunnel: Tunnel) -> None:
        """From now on an application that waits for a message is asked to read it, if it can."""
        if self._direct is None and tunnel.direct is not None:
            self._direct = tunnel.direct
            self._direct.claim = self._exchange.inbox.ask_to_read

    def _read_in_its_place(self) -> str | bytes | None:
        """Read, as the reader would, a message that has come alone and whole; leave to it whatever else has come."""
        direct, codec = self._direct, self._codec
        assert direct is not None
        assert codec is not None
        try:
            data = direct.receive_nowait(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""  # the reader will be told the same
        message = codec.receive_message(data) if data and len(data) < READ_SIZE else None
        if message is None and data is not None:
            direct.give_back(data)
        elif message is not None:
            self._heard.set()
        return message

    async def send(self, message: ASGIMessage) -> None:
        """Take one message of the application's (ASGI WebSocket 2.5, "Accept" and following).

        Closing a WebSocket that the client has closed already does nothing.

        Raises:
            ClientDisconnected: the client has gone.
            UnexpectedMessage: not now; the state is as it was.
            InvalidMessage: not so; the state is as it was.

        Cancellation: during a write leaves a torn frame, so the connection is lost.
        """
        event = event_of(message)
        if self.state is WebSocket.OPEN:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self._accepted.is_set():  # an accept in another task is still on its way
                await self._accepted.wait()
        if event == "websocket.close" and self._exchange.disconnected:
            await trio.lowlevel.checkpoint()
            return
        if self._exchange.disconnected:
            await self._exchange.refuse_to_send()
        self._exchange.begin_sending()
        try:
            state = advance(WEBSOCKET_SEND, self.state, event)
            match message["type"]:
                case "websocket.send":
                    assert self._codec is not None
                    frame = self._codec.send_message(check_websocket_data(message))
                    self._exchange.bytes_sent += len(frame)
                    await self._write(frame)
                case "websocket.accept":
                    await self._accept(message)
                case "websocket.close":
                    if self.state is WebSocket.CONNECTING:
                        # A 403 has no reason, and FastAPI gives a list of errors for one.
                        if isinstance(message.get("reason"), list):
                            message = {**message, "reason": None}
                        check_close(message)
                        self.state = state
                        await self._exchange.respond(403)
                    else:
                        await self._close(*check_close(message))
                case "websocket.http.response.start":
                    await self._deny(message)
                    self.state = state
                case "websocket.http.response.body":
                    body = check_body(message)
                    more = state is WebSocket.DENIAL_BODY
                    await self._denial.send({"type": "http.response.body", "body": body, "more_body": more})
                    self.state = state
        finally:
            self._exchange.end_sending()

    async def _accept(self, message: ASGIMessage) -> None:
        headers, deflate = self._handshake.accept(
            check_text(message, "subprotocol"),
            check_headers(message.get("headers", ()), "websocket.accept"),
            deflate=self._config.websocket_per_message_deflate,
        )
        self._codec = WebSocketCodec(
            deflate,
            message_size_limit=self._config.websocket_message_size_limit,
            frame_count_limit=self._config.websocket_frame_count_limit,
        )
        self.state = WebSocket.OPEN
        exchange = self._exchange
        if exchange.cancel_scope.deadline == exchange.started + self._config.request_timeout:
            exchange.cancel_scope.deadline = inf  # it was for the handshake
        names = {name for name, _ in headers}
        headers += [field for field in exchange.context.default_headers().fields if field[0] not in names]
        try:
            self._tunnel = await exchange.upgrade(headers)
            self._share_reading(self._tunnel)
        except BaseException:
            exchange.abort()  # gone, or cancelled with half an answer on the wire
            raise
        finally:
            self._accepted.set()
        self._session.start_soon(self._read, name="trigi: WebSocket reader")
        self._session.start_soon(self._keep_alive, name="trigi: WebSocket pings")
        exchange.on_drain = self._drain
        if exchange.context.draining.is_set():
            self._drain()

    async def _deny(self, message: ASGIMessage) -> None:
        """A denial response is a response (extension websocket.http.response), after which the connection closes."""
        head = check_start(message)
        status = head.status
        if status < 300 and self._handshake.status == 200:  # RFC 8441, 5: that would accept
            raise InvalidMessage(f"{message['type']}: over HTTP/2 a status of {status} accepts")
        headers = [*head.headers, (b"connection", b"close")]
        await self._denial.send({"type": "http.response.start", "status": status, "headers": headers})

    async def finish(self, *, failed: bool) -> None:
        """The application has returned, or failed: answer or close if it did not."""
        exchange = self._exchange
        if self.state is WebSocket.OPEN:
            await self._accepted.wait()
        if exchange.settled:
            return
        if self.state is WebSocket.OPEN:
            with suppress(ClientDisconnected):
                await self._close(INTERNAL_ERROR if failed else NORMAL_CLOSURE)
            return
        timed_out = exchange.cancel_scope.cancel_called
        if not failed and not timed_out:
            exchange.context.observer.application_failed(
                exchange, ApplicationError(f"the application returned in state {self.state}")
            )
        await exchange.respond(504 if timed_out else 500)

    async def _close(self, code: int, reason: str = "") -> None:
        await self._write(self._begin_close(code, reason))
        self._exchange.finish()

    def _begin_close(self, code: int, reason: str = "") -> bytes:
        """The close frame, to be written. The session ends with the client's, or after `websocket_close_timeout`.

        Who calls it ends the exchange, too: whatever the client does from here on, it was closed from this side.
        """
        assert self._codec is not None
        frame = self._codec.close(code, reason)
        self.state = WebSocket.CLOSED
        self._room.set()
        # The client's close frame may have been answered already, and wait for the application behind messages.
        self._closed = self._codec.closed or Closed(code, reason)
        self._session.start_soon(self._end_within_close_timeout, name="trigi: WebSocket close")
        return frame

    async def _write(self, data: bytes) -> None:
        assert self._tunnel is not None
        try:
            await self._tunnel.send_all(data)
        except BaseException:
            # Gone, or cancelled with a torn frame on the wire and a compression window that has moved on.
            self._exchange.disconnect()
            self._reading.cancel()
            raise

    # The session's tasks

    async def _read(self) -> None:
        """Bytes become messages, until the client closes, breaks the protocol, or leaves."""
        assert self._tunnel is not None
        assert self._codec is not None
        with self._reading, suppress(ClientDisconnected):
            await self._read_messages(self._tunnel, self._codec)
            if self.state is WebSocket.CLOSED:
                await self._tunnel.send_all(b"")  # the close frame may still wait behind a message
        if self._direct is not None:
            self._direct.claim = None
        if self.state is WebSocket.OPEN:
            self._exchange.disconnect()
        self._keeping_alive.cancel()
        self._reader_done.set()
        if self._closed.code in VIOLATIONS:  # the client may be in the middle of a message
            await self._exchange.linger()
        await self._tunnel.aclose()

    async def _read_messages(self, tunnel: Tunnel, codec: WebSocketCodec) -> None:
        while codec.closed is None:
            self._share_reading(tunnel)
            try:
                data = await tunnel.receive_some(min(max(READ_SIZE, codec.missing), LARGE_READ_SIZE))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._heard.set()
            events = codec.receive_data(bytes(data)) if data else codec.receive_eof()
            if replies := codec.data_to_send():
                try:
                    await tunnel.send_all(replies)
                except ClientDisconnected:  # what it sent before it went counts
                    events += codec.receive_eof()
            for event in events:
                if type(event) is Message:
                    await self._deliver(event.data)
                elif type(event) is Closed:
                    self._client_closed(event)

    async def _deliver(self, data: str | bytes) -> None:
        """Into the inbox, once there is room: for `websocket_queue_size` messages, and for the memory they take.

        That is `websocket_message_size_limit` for all of them, or one message.
        """
        size = sys.getsizeof(data)
        self._delivering = True
        limit = self._config.websocket_message_size_limit
        while self._unread and self._unread + size > limit and self.state is WebSocket.OPEN:
            self._room = trio.Event()
            await self._room.wait()
        self._unread += size
        await self._exchange.deliver(_to_message(data))
        self._delivering = False

    def _client_closed(self, closed: Closed) -> None:
        if self.state is WebSocket.OPEN and not self._exchange.ended:
            self._closed = closed
            self._exchange.disconnect(in_order=closed.code != ABNORMAL_CLOSURE)

    async def _keep_alive(self) -> None:
        """Ping a client that may have vanished without a word, and give it up if nothing comes back."""
        assert self._codec is not None
        with self._keeping_alive:
            while True:
                await trio.sleep(self._config.websocket_ping_interval)
                self._heard = trio.Event()
                # While the application is behind, nothing is read: that is its doing, not the client's.
                is_behind = self._delivering
                try:
                    await self._write(self._codec.ping())
                except ClientDisconnected:
                    return
                with trio.move_on_after(self._config.websocket_ping_timeout):
                    await self._heard.wait()
                if self._codec.close_sent:  # no ping can be sent any more, and closing has its own timeout
                    return
                if not self._heard.is_set() and not is_behind:
                    self._reading.cancel()
                    return

    def _drain(self) -> None:
        """Tell both sides that the server goes away, the application even if the client takes nothing."""
        if self.state is WebSocket.OPEN and not self._exchange.ended:
            frame = self._begin_close(SERVICE_RESTART)
            self._exchange.disconnect(in_order=True)
            self._session.start_soon(self._write_last, frame, name="trigi: WebSocket close")

    async def _write_last(self, frame: bytes) -> None:
        with suppress(ClientDisconnected):
            await self._write(frame)

    async def _end_within_close_timeout(self) -> None:
        with trio.move_on_after(self._config.websocket_close_timeout):
            await self._reader_done.wait()
        self._reading.cancel()


def _to_message(data: str | bytes) -> ASGIMessage:
    return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}
