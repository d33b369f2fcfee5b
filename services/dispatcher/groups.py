"""Task groups: tasks that belong together. contract: dispatcher §1.3, §4.8, §5.4"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import load_only
from sqlmodel import col
from sqlmodel import select as select_groups
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import roles, runs
from services.dispatcher.errors import GroupUnknown
from services.dispatcher.models import GroupReport, GroupShare, Task, TaskGroup
from services.dispatcher.states import State
from services.dispatcher.waking import push_after_commit
from shared.callers import Caller
from shared.problems import Forbidden

UNFINISHED = (State.WAITING, State.RUNNING)
# What the minimal form shows: a group may have very many members, with long arguments and results.
SHOWN: Sequence[Any] = (
    Task.id, Task.group_id, Task.name, Task.state, Task.created_at, Task.updated_at,
    Task.unblocked_at, Task.started_at, Task.finished_at,
)  # fmt: skip


async def create(
    session: AsyncSession,
    group_id: UUID,
    *,
    description: str,
    username: str | None,
    now: datetime,
) -> None:
    """Make a group; making it again changes nothing."""
    values = {
        "id": group_id, "description": description, "all_tasks_dispatched": False,
        "username": username, "created_at": now, "updated_at": now,
    }  # fmt: skip
    await session.exec(insert(TaskGroup).values(**values).on_conflict_do_nothing())


async def finish(session: AsyncSession, group_id: UUID, *, now: datetime) -> None:
    """No more tasks will be dispatched into the group. Raises GroupUnknown."""
    found = await session.exec(
        update(TaskGroup)
        .where(col(TaskGroup.id) == group_id)
        .values(all_tasks_dispatched=True, updated_at=now)
        .returning(col(TaskGroup.id))
    )
    if found.first() is None:
        raise GroupUnknown("Not found.")


@dataclass
class Contents:
    """What belongs to the groups of a page, by group."""

    counts: dict[UUID, Mapping[str, int]] = field(default_factory=dict)
    tasks: dict[UUID, list[Task]] = field(default_factory=dict)
    reports: dict[UUID, list[tuple[GroupReport, int, int]]] = field(default_factory=dict)


async def visible(session: AsyncSession, caller: Caller) -> Any:
    """Groups with at least one visible task that has no parent; administrators see all."""
    may_see = await roles.permitted(session, caller, roles.VIEW)
    if caller.administrator:
        return true()
    return col(TaskGroup.id).in_(
        select(col(Task.group_id)).where(
            col(Task.group_id).is_not(None), col(Task.parent_id).is_(None), may_see
        )
    )


async def page(
    session: AsyncSession, *, caller: Caller, limit: int, offset: int
) -> tuple[Sequence[TaskGroup], int]:
    """Groups in the order of their creation, and how many there are."""
    condition = await visible(session, caller)
    connection = await session.connection()
    counted = await connection.execute(select(func.count()).select_from(TaskGroup).where(condition))
    rows = await session.exec(
        select_groups(TaskGroup)
        .where(condition)
        .order_by(col(TaskGroup.created_at), col(TaskGroup.id))
        .limit(limit)
        .offset(offset)
    )
    return rows.all(), counted.scalar_one()


async def get(session: AsyncSession, group_id: UUID, *, caller: Caller) -> TaskGroup:
    """Raises GroupUnknown, also for groups this caller may not see."""
    condition = await visible(session, caller)
    rows = await session.exec(
        select_groups(TaskGroup).where(col(TaskGroup.id) == group_id, condition)
    )
    group = rows.first()
    if group is None:
        raise GroupUnknown("Not found.")
    return group


async def contents(
    session: AsyncSession, groups: Sequence[TaskGroup], *, members: bool = True
) -> Contents:
    """The states of all members, the groups' reports, and the members themselves if wanted.

    Three statements, however many groups. What is counted is what is listed.
    """
    found, ids = Contents(), [group.id for group in groups]
    if not ids:
        return found
    if members:
        found.tasks = await _members(session, ids)
        for ident, tasks in found.tasks.items():
            found.counts[ident] = Counter(task.state.value for task in tasks)
    else:
        found.counts = await _counts(session, ids)
    shares = await _shares(session, ids)
    reports = await session.exec(
        select_groups(GroupReport)
        .where(col(GroupReport.group_id).in_(ids))
        .order_by(col(GroupReport.created_at), col(GroupReport.code))
    )
    for report in reports:
        done, total = shares.get((report.group_id, report.code), (0, 0))
        found.reports.setdefault(report.group_id, []).append((report, done, total))
    return found


async def _members(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, list[Task]]:
    tasks = await session.exec(
        select_groups(Task)
        .where(col(Task.group_id).in_(ids))
        .order_by(col(Task.seq))
        .options(load_only(*SHOWN, raiseload=True))
        .execution_options(populate_existing=True)
    )
    found: dict[UUID, list[Task]] = {}
    for task in tasks:
        assert task.group_id is not None
        found.setdefault(task.group_id, []).append(task)
    return found


async def _counts(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, Mapping[str, int]]:
    rows = await (await session.connection()).execute(
        select(col(Task.group_id), col(Task.state), func.count())
        .where(col(Task.group_id).in_(ids))
        .group_by(col(Task.group_id), col(Task.state))
    )
    found: dict[UUID, dict[str, int]] = {}
    for ident, state, count in rows:
        assert ident is not None
        found.setdefault(ident, {})[State(state).value] = count
    return dict(found)


async def _shares(
    session: AsyncSession, ids: Sequence[UUID]
) -> Mapping[tuple[UUID, str], tuple[int, int]]:
    rows = await (await session.connection()).execute(
        select(
            col(GroupShare.group_id),
            col(GroupShare.code),
            func.sum(col(GroupShare.done)),
            func.sum(col(GroupShare.total)),
        )
        .where(col(GroupShare.group_id).in_(ids))
        .group_by(col(GroupShare.group_id), col(GroupShare.code))
    )
    return {(row[0], row[1]): (int(row[2]), int(row[3])) for row in rows}


async def cancel(session: AsyncSession, group: TaskGroup, *, caller: Caller, now: datetime) -> None:
    """Ask all members to stop, which needs the right to change every one of them.

    Raises Forbidden, and then nothing has changed.
    """
    may_change = await roles.permitted(session, caller, roles.CHANGE)
    connection = await session.connection()
    rows = await connection.execute(
        select(col(Task.id), may_change, col(Task.state)).where(col(Task.group_id) == group.id)
    )
    members = rows.all()
    if not all(allowed for _, allowed, _ in members):
        raise Forbidden
    group.all_tasks_dispatched, group.updated_at = True, now
    await session.flush()
    unfinished = [ident for ident, _, state in members if state in UNFINISHED]
    push_after_commit(session, await runs.cancel(session, unfinished, now=now))
