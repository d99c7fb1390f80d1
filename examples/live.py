"""Watch handlers stop when their clients leave: an HTTP page with a WebSocket on it.

    python -m trigi --app-dir examples live:app

Open the page, start a few streams and queries, and walk away from them: close one, or the whole tab. The page's other
half, a WebSocket, shows what goes on in the server at that moment. No handler polls for a disconnect, and none is left
behind: a stream's next `send()` raises, a query is cancelled where it waits, and both run their clean-up.
"""

import json
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import trio

PAGE = Path(__file__).with_name("live.html")
POEM = """A nursery was opened, and three small tasks went in. One slept upon a checkpoint, one listened for its kin;
the third one streamed these words to you, a token at a time. And when you closed the page, it stopped, mid-""".split()  # noqa: SIM905 - a poem reads better whole


async def app(scope, receive, send):
    """Route by path; every other protocol than these two is none of its business."""
    if scope["type"] == "websocket":
        await watch(receive, send)
    elif scope["type"] == "http" and scope["path"] == "/stream":
        await stream(send)
    elif scope["type"] == "http" and scope["path"] == "/query":
        await query(send)
    elif scope["type"] == "http":
        await page(scope["path"], send)
    else:
        raise NotImplementedError(scope["type"])


async def page(path, send):
    """The page itself."""
    found = path == "/"
    body = PAGE.read_bytes() if found else b"not here\n"
    content_type = b"text/html; charset=utf-8" if found else b"text/plain"
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send):
    """Words without end, as a language model sends them. Nothing here asks whether somebody still listens."""
    with shown_as("stream"):
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        )
        while True:
            for word in POEM:
                await send({"type": "http.response.body", "body": word.encode() + b" ", "more_body": True})
                await trio.sleep(0.15)


async def query(send):
    """A long wait for something else. When the client leaves, it is cancelled `--disconnect-grace` seconds later."""
    with shown_as("query"):
        await trio.sleep(60)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"42\n"})


# What runs, for everybody who watches

running = {}
watchers = set()
numbers = count(1)


@contextmanager
def shown_as(kind):
    """Show a handler while it runs, and how it ended."""
    number = next(numbers)
    running[number] = kind
    tell("started", number, kind)
    try:
        yield
    except trio.Cancelled:
        tell("cancelled", number, kind)
        raise
    except OSError:
        tell("stopped: the client left", number, kind)
        raise
    else:
        tell("finished", number, kind)
    finally:
        del running[number]


def tell(event, number, kind):
    """Put an event into every watcher's channel; one that is too slow misses it."""
    for watcher in watchers:
        try:
            watcher.send_nowait({"event": event, "number": number, "kind": kind})
        except trio.WouldBlock:
            continue


async def watch(receive, send):
    """One WebSocket: what runs now, then every event, until the page is closed."""
    await receive()
    await send({"type": "websocket.accept"})
    events_in, events_out = trio.open_memory_channel(100)
    watchers.add(events_in)
    try:
        for number, kind in running.items():
            event = {"event": "runs", "number": number, "kind": kind}
            await send({"type": "websocket.send", "text": json.dumps(event)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_with, receive, nursery.cancel_scope)
            async for event in events_out:
                await send({"type": "websocket.send", "text": json.dumps(event)})
    finally:
        watchers.discard(events_in)


async def leave_with(receive, scope):
    """End the watching when the page is closed."""
    while (await receive())["type"] != "websocket.disconnect":
        pass
    scope.cancel()
