"""What a running function reports of its parts to the dispatcher. contract: dispatcher §7"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID, uuid5

import structlog

from services.dispatcher import client
from services.dispatcher.schemas import GroupShareUpdate, ProfileUpdate, ReportUpdate, Updates
from services.dispatcher.states import State
from shared.clients import ServiceClients
from shared.database import Sessions, utc_now
from shared.loops import wait_for_news
from shared.problems import Unavailable

log = structlog.get_logger("reporting")
Item = TypeVar("Item")
PAUSE_SECONDS = 0.25


class Report:
    """One part of a task: a context in which it is running, and a count.

    Entering and leaving are told at once; what changes between is told four times a second.
    """

    def __init__(
        self, reports: "Reports", ident: UUID, place: int, message: str, code: str,
        total: int | None, suffix: str | None,
    ) -> None:  # fmt: skip
        self._reports, self._id, self._place = reports, ident, place
        self.message, self.code, self.total, self.suffix = message, code, total, suffix
        self.done, self.state = 0, State.WAITING

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
        if self.total is not None and self.done > self.total:
            log.warning("report.more_than_total", code=self.code, done=self.done, total=self.total)
        await self._reports.change(self)

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
            message=self.message,
            code=self.code,
            state=self.state,
            total=self.total,
            done=self.done,
            suffix=self.suffix,
            at=utc_now(),
        )


class GroupReport:
    """What this task adds to a count of its group."""

    def __init__(self, reports: "Reports", code: str, message: str, suffix: str | None) -> None:
        self._reports, self.code, self.message, self.suffix = reports, code, message, suffix
        self.done = self.total = 0

    async def increase_by(self, count: int = 1, *, total: int = 0) -> None:
        """Add to what is done, and to what there is to do."""
        self.done += count
        self.total += total
        await self._reports.change(self)

    def update(self) -> GroupShareUpdate:
        assert self._reports.group_id is not None
        return GroupShareUpdate(
            group_id=self._reports.group_id,
            task_id=self._reports.task_id,
            code=self.code,
            message=self.message,
            suffix=self.suffix,
            done=self.done,
            total=self.total,
            at=utc_now(),
        )


class Reports:
    """All reports of one run."""

    def __init__(
        self, task_id: UUID, group_id: UUID | None, clients: ServiceClients, sessions: Sessions
    ) -> None:
        self.task_id, self.group_id = task_id, group_id
        self._clients, self._sessions = clients, sessions
        self._count = 0
        self._groups: dict[str, GroupReport] = {}
        self._changed: dict[int, Report | GroupReport] = {}
        self._profiles: list[ProfileUpdate] = []
        self._sender: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

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

    async def tell(self, report: Report) -> None:
        """Tell at once; through the outbox if the dispatcher is away."""
        self._changed.pop(id(report), None)
        await self._send_for_certain(Updates(reports=[report.update()]))

    async def change(self, report: Report | GroupReport) -> None:
        """Tell soon, with whatever else changes until then."""
        self._changed[id(report)] = report
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        await asyncio.sleep(0)

    def profiled(self, profile: ProfileUpdate) -> None:
        """Something was recorded about this run; told when it closes."""
        self._profiles.append(profile)

    async def close(self) -> None:
        """Tell what has not been told yet."""
        self._closing.set()
        if self._sender is not None:
            await self._sender
        if self._changed or self._profiles:
            updates = self._take()
            updates.profiles, self._profiles = self._profiles, []
            await self._send_for_certain(updates)

    def _take(self) -> Updates:
        changed, self._changed = list(self._changed.values()), {}
        return Updates(
            reports=[one.update() for one in changed if isinstance(one, Report)],
            shares=[one.update() for one in changed if isinstance(one, GroupReport)],
        )

    async def _send(self) -> None:
        await wait_for_news(self._closing, PAUSE_SECONDS)
        while self._changed and not self._closing.is_set():
            changed = dict(self._changed)
            try:
                await client.report(self._clients, self._take())
            except Unavailable as problem:
                self._changed = changed | self._changed
                log.warning("reports.wait", why=problem.detail)
                return
            await wait_for_news(self._closing, PAUSE_SECONDS)

    async def _send_for_certain(self, updates: Updates) -> None:
        try:
            await client.report(self._clients, updates)
        except Unavailable:
            async with self._sessions.begin() as session:
                await client.report_later(session, updates)
