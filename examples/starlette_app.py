"""Starlette on trio: its handlers can use trio directly, for here trio runs them.

    python -m trigi --app-dir examples starlette_app:app        (pip install starlette)
    curl --no-buffer http://127.0.0.1:8000/count/5

When a client leaves, a handler is cancelled like any other trio code, and a stream stops.
"""

from contextlib import asynccontextmanager

import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute


async def home(request):
    """Ask two slow services at once, and give both two seconds."""
    answers = {}

    async def ask(name, seconds):
        await trio.sleep(seconds)
        answers[name] = f"took {seconds} s"

    with trio.move_on_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "weather", 0.1)
            nursery.start_soon(ask, "news", 0.2)
    return JSONResponse(answers, background=BackgroundTask(print, "home was visited"))


async def count(request):
    """Numbers, as they come."""

    async def numbers():
        for number in range(request.path_params["limit"]):
            yield f"{number}\n"
            await trio.sleep(0.1)

    return StreamingResponse(numbers(), media_type="text/plain")


async def shout(websocket):
    """A WebSocket."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


@asynccontextmanager
async def lifespan(app):
    print("opened")
    yield
    print("closed")


app = Starlette(
    routes=[Route("/", home), Route("/count/{limit:int}", count), WebSocketRoute("/shout", shout)],
    lifespan=lifespan,
)
