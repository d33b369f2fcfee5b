"""Removing old user tasks with their files, and files that nothing refers to.

contract: user_tasks §7.3
"""

from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import text

from services.user_tasks import events
from services.user_tasks.schemas import ARTIFACTS
from services.user_tasks.settings import Settings
from shared.database import utc_now
from shared.worker import WorkerContext

log = structlog.get_logger("purging")
BATCH = 500
MOST_BATCHES = 1000
STRAY_AGE = timedelta(days=1)

# Whole trees: a container that has failed may hold tasks that still run.
_OLD = text("""
    select uuid from status
    where parent_id is null and finished_at < :before and modified < :before
      and state in ('Succeeded', 'Failed', 'Canceled')
      and not exists (
        select from status as live
        where live.root_id = status.uuid and live.state not in ('Succeeded', 'Failed', 'Canceled'))
    order by finished_at limit :batch for update skip locked
""")
_ARTIFACTS = text("""
    delete from artifact using status
    where artifact.status_id = status.uuid and status.root_id = any(:roots)
    returning artifact.file
""")
_DELETE = text("delete from status where root_id = any(:roots)")
# A result whose task was never heard of, or went with its tree while it was on its way.
_STRAY = text("""
    delete from artifact where uuid in (
      select artifact.uuid from artifact
      left join status on status.uuid = artifact.status_id
      where status.uuid is null and artifact.created < :before
      limit :batch for update of artifact skip locked)
    returning file
""")
_KNOWN = text("select file from artifact where file = any(:paths)")


async def purge(context: WorkerContext) -> dict[str, int]:
    """Remove what is older than the settings say, in batches; live tasks are never touched."""
    settings = context.settings
    assert isinstance(settings, Settings)
    now = utc_now()
    found = {
        "tasks": await _old_tasks(context, now - settings.max_age),
        "artifacts": await _stray_artifacts(context, now - STRAY_AGE),
        "files": await _stray_files(context, now - STRAY_AGE),
        "events": await _old_events(context, now, settings.event_retention),
    }
    if any(found.values()):
        log.info("user_tasks.purged", **found)
    return found


async def _old_tasks(context: WorkerContext, before: datetime) -> int:
    count = 0
    for _ in range(MOST_BATCHES):
        async with context.sessions.begin() as session:
            connection = await session.connection()
            values: dict[str, Any] = {"before": before, "batch": BATCH}
            roots = list((await connection.execute(_OLD, values)).scalars())
            files = (await connection.execute(_ARTIFACTS, {"roots": roots})).scalars()
            paths = [path for path in files if path]
            count += (await connection.execute(_DELETE, {"roots": roots})).rowcount
        # After the commit: a crash in between leaves files, never rows without their files.
        await context.files.delete(paths)
        if len(roots) < BATCH:
            break
    return count


async def _stray_artifacts(context: WorkerContext, before: datetime) -> int:
    count = 0
    for _ in range(MOST_BATCHES):
        async with context.sessions.begin() as session:
            connection = await session.connection()
            rows = list(
                (await connection.execute(_STRAY, {"before": before, "batch": BATCH})).scalars()
            )
        await context.files.delete([path for path in rows if path])
        count += len(rows)
        if len(rows) < BATCH:
            break
    return count


async def _stray_files(context: WorkerContext, before: datetime) -> int:
    """Files of artifacts that were never recorded, or whose removal a crash prevented."""
    count = 0
    async for page in context.files.pages(ARTIFACTS):
        paths = [file.path for file in page if file.modified < before]
        async with context.sessions() as session:
            connection = await session.connection()
            known = set((await connection.execute(_KNOWN, {"paths": paths})).scalars())
        stray = [path for path in paths if path not in known]
        await context.files.delete(stray)
        count += len(stray)
    return count


async def _old_events(context: WorkerContext, now: datetime, keep: timedelta) -> int:
    count = 0
    for _ in range(MOST_BATCHES):
        async with context.sessions.begin() as session:
            pruned = await events.prune(session, now=now, keep=keep)
        count += pruned
        if pruned < events.PRUNED:
            break
    return count
