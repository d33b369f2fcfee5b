"""Tasks over HTTP as Pulp's clients see them. contract: dispatcher §5"""

import re
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from services.dispatcher import runs
from services.dispatcher.schemas import FinishReport
from shared.callers import service_token
from shared.database import utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import make_request, register, start

ADMIN = as_user("root", superuser=True)
ADA = as_user("ada")
TASKS = "/pulp/api/v3/tasks/"
FULL = {
    "pulp_href", "prn", "pulp_created", "pulp_last_updated", "state", "name", "logging_cid",
    "created_by", "unblocked_at", "started_at", "finished_at", "error", "worker", "parent_task",
    "child_tasks", "task_group", "progress_reports", "created_resources",
    "created_resource_prns", "reserved_resources_record", "result", "pulp_api_version",
}  # fmt: skip
MINIMAL = {
    "pulp_href", "prn", "pulp_created", "pulp_last_updated", "pulp_api_version", "name", "state",
    "unblocked_at", "started_at", "finished_at", "worker",
}  # fmt: skip


@pytest_asyncio.fixture
async def tasks(app: FastAPI) -> dict[str, UUID]:
    """`holder` runs, `blocked` waits behind it, `done` has ended; `holder` is ada's."""
    holder = make_request(function="hold", exclusive=["lib:A:B"], username="ada")
    blocked = make_request(function="wait", shared=["lib:A:B"], parent_id=holder.id)
    done = make_request(function="end")
    async with app.state.database.sessions.begin() as session:
        await register(session, now=utc_now())
        await runs.accept(session, [holder, blocked, done], now=utc_now())
        await start(session, holder.id)
        fence = await start(session, done.id)
        assert fence is not None
        report = FinishReport(task_id=done.id, fence=fence, state="completed")
        await runs.finish(session, [report], now=utc_now())
    return {"holder": holder.id, "blocked": blocked.id, "done": done.id}


def names(answer: httpx.Response) -> list[str]:
    return [row["name"].partition(".")[2] for row in answer.json()["results"]]


async def test_a_task_has_exactly_the_fields_of_the_contract(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    body = (await http.get(f"{TASKS}{tasks['holder']}/", headers=ADMIN)).json()

    assert set(body) == FULL
    assert body["pulp_href"] == f"{TASKS}{tasks['holder']}/"
    assert body["prn"] == f"prn:core.task:{tasks['holder']}"
    assert (body["state"], body["worker"], body["pulp_api_version"]) == ("running", None, "v3")
    assert body["child_tasks"] == [f"{TASKS}{tasks['blocked']}/"]
    assert body["reserved_resources_record"][0] == "lib:A:B"
    assert body["created_by"] == "/pulp/api/v3/users/ada/"


async def test_the_list_is_newest_first_in_the_envelope(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    answer = await http.get(TASKS, params={"limit": 2}, headers=ADMIN)

    assert answer.status_code == 200
    assert answer.json()["count"] == 3
    assert names(answer) == ["end", "wait"]
    assert answer.json()["previous"] is None
    following = await http.get(answer.json()["next"], headers=ADMIN)
    assert names(following) == ["hold"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "waiting"}, ["wait"]),
        ({"state__in": "running,waiting"}, ["wait", "hold"]),
        ({"state__ne": "completed"}, ["wait", "hold"]),
        ({"name": "libraries.end"}, ["end"]),
        ({"name__contains": "ai"}, ["wait"]),
        ({"name": "unknown"}, []),
        ({"reserved_resources": "lib:A:B"}, ["wait", "hold"]),
        ({"exclusive_resources": "lib:A:B"}, ["hold"]),
        ({"shared_resources": "lib:A:B"}, ["wait"]),
        ({"shared_resources__in": "lib:A:B,other"}, []),
        ({"started_at__isnull": "true"}, ["wait"]),
        ({"pulp_created__gt": "2999-01-01T00:00:00Z"}, []),
        ({"worker": "anything"}, []),
        ({"ordering": "name"}, ["end", "hold", "wait"]),
        ({"ordering": "-name", "limit": "1"}, ["wait"]),
    ],
)
async def test_filters_and_ordering(
    http: httpx.AsyncClient, tasks: dict[str, UUID], query: dict[str, str], expected: list[str]
) -> None:
    answer = await http.get(TASKS, params=query, headers=ADMIN)

    assert answer.status_code == 200
    assert names(answer) == expected


async def test_children_are_found_by_their_parent(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    parent = await http.get(
        TASKS, params={"parent_task": f"{TASKS}{tasks['holder']}/"}, headers=ADMIN
    )
    child = await http.get(
        TASKS, params={"child_tasks": f"prn:core.task:{tasks['blocked']}"}, headers=ADMIN
    )

    assert (names(parent), names(child)) == (["wait"], ["hold"])


async def test_sparse_answers(http: httpx.AsyncClient, tasks: dict[str, UUID]) -> None:
    some = await http.get(TASKS, params={"fields": "name,state"}, headers=ADMIN)
    without = await http.get(TASKS, params={"exclude_fields": "error"}, headers=ADMIN)
    small = await http.get(TASKS, params={"minimal": "true"}, headers=ADMIN)

    assert set(some.json()["results"][0]) == {"name", "state"}
    assert set(without.json()["results"][0]) == FULL - {"error"}
    assert set(small.json()["results"][0]) == MINIMAL


@pytest.mark.parametrize(
    "query",
    [
        {"nonsense": "1"},
        {"state": "done"},
        {"limit": "0"},
        {"limit": "99999999999"},
        {"offset": "-1"},
        {"ordering": "secret"},
        {"started_at__lt": "yesterday-ish"},
        {"parent_task": "not-an-href"},
        {"name": "a\x00b"},
        {"minimal": "maybe"},
    ],
)
async def test_bad_queries_are_refused_by_name(
    http: httpx.AsyncClient, query: dict[str, str]
) -> None:
    answer = await http.get(TASKS, params=query, headers=ADMIN)

    assert answer.status_code == 400
    assert set(answer.json()) == set(query)


async def test_canceling_a_waiting_and_a_running_task(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    waiting = await cancel(http, tasks["blocked"])
    running = await cancel(http, tasks["holder"])
    again = await cancel(http, tasks["blocked"])

    assert (waiting.status_code, waiting.json()["state"]) == (200, "canceled")
    assert (running.status_code, running.json()["state"]) == (200, "canceling")
    assert (again.status_code, again.json()["state"]) == (200, "canceled")
    assert waiting.json()["created_by"] is None


async def test_an_ended_task_cannot_be_canceled_but_deleted(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    refused = await cancel(http, tasks["done"])

    assert (refused.status_code, refused.json()["state"]) == (409, "completed")
    assert (await http.delete(f"{TASKS}{tasks['done']}/", headers=ADMIN)).status_code == 204
    assert (await http.get(f"{TASKS}{tasks['done']}/", headers=ADMIN)).status_code == 404
    live = await http.delete(f"{TASKS}{tasks['holder']}/", headers=ADMIN)
    assert (live.status_code, live.content) == (409, b"")


@pytest.mark.parametrize("body", [{}, {"state": "completed"}, {"state": None}, {"state": ["x"]}])
async def test_a_patch_takes_only_canceled(
    http: httpx.AsyncClient, tasks: dict[str, UUID], body: dict[str, Any]
) -> None:
    answer = await http.patch(f"{TASKS}{tasks['holder']}/", json=body, headers=ADMIN)

    assert answer.status_code == 400
    assert "state" in answer.json()


async def test_unknown_and_malformed_ids_are_not_found(http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{TASKS}{uuid4()}/", headers=ADMIN)).status_code == 404
    assert (await http.get(f"{TASKS}nonsense/", headers=ADMIN)).status_code == 404
    assert (await cancel(http, uuid4())).status_code == 404


async def test_people_see_only_their_own_tasks(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    assert names(await http.get(TASKS, headers=ADA)) == ["hold"]
    assert (await http.get(f"{TASKS}{tasks['done']}/", headers=ADA)).status_code == 404
    assert (await http.get(f"{TASKS}{tasks['holder']}/", headers=ADA)).status_code == 200
    foreign = await http.patch(
        f"{TASKS}{tasks['blocked']}/", json={"state": "canceled"}, headers=ADA
    )
    assert foreign.status_code == 404


async def test_nobody_gets_in_without_a_valid_token(http: httpx.AsyncClient, app: FastAPI) -> None:
    forged = {"Authorization": as_user("root", superuser=True)["Authorization"][:-4] + "AAAA"}
    service = {"Authorization": f"Bearer {service_token(app.state.settings)}"}

    for headers in ({}, forged, {"Authorization": "JWT x.y.z"}, service):
        answer = await http.get(TASKS, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'JWT realm="api"'


async def test_people_cannot_use_the_services_door(http: httpx.AsyncClient) -> None:
    for headers in ({}, ADMIN):
        answer = await http.post("/api/dispatcher/v1/tasks", json=[], headers=headers)
        assert answer.status_code in (401, 403)


async def cancel(http: httpx.AsyncClient, task_id: UUID) -> httpx.Response:
    return await http.patch(f"{TASKS}{task_id}/", json={"state": "canceled"}, headers=ADMIN)


@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [
        ("tasks_list", "get", ""),
        ("tasks_purge", "post", "purge/"),
        ("tasks_read", "get", "{id}/"),
        ("tasks_cancel", "patch", "{id}/"),
        ("tasks_delete", "delete", "{id}/"),
        ("tasks_list_roles", "get", "{id}/list_roles/"),
        ("tasks_add_role", "post", "{id}/add_role/"),
        ("tasks_remove_role", "post", "{id}/remove_role/"),
        ("tasks_my_permissions", "get", "{id}/my_permissions/"),
        ("tasks_profile_artifacts", "get", "{id}/profile_artifacts/"),
    ],
)
async def test_operations_have_the_names_that_clients_look_up(
    app: FastAPI, operation: str, method: str, path: str
) -> None:
    paths = {
        re.sub(r"\{\w+\}", "{id}", known): item for known, item in app.openapi()["paths"].items()
    }

    assert paths[TASKS + path][method]["operationId"] == operation


async def test_there_is_no_other_way_to_write_tasks(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    for method, path in (("POST", TASKS), ("PUT", f"{TASKS}{tasks['done']}/"), ("DELETE", TASKS)):
        answer = await http.request(method, path, json={}, headers=ADMIN)
        assert answer.status_code == 405, (method, path)


async def test_a_name_of_a_user_is_quoted_in_an_address(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    request = make_request(username="a/b c@d")
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [request], now=utc_now())

    body = (await http.get(f"{TASKS}{request.id}/", headers=ADMIN)).json()

    assert body["created_by"] == "/pulp/api/v3/users/a%2Fb%20c@d/"
