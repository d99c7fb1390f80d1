"""A thin stream of TLS over a socket."""

from __future__ import annotations

from contextlib import suppress
from socket import socket
from ssl import SSLContext, SSLError, SSLObject
from typing import Any

import trio

from .direct_tls import DirectTLS
from .socket_stream import SocketStream

__all__ = ["TLSStream"]


class TLSStream(SocketStream):
    """A connected socket that speaks TLS, as a server; `do_handshake` comes first.

    Args:
        connected: a stream socket, which is the stream's from then on.
        context: certificates, protocols.
        peer: as for any `SocketStream`.
    """

    direct: DirectTLS

    def __init__(self, connected: socket, context: SSLContext, peer: Any = None) -> None:
        self.direct = DirectTLS(connected, context, peer)

    @property
    def tls(self) -> SSLObject:
        """What is known of TLS: `version()`, `cipher()`, `getpeercert()`."""
        return self.direct.tls

    async def do_handshake(self) -> None:
        """Agree on everything with the client, which is told what is wrong with what it says.

        Raises:
            trio.BrokenResourceError: the client has gone, does not speak TLS, or not such as is spoken here.

        Cancellation: the stream can only be closed then.
        """
        await trio.lowlevel.checkpoint()
        direct = self.direct
        try:
            while True:
                agreed = direct.agree()
                while not direct.flush():
                    await trio.lowlevel.wait_writable(direct.socket)
                if agreed:
                    break
                if direct.may_have_unread and direct.feed():
                    await trio.lowlevel.checkpoint()
                else:
                    await direct.wait_readable()
        except OSError as error:
            if isinstance(error, SSLError):
                with suppress(OSError):
                    direct.flush()  # the alert
            raise direct.failed(error) from error

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that was agreed on (RFC 7301), `None` if the client has not asked."""
        return self.tls.selected_alpn_protocol()
