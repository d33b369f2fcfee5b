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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import asyncpg
import redis
from alembic.util.exc import CommandError
from sqlalchemy.exc import SQLAlchemyError

from deploy import paths, stores
from deploy.children import Child, ChildFailed
from deploy.databases import create_databases
from shared.migrations.__main__ import upgrade_one

READY_SECONDS = 60.0
DEFAULT_PORT = 8100
LEAST_SPACE = 300 * 1024 * 1024
ROOT = Path(__file__).parents[1]
# Everything that ever lies in a data folder; nothing else in it is ours to remove.
OURS = frozenset(
    [
        "demo",
        "lock",
        "logs",
        "objects",
        "ports.json",
        "ports.new",
        "postgres",
        "postgres.unfinished",
        "run",
        "secrets.json",
        "secrets.new",
    ]
)
# What one's own servers, a full disk or a broken setting may answer: told in one line.
KNOWN = (
    ChildFailed,
    stores.StoreFailed,
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    SQLAlchemyError,
    CommandError,
)
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
        folder = Path(os.environ.get("LYCEUM_DATA") or ".lyceum").resolve()
        wanted = os.environ.get("LYCEUM_PORT") or ""
        if wanted and (not wanted.isdecimal() or not 0 < int(wanted) < 65536):
            raise CannotStart(f"LYCEUM_PORT is {wanted!r}, which is not a port.")
        suite = cls(folder, int(wanted or DEFAULT_PORT))
        if not wanted and (running := suite.running_port()) is not None:
            suite.port = running
        return suite

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def running_port(self) -> int | None:
        """Where the origin of this data folder answers now."""
        return self._kept_ports().get("web") if self.child("web").process() else None

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Made once, readable by the owner alone. LYCEUM_TOKEN_SECRET takes the place of ours."""
        path = self.folder / "secrets.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            made = {
                "token_secret": f"development-{secrets.token_hex(32)}",
                "store_password": secrets.token_hex(16),
            }
            _write_whole(path, json.dumps(made))
        loaded: dict[str, str] = json.loads(path.read_text())
        own = os.environ.get("LYCEUM_TOKEN_SECRET")
        return loaded | ({"token_secret": own} if own else {})

    @cached_property
    def ports(self) -> dict[str, int]:
        """Ports nobody has to know, chosen once and kept with the data."""
        kept = self._kept_ports()
        known = dict(kept)
        for name in ("postgres", "redis", *self.worker_names):
            if name not in known or not (self.child(name).process() or _free(known[name])):
                known[name] = stores.free_port()
        if known != kept:
            self._keep_ports(known)
        return known

    def keep_web_port(self) -> None:
        """Remember where the origin is started."""
        self.ports["web"] = self.port
        self._keep_ports(self.ports)

    def _kept_ports(self) -> dict[str, int]:
        path = self.folder / "ports.json"
        known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        return known

    def _keep_ports(self, ports: dict[str, int]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(self.folder / "ports.json", json.dumps(ports))

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
        return [name for name, variable in own.items() if not os.environ.get(variable)]

    @property
    def worker_names(self) -> list[str]:
        return [f"{service}-worker" for service in paths.prefixes()]

    @property
    def names(self) -> list[str]:
        """Every process, in the order in which they start."""
        return [*self.store_names, "web", *self.worker_names]

    def environment(self, urls: dict[str, str]) -> dict[str, str]:
        """The settings of all services."""
        return {f"{service.upper()}_DATABASE_URL": url for service, url in urls.items()} | {
            "LYCEUM_REDIS_URL": self.redis_url,
            "LYCEUM_OBJECT_STORE": os.environ.get("LYCEUM_OBJECT_STORE")
            or f"file://{self.folder / 'objects'}",
            "LYCEUM_ORIGIN_URL": self.origin,
            "LYCEUM_TOKEN_SECRET": self.secrets["token_secret"],
        }


def up(suite: Suite, tell: Tell) -> None:
    """Start what is not running, and return when all of it is ready.

    Raises CannotStart; whatever ends it, what this call started is stopped again.
    """
    started: list[str] = []
    with _alone(suite):
        try:
            _refuse_trouble(suite)
            urls = _start_stores(suite, started, tell)
            _start_services(suite, suite.environment(urls), started, tell)
        except BaseException as error:
            _stop(suite, started, lambda _: None)
            if isinstance(error, KNOWN):
                raise CannotStart(one_line(error)) from error
            raise
        if not started:
            tell("Everything was running already.")


def down(suite: Suite, tell: Tell) -> None:
    """Stop exactly what `up` started; the data stays."""
    with _alone(suite):
        # All that may run, also stores that today's environment would not start.
        if not _stop(suite, ["postgres", "redis", "web", *suite.worker_names], tell):
            tell("Nothing was running.")


def _stop(suite: Suite, names: Collection[str], tell: Tell) -> bool:
    """Stop these, dependents first. Whether any of them was running."""
    any_stopped = False
    # Each group may still need the next one while it stops.
    for group in (suite.worker_names, ["web"], ["redis", "postgres"]):
        wanted = [name for name in group if name in names]
        stopping = [name for name in wanted if suite.child(name).ask_to_stop(_stop_signal(name))]
        for name in stopping:
            suite.child(name).wait_until_stopped()
            tell(f"stopped  {name}")
        any_stopped |= bool(stopping)
    return any_stopped


def status(suite: Suite) -> list[dict[str, Any]]:
    """Each process: whether it runs, since when, how much memory, whether it is ready."""
    rows = []
    for name in suite.names:
        process = suite.child(name).process()
        rows.append(
            {
                "name": name,
                "pid": process.pid if process else None,
                "uptime": process.uptime() if process else 0.0,
                "memory": process.memory() if process else 0,
                "ready": process is not None and _is_ready(suite, name),
            }
        )
    return rows


def clean(suite: Suite, tell: Tell) -> None:
    """Stop everything and remove the data, and nothing that is not ours."""
    if not suite.folder.exists():
        return
    _refuse_foreign(suite)
    with _alone(suite):
        _stop(suite, [*suite.names, "postgres", "redis"], tell)
        home = stores.postgres_home(suite.folder)
        if not home.is_relative_to(suite.folder):
            shutil.rmtree(home.parent, ignore_errors=True)
        shutil.rmtree(suite.folder)
    tell(f"removed  {suite.folder}")


@contextlib.contextmanager
def _alone(suite: Suite) -> Iterator[None]:
    """Two commands at once would start everything twice: the second waits."""
    try:
        suite.folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(suite)
        file = (suite.folder / "lock").open("w")
    except OSError as error:
        raise CannotStart(f"The data folder {suite.folder} cannot be used: {error}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_foreign(suite: Suite) -> None:
    """Never work in, and never remove, a folder that holds someone's other files."""
    strangers = sorted({path.name for path in suite.folder.iterdir()} - OURS)
    if strangers:
        raise CannotStart(
            f"LYCEUM_DATA is {suite.folder}, which holds other things ({strangers[0]}): "
            "give Lyceum a folder of its own."
        )


def _refuse_trouble(suite: Suite) -> None:
    """What can be known before anything is started."""
    running = suite.running_port()
    if running is None:
        _refuse_port(suite.port)
    elif running != suite.port:
        raise CannotStart(
            f"This data folder's Lyceum runs on port {running}: `make down` before it can "
            f"move to {suite.port}."
        )
    for folder in {suite.folder, stores.postgres_home(suite.folder).parent}:
        free = shutil.disk_usage(folder).free
        if free < LEAST_SPACE:
            raise CannotStart(
                f"The disk of {folder} is full: {free // 2**20} MiB are left, "
                f"{LEAST_SPACE // 2**20} are needed."
            )


def _refuse_port(port: int) -> None:
    try:
        _bind(port)
    except OSError as error:
        why = (
            "is taken by another program"
            if error.errno == errno.EADDRINUSE
            else f"cannot be used ({error.strerror})"
        )
        raise CannotStart(f"Port {port} {why}: set LYCEUM_PORT to a free one.") from error


def _start_stores(suite: Suite, started: list[str], tell: Tell) -> dict[str, str]:
    password = suite.secrets["store_password"]
    for name in suite.store_names:
        child, port = suite.child(name), suite.ports[name]
        if child.process() is not None:
            _wait(suite, name)
            continue
        if name == "postgres":
            home = stores.postgres_home(suite.folder)
            if not home.is_relative_to(suite.folder):
                tell(f"PostgreSQL's user cannot enter {suite.folder}: its files are in {home}")
            stores.make_cluster(home, password)
            started.append(name)
            command = stores.postgres_command(home, port)
            child.start(command, user=stores.postgres_user(), cwd=home)
        else:
            started.append(name)
            child.start(stores.redis_command(suite.folder, port, password))
        _wait(suite, name)
        tell(f"started  {name:<24} 127.0.0.1:{port}")
    _ask_own_redis(suite)
    try:
        urls = create_databases(suite.database_url)
    except KNOWN as error:
        raise CannotStart(f"PostgreSQL refuses to work: {one_line(error)}") from error
    for service, url in urls.items():
        upgrade_one(service, url)
    return dict(urls)


def _ask_own_redis(suite: Suite) -> None:
    if "redis" in suite.store_names:
        return
    try:
        with redis.Redis.from_url(suite.redis_url, socket_timeout=3) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise CannotStart(f"The Redis of REDIS_URL refuses to work: {one_line(error)}") from error


def _start_services(
    suite: Suite, environment: dict[str, str], started: list[str], tell: Tell
) -> None:
    began = {}
    for name in ("web", *suite.worker_names):
        command, own = _service(suite, name)
        settings = environment | own
        child = suite.child(name)
        was_running = child.process() is not None
        if was_running and child.follows(command, settings):
            continue
        if was_running:
            child.stop()
        if name == "web":
            suite.keep_web_port()
        started.append(name)
        child.start(command, environment=settings, cwd=ROOT)
        began[name] = "restarted with other settings: " if was_running else "started  "
    for name in ("web", *suite.worker_names):
        _wait(suite, name)
        if name in began:
            tell(f"{began[name]}{name:<24} {suite.origin if name == 'web' else ''}".rstrip())


def _service(suite: Suite, name: str) -> tuple[list[str], dict[str, str]]:
    """The command of the web process or of a worker, and the settings of it alone."""
    if name == "web":
        return [
            sys.executable, "-m", "uvicorn", "--factory", "deploy.origin:create_app",
            "--host", "127.0.0.1", "--port", str(suite.port), "--no-access-log",
            "--log-level", "warning", "--timeout-graceful-shutdown", "5",
        ], {}  # fmt: skip
    service = name.removesuffix("-worker")
    command = [sys.executable, "-m", "shared.worker", f"services.{service}.worker"]
    return command, {f"{service.upper()}_WORKER_PORT": str(suite.ports[name])}


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
    try:
        _bind(port)
    except OSError:
        return False
    return True


def _bind(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def _stop_signal(name: str) -> int:
    # PostgreSQL's "fast" shutdown; its plain one waits for clients to leave.
    return signal.SIGINT if name == "postgres" else signal.SIGTERM


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    text = " ".join(str(error).split())
    if getattr(error, "errno", 0) == errno.ENOSPC or os.strerror(errno.ENOSPC) in text:
        return f"The disk is full: {text}"
    return text or type(error).__name__


def _write_whole(path: Path, text: str) -> None:
    """All of it or nothing, readable by the owner alone."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    temporary.replace(path)
