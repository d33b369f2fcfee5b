"""Containers: ordered lists of children with a title. contract: content_core §1.6, §2.9

What changes the tree (children, deleting, restoring) holds the library's lock: of two changes at
once the second builds on what the first has made.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import drafts, entities, publishing, versions
from services.libraries.entities import VIEW, NewEntity
from services.libraries.errors import (
    BlockExists,
    BlockUnknown,
    FieldRefused,
    PositionChanged,
    RuleBroken,
)
from services.libraries.keys import ItemKey
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
    await publishing.lock(session, library)
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
    """A new version with another title and the same children. Raises BlockUnknown if deleted."""
    await publishing.lock(session, library)
    await drafts.require_live(session, container)
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


class Change(StrEnum):
    """What to do with a list of children. contract: libraries #44 to #46"""

    APPEND = "append"
    REPLACE = "replace"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class ChildRow:
    """One row of a list of children, shown or hidden."""

    entity_id: int
    pin: int | None
    entity_ref: str
    shown: bool


async def change_children(
    session: AsyncSession,
    library: Library,
    container: Entity,
    change: Change,
    keys: Sequence[ItemKey],
    *,
    user: str | None,
    now: datetime,
) -> MadeVersion:
    """Append, replace or remove children: always one new version.

    Rows of deleted children stay where they are unless the list is replaced. What is replaced
    keeps its pins: of several copies each the pin of the same copy. Raises RuleBroken for a
    child of another library or of a kind that does not belong here, BlockUnknown for one that is
    not there. Removing ignores what is not a child. contract: libraries §4.11
    """
    await publishing.lock(session, library)
    await drafts.require_live(session, container)
    base = await _rows(session, container)
    if change is Change.REMOVE:
        gone = {key.ref for key in keys if may_hold(library, container.kind, key)}
        rows = [(row.entity_id, row.pin) for row in base if row.entity_ref not in gone]
    elif change is Change.REPLACE:
        rows = await _replaced(session, library, container.kind, base, keys)
    else:
        ids = await _live_children(session, library, container.kind, keys)
        rows = [(row.entity_id, row.pin) for row in base]
        rows += [(ids[key.ref], None) for key in keys]
    return await _write(session, library, container, rows, user=user, now=now)


def may_hold(library: Library, kind: Kind, key: ItemKey) -> bool:
    """Whether a key can be that of a child: another type with the same code is nobody's key."""
    return key.library_key == library.key and key.kind is CHILD_KIND[kind]


async def _replaced(
    session: AsyncSession,
    library: Library,
    kind: Kind,
    base: Sequence[ChildRow],
    keys: Sequence[ItemKey],
) -> list[tuple[int, int | None]]:
    """Children that are deleted can be named as long as a pin of theirs is left in the list."""
    before: dict[str, deque[ChildRow]] = {}
    for row in base:
        if row.shown:
            before.setdefault(row.entity_ref, deque()).append(row)
    kept: list[ChildRow | None] = []
    for key in keys:
        copies = before.get(key.ref) if may_hold(library, kind, key) else None
        kept.append(copies.popleft() if copies else None)
    new = [key for key, row in zip(keys, kept, strict=True) if row is None or row.pin is None]
    ids = await _live_children(session, library, kind, new)
    return [
        (row.entity_id, row.pin) if row is not None else (ids[key.ref], None)
        for key, row in zip(keys, kept, strict=True)
    ]


async def remove_at(
    session: AsyncSession,
    library: Library,
    container: Entity,
    position: int,
    *,
    expected: str | None = None,
    user: str | None,
    now: datetime,
) -> MadeVersion:
    """Remove the child at one position of the list as it is shown, and no other copy of it.

    Raises BlockUnknown past the end, PositionChanged when the child there is not the one
    `expected` (a ref).
    """
    await publishing.lock(session, library)
    await drafts.require_live(session, container)
    base = await _rows(session, container)
    place = _shown_at(base, position, expected)
    rows = [(row.entity_id, row.pin) for row in base[:place] + base[place + 1 :]]
    return await _write(session, library, container, rows, user=user, now=now)


async def pin_at(
    session: AsyncSession,
    library: Library,
    container: Entity,
    position: int,
    number: int | None,
    *,
    expected: str | None = None,
    user: str | None,
    now: datetime,
) -> MadeVersion:
    """Show one version of the child at this position, whatever becomes of the child; None undoes.

    Raises as `remove_at`, and FieldRefused when the child has no such version.
    """
    await publishing.lock(session, library)
    await drafts.require_live(session, container)
    base = await _rows(session, container)
    place = _shown_at(base, position, expected)
    pin = None if number is None else await _version(session, base[place].entity_id, number)
    rows = [(row.entity_id, row.pin) for row in base]
    rows[place] = (base[place].entity_id, pin)
    made = await _write(session, library, container, rows, user=user, now=now)
    await _require_kept(session, [pin] if pin is not None else [])
    return made


async def _version(session: AsyncSession, entity_id: int, number: int) -> int:
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select id from version
            where entity_id = :id and version_num = :number and pruned_at is null
        """),
        {"id": entity_id, "number": number},
    )
    ident: int | None = found.scalar()
    if ident is None:
        raise FieldRefused("pinned_version_num", [f"There is no version {number} of this child."])
    return ident


def _shown_at(base: Sequence[ChildRow], position: int, expected: str | None) -> int:
    """Where in the whole list the child at a position of the list as it is shown is."""
    shown = [place for place, row in enumerate(base) if row.shown]
    if position >= len(shown):
        raise BlockUnknown("There is no child at this position.")
    place = shown[position]
    if expected is not None and base[place].entity_ref != expected:
        raise PositionChanged
    return place


async def _write(
    session: AsyncSession,
    library: Library,
    container: Entity,
    rows: list[tuple[int, int | None]],
    *,
    user: str | None,
    now: datetime,
) -> MadeVersion:
    new = NewVersion(container.id, children=rows)
    return (await versions.make(session, library, [new], user=user, now=now))[container.id]


async def _rows(session: AsyncSession, container: Entity) -> list[ChildRow]:
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select child.entity_id, child.pinned_version_id, entity.entity_ref,
                   coalesce(child.pinned_version_id, own.version_id) is not null as shown
            from draft join child on child.version_id = draft.version_id
            join entity on entity.id = child.entity_id
            left join draft own on own.entity_id = child.entity_id
            where draft.entity_id = :id order by child.order_num
        """),
        {"id": container.id},
    )
    return [
        ChildRow(row.entity_id, row.pinned_version_id, row.entity_ref, row.shown) for row in found
    ]


async def _live_children(
    session: AsyncSession, library: Library, kind: Kind, keys: Sequence[ItemKey]
) -> dict[str, int]:
    if any(key.library_key != library.key for key in keys):
        raise RuleBroken("Children must be of the same library.")
    for key in keys:
        if key.kind is not CHILD_KIND[kind]:
            raise RuleBroken(f'The entity "{key.ref}" cannot be added to a "{kind}" container.')
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select entity.entity_ref, entity.kind, entity.id from entity
            join draft on draft.entity_id = entity.id
            where entity.library_id = :library_id and draft.version_id is not null
              and entity.entity_ref = any(cast(:refs as text[]))
        """),
        {"library_id": library.id, "refs": [key.ref for key in keys]},
    )
    live = {(row.entity_ref, row.kind): row.id for row in found}
    for key in keys:
        if (key.ref, key.kind) not in live:
            raise BlockUnknown(f"There is no {key.type} {key.code} in this library.")
    return {key.ref: live[key.ref, key.kind] for key in keys}


# Both views of a child's row: what is seen is the pin, or else where the branch stands.
_CHILDREN = """
    select entity.id, entity.code, entity.type, entity.kind, entity.entity_ref,
           entity.can_stand_alone, entity.created, entity.created_by,
           seen.title, seen.version_num, seen.created as modified, seen.created_by as modified_by,
           live.created as drafted, live.created_by as drafted_by,
           shown.title as published_title, publish_log.published_at, publish_log.published_by,
           (select count(*) from tag where tag.entity_id = entity.id) as tags,
           draft.version_id is distinct from published.version_id as changed,
           case when child.pinned_version_id is not null then seen.version_num end as pin
    from {parent} parent
    join child on child.version_id = parent.version_id
    join entity on entity.id = child.entity_id
    left join draft on draft.entity_id = entity.id
    left join published on published.entity_id = entity.id
    join version seen on seen.id = coalesce(child.pinned_version_id, {branch_of_child}.version_id)
    left join version live on live.id = draft.version_id
    left join version shown on shown.id = published.version_id
    left join publish_record on publish_record.id = published.record_id
    left join publish_log on publish_log.id = publish_record.log_id
    where parent.entity_id = :id order by child.order_num
"""


_NUMBERED = """
    (select entity_id, id as version_id from version
     where version_num = :number and pruned_at is null)
"""


async def children(
    session: AsyncSession,
    container: Entity,
    *,
    published: bool = False,
    number: int | None = None,
) -> Sequence[Row[Any]]:
    """The children in order, of the draft or of what readers see; hidden rows are left out.

    With a number those of this version of the container, also when it is deleted; children
    that are not pinned are shown as they are now.
    """
    branch = "published" if published else "draft"
    values = {"id": container.id}
    parent = branch
    if number is not None:
        parent = _NUMBERED
        values["number"] = number
    connection = await session.connection()
    found = await connection.execute(
        text(_CHILDREN.format(parent=parent, branch_of_child=branch)), values
    )
    return found.all()


_CHILDREN_AS_OF = text("""
    select entity.kind, entity.type, entity.code, seen.title, seen.version_num from (
      select new_version_id from publish_record
      where entity_id = :id and log_id <= :log order by log_id desc limit 1) held
    join child on child.version_id = held.new_version_id
    join entity on entity.id = child.entity_id
    left join lateral (
      select new_version_id from publish_record
      where publish_record.entity_id = child.entity_id and log_id <= :log
      order by log_id desc limit 1) shown on true
    join version seen on seen.id = coalesce(child.pinned_version_id, shown.new_version_id)
    order by child.order_num
""")


async def children_as_of(
    session: AsyncSession, library: Library, container: Entity, publish: UUID
) -> Sequence[Row[Any]]:
    """The children that readers saw right after a publish. Raises BlockUnknown for no publish."""
    connection = await session.connection()
    log = await connection.execute(
        text("select id from publish_log where library_id = :library_id and uuid = :uuid"),
        {"library_id": library.id, "uuid": publish},
    )
    log_id = log.scalar()
    if log_id is None:
        raise BlockUnknown("There is no such publish.")
    found = await connection.execute(_CHILDREN_AS_OF, {"id": container.id, "log": log_id})
    return found.all()


async def page(
    session: AsyncSession,
    library: Library,
    *,
    size: int,
    number: int,
    text_search: str = "",
    types: Sequence[str] = (),
    published: bool | None = None,
) -> tuple[Sequence[Row[Any]], int]:
    """Live containers in the order they were made, and how many match.

    `published` are those that readers see, in whatever version; its opposite those they do not.
    """
    where = """entity.library_id = :library_id and entity.kind <> 'component'
               and (:every or entity.type = any(cast(:types as text[])))
               and (strpos(lower(live.title), lower(:search)) > 0
                    or strpos(lower(entity.code), lower(:search)) > 0)
               and (cast(:published as boolean) is null
                    or (published.version_id is not null) = :published)"""
    values: dict[str, Any] = {
        "library_id": library.id,
        "every": not types,
        "types": [name.replace("\x00", "") for name in types],
        "search": text_search.replace("\x00", ""),
        "published": published,
    }
    connection = await session.connection()
    count = await connection.execute(
        text(f"""
            select count(*) from entity join draft on draft.entity_id = entity.id
            join version live on live.id = draft.version_id
            left join published on published.entity_id = entity.id where {where}
        """),
        values,
    )
    values |= {"limit": size, "offset": (number - 1) * size}
    rows = await connection.execute(
        text(f"{VIEW} where {where} order by entity.id limit :limit offset :offset"), values
    )
    return rows.all(), count.scalar_one()
