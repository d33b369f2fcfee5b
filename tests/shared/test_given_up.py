"""What the database gave up so that another could go on, or could not do, as callers see it."""

import asyncio

import httpx
import pytest
from asyncpg import (
    CannotConnectNowError,
    ConnectionDoesNotExistError,
    DeadlockDetectedError,
    DiskFullError,
    PostgresError,
    TooManyConnectionsError,
)
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine

from shared import problems
from shared.database import Database, async_url
from shared.testing import client
from tests.conftest import Servers
from tests.processes import free_port


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


@pytest.mark.parametrize(
    "error",
    [
        CannotConnectNowError("starting up"),
        TooManyConnectionsError("sorry, too many clients already"),
        ConnectionDoesNotExistError("gone"),
        PoolTimeout("QueuePool limit"),
    ],
)
async def test_a_database_that_cannot_be_asked_now_is_to_be_asked_again(error: Exception) -> None:
    answer = await answered(error)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert str(error) not in answer.text


async def test_an_address_where_nobody_listens_is_such() -> None:
    database = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    try:
        with pytest.raises(ConnectionError) as refused:
            async with database.engine.connect():
                pass
    finally:
        await database.close()

    assert (await answered(refused.value)).status_code == 503


async def test_a_connection_that_is_cut_in_the_middle_is_such(servers: Servers) -> None:
    database = Database(servers.urls["libraries"])
    try:
        with pytest.raises(DBAPIError) as cut:
            async with database.engine.connect() as connection:
                await connection.execute(text("select pg_terminate_backend(pg_backend_pid())"))
                await connection.execute(text("select 1"))
    finally:
        await database.close()

    assert (await answered(cut.value)).status_code == 503


async def test_our_services_try_again_what_was_given_up() -> None:
    problem = problems.from_response(await answered(DeadlockDetectedError("a")))

    assert isinstance(problem, problems.Unavailable)
