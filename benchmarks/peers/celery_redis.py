"""Celery on Redis with its default pool, as many processes as the machine has cores. No locks."""

import os
import sys
import time
from typing import Any

from benchmarks.peers import missing, start, stop, tell, wait_until


def available() -> str | None:
    return missing("celery", "django", "user_tasks", "psycopg")


def worker() -> Any:
    """The command of the platform: a prefork worker."""
    cores = str(os.cpu_count() or 2)
    return start(
        "-m", "celery", "-A", "benchmarks.peers.django_jobs", "worker", "--loglevel", "ERROR",
        "--concurrency", cores, "--without-gossip", "--without-mingle", "--without-heartbeat",
    )  # fmt: skip


def emptied(redis: Any) -> bool:
    # A message is acknowledged when its job begins.
    return not redis.llen("celery") and not redis.hlen("unacked")


def main() -> None:
    import redis

    from benchmarks.peers.django_jobs import nothing

    count = int(sys.argv[2])
    queue = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"])
    process = worker()
    try:
        for _ in range(20):
            nothing.delay()
        wait_until(lambda: emptied(queue))
        began = time.perf_counter()
        for _ in range(count):
            nothing.delay()
        wait_until(lambda: emptied(queue))
        tell(rate=count / (time.perf_counter() - began))
    finally:
        stop(process)


if __name__ == "__main__":
    main()
