"""An ASGI 2 application: called once with the scope, and what that gives with `receive` and `send`.

    python -m trigi --app-dir examples asgi2:Application
    curl --data hello http://127.0.0.1:8000/

trigi knows it by its signature; `--interface asgi2` says so where that is not enough.
"""


class Application:
    """One instance for each request."""

    def __init__(self, scope):
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        self.scope = scope

    async def __call__(self, receive, send):
        """Answer the request."""
        message = await receive()
        body = f"{self.scope['method']} {self.scope['path']} with {len(message.get('body', b''))} bytes\n".encode()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})
