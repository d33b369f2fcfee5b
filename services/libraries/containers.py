"""Containers: ordered lists of children with a title. contract: content_core §1.6, §2.9"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import entities, versions
from services.libraries.entities import NewEntity
from services.libraries.errors import BlockExists, BlockUnknown, RuleBroken
from services.libraries.models import Entity, Library
from services.libraries.states import CHILD_KIND, Kind, code_is_valid
from services.libraries.versions import MadeVersion, NewVersion

Children = Sequence[tuple[str, int | None]]


async def create(
    session: AsyncSession,
    library: Library,
    *,
    kind: Kind,
    code: str,
    title: str,
    children: Children = (),
    user: str | None,
    now: datetime,
) -> Entity:
    """A new container, version 1. Children are (ref, pinned version number or None).

    Raises BlockExists when any container of the library has this code, RuleBroken or
    BlockUnknown for a child that may not be there or is not.
    """
    if not code_is_valid(code):
        raise RuleBroken("Not a valid code.")
    new = NewEntity(code, kind, kind.value, code)
    made = await entities.create_many(session, library, [new], user=user, now=now)
    if not made:
        raise BlockExists(f"The code {code} is taken in this library.")
    container = await entities.get(session, library, code, deleted=True)
    await set_children(session, library, container, children, title=title, user=user, now=now)
    return container


async def set_children(
    session: AsyncSession,
    library: Library,
    container: Entity,
    children: Children,
    *,
    title: str | None = None,
    user: str | None,
    now: datetime,
) -> MadeVersion:
    """Replace the list of children: one new version."""
    rows = await _resolve(session, library, container.kind, children)
    new = NewVersion(container.id, title=title, children=rows)
    made = (await versions.make(session, library, [new], user=user, now=now))[container.id]
    await _require_kept(session, [pin for _, pin in rows if pin is not None])
    return made


async def _require_kept(session: AsyncSession, pins: Sequence[int]) -> None:
    """No pin to what was cleaned up just before the pin held it."""
    if not pins:
        return
    connection = await session.connection()
    pruned = await connection.execute(
        text("""
            select exists (select from version where id = any(cast(:ids as bigint[]))
                           and pruned_at is not null)
        """),
        {"ids": list(pins)},
    )
    if pruned.scalar_one():
        raise BlockUnknown("A pinned version is not kept any more.")


async def rename(
    session: AsyncSession,
    library: Library,
    container: Entity,
    title: str,
    *,
    user: str | None,
    now: datetime,
) -> MadeVersion:
    """A new version with another title and the same children."""
    new = NewVersion(container.id, title=title)
    return (await versions.make(session, library, [new], user=user, now=now))[container.id]


async def _resolve(
    session: AsyncSession, library: Library, kind: Kind, children: Children
) -> list[tuple[int, int | None]]:
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select entity.entity_ref, entity.id, entity.kind, version.version_num,
                   version.id as version_id
            from entity left join version on version.entity_id = entity.id
              and version.version_num = any(cast(:numbers as integer[]))
              and version.pruned_at is null
            where entity.library_id = :library_id
              and entity.entity_ref = any(cast(:refs as text[]))
        """),
        {
            "library_id": library.id,
            "refs": [ref for ref, _ in children],
            "numbers": [number for _, number in children if number is not None],
        },
    )
    ids: dict[str, int] = {}
    pins: dict[tuple[str, int | None], int] = {}
    for row in found:
        if Kind(row.kind) is not CHILD_KIND[kind]:
            raise RuleBroken(
                f'The entity "{row.entity_ref}" cannot be added to a "{kind}" container.'
            )
        ids[row.entity_ref] = row.id
        if row.version_id is not None:
            pins[(row.entity_ref, row.version_num)] = row.version_id
    resolved = []
    for ref, number in children:
        if ref not in ids or (number is not None and (ref, number) not in pins):
            raise BlockUnknown(f"There is no {ref} in this library.")
        resolved.append((ids[ref], pins[(ref, number)] if number is not None else None))
    return resolved
