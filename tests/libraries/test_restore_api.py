"""Restoring over HTTP: bodies, states, who sees what, and that a package is no library."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlmodel import col, select

from services.libraries import staged
from services.libraries.app import create_app
from services.libraries.models import Library, Version
from services.libraries.restoring import RestoreFailed
from services.libraries.settings import Settings
from services.user_tasks.errors import StatusUnknown
from shared.database import utc_now
from shared.testing import as_user, client, running
from tests.conftest import Servers
from tests.libraries.conftest import STAFF, V2
from tests.libraries.runs import Asked, files_in
from tests.libraries.test_archive import SAMPLE

ZIP = "application/zip"
EVE = as_user("eve", staff=True)


class UserTasks:
    """The user_tasks service, as far as it is asked how a task is."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.states, self.requests = asked, dict[str, str](), 0

    async def get(self, service: str, path: str, **params: Any) -> Any:
        self.requests += 1
        if params:
            known = [one for one in params["uuid"] if one in self.states]
            return {"results": [self.show(one) for one in known], "next": None}
        task_id = path.strip("/").rpartition("/")[2]
        if task_id not in self.states:
            raise StatusUnknown
        return self.show(task_id)

    def show(self, task_id: str) -> dict[str, Any]:
        progress: Any = self.asked.task.progress
        artifacts = [
            {
                "uuid": str(uuid4()), "name": one["name"], "file_name": one.get("file_name"),
                "file": f"http://x/{one['file']}" if "file" in one else "", "url": "",
                "size": one.get("size"), "text": one.get("text", ""),
                "created": utc_now().isoformat(),
            }
            for one in progress.artifacts
        ]  # fmt: skip
        state = self.states[task_id]
        return {
            "uuid": task_id, "user": "ines", "name": "x", "state": state, "base_state": state,
            "stage": None, "completed_steps": 0, "total_steps": 1, "attempts": 1,
            "task_class": "", "task_type": "", "parent": None, "error": None,
            "created": utc_now().isoformat(), "modified": utc_now().isoformat(),
            "started_at": None, "finished_at": utc_now().isoformat(), "artifacts": artifacts,
        }  # fmt: skip


class Person:
    """Calls the API, and runs what it asks for."""

    def __init__(self, http: httpx.AsyncClient, app: FastAPI) -> None:
        self.http, self.app = http, app
        self.asked = Asked(app)
        self.tasks = UserTasks(self.asked)
        app.state.clients = self.tasks

    async def send(
        self, data: bytes = b"", content_type: str = ZIP, headers: dict[str, str] = STAFF
    ) -> httpx.Response:
        files = {"file": ("a.zip", data or SAMPLE.read_bytes(), content_type)}
        return await self.http.post(f"{V2}/restore/", files=files, headers=headers)

    async def restored(self) -> str:
        task: str = (await self.send()).json()["task_id"]
        await self.asked.run()
        self.tasks.states[task] = "Succeeded"
        return task

    async def state(self, task: str, headers: dict[str, str] = STAFF) -> httpx.Response:
        params = {"task_id": task}
        return await self.http.get(f"{V2}/restore/", params=params, headers=headers)

    async def package(self) -> int:
        found = (await self.state(await self.restored())).json()
        package: int = found["result"]["learning_package_id"]
        return package

    async def create(self, headers: dict[str, str] = STAFF, **values: Any) -> httpx.Response:
        body = {"org": "CL-TEST", "slug": "back", "title": "Back", "description": "d"} | values
        return await self.http.post(f"{V2}/", json=body, headers=headers)

    async def get(self, path: str, **params: str) -> httpx.Response:
        return await self.http.get(f"{V2}/{path}", params=params, headers=STAFF)


@pytest_asyncio.fixture
async def person(http: httpx.AsyncClient, app: FastAPI) -> Person:
    return Person(http, app)


async def test_49_restoring_and_making_a_library(person: Person) -> None:
    task = (await person.send()).json()["task_id"]
    assert (await person.state(task)).json() == {
        "state": "Pending", "result": None, "error": None, "error_log": None,
    }  # fmt: skip
    [request] = await person.asked.waiting()
    assert request.user_task is not None
    assert request.user_task.name == (f"Library Learning Package Restore of library_restore/{task}")
    assert request.arguments == {"upload": f"library_restore/{task}"}
    await person.asked.run()
    person.tasks.states[task] = "Succeeded"

    found = (await person.state(task)).json()
    made = await person.create(learning_package=found["result"]["learning_package_id"])

    assert found["state"] == "Succeeded"
    assert found["result"]["created_by"].keys() == {"username", "email"}
    assert found["result"]["created_at"].endswith("Z")
    assert made.status_code == 200
    library = made.json()
    assert (library["id"], library["title"], library["num_blocks"]) == (
        "lib:CL-TEST:back", "Back", 11,
    )  # fmt: skip
    assert "learning_package" not in library
    shown = (await person.get("lib:CL-TEST:back/")).json()
    assert (shown["description"], shown["has_unpublished_changes"]) == ("d", True)
    blocks = (await person.get("lib:CL-TEST:back/blocks/")).json()
    assert blocks["count"] == 7
    async with person.app.state.database.sessions() as session:
        version = (
            await session.exec(
                select(Version).order_by(col(Version.id)).where(col(Version.title) == "Välkommen")
            )
        ).first()
    if version is not None:
        path = f"/library_assets/component_versions/{version.uuid}/static/map.png"
        assert (await person.http.get(path, headers=STAFF)).status_code == 200


async def test_50_a_text_fails_with_a_log(person: Person) -> None:
    task = (await person.send(b"hello")).json()["task_id"]
    with pytest.raises(RestoreFailed):
        await person.asked.run()
    person.tasks.states[task] = "Failed"

    found = (await person.state(task)).json()

    assert found["state"] == "Failed"
    assert found["result"] is None
    assert found["error"] == "Library restore failed. See error log for details."
    assert found["error_log"].endswith(f"{task}-error.log")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"file": ("a.zip", b"PK", "application/x-zip-compressed")}, "Only ZIP files are allowed."),
        ({"file": ("a.zip", b"PK", "application/zip; x=y")}, "Only ZIP files are allowed."),
        ({"other": ("a.zip", b"PK", ZIP)}, "No file was submitted."),
        ({"file": (None, b"text")}, "No file was submitted."),
    ],
)
async def test_51_what_is_no_zip_is_refused(
    person: Person, files: dict[str, Any], message: str
) -> None:
    before = await files_in(person.app.state.files, "library_restore")

    answer = await person.http.post(f"{V2}/restore/", files=files, headers=STAFF)

    assert (answer.status_code, answer.json()) == (400, {"file": [message]})
    assert await person.asked.waiting() == []
    assert await files_in(person.app.state.files, "library_restore") == before


async def test_uploads_have_a_limit(clean: Servers) -> None:
    async with running(create_app(Settings(max_upload_bytes=2000))) as app, client(app) as http:
        before = await files_in(app.state.files, "library_restore")
        answer = await http.post(
            f"{V2}/restore/", files={"file": ("a.zip", b"x" * 2001, ZIP)}, headers=STAFF
        )
        assert answer.status_code == 413
        assert await files_in(app.state.files, "library_restore") == before


async def test_who_may_restore_and_ask(person: Person) -> None:
    assert (await person.send(headers={})).status_code == 401
    assert (await person.send(headers=as_user("bob"))).status_code == 403
    task = await person.restored()

    assert (await person.state(task, EVE)).status_code == 404
    assert (await person.state(str(uuid4()))).status_code == 404
    assert (await person.state("x", {})).status_code == 401
    wrong = await person.state("x")
    assert (wrong.status_code, wrong.json()) == (400, {"task_id": ["Must be a valid UUID."]})
    without = await person.get("restore/")
    assert (without.status_code, without.json()) == (
        400, {"task_id": ["This field is required."]},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (9, 'Invalid pk "9" - object does not exist.'),
        (10**30, f'Invalid pk "{10**30}" - object does not exist.'),
        (-1, 'Invalid pk "-1" - object does not exist.'),
        ([], "Incorrect type. Expected pk value, received list."),
        (True, "Incorrect type. Expected pk value, received bool."),
        ("x", "Incorrect type. Expected pk value, received str."),
        (1.5, "Incorrect type. Expected pk value, received float."),
    ],
)
async def test_packages_that_are_none(person: Person, given: Any, message: str) -> None:
    answer = await person.create(learning_package=given)

    assert (answer.status_code, answer.json()) == (400, {"learning_package": [message]})
    assert (await person.get("lib:CL-TEST:back/")).status_code == 404


async def test_a_package_makes_one_library_of_its_restorer(person: Person) -> None:
    package = await person.package()
    message = {"learning_package": [f'Invalid pk "{package}" - object does not exist.']}
    await person.create(slug="taken")

    foreign = await person.create(headers=EVE, learning_package=package)
    taken = await person.create(slug="taken", learning_package=package)
    made = await person.create(learning_package=str(package))
    again = await person.create(slug="again", learning_package=package)

    assert (foreign.status_code, foreign.json()) == (400, message)
    assert taken.json() == {"slug": "A library with that ID already exists."}
    assert made.status_code == 200
    assert (again.status_code, again.json()) == (400, message)


async def test_a_library_is_no_package(person: Person) -> None:
    await person.create()
    async with person.app.state.database.sessions() as session:
        library = (await session.exec(select(Library))).one()

    answer = await person.create(slug="other", learning_package=library.id)

    assert answer.status_code == 400


async def test_a_package_is_in_no_list_and_under_no_key(person: Person) -> None:
    await person.package()
    async with person.app.state.database.sessions() as session:
        package = (await session.exec(select(Library))).one()
        version = (await session.exec(select(Version))).first()
    assert version is not None

    assert (await person.get("")).json() == []
    assert (await person.get("", text_search="lp-restore")).json() == []
    assert (await person.get("", org=staged.ORG)).json() == []
    assert (await person.get("", pagination="true")).json()["count"] == 0
    assert (await person.get(f"{package.key}/")).status_code == 404
    assert (await person.get("search/", q="")).json()["count"] == 0
    assert (await person.get(f"content/{version.uuid}/")).status_code == 404
    path = f"/library_assets/component_versions/{version.uuid}/static/map.png"
    assert (await person.http.get(path, headers=STAFF)).status_code == 404
    body = {"org": staged.ORG, "slug": "x", "title": "x", "description": ""}
    own = await person.http.post(f"{V2}/", json=body, headers=STAFF)
    assert own.status_code == 200


# Ours: lists, and giving up


async def test_restores_are_listed_until_they_are_libraries(person: Person) -> None:
    task = await person.restored()

    [listed] = (await person.get("restores/")).json()
    package = listed["learning_package"]
    await person.create(learning_package=package)

    assert (listed["task_id"], listed["kind"], listed["state"]) == (task, "restore", "Succeeded")
    assert listed["expires"] > (utc_now() + timedelta(hours=71)).isoformat()
    assert (await person.get("restores/")).json() == []
    [now] = (await person.get("lib:CL-TEST:back/backups/")).json()
    assert (now["task_id"], now["learning_package"], now["expires"]) == (task, None, None)
    assert (await person.http.get(f"{V2}/restores/", headers=EVE)).json() == []


async def test_backups_are_listed_newest_first_with_their_end(person: Person) -> None:
    await person.create()
    where = "lib:CL-TEST:back/backups/"
    tasks = []
    for _ in range(2):
        answer = await person.http.post(f"{V2}/lib:CL-TEST:back/backup/", headers=STAFF)
        tasks.append(answer.json()["task_id"])
        await person.asked.run()
    person.tasks.states[tasks[1]] = "Succeeded"

    before = person.tasks.requests
    listed = (await person.get(where)).json()

    assert person.tasks.requests == before + 1
    assert [one["task_id"] for one in listed] == tasks[::-1]
    assert [one["state"] for one in listed] == ["Succeeded", "Pending"]
    assert listed[0]["url"].startswith("http://x/user_tasks/")
    assert listed[0]["expires"] > (utc_now() + timedelta(days=29)).isoformat()
    assert (listed[1]["url"], listed[1]["expires"]) == (None, None)
    older = (await person.get(where, before=tasks[1])).json()
    assert [one["task_id"] for one in older] == tasks[:1]
    assert (await person.http.get(f"{V2}/{where}", headers=EVE)).json() == []


async def test_canceling_a_backup_asks_the_dispatcher(person: Person) -> None:
    await person.create()
    answer = await person.http.post(f"{V2}/lib:CL-TEST:back/backup/", headers=STAFF)
    path = f"{V2}/lib:CL-TEST:back/backups/{answer.json()['task_id']}/"
    await person.asked.forget()

    assert (await person.http.delete(path, headers=EVE)).status_code == 404
    assert await person.asked.notes() == []
    assert (await person.http.delete(path, headers=STAFF)).status_code == 204
    assert await person.asked.notes() == ["on_cancel_requested"]


async def test_giving_up_a_restore_removes_its_package(person: Person) -> None:
    task = await person.restored()
    params = {"task_id": task}

    foreign = await person.http.delete(f"{V2}/restore/", params=params, headers=EVE)
    assert foreign.status_code == 404
    assert await files_in(person.app.state.files, f"content/{task}") != []
    gone = await person.http.delete(f"{V2}/restore/", params=params, headers=STAFF)

    assert gone.status_code == 204
    assert await files_in(person.app.state.files, f"content/{task}") == []
    async with person.app.state.database.sessions() as session:
        assert await staged.find(session, UUID(task)) is None


async def test_giving_up_too_late_leaves_the_library(person: Person) -> None:
    task = await person.restored()
    [listed] = (await person.get("restores/")).json()
    await person.create(learning_package=listed["learning_package"])

    await person.http.delete(f"{V2}/restore/", params={"task_id": task}, headers=STAFF)

    assert (await person.get("lib:CL-TEST:back/")).json()["num_blocks"] == 11
    assert await files_in(person.app.state.files, f"content/{task}") != []
