"""The application of `test_large_bodies.py`, which a process of its own serves: it counts, and sends what is asked for.

It must hold no body itself, since the memory of that process is what is tested.
"""

from __future__ import annotations

PIECE = bytes(64 * 1024)


async def app(scope, receive, send):
    """`PUT` anything: how many bytes it was. `GET /123`: that many, in messages of 64 KiB; `GET /whole/123`: in one."""
    assert scope["type"] == "http"
    if scope["method"] == "GET":
        size = int(scope["path"].rsplit("/", 1)[1])
        pieces = [b"x" * size] if scope["path"].startswith("/whole/") else parts(size)
        await respond(send, size, pieces)
        return
    count = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        count += len(message["body"])
        if not message["more_body"]:
            break
    answer = f"{count}\n".encode()
    await respond(send, len(answer), [answer])


def parts(size):
    while size:
        yield PIECE[:size]
        size -= min(size, len(PIECE))


async def respond(send, size, pieces):
    headers = [(b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})
