"""Real web and worker processes for tests that kill them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from deploy.stores import free_port


@dataclass
class Processes:
    """Starts processes with the tests' settings and ends every one of them."""

    folder: Path
    environment: dict[str, str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def web(self, name: str, factory: str, port: int) -> subprocess.Popen[bytes]:
        process = self.start(
            name, "-m", "uvicorn", "--factory", factory, "--port", str(port), "--log-level",
            "warning",
        )  # fmt: skip
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
        return process

    def worker(self, name: str, module: str) -> subprocess.Popen[bytes]:
        return self.start(name, "-m", "shared.worker", module)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def kill(process: subprocess.Popen[bytes]) -> int:
    """kill -9, and the moment after which the process certainly did nothing more."""
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    return time.monotonic_ns()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        assert process.poll() is None, "the process ended at its start"
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=1, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} was not ready within {seconds} s")


@contextlib.contextmanager
def processes(folder: Path, environment: dict[str, str]) -> Iterator[Processes]:
    """Processes that are all gone at the end."""
    started = Processes(folder, environment)
    try:
        yield started
    finally:
        for process in started.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in started.running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


__all__ = ["Processes", "free_port", "kill", "processes", "wait_until_ready"]
