"""How far runs are, and what of it is shown."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import statuses
from services.user_tasks.settings import Settings
from services.user_tasks.views import shown_state, status_json
from tests.user_tasks.conftest import NOON, get, later, make_news, make_report, tell


async def report(session: AsyncSession, **values: Any) -> None:
    await statuses.record_progress(session, [make_report(**values)], now=later(0))


async def steps(session: AsyncSession) -> tuple[int, int, str | None]:
    status = await get(session)
    return status.completed_steps, status.total_steps, status.stage


async def test_numbers_are_absolute(session: AsyncSession) -> None:
    await tell(session, "Pending", "In Progress")

    await report(session, at=later(10), completed_steps=1)
    await report(session, at=later(11), completed_steps=2, total_steps=5)

    assert await steps(session) == (2, 5, None)
    assert (await get(session)).modified == later(11)


async def test_numbers_may_go_down(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await report(session, at=later(10), completed_steps=2)

    await report(session, at=later(11), completed_steps=1)

    assert await steps(session) == (1, 3, None)


async def test_what_is_not_told_stays(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await report(session, at=later(10), completed_steps=1, stage="Exporting")

    await report(session, at=later(11), total_steps=4)

    assert await steps(session) == (1, 4, "Exporting")


async def test_late_and_repeated_reports_change_nothing(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await report(session, at=later(11), completed_steps=2)

    await report(session, at=later(10), completed_steps=1)
    await report(session, at=later(11), completed_steps=1)

    assert await steps(session) == (2, 3, None)


async def test_reports_together_count_in_the_order_of_their_times(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    reports = [
        make_report(at=later(12), stage="Compressing"),
        make_report(at=later(10), completed_steps=1, stage="Exporting"),
        make_report(at=later(11), completed_steps=2),
    ]

    await statuses.record_progress(session, reports, now=later(0))

    assert await steps(session) == (2, 3, "Compressing")


async def test_reports_of_unknown_tasks_are_dropped(session: AsyncSession) -> None:
    await tell(session, "In Progress")

    await statuses.record_progress(
        session, [make_report(task_id=UUID(int=99)), make_report(completed_steps=1)], now=later(0)
    )
    await statuses.record_progress(session, [], now=later(0))

    assert await steps(session) == (1, 3, None)


async def test_a_newer_attempt_starts_anew(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await report(session, completed_steps=2, stage="Exporting")

    await report(session, attempt=2, at=later(11), total_steps=4)

    assert await steps(session) == (0, 4, None)
    assert (await get(session)).attempts == 2


async def test_an_earlier_attempt_is_not_heard(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await tell(session, "Retrying", "In Progress", attempt=2)

    await report(session, attempt=1, at=later(50), completed_steps=2)

    assert await steps(session) == (0, 3, None)


async def test_a_newer_attempt_is_heard_though_its_clock_is_behind(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await report(session, at=later(50), completed_steps=2)
    await tell(session, "Retrying", "In Progress", attempt=2)

    await report(session, attempt=2, at=later(49), completed_steps=1)

    assert await steps(session) == (1, 3, None)


async def test_news_of_the_attempt_may_come_after_its_report(session: AsyncSession) -> None:
    await tell(session, "In Progress")
    await report(session, attempt=2, at=later(11), completed_steps=2)

    await tell(session, "Retrying", "In Progress", attempt=2)

    status = await get(session)
    assert (status.state.value, status.completed_steps) == ("In Progress", 2)


async def test_success_is_not_taken_back_by_a_report(session: AsyncSession) -> None:
    await tell(session, "In Progress", "Succeeded")

    await report(session, at=NOON, completed_steps=1, total_steps=9)

    assert await steps(session) == (3, 3, None)


@pytest.mark.parametrize("end", ["Failed", "Canceled"])
async def test_other_ends_hear_only_reports_from_before_them(
    session: AsyncSession, end: str
) -> None:
    await tell(session, "In Progress")
    await tell(session, end, at=later(20))

    await report(session, at=later(19), completed_steps=1)
    await report(session, at=later(21), completed_steps=2)

    assert await steps(session) == (1, 3, None)


async def test_the_stage_stands_in_place_of_in_progress(session: AsyncSession) -> None:
    await tell(session, "In Progress")

    await report(session, stage="Exporting")

    status = await get(session)
    body = status_json(status, [], Settings())
    assert (body["state"], body["state_text"]) == ("Exporting", "Exporting")
    assert status.state.value == "In Progress"


@pytest.mark.parametrize("state", ["Succeeded", "Failed", "Canceled"])
async def test_no_stage_hides_an_end(session: AsyncSession, state: str) -> None:
    await tell(session, "In Progress")
    await report(session, stage="Exporting")

    await tell(session, state, at=later(20))

    assert shown_state(await get(session)) == state


async def test_more_steps_than_there_are_is_never_shown(session: AsyncSession) -> None:
    await tell(session, "In Progress")

    await report(session, completed_steps=7)

    assert status_json(await get(session), [], Settings())["completed_steps"] == 3


async def test_the_largest_numbers_are_stored(session: AsyncSession) -> None:
    await tell(session, "In Progress")

    await report(session, attempt=2**62, completed_steps=2**62, total_steps=2**62)

    assert await steps(session) == (2**62, 2**62, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "a\x00"},
        {"stage": "x" * 129},
        {"completed_steps": -1},
        {"completed_steps": 2**63},
        {"total_steps": 10**40},
        {"attempt": 0},
        {"attempt": 2**63},
        {"at": "2026-11-21T12:00:00"},
    ],
)
def test_reports_that_cannot_be_stored_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_report(**wrong)


async def test_deliveries_beside_each_other_do_not_wait_in_a_circle(app: FastAPI) -> None:
    ids = [UUID(int=number) for number in range(1, 101)]
    sessions = app.state.database.sessions
    async with sessions.begin() as session:
        await statuses.record_lifecycle(
            session, [make_news(task_id=uuid, state="In Progress") for uuid in ids], now=later(0)
        )

    async def deliver(turn: int) -> None:
        at = NOON + timedelta(seconds=turn)
        mine = ids[:: 1 if turn % 2 else -1]
        async with sessions.begin() as session:
            if turn % 3:
                reports = [make_report(task_id=uuid, at=at, completed_steps=turn) for uuid in mine]
                await statuses.record_progress(session, reports, now=later(0))
            else:
                news = [make_news(task_id=uuid, state="In Progress", at=at) for uuid in mine]
                await statuses.record_lifecycle(session, news, now=later(0))

    await asyncio.gather(*(deliver(turn) for turn in range(1, 30)))

    async with sessions() as session:
        assert [(await get(session, uuid)).completed_steps for uuid in ids] == [29] * 100
