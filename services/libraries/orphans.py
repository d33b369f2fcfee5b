"""Content and files that nothing refers to any more. contract: dispatcher §6.6, DI-70 to DI-76

An *orphan save* is a version that never was published, is in no library version, is pinned by no
container, and has been superseded: its content goes, its line in the history stays. An *orphan
medium* is one that no version has. Whatever was used within the protection time stays, and so
does what others are working with at the moment: it is skipped and found by the next run.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.runner import TaskContext
from services.libraries import media
from services.libraries.leftovers import clean_files, delete_content
from services.libraries.settings import Settings
from shared.database import utc_now
from shared.problems import Forbidden

BATCH = 2000

# Its entity's newest version is what a deleted component comes back as.
_UNUSED = """
    save.pruned_at is null
    and exists (select from version newer where newer.entity_id = save.entity_id
                and newer.version_num > save.version_num)
    and not exists (select from draft where draft.version_id = save.id)
    and not exists (select from published where published.version_id = save.id)
    and not exists (select from library_version_content held where held.version_id = save.id)
    and not exists (select from child where child.pinned_version_id = save.id)
    and not exists (select from publish_record record where record.entity_id = save.entity_id
                    and save.id in (record.old_version_id, record.new_version_id))
"""
# Used at last: made, taken up by a library version, or the draft until it was superseded.
_OLD = """
    greatest(save.created, save.interest_at) < :limit
    and not exists (select from draft_record record join draft_log log on log.id = record.log_id
                    where record.entity_id = save.entity_id
                      and record.old_version_id = save.id and log.changed_at >= :limit)
"""
_LISTED = "(cast(:units as uuid[]) is null or save.uuid = any(cast(:units as uuid[])))"
_COUNT_SAVES = text(f"""
    select count(*) from version save where {_LISTED} and {_OLD} and {_UNUSED}
""")
_CHOOSE_SAVES = text(f"""
    select save.id from version save
    where save.id > :after and {_LISTED} and {_OLD} and {_UNUSED}
    order by save.id limit {BATCH} for update of save skip locked
""")
# A statement of its own sees what was committed before the rows were locked.
_PRUNE = text(f"""
    update version save set pruned_at = :now
    where save.id = any(cast(:ids as bigint[])) and {_UNUSED} returning save.id
""")
_EMPTY = text("""
    with children as (
      delete from child where version_id = any(cast(:ids as bigint[]))
    ), dependencies as (
      delete from dependency where version_id = any(cast(:ids as bigint[]))
    ), files as (
      delete from version_media where version_id = any(cast(:ids as bigint[])) returning media_id
    )
    select distinct media_id from files
""")

_IDLE = """
    not exists (select from version_media where version_media.media_id = media.id)
"""
_MINE = "(cast(:ids as bigint[]) is null or media.id = any(cast(:ids as bigint[])))"
_COUNT_MEDIA = text(f"""
    select count(*) from media where {_MINE} and interest_at < :limit and {_IDLE}
""")
_FIND_MEDIA = text(f"""
    select media.id, media.library_id, library.uuid from media
    join library on library.id = media.library_id
    where media.id > :after and {_MINE} and interest_at < :limit and {_IDLE}
    order by media.id limit {BATCH}
""")
_LOCK_MEDIA = text("""
    select id from media where id = any(cast(:ids as bigint[])) and interest_at < :limit
    order by id for update skip locked
""")
_DELETE_MEDIA = text(f"""
    delete from media where id = any(cast(:ids as bigint[])) and {_IDLE}
    returning hash, has_file
""")


@dataclass(frozen=True, slots=True)
class Cleanup:
    """One run: what is older than its limits may go."""

    task: TaskContext
    now: datetime
    limit: datetime
    save_limit: datetime
    units: list[UUID] | None


async def orphan_cleanup(
    task: TaskContext,
    *,
    content_pks: Sequence[str] | None = None,
    orphan_protection_time: int | None = None,
    administrator: bool = False,
) -> None:
    """Clean up orphan saves, then orphan media with their files, then files without any row.

    Minutes of protection; without them, those of the settings. With `content_pks` only these
    saves and their media. May run beside itself. Raises Forbidden for other than administrators.
    """
    if task.user is not None and not administrator:
        raise Forbidden
    settings = task.settings
    assert isinstance(settings, Settings)
    now, given = utc_now(), orphan_protection_time
    run = Cleanup(
        task,
        now,
        before(now, settings.orphan_protection_minutes if given is None else given),
        before(now, settings.save_protection_minutes if given is None else given),
        [UUID(pk) for pk in content_pks] if content_pks else None,
    )
    await task.progress.stage("Cleaning up saves")
    freed = [ids async for ids in clean_saves(run)]
    await task.progress.stage("Cleaning up media")
    if run.units is None:
        await clean_media(run, None)
        await task.progress.stage("Cleaning up files")
        await clean_files(task, limit=run.limit, now=now)
    else:
        await clean_media(run, [media_id for ids in freed for media_id in ids])
    await task.progress.advance()


def before(now: datetime, minutes: int) -> datetime:
    """The moment so many minutes ago, or the first there is."""
    try:
        return now - timedelta(minutes=minutes)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


async def clean_saves(run: Cleanup) -> AsyncIterator[list[int]]:
    """Empty orphan saves, batch by batch. Yields, for listed ones, the media they had."""
    values: dict[str, Any] = {"limit": run.save_limit, "units": run.units, "after": 0}
    async with run.task.sessions() as session:
        connection = await session.connection()
        total = (await connection.execute(_COUNT_SAVES, values)).scalar_one()
    async with run.task.reports.report(
        "Clean up orphan Content", "clean-up.content", total=total
    ) as report:
        while True:
            async with run.task.sessions.begin() as session:
                chosen, pruned, freed = await _prune(session, values, run.now)
            if run.units is not None:
                yield freed
            await report.increase_by(pruned)
            if len(chosen) < BATCH:
                break
            values["after"] = chosen[-1]


async def _prune(
    session: AsyncSession, values: dict[str, Any], now: datetime
) -> tuple[list[int], int, list[int]]:
    connection = await session.connection()
    chosen = list((await connection.execute(_CHOOSE_SAVES, values)).scalars())
    pruned = list((await connection.execute(_PRUNE, {"ids": chosen, "now": now})).scalars())
    freed = list((await connection.execute(_EMPTY, {"ids": pruned})).scalars())
    return chosen, len(pruned), freed


async def clean_media(run: Cleanup, ids: list[int] | None) -> None:
    """Delete media that no version has, with their files; of these only, when ids are given."""
    values: dict[str, Any] = {"limit": run.limit, "ids": ids, "after": 0}
    async with run.task.sessions() as session:
        connection = await session.connection()
        total = (await connection.execute(_COUNT_MEDIA, values)).scalar_one()
    async with run.task.reports.report(
        "Clean up orphan Artifacts", "clean-up.artifacts", total=total
    ) as report:
        while True:
            async with run.task.sessions() as session:
                connection = await session.connection()
                rows = (await connection.execute(_FIND_MEDIA, values)).all()
            by_library = sorted(rows, key=lambda row: int(row.library_id))
            for uuid, mine in groupby(by_library, key=lambda row: row.uuid):
                await report.increase_by(await _delete(run, uuid, [row.id for row in mine]))
            if len(rows) < BATCH:
                break
            values["after"] = rows[-1].id


async def _delete(run: Cleanup, uuid: UUID, ids: list[int]) -> int:
    """Media of one library and then their files, while nobody stores files there. How many."""
    async with run.task.sessions.begin() as session:
        connection = await session.connection()
        if not await media.try_to_own_files(session, uuid):
            return 0
        locked = await connection.execute(_LOCK_MEDIA, {"ids": ids, "limit": run.limit})
        gone = (await connection.execute(_DELETE_MEDIA, {"ids": list(locked.scalars())})).all()
    # Only now: a row that comes back must find its file. Files that stay are found without rows.
    await delete_content(run.task, uuid, [(uuid, row.hash) for row in gone if row.has_file])
    return len(gone)
