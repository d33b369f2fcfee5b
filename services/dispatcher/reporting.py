"""What a running function reports of its parts to the dispatcher. contract: dispatcher §7

Whatever becomes of a report, it never changes what becomes of its task.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid5

import structlog
from sqlalchemy.exc import SQLAlchemyError

from services.dispatcher import client
from services.dispatcher.schemas import (
    LARGEST,
    LONGEST_NAME,
    MOST_RUNS,
    GroupShareUpdate,
    ProfileUpdate,
    ReportUpdate,
    Updates,
)
from services.dispatcher.states import State
from shared.clients import ServiceClients
from shared.database import Sessions, utc_now
from shared.loops import wait_for_news
from shared.problems import Problem

log = structlog.get_logger("reporting")
Item = TypeVar("Item")
PAUSE_SECONDS, AWAY_SECONDS = 0.25, 2.0
SHOWN = frozenset({"message", "total", "done", "suffix"})


class Report:
    """One part of a task: a context in which it is running, and a count.

    Entering and leaving are told at once; what changes between, by the methods or by setting
    message, total, done or suffix, is told four times a second.
    """

    state = State.WAITING

    def __init__(
        self, reports: "Reports", ident: UUID, place: int, message: str, code: str,
        total: int | None, suffix: str | None,
    ) -> None:  # fmt: skip
        self._reports, self._id, self._place = reports, ident, place
        self.message, self.code, self.total, self.suffix = message, _code(code), total, suffix
        self.done = 0

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in SHOWN and self.state is State.RUNNING:
            self._reports.change(self)

    async def __aenter__(self) -> Self:
        self.state = State.RUNNING
        await self._reports.tell(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.state = State.COMPLETED
        elif isinstance(error, asyncio.CancelledError):
            self.state = State.CANCELED
        else:
            self.state = State.FAILED
        await self._reports.tell(self)

    async def increment(self) -> None:
        await self.increase_by(1)

    async def increase_by(self, count: int) -> None:
        self.done += count
        if self.total is not None and self.done > self.total >= self.done - count:
            log.warning("report.more_than_total", code=self.code, done=self.done, total=self.total)
        if self.state is not State.RUNNING:
            await self._reports.tell(self)
        await asyncio.sleep(0)

    async def iter(self, items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
        """Yield each item and count it when the consumer has finished with it."""
        if isinstance(items, AsyncIterable):
            async for item in items:
                yield item
                await self.increment()
        else:
            for item in items:
                yield item
                await self.increment()

    def update(self) -> ReportUpdate:
        return ReportUpdate(
            id=self._id,
            task_id=self._reports.task_id,
            place=self._place,
            attempt=self._reports.attempt,
            message=_shown(self.message),
            code=self.code,
            state=self.state,
            total=None if self.total is None else _count(self.total),
            done=_count(self.done),
            suffix=None if self.suffix is None else _shown(self.suffix),
            at=self._reports.moment(),
        )


class GroupReport:
    """What this task adds to a count of its group."""

    def __init__(self, reports: "Reports", code: str, message: str, suffix: str | None) -> None:
        self._reports, self.code, self.message, self.suffix = reports, _code(code), message, suffix
        self.done = self.total = 0

    async def increase_by(self, count: int = 1, *, total: int = 0) -> None:
        """Add to what is done, and to what there is to do."""
        self.done += count
        self.total += total
        self._reports.change(self)
        await asyncio.sleep(0)

    def update(self) -> GroupShareUpdate:
        assert self._reports.group_id is not None
        return GroupShareUpdate(
            group_id=self._reports.group_id,
            task_id=self._reports.task_id,
            code=self.code,
            message=_shown(self.message),
            suffix=None if self.suffix is None else _shown(self.suffix),
            done=_count(self.done),
            total=_count(self.total),
            at=self._reports.moment(),
        )


class Reports:
    """All reports of one run."""

    def __init__(
        self,
        task_id: UUID,
        group_id: UUID | None,
        clients: ServiceClients,
        sessions: Sessions,
        *,
        attempt: int = 1,
    ) -> None:
        self.task_id, self.group_id, self.attempt = task_id, group_id, attempt
        self._clients, self._sessions = clients, sessions
        self._count = 0
        self._groups: dict[str, GroupReport] = {}
        self._changed: dict[int, Report | GroupReport] = {}
        self._profiles: list[ProfileUpdate] = []
        self._sender: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._last = utc_now()

    def report(
        self, message: str, code: str, *, total: int | None = None, suffix: str | None = None
    ) -> Report:
        """A part of this task. `code` names its kind for programs, `message` for people."""
        self._count += 1
        ident = uuid5(self.task_id, f"report-{self._count}")
        return Report(self, ident, self._count, message, code, total, suffix)

    def group_report(self, message: str, code: str, *, suffix: str | None = None) -> GroupReport:
        """A count that all tasks of this task's group raise together."""
        if self.group_id is None:
            raise ValueError("This task is in no group.")
        return self._groups.setdefault(code, GroupReport(self, code, message, suffix))

    def moment(self) -> datetime:
        """Now, and always later than before, whatever is done to the clock."""
        self._last = max(utc_now(), self._last + timedelta(microseconds=1))
        return self._last

    async def tell(self, report: Report) -> None:
        """Tell at once; through the outbox if the dispatcher is away."""
        self._changed.pop(id(report), None)
        await self._send_for_certain(Updates(reports=[report.update()]))

    def change(self, report: Report | GroupReport) -> None:
        """Tell soon, with whatever else changes until then. For the loop's own thread."""
        self._changed[id(report)] = report
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    def profiled(self, profile: ProfileUpdate) -> None:
        """Something was recorded about this run; told when it closes."""
        self._profiles.append(profile)

    async def close(self) -> None:
        """Tell what has not been told yet."""
        self._closing.set()
        try:
            if self._sender is not None:
                await self._sender
            while self._changed or self._profiles:
                updates = self._take()
                updates.profiles, self._profiles = self._profiles, []
                await self._send_for_certain(updates)
        except Exception:  # The end of the run must be told whatever becomes of its reports.
            log.exception("reports.not_told")

    def _take(self) -> Updates:
        keys = list(self._changed)[:MOST_RUNS]
        changed = [self._changed.pop(key) for key in keys]
        return Updates(
            reports=[one.update() for one in changed if isinstance(one, Report)],
            shares=[one.update() for one in changed if isinstance(one, GroupReport)],
        )

    async def _send(self) -> None:
        await wait_for_news(self._closing, PAUSE_SECONDS)
        while self._changed and not self._closing.is_set():
            changed, pause = dict(self._changed), PAUSE_SECONDS
            try:
                await client.report(self._clients, self._take())
            except Problem as problem:
                if _passing(problem):
                    self._changed, pause = changed | self._changed, AWAY_SECONDS
                    log.warning("reports.wait", why=problem.detail)
                else:
                    log.error("reports.refused", why=problem.detail)
            await wait_for_news(self._closing, pause)

    async def _send_for_certain(self, updates: Updates) -> None:
        try:
            await client.report(self._clients, updates)
        except Problem as problem:
            if _passing(problem):
                await self._send_later(updates)
            else:
                log.error("reports.refused", why=problem.detail)

    async def _send_later(self, updates: Updates) -> None:
        try:
            async with self._sessions.begin() as session:
                await client.report_later(session, updates)
        except (SQLAlchemyError, OSError) as error:
            log.error("reports.lost", why=type(error).__name__)


def _passing(problem: Problem) -> bool:
    """Whether the dispatcher was away or out of order; else it refuses what it was told."""
    return problem.status >= 500


def _code(code: str) -> str:
    if not code or len(code) > LONGEST_NAME or "\x00" in code:
        raise ValueError(f"A code has 1 to {LONGEST_NAME} characters, and no NUL.")
    code.encode()
    return code


def _shown(text: str) -> str:
    """A text as it can be stored: no NUL, no half of a surrogate pair, not too long."""
    whole = str(text).replace("\x00", "").encode("utf-8", "replace").decode()
    return whole[:LONGEST_NAME]


def _count(count: int) -> int:
    return max(0, min(int(count), LARGEST))
