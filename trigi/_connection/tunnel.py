"""What an exchange becomes when it accepts a WebSocket: bytes both ways (RFC 9110, 7.8; RFC 8441, 5)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import trio

from .direct import DirectSocket
from .transport import Transport

__all__ = ["ConnectionTunnel", "Tunnel"]


class Tunnel(ABC):
    """Bytes both ways, as `trio.abc.Stream` has them, and no more of that than a WebSocket needs."""

    @property
    def direct(self) -> DirectSocket | None:
        """The socket below, if it can be read without waiting and is all that there is to be read."""
        return None

    @abstractmethod
    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """What has come, `b""` at the end. Cancellation loses nothing."""

    @abstractmethod
    async def send_all(self, data: bytes) -> None:
        """Send all of it, after what others have sent before.

        Raises:
            ClientDisconnected: the client has gone, or takes nothing.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End this side; a task that reads gets `trio.ClosedResourceError`."""


class ConnectionTunnel(Tunnel):
    """All of a connection, from the bytes on that came with the request."""

    def __init__(self, transport: Transport, received: bytes) -> None:
        self._transport = transport
        self._received = received

    @property
    def direct(self) -> DirectSocket | None:
        """As any tunnel's."""
        return None if self._received else self._transport.direct

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """What came with the request, then what comes. Cancellation loses nothing."""
        if self._received:
            await trio.lowlevel.checkpoint()
            data, self._received = self._received[:max_bytes], self._received[max_bytes:]
            return data
        return await self._transport.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        """Write within `write_timeout`."""
        await self._transport.write([data])

    async def aclose(self) -> None:
        """Close the connection."""
        await self._transport.close()
