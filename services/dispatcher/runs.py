"""The life of a task: accepted, ended, canceled, or lost with its worker.

All functions take many tasks at once and use a fixed number of statements. Each change of
state is one conditional update, so that of two that race exactly one counts.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims, removing, requirements
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.schemas import (
    DOMAIN,
    LEASE_MARK,
    FinishAnswer,
    FinishReport,
    TaskRequest,
)
from services.dispatcher.states import FINAL, State
from services.dispatcher.waking import wake_later
from shared.database import driver
from shared.outbox import wake_relay_later

WORKER_MISSING = "Worker has gone missing."


def as_json(value: Any) -> str:
    # asyncpg's UUIDs are a class of their own, which orjson does not take for a UUID.
    return orjson.dumps(value, default=str).decode()


async def accept(
    session: AsyncSession, requests: Sequence[TaskRequest], *, now: datetime
) -> list[UUID]:
    """Store tasks in the order given, and their claims; ids already known change nothing.

    Returns the ids that were new. contract: dispatcher §2.1, §2.2, §3.1
    """
    if not requests:
        return []
    connection = await driver(session)
    tasks = await _as_rows(connection, requests)
    rows = await connection.fetch("select * from accept_tasks($1::jsonb, $2)", tasks, now)
    ready = [row for row in rows if row["is_ready"]]
    wake_later(session, [{"id": row["task_id"], "queue": row["task_queue"]} for row in ready])
    if any(request.user_task for request in requests):
        wake_relay_later(session)
    return [row["task_id"] for row in rows if row["is_new"]]


_ACCEPT = """
select array_agg(distinct task_queue) filter (where is_ready) as ready
from accept_tasks($1::jsonb, $2)
"""


async def accept_at_once(
    connection: Any, requests: Sequence[TaskRequest], *, now: datetime
) -> set[str]:
    """The same in a transaction of its own. Returns the queues in which tasks became ready."""
    plain = not any(request.versions for request in requests)
    async with contextlib.nullcontext() if plain else connection.transaction():
        tasks = await _as_rows(connection, requests)
        return set(await connection.fetchval(_ACCEPT, tasks, now) or ())


async def _as_rows(connection: Any, requests: Sequence[TaskRequest]) -> str:
    numbers = await requirements.numbers(connection, [request.versions for request in requests])
    by_id: dict[UUID, TaskRequest] = {}
    for request in requests:
        by_id.setdefault(request.id, request)
    return as_json([_row(place, request, numbers) for place, request in enumerate(by_id.values())])


def reserved(request: TaskRequest) -> list[str]:
    """The names of a task's resources as its record shows them. contract: dispatcher §1.5"""
    return _reserved(*_claimed(request))


def _claimed(request: TaskRequest) -> tuple[list[str], list[str]]:
    """What is claimed exclusively, and what is shared.

    Named both ways, the exclusive claim wins; every task shares its domain, so that a task may
    stop a whole domain. contract: dispatcher DI-06, DI-12
    """
    exclusive = dict.fromkeys(request.exclusive)
    shared = dict.fromkeys([DOMAIN, *request.shared])
    return list(exclusive), [resource for resource in shared if resource not in exclusive]


def _reserved(exclusive: list[str], shared: list[str]) -> list[str]:
    # The domain, when it is shared, is the first of all and written last.
    written = [*shared[1:], *shared[:1]] if shared[:1] == [DOMAIN] else shared
    return exclusive + [LEASE_MARK + name for name in written]


def _row(place: int, request: TaskRequest, numbers: Mapping[str, int]) -> dict[str, Any]:
    exclusive, shared = _claimed(request)
    row = vars(request) | {
        "place": place,
        "name": request.name,
        "requirement_id": requirements.NONE,
        "exclusive": exclusive,
        "shared": shared,
        "reserved": _reserved(exclusive, shared),
    }
    if request.versions:
        row["requirement_id"] = numbers[requirements.canonical(request.versions)]
    if request.user_task:
        row["user_task"] = request.user_task.model_dump()
    return row


async def finish(
    session: AsyncSession, reports: Sequence[FinishReport], *, now: datetime
) -> list[FinishAnswer]:
    """End runs and free their resources. A report with an old fence changes nothing.

    contract: dispatcher §1.2 DI-01, DI-02
    """
    await claims.serialized(session)
    found = await (await driver(session)).fetchrow(
        "select * from finish_runs($1::jsonb, $2)",
        as_json([report.model_dump() for report in reports]),
        now,
    )
    ready = zip(found["ready_ids"], found["ready_queues"], strict=True)
    wake_later(session, [{"id": ident, "queue": queue} for ident, queue in ready])
    wake_relay_later(session)
    counted = set(found["counted"])
    return [
        FinishAnswer(task_id=report.task_id, accepted=report.task_id in counted)
        for report in reports
    ]


# `state || ''` is no column of an index: the planner has been seen to walk all tasks of a state
# instead of looking up these few by their keys.
CANCEL = """
update task set state = case when state = 'waiting' or lease_seconds is not null
                             then 'canceled' else 'canceling' end,
                finished_at = case when state = 'waiting' or lease_seconds is not null
                                   then $2::timestamptz end,
                retry_at = null, updated_at = $2
where id = any($1::uuid[]) and state || '' in ('waiting', 'running', 'canceling')
returning id, state
"""


async def cancel(session: AsyncSession, ids: Iterable[UUID], *, now: datetime) -> list[UUID]:
    """Ask tasks to stop: waiting ones end at once, running ones are told. Ended ones stay.

    Returns those whose runs must be told. contract: dispatcher §4.8
    """
    await claims.serialized(session)
    rows = await (await driver(session)).fetch(CANCEL, list(ids), now)
    await end(session, [row["id"] for row in rows if row["state"] == State.CANCELED], now=now)
    return [row["id"] for row in rows if row["state"] == State.CANCELING]


_CANCEL_WAITING = """
update task set state = 'canceled', error = $2, finished_at = $3, updated_at = $3, retry_at = null
where id = any($1::uuid[]) and state || '' = 'waiting'
returning id
"""


async def cancel_waiting(
    session: AsyncSession, ids: Sequence[UUID], reason: str, *, now: datetime
) -> None:
    """End tasks that have not begun, and say why. Needs the dispatcher's lock."""
    error = as_json({"reason": reason})
    rows = await (await driver(session)).fetch(_CANCEL_WAITING, list(ids), error, now)
    await end(session, [row["id"] for row in rows], now=now)


_LOST = "select id from worker where last_heartbeat < $1 order by id for update"

GIVE_UP = """
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
returning id, state, queue
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
    missing = as_json({"reason": WORKER_MISSING})
    rows = await connection.fetch(GIVE_UP, lost, now, most_attempts, missing)
    again = [row for row in rows if row["state"] == State.WAITING]
    await end(session, [row["id"] for row in rows if row["state"] != State.WAITING], now=now)
    await connection.execute("select tell_user_tasks($1, $2)", [row["id"] for row in again], now)
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
    await claims.serialized(session)
    rows = await (await driver(session)).fetch(_DUE, now)
    wake_later(session, rows)


async def delete_finished(session: AsyncSession, task_id: UUID) -> bool:
    """Remove the record of an ended task. False while it has not ended. Raises TaskUnknown."""
    await removing.alone(session)
    connection = await session.connection()
    found = await connection.execute(
        text("select state from task where id = :id for update"), {"id": task_id}
    )
    state = found.scalar()
    if state is None:
        raise TaskUnknown()
    if State(state) not in FINAL:
        return False
    await removing.remove(session, [task_id])
    return True


async def end(session: AsyncSession, ids: Sequence[UUID], *, now: datetime) -> None:
    """Everything that follows from the ends of tasks that have just got their final states.

    Needs the dispatcher's lock.
    """
    if ids:
        rows = await (await driver(session)).fetch(
            "select ready_id as id, ready_queue as queue from end_tasks($1, $2)", list(ids), now
        )
        wake_later(session, rows)
        wake_relay_later(session)
