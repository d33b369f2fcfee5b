"""Library versions: immutable, numbered snapshots of a library's content.

contract: dispatcher §6.7, DI-80 to DI-82

A *unit* is one version of a component or container; a library version holds at most one of each
entity. Numbers are dense from 0, which is empty. Every change is made by a fixed number of
statements, however large the library is, and costs rows only for what is different.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.errors import (
    ContentOverwrite,
    LastVersion,
    VersionProtected,
    VersionUnknown,
)
from services.libraries.models import Library, LibraryVersion, Publication
from shared.problems import BadInput

EVERYTHING = "*"
LARGEST = 2**31 - 1

# The content of a library version.
AS_OF = "held.added <= {number} and (held.removed is null or held.removed > {number})"


@dataclass(frozen=True, slots=True)
class Change:
    """What is different in a new version, relative to `base` or to the newest one.

    `remove` may be `["*"]`: all that the newest version holds. What is in both lists stays.
    """

    add: Sequence[UUID] = ()
    remove: Sequence[UUID | str] = ()
    base: int | None = None
    overwrite: bool = True


async def find(session: AsyncSession, library: Library, number: int) -> LibraryVersion | None:
    query = select(LibraryVersion).where(
        col(LibraryVersion.library_id) == library.id, col(LibraryVersion.number) == number
    )
    return (await session.exec(query)).first() if 0 <= number <= LARGEST else None


async def get(session: AsyncSession, library: Library, number: int) -> LibraryVersion:
    """Raises VersionUnknown."""
    version = await find(session, library, number)
    if version is None:
        raise VersionUnknown(f"{library.key} has no version {number}.")
    return version


async def newest(session: AsyncSession, library: Library) -> LibraryVersion:
    """The version with the highest number; there is always one."""
    query = (
        select(LibraryVersion)
        .where(col(LibraryVersion.library_id) == library.id)
        .order_by(col(LibraryVersion.number).desc())
        .limit(1)
    )
    version = (await session.exec(query)).first()
    return version or await create_empty(session, library, now=library.created)


async def create_empty(session: AsyncSession, library: Library, *, now: datetime) -> LibraryVersion:
    """Version 0 of a new library."""
    version = LibraryVersion(library_id=library.id, number=0, created=now)
    session.add(version)
    await session.flush()
    return version


# What a new version shall hold, as (entity_id, version_id).
_PUBLISHED = """
    select published.entity_id, published.version_id from entity
    join published on published.entity_id = entity.id
    where entity.library_id = :library_id and published.version_id is not null
"""
_ADDED = """
    select version.entity_id, version.id as version_id from version
    join entity on entity.id = version.entity_id and entity.library_id = :library_id
    where version.uuid = any(cast(:add as uuid[])) and version.pruned_at is null
"""
_DROPPED = f"""
    select held.version_id from library_version_content held
    where :all and held.library_id = :library_id and {AS_OF.format(number=":latest")}
    union all
    select id from version where uuid = any(cast(:remove as uuid[]))
"""
_CHANGED = f"""
    select held.entity_id, held.version_id from library_version_content held
    where held.library_id = :library_id and {AS_OF.format(number=":base")}
      and held.version_id not in ({_DROPPED})
      and held.entity_id not in (select entity_id from ({_ADDED}) as added)
    union all
    {_ADDED}
"""

_CLOSE = """
    update library_version_content held set removed = :number
    where held.library_id = :library_id and held.removed is null
      and not exists (select from ({target}) as target where target.version_id = held.version_id)
"""
_OPEN = """
    insert into library_version_content (library_id, entity_id, version_id, added)
    select :library_id, target.entity_id, target.version_id, :number from ({target}) as target
    where not exists (
      select from library_version_content held where held.library_id = :library_id
        and held.version_id = target.version_id and held.removed is null)
"""
_COUNTS = text(f"""
    select entity.kind, count(*) as count from library_version_content held
    join entity on entity.id = held.entity_id
    where held.library_id = :library_id and {AS_OF.format(number=":number")}
    group by entity.kind
""")


async def snapshot(
    session: AsyncSession, library: Library, *, user: str | None, now: datetime
) -> LibraryVersion | None:
    """The next version: what is published. None when the newest version is the same.

    The caller holds the library's lock, so that no publish is half in it.
    """
    return await _complete(session, library, _PUBLISHED, {}, base=None, user=user, now=now)


async def add_and_remove(
    session: AsyncSession, library: Library, change: Change, *, user: str | None, now: datetime
) -> LibraryVersion | None:
    """The next version: its base without some units and with others. None without a difference.

    First removed, then added; a unit replaces the one its entity had. Units that are unknown, or
    of other libraries, are ignored. The caller holds the library's lock.

    Raises VersionUnknown for the base, BadInput for two units of one entity, and ContentOverwrite
    when a unit would replace another and the change does not allow it.
    """
    latest = (await newest(session, library)).number
    base = latest if change.base is None else (await get(session, library, change.base)).number
    await touch(session, library, change.add, now=now)
    values = {
        "add": list(change.add),
        "all": EVERYTHING in change.remove,
        "remove": [unit for unit in change.remove if unit != EVERYTHING],
        "latest": latest,
        "base": base,
    }
    await _require_one_each(session, library, change.add)
    if not change.overwrite:
        await _require_no_overwrite(session, library, values)
    return await _complete(session, library, _CHANGED, values, base=change.base, user=user, now=now)


# Locks them too: what is being cleaned up is not taken up, and what is taken up not cleaned up.
_TOUCH = text("""
    update version set interest_at = :now from entity
    where version.id in (
        select id from version where uuid = any(cast(:units as uuid[])) order by id for update)
      and entity.id = version.entity_id and entity.library_id = :library_id
""")


async def touch(
    session: AsyncSession, library: Library, units: Sequence[UUID], *, now: datetime
) -> None:
    """Units are wanted now: no clean-up takes them for its protection time."""
    if units:
        values = {"units": list(units), "library_id": library.id, "now": now}
        await (await session.connection()).execute(_TOUCH, values)


async def _require_one_each(session: AsyncSession, library: Library, units: Sequence[UUID]) -> None:
    connection = await session.connection()
    twice = await connection.execute(
        text(f"""
            select entity.entity_ref from ({_ADDED}) as added
            join entity on entity.id = added.entity_id
            group by entity.entity_ref having count(*) > 1 order by 1 limit 10
        """),
        {"library_id": library.id, "add": list(units)},
    )
    refs = list(twice.scalars())
    if refs:
        message = f"A version holds one unit of each entity; there are several of {refs[0]}."
        raise BadInput(message, fields={"add_content_units": [message]})


async def _require_no_overwrite(
    session: AsyncSession, library: Library, values: Mapping[str, Any]
) -> None:
    connection = await session.connection()
    clashes = await connection.execute(
        text(f"""
            select entity.entity_ref from library_version_content held
            join ({_ADDED}) as added on added.entity_id = held.entity_id
            join entity on entity.id = held.entity_id
            where held.library_id = :library_id and {AS_OF.format(number=":base")}
              and held.version_id <> added.version_id
              and held.version_id not in ({_DROPPED})
            order by entity.entity_ref limit 10
        """),
        {**values, "library_id": library.id},
    )
    refs = list(clashes.scalars())
    if refs:
        raise ContentOverwrite(
            f"The base holds another version of {', '.join(refs)}.", entities=refs
        )


async def _complete(
    session: AsyncSession,
    library: Library,
    target: str,
    values: Mapping[str, Any],
    *,
    base: int | None,
    user: str | None,
    now: datetime,
) -> LibraryVersion | None:
    connection = await session.connection()
    previous = await newest(session, library)
    number = await _next_number(connection, library)
    values = {**values, "library_id": library.id, "number": number}
    removed = (await connection.execute(text(_CLOSE.format(target=target)), values)).rowcount
    added = (await connection.execute(text(_OPEN.format(target=target)), values)).rowcount
    if not removed and not added:
        return None
    assert number > previous.number
    version = LibraryVersion(
        library_id=library.id, number=number, base_number=base, added=added, removed=removed,
        present=await _counts(connection, library, number), created=now, created_by=user,
    )  # fmt: skip
    session.add(version)
    await connection.execute(
        text("update library set next_version = :next where id = :id"),
        {"next": number + 1, "id": library.id},
    )
    await session.flush()
    await trim(session, library)
    return version


async def _next_number(connection: AsyncConnection, library: Library) -> int:
    """Under the library's lock: what the session knows of the library may be older than it."""
    found = await connection.execute(
        text("select next_version from library where id = :id for no key update"),
        {"id": library.id},
    )
    return int(found.scalar_one())


async def _counts(connection: AsyncConnection, library: Library, number: int) -> dict[str, int]:
    rows = await connection.execute(_COUNTS, {"library_id": library.id, "number": number})
    return {row[0]: row[1] for row in rows}


# The newest versions stay, and those that were published.
_TRIM = text("""
    delete from library_version where library_id = :id
      and number not in (
        select number from library_version where library_id = :id order by number desc
        limit (select retain_versions from library where id = :id))
      and not exists (select from publication where publication.version_id = library_version.id)
    returning number
""")
# What no version holds any more.
_FORGET = text("""
    delete from library_version_content held
    where held.library_id = :id and held.removed is not null and not exists (
      select from library_version version where version.library_id = :id
        and version.number >= held.added and version.number < held.removed)
""")


async def trim(session: AsyncSession, library: Library) -> list[int]:
    """Let go of versions beyond those the library keeps. Returns their numbers."""
    connection = await session.connection()
    gone = list((await connection.execute(_TRIM, {"id": library.id})).scalars())
    if gone:
        await connection.execute(_FORGET, {"id": library.id})
    return sorted(gone)


# When the newest version goes, the one before it is what the next is compared with.
_UNDO = text("""
    delete from library_version_content where library_id = :id and added > :newest
""")
_REOPEN = text("""
    update library_version_content set removed = null where library_id = :id and removed > :newest
""")


async def delete(session: AsyncSession, library: Library, version: LibraryVersion) -> None:
    """Remove one version; others keep their content, and its number is not given again.

    The caller holds the library's lock. Raises LastVersion, or VersionProtected when published.
    """
    published = select(Publication.id).where(col(Publication.version_id) == version.id)
    if (await session.exec(published)).first() is not None:
        raise VersionProtected(f"Version {version.number} of {library.key} is published.")
    await session.delete(version)
    await session.flush()
    query = select(LibraryVersion.number).where(col(LibraryVersion.library_id) == library.id)
    left = (await session.exec(query.order_by(col(LibraryVersion.number).desc()).limit(1))).first()
    if left is None:
        raise LastVersion(f"{library.key} keeps at least one version.")
    connection = await session.connection()
    if left < version.number:
        await connection.execute(_UNDO, {"id": library.id, "newest": left})
        await connection.execute(_REOPEN, {"id": library.id, "newest": left})
    await connection.execute(_FORGET, {"id": library.id})


async def page(
    session: AsyncSession, library: Library, *, before: int | None, size: int
) -> Sequence[LibraryVersion]:
    """Versions, newest first, below a number."""
    query = select(LibraryVersion).where(col(LibraryVersion.library_id) == library.id)
    if before is not None:
        query = query.where(col(LibraryVersion.number) < before)
    return (await session.exec(query.order_by(col(LibraryVersion.number).desc()).limit(size))).all()


async def publish(
    session: AsyncSession,
    library: Library,
    version: LibraryVersion,
    *,
    user: str | None,
    now: datetime,
) -> Publication:
    """Publish a version: it is kept for good, with what the library says of itself now.

    A version that is published already stays as it is. The caller holds the library's lock.
    """
    query = select(Publication).where(col(Publication.version_id) == version.id)
    known = (await session.exec(query)).first()
    if known is not None:
        return known
    publication = Publication(
        library_id=library.id, version_id=version.id, title=library.title,
        description=library.description, license=library.license, created=now, created_by=user,
    )  # fmt: skip
    session.add(publication)
    await session.flush()
    return publication


async def publications(session: AsyncSession, version_ids: Sequence[int]) -> dict[int, UUID]:
    """Which of these versions are published, and as what."""
    query = select(Publication.version_id, Publication.id).where(
        col(Publication.version_id).in_(version_ids)
    )
    return dict((await session.exec(query)).all())
