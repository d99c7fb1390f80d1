"""The two streams of an environ: the request's body, and what an application reports."""

from __future__ import annotations

import io
import logging
import threading
from contextlib import suppress
from math import inf

import trio

from trigi.exceptions import ClientDisconnected
from trigi.typing import Receive

from ._wsgi_crossing import Crossing

__all__ = ["ErrorStream", "Input"]

WINDOW = 256 * 1024
"""Bytes of the body that are fetched by one crossing: so much, and a message, is in memory at most."""

logger = logging.getLogger("trigi.error")


class Input(io.BufferedIOBase):
    """`wsgi.input`: the request's body as a file that can be read once.

    Nothing is received before it is read, so that whoever asks for `100 Continue` gets it then. A body that is cut off
    has no end: what would have to read past that raises `ClientDisconnected`, an `OSError`.

    Args:
        receive: of the ASGI call.
        crossing: by which it is reached.
        expects_continue: the client waits for `100 Continue`.
    """

    def __init__(self, receive: Receive, crossing: Crossing, *, expects_continue: bool) -> None:
        self._receive = receive
        self._crossing = crossing
        self._must_not_ask = expects_continue
        self._turn = trio.Lock()  # to receive: of several threads, in trio
        self._lock = threading.Lock()  # of the next one
        self._buffer = bytearray()
        self._has_more = True
        self._client_left = False

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, fewer only at the end of the body; by default all.

        Raises:
            OSError: the body was cut off before.
        """
        wanted = inf if size is None or size < 0 else size
        pieces: list[bytes] = []
        while wanted and self._fill(wanted):
            piece = self._take(wanted)
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        """At least one byte, and what else is there; nothing at the end of the body. Raises as `read` does."""
        if size == 0:
            return b""
        self._fill(1)
        return self._take(inf if size < 0 else size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Up to and with the next line feed, but not more than `size` bytes. Raises as `read` does."""
        limit = inf if size is None or size < 0 else size
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched) + 1
            searched = len(self._buffer)
            if end or searched >= limit:
                return self._take(min(end or limit, limit))
            self._cross(searched + 1)
            if len(self._buffer) == searched:
                return self._take(limit)

    def _fill(self, wanted: float) -> bool:
        """Get so many bytes, or the window full, into the buffer; whether there are any."""
        wanted = min(wanted, WINDOW)
        if len(self._buffer) < wanted:
            self._cross(int(wanted))
        return bool(self._buffer)

    def _take(self, size: float) -> bytes:
        with self._lock:
            if size >= len(self._buffer):
                data = bytes(self._buffer)
                self._buffer.clear()
                return data
            with memoryview(self._buffer) as view:
                data = bytes(view[: int(size)])
            del self._buffer[: int(size)]
            return data

    def _cross(self, wanted: int) -> None:
        if self.closed:
            raise ValueError("read of a closed wsgi.input")
        if self._has_more:
            self._crossing.run(self._receive_until, wanted)

    async def _receive_until(self, wanted: int) -> None:
        """Have so many bytes in the buffer, or all that will come."""
        self._must_not_ask = False
        async with self._turn:
            while self._has_more and len(self._buffer) < wanted:
                await self._receive_one()
                if self._client_left:
                    raise ClientDisconnected(
                        "the client has its answer, or left before the end of the request's body"
                    )

    async def _receive_one(self) -> None:
        if self._client_left:
            return
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_left = True
        elif self._has_more:
            with self._lock:
                self._buffer += message.get("body", b"")
            self._has_more = message.get("more_body", False)

    def check_client(self) -> None:
        """Raise `ClientDisconnected` if the client is known to have left."""
        self._crossing.run(self._look)

    async def _look(self) -> None:
        # What is there is received although the scope is cancelled. What waits behind a body that nobody reads is not.
        with suppress(trio.WouldBlock):  # another thread waits for it just now, and will know
            self._turn.acquire_nowait()
            try:
                with trio.CancelScope(deadline=-inf):
                    while not (self._must_not_ask or self._client_left or len(self._buffer) >= WINDOW):
                        await self._receive_one()
            finally:
                self._turn.release()
        if self._client_left:
            raise ClientDisconnected("the client has left")


class ErrorStream(io.TextIOBase):
    """`wsgi.errors`: what is written becomes records of `trigi.error`, at ERROR, at the end of a line or at `flush`."""

    def __init__(self) -> None:
        self._text = ""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str, /) -> int:
        """Take some text. What was written at once stays together, also in several lines."""
        self._text += text
        if self._text.endswith("\n"):
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Log what was written since the last line's end."""
        text, self._text = self._text, ""
        if text.strip():
            logger.error("%s", text.rstrip("\n"))
