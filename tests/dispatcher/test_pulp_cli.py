"""The command line client written for Pulp, unchanged, against a running dispatcher."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.dispatcher.settings import Settings
from shared.callers import make_token, service_token
from shared.testing import SECRET
from tests.conftest import Servers
from tests.processes import free_port, processes

PULP = Path(sys.executable).with_name("pulp")
SECONDS = 60
ROOT: dict[str, Any] = {"username": "root", "superuser": True}


def _token(user: dict[str, Any] | None) -> list[str]:
    if user is None:
        return []
    token = make_token(SECRET, ttl=timedelta(minutes=10), **user)
    return ["--header", f"Authorization:Bearer {token}"]


@dataclass
class Client:
    """Runs `pulp` as an administrator would, in a home of its own."""

    origin: str
    home: Path

    def run(
        self, *arguments: str, user: dict[str, Any] | None = ROOT, fails: bool = False
    ) -> subprocess.CompletedProcess[str]:
        found = subprocess.run(
            [
                str(PULP), "--base-url", self.origin, "--api-root", "/pulp/", *_token(user),
                "--format", "json", *arguments,
            ],
            env={
                "PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8",
                "XDG_CONFIG_HOME": str(self.home), "XDG_CACHE_HOME": str(self.home),
            },
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert bool(found.returncode) is fails, found.stderr + found.stdout
        return found

    def json(self, *arguments: str, user: dict[str, Any] | None = ROOT) -> Any:
        return json.loads(self.run(*arguments, user=user).stdout)

    def dispatch(self, **values: Any) -> str:
        """The address of a new task."""
        task = {"id": str(uuid4()), "function": "noop", "queue": "dispatcher", **values}
        headers = {"Authorization": f"Bearer {service_token(Settings())}"}
        answer = httpx.post(
            f"{self.origin}/api/dispatcher/v1/tasks", json=[task], headers=headers,
            trust_env=False,
        )  # fmt: skip
        answer.raise_for_status()
        return f"/pulp/api/v3/tasks/{task['id']}/"

    def group(self) -> str:
        headers = {"Authorization": f"Bearer {service_token(Settings())}"}
        answer = httpx.post(
            f"{self.origin}/api/dispatcher/v1/task-groups/", json={"description": "all"},
            headers=headers, trust_env=False,
        )  # fmt: skip
        return str(answer.json()["pulp_href"])


@pytest.fixture
def pulp(clean: Servers, tmp_path: Path) -> Iterator[Client]:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    with processes(tmp_path, {"LYCEUM_ORIGIN_URL": origin}) as started:
        started.web("web", "services.dispatcher.app:create_app", port)
        started.worker("worker", "tests.dispatcher.cli_worker")
        yield Client(origin, tmp_path)


def wait(seconds: float, history: Path) -> dict[str, Any]:
    return {"function": "work", "arguments": {"seconds": seconds, "history": str(history)}}


def test_the_client_lists_shows_waits_for_cancels_and_purges(pulp: Client, tmp_path: Path) -> None:
    history = tmp_path / "history"
    status = pulp.json("status")
    assert status["database_connection"] == {"connected": True}

    # Waiting for a task, and looking at it.
    running = pulp.dispatch(**wait(1.5, history), exclusive=["a"], logging_cid="cafe")
    shown = pulp.json("task", "show", "--wait", "--href", running)
    assert (shown["state"], shown["result"]) == ("completed", "done")
    assert pulp.json("task", "show", "--uuid", running.rstrip("/").rpartition("/")[2]) == shown
    workers = pulp.json("worker", "list")
    assert len(workers) == 1
    assert pulp.json("worker", "show", "--href", workers[0]["pulp_href"])["current_task"] is None

    # Finding tasks.
    assert [row["pulp_href"] for row in pulp.json("task", "list", "--cid", "cafe")] == [running]
    found = pulp.json(
        "task", "list", "--state-in", "completed", "--state-in", "failed",
        "--name-contains", "wor", "--reserved-resource-in", "a", "--started-after", "2020-01-01",
        "--ordering", "-pulp_created", "--field", "name", "--limit", "5",
    )  # fmt: skip
    assert found == [{"name": "dispatcher.work"}]
    assert pulp.json("task", "summary")["completed"] == 1

    # Stopping one that runs, and one that waits behind it.
    holder = pulp.dispatch(**wait(60, history), exclusive=["b"])
    behind = pulp.dispatch(exclusive=["b"])
    pulp.run("task", "cancel", "--href", behind)
    pulp.run("task", "cancel", "--href", holder)
    states = [pulp.json("task", "show", "--href", href)["state"] for href in (holder, behind)]
    assert states == ["canceled", "canceled"]
    pulp.run("task", "cancel", "--href", running, fails=True)

    # Roles, deleting and purging.
    pulp.run("task", "role", "add", "--href", holder, "--user", "ada", "--role",
             "core.task_viewer")  # fmt: skip
    roles = pulp.json("task", "role", "list", "--href", holder)
    assert {"role": "core.task_viewer", "users": ["ada"], "groups": []} in roles["roles"]
    pulp.run("task", "destroy", "--href", holder)
    pulp.run("task", "show", "--href", holder, fails=True)
    pulp.run("task", "purge", "--finished-before", "2100-01-01", "--state", "canceled")
    assert "canceled" not in {row["state"] for row in pulp.json("task", "list")}


def test_the_client_shows_and_cancels_groups(pulp: Client, tmp_path: Path) -> None:
    group = pulp.group()
    ident = group.rstrip("/").rpartition("/")[2]
    for _ in range(2):
        pulp.dispatch(**wait(60, tmp_path / "history"), group_id=ident, exclusive=["a"])

    listed = pulp.json("task-group", "list")
    assert [row["pulp_href"] for row in listed] == [group]
    assert len(pulp.json("task", "list", "--task-group", group)) == 2

    # The client has no word for it; it can call any operation of the description.
    pulp.run(
        "debug", "openapi", "call", "--id", "task_groups_cancel", "--parameter",
        f"task_group_href={group}", "--body", json.dumps({"state": "canceled"}),
    )  # fmt: skip

    deadline = time.monotonic() + SECONDS
    while (shown := pulp.json("task-group", "show", "--uuid", ident))["canceling"]:
        assert time.monotonic() < deadline
    assert shown["canceled"] == 2
    assert pulp.json("task-group", "list", "--field", "canceled") == [{"canceled": 2}]

    # Waiting for a whole group. (Of one with canceled tasks the client cannot say why: it expects
    # a reason where the contract has null.)
    other = pulp.group()
    for seconds in (0.1, 1.5):
        work = wait(seconds, tmp_path / "history")
        pulp.dispatch(**work, group_id=other.rstrip("/").rpartition("/")[2])
    pulp.run("task-group", "show", "--href", other, "--wait")
    assert pulp.json("task-group", "show", "--href", other)["completed"] == 2


def test_the_client_finds_by_everything_it_offers(pulp: Client, tmp_path: Path) -> None:
    parent = pulp.dispatch(shared=["a"], exclusive=["b"])
    parent_id = parent.rstrip("/").rpartition("/")[2]
    assert pulp.json("task", "show", "--wait", "--href", parent)["state"] == "completed"
    child = pulp.dispatch(parent_id=parent_id)
    pulp.json("task", "show", "--wait", "--href", child)

    assert pulp.json("task", "show", "--href", f"prn:core.task:{parent_id}")["child_tasks"] == [
        child
    ]
    for found, options in (
        (child, ["--parent-task", parent, "--state", "completed", "--name", "dispatcher.noop"]),
        (parent, ["--shared-resource", "a", "--exclusive-resource", "b"]),
        (parent, ["--shared-resource-in", "a", "--exclusive-resource-in", "b"]),
        (parent, ["--reserved-resource", "a", "--started-before", "2100-01-01"]),
        (child, ["--finished-after", "2020-01-01", "--ordering", "-pulp_created", "--limit", "1"]),
    ):
        assert [row["pulp_href"] for row in pulp.json("task", "list", *options)] == [found]
    assert pulp.json("task", "list", "--finished-before", "2020-01-01") == []
    workers = pulp.json("worker", "list", "--online", "--name-contains", "@")
    assert len(workers) == 1
    assert pulp.json("worker", "list", "--missing") == []
    named = pulp.json("worker", "list", "--name", workers[0]["name"], "--field", "name")
    assert named == [{"name": workers[0]["name"]}]

    # Many at once.
    holder = pulp.dispatch(**wait(60, tmp_path / "history"), exclusive=["c"])
    for _ in range(2):
        pulp.dispatch(exclusive=["c"])
    pulp.run("task", "cancel", "--waiting")
    assert pulp.json("task", "summary")["canceled"] == 2
    pulp.run("task", "cancel", "--all")
    assert pulp.json("task", "show", "--href", holder)["state"] == "canceled"


def test_the_client_tells_what_is_refused(pulp: Client) -> None:
    task = pulp.dispatch(exclusive=["a"])
    pulp.json("task", "show", "--wait", "--href", task)

    unordered = pulp.run("task", "list", "--ordering", "nonsense", fails=True)
    unknown = pulp.run("task", "show", "--uuid", str(uuid4()), fails=True)
    foreign = pulp.run("worker", "list", user={"username": "ada"}, fails=True)
    anonymous = pulp.run("task", "list", user=None, fails=True)

    assert "nonsense is not one of the available choices" in unordered.stderr
    assert "Not found" in unknown.stderr
    assert "not authorized" in foreign.stderr
    assert anonymous.stderr
    assert pulp.json("task", "list", user={"username": "ada"}) == []
    assert pulp.json("status", user=None)["online_workers"]


def test_the_client_asks_for_the_clean_up_of_orphans(pulp: Client) -> None:
    content = f"/api/libraries/v2/resources/content/{uuid4()}/"
    asked = pulp.run("--background", "orphan", "cleanup", "--protection-time", "0")
    pulp.run("--background", "orphan", "cleanup", "--content-hrefs", json.dumps([content]))
    refused = pulp.run(
        "orphan", "cleanup", "--protection-time", "0", user={"username": "eve"}, fails=True
    )
    tasks = pulp.json("task", "list", "--name", "libraries.orphan_cleanup")

    assert "/pulp/api/v3/tasks/" in asked.stderr
    assert len(tasks) == 2
    assert "not authorized" in refused.stderr
