"""ASGI 2 applications, the double callable, for servers that speak ASGI 3."""

from __future__ import annotations

from typing import Any

from trigi.typing import ASGI2Application, Receive, Scope, Send

__all__ = ["ASGI2Adapter"]


class ASGI2Adapter:
    """An ASGI 2 application as an ASGI 3 application, for any ASGI server.

    For each scope, `application(scope)` makes an instance, and `await instance(receive, send)` runs it (ASGI, "Legacy
    Applications"). Both happen in one call, in the same task; an exception of the first is an exception of the call,
    so that an application that knows no lifespan may say so there as well.

        async def serve_legacy():
            await trigi.serve(ASGI2Adapter(Application))

    Args:
        application: called with a scope, it returns what is called with `receive` and `send` and awaited: a class,
            a function, or an object.
    """

    _asgi_single_callable = True  # what asgiref's detection looks at first

    def __init__(self, application: ASGI2Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """One call of the application; gives what its instance gives. Cancellation: as the instance has it."""
        instance = self.application(scope)
        return await instance(receive, send)
