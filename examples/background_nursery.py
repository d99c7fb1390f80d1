"""Work that belongs to no request: the server's own nursery, in which every request can start a task.

    python -m trigi --app-dir examples background_nursery:app
    curl --data "Ada" http://127.0.0.1:8000/
    curl --data "" http://127.0.0.1:8000/

The request is over when its answer is: it counts for no limit any more, and the client's leaving cancels nothing. A
task that fails is logged (try the second command), and ends nothing but itself. A server that is told to stop waits
for the tasks, for `graceful_timeout` seconds (30), cancels the rest, and only then shuts its lifespan down.
"""

import trio


async def write_letter(name):
    if not name:
        raise ValueError("a letter to nobody")
    await trio.sleep(2)
    print(f"welcome letter to {name} written")


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    name = (await receive()).get("body", b"").decode(errors="replace")
    scope["extensions"]["trigi"]["nursery"].start_soon(write_letter, name)
    await send({"type": "http.response.start", "status": 202})
    await send({"type": "http.response.body", "body": b"accepted\n"})
