"""Processes that outlive the command that started them, and are found again by the next one."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.stores import as_user

STOP_SECONDS = 40.0
# The lines of a log that say why a process ended: PostgreSQL's, Valkey's, Python's.
TELLING = re.compile(r"\b(FATAL|PANIC|Fatal|Failed|already in use)\b|^[\w.]*(Error|Behind)\b")


class ChildFailed(RuntimeError):
    """A process ended at its start; the text says which and shows its last lines."""


def born(pid: int) -> str | None:
    """When a living process began, as a mark no other process ever has. None for zombies.

    Ticks since a certain boot, not a time of day: those shift when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


@dataclass(frozen=True)
class Running:
    """A living process, told apart from strangers that get its pid later."""

    pid: int
    mark: str

    def alive(self) -> bool:
        return born(self.pid) == self.mark

    def send_signal(self, number: int) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether it ended in time. Its pid may stay a while longer, until someone reaps it."""
        limit = time.monotonic() + seconds
        while self.alive() and time.monotonic() < limit:
            time.sleep(0.02)
        return not self.alive()

    def uptime(self) -> float:
        ticks = int(self.mark.rpartition("/")[2])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes."""
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0


@dataclass(frozen=True)
class Child:
    """One process: `run/NAME.json` says which it is, `logs/NAME.log` has its output."""

    folder: Path
    name: str

    @property
    def record(self) -> Path:
        return self.folder / "run" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    def process(self) -> Running | None:
        """The living process that was recorded."""
        known = self._known()
        process = Running(known.get("pid", 0), known.get("born", ""))
        return process if process.alive() else None

    def follows(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether it was started with exactly this command and these settings."""
        return self._known().get("settings") == _digest(command, environment)

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start and record it. It is recorded or it does not run."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        own = environment or {}
        with self.log.open("ab") as log:
            log_from = log.tell()
            process = subprocess.Popen(
                command, env=os.environ | own, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, cwd=cwd, start_new_session=True, **as_user(user),
            )  # fmt: skip
        try:
            self._write(
                {
                    "pid": process.pid,
                    "born": born(process.pid) or "ended",
                    "settings": _digest(command, own),
                    "log_from": log_from,
                }
            )
        except BaseException:
            process.kill()
            process.wait()
            raise

    def ask_to_stop(self, number: int = signal.SIGTERM) -> bool:
        """Send it a signal. False when it was not running."""
        process = self.process()
        if process is None:
            self.record.unlink(missing_ok=True)
            return False
        process.send_signal(number)
        return True

    def wait_until_stopped(self) -> None:
        """Wait for its end, insist after a while."""
        process = self.process()
        if process is not None and not process.wait(STOP_SECONDS):
            process.kill()
            process.wait(STOP_SECONDS)
        self.record.unlink(missing_ok=True)

    def stop(self, number: int = signal.SIGTERM) -> bool:
        """Ask it to end and wait for that. False when it was not running."""
        was_running = self.ask_to_stop(number)
        if was_running:
            self.wait_until_stopped()
        return was_running

    def last_words(self) -> str:
        """One line that says what happened, from what it wrote since its start."""
        return f"{self.name} ended at its start: {self._reason()} (whole log: {self.log})"

    def _reason(self) -> str:
        with contextlib.suppress(OSError):
            text = self.log.read_bytes()[self._known().get("log_from", 0) :]
            lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
            telling = [number for number, line in enumerate(lines) if TELLING.search(line)]
            said = lines[telling[-1] : telling[-1] + 3] if telling else lines[-1:]
            if said:
                return " ".join(" ".join(said).split())[:300]
        return "it said nothing"

    def _known(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self.record.read_text())
            if isinstance(known, dict):
                return known
        return {}

    def _write(self, known: dict[str, Any]) -> None:
        temporary = self.record.with_suffix(".new")
        temporary.write_text(json.dumps(known))
        temporary.replace(self.record)


def _digest(command: Sequence[str], environment: Mapping[str, str]) -> str:
    text = json.dumps([list(command), dict(environment)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
