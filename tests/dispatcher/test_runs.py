"""The life of a task. contract: dispatcher §1.2, §4"""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims, runs, workers
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.schemas import Heartbeat
from services.dispatcher.states import State
from shared import outbox
from shared.database import Database
from tests.conftest import Servers
from tests.dispatcher.conftest import (
    NOON,
    WORKER,
    accept,
    finish,
    get,
    ready,
    register,
    start,
    until_blocked,
)

TTL = timedelta(seconds=20)
LATER = NOON + timedelta(seconds=21)
SPEC = {"name": "A backup", "total_steps": 3, "task_type": "backup"}


async def give_up(session: AsyncSession, most_attempts: int = 3) -> list[UUID]:
    return await runs.give_up_lost_workers(session, now=LATER, ttl=TTL, most_attempts=most_attempts)


async def test_a_run_has_its_times_result_and_final_state(session: AsyncSession) -> None:
    task_id = await accept(session)
    fence = await start(session, task_id)
    assert fence is not None

    assert await finish(session, task_id, fence, result={"blocks": 3})

    task = await get(session, task_id)
    assert (task.state, task.result, task.error) == (State.COMPLETED, {"blocks": 3}, None)
    assert (task.started_at, task.finished_at) == (NOON, NOON)


async def test_a_blocked_task_may_not_start(session: AsyncSession) -> None:
    await accept(session, exclusive=["a"])

    assert await start(session, await accept(session, exclusive=["a"])) is None


async def test_only_one_worker_gets_a_task(session: AsyncSession) -> None:
    other = uuid4()
    await register(session, other)
    task_id = await accept(session)

    first = await start(session, task_id)

    assert first is not None
    assert await start(session, task_id, worker=other) is None
    assert await start(session, task_id) is None


async def test_a_worker_that_is_not_registered_gets_nothing(session: AsyncSession) -> None:
    assert await start(session, await accept(session), worker=uuid4()) is None


async def test_a_report_with_another_fence_is_refused(session: AsyncSession) -> None:
    task_id = await accept(session, exclusive=["a"])
    fence = await start(session, task_id)
    assert fence is not None

    assert not await finish(session, task_id, fence - 1)
    assert (await get(session, task_id)).state is State.RUNNING


async def test_reporting_an_end_twice_is_acknowledged_and_changes_nothing(
    session: AsyncSession,
) -> None:
    task_id = await accept(session)
    fence = await start(session, task_id)
    assert fence is not None
    await finish(session, task_id, fence, result=1)

    assert await finish(session, task_id, fence, "failed", error={"reason": "late"})

    task = await get(session, task_id)
    assert (task.state, task.result) == (State.COMPLETED, 1)


async def test_canceling_a_waiting_task_ends_it_and_frees_those_behind(
    session: AsyncSession,
) -> None:
    holder = await accept(session, shared=["a"])
    writer = await accept(session, exclusive=["a"])
    behind = await accept(session, shared=["a"])
    assert holder

    told = await runs.cancel(session, [writer], now=NOON)

    task = await get(session, writer)
    assert told == []
    assert (task.state, task.started_at, task.finished_at) == (State.CANCELED, None, NOON)
    assert task.error is None
    assert await ready(session, behind)


async def test_a_running_task_is_canceling_until_its_worker_reports(session: AsyncSession) -> None:
    task_id = await accept(session, exclusive=["a"])
    behind = await accept(session, exclusive=["a"])
    fence = await start(session, task_id)
    assert fence is not None

    told = await runs.cancel(session, [task_id], now=NOON)

    assert told == [task_id]
    assert (await get(session, task_id)).state is State.CANCELING
    assert not await ready(session, behind)
    await finish(session, task_id, fence, result="dropped")
    task = await get(session, task_id)
    assert (task.state, task.result) == (State.CANCELED, None)
    assert await ready(session, behind)


async def test_canceling_an_ended_task_changes_nothing(session: AsyncSession) -> None:
    task_id = await accept(session)
    fence = await start(session, task_id)
    assert fence is not None
    await finish(session, task_id, fence)

    assert await runs.cancel(session, [task_id], now=LATER) == []
    assert (await get(session, task_id)).state is State.COMPLETED


async def test_a_lost_workers_task_fails_with_the_reason_and_frees_its_locks(
    session: AsyncSession,
) -> None:
    task_id = await accept(session, exclusive=["a"], username="ada", user_task=SPEC)
    behind = await accept(session, exclusive=["a"])
    fence = await start(session, task_id)
    assert fence is not None

    assert await give_up(session) == [WORKER]

    task = await get(session, task_id)
    assert (task.state, task.error) == (State.FAILED, {"reason": "Worker has gone missing."})
    assert await ready(session, behind)
    assert not await finish(session, task_id, fence)
    notes = [payload["state"] for _, _, payload in await outbox.waiting(session)]
    assert notes == ["Pending", "In Progress", "Failed"]


async def test_a_repeatable_task_of_a_lost_worker_keeps_its_place_and_runs_again(
    session: AsyncSession,
) -> None:
    task_id = await accept(session, exclusive=["a"], repeatable=True)
    behind = await accept(session, exclusive=["a"])
    old = await start(session, task_id)
    assert old is not None

    await give_up(session)
    await register(session, WORKER, LATER)

    assert await ready(session, task_id)
    assert not await ready(session, behind)
    new = await start(session, task_id)
    assert new is not None
    assert (await get(session, task_id)).attempt == 2
    assert new > old
    assert not await finish(session, task_id, old)
    assert await finish(session, task_id, new)


async def test_a_repeatable_task_does_not_repeat_for_ever(session: AsyncSession) -> None:
    task_id = await accept(session, repeatable=True)
    await start(session, task_id)

    await give_up(session, most_attempts=1)

    assert (await get(session, task_id)).state is State.FAILED


async def test_a_canceling_task_of_a_lost_worker_is_canceled(session: AsyncSession) -> None:
    task_id = await accept(session, repeatable=True)
    await start(session, task_id)
    await runs.cancel(session, [task_id], now=NOON)

    await give_up(session)

    task = await get(session, task_id)
    assert (task.state, task.error) == (State.CANCELED, None)


async def test_a_worker_that_was_given_up_is_told_so(session: AsyncSession) -> None:
    await give_up(session)

    answer = await workers.heartbeat(
        session, WORKER, Heartbeat(name="w", queue="libraries"), now=LATER
    )

    assert not answer.known


async def test_a_heartbeat_learns_what_goes_on_and_what_to_cancel(session: AsyncSession) -> None:
    goes_on, stops = await accept(session), await accept(session)
    await start(session, goes_on)
    await start(session, stops)
    await runs.cancel(session, [stops], now=NOON)

    answer = await workers.heartbeat(
        session, WORKER, Heartbeat(name="w", queue="libraries"), now=NOON
    )

    assert (answer.known, answer.running, answer.cancel) == (True, [goes_on], [stops])


async def test_after_a_pause_of_the_dispatcher_workers_get_their_time_limit_again(
    session: AsyncSession,
) -> None:
    await workers.forgive_own_absence(session, now=NOON, ttl=TTL)

    assert await workers.forgive_own_absence(session, now=LATER, ttl=TTL)
    assert await give_up(session) == []


async def test_workers_are_forgiven_and_given_tasks_at_one_time_without_a_deadlock(
    clean: Servers, database: Database
) -> None:
    async with database.sessions.begin() as session:
        await register(session)
        await workers.forgive_own_absence(session, now=NOON, ttl=TTL)

    async def sweeps() -> list[UUID]:
        async with database.sessions.begin() as session:
            assert await workers.forgive_own_absence(session, now=LATER, ttl=TTL)
            return await give_up(session)

    async with database.sessions.begin() as session:
        await claims.serialized(session)
        sweeping = asyncio.create_task(sweeps())
        await until_blocked(database)
        # As whoever gives a worker its next task does.
        await (await session.connection()).execute(text("update worker set turn = turn + 1"))

    assert await sweeping == []


async def test_without_a_pause_silent_workers_are_not_forgiven(session: AsyncSession) -> None:
    await workers.forgive_own_absence(session, now=LATER - timedelta(seconds=1), ttl=TTL)
    await register(session, WORKER, NOON)

    assert not await workers.forgive_own_absence(session, now=LATER, ttl=TTL)
    assert await give_up(session) == [WORKER]


async def test_the_record_of_a_live_task_cannot_be_deleted(session: AsyncSession) -> None:
    task_id = await accept(session)

    assert not await runs.delete_finished(session, task_id)
    await runs.cancel(session, [task_id], now=NOON)
    assert await runs.delete_finished(session, task_id)
    with pytest.raises(TaskUnknown):
        await runs.delete_finished(session, task_id)


async def test_every_change_of_a_user_task_is_told_once(session: AsyncSession) -> None:
    task_id = await accept(session, username="ada", user_task=SPEC)
    fence = await start(session, task_id)
    assert fence is not None
    await start(session, task_id)
    await finish(session, task_id, fence)
    await finish(session, task_id, fence)

    notes = [
        (to, name, payload["state"], payload["total_steps"], payload["user"])
        for to, name, payload in await outbox.waiting(session)
    ]
    assert notes == [
        ("user_tasks", "on_lifecycle", "Pending", 3, "ada"),
        ("user_tasks", "on_lifecycle", "In Progress", 3, "ada"),
        ("user_tasks", "on_lifecycle", "Succeeded", 3, "ada"),
    ]
