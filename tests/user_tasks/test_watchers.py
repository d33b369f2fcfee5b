"""Sharing a task with others. contract: user_tasks §10"""

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from shared.testing import as_user
from tests.user_tasks.conftest import TASK, tell

OWNER, BOB, ROOT = as_user("ines"), as_user("bob"), as_user("root", superuser=True)
V1, V0 = f"/api/tasks/v1/tasks/{TASK}/", f"/api/tasks/v0/tasks/{TASK}/"
WATCH = f"{V1}watchers/bob/"


@pytest_asyncio.fixture
async def task(app: FastAPI) -> None:
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Pending", "In Progress", user="ines")


async def test_a_watcher_sees_but_changes_nothing(task: None, http: httpx.AsyncClient) -> None:
    assert (await http.get(V1, headers=BOB)).status_code == 404
    assert (await http.put(WATCH, headers=OWNER)).status_code == 204
    assert (await http.put(WATCH, headers=OWNER)).status_code == 204

    assert (await http.get(V1, headers=BOB)).status_code == 200
    assert (await http.get(f"{V1}watchers/", headers=OWNER)).json() == ["bob"]
    assert (await http.post(f"{V0}cancel/", headers=BOB)).status_code == 403
    assert (await http.delete(V0, headers=BOB)).status_code == 403
    assert (await http.get(f"{V1}watchers/", headers=BOB)).status_code == 403
    assert (await http.put(f"{V1}watchers/eve/", headers=BOB)).status_code == 403


async def test_what_is_watched_is_listed_on_request_only(
    task: None, http: httpx.AsyncClient
) -> None:
    await http.put(WATCH, headers=OWNER)

    own = await http.get("/api/tasks/v1/tasks/", headers=BOB)
    all_of_it = await http.get("/api/tasks/v1/tasks/", headers=BOB, params={"watched": "true"})
    compatible = await http.get("/api/tasks/v0/tasks/", headers=BOB)

    assert own.json()["results"] == []
    assert [row["uuid"] for row in all_of_it.json()["results"]] == [str(TASK)]
    assert compatible.json() == []


@pytest.mark.parametrize("who", [OWNER, BOB, ROOT])
async def test_a_watcher_can_be_removed(
    task: None, http: httpx.AsyncClient, who: dict[str, str]
) -> None:
    await http.put(WATCH, headers=OWNER)

    assert (await http.delete(WATCH, headers=who)).status_code == 204

    assert (await http.get(V1, headers=BOB)).status_code == 404


async def test_strangers_cannot_make_themselves_watchers(
    task: None, http: httpx.AsyncClient
) -> None:
    assert (await http.put(WATCH, headers=BOB)).status_code == 404
    assert (await http.put(f"{V1}watchers/b%00b/", headers=OWNER)).status_code in (400, 404)
