"""Task groups and stopping many tasks at once. contract: dispatcher §1.3, §4.8, §5.4"""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from services.dispatcher import reports, runs
from services.dispatcher.schemas import GroupShareUpdate
from shared.callers import service_token
from shared.database import utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import finish, make_request, register, start

GROUPS = "/pulp/api/v3/task-groups/"
OWN = "/api/dispatcher/v1/task-groups/"
CANCEL = "/api/dispatcher/v1/tasks/cancel"
ADMIN = as_user("root", superuser=True)
ADA, BOB = as_user("ada"), as_user("bob")


@pytest_asyncio.fixture
async def group(app: FastAPI, http: httpx.AsyncClient) -> UUID:
    """ada's group: one task has ended, one runs, one waits behind it."""
    service = {"Authorization": f"Bearer {service_token(app.state.settings)}"}
    ident = uuid4()
    for _ in range(2):
        body = {"id": str(ident), "description": "Publish all"}
        assert (await http.post(OWN, headers=service, json=body)).status_code == 201
    values: dict[str, Any] = {"group_id": ident, "username": "ada"}
    done, runs_now = make_request(**values), make_request(exclusive=["a"], **values)
    waits = make_request(exclusive=["a"], **values)
    async with app.state.database.sessions.begin() as session:
        await register(session, now=utc_now())
        await runs.accept(session, [done, runs_now, waits], now=utc_now())
        fence = await start(session, done.id)
        assert fence is not None
        await finish(session, done.id, fence)
        await start(session, runs_now.id)
        shares = [
            GroupShareUpdate(
                group_id=ident, task_id=task.id, code="done", message="Done", done=2, total=5,
                at=utc_now(),
            )
            for task in (done, runs_now)
        ]  # fmt: skip
        await reports.store_shares(session, shares)
    return ident


async def test_a_group_counts_its_tasks_by_state(http: httpx.AsyncClient, group: UUID) -> None:
    shown = (await http.get(f"{GROUPS}{group}/", headers=ADA)).json()

    tasks = shown.pop("tasks")
    assert shown == {
        "pulp_href": f"{GROUPS}{group}/", "prn": f"prn:core.taskgroup:{group}",
        "description": "Publish all", "all_tasks_dispatched": False, "waiting": 1, "skipped": 0,
        "running": 1, "completed": 1, "canceled": 0, "failed": 0, "canceling": 0,
        "group_progress_reports": [
            {"message": "Done", "code": "done", "total": 10, "done": 4, "suffix": None}
        ],
    }  # fmt: skip
    assert [task["state"] for task in tasks] == ["completed", "running", "waiting"]
    assert "logging_cid" not in tasks[0]


async def test_the_list_is_in_order_and_takes_any_parameter(
    app: FastAPI, http: httpx.AsyncClient, group: UUID
) -> None:
    await http.post(OWN, headers=ADMIN, json={"description": "second"})

    page = await http.get(GROUPS, headers=ADMIN, params={"nonsense": "x", "limit": "1"})
    rest = await http.get(page.json()["next"], headers=ADMIN)

    assert page.json()["count"] == 2
    assert page.json()["results"][0]["description"] == "Publish all"
    assert rest.json()["results"][0]["description"] == "second"


async def test_who_sees_a_group(app: FastAPI, http: httpx.AsyncClient, group: UUID) -> None:
    assert (await http.get(GROUPS, headers=BOB)).json()["count"] == 0
    assert (await http.get(f"{GROUPS}{group}/", headers=BOB)).status_code == 404
    assert (await http.get(GROUPS, headers=ADA)).json()["count"] == 1

    child = make_request(group_id=uuid4(), parent_id=uuid4(), username="bob")
    await http.post(OWN, headers=ADMIN, json={"id": str(child.group_id), "description": "x"})
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [child], now=utc_now())
    assert (await http.get(GROUPS, headers=BOB)).json()["count"] == 0


async def test_canceling_a_group_stops_every_member(http: httpx.AsyncClient, group: UUID) -> None:
    answer = await http.patch(f"{GROUPS}{group}/", headers=ADA, json={"state": "canceled"})

    assert answer.status_code == 200
    assert [task["state"] for task in answer.json()["tasks"]] == [
        "completed",
        "canceling",
        "canceled",
    ]
    assert answer.json()["all_tasks_dispatched"]
    again = await http.patch(f"{GROUPS}{group}/", headers=ADMIN, json={"state": "canceled"})
    assert again.status_code == 200


@pytest.mark.parametrize("body", [{}, {"state": "completed"}, {"state": None}])
async def test_a_group_can_only_be_canceled(
    http: httpx.AsyncClient, group: UUID, body: dict[str, Any]
) -> None:
    answer = await http.patch(f"{GROUPS}{group}/", headers=ADA, json=body)

    assert answer.status_code == 400
    assert "state" in answer.json()


async def test_canceling_needs_the_right_to_change_every_member(
    app: FastAPI, http: httpx.AsyncClient, group: UUID
) -> None:
    foreign = make_request(group_id=group, username="bob")
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [foreign], now=utc_now())

    for who in (ADA, BOB):
        answer = await http.patch(f"{GROUPS}{group}/", headers=who, json={"state": "canceled"})
        assert answer.status_code == 403
    shown = (await http.get(f"{GROUPS}{group}/", headers=ADMIN)).json()
    assert (shown["waiting"], shown["running"], shown["all_tasks_dispatched"]) == (2, 1, False)


async def test_only_services_and_administrators_make_groups(http: httpx.AsyncClient) -> None:
    assert (await http.post(OWN, headers=ADA, json={})).status_code == 403
    made = await http.post(OWN, headers=ADMIN, json={"description": "x"})
    ident = made.json()["id"]

    assert (await http.post(f"{OWN}{ident}/finish", headers=ADMIN)).status_code == 204
    assert (await http.get(f"{GROUPS}{ident}/", headers=ADMIN)).json()["all_tasks_dispatched"]
    assert (await http.post(f"{OWN}{uuid4()}/finish", headers=ADMIN)).status_code == 404


# Many at once: contract §9 P-21


async def test_many_tasks_are_stopped_by_a_filter(http: httpx.AsyncClient, group: UUID) -> None:
    answer = await http.post(CANCEL, headers=ADA, json={"group": str(group)})

    assert answer.status_code == 200
    states = sorted(task["state"] for task in answer.json()["tasks"])
    assert states == ["canceled", "canceling"]
    assert answer.json()["more"] is False


async def test_others_tasks_are_not_stopped(http: httpx.AsyncClient, group: UUID) -> None:
    members = (await http.get(f"{GROUPS}{group}/", headers=ADMIN)).json()["tasks"]
    named = [task["pulp_href"].rstrip("/").rpartition("/")[2] for task in members]

    answer = await http.post(CANCEL, headers=BOB, json={"tasks": named})

    assert answer.json()["tasks"] == []
    shown = (await http.get(f"{GROUPS}{group}/", headers=ADMIN)).json()
    assert (shown["running"], shown["waiting"]) == (1, 1)


async def test_all_tasks_are_never_meant_by_saying_nothing(http: httpx.AsyncClient) -> None:
    answer = await http.post(CANCEL, headers=ADMIN, json={})

    assert answer.status_code == 400
