"""Removing the records of tasks that ended long ago. contract: dispatcher §5.7"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import removing, roles
from services.dispatcher.filters import Condition, among_texts
from services.dispatcher.models import Task
from services.dispatcher.removing import Removed
from services.dispatcher.runner import TaskContext
from services.dispatcher.settings import Settings
from services.dispatcher.states import FINAL
from shared.callers import Caller

BATCH = 1000
TASKS = "core.Task"


async def purge(
    task: TaskContext,
    *,
    finished_before: str | None = None,
    states: Sequence[str] | None = None,
    username: str | None = None,
    groups: Sequence[str] = (),
) -> None:
    """Delete ended tasks in batches, with what belongs to them.

    Without a date: those older than the protection time. `username` and his groups: only what
    this user may delete. Memory does not grow with the number of tasks.
    """
    settings = task.settings
    assert isinstance(settings, Settings)
    before = _before(finished_before, settings)
    user = None if username is None else Caller(username, groups=tuple(groups))
    ended = [
        col(Task.finished_at) < before,
        among_texts(col(Task.state), sorted(FINAL) if states is None else states),
    ]
    async with task.sessions() as session:
        total = await _count(session, [*ended, await _may_delete(session, user)])
    deleted: Counter[str] = Counter()
    async with (
        task.reports.report("Purged task-objects total", "purge.tasks.total") as whole,
        task.reports.report(
            f"Purged task-objects of type {TASKS}", f"purge.tasks.key.{TASKS}", total=total
        ) as tasks,
    ):
        since: datetime | None = None
        while True:
            async with task.sessions.begin() as session:
                since, removed = await _one_batch(session, ended, user, since)
            if not removed.counts[TASKS]:
                break
            await task.files.delete(removed.files)
            deleted.update(removed.counts)
            await tasks.increase_by(removed.counts[TASKS])
            await whole.increase_by(sum(removed.counts.values()))
        # Others may have removed some of them, or some may be in use.
        tasks.total, whole.total = tasks.done, whole.done
    await _report_belongings(task, deleted)


async def _report_belongings(task: TaskContext, deleted: Counter[str]) -> None:
    for kind, count in deleted.items():
        if kind != TASKS and count:
            message, code = f"Purged task-objects of type {kind}", f"purge.tasks.key.{kind}"
            async with task.reports.report(message, code, total=count) as report:
                await report.increase_by(count)


async def _may_delete(session: AsyncSession, user: Caller | None) -> Condition:
    return true() if user is None else await roles.permitted(session, user, roles.DELETE)


async def _count(session: AsyncSession, conditions: Sequence[Any]) -> int:
    connection = await session.connection()
    counted = await connection.execute(select(func.count()).select_from(Task).where(*conditions))
    return counted.scalar_one()


async def _one_batch(
    session: AsyncSession, ended: Sequence[Condition], user: Caller | None, since: datetime | None
) -> tuple[datetime | None, Removed]:
    """Remove the oldest that are not in use, none older than `since`, where the last batch ended.

    What the user may delete is asked anew: a role may be taken away meanwhile.
    """
    await removing.alone(session)
    conditions = [*ended, await _may_delete(session, user)]
    if since is not None:
        conditions.append(col(Task.finished_at) >= since)
    connection = await session.connection()
    found = await connection.execute(
        select(col(Task.id), col(Task.finished_at))
        .where(*conditions)
        .order_by(col(Task.finished_at))
        .limit(BATCH)
        .with_for_update(skip_locked=True, of=Task)
    )
    rows = found.all()
    removed = await removing.remove(session, [row[0] for row in rows])
    return rows[-1][1] if rows else since, removed


def _before(finished_before: str | None, settings: Settings) -> datetime:
    if finished_before is not None:
        return datetime.fromisoformat(finished_before)
    if settings.task_protection_minutes == 0:
        raise ValueError("No date is given, and no protection time for tasks is set.")
    return datetime.now(UTC) - timedelta(minutes=settings.task_protection_minutes)
