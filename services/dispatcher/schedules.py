"""Tasks to dispatch at a time, once or again and again. contract: dispatcher §1.7, §4.10"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import runs
from services.dispatcher.errors import ScheduleExists, ScheduleUnknown
from services.dispatcher.models import TaskSchedule
from services.dispatcher.schemas import ScheduleRequest, TaskRequest
from services.dispatcher.settings import Settings
from shared import ids
from shared.database import Sessions

log = structlog.get_logger("schedules")
MOST_AT_ONCE = 1000

_DUE = text("""
    select schedule.id from taskschedule as schedule
    left join task on task.id = schedule.last_task_id
    where schedule.next_dispatch <= :now
      and (task.id is null or task.state in ('skipped', 'completed', 'failed', 'canceled'))
      and not schedule.id = any(:tried)
    order by schedule.next_dispatch, schedule.id
    limit 1
    for update of schedule skip locked
""")


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
                found = (await connection.execute(_DUE, {"now": now, "tried": tried})).scalar()
                if found is None:
                    break
                tried.append(found)
                await _dispatch(session, found, now)
                count += 1
        except Exception:  # One schedule at fault must not hold up the others.
            log.exception("schedule.failed", schedule=str(tried[-1]) if tried else None)
            if not tried:
                break
    return count


async def _dispatch(session: AsyncSession, schedule_id: UUID, now: datetime) -> None:
    schedule = await session.get(TaskSchedule, schedule_id)
    assert schedule is not None
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
      queue = excluded.queue, updated_at = excluded.updated_at
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
    """Raises ScheduleExists."""
    schedule = TaskSchedule(
        id=ids.new_id(), created_at=now, updated_at=now, **_values(request, now)
    )
    session.add(schedule)
    await _flush(session, request.name)
    return schedule


async def change(
    session: AsyncSession, schedule_id: UUID, request: ScheduleRequest, *, now: datetime
) -> TaskSchedule:
    """Raises ScheduleUnknown, ScheduleExists."""
    schedule = await get(session, schedule_id, lock=True)
    for name, value in _values(request, now).items():
        setattr(schedule, name, value)
    schedule.updated_at = now
    await _flush(session, request.name)
    return schedule


async def remove(session: AsyncSession, schedule_id: UUID) -> None:
    """Its tasks stay. Raises ScheduleUnknown."""
    await session.delete(await get(session, schedule_id, lock=True))


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


def _values(request: ScheduleRequest, now: datetime) -> dict[str, Any]:
    return {
        "name": request.name,
        "task_name": request.task_name,
        "queue": request.queue,
        "arguments": request.arguments,
        "dispatch_interval": request.dispatch_interval,
        "next_dispatch": request.next_dispatch or now,
    }


async def _flush(session: AsyncSession, name: str) -> None:
    try:
        await session.flush()
    except IntegrityError as error:
        raise ScheduleExists(f"There is a schedule called {name} already.") from error
