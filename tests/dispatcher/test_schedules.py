"""Schedules. contract: dispatcher §1.7, §4.10, §5.5"""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlmodel import col, select

from services.dispatcher import runs, schedules
from services.dispatcher.models import Task, TaskSchedule
from services.dispatcher.settings import Settings
from shared.database import Sessions
from shared.testing import as_user

# Far away: the app of these tests dispatches by the true clock what is due.
NOON = datetime(2126, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
LIST = "/pulp/api/v3/task-schedules/"
OWN = "/api/dispatcher/v1/task-schedules/"
ADMIN, ADA = as_user("root", superuser=True), as_user("ada")
WANTED: dict[str, Any] = {"name": "nightly", "queue": "libraries", "task_name": "sweep"}


@pytest.fixture
def sessions(app: FastAPI) -> Sessions:
    found: Sessions = app.state.database.sessions
    return found


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


async def make(sessions: Sessions, **values: Any) -> TaskSchedule:
    defaults: dict[str, Any] = {
        "id": uuid4(), "name": f"s-{uuid4()}", "task_name": "sweep", "queue": "libraries",
        "next_dispatch": NOON, "created_at": NOON, "updated_at": NOON,
    }  # fmt: skip
    async with sessions.begin() as session:
        # What the settings keep must not be due beside it.
        for other in await session.exec(select(TaskSchedule).where(TaskSchedule.built_in)):
            other.next_dispatch = None
        schedule = TaskSchedule(**(defaults | values))
        session.add(schedule)
    return schedule


async def reread(sessions: Sessions, schedule: TaskSchedule) -> TaskSchedule:
    async with sessions() as session:
        found = await session.get(TaskSchedule, schedule.id)
        assert found is not None
        return found


async def tasks(sessions: Sessions) -> list[Task]:
    async with sessions() as session:
        return list(await session.exec(select(Task).order_by(col(Task.seq))))


async def test_a_one_shot_runs_once(sessions: Sessions) -> None:
    schedule = await make(sessions, arguments={"x": 1})

    assert await schedules.dispatch_due(sessions, now=NOON - HOUR) == 0
    assert await schedules.dispatch_due(sessions, now=NOON) == 1
    assert await schedules.dispatch_due(sessions, now=NOON + HOUR) == 0

    (task,) = await tasks(sessions)
    after = await reread(sessions, schedule)
    assert (task.name, task.arguments, task.username) == ("libraries.sweep", {"x": 1}, None)
    assert len(task.logging_cid) == 32
    assert task.reserved == [f"shared:{runs.DOMAIN}"]
    assert (after.next_dispatch, after.last_task_id) == (None, task.id)


async def test_what_was_missed_runs_once_and_the_rhythm_is_kept(sessions: Sessions) -> None:
    schedule = await make(sessions, dispatch_interval=HOUR)

    assert await schedules.dispatch_due(sessions, now=NOON + 3 * HOUR + timedelta(minutes=5)) == 1

    assert (await reread(sessions, schedule)).next_dispatch == NOON + 4 * HOUR


async def test_at_most_one_run_of_a_schedule_is_unfinished(sessions: Sessions) -> None:
    await make(sessions, dispatch_interval=HOUR)
    await schedules.dispatch_due(sessions, now=NOON)

    assert await schedules.dispatch_due(sessions, now=NOON + 2 * HOUR) == 0

    (task,) = await tasks(sessions)
    async with sessions.begin() as session:
        await session.connection()
        await runs.cancel(session, [task.id], now=NOON)
    assert await schedules.dispatch_due(sessions, now=NOON + 2 * HOUR) == 1


async def test_many_processes_dispatch_a_due_schedule_once(sessions: Sessions) -> None:
    for _ in range(5):
        await make(sessions, dispatch_interval=HOUR)

    counts = await asyncio.gather(*(schedules.dispatch_due(sessions, now=NOON) for _ in range(6)))

    assert sum(counts) == 5
    assert len(await tasks(sessions)) == 5


async def test_one_schedule_at_fault_does_not_hold_up_the_others(sessions: Sessions) -> None:
    await make(sessions, task_name="x" * 600, next_dispatch=NOON - HOUR)
    good = await make(sessions)

    assert await schedules.dispatch_due(sessions, now=NOON) == 1

    (task,) = await tasks(sessions)
    assert (await reread(sessions, good)).last_task_id == task.id


async def test_built_in_schedules_follow_the_settings(app: FastAPI, sessions: Sessions) -> None:
    async def names() -> dict[str, timedelta | None]:
        async with sessions() as session:
            rows = await session.exec(select(TaskSchedule).where(TaskSchedule.built_in))
            return {row.name: row.dispatch_interval for row in rows}

    async def keep(**values: int) -> None:
        settings = Settings(**values)  # type: ignore[arg-type]
        async with sessions.begin() as session:
            await schedules.keep_built_in(session, settings, now=NOON)

    assert await names() == {"Clean up stale content periodically": timedelta(days=1)}
    await keep(orphan_protection_minutes=0, task_protection_minutes=60)
    assert await names() == {"Clean up stale tasks periodically": HOUR}
    await keep(orphan_protection_minutes=0, task_protection_minutes=120)
    assert await names() == {"Clean up stale tasks periodically": 2 * HOUR}


async def test_what_another_process_has_just_dispatched_is_left_alone(sessions: Sessions) -> None:
    """The row was chosen by a snapshot in which its last run had ended."""
    schedule = await make(sessions, dispatch_interval=HOUR)
    assert await schedules.dispatch_due(sessions, now=NOON) == 1

    async with sessions.begin() as session:
        dispatched = await schedules._dispatch(session, schedule.id, NOON + 2 * HOUR)

    assert not dispatched
    assert len(await tasks(sessions)) == 1


async def test_a_shorter_rhythm_of_the_settings_begins_at_once(sessions: Sessions) -> None:
    for minutes, expected in ((1440, NOON + 24 * HOUR), (60, NOON + HOUR), (1440, NOON + HOUR)):
        settings = Settings(orphan_protection_minutes=0, task_protection_minutes=minutes)
        async with sessions.begin() as session:
            await schedules.keep_built_in(session, settings, now=NOON)
        async with sessions() as session:
            rows = await session.exec(select(TaskSchedule).where(TaskSchedule.built_in))
            assert [row.next_dispatch for row in rows] == [expected]


# Over HTTP


async def test_a_running_dispatcher_dispatches_what_is_due(http: httpx.AsyncClient) -> None:
    """contract: dispatcher T-20"""
    soon = datetime.now(UTC) + timedelta(seconds=1)
    body = WANTED | {"next_dispatch": soon.isoformat()}
    href = (await http.post(OWN, headers=ADMIN, json=body)).json()["pulp_href"]

    async with asyncio.timeout(18):
        while (shown := (await http.get(href, headers=ADMIN)).json())["last_task"] is None:
            await asyncio.sleep(0.1)

    task = (await http.get(shown["last_task"], headers=ADMIN)).json()
    assert shown["next_dispatch"] is None
    assert task["name"] == "libraries.sweep"
    assert datetime.fromisoformat(task["pulp_created"]) >= soon


async def test_a_schedule_forgets_a_last_task_that_was_removed(
    http: httpx.AsyncClient, sessions: Sessions
) -> None:
    schedule = await make(sessions)
    await schedules.dispatch_due(sessions, now=NOON)
    (task,) = await tasks(sessions)
    async with sessions.begin() as session:
        await session.connection()
        await runs.cancel(session, [task.id], now=NOON)

    deleted = await http.delete(f"/pulp/api/v3/tasks/{task.id}/", headers=ADMIN)

    assert deleted.status_code == 204
    assert (await reread(sessions, schedule)).last_task_id is None


async def test_what_is_not_said_about_the_time_stays(http: httpx.AsyncClient) -> None:
    body = WANTED | {"next_dispatch": "2100-01-01T00:00:00Z", "dispatch_interval": "PT1H"}
    made = (await http.post(OWN, headers=ADMIN, json=body)).json()
    path = f"{OWN}{made['pulp_href'].removeprefix(LIST)}"

    kept = await http.put(path, headers=ADMIN, json=WANTED | {"dispatch_interval": "PT2H"})
    stopped = await http.put(path, headers=ADMIN, json=WANTED | {"next_dispatch": None})
    never = await http.post(
        OWN, headers=ADMIN, json=WANTED | {"name": "never", "next_dispatch": None}
    )

    assert kept.json()["next_dispatch"] == "2100-01-01T00:00:00Z"
    assert stopped.json()["next_dispatch"] is None
    assert never.json()["next_dispatch"] is None


async def test_what_follows_the_settings_is_not_changed_by_hand(http: httpx.AsyncClient) -> None:
    name = "Clean up stale content periodically"
    listed = await http.get(LIST, headers=ADMIN, params={"name": name})
    path = f"{OWN}{listed.json()['results'][0]['pulp_href'].removeprefix(LIST)}"

    assert (await http.put(path, headers=ADMIN, json=WANTED)).status_code == 409
    assert (await http.delete(path, headers=ADMIN)).status_code == 409
    assert (await http.get(LIST, headers=ADMIN)).json() == listed.json()


async def test_nobody_but_administrators_changes_schedules(http: httpx.AsyncClient) -> None:
    made = (await http.post(OWN, headers=ADMIN, json=WANTED)).json()["pulp_href"]
    path = f"{OWN}{made.removeprefix(LIST)}"

    for method in ("PUT", "DELETE"):
        assert (await http.request(method, path, headers=ADA, json=WANTED)).status_code == 403
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await http.request(method, LIST, headers=ADMIN, json=WANTED)).status_code == 405


async def test_administrators_make_change_and_remove_schedules(http: httpx.AsyncClient) -> None:
    wanted = WANTED | {"dispatch_interval": "P1DT2H", "arguments": {"a": 1}}
    made = await http.post(OWN, headers=ADMIN, json=wanted)
    href = made.json()["pulp_href"]
    ident = href.removeprefix(LIST)

    assert made.status_code == 201
    assert set(made.json()) == {
        "pulp_href", "prn", "pulp_created", "pulp_last_updated", "name", "task_name",
        "dispatch_interval", "next_dispatch", "last_task",
    }  # fmt: skip
    assert made.json()["dispatch_interval"] == "1 02:00:00"
    assert made.json()["task_name"] == "libraries.sweep"
    assert (await http.get(href, headers=ADMIN)).json() == made.json()
    assert (await http.post(OWN, headers=ADMIN, json=wanted)).status_code == 409

    changed = await http.put(f"{OWN}{ident}", headers=ADMIN, json=WANTED | {"name": "weekly"})
    assert (changed.json()["name"], changed.json()["dispatch_interval"]) == ("weekly", None)
    assert (await http.delete(f"{OWN}{ident}", headers=ADMIN)).status_code == 204
    assert (await http.get(href, headers=ADMIN)).status_code == 404


async def test_schedules_are_seen_with_a_role_only(http: httpx.AsyncClient) -> None:
    made = (await http.post(OWN, headers=ADMIN, json=WANTED)).json()["pulp_href"]
    assert (await http.post(OWN, headers=ADA, json=WANTED)).status_code == 403
    assert (await http.get(LIST, headers=ADA)).json()["count"] == 0
    assert (await http.get(made, headers=ADA)).status_code == 404

    role = {"role": "core.taskschedule_viewer", "users": ["ada"]}
    assert (await http.post(f"{made}add_role/", headers=ADMIN, json=role)).status_code == 201

    assert (await http.get(LIST, headers=ADA)).json()["count"] == 1
    assert (await http.get(made, headers=ADA)).status_code == 200
    assert (await http.post(f"{made}add_role/", headers=ADA, json=role)).status_code == 403


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"name": "nightly"}, 1),
        ({"name__contains": "ght"}, 1),
        ({"task_name": "libraries.sweep"}, 1),
        ({"task_name__contains": "swe"}, 1),
        ({"task_name": "sweep"}, 0),
    ],
)
async def test_schedules_are_found(
    http: httpx.AsyncClient, query: dict[str, str], count: int
) -> None:
    await http.post(OWN, headers=ADMIN, json=WANTED)

    assert (await http.get(LIST, headers=ADMIN, params=query)).json()["count"] == count


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dispatch_interval": "PT0S"}, "dispatch_interval"),
        ({"dispatch_interval": "-P1D"}, "dispatch_interval"),
        ({"dispatch_interval": "P99999D"}, "dispatch_interval"),
        ({"next_dispatch": "2026-01-01T00:00:00"}, "next_dispatch"),
        ({"name": "a\x00"}, "name"),
        ({"name": ""}, "name"),
        ({"arguments": {"a": "\x00"}}, "arguments"),
        ({"arguments": []}, "arguments"),
        ({"arguments": {"a": 10**30}}, "arguments"),
        ({"arguments": {"a": deep(300)}}, "arguments"),
        ({"arguments": {"a": "\ud800"}}, "arguments"),
        ({"next_dispatch": "9999-12-31T23:59:59-23:59"}, "next_dispatch"),
        ({"next_dispatch": "0001-01-01T00:00:00+23:59"}, "next_dispatch"),
        ({"next_dispatch": 1e300}, "next_dispatch"),
        ({"dispatch_interval": "P999999999999D"}, "dispatch_interval"),
        ({"queue": "q" * 501}, "queue"),
        ({"task_args": [1]}, "task_args"),
    ],
)
async def test_a_bad_schedule_is_refused_by_its_field(
    http: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    body = json.dumps(WANTED | change)
    headers = {**ADMIN, "Content-Type": "application/json"}

    answer = await http.post(OWN, headers=headers, content=body)

    assert answer.status_code == 400
    assert field in answer.text
    listed = await http.get(LIST, headers=ADMIN, params={"task_name": "libraries.sweep"})
    assert listed.json()["count"] == 0
