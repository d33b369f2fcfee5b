"""Who may see and do what. contract: dispatcher §5.3"""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import event, text
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import roles, runs, searching
from services.dispatcher.models import RoleGrant
from shared.callers import Caller
from shared.database import utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import NOON, accept, make_request

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


ACTIONS = {
    "read": ("GET", "", None),
    "my_permissions": ("GET", "my_permissions/", None),
    "profile_artifacts": ("GET", "profile_artifacts/", None),
    "list_roles": ("GET", "list_roles/", None),
    "add_role": ("POST", "add_role/", {"role": "core.task_viewer", "users": ["x"]}),
    "remove_role": ("POST", "remove_role/", {"role": "core.task_viewer", "users": ["x"]}),
    "cancel": ("PATCH", "", {"state": "canceled"}),
    "delete": ("DELETE", "", None),
}
SEEING = {"read", "my_permissions"}


@pytest.mark.parametrize("everywhere", [False, True], ids=["on one task", "on all tasks"])
@pytest.mark.parametrize("as_group", [False, True], ids=["as a user", "in a group"])
@pytest.mark.parametrize(
    ("role", "allowed", "visible"),
    [
        ("core.task_owner", set(ACTIONS), True),
        ("core.task_viewer", SEEING, True),
        (None, set(), False),
    ],
)
async def test_each_role_allows_what_the_contract_says(
    http: httpx.AsyncClient, task: str, role: str | None, allowed: set[str], visible: bool,
    as_group: bool, everywhere: bool,
) -> None:  # fmt: skip
    if role is not None:
        body = {"role": role} | ({"groups": ["staff"]} if as_group else {"users": ["tom"]})
        path = f"{OWN}/task/add/" if everywhere else f"{task}add_role/"
        assert (await http.post(path, headers=ADMIN, json=body)).status_code == 201

    for action, (method, path, body) in ACTIONS.items():
        answer = await http.request(method, task + path, headers=TEAM, json=body)
        if action in allowed:
            assert answer.status_code in (200, 201, 204), action
        else:
            assert answer.status_code == (403 if visible else 404), action


async def test_an_administrator_may_do_everything(http: httpx.AsyncClient, task: str) -> None:
    for who in (as_user("root", superuser=True), as_user("helper", staff=True)):
        permissions = (await http.get(f"{task}my_permissions/", headers=who)).json()
        assert len(permissions["permissions"]) == 6
        assert await seen(http, who) == 2


async def test_the_dispatchers_own_mark_alone_shows_nothing(
    http: httpx.AsyncClient, task: str
) -> None:
    await http.post(
        f"{task}remove_role/", headers=ADMIN, json={"role": "core.task_owner", "users": ["ada"]}
    )

    listed = (await http.get(f"{task}list_roles/", headers=ADMIN)).json()

    assert listed == {
        "roles": [{"role": "core.task_user_dispatcher", "users": ["ada"], "groups": []}]
    }
    assert await seen(http, ADA) == 0


async def test_a_refused_action_changes_nothing(http: httpx.AsyncClient, task: str) -> None:
    await give(http, task, "core.task_viewer", users=["bob"])
    before = (await http.get(task, headers=ADMIN)).json()

    await http.patch(task, headers=BOB, json={"state": "canceled"})
    await http.delete(task, headers=BOB)
    await http.post(
        f"{task}add_role/", headers=BOB, json={"role": "core.task_owner", "users": ["bob"]}
    )
    await http.post(
        f"{task}remove_role/", headers=BOB, json={"role": "core.task_owner", "users": ["ada"]}
    )

    assert (await http.get(task, headers=ADMIN)).json() == before
    assert (await http.patch(task, headers=BOB, json={"state": "canceled"})).status_code == 403


async def test_a_group_that_no_store_could_hold_is_no_group(
    http: httpx.AsyncClient, task: str
) -> None:
    await give(http, task, "core.task_viewer", groups=["staff"])

    assert await seen(http, as_user("tom", groups=["a\x00b", "staff"])) == 1


async def test_roles_on_all_tasks_are_for_administrators_to_give(
    http: httpx.AsyncClient, task: str
) -> None:
    body = {"role": "core.task_owner", "users": ["ada"]}
    for method, path, sent in (
        ("GET", f"{OWN}/task/", None),
        ("POST", f"{OWN}/task/add/", body),
        ("POST", f"{OWN}/task/remove/", body),
    ):
        answer = await http.request(method, path, headers=ADA, json=sent)
        assert answer.status_code == 403
        assert (await http.request(method, path, json=sent)).status_code == 401
    unknown = await http.post(f"{OWN}/nonsense/add/", headers=ADMIN, json=body)
    assert unknown.status_code == 404


async def test_roles_go_with_their_task(app: FastAPI, http: httpx.AsyncClient, task: str) -> None:
    await give(http, task, "core.task_viewer", users=["bob"])
    await http.patch(task, headers=ADA, json={"state": "canceled"})

    assert (await http.delete(task, headers=ADA)).status_code == 204

    async with app.state.database.sessions() as session:
        assert (await session.exec(select(RoleGrant))).all() == []


async def found(session: AsyncSession, caller: Caller) -> tuple[set[UUID], int]:
    search = searching.TASKS.parse([])
    page, count, _ = await searching.find(session, search, caller=caller)
    return {task.id for task in page}, count


async def test_what_is_seen_is_what_is_owned_and_what_was_given(session: AsyncSession) -> None:
    own = await accept(session, username="tom")
    given = await accept(session, username="ada")
    shared = await accept(session, username="ada")
    await accept(session, username="ada")
    for task, holders in ((given, {"users": ["tom"]}), (shared, {"groups": ["staff"]})):
        await grant(session, task, **holders)
    # Also what is his twice is seen once.
    await grant(session, own, users=["tom"], groups=["staff"])

    assert await found(session, Caller("tom", groups=("staff",))) == ({own, given, shared}, 3)
    assert await found(session, Caller("tom")) == ({own, given}, 2)
    assert await found(session, Caller("eve", groups=("staff",))) == ({own, shared}, 2)
    assert await found(session, Caller("eve")) == (set(), 0)


async def grant(
    session: AsyncSession, task: UUID, *, users: list[str] | None = None,
    groups: list[str] | None = None,
) -> None:  # fmt: skip
    await roles.grant(
        session, kind=roles.TASK, object_id=task, role="core.task_viewer", users=users or [],
        groups=groups or [], now=NOON,
    )  # fmt: skip


async def test_any_number_of_given_roles_costs_the_same_statements(session: AsyncSession) -> None:
    task = await accept(session, username="ada")
    await grant(session, task, users=["bob"])
    statements: list[str] = []
    connection = await session.connection()

    def note(_: Any, __: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    event.listen(connection.sync_connection, "before_cursor_execute", note)
    assert await found(session, Caller("bob")) == ({task}, 1)
    few = len(statements)
    await connection.execute(
        text("""
        insert into rolegrant (id, role, username, object_kind, object_id, created_at)
        select gen_random_uuid(), 'core.task_viewer', 'bob', 'task', gen_random_uuid(), now()
        from generate_series(1, 40000)""")
    )
    statements.clear()

    assert await found(session, Caller("bob")) == ({task}, 1)
    assert len(statements) == few
