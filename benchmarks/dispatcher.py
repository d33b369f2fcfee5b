"""Dispatcher: its claims against peers and ceilings on the same PostgreSQL and Redis.

One web process and one worker process of ours; every peer in processes of its own.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import httpx
import typer

from benchmarks import peers
from benchmarks.load import Loaded, load
from benchmarks.peers import pulp
from benchmarks.rounds import Report, percentile, take_turns, write
from benchmarks.suite import Suite, bare_fastapi, memory_mb, suite
from services.dispatcher.settings import Settings
from shared import ids
from shared.callers import make_token, service_token
from shared.testing import SECRET

TASKS = "/api/dispatcher/v1/tasks"
ARQ = "raw arq, worker waiting"
DRAIN = "raw arq, all jobs queued beforehand"
BARE = "FastAPI + one asyncpg statement"
BULK = 100
# A queue that nobody serves: what is accepted for it costs no worker anything.
IDLE = "bench-idle"
# Stops at the first that has not ended, and never looks at the tasks of others.
ENDED = """
select not exists(
  select from unnest($1::uuid[]) as sent (id) cross join lateral (
    select from task where task.id = sent.id and finished_at is null limit 1) as left_over)
"""
STAMPS = "select result from task where name = 'dispatcher.stamped' order by fence"
ENDS = """
select count(*) as ended, extract(epoch from max(finished_at)) as last,
       extract(epoch from min(created_at)) as first
from task where state = 'completed' and id = any($1::uuid[])
"""
HAND_OVER = """
select extract(epoch from started_at - lag(finished_at) over (order by fence)) * 1000
from task where name = 'dispatcher.stamped'
"""


@dataclass
class Dispatcher:
    """Ours, as a caller and as an observer of its rows sees it."""

    suite: Suite

    @property
    def port(self) -> int:
        return self.suite.ports["dispatcher"]

    @property
    def token(self) -> str:
        return service_token(Settings())

    def query(self, statement: str, *arguments: Any) -> list[Any]:
        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.suite.urls["dispatcher"])
            try:
                return list(await connection.fetch(statement, *arguments))
            finally:
                await connection.close()

        return asyncio.run(run())

    def send(self, tasks: Sequence[dict[str, Any]], *, callers: int = 4) -> Loaded:
        """Accept tasks in requests of a hundred."""
        bodies = [tasks[first : first + BULK] for first in range(0, len(tasks), BULK)]
        return load(
            self.port, "POST", [TASKS], bodies=bodies, token=self.token, callers=callers, expect=202
        )

    def wait(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Until these have ended, asking seldom enough not to be in the way."""
        last_first = [task["id"] for task in reversed(tasks)]

        async def poll() -> None:
            connection = await asyncpg.connect(self.suite.urls["dispatcher"])
            try:
                async with asyncio.timeout(300):
                    while not await connection.fetchval(ENDED, last_first):
                        await asyncio.sleep(0.02)
            finally:
                await connection.close()

        asyncio.run(poll())

    def clear(self) -> None:
        """No tasks; the tables as after a quiet night."""
        self.query("truncate task, claim cascade")
        self.settle()

    def settle(self) -> None:
        """What PostgreSQL would do by itself a little later, in the middle of a figure."""
        self.query("vacuum analyze task, claim")


def a_task(
    function: str = "noop", *, queue: str = "dispatcher", exclusive: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "id": str(ids.new_id()), "function": function, "queue": queue, "exclusive": list(exclusive)
    }  # fmt: skip


def resources(kind: str, count: int) -> list[list[str]]:
    """What each of many tasks claims: `none`, its `own`, or all the same `one`."""
    mark = ids.new_id()
    choices: dict[str, Callable[[int], list[str]]] = {
        "none": lambda number: [],
        "own": lambda number: [f"r-{mark}-{number}"],
        "one": lambda number: [f"r-{mark}"],
    }
    return [choices[kind](number) for number in range(count)]


def end_to_end(ours: Dispatcher, kind: str, count: int, function: str = "noop") -> float:
    """Tasks per second from the first request to the last end, and nothing else in the tables."""
    ours.clear()
    return beside_others(ours, kind, count, function)


def beside_others(ours: Dispatcher, kind: str, count: int, function: str = "noop") -> float:
    """The same beside the tasks that are there already."""
    tasks = [a_task(function, exclusive=wanted) for wanted in resources(kind, count)]
    sending = ours.send(tasks)
    ours.wait(tasks)
    row = ours.query(ENDS, [task["id"] for task in tasks])[0]
    assert row["ended"] == count, f"{row['ended']} of {count} tasks completed"
    # The first request was sent at most one request's time before its tasks' moment.
    return count / (float(row["last"] - row["first"]) + sending.median)


CASES = {
    "own": "no-op tasks end to end, an exclusive resource of its own each",
    "none": "no-op tasks end to end, no resource",
    "one": "no-op tasks end to end, all on one exclusive resource",
}
GOALS = {"own": ">= 0.5, then >= 1.0", "none": "", "one": ">= 0.25"}


def compare_end_to_end(report: Report, ours: Dispatcher, sizes: "Sizes", python: str) -> None:
    """Everyone's worker does the same nothing."""
    place = ours.suite.place(1, "peer")
    slow = max(20, sizes.tasks // 5)

    def asked(peer: str, what: str, count: int) -> Callable[[], float]:
        return lambda: peers.ask(peer, what, count, place)["rate"]

    present = [
        name for name in ("procrastinate_locks", "celery_redis") if _here(report, name, sizes)
    ]
    variables = _pulp(report, ours.suite, python)
    for kind, what in CASES.items():
        entrants: dict[str, Callable[[], float]] = {
            "lyceum": lambda kind=kind: end_to_end(ours, kind, sizes.tasks),  # type: ignore[misc]
            ARQ: asked("raw_arq", "live", sizes.tasks),
        }
        if kind == "none":
            entrants[DRAIN] = asked("raw_arq", "drain", sizes.tasks)
        if "procrastinate_locks" in present:
            entrants["procrastinate"] = asked("procrastinate_locks", kind, slow)
        if "celery_redis" in present and kind == "none":
            entrants["celery on redis, prefork"] = asked("celery_redis", kind, slow)
        if variables:
            few = max(10, slow // 5)
            entrants["pulp, 1 worker"] = pulp.measure(variables, python, kind, few)
        claim = report.claim(what, "/s", ARQ, GOALS[kind])
        take_turns(claim, sizes.rounds, entrants)


def _here(report: Report, peer: str, sizes: "Sizes") -> bool:
    why = peers.why_not(peer, wanted=not sizes.alone)
    if why is not None:
        report.skipped[peer] = why
    return why is None


def _pulp(report: Report, found: Suite, python: str) -> dict[str, str]:
    why = pulp.usable(python) if python else pulp.available()
    if why is not None:
        report.skipped["pulp"] = why
        return {}
    return pulp.prepare(found.stores.folder / "pulp", found.place(5, "peer_pulp"), python)


def compare_hand_over(report: Report, ours: Dispatcher, bare: int, sizes: "Sizes") -> None:
    """From the end of a task to the start of the next one on the same resource."""
    one = "one insert over bare FastAPI, one caller"
    claim = report.claim(
        "from one function to the next on one resource", "ms", one, "<= 3 ms median",
        better="less", note="by the worker's clock: its report, the commit that frees and grants, "
        "and the way back. The rows tell the end and the next start as one moment.",
    )  # fmt: skip
    for _ in range(sizes.rounds):
        end_to_end(ours, "one", sizes.tasks, "stamped")
        stamps = [float(json.loads(row["result"])) for row in ours.query(STAMPS)]
        steps = [(later - before) * 1000 for before, later in itertools.pairwise(stamps)]
        bodies = [a_task(queue=IDLE) for _ in range(min(200, sizes.requests))]
        bare_answer = load(bare, "POST", ["/items"], bodies=bodies, callers=1, expect=202)
        rows = [float(row[0]) for row in ours.query(HAND_OVER) if row[0] is not None]
        claim.add("lyceum, median", percentile(steps, 0.5))
        claim.add("lyceum, p95", percentile(steps, 0.95))
        claim.add("lyceum by its rows, median", percentile(rows, 0.5))
        claim.add(one, bare_answer.median * 1000)


def compare_accepting(report: Report, ours: Dispatcher, bare: int, sizes: "Sizes") -> None:
    """Accepted over HTTP and stored when answered, by many concurrent callers."""

    def single() -> float:
        ours.clear()
        bodies = [[a_task(queue=IDLE, exclusive=r)] for r in resources("own", sizes.requests)]
        return load(ours.port, "POST", [TASKS], bodies=bodies, token=ours.token, expect=202).rate

    def bulk() -> float:
        ours.clear()
        count = sizes.requests * 5
        tasks = [a_task(queue=IDLE, exclusive=wanted) for wanted in resources("own", count)]
        return ours.send(tasks, callers=32).rate * BULK

    def ceiling() -> float:
        bodies = [a_task(queue=IDLE) for _ in range(sizes.requests)]
        return load(bare, "POST", ["/items"], bodies=bodies, expect=202).rate

    claim = report.claim(
        "tasks accepted over HTTP by 32 callers", "/s", BARE, ">= 0.5, bulk >= 5",
        note="each of our tasks also takes its place in its resources' queues",
    )  # fmt: skip
    entrants = {"lyceum, one task a request": single, "lyceum, 100 a request": bulk, BARE: ceiling}
    take_turns(claim, sizes.rounds, entrants)


def compare_reading(report: Report, ours: Dispatcher, bare: int, sizes: "Sizes") -> None:
    """One row over HTTP."""
    ours.clear()
    tasks = [a_task() for _ in range(BULK)]
    ours.send(tasks)
    ours.wait(tasks)
    load(bare, "POST", ["/items"], bodies=tasks, expect=202)
    staff = make_token(SECRET, "ada", staff=True, superuser=True)

    def read(port: int, form: str, token: str = "") -> Callable[[], float]:
        paths = [form.format(task["id"]) for task in tasks]
        return lambda: load(port, "GET", paths, token=token, count=sizes.requests).rate

    claim = report.claim("one row read over HTTP by 32 callers", "/s", BARE, ">= 0.7")
    entrants = {
        "lyceum, our own route": read(ours.port, TASKS + "/{}", ours.token),
        "lyceum, the route of Pulp's clients": read(ours.port, "/pulp/api/v3/tasks/{}/", staff),
        BARE: read(bare, "/items/{}"),
    }
    take_turns(claim, sizes.rounds, entrants)


def compare_waiting(report: Report, ours: Dispatcher, sizes: "Sizes") -> None:
    """Free tasks while ever more others wait behind one lock.

    One after another, where most of the time is the pause between two looks at Redis; and many at
    once, where it is work.
    """
    steps = [0] + [10**power for power in range(2, 7) if 10**power <= sizes.waiting]
    none = "0 waiting"
    median = report.claim("a free task, dispatch to end, median", "ms", none,
                          "within 20 %", better="less")  # fmt: skip
    rate = report.claim("free tasks end to end", "/s", none, "within 20 %")
    slowest = report.claim("a free task, dispatch to end, p95", "ms", none, better="less")
    memory = report.claim("memory of the dispatcher's web process", "MB", none, "flat",
                          better="less")  # fmt: skip
    for number in range(sizes.rounds):
        ours.clear()
        wanted = resources("one", 1)[0]
        ours.send([a_task(queue=IDLE, exclusive=wanted)])
        before = 0
        for step in steps:
            waits = [a_task(queue=IDLE, exclusive=wanted) for _ in range(step - before)]
            if waits:
                ours.send(waits)
                ours.settle()
            before = step
            seen, who = free_tasks(ours, sizes.samples), f"{step:,} waiting"
            median.add(who, percentile(seen, 0.5))
            slowest.add(who, percentile(seen, 0.95))
            rate.add(who, beside_others(ours, "own", sizes.tasks))
            if number == 0:  # Later rounds begin where this one ended.
                memory.add(who, memory_mb(ours.suite.pids["dispatcher"]))
    ours.clear()


def free_tasks(ours: Dispatcher, count: int) -> list[float]:
    """Milliseconds from sending a task to its end, one after another."""
    sent: dict[str, float] = {}
    with httpx.Client(base_url=f"http://127.0.0.1:{ours.port}", trust_env=False) as http:
        for wanted in resources("own", count):
            task = a_task(exclusive=wanted)
            sent[task["id"]] = time.time()
            headers = {"Authorization": f"Bearer {ours.token}"}
            http.post(TASKS, json=[task], headers=headers).raise_for_status()
            time.sleep(0.02)
    ours.wait([{"id": task_id} for task_id in sent])
    rows = ours.query("select id, finished_at from task where id = any($1::uuid[])", list(sent))
    ended: dict[str, datetime] = {str(row["id"]): row["finished_at"] for row in rows}
    return [(ended[task_id].timestamp() - began) * 1000 for task_id, began in sent.items()]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    tasks: int = 1000
    rounds: int = 3
    requests: int = 2000
    waiting: int = 10_000
    samples: int = 50
    alone: bool = False


PARTS = ("end-to-end", "hand-over", "accept", "read", "waiting")


def measure(sizes: Sizes, parts: Sequence[str], python: str = "") -> Report:
    """All parts asked for, in one run."""
    with suite(["dispatcher"], worker="benchmarks.noop_worker") as found:
        return measure_on(found, sizes, parts, python)


def measure_on(found: Suite, sizes: Sizes, parts: Sequence[str], python: str = "") -> Report:
    """The same on processes that run already."""
    report, ours = Report("dispatcher", vars(sizes) | {"bulk": BULK}), Dispatcher(found)
    bare = bare_fastapi(found)
    end_to_end(ours, "own", min(200, sizes.tasks))  # warm-up
    if "end-to-end" in parts:
        compare_end_to_end(report, ours, sizes, python)
    if "hand-over" in parts:
        compare_hand_over(report, ours, bare, sizes)
    if "accept" in parts:
        compare_accepting(report, ours, bare, sizes)
    if "read" in parts:
        compare_reading(report, ours, bare, sizes)
    if "waiting" in parts:
        compare_waiting(report, ours, sizes)
    return report


def run(
    tasks: Annotated[int, typer.Option(help="no-op tasks per figure")] = Sizes.tasks,
    rounds: Annotated[int, typer.Option(help="how often everyone is measured")] = Sizes.rounds,
    requests: Annotated[int, typer.Option(help="HTTP requests per figure")] = Sizes.requests,
    waiting: Annotated[int, typer.Option(help="most tasks behind one lock")] = Sizes.waiting,
    samples: Annotated[int, typer.Option(help="free tasks per figure")] = Sizes.samples,
    alone: Annotated[bool, typer.Option(help="ceilings only, no peers")] = Sizes.alone,
    part: Annotated[list[str] | None, typer.Option(help=f"only {', '.join(PARTS)}")] = None,
    pulp_python: Annotated[str, typer.Option(help="python of a venv with pulpcore")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="write JSON there")] = None,
) -> None:
    """Measure the dispatcher."""
    sizes = Sizes(tasks, rounds, requests, waiting, samples, alone)
    write([measure(sizes, part or PARTS, pulp_python)], json_file)


if __name__ == "__main__":
    typer.run(run)
