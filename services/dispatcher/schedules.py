"""Tasks to dispatch at a time, once or again and again. contract: dispatcher §1.7, §4.10"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import delete, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import runs
from services.dispatcher.errors import ScheduleBuiltIn, ScheduleExists, ScheduleUnknown
from services.dispatcher.models import RoleGrant, TaskSchedule
from services.dispatcher.roles import SCHEDULE
from services.dispatcher.schemas import ScheduleRequest, TaskRequest
from services.dispatcher.settings import Settings
from shared import ids
from shared.database import Sessions

log = structlog.get_logger("schedules")
MOST_AT_ONCE = 1000

_DUE = """
    next_dispatch <= :now and not exists (
      select from task where task.id = last_task_id
        and task.state in ('waiting', 'running', 'canceling'))
"""
_NEXT = text(f"""
    select id from taskschedule
    where {_DUE} and not id = any(:tried)
    order by next_dispatch, id
    limit 1
    for update skip locked
""")
# Another process may have dispatched it between the snapshot of the statement above and its lock:
# what the row says now has to be seen by a statement of its own.
_STILL_DUE = text(f"select exists (select from taskschedule where id = :id and {_DUE})")


async def dispatch_due(sessions: Sessions, *, now: datetime) -> int:
    """Dispatch what is due; each schedule in a transaction of its own. Returns how many.

    A schedule whose last task has not ended waits for it. What was missed runs once, and the
    rhythm is kept. One that fails is logged and tried again at the next sweep.
    """
    count, tried = 0, list[UUID]()
    while len(tried) < MOST_AT_ONCE:
        try:
            async with sessions.begin() as session:
                connection = await session.connection()
                found = (await connection.execute(_NEXT, {"now": now, "tried": tried})).scalar()
                if found is None:
                    break
                tried.append(found)
                dispatched = await _dispatch(session, found, now)
            count += dispatched
        except Exception:  # One schedule at fault must not hold up the others.
            log.exception("schedule.failed", schedule=str(tried[-1]) if tried else None)
            if not tried:
                break
    return count


async def _dispatch(session: AsyncSession, schedule_id: UUID, now: datetime) -> bool:
    """False if it is not due any more. Needs the lock of its row."""
    connection = await session.connection()
    if not (await connection.execute(_STILL_DUE, {"id": schedule_id, "now": now})).scalar_one():
        return False
    schedule = await get(session, schedule_id)
    request = TaskRequest(
        id=ids.new_id(),
        function=schedule.task_name,
        queue=schedule.queue,
        arguments=schedule.arguments,
        logging_cid=uuid4().hex,
    )
    schedule.last_task_id = request.id
    schedule.next_dispatch = following(schedule.next_dispatch, schedule.dispatch_interval, now)
    schedule.updated_at = now
    await runs.accept(session, [request], now=now)
    return True


def following(due: datetime | None, interval: timedelta | None, now: datetime) -> datetime | None:
    """The first time after now in the schedule's rhythm; None if it does not repeat."""
    if due is None or interval is None:
        return None
    missed = max(0, (now - due) // interval)
    return due + (missed + 1) * interval


def built_in(settings: Settings) -> dict[str, tuple[str, str, int]]:
    """Name → queue, function and minutes between two runs; 0 minutes: never."""
    return {
        "Clean up stale uploads periodically": (
            "libraries", "upload_cleanup", settings.upload_protection_minutes,
        ),
        "Clean up stale shared temporary files periodically": (
            "libraries", "tmpfile_cleanup", settings.tmpfile_protection_minutes,
        ),
        "Clean up stale tasks periodically": (
            "dispatcher", "purge", settings.task_protection_minutes,
        ),
        "Clean up stale content periodically": (
            "libraries", "orphan_cleanup", settings.orphan_protection_minutes,
        ),
    }  # fmt: skip


_KEEP = text("""
    insert into taskschedule (id, name, next_dispatch, dispatch_interval, task_name, queue,
                              arguments, built_in, created_at, updated_at)
    values (:id, :name, cast(:now as timestamptz) + make_interval(mins => :minutes),
            make_interval(mins => :minutes), :function, :queue, '{}', true,
            :now, :now)
    on conflict (name) do update set
      dispatch_interval = excluded.dispatch_interval, task_name = excluded.task_name,
      queue = excluded.queue, updated_at = excluded.updated_at,
      next_dispatch = least(taskschedule.next_dispatch, excluded.next_dispatch)
    where taskschedule.built_in
      and (taskschedule.dispatch_interval, taskschedule.task_name, taskschedule.queue)
          is distinct from (excluded.dispatch_interval, excluded.task_name, excluded.queue)
""")
_DROP = text("delete from taskschedule where name = :name and built_in")


async def keep_built_in(session: AsyncSession, settings: Settings, *, now: datetime) -> None:
    """Make, change or remove the schedules that follow from the settings."""
    connection = await session.connection()
    for name, (queue, function, minutes) in built_in(settings).items():
        if minutes:
            values: dict[str, Any] = {
                "id": ids.new_id(), "name": name, "now": now, "minutes": minutes,
                "function": function, "queue": queue,
            }  # fmt: skip
            await connection.execute(_KEEP, values)
        else:
            await connection.execute(_DROP, {"name": name})


async def create(session: AsyncSession, request: ScheduleRequest, *, now: datetime) -> TaskSchedule:
    """Without a time it is due at once. Raises ScheduleExists."""
    values = {"next_dispatch": now} | request.model_dump(exclude_unset=True)
    schedule = TaskSchedule(id=ids.new_id(), created_at=now, updated_at=now, **values)
    session.add(schedule)
    await _flush(session, request.name)
    return schedule


async def change(
    session: AsyncSession, schedule_id: UUID, request: ScheduleRequest, *, now: datetime
) -> TaskSchedule:
    """Without a time it keeps its own. Raises ScheduleUnknown, ScheduleExists, ScheduleBuiltIn."""
    schedule = await _own(session, schedule_id)
    values = request.model_dump()
    if "next_dispatch" not in request.model_fields_set:
        del values["next_dispatch"]
    for name, value in values.items():
        setattr(schedule, name, value)
    schedule.updated_at = now
    await _flush(session, request.name)
    return schedule


async def remove(session: AsyncSession, schedule_id: UUID) -> None:
    """Its tasks stay; the roles on it go. Raises ScheduleUnknown, ScheduleBuiltIn."""
    await session.delete(await _own(session, schedule_id))
    await session.exec(
        delete(RoleGrant).where(
            col(RoleGrant.object_kind) == SCHEDULE, col(RoleGrant.object_id) == schedule_id
        )
    )


async def _own(session: AsyncSession, schedule_id: UUID) -> TaskSchedule:
    schedule = await get(session, schedule_id, lock=True)
    if schedule.built_in:
        raise ScheduleBuiltIn("This schedule follows the settings; change them instead.")
    return schedule


async def get(
    session: AsyncSession,
    schedule_id: UUID,
    *,
    conditions: Sequence[Any] = (),
    lock: bool = False,
) -> TaskSchedule:
    """Raises ScheduleUnknown."""
    query = select(TaskSchedule).where(col(TaskSchedule.id) == schedule_id, *conditions)
    found = (await session.exec(query.with_for_update() if lock else query)).first()
    if found is None:
        raise ScheduleUnknown("Not found.")
    return found


async def _flush(session: AsyncSession, name: str) -> None:
    try:
        await session.flush()
    except IntegrityError as error:
        raise ScheduleExists(f"There is a schedule called {name} already.") from error
