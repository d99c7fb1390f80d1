"""Adapters: one kind of application becomes an ASGI 3 application.

They know nothing of the server, and work under any other.
"""

from __future__ import annotations

from .asgi2 import ASGI2Adapter

__all__ = ["ASGI2Adapter"]
