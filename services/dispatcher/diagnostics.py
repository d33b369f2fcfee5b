"""Recording a run on request: memory, profile, logs. contract: dispatcher DI-34

The request asks by the header `X-Task-Diagnostics`; the operator decides by the setting
`task_diagnostics` what may be recorded. Runs share a process: memory is the process's, and a
profile is of this run's own code only.
"""

import asyncio
import contextlib
import importlib.util
import logging
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from uuid import UUID

import structlog
from pyinstrument import Profiler

from services.dispatcher.reporting import Reports
from services.dispatcher.schemas import ProfileUpdate
from shared import ids
from shared.files import Files

log = structlog.get_logger("diagnostics")

HEADER = "X-Task-Diagnostics"
NAMES = {
    "memory": "memory_profile",
    "pyinstrument": "pyinstrument_profile",
    "memray": "memray_profile",
    "logs": "task_logs",
    "debug-logs": "task_logs",
}
SAMPLE_SECONDS = 0.5
CHUNK = 1024 * 1024
Recorder = Callable[[Path, UUID], AbstractAsyncContextManager[None]]


def requested(header: str | None) -> list[str]:
    """The options a request asked for; unknown ones are only warned about."""
    options = list(
        dict.fromkeys(part.strip() for part in (header or "").split(",") if part.strip())
    )
    unknown = [option for option in options if option not in NAMES]
    if unknown:
        log.warning("diagnostics.unknown", count=len(unknown))
    return [option for option in options if option in NAMES]


@contextlib.asynccontextmanager
async def recording(
    options: Sequence[str], allowed: Sequence[str], task_id: UUID, files: Files, reports: Reports
) -> AsyncIterator[None]:
    """Record what was asked for and is allowed, around a run; nothing costs nothing."""
    effective = [option for option in options if option in allowed and option in NAMES]
    if not effective:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lyceum-diagnostics-") as name:
        folder = Path(name)
        try:
            async with contextlib.AsyncExitStack() as stack:
                for option in effective:
                    await stack.enter_async_context(RECORDERS[option](folder, task_id))
                yield
        finally:
            await _keep(folder, task_id, files, reports)


async def _keep(folder: Path, task_id: UUID, files: Files, reports: Reports) -> None:
    for path in _recorded(folder):
        stored = f"diagnostics/{task_id}/{path.name}"
        try:
            await files.put(stored, _chunks(path))
        except OSError:
            log.exception("diagnostics.not_kept", file=path.name)
            continue
        reports.profiled(
            ProfileUpdate(
                id=ids.new_id(), task_id=task_id, name=path.name.partition(".")[0],
                file=stored, size=path.stat().st_size,
            )
        )  # fmt: skip


def _recorded(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
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
    try:
        profiler.start()
    except RuntimeError:  # another run of this process is being profiled
        log.warning("diagnostics.profiler_busy")
        yield
        return
    try:
        yield
    finally:
        profiler.stop()
        (folder / "pyinstrument_profile.html").write_text(profiler.output_html())


@contextlib.asynccontextmanager
async def _memray(folder: Path, task_id: UUID) -> AsyncIterator[None]:
    if importlib.util.find_spec("memray") is None:
        log.warning("diagnostics.memray_not_installed")
        yield
        return
    memray = importlib.import_module("memray")
    try:
        with memray.Tracker(folder / "memray_profile.bin"):
            yield
    except RuntimeError:  # one tracker a process
        log.warning("diagnostics.memray_busy")


class _Lines(logging.Handler):
    """The log lines of one task, as this process writes them."""

    def __init__(self, path: Path, task_id: UUID, level: int) -> None:
        super().__init__(level)
        self._out, self._mark = path.open("w"), str(task_id)

    def emit(self, record: logging.LogRecord) -> None:
        context = structlog.contextvars.get_contextvars()
        if context.get("task_id") == self._mark:
            for handler in logging.getLogger().handlers:
                if handler is not self and handler.formatter is not None:
                    self._out.write(handler.formatter.format(record) + "\n")
                    return

    def close(self) -> None:
        self._out.close()
        super().close()


def _logs(level: int) -> Recorder:
    @contextlib.asynccontextmanager
    async def record(folder: Path, task_id: UUID) -> AsyncIterator[None]:
        handler = _Lines(folder / "task_logs.txt", task_id, level)
        root = logging.getLogger()
        before = root.level
        root.addHandler(handler)
        root.setLevel(min(before, level))
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(before)
            handler.close()

    return record


RECORDERS: dict[str, Recorder] = {
    "memory": _memory,
    "pyinstrument": _pyinstrument,
    "memray": _memray,
    "logs": _logs(logging.INFO),
    "debug-logs": _logs(logging.DEBUG),
}
