"""What a worker is given, and what becomes of answers that were lost."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import assigning, explaining, runs, workers
from services.dispatcher.models import Task
from services.dispatcher.requirements import meets
from services.dispatcher.schemas import (
    Exchange,
    ExchangeAnswer,
    FinishReport,
    Heartbeat,
    ImmediateAnswer,
    ImmediateRequest,
)
from services.dispatcher.states import State
from shared import outbox
from shared.database import driver
from tests.dispatcher.conftest import (
    NOON,
    WORKER,
    accept,
    finish,
    get,
    make_request,
    ready,
    register,
    start,
)


async def exchange(
    session: AsyncSession, turn: int, *, worker: UUID = WORKER, room: int = 10, **values: Any
) -> ExchangeAnswer:
    item = Exchange.model_validate({"turn": turn, "room": room} | values)
    await session.connection()
    answers, _, _ = await assigning.exchange(await driver(session), [(worker, item)], now=NOON)
    return ExchangeAnswer.model_validate(answers[0])


def given(answer: ExchangeAnswer) -> list[UUID]:
    return [assignment.task_id for assignment in answer.start]


async def test_a_worker_gets_ready_tasks_in_their_order_as_many_as_it_has_room_for(
    session: AsyncSession,
) -> None:
    tasks = [await accept(session) for _ in range(5)]
    await accept(session, queue="credentials")

    first = await exchange(session, 1, room=2)
    second = await exchange(session, 2, room=2)

    assert given(first) == tasks[:2]
    assert given(second) == tasks[2:4]
    assert (await get(session, tasks[0])).state is State.RUNNING
    assert (await get(session, tasks[4])).state is State.WAITING


async def test_immediate_tasks_left_to_a_worker_come_first(session: AsyncSession) -> None:
    plain = await accept(session)
    quick = await accept(session, immediate=True)

    assert given(await exchange(session, 1)) == [quick, plain]


async def test_an_end_and_the_next_run_on_its_resource_are_one_exchange(
    session: AsyncSession,
) -> None:
    first = await accept(session, exclusive=["a"])
    second = await accept(session, exclusive=["a"])
    held = (await exchange(session, 1)).start
    assert [run.task_id for run in held] == [first]

    ended = [FinishReport(task_id=first, fence=held[0].fence, state="completed")]
    answer = await exchange(session, 2, ended=[report.model_dump() for report in ended])

    assert answer.ended[0].accepted
    assert given(answer) == [second]
    assert answer.start[0].fence > held[0].fence


async def test_how_far_a_run_came_is_told_with_its_end(session: AsyncSession) -> None:
    spec = {"name": "Export", "total_steps": 3}
    task = await accept(session, username="ines", user_task=spec)
    run = (await exchange(session, 1)).start[0]
    last = {"at": NOON, "completed_steps": 2, "stage": "Packing"}
    report = {"task_id": task, "fence": run.fence, "state": "failed", "progress": last}

    await exchange(session, 2, ended=[report])

    ends = [note for _, _, note in await outbox.waiting(session) if note["state"] == "Failed"]
    assert [(end["progress"]["completed_steps"], end["progress"]["stage"]) for end in ends] == [
        (2, "Packing")
    ]


async def test_an_older_exchange_that_comes_late_gives_nothing(session: AsyncSession) -> None:
    await exchange(session, 5)
    task = await accept(session)

    late = await exchange(session, 4)

    assert late.known
    assert given(late) == []
    assert await ready(session, task)


async def test_runs_given_in_an_answer_that_was_lost_are_given_again(
    session: AsyncSession,
) -> None:
    tasks = [await accept(session) for _ in range(3)]
    lost = await exchange(session, 1, room=2)

    answer = await exchange(session, 2, room=2, holding=[str(tasks[0])])

    assert given(answer) == [tasks[1], tasks[2]]
    assert answer.start[0].fence == lost.start[1].fence


async def test_a_lost_run_that_was_canceled_ends_without_ever_beginning(
    session: AsyncSession,
) -> None:
    task = await accept(session, exclusive=["a"])
    behind = await accept(session, exclusive=["a"])
    await exchange(session, 1, room=1)
    await runs.cancel(session, [task], now=NOON)

    answer = await exchange(session, 2, holding=[])

    assert (await get(session, task)).state is State.CANCELED
    assert given(answer) == [behind]


async def test_an_unknown_worker_is_told_so_and_gets_nothing(session: AsyncSession) -> None:
    task = await accept(session)

    answer = await exchange(session, 1, worker=uuid4())

    assert not answer.known
    assert await ready(session, task)


async def test_a_run_that_wants_to_be_repeated_keeps_its_place_and_its_locks(
    session: AsyncSession,
) -> None:
    task = await accept(session, exclusive=["a"])
    behind = await accept(session, exclusive=["a"])
    run = (await exchange(session, 1, room=1)).start[0]

    ended = {"task_id": str(task), "fence": run.fence, "state": "retry", "retry_seconds": 60}
    answer = await exchange(session, 2, ended=[ended])

    assert answer.ended[0].accepted
    assert given(answer) == []
    assert not await ready(session, behind)
    assert (await get(session, task)).attempt == 2
    await runs.repeat_due(session, now=NOON + timedelta(seconds=59))
    assert given(await exchange(session, 3)) == []
    await runs.repeat_due(session, now=NOON + timedelta(seconds=60))
    assert given(await exchange(session, 4)) == [task]


async def test_a_task_waiting_for_its_repetition_can_be_canceled(session: AsyncSession) -> None:
    task = await accept(session, exclusive=["a"])
    behind = await accept(session, exclusive=["a"])
    run = (await exchange(session, 1, room=1)).start[0]
    ended = {"task_id": str(task), "fence": run.fence, "state": "retry", "retry_seconds": 60}
    await exchange(session, 2, ended=[ended])

    await runs.cancel(session, [task], now=NOON)

    assert (await get(session, task)).state is State.CANCELED
    assert await ready(session, behind)


# Versions


async def test_a_task_waits_for_a_worker_with_high_enough_versions(session: AsyncSession) -> None:
    low, high = uuid4(), uuid4()
    await register_with(session, low, {"core": "3.9.1"})
    task = await accept(session, versions={"core": "3.10"})
    plain = await accept(session)

    assert given(await exchange(session, 1, worker=low)) == [plain]
    why = (await explaining.view(session, task)).waiting_for
    assert why is not None
    assert why.versions == {"core": "3.10"}

    await register_with(session, high, {"core": "3.10.0"})
    assert (await explaining.view(session, task)).waiting_for is None
    assert given(await exchange(session, 1, worker=high)) == [task]


async def test_a_worker_that_was_there_before_the_requirement_meets_it(
    session: AsyncSession,
) -> None:
    worker = uuid4()
    await register_with(session, worker, {"core": "4.0.0"})
    task = await accept(session, versions={"core": "3.9"})

    assert given(await exchange(session, 1, worker=worker)) == [task]


async def test_a_task_no_worker_can_run_keeps_its_place_and_can_be_canceled(
    session: AsyncSession,
) -> None:
    task = await accept(session, versions={"core": "99"}, exclusive=["a"])
    behind = await accept(session, exclusive=["a"])
    assert given(await exchange(session, 1)) == []

    await runs.cancel(session, [task], now=NOON)

    assert (await get(session, task)).state is State.CANCELED
    assert given(await exchange(session, 2)) == [behind]


@pytest.mark.parametrize(
    ("installed", "wanted", "expected"),
    [
        ({"core": "1.10"}, {"core": "1.9"}, True),
        ({"core": "1.10.dev1"}, {"core": "1.10"}, False),
        ({"core": "1.0"}, {"core": "1.0.0"}, True),
        ({}, {"core": "1"}, False),
        ({"core": "1", "file": "2"}, {"core": "1", "file": "3"}, False),
        ({"core": "not a version"}, {"core": "1"}, False),
        ({"core": "1"}, {}, True),
    ],
)
def test_versions_compare_as_versions(
    installed: dict[str, str], wanted: dict[str, str], expected: bool
) -> None:
    assert meets(installed, wanted) is expected


async def register_with(session: AsyncSession, worker: UUID, versions: dict[str, str]) -> None:
    report = Heartbeat(name="w", queue="libraries", versions=versions, first=True)
    await workers.heartbeat(session, worker, report, now=NOON)


# Immediate tasks: contract dispatcher §2.3


async def immediately(session: AsyncSession, **values: Any) -> tuple[UUID, ImmediateAnswer]:
    task = make_request(immediate=True, **values)
    request = ImmediateRequest(task=task, worker_id=WORKER)
    return task.id, await assigning.run_immediately(session, request, now=NOON)


async def test_an_immediate_task_on_free_resources_is_given_to_the_caller(
    session: AsyncSession,
) -> None:
    task, answer = await immediately(session, exclusive=["a"], deferred=False)

    assert answer.start is not None
    assert (await get(session, task)).state is State.RUNNING


async def test_an_immediate_task_does_not_overtake_one_that_waits(session: AsyncSession) -> None:
    holder = await accept(session, exclusive=["a"])
    await start(session, holder)
    await accept(session, exclusive=["a", "b"])

    task, answer = await immediately(session, exclusive=["b"])

    assert answer.start is None
    assert (await get(session, task)).state is State.WAITING


async def test_an_immediate_task_that_may_not_wait_is_canceled_and_says_why(
    session: AsyncSession,
) -> None:
    await accept(session, shared=["a"])

    task, answer = await immediately(session, exclusive=["a"], deferred=False)

    assert answer.start is None
    row = await get(session, task)
    assert row.state is State.CANCELED
    assert row.error == {"reason": "Resources temporarily unavailable."}


async def test_a_process_that_is_not_registered_stores_no_immediate_task(
    session: AsyncSession,
) -> None:
    request = ImmediateRequest(task=make_request(immediate=True), worker_id=uuid4())

    answer = await assigning.run_immediately(session, request, now=NOON)

    assert not answer.known
    assert await session.get(Task, request.task.id) is None


# Chains


async def test_the_rest_of_a_chain_is_canceled_when_a_link_fails(session: AsyncSession) -> None:
    chain = uuid4()
    links = [
        await accept(session, exclusive=[f"chain:{chain}"], chain_id=chain, dependent=True)
        for _ in range(3)
    ]
    fence = await start(session, links[0])
    assert fence is not None

    await finish(session, links[0], fence, "failed", error={"description": "no"})

    states = [(await get(session, link)).state for link in links]
    assert states == [State.FAILED, State.CANCELED, State.CANCELED]
    row = await get(session, links[1])
    assert row.error == {"reason": "A task before it in its chain did not complete."}


async def test_a_link_that_arrives_after_its_chain_broke_is_canceled(
    session: AsyncSession,
) -> None:
    chain = uuid4()
    first = await accept(session, chain_id=chain, dependent=True)
    await runs.cancel(session, [first], now=NOON)

    late = await accept(session, chain_id=chain, dependent=True)

    assert (await get(session, late)).state is State.CANCELED


# Leases


async def test_a_lease_runs_from_the_moment_its_last_claim_is_granted(
    session: AsyncSession,
) -> None:
    holder = await accept(session, exclusive=["a"])
    fence = await start(session, holder)
    assert fence is not None
    free = await accept(session, shared=["b"], lease_seconds=60, queue="lease")
    behind = await accept(
        session, exclusive=["a", "c"], lease_seconds=60, wait_seconds=5, queue="lease"
    )
    assert (await get(session, free)).state is State.RUNNING
    waiting = await get(session, behind)
    assert waiting.state is State.WAITING
    assert waiting.expires_at == NOON + timedelta(seconds=5)

    await finish(session, holder, fence)

    granted = await get(session, behind)
    assert granted.state is State.RUNNING
    assert granted.fence is not None
    assert granted.fence > fence
    assert granted.expires_at == NOON + timedelta(seconds=60)


async def test_registered_workers_keep_their_turn(session: AsyncSession) -> None:
    await exchange(session, 3)
    await register(session)

    assert given(await exchange(session, 3)) == []
