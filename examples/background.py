"""Work that goes on after the response: nobody waits for it, and the client's leaving does not end it.

    python -m trigi --app-dir examples background:app
    curl --data "Ada" http://127.0.0.1:8000/

The next request on the same connection is answered meanwhile. A server that is told to stop lets the work end, for
`graceful_timeout` seconds (30).
"""

import trio


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    name = (await receive()).get("body", b"").decode(errors="replace")
    await send({"type": "http.response.start", "status": 202})
    await send({"type": "http.response.body", "body": b"accepted\n"})
    # From here on the client has its answer.
    await trio.sleep(2)
    print(f"welcome letter to {name} written")
