"""The suite over HTTP, as one staff person uses it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from deploy.demo.terminal import bar

LIBRARIES, TASKS, PULP = "/api/libraries/v2", "/api/tasks", "/pulp/api/v3/tasks"
FINAL = {"Succeeded", "Failed", "Canceled"}
POLL = 0.1
LIMIT = 120.0


class DemoFailed(RuntimeError):
    """Something did not come out as told; the text says what."""


def answered(answer: httpx.Response, ok: int = 200) -> Any:
    """What an answer holds. Raises DemoFailed."""
    if answer.status_code != ok:
        asked = f"{answer.request.method} {answer.request.url.path}"
        raise DemoFailed(f"{asked} answered {answer.status_code}: {answer.text[:300]}")
    return answer.json() if answer.content else None


@dataclass
class Service:
    """The suite over HTTP, as one staff person sees it."""

    http: httpx.Client

    def call(self, method: str, path: str, *, ok: int = 200, **kwargs: Any) -> Any:
        return answered(self.http.request(method, path, **kwargs), ok)

    def create_library(self, slug: str, title: str, **more: Any) -> str:
        body = {"org": "Demo", "slug": slug, "title": title, "description": "", **more}
        key: str = self.call("POST", f"{LIBRARIES}/", json=body)["id"]
        return key

    def start_import(self, library: str, archive: bytes) -> str:
        files = {"file": ("content.tar.gz", archive, "application/gzip")}
        task: str = self.call("POST", f"{LIBRARIES}/{library}/import/", files=files)["task_id"]
        return task

    def start_backup(self, library: str) -> str:
        task: str = self.call("POST", f"{LIBRARIES}/{library}/backup/")["task_id"]
        return task

    def publish(self, library: str) -> None:
        self.call("POST", f"{LIBRARIES}/{library}/commit/")

    def start_publish(self, library: str) -> str:
        path = f"{LIBRARIES}/{library}/commit/?wait=false"
        task: str = self.call("POST", path, ok=202)["task_id"]
        return task

    def status(self, task: str) -> dict[str, Any] | None:
        """The user task, or None while the news of it is still on its way."""
        answer = self.http.get(f"{TASKS}/v1/tasks/{task}/")
        if answer.status_code == 404:
            return None
        found: dict[str, Any] = answered(answer)
        return found

    def dispatched(self, task: str) -> dict[str, Any]:
        """The dispatcher's side of the same task."""
        found: dict[str, Any] = self.call("GET", f"{PULP}/{task}/")
        return found

    def wait(
        self, task: str, until: Callable[[dict[str, Any]], bool], what: str, limit: float = LIMIT
    ) -> dict[str, Any]:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            status = self.status(task)
            if status is not None and until(status):
                return status
            time.sleep(POLL / 5)
        raise DemoFailed(f"{what}: not within {limit:.0f} s")

    def follow(self, task: str, title: str) -> dict[str, Any]:
        """Wait for a task's end behind a live progress bar."""
        with bar() as progress:
            row = progress.add_task(title, total=None, stage="")
            end = time.monotonic() + LIMIT
            while time.monotonic() < end:
                status = self.status(task)
                if status is not None:
                    progress.update(
                        row,
                        total=status["total_steps"] or None,
                        completed=status["completed_steps"],
                        stage=status["state"],
                    )
                    if status["base_state"] in FINAL:
                        return status
                time.sleep(POLL)
        raise DemoFailed(f"{title}: no end within {LIMIT:.0f} s")


def moment(text: str | None) -> datetime:
    if text is None:
        raise DemoFailed("A task that has ended lacks its times.")
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
