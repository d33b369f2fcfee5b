"""Collections: unordered groups of entities. contract: libraries §3.11, §4.12, content_core §2.11

Whoever changes what is in a collection holds its row, so its events come in the order of the
changes; several rows are held in the order of their ids.
"""

import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import events
from services.libraries.errors import BlockUnknown, CollectionUnknown, FieldRefused, RuleBroken
from services.libraries.keys import ItemKey
from services.libraries.models import Collection, CollectionMember, Entity, Library
from services.libraries.states import Kind

LONGEST_CODE = 200
TAKEN = "This key is taken in the library."

_CREATE = text("""
    insert into collection (library_id, code, title, description, enabled, created, modified,
                            created_by, created_by_id)
    select :library_id, free.code, :title, :description, :enabled, :now, :now, :user, :user_id
    from (
      select case n when 0 then :code else :code || '-' || n end as code
      from generate_series(0, case when :numbered then
        (select count(*) from collection where library_id = :library_id) else 0 end) as n
      where not exists (
        select from collection where library_id = :library_id
          and code = case n when 0 then :code else :code || '-' || n end)
      order by n limit 1
    ) as free
    on conflict (library_id, code) do nothing
    returning id
""")


def code_of(title: str) -> str:
    """What a collection with this title is called, unless that is taken. contract: §4.7"""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    kept = re.sub(r"[^\w\s-]", "", plain)
    code = re.sub(r"[-\s]+", "-", kept).strip("-_")[:LONGEST_CODE].strip("-_")
    return code or secrets.token_hex(6)


async def create(
    session: AsyncSession,
    library: Library,
    *,
    title: str,
    description: str = "",
    code: str | None = None,
    enabled: bool = True,
    user: str | None,
    user_id: int | None = None,
    now: datetime,
) -> Collection:
    """A new, empty collection. Without a code it gets one made of its title, numbered if taken.

    Raises FieldRefused on `key` when the given code is taken.
    """
    values: dict[str, Any] = {
        "library_id": library.id, "code": code or code_of(title), "numbered": code is None,
        "title": title, "description": description, "enabled": enabled, "user": user,
        "user_id": user_id, "now": now,
    }  # fmt: skip
    connection = await session.connection()
    made: int | None = None
    # Another may take the free code at the same moment: then the next one is looked for.
    while made is None:
        made = (await connection.execute(_CREATE, values)).scalar()
        if made is None and code is not None:
            raise FieldRefused("key", TAKEN)
    collection = await session.get(Collection, made)
    assert collection is not None
    if enabled:
        events.tell_collections(session, library, [collection.code], "created")
    return collection


async def get(
    session: AsyncSession, library: Library, code: str, *, held: bool = False
) -> Collection:
    """The same, if it is not deleted."""
    found = await get_ever(session, library, code, held=held)
    if not found.enabled:
        raise CollectionUnknown
    return found


async def get_ever(
    session: AsyncSession, library: Library, code: str, *, held: bool = False
) -> Collection:
    """A collection; with `held` nobody else changes it meanwhile. Raises CollectionUnknown."""
    if "\x00" in code:
        raise CollectionUnknown
    query = select(Collection).where(
        col(Collection.library_id) == library.id, col(Collection.code) == code
    )
    if held:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = (await session.exec(query)).first()
    if found is None:
        raise CollectionUnknown
    return found


async def count(session: AsyncSession, library: Library) -> int:
    """How many enabled collections there are."""
    connection = await session.connection()
    query = select(func.count()).select_from(Collection).where(*_enabled(library))
    return int((await connection.execute(query)).scalar_one())


async def page(
    session: AsyncSession, library: Library, *, size: int, number: int
) -> Sequence[Collection]:
    """Enabled collections in the order in which they were made."""
    query = select(Collection).where(*_enabled(library)).order_by(col(Collection.id))
    return (await session.exec(query.limit(size).offset((number - 1) * size))).all()


def _enabled(library: Library) -> list[Any]:
    return [col(Collection.library_id) == library.id, col(Collection.enabled)]


async def members(session: AsyncSession, collections: Sequence[Collection]) -> dict[int, list[int]]:
    """The ids of the entities in each of these collections, by its id."""
    found: dict[int, list[int]] = {collection.id: [] for collection in collections}
    query = (
        select(CollectionMember.collection_id, CollectionMember.entity_id)
        .where(col(CollectionMember.collection_id).in_(found))
        .order_by(col(CollectionMember.entity_id))
    )
    for collection_id, entity_id in await session.exec(query):
        found[collection_id].append(entity_id)
    return found


async def update(
    session: AsyncSession,
    library: Library,
    collection: Collection,
    changes: dict[str, Any],
    *,
    now: datetime,
) -> None:
    """Change what is given: nothing given, nothing written. `enabled` deletes and restores."""
    was_enabled = collection.enabled
    for name, value in changes.items():
        setattr(collection, name, value)
    if not changes:
        return
    collection.modified = max(now, collection.modified)
    session.add(collection)
    await session.flush()
    await _tell(session, library, collection, was_enabled)


async def _tell(
    session: AsyncSession, library: Library, collection: Collection, was_enabled: bool
) -> None:
    verb = "updated" if was_enabled else "created"
    if not collection.enabled:
        if not was_enabled:
            return
        verb = "deleted"
    events.tell_collections(session, library, [collection.code], verb)
    ids = (await members(session, [collection]))[collection.id]
    await events.tell_members(session, library, ids)


async def delete(
    session: AsyncSession, library: Library, collection: Collection, *, now: datetime
) -> None:
    """Hide it; it keeps its members and its code. Raises CollectionUnknown when it is hidden."""
    if not collection.enabled:
        raise CollectionUnknown
    await update(session, library, collection, {"enabled": False}, now=now)


async def restore(
    session: AsyncSession, library: Library, collection: Collection, *, now: datetime
) -> None:
    """Show it again with the members it had. One that is not hidden stays as it is."""
    if not collection.enabled:
        await update(session, library, collection, {"enabled": True}, now=now)


async def remove_for_good(session: AsyncSession, library: Library, collection: Collection) -> int:
    """Remove it with its code. Returns how many members it had."""
    ids = (await members(session, [collection]))[collection.id]
    mine = col(CollectionMember.collection_id) == collection.id
    await session.exec(sql_delete(CollectionMember).where(mine))
    await session.delete(collection)
    await session.flush()
    if collection.enabled:
        events.tell_collections(session, library, [collection.code], "deleted")
        await events.tell_members(session, library, ids)
    return len(ids)


async def add(
    session: AsyncSession,
    library: Library,
    collection: Collection,
    refs: Sequence[str],
    *,
    now: datetime,
) -> None:
    """Add entities by ref; members stay. Raises RuleBroken when disabled, or BlockUnknown."""
    if not collection.enabled:
        raise RuleBroken("Cannot add to a deleted collection.")
    found = await session.exec(
        select(Entity.id).where(
            col(Entity.library_id) == library.id, col(Entity.entity_ref).in_(refs)
        )
    )
    ids = found.all()
    if len(ids) != len(set(refs)):
        raise BlockUnknown
    await add_items(session, library, collection, ids, now=now)


_FIND = text("""
    select entity_ref, kind, id from entity
    where library_id = :library_id and entity_ref = any(cast(:refs as text[]))
""")


async def find_items(
    session: AsyncSession, library: Library, items: Iterable[ItemKey]
) -> list[int]:
    """The ids of what these keys name, deleted or not. Raises BlockUnknown."""
    wanted = set(items)
    if any(item.library_key != library.key for item in wanted):
        raise BlockUnknown
    connection = await session.connection()
    rows = await connection.execute(
        _FIND, {"library_id": library.id, "refs": list({item.ref for item in wanted})}
    )
    found = {(ref, Kind(kind)): number for ref, kind, number in rows}
    named = {(item.ref, item.kind) for item in wanted}
    if not named <= found.keys():
        raise BlockUnknown
    return [found[name] for name in found if name in named]


_ADD = text("""
    insert into collection_member (collection_id, entity_id, created)
    select :collection_id, id, :now from unnest(cast(:ids as bigint[])) as id
    order by id
    on conflict do nothing
    returning entity_id
""")
_REMOVE = text("""
    delete from collection_member
    where collection_id = :collection_id and entity_id = any(cast(:ids as bigint[]))
    returning entity_id
""")


async def add_items(
    session: AsyncSession,
    library: Library,
    collection: Collection,
    ids: Sequence[int],
    *,
    now: datetime,
) -> None:
    """Add entities of the library; those that are in it already are left alone."""
    connection = await session.connection()
    values = {"collection_id": collection.id, "ids": list(ids), "now": now}
    added = (await connection.execute(_ADD, values)).scalars().all()
    await _touched(session, library, collection, added, now=now)


async def remove_items(
    session: AsyncSession,
    library: Library,
    collection: Collection,
    ids: Sequence[int],
    *,
    now: datetime,
) -> None:
    """Take entities out; those that are not in it do not matter."""
    connection = await session.connection()
    values = {"collection_id": collection.id, "ids": list(ids)}
    removed = (await connection.execute(_REMOVE, values)).scalars().all()
    await _touched(session, library, collection, removed, now=now)


async def _touched(
    session: AsyncSession,
    library: Library,
    collection: Collection,
    changed: Sequence[int],
    *,
    now: datetime,
) -> None:
    collection.modified = max(now, collection.modified)
    session.add(collection)
    await session.flush()
    events.tell_collections(session, library, [collection.code], "updated")
    await events.tell_members(session, library, changed)


_HOLD_ITEM = text("select id from entity where id = :id for no key update")
# Only those it enters or leaves are held and touched; hidden ones are none of its business.
_CHANGING = text("""
    select collection.id, collection.code, member.entity_id is null as gained
    from collection
    left join collection_member member
      on member.collection_id = collection.id and member.entity_id = :id
    where library_id = :library_id and enabled
      and (code = any(cast(:codes as text[]))) = (member.entity_id is null)
      and (member.entity_id is not null or code = any(cast(:codes as text[])))
    order by collection.id
    for no key update of collection
""")
_GAIN = text("""
    insert into collection_member (collection_id, entity_id, created)
    select id, :id, :now from unnest(cast(:collections as bigint[])) as id on conflict do nothing
""")
_LOSE = text("""
    delete from collection_member
    where entity_id = :id and collection_id = any(cast(:collections as bigint[]))
""")
_TOUCH = text("""
    update collection set modified = greatest(modified, :now)
    where id = any(cast(:collections as bigint[]))
""")


async def replace_of(
    session: AsyncSession, library: Library, entity: Entity, codes: Sequence[str], *, now: datetime
) -> None:
    """Put an item into exactly these enabled collections; unknown codes do not matter.

    Its place in deleted collections is kept, for when they are restored.
    """
    connection = await session.connection()
    await connection.execute(_HOLD_ITEM, {"id": entity.id})
    wanted = {"id": entity.id, "library_id": library.id, "codes": list(codes)}
    changing = (await connection.execute(_CHANGING, wanted)).all()
    if not changing:
        return
    gained = [row.id for row in changing if row.gained]
    lost = [row.id for row in changing if not row.gained]
    await connection.execute(_GAIN, {"id": entity.id, "collections": gained, "now": now})
    await connection.execute(_LOSE, {"id": entity.id, "collections": lost})
    await connection.execute(_TOUCH, {"collections": gained + lost, "now": now})
    events.tell_collections(session, library, [row.code for row in changing], "updated")
    await events.tell_members(session, library, [entity.id])
