"""Recording a run on request: memory, profile, logs. contract: dispatcher DI-34

The request asks by the header `X-Task-Diagnostics`; the operator decides by the setting
`task_diagnostics` what may be recorded. Runs share a process: memory is the process's, and a
profile is of this run's own code only. Whatever goes wrong with a recording, its run goes on and
ends as it would have without.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import re
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from pyinstrument import Profiler

from services.dispatcher.options import NAMES
from services.dispatcher.reporting import Reports
from services.dispatcher.schemas import ProfileUpdate
from shared.files import Files

log = structlog.get_logger("diagnostics")

SAMPLE_SECONDS = 0.5
CHUNK = 1024 * 1024
MOST_LOG_BYTES = 64 * 1024 * 1024
Recorder = Callable[[Path, UUID], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def recording(
    options: Sequence[str], allowed: Sequence[str], task_id: UUID, files: Files, reports: Reports
) -> AsyncIterator[None]:
    """Record what was asked for and is allowed, around a run; nothing costs nothing."""
    wanted = effective(options, allowed)
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory(
        prefix="lyceum-diagnostics-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_keep_all, folder, task_id, files, reports)
            for option in wanted:
                recorder = RECORDERS[option](folder, task_id)
                if await _safely(recorder.__aenter__()):
                    stack.push_async_callback(_leave, recorder)
            yield


def effective(options: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """What is recorded: of two options that record the same, the one that records more."""
    wanted = [option for option in NAMES if option in options and option in allowed]
    if "debug-logs" in wanted and "logs" in wanted:
        wanted.remove("logs")
    return wanted


async def _safely(step: Awaitable[Any]) -> bool:
    try:
        await step
    except Exception:  # The run must not suffer from being watched.
        log.exception("diagnostics.failed")
        return False
    return True


async def _leave(recorder: AbstractAsyncContextManager[None]) -> None:
    """Without the run's own error: a recorder has no say in it."""
    await _safely(recorder.__aexit__(None, None, None))


async def _keep_all(folder: Path, task_id: UUID, files: Files, reports: Reports) -> None:
    for path in _recorded(folder):
        await _safely(_keep(path, task_id, files, reports))


def _recorded(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def _keep(path: Path, task_id: UUID, files: Files, reports: Reports) -> None:
    stored = await files.put(f"diagnostics/{task_id}/{path.name}", _chunks(path))
    name: Any = path.name.partition(".")[0]
    reports.profiled(ProfileUpdate(task_id=task_id, name=name, file=stored.path, size=stored.size))


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


@contextlib.asynccontextmanager
async def _memory(folder: Path, task_id: UUID) -> AsyncIterator[None]:
    """Seconds and the process's largest memory so far in KiB, twice a second."""
    began = time.monotonic()

    async def sample() -> None:
        with (folder / "memory_profile.tsv").open("w") as out:
            while True:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                out.write(f"{time.monotonic() - began:.1f}\t{peak}\n")
                out.flush()
                await asyncio.sleep(SAMPLE_SECONDS)

    sampling = asyncio.create_task(sample())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


@contextlib.asynccontextmanager
async def _pyinstrument(folder: Path, task_id: UUID) -> AsyncIterator[None]:
    profiler = Profiler(async_mode="enabled")
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()
        # Long runs make large pages; meanwhile the process has other runs.
        page = await asyncio.to_thread(profiler.output_html)
        (folder / "pyinstrument_profile.html").write_text(page, encoding="utf-8")


@contextlib.asynccontextmanager
async def _memray(folder: Path, task_id: UUID) -> AsyncIterator[None]:
    """One run of a process at a time; a second one fails to begin, and is run unrecorded."""
    if importlib.util.find_spec("memray") is None:
        log.warning("diagnostics.memray_not_installed")
        yield
        return
    with importlib.import_module("memray").Tracker(folder / "memray_profile.bin"):
        yield


# What keeps the first two groups, if any, and stars the rest.
SECRET = re.compile(
    r"""(?ix)
      (\b(?:bearer|jwt|basic)\ )[^\s'",]+
    | ((?:signature|token|secret|password|authorization)['"]?\s*[=:]\s*['"]?
       (?:(?:bearer|jwt|basic)\ )?)[^\s&'",]+
    | \beyJ[\w-]+\.[\w-]+\.[\w-]+
    | (?<=://)[^/\s@]+(?=@)
    """
)


def without_secrets(line: str) -> str:
    """A log line without tokens, passwords and signatures, wherever in it they stand."""
    return SECRET.sub(lambda found: f"{found[1] or found[2] or ''}***", line)


class _Lines(logging.Handler):
    """The log lines of one task, as this process writes them, without secrets."""

    def __init__(self, path: Path, task_id: UUID, level: int) -> None:
        super().__init__(level)
        self._out = path.open("w", encoding="utf-8", errors="backslashreplace")
        self._mark, self._left = str(task_id), MOST_LOG_BYTES

    def emit(self, record: logging.LogRecord) -> None:
        context = structlog.contextvars.get_contextvars()
        if context.get("task_id") != self._mark or self._left <= 0:
            return
        try:
            line = without_secrets(_formatted(record)) + "\n"
            self._left -= len(line)
            self._out.write(line if self._left > 0 else "The rest is not kept.\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._out.close()
        super().close()


def _formatted(record: logging.LogRecord) -> str:
    for handler in logging.getLogger().handlers:
        if handler.formatter is not None:
            return handler.formatter.format(record)
    return record.getMessage()


class _Loudness:
    """Lets records of a lower level through to recordings only, while there are any."""

    def __init__(self) -> None:
        self._wanted: list[int] = []
        self._before: tuple[int, dict[logging.Handler, int]] | None = None

    def raise_to(self, level: int) -> None:
        root = logging.getLogger()
        if self._before is None:
            usual = {handler: handler.level for handler in root.handlers}
            self._before = root.level, usual
            for handler, its in usual.items():
                handler.setLevel(max(its, root.level))
        self._wanted.append(level)
        root.setLevel(min(self._before[0], *self._wanted))

    def lower(self, level: int) -> None:
        assert self._before is not None
        root = logging.getLogger()
        usual, handlers = self._before
        self._wanted.remove(level)
        root.setLevel(min([usual, *self._wanted]))
        if not self._wanted:
            self._before = None
            for handler, its in handlers.items():
                handler.setLevel(its)


_loudness = _Loudness()


def _logs(level: int) -> Recorder:
    @contextlib.asynccontextmanager
    async def record(folder: Path, task_id: UUID) -> AsyncIterator[None]:
        handler = _Lines(folder / "task_logs.txt", task_id, level)
        _loudness.raise_to(level)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            _loudness.lower(level)
            handler.close()

    return record


RECORDERS: dict[str, Recorder] = {
    "memory": _memory,
    "pyinstrument": _pyinstrument,
    "memray": _memray,
    "logs": _logs(logging.INFO),
    "debug-logs": _logs(logging.DEBUG),
}
