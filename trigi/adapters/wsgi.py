"""WSGI applications (PEP 3333), for servers that run trio and speak ASGI 3.

What happens to a request is in `_wsgi_call.py`.
"""

from __future__ import annotations

import trio

from trigi.typing import Receive, Scope, Send, WSGIApplication

from ._wsgi_call import WSGICall

__all__ = ["WSGIAdapter"]


class WSGIAdapter:
    """A WSGI application as an ASGI 3 application, for any ASGI server that runs trio.

    For each request, `application(environ, start_response)` is called in a thread, and iterated and closed in the same.
    Lifespan events are answered; WebSockets are refused.

        trigi.run(WSGIAdapter(application))

    The context variables of the request's task are visible in the thread, and `trio.from_thread` leads back to it.
    What breaks PEP 3333 is an `ApplicationError`. When the client has left, the next `wsgi.input.read()`, `write()` or
    step of the iteration raises; when the request is cancelled, it raises `trio.Cancelled`.

    Args:
        application: the WSGI application.
        threads: how many requests are served at once; their threads count against no other limiter.
        queue: how many wait for a thread, in order. The next is answered with 503 and `retry-after: 1`.
        cleanup_timeout: seconds after which a thread that has been cancelled, and goes on, is reported to the logger
            `trigi.error` with its stack.
    """

    _asgi_single_callable = True  # what asgiref's detection looks at first

    def __init__(
        self,
        application: WSGIApplication,
        *,
        threads: float = 40,
        queue: float = 1000,
        cleanup_timeout: float = 5,
    ) -> None:
        self.application = application
        self._limiter = trio.CapacityLimiter(threads)
        self._is_multithread = threads > 1
        self._call_limit = threads + queue
        self._calls = 0
        self._cleanup_timeout = cleanup_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call of the application, or the answer for it.

        Cancellation: reaches the application where its thread next reads, writes or is iterated; the thread is waited
        for.
        """
        if scope["type"] == "http":
            if self._calls >= self._call_limit:
                await _refuse(send)
                return
            self._calls += 1
            try:
                call = WSGICall(self.application, scope, receive, is_multithread=self._is_multithread)
                await call.run(send, self._limiter, self._cleanup_timeout)
            finally:
                self._calls -= 1
        elif scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            raise NotImplementedError(f"a WSGI application knows no scope of type {scope['type']!r}")


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    """WSGI knows no lifespan: all is well."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _refuse(send: Send) -> None:
    body = b"503 Service Unavailable\n"
    headers = [
        (b"retry-after", b"1"),
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
