"""Removing what is old: whole trees that have ended, their files, and strays. contract: §7.3"""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import func, select

from services.user_tasks import artifacts, purging, statuses
from services.user_tasks.models import Artifact, Event, Searchable, Status
from services.user_tasks.purging import purge
from services.user_tasks.settings import Settings
from shared.database import utc_now
from shared.files import Files, local_folder
from shared.worker import WorkerContext
from tests.user_tasks.conftest import OWNER, V1, make_artifact, make_news

DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def context(app: FastAPI) -> AsyncIterator[WorkerContext]:
    yield WorkerContext(
        settings=Settings(),
        database=app.state.database,
        files=app.state.files,
        clients=app.state.clients,
        queue=app.state.queue,
    )


async def ended(
    app: FastAPI, *, days: float, state: str = "Succeeded", file: str = "", **news: Any
) -> UUID:
    """A task that came into its state so many days ago, with a file if one is named."""
    uuid = news.pop("task_id", None) or uuid4()
    at = utc_now() - days * DAY
    async with app.state.database.sessions.begin() as session:
        told = [make_news(task_id=uuid, state=one, at=at, **news) for one in ("Pending", state)]
        await statuses.record_lifecycle(session, told, now=at)
        if file:
            await app.state.files.put(file, b"content")
            report = make_artifact(task_id=uuid, file=file, file_name="a.txt", at=at)
            await artifacts.record(session, [report], now=at)
    return uuid


async def left(app: FastAPI) -> set[UUID]:
    async with app.state.database.sessions() as session:
        return set(await session.exec(select(Status.uuid)))


async def count(app: FastAPI, table: Any) -> int:
    async with app.state.database.sessions() as session:
        return int((await session.exec(select(func.count()).select_from(table))).one())


def age(files: Files, path: str, days: float) -> None:
    folder = local_folder(files.url)
    assert folder is not None
    then = (utc_now() - days * DAY).timestamp()
    os.utime(Path(folder, path), (then, then))


async def test_what_ended_longer_ago_than_the_limit_goes_with_its_files(
    app: FastAPI, context: WorkerContext
) -> None:
    old = await ended(app, days=31, file="user_tasks/old.txt")
    young = await ended(app, days=29, file="user_tasks/young.txt")

    found = await purge(context)

    assert (found["tasks"], await left(app)) == (1, {young})
    assert old not in await left(app)
    assert not await app.state.files.exists("user_tasks/old.txt")
    assert await app.state.files.exists("user_tasks/young.txt")
    assert (await count(app, Artifact), await count(app, Searchable)) == (1, 1)


@pytest.mark.parametrize("state", ["Pending", "In Progress", "Retrying"])
async def test_what_has_not_ended_stays_however_old(
    app: FastAPI, context: WorkerContext, state: str
) -> None:
    live = await ended(app, days=400, state=state)

    await purge(context)

    assert await left(app) == {live}


async def test_a_failed_group_stays_while_one_of_its_tasks_runs(
    app: FastAPI, context: WorkerContext
) -> None:
    group = [{"id": str(uuid4()), "kind": "group", "name": "", "members": 2, "total_steps": 6}]
    failed = await ended(app, days=40, state="Failed", containers=group)
    running = await ended(app, days=40, state="In Progress", containers=group)
    holder = UUID(group[0]["id"])  # type: ignore[arg-type]

    await purge(context)
    assert await left(app) == {failed, running, holder}

    await ended(app, days=39, task_id=running, containers=group)
    await purge(context)
    assert await left(app) == set()


async def test_a_member_alone_is_never_purged(app: FastAPI, context: WorkerContext) -> None:
    group = [{"id": str(uuid4()), "kind": "group", "name": "", "members": 2, "total_steps": 6}]
    await ended(app, days=40, containers=group)
    await ended(app, days=1, containers=group)

    await purge(context)

    assert len(await left(app)) == 3


async def test_more_than_a_batch_is_purged_in_one_round(
    app: FastAPI, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "BATCH", 2)
    for _ in range(5):
        await ended(app, days=31)

    assert (await purge(context))["tasks"] == 5


async def test_two_purges_at_once_count_each_task_once(
    app: FastAPI, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "BATCH", 3)
    for _ in range(20):
        await ended(app, days=31)

    found = await asyncio.gather(*(purge(context) for _ in range(4)))

    assert sum(one["tasks"] for one in found) == 20
    assert await left(app) == set()


async def test_news_that_come_while_it_is_purged_do_not_fail(
    app: FastAPI, context: WorkerContext
) -> None:
    old = await ended(app, days=31)

    async def retell() -> None:
        async with app.state.database.sessions.begin() as session:
            news = make_news(task_id=old, state="Succeeded", at=utc_now() - 31 * DAY)
            await statuses.record_lifecycle(session, [news], now=utc_now())

    await asyncio.gather(purge(context), *(retell() for _ in range(5)))
    await purge(context)

    assert await left(app) == set()


async def test_what_a_person_deleted_goes_too(
    app: FastAPI, http: httpx.AsyncClient, context: WorkerContext
) -> None:
    task = await ended(app, days=40)
    gone = await http.delete(f"{V1.replace('v1', 'v0')}/tasks/{task}/", headers=OWNER)
    assert gone.status_code == 204
    async with app.state.database.sessions.begin() as session:
        long_ago = {"at": utc_now() - 31 * DAY}
        connection = await session.connection()
        await connection.execute(text("update status set modified = :at"), long_ago)

    await purge(context)

    assert await left(app) == set()


async def test_results_of_tasks_nobody_heard_of_go_after_a_day(
    app: FastAPI, context: WorkerContext
) -> None:
    for days, path in ((2, "user_tasks/lost.txt"), (0.5, "user_tasks/early.txt")):
        await app.state.files.put(path, b"content")
        async with app.state.database.sessions.begin() as session:
            report = make_artifact(task_id=uuid4(), file=path, at=utc_now() - days * DAY)
            await artifacts.record(session, [report], now=utc_now())

    assert (await purge(context))["artifacts"] == 1
    assert not await app.state.files.exists("user_tasks/lost.txt")
    assert await app.state.files.exists("user_tasks/early.txt")


async def test_files_without_a_record_go_after_a_day_and_no_others(
    app: FastAPI, context: WorkerContext
) -> None:
    """A crash between a commit and the removal of its files, or before a result was recorded."""
    files = app.state.files
    await ended(app, days=5, file="user_tasks/2026/kept.txt")
    for path in ("user_tasks/2026/stray.txt", "user_tasks/new.txt", "libraries/other.txt"):
        await files.put(path, b"content")
    for path in ("user_tasks/2026/kept.txt", "user_tasks/2026/stray.txt", "libraries/other.txt"):
        age(files, path, 2)

    assert (await purge(context))["files"] == 1

    assert not await files.exists("user_tasks/2026/stray.txt")
    for path in ("user_tasks/2026/kept.txt", "user_tasks/new.txt", "libraries/other.txt"):
        assert await files.exists(path)


async def test_old_events_go_and_new_ones_stay(app: FastAPI, context: WorkerContext) -> None:
    old, new = await ended(app, days=1.5), await ended(app, days=0.1)

    found = await purge(context)

    assert found["events"] > 0
    async with app.state.database.sessions() as session:
        kept = set(await session.exec(select(Event.status_id)))
    assert kept == {new} and old != new
