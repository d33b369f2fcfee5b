"""The life of a task: accepted, ended, canceled, or lost with its worker.

All functions take many tasks at once and use a fixed number of statements. Each change of
state is one conditional update, so that of two that race exactly one counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims, requirements
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.schemas import (
    FinishAnswer,
    FinishReport,
    TaskRequest,
)
from services.dispatcher.states import FINAL, State
from services.dispatcher.telling import TOLD, tell, tell_accepted
from services.dispatcher.waking import wake_later
from shared.database import driver

DOMAIN = "prn:core.domain:00000000-0000-0000-0000-000000000000"
WORKER_MISSING = "Worker has gone missing."
CHAIN_BROKEN = "A task before it in its chain did not complete."


def _json(value: Any) -> str:
    # asyncpg's UUIDs are a class of their own, which orjson does not take for a UUID.
    return orjson.dumps(value, default=str).decode()


_TOLD = ", ".join(f"task.{name}" for name in TOLD.split(", "))


async def accept(
    session: AsyncSession, requests: Sequence[TaskRequest], *, now: datetime
) -> list[UUID]:
    """Store tasks in the order given, and their claims; ids already known change nothing.

    Returns the ids that were new. contract: dispatcher §2.1, §2.2, §3.1
    """
    if not requests:
        return []
    await claims.serialized(session)
    by_id: dict[UUID, TaskRequest] = {}
    for request in requests:
        by_id.setdefault(request.id, request)
    numbers = await requirements.numbers(session, [request.versions for request in requests])
    rows = [_row(place, request, numbers) for place, request in enumerate(by_id.values())]
    stored = await claims.enqueue(session, _json(rows), now=now)
    new = [row["id"] for row in stored]
    await tell_accepted(session, [by_id[task_id] for task_id in new], now)
    await _cancel_broken(session, [by_id[task_id] for task_id in new], now)
    return new


async def accept_each(
    session: AsyncSession, requests: Sequence[TaskRequest], *, now: datetime
) -> list[UUID]:
    """As `accept`, answering every id: also those that were known already."""
    await accept(session, requests, now=now)
    return [request.id for request in requests]


def claimed(request: TaskRequest) -> dict[str, bool]:
    """Resource → whether exclusively. Named both ways, the exclusive claim wins; every task
    shares its domain, so that a task may stop a whole domain. contract: dispatcher DI-06, DI-12
    """
    return {
        DOMAIN: False,
        **dict.fromkeys(request.shared, False),
        **dict.fromkeys(request.exclusive, True),
    }


def _row(place: int, request: TaskRequest, numbers: Mapping[str, int]) -> dict[str, Any]:
    wanted = claimed(request)
    exclusive = [resource for resource, alone in wanted.items() if alone]
    shared = [resource for resource, alone in wanted.items() if not alone]
    written = [name for name in shared if name != DOMAIN] + [DOMAIN] * (not wanted[DOMAIN])
    return {
        "place": place,
        "id": request.id,
        "name": request.name,
        "queue": request.queue,
        "arguments": request.arguments,
        "username": request.username,
        "logging_cid": request.logging_cid,
        "parent_id": request.parent_id,
        "group_id": request.group_id,
        "chain_id": request.chain_id,
        "dependent": request.dependent,
        "immediate": request.immediate,
        "deferred": request.deferred,
        "versions": request.versions,
        "requirement_id": numbers[requirements.canonical(request.versions)]
        if request.versions
        else requirements.NONE,
        "profile_options": request.profile_options,
        "exclusive": exclusive,
        "shared": shared,
        "reserved": exclusive + [f"shared:{name}" for name in written],
        "user_task": request.user_task and request.user_task.model_dump(),
        "repeatable": request.repeatable,
        "lease_seconds": request.lease_seconds,
        "wait_seconds": request.wait_seconds,
    }


# A run that is to be repeated keeps its place and its resources.
FINISH = f"""
update task set
  state = case when task.state = 'canceling' then 'canceled'
               when r.state = 'retry' then 'waiting' else r.state end,
  error = case when task.state = 'canceling' or r.state = 'retry' then null else r.error end,
  result = case when task.state = 'canceling' or r.state = 'retry' then null else r.result end,
  attempt = attempt + case when task.state <> 'canceling' and r.state = 'retry' then 1 else 0 end,
  retry_at = case when task.state <> 'canceling' and r.state = 'retry' and r.retry_seconds > 0
                  then $2::timestamptz + make_interval(secs => r.retry_seconds) end,
  finished_at = case when task.state = 'canceling' or r.state <> 'retry' then $2::timestamptz end,
  updated_at = $2, worker_id = null
from jsonb_to_recordset($1::jsonb) as r (
  task_id uuid, fence bigint, state text, error jsonb, result jsonb, retry_seconds float)
where task.id = r.task_id and task.fence = r.fence and task.state in ('running', 'canceling')
returning {_TOLD}
"""

FINISHED_BEFORE = """
select task.id
from jsonb_to_recordset($1::jsonb) as r (task_id uuid, fence bigint)
join task on task.id = r.task_id and task.fence = r.fence
where task.state not in ('running', 'canceling')
"""


async def finish_all(
    session: AsyncSession, reports: Sequence[FinishReport], *, now: datetime
) -> list[FinishAnswer]:
    """End runs and free their resources. A report with an old fence changes nothing.

    A task that was asked to cancel meanwhile ends canceled, whatever its run came to. Needs the
    dispatcher's lock. contract: dispatcher §1.2 DI-01, DI-02
    """
    if not reports:
        return []
    connection = await driver(session)
    rows = _json([report.model_dump() for report in reports])
    changed = await connection.fetch(FINISH, rows, now)
    counted = {row["id"] for row in changed}
    if len(counted) < len(reports):
        counted |= {row["id"] for row in await connection.fetch(FINISHED_BEFORE, rows)}
    again = [row for row in changed if row["state"] == State.WAITING]
    await _end(session, [row for row in changed if row["state"] != State.WAITING], now)
    await tell(session, again, now)
    wake_later(session, again)
    return [
        FinishAnswer(task_id=report.task_id, accepted=report.task_id in counted)
        for report in reports
    ]


async def finish(
    session: AsyncSession, reports: Sequence[FinishReport], *, now: datetime
) -> list[FinishAnswer]:
    """As `finish_all`, taking the dispatcher's lock."""
    await claims.serialized(session)
    return await finish_all(session, reports, now=now)


CANCEL = f"""
update task set state = case when state = 'waiting' or lease_seconds is not null
                             then 'canceled' else 'canceling' end,
                finished_at = case when state = 'waiting' or lease_seconds is not null
                                   then $2::timestamptz end,
                retry_at = null, updated_at = $2
where id = any($1::uuid[]) and state in ('waiting', 'running', 'canceling')
returning {_TOLD}
"""


async def cancel(session: AsyncSession, ids: Iterable[UUID], *, now: datetime) -> list[UUID]:
    """Ask tasks to stop: waiting ones end at once, running ones are told. Ended ones stay.

    Returns those whose runs must be told. contract: dispatcher §4.8
    """
    await claims.serialized(session)
    rows = await (await driver(session)).fetch(CANCEL, list(ids), now)
    await _end(session, [row for row in rows if row["state"] == State.CANCELED], now)
    return [row["id"] for row in rows if row["state"] == State.CANCELING]


_CANCEL_WAITING = f"""
update task set state = 'canceled', error = $2, finished_at = $3, updated_at = $3, retry_at = null
where id = any($1::uuid[]) and state = 'waiting'
returning {_TOLD}
"""


async def cancel_waiting(
    session: AsyncSession, ids: Sequence[UUID], reason: str, now: datetime
) -> None:
    """End tasks that have not begun, and say why. Needs the dispatcher's lock."""
    error = _json({"reason": reason})
    rows = await (await driver(session)).fetch(_CANCEL_WAITING, list(ids), error, now)
    await _end(session, rows, now)


_LOST = "select id from worker where last_heartbeat < $1 order by id for update"

GIVE_UP = f"""
update task set
  state = case when state = 'canceling' then 'canceled'
               when repeatable and attempt < $3 then 'waiting'
               else 'failed' end,
  error = case when state = 'running' and not (repeatable and attempt < $3) then $4::jsonb end,
  finished_at = case when state = 'running' and repeatable and attempt < $3 then null
                     else $2::timestamptz end,
  attempt = case when state = 'running' and repeatable and attempt < $3
                 then attempt + 1 else attempt end,
  worker_id = null, fence = null, updated_at = $2
where worker_id = any($1::uuid[]) and state in ('running', 'canceling')
returning {_TOLD}
"""


async def give_up_lost_workers(
    session: AsyncSession, *, now: datetime, ttl: timedelta, most_attempts: int
) -> list[UUID]:
    """End, or queue again, the tasks of workers that have been silent for longer than `ttl`.

    Only tasks whose registration says so are repeated; they keep their resources and place.
    Returns the workers given up. contract: dispatcher §4.7
    """
    await claims.serialized(session)
    connection = await driver(session)
    lost = [row["id"] for row in await connection.fetch(_LOST, now - ttl)]
    if not lost:
        return []
    missing = _json({"reason": WORKER_MISSING})
    rows = await connection.fetch(GIVE_UP, lost, now, most_attempts, missing)
    again = [row for row in rows if row["state"] == State.WAITING]
    await _end(session, [row for row in rows if row["state"] != State.WAITING], now)
    await tell(session, again, now)
    wake_later(session, again)
    await connection.execute("delete from worker where id = any($1::uuid[])", lost)
    return lost


_DUE = """
update task set retry_at = null
where id in (
  select id from task where retry_at <= $1 order by retry_at limit 1000 for update skip locked)
returning id, queue
"""


async def repeat_due(session: AsyncSession, *, now: datetime) -> None:
    """Let runs whose pause is over begin again."""
    await session.connection()
    await claims.serialized(session)
    rows = await (await driver(session)).fetch(_DUE, now)
    wake_later(session, rows)


async def delete_finished(session: AsyncSession, task_id: UUID) -> bool:
    """Remove the record of an ended task. False while it has not ended. Raises TaskUnknown."""
    connection = await session.connection()
    found = await connection.execute(
        text("select state from task where id = :id for update"), {"id": task_id}
    )
    state = found.scalar()
    if state is None:
        raise TaskUnknown()
    if State(state) not in FINAL:
        return False
    values = {"id": task_id}
    await connection.execute(text("update task set parent_id = null where parent_id = :id"), values)
    await connection.execute(text("delete from task where id = :id"), values)
    return True


# In chains that are broken already; links of one chain may arrive apart from each other.
_TOO_LATE = """
select id from task
where chain_id = any($1::uuid[]) and dependent and state = 'waiting' and exists (
  select from task as other
  where other.chain_id = task.chain_id and other.state in ('failed', 'canceled', 'canceling'))
"""


async def _cancel_broken(
    session: AsyncSession, requests: Sequence[TaskRequest], now: datetime
) -> None:
    chains = {request.chain_id for request in requests if request.dependent and request.chain_id}
    if chains:
        rows = await (await driver(session)).fetch(_TOO_LATE, list(chains))
        await cancel_waiting(session, [row["id"] for row in rows], CHAIN_BROKEN, now)


_DEPENDENTS = """
select id from task where chain_id = any($1::uuid[]) and dependent and state = 'waiting'
"""


async def _end(session: AsyncSession, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Free what ended tasks held, tell of their ends, and cancel what depended on them."""
    if not rows:
        return
    await claims.release(session, [row["seq"] for row in rows], now=now)
    await tell(session, rows, now)
    broken = {
        row["chain_id"]
        for row in rows
        if row["chain_id"] is not None and row["state"] != State.COMPLETED
    }
    if broken:
        dependents = await (await driver(session)).fetch(_DEPENDENTS, list(broken))
        await cancel_waiting(session, [row["id"] for row in dependents], CHAIN_BROKEN, now)
