"""Who may see and do what. contract: dispatcher §5.3"""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from services.dispatcher import runs
from shared.database import utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import make_request

TASKS = "/pulp/api/v3/tasks/"
ADMIN = as_user("root", superuser=True)
ADA, BOB, EVE = as_user("ada"), as_user("bob"), as_user("eve")
TEAM = as_user("tom", groups=["staff"])
OWN = "/api/dispatcher/v1/roles"


@pytest_asyncio.fixture
async def task(app: FastAPI) -> str:
    request = make_request(username="ada", exclusive=["a"])
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [request, make_request(username="eve")], now=utc_now())
    return f"{TASKS}{request.id}/"


async def seen(http: httpx.AsyncClient, who: dict[str, str]) -> int:
    return int((await http.get(TASKS, headers=who)).json()["count"])


async def give(http: httpx.AsyncClient, task: str, role: str, **holders: Any) -> httpx.Response:
    return await http.post(f"{task}add_role/", headers=ADA, json={"role": role} | holders)


async def test_without_a_role_a_task_is_not_there(http: httpx.AsyncClient, task: str) -> None:
    for method, path in (
        ("GET", task),
        ("PATCH", task),
        ("DELETE", task),
        ("GET", f"{task}my_permissions/"),
        ("GET", f"{task}list_roles/"),
        ("GET", f"{task}profile_artifacts/"),
    ):
        body = {"state": "canceled"} if method == "PATCH" else None
        answer = await http.request(method, path, headers=BOB, json=body)
        assert answer.status_code == 404, (method, path)
    assert await seen(http, BOB) == 0


async def test_the_creator_owns_it(http: httpx.AsyncClient, task: str) -> None:
    answer = await http.get(f"{task}my_permissions/", headers=ADA)
    listed = await http.get(f"{task}list_roles/", headers=ADA)

    assert set(answer.json()["permissions"]) == {
        "core.add_task", "core.view_task", "core.change_task", "core.delete_task",
        "core.manage_roles_task", "core.view_task_profile_artifacts",
    }  # fmt: skip
    assert listed.json() == {
        "roles": [
            {"role": "core.task_owner", "users": ["ada"], "groups": []},
            {"role": "core.task_user_dispatcher", "users": ["ada"], "groups": []},
        ]
    }


async def test_a_viewer_sees_it_and_nothing_else(http: httpx.AsyncClient, task: str) -> None:
    assert (await give(http, task, "core.task_viewer", users=["bob"])).status_code == 201

    assert await seen(http, BOB) == 1
    assert (await http.get(task, headers=BOB)).status_code == 200
    cancel = await http.patch(task, headers=BOB, json={"state": "canceled"})
    assert cancel.status_code == 403
    assert (await http.delete(task, headers=BOB)).status_code == 403
    assert (await http.get(f"{task}list_roles/", headers=BOB)).status_code == 403
    assert (await http.get(f"{task}profile_artifacts/", headers=BOB)).status_code == 403
    assert await seen(http, EVE) == 1


async def test_a_role_of_a_group_is_its_members(http: httpx.AsyncClient, task: str) -> None:
    await give(http, task, "core.task_owner", groups=["staff"])

    cancel = await http.patch(task, headers=TEAM, json={"state": "canceled"})

    assert cancel.status_code == 200
    assert (await http.get(task, headers=as_user("tom"))).status_code == 404


async def test_a_role_taken_away_is_gone_also_the_creators(
    http: httpx.AsyncClient, task: str
) -> None:
    await give(http, task, "core.task_owner", users=["bob"])

    for who in ("bob", "ada"):
        answer = await http.post(
            f"{task}remove_role/", headers=ADMIN, json={"role": "core.task_owner", "users": [who]}
        )
        assert answer.status_code == 201
        assert (await http.get(task, headers=as_user(who))).status_code == 404


async def test_a_role_on_all_tasks(http: httpx.AsyncClient, task: str) -> None:
    viewer = {"role": "core.task_viewer", "users": ["bob"]}
    assert (await http.post(f"{OWN}/task/add/", headers=BOB, json=viewer)).status_code == 403
    assert (await http.post(f"{OWN}/task/add/", headers=ADMIN, json=viewer)).status_code == 201

    assert await seen(http, BOB) == 2
    listed = await http.get(f"{OWN}/task/", headers=ADMIN)
    assert listed.json() == [{"role": "core.task_viewer", "users": ["bob"], "groups": []}]

    await http.post(f"{OWN}/task/remove/", headers=ADMIN, json=viewer)
    assert await seen(http, BOB) == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "core.task_user_dispatcher", "users": ["bob"]}, "role"),
        ({"role": "core.taskschedule_owner", "users": ["bob"]}, "role"),
        ({"role": "nonsense", "users": ["bob"]}, "role"),
        ({"role": "core.task_viewer"}, "non_field_errors"),
        ({"users": ["bob"]}, "role"),
        ({"role": "core.task_viewer", "users": ["b\x00b"]}, "users"),
    ],
)
async def test_what_cannot_be_given_is_refused(
    http: httpx.AsyncClient, task: str, body: dict[str, Any], field: str
) -> None:
    answer = await http.post(f"{task}add_role/", headers=ADA, json=body)

    assert answer.status_code == 400
    assert field in str(answer.json())


async def test_giving_a_role_twice_gives_it_once(http: httpx.AsyncClient, task: str) -> None:
    for _ in range(2):
        await give(http, task, "core.task_viewer", users=["bob"])

    roles = (await http.get(f"{task}list_roles/", headers=ADA)).json()["roles"]
    assert {"role": "core.task_viewer", "users": ["bob"], "groups": []} in roles


async def test_only_a_known_caller_is_asked(http: httpx.AsyncClient, task: str) -> None:
    assert (await http.get(TASKS)).status_code == 401
    assert (await http.get(f"{TASKS}{uuid4()}/", headers=ADMIN)).status_code == 404
    assert (await http.get(f"{TASKS}not-an-id/", headers=ADMIN)).status_code == 404
    assert UUID(task.removeprefix(TASKS).strip("/"))
