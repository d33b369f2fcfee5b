"""Locks under fire: many clients, few resources, and anything killed with -9 at random.

The history is written by the workers themselves. Afterwards: no two conflicting tasks were
ever running together, the order of each resource was kept, and each task has one final state.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.dispatcher.chaos import (
    Fleet,
    Run,
    assert_no_overlap,
    assert_order_kept,
    assert_outcomes,
    dispatch_all,
    fleet,
    make_tasks,
    read_history,
)

TASKS = int(os.environ.get("CHAOS_TASKS", "2000"))
KILLS = int(os.environ.get("CHAOS_KILLS", "4"))
# How long the clients take to dispatch all tasks, and the time for what is left after that.
SECONDS = float(os.environ.get("CHAOS_SECONDS", "12"))
LIMIT_SECONDS = 60.0
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 2**32)
KINDS = ["worker", "web", "redis", "postgres"]


@pytest_asyncio.fixture(scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("chaos"), webs=2, workers=3) as whole:
        yield whole


async def test_no_lock_is_ever_broken_whatever_is_killed(whole: Fleet, tmp_path: Path) -> None:
    print(f"\nCHAOS_SEED={SEED}")
    dice = random.Random(SEED)
    history = tmp_path / "history"
    tasks = make_tasks(TASKS, history, dice)
    dispatching = asyncio.create_task(dispatch_all(whole, tasks, seconds=SECONDS))
    for number in range(KILLS):
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        await whole.kill(kind_of(number, dice), dice)
    await dispatching
    await whole.all_final(LIMIT_SECONDS)
    whole.report()

    stored = await whole.stored(tasks)
    runs = read_history(history, whole.killed)
    assert_no_overlap(runs, stored)
    assert_order_kept(runs, stored)
    assert_outcomes(runs, stored)


def kind_of(number: int, dice: random.Random) -> str:
    """Each kind once, then any."""
    return KINDS[number] if number < len(KINDS) else dice.choice(KINDS)


def test_the_checks_notice_what_they_are_for() -> None:
    one, other = uuid4(), uuid4()
    stored = [{"id": one, "reserved": ["a"]}, {"id": other, "reserved": ["shared:a"]}]
    good = [Run(one, 1, began=10, ended=20), Run(other, 2, began=21, ended=30)]
    assert_no_overlap(good, stored)
    assert_order_kept(good, stored)

    with pytest.raises(AssertionError, match="overlapped"):
        assert_no_overlap([good[0], Run(other, 2, began=19, ended=30)], stored)
    with pytest.raises(AssertionError, match="older fence"):
        assert_no_overlap([Run(one, 3, began=10, ended=20), good[1]], stored)
    with pytest.raises(AssertionError, match="overtook"):
        assert_order_kept([Run(other, 1, 5, 6), Run(one, 2, 10, 20)], stored)
    assert_no_overlap(
        [Run(one, 1, 10, 20), Run(other, 2, 11, 30)],
        [
            {"id": one, "reserved": ["shared:a"]},
            stored[1],
        ],
    )


async def test_nothing_is_lost_or_run_twice_when_redis_is_lost(
    whole: Fleet, tmp_path: Path
) -> None:
    dice = random.Random(7)
    history = tmp_path / "history"
    tasks = make_tasks(300, history, dice)
    dispatching = asyncio.create_task(dispatch_all(whole, tasks, seconds=3))
    for _ in range(2):
        await asyncio.sleep(0.8)
        await whole.kill("redis", dice)
    await dispatching
    await whole.all_final(LIMIT_SECONDS)

    stored = await whole.stored(tasks)
    runs = read_history(history, {})
    assert {row["state"] for row in stored} == {"completed"}
    assert len(runs) == len(tasks)
    assert_no_overlap(runs, stored)
    assert_order_kept(runs, stored)
