"""User tasks: its claims against django-user-tasks with Celery on the same PostgreSQL and Redis."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import typer

from benchmarks import peers
from benchmarks.load import Loaded, load
from benchmarks.rounds import Report, take_turns, write
from benchmarks.suite import Suite, suite
from benchmarks.watchers import watching
from services.user_tasks.purging import purge
from services.user_tasks.settings import Settings
from shared import ids
from shared.callers import make_token, service_token
from shared.clients import ServiceClients
from shared.database import Database
from shared.files import Files
from shared.queue import Queue
from shared.testing import SECRET
from shared.worker import WorkerContext

PEER = "django-user-tasks"
CELERY = "django-user-tasks with celery"
NOTES = "/user_tasks/notes"
STEPS = 5
# Many rows out of one, whatever columns there are.
MULTIPLY = """
insert into status
select made.* from status, generate_series(1, $1) as number
cross join lateral (select gen_random_uuid() as id offset 0 * number) as new
cross join lateral jsonb_populate_record(status, jsonb_build_object(
  'uuid', new.id, 'root_id', new.id, 'task_id', new.id,
  'created', status.created - make_interval(secs => number))) as made
"""

EVENTS = "select count(*) from event"
AGE = """
update status set modified = modified - interval '100 days',
                  finished_at = finished_at - interval '100 days'
"""


@dataclass
class UserTasks:
    """Ours, as other services and an observer of its rows see it."""

    suite: Suite

    @property
    def port(self) -> int:
        return self.suite.ports["user_tasks"]

    @property
    def token(self) -> str:
        return service_token(Settings())

    def query(self, statement: str, *arguments: Any) -> list[Any]:
        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.suite.urls["user_tasks"])
            try:
                return list(await connection.fetch(statement, *arguments))
            finally:
                await connection.close()

        return asyncio.run(run())

    def clear(self) -> None:
        """Empty all but the newest event: without it those who follow would be sent away."""
        self.query("truncate status, artifact cascade")
        self.query("delete from event where id < (select max(id) from event)")
        self.query("vacuum analyze status, artifact, event")

    def tell(self, notes: Sequence[dict[str, Any]], *, callers: int = 32) -> Loaded:
        """Send notes, each in a request of its own."""
        bodies = [{"notes": [note]} for note in notes]
        return load(self.port, "POST", [NOTES], bodies=bodies, token=self.token, callers=callers)

    def succeeded(self, count: int) -> None:
        """Wait until so many have come to their good end."""
        seen = "select count(*) from status where state = 'Succeeded' and completed_steps = $1"

        async def poll() -> None:
            connection = await asyncpg.connect(self.suite.urls["user_tasks"])
            try:
                async with asyncio.timeout(300):
                    while await connection.fetchval(seen, STEPS) < count:
                        await asyncio.sleep(0.02)
            finally:
                await connection.close()

        asyncio.run(poll())


def lives(count: int) -> list[dict[str, Any]]:
    """All news of many tasks: created, started, five steps, succeeded; each kind for all in turn.

    The kinds follow each other so that no piece overtakes the one before it.
    """
    tasks, began = [str(ids.new_id()) for _ in range(count)], datetime.now(UTC)

    def lifecycle(task_id: str, state: str, at: datetime) -> dict[str, Any]:
        payload = {
            "task_id": task_id, "state": state, "at": at.isoformat(), "user": "ada",
            "name": "Five steps", "task_class": "bench.five_steps", "total_steps": STEPS,
        }  # fmt: skip
        return {"id": 1, "name": "on_lifecycle", "payload": payload}

    def step(task_id: str, number: int, at: datetime) -> dict[str, Any]:
        payload = {
            "task_id": task_id, "attempt": 1, "at": at.isoformat(), "completed_steps": number
        }  # fmt: skip
        return {"id": 1, "name": "on_progress", "payload": payload}

    pieces: list[Callable[[str, datetime], dict[str, Any]]] = [
        lambda task_id, at: lifecycle(task_id, "Pending", at),
        lambda task_id, at: lifecycle(task_id, "In Progress", at),
        *(
            lambda task_id, at, number=number: step(task_id, number, at)  # type: ignore[misc]
            for number in range(1, STEPS + 1)
        ),
        lambda task_id, at: lifecycle(task_id, "Succeeded", at),
    ]
    return [
        piece(task_id, began + timedelta(milliseconds=place))
        for place, piece in enumerate(pieces)
        for task_id in tasks
    ]


def whole(ours: UserTasks, count: int, size: int) -> float:
    """Lives through the whole suite, dispatched so many a request; lives per second."""
    ours.clear()
    tasks = [
        {
            "id": str(ids.new_id()), "function": "five_steps", "queue": "dispatcher",
            "username": "ada", "user_task": {"name": "Five steps", "total_steps": STEPS},
        }
        for _ in range(count)
    ]  # fmt: skip
    bodies = [tasks[first : first + size] for first in range(0, count, size)]
    began = load(
        ours.suite.ports["dispatcher"], "POST", ["/api/dispatcher/v1/tasks"],
        bodies=bodies, token=ours.token, callers=4, expect=202,
    ).began  # fmt: skip
    ours.succeeded(count)
    return count / (time.time() - began)


def compare_lives(report: Report, ours: UserTasks, sizes: "Sizes") -> None:
    """Create, five steps, succeed."""

    def alone() -> float:
        ours.clear()
        began = ours.tell(lives(sizes.tasks)).began
        ours.succeeded(sizes.tasks)
        return sizes.tasks / (time.time() - began)

    claim = report.claim(
        "user tasks created, five steps, succeeded", "/s", CELERY, ">= 10",
        note="whole suite: dispatched by 4 callers and run by a worker, steps within 50 ms told "
        "with the end; user_tasks alone: each of the eight pieces of news a request of its own",
    )  # fmt: skip
    entrants = {
        "lyceum, the whole suite": lambda: whole(ours, sizes.tasks, 1),
        "lyceum, the whole suite, dispatched 100 a request": lambda: whole(ours, sizes.tasks, 100),
        "lyceum, user_tasks alone": alone,
    }
    if _present(report, sizes):
        few, place = max(8, sizes.tasks // 5), ours.suite.place(4, "peer_user_tasks")
        entrants[CELERY] = lambda: peers.ask("django_user_tasks", "live", few, place)["rate"]
    take_turns(claim, sizes.rounds, entrants)


def _present(report: Report, sizes: "Sizes") -> bool:
    why = peers.why_not("django_user_tasks", wanted=not sizes.alone)
    if why is not None:
        report.skipped[PEER] = why
    return why is None


def fill(ours: UserTasks, count: int) -> None:
    """So many rows of one person."""
    ours.clear()
    ours.tell(lives(1), callers=1)
    ours.query(MULTIPLY, count - 1)
    ours.query("vacuum analyze status, artifact, event")


def compare_pages(report: Report, ours: UserTasks, sizes: "Sizes") -> None:
    """The first page of a person who has all the rows."""
    fill(ours, sizes.rows)
    token, place = make_token(SECRET, "ada"), ours.suite.place(4, "peer_user_tasks")
    if present := _present(report, sizes):
        peers.ask("django_user_tasks", "fill", sizes.rows, place)

    def own(size: int) -> float:
        path = f"/api/tasks/v1/tasks/?limit={size}"
        return load(ours.port, "GET", [path], token=token, callers=1, count=40).median * 1000

    def theirs(size: int) -> float:
        return peers.ask("django_user_tasks", "pages", size, place)["milliseconds"]

    for size in (10, 50):
        claim = report.claim(
            f"a page of {size} among {sizes.rows:,} rows", "ms", PEER, ">= 5", better="less",
            note="ours over HTTP, theirs within its own process",
        )  # fmt: skip
        entrants = {"lyceum": lambda size=size: own(size)}  # type: ignore[misc]
        if present:
            entrants[PEER] = lambda size=size: theirs(size)  # type: ignore[misc]
        take_turns(claim, sizes.rounds, entrants)


def compare_purging(report: Report, ours: UserTasks, sizes: "Sizes") -> None:
    """Old rows removed."""
    place = ours.suite.place(4, "peer_user_tasks")

    def own() -> float:
        fill(ours, sizes.purged)
        ours.query(AGE)
        return sizes.purged / asyncio.run(_purge(sizes.purged))

    def theirs() -> float:
        peers.ask("django_user_tasks", "fill", sizes.purged, place)
        return peers.ask("django_user_tasks", "purge", sizes.purged, place)["rate"]

    claim = report.claim(f"purge of {sizes.purged:,} old rows", "rows/s", PEER)
    entrants = {"lyceum": own}
    if _present(report, sizes):
        entrants[PEER] = theirs
    take_turns(claim, sizes.rounds, entrants)


async def _purge(expected: int) -> float:
    """Seconds of the worker's own purge."""
    settings = Settings()
    database, clients = Database(settings.database_url), ServiceClients(settings)
    queue = Queue(settings.redis_url)
    context = WorkerContext(settings, database, clients, Files(settings.object_store), queue)
    try:
        began = time.perf_counter()
        found = await purge(context)
        seconds = time.perf_counter() - began
    finally:
        await clients.close()
        await database.close()
    assert found["tasks"] == expected, f"{found} of {expected}"
    return seconds


def compare_stream(report: Report, ours: UserTasks, sizes: "Sizes") -> None:
    """Events to one follower and to many: the database does the same work for both."""
    token, one = make_token(SECRET, "ada"), "1 watcher"
    claim = report.claim("live stream: events delivered", "/s", one, "the more watchers the more")

    def deliver(watchers: int) -> float:
        ours.clear()
        before = ours.query(EVENTS)[0][0]
        following = watching(ours.port, token, watchers, sizes.streamed)
        began = time.time()
        ours.tell(lives(sizes.streamed), callers=min(32, sizes.streamed))
        seconds = following.last() - began
        return int(ours.query(EVENTS)[0][0] - before) * watchers / seconds

    entrants: dict[str, Callable[[], float]] = {one: lambda: deliver(1)}
    if sizes.watchers > 1:
        entrants[f"{sizes.watchers} watchers"] = lambda: deliver(sizes.watchers)
    take_turns(claim, sizes.rounds, entrants)


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    tasks: int = 400
    rounds: int = 3
    rows: int = 100_000
    purged: int = 5000
    streamed: int = 50
    watchers: int = 50
    alone: bool = False


PARTS = ("lives", "pages", "purge", "stream")


def measure(sizes: Sizes, parts: Sequence[str]) -> Report:
    """All parts asked for, in one run."""
    own = {"USER_TASKS_STREAMS_PER_USER": str(sizes.watchers)}
    with suite(["dispatcher", "user_tasks"], worker="benchmarks.noop_worker", own=own) as found:
        return measure_on(found, sizes, parts)


def measure_on(found: Suite, sizes: Sizes, parts: Sequence[str]) -> Report:
    """The same on processes that run already."""
    report, ours = Report("user_tasks", dict(vars(sizes))), UserTasks(found)
    ours.tell(lives(20))  # warm-up
    if "lives" in parts:
        whole(ours, 20, 1)  # as the peer's worker has run some before its clock starts
        compare_lives(report, ours, sizes)
    if "stream" in parts:
        compare_stream(report, ours, sizes)
    if "purge" in parts:
        compare_purging(report, ours, sizes)
    if "pages" in parts:
        compare_pages(report, ours, sizes)
    return report


def run(
    tasks: Annotated[int, typer.Option(help="user tasks per figure")] = Sizes.tasks,
    rounds: Annotated[int, typer.Option(help="how often everyone is measured")] = Sizes.rounds,
    rows: Annotated[int, typer.Option(help="rows behind a page")] = Sizes.rows,
    purged: Annotated[int, typer.Option(help="rows to purge")] = Sizes.purged,
    streamed: Annotated[int, typer.Option(help="tasks told to watchers")] = Sizes.streamed,
    watchers: Annotated[int, typer.Option(help="followers of the stream")] = Sizes.watchers,
    alone: Annotated[bool, typer.Option(help="no peers")] = Sizes.alone,
    part: Annotated[list[str] | None, typer.Option(help=f"only {', '.join(PARTS)}")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write JSON there")] = None,
) -> None:
    """Measure user tasks."""
    sizes = Sizes(tasks, rounds, rows, purged, streamed, watchers, alone)
    write([measure(sizes, part or PARTS)], json_file)


if __name__ == "__main__":
    typer.run(run)
