"""procrastinate: a task queue on PostgreSQL alone, with a lock for each job.

Its worker runs 100 jobs at a time; with one lock for all a single one, which is its best.
"""

import asyncio
import os
import sys
import time
import uuid
from typing import Any

from benchmarks.peers import missing, start, stop, tell

SENDERS = 16
LEFT = "select count(*) as left from procrastinate_jobs where status in ('todo', 'doing')"


def available() -> str | None:
    return missing("procrastinate", "psycopg")


def made_app() -> tuple[Any, Any]:
    from procrastinate import App, PsycopgConnector

    url = os.environ["BENCH_DATABASE_URL"]
    app = App(connector=PsycopgConnector(conninfo=url, min_size=4, max_size=SENDERS + 4))

    @app.task(name="nothing")
    async def nothing() -> None:
        """A job."""

    return app, nothing


async def work(concurrency: int) -> None:
    app, _ = made_app()
    async with app.open_async():
        await app.run_worker_async(
            concurrency=concurrency, fetch_job_polling_interval=0.05, install_signal_handlers=False
        )


async def send(nothing: Any, what: str, count: int) -> None:
    left, common = iter(range(count)), uuid.uuid4().hex

    async def sender() -> None:
        for number in left:
            lock = {"own": f"{common}-{number}", "one": common, "none": None}[what]
            await nothing.configure(lock=lock).defer_async()

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


async def emptied(app: Any) -> None:
    while (await app.connector.execute_query_one_async(LEFT))["left"]:
        await asyncio.sleep(0.02)


async def measure(what: str, count: int) -> None:
    app, nothing = made_app()
    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        worker = start(
            "-m", "benchmarks.peers.procrastinate_locks", "work", "1" if what == "one" else "100"
        )
        try:
            await send(nothing, what, 10)
            await emptied(app)
            began = time.perf_counter()
            await send(nothing, what, count)
            await emptied(app)
            tell(rate=count / (time.perf_counter() - began))
        finally:
            stop(worker)


def main() -> None:
    what, count = sys.argv[1], int(sys.argv[2])
    asyncio.run(work(count) if what == "work" else measure(what, count))


if __name__ == "__main__":
    main()
