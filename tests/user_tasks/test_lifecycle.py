"""News of tasks' lives. contract: user_tasks §4.5"""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import statuses
from services.user_tasks.schemas import Lifecycle
from services.user_tasks.states import FINAL, State, follows
from tests.user_tasks.conftest import (
    NOON,
    artifacts_of,
    get,
    later,
    make_news,
    make_report,
    tell,
)

PENDING, RUNNING, RETRYING = State.PENDING, State.IN_PROGRESS, State.RETRYING
ENDS = sorted(FINAL)
GOES_TO = {
    PENDING: {RUNNING, *FINAL},
    RUNNING: {RUNNING, *FINAL},
    RETRYING: {RUNNING, *FINAL},
    **{end: set() for end in FINAL},
}


@pytest.mark.parametrize("now", State)
@pytest.mark.parametrize("news", State)
def test_within_an_attempt_only_these_changes_are_legal(now: State, news: State) -> None:
    assert follows(now, 1, news, 1) is (news in GOES_TO[now])


@pytest.mark.parametrize("now", State)
@pytest.mark.parametrize("news", State)
def test_a_newer_attempt_replaces_any_state_but_a_final_one(now: State, news: State) -> None:
    assert follows(now, 1, news, 2) is (now not in FINAL)


@pytest.mark.parametrize("now", State)
@pytest.mark.parametrize("news", State)
def test_of_an_earlier_attempt_only_an_end_counts(now: State, news: State) -> None:
    assert follows(now, 2, news, 1) is (now not in FINAL and news in FINAL)


@pytest.mark.parametrize("first", State)
@pytest.mark.parametrize("second", State)
async def test_stored_rows_change_as_the_table_says(
    session: AsyncSession, first: State, second: State
) -> None:
    await tell(session, first)

    await tell(session, second, at=later(5))

    # The first news of a task starts from `Pending`, of which `Retrying` 1 is no successor.
    start = PENDING if first is RETRYING else first
    expected = second if second in GOES_TO[start] else start
    assert (await get(session)).state is expected


async def test_a_new_task_waits(session: AsyncSession) -> None:
    await tell(session, PENDING)

    status = await get(session)
    assert (status.state, status.completed_steps, status.total_steps) == (PENDING, 0, 3)
    assert (status.attempts, status.parent_id, status.is_container) == (1, None, False)
    assert (status.user, status.name) == ("ines", "Export of CS101")
    assert (status.created, status.modified, status.started_at) == (NOON, NOON, None)


async def test_any_news_may_be_the_first(session: AsyncSession) -> None:
    await tell(session, RUNNING, attempt=2, at=later(4))

    status = await get(session)
    assert (status.state, status.attempts, status.started_at) == (RUNNING, 2, later(4))


async def test_late_news_of_waiting_only_corrects_when_it_was_created(
    session: AsyncSession,
) -> None:
    await tell(session, RUNNING, at=later(4))

    await tell(session, PENDING)

    status = await get(session)
    assert (status.state, status.created, status.modified) == (RUNNING, NOON, later(4))


async def test_a_retry_resets_steps_and_stage(session: AsyncSession) -> None:
    await tell(session, PENDING, RUNNING)
    await statuses.record_progress(
        session, [make_report(completed_steps=2, stage="Exporting")], now=later(0)
    )

    await tell(session, RETRYING, attempt=2, at=later(11))

    status = await get(session)
    assert (status.state, status.attempts) == (RETRYING, 2)
    assert (status.completed_steps, status.stage) == (0, None)


async def test_a_repeated_retry_leaves_the_new_attempts_steps(session: AsyncSession) -> None:
    await tell(session, PENDING, RUNNING)
    await tell(session, RETRYING, RUNNING, attempt=2)
    await statuses.record_progress(
        session, [make_report(attempt=2, completed_steps=2)], now=later(0)
    )

    await tell(session, RETRYING, RUNNING, attempt=2)

    status = await get(session)
    assert (status.state, status.completed_steps) == (RUNNING, 2)


async def test_success_tops_up(session: AsyncSession) -> None:
    await tell(session, PENDING, RUNNING)
    await statuses.record_progress(session, [make_report(completed_steps=1)], now=later(0))

    await tell(session, State.SUCCEEDED, at=later(20))

    status = await get(session)
    assert (status.completed_steps, status.total_steps) == (3, 3)
    assert status.finished_at == later(20)


async def test_failure_keeps_the_steps_it_reached(session: AsyncSession) -> None:
    await tell(session, PENDING, RUNNING)
    await statuses.record_progress(session, [make_report(completed_steps=1)], now=later(0))

    await tell(session, State.FAILED, at=later(20), error={"message": "No."})

    status = await get(session)
    assert (status.completed_steps, status.error) == (1, {"message": "No."})


async def test_failure_leaves_one_error_however_often_it_is_told(session: AsyncSession) -> None:
    failed = make_news(state="Failed", at=later(3), error={"message": "Disk full."})

    await statuses.record_lifecycle(session, [failed, failed], now=later(0))
    await statuses.record_lifecycle(session, [failed], now=later(0))
    await tell(session, State.FAILED, attempt=2, error={"message": "Again."})

    left = await artifacts_of(session)
    assert [(artifact.name, artifact.text) for artifact in left] == [("Error", "Disk full.")]


@pytest.mark.parametrize("error", [None, {}, {"message": None}, {"message": ""}])
async def test_a_failure_without_words_says_so(
    session: AsyncSession, error: dict[str, Any] | None
) -> None:
    await tell(session, State.FAILED, error=error)

    assert [artifact.text for artifact in await artifacts_of(session)] == ["The task failed."]


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.CANCELED])
async def test_failing_after_another_end_leaves_no_error(session: AsyncSession, end: State) -> None:
    await tell(session, end)

    await tell(session, State.FAILED, error={"message": "Too late."})

    status = await get(session)
    assert (status.state, status.error) == (end, None)
    assert await artifacts_of(session) == []


async def test_unprintable_failures_are_still_failures(session: AsyncSession) -> None:
    error = {"message": "a\x00b\ud800", "at\x00": [10**30, float("nan"), {"deep": "\x00"}]}

    await tell(session, State.FAILED, error=error)

    status = await get(session)
    assert status.state is State.FAILED
    assert [artifact.text for artifact in await artifacts_of(session)] == ["a\ufffdb\ufffd"]


async def test_many_tasks_in_one_delivery(session: AsyncSession) -> None:
    other = UUID(int=8)
    news = [
        make_news(state="Succeeded", at=later(2)),
        make_news(task_id=other, state="In Progress", at=later(1)),
        make_news(),
        make_news(task_id=other),
    ]

    await statuses.record_lifecycle(session, news, now=later(0))

    assert (await get(session)).state is State.SUCCEEDED
    assert (await get(session, other)).state is RUNNING


async def test_no_news_is_no_trouble(session: AsyncSession) -> None:
    await statuses.record_lifecycle(session, [], now=later(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"at": "2026-11-21T12:00:00"},
        {"at": "0001-01-01T00:00:00+14:00"},
        {"at": "9999-12-31T23:59:59-14:00"},
        {"user": ""},
        {"user": "a\x00"},
        {"name": "a\x00"},
        {"task_type": "a\x00"},
        {"attempt": 0},
        {"attempt": 2**63},
        {"total_steps": -1},
        {"total_steps": 2**63},
        {"state": "Exporting"},
    ],
)
def test_news_that_cannot_be_stored_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_news(**wrong)


def history(end: State) -> list[Lifecycle]:
    error = {"message": "No."} if end is State.FAILED else None
    return [
        make_news(state=PENDING),
        make_news(state=RUNNING, at=later(1)),
        make_news(state=RETRYING, at=later(2), attempt=2),
        make_news(state=RUNNING, at=later(3), attempt=2),
        make_news(state=end, at=later(4), attempt=2, error=error),
    ]


def told_in_order(end: State) -> dict[str, Any]:
    return {
        "state": end.value, "attempts": 2, "stage": None, "total_steps": 3,
        "completed_steps": 3 if end is State.SUCCEEDED else 0,
        "error": {"message": "No."} if end is State.FAILED else None,
        "created": NOON, "modified": later(4), "started_at": later(1), "finished_at": later(4),
    }  # fmt: skip


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[State, list[Lifecycle]]:
    end = draw(st.sampled_from(ENDS))
    life = history(end)
    again = draw(st.lists(st.sampled_from(life), max_size=6))
    return end, draw(st.permutations(life + again))


@given(told=shuffled())
def test_any_order_with_repetitions_ends_alike(told: tuple[State, list[Lifecycle]]) -> None:
    end, news = told
    row: dict[str, Any] = {
        "state": "Pending", "attempts": 1, "stage": None, "total_steps": 3, "completed_steps": 0,
        "error": None, "created": news[0].at, "modified": news[0].at, "started_at": None,
        "finished_at": None,
    }  # fmt: skip

    for piece in news:
        statuses.apply(row, piece)

    assert {key: row[key] for key in told_in_order(end)} == told_in_order(end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("turn", range(5))
async def test_stored_rows_end_alike_in_any_order(
    session: AsyncSession, end: State, together: bool, turn: int
) -> None:
    life = history(end)
    news = [*reversed(life[turn:] + life[:turn]), *life]

    for delivery in [news] if together else [[piece] for piece in news]:
        await statuses.record_lifecycle(session, delivery, now=later(0))

    status = (await get(session)).model_dump()
    assert {key: status[key] for key in told_in_order(end)} == told_in_order(end)
    assert len(await artifacts_of(session)) == (end is State.FAILED)
