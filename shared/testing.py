"""What every service's tests start from: real stores, a session undone by a rollback."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.callers import make_token
from shared.database import Database, async_url

SECRET = "development-only-secret-for-tests-0123456789"  # noqa: S105


@contextlib.contextmanager
def environment(urls: dict[str, str], redis_url: str, folder: Path) -> Iterator[None]:
    """The settings of all services, as the tests' own servers need them."""
    values = {f"{service.upper()}_DATABASE_URL": url for service, url in urls.items()}
    values |= {
        "LYCEUM_REDIS_URL": redis_url,
        "LYCEUM_OBJECT_STORE": f"file://{folder / 'objects'}",
        "LYCEUM_TOKEN_SECRET": SECRET,
        "LYCEUM_ORIGIN_URL": "http://lyceum.test",
        "LYCEUM_LOG_FORMAT": "text",
    }
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@asynccontextmanager
async def rolled_back(database: Database) -> AsyncIterator[AsyncSession]:
    """A session whose work, commits included, is undone at the end."""
    async with database.engine.connect() as connection:
        outer = await connection.begin()
        session = AsyncSession(
            bind=connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
        )
        try:
            yield session
        finally:
            await session.close()
            await outer.rollback()


async def truncate_all(url: str) -> None:
    """Empty every table but the schema's own version."""
    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.begin() as connection:
        rows = await connection.execute(
            text(
                "select quote_ident(tablename) from pg_tables "
                "where schemaname = 'public' and tablename <> 'alembic_version'"
            )
        )
        tables = ", ".join(rows.scalars())
        if tables:
            await connection.execute(text(f"truncate {tables} restart identity cascade"))
    await engine.dispose()


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[FastAPI]:
    """An app between its start and its stop."""
    async with app.router.lifespan_context(app):
        yield app


@asynccontextmanager
async def client(app: FastAPI, **kwargs: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of one running app."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://lyceum.test", **kwargs
    ) as http:
        yield http


def as_user(username: str, **claims: Any) -> dict[str, str]:
    """The header with which this person calls."""
    return {"Authorization": f"JWT {make_token(SECRET, username, **claims)}"}
