"""Purging ended tasks. contract: dispatcher §5.7, T-22"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import purge as purging
from services.dispatcher import runs
from services.dispatcher.models import Task, TaskReport
from services.dispatcher.purge import purge
from shared.database import utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import make_request
from tests.dispatcher.in_process import Worker

PURGE = "/pulp/api/v3/tasks/purge/"
ADMIN, ADA = as_user("root", superuser=True), as_user("ada")
FUTURE = "2100-01-01T00:00:00Z"


async def ended(app: FastAPI, count: int = 1, *, user: str = "ada", **values: Any) -> list[UUID]:
    requests = [make_request(username=user, **values) for _ in range(count)]
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, requests, now=utc_now())
        await runs.cancel(session, [request.id for request in requests], now=utc_now())
    return [request.id for request in requests]


async def left(app: FastAPI) -> set[UUID]:
    async with app.state.database.sessions() as session:
        rows = await session.exec(select(Task.id).where(Task.name != "dispatcher.purge"))
        return set(rows)


async def asked(
    http: httpx.AsyncClient, worker: Worker, who: dict[str, str], **body: Any
) -> dict[str, Any]:
    """Purge and wait for it; the task."""
    answer = await http.post(PURGE, headers=who, json=body)
    assert answer.status_code == 202, answer.text
    href = answer.json()["task"]
    async with worker.runs(purge=purge, settings=_dispatchers(worker)):
        await worker.ended(UUID(href.rstrip("/").rpartition("/")[2]))
    task: dict[str, Any] = (await http.get(href, headers=ADMIN)).json()
    assert task["state"] == "completed", task["error"]
    return task


def _dispatchers(worker: Worker) -> dict[str, Any]:
    return {"service": "dispatcher"}


async def test_by_default_recent_tasks_are_spared(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    tasks = await ended(app, 2)

    await asked(http, worker, ADMIN)

    assert await left(app) == set(tasks)


async def test_what_ended_before_is_removed_with_what_belongs_to_it(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    (parent,) = await ended(app)
    (child,) = await ended(app, parent_id=parent)
    waiting = make_request()
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [waiting], now=utc_now())
        session.add(_report(parent))

    task = await asked(http, worker, ADMIN, finished_before=FUTURE, states=["canceled"])

    assert await left(app) == {waiting.id}
    assert child not in await left(app)
    counts = {row["code"]: (row["done"], row["state"]) for row in task["progress_reports"]}
    assert counts["purge.tasks.total"] == (3, "completed")
    assert counts["purge.tasks.key.core.Task"] == (2, "completed")
    assert counts["purge.tasks.key.core.ProgressReport"] == (1, "completed")


def _report(task: UUID) -> TaskReport:
    return TaskReport(
        id=uuid4(), task_id=task, message="m", code="c", state="completed",
        created_at=utc_now(), updated_at=utc_now(),
    )  # fmt: skip


async def test_children_that_stay_lose_their_parent(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    (parent,) = await ended(app)
    child = make_request(parent_id=parent)
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [child], now=utc_now())

    await asked(http, worker, ADMIN, finished_before=FUTURE, states=["canceled"])

    async with app.state.database.sessions() as session:
        found = await session.get(Task, child.id)
    assert found is not None
    assert found.parent_id is None


async def test_a_user_purges_only_own_tasks(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    await ended(app, 2)
    others = await ended(app, 2, user="bob")

    await asked(http, worker, ADA, finished_before=FUTURE, states=["canceled"])

    assert await left(app) == set(others)


async def test_many_tasks_go_in_batches(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(app, 2500)

    task = await asked(http, worker, ADMIN, finished_before=FUTURE, states=["canceled"])

    assert await left(app) == set()
    assert task["progress_reports"][0]["done"] == 2500
    assert purging.BATCH == 1000


async def test_the_moment_itself_is_not_before(session: AsyncSession) -> None:
    assert purging._before("2026-01-01T00:00:00+00:00", None) == datetime(2026, 1, 1, tzinfo=UTC)  # type: ignore[arg-type]
    assert "finished_at < :before" in purging._CANDIDATES


async def test_the_protection_time_is_the_default_of_schedules() -> None:
    from services.dispatcher.settings import Settings

    settings = Settings(task_protection_minutes=60)
    before = purging._before(None, settings)
    assert abs(datetime.now(UTC) - timedelta(hours=1) - before) < timedelta(seconds=5)
    with pytest.raises(ValueError, match="protection time"):
        purging._before(None, Settings(task_protection_minutes=0))


@pytest.mark.parametrize(
    "body",
    [
        {"finished_before": "yesterday"},
        {"states": ["running"]},
        {"states": ["nonsense"]},
        {"states": "completed"},
    ],
)
async def test_a_bad_purge_is_refused(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post(PURGE, headers=ADMIN, json=body)

    assert answer.status_code == 400
    assert next(iter(body)) in answer.text
