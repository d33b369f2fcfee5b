"""Processes that outlive the command that started them, and are found again by the next one."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

STOP_SECONDS = 40.0
SAME_SECONDS = 0.1


class ChildFailed(RuntimeError):
    """A process ended at its start; the text says which and shows its last lines."""


@dataclass(frozen=True)
class Child:
    """One process: `run/NAME.json` has its pid and start time, `logs/NAME.log` its output."""

    folder: Path
    name: str

    @property
    def record(self) -> Path:
        return self.folder / "run" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    def process(self) -> psutil.Process | None:
        """The living process that was recorded; never a stranger that got its pid later."""
        try:
            recorded = json.loads(self.record.read_text())
            process = psutil.Process(recorded["pid"])
            same = abs(process.create_time() - recorded["started"]) < SAME_SECONDS
            alive = same and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, KeyError, psutil.Error):
            return None
        return process if alive else None

    def start(
        self,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        user: str | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start and record it. Raises ChildFailed when it cannot even begin."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, user=user, cwd=cwd, start_new_session=True,
            )  # fmt: skip
        try:
            started = psutil.Process(process.pid).create_time()
        except psutil.Error as error:
            raise ChildFailed(self.last_words()) from error
        temporary = self.record.with_suffix(".new")
        temporary.write_text(json.dumps({"pid": process.pid, "started": started}))
        temporary.replace(self.record)

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
        if not self._ended(STOP_SECONDS) and (process := self.process()) is not None:
            process.kill()
            self._ended(STOP_SECONDS)
        self.record.unlink(missing_ok=True)

    def stop(self, number: int = signal.SIGTERM) -> bool:
        """Ask it to end and wait for that. False when it was not running."""
        was_running = self.ask_to_stop(number)
        if was_running:
            self.wait_until_stopped()
        return was_running

    def _ended(self, seconds: float) -> bool:
        # Not psutil's own wait: the pid stays until init reaps it, long after the process ended.
        limit = time.monotonic() + seconds
        while self.process() is not None and time.monotonic() < limit:
            time.sleep(0.02)
        return self.process() is None

    def last_words(self) -> str:
        """One line that says what happened, from its log."""
        lines = (
            self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        )
        telling = [line for line in lines[-30:] if line.strip()] or ["it said nothing"]
        return f"{self.name} ended at its start: {telling[-1][:300]} (whole log: {self.log})"

    def uptime(self) -> float:
        process = self.process()
        return time.time() - process.create_time() if process else 0.0
