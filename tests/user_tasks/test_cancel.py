"""Stopping work, also while it ends. contract: user_tasks §4.7"""

import asyncio
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, statuses
from services.user_tasks.errors import StatusUnknown
from services.user_tasks.states import State
from shared import outbox
from shared.callers import Caller
from shared.database import Sessions
from tests.user_tasks.conftest import (
    TASK,
    artifacts_of,
    get,
    later,
    make_artifact,
    make_news,
    make_report,
    tell,
)

INES, OLGA = Caller("ines"), Caller("olga")
ROOT = Caller("root", superuser=True)
LIVE = [("Pending",), ("Pending", "In Progress"), ("In Progress", "Retrying")]
STOP = ("dispatcher", "on_cancel_requested", {"task_id": str(TASK), "by": "ines"})


@pytest.fixture
def sessions(app: FastAPI) -> Sessions:
    found: Sessions = app.state.database.sessions
    return found


@pytest.mark.parametrize("states", LIVE)
async def test_it_is_canceled_at_once_and_the_dispatcher_is_asked(
    session: AsyncSession, states: tuple[str, ...]
) -> None:
    await tell(session, *states)

    await statuses.cancel(session, TASK, caller=INES, now=later(9))

    status = await get(session)
    assert (status.state, status.finished_at) == (State.CANCELED, later(9))
    assert await outbox.waiting(session) == [STOP]


async def test_canceling_twice_asks_once(session: AsyncSession) -> None:
    await tell(session, "Pending")
    await statuses.cancel(session, TASK, caller=INES, now=later(9))

    await statuses.cancel(session, TASK, caller=INES, now=later(10))

    assert (await get(session)).finished_at == later(9)
    assert await outbox.waiting(session) == [STOP]


@pytest.mark.parametrize("end", ["Succeeded", "Failed", "Canceled"])
async def test_what_has_ended_stays_as_it_is(session: AsyncSession, end: str) -> None:
    await tell(session, "In Progress", end)
    before = (await get(session)).model_dump()

    await statuses.cancel(session, TASK, caller=INES, now=later(9))

    assert (await get(session)).model_dump() == before
    assert await outbox.waiting(session) == []


@pytest.mark.parametrize("late", ["Pending", "In Progress", "Retrying", "Succeeded", "Failed"])
async def test_no_news_undoes_a_cancel(session: AsyncSession, late: str) -> None:
    await tell(session, "In Progress")
    await statuses.cancel(session, TASK, caller=INES, now=later(9))

    await tell(session, late, attempt=2, at=later(10))

    status = await get(session)
    assert (status.state, status.finished_at) == (State.CANCELED, later(9))
    assert status.completed_steps == 0
    assert await artifacts_of(session) == []


async def test_time_does_not_run_backwards(session: AsyncSession) -> None:
    await tell(session, "In Progress", at=later(60))

    await statuses.cancel(session, TASK, caller=INES, now=later(9))

    assert (await get(session)).modified == later(60)


async def test_others_cannot_cancel(session: AsyncSession) -> None:
    await tell(session, "Pending")

    with pytest.raises(StatusUnknown):
        await statuses.cancel(session, TASK, caller=OLGA, now=later(9))

    assert (await get(session)).state is State.PENDING
    assert await outbox.waiting(session) == []


async def test_superusers_can(session: AsyncSession) -> None:
    await tell(session, "Pending")

    await statuses.cancel(session, TASK, caller=ROOT, now=later(9))

    assert [note[2]["by"] for note in await outbox.waiting(session)] == ["root"]


@pytest.mark.parametrize("turn", range(20))
async def test_cancel_against_success_has_one_winner(sessions: Sessions, turn: int) -> None:
    await _running(sessions)

    async def succeed() -> None:
        async with sessions.begin() as session:
            news = make_news(state="Succeeded", at=later(5))
            await statuses.record_lifecycle(session, [news], now=later(0))

    contenders = [_cancel(sessions), succeed()]
    await asyncio.gather(*contenders[:: 1 if turn % 2 else -1])

    async with sessions() as session:
        status, notes = await get(session), await outbox.waiting(session)
    ended = (status.state, status.completed_steps, status.finished_at, notes)
    assert ended in [
        (State.SUCCEEDED, 3, later(5), []),
        (State.CANCELED, 0, later(9), [STOP]),
    ]


@pytest.mark.parametrize("turn", range(20))
async def test_two_cancels_ask_once(sessions: Sessions, turn: int) -> None:
    await _running(sessions)

    await asyncio.gather(_cancel(sessions), _cancel(sessions))

    async with sessions() as session:
        assert (await get(session)).state is State.CANCELED
        assert await outbox.waiting(session) == [STOP]


@pytest.mark.parametrize("turn", range(20))
async def test_delete_against_a_result_leaves_nothing(sessions: Sessions, turn: int) -> None:
    await _running(sessions)
    removed: list[str] = []

    async def delete() -> None:
        async with sessions.begin() as session:
            paths = await statuses.delete(session, TASK, caller=INES, now=later(9))
            await asyncio.sleep(0.01)
        removed.extend(paths)

    async def leave() -> None:
        await asyncio.sleep(0.002 * (turn % 5))
        async with sessions.begin() as session:
            await artifacts.store(session, [make_artifact(file="a/b", artifact_id=uuid4())])

    await asyncio.gather(delete(), leave())

    async with sessions() as session:
        assert await artifacts_of(session) == []
        assert (await get(session)).deleted_at == later(9)


async def _running(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await tell(session, "Pending", "In Progress")
        await statuses.record_progress(
            session, [make_report(at=later(2), completed_steps=0)], now=later(0)
        )


async def _cancel(sessions: Sessions, uuid: UUID = TASK) -> None:
    async with sessions.begin() as session:
        await statuses.cancel(session, uuid, caller=INES, now=later(9))
