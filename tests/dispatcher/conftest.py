"""The dispatcher's database, its app, and small makers of tasks."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import assigning, claims, runs, workers
from services.dispatcher.app import create_app
from services.dispatcher.models import Task
from services.dispatcher.schemas import FinishReport, Heartbeat, TaskRequest
from services.dispatcher.states import State
from shared.database import Database
from shared.testing import client, rolled_back, running
from tests.conftest import Servers
from tests.dispatcher.in_process import Worker

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
WORKER = UUID(int=1)


@pytest_asyncio.fixture(scope="session")
async def database(servers: Servers) -> AsyncIterator[Database]:
    database = Database(servers.urls["dispatcher"], pool=20)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def session(database: Database) -> AsyncIterator[AsyncSession]:
    async with rolled_back(database) as session:
        await register(session)
        yield session


@pytest_asyncio.fixture
async def app(clean: Servers) -> AsyncIterator[FastAPI]:
    async with running(create_app()) as app:
        yield app


@pytest_asyncio.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client(app) as http:
        yield http


@pytest.fixture
def worker(app: FastAPI) -> Worker:
    return Worker(app)


async def register(session: AsyncSession, worker: UUID = WORKER, now: datetime = NOON) -> None:
    await workers.heartbeat(
        session, worker, Heartbeat(name="w", queue="libraries", first=True), now=now
    )


def make_request(**overrides: Any) -> TaskRequest:
    values: dict[str, Any] = {"id": uuid4(), "function": "noop", "queue": "libraries"}
    return TaskRequest.model_validate(values | overrides)


async def accept(session: AsyncSession, **overrides: Any) -> UUID:
    request = make_request(**overrides)
    await runs.accept(session, [request], now=NOON)
    return request.id


async def start(session: AsyncSession, task_id: UUID, *, worker: UUID = WORKER) -> int | None:
    """The fence of a run, if the task was ready."""
    await claims.serialized(session)
    given = await assigning.start(session, worker, [task_id], now=NOON)
    return given[0].fence if given else None


async def finish(
    session: AsyncSession, task_id: UUID, fence: int, state: str = "completed", **values: Any
) -> bool:
    report = FinishReport.model_validate(
        {"task_id": task_id, "fence": fence, "state": state, **values}
    )
    return (await runs.finish(session, [report], now=NOON))[0].accepted


async def get(session: AsyncSession, task_id: UUID) -> Task:
    task = await session.get(Task, task_id, populate_existing=True)
    assert task is not None
    return task


async def ready(session: AsyncSession, task_id: UUID) -> bool:
    task = await get(session, task_id)
    return task.state is State.WAITING and task.blocked_by == 0


async def until_blocked(database: Database) -> None:
    """Until some transaction of this database waits for a lock."""
    query = text(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        " and datname = current_database()"
    )
    async with asyncio.timeout(10), database.engine.connect() as connection:
        while not (await connection.execute(query)).scalar_one():
            await connection.rollback()
            await asyncio.sleep(0.01)
