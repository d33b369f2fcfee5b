"""Running dispatched functions without a dispatcher, and making libraries for them."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.runner import TaskContext
from services.libraries import libraries
from services.libraries.models import Library
from services.libraries.settings import Settings
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


def make_task(
    database: Database, files: Files, progress: Recorded | None = None, **settings: Any
) -> TaskContext:
    anything: Any = progress or Recorded()
    nothing: Any = None
    return TaskContext(
        task_id=uuid4(), user="ada", fence=1, attempt=1, settings=Settings(**settings),
        sessions=database.sessions, files=files, clients=nothing, progress=anything,
        reports=nothing, folder=nothing,
    )  # fmt: skip


async def make_library(session: AsyncSession, **values: Any) -> Library:
    defaults: dict[str, Any] = {
        "org": "Fjord", "slug": "BIRDS", "title": "Birds", "description": "",
        "allow_public_learning": False, "allow_public_read": False, "license": "",
        "user": "ada", "now": NOON,
    }  # fmt: skip
    return await libraries.create(session, **(defaults | values))


async def files_in(files: Files, prefix: str) -> list[str]:
    return [path async for path in files.list(prefix)]
