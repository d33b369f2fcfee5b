"""The life of a task: accepted, started, ended, canceled, or lost with its worker.

All functions take many tasks at once and use a fixed number of statements. Each change of
state is one conditional update, so that of two that race exactly one counts.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.schemas import (
    FinishAnswer,
    FinishReport,
    StartAnswer,
    StartReport,
    TaskRequest,
)
from services.dispatcher.states import FINAL, USER_STATES, State
from services.user_tasks import client as user_tasks
from services.user_tasks.schemas import Lifecycle

DOMAIN = "prn:core.domain:00000000-0000-0000-0000-000000000000"
WORKER_MISSING = "Worker has gone missing."


def _json(value: Any) -> str:
    # asyncpg's UUIDs are a class of their own, which orjson does not take for a UUID.
    return orjson.dumps(value, default=str).decode()


_TOLD = "id, seq, state, name, username, user_task, attempt, error, parent_id"

_ACCEPT = text("""
    insert into task (id, state, name, queue, arguments, username, logging_cid, parent_id, reserved,
                      user_task, repeatable, attempt, blocked_by, created_at, updated_at)
    select r.id, 'waiting', r.name, r.queue, r.arguments, r.username, r.logging_cid, r.parent_id,
           r.reserved, r.user_task, r.repeatable, 1, 0, :now, :now
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      place integer, id uuid, name text, queue text, arguments jsonb, username text,
      logging_cid text, parent_id uuid, reserved text[], user_task jsonb, repeatable boolean)
    order by r.place
    on conflict (id) do nothing
    returning id, seq
""")


async def accept(
    session: AsyncSession, requests: Sequence[TaskRequest], *, now: datetime
) -> list[UUID]:
    """Store tasks in the order given, and their claims; ids already known change nothing.

    Returns the ids that were new. contract: dispatcher §2.1, §2.2, §3.1
    """
    if not requests:
        return []
    await claims.serialized(session)
    wanted = {request.id: claimed(request) for request in requests}
    rows = [_row(place, request, wanted[request.id]) for place, request in enumerate(requests)]
    connection = await session.connection()
    stored = await connection.execute(_ACCEPT, {"rows": _json(rows), "now": now})
    seqs: dict[UUID, int] = {row.id: row.seq for row in stored}
    if not seqs:
        return []
    queued = [
        {"id": task_id, "resource": resource, "exclusive": exclusive}
        for task_id in seqs
        for resource, exclusive in wanted[task_id].items()
    ]
    await claims.enqueue(session, _json(queued), list(seqs.values()), now=now)
    await _tell_accepted(session, [request for request in requests if request.id in seqs], now)
    return list(seqs)


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


def _row(place: int, request: TaskRequest, wanted: dict[str, bool]) -> dict[str, Any]:
    exclusive = [resource for resource, alone in wanted.items() if alone]
    shared = [f"shared:{name}" for name in request.shared if not wanted[name]]
    domain = [] if wanted[DOMAIN] else [f"shared:{DOMAIN}"]
    return {
        "place": place,
        "id": request.id,
        "name": request.name,
        "queue": request.queue,
        "arguments": request.arguments,
        "username": request.username,
        "logging_cid": request.logging_cid,
        "parent_id": request.parent_id,
        "reserved": list(dict.fromkeys(exclusive + shared + domain)),
        "user_task": request.user_task and request.user_task.model_dump(),
        "repeatable": request.repeatable,
    }


_START = text(f"""
    update task set state = 'running', started_at = coalesce(task.started_at, :now),
                    updated_at = :now, fence = nextval('fence_seq'), worker_id = r.worker_id
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (task_id uuid, attempt int, worker_id uuid)
    join worker on worker.id = r.worker_id
    where task.id = r.task_id and task.attempt = r.attempt
      and task.state = 'waiting' and task.blocked_by = 0
    returning {", ".join(f"task.{name}" for name in _TOLD.split(", "))}, task.fence
""")

_STARTED_BEFORE = text("""
    select task.id, task.fence
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (task_id uuid, attempt int, worker_id uuid)
    join task on task.id = r.task_id and task.attempt = r.attempt
             and task.worker_id = r.worker_id and task.state = 'running'
""")


async def start(
    session: AsyncSession, reports: Sequence[StartReport], *, now: datetime
) -> list[StartAnswer]:
    """Let each task be run by at most one worker, which gets the fence of its run.

    No fence: the task is not ready, has ended, is canceled, or another worker has it. Asking
    again with the same worker and attempt gives the same fence.
    """
    rows = _json([report.model_dump() for report in reports])
    connection = await session.connection()
    before = await connection.execute(_STARTED_BEFORE, {"rows": rows})
    fences: dict[UUID, int] = {row.id: row.fence for row in before}
    started = (await connection.execute(_START, {"rows": rows, "now": now})).all()
    fences |= {row.id: row.fence for row in started}
    await _tell(session, started, now)
    return [
        StartAnswer(task_id=report.task_id, fence=fences.get(report.task_id)) for report in reports
    ]


_FINISH = text(f"""
    update task set state = case when task.state = 'canceling' then 'canceled' else r.state end,
                    error = case when task.state = 'canceling' then null else r.error end,
                    result = case when task.state = 'canceling' then null else r.result end,
                    finished_at = :now, updated_at = :now, worker_id = null
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      task_id uuid, fence bigint, state text, error jsonb, result jsonb)
    where task.id = r.task_id and task.fence = r.fence
      and task.state in ('running', 'canceling')
    returning {", ".join(f"task.{name}" for name in _TOLD.split(", "))}
""")

_FINISHED_BEFORE = text("""
    select task.id
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (task_id uuid, fence bigint, state text)
    join task on task.id = r.task_id and task.fence = r.fence
    where task.state in ('completed', 'failed', 'canceled')
""")


async def finish(
    session: AsyncSession, reports: Sequence[FinishReport], *, now: datetime
) -> list[FinishAnswer]:
    """End runs and free their resources. A report with an old fence changes nothing.

    A task that was asked to cancel meanwhile ends canceled, whatever its run came to.
    contract: dispatcher §1.2 DI-01, DI-02
    """
    await claims.serialized(session)
    rows = _json([report.model_dump() for report in reports])
    connection = await session.connection()
    before = await connection.execute(_FINISHED_BEFORE, {"rows": rows})
    known = set(before.scalars())
    ended = (await connection.execute(_FINISH, {"rows": rows, "now": now})).all()
    await _end(session, ended, now)
    known |= {row.id for row in ended}
    return [
        FinishAnswer(task_id=report.task_id, accepted=report.task_id in known) for report in reports
    ]


_CANCEL = text(f"""
    update task set state = case when state = 'waiting' then 'canceled' else 'canceling' end,
                    finished_at = case when state = 'waiting' then cast(:now as timestamptz) end,
                    updated_at = :now
    where id = any(cast(:ids as uuid[])) and state in ('waiting', 'running', 'canceling')
    returning {_TOLD}
""")


async def cancel(session: AsyncSession, ids: Iterable[UUID], *, now: datetime) -> list[UUID]:
    """Ask tasks to stop: waiting ones end at once, running ones are told. Ended ones stay.

    Returns those whose runs must be told. contract: dispatcher §4.8
    """
    await claims.serialized(session)
    connection = await session.connection()
    rows = (await connection.execute(_CANCEL, {"ids": list(ids), "now": now})).all()
    await _end(session, [row for row in rows if row.state == State.CANCELED], now)
    return [row.id for row in rows if row.state == State.CANCELING]


_LOST = text("select id from worker where last_heartbeat < :limit order by id for update")

_GIVE_UP = text(f"""
    update task set
      state = case when state = 'canceling' then 'canceled'
                   when repeatable and attempt < :most then 'waiting'
                   else 'failed' end,
      error = case when state = 'running' and not (repeatable and attempt < :most)
                   then cast(:missing as jsonb) end,
      finished_at = case when state = 'running' and repeatable and attempt < :most then null
                         else cast(:now as timestamptz) end,
      attempt = case when state = 'running' and repeatable and attempt < :most
                     then attempt + 1 else attempt end,
      pushed_at = null, worker_id = null, fence = null, updated_at = :now
    where worker_id = any(cast(:workers as uuid[])) and state in ('running', 'canceling')
    returning {_TOLD}
""")


async def give_up_lost_workers(
    session: AsyncSession, *, now: datetime, ttl: timedelta, most_attempts: int
) -> list[UUID]:
    """End, or queue again, the tasks of workers that have been silent for longer than `ttl`.

    Only tasks whose registration says so are repeated; they keep their resources and place.
    Returns the workers given up. contract: dispatcher §4.7
    """
    await claims.serialized(session)
    connection = await session.connection()
    lost = list((await connection.execute(_LOST, {"limit": now - ttl})).scalars())
    if not lost:
        return []
    missing = _json({"reason": WORKER_MISSING})
    values = {"workers": lost, "now": now, "most": most_attempts, "missing": missing}
    rows = (await connection.execute(_GIVE_UP, values)).all()
    await _end(session, [row for row in rows if row.state != State.WAITING], now)
    await _tell(session, [row for row in rows if row.state == State.WAITING], now)
    await connection.execute(
        text("delete from worker where id = any(cast(:ids as uuid[]))"), {"ids": lost}
    )
    return lost


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
    await connection.execute(text("delete from task where id = :id"), {"id": task_id})
    return True


async def _end(session: AsyncSession, rows: Sequence[Row[Any]], now: datetime) -> None:
    await claims.release(session, [row.seq for row in rows], now=now)
    await _tell(session, rows, now)


async def _tell_accepted(
    session: AsyncSession, requests: Sequence[TaskRequest], now: datetime
) -> None:
    notes = [
        _lifecycle(
            request.id, State.WAITING, request.name, request.username,
            request.user_task.model_dump(), 1, None, request.parent_id, now,
        )
        for request in requests
        if request.user_task is not None
    ]  # fmt: skip
    await user_tasks.lifecycle_many(session, notes)


async def _tell(session: AsyncSession, rows: Sequence[Row[Any]], now: datetime) -> None:
    """Let the people's side know, in the same transaction as the change."""
    notes = [
        _lifecycle(
            row.id, State(row.state), row.name, row.username,
            row.user_task, row.attempt, row.error, row.parent_id, now,
        )
        for row in rows
        if row.user_task is not None
    ]  # fmt: skip
    await user_tasks.lifecycle_many(session, notes)


def _lifecycle(
    task_id: UUID,
    state: State,
    name: str,
    username: str | None,
    spec: dict[str, Any],
    attempt: int,
    error: dict[str, Any] | None,
    parent_id: UUID | None,
    now: datetime,
) -> Lifecycle:
    repeated = state is State.WAITING and attempt > 1
    message = (error or {}).get("description") or (error or {}).get("reason")
    return Lifecycle.model_validate(
        {
            "task_id": task_id,
            "state": "Retrying" if repeated else USER_STATES[state],
            "at": now,
            "attempt": attempt,
            "error": {"code": (error or {}).get("code", "failed"), "message": message}
            if message
            else None,
            "user": username,
            "name": spec["name"],
            "task_class": name,
            "task_type": spec["task_type"],
            "total_steps": spec["total_steps"],
            "parent_id": None,
        }
    )
