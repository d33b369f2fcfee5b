"""Files in the object store that no row knows: what lost imports, uploads and rollbacks left.

A file is looked at only when it is older than the protection time, and than any upload that may
be storing its row right now. contract: dispatcher §6.2, §6.6
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client as dispatcher
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.runner import TaskContext
from services.libraries import (
    export_places,
    exports,
    importing,
    media,
    restoring,
    staged,
    temp_files,
)
from services.libraries.errors import ExportUnknown
from services.libraries.models import Export, TempFile
from services.libraries.settings import Settings
from shared.database import utc_now
from shared.files import ListedFile

LEAST_AGE = timedelta(minutes=10)
# Until its note has been delivered, a task is known to nobody but us.
ON_ITS_WAY = timedelta(days=1)
ASKED_AT_ONCE = 8
BATCH = 500
_CONTENT = re.compile(rf"{media.CONTENT}/([0-9a-f-]{{36}})/([0-9a-f]{{40}})")
_KNOWN = text("""
    select library.uuid, media.hash
    from unnest(cast(:libraries as uuid[]), cast(:hashes as text[])) as file (library, hash)
    join library on library.uuid = file.library
    join media on media.library_id = library.id and media.hash = file.hash and media.has_file
""")
_ROWS = text("select path from temp_file where path = any(cast(:paths as text[]))")

Content = tuple[UUID, str]


async def clean_files(task: TaskContext, *, limit: datetime, now: datetime) -> None:
    """Remove old files of every kind that nothing will ever read."""
    limit = min(limit, now - LEAST_AGE)
    async with task.reports.report("Clean up files without records", "clean-up.files") as report:
        await report.increase_by(await _clean_staged(task, now))
        await report.increase_by(await _clean_content(task, limit))
        await report.increase_by(await _clean_uploads(task, limit, now))
        await report.increase_by(await _clean_temp_files(task, limit))
        await report.increase_by(await _clean_exports(task, limit, now))
        await report.increase_by(await _expire_exports(task, now))


async def upload_cleanup(task: TaskContext) -> None:
    """Remove uploads whose task was lost, what never got to its place, and unused restores."""
    settings, now = task.settings, utc_now()
    assert isinstance(settings, Settings)
    limit = now - max(LEAST_AGE, timedelta(minutes=settings.upload_protection_minutes))
    await _clean_staged(task, now)
    await _clean_uploads(task, limit, now)


async def _clean_staged(task: TaskContext, now: datetime) -> int:
    """Restored archives that nobody has made a library of in time."""
    assert isinstance(task.settings, Settings)
    before = now - timedelta(hours=task.settings.staged_hours)
    return await staged.expire(task.sessions, task.files, before=before)


async def tmpfile_cleanup(task: TaskContext) -> None:
    """Remove temporary files that no task has taken, or whose task has ended without them."""
    settings, now = task.settings, utc_now()
    assert isinstance(settings, Settings)
    limit = now - timedelta(minutes=settings.tmpfile_protection_minutes)
    after = UUID(int=0)
    while True:
        async with task.sessions() as session:
            query = (
                select(TempFile)
                .where(col(TempFile.created_at) < limit, col(TempFile.id) > after)
                .order_by(col(TempFile.id))
                .limit(BATCH)
            )
            rows = (await session.exec(query)).all()
        owners = {row.task_id: row.created_at for row in rows if row.task_id is not None}
        ended = await _ended(task, owners, now)
        free = [row for row in rows if row.task_id is None or row.task_id in ended]
        await temp_files.remove_free(task, free)
        if len(rows) < BATCH:
            break
        after = rows[-1].id


def _old(page: Sequence[ListedFile], limit: datetime) -> list[ListedFile]:
    return [file for file in page if file.modified < limit]


async def _clean_content(task: TaskContext, limit: datetime) -> int:
    count = 0
    async for page in task.files.pages(media.CONTENT):
        names = [_CONTENT.fullmatch(file.path) for file in _old(page, limit)]
        old = [(UUID(name[1]), name[2]) for name in names if name]
        async with task.sessions() as session:
            unknown = await _without_rows(session, old)
        for library in sorted({library for library, _ in unknown}):
            mine = [one for one in unknown if one[0] == library]
            count += await delete_content(task, library, mine)
    return count


async def delete_content(task: TaskContext, library: UUID, files: Sequence[Content]) -> int:
    """Remove those stored files of a library that no row has, unless somebody stores some now."""
    async with task.sessions.begin() as session:
        if not await media.try_to_own_files(session, library):
            return 0
        unknown = await _without_rows(session, files)
        await media.delete_files(task.files, library, [hash for _, hash in unknown])
    return len(unknown)


async def _without_rows(session: AsyncSession, files: Sequence[Content]) -> list[Content]:
    values = {
        "libraries": [library for library, _ in files],
        "hashes": [hash for _, hash in files],
    }
    connection = await session.connection()
    known = {(row.uuid, row.hash) for row in await connection.execute(_KNOWN, values)}
    return [one for one in files if one not in known]


async def _clean_uploads(task: TaskContext, limit: datetime, now: datetime) -> int:
    """Uploads wait for their import, however long it has to wait."""
    count = 0
    async for page in task.files.pages(media.INCOMING):
        paths = [file.path for file in _old(page, limit)]
        await task.files.delete(paths)
        count += len(paths)
    for folder in (importing.UPLOADS, restoring.UPLOADS):
        async for page in task.files.pages(folder):
            old = [(file, _task_of(file.path)) for file in _old(page, limit)]
            ended = await _ended(task, {key: file.modified for file, key in old if key}, now)
            paths = [file.path for file, key in old if key is None or key in ended]
            await task.files.delete(paths)
            count += len(paths)
    return count


async def _clean_exports(task: TaskContext, limit: datetime, now: datetime) -> int:
    """What killed exports have written and will not go on with."""
    count, after = 0, UUID(int=0)
    while True:
        async with task.sessions() as session:
            query = (
                select(Export)
                .where(col(Export.writing), col(Export.created) < limit, col(Export.id) > after)
                .order_by(col(Export.id))
                .limit(BATCH)
            )
            rows = (await session.exec(query)).all()
        ended = await _ended(task, {row.task_id: row.created for row in rows}, now)
        async with task.sessions.begin() as session:
            gone = [row.id for row in rows if row.task_id in ended]
            count += await export_places.clear(session, task.files, gone)
        if len(rows) < BATCH:
            return count
        after = rows[-1].id


async def _expire_exports(task: TaskContext, now: datetime) -> int:
    """Finished exports that are older than the settings let them be, one at a time."""
    assert isinstance(task.settings, Settings)
    if not task.settings.export_days:
        return 0
    count, limit = 0, now - timedelta(days=task.settings.export_days)
    while True:
        async with task.sessions() as session:
            query = (
                select(Export.id)
                .where(col(Export.finished) < limit)
                .order_by(col(Export.finished))
                .limit(BATCH)
            )
            old = (await session.exec(query)).all()
        for ident in old:
            # Another clean-up, or its owner, may have been first.
            with suppress(ExportUnknown):
                async with task.sessions.begin() as session:
                    await exports.remove(session, task.files, ident)
                count += 1
        if len(old) < BATCH:
            return count


def _task_of(path: str) -> UUID | None:
    try:
        return UUID(path.rpartition("/")[2])
    except ValueError:
        return None


async def _clean_temp_files(task: TaskContext, limit: datetime) -> int:
    count = 0
    async for page in task.files.pages(temp_files.FOLDER):
        paths = [file.path for file in _old(page, limit)]
        async with task.sessions() as session:
            connection = await session.connection()
            known = set((await connection.execute(_ROWS, {"paths": paths})).scalars())
        gone = [path for path in paths if path not in known]
        await task.files.delete(gone)
        count += len(gone)
    return count


async def _ended(task: TaskContext, tasks: dict[UUID, datetime], now: datetime) -> set[UUID]:
    """Which of these tasks, with the moments at which they were asked for, read nothing more."""
    gate = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ended(task_id: UUID) -> bool:
        async with gate:
            try:
                return (await dispatcher.get_task(task.clients, task_id)).state.final
            except TaskUnknown:
                return tasks[task_id] < now - ON_ITS_WAY

    answers = await asyncio.gather(*(ended(task_id) for task_id in tasks))
    return {task_id for task_id, over in zip(tasks, answers, strict=True) if over}
