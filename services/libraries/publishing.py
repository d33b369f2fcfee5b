"""Publishing drafts, and taking drafts back. contract: content_core §2.3, §2.5"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import branches, events
from services.libraries.errors import LibraryUnknown, Superseded
from services.libraries.models import Library
from shared.database import driver
from shared.lookups import Lookup, Source

_LOCK = text("select id from library where id = :id for no key update")

_HOLD = text("update library set fence = :fence where id = :id and fence <= :fence")

_CHANGED = text("select * from changed(:library_id)")

_CLOSURE = text("select * from changed_below(:library_id, cast(:ids as bigint[]))")

_PUBLISH = "select publish_versions($1, $2, $3, $4, $5, $6, $7, $8)"


async def lock(session: AsyncSession, library: Library) -> None:
    """One publish, revert, bulk edit or delete of a library at a time; edits go on.

    Raises LibraryUnknown when it was deleted meanwhile.
    """
    locked = await (await session.connection()).execute(_LOCK, {"id": library.id})
    if locked.first() is None:
        raise LibraryUnknown


async def hold(session: AsyncSession, library: Library, fence: int) -> None:
    """Lock the library for dispatched work that claimed it alone. Raises Superseded.

    A worker that was given up while it slept still holds its old fence: once other work has
    changed the library, its changes come too late.
    """
    connection = await session.connection()
    held = await connection.execute(_HOLD, {"id": library.id, "fence": fence})
    if held.rowcount == 0:
        raise Superseded


async def publish_all(
    session: AsyncSession, library: Library, *, user: str | None, now: datetime, message: str = ""
) -> int:
    """Publish every unpublished change, deletions included. Returns how many.

    Without changes nothing is written. contract: libraries §4.3
    """
    await lock(session, library)
    connection = await session.connection()
    rows = (await connection.execute(_CHANGED, {"library_id": library.id})).all()
    changes = [(row.entity_id, row.published, row.draft, True) for row in rows]
    return await _publish(session, library, changes, user=user, now=now, message=message)


async def publish(
    session: AsyncSession,
    library: Library,
    entity_ids: Sequence[int],
    *,
    user: str | None,
    now: datetime,
    message: str = "",
) -> int:
    """Publish these entities and whatever below them differs; not what holds them.

    Returns how many of them had changes; when none, nothing is written.
    """
    await lock(session, library)
    connection = await session.connection()
    values = {"library_id": library.id, "ids": list(entity_ids)}
    rows = (await connection.execute(_CLOSURE, values)).all()
    changes = [(row.entity_id, row.published, row.draft, row.direct) for row in rows]
    return await _publish(session, library, changes, user=user, now=now, message=message)


_ABOUT = text("""
    select entity.id, entity.kind, entity.type, entity.code, old.version_num as old_num,
           new.version_num as new_num, old.title as old_title,
           coalesce(new.title, old.title, '') as title
    from unnest(cast(:ids as bigint[]), cast(:old as bigint[]), cast(:new as bigint[]))
      as r (id, old, new)
    join entity on entity.id = r.id
    left join version old on old.id = r.old
    left join version new on new.id = r.new
    order by entity.id
""")

# Containers that readers see, above what would be published: what they show changes with it.
_TOUCHED = text("""
    with recursive above (entity_id) as (
      select unnest(cast(:ids as bigint[]))
      union
      select published.entity_id from above
      join dependency on dependency.entity_id = above.entity_id
      join published on published.version_id = dependency.version_id
    )
    select entity.id, entity.kind, entity.type, entity.code, version.title from entity
    join published on published.entity_id = entity.id
    join version on version.id = published.version_id
    where entity.id in (select entity_id from above)
      and not entity.id = any(cast(:ids as bigint[]))
    order by entity.id
""")


async def preview(
    session: AsyncSession, library: Library, entity_id: int
) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]]]:
    """What publishing an item would publish now, and which containers would show it."""
    connection = await session.connection()
    values = {"library_id": library.id, "ids": [entity_id]}
    closure = (await connection.execute(_CLOSURE, values)).all()
    rows = [row for row in closure if row.published != row.draft]
    ids = [row.entity_id for row in rows]
    pairs = {"old": [row.published for row in rows], "new": [row.draft for row in rows]}
    about = (await connection.execute(_ABOUT, {"ids": ids, **pairs})).all()
    return about, (await connection.execute(_TOUCHED, {"ids": ids})).all()


async def _publish(
    session: AsyncSession,
    library: Library,
    changes: Sequence[tuple[int, int | None, int | None, bool]],
    *,
    user: str | None,
    now: datetime,
    message: str,
) -> int:
    different = sum(old != new for _, old, new, _ in changes)
    if not different:
        return 0
    database = await driver(session)
    ids, old, new, direct = (list(column) for column in zip(*changes, strict=True))
    log = await database.fetchval(_PUBLISH, library.id, ids, old, new, direct, message, now, user)
    await events.tell_publish(session, library, log)
    return different


async def revert(
    session: AsyncSession, library: Library, *, user: str | None, now: datetime
) -> int:
    """Take every draft back to its published version; what never was published is deleted.

    Returns how many moved. contract: libraries §4.4
    """
    await lock(session, library)
    connection = await session.connection()
    rows = (await connection.execute(_CHANGED, {"library_id": library.id})).all()
    moves = {row.entity_id: row.published for row in rows}
    return await branches.move_drafts(session, library, moves, user=user, now=now)


_UNPUBLISHED = Lookup("""
    select count(*) filter (where pointer.version_id is not null) as changes,
           count(*) filter (where pointer.version_id is null) as deletes
    from (
      select array_agg(entity_id) as ids from unpublished where library_id = :library_id) as noted
    cross join lateral (
      select entity_id, version_id from draft where entity_id = any(noted.ids) offset 0) as pointer
    where pointer.version_id is distinct from (
      select version_id from published where published.entity_id = pointer.entity_id)
""")


async def count_unpublished(source: Source, library: Library) -> tuple[int, int]:
    """How many drafts are new or different, and how many deletions readers do not see yet."""
    [row] = await _UNPUBLISHED.rows(source, library_id=library.id)
    return row.changes, row.deletes
