"""What the dispatcher tells of chains, groups and chords is what people see of them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest_asyncio
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import assigning, claims, runs, workers
from services.dispatcher.groupings import chain, chord
from services.dispatcher.schemas import FinishReport, Heartbeat, TaskRequest, UserTaskSpec
from services.user_tasks.jobs import on_lifecycle
from services.user_tasks.models import Status
from shared import outbox
from shared.database import Database
from shared.testing import rolled_back
from tests.conftest import Servers

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
WORKER = UUID(int=1)


@pytest_asyncio.fixture
async def sessions(servers: Servers) -> AsyncIterator[tuple[AsyncSession, AsyncSession]]:
    """Of the dispatcher and of user_tasks, both undone at the end."""
    databases = [Database(servers.urls[name]) for name in ("dispatcher", "user_tasks")]
    async with rolled_back(databases[0]) as dispatcher, rolled_back(databases[1]) as user_tasks:
        report = Heartbeat(name="w", queue="libraries", first=True)
        await workers.heartbeat(dispatcher, WORKER, report, now=NOON)
        yield dispatcher, user_tasks
    for database in databases:
        await database.close()


def part(name: str) -> TaskRequest:
    return TaskRequest(
        id=uuid4(), function="work", queue="libraries", username="ines",
        user_task=UserTaskSpec(name=name, total_steps=2, task_type="part"),
    )  # fmt: skip


class Story:
    """Runs tasks in the dispatcher and hands its notes to user_tasks."""

    def __init__(self, dispatcher: AsyncSession, user_tasks: AsyncSession) -> None:
        self.dispatcher, self.user_tasks = dispatcher, user_tasks
        self.told, self.seconds = 0, 0

    @property
    def now(self) -> datetime:
        self.seconds += 1
        return NOON + timedelta(seconds=self.seconds)

    async def accept(self, tasks: list[TaskRequest]) -> None:
        await runs.accept(self.dispatcher, tasks, now=self.now)

    async def run(self, task: TaskRequest, state: str = "completed", **values: Any) -> None:
        await claims.serialized(self.dispatcher)
        given = await assigning.start(self.dispatcher, WORKER, [task.id], now=self.now)
        report = FinishReport.model_validate(
            {"task_id": task.id, "fence": given[0].fence, "state": state, **values}
        )
        await runs.finish(self.dispatcher, [report], now=self.now)

    async def shown(self, uuid: UUID) -> Status:
        notes = await outbox.waiting(self.dispatcher)
        await on_lifecycle(self.user_tasks, [payload for _, _, payload in notes[self.told :]])
        self.told = len(notes)
        status = await self.user_tasks.get(Status, uuid, populate_existing=True)
        assert status is not None
        return status


async def test_a_chain_that_runs_through(sessions: tuple[AsyncSession, AsyncSession]) -> None:
    story, container = Story(*sessions), uuid4()
    links = chain([part("one"), part("two")], name="Both", container_id=container)
    await story.accept(links)
    before = await story.shown(container)
    assert (before.state.value, before.name, before.total_steps) == ("Pending", "Both", 4)

    await story.run(links[0])
    middle = await story.shown(container)
    assert (middle.state.value, middle.completed_steps) == ("In Progress", 2)
    await story.run(links[1])

    after = await story.shown(container)
    assert (after.state.value, after.completed_steps) == ("Succeeded", 4)


async def test_a_chain_that_breaks(sessions: tuple[AsyncSession, AsyncSession]) -> None:
    story, container = Story(*sessions), uuid4()
    links = chain([part("one"), part("two"), part("three")], container_id=container)
    await story.accept(links)

    await story.run(links[0], "failed", error={"description": "No such course."})

    assert (await story.shown(container)).error == {
        "code": "failed",
        "message": "No such course.",
        "child": str(links[0].id),
    }
    states = [(await story.shown(link.id)).state.value for link in links]
    assert states == ["Failed", "Canceled", "Canceled"]


async def test_a_chord_and_its_body(sessions: tuple[AsyncSession, AsyncSession]) -> None:
    story, container = Story(*sessions), uuid4()
    one, two, body = tasks = chord([part("one"), part("two")], part("body"), container_id=container)
    await story.accept(tasks)

    await story.run(one)
    await story.run(two)
    assert (await story.shown(container)).state.value == "In Progress"
    await story.run(body)

    whole = await story.shown(container)
    assert (whole.state.value, whole.completed_steps, whole.total_steps) == ("Succeeded", 6, 6)
    group = (await story.shown(one.id)).parent_id
    assert group is not None
    assert (await story.shown(group)).state.value == "Succeeded"
