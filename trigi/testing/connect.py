"""Serve an application on one end of a memory stream, and get the other: a server without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from trigi._connection.context import ServerContext
from trigi._connection.observer import Observer
from trigi._connection.serve import serve_stream
from trigi._server.application import to_asgi3
from trigi.config import Config
from trigi.typing import Application

__all__ = ["open_connection"]


@asynccontextmanager
async def open_connection(
    application: Application,
    config: Config | None = None,
    *,
    state: dict[str, Any] | None = None,
    observer: Observer | None = None,
) -> AsyncIterator[trio.StapledStream[Any, Any]]:
    """One connection to `application`: an async context manager that gives the client's end of it.

    No lifespan is run: `state` is what it would have filled. At the end of the block the client's end is closed, and
    the block is left when every application call and background task has ended.

    Args:
        application: ASGI 3, or ASGI 2 or WSGI as `config.interface` says.
        config: the settings; those of binding and lifespan do nothing here.
        state: what `scope["state"]` is a copy of.
        observer: is told what happens.

    Cancellation: cancels the application calls and waits for them.
    """
    config = Config() if config is None else config
    context = ServerContext(
        to_asgi3(application, config.interface, config), config, state=state, observer=observer
    )
    client, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, server, context)
        try:
            yield client
        finally:
            await trio.aclose_forcefully(client)
