"""A thin stream of TLS over a non-blocking socket.

OpenSSL never sees the socket: it is given what one call has read, so that a client can't keep it, and with it the event
loop, busy with messages of TLS's own; and what it wants to send waits here, so that it never has to be asked again.
"""

from __future__ import annotations

from contextlib import suppress
from socket import socket
from ssl import MemoryBIO, SSLContext, SSLEOFError, SSLError, SSLWantReadError
from typing import Any

import trio

from .socket_stream import READ_SIZE, DirectStream

__all__ = ["TLSStream"]

RECORD_SIZE = 16 * 1024
"""Bytes that are encrypted at once: a record has no more (RFC 8446, 5.1)."""

ENCRYPTED_AT_ONCE = 256 * 1024
"""Bytes that are encrypted before other tasks have their turn."""

ANSWERS_SIZE = 64 * 1024
"""Bytes of TLS's own answers that may wait for a client who asks for them, and does not read."""


class TLSStream(DirectStream):
    """A connected socket that speaks TLS, as a server; `do_handshake` comes first.

    A connection that the client closes without a word of TLS's has ended, too: HTTP knows whether something is missing.

    Args:
        connected: a stream socket, which is the stream's from then on.
        context: certificates, protocols.
        peer: as for any `DirectStream`.

    Attributes:
        socket: it.
        tls: what is known of TLS: `version()`, `cipher()`, `getpeercert()`.
    """

    def __init__(self, connected: socket, context: SSLContext, peer: Any = None) -> None:
        super().__init__(connected, peer)
        self._incoming, self._outgoing = MemoryBIO(), MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = b""  # encrypted
        self._encrypted = 0  # bytes of what is to be written that are, and may not have been sent
        self._cut_off = False

    async def do_handshake(self) -> None:
        """Agree on everything with the client, which is told what is wrong with what it says.

        Raises:
            trio.BrokenResourceError: the client has gone, does not speak TLS, or not such as is spoken here.

        Cancellation: the stream can only be closed then.
        """
        await trio.lowlevel.checkpoint()
        try:
            while True:
                agreed = self._agree()
                while not self._flush():
                    await trio.lowlevel.wait_writable(self.socket)
                if agreed:
                    break
                if self._readable and self._feed():
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wait_readable()
        except OSError as error:
            if isinstance(error, SSLError):
                with suppress(OSError):
                    self._flush()  # the alert
            raise self._failed(error) from error
        self._pending = True

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that was agreed on (RFC 7301), `None` if the client has not asked."""
        return self.tls.selected_alpn_protocol()

    def reset_on_close(self) -> None:
        """Have `aclose` reset the connection, without TLS's own word for an end in order."""
        super().reset_on_close()
        self._cut_off = True

    def _agree(self) -> bool:
        """Go on with the handshake, as far as the client has; whether it is done."""
        try:
            self.tls.do_handshake()
        except SSLWantReadError:
            return False
        return True

    def _read(self, size: int) -> bytes | None:
        if self._ended:  # TLS is over: what still comes is only to be read, and not to be known
            return self._receive(size)
        if not self._pending and not self._feed():
            return None
        pieces: list[bytes] = []
        self._pending = True  # at the end, too, and when there is no room
        try:
            while size and (data := self.tls.read(min(size, RECORD_SIZE))):
                pieces.append(data)
                size -= len(data)
                if not (self._incoming.pending or self.tls.pending()):  # as after a request, nearly always
                    self._pending = False
                    break
        except SSLWantReadError:
            self._pending = False
        except SSLEOFError:
            pieces = pieces or [b""]
        self._answer()
        if not pieces and not self._pending:
            return None
        return b"".join(pieces)

    def _feed(self) -> bool:
        """Give OpenSSL what the client has sent; whether there was something."""
        data = self._receive(READ_SIZE)
        if data:
            self._incoming.write(data)
        elif data is not None:
            self._incoming.write_eof()
        return data is not None

    def _answer(self) -> None:
        """Send what reading has made OpenSSL say, as to a change of keys; what has no room goes with what is next."""
        if self._outgoing.pending and not self._flush() and self._outgoing.pending > ANSWERS_SIZE:
            raise ConnectionAbortedError("the client asks for answers, and does not read them")

    def _write(self, data: bytes | memoryview) -> int:
        """As the stream below has it. Of what was not sent, some is encrypted: the same bytes must come next."""
        sent = 0
        with memoryview(data) as view:
            while sent < min(len(view), ENCRYPTED_AT_ONCE):
                if not self._encrypted:
                    self._encrypted = self.tls.write(view[sent : sent + RECORD_SIZE])
                if not self._flush():
                    break
                sent += self._encrypted
                self._encrypted = 0
        return sent

    def _flush(self) -> bool:
        """Send what is encrypted; whether that was all."""
        while True:
            if not self._unsent:
                self._unsent = self._outgoing.read()
                if not self._unsent:
                    return True
            try:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
            except BlockingIOError:
                return False

    def _end(self) -> None:
        if self._cut_off:
            return
        with suppress(
            OSError, ValueError
        ):  # the client's goodbye is not waited for; or the handshake is not done
            self.tls.unwrap()
        with suppress(OSError):
            self._flush()
