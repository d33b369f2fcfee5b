"""Leases: resources that somebody holds without a function of ours.

A lease is a task that has `lease_seconds`: it stands in the same queues as all other tasks, and
is seen and canceled as they are. It runs from the moment its last claim is granted until it is
released, canceled, or not renewed in time. `attempt` counts the calls that asked for it, so that
a call whose caller went away never takes from a newer call what that one was given.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import true
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims, runs
from services.dispatcher.errors import LeaseExists, LeaseLost, LeaseUnknown, ResourcesBusy
from services.dispatcher.models import Task
from services.dispatcher.schemas import (
    DOMAIN,
    LARGEST,
    LeaseRenewal,
    LeaseRequest,
    LeaseView,
    TaskRequest,
)
from services.dispatcher.settings import Settings
from services.dispatcher.states import State
from services.dispatcher.waking import LEASES
from shared import ids
from shared.callers import Caller
from shared.database import driver
from shared.paging import read_cursor
from shared.problems import BadInput, Forbidden

EXPIRED = "The lease has expired."
NOT_RENEWED = "You do not hold this lease any more."
ENDED = "This lease has ended."
# After the end of a wait: time for the process in which somebody waits to end it itself.
WAIT_MARGIN = timedelta(seconds=5)
MOST_EXPIRED = 1000


async def take(
    session: AsyncSession,
    request: LeaseRequest,
    *,
    caller: Caller,
    settings: Settings,
    now: datetime,
) -> Task:
    """A lease, held (running) or waiting for its turn. One that may not wait is held or refused.

    Asking again with the same id speaks for the same lease. Raises BadInput, Forbidden,
    ResourcesBusy, LeaseExists, or LeaseLost when the lease of this id has ended.
    """
    _check(request, caller, settings)
    task = _task(request, caller)
    await claims.serialized(session)
    if not await runs.accept(session, [task], now=now):
        await _ask_again(session, task, now)
    lease = await _stored(session, task.id)
    if lease.state is State.WAITING and not request.wait_seconds:
        raise ResourcesBusy(resources=await busy(session, lease))
    return lease


def _check(request: LeaseRequest, caller: Caller, settings: Settings) -> None:
    """The operator's limits. Raises BadInput, naming the field, or Forbidden."""
    _within(
        ttl_seconds=(request.ttl_seconds, settings.lease_longest_ttl_seconds),
        wait_seconds=(request.wait_seconds, settings.lease_longest_wait_seconds),
        exclusive=(len(request.exclusive), settings.lease_most_resources),
        shared=(len(request.shared), settings.lease_most_resources),
    )
    if DOMAIN in request.exclusive and not (caller.administrator or caller.service):
        raise Forbidden("Only administrators may stop a whole domain.")


def _within(**limits: tuple[float, float]) -> None:
    fields = {
        name: [f"At most {most:g} here."] for name, (value, most) in limits.items() if value > most
    }
    if fields:
        raise BadInput("The lease asks for too much.", fields=fields)


def _task(request: LeaseRequest, caller: Caller) -> TaskRequest:
    context = structlog.contextvars.get_contextvars()
    return TaskRequest(
        id=request.id or ids.new_id(),
        function=request.purpose,
        queue=LEASES,
        exclusive=request.exclusive,
        shared=request.shared,
        username=caller.username,
        logging_cid=str(context.get("request_id") or ids.new_id().hex),
        lease_seconds=request.ttl_seconds,
        wait_seconds=request.wait_seconds,
    )


_AGAIN = """
update task set attempt = attempt + 1,
                expires_at = case when state = 'waiting'
                                  then $2::timestamptz + make_interval(secs => $3)
                                  else expires_at end
where id = $1 and lease_seconds is not null and username = $4
  and (state || '' = 'waiting' or state || '' = 'running' and expires_at > $2)
  and reserved @> $5::text[] and reserved <@ $5::text[]
returning id
"""

_SAME = """
select id from task
where id = $1 and lease_seconds is not null and username = $2
  and reserved @> $3::text[] and reserved <@ $3::text[]
"""


async def _ask_again(session: AsyncSession, task: TaskRequest, now: datetime) -> None:
    """The caller asks for a lease it asked for before: its answer was lost."""
    asked = runs.reserved(task)
    connection = await driver(session)
    again = await connection.fetchval(_AGAIN, task.id, now, task.wait_seconds, task.username, asked)
    if again is None:
        own = await connection.fetchval(_SAME, task.id, task.username, asked)
        raise LeaseLost(ENDED) if own else LeaseExists()


async def _stored(session: AsyncSession, lease_id: UUID) -> Task:
    lease = await session.get(Task, lease_id, populate_existing=True)
    if lease is None:
        raise LeaseUnknown
    return lease


async def busy(session: AsyncSession, lease: Task) -> list[str]:
    """Which of the resources a lease asked for are not its own yet."""
    rows = await (await driver(session)).fetch(
        "select resource from claim where seq = $1 and not granted", lease.seq
    )
    asked = LeaseView.of(lease)
    named = {*asked.exclusive, *asked.shared}
    # When the whole domain is held by somebody, everything that was asked for is.
    return sorted(named & {row["resource"] for row in rows} or named)


# `state || ''` is no column of an index: these few are looked up by their keys (see runs.CANCEL).
_CONCLUDE = """
update task set state = 'canceled', finished_at = $3, updated_at = $3
where id = $1 and attempt = $2 and lease_seconds is not null
  and (state || '' = 'waiting' or $4 and state || '' = 'running')
returning id
"""


async def conclude(
    session: AsyncSession, lease: Task, *, now: datetime, gone: bool = False
) -> tuple[Task, list[str]]:
    """The end of a call's wait: the lease is held, or it has ended; and what was busy.

    What was granted meanwhile counts as granted, unless the caller is gone. A call that is not
    the newest one for its lease changes nothing.
    """
    await claims.serialized(session)
    stored = await _stored(session, lease.id)
    lacking = await busy(session, stored) if stored.state is State.WAITING else []
    connection = await driver(session)
    ended = await connection.fetch(_CONCLUDE, lease.id, lease.attempt, now, gone)
    await runs.end(session, [row["id"] for row in ended], now=now)
    return await _stored(session, lease.id), lacking


def of(caller: Caller) -> Any:
    """The condition under which a lease is this caller's; all are an administrator's."""
    return true() if caller.administrator else col(Task.username) == caller.username


async def get(session: AsyncSession, lease_id: UUID, *, caller: Caller) -> Task:
    """Raises LeaseUnknown, also for another caller's lease."""
    found = await session.exec(
        select(Task).where(
            col(Task.id) == lease_id, col(Task.lease_seconds).is_not(None), of(caller)
        ),
        execution_options={"populate_existing": True},
    )
    lease = found.one_or_none()
    if lease is None:
        raise LeaseUnknown
    return lease


def place(cursor: str | None) -> int:
    """Where a page begins. Raises BadInput for what is no cursor of this list."""
    found = read_cursor(cursor, 1)[0] if cursor else 0
    if type(found) is not int or not 0 <= found <= LARGEST:
        raise BadInput("This cursor is not valid.", fields={"after": ["Invalid cursor."]})
    return found


async def list_current(
    session: AsyncSession, *, caller: Caller, after: int, limit: int
) -> Sequence[Task]:
    """The caller's leases that are held or waiting, in the order in which they were asked for."""
    rows = await session.exec(
        select(Task)
        .where(
            col(Task.lease_seconds).is_not(None),
            col(Task.state).in_([State.WAITING, State.RUNNING, State.CANCELING]),
            col(Task.seq) > after,
            of(caller),
        )
        .order_by(col(Task.seq))
        .limit(limit)
    )
    return rows.all()


_RENEW = """
update task set lease_seconds = coalesce($4, lease_seconds), updated_at = $3,
                expires_at = $3::timestamptz + make_interval(secs => coalesce($4, lease_seconds))
where id = $1 and fence = $2 and state || '' = 'running' and lease_seconds is not null
  and expires_at > $3 and ($5 or username = $6)
returning id
"""


async def renew(
    session: AsyncSession,
    lease_id: UUID,
    wanted: LeaseRenewal,
    *,
    caller: Caller,
    settings: Settings,
    now: datetime,
) -> Task:
    """Hold a lease for its time again, counted from now. Raises LeaseUnknown or LeaseLost."""
    _within(ttl_seconds=(wanted.ttl_seconds or 0, settings.lease_longest_ttl_seconds))
    await session.connection()
    held = await (await driver(session)).fetchval(
        _RENEW, lease_id, wanted.fence, now, wanted.ttl_seconds, caller.administrator,
        caller.username,
    )  # fmt: skip
    lease = await get(session, lease_id, caller=caller)
    if held is None:
        raise LeaseLost(NOT_RENEWED)
    return lease


_RELEASE = """
update task set state = 'completed', finished_at = $3, updated_at = $3
where id = $1 and fence = $2 and state || '' = 'running' and lease_seconds is not null
  and ($4 or username = $5)
returning id
"""


async def release(
    session: AsyncSession, lease_id: UUID, *, fence: int, caller: Caller, now: datetime
) -> Task:
    """Give the resources back. Said again it changes nothing.

    Raises LeaseUnknown, or LeaseLost when the lease had ended in another way before.
    """
    await claims.serialized(session)
    rows = await (await driver(session)).fetch(
        _RELEASE, lease_id, fence, now, caller.administrator, caller.username
    )
    await runs.end(session, [row["id"] for row in rows], now=now)
    lease = await get(session, lease_id, caller=caller)
    if lease.state is not State.COMPLETED or lease.fence != fence:
        raise LeaseLost(NOT_RENEWED)
    return lease


_DUE = """
select id from task
where lease_seconds is not null and state in ('waiting', 'running', 'canceling')
  and expires_at <= $1
order by expires_at limit $2
"""

_EXPIRE = """
update task set
  state = case when state = 'waiting' then 'canceled' else 'failed' end,
  error = case when state = 'waiting' then null else $3::jsonb end,
  finished_at = $2, updated_at = $2
where id = any($1::uuid[]) and lease_seconds is not null
  and (state || '' = 'running' and expires_at <= $2
       or state || '' = 'waiting' and expires_at <= $4)
returning id
"""


async def expire(session: AsyncSession, *, now: datetime) -> list[UUID]:
    """End leases that were not renewed in time, and waits that nobody ended. The ids of these.

    Each is one conditional update: a lease that is renewed or released first stays as it is.
    """
    await session.connection()
    connection = await driver(session)
    due = [row["id"] for row in await connection.fetch(_DUE, now, MOST_EXPIRED)]
    if not due:
        return []
    await claims.serialized(session)
    reason = runs.as_json({"reason": EXPIRED})
    rows = await connection.fetch(_EXPIRE, due, now, reason, now - WAIT_MARGIN)
    ended = [row["id"] for row in rows]
    await runs.end(session, ended, now=now)
    return ended


async def decided(session: AsyncSession, waiting: Sequence[UUID]) -> list[UUID]:
    """Which of these leases wait no longer."""
    await session.connection()
    rows = await (await driver(session)).fetch(
        "select id from task where id = any($1::uuid[]) and state <> 'waiting'", list(waiting)
    )
    return [row["id"] for row in rows]
