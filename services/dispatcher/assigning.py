"""Giving ready tasks to workers that have room. Each run gets a fence that only it knows."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims, runs, waking
from services.dispatcher.schemas import (
    Assignment,
    Exchange,
    ExchangeAnswer,
    FinishReport,
    ImmediateAnswer,
    ImmediateRequest,
)
from services.dispatcher.states import State
from services.dispatcher.telling import TOLD, tell
from shared.database import driver

NOT_FREE = "Resources temporarily unavailable."
GIVEN = f"""{TOLD}, fence, arguments, logging_cid, group_id, immediate, profile_options"""
_GIVEN = ", ".join(f"task.{name}" for name in GIVEN.split(", "))

# Immediate tasks first, then in the order of acceptance. Every step is a probe of an index,
# whatever waits. A turn that is not newer than the worker's last one gives nothing.
TAKE = f"""
with taker as (
  update worker set turn = $2 where id = $1 and turn < $2 returning queue, meets
), chosen as (
  select ready.id
  from taker cross join lateral (
    select one.id
    from unnest(taker.meets) as met (requirement)
    cross join lateral (
      select id, seq, immediate from task
      where queue = taker.queue and requirement_id = met.requirement and state = 'waiting'
        and blocked_by = 0 and lease_seconds is null and retry_at is null
      order by (not immediate), seq limit $3) as one
    order by (not one.immediate), one.seq limit $3) as ready
)
update task set state = 'running', started_at = coalesce(started_at, $4), updated_at = $4,
                fence = nextval('fence_seq'), worker_id = $1
from chosen where task.id = chosen.id
returning {_GIVEN}
"""

START = f"""
update task set state = 'running', started_at = coalesce(started_at, $3), updated_at = $3,
                fence = nextval('fence_seq'), worker_id = $1
where id = any($2::uuid[]) and state = 'waiting' and blocked_by = 0
  and exists (select from worker where worker.id = $1)
returning {_GIVEN}
"""

FORGOTTEN = f"""
select {_GIVEN} from task
where worker_id = $1 and state in ('running', 'canceling') and id <> all($2::uuid[])
"""


async def exchange(
    session: AsyncSession, items: Sequence[tuple[UUID, Exchange]], *, now: datetime
) -> list[ExchangeAnswer]:
    """Take the ends that workers report and give them new runs, all in one transaction.

    Repeating an exchange changes nothing twice. contract: dispatcher §4.3
    """
    await claims.serialized(session)
    reports = [report for _, item in items for report in item.ended]
    accepted = iter(await runs.finish_all(session, reports, now=now))
    answers = []
    for worker_id, item in items:
        ended = [next(accepted) for _ in item.ended]
        given = await _give(session, worker_id, item, now)
        answers.append(ExchangeAnswer(known=given is not None, ended=ended, start=given or []))
    return answers


async def _give(
    session: AsyncSession, worker_id: UUID, item: Exchange, now: datetime
) -> list[Assignment] | None:
    """New runs for one worker; None if it is not registered."""
    connection = await driver(session)
    forgotten = await _forgotten(session, worker_id, item.holding, now)
    room = max(0, item.room - len(forgotten))
    taken = await connection.fetch(TAKE, worker_id, item.turn, room, now) if room else []
    if not taken:
        found = await connection.fetchval("select queue from worker where id = $1", worker_id)
        if found is None:
            return None
    waking.taken(session, taken, more=len(taken) == room)
    await tell(session, taken, now)
    return [assignment(row) for row in [*forgotten, *sorted(taken, key=_place)]]


async def _forgotten(
    session: AsyncSession, worker_id: UUID, holding: Sequence[UUID] | None, now: datetime
) -> list[Any]:
    """Runs given in an answer that was lost. Those to be canceled never began: they end here."""
    if holding is None:
        return []
    rows = await (await driver(session)).fetch(FORGOTTEN, worker_id, list(holding))
    stopped = [
        FinishReport(task_id=row["id"], fence=row["fence"], state="canceled")
        for row in rows
        if row["state"] == State.CANCELING
    ]
    await runs.finish_all(session, stopped, now=now)
    return [row for row in rows if row["state"] == State.RUNNING]


async def start(
    session: AsyncSession, worker_id: UUID, ids: Sequence[UUID], *, now: datetime
) -> list[Assignment]:
    """Let this process, if it is registered, run those of these tasks that are ready.

    Needs the dispatcher's lock.
    """
    rows = await (await driver(session)).fetch(START, worker_id, list(ids), now)
    waking.taken(session, rows, more=False)
    await tell(session, rows, now)
    return [assignment(row) for row in sorted(rows, key=_place)]


def _place(row: Mapping[str, Any]) -> tuple[bool, int]:
    return not row["immediate"], row["seq"]


def assignment(row: Mapping[str, Any]) -> Assignment:
    return Assignment.model_construct(
        task_id=row["id"],
        attempt=row["attempt"],
        fence=row["fence"],
        function=row["name"].removeprefix(f"{row['queue']}."),
        arguments=row["arguments"],
        username=row["username"],
        logging_cid=row["logging_cid"],
        group_id=row["group_id"],
        immediate=row["immediate"],
        profile_options=row["profile_options"],
    )


async def run_immediately(
    session: AsyncSession, request: ImmediateRequest, *, now: datetime
) -> ImmediateAnswer:
    """Accept a task and, if its resources are free, let the calling process run it at once.

    If they are not, it is left to a worker when it may be deferred, and else canceled. A process
    that is not registered stores nothing. contract: dispatcher §2.3
    """
    await claims.serialized(session)
    task_id = request.task.id
    known = await (await driver(session)).fetchval(
        "select exists(select from worker where id = $1)", request.worker_id
    )
    if not known:
        return ImmediateAnswer(known=False)
    given: list[Assignment] = []
    if await runs.accept(session, [request.task], now=now):
        given = await start(session, request.worker_id, [task_id], now=now)
        if not given and not request.task.deferred:
            await runs.cancel_waiting(session, [task_id], NOT_FREE, now)
    return ImmediateAnswer(known=True, start=given[0] if given else None)
