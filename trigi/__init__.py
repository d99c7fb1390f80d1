"""A trio-based structured-concurrency ASGI server."""

from __future__ import annotations

from ._version import __version__

__all__ = ["__version__"]
