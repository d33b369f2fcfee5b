"""Task groups and stopping many tasks at once. contract: dispatcher §1.3, §4.8, §5.4"""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import reports, runs
from services.dispatcher.schemas import GroupShareUpdate
from shared.callers import service_token
from shared.database import utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import accept, finish, make_request, ready, register, start
from tests.statements import statements

GROUPS = "/pulp/api/v3/task-groups/"
OWN = "/api/dispatcher/v1/task-groups/"
CANCEL = "/api/dispatcher/v1/tasks/cancel"
ROLES = "/api/dispatcher/v1/roles/task/"
TASKS = "/pulp/api/v3/tasks/"
ADMIN = as_user("root", superuser=True)
ADA, BOB = as_user("ada"), as_user("bob")


async def members(http: httpx.AsyncClient, group: UUID) -> list[UUID]:
    tasks = (await http.get(f"{GROUPS}{group}/", headers=ADMIN)).json()["tasks"]
    return [UUID(task["pulp_href"].rstrip("/").rpartition("/")[2]) for task in tasks]


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


async def test_viewers_of_all_tasks_see_all_groups(http: httpx.AsyncClient, group: UUID) -> None:
    """contract: dispatcher T-10"""
    await http.post(OWN, headers=ADMIN, json={"description": "without tasks"})
    role = {"role": "core.task_viewer", "users": ["bob"]}
    await http.post(f"{ROLES}add/", headers=ADMIN, json=role)

    shown = (await http.get(GROUPS, headers=BOB)).json()

    assert [row["pulp_href"] for row in shown["results"]] == [f"{GROUPS}{group}/"]
    assert (await http.get(GROUPS, headers=ADMIN)).json()["count"] == 2


async def test_one_visible_root_shows_its_group(http: httpx.AsyncClient, group: UUID) -> None:
    """contract: dispatcher T-10"""
    first, *_ = await members(http, group)
    role = {"role": "core.task_owner", "users": ["bob"]}
    await http.post(f"{TASKS}{first}/add_role/", headers=ADMIN, json=role)

    assert (await http.get(GROUPS, headers=BOB)).json()["count"] == 1
    cancel = await http.patch(f"{GROUPS}{group}/", headers=BOB, json={"state": "canceled"})
    assert cancel.status_code == 403


async def test_viewing_is_not_enough_to_cancel_and_owning_is(
    http: httpx.AsyncClient, group: UUID
) -> None:
    """contract: dispatcher T-12"""

    async def cancel() -> int:
        wanted = {"state": "canceled"}
        return (await http.patch(f"{GROUPS}{group}/", headers=BOB, json=wanted)).status_code

    await http.post(
        f"{ROLES}add/", headers=ADMIN, json={"role": "core.task_viewer", "users": ["bob"]}
    )
    assert await cancel() == 403
    await http.post(
        f"{ROLES}add/", headers=ADMIN, json={"role": "core.task_owner", "users": ["bob"]}
    )
    assert [await cancel(), await cancel()] == [200, 200]


async def test_tasks_that_come_after_the_cancel_are_not_canceled(
    app: FastAPI, http: httpx.AsyncClient, group: UUID
) -> None:
    """contract: dispatcher §4.8"""
    await http.patch(f"{GROUPS}{group}/", headers=ADMIN, json={"state": "canceled"})

    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [make_request(group_id=group)], now=utc_now())

    assert (await http.get(f"{GROUPS}{group}/", headers=ADMIN)).json()["waiting"] == 1


async def test_the_last_of_a_group_waits_for_a_member_that_waits(session: AsyncSession) -> None:
    """contract: dispatcher T-11"""
    group_id = uuid4()
    held = await accept(session, exclusive=["lock"])
    held_fence = await start(session, held)
    member = await accept(session, group_id=group_id, shared=["all"], exclusive=["lock"])
    last = await accept(session, group_id=group_id, exclusive=["all"])
    assert not await ready(session, last)

    assert held_fence is not None
    await finish(session, held, held_fence)
    member_fence = await start(session, member)
    assert member_fence is not None
    assert not await ready(session, last)
    await finish(session, member, member_fence)

    assert await ready(session, last)


async def test_the_cost_of_a_page_does_not_grow_with_it(
    app: FastAPI, http: httpx.AsyncClient, group: UUID
) -> None:
    async def cost(**query: str) -> int:
        with statements(app.state.database.engine) as seen:
            answer = await http.get(GROUPS, headers=ADMIN, params=query)
        assert answer.status_code == 200
        return len(seen)

    before = await cost(), await cost(fields="waiting")
    for _ in range(5):
        ident = (await http.post(OWN, headers=ADMIN, json={"description": "x"})).json()["id"]
        async with app.state.database.sessions.begin() as session:
            requests = [make_request(group_id=UUID(ident)) for _ in range(3)]
            await runs.accept(session, requests, now=utc_now())

    assert (await cost(), await cost(fields="waiting")) == before
    assert (await http.get(GROUPS, headers=ADMIN)).json()["count"] == 6


async def test_counts_are_the_same_without_the_list_of_tasks(
    http: httpx.AsyncClient, group: UUID
) -> None:
    whole = (await http.get(f"{GROUPS}{group}/", headers=ADA)).json()
    for query in ({"exclude_fields": "tasks"}, {"fields": ",".join(whole.keys() - {"tasks"})}):
        less = (await http.get(f"{GROUPS}{group}/", headers=ADA, params=query)).json()
        assert less == {name: value for name, value in whole.items() if name != "tasks"}


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


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"descripton": "x"}, "descripton"),
        ({"description": "a\x00"}, "description"),
        ({"description": "x" * 501}, "description"),
        ({"id": "x"}, "id"),
        ([], "non_field_errors"),
    ],
)
async def test_a_bad_group_is_refused_by_its_field(
    http: httpx.AsyncClient, body: Any, named: str
) -> None:
    answer = await http.post(OWN, headers=ADMIN, json=body)

    assert answer.status_code == 400
    assert named in answer.text
    assert (await http.get(GROUPS, headers=ADMIN)).json()["count"] == 0


async def test_making_a_group_again_changes_nothing(http: httpx.AsyncClient, group: UUID) -> None:
    again = {"id": str(group), "description": "Something else"}

    assert (await http.post(OWN, headers=ADMIN, json=again)).status_code == 201

    shown = (await http.get(f"{GROUPS}{group}/", headers=ADA)).json()
    assert shown["description"] == "Publish all"


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


async def test_each_named_task_gets_an_answer(
    app: FastAPI, http: httpx.AsyncClient, group: UUID
) -> None:
    """One that may not be stopped does not hold up the others."""
    done, runs_now, waits = await members(http, group)
    seen, unseen, unknown = make_request(username="bob"), make_request(username="bob"), uuid4()
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [seen, unseen], now=utc_now())
    role = {"role": "core.task_viewer", "users": ["ada"]}
    await http.post(f"{TASKS}{seen.id}/add_role/", headers=ADMIN, json=role)

    named = [str(ident) for ident in (waits, seen.id, unknown, unseen.id, done, runs_now, waits)]
    answer = await http.post(CANCEL, headers=ADA, json={"tasks": named})

    assert [(one["state"], one["outcome"]) for one in answer.json()["tasks"]] == [
        ("canceled", "canceled"),
        ("waiting", "forbidden"),
        (None, "unknown"),
        (None, "unknown"),
        ("completed", "ended"),
        ("canceling", "canceling"),
    ]
    assert answer.json()["tasks"][1]["task"] == f"{TASKS}{seen.id}/"
    assert (await http.get(f"{TASKS}{unseen.id}/", headers=BOB)).json()["state"] == "waiting"


async def test_only_what_is_described_is_stopped(
    app: FastAPI, http: httpx.AsyncClient, group: UUID
) -> None:
    other = make_request(username="ada", function="other")
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [other], now=utc_now())

    by_name = await http.post(CANCEL, headers=ADA, json={"name": "libraries.other"})
    waiting = await http.post(CANCEL, headers=ADA, json={"state": "waiting", "group": str(group)})
    foreign = await http.post(CANCEL, headers=BOB, json={"state": "running"})

    assert [one["task"] for one in by_name.json()["tasks"]] == [f"{TASKS}{other.id}/"]
    assert [one["outcome"] for one in waiting.json()["tasks"]] == ["canceled"]
    assert foreign.json() == {"tasks": [], "more": False}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"state": "waiting", "nmae": "libraries.noop"}, "nmae"),
        ({"name": "noop\x00"}, "name"),
        ({"state": "completed"}, "state"),
        ({"tasks": ["x"]}, "tasks"),
        ({"tasks": [str(UUID(int=n)) for n in range(10_001)]}, "tasks"),
        ({"tasks": [], "state": "waiting"}, "tasks"),
        ({"group": 7}, "group"),
        ([], "non_field_errors"),
    ],
)
async def test_what_is_not_understood_stops_nothing(
    http: httpx.AsyncClient, group: UUID, body: Any, named: str
) -> None:
    answer = await http.post(CANCEL, headers=ADMIN, json=body)

    assert answer.status_code == 400
    assert named in answer.text
    shown = (await http.get(f"{GROUPS}{group}/", headers=ADMIN)).json()
    assert (shown["running"], shown["waiting"]) == (1, 1)


async def test_all_tasks_are_never_meant_by_saying_nothing(http: httpx.AsyncClient) -> None:
    answer = await http.post(CANCEL, headers=ADMIN, json={})

    assert answer.status_code == 400
