"""How far the parts of tasks are, what tasks made, and what was recorded about them."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client, reports, runs
from services.dispatcher.options import requested
from services.dispatcher.models import CreatedResource, GroupShare, ProfileArtifact, TaskReport
from services.dispatcher.runner import TaskContext
from services.dispatcher.schemas import Created, GroupShareUpdate, ReportUpdate
from services.dispatcher.states import State
from tests.dispatcher.conftest import NOON, accept, finish, register, start
from tests.dispatcher.in_process import Worker

REPORT = UUID(int=7)


def update(task_id: UUID, seconds: float = 0, **values: Any) -> ReportUpdate:
    values = {"state": "running", "total": 10, "done": 0} | values
    return ReportUpdate(
        id=REPORT, task_id=task_id, message="Counting", code="count",
        at=NOON + timedelta(seconds=seconds), **values,
    )  # fmt: skip


async def report_of(session: AsyncSession) -> TaskReport | None:
    return await session.get(TaskReport, REPORT, populate_existing=True)


async def test_late_and_repeated_updates_change_nothing(session: AsyncSession) -> None:
    task = await accept(session)
    await start(session, task)

    for one in (update(task, 2, done=5), update(task, 1, done=3), update(task, 2, done=9)):
        await reports.store(session, [one])

    found = await report_of(session)
    assert found is not None
    assert (found.done, found.total, found.state) == (5, 10, State.RUNNING)


async def test_updates_that_come_together_leave_the_newest(session: AsyncSession) -> None:
    task = await accept(session)
    await start(session, task)

    await reports.store(session, [update(task, 2, done=5), update(task, 1, done=3)])

    found = await report_of(session)
    assert found is not None
    assert found.done == 5


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_running_report_ends_as_its_task_does(session: AsyncSession, state: str) -> None:
    task = await accept(session)
    fence = await start(session, task)
    assert fence is not None
    await reports.store(session, [update(task)])

    await finish(session, task, fence, state)

    found = await report_of(session)
    assert found is not None
    assert found.state == state


async def test_a_report_that_comes_after_the_end_ends_as_the_task_did(
    session: AsyncSession,
) -> None:
    task = await accept(session)
    fence = await start(session, task)
    assert fence is not None
    await finish(session, task, fence, "failed")

    await reports.store(session, [update(task)])

    found = await report_of(session)
    assert found is not None
    assert found.state is State.FAILED


async def test_an_ended_report_stays_as_it_ended(session: AsyncSession) -> None:
    task = await accept(session)
    fence = await start(session, task)
    assert fence is not None
    await reports.store(session, [update(task, 1, state="completed", done=10)])

    await finish(session, task, fence, "failed")
    await reports.store(session, [update(task, 2, state="running", done=11)])

    found = await report_of(session)
    assert found is not None
    assert (found.state, found.done) == (State.COMPLETED, 10)


async def test_reports_of_unknown_tasks_are_dropped(session: AsyncSession) -> None:
    await reports.store(session, [update(uuid4())])

    assert await report_of(session) is None


async def test_an_end_and_an_update_at_the_same_moment_never_leave_a_running_report(
    app: FastAPI,
) -> None:
    sessions = app.state.database.sessions

    async def one(number: int) -> UUID:
        ident = uuid4()
        async with sessions.begin() as session:
            await session.exec(text("select 1"))
            task = await accept(session)
            await register(session)
        async with sessions.begin() as session:
            fence = await start(session, task)
            assert fence is not None

        async def tell() -> None:
            async with sessions.begin() as session:
                await reports.store(session, [update(task).model_copy(update={"id": ident})])

        async def ends() -> None:
            async with sessions.begin() as session:
                await finish(session, task, fence)

        await asyncio.gather(tell(), ends())
        return ident

    idents = await asyncio.gather(*(one(number) for number in range(20)))

    async with sessions() as session:
        found = await session.exec(select(TaskReport).where(col(TaskReport.id).in_(idents)))
        assert {row.state for row in found} == {State.COMPLETED}


async def make_group(session: AsyncSession) -> UUID:
    group = uuid4()
    await session.exec(
        text(
            "insert into taskgroup (id, description, all_tasks_dispatched, created_at, updated_at)"
            " values (:id, '', false, :now, :now)"
        ).bindparams(id=group, now=NOON)
    )
    return group


def share(group: UUID, task: UUID, done: int, **values: Any) -> GroupShareUpdate:
    return GroupShareUpdate.model_validate(
        {
            "group_id": group, "task_id": task, "code": "copied", "message": "Copied",
            "done": done, "total": done, "at": NOON,
        }
        | values
    )  # fmt: skip


async def shares(session: AsyncSession) -> dict[UUID, tuple[int, int]]:
    rows = await session.exec(select(GroupShare), execution_options={"populate_existing": True})
    return {row.task_id: (row.done, row.total) for row in rows}


async def test_a_group_counts_what_each_task_added_once(session: AsyncSession) -> None:
    group = await make_group(session)
    one, two = [await accept(session, group_id=group) for _ in range(2)]

    await reports.store_shares(session, [share(group, one, 3), share(group, two, 4)])
    await reports.store_shares(session, [share(group, one, 3), share(group, two, 5)])
    await reports.store_shares(session, [share(group, two, 4), share(group, two, 2)])

    assert await shares(session) == {one: (3, 3), two: (5, 5)}


async def test_tasks_add_to_the_counts_of_their_own_group_only(session: AsyncSession) -> None:
    group, other = await make_group(session), await make_group(session)
    task = await accept(session, group_id=group)

    await reports.store_shares(
        session, [share(other, task, 1), share(group, uuid4(), 1), share(uuid4(), task, 1)]
    )

    assert await shares(session) == {}
    assert (await session.exec(select(GroupReport))).all() == []


async def test_a_group_of_any_size_is_summed_by_one_statement(session: AsyncSession) -> None:
    group = await make_group(session)
    tasks = [await accept(session, group_id=group) for _ in range(30)]
    await reports.store_shares(session, [share(group, task, LARGEST) for task in tasks])
    found = await session.get(TaskGroup, group)
    assert found is not None

    with counted(session) as statements:
        contents = await groups.contents(session, [found])

    (report, done, total) = contents.reports[group][0]
    assert (report.code, report.total, done, total) == ("copied", 0, 30 * LARGEST, 30 * LARGEST)
    assert len(statements) == 3


async def test_reports_go_with_their_task(session: AsyncSession) -> None:
    task = await accept(session)
    await reports.store(session, [update(task)])
    await runs.cancel(session, [task], now=NOON)

    assert await runs.delete_finished(session, task)

    session.expunge_all()
    assert await report_of(session) is None


# From inside a function


async def rows_of(app: FastAPI, task: UUID) -> list[TaskReport]:
    async with app.state.database.sessions() as session:
        found = await session.exec(
            select(TaskReport).where(TaskReport.task_id == task).order_by(col(TaskReport.place))
        )
        return list(found)


async def test_a_function_reports_its_parts(app: FastAPI, worker: Worker) -> None:
    async def parts(task: TaskContext) -> None:
        async with task.reports.report("Reading", "read", total=3) as report:
            async for _ in report.iter(range(3)):
                pass
        async with task.reports.report("Writing", "write", suffix="x") as report:
            await report.increase_by(2)
            raise ValueError("broken")

    async with worker.runs(parts=parts):
        task = await worker.dispatch("parts")
        await worker.ended(task)

    shown = [
        (row.message, row.code, row.state.value, row.total, row.done, row.suffix)
        for row in await rows_of(app, task)
    ]
    assert shown == [
        ("Reading", "read", "completed", 3, 3, None),
        ("Writing", "write", "failed", None, 2, "x"),
    ]


async def test_a_canceled_part_is_canceled(app: FastAPI, worker: Worker) -> None:
    begun = asyncio.Event()

    async def waits(task: TaskContext) -> None:
        async with task.reports.report("Waiting", "wait"):
            begun.set()
            await asyncio.sleep(60)

    async with worker.runs(waits=waits):
        task = await worker.dispatch("waits")
        await begun.wait()
        assert [row.state for row in await rows_of(app, task)] == [State.RUNNING]
        await worker.cancel(task)
        await worker.ended(task)

    assert [row.state for row in await rows_of(app, task)] == [State.CANCELED]
