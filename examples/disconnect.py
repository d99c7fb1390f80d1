"""Clean-up when the client leaves: a handler that waits for something else is cancelled, and its blocks are left.

    python -m trigi --app-dir examples disconnect:app
    curl --max-time 1 http://127.0.0.1:8000/

An application has `disconnect_grace` seconds (5) before it is cancelled; this one wants none for itself.
"""

from tempfile import TemporaryDirectory

import trio


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    scope["extensions"]["trigi"]["disconnect_grace"] = 0
    try:
        with TemporaryDirectory() as folder:
            print(f"working in {folder}")
            await trio.sleep(60)  # the work; nothing here asks whether somebody still waits for it
    finally:
        print("cleaned up")
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"done\n"})
