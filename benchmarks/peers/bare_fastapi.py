"""FastAPI and one asyncpg statement: the ceiling of what a durable answer over HTTP can be."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

TABLE = """
create table if not exists item (
  id uuid primary key, function text not null, queue text not null, arguments text not null,
  created_at timestamptz not null default now())
"""


class Item(BaseModel):
    """As small as a task can be told."""

    id: UUID
    function: str
    queue: str


def available() -> str | None:
    """Part of what we stand on."""
    return None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["BENCH_DATABASE_URL"], min_size=10) as pool:
        await pool.execute(TABLE)
        app.state.pool = pool
        yield


def create_app() -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def readyz() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/items", status_code=202)
    async def insert(item: Item, request: Request) -> dict[str, Any]:
        await request.app.state.pool.execute(
            "insert into item (id, function, queue, arguments) values ($1, $2, $3, '{}')",
            item.id, item.function, item.queue,
        )  # fmt: skip
        return {"id": item.id}

    @app.get("/items/{item_id}")
    async def select(item_id: UUID, request: Request) -> dict[str, Any]:
        row = await request.app.state.pool.fetchrow("select * from item where id = $1", item_id)
        if row is None:
            raise HTTPException(404)
        return dict(row)

    return app
