"""Whose turn it is. contract: dispatcher §3.1"""

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import runs
from tests.dispatcher.conftest import NOON, accept, finish, get, make_request, ready, start


@pytest.mark.parametrize(
    ("earlier", "later", "blocked"),
    [
        ("exclusive", "exclusive", True),
        ("exclusive", "shared", True),
        ("shared", "exclusive", True),
        ("shared", "shared", False),
    ],
)
async def test_a_later_task_waits_when_claims_conflict(
    session: AsyncSession, earlier: str, later: str, blocked: bool
) -> None:
    await accept(session, **{earlier: ["a"]})

    second = await accept(session, **{later: ["a"]})

    assert await ready(session, second) is not blocked


async def test_tasks_on_different_resources_do_not_wait(session: AsyncSession) -> None:
    await accept(session, exclusive=["a"])

    assert await ready(session, await accept(session, exclusive=["b"]))


async def test_a_waiting_exclusive_claim_is_not_overtaken_by_shared_ones(
    session: AsyncSession,
) -> None:
    reader = await accept(session, shared=["a"])
    writer = await accept(session, exclusive=["a"])
    late_reader = await accept(session, shared=["a"])
    fence = await start(session, reader)
    assert fence is not None

    assert not await ready(session, writer)
    assert not await ready(session, late_reader)
    await finish(session, reader, fence)
    assert await ready(session, writer)
    assert not await ready(session, late_reader)


async def test_blocking_is_passed_on_through_tasks_with_several_claims(
    session: AsyncSession,
) -> None:
    await accept(session, exclusive=["a", "b"])
    await accept(session, exclusive=["b", "c"])

    third = await accept(session, exclusive=["c"])

    assert not await ready(session, third)


async def test_all_shared_waiters_become_ready_together(session: AsyncSession) -> None:
    writer = await accept(session, exclusive=["a"])
    readers = [await accept(session, shared=["a"]) for _ in range(25)]
    second_writer = await accept(session, exclusive=["a"])
    behind = await accept(session, shared=["a"])
    fence = await start(session, writer)
    assert fence is not None

    await finish(session, writer, fence)

    assert all([await ready(session, reader) for reader in readers])
    assert not await ready(session, second_writer)
    assert not await ready(session, behind)


async def test_a_resource_named_both_ways_counts_as_exclusive(session: AsyncSession) -> None:
    both = await accept(session, exclusive=["a"], shared=["a"])
    after = await accept(session, shared=["a"])
    fence = await start(session, both)
    assert fence is not None

    assert not await ready(session, after)
    await finish(session, both, fence)
    assert await ready(session, after)


async def test_a_task_may_hold_off_its_whole_domain(session: AsyncSession) -> None:
    first = await accept(session, exclusive=["a"])
    alone = await accept(session, exclusive=[runs.DOMAIN])
    after = await accept(session, exclusive=["b"])
    fence = await start(session, first)
    assert fence is not None

    assert not await ready(session, alone)
    assert not await ready(session, after)
    await finish(session, first, fence)
    assert await ready(session, alone)
    assert not await ready(session, after)


async def test_the_record_names_exclusive_then_shared_claims_then_the_domain(
    session: AsyncSession,
) -> None:
    task = await get(session, await accept(session, exclusive=["x"], shared=["s", "x"]))

    assert task.reserved == ["x", "shared:s", f"shared:{runs.DOMAIN}"]


async def test_tasks_of_one_batch_keep_their_order(session: AsyncSession) -> None:
    requests = [make_request(exclusive=["a"]) for _ in range(50)]

    await runs.accept(session, requests, now=NOON)

    for request in requests:
        assert await ready(session, request.id)
        fence = await start(session, request.id)
        assert fence is not None
        await finish(session, request.id, fence)


async def test_accepting_the_same_task_twice_changes_nothing(session: AsyncSession) -> None:
    request = make_request(exclusive=["a"])

    first = await runs.accept(session, [request, request], now=NOON)
    second = await runs.accept(session, [request], now=NOON)

    assert first == [request.id]
    assert second == []
    connection = await session.connection()
    count = await connection.execute(text("select count(*) from claim where resource = 'a'"))
    assert count.scalar() == 1


async def test_claims_are_gone_when_a_task_has_ended(session: AsyncSession) -> None:
    task = await accept(session, exclusive=["a"], shared=["b"])
    fence = await start(session, task)
    assert fence is not None

    await finish(session, task, fence)

    connection = await session.connection()
    assert (await connection.execute(text("select count(*) from claim"))).scalar() == 0


async def test_five_tasks_over_two_resources_keep_their_order(session: AsyncSession) -> None:
    """contract: dispatcher T-01"""
    first = await accept(session, exclusive=["a"], shared=["b"])
    second, third = [await accept(session, shared=["a"]) for _ in range(2)]
    fourth = await accept(session, exclusive=["a"])
    fifth = await accept(session, exclusive=["b"])

    async def all_ready() -> set[UUID]:
        return {task for task in (second, third, fourth, fifth) if await ready(session, task)}

    async def run(task: UUID) -> None:
        fence = await start(session, task)
        assert fence is not None
        await finish(session, task, fence)

    assert await all_ready() == set()
    await run(first)
    assert await all_ready() == {second, third, fifth}
    await run(second)
    assert fourth not in await all_ready()
    await run(third)
    assert fourth in await all_ready()
