"""The processes that are measured: PostgreSQL, Redis, and ours on top of them."""

import asyncio
import contextlib
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from deploy.databases import create_databases
from deploy.stores import Stores, free_port, start_stores
from shared.migrations.__main__ import upgrade_one
from shared.testing import environment
from tests.processes import Processes, processes


@dataclass
class Suite:
    """Where everything is. Web processes by service name."""

    stores: Stores
    urls: dict[str, str]
    running: Processes
    ports: dict[str, int]
    pids: dict[str, int] = field(default_factory=dict)
    databases: set[str] = field(default_factory=set)

    def redis_url(self, number: int) -> str:
        """A Redis of its own for each peer."""
        return self.stores.redis_url.rpartition("/")[0] + f"/{number}"

    def database_url(self, name: str) -> str:
        """An empty database for a peer on the same server, made on first use."""
        if name not in self.databases:
            asyncio.run(_create(self.stores.database_url, name))
            self.databases.add(name)
        return urlunsplit(urlsplit(self.stores.database_url)._replace(path=f"/{name}"))

    def place(self, redis: int, database: str) -> dict[str, str]:
        """Where a peer finds its stores."""
        return {
            "BENCH_REDIS_URL": self.redis_url(redis),
            "BENCH_DATABASE_URL": self.database_url(database),
        }


async def _create(admin_url: str, name: str) -> None:
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()


@contextlib.contextmanager
def suite(
    services: list[str],
    *,
    worker: str | None = None,
    own: Mapping[str, str] | None = None,
    counted: bool = False,
) -> Iterator[Suite]:
    """Stores, one web process for each service named, and one worker of 100 runs at a time.

    With `counted`, PostgreSQL counts statements, for us and for peers alike.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)  # so that nothing is left behind
    with tempfile.TemporaryDirectory(prefix="lyceum-bench-") as name:
        folder = Path(name)
        stores = start_stores(folder)
        try:
            if counted:
                asyncio.run(_count_statements(stores))
            urls = create_databases(stores.database_url)
            ports = {service: free_port() for service in services}
            variables = {
                f"LYCEUM_{service.upper()}_URL": f"http://127.0.0.1:{port}"
                for service, port in ports.items()
            } | {"LYCEUM_WORKER_CONCURRENCY": "100", "LYCEUM_LOG_LEVEL": "WARNING"}
            variables |= own or {}
            with (
                environment(urls, stores.redis_url, folder),
                processes(folder, variables) as running,
            ):
                yield _started(Suite(stores, urls, running, ports), worker)
        finally:
            stores.stop()


async def _count_statements(stores: Stores) -> None:
    connection = await asyncpg.connect(stores.database_url)
    await connection.execute("alter system set shared_preload_libraries = 'pg_stat_statements'")
    await connection.close()
    stores.kill_postgres()
    stores.start_postgres()
    connection = await asyncpg.connect(stores.database_url)
    await connection.execute("create extension pg_stat_statements")
    await connection.close()


def _stop(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _started(found: Suite, worker: str | None) -> Suite:
    for service in found.ports:
        upgrade_one(service, found.urls[service])
    if worker is not None:
        found.pids["worker"] = found.running.worker("worker", worker).pid

    def web(service: str) -> int:
        factory = f"services.{service}.app:create_app"
        return found.running.web(service, factory, found.ports[service]).pid

    with ThreadPoolExecutor() as pool:
        found.pids |= zip(found.ports, pool.map(web, found.ports), strict=True)
    return found


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return int(shown.stdout) / 1024


def bare_fastapi(found: Suite) -> int:
    """The ceiling of an answer over HTTP, on the same server; its port."""
    port = free_port()
    found.running.environment["BENCH_DATABASE_URL"] = found.database_url("peer_bare")
    found.running.web("bare", "benchmarks.peers.bare_fastapi:create_app", port)
    return port
