"""Chains, groups and chords. contract: user_tasks §4.2, §4.6, §12"""

import asyncio
import itertools
import random
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import statuses
from services.user_tasks.models import Status
from services.user_tasks.schemas import ContainerSpec, Lifecycle
from services.user_tasks.states import State
from shared import outbox
from shared.callers import Caller
from tests.user_tasks.conftest import artifacts_of, get, later, make_news, make_report

INES = Caller("ines")
CHAIN, GROUP, CHORD = UUID(int=101), UUID(int=102), UUID(int=103)


def spec(ident: UUID, kind: str, members: int, total: int = 0, name: str = "") -> ContainerSpec:
    return ContainerSpec.model_validate(
        {"id": ident, "kind": kind, "members": members, "total_steps": total, "name": name}
    )


def news(task: UUID, state: str, *path: ContainerSpec, at: int = 0, **values: Any) -> Lifecycle:
    return make_news(
        task_id=task, state=state, at=later(at), containers=list(path), user="ines",
        **({"total_steps": 1} | values),
    )  # fmt: skip


async def tell(session: AsyncSession, *pieces: Lifecycle) -> None:
    await statuses.record_lifecycle(session, pieces, now=later(50))


async def state_of(session: AsyncSession, uuid: UUID) -> str:
    return (await get(session, uuid)).state.value


async def members(
    session: AsyncSession, kind: str, count: int, container: UUID, **values: Any
) -> tuple[list[UUID], ContainerSpec]:
    ids = [uuid4() for _ in range(count)]
    inside = spec(container, kind, count, count)
    await tell(session, *(news(one, "Pending", inside, **values) for one in ids))
    return ids, inside


async def test_a_container_and_its_members_are_made_together(session: AsyncSession) -> None:
    one = uuid4()
    await tell(session, news(one, "Pending", spec(CHAIN, "chain", 3, 7, "Publish all")))

    chain, leaf = await get(session, CHAIN), await get(session, one)
    assert (chain.is_container, chain.kind, chain.task_class) == (True, "chain", "celery.chain")
    assert (chain.name, chain.total_steps, chain.members) == ("Publish all", 7, 3)
    assert (chain.state, chain.user, chain.parent_id) == (State.PENDING, "ines", None)
    assert (leaf.parent_id, leaf.root_id, leaf.is_container) == (CHAIN, CHAIN, False)


@pytest.mark.parametrize("kind", ["chain", "group", "chord"])
async def test_it_goes_from_pending_to_in_progress_to_succeeded(
    session: AsyncSession, kind: str
) -> None:
    (one, two), inside = await members(session, kind, 2, GROUP)

    await tell(session, news(one, "In Progress", inside, at=1))
    assert await state_of(session, GROUP) == "In Progress"
    await tell(session, news(one, "Succeeded", inside, at=2))
    assert await state_of(session, GROUP) == "In Progress"
    await tell(session, news(two, "Succeeded", inside, at=3))

    group = await get(session, GROUP)
    assert (group.state, group.completed_steps, group.total_steps) == (State.SUCCEEDED, 2, 2)
    assert group.finished_at is not None


async def test_it_never_succeeds_before_all_its_members_are_known(session: AsyncSession) -> None:
    one, inside = uuid4(), spec(GROUP, "group", 2, 2)

    await tell(session, news(one, "Succeeded", inside))
    assert await state_of(session, GROUP) == "In Progress"
    await tell(session, news(uuid4(), "Succeeded", inside))

    assert await state_of(session, GROUP) == "Succeeded"


async def test_a_failure_fails_it_at_once_and_for_good(session: AsyncSession) -> None:
    (one, two), inside = await members(session, "group", 2, GROUP)
    error = {"code": "broken", "message": "No such course."}

    await tell(session, news(one, "Failed", inside, at=1, error=error))
    await tell(session, news(two, "In Progress", inside, at=2))
    await tell(session, news(two, "Succeeded", inside, at=3))

    group = await get(session, GROUP)
    assert (group.state, group.completed_steps) == (State.FAILED, 1)
    assert group.error == error
    assert [(one.name, one.text) for one in await artifacts_of(session, GROUP)] == [
        ("Error", "No such course.")
    ]


async def test_each_failing_member_is_told_once_on_all_that_hold_it(session: AsyncSession) -> None:
    one, two = uuid4(), uuid4()
    path = spec(CHORD, "chord", 2, 3), spec(GROUP, "group", 2, 2)
    failures = [
        news(one, "Failed", *path, at=1, error={"code": "x", "message": "first"}),
        news(two, "Failed", *path, at=2, error={"code": "x", "message": "second"}),
    ]

    await tell(session, *failures)
    await tell(session, *failures)

    for container in (GROUP, CHORD):
        texts = sorted(one.text for one in await artifacts_of(session, container))
        assert texts == ["first", "second"]
        assert await state_of(session, container) == "Failed"


async def test_a_canceled_link_cancels_its_chain(session: AsyncSession) -> None:
    (one, _), inside = await members(session, "chain", 2, CHAIN)

    await tell(session, news(one, "Canceled", inside, at=1))

    assert await state_of(session, CHAIN) == "Canceled"


async def test_a_group_waits_for_all_before_it_is_canceled(session: AsyncSession) -> None:
    (one, two), inside = await members(session, "group", 2, GROUP)

    await tell(session, news(one, "Canceled", inside, at=1))
    assert await state_of(session, GROUP) == "In Progress"
    await tell(session, news(two, "Succeeded", inside, at=2))

    assert await state_of(session, GROUP) == "Canceled"


async def test_a_chord_succeeds_when_its_group_and_its_body_have(session: AsyncSession) -> None:
    headers, body = [uuid4(), uuid4()], uuid4()
    chord, group = spec(CHORD, "chord", 2, 3), spec(GROUP, "group", 2, 2)
    await tell(session, *(news(one, "Pending", chord, group) for one in headers))
    await tell(session, news(body, "Pending", chord))

    await tell(session, *(news(one, "Succeeded", chord, group, at=1) for one in headers))
    assert await state_of(session, GROUP) == "Succeeded"
    assert await state_of(session, CHORD) == "In Progress"
    await tell(session, news(body, "Succeeded", chord, at=2))

    found = await get(session, CHORD)
    assert (found.state, found.completed_steps, found.total_steps) == (State.SUCCEEDED, 3, 3)


@pytest.mark.parametrize(("kind", "shown"), [("chain", "Zipping"), ("group", None)])
async def test_a_stage_is_shown_on_a_chain_but_not_on_a_group(
    session: AsyncSession, kind: str, shown: str | None
) -> None:
    (one, _), inside = await members(session, kind, 2, CHAIN)
    await tell(session, news(one, "In Progress", inside, at=1))

    report = make_report(task_id=one, stage="Zipping", at=later(2))
    await statuses.record_progress(session, [report], now=later(2))

    assert (await get(session, CHAIN)).stage == shown


async def test_steps_add_up(session: AsyncSession) -> None:
    (one, two), inside = await members(session, "group", 2, GROUP, total_steps=5)
    await tell(session, *(news(uuid, "In Progress", inside, at=1) for uuid in (one, two)))

    reports = [
        make_report(task_id=one, completed_steps=3, total_steps=8, at=later(2)),
        make_report(task_id=two, completed_steps=2, total_steps=5, at=later(2)),
    ]
    await statuses.record_progress(session, reports, now=later(2))

    group = await get(session, GROUP)
    assert (group.completed_steps, group.total_steps) == (5, 13)


async def test_a_new_name_goes_up_the_tree(session: AsyncSession) -> None:
    (one, two), inside = await members(session, "chain", 2, CHAIN)
    await tell(session, news(one, "In Progress", inside, at=1))

    report = make_report(task_id=one, name="Export of CS102", at=later(2))
    await statuses.record_progress(session, [report], now=later(2))

    names = [(await get(session, uuid)).name for uuid in (one, CHAIN, two)]
    assert names == ["Export of CS102", "Export of CS102", "Export of CS101"]


async def test_canceling_a_container_cancels_what_has_not_ended(session: AsyncSession) -> None:
    (one, two, three), inside = await members(session, "group", 3, GROUP)
    await tell(session, news(one, "Succeeded", inside, at=1))
    await tell(session, news(two, "In Progress", inside, at=1))

    _, changed = await statuses.cancel(session, GROUP, caller=INES, now=later(9))

    assert changed
    states = [await state_of(session, uuid) for uuid in (GROUP, one, two, three)]
    assert states == ["Canceled", "Succeeded", "Canceled", "Canceled"]
    notes = [payload["task_id"] for _, name, payload in await outbox.waiting(session)]
    assert sorted(notes) == sorted([str(two), str(three)])


async def test_canceling_one_member_leaves_the_others(session: AsyncSession) -> None:
    (one, two), _ = await members(session, "group", 2, GROUP)

    await statuses.cancel(session, one, caller=INES, now=later(9))

    states = [await state_of(session, uuid) for uuid in (one, two, GROUP)]
    assert states == ["Canceled", "Pending", "In Progress"]


async def test_deleting_a_container_deletes_what_it_holds(session: AsyncSession) -> None:
    (one, two), _ = await members(session, "chain", 2, CHAIN)

    await statuses.delete(session, CHAIN, caller=INES, now=later(9))

    for uuid in (one, two, CHAIN):
        assert (await get(session, uuid)).deleted_at is not None


async def test_any_order_of_news_comes_to_the_same(session: AsyncSession) -> None:
    dice = random.Random(7)
    for number, kind in itertools.product(range(6), ("chain", "group")):
        container, ids = uuid4(), [uuid4() for _ in range(3)]
        inside = spec(container, kind, 3, 3)
        pieces = [
            news(one, state, inside, at=at)
            for one in ids
            for at, state in enumerate(("Pending", "In Progress", "Succeeded"))
        ]
        dice.shuffle(pieces)
        for piece in pieces:
            await tell(session, piece)
        found = await get(session, container)
        assert (found.state, found.completed_steps) == (State.SUCCEEDED, 3), (number, kind)


async def test_members_that_end_at_the_same_moment_end_their_container(app: FastAPI) -> None:
    sessions = app.state.database.sessions
    ids, inside = [uuid4() for _ in range(20)], spec(uuid4(), "group", 20, 20)

    async def ends(part: list[UUID]) -> None:
        for one in part:
            async with sessions.begin() as session:
                await tell(session, news(one, "In Progress", inside, at=1))
            async with sessions.begin() as session:
                await tell(session, news(one, "Succeeded", inside, at=2))

    await asyncio.gather(*(ends(ids[start::4]) for start in range(4)))

    async with sessions() as session:
        group = await session.get(Status, inside.id)
        assert group is not None
        assert (group.state, group.completed_steps) == (State.SUCCEEDED, 20)
