"""Workers that are killed in the middle of an import and of a backup, with real processes."""

import io
import zipfile

import httpx

from tests.journeys.conftest import V2, Suite, ended, make_library, packed, start_import, until
from tests.processes import kill

COUNT = 1500


def components(count: int) -> dict[str, bytes]:
    """A library of many components, each with a file, that takes a while to import."""
    files = {f"html/n{number}.xml": f"<html>{number}</html>".encode() for number in range(count)}
    return {f"many/{name}": data for name, data in files.items()}


def lose_worker(suite: Suite, http: httpx.Client, task: str) -> None:
    """Kill the worker while it works on this task, and start another."""
    until(
        lambda: http.get(f"/api/tasks/v1/tasks/{task}/").json(),
        lambda found: found.get("base_state") == "In Progress" or found.get("completed_steps"),
    )
    kill(suite.processes.running[-1])
    suite.processes.worker("worker", "services.libraries.worker")


def count(http: httpx.Client, library: str) -> int:
    found: int = http.get(f"{V2}/{library}/blocks/").json()["count"]
    return found


def test_an_import_whose_worker_is_killed_comes_whole(suite: Suite, ada: httpx.Client) -> None:
    library = make_library(ada, "lost-import")
    task = start_import(ada, library, packed(components(COUNT)))

    lose_worker(suite, ada, task)

    shown = ended(ada, task)
    assert (shown["base_state"], shown["attempts"]) == ("Succeeded", 2)
    assert count(ada, library) == COUNT


def test_a_backup_whose_worker_is_killed_is_written_again(suite: Suite, ada: httpx.Client) -> None:
    library = make_library(ada, "lost-backup")
    ended(ada, start_import(ada, library, packed(components(COUNT))))
    task = ada.post(f"{V2}/{library}/backup/").json()["task_id"]

    lose_worker(suite, ada, task)

    shown = ended(ada, task)
    assert (shown["base_state"], shown["attempts"]) == ("Succeeded", 2)
    found = ada.get(f"{V2}/{library}/backup/", params={"task_id": task}).json()
    archive = zipfile.ZipFile(io.BytesIO(httpx.get(found["url"], trust_env=False).content))
    assert archive.testzip() is None
    texts = [name for name in archive.namelist() if name.endswith("block.xml")]
    assert len(texts) == COUNT


def test_6_a_library_is_gone_with_all_that_was_in_it(suite: Suite, ada: httpx.Client) -> None:
    library = make_library(ada, "goes")
    ended(ada, start_import(ada, library, packed(components(20))))
    ada.post(f"{V2}/{library}/commit/").raise_for_status()

    answer = ada.delete(f"{V2}/{library}/")

    assert (answer.status_code, answer.json()) == (200, {})
    assert ada.get(f"{V2}/{library}/").status_code == 404
    assert ada.delete(f"{V2}/{library}/").status_code == 404
    assert make_library(ada, "goes") == library
    assert count(ada, library) == 0
