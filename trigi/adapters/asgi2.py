"""ASGI 2: the double callable of the older specification, as an ASGI 3 application."""

from __future__ import annotations

from typing import Any

from trigi.typing import ASGI2Application, Receive, Scope, Send

__all__ = ["ASGI2Adapter"]


class ASGI2Adapter:
    """An ASGI 2 application as an ASGI 3 one: `instance = application(scope)`, then `await instance(receive, send)`.

    Each call of the adapter makes an instance of its own. What the constructor raises comes out of the call.
    """

    def __init__(self, application: ASGI2Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Call the application for one scope."""
        instance = self.application(scope)
        return await instance(receive, send)
