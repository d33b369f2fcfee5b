"""How fast tasks are and when they will be done. contract: user_tasks §10.1"""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import estimates, statuses
from tests.user_tasks.conftest import TASK, get, later, make_news, make_report, tell


def row(**values: Any) -> dict[str, Any]:
    return {
        "uuid": TASK, "state": "In Progress", "is_container": False, "kind": None,
        "task_type": "export", "completed_steps": 0, "total_steps": 100, "rate": None,
        "rate_at": None, "started_at": later(0), "parent_id": None,
        "members": None,
    } | values  # fmt: skip


def test_one_small_sample_says_nothing() -> None:
    assert estimates.rate(row(), 1, later(1)) == (None, later(1))


def test_two_percent_say_something() -> None:
    assert estimates.rate(row(), 4, later(2)) == (2.0, later(2))


def test_the_newest_steps_weigh_most() -> None:
    first = row(completed_steps=10, rate=10.0, rate_at=later(1))

    rate, at = estimates.rate(first, 30, later(2))

    assert (rate, at) == (pytest.approx(0.3 * 20 + 0.7 * 10), later(2))


def test_no_progress_changes_nothing() -> None:
    first = row(completed_steps=10, rate=10.0, rate_at=later(1))

    assert estimates.rate(first, 10, later(9)) == (10.0, later(1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rate": 10.0, "rate_at": later(5), "completed_steps": 50}, 5.0),
        ({"rate": 10.0, "rate_at": later(3), "completed_steps": 50}, 3.0),
        ({"rate": 10.0, "rate_at": later(0), "completed_steps": 99}, 0.0),
        ({}, 15.0),
        ({"task_type": "unknown"}, None),
        ({"state": "Succeeded"}, 0.0),
        ({"state": "Pending", "started_at": None}, 20.0),
    ],
)
def test_what_is_left_of_one_task(values: dict[str, Any], expected: float | None) -> None:
    assert estimates.eta(row(**values), {}, {"export": 20.0}, later(5)) == expected


@pytest.mark.parametrize(("kind", "expected"), [("group", 30.0), ("chain", 40.0)])
def test_members_run_beside_each_other_or_one_after_another(kind: str, expected: float) -> None:
    holder = row(uuid=UUID(int=1), is_container=True, kind=kind)
    parts = [
        row(uuid=uuid4(), rate=10.0, rate_at=later(5), total_steps=100),
        row(uuid=uuid4(), rate=10.0, rate_at=later(5), total_steps=300),
    ]

    assert estimates.eta(holder, {UUID(int=1): parts}, {}, later(5)) == expected


def test_of_a_container_with_an_unknown_part_nothing_is_said() -> None:
    holder = row(uuid=UUID(int=1), is_container=True, kind="group")
    parts = [row(uuid=uuid4(), rate=10.0, rate_at=later(5)), row(uuid=uuid4(), task_type="new")]

    assert estimates.eta(holder, {UUID(int=1): parts}, {}, later(5)) is None


def test_of_a_container_whose_members_are_not_all_known_nothing_is_said() -> None:
    holder = row(uuid=UUID(int=1), is_container=True, kind="chain", members=2)
    parts = [row(uuid=uuid4(), rate=10.0, rate_at=later(5))]

    assert estimates.eta(holder, {UUID(int=1): parts}, {}, later(5)) is None


async def test_a_new_attempt_starts_anew(session: AsyncSession) -> None:
    await tell(session, "Pending", "In Progress")
    for second, steps in ((2, 1), (3, 2)):
        report = make_report(completed_steps=steps, total_steps=10, at=later(second))
        await statuses.record_progress(session, [report], now=later(second))
    assert (await get(session)).rate is not None

    await tell(session, "Retrying", attempt=2, at=later(4))

    assert (await get(session)).rate is None


async def test_what_a_kind_of_task_usually_takes(session: AsyncSession) -> None:
    for number, seconds in enumerate((10, 20, 60)):
        one = uuid4()
        for state, at in (
            ("In Progress", later(0)),
            ("Succeeded", later(0) + timedelta(seconds=seconds)),
        ):
            piece = make_news(task_id=one, state=state, at=at, task_type="export")
            await statuses.record_lifecycle(session, [piece], now=later(number))
    await tell(session, "In Progress", task_type="export")
    status = await get(session)

    found = await estimates.etas(session, [status], now=later(5))

    assert found == {TASK: pytest.approx(15.0)}
