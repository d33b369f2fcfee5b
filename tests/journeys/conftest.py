"""All services in one web process and a real libraries worker, as a person meets them."""

import asyncio
import io
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.dispatcher.settings import Settings
from shared.callers import service_token
from shared.testing import as_user, truncate_all
from tests.conftest import Servers
from tests.processes import Processes, free_port, processes

V2 = "/api/libraries/v2"
FINAL = {"Succeeded", "Failed", "Canceled"}


@dataclass
class Suite:
    """A running suite."""

    origin: str
    processes: Processes
    folder: Path

    def as_(self, username: str, **claims: Any) -> httpx.Client:
        return httpx.Client(
            base_url=self.origin,
            headers=as_user(username, **claims),
            timeout=30,
            trust_env=False,
        )

    def as_service(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {service_token(Settings())}"}
        return httpx.Client(base_url=self.origin, headers=headers, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def suite(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("suite")
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    environment = {
        "LYCEUM_ORIGIN_URL": origin,
        "LYCEUM_OBJECT_STORE": f"file://{folder / 'objects'}",
        "LYCEUM_WORKER_HEARTBEAT_SECONDS": "0.5",
        "LYCEUM_WORKER_SILENCE_SECONDS": "1.5",
        "LYCEUM_WORKER_GRACE_SECONDS": "2",
        "DISPATCHER_WORKER_TTL_SECONDS": "3",
        "DISPATCHER_SWEEP_SECONDS": "0.5",
        "LIBRARIES_WAIT_SECONDS": "5",
    }
    with processes(folder, environment) as started:
        started.web("web", "deploy.origin:create_app", port)
        started.worker("worker", "services.libraries.worker")
        yield Suite(origin, started, folder)
    for url in servers.urls.values():
        asyncio.run(truncate_all(url))


@pytest.fixture
def ada(suite: Suite) -> Iterator[httpx.Client]:
    with suite.as_("ada", staff=True) as http:
        yield http


def make_library(http: httpx.Client, slug: str) -> str:
    body = {"org": "J", "slug": slug, "title": slug, "description": ""}
    answer = http.post(f"{V2}/", json=body)
    assert answer.status_code == 200, answer.text
    key: str = answer.json()["id"]
    return key


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def packed_folder(folder: Path) -> bytes:
    return packed(
        {
            path.relative_to(folder.parent).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    )


def start_import(http: httpx.Client, library: str, archive: bytes) -> str:
    answer = http.post(f"{V2}/{library}/import/", files={"file": ("a.tar.gz", archive)})
    assert answer.status_code == 200, answer.text
    task: str = answer.json()["task_id"]
    return task


def ended(http: httpx.Client, task: str) -> dict[str, Any]:
    return until(lambda: show(http, task), lambda found: found.get("base_state") in FINAL)


def show(http: httpx.Client, task: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/api/tasks/v1/tasks/{task}/").json()
    return found


def until(ask: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 30) -> Any:
    """What `ask` answers once it is good."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = ask()
        if good(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {found}")
