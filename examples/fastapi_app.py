"""FastAPI on trio: async and sync endpoints, and a dependency that cleans up.

    python -m trigi --app-dir examples fastapi_app:app        (pip install fastapi)
    curl http://127.0.0.1:8000/items/7

Sync endpoints run in trio's threads, of which there are `thread_limit` (40) at most.
"""

from typing import Annotated

import trio
from fastapi import Depends, FastAPI

app = FastAPI()


async def open_session():
    """A dependency: opened before the endpoint, closed after it, also when that is cancelled."""
    print("session opened")
    try:
        yield {"items": {7: "seven"}}
    finally:
        print("session closed")


@app.get("/items/{number}")
async def item(number: int, session: Annotated[dict, Depends(open_session)]):
    """An async endpoint, in which trio can be used."""
    await trio.sleep(0.1)
    return {"number": number, "name": session["items"].get(number)}


@app.get("/sum")
def total(a: int, b: int):
    """A sync endpoint, in a thread."""
    return {"sum": a + b}
