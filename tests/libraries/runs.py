"""Running dispatched functions without a dispatcher, and making libraries for them."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.reporting import Reports
from services.dispatcher.runner import TaskContext
from services.dispatcher.schemas import TaskRequest
from services.libraries import libraries
from services.libraries.models import Library
from services.libraries.settings import Settings
from services.libraries.worker import runner
from shared import outbox
from shared.callers import Caller
from shared.database import Database
from shared.files import Files

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
ADA = Caller("ada", user_id=1, email="ada@example.test")


@dataclass
class Recorded:
    """A progress that remembers what it was told, and cancels when it has gone far enough."""

    cancel_after: int | None = None
    stages: list[str] = field(default_factory=list)
    completed: int = 0
    totals: list[int] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)

    async def stage(self, text: str) -> None:
        self.stages.append(text)

    async def advance(self, steps: int = 1) -> None:
        self.completed += steps
        if self.cancel_after is not None and self.completed >= self.cancel_after:
            raise asyncio.CancelledError

    async def total(self, steps: int) -> None:
        self.totals.append(steps)

    def check(self) -> None:
        pass

    async def artifact(self, name: str, **values: Any) -> UUID:
        self.artifacts.append({"name": name} | values)
        return uuid4()

    async def close(self) -> None:
        pass


class RecordedReports(Reports):
    """Reports that stay here instead of going to the dispatcher."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(uuid4(), None, nothing, nothing)
        self.by_code: dict[str, Any] = {}

    async def tell(self, report: Any) -> None:
        self.by_code[report.code] = report

    def change(self, report: Any) -> None:
        self.by_code[report.code] = report

    def numbers(self) -> dict[str, tuple[int, int | None]]:
        return {code: (report.done, report.total) for code, report in self.by_code.items()}


def make_task(
    database: Database,
    files: Files,
    progress: Recorded | None = None,
    *,
    user: str | None = "ada",
    fence: int = 1,
    task_id: UUID | None = None,
    clients: Any = None,
    **settings: Any,
) -> TaskContext:
    anything: Any = progress or Recorded()
    nothing: Any = None
    return TaskContext(
        task_id=task_id or uuid4(), user=user, fence=fence, attempt=1,
        settings=Settings(**settings), sessions=database.sessions, files=files, clients=clients,
        progress=anything, reports=RecordedReports(), folder=nothing,
    )  # fmt: skip


class Asked:
    """Runs what the app's outbox asks the dispatcher for, in that order and one at a time."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.fence = app, 0
        self.requests: list[TaskRequest] = []
        self.created: list[tuple[str, str]] = []
        self.gone: list[str] = []

    async def waiting(self) -> list[TaskRequest]:
        """What has been asked for since the last run."""
        async with self.app.state.database.sessions() as session:
            notes = await outbox.waiting(session)
        return [
            TaskRequest.model_validate(payload)
            for receiver, name, payload in notes
            if (receiver, name) == ("dispatcher", "on_dispatch")
        ]

    async def notes(self) -> list[str]:
        """The names of all notes since then."""
        async with self.app.state.database.sessions() as session:
            return [name for _, name, _ in await outbox.waiting(session)]

    async def run(self, **settings: Any) -> Any:
        """Run the one task that was asked for: its result."""
        [request] = await self.waiting()
        self.requests.append(request)
        await self.forget()
        self.fence += 1
        state = self.app.state
        self.task = make_task(
            state.database, state.files, user=request.username, fence=self.fence,
            task_id=request.id, clients=state.clients, **settings,
        )  # fmt: skip
        try:
            return await runner._functions[request.function](self.task, **request.arguments)
        finally:
            await self.take_news()

    async def forget(self) -> None:
        async with self.app.state.database.sessions.begin() as session:
            await (await session.connection()).execute(text("delete from outbox"))

    async def take_news(self) -> None:
        async with self.app.state.database.sessions() as session:
            notes = await outbox.waiting(session)
        for _, name, payload in notes:
            if name == "on_created":
                self.created.append((payload["prn"], payload["href"]))
            if name == "on_resource_gone":
                self.gone.append(payload["prn"])
        await self.forget()


async def make_library(session: AsyncSession, **values: Any) -> Library:
    defaults: dict[str, Any] = {
        "org": "Fjord", "slug": "BIRDS", "title": "Birds", "description": "",
        "allow_public_learning": False, "allow_public_read": False, "license": "",
        "user": "ada", "now": NOON,
    }  # fmt: skip
    return await libraries.create(session, **(defaults | values))


async def files_in(files: Files, prefix: str) -> list[str]:
    return [path async for path in files.list(prefix)]
