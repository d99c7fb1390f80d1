"""A thin stream of TLS over a non-blocking socket, which OpenSSL reads and writes itself."""

from __future__ import annotations

from contextlib import suppress
from socket import socket as Socket  # noqa: N812 - the stream has an attribute of that name
from ssl import SSLContext, SSLSocket, SSLWantReadError, SSLWantWriteError

import trio

from .socket_stream import DirectStream

__all__ = ["TLSStream"]

RECORD_SIZE = 16 * 1024
"""Bytes that OpenSSL encrypts at once at most (RFC 8446, 5.1): of more it would not say how many it has written."""

ANSWER_SECONDS = 0.1
"""How long to wait before trying again when there is no room for what TLS itself has to answer."""


class TLSStream(DirectStream):
    """A connected socket that speaks TLS, as a server; `do_handshake` comes first.

    A connection that the client closes without a word of TLS's has ended, too: HTTP knows whether something is missing.

    Args:
        connected: a stream socket, which is the stream's from then on.
        context: certificates, protocols.

    Raises:
        OSError: the client has gone already.

    Attributes:
        socket: it, with what is known of TLS: `version()`, `cipher()`, `getpeercert()`.
    """

    socket: SSLSocket

    def __init__(self, connected: Socket, context: SSLContext) -> None:
        connected.setblocking(False)
        super().__init__(context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False))
        self._cut_off = False
        self._answers = False

    async def do_handshake(self) -> None:
        """Agree on everything with the client, which is told what is wrong with what it says.

        Raises:
            trio.BrokenResourceError: the client has gone, does not speak TLS, or not such as is spoken here.

        Cancellation: the stream can only be closed then.
        """
        await trio.lowlevel.checkpoint()
        try:
            while True:
                try:
                    self.socket.do_handshake()
                except SSLWantReadError:
                    await trio.lowlevel.wait_readable(self.socket)
                except SSLWantWriteError:
                    await trio.lowlevel.wait_writable(self.socket)
                else:
                    return
        except OSError as error:
            raise self._failed(error) from error

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that was agreed on (RFC 7301), `None` if the client has not asked."""
        return self.socket.selected_alpn_protocol()

    def reset_on_close(self) -> None:
        """Have `aclose` reset the connection, without TLS's own word for an end in order."""
        super().reset_on_close()
        self._cut_off = True

    def _read(self, size: int) -> bytes | None:
        self._more_expected = False
        try:
            data = self.socket.recv(min(size, RECORD_SIZE))  # room for more would be made for nothing
        except SSLWantReadError:
            return None
        except SSLWantWriteError:
            self._answers = True
            return None
        self._more_expected = self.socket.pending() > 0
        return data

    async def _wait_to_read(self) -> None:
        if (
            self._answers
        ):  # to a change of keys. Another task may be waiting for room already, and only one can.
            self._answers = False
            await trio.sleep(ANSWER_SECONDS)
        else:
            await super()._wait_to_read()

    def _write(self, data: bytes | memoryview) -> int:
        sent = 0
        with memoryview(data) as view, suppress(SSLWantWriteError):
            while sent < len(view):
                sent += self.socket.send(view[sent : sent + RECORD_SIZE])
        return sent

    def _end(self) -> None:
        with suppress(
            OSError, ValueError
        ):  # the client's goodbye is not waited for; or the handshake is not done
            self.socket.unwrap()
