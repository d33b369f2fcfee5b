"""What we are compared with. Each peer is one small file, run as a process of its own.

A peer's file has `available()`, which says what is missing, and runs as
`python -m benchmarks.peers.NAME WHAT COUNT`: it starts its own worker, waits until it works,
measures, stops it, and prints one JSON object of numbers on its last line.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

INSTALL = "not installed; `make bench peers=1` installs the group `peers`"
LIMIT_SECONDS = 600.0


def missing(*modules: str) -> str | None:
    """Why a peer cannot run here, or None."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} {INSTALL}" if absent else None


def why_not(peer: str, *, wanted: bool = True) -> str | None:
    """Why this peer does not run here, or None."""
    if not wanted:
        return "not asked for"
    found: str | None = importlib.import_module(f"benchmarks.peers.{peer}").available()
    return found


def ask(
    peer: str, what: str, count: int, place: Mapping[str, str], *, python: str = sys.executable
) -> dict[str, float]:
    """Run a peer's process to its end; its numbers. `place` are environment variables."""
    done = subprocess.run(
        [python, "-m", f"benchmarks.peers.{peer}", what, str(count)],
        env=os.environ | place, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=LIMIT_SECONDS,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{peer} {what} failed:\n{(done.stderr or done.stdout)[-900:]}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def tell(**numbers: Any) -> None:
    print(json.dumps(numbers))


def wait_until(condition: Any, *, seconds: float = 300.0, pause: float = 0.005) -> None:
    """Poll until something holds."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise SystemExit(f"it did not happen within {seconds:.0f} s")
        time.sleep(pause)


def start(*command: str) -> subprocess.Popen[bytes]:
    """A worker of a peer. What it prints goes to our standard error."""
    return subprocess.Popen([sys.executable, *command], stdout=sys.stderr.fileno())


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
