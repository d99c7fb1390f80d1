"""One accepted stream, from its TLS handshake to its end. Nothing that goes wrong in it reaches its siblings (I6)."""

from __future__ import annotations

import os
from typing import Any

import trio

from trigi._protocol.scope import ConnectionInfo, Endpoint

from .background import open_background
from .context import ServerContext
from .http1 import HTTP1Connection
from .http2 import HTTP2Connection
from .socket_stream import SocketStream, as_direct
from .tls_stream import TLSStream
from .transport import DISCARD_SECONDS, Transport

__all__ = ["serve_stream"]


async def serve_stream(stream: trio.abc.Stream, context: ServerContext) -> None:
    """Serve one connection on any stream; close it at the end.

    A `trio.SSLStream` or a `TLSStream` is taken through its handshake first, within `tls_handshake_timeout`. The socket
    of a `trio.SocketStream` is taken out of it.

    Without a server that has opened `context.nursery` and `context.background`, this connection opens them for itself,
    and waits at its end for what applications have started there.

    Cancellation: cancels the application calls, waits for them, closes the stream at once.
    """
    if context.background is not None:
        await _serve_stream(stream, context)
        return
    try:
        async with trio.open_nursery() as nursery, open_background(nursery, context.observer) as background:
            await _serve_stream(stream, context.within(nursery, background))
    finally:
        await trio.aclose_forcefully(stream)


async def _serve_stream(stream: trio.abc.Stream, context: ServerContext) -> None:
    stream = as_direct(stream)
    info = _connection_info(stream)
    transport = Transport(stream, info, context.config.write_timeout)
    chose_http2 = False
    try:
        if isinstance(stream, TLSStream | trio.SSLStream):
            if not await _shake_hands(stream, transport, context):
                return
            if context.describe_tls is not None:
                info.tls = context.describe_tls(stream)
            chose_http2 = stream.selected_alpn_protocol() == "h2"  # ALPN (RFC 9113, 3.2)
        received: bytes | None = b""
        if not chose_http2:
            received = await HTTP1Connection(transport, context).serve()
        if received is not None:
            await HTTP2Connection(transport, context, received).serve()
    except Exception as error:  # noqa: BLE001 - a bug of trigi's ends one connection, not all
        context.observer.connection_failed(info.client, error)
    finally:
        if not transport.closed:
            transport.broken = True
            await transport.close()


async def _shake_hands(
    stream: trio.SSLStream[Any] | TLSStream, transport: Transport, context: ServerContext
) -> bool:
    """Whether the client got through the TLS handshake."""
    error: Exception = TimeoutError("the TLS handshake took longer than tls_handshake_timeout")
    with trio.move_on_after(context.config.tls_handshake_timeout) as scope:
        handshake = _Handshake(scope)
        context.connections.add(handshake)
        if context.draining.is_set():  # it has begun since this connection was accepted
            handshake.drain()
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as broken:
            error = broken
            await transport.linger(DISCARD_SECONDS)  # so that the client can read what is wrong
        else:
            return True
        finally:
            context.connections.discard(handshake)
    if not context.draining.is_set():
        context.observer.handshake_failed(transport.info.client, error)
    return False


class _Handshake:
    """A connection that is still in its TLS handshake: nothing is open that could be finished."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope

    def drain(self) -> None:
        """End it now."""
        self._scope.cancel()


def _connection_info(stream: trio.abc.Stream) -> ConnectionInfo:
    """The endpoints of a socket's stream; of any other, nothing is known."""
    try:
        if isinstance(stream, SocketStream):
            client, server = stream.direct.endpoints()
        else:
            while isinstance(stream, trio.SSLStream):
                stream = stream.transport_stream
            if not isinstance(stream, trio.SocketStream):
                return ConnectionInfo()
            client, server = stream.socket.getpeername(), stream.socket.getsockname()
    except OSError:  # the client has gone already
        return ConnectionInfo()
    if isinstance(server, tuple):
        return ConnectionInfo(Endpoint(*client[:2]), Endpoint(*server[:2]))
    return ConnectionInfo(None, Endpoint(os.fsdecode(server), None))  # a unix socket's client has no address
