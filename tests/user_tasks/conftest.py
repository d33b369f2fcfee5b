"""The user tasks' database, their app, and small makers of news."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest_asyncio
from fastapi import FastAPI
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import statuses
from services.user_tasks.app import create_app
from services.user_tasks.models import Artifact, Status
from services.user_tasks.schemas import ArtifactReport, Lifecycle, ProgressReport
from shared.database import Database
from shared.testing import as_user, client, rolled_back, running, truncate_all
from tests.conftest import Servers

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
TASK = UUID(int=7)
OWNER, OTHER = as_user("ines"), as_user("olga")
SUPERUSER = as_user("root", superuser=True)
V0, V1 = "/api/tasks/v0", "/api/tasks/v1"


@pytest_asyncio.fixture(scope="session")
async def database(servers: Servers) -> AsyncIterator[Database]:
    database = Database(servers.urls["user_tasks"], pool=20)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def session(database: Database) -> AsyncIterator[AsyncSession]:
    async with rolled_back(database) as session:
        yield session


@pytest_asyncio.fixture
async def app(servers: Servers) -> AsyncIterator[FastAPI]:
    async with running(create_app()) as app:
        yield app
    # Nobody else's tables are touched here, so `clean` would only take longer.
    await truncate_all(servers.urls["user_tasks"])


@pytest_asyncio.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client(app) as http:
        yield http


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def make_news(**overrides: Any) -> Lifecycle:
    values: dict[str, Any] = {
        "task_id": TASK, "state": "Pending", "at": NOON, "user": "ines", "name": "Export of CS101",
        "task_class": "export", "task_type": "course_export", "total_steps": 3,
    }  # fmt: skip
    return Lifecycle.model_validate(values | overrides)


def make_report(**overrides: Any) -> ProgressReport:
    values: dict[str, Any] = {"task_id": TASK, "attempt": 1, "at": later(10)}
    return ProgressReport.model_validate(values | overrides)


def make_artifact(**overrides: Any) -> ArtifactReport:
    values: dict[str, Any] = {"artifact_id": uuid4(), "task_id": TASK, "at": later(20)}
    return ArtifactReport.model_validate(values | overrides)


async def tell(session: AsyncSession, *states: str, **overrides: Any) -> None:
    """News of these states, one after the other, a second apart."""
    for second, state in enumerate(states):
        news = make_news(**{"state": state, "at": later(second), **overrides})
        await statuses.record_lifecycle(session, [news], now=later(0))


async def get(session: AsyncSession, uuid: UUID = TASK) -> Status:
    status = await session.get(Status, uuid, populate_existing=True)
    assert status is not None
    return status


async def artifacts_of(session: AsyncSession, uuid: UUID = TASK) -> list[Artifact]:
    query = select(Artifact).where(col(Artifact.status_id) == uuid)
    return list((await session.exec(query)).all())
