"""A trio-based structured-concurrency ASGI server.

    await trigi.serve(app)             in a trio program
    trigi.run("module:app")            a program of its own, as `python -m trigi module:app` is
    trigi.Config(bind=["[::]:80"])     every setting

Also public: `trigi.exceptions`, `trigi.typing`, `trigi.adapters`, `trigi.sync`, `trigi.testing`, `trigi.logs`.
"""

from __future__ import annotations

from ._server.run import run
from ._server.serve import serve
from ._version import __version__
from .config import Config

__all__ = ["Config", "__version__", "run", "serve"]
