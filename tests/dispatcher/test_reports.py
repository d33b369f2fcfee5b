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


async def test_a_group_counts_what_each_task_added_once(session: AsyncSession) -> None:
    group, one, two = uuid4(), uuid4(), uuid4()
    await session.exec(
        text(
            "insert into taskgroup (id, description, all_tasks_dispatched, created_at, updated_at)"
            " values (:id, '', false, :now, :now)"
        ).bindparams(id=group, now=NOON)
    )

    def share(task: UUID, done: int, **values: Any) -> GroupShareUpdate:
        return GroupShareUpdate(
            group_id=values.get("group", group), task_id=task, code="copied", message="Copied",
            done=done, total=done, at=NOON,
        )  # fmt: skip

    await reports.store_shares(session, [share(one, 3), share(two, 4)])
    await reports.store_shares(session, [share(one, 3), share(two, 5)])
    await reports.store_shares(session, [share(two, 4), share(one, 1, group=uuid4())])

    rows = (await session.exec(select(GroupShare))).all()
    assert {row.task_id: row.done for row in rows} == {one: 3, two: 5}


async def test_what_a_task_made_is_listed_once_and_shown_as_gone(session: AsyncSession) -> None:
    task = await accept(session)
    made = Created(task_id=task, prn="prn:a:1", href="/a/1/")

    await reports.created(session, [made, made, Created(task_id=task, prn="prn:a:2", href="/a/2/")])
    await reports.created(session, [made, Created(task_id=uuid4(), prn="prn:a:3", href="/a/3/")])
    await reports.gone(session, ["prn:a:2"])

    rows = (await session.exec(select(CreatedResource).order_by(col(CreatedResource.id)))).all()
    assert [(row.prn, row.gone) for row in rows] == [("prn:a:1", False), ("prn:a:2", True)]


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


async def test_a_run_has_a_private_folder_that_goes_with_it(worker: Worker) -> None:
    async def writes(task: TaskContext) -> list[Any]:
        (task.folder.path / "x").write_text("x")
        return [str(task.folder.path), task.folder.path.stat().st_mode & 0o777]

    async with worker.runs(writes=writes):
        folder, mode = (await worker.ended(await worker.dispatch("writes"))).result

    assert mode == 0o700
    assert not Path(folder).exists()


def test_only_known_diagnostics_can_be_asked_for() -> None:
    assert requested(" memory, logs,memory, nonsense") == ["memory", "logs"]
    assert requested(None) == []


async def test_what_was_asked_for_and_is_allowed_is_recorded(app: FastAPI, worker: Worker) -> None:
    log = structlog.get_logger("test")

    async def talks(task: TaskContext) -> None:
        log.info("said.something")
        await asyncio.sleep(0.05)

    allowed = {"task_diagnostics": ["logs", "memory", "pyinstrument"]}
    async with worker.runs(settings=allowed, talks=talks):
        asked = await worker.dispatch("talks", profile_options=["logs", "pyinstrument", "memray"])
        plain = await worker.dispatch("talks")
        await worker.ended(asked)
        await worker.ended(plain)

    async with app.state.database.sessions() as session:
        rows = (await session.exec(select(ProfileArtifact))).all()
    assert {(row.task_id, row.name) for row in rows} == {
        (asked, "task_logs"),
        (asked, "pyinstrument_profile"),
    }
    logs = next(row for row in rows if row.name == "task_logs")
    written = await app.state.files.read(logs.file)
    assert b"said.something" in written
    assert str(plain).encode() not in written


async def test_children_are_recorded_as_their_parents_are(app: FastAPI, worker: Worker) -> None:
    async def parent(task: TaskContext) -> str:
        request = client.make_request("child", queue="dispatcher", kwargs={})
        await client.dispatch_now(task.clients, [request])
        return str(request.id)

    async def child(task: TaskContext) -> None: ...

    async with worker.runs(settings={"task_diagnostics": ["memory"]}, parent=parent, child=child):
        first = await worker.ended(await worker.dispatch("parent", profile_options=["memory"]))
        await worker.ended(UUID(first.result))

    async with app.state.database.sessions() as session:
        rows = (await session.exec(select(ProfileArtifact))).all()
    assert {str(row.task_id) for row in rows} == {str(first.id), first.result}
