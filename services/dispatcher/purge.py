"""Removing the records of tasks that ended long ago. contract: dispatcher §5.7"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.roles import DELETE, TASK, roles_with
from services.dispatcher.runner import TaskContext
from services.dispatcher.settings import Settings
from services.dispatcher.states import FINAL

BATCH = 1000

# Those this user may delete: his own, those a role is his for, or all if he has it for all.
_CANDIDATES = """
    from task
    where finished_at < :before and state = any(:states)
      and (cast(:username as text) is null or (owned and username = :username)
           or id in (select object_id from rolegrant
                     where object_kind = :kind and role = any(:roles) and username = :username)
           or exists (select from rolegrant
                      where object_kind = :kind and role = any(:roles) and username = :username
                        and object_id is null))
"""
_COUNT = text(f"select count(*) {_CANDIDATES}")
_CHOOSE = text(f"""
    select id {_CANDIDATES} order by finished_at limit {BATCH} for update skip locked
""")
_DELETE = text("""
    with orphaned as (
      update task set parent_id = null where parent_id = any(:ids)
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


async def purge(
    task: TaskContext,
    *,
    finished_before: str | None = None,
    states: Sequence[str] | None = None,
    username: str | None = None,
) -> None:
    """Delete ended tasks in batches, with what belongs to them.

    Without a date: those older than the protection time. `username`: only what this user may
    delete. Memory does not grow with the number of tasks.
    """
    settings = task.settings
    assert isinstance(settings, Settings)
    before = _before(finished_before, settings)
    values: dict[str, Any] = {
        "before": before,
        "states": list(states or sorted(FINAL)),
        "username": username,
        "kind": TASK,
        "roles": roles_with(TASK, DELETE),
    }
    async with task.sessions() as session:
        connection = await session.connection()
        total = (await connection.execute(_COUNT, values)).scalar_one()
    deleted = {"core.Task": 0, "core.ProgressReport": 0, "core.CreatedResource": 0,
               "core.ProfileArtifact": 0}  # fmt: skip
    async with (
        task.reports.report("Purged task-objects total", "purge.tasks.total") as whole,
        task.reports.report(
            "Purged task-objects of type core.Task", "purge.tasks.key.core.Task", total=total
        ) as tasks,
    ):
        while True:
            async with task.sessions.begin() as session:
                counts, files = await _one_batch(session, values)
            if not counts["core.Task"]:
                break
            await task.files.delete(files)
            for kind, count in counts.items():
                deleted[kind] += count
            await tasks.increase_by(counts["core.Task"])
            await whole.increase_by(sum(counts.values()))
        whole.total = whole.done
    for kind, count in deleted.items():
        if kind != "core.Task" and count:
            code = f"purge.tasks.key.{kind}"
            async with task.reports.report(
                f"Purged task-objects of type {kind}", code, total=count
            ) as report:
                await report.increase_by(count)


async def _one_batch(
    session: AsyncSession, values: dict[str, Any]
) -> tuple[dict[str, int], list[str]]:
    connection = await session.connection()
    ids = list((await connection.execute(_CHOOSE, values)).scalars())
    row = (await connection.execute(_DELETE, {"ids": ids})).one()
    await connection.execute(text("delete from task where id = any(:ids)"), {"ids": ids})
    counts = {
        "core.Task": len(ids),
        "core.ProgressReport": row.reports,
        "core.CreatedResource": row.created,
        "core.ProfileArtifact": len(row.files),
    }
    return counts, row.files


def _before(finished_before: str | None, settings: Settings) -> datetime:
    if finished_before is not None:
        return datetime.fromisoformat(finished_before)
    if settings.task_protection_minutes == 0:
        raise ValueError("No date is given, and no protection time for tasks is set.")
    return datetime.now(UTC) - timedelta(minutes=settings.task_protection_minutes)
