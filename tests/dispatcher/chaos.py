"""A fleet under load of which anything may be killed at any time, and what must hold after it."""

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import httpx

from deploy.databases import create_databases
from deploy.stores import Stores, start_stores
from services.dispatcher.schemas import TaskRequest
from services.dispatcher.settings import Settings
from services.dispatcher.states import FINAL
from shared import ids
from shared.callers import service_token
from shared.database import plain_url
from shared.migrations.__main__ import upgrade_one
from shared.testing import environment
from tests.processes import Processes, free_port, kill, processes

T = TypeVar("T")
RESOURCES = [f"resource-{number}" for number in range(50)]
MODULE = "tests.dispatcher.chaos_worker"
FACTORY = "services.dispatcher.app:create_app"
RECOVERY_SECONDS = 30.0
WORKER_MISSING = {"reason": "Worker has gone missing."}
SETTINGS = {
    "LYCEUM_WORKER_HEARTBEAT_SECONDS": "0.5",
    "LYCEUM_WORKER_SILENCE_SECONDS": "1.5",
    "LYCEUM_WORKER_GRACE_SECONDS": "2",
    "DISPATCHER_WORKER_TTL_SECONDS": "3",
    "DISPATCHER_SWEEP_SECONDS": "0.5",
}


@contextlib.contextmanager
def own_stores(folder: Path) -> Iterator[tuple[Stores, str]]:
    """Servers of this test's own, to kill, and the dispatcher's database in them."""
    stores = start_stores(folder)
    try:
        urls = dict(create_databases(stores.database_url))
        with environment(urls, stores.redis_url, folder):
            upgrade_one("dispatcher", urls["dispatcher"])
            yield stores, urls["dispatcher"]
    finally:
        stores.stop()


class Forwarder:
    """One address before several web processes: a connection goes to one that takes it."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports, self.port = list(ports), free_port()
        self._next = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await self._connect()
            if there is not None:
                await asyncio.gather(_pipe(reader, there[1]), _pipe(there[0], writer))
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self._ports:
            self._next += 1
            port = self._ports[self._next % len(self._ports)]
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Fleet:
    """Web processes behind one address, workers, and the stores; and how each is killed."""

    started: Processes
    stores: Stores
    url: str
    forwarder: Forwarder
    webs: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: dict[int, int] = field(default_factory=dict)
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _coming_back: list[asyncio.Task[None]] = field(default_factory=list)

    def start_web(self, port: int) -> None:
        self.webs[port] = self.started.web(f"web-{port}", FACTORY, port)

    def start_worker(self) -> None:
        name = f"worker-{len(self.workers) + len(self.killed)}"
        self.workers.append(self.started.worker(name, MODULE))

    async def all_registered(self) -> None:
        async def registered() -> bool:
            names = await self.fetch("select name from worker")
            pids = {int(row["name"].partition("@")[0]) for row in names}
            return pids >= {worker.pid for worker in self.workers}

        await until(registered, "not all workers are known")

    async def kill(self, kind: str, dice: random.Random) -> None:
        """Kill something of this kind; return when work goes on, having noted how long it took.

        A store's own recovery is not ours: the time counts from the moment it is back.
        """
        began = await getattr(self, f"_kill_{kind}")(dice)
        await self._probe()
        self._note(f"{kind}: new work is done", began)
        await asyncio.gather(*self._coming_back)
        self._coming_back.clear()

    def _note(self, what: str, began: float) -> None:
        self.recoveries[what].append(time.monotonic() - began)

    async def _kill_worker(self, dice: random.Random) -> float:
        victim = dice.choice(self.workers)
        self.workers.remove(victim)
        self.killed[victim.pid] = await asyncio.to_thread(kill, victim)
        began = time.monotonic()
        self.start_worker()
        self._coming_back.append(asyncio.create_task(self._freed(victim.pid, began)))
        return began

    async def _freed(self, pid: int, began: float) -> None:
        async def given_up() -> bool:
            named = "select from worker where name like $1"
            return not await self.fetch(named, f"{pid}@%")

        await until(given_up, "a killed worker is still known")
        self._note("worker: its resources are free", began)

    async def _kill_web(self, dice: random.Random) -> float:
        port, victim = dice.choice(list(self.webs.items()))
        await asyncio.to_thread(kill, victim)
        began = time.monotonic()
        restart = asyncio.to_thread(self.start_web, port)
        self._coming_back.append(asyncio.create_task(restart))
        return began

    async def _kill_redis(self, dice: random.Random) -> float:
        """All that was in Redis is lost."""
        await asyncio.to_thread(self.stores.kill_redis)
        await asyncio.sleep(dice.uniform(0, 0.5))
        await asyncio.to_thread(self.stores.start_redis)
        return time.monotonic()

    async def _kill_postgres(self, dice: random.Random) -> float:
        await asyncio.to_thread(self.stores.kill_postgres)
        await asyncio.sleep(dice.uniform(0, 0.5))
        await asyncio.to_thread(self.stores.start_postgres)
        return time.monotonic()

    async def _probe(self) -> None:
        """One new task, accepted and run."""
        probe = TaskRequest(
            id=ids.new_id(), function="noop", queue="dispatcher", immediate=True,
            exclusive=[f"probe-{ids.new_id()}"], repeatable=True,
        )  # fmt: skip
        async with self.http() as http:
            await accepted(http, [probe])

            async def completed() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    answer = await http.get(f"/api/dispatcher/v1/tasks/{probe.id}")
                    return answer.status_code == 200 and answer.json()["state"] == "completed"
                return False

            await until(completed, "a new task was not run")

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.forwarder.port}",
            headers={"Authorization": f"Bearer {service_token(Settings())}"},
            timeout=5,
        )

    async def fetch(self, statement: str, *values: Any, url: str | None = None) -> list[Any]:
        connection = await asyncpg.connect(plain_url(url or self.url))
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    async def stored(self, tasks: Sequence[TaskRequest]) -> list[Any]:
        """The rows of these tasks, every one of them, in the order of acceptance."""
        wanted = "select * from task where id = any($1::uuid[]) order by seq"
        rows = await self.fetch(wanted, [task.id for task in tasks])
        assert len(rows) == len(tasks)
        return rows

    async def all_final(self, seconds: float) -> None:
        final = [state.value for state in FINAL]

        async def none_left() -> bool:
            left = "select from task where state <> all($1) limit 1"
            return not await self.fetch(left, final)

        try:
            await until(none_left, "", seconds)
        except AssertionError:
            stuck = await self.fetch("select * from task where state <> all($1)", final)
            raise AssertionError(f"{len(stuck)} tasks are stuck; the first: {stuck[0]}") from None

    def report(self) -> None:
        print(f"\n{'killed: then':40} {'times':>5} {'median s':>9} {'most s':>9}")
        for what, seconds in sorted(self.recoveries.items()):
            middle, most = statistics.median(seconds), max(seconds)
            print(f"{what:40} {len(seconds):5} {middle:9.2f} {most:9.2f}")


@contextlib.asynccontextmanager
async def fleet(folder: Path, *, webs: int, workers: int) -> AsyncIterator[Fleet]:
    """All of it, running on stores of its own; nothing of it is left at the end."""
    ports = [free_port() for _ in range(webs)]
    forwarder = Forwarder(ports)
    values = SETTINGS | {"LYCEUM_ORIGIN_URL": f"http://127.0.0.1:{forwarder.port}"}
    async with contextlib.AsyncExitStack() as stack:
        stores, url = await entered(stack, own_stores(folder))
        await stack.enter_async_context(forwarder.listening())
        started = await entered(stack, processes(folder, values))
        whole = Fleet(started, stores, url, forwarder)
        for _ in range(workers):
            whole.start_worker()
        await asyncio.gather(*(asyncio.to_thread(whole.start_web, port) for port in ports))
        await whole.all_registered()
        await whole.fetch("checkpoint", url=stores.database_url)
        yield whole


async def entered(stack: contextlib.AsyncExitStack, slow: AbstractContextManager[T]) -> T:
    """Enters what blocks, and leaves it at the end, beside the forwarder."""
    result = await asyncio.to_thread(slow.__enter__)
    stack.push_async_callback(asyncio.to_thread, slow.__exit__, None, None, None)
    return result


async def until(
    good: Callable[[], Awaitable[bool]], what: str, seconds: float = RECOVERY_SECONDS
) -> None:
    limit = time.monotonic() + seconds
    while not await good():
        assert time.monotonic() < limit, f"{what} after {seconds:.0f} s"
        await asyncio.sleep(0.05)


# The load


def make_tasks(count: int, history: Path, dice: random.Random) -> list[TaskRequest]:
    """Tasks that claim several resources, exclusively and together with others."""
    tasks = []
    for _ in range(count):
        alone = dice.sample(RESOURCES, dice.choice([0, 1, 1, 2, 3]))
        together = dice.sample(RESOURCES, dice.choice([0, 1, 2, 3]))
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


async def dispatch_all(fleet: Fleet, tasks: list[TaskRequest], *, seconds: float) -> None:
    """Four clients dispatch; without outages it takes them so many seconds."""
    clients, batch = 4, 5
    pause = seconds * clients * batch / len(tasks)

    async def client(mine: list[TaskRequest]) -> None:
        async with fleet.http() as http:
            for start in range(0, len(mine), batch):
                began = time.monotonic()
                await accepted(http, mine[start : start + batch])
                await asyncio.sleep(max(0, pause - (time.monotonic() - began)))

    await asyncio.gather(*(client(tasks[number::clients]) for number in range(clients)))


async def accepted(http: httpx.AsyncClient, tasks: Sequence[TaskRequest]) -> None:
    """Sends tasks until they are accepted, as any client with ids of its own may."""
    body = [task.model_dump(mode="json") for task in tasks]

    async def sent() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.post("/api/dispatcher/v1/tasks", json=body)
            assert answer.status_code == 202 or answer.status_code >= 500, answer.text
            return answer.status_code == 202
        return False

    await until(sent, "tasks were not accepted")


# What must hold


@dataclass(frozen=True)
class Run:
    """One start of one task, with the time after which it certainly ran no more."""

    task_id: UUID
    fence: int
    began: int
    ended: int


def read_history(path: Path, killed: dict[int, int]) -> list[Run]:
    """What the workers themselves wrote down, in the order of the starts."""
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
    runs = [
        Run(task_id, fence, moment, ended.get((task_id, fence)) or killed[pid])
        for (task_id, fence), (moment, pid) in begun.items()
    ]
    return sorted(runs, key=lambda run: run.began)


def claims_of(row: Any) -> dict[str, bool]:
    """Resource → whether exclusively."""
    mark = "shared:"
    return {name.removeprefix(mark): not name.startswith(mark) for name in row["reserved"]}


def assert_no_overlap(runs: list[Run], stored: list[Any]) -> None:
    """Runs of conflicting claims never met, and later ones had greater fencing numbers."""
    by_id = {row["id"]: claims_of(row) for row in stored}
    nobody = (0, 0, "nobody")
    last: dict[str, tuple[int, int, Any]] = {}
    last_alone: dict[str, tuple[int, int, Any]] = {}
    for run in runs:
        for name, alone in by_id[run.task_id].items():
            before = (last if alone else last_alone).get(name, nobody)
            assert before[0] <= run.began, f"{run} overlapped {before} on {name}"
            assert before[1] < run.fence, f"{run} has an older fence than {before} on {name}"
            for table in (last, last_alone) if alone else (last,):
                seen = table.get(name, nobody)
                table[name] = (max(seen[0], run.ended), max(seen[1], run.fence), run)


def assert_order_kept(runs: list[Run], stored: list[Any]) -> None:
    """Conflicting tasks began in the order in which they were accepted."""
    first_start: dict[UUID, int] = {}
    for run in runs:
        first_start.setdefault(run.task_id, run.began)
    last_alone, last = defaultdict[str, int](int), defaultdict[str, int](int)
    for row in stored:
        if row["id"] not in first_start:
            continue
        began = first_start[row["id"]]
        for name, alone in claims_of(row).items():
            assert (last if alone else last_alone)[name] < began, f"{row} overtook on {name}"
            last[name] = max(last[name], began)
            if alone:
                last_alone[name] = max(last_alone[name], began)


def assert_outcomes(runs: list[Run], stored: list[Any]) -> None:
    """One final state each, reached for a reason; what may not be repeated ran once at most."""
    starts = Counter(run.task_id for run in runs)
    for row in stored:
        assert row["state"] in ("completed", "failed"), row
        assert row["finished_at"] is not None
        if row["state"] == "failed":
            assert json.loads(row["error"]) == WORKER_MISSING
        if not row["repeatable"]:
            assert starts[row["id"]] <= 1
        if row["state"] == "completed" and row["name"].endswith(".work"):
            assert json.loads(row["result"]) == "done"
            assert starts[row["id"]] >= 1
