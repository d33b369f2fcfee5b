"""How far the parts of tasks are. contract: dispatcher §7, DI-04, T-26"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import groups, reporting, reports, runs
from services.dispatcher.jobs import NOTES
from services.dispatcher.models import GroupReport, GroupShare, TaskGroup, TaskReport
from services.dispatcher.runner import Again, TaskContext
from services.dispatcher.schemas import LARGEST, GroupShareUpdate, ReportUpdate
from services.dispatcher.states import State
from shared import outbox
from shared.callers import service_token
from shared.database import Database, driver
from shared.testing import as_user
from tests.conftest import Servers
from tests.dispatcher.conftest import NOON, accept, finish, register, start, until_blocked
from tests.dispatcher.in_process import Worker
from tests.statements import statements

REPORT = UUID(int=7)
REPORTS = "/api/dispatcher/v1/reports"


def update(task_id: UUID, seconds: float = 0, **values: Any) -> ReportUpdate:
    usual = {
        "id": REPORT, "task_id": task_id, "message": "Counting", "code": "count",
        "state": "running", "total": 10, "done": 0, "at": NOON + timedelta(seconds=seconds),
    }  # fmt: skip
    return ReportUpdate.model_validate(usual | values)


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


async def test_reports_of_unknown_tasks_are_dropped_and_the_others_kept(
    session: AsyncSession,
) -> None:
    task = await accept(session)

    await reports.store(session, [update(uuid4()).model_copy(update={"id": uuid4()})])
    await reports.store(session, [update(uuid4()).model_copy(update={"id": uuid4()}), update(task)])

    assert [row.task_id for row in await session.exec(select(TaskReport))] == [task]


async def test_a_task_cannot_change_another_ones_report(session: AsyncSession) -> None:
    owner, other = await accept(session), await accept(session)
    await reports.store(session, [update(owner, done=1)])

    await reports.store(session, [update(other, 5, done=9)])
    await reports.store(session, [update(other, 6, done=9), update(owner, 5, done=2)])
    await reports.store(session, [update(owner, 7, done=3)])

    found = await report_of(session)
    assert found is not None
    assert (found.task_id, found.done) == (owner, 3)


async def test_a_repeated_run_begins_its_reports_anew(session: AsyncSession) -> None:
    task = await accept(session)
    fence = await start(session, task)
    assert fence is not None
    await reports.store(session, [update(task, 5, state="failed", done=7)])
    await finish(session, task, fence, "retry")

    await reports.store(session, [update(task, 1, attempt=2, done=1, code="again")])
    await reports.store(session, [update(task, 9, attempt=1, done=8)])

    found = await report_of(session)
    assert found is not None
    assert (found.state, found.done, found.code) == (State.RUNNING, 1, "again")


async def test_a_run_that_was_given_up_reports_nothing_any_more(session: AsyncSession) -> None:
    task = await accept(session, repeatable=True)
    await start(session, task)
    await runs.give_up_lost_workers(
        session, now=NOON + timedelta(hours=1), ttl=timedelta(seconds=20), most_attempts=3
    )

    await reports.store(session, [update(task)])

    assert await report_of(session) is None


async def test_only_running_reports_follow_their_task(session: AsyncSession) -> None:
    task = await accept(session)
    fence = await start(session, task)
    assert fence is not None
    states = ["waiting", "running", "completed", "failed", "canceled"]
    rows = {state: update(task, state=state).model_copy(update={"id": uuid4()}) for state in states}
    await reports.store(session, list(rows.values()))

    await finish(session, task, fence, "failed")

    found = {row.id: row.state.value for row in await session.exec(select(TaskReport))}
    assert {state: found[row.id] for state, row in rows.items()} == {
        "waiting": "waiting", "running": "failed", "completed": "completed", "failed": "failed",
        "canceled": "canceled",
    }  # fmt: skip


# Races, with real commits


async def test_an_end_and_an_update_at_the_same_moment_never_leave_a_running_report(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        await register(session)

    async def one() -> UUID:
        ident = uuid4()
        async with sessions.begin() as session:
            task = await accept(session)
            fence = await start(session, task)
            assert fence is not None

        async def tell() -> None:
            async with sessions.begin() as session:
                await reports.store(session, [update(task, id=ident)])

        async def ends() -> None:
            async with sessions.begin() as session:
                await finish(session, task, fence)

        await asyncio.gather(tell(), ends())
        return ident

    idents = [ident for _ in range(5) for ident in await asyncio.gather(*(one() for _ in range(6)))]

    async with sessions() as session:
        found = await session.exec(select(TaskReport).where(col(TaskReport.id).in_(idents)))
        assert [row.state for row in found] == [State.COMPLETED] * len(idents)


async def test_an_end_waits_for_an_update_that_is_being_stored(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        await register(session)
        task = await accept(session)
        fence = await start(session, task)
        assert fence is not None

    async def ends() -> None:
        async with sessions.begin() as session:
            await finish(session, task, fence)

    async with sessions.begin() as session:
        await reports.store(session, [update(task)])
        ending = asyncio.create_task(ends())
        await until_blocked(database)
    await ending

    async with sessions() as session:
        found = await report_of(session)
    assert found is not None
    assert found.state is State.COMPLETED


async def test_updates_of_several_tasks_and_their_ends_never_wait_for_each_other(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        await register(session)
        low, high = sorted([await accept(session), await accept(session)])
        fences = {task: await start(session, task) for task in (low, high)}

    async def tell() -> None:
        async with sessions.begin() as session:
            await reports.store(session, [update(task, id=uuid4()) for task in (low, high)])

    async with sessions.begin() as session:
        for task in (high, low):
            fence = fences[task]
            assert fence is not None
            assert await finish(session, task, fence)
            if task == high:
                telling = asyncio.create_task(tell())
                await until_blocked(database)
    await telling

    async with sessions() as session:
        found = [row.state for row in await session.exec(select(TaskReport))]
    assert found == [State.COMPLETED, State.COMPLETED]


async def test_updates_in_any_order_from_several_processes_leave_the_newest(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        task = await accept(session)

    async def tell(number: int) -> None:
        async with sessions.begin() as session:
            await reports.store(session, [update(task, number, done=number)])

    numbers = [number for number in range(20) for _ in range(2)]
    random.Random(3).shuffle(numbers)
    await asyncio.gather(*(tell(number) for number in numbers))

    async with sessions() as session:
        found = await report_of(session)
    assert found is not None
    assert found.done == 19


async def test_tasks_that_add_to_a_new_count_at_the_same_moment_are_all_counted(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        group = await make_group(session)
        tasks = [await accept(session, group_id=group) for _ in range(10)]

    async def add(task: UUID, done: int) -> None:
        async with sessions.begin() as session:
            await reports.store_shares(session, [share(group, task, done)])

    await asyncio.gather(*(add(task, done) for task in tasks for done in (1, 2, 3)))

    async with sessions() as session:
        assert await shares(session) == dict.fromkeys(tasks, (3, 3))


async def test_reports_of_removed_tasks_are_dropped_whoever_comes_first(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        tasks = [await accept(session) for _ in range(10)]
        await runs.cancel(session, tasks, now=NOON)

    async def remove(task: UUID) -> None:
        async with sessions.begin() as session:
            assert await runs.delete_finished(session, task)

    async def tell(task: UUID) -> None:
        async with sessions.begin() as session:
            await reports.store(session, [update(task, id=uuid4())])

    await asyncio.gather(*(step(task) for task in tasks for step in (tell, remove)))

    async with sessions() as session:
        assert (await session.exec(select(TaskReport))).all() == []


# Groups


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

    with statements(session.get_bind().engine) as seen:
        contents = await groups.contents(session, [found])

    (report, done, total) = contents.reports[group][0]
    assert (report.code, report.total, done, total) == ("copied", 0, 30 * LARGEST, 30 * LARGEST)
    assert len(seen) == 3


async def test_reports_go_with_their_task(session: AsyncSession) -> None:
    task = await accept(session)
    await reports.store(session, [update(task)])
    await runs.cancel(session, [task], now=NOON)

    assert await runs.delete_finished(session, task)

    session.expunge_all()
    assert await report_of(session) is None


# Over HTTP


@pytest.mark.parametrize(
    "values",
    [
        {"message": "a\x00b"},
        {"code": ""},
        {"code": "x" * 501},
        {"message": "x" * 501},
        {"suffix": "\x00"},
        {"state": "canceling"},
        {"state": "skipped"},
        {"done": -1},
        {"done": 2**63},
        {"total": 10**400},
        {"done": 1.5},
        {"place": 2**31},
        {"attempt": 0},
        {"attempt": 2**31},
        {"at": "9999-12-31T23:59:59-12:00"},
        {"at": "0001-01-01T00:00:00+12:00"},
        {"at": "2026-11-21T12:00:00"},
        {"id": "x"},
        {"task_id": None},
    ],
)
async def test_hostile_values_are_refused_by_name_and_nothing_is_stored(
    app: FastAPI, service: httpx.AsyncClient, values: dict[str, Any]
) -> None:
    async with app.state.database.sessions.begin() as session:
        task = await accept(session)
    good = update(task, id=uuid4()).model_dump(mode="json")
    bad = update(task).model_dump(mode="json") | values

    answer = await service.post(REPORTS, json={"reports": [good, bad]})

    assert answer.status_code == 400
    assert [name.split(".")[:3] for name in answer.json()["fields"]] == [
        ["reports", "1", next(iter(values))]
    ]
    assert await rows_of(app, task) == []


@pytest_asyncio.fixture
async def service(app: FastAPI, http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers["Authorization"] = f"Bearer {service_token(app.state.settings)}"
    return http


async def test_only_services_report(http: httpx.AsyncClient) -> None:
    assert (await http.post(REPORTS, json={})).status_code == 401
    assert (await http.post(REPORTS, json={}, headers=as_user("root"))).status_code == 403


async def test_a_request_of_any_size_takes_the_same_number_of_statements(
    session: AsyncSession,
) -> None:
    tasks = [await accept(session) for _ in range(40)]
    plain = await driver(session)
    sent: list[int] = []

    for some in (tasks[:2], tasks[2:]):
        statements: list[str] = []
        with plain.query_logger(lambda record: statements.append(record.query)):  # noqa: B023
            await reports.store(session, [update(task, id=uuid4()) for task in some])
            # The driver tells of statements in the next round of the loop.
            await asyncio.sleep(0)
        sent.append(len(statements))

    assert sent == [3, 3]


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


async def test_a_task_that_is_run_again_reports_anew(app: FastAPI, worker: Worker) -> None:
    attempts: list[int] = []

    async def again(task: TaskContext) -> None:
        attempts.append(task.attempt)
        async with task.reports.report("Trying", "try") as report:
            await report.increase_by(1 if task.attempt == 2 else 5)
            if task.attempt == 1:
                raise Again

    async with worker.runs(again=again):
        task = await worker.dispatch("again")
        await worker.ended(task)

    assert attempts == [1, 2]
    assert [(row.state, row.done) for row in await rows_of(app, task)] == [(State.COMPLETED, 1)]


async def test_what_is_set_inside_is_told_soon(app: FastAPI, worker: Worker) -> None:
    go_on = asyncio.Event()

    async def sets(task: TaskContext) -> None:
        async with task.reports.report("Reading", "read") as report:
            report.total, report.message, report.suffix, report.done = 9, "Still reading", "s", 4
            await go_on.wait()

    async with worker.runs(sets=sets):
        task = await worker.dispatch("sets")
        async with asyncio.timeout(10):
            while [row.done for row in await rows_of(app, task)] != [4]:
                await asyncio.sleep(0.02)
        (row,) = await rows_of(app, task)
        go_on.set()
        await worker.ended(task)

    assert (row.total, row.message, row.suffix) == (9, "Still reading", "s")
    assert row.state is State.RUNNING


@pytest.fixture
def posts(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> "Posts":
    return Posts(worker, monkeypatch)


class Posts:
    """The reports a worker sends: how many, and whether they arrive."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.answer = 0, 0
        self._through = worker.way.handle_async_request
        monkeypatch.setattr(worker.way, "handle_async_request", self._handle)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != REPORTS:
            return await self._through(request)
        self.count += 1
        if self.answer < 0:
            raise httpx.ConnectError("away", request=request)
        if self.answer:
            body = {"type": "about:blank", "title": "No", "status": self.answer, "detail": "No."}
            return httpx.Response(self.answer, json=body, request=request)
        return await self._through(request)


async def test_many_changes_are_told_at_most_four_times_a_second(
    app: FastAPI, worker: Worker, posts: Posts
) -> None:
    took = 0.0

    async def counts(task: TaskContext) -> None:
        nonlocal took
        began = time.monotonic()
        async with task.reports.report("Counting", "count", total=2000) as report:
            async for _ in report.iter(range(2000)):
                await asyncio.sleep(0.0003)
        took = time.monotonic() - began

    async with worker.runs(counts=counts):
        task = await worker.dispatch("counts")
        await worker.ended(task)

    assert 2 < posts.count <= 2 + took / reporting.PAUSE_SECONDS + 1
    assert [row.done for row in await rows_of(app, task)] == [2000]


async def test_an_async_iterable_is_counted_item_by_item(app: FastAPI, worker: Worker) -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    seen: list[tuple[int, int]] = []

    async def counts(task: TaskContext) -> None:
        async with task.reports.report("Counting", "count") as report:
            async for item in report.iter(items()):
                seen.append((item, report.done))
                if item == 2:
                    raise ValueError("before it is done with")

    async with worker.runs(counts=counts):
        task = await worker.dispatch("counts")
        await worker.ended(task)

    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert [(row.done, row.state) for row in await rows_of(app, task)] == [(2, State.FAILED)]


@pytest.mark.parametrize("answer", [-1, 500, 503])
async def test_reports_that_cannot_be_delivered_travel_in_the_outbox(
    app: FastAPI, worker: Worker, posts: Posts, answer: int
) -> None:
    posts.answer = answer

    async def counts(task: TaskContext) -> str:
        async with task.reports.report("Counting", "count", total=3) as report:
            await report.increase_by(2)
        return "done"

    async with worker.runs(counts=counts):
        task = await worker.ended(await worker.dispatch("counts"))

    assert task.result == "done"
    async with app.state.database.sessions.begin() as session:
        notes = await outbox.waiting(session)
        payloads = [payload for _, name, payload in notes if name == "on_reports"]
        for payload in reversed(payloads):
            await NOTES["on_reports"](session, [payload])
    assert [(row.done, row.state) for row in await rows_of(app, task.id)] == [(2, State.COMPLETED)]


@pytest.mark.parametrize("answer", [400, 401, 413])
async def test_reports_that_are_refused_fail_no_run(
    app: FastAPI, worker: Worker, posts: Posts, answer: int
) -> None:
    posts.answer = answer

    async def counts(task: TaskContext) -> str:
        async with task.reports.report("Counting", "count") as report:
            await report.increment()
            await asyncio.sleep(0.4)
        return "done"

    async with worker.runs(counts=counts):
        task = await worker.ended(await worker.dispatch("counts"))

    assert (task.state, task.result) == (State.COMPLETED, "done")
    assert await rows_of(app, task.id) == []


async def test_values_that_cannot_be_stored_as_they_are_are_made_storable(
    app: FastAPI, worker: Worker
) -> None:
    async def odd(task: TaskContext) -> None:
        async with task.reports.report("", "empty", suffix="") as report:
            await report.increase_by(-5)
        async with task.reports.report("a\x00b\ud800" + "x" * 9000, "odd", total=-1) as report:
            report.suffix = "\x00"
            await report.increase_by(10**30)

    async with worker.runs(odd=odd):
        task = await worker.ended(await worker.dispatch("odd"))

    assert task.state is State.COMPLETED
    empty, strange = await rows_of(app, task.id)
    assert (empty.message, empty.suffix, empty.done) == ("", "", 0)
    assert strange.message.startswith("ab?xxx")
    assert (len(strange.message), strange.suffix) == (500, "")
    assert (strange.total, strange.done) == (0, LARGEST)


@pytest.mark.parametrize("code", ["", "x" * 501, "a\x00", "\ud800"])
async def test_a_code_that_is_none_is_the_functions_own_mistake(worker: Worker, code: str) -> None:
    async def odd(task: TaskContext) -> None:
        task.reports.report("Odd", code)

    async with worker.runs(odd=odd):
        task = await worker.ended(await worker.dispatch("odd"))

    assert task.state is State.FAILED


async def test_the_last_word_counts_though_the_clock_is_set_back(
    app: FastAPI, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def counts(task: TaskContext) -> None:
        async with task.reports.report("Counting", "count") as report:
            monkeypatch.setattr(reporting, "utc_now", lambda: datetime(2001, 1, 1, tzinfo=UTC))
            await report.increase_by(3)

    async with worker.runs(counts=counts):
        task = await worker.ended(await worker.dispatch("counts"))

    assert [(row.done, row.state) for row in await rows_of(app, task.id)] == [(3, State.COMPLETED)]


async def test_tasks_of_a_group_raise_its_count_together(
    app: FastAPI, worker: Worker, http: httpx.AsyncClient
) -> None:
    async def copies(task: TaskContext) -> None:
        report = task.reports.group_report("Copied", "copied", suffix="files")
        await report.increase_by(0, total=4)
        for _ in range(3):
            await task.reports.group_report("Copied", "copied").increase_by()

    async with app.state.database.sessions.begin() as session:
        group = await make_group(session)
    async with worker.runs(copies=copies):
        tasks = [await worker.dispatch("copies", group_id=str(group)) for _ in range(3)]
        for task in tasks:
            await worker.ended(task)

    admin = as_user("root", superuser=True)
    shown = (await http.get(f"/pulp/api/v3/task-groups/{group}/", headers=admin)).json()
    assert shown["group_progress_reports"] == [
        {"message": "Copied", "code": "copied", "total": 12, "done": 9, "suffix": "files"}
    ]


async def test_without_a_group_there_is_no_group_report(worker: Worker) -> None:
    async def alone(task: TaskContext) -> None:
        task.reports.group_report("Copied", "copied")

    async with worker.runs(alone=alone):
        task = await worker.ended(await worker.dispatch("alone"))

    assert task.error == {"description": "ValueError: This task is in no group."}


async def test_more_changes_than_fit_into_one_request_are_all_told(
    app: FastAPI, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MOST_RUNS", 3)

    async def many(task: TaskContext) -> None:
        async with contextlib.AsyncExitStack() as stack:
            parts = [
                await stack.enter_async_context(task.reports.report(f"{number}", "part"))
                for number in range(8)
            ]
            for part in parts:
                await part.increment()
            async with asyncio.timeout(10):
                while [row.done for row in await rows_of(app, task.task_id)] != [1] * 8:
                    await asyncio.sleep(0.05)

    async with worker.runs(many=many):
        task = await worker.ended(await worker.dispatch("many"))

    assert task.state is State.COMPLETED
