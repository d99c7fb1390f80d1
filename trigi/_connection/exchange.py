"""One HTTP request and its response, on any HTTP version, as an application sees it.

The reader calls `deliver` and `disconnect`; the application's side (`run_http`, `run_websocket`) calls the rest. What
differs between the versions is how a response gets on the wire: the abstract methods.

Messages pass from the reader to the application through the *inbox*. That it ends is the disconnect (I4).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, NoReturn

import trio

from trigi._protocol.events import Headers, Request
from trigi._protocol.http1_encode import reason_phrase
from trigi._protocol.response_head import ResponseHead
from trigi._protocol.scope import ConnectionInfo
from trigi.exceptions import BadRequest, ClientDisconnected
from trigi.typing import Message

from . import files
from .call_scope import CallScope
from .context import ServerContext
from .inbox import Inbox
from .tunnel import Tunnel

__all__ = ["Exchange"]

CONTINUE_SECONDS = 2.0
"""What `100 Continue` may take, when it can't be interrupted: it is 25 bytes."""

DISCONNECTS_AT_ONCE = 100
"""How often an application is told of the disconnect without a checkpoint: then it is one that loops without end."""


# A client of HTTP/1.0 knows neither interim responses nor chunks.
HTTP_EXTENSIONS = {
    (is_old, zero_copy): (
        "http.response.pathsend",
        *(() if is_old else ("http.response.early_hint", "http.response.trailers")),
        *(("http.response.zerocopysend",) if zero_copy else ()),
    )
    for is_old in (False, True)
    for zero_copy in (False, True)
}


class Exchange(ABC):
    """One request and its response.

    Attributes:
        request: the request's head.
        connection: where it came from.
        context: what the server's connections share.
        cancel_scope: around the application's call.
        extension: the value of `scope["extensions"]["trigi"]`, in which the application may set `disconnect_grace`.
        status: of the response, once there is one; 101 for a WebSocket that was accepted.
        head: of the response, once the application has given it.
        bodyless: the response has no body, whatever its headers say (RFC 9110, 6.4.1).
        trailers_wanted: trailers follow the body, and the client takes them.
        bytes_sent: of the response's body.
        started: when the request's head was read, by trio's clock.
        duration: seconds from then to the end of the response.
        body_expected: the reader will deliver more of the request's body.
        disconnected: the client has gone, or is treated as gone.
        answered: the application has sent all of its response; on HTTP/2 some of it may still wait for a window.
        complete: all of it has been handed to the transport.
        ended: complete or disconnected; it has been reported.
        head_sent: the response can't be replaced by another any more.
        zero_copy: `send_file` has the system copy the file to the connection.
        on_wait: what to do once the application waits for something for the first time.
        on_drain: what to do when the server begins to shut down; nothing, if it ends by itself before long.
    """

    inbox_size = 1
    """Pieces of a body that may be in the inbox."""

    # How every exchange begins
    status: int | None = None
    bodyless = False
    trailers_wanted = False
    bytes_sent = 0
    duration = 0.0
    disconnected = False
    answered = False
    complete = False
    ended = False
    head: ResponseHead | None = None
    head_sent = False
    zero_copy = False
    on_wait: Callable[[], None] | None = None
    on_drain: Callable[[], None] | None = None
    _sending = 0
    _disconnects_told = 0
    _inbox: Inbox | None = None

    def __init__(self, request: Request, connection: ConnectionInfo, context: ServerContext) -> None:
        self.request = request
        self.connection = connection
        self.context = context
        self.started = trio.current_time()
        self.cancel_scope = CallScope(self.started + context.config.request_timeout)
        self.extension: dict[str, Any] = {
            "cancel_scope": self.cancel_scope,
            "disconnect_grace": context.config.disconnect_grace,
            "nursery": context.background,
            "shutting_down": context.draining,
        }
        self.body_expected = self._request_given = request.has_body
        self._continue_wanted = request.expects_continue

    @property
    def extensions(self) -> tuple[str, ...]:
        """The names of the ASGI extensions of an `http` scope that work here."""
        return HTTP_EXTENSIONS[self.request.http_version == "1.0", self.zero_copy]

    @property
    def is_websocket(self) -> bool:
        """Whether the request asks for a WebSocket."""
        return self.request.is_upgrade

    @property
    def response_headers(self) -> Headers:
        """As the application gave them."""
        return [] if self.head is None else self.head.headers

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to answer."""
        return self.answered or self.ended

    # Called by the reader

    def deliver_nowait(self, message: Message) -> bool:
        """Put a message into the inbox, unless that is full: whether it is done. Dropped once nobody can want it."""
        if self.ended:
            return True
        return self.inbox.put_nowait(message)

    async def deliver(self, message: Message) -> None:
        """Put a message into the inbox, waiting while that is full. Dropped once nobody can want it."""
        if not self.ended:
            await self.inbox.put(message)

    def disconnect(self, *, in_order: bool = False) -> None:
        """The client has gone: tell the application, and cancel it after `disconnect_grace`.

        An application whose response is complete is left alone.

        Args:
            in_order: nothing was cut off, as when a WebSocket is closed by its client.
        """
        if self.ended:
            return
        self.disconnected = True
        self.complete = in_order
        grace = self.extension.get("disconnect_grace")
        if not isinstance(grace, int | float) or not (0 <= grace <= sys.float_info.max or grace == inf):
            grace = self.context.config.disconnect_grace  # the other is of the application's making
        if not self.answered:
            self.cancel_scope.deadline = min(self.cancel_scope.deadline, trio.current_time() + grace)
        self._end()

    # Called by the application's side

    async def receive(self) -> Message:
        """The next message of an `http` scope: pieces of the body, then, when it comes to that, `http.disconnect`.

        A message that is there already is given without a checkpoint: frameworks ask for a disconnect inside a
        cancelled scope. Cancellation loses no message.
        """
        if self.answered:
            await self._tell_disconnect()
            return {"type": "http.disconnect"}
        if not self._request_given:
            self._request_given = True
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self.next_message()
        if message is None:
            return {"type": "http.disconnect"}
        self.acknowledge(message)
        return message

    async def next_message(self) -> Message | None:
        """What is next in the inbox, `None` once that has ended."""
        inbox = self.inbox
        try:
            return inbox.get_nowait()
        except trio.WouldBlock:
            pass
        except (trio.EndOfChannel, trio.ClosedResourceError):  # closed: the application has returned
            await self._tell_disconnect()
            return None
        try:
            return await (self._receive_body(inbox) if self.body_expected else inbox.get())
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return None

    async def _receive_body(self, inbox: Inbox) -> Message:
        """The next piece of the body: asked for, if the client waits for that, and not waited for without end."""
        if self._continue_wanted:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._continue_wanted = False
            # Cancelled in the middle it would be lost, and the connection with it.
            with suppress(ClientDisconnected), trio.move_on_after(CONTINUE_SECONDS, shield=True):
                await self.send_informational(100, [])
        with trio.move_on_after(self.context.config.body_timeout):
            return await inbox.get()
        self.refuse_request(
            BadRequest("the request's body stalled", status_hint=408, limit="body_timeout"),
        )
        return await inbox.get()  # which that ends

    async def _tell_disconnect(self) -> None:
        """No checkpoint, but for an application that asks again and again, whatever it is told."""
        self._disconnects_told += 1
        if self._disconnects_told > DISCONNECTS_AT_ONCE:
            await trio.lowlevel.checkpoint()

    def release(self) -> None:
        """The application has returned: what it has not received is dropped now, not when memory is collected."""
        if self._inbox is not None:
            self._inbox.drop()
        self.on_drain = None

    def begin_sending(self) -> None:
        """A `send()` of the application's begins."""
        self._sending += 1

    def check_connected(self) -> None:
        """Raise `ClientDisconnected` if there is nobody to send to."""
        if self.disconnected:
            raise ClientDisconnected("the client has disconnected")

    async def refuse_to_send(self) -> NoReturn:
        """Raise `ClientDisconnected`: there is nobody to send to."""
        await self._tell_disconnect()
        raise ClientDisconnected("the client has disconnected")

    def end_sending(self) -> None:
        """The `send()` is about to return: only now may a task that waits in `receive()` learn of the end.

        Frameworks race the two against each other and cancel the one that loses.
        """
        self._sending -= 1
        if self.ended and not self._sending:
            self._end_inbox()

    def start_response(self, head: ResponseHead, *, trailers: bool = False) -> None:
        """Take the head, and hold it until the first piece of the body."""
        self.head = head
        self.status = head.status
        self.bodyless = head.status in (204, 304) or self.request.method.upper() == "HEAD"
        self.trailers_wanted = trailers and self.request.accepts_trailers

    async def respond(self, status: int, headers: Headers | None = None) -> None:
        """Answer in the server's own name, unless the client has gone or part of another response has left."""
        if self.settled:
            return
        if self.head_sent:
            self.abort()
            return
        body = f"{status} {reason_phrase(status)}\n".encode()
        plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        try:
            self.start_response(ResponseHead(status, [*(headers or []), *plain]))
            await self.send_data(body, more=False)
        except ClientDisconnected:
            self.disconnect()

    def finish(self) -> None:
        """The last byte of the response, or of the WebSocket, has been handed to the transport."""
        if not self.ended:
            self.complete = self.answered = True
            self._end()

    # What differs between the HTTP versions

    @abstractmethod
    async def send_data(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body, the first together with the head. Without `more` the response is complete."""

    @abstractmethod
    async def send_trailers(self, trailers: Headers) -> None:
        """End the response with trailers, or without if the client takes none."""

    @abstractmethod
    async def send_informational(self, status: int, headers: Headers) -> None:
        """Send an interim response, unless the head has left."""

    @abstractmethod
    def refuse_request(self, error: BadRequest) -> None:
        """The rest of the request is not to be had: answer if nothing was sent, and treat the client as gone.

        That is left to the reader: here it would be done in the cancel scope of whoever waits for the rest.
        """

    @abstractmethod
    async def upgrade(self, headers: Headers) -> Tunnel:
        """Accept a WebSocket handshake: from here on the exchange is bytes both ways."""

    def acknowledge(self, message: Message) -> None:  # noqa: B027 - only some versions need it
        """The application is about to have a piece of the body."""

    async def send_file(self, descriptor: int, offset: int, count: int, *, more: bool) -> None:
        """Send `count` bytes of an open file as a piece of the body, never more of them in memory than `files.PIECE`.

        Raises:
            ClientDisconnected: the client has gone.
            InvalidMessage: the file can't be read, or has become shorter; the response is cut off.

        Cancellation: cuts the response off. A read that has begun is waited for.
        """
        if self.bodyless:
            count = 0
        try:
            while True:
                data = await files.read(descriptor, offset, count) if count else b""
                self.check_connected()
                offset += len(data)
                count -= len(data)
                await self.send_data(data, more=more or count > 0)
                if not count:
                    return
        except BaseException:
            if not self.ended:
                self.abort()
            raise

    async def linger(self) -> None:  # noqa: B027 - only some versions need it
        """Let a client that may still be sending read what was written to that stream last, for a bounded time."""

    @abstractmethod
    def abort(self) -> None:
        """Cut the response off, in such a way that the client can tell."""

    # What they share

    @property
    def inbox(self) -> Inbox:
        """Made when it is needed: for a request without a body, as a rule never."""
        if self._inbox is None:
            size = self.inbox_size
            if self.is_websocket:
                size = int(min(self.context.config.websocket_queue_size, sys.maxsize))
            self._inbox = Inbox(size)
            if self.ended and not self._sending:
                self._inbox.end()
        return self._inbox

    def _end_inbox(self) -> None:
        if self._inbox is not None:
            self._inbox.end()

    def _end(self) -> None:
        self.ended = True
        self.duration = trio.current_time() - self.started
        self.context.observer.exchange_ended(self)
        if not self._sending:
            self._end_inbox()
