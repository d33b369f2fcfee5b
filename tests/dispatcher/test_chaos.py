"""Locks under fire: many clients, few resources, workers killed with -9 at random.

The history is written by the workers themselves. Afterwards: no two conflicting tasks were
ever running together, the order of each resource was kept, and each task has one final state.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from services.dispatcher.schemas import TaskRequest
from services.dispatcher.settings import Settings
from services.dispatcher.states import FINAL
from shared import ids
from shared.callers import service_token
from shared.database import Database
from tests.conftest import Servers
from tests.processes import Processes, free_port, kill, processes

RESOURCES = [f"resource-{number}" for number in range(8)]
TASKS = int(os.environ.get("CHAOS_TASKS", "300"))
WORKERS = 3
KILLS = int(os.environ.get("CHAOS_KILLS", "4"))
LIMIT_SECONDS = 90.0
MODULE = "tests.dispatcher.chaos_worker"


@dataclass(frozen=True)
class Run:
    """One start of one task, with the time after which it certainly ran no more."""

    task_id: UUID
    fence: int
    began: int
    ended: int


@pytest.fixture
def fleet(clean: Servers, tmp_path: Path) -> Iterator[tuple[Processes, str]]:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    environment = {
        "LYCEUM_ORIGIN_URL": origin,
        "LYCEUM_WORKER_HEARTBEAT_SECONDS": "0.5",
        "LYCEUM_WORKER_SILENCE_SECONDS": "1.5",
        "LYCEUM_WORKER_GRACE_SECONDS": "2",
        "DISPATCHER_WORKER_TTL_SECONDS": "3",
        "DISPATCHER_SWEEP_SECONDS": "0.5",
    }
    with processes(tmp_path, environment) as started:
        started.web("web", "services.dispatcher.app:create_app", port)
        yield started, origin


def make_tasks(history: Path, dice: random.Random) -> list[TaskRequest]:
    tasks = []
    for _ in range(TASKS):
        alone = dice.sample(RESOURCES, dice.choice([0, 1, 1, 2]))
        together = dice.sample(RESOURCES, dice.choice([0, 1, 2]))
        tasks.append(
            TaskRequest(
                id=ids.new_id(),
                function="work",
                queue="dispatcher",
                arguments={"seconds": dice.uniform(0, 0.03), "history": str(history)},
                exclusive=alone,
                shared=[name for name in together if name not in alone],
                repeatable=dice.random() < 0.5,
            )
        )
    return tasks


async def dispatch_all(origin: str, tasks: list[TaskRequest]) -> None:
    headers = {"Authorization": f"Bearer {service_token(Settings())}"}

    async def client(mine: list[TaskRequest]) -> None:
        async with httpx.AsyncClient(base_url=origin, headers=headers, timeout=30) as http:
            for start in range(0, len(mine), 5):
                body = [task.model_dump(mode="json") for task in mine[start : start + 5]]
                answer = await http.post("/api/dispatcher/v1/tasks", json=body)
                assert answer.status_code == 202, answer.text

    await asyncio.gather(*(client(tasks[number::4]) for number in range(4)))


async def rows(database: Database) -> list[Any]:
    async with database.engine.connect() as connection:
        found = await connection.execute(text("select * from task order by seq"))
        return list(found.all())


async def test_no_lock_is_ever_broken_when_workers_are_killed(
    fleet: tuple[Processes, str], servers: Servers, tmp_path: Path
) -> None:
    started, origin = fleet
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    history = tmp_path / "history"
    tasks = make_tasks(history, dice)
    workers = [started.worker(f"worker-{number}", MODULE) for number in range(WORKERS)]
    killed: dict[int, int] = {}
    database = Database(servers.urls["dispatcher"])

    dispatching = asyncio.create_task(dispatch_all(origin, tasks))
    for number in range(KILLS):
        await asyncio.sleep(dice.uniform(0.8, 2.0))
        victim = dice.choice(workers)
        killed[victim.pid] = await asyncio.to_thread(kill, victim)
        workers.remove(victim)
        workers.append(started.worker(f"spare-{number}", MODULE))
    await dispatching
    await all_final(database)

    stored = await rows(database)
    await database.close()
    assert {row.id for row in stored} == {task.id for task in tasks}
    runs = read_history(history, killed)
    assert_no_overlap(runs, stored)
    assert_order_kept(runs, stored)
    assert_outcomes(runs, stored)


async def all_final(database: Database) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    final = [state.value for state in FINAL]
    while time.monotonic() < limit:
        left = [row for row in await rows(database) if row.state not in final]
        if not left:
            return
        await asyncio.sleep(0.25)
    raise AssertionError(f"{len(left)} tasks are stuck, the first one: {left[0]}")


def read_history(path: Path, killed: dict[int, int]) -> list[Run]:
    begun: dict[tuple[UUID, int], tuple[int, int]] = {}
    ended: dict[tuple[UUID, int], int] = {}
    for line in path.read_text().splitlines():
        moment, pid, task_id, fence, event = line.split()
        key = (UUID(task_id), int(fence))
        if event == "start":
            assert key not in begun, "one fence was used for two runs"
            begun[key] = (int(moment), int(pid))
        else:
            ended[key] = int(moment)
    return [
        Run(task_id, fence, moment, ended.get((task_id, fence)) or killed[pid])
        for (task_id, fence), (moment, pid) in begun.items()
    ]


def conflicting(one: Any, other: Any) -> bool:
    alone = {name for name in one.reserved if not name.startswith("shared:")}
    other_alone = {name for name in other.reserved if not name.startswith("shared:")}
    every = {name.removeprefix("shared:") for name in one.reserved}
    other_every = {name.removeprefix("shared:") for name in other.reserved}
    return bool(alone & other_every or other_alone & every)


def assert_no_overlap(runs: list[Run], stored: list[Any]) -> None:
    by_id = {row.id: row for row in stored}
    ordered = sorted(runs, key=lambda run: run.began)
    for index, run in enumerate(ordered):
        for later in ordered[index + 1 :]:
            if later.began >= run.ended:
                break
            assert later.task_id == run.task_id or not conflicting(
                by_id[run.task_id], by_id[later.task_id]
            ), f"{run} and {later} ran together"


def assert_order_kept(runs: list[Run], stored: list[Any]) -> None:
    first_start: dict[UUID, int] = {}
    for run in sorted(runs, key=lambda run: run.began):
        first_start.setdefault(run.task_id, run.began)
    begun = [row for row in stored if row.id in first_start]
    for index, row in enumerate(begun):
        for later in begun[index + 1 :]:
            if conflicting(row, later):
                assert first_start[row.id] < first_start[later.id]


def assert_outcomes(runs: list[Run], stored: list[Any]) -> None:
    starts: dict[UUID, int] = {}
    for run in runs:
        starts[run.task_id] = starts.get(run.task_id, 0) + 1
    for row in stored:
        assert row.state in ("completed", "failed")
        assert row.finished_at is not None
        if row.state == "failed":
            assert row.error == {"reason": "Worker has gone missing."}
        if not row.repeatable:
            assert starts.get(row.id, 0) <= 1
        if row.state == "completed":
            assert row.result == "done"


async def test_nothing_is_lost_or_run_twice_when_redis_is_lost(
    fleet: tuple[Processes, str], servers: Servers, tmp_path: Path
) -> None:
    started, origin = fleet
    history = tmp_path / "history"
    tasks = make_tasks(history, random.Random(7))[:150]
    for number in range(2):
        started.worker(f"worker-{number}", MODULE)
    database = Database(servers.urls["dispatcher"])

    dispatching = asyncio.create_task(dispatch_all(origin, tasks))
    for _ in range(2):
        await asyncio.sleep(1.0)
        await asyncio.to_thread(servers.stores.kill_redis)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(servers.stores.start_redis)
    await dispatching
    await all_final(database)

    stored = await rows(database)
    await database.close()
    assert [row.state for row in stored] == ["completed"] * len(tasks)
    runs = read_history(history, {})
    assert len(runs) == len(tasks)
    assert_no_overlap(runs, stored)
    assert_order_kept(runs, stored)
