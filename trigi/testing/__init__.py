"""Test an application, or trigi itself, without a network: a server and a client in memory.

    from trigi.testing import HTTPClient, open_connection

    async def test_hello():
        async with open_connection(application) as stream:
            response = await HTTPClient(stream).fetch("/")
        assert response.body == b"Hello"

With trio's `autojump_clock` timeouts take no time: a test that waits for one is as fast as any other.
"""

from __future__ import annotations

from .clients import HTTPClient, IncompleteResponse, InformationalResponse, Response
from .connect import open_connection

__all__ = ["HTTPClient", "IncompleteResponse", "InformationalResponse", "Response", "open_connection"]
