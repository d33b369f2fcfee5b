"""Workers, the state of the whole, and the API's description. contract: dispatcher §5.6"""

from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from deploy.stores import free_port
from services.dispatcher import runs, workers
from services.dispatcher.schemas import Heartbeat
from shared.database import Database, utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import make_request, start

WORKERS = "/pulp/api/v3/workers/"
STATUS = "/pulp/api/v3/status/"
ADMIN = as_user("root", superuser=True)
BUSY, LOST, WEB = UUID(int=11), UUID(int=12), UUID(int=13)


@pytest_asyncio.fixture
async def busy_task(app: FastAPI) -> UUID:
    """A worker with a task, one that is late, and a web process."""
    request = make_request()
    async with app.state.database.sessions.begin() as session:
        for ident, name, kind, age in (
            (BUSY, "1@alpha", "worker", 0),
            (LOST, "1@beta", "worker", 15),
            (WEB, "1@web", "api", 0),
        ):
            report = Heartbeat.model_validate(
                {"name": name, "queue": "libraries", "app_type": kind, "first": True,
                 "versions": {"core": "1.0"}}
            )  # fmt: skip
            seen = utc_now() - timedelta(seconds=age)
            await workers.heartbeat(session, ident, report, now=seen)
        await runs.accept(session, [request], now=utc_now())
        await start(session, request.id, worker=BUSY)
    app.state.settings.worker_ttl_seconds = 10.0
    return request.id


async def found(http: httpx.AsyncClient, **query: Any) -> list[str]:
    answer = await http.get(WORKERS, headers=ADMIN, params=query)
    assert answer.status_code == 200, answer.text
    return sorted(row["name"] for row in answer.json()["results"])


async def test_a_worker_shows_what_it_runs(http: httpx.AsyncClient, busy_task: UUID) -> None:
    shown = (await http.get(f"{WORKERS}{BUSY}/", headers=ADMIN)).json()

    assert set(shown) == {
        "pulp_href", "prn", "pulp_created", "pulp_last_updated", "name", "last_heartbeat",
        "versions", "current_task",
    }  # fmt: skip
    assert shown["current_task"] == f"/pulp/api/v3/tasks/{busy_task}/"
    assert shown["versions"] == {"core": "1.0"}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, ["1@alpha", "1@beta"]),
        ({"name": "1@alpha"}, ["1@alpha"]),
        ({"name__in": "1@alpha,x"}, ["1@alpha"]),
        ({"name__icontains": "ALPHA"}, ["1@alpha"]),
        ({"name__iexact": "1@ALPHA"}, ["1@alpha"]),
        ({"name__startswith": "1@"}, ["1@alpha", "1@beta"]),
        ({"name__istartswith": "1@A"}, ["1@alpha"]),
        ({"name__regex": "^1@(alpha|gamma)$"}, ["1@alpha"]),
        ({"name__iregex": "BETA"}, ["1@beta"]),
        ({"online": "true"}, ["1@alpha"]),
        ({"online": "false"}, ["1@beta"]),
        ({"missing": "true"}, ["1@beta"]),
        ({"last_heartbeat__gt": "2100-01-01"}, []),
    ],
)
async def test_workers_are_found(
    http: httpx.AsyncClient, busy_task: UUID, query: dict[str, str], names: list[str]
) -> None:
    assert await found(http, **query) == names


@pytest.mark.parametrize(
    "pattern", ["(", r"(a)\1", "a" * 201, "a{300}", "(?P<x>a)", "[[:no:]]", "((a{250}){250}){250}"]
)
async def test_a_pattern_that_cannot_be_used_is_refused(
    http: httpx.AsyncClient, pattern: str
) -> None:
    answer = await http.get(WORKERS, headers=ADMIN, params={"name__regex": pattern})

    assert answer.status_code == 400
    assert list(answer.json()) == ["name__regex"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"last_heartbeat__gt": "9999-12-31T23:59:59-23:59"}, "last_heartbeat__gt"),
        ({"last_heartbeat": "0001-01-01T00:00:00+23:59"}, "last_heartbeat"),
        ({"last_heartbeat__range": "2026-01-01"}, "last_heartbeat__range"),
        ({"last_heartbeat__isnull": "x"}, "last_heartbeat__isnull"),
        ({"online": "maybe"}, "online"),
        ({"missing": ""}, "missing"),
        ({"name": "a\x00"}, "name"),
        ({"state": "running"}, "state"),
        ({"ordering": "queue"}, "ordering"),
        ({"limit": "9" * 30}, "limit"),
        ({"prn__in": "prn:core.task:1"}, "prn__in"),
        ({"q": "online=true AND name__regex='a{300}'"}, "q"),
    ],
)
async def test_a_bad_question_is_refused_by_its_name(
    http: httpx.AsyncClient, busy_task: UUID, query: dict[str, str], field: str
) -> None:
    answer = await http.get(WORKERS, headers=ADMIN, params=query)

    assert answer.status_code == 400
    assert list(answer.json()) == [field]


async def test_workers_are_for_administrators_and_cannot_be_written(
    http: httpx.AsyncClient, busy_task: UUID
) -> None:
    assert (await http.get(WORKERS, headers=as_user("ada"))).status_code == 403
    assert (await http.get(f"{WORKERS}{WEB}/", headers=ADMIN)).status_code == 404
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await http.request(method, f"{WORKERS}{BUSY}/", headers=ADMIN)
        assert answer.status_code == 405


async def test_the_status_is_open_to_everyone(http: httpx.AsyncClient, busy_task: UUID) -> None:
    status = (await http.get(STATUS)).json()

    assert [row["name"] for row in status["online_workers"]] == ["1@alpha"]
    assert [row["name"] for row in status["online_api_apps"]] == ["1@web"]
    assert status["database_connection"] == {"connected": True}
    assert status["redis_connection"] == {"connected": True}
    assert status["domain_enabled"] is False
    assert status["storage"]["total"] >= status["storage"]["free"] > 0


async def test_the_status_tells_that_the_database_is_away(
    app: FastAPI, http: httpx.AsyncClient, busy_task: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    monkeypatch.setattr(app.state, "database", away)

    answer = await http.get(STATUS)

    assert answer.status_code == 200
    assert answer.json()["database_connection"] == {"connected": False}
    assert answer.json()["online_workers"] == []
    await away.close()


async def test_the_description_takes_the_parameters_of_makers_of_bindings(
    http: httpx.AsyncClient,
) -> None:
    plain = await http.get("/pulp/api/v3/docs/api.json")
    asked = await http.get("/pulp/api/v3/docs/api.json?bindings&component=core&pk_path=1")

    assert asked.json() == plain.json()
    assert all(path.startswith(("/pulp/api/v3/", "{")) for path in asked.json()["paths"])


async def test_the_description_names_things_by_their_address(http: httpx.AsyncClient) -> None:
    document = (await http.get("/pulp/api/v3/docs/api.json")).json()

    operations = {
        operation["operationId"]: path
        for path, item in document["paths"].items()
        for operation in item.values()
    }
    assert operations["tasks_read"] == "{task_href}"
    assert operations["tasks_profile_artifacts"] == "{task_href}profile_artifacts/"
    assert operations["task_groups_cancel"] == "{task_group_href}"
    assert operations["task_schedules_list"] == "/pulp/api/v3/task-schedules/"
    assert operations["workers_list"] == WORKERS
    assert document["info"]["x-pulp-app-versions"]["core"]
