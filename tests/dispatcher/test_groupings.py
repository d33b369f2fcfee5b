"""Chains, groups and chords: what their tasks claim, and in which order they may run."""

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import runs
from services.dispatcher.groupings import chain, chord, group
from services.dispatcher.schemas import TaskRequest, UserTaskSpec
from services.dispatcher.states import State
from tests.dispatcher.conftest import NOON, finish, get, make_request, ready, start


def task(steps: int = 1, **values: object) -> TaskRequest:
    spec = UserTaskSpec(name="part", total_steps=steps)
    return make_request(username="ada", user_task=spec, **values)


async def states(session: AsyncSession, tasks: list[TaskRequest]) -> list[State]:
    return [(await get(session, one.id)).state for one in tasks]


async def run(session: AsyncSession, one: TaskRequest, state: str = "completed") -> None:
    fence = await start(session, one.id)
    assert fence is not None
    assert await finish(session, one.id, fence, state)


async def test_links_of_a_chain_run_one_after_another(session: AsyncSession) -> None:
    links = chain([task(), task(), task()])
    await runs.accept(session, links, now=NOON)

    for place, link in enumerate(links):
        assert [await ready(session, later.id) for later in links[place:]] == [
            later is link for later in links[place:]
        ]
        await run(session, link)


async def test_a_failed_link_cancels_the_rest(session: AsyncSession) -> None:
    links = chain([task(), task(), task()])
    await runs.accept(session, links, now=NOON)
    await run(session, links[0])

    await run(session, links[1], "failed")

    assert await states(session, links) == [State.COMPLETED, State.FAILED, State.CANCELED]


async def test_members_of_a_group_are_not_held_up_by_each_other(session: AsyncSession) -> None:
    members = group([task(), task()])
    await runs.accept(session, members, now=NOON)

    assert all([await ready(session, member.id) for member in members])
    await run(session, members[0], "failed")
    assert await ready(session, members[1].id)


async def test_a_body_runs_when_the_whole_header_completed(session: AsyncSession) -> None:
    first, second, body = tasks = chord([task(), task()], task())
    await runs.accept(session, tasks, now=NOON)
    assert await ready(session, first.id)
    assert await ready(session, second.id)

    await run(session, first)
    assert not await ready(session, body.id)
    await run(session, second)

    assert await ready(session, body.id)


async def test_a_body_is_canceled_when_a_header_fails_and_the_other_header_goes_on(
    session: AsyncSession,
) -> None:
    first, second, body = tasks = chord([task(), task()], task())
    await runs.accept(session, tasks, now=NOON)

    await run(session, first, "failed")

    assert await states(session, [second, body]) == [State.WAITING, State.CANCELED]
    assert await ready(session, second.id)


def test_containers_know_their_members_and_steps() -> None:
    header_one, _, body = chord([task(2), task(3)], task(4), name="whole")

    assert header_one.user_task is not None
    assert body.user_task is not None
    outer, inner = header_one.user_task.containers
    assert (outer.kind, outer.members, outer.total_steps, outer.name) == ("chord", 2, 9, "whole")
    assert (inner.kind, inner.members, inner.total_steps) == ("group", 2, 5)
    assert body.user_task.containers == [outer]


def test_tasks_nobody_sees_are_no_members() -> None:
    links = chain([task(), make_request(), task(2)])

    assert links[0].user_task is not None
    assert links[0].user_task.containers[0].members == 2
    assert links[0].user_task.containers[0].total_steps == 3


def test_a_group_of_chains_and_a_chain_of_chains() -> None:
    chains = group([*chain([task(), task()]), *chain([task()])])
    assert chains[0].user_task is not None
    assert [held.kind for held in chains[0].user_task.containers] == ["group", "chain"]
    assert chains[0].user_task.containers[0].members == 2

    nested = chain([task(), *chain([task(), task()])])
    assert {link.chain_id for link in nested} == {nested[0].chain_id}


def test_what_cannot_be_nested_is_refused() -> None:
    with pytest.raises(ValueError, match="chain holds"):
        chain([*group([task()])])
    with pytest.raises(ValueError, match="chord holds"):
        chord(chain([task(), task()]), task())
