"""Sync code below an async application: in a thread, from which it sends, and which ends when the client leaves.

    python -m trigi --app-dir examples sync_code:app
    curl http://127.0.0.1:8000/planets
    curl --max-time 1 http://127.0.0.1:8000/forever

Each request has a thread of its own: sqlite3 wants its connection used where it was opened.
"""

import sqlite3
import time

from trigi.sync import ThreadSensitiveContext, async_to_sync, check_cancelled, sync_to_async


@sync_to_async
def answer(path, send):
    """Sync code, as a library may have it."""
    send = async_to_sync(send)
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(
            "create table planets (name); insert into planets values ('Mercury'), ('Venus')"
        )
        while path == "/forever":
            check_cancelled()  # is it still wanted?
            time.sleep(0.01)
        send({"type": "http.response.start", "status": 200})
        for (name,) in database.execute("select name from planets"):
            # waits for the client, as in async code
            send({"type": "http.response.body", "body": f"{name}\n".encode(), "more_body": True})
        send({"type": "http.response.body"})
    finally:
        database.close()
        print(f"{path}: closed")


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    scope["extensions"].get("trigi", {})["disconnect_grace"] = 0  # cancel as soon as the client leaves
    async with ThreadSensitiveContext():
        await answer(scope["path"], send)
