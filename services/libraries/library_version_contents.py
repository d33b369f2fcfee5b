"""Reading the content of library versions: pages, differences, single blocks and containers."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.library_versions import AS_OF
from services.libraries.models import Library
from services.libraries.versions import OLX_PATH

PAGE = 100

_UNIT = """
    entity.kind, entity.type, entity.code, entity.entity_ref, version.uuid, version.version_num,
    version.title, version.created, version.created_by
"""


async def content(
    session: AsyncSession,
    library: Library,
    number: int,
    *,
    after: int = 0,
    size: int = PAGE,
    kind: str | None = None,
) -> Sequence[Row[Any]]:
    """Units of a version in the order in which their entities were made, after an entity's id."""
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            select held.entity_id, {_UNIT} from library_version_content held
            join entity on entity.id = held.entity_id
            join version on version.id = held.version_id
            where held.library_id = :library_id and {AS_OF.format(number=":number")}
              and held.entity_id > :after and (cast(:kind as text) is null or entity.kind = :kind)
            order by held.entity_id limit :size
        """),
        {"library_id": library.id, "number": number, "after": after, "size": size, "kind": kind},
    )
    return found.all()


async def difference(
    session: AsyncSession,
    library: Library,
    old: int,
    new: int,
    *,
    after: int = 0,
    size: int = PAGE,
) -> Sequence[Row[Any]]:
    """What is different between two versions, by entity: `was` and `now` are null or a unit."""
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            with was as (
              select held.entity_id, held.version_id from library_version_content held
              where held.library_id = :library_id and {AS_OF.format(number=":old")}
            ), now as (
              select held.entity_id, held.version_id from library_version_content held
              where held.library_id = :library_id and {AS_OF.format(number=":new")}
            )
            select coalesce(was.entity_id, now.entity_id) as entity_id, entity.kind, entity.type,
                   entity.code, entity.entity_ref,
                   old.uuid as old_uuid, old.version_num as old_num, old.title as old_title,
                   new.uuid as new_uuid, new.version_num as new_num, new.title as new_title
            from was full join now on now.entity_id = was.entity_id
            join entity on entity.id = coalesce(was.entity_id, now.entity_id)
            left join version old on old.id = was.version_id
            left join version new on new.id = now.version_id
            where was.version_id is distinct from now.version_id
              and coalesce(was.entity_id, now.entity_id) > :after
            order by 1 limit :size
        """),
        {"library_id": library.id, "old": old, "new": new, "after": after, "size": size},
    )
    return found.all()


async def unit(session: AsyncSession, library: Library, number: int, ref: str) -> Row[Any] | None:
    """The version of an entity that a library version holds."""
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            select held.entity_id, held.version_id, {_UNIT} from entity
            join library_version_content held on held.entity_id = entity.id
              and {AS_OF.format(number=":number")}
            join version on version.id = held.version_id
            where entity.library_id = :library_id and entity.entity_ref = :ref
        """),
        {"library_id": library.id, "number": number, "ref": ref},
    )
    return found.first()


async def olx(session: AsyncSession, version_id: int) -> str:
    """The OLX of a component's version."""
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            select media.text from version_media join media on media.id = version_media.media_id
            where version_media.version_id = :id and version_media.path = '{OLX_PATH}'
        """),
        {"id": version_id},
    )
    return str(found.scalar_one())


async def assets(session: AsyncSession, version_id: int) -> Sequence[Row[Any]]:
    """The static files of a component's version."""
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            select version_media.path, media.size, media.hash, media.media_type
            from version_media join media on media.id = version_media.media_id
            where version_media.version_id = :id and version_media.path <> '{OLX_PATH}'
            order by version_media.path
        """),
        {"id": version_id},
    )
    return found.all()


async def children(
    session: AsyncSession, library: Library, number: int, version_id: int
) -> Sequence[Row[Any]]:
    """The children of a container's version as a library version has them, in their order.

    A pinned child is the version it is pinned to. One that the library version does not hold has
    no version: it was not published then.
    """
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            select child.pinned_version_id is not null as pinned, entity.kind, entity.type,
                   entity.code, entity.entity_ref, version.uuid, version.version_num,
                   version.title, version.created, version.created_by
            from child join entity on entity.id = child.entity_id
            left join library_version_content held on held.entity_id = child.entity_id
              and held.library_id = :library_id and {AS_OF.format(number=":number")}
            left join version
              on version.id = coalesce(child.pinned_version_id, held.version_id)
            where child.version_id = :id order by child.order_num
        """),
        {"library_id": library.id, "number": number, "id": version_id},
    )
    return found.all()
