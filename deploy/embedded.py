"""The whole suite on one machine: real stores, one web process, five workers, no root."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy import paths, stores
from deploy.children import Child, ChildFailed
from deploy.databases import create_databases
from shared.migrations.__main__ import upgrade_one

READY_SECONDS = 60.0
LEAST_SPACE = 200 * 1024 * 1024
Tell = Callable[[str], None]


class CannotStart(RuntimeError):
    """One clear line that says why."""


@dataclass
class Suite:
    """What belongs to one data folder."""

    folder: Path
    port: int

    @classmethod
    def of_environment(cls) -> "Suite":
        """`LYCEUM_DATA` moves the data folder, `LYCEUM_PORT` the origin."""
        folder = Path(os.environ.get("LYCEUM_DATA", ".lyceum")).resolve()
        port = os.environ.get("LYCEUM_PORT", "8100")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise CannotStart(f"LYCEUM_PORT is {port!r}, which is not a port.")
        return cls(folder, int(port))

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Made once, readable by the owner alone."""
        path = self.folder / "secrets.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            made = {
                "token_secret": f"development-{secrets.token_hex(32)}",
                "store_password": secrets.token_hex(16),
            }
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(made, file)
        loaded: dict[str, str] = json.loads(path.read_text())
        return loaded

    @cached_property
    def ports(self) -> dict[str, int]:
        """Ports nobody has to know, chosen once and kept with the data."""
        path = self.folder / "ports.json"
        known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        for name in ("postgres", "redis", *(f"{service}-worker" for service in paths.prefixes())):
            if name not in known or not (self.child(name).process() or _free(known[name])):
                known[name] = stores.free_port()
        path.write_text(json.dumps(known))
        return known

    @property
    def database_url(self) -> str:
        own = os.environ.get("DATABASE_URL")
        password = self.secrets["store_password"]
        return (
            own or f"postgresql://postgres:{password}@127.0.0.1:{self.ports['postgres']}/postgres"
        )

    @property
    def redis_url(self) -> str:
        own = os.environ.get("REDIS_URL")
        password = self.secrets["store_password"]
        return own or f"redis://:{password}@127.0.0.1:{self.ports['redis']}/0"

    def child(self, name: str) -> Child:
        return Child(self.folder, name)

    @property
    def store_names(self) -> list[str]:
        own = {"postgres": "DATABASE_URL", "redis": "REDIS_URL"}
        return [name for name, variable in own.items() if variable not in os.environ]

    @property
    def names(self) -> list[str]:
        """Every process, in the order in which they start."""
        workers = [f"{service}-worker" for service in paths.prefixes()]
        return [*self.store_names, "web", *workers]

    def environment(self, urls: dict[str, str]) -> dict[str, str]:
        """The settings of all services."""
        return {f"{service.upper()}_DATABASE_URL": url for service, url in urls.items()} | {
            "LYCEUM_REDIS_URL": self.redis_url,
            "LYCEUM_OBJECT_STORE": f"file://{self.folder / 'objects'}",
            "LYCEUM_ORIGIN_URL": self.origin,
            "LYCEUM_TOKEN_SECRET": self.secrets["token_secret"],
        }


def up(suite: Suite, tell: Tell) -> None:
    """Start what is not running, and return when all of it is ready. Raises CannotStart."""
    with _alone(suite):
        _enough_space(suite)
        started: list[str] = []
        try:
            urls = _start_stores(suite, started, tell)
            _start_services(suite, suite.environment(urls), started, tell)
        except (ChildFailed, stores.StoreFailed, OSError) as error:
            for name in reversed(started):
                suite.child(name).stop(_stop_signal(name))
            raise CannotStart(_one_line(error)) from error
        except CannotStart:
            for name in reversed(started):
                suite.child(name).stop(_stop_signal(name))
            raise
        if not started:
            tell("Everything was running already.")


def down(suite: Suite, tell: Tell) -> None:
    """Stop exactly what `up` started; the data stays."""
    with _alone(suite):
        workers = [f"{service}-worker" for service in paths.prefixes()]
        # Each group may still need the next one while it stops.
        for group in (workers, ["web"], ["redis", "postgres"]):
            stopping = [name for name in group if suite.child(name).ask_to_stop(_stop_signal(name))]
            for name in stopping:
                suite.child(name).wait_until_stopped()
                tell(f"stopped  {name}")


def status(suite: Suite) -> list[dict[str, Any]]:
    """Each process: whether it runs, since when, how much memory, whether it is ready."""
    rows = []
    for name in suite.names:
        child = suite.child(name)
        process = child.process()
        rows.append(
            {
                "name": name,
                "pid": process.pid if process else None,
                "uptime": child.uptime(),
                "memory": process.memory_info().rss if process else 0,
                "ready": process is not None and _is_ready(suite, name),
            }
        )
    return rows


def clean(suite: Suite, tell: Tell) -> None:
    """Stop everything and remove the data."""
    if not suite.folder.exists():
        return
    down(suite, tell)
    home = stores.postgres_home(suite.folder)
    if not home.is_relative_to(suite.folder):
        shutil.rmtree(home.parent, ignore_errors=True)
    shutil.rmtree(suite.folder)
    tell(f"removed  {suite.folder}")


@contextlib.contextmanager
def _alone(suite: Suite) -> Iterator[None]:
    """Two commands at once would start everything twice: the second waits."""
    suite.folder.mkdir(parents=True, exist_ok=True)
    with (suite.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _enough_space(suite: Suite) -> None:
    free = shutil.disk_usage(suite.folder).free
    if free < LEAST_SPACE:
        raise CannotStart(f"The disk of {suite.folder} is full: {free // 2**20} MiB are left.")


def _start_stores(suite: Suite, started: list[str], tell: Tell) -> dict[str, str]:
    password = suite.secrets["store_password"]
    for name in suite.store_names:
        child, port = suite.child(name), suite.ports[name]
        if child.process() is not None:
            continue
        if name == "postgres":
            home = stores.postgres_home(suite.folder)
            stores.make_cluster(home, password)
            command = stores.postgres_command(home, port)
            child.start(command, user=stores.postgres_user(), cwd=home)
        else:
            child.start(stores.redis_command(suite.folder, port, password))
        started.append(name)
        _wait(suite, name)
        tell(f"started  {name:<24} 127.0.0.1:{port}")
    urls = create_databases(suite.database_url)
    for service, url in urls.items():
        upgrade_one(service, url)
    return dict(urls)


def _start_services(
    suite: Suite, environment: dict[str, str], started: list[str], tell: Tell
) -> None:
    if suite.child("web").process() is None:
        if not _free(suite.port):
            raise CannotStart(
                f"Port {suite.port} is taken by another program: set LYCEUM_PORT to a free one."
            )
        command = [
            sys.executable, "-m", "uvicorn", "--factory", "deploy.origin:create_app",
            "--host", "127.0.0.1", "--port", str(suite.port), "--no-access-log",
            "--log-level", "warning", "--timeout-graceful-shutdown", "5",
        ]  # fmt: skip
        suite.child("web").start(command, environment=environment)
        started.append("web")
    begun = []
    for service in paths.prefixes():
        name = f"{service}-worker"
        if suite.child(name).process() is not None:
            continue
        command = [sys.executable, "-m", "shared.worker", f"services.{service}.worker"]
        port = {f"{service.upper()}_WORKER_PORT": str(suite.ports[name])}
        suite.child(name).start(command, environment=environment | port)
        started.append(name)
        begun.append(name)
    for name in [*(["web"] if "web" in started else []), *begun]:
        _wait(suite, name)
        tell(f"started  {name:<24} {suite.origin if name == 'web' else ''}".rstrip())


def _wait(suite: Suite, name: str) -> None:
    limit = time.monotonic() + READY_SECONDS
    child = suite.child(name)
    while time.monotonic() < limit:
        if child.process() is None:
            raise ChildFailed(child.last_words())
        if _is_ready(suite, name):
            return
        time.sleep(0.05)
    raise CannotStart(f"{name} is not ready after {READY_SECONDS:.0f} s; see {child.log}")


def _is_ready(suite: Suite, name: str) -> bool:
    if name in ("postgres", "redis"):
        return stores.answers(name, suite.ports[name])
    port = suite.port if name == "web" else suite.ports[name]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=3) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _stop_signal(name: str) -> int:
    # PostgreSQL's "fast" shutdown; its plain one waits for clients to leave.
    return signal.SIGINT if name == "postgres" else signal.SIGTERM


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full."
    return " ".join(str(error).split())
