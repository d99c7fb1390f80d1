"""Clients for tests, on any trio stream: bytes as they are given go out, responses read strictly come back.

    async with open_connection(application) as stream:
        client = HTTPClient(stream)
        response = await client.fetch("/")
        assert response.status == 200
        assert response.body == b"Hello"

A test of a server must be able to send what no decent client would, so that nothing that is sent is checked. What is
received is: h11 reads it, so a response whose framing is wrong raises `h11.RemoteProtocolError`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import h11
import trio

__all__ = ["HTTPClient", "IncompleteResponse", "InformationalResponse", "Response"]

Headers = list[tuple[bytes, bytes]]

READ_SIZE = 64 * 1024
HEAD_SIZE_LIMIT = 1024 * 1024
"""Bytes of a response's head: h11's own limit is what a browser takes, and tests go further."""


@dataclass(slots=True)
class InformationalResponse:
    """An interim response: 100 Continue, 103 Early Hints.

    Attributes:
        status: from 100 to 199.
        headers: names in lower case, in the order sent.
    """

    status: int
    headers: Headers


@dataclass(slots=True)
class Response:
    """A response.

    Attributes:
        status: from 200 on.
        reason: the reason phrase; may be empty.
        http_version: of the status line, `b"1.1"`.
        headers: names in lower case, in the order sent.
        body: what has been read of it by `HTTPClient.response`, decoded from chunks.
        trailers: names in lower case; there are none before the body is read to its end.
        informational: the interim responses that came before it.
    """

    status: int
    reason: bytes
    http_version: bytes
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    informational: list[InformationalResponse] = field(default_factory=list)

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, `None` if there is none; of several, all, joined by commas."""
        values = [value for each, value in self.headers if each == name]
        return b", ".join(values) if values else None


class IncompleteResponse(EOFError):
    """The server closed the connection before it had sent a whole response.

    Attributes:
        response: what came of it: its `body` holds what was read of that. `None` if not even a head did.
    """

    def __init__(self, response: Response | None) -> None:
        self.response = response
        came = (
            "any response" if response is None else f"the end of the response with status {response.status}"
        )
        super().__init__(f"the connection was closed before {came}")


class HTTPClient:
    """An HTTP/1.1 client on one connection: requests go out, responses are read in their order.

    Sending and reading are apart, so that requests can be pipelined, bodies sent piece by piece, and a server watched
    while it waits. One task may send while another reads.

    Args:
        stream: the connection. It is the client's from then on, but may also be used directly.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._methods: deque[str] = deque()
        self._received = b""  # and not yet part of a response
        self._closed = False
        self._parser: h11.Connection | None = None
        self._response: Response | None = None
        self._informational: list[InformationalResponse] = []

    # Requests

    async def send(self, data: bytes) -> None:
        """Send these bytes."""
        await self.stream.send_all(data)

    async def request(
        self,
        method: str = "GET",
        target: str = "/",
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes | None = None,
    ) -> None:
        """Send a request, and wait for nothing.

        Args:
            method: sent as it is.
            target: sent as it is.
            headers: sent as they are, in this order. Without a `host` among them one is put in front.
            body: sent after the head. Without `content-length` or `transfer-encoding` among the headers its length is
                appended to them. `None` for a request without body, or for one whose body you `send()` yourself.
        """
        fields = list(headers)
        names = {name.lower() for name, _ in fields}
        if b"host" not in names:
            fields.insert(0, (b"host", b"localhost"))
        if body is not None and not names & {b"content-length", b"transfer-encoding"}:
            fields.append((b"content-length", b"%d" % len(body)))
        lines = b"".join([b"%b: %b\r\n" % pair for pair in fields])
        self._methods.append(method)
        await self.send(
            b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), target.encode(), lines, body or b"")
        )

    async def fetch(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes | None = None,
    ) -> Response:
        """Send a request and read the response to it: `request()`, then `response()`."""
        await self.request(method, target, headers=headers, body=body)
        return await self.response()

    # Responses

    async def response(self, method: str | None = None) -> Response:
        """The next response, whole; the rest of it if `head()` or `data()` were called before.

        Args:
            method: what it is the response to. A response to HEAD has no body, whatever its headers say. Without it,
                what was given to `request()`; for a request sent as bytes it is taken for GET.

        Raises:
            IncompleteResponse: the server closed the connection before.
            h11.RemoteProtocolError: it is not HTTP.
        """
        response = self._response or await self.head(method)
        pieces = []
        try:
            while data := await self.data():
                pieces.append(data)
        finally:
            response.body = b"".join(pieces)
        return response

    async def head(self, method: str | None = None) -> Response:
        """The next response, its body unread.

        Args:
            method: as for `response()`.

        Raises:
            IncompleteResponse: the server closed the connection before.
            h11.RemoteProtocolError: it is not HTTP.
        """
        self._begin(method)
        while type(event := await self._next_event()) is not h11.Response:
            self._informational.append(_informational(event))
        self._response = Response(
            event.status_code,
            event.reason,
            event.http_version,
            list(event.headers),
            informational=self._informational,
        )
        return self._response

    async def informational(self, method: str | None = None) -> InformationalResponse:
        """The next interim response. It will also be among the `informational` of the response that follows.

        Args:
            method: as for `response()`.

        Raises:
            IncompleteResponse: the server closed the connection before.
            h11.RemoteProtocolError: it is not HTTP, or not an interim response.
        """
        self._begin(method)
        self._informational.append(_informational(await self._next_event()))
        return self._informational[-1]

    async def data(self) -> bytes:
        """The next piece of the body whose head was read: as much as has come, `b""` at its end.

        Raises:
            IncompleteResponse: the server closed the connection before.
            h11.RemoteProtocolError: it is not HTTP.
        """
        assert self._response is not None, "head() comes first"
        event = await self._next_event()
        if type(event) is h11.Data:
            return bytes(event.data)
        assert type(event) is h11.EndOfMessage
        assert self._parser is not None
        self._response.trailers = list(event.headers)
        self._received, _ = self._parser.trailing_data
        self._parser = self._response = None
        self._informational = []
        return b""

    async def rest(self) -> bytes:
        """Read until the server closes the connection: what it sent that no response had in it."""
        pieces = [self._received]
        self._received = b""
        while data := await self._receive():
            pieces.append(data)
        return b"".join(pieces)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.stream.aclose()

    def _begin(self, method: str | None) -> None:
        """A parser for each response, that only needs to be told what the request was."""
        if self._parser is not None:
            assert self._response is None, "the body of the response before was not read to its end"
            return
        sent = self._methods.popleft() if self._methods else "GET"
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_SIZE_LIMIT)
        self._parser.send(h11.Request(method=method or sent, target="/", headers=[("host", "")]))
        self._parser.send(h11.EndOfMessage())
        if self._received:
            self._parser.receive_data(self._received)
            self._received = b""

    async def _next_event(self) -> h11.Event:
        assert self._parser is not None
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError:
                if self._closed:
                    raise IncompleteResponse(self._response) from None
                raise
            if isinstance(event, h11.ConnectionClosed):
                raise IncompleteResponse(self._response)
            if isinstance(event, h11.Event):
                return event
            self._parser.receive_data(await self._receive())

    async def _receive(self) -> bytes:
        """What comes next, `b""` once the server has closed the connection, in whatever way."""
        try:
            data = bytes(await self.stream.receive_some(READ_SIZE))
        except trio.BrokenResourceError:
            data = b""
        self._closed = not data
        return data


def _informational(event: h11.Event) -> InformationalResponse:
    if not isinstance(event, h11.InformationalResponse):
        raise h11.RemoteProtocolError(f"not an interim response: {event}")
    return InformationalResponse(event.status_code, list(event.headers))
