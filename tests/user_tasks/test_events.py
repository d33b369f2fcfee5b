"""What is told of changes, in which order and how often. contract: user_tasks §10.2"""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from fastapi import FastAPI
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, events, statuses
from services.user_tasks.events import Scope
from services.user_tasks.models import Event, Stage
from services.user_tasks.schemas import ContainerSpec
from shared.callers import Caller
from tests.user_tasks.conftest import (
    NOON,
    TASK,
    later,
    make_artifact,
    make_news,
    make_report,
    tell,
)

INES = Caller(username="ines")


async def told(session: AsyncSession, uuid: UUID = TASK) -> list[Event]:
    query = select(Event).where(Event.status_id == uuid).order_by(col(Event.id))
    return list((await session.exec(query)).all())


async def kinds(session: AsyncSession, uuid: UUID = TASK) -> list[str]:
    return [event.kind for event in await told(session, uuid)]


async def progress(session: AsyncSession, *reports: dict[str, Any]) -> None:
    made = [make_report(**report) for report in reports]
    await statuses.record_progress(session, made, now=later(10))


async def test_the_life_of_a_task_is_told_in_order(session: AsyncSession) -> None:
    await tell(session, "Pending", "In Progress")
    await progress(session, {"stage": "Exporting", "completed_steps": 1, "at": later(3)})
    await artifacts.record(session, [make_artifact(text="hello")], now=later(4))
    await tell(session, "Succeeded", at=later(5))

    assert await kinds(session) == [
        "task.created", "task.started", "task.stage", "task.progress", "task.artifact",
        "task.finished",
    ]  # fmt: skip


async def test_a_life_that_comes_in_one_piece_is_told_in_order_too(session: AsyncSession) -> None:
    last = {"stage": "Packing", "completed_steps": 2, "at": later(2)}
    news = [
        make_news(),
        make_news(state="In Progress", at=later(1)),
        make_news(state="Failed", at=later(3), error={"message": "Full."}, progress=last),
    ]

    await statuses.record_lifecycle(session, news, now=later(4))
    await statuses.record_lifecycle(session, news, now=later(5))

    assert await kinds(session) == [
        "task.created", "task.started", "task.stage", "task.progress", "task.artifact",
        "task.finished",
    ]  # fmt: skip
    ended = (await told(session))[-1].payload
    assert (ended["completed_steps"], ended["stage"], ended["state"]) == (2, "Packing", "Failed")


async def test_each_kind_carries_what_it_is_about(session: AsyncSession) -> None:
    await tell(session, "Pending")
    await tell(session, "In Progress", at=later(4))
    await progress(session, {"stage": "Exporting", "completed_steps": 1, "at": later(5)})
    await progress(session, {"stage": "Packing", "completed_steps": 2, "at": later(7)})
    await artifacts.record(session, [make_artifact(url="http://x.test/")], now=later(8))
    await tell(session, "Succeeded", at=later(14))

    said: dict[str, dict[str, Any]] = {e.kind: e.payload for e in await told(session)}
    created, finished = said["task.created"], said["task.finished"]
    assert (created["name"], created["type"], created["total_steps"]) == (
        "Export of CS101", "course_export", 3,
    )  # fmt: skip
    assert said["task.started"]["queue_seconds"] == 4.0
    assert (said["task.stage"]["stage"], said["task.stage"]["previous_stage"]) == (
        "Packing", "Exporting",
    )  # fmt: skip
    assert said["task.progress"]["rate"] is not None
    assert said["task.progress"]["eta_seconds"] is not None
    assert (said["task.artifact"]["name"], said["task.artifact"]["kind"]) == ("Output", "url")
    assert (finished["state"], finished["duration_seconds"]) == ("Succeeded", 10.0)


async def test_a_failure_is_told_with_its_error_and_artifact(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await tell(session, "Failed", at=later(2), error={"message": "no disk"})

    assert (await kinds(session))[-2:] == ["task.artifact", "task.finished"]
    assert (await told(session))[-1].payload["error"] == {"message": "no disk"}


async def test_another_attempt_is_told(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await tell(session, "Retrying", at=later(2), attempt=2)
    await tell(session, "In Progress", at=later(3), attempt=2)

    assert await kinds(session) == [
        "task.created", "task.started", "task.retrying", "task.started",
    ]  # fmt: skip


async def test_news_that_changes_nothing_is_not_told(session: AsyncSession) -> None:
    await tell(session, "In Progress", "Succeeded")
    before = await kinds(session)

    await tell(session, "In Progress", "Succeeded", "Failed", "Canceled")
    await progress(session, {"completed_steps": 1, "at": later(1)})

    assert await kinds(session) == before


async def test_a_cancel_says_who_asked_for_it(session: AsyncSession) -> None:
    await tell(session, "In Progress")

    for _ in range(2):
        await statuses.cancel(session, TASK, caller=INES, now=later(3))

    assert (await kinds(session))[-2:] == ["task.cancel_requested", "task.finished"]
    assert (await kinds(session)).count("task.cancel_requested") == 1
    assert (await told(session))[-2].payload["by"] == "ines"


async def test_of_a_deleted_running_task_the_end_and_the_removal_are_told(
    session: AsyncSession,
) -> None:
    await tell(session, "In Progress")

    await statuses.delete(session, TASK, caller=INES, now=later(3))
    await tell(session, "Succeeded", at=later(5))

    assert (await kinds(session))[-3:] == ["task.cancel_requested", "task.finished", "task.deleted"]
    assert (await kinds(session)).count("task.finished") == 1


async def test_a_deleted_ended_task_does_not_end_again(session: AsyncSession) -> None:
    await tell(session, "In Progress", "Succeeded")

    await statuses.delete(session, TASK, caller=INES, now=later(3))

    assert (await kinds(session))[-2:] == ["task.finished", "task.deleted"]


async def test_every_row_of_a_tree_ends_exactly_once(app: FastAPI) -> None:
    sessions = app.state.database.sessions
    top = ContainerSpec(id=uuid4(), kind="chord", members=2, total_steps=9)
    inside = ContainerSpec(id=uuid4(), kind="group", members=8, total_steps=8)
    members, body = [uuid4() for _ in range(8)], uuid4()
    paths = {one: [top, inside] for one in members} | {body: [top]}

    async def lives(one: UUID) -> None:
        for state in ("Pending", "In Progress", "Succeeded", "Succeeded"):
            piece = make_news(task_id=one, state=state, containers=paths[one], total_steps=1)
            async with sessions.begin() as session:
                await statuses.record_lifecycle(session, [piece], now=NOON)

    await asyncio.gather(*map(lives, members))
    await lives(body)

    async with sessions() as session:
        query = select(Event.status_id).where(Event.kind == "task.finished")
        finished = list((await session.exec(query)).all())
    assert sorted(finished) == sorted([*members, body, top.id, inside.id])


async def test_each_named_stage_is_kept_even_when_several_come_together(
    session: AsyncSession,
) -> None:
    await tell(session, "In Progress")
    names = ["Unpacking", "Verifying", "Updating"]
    await progress(session, *[{"stage": name, "at": later(3 + n)} for n, name in enumerate(names)])
    await progress(session, {"stage": "Updating", "at": later(9)})
    await tell(session, "Retrying", attempt=2, at=later(10))
    await progress(session, {"stage": "Updating", "attempt": 2, "at": later(11)})

    query = select(Stage).where(Stage.status_id == TASK).order_by(col(Stage.id))
    kept = [(row.stage, row.attempt, row.at) for row in await session.exec(query)]
    assert kept == [
        ("Unpacking", 1, later(3)), ("Verifying", 1, later(4)), ("Updating", 1, later(5)),
        ("Updating", 2, later(11)),
    ]  # fmt: skip


async def test_ids_are_in_the_order_of_commits(app: FastAPI) -> None:
    sessions = app.state.database.sessions
    mine, other, between = uuid4(), uuid4(), asyncio.Event()

    async def first() -> None:
        async with sessions.begin() as session:
            await statuses.record_lifecycle(session, [make_news(task_id=mine)], now=NOON)
            between.set()
            # Long enough for the other to overtake, were it not made to wait.
            await asyncio.sleep(0.3)

    async def second() -> None:
        await between.wait()
        async with sessions.begin() as session:
            await statuses.record_lifecycle(session, [make_news(task_id=other)], now=NOON)
        async with sessions() as session:
            query = select(Event.status_id).order_by(col(Event.id))
            assert list((await session.exec(query)).all()) == [mine, other]

    await asyncio.gather(first(), second())


async def test_what_is_rolled_back_is_never_told(app: FastAPI) -> None:
    sessions = app.state.database.sessions
    async with sessions() as session:
        await tell(session, "In Progress")
        await session.rollback()

    async with sessions() as session:
        assert await kinds(session) == []


async def test_old_events_are_forgotten_but_the_newest_never(session: AsyncSession) -> None:
    await tell(session, "Pending", "In Progress")
    last = (await told(session))[-1].id

    keep = timedelta(hours=24)
    assert await events.prune(session, now=later(3600), keep=keep) == 0
    assert await events.prune(session, now=NOON + timedelta(hours=25), keep=keep) == 1

    assert [event.id for event in await told(session)] == [last]


async def test_a_scope_has_its_own_events_only(session: AsyncSession) -> None:
    inside, other = ContainerSpec(id=uuid4(), kind="group", members=1), uuid4()
    await tell(session, "Pending", containers=[inside])
    await tell(session, "Pending", task_id=other, user="olga")

    async def of(scope: Scope) -> set[UUID]:
        return {row["status_id"] for row in await events.kept(session, scope, 0, most=100)}

    assert await of(Scope("task", TASK)) == {TASK}
    assert await of(Scope("tree", inside.id)) == {TASK, inside.id}
    assert await of(Scope("user", "olga")) == {other}
