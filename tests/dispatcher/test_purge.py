"""Purging ended tasks. contract: dispatcher §5.7, T-22"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event, text, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import purge as purging
from services.dispatcher import removing, roles, runs
from services.dispatcher.models import RoleGrant, Task, TaskReport, TaskSchedule
from services.dispatcher.purge import purge
from shared.callers import Caller
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
    sizes, remove = list[int](), removing.remove

    async def noted(session: AsyncSession, ids: list[UUID]) -> removing.Removed:
        sizes.append(len(ids))
        return await remove(session, ids)

    monkeypatch.setattr(removing, "remove", noted)

    task = await asked(http, worker, ADMIN, finished_before=FUTURE, states=["canceled"])

    assert await left(app) == set()
    assert reported(task)["purge.tasks.total"] == (2500, 2500, "completed")
    assert sizes == [1000, 1000, 500, 0]


async def test_the_moment_itself_is_not_before(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    (at,) = await ended(app)
    (before,) = await ended(app)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    async with app.state.database.sessions.begin() as session:
        for task, finished in ((at, moment), (before, moment - timedelta(microseconds=1))):
            await session.exec(update(Task).where(Task.id == task).values(finished_at=finished))

    task = await asked(http, worker, ADMIN, finished_before=moment.isoformat(), states=["canceled"])

    assert await left(app) == {at}
    assert reported(task)["purge.tasks.key.core.Task"] == (1, 1, "completed")


def reported(task: dict[str, Any]) -> dict[str, tuple[int, int, str]]:
    rows = task["progress_reports"]
    return {row["code"]: (row["total"], row["done"], row["state"]) for row in rows}


async def test_a_past_date_removes_nothing(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    tasks = await ended(app, 2)

    task = await asked(http, worker, ADMIN, finished_before="1970-01-01T00:00", states=["canceled"])

    assert await left(app) == set(tasks)
    assert reported(task) == {
        "purge.tasks.total": (0, 0, "completed"),
        "purge.tasks.key.core.Task": (0, 0, "completed"),
    }


async def test_only_the_states_that_were_named(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    canceled, failed, completed = [(await ended(app))[0] for _ in range(3)]
    async with app.state.database.sessions.begin() as session:
        for task, state in ((failed, "failed"), (completed, "completed")):
            await session.exec(update(Task).where(Task.id == task).values(state=state))

    await asked(http, worker, ADMIN, finished_before=FUTURE, states=[])
    assert await left(app) == {canceled, failed, completed}
    await asked(http, worker, ADMIN, finished_before=FUTURE)
    assert await left(app) == {canceled, failed}
    await asked(http, worker, ADMIN, finished_before=FUTURE, states=["failed", "skipped"])
    assert await left(app) == {canceled}


async def test_by_default_only_what_completed_thirty_days_ago(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    old, older, recent = [(await ended(app))[0] for _ in range(3)]
    midnight = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    limit = midnight - timedelta(days=30)
    async with app.state.database.sessions.begin() as session:
        for task, finished in (
            (old, limit - timedelta(minutes=1)),
            (older, limit - timedelta(days=365)),
            (recent, limit + timedelta(days=1)),
        ):
            values = {"finished_at": finished, "state": "completed"}
            await session.exec(update(Task).where(Task.id == task).values(**values))

    await asked(http, worker, ADMIN)

    assert await left(app) == {recent}


async def test_what_a_user_may_delete_by_a_role_is_purged_too(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    owner, viewer = "core.task_owner", "core.task_viewer"
    (given,) = await ended(app, user="bob")
    (of_group,) = await ended(app, user="bob")
    (only_seen,) = await ended(app, user="bob")
    (taken,) = await ended(app)
    async with app.state.database.sessions.begin() as session:
        for task, role, users, groups in (
            (given, owner, ["ada"], []),
            (of_group, owner, [], ["staff"]),
            (only_seen, viewer, ["ada"], ["staff"]),
        ):
            await roles.grant(
                session, kind=roles.TASK, object_id=task, role=role, users=users, groups=groups,
                now=utc_now(),
            )  # fmt: skip
        await session.exec(update(Task).where(Task.id == taken).values(owned=False))

    member = as_user("ada", groups=["staff"])
    await asked(http, worker, member, finished_before=FUTURE, states=["canceled"])

    assert await left(app) == {only_seen, taken}


async def test_a_role_on_all_tasks_purges_all(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    await ended(app, 2, user="bob")
    async with app.state.database.sessions.begin() as session:
        await roles.grant(
            session, kind=roles.TASK, object_id=None, role="core.task_owner", users=[],
            groups=["staff"], now=utc_now(),
        )  # fmt: skip

    member = as_user("tom", groups=["staff"])
    await asked(http, worker, member, finished_before=FUTURE, states=["canceled"])

    assert await left(app) == set()


async def test_nothing_names_what_was_purged(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    (task,) = await ended(app)
    stays = make_request(parent_id=task)
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [stays], now=utc_now())
        await roles.grant(
            session, kind=roles.TASK, object_id=task, role="core.task_viewer", users=["bob"],
            groups=[], now=utc_now(),
        )  # fmt: skip
        connection = await session.connection()
        await connection.execute(
            text("""
            insert into taskschedule (id, name, task_name, queue, arguments, last_task_id,
              built_in, created_at, updated_at)
            values (gen_random_uuid(), 's', 't', 'q', '{}', :task, false, now(), now())"""),
            {"task": task},
        )

    await asked(http, worker, ADMIN, finished_before=FUTURE, states=["canceled"])

    async with app.state.database.sessions() as session:
        schedule = await session.exec(select(TaskSchedule).where(col(TaskSchedule.name) == "s"))
        assert schedule.one().last_task_id is None
        assert (await session.exec(select(RoleGrant))).all() == []
        child = await session.get(Task, stays.id)
    assert child is not None
    assert child.parent_id is None


async def test_what_somebody_else_holds_is_left_and_does_not_stop_the_rest(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    held, *_ = await ended(app, 3)
    async with app.state.database.sessions.begin() as session:
        await session.exec(select(Task).where(Task.id == held).with_for_update())

        task = await asked(http, worker, ADMIN, finished_before=FUTURE, states=["canceled"])

    assert await left(app) == {held}
    assert reported(task)["purge.tasks.key.core.Task"] == (2, 2, "completed")
    assert reported(task)["purge.tasks.total"] == (2, 2, "completed")


async def test_two_purges_of_one_family_tree_share_the_work(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "BATCH", 5)
    parents = await ended(app, 20)
    for parent in parents:
        await ended(app, 2, parent_id=parent)
    body = {"finished_before": FUTURE, "states": ["canceled"]}
    asked_for = [await http.post(PURGE, headers=ADMIN, json=body) for _ in range(2)]

    async with worker.runs(purge=purge, settings=_dispatchers(worker)):
        for answer in asked_for:
            await worker.ended(UUID(answer.json()["task"].rstrip("/").rpartition("/")[2]))

    assert await left(app) == set()
    tasks = [(await http.get(one.json()["task"], headers=ADMIN)).json() for one in asked_for]
    assert [task["state"] for task in tasks] == ["completed", "completed"]
    assert sum(reported(task)["purge.tasks.key.core.Task"][1] for task in tasks) == 60


async def test_a_batch_costs_the_same_however_many_tasks_are_in_it(
    app: FastAPI, session: AsyncSession
) -> None:
    connection = await session.connection()
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    async def batch(count: int) -> int:
        requests = [make_request() for _ in range(count)]
        await runs.accept(session, requests, now=utc_now())
        await runs.cancel(session, [request.id for request in requests], now=utc_now())
        statements.clear()
        ended = [col(Task.finished_at) < datetime(2100, 1, 1, tzinfo=UTC)]
        _, removed = await purging._one_batch(session, ended, Caller("x", superuser=True), None)
        assert removed.counts["core.Task"] == min(count, purging.BATCH)
        return len(statements)

    event.listen(connection.sync_connection, "before_cursor_execute", note)
    assert await batch(1) == await batch(300) == await batch(1001)


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
        {"states": ["waiting"]},
        {"states": ["completed", None]},
        {"states": ["completed"] * 101},
        {"finished_before": 5},
        {"finished_before": "0001-01-01T00:00:00+23:59"},
        {"finished_before": "9999-12-31T23:59:59-23:59"},
        {"finished_before": "2026-01-01\x00"},
    ],
)
async def test_a_bad_purge_is_refused(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post(PURGE, headers=ADMIN, json=body)

    assert answer.status_code == 400
    assert next(iter(body)) in answer.text
    assert (await http.get("/pulp/api/v3/tasks/", headers=ADMIN)).json()["count"] == 0


async def test_schedules_forget_the_tasks_that_are_removed(
    app: FastAPI, http: httpx.AsyncClient, worker: Worker
) -> None:
    (task,) = await ended(app)
    async with app.state.database.sessions.begin() as session:
        for schedule in await session.exec(select(TaskSchedule)):
            schedule.last_task_id = task

    await asked(http, worker, ADMIN, finished_before=FUTURE, states=["canceled"])

    listed = (await http.get("/pulp/api/v3/task-schedules/", headers=ADMIN)).json()
    assert [row["last_task"] for row in listed["results"]] == [None]
