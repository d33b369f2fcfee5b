"""What a running function tells of itself; it reaches the user task."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from services.user_tasks import client as user_tasks
from services.user_tasks.schemas import (
    LARGEST,
    ArtifactReport,
    LastProgress,
    ProgressReport,
    stage_of,
)
from shared import ids
from shared.arrivals import Arrivals
from shared.clients import ServiceClients, patiently
from shared.database import utc_now
from shared.loops import wait_for_news
from shared.problems import Unavailable

log = structlog.get_logger("progress")
PAUSE_SECONDS = 0.25
# A run that is shorter tells how far it came with its end.
FIRST_SECONDS = 0.05


class Teller:
    """Tells the progress of all runs of a process: what comes together goes together."""

    def __init__(self, clients: ServiceClients) -> None:
        self.clients = clients
        self._arrivals = Arrivals[ProgressReport, None](self._nothing, self._tell)

    async def tell(self, report: ProgressReport) -> None:
        """Raises Unavailable."""
        await self._arrivals.add([report])

    @contextlib.asynccontextmanager
    async def _nothing(self) -> AsyncIterator[None]:
        yield

    async def _tell(
        self, _: None, reports: Sequence[ProgressReport], *, now: datetime
    ) -> Sequence[None]:
        await user_tasks.progress(self.clients, reports)
        return [None] * len(reports)


class Progress:
    """Steps, stage and artifacts of one run.

    Steps and stage are sent at most four times a second, the last ones with the end of the run.
    Every call is a point at which a canceled run stops (`asyncio.CancelledError`).
    """

    def __init__(self, task_id: UUID, attempt: int, teller: Teller) -> None:
        self._task_id, self._attempt = task_id, attempt
        self._teller, self._clients = teller, teller.clients
        self._run = asyncio.current_task()
        self._completed = 0
        self._total: int | None = None
        self._stage: str | None = None
        self._changed = False
        self._sender: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def stage(self, text: str) -> None:
        """Name what is being done now; the word of a state is told with three dots behind it."""
        self._stage = stage_of(text)
        await self._change()

    async def advance(self, steps: int = 1) -> None:
        """Some steps are done."""
        self._completed += steps
        await self._change()

    async def total(self, steps: int) -> None:
        """How many steps there are, once it is known."""
        self._total = steps
        await self._change()

    def check(self) -> None:
        """For work in a thread: raises CancelledError when the run was canceled."""
        if self._run is not None and self._run.cancelling():
            raise asyncio.CancelledError

    async def artifact(
        self,
        name: str,
        *,
        file: str | None = None,
        file_name: str | None = None,
        size: int | None = None,
        content_type: str | None = None,
        text: str = "",
        url: str = "",
    ) -> UUID:
        """Keep a result: a stored file, a text or an address. It is kept when this returns."""
        report = ArtifactReport(
            artifact_id=ids.new_id(),
            task_id=self._task_id,
            name=name,
            file=file,
            file_name=file_name,
            size=size,
            content_type=content_type,
            text=text,
            url=url,
            at=utc_now(),
        )
        await patiently(
            lambda: user_tasks.artifact(self._clients, report), what="artifact", longest=5.0
        )
        return report.artifact_id

    def last(self) -> LastProgress | None:
        """What was perhaps not told yet: it goes with the end of the run, and nothing after it."""
        self._closing.set()
        told = self._sender is None or self._sender.done()
        return None if told and not self._changed else self._report(utc_now())

    async def _change(self) -> None:
        self._changed = True
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        await asyncio.sleep(0)

    async def _send(self) -> None:
        await wait_for_news(self._closing, FIRST_SECONDS)
        while self._changed and not self._closing.is_set():
            self._changed = False
            try:
                await self._teller.tell(self._report(utc_now()))
            except Unavailable as problem:
                self._changed = True
                log.warning("progress.waits", why=problem.detail)
                return
            await wait_for_news(self._closing, PAUSE_SECONDS)

    def _report(self, now: datetime) -> ProgressReport:
        values: dict[str, Any] = {
            "task_id": self._task_id,
            "attempt": self._attempt,
            "at": now,
            "completed_steps": _within(self._completed),
            "total_steps": None if self._total is None else _within(self._total),
            "stage": self._stage,
        }
        return ProgressReport.model_validate(values)


def _within(steps: int) -> int:
    """What can be told of a count: a run never ends because it counts wrongly."""
    return max(0, min(steps, LARGEST))
