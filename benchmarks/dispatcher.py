"""Dispatcher: no-op tasks end to end per second, against raw arq as the ceiling.

Each task claims an exclusive resource of its own, or all claim one and the same. One web
process, one worker process, PostgreSQL and Redis on the same machine.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from arq import create_pool, func
from arq.worker import Worker
from sqlalchemy import text

from deploy.databases import create_databases
from deploy.stores import free_port, start_stores
from shared import ids
from shared.callers import service_token
from shared.database import Database
from shared.migrations.__main__ import upgrade_one
from shared.queue import redis_settings
from shared.testing import environment
from tests.processes import processes

BULK = 100


async def nothing(ctx: dict[str, Any]) -> None:
    """A raw arq job."""


async def raw_arq(redis_url: str, count: int) -> float:
    """Jobs per second of arq alone, queued first."""
    pool = await create_pool(redis_settings(redis_url), default_queue_name="bench")
    for _ in range(count):
        await pool.enqueue_job("nothing")
    worker = Worker(
        functions=[func(nothing, name="nothing")], queue_name="bench", burst=True,  # type: ignore[arg-type]
        redis_settings=redis_settings(redis_url), max_jobs=100, poll_delay=0.01, keep_result=0,
        handle_signals=False,
    )  # fmt: skip
    started = time.perf_counter()
    await worker.async_run()
    seconds = time.perf_counter() - started
    await worker.close()
    await pool.aclose(close_connection_pool=True)
    return count / seconds


async def ours(origin: str, token: str, database: Database, count: int, shared: bool) -> float:
    """Tasks per second from the first request to the last end."""
    headers = {"Authorization": f"Bearer {token}"}
    mark = ids.new_id()
    tasks = [
        {
            "id": str(ids.new_id()),
            "function": "noop",
            "queue": "dispatcher",
            "exclusive": [f"r-{mark}" if shared else f"r-{mark}-{number}"],
        }
        for number in range(count)
    ]
    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=origin, headers=headers, timeout=60) as http:
        for first in range(0, count, BULK):
            answer = await http.post("/api/dispatcher/v1/tasks", json=tasks[first : first + BULK])
            answer.raise_for_status()
    left = text("select count(*) from task where state <> 'completed'")
    limit = time.perf_counter() + 300
    while time.perf_counter() < limit:
        async with database.engine.connect() as connection:
            if not (await connection.execute(left)).scalar_one():
                return count / (time.perf_counter() - started)
        await asyncio.sleep(0.01)
    raise SystemExit("the tasks did not end within 300 s")


async def measure(count: int, redis_url: str, origin: str, url: str) -> dict[str, float]:
    from services.dispatcher.settings import Settings

    token = service_token(Settings())
    database = Database(url)
    await ours(origin, token, database, 100, shared=False)  # warm-up
    found = {
        "raw arq": await raw_arq(redis_url, count),
        "own resource each": await ours(origin, token, database, count, shared=False),
        "one resource for all": await ours(origin, token, database, count, shared=True),
    }
    await database.close()
    return found


def run(count: Annotated[int, typer.Option(help="tasks per figure")] = 1000) -> None:
    """Print a table and, on the last line, JSON."""
    with tempfile.TemporaryDirectory(prefix="lyceum-bench-") as name:
        folder = Path(name)
        stores = start_stores(folder)
        try:
            urls = create_databases(stores.database_url)
            upgrade_one("dispatcher", urls["dispatcher"])
            port = free_port()
            origin = f"http://127.0.0.1:{port}"
            own = {
                "LYCEUM_ORIGIN_URL": origin,
                "LYCEUM_WORKER_CONCURRENCY": "100",
                "LYCEUM_LOG_LEVEL": "WARNING",
            }
            with environment(urls, stores.redis_url, folder), processes(folder, own) as started:
                started.web("web", "services.dispatcher.app:create_app", port)
                started.worker("worker", "benchmarks.noop_worker")
                found = asyncio.run(measure(count, stores.redis_url, origin, urls["dispatcher"]))
        finally:
            stores.stop()
    ceiling = found["raw arq"]
    for what, rate in found.items():
        print(f"{what:<24}{rate:>9.0f} /s{rate / ceiling:>8.2f} x raw arq")
    print(json.dumps({"tasks": count, **{key: round(rate, 1) for key, rate in found.items()}}))


def main() -> None:
    typer.run(run)


if __name__ == "__main__":
    sys.exit(main())
