"""A response in pieces, each of which leaves when it is sent.

    python -m trigi --app-dir examples streaming:app
    curl --no-buffer http://127.0.0.1:8000/

`send()` returns when the piece has been handed to the operating system, so a client that reads slowly slows this
loop down: nothing piles up in the server.
"""

import trio


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for number in range(5, 0, -1):
        await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
        await trio.sleep(0.2)
    await send({"type": "http.response.body", "body": b"lift-off\n"})
