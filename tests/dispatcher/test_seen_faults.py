"""What was seen to go wrong in Pulp's task system, and does not here. contract: dispatcher §9

Each test says in its docstring where the fault was seen.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import assigning, runs, workers
from services.dispatcher.runner import TaskContext
from services.dispatcher.schemas import Exchange, ExchangeAnswer, FinishReport, ImmediateRequest
from services.dispatcher.states import State
from services.dispatcher.waking import CANCEL_CHANNEL
from shared.database import Database, driver
from tests.conftest import Servers
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
from tests.dispatcher.in_process import Worker

QUICK = 1.0
OTHER_WORKER = UUID(int=2)


async def noop(task: TaskContext) -> str:
    return "done"


class Holder:
    """A function that runs until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()

    async def __call__(self, task: TaskContext) -> None:
        await self.let_go.wait()


def holding() -> tuple[Holder, Any]:
    """A holder, and the function to register."""
    holder = Holder()

    async def hold(task: TaskContext) -> None:
        await holder(task)

    return holder, hold


async def is_running(worker: Worker, task_id: UUID) -> None:
    await worker.until(task_id, lambda task: task.state is State.RUNNING)


async def until_subscribed(worker: Worker) -> None:
    redis = await worker.app.state.queue.redis()
    async with asyncio.timeout(5):
        while dict(await redis.pubsub_numsub(CANCEL_CHANNEL))[CANCEL_CHANNEL.encode()] == 0:
            await asyncio.sleep(0.01)


# As in the dispatcher itself, where an exchange is a transaction of its own.
PLAIN = "; ".join(
    f"set local enable_{name} = on"
    for name in ("seqscan", "hashjoin", "mergejoin", "bitmapscan", "material")
)


async def exchange(
    session: AsyncSession,
    turn: int,
    *,
    worker: UUID = WORKER,
    room: int = 10,
    ended: Sequence[FinishReport] = (),
) -> list[UUID]:
    await session.connection()
    item = Exchange(turn=turn, room=room, ended=list(ended))
    answers, _, _ = await assigning.exchange(await driver(session), [(worker, item)], now=NOON)
    return [run.task_id for run in ExchangeAnswer.model_validate(answers[0]).start]


async def test_what_was_queued_before_any_worker_started_is_run_at_its_start(
    worker: Worker, servers: Servers
) -> None:
    """DI-50: five tasks stayed waiting for ten minutes until something else was dispatched."""
    tasks = [await worker.dispatch("noop") for _ in range(5)]
    # Whatever was to wake a worker is lost.
    await asyncio.to_thread(servers.stores.kill_redis)
    await asyncio.to_thread(servers.stores.start_redis)

    async with worker.runs(noop=noop):
        async with asyncio.timeout(5):
            ended = [await worker.ended(task) for task in tasks]

    assert {task.state for task in ended} == {State.COMPLETED}


async def test_a_blocked_task_is_canceled_at_once_and_blocks_nobody(worker: Worker) -> None:
    """DI-54: it stayed canceling, and blocked others, until some other task ended."""
    holder, hold = holding()
    async with worker.runs(hold=hold, noop=noop):
        first = await worker.dispatch("hold", shared=["a"])
        await is_running(worker, first)
        blocked = await worker.dispatch("noop", exclusive=["a"])
        behind = await worker.dispatch("noop", shared=["a"])
        assert (await worker.until(behind, lambda _: True)).state is State.WAITING

        began = time.monotonic()
        await worker.cancel(blocked)
        canceled = await worker.until(blocked, lambda _: True)
        ended = await worker.ended(behind)

        assert canceled.state is State.CANCELED
        assert ended.state is State.COMPLETED
        assert time.monotonic() - began < QUICK
        assert (await worker.until(first, lambda _: True)).state is State.RUNNING
        holder.let_go.set()


async def test_a_task_that_no_worker_can_run_says_so_and_ends_when_it_is_canceled(
    worker: Worker,
) -> None:
    """P-27: it stayed canceling for ever, and blocked what was behind it or lost its place."""
    async with worker.runs(noop=noop):
        impossible = await worker.dispatch("noop", exclusive=["a"], versions={"core": "99.0"})
        behind = await worker.dispatch("noop", exclusive=["a"])
        unrelated = await worker.dispatch("noop")
        await worker.ended(unrelated)
        waiting = await worker.until(impossible, lambda _: True)
        assert waiting.waiting_for is not None
        assert waiting.waiting_for.versions == {"core": "99.0"}
        assert (await worker.until(behind, lambda _: True)).state is State.WAITING

        await worker.cancel(impossible)

        assert (await worker.until(impossible, lambda _: True)).state is State.CANCELED
        async with asyncio.timeout(QUICK):
            assert (await worker.ended(behind)).state is State.COMPLETED


async def test_twenty_five_shared_waiters_keep_nothing_else_from_running(worker: Worker) -> None:
    """DI-47: from twenty on, the worker read the same page for ever and missed its heartbeats."""
    holder, hold = holding()
    async with worker.runs(hold=hold, noop=noop):
        first = await worker.dispatch("hold", exclusive=["a"])
        await is_running(worker, first)
        waiters = [await worker.dispatch("noop", shared=["a"]) for _ in range(25)]

        async with asyncio.timeout(QUICK):
            await worker.ended(await worker.dispatch("noop", exclusive=["b"]))

        assert (await worker.until(waiters[0], lambda _: True)).state is State.WAITING
        holder.let_go.set()
        for waiter in waiters:
            assert (await worker.ended(waiter)).state is State.COMPLETED


async def test_a_resource_named_both_ways_is_held_alone_and_given_back(worker: Worker) -> None:
    """DI-12: the task never started and the resource stayed locked for everybody."""
    holder, hold = holding()
    async with worker.runs(hold=hold, noop=noop):
        both = await worker.dispatch("hold", exclusive=["a"], shared=["a"])
        await is_running(worker, both)
        reader = await worker.dispatch("noop", shared=["a"])
        writer = await worker.dispatch("noop", exclusive=["a"])
        assert (await worker.until(reader, lambda _: True)).state is State.WAITING

        holder.let_go.set()

        for task in (both, reader, writer):
            assert (await worker.ended(task)).state is State.COMPLETED


async def test_locks_are_not_lost_with_redis(worker: Worker, servers: Servers) -> None:
    """§11.5: without Redis's data a second exclusive task ran beside the first."""
    holder, hold = holding()
    async with worker.runs(hold=hold, noop=noop):
        first = await worker.dispatch("hold", exclusive=["a"])
        await is_running(worker, first)
        await asyncio.to_thread(servers.stores.kill_redis)
        await asyncio.to_thread(servers.stores.start_redis)

        second = await worker.dispatch("noop", exclusive=["a"])
        unrelated = await worker.dispatch("noop")

        await worker.ended(unrelated)
        assert (await worker.until(second, lambda _: True)).state is State.WAITING
        holder.let_go.set()
        assert (await worker.ended(second)).state is State.COMPLETED


async def test_the_cancel_of_a_running_task_is_noticed_within_a_second(worker: Worker) -> None:
    """§4.5: it was noticed at the next heartbeat, nine seconds later."""
    _, hold = holding()
    slow = {"worker_heartbeat_seconds": 10.0}
    async with worker.runs(settings=slow, hold=hold) as runner:
        task = await worker.dispatch("hold")
        runner._ask()
        await is_running(worker, task)
        await until_subscribed(worker)

        began = time.monotonic()
        await worker.cancel(task)
        ended = await worker.ended(task)

        assert ended.state is State.CANCELED
        assert time.monotonic() - began < QUICK


# The cost of one step does not grow with what waits


class Counted:
    """The statements of a block, and the rows it read of tasks and claims."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.statements = 0
        self.rows = 0
        self.scans = 0

    def _count(self, _: Any) -> None:
        self.statements += 1

    async def _read(self) -> tuple[int, int]:
        row = await self._connection.fetchrow(
            "select sum(seq_scan) as scans, sum(coalesce(seq_tup_read, 0)"
            " + coalesce(idx_tup_fetch, 0)) as rows"
            " from pg_stat_xact_user_tables where relname in ('task', 'claim')"
        )
        return int(row["scans"]), int(row["rows"])

    async def __aenter__(self) -> "Counted":
        self._before = await self._read()
        self._connection.add_query_logger(self._count)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._connection.remove_query_logger(self._count)
        scans, rows = await self._read()
        self.scans, self.rows = scans - self._before[0], rows - self._before[1]

    @property
    def cost(self) -> tuple[int, int]:
        return self.statements, self.rows


async def backlog(session: AsyncSession, count: int, **claims: Any) -> None:
    for begin in range(0, count, 1000):
        size = min(1000, count - begin)
        requests = [make_request(**claims) for _ in range(size)]
        await runs.accept(session, requests, now=NOON)


async def one_of_each(session: AsyncSession, turn: int) -> dict[str, Counted]:
    """What a free task and its end, a blocked task and its cancel, cost."""
    connection = await driver(session)
    costs = {}
    async with Counted(connection) as costs["accept a free one"]:
        free = await accept(session, exclusive=[f"free-{turn}"])
    await connection.execute(PLAIN)
    async with Counted(connection) as costs["give it to a worker"]:
        assert await exchange(session, turn, room=1) == [free]
    fence = (await get(session, free)).fence
    assert fence is not None
    report = FinishReport(task_id=free, fence=fence, state="completed")
    async with Counted(connection) as costs["end it"]:
        await exchange(session, turn + 1, room=0, ended=[report])
    async with Counted(connection) as costs["accept a blocked one"]:
        blocked = await accept(session, exclusive=["busy"])
    async with Counted(connection) as costs["cancel it"]:
        await runs.cancel(session, [blocked], now=NOON)
    async with Counted(connection) as costs["give nothing"]:
        assert await exchange(session, turn + 2) == []
    return costs


async def test_no_step_reads_more_rows_with_thousands_waiting(session: AsyncSession) -> None:
    """P-24, P-05: each pass read every waiting task; a free one started after seconds.

    Plans are made at the first call and kept until there are new statistics: those made for a
    short queue must be good for a long one.
    """
    connection = await driver(session)
    await connection.execute("truncate task, claim cascade")
    holder = await accept(session, exclusive=["busy"])
    fence = await start(session, holder)
    assert fence is not None
    await backlog(session, 200, exclusive=["busy"])
    # Also instead of those that tests before have left.
    await connection.execute("analyze task, claim, worker; discard plans")
    few = await one_of_each(session, 1)
    await backlog(session, 1_800, exclusive=["busy"])

    many = await one_of_each(session, 4)
    async with Counted(await driver(session)) as ending:
        assert await finish(session, holder, fence)

    for step, counted in many.items():
        assert counted.scans == 0, step
        assert counted.statements == few[step].statements <= 5, step
        assert counted.rows <= few[step].rows + 5, (step, few[step].rows, counted.rows)
    assert ending.scans == 0
    assert ending.rows <= 40
    assert len(await exchange(session, 7)) == 1


async def test_many_are_accepted_canceled_and_ended_with_the_statements_of_one(
    session: AsyncSession,
) -> None:
    """P-01, P-21: each dispatch was a transaction under one lock; there was no bulk cancel."""
    connection = await driver(session)
    found = []
    for turn, count in ((1, 1), (2, 300)):
        requests = [make_request(exclusive=[f"{turn}-{number}"]) for number in range(count)]
        async with Counted(connection) as accepting:
            await runs.accept(session, requests, now=NOON)
        async with Counted(connection) as giving:
            given = await exchange(session, turn, room=count)
        assert len(given) == count
        async with Counted(connection) as canceling:
            await runs.cancel(session, given, now=NOON)
        found.append([accepting.statements, giving.statements, canceling.statements])

    assert found[0] == found[1]


# Workers that were given up wrongly, and workers of one name


async def test_the_late_end_of_a_worker_given_up_wrongly_changes_nothing(
    session: AsyncSession,
) -> None:
    """§4.7, P-06: a worker thought dead went on; its end was stored beside the next holder's."""
    lost = await accept(session, exclusive=["a"])
    again = await accept(session, exclusive=["b"], repeatable=True)
    behind = await accept(session, exclusive=["a"])
    fence, old_fence = await start(session, lost), await start(session, again)
    assert fence is not None and old_fence is not None
    later = NOON + timedelta(minutes=1)
    await register(session, OTHER_WORKER, now=later)

    given_up = await runs.give_up_lost_workers(
        session, now=later, ttl=timedelta(seconds=20), most_attempts=3
    )
    new_fence = await start(session, again, worker=OTHER_WORKER)
    next_fence = await start(session, behind, worker=OTHER_WORKER)

    assert given_up == [WORKER]
    assert new_fence is not None and new_fence > old_fence
    assert next_fence is not None and next_fence > fence
    assert not await finish(session, lost, fence, result="late")
    assert not await finish(session, again, old_fence, result="late")
    failed, repeated = await get(session, lost), await get(session, again)
    assert (failed.state, failed.result) == (State.FAILED, None)
    assert (repeated.state, repeated.worker_id) == (State.RUNNING, OTHER_WORKER)
    assert await finish(session, again, new_fence, result="new")
    assert (await get(session, again)).result == "new"


async def test_two_workers_of_one_name_are_two_workers(session: AsyncSession) -> None:
    """P-16: workers named after their process id, 1 in a container, took each other's locks."""
    await register(session, OTHER_WORKER, now=NOON + timedelta(minutes=1))
    first, second = await accept(session, exclusive=["a"]), await accept(session, exclusive=["b"])
    waiting = await accept(session, exclusive=["a"])

    assert await exchange(session, 1, room=1) == [first]
    assert await exchange(session, 1, worker=OTHER_WORKER, room=1) == [second]
    await workers.leave(session, WORKER)
    assert (await get(session, first)).state is State.RUNNING
    lost = await runs.give_up_lost_workers(
        session, now=NOON + timedelta(minutes=1), ttl=timedelta(seconds=20), most_attempts=3
    )

    assert lost == [WORKER]
    assert (await get(session, first)).state is State.FAILED
    assert (await get(session, second)).worker_id == OTHER_WORKER
    assert await exchange(session, 2, worker=OTHER_WORKER) == [waiting]


# Immediate tasks that are left to a worker


async def test_an_immediate_task_left_to_a_worker_is_never_forgotten(
    clean: Servers, database: Database
) -> None:
    """DI-18: what a worker wrote meanwhile was overwritten, and nothing woke anybody."""
    async with database.sessions.begin() as session:
        await register(session)

    async def ends(task_id: UUID, fence: int) -> None:
        async with database.sessions.begin() as session:
            await finish(session, task_id, fence)

    async def immediately(task_id: UUID, name: str) -> bool:
        task = make_request(id=str(task_id), exclusive=[name], immediate=True)
        async with database.sessions.begin() as session:
            answer = await assigning.run_immediately(
                session, ImmediateRequest(task=task, worker_id=WORKER), now=NOON
            )
        return answer.start is not None

    outcomes = set()
    for number in range(30):
        async with database.sessions.begin() as session:
            holder = await accept(session, exclusive=[f"r{number}"])
            fence = await start(session, holder)
        assert fence is not None
        task_id = uuid4()
        calls: list[Any] = [ends(holder, fence), immediately(task_id, f"r{number}")]
        results = await asyncio.gather(*calls[:: 1 if number % 2 else -1])
        began = next(result for result in results if result is not None)
        outcomes.add(began)
        async with database.sessions.begin() as session:
            task = await get(session, task_id)
            assert task.unblocked_at is not None
            assert (task.state is State.RUNNING) is began
            assert began or await ready(session, task_id)
            given = await exchange(session, number + 1)
            assert given == ([] if began else [task_id])
    assert outcomes == {True, False}
