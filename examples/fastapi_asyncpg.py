"""FastAPI with PostgreSQL: a pool of asyncpg's, opened in the lifespan, in an asyncio loop of its own.

    python -m trigi --interface asyncio --app-dir examples fastapi_asyncpg:app        (pip install fastapi asyncpg)
    curl --json '{"text": "tea"}' http://127.0.0.1:8000/notes
    curl http://127.0.0.1:8000/notes

The database is that of the environment variable DATABASE_URL: `postgresql://user:password@host/database`. A query whose
client leaves is cancelled, and its connection goes back to the pool.
"""

import os
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import Body, FastAPI


@asynccontextmanager
async def lifespan(app):
    """Open the pool before the first request, close it after the last."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as app.state.pool:
        await app.state.pool.execute("create table if not exists notes (id serial primary key, text text)")
        print("pool opened")
        yield
    print("pool closed")


app = FastAPI(lifespan=lifespan)


@app.post("/notes", status_code=201)
async def add(text: Annotated[str, Body(embed=True)]):
    async with app.state.pool.acquire() as database, database.transaction():
        return {"id": await database.fetchval("insert into notes (text) values ($1) returning id", text)}


@app.get("/notes")
async def notes():
    return [row["text"] for row in await app.state.pool.fetch("select text from notes order by id")]
