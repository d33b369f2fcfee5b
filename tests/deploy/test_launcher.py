"""`python -m deploy` for real: start, start again, repair, refuse, stop."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.stores import free_port


class Launcher:
    """Runs the command line with a data folder and a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"LYCEUM_DATA": str(self.folder), "LYCEUM_PORT": str(self.port)}
        return subprocess.run(
            [sys.executable, "-m", "deploy", *arguments],
            env=clean_environment() | own | environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def pids(self) -> dict[str, int]:
        records = (self.folder / "run").glob("*.json")
        return {path.stem: json.loads(path.read_text())["pid"] for path in records}


def lives(pid: int) -> bool:
    """Ended processes may keep their pid for a while, as zombies."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clean_environment() -> dict[str, str]:
    ours = ("LYCEUM_", "LIBRARIES_", "DISPATCHER_", "USER_TASKS_", "INSTRUCTOR_TASKS_", "CREDEN")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "data")
    try:
        yield launcher
    finally:
        launcher.run("clean")


def test_a_taken_port_is_one_clear_line_and_leaves_nothing_running(launcher: Launcher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", launcher.port))
        taken.listen()

        answer = launcher.run("up")

    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines() == [
        f"lyceum: Port {launcher.port} is taken by another program: set LYCEUM_PORT to a free one."
    ]
    assert launcher.pids() == {}


@pytest.mark.timeout(300)  # three starts of everything take a minute where nothing else runs
def test_start_again_repair_and_stop(launcher: Launcher) -> None:
    started = launcher.run("up")
    assert started.returncode == 0, started.stderr
    before = launcher.pids()
    assert len(before) == 8

    again = launcher.run("up")
    assert "Everything was running already." in again.stdout
    assert launcher.pids() == before

    os.kill(before["libraries-worker"], signal.SIGKILL)
    psutil.Process(before["libraries-worker"]).wait(10)
    assert launcher.run("status").returncode == 1
    repaired = launcher.run("up")
    assert "libraries-worker" in repaired.stdout
    after = launcher.pids()
    assert {name for name in after if after[name] != before[name]} == {"libraries-worker"}
    assert launcher.run("status").returncode == 0

    token = launcher.run("token", "--user", "ada", "--staff").stdout.strip()
    headers = {"Authorization": f"JWT {token}"}
    url = f"http://127.0.0.1:{launcher.port}/api/libraries/v2/"
    body = {"org": "A", "slug": "b", "title": "c", "description": ""}
    assert httpx.post(url, json=body, headers=headers, trust_env=False).status_code == 200

    assert launcher.run("down").returncode == 0
    assert not any(lives(pid) for pid in after.values())
    assert launcher.run("up").returncode == 0
    kept = httpx.get(f"{url}lib:A:b/", headers=headers, trust_env=False)
    assert kept.json()["title"] == "c"


def test_nonsense_is_refused_in_one_line(launcher: Launcher) -> None:
    port = launcher.run("up", LYCEUM_PORT="http")
    name = launcher.run("token", "--user", "a b;c")

    assert (port.returncode, name.returncode) == (1, 1)
    assert port.stderr.strip() == "lyceum: LYCEUM_PORT is 'http', which is not a port."
    assert name.stderr.count("\n") == 1
