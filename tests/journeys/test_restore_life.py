"""Backup, restore and a killed worker, with real processes."""

import io
import time
import zipfile
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from tests.journeys.conftest import (
    V2,
    Suite,
    ended,
    make_library,
    packed_folder,
    start_import,
    until,
)
from tests.journeys.test_library_life import SAMPLE, zipped
from tests.libraries.large_archives import many
from tests.processes import kill

COUNTS = ("containers", "components", "collections", "sections", "subsections", "units")


def back_up(http: httpx.Client, library: str) -> bytes:
    task = http.post(f"{V2}/{library}/backup/").json()["task_id"]
    where = f"{V2}/{library}/backup/"

    def poll() -> dict[str, Any]:
        found: dict[str, Any] = http.get(where, params={"task_id": task}).json()
        return found

    found = until(poll, lambda found: found["state"] not in ("Pending", "Exporting"))
    return httpx.get(found["url"], trust_env=False).content


def start_restore(http: httpx.Client, archive: bytes) -> str:
    files = {"file": ("a.zip", archive, "application/zip")}
    answer = http.post(f"{V2}/restore/", files=files)
    assert answer.status_code == 200, answer.text
    task: str = answer.json()["task_id"]
    return task


def restored(http: httpx.Client, task: str, seconds: float = 60) -> dict[str, Any]:
    def poll() -> dict[str, Any]:
        found: dict[str, Any] = http.get(f"{V2}/restore/", params={"task_id": task}).json()
        return found

    words = ("Pending", "In Progress")
    found: dict[str, Any] = until(poll, lambda found: found["state"] not in words, seconds)
    return found


def test_48_49_50_what_was_backed_up_is_a_library_again(suite: Suite, ada: httpx.Client) -> None:
    library = make_library(ada, "origin")
    ended(ada, start_import(ada, library, packed_folder(SAMPLE)))
    ada.post(f"{V2}/{library}/commit/").raise_for_status()
    archive = back_up(ada, library)

    task = start_restore(ada, archive)
    found = restored(ada, task)

    assert (found["state"], found["error"], found["error_log"]) == ("Succeeded", None, None)
    assert {name: found["result"][name] for name in COUNTS} == {
        "containers": 0, "components": 62, "collections": 0, "sections": 0, "subsections": 0,
        "units": 0,
    }  # fmt: skip
    with suite.as_("eve", staff=True) as eve:
        assert eve.get(f"{V2}/restore/", params={"task_id": task}).status_code == 404
    body = {
        "org": "J", "slug": "again", "title": "Again", "description": "",
        "learning_package": found["result"]["learning_package_id"],
    }  # fmt: skip
    made = ada.post(f"{V2}/", json=body).json()
    assert (made["num_blocks"], made["has_unpublished_changes"]) == (62, False)
    assert files_of(back_up(ada, made["id"])) == files_of(archive)

    failed = restored(ada, start_restore(ada, b"hello"))
    assert failed["state"] == "Failed"
    assert failed["error"] == "Library restore failed. See error log for details."
    log = httpx.get(failed["error_log"], trust_env=False).text
    assert log.startswith("Errors encountered during restore:\n")
    assert list((suite.folder / "objects").glob("library_restore/*")) == []


def files_of(archive: bytes) -> dict[str, bytes]:
    opened = zipfile.ZipFile(io.BytesIO(archive))
    return {name: opened.read(name) for name in opened.namelist() if name != "package.toml"}


def stored(folder: Path) -> list[str]:
    """Whole files; a store that was killed leaves what it was writing under a name with #."""
    return [file.name for file in folder.glob("*") if "#" not in file.name]


def test_a_worker_killed_in_the_middle_leaves_one_package(suite: Suite, ada: httpx.Client) -> None:
    task = start_restore(ada, zipped(many(3000)))
    folder = suite.folder / "objects" / "content" / str(UUID(task))
    limit = time.monotonic() + 60
    while not (folder.exists() and any(folder.iterdir())):
        assert time.monotonic() < limit
        time.sleep(0.01)
    worker = suite.processes.running[-1]
    kill(worker)
    suite.processes.worker("worker", "services.libraries.worker")

    found = restored(ada, task, seconds=120)

    assert found["state"] == "Succeeded", found
    shown = ada.get(f"/api/tasks/v1/tasks/{task}/").json()
    assert shown["attempts"] == 2
    assert found["result"]["components"] == 3000
    listed = [one for one in ada.get(f"{V2}/restores/").json() if one["task_id"] == task]
    assert [one["state"] for one in listed] == ["Succeeded"]
    assert len(stored(folder)) == 3000
    assert list((suite.folder / "objects").glob("library_restore/*")) == []

    assert ada.delete(f"{V2}/restore/", params={"task_id": task}).status_code == 204
    assert stored(folder) == []
    assert ada.get(f"{V2}/restores/").json()[0]["learning_package"] is None
