"""The ASGI applications that the benchmarks serve, the same ones on each server."""

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

HELLO = b"Hello, world!"
MESSAGE = bytes(64 * 1024)
MESSAGES = 128  # of 64 KiB: 8 MiB


async def lifespan(receive, send):
    """Take part in startup and shutdown, and do nothing there."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def start(length):
    """The start of a 200 response with a body of this many bytes."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(length).encode())]
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def hello(scope, receive, send):
    """Answer each request with 13 bytes."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await send(start(len(HELLO)))
    await send({"type": "http.response.body", "body": HELLO})


async def download(scope, receive, send):
    """Answer each request with 8 MiB, in messages of 64 KiB."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await send(start(len(MESSAGE) * MESSAGES))
    for number in range(1, MESSAGES + 1):
        await send({"type": "http.response.body", "body": MESSAGE, "more_body": number < MESSAGES})


async def upload(scope, receive, send):
    """Read the whole body, keep nothing of it, and answer with its length."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message["body"])
        more = message["more_body"]
    body = str(length).encode()
    await send(start(len(body)))
    await send({"type": "http.response.body", "body": body})


async def echo(scope, receive, send):
    """Send each message of a WebSocket back."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


async def item(request):
    """Answer with JSON that has the path's parameter in it."""
    return JSONResponse({"id": request.path_params["id"], "name": "item"})


starlette = Starlette(routes=[Route("/items/{id:int}", item)])
