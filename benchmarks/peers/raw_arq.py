"""arq alone: our own queue without locks, rows or states. The ceiling of what a worker can do."""

import asyncio
import os
import signal
import sys
import time
from typing import Any

import uvloop
from arq import ArqRedis, create_pool, func
from arq.worker import Worker

from benchmarks.peers import start, stop, tell
from shared.queue import redis_settings

QUEUE = "bench"
SENDERS = 32


def available() -> str | None:
    """Part of what we stand on."""
    return None


async def nothing(ctx: dict[str, Any]) -> None:
    """A job."""


async def work(url: str) -> None:
    worker = Worker(
        functions=[func(nothing, name="nothing")], queue_name=QUEUE,  # type: ignore[arg-type]
        redis_settings=redis_settings(url), max_jobs=100, poll_delay=0.01, keep_result=0,
        handle_signals=False,
    )  # fmt: skip
    await worker.async_run()


async def send(pool: ArqRedis, count: int) -> None:
    left = iter(range(count))

    async def sender() -> None:
        for _ in left:
            await pool.enqueue_job("nothing")

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


async def emptied(pool: ArqRedis) -> None:
    # A job leaves the queue when it has ended.
    while await pool.zcard(QUEUE):
        await asyncio.sleep(0.005)


async def measure(url: str, what: str, count: int) -> None:
    """`live`: the worker waits already; `drain`: all jobs wait before it may begin."""
    worker = start("-m", "benchmarks.peers.raw_arq", "work", "0")
    pool = await create_pool(redis_settings(url), default_queue_name=QUEUE)
    try:
        await send(pool, 100)
        await emptied(pool)
        if what == "drain":
            worker.send_signal(signal.SIGSTOP)
            await send(pool, count)
        began = time.perf_counter()
        if what == "drain":
            worker.send_signal(signal.SIGCONT)
        else:
            await send(pool, count)
        await emptied(pool)
        tell(rate=count / (time.perf_counter() - began))
    finally:
        stop(worker)
        await pool.aclose(close_connection_pool=True)


def main() -> None:
    what, count, url = sys.argv[1], int(sys.argv[2]), os.environ["BENCH_REDIS_URL"]
    uvloop.run(work(url) if what == "work" else measure(url, what, count))


if __name__ == "__main__":
    main()
