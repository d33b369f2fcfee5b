"""Giving ready tasks to workers that have room. Each run gets a fence that only it knows."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims, runs
from services.dispatcher.schemas import Assignment, Exchange, ImmediateAnswer, ImmediateRequest
from services.dispatcher.waking import taken
from shared.database import driver
from shared.outbox import wake_relay_later

NOT_FREE = "Resources temporarily unavailable."


async def exchange(
    connection: Any, items: Sequence[tuple[UUID, Exchange]], *, now: datetime
) -> tuple[list[dict[str, Any]], set[str], bool]:
    """Take the ends that workers report and give them new runs, in one transaction.

    Returns what each is answered (an ExchangeAnswer), the queues in which tasks were left ready,
    and whether notes were left. Repeating an exchange changes nothing twice.
    contract: dispatcher §4.3
    """
    asked = [{"worker_id": worker_id, **item.model_dump()} for worker_id, item in items]
    rows = await connection.fetch(
        "select answer, wake, told from exchange_runs($1::jsonb, $2)", runs.as_json(asked), now
    )
    queues = {queue for row in rows for queue in row["wake"]}
    return [row["answer"] for row in rows[: len(items)]], queues, rows[-1]["told"] is True


START = """
with given as (
  update task set state = 'running', started_at = coalesce(started_at, $3), updated_at = $3,
                  fence = nextval('fence_seq'), worker_id = $1
  where id = any($2::uuid[]) and state || '' = 'waiting' and blocked_by = 0
    and exists (select from worker where worker.id = $1)
  returning task.*)
select id, queue, assignment_of(given::task) as assignment from given
"""


async def start(
    session: AsyncSession, worker_id: UUID, ids: Sequence[UUID], *, now: datetime
) -> list[Assignment]:
    """Let this process, if it is registered, run those of these tasks that are ready.

    Needs the dispatcher's lock.
    """
    connection = await driver(session)
    rows = await connection.fetch(START, worker_id, list(ids), now)
    taken(session, rows)
    await connection.execute("select tell_user_tasks($1, $2)", [row["id"] for row in rows], now)
    wake_relay_later(session)
    return [Assignment.model_validate(row["assignment"]) for row in rows]


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
            await runs.cancel_waiting(session, [task_id], NOT_FREE, now=now)
    return ImmediateAnswer(known=True, start=given[0] if given else None)
