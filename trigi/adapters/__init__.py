"""Adapters: one kind of application made into an ASGI 3 application, for trigi or any other ASGI server.

    ASGI2Adapter              ASGI 2, the double callable: application(scope)(receive, send)
    WSGIAdapter               WSGI, in threads: application(environ, start_response)
    asyncio.AsyncioAdapter    an application that needs asyncio, for servers that run on trio; imported by itself,
                              because asyncio takes time and memory

They know nothing of the server.
"""

from __future__ import annotations

from .asgi2 import ASGI2Adapter
from .wsgi import WSGIAdapter

__all__ = ["ASGI2Adapter", "WSGIAdapter"]
