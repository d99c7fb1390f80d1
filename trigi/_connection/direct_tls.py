"""TLS on a socket that is read and written directly.

OpenSSL never sees the socket: it is given what one call has read, so that a client can't keep it, and with it the event
loop, busy with messages of TLS's own; and what it wants to send waits here, so that it never has to be asked again.
"""

from __future__ import annotations

from contextlib import suppress
from socket import socket
from ssl import MemoryBIO, SSLContext, SSLEOFError, SSLWantReadError
from typing import Any

from .direct import READ_SIZE, DirectSocket

__all__ = ["DirectTLS"]

RECORD_SIZE = 16 * 1024
"""Bytes that are encrypted at once: a record has no more (RFC 8446, 5.1)."""

ENCRYPTED_AT_ONCE = 256 * 1024
"""Bytes that are encrypted before other tasks have their turn."""

ANSWERS_SIZE = 64 * 1024
"""Bytes of TLS's own answers that may wait for a client who asks for them, and does not read."""


class DirectTLS(DirectSocket):
    """A connected socket that speaks TLS, as a server.

    A connection that the client closes without a word of TLS's has ended, too: HTTP knows whether something is missing.

    Args:
        connected: a stream socket, which is this one's from then on.
        context: certificates, protocols.
        peer: as for any `DirectSocket`.

    Attributes:
        tls: what is known of TLS: `version()`, `cipher()`, `getpeercert()`.
    """

    can_copy_files = False

    def __init__(self, connected: socket, context: SSLContext, peer: Any = None) -> None:
        super().__init__(connected, peer)
        self._incoming, self._outgoing = MemoryBIO(), MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = b""  # encrypted
        self._encrypted = 0  # bytes of what is to be written that are, and may not have been sent
        self._cut_off = False

    # The handshake

    def agree(self) -> bool:
        """Go on with the handshake, as far as the client has; whether it is done.

        Raises:
            OSError: the client does not speak TLS, or not such as is spoken here.
        """
        try:
            self.tls.do_handshake()
        except SSLWantReadError:
            return False
        self._pending = True
        return True

    def flush(self) -> bool:
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

    def feed(self) -> bool:
        """Give OpenSSL what the client has sent; whether there was something."""
        data = self._receive(READ_SIZE)
        if data:
            self._incoming.write(data)
        elif data is not None:
            self._incoming.write_eof()
        return data is not None

    # As any socket

    def write(self, data: bytes | memoryview) -> int:
        """As the socket below has it. Of what was not sent, some is encrypted: the same bytes must come next."""
        sent = 0
        with memoryview(data) as view:
            while sent < min(len(view), ENCRYPTED_AT_ONCE):
                if not self._encrypted:
                    self._encrypted = self.tls.write(view[sent : sent + RECORD_SIZE])
                if not self.flush():
                    break
                sent += self._encrypted
                self._encrypted = 0
        return sent

    def end(self) -> None:
        """Say TLS's own word for that: the client's is not waited for."""
        if self._cut_off:
            return
        with suppress(OSError, ValueError):  # the handshake may not be done
            self.tls.unwrap()
        with suppress(OSError):
            self.flush()

    def reset_on_close(self) -> None:
        """Have `close` reset the connection, without TLS's own word for an end in order."""
        super().reset_on_close()
        self._cut_off = True

    def _read(self, size: int) -> bytes | None:
        if self.ended:  # TLS is over: what still comes is only to be read, and not to be known
            return self._receive(size)
        if not self._pending and not self.feed():
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

    def _answer(self) -> None:
        """Send what reading has made OpenSSL say, as to a change of keys; what has no room goes with what is next."""
        if self._outgoing.pending and not self.flush() and self._outgoing.pending > ANSWERS_SIZE:
            raise ConnectionAbortedError("the client asks for answers, and does not read them")
