"""The page for people, in a real browser. contract: user_tasks §10"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from services.user_tasks.schemas import ContainerSpec
from services.user_tasks.settings import Settings
from shared.callers import make_token, service_token
from shared.database import utc_now
from shared.testing import SECRET
from tests.browser import Page, browser, installed
from tests.conftest import Servers
from tests.processes import free_port, processes

pytestmark = pytest.mark.skipif(installed() is None, reason="no chromium is installed")
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture
def origin(clean: Servers, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    found = f"http://127.0.0.1:{port}"
    with processes(tmp_path, {"LYCEUM_ORIGIN_URL": found}) as started:
        started.web("web", "services.user_tasks.app:create_app", port)
        yield found


@pytest_asyncio.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path) as page:
        yield page


@pytest_asyncio.fixture
async def work(origin: str) -> AsyncIterator["Work"]:
    found = Work(origin)
    yield found
    await found.http.aclose()


class Work:
    """Tells the service of tasks, as the dispatcher and workers do."""

    def __init__(self, origin: str) -> None:
        headers = {"Authorization": f"Bearer {service_token(Settings())}"}
        self.http = httpx.AsyncClient(base_url=origin, headers=headers, trust_env=False)

    async def _tell(self, name: str, payload: dict[str, Any]) -> None:
        answer = await self.http.post(
            "/user_tasks/notes", json={"notes": [{"id": 1, "name": name, "payload": payload}]}
        )
        assert answer.json() == {"refused": {}}, answer.text

    async def state(
        self, task: UUID, state: str, name: str = "Export of CS101", **more: Any
    ) -> None:
        payload = {
            "task_id": str(task), "state": state, "at": utc_now().isoformat(), "user": "ada",
            "name": name, "task_class": "libraries.backup", "total_steps": 40, **more,
        }  # fmt: skip
        await self._tell("on_lifecycle", payload)

    async def progress(self, task: UUID, completed: int, stage: str) -> None:
        payload = {
            "task_id": str(task), "attempt": 1, "at": utc_now().isoformat(),
            "completed_steps": completed, "stage": stage,
        }  # fmt: skip
        await self._tell("on_progress", payload)

    async def artifact(self, task: UUID, **values: Any) -> None:
        payload = {"artifact_id": str(uuid4()), "task_id": str(task), "at": utc_now().isoformat()}
        await self._tell("on_artifact", payload | values)


def text(task: UUID, part: str) -> str:
    return f"(document.querySelector('[data-task=\"{task}\"] {part}') || {{}}).textContent"


def bar(task: UUID) -> str:
    return f"document.querySelector('[data-task=\"{task}\"] progress').value"


async def shot(page: Page, name: str) -> None:
    if SCREENSHOTS:
        await page.screenshot(Path(SCREENSHOTS) / f"{name}.png")


async def test_a_person_follows_and_cancels_tasks(origin: str, page: Page, work: "Work") -> None:
    one, two = uuid4(), uuid4()
    await work.state(one, "In Progress")
    await work.state(two, "In Progress", "Backup of <b>lib:Fjord:BIRDS</b>")
    token = make_token(SECRET, "ada")

    await page.go(f"{origin}/tasks/#token={token}", width=360, height=740)
    await page.until("document.querySelectorAll('.task').length === 2")
    assert await page.value("location.hash") == ""
    form = "getComputedStyle(document.getElementById('enter')).display"
    assert await page.value(form) == "none"
    # What tasks are called is text, whatever is written in it.
    assert await page.value(text(two, "h2")) == "Backup of <b>lib:Fjord:BIRDS</b>"

    await page.until("document.getElementById('connection').textContent === 'Live'")
    await work.progress(one, 10, "Zipping")
    await page.until(f"{bar(one)} === 0.25")
    assert await page.value(text(one, ".state")) == "Zipping"
    await work.progress(one, 20, "Zipping")
    await page.until(f"{bar(one)} === 0.5")
    await page.until(f"/left|done/.test({text(one, '.detail')})")
    await shot(page, "tasks-running-360")

    await page.value(f"document.querySelector('[data-task=\"{two}\"] .cancel').click()")
    await page.until(f"{text(two, '.state')} === 'Canceled'")

    await work.artifact(one, name="Output", file="a/b.zip", file_name="birds.zip", size=81234567)
    await work.artifact(one, name="Import report", text="62 components, 3 left out")
    await work.state(one, "Succeeded")
    await page.until(f"{text(one, '.state')} === 'Succeeded'")
    link = await page.until(
        f"(document.querySelector('[data-task=\"{one}\"] .artifacts a') || {{}}).href"
    )
    assert "signature=" in link
    new = uuid4()
    await work.state(new, "Failed", "Import", error={"code": "x", "message": "No such archive."})
    await page.until(f"{text(new, '.error')} === 'No such archive.'")

    overflow = "document.documentElement.scrollWidth <= window.innerWidth"
    assert await page.value(overflow), "the page is wider than a phone"
    await shot(page, "tasks-ended-360")
    assert page.errors == []


async def test_containers_stand_above_what_they_hold(origin: str, page: Page, work: "Work") -> None:
    group = ContainerSpec(id=uuid4(), kind="group", members=2, name="Publish")
    parts = [uuid4(), uuid4()]
    containers = [group.model_dump(mode="json")]
    for place, part in enumerate(parts):
        await work.state(part, "In Progress", f"Part {place}", containers=containers)

    await page.go(f"{origin}/tasks/#token={make_token(SECRET, 'ada')}")
    await page.until("document.querySelectorAll('.task').length === 3")

    names = await page.value("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert names == ["Publish", "Part 0", "Part 1"]
    assert await page.value("document.querySelectorAll('.task.inner').length") == 2
    await page.value("document.querySelector('[data-filter=ended]').click()")
    assert await page.value("document.querySelectorAll('.task').length") == 0
    assert not await page.value("document.getElementById('empty').hidden")
    await shot(page, "tasks-empty")
    assert page.errors == []


async def test_without_a_token_one_is_asked_for(origin: str, page: Page) -> None:
    await page.go(f"{origin}/tasks/", width=360, height=740)
    await page.until("!document.getElementById('enter').hidden")
    assert await page.value("document.activeElement.id") == "token"
    await shot(page, "tasks-enter-360")

    await page.value(
        "(document.getElementById('token').value = 'wrong',"
        " document.getElementById('enter').requestSubmit())"
    )
    await page.until("!document.getElementById('problem').hidden")
    assert "not valid" in await page.value("document.getElementById('problem').textContent")
    assert await page.value("sessionStorage.getItem('token')") is None


def test_the_page_takes_nothing_from_elsewhere(origin: str) -> None:
    for name, kind in (
        ("", "text/html"),
        ("tasks.css", "text/css"),
        ("tasks.js", "text/javascript"),
    ):
        answer = httpx.get(f"{origin}/tasks/{name}", trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert httpx.get(f"{origin}/tasks/__init__.py", trust_env=False).status_code == 404
