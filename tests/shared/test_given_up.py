"""What the database gave up so that another could go on, as callers see it."""

import asyncio

import httpx
import pytest
from asyncpg import DeadlockDetectedError, DiskFullError, PostgresError
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from shared import problems
from shared.database import Database, async_url
from shared.testing import client
from tests.conftest import Servers


async def answered(error: Exception) -> httpx.Response:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    async with client(app) as http:
        return await http.get("/")


@pytest.mark.parametrize(
    ("error", "status"), [(DeadlockDetectedError("a"), 409), (DiskFullError("b"), 500)]
)
async def test_only_what_can_be_tried_again_is_a_conflict(
    error: PostgresError, status: int
) -> None:
    answer = await answered(error)

    assert answer.status_code == status
    assert "again" in answer.text or status == 500


async def test_a_real_deadlock_is_a_conflict(servers: Servers) -> None:
    engine = create_async_engine(async_url(servers.urls["libraries"]))
    taken = asyncio.Barrier(2)

    async def lock(first: int, second: int) -> None:
        async with engine.begin() as connection:
            await connection.execute(text(f"select pg_advisory_xact_lock({first})"))
            await taken.wait()
            await connection.execute(text(f"select pg_advisory_xact_lock({second})"))

    outcomes = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    await engine.dispose()

    [error] = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert (await answered(error)).status_code == 409


async def test_who_waits_too_long_for_a_lock_is_told_to_come_back(servers: Servers) -> None:
    database = Database(servers.urls["libraries"], lock_seconds=0.05)
    lock = text("select pg_advisory_xact_lock(3)")

    async with database.engine.begin() as holder:
        await holder.execute(lock)
        with pytest.raises(DBAPIError) as caught:
            async with database.engine.begin() as other:
                await other.execute(lock)
    await database.close()

    answer = await answered(caught.value)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_our_services_try_again_what_was_given_up() -> None:
    problem = problems.from_response(await answered(DeadlockDetectedError("a")))

    assert isinstance(problem, problems.Unavailable)
