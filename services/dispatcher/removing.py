"""Removing the records of ended tasks with what belongs to them. contract: dispatcher §5.7"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

# One removal at a time: each locks rows that belong to the batch of another one.
_ALONE = text("select pg_advisory_xact_lock(hashtext('dispatcher.removing'))")
# Children and schedules stay and lose the reference; what only describes the tasks goes.
_BELONGINGS = text("""
    with orphaned as (
      update task set parent_id = null where parent_id = any(:ids) and id <> all(:ids)
    ), scheduled as (
      update taskschedule set last_task_id = null where last_task_id = any(:ids)
    ), granted as (
      delete from rolegrant where object_kind = 'task' and object_id = any(:ids)
    ), reports as (
      delete from taskreport where task_id = any(:ids) returning 1
    ), created as (
      delete from createdresource where task_id = any(:ids) returning 1
    ), profiles as (
      delete from profileartifact where task_id = any(:ids) returning file
    )
    select (select count(*) from reports) as reports, (select count(*) from created) as created,
           array(select file from profiles) as files
""")
_TASKS = text("delete from task where id = any(:ids)")


@dataclass
class Removed:
    """How many rows went, by kind as clients know it, and the files that nothing names now."""

    counts: dict[str, int]
    files: list[str] = field(default_factory=list)


async def alone(session: AsyncSession) -> None:
    """Wait until no other removal is under way; to be called before any task is locked."""
    await (await session.connection()).execute(_ALONE)


async def remove(session: AsyncSession, ids: Sequence[UUID]) -> Removed:
    """Remove ended tasks that are locked already. Files may be deleted after the commit."""
    connection = await session.connection()
    values = {"ids": list(ids)}
    row = (await connection.execute(_BELONGINGS, values)).one()
    await connection.execute(_TASKS, values)
    counts = {
        "core.Task": len(ids),
        "core.ProgressReport": row.reports,
        "core.CreatedResource": row.created,
        "core.ProfileArtifact": len(row.files),
    }
    return Removed(counts, row.files)
