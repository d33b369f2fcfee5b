"""From an upload to a downloaded archive, with locks, cancel and bad uploads between."""

import io
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.libraries.archive_reading import read_archive
from tests.journeys.conftest import (
    V2,
    Suite,
    ended,
    make_library,
    packed,
    packed_folder,
    show,
    start_import,
    until,
)

SAMPLE = Path(__file__).parents[2] / "samples" / "coast-and-sky"
PROBLEM = b'<problem display_name="One"/>'


def blocks(http: httpx.Client, library: str) -> int:
    count: int = http.get(f"{V2}/{library}/blocks/").json()["count"]
    return count


def test_import_publish_backup_download(suite: Suite, ada: httpx.Client, tmp_path: Path) -> None:
    library = make_library(ada, "life")

    imported = ended(ada, start_import(ada, library, packed_folder(SAMPLE)))
    assert (imported["state"], imported["completed_steps"]) == ("Succeeded", 62)
    assert blocks(ada, library) == 62
    assert ada.post(f"{V2}/{library}/commit/").json() == {}
    assert not ada.get(f"{V2}/{library}/").json()["has_unpublished_changes"]

    task = ada.post(f"{V2}/{library}/backup/").json()["task_id"]
    where = f"{V2}/{library}/backup/"
    states = set()

    def poll() -> dict[str, Any]:
        found: dict[str, Any] = ada.get(where, params={"task_id": task}).json()
        states.add(found["state"])
        return found

    found = until(poll, lambda found: found["state"] not in ("Pending", "Exporting"))
    assert states <= {"Pending", "Exporting", "Succeeded"}
    archive = httpx.get(found["url"], trust_env=False)
    assert archive.status_code == 200
    target = tmp_path / "archive.zip"
    target.write_bytes(archive.content)
    with read_archive(target) as contents:
        assert len(contents.entities) == 62
    with suite.as_("eve", staff=True) as eve:
        foreign = eve.get(where, params={"task_id": task})
        assert foreign.status_code == 404
        assert foreign.json() == {"detail": "No backup found for this library."}
    assert ada.get(where).json() == {"task_id": "This field is required."}
    assert ada.get(where, params={"task_id": str(uuid4())}).status_code == 404
    again = ended(ada, start_import(ada, library, packed_folder(SAMPLE)))
    assert again["state"] == "Succeeded"
    assert not ada.get(f"{V2}/{library}/").json()["has_unpublished_changes"]
    assert ada.delete(f"{V2}/{library}/").json() == {}
    assert ada.get(f"{V2}/{library}/").status_code == 404
    assert list((suite.folder / "objects").glob("content/*/*")) == []


def held(suite: Suite, library: str) -> str:
    """A task that holds the library's lock shared, on a queue nobody works."""
    task = str(uuid4())
    body = [{"id": task, "function": "hold", "queue": "credentials", "shared": [library]}]
    with suite.as_service() as service:
        assert service.post("/api/dispatcher/v1/tasks", json=body).status_code == 202
    return task


def release(suite: Suite, task: str) -> None:
    with suite.as_service() as service:
        service.post(f"/api/dispatcher/v1/tasks/{task}/cancel").raise_for_status()


def test_publishing_waits_for_the_lock_and_goes_on(suite: Suite, ada: httpx.Client) -> None:
    library = make_library(ada, "lock")
    ended(ada, start_import(ada, library, packed({"problem/one.xml": PROBLEM})))
    holder = held(suite, library)

    answer = ada.post(f"{V2}/{library}/commit/?wait=false")
    assert answer.status_code == 202
    task = answer.json()["task_id"]
    waiting = until(lambda: show(ada, task), lambda found: "state" in found)
    assert waiting["state"] == "Pending"
    pulp = ada.get(f"/pulp/api/v3/tasks/{task}/").json()
    assert (pulp["state"], pulp["unblocked_at"]) == ("waiting", None)
    assert ada.get(f"{V2}/{library}/").json()["has_unpublished_changes"]
    release(suite, holder)

    assert ended(ada, task)["state"] == "Succeeded"
    assert not ada.get(f"{V2}/{library}/").json()["has_unpublished_changes"]


def test_canceling_a_waiting_task_reaches_the_dispatcher(suite: Suite, ada: httpx.Client) -> None:
    library = make_library(ada, "cancel")
    holder = held(suite, library)
    task = ada.post(f"{V2}/{library}/commit/?wait=false").json()["task_id"]
    until(lambda: show(ada, task), lambda found: "state" in found)

    assert ada.post(f"/api/tasks/v0/tasks/{task}/cancel/").json()["state"] == "Canceled"

    pulp = until(
        lambda: ada.get(f"/pulp/api/v3/tasks/{task}/").json(),
        lambda found: found["state"] == "canceled",
    )
    assert (pulp["started_at"], pulp["error"]) == (None, None)
    release(suite, holder)


def test_canceling_at_the_dispatcher_shows_in_the_user_task(
    suite: Suite, ada: httpx.Client
) -> None:
    library = make_library(ada, "cancel2")
    holder = held(suite, library)
    task = ada.post(f"{V2}/{library}/commit/?wait=false").json()["task_id"]

    answer = ada.patch(f"/pulp/api/v3/tasks/{task}/", json={"state": "canceled"})

    assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
    assert ended(ada, task)["state"] == "Canceled"
    release(suite, holder)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


HOSTILE = {
    "bomb": zipped({"problem/one.xml": PROBLEM, "static/zeros": b"\x00" * 60_000_000}),
    "path": packed({"problem/one.xml": PROBLEM, "../../escape.xml": PROBLEM}),
    "absolute": packed({"problem/one.xml": PROBLEM, "/etc/escape.xml": PROBLEM}),
    "damaged": packed({"problem/one.xml": PROBLEM})[:-20],
    "nothing in it": packed({"readme.txt": b"hello"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_fails_with_a_report_and_leaves_nothing(
    suite: Suite, ada: httpx.Client, name: str
) -> None:
    library = make_library(ada, f"hostile-{abs(hash(name)) % 10**6}")

    task = start_import(ada, library, HOSTILE[name])

    status = ended(ada, task)
    assert status["state"] == "Failed"
    assert status["error"]["message"]
    found = ada.get(f"{V2}/{library}/import/", params={"task_id": task}).json()
    assert found["report"]
    assert blocks(ada, library) == 0
    assert list((suite.folder / "objects").glob("imports/*")) == []


@pytest.mark.parametrize("upload", [b"", b"not an archive at all", b"PK"])
def test_an_upload_that_is_no_archive_is_refused_at_once(
    suite: Suite, ada: httpx.Client, upload: bytes
) -> None:
    library = make_library(ada, f"refused-{len(upload)}")

    answer = ada.post(f"{V2}/{library}/import/", files={"file": ("a.zip", upload)})

    assert answer.status_code == 400
    assert ada.post(f"{V2}/{library}/import/").status_code == 400
    with suite.as_("nobody") as nobody:
        files = {"file": ("a.zip", upload)}
        assert nobody.post(f"{V2}/{library}/import/", files=files).status_code == 403


def test_one_bad_component_is_reported_and_the_others_come(suite: Suite, ada: httpx.Client) -> None:
    library = make_library(ada, "partly")
    archive = packed({"problem/one.xml": PROBLEM, "problem/two.xml": b"<problem>"})

    task = start_import(ada, library, archive)

    assert ended(ada, task)["state"] == "Succeeded"
    report = ada.get(f"{V2}/{library}/import/", params={"task_id": task}).json()["report"]
    assert "problem/two" in report
    assert blocks(ada, library) == 1
