"""Copying and moving items of libraries into another one, with all that is below them.

What is copied is the draft as it stands; its history begins anew. Rows are never shared between
libraries: texts and files are stored again by their content. A move is the copy and the deletion
of the drafts it was made of, in one transaction: all of it or nothing, with a fixed number of
statements per library. contract: libraries §4.1, §4.2, §4.10
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import (
    branches,
    collections,
    components,
    entities,
    media,
    pasting,
    permissions,
    tags,
    versions,
)
from services.libraries.entities import NewEntity
from services.libraries.errors import (
    BlockUnknown,
    CollectionUnknown,
    FieldRefused,
    LibraryUnknown,
    LimitReached,
)
from services.libraries.keys import ItemKey, object_key
from services.libraries.models import Collection, Library
from services.libraries.states import Kind, Mode, Permission, component_ref, new_code
from services.libraries.versions import MadeVersion, NewVersion
from shared.callers import Caller
from shared.files import Files

LEVELS = (Kind.COMPONENT, Kind.UNIT, Kind.SUBSECTION, Kind.SECTION)
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many items a library may have, and how many may be transferred at once."""

    blocks: int
    items: int


@dataclass(eq=False)
class Node:
    """One version of an item that is to be copied, and what it becomes."""

    row: Row[Any]
    code: str
    id: int = 0
    version: MadeVersion | None = None

    @property
    def place(self) -> Place:
        return self.row.id, self.row.version_id

    @property
    def kind(self) -> Kind:
        return Kind(self.row.kind)

    @property
    def ref(self) -> str:
        component = self.kind is Kind.COMPONENT
        return component_ref(self.row.type, self.code) if component else self.code

    @property
    def children(self) -> list[tuple[Place, bool]]:
        """What is shown below it, and whether the version of it is pinned."""
        places = zip(self.row.children, self.row.versions, strict=True)
        return [*zip(places, self.row.pinned, strict=True)]


@dataclass(frozen=True)
class Transferred:
    """New keys by old ones; after a move `kept` are old ones that others still hold."""

    keys: dict[str, str]
    kept: list[str] = field(default_factory=list)


async def transfer(
    session: AsyncSession,
    files: Files,
    target: Library,
    keys: Sequence[ItemKey],
    mode: Mode,
    *,
    codes: Sequence[str] = (),
    caller: Caller,
    limits: Limits,
    now: datetime,
) -> Transferred:
    """Copy or move live items and all below them; the named ones join the collections `codes`.

    Each item is there once, whatever holds it, under its own code or, if that is taken, a new
    one. Below what is moved stays what something else in its library holds. Raises FieldRefused,
    LibraryUnknown, Forbidden, BlockUnknown, CollectionUnknown or LimitReached.
    """
    sources = await _sources(session, target, keys, mode, caller)
    tops = await _tops(session, sources, keys)
    nodes = await _tree(session, tops, moved=mode is Mode.MOVE)
    if len(nodes) > limits.items:
        raise LimitReached(f"At most {limits.items} items can be transferred at once.")
    await components.require_room(session, target, len(nodes), most=limits.blocks)
    for library in (target, *(one for one in sources.values() if one.id != target.id)):
        await media.use_files(session, library)
    await _name(session, target, nodes)
    await _make(session, files, target, nodes, caller=caller, now=now)
    await tags.copy(session, [node.row.id for node in nodes], [node.id for node in nodes])
    by_entity = _by_entity(nodes)
    named = [by_entity[top].id for top in tops]
    await _collect(session, target, codes, named, caller=caller, now=now)
    going: set[int] = set()
    if mode is Mode.MOVE:
        going = await _going(session, nodes, tops)
        await _delete(session, sources, by_entity, going, user=caller.username, now=now)
    return _told(target, sources, by_entity, going if mode is Mode.MOVE else None)


def _by_entity(nodes: Iterable[Node]) -> dict[int, Node]:
    """Of each item its draft; of one that is there by a pin alone that version."""
    found: dict[int, Node] = {}
    for node in nodes:
        if node.row.live == node.row.version_id or node.row.id not in found:
            found[node.row.id] = node
    return found


# Libraries, and what is asked for


async def _sources(
    session: AsyncSession, target: Library, keys: Sequence[ItemKey], mode: Mode, caller: Caller
) -> dict[int, Library]:
    """The libraries of these keys by id. They and the target are held, in one order for all."""
    names = dict.fromkeys(key.library_key for key in keys)
    if mode is Mode.MOVE and target.key in names:
        raise FieldRefused("items", ["Items cannot be moved into the library they are in."])
    query = (
        select(Library)
        .where(col(Library.key).in_(names), col(Library.staged_at).is_(None))
        .order_by(col(Library.id))
        .with_for_update(read=True, key_share=True)  # None of them is deleted meanwhile.
    )
    found = {library.key: library for library in await session.exec(query)}
    for name in names:
        if name not in found:
            raise LibraryUnknown(f"There is no library {name}.")
    wanted = Permission.EDIT if mode is Mode.MOVE else Permission.VIEW
    await permissions.require_all(session, [*found.values()], caller, wanted)
    held = [target.id, *(one.id for one in found.values() if mode is Mode.MOVE)]
    connection = await session.connection()
    locked = await connection.execute(_HOLD_LIBRARIES, {"ids": held})
    if len(locked.all()) != len(set(held)):
        raise LibraryUnknown
    return {library.id: library for library in found.values()}


_HOLD_LIBRARIES = text("""
    select id from library where id = any(cast(:ids as bigint[])) order by id for no key update
""")
_TOPS = text("""
    select library.key, entity.entity_ref, entity.kind, entity.type, entity.id
    from unnest(cast(:libraries as text[]), cast(:refs as text[])) as wanted (library, ref)
    join library on library.key = wanted.library
    join entity on entity.library_id = library.id and entity.entity_ref = wanted.ref
    join draft on draft.entity_id = entity.id and draft.version_id is not null
""")


async def _tops(
    session: AsyncSession, sources: Mapping[int, Library], keys: Sequence[ItemKey]
) -> list[int]:
    """The ids of what is asked for, each once. Raises BlockUnknown."""
    connection = await session.connection()
    values = {
        "libraries": [key.library_key for key in keys],
        "refs": [key.ref for key in keys],
    }
    rows = await connection.execute(_TOPS, values)
    found = {(row.key, row.entity_ref, row.kind): row.id for row in rows}
    ids: dict[int, None] = {}
    for key in keys:
        ident = found.get((key.library_key, key.ref, key.kind))
        if ident is None:
            raise BlockUnknown(f"There is no {key.type} {key.code} in {key.library_key}.")
        ids[ident] = None
    return [*ids]


_TREE = text("""
    with recursive below (entity_id, version_id) as (
      select entity_id, version_id from draft
      where entity_id = any(cast(:ids as bigint[])) and version_id is not null
      union
      select inside.entity_id, inside.version_id from below
      cross join lateral (
        select distinct child.entity_id,
               coalesce(child.pinned_version_id, draft.version_id) as version_id
        from child left join draft on draft.entity_id = child.entity_id
        where child.version_id = below.version_id) inside
      where inside.version_id is not null
    )
    select entity.id, entity.library_id, entity.kind, entity.type, entity.code,
           entity.can_stand_alone, below.version_id, version.title, draft.version_id as live,
           coalesce(listed.children, '{}') as children, coalesce(listed.versions, '{}') as versions,
           coalesce(listed.pinned, '{}') as pinned
    from below
    join entity on entity.id = below.entity_id
    join version on version.id = below.version_id
    left join draft on draft.entity_id = below.entity_id
    left join lateral (
      select array_agg(child.entity_id order by order_num) as children,
             array_agg(coalesce(pinned_version_id, own.version_id) order by order_num) as versions,
             array_agg(pinned_version_id is not null order by order_num) as pinned
      from child left join draft own on own.entity_id = child.entity_id
      where child.version_id = below.version_id
        and coalesce(pinned_version_id, own.version_id) is not null) listed on true
    order by entity.id, below.version_id
""")
_HOLD_ITEMS = text("""
    select id from entity where id = any(cast(:ids as bigint[])) order by id for no key update
""")


async def _tree(session: AsyncSession, tops: Sequence[int], *, moved: bool) -> list[Node]:
    """These and everything below them. Of what is moved nothing is edited from here on."""
    connection = await session.connection()
    rows = (await connection.execute(_TREE, {"ids": list(tops)})).all()
    if moved:
        # Whoever edits a component holds it alone, not its library.
        await connection.execute(_HOLD_ITEMS, {"ids": sorted({row.id for row in rows})})
        rows = (await connection.execute(_TREE, {"ids": list(tops)})).all()
    return [Node(row, row.code) for row in rows]


async def _name(session: AsyncSession, target: Library, nodes: Sequence[Node]) -> None:
    """Their own codes where those are free, else new ones. The target is held."""
    given: set[str] = set()
    unnamed = sorted(nodes, key=lambda node: node.row.live != node.row.version_id)
    while unnamed:
        taken = await entities.ids_of(session, target, {node.ref for node in unnamed})
        again = []
        for node in unnamed:
            if node.ref in taken or node.ref in given:
                node.code = new_code(node.row.title)
                again.append(node)
            else:
                given.add(node.ref)
        unnamed = again


# Making it


async def _make(
    session: AsyncSession,
    files: Files,
    target: Library,
    nodes: Sequence[Node],
    *,
    caller: Caller,
    now: datetime,
) -> None:
    say: dict[str, Any] = {"user": caller.username, "now": now}
    contents = await _contents(session, files, target, nodes, now=now)
    news = [
        NewEntity(node.ref, node.kind, node.row.type, node.code, node.row.can_stand_alone)
        for node in sorted(nodes, key=lambda node: LEVELS.index(node.kind))
    ]
    ids = await entities.create_many(session, target, news, **say)
    by_place = {node.place: node for node in nodes}
    for node in nodes:
        node.id = ids[node.ref]
    for kind in LEVELS:
        level = [node for node in nodes if node.kind is kind]
        made = await versions.make(
            session, target, [_first(node, by_place, contents) for node in level], **say
        )
        for node in level:
            node.version = made[node.id]


def _first(
    node: Node, by_place: Mapping[Place, Node], contents: Mapping[int, dict[str, int | None]]
) -> NewVersion:
    if node.kind is Kind.COMPONENT:
        files = contents.get(node.row.version_id, {})
        return NewVersion(node.id, title=node.row.title, media=files, only_media=True)
    children = [_child(by_place[place], pinned=pinned) for place, pinned in node.children]
    return NewVersion(node.id, title=node.row.title, children=children)


def _child(child: Node, *, pinned: bool) -> tuple[int, int | None]:
    assert child.version is not None
    return child.id, child.version.id if pinned else None


_FILES = text("""
    select version_media.version_id, version_media.path, media.id, media.media_type, media.hash,
           media.has_file, library.uuid as library
    from version_media
    join media on media.id = version_media.media_id
    join library on library.id = media.library_id
    where version_media.version_id = any(cast(:versions as bigint[]))
    order by version_media.version_id, version_media.path
""")
_STORE = text("""
    insert into media (library_id, media_type, hash, size, text, has_file, created, interest_at)
    select :library_id, media_type, hash, size, max(text),
           bool_or(has_file and not id = any(cast(:missing as bigint[]))), :now, :now
    from media
    where id = any(cast(:ids as bigint[]))
      and (text is not null or not id = any(cast(:missing as bigint[])))
    group by media_type, hash, size
    order by media_type, hash
    on conflict (library_id, media_type, hash)
    do update set has_file = media.has_file or excluded.has_file,
                  text = coalesce(media.text, excluded.text),
                  interest_at = greatest(media.interest_at, excluded.interest_at)
    returning id, media_type, hash
""")


async def _contents(
    session: AsyncSession, files: Files, target: Library, nodes: Sequence[Node], *, now: datetime
) -> dict[int, dict[str, int | None]]:
    """The target's own media by version and path; texts go from row to row in the database."""
    wanted = [node.row.version_id for node in nodes if node.kind is Kind.COMPONENT]
    connection = await session.connection()
    rows = (await connection.execute(_FILES, {"versions": wanted})).all()
    stored = {(row.library, row.hash) for row in rows if row.has_file}
    brought = await pasting.bring(files, target, stored)
    values = {
        "library_id": target.id,
        "ids": sorted({row.id for row in rows}),
        "missing": sorted({row.id for row in rows if row.has_file and row.hash not in brought}),
        "now": now,
    }
    made = await connection.execute(_STORE, values)
    mine = {(row.media_type, row.hash): row.id for row in made}
    contents: dict[int, dict[str, int | None]] = {}
    for row in rows:
        if (row.media_type, row.hash) in mine:
            found = contents.setdefault(row.version_id, {})
            found[row.path] = mine[row.media_type, row.hash]
    return contents


async def _collect(
    session: AsyncSession,
    target: Library,
    codes: Sequence[str],
    ids: Sequence[int],
    *,
    caller: Caller,
    now: datetime,
) -> None:
    """Put items into collections, which are held in one order for all."""
    if not codes:
        return
    await permissions.require(session, target, caller, Permission.EDIT_COLLECTION)
    query = (
        select(Collection)
        .where(col(Collection.library_id) == target.id, col(Collection.code).in_(codes))
        .where(col(Collection.enabled))
        .order_by(col(Collection.id))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    found = (await session.exec(query)).all()
    for code in codes:
        if code not in {collection.code for collection in found}:
            raise CollectionUnknown(f"There is no collection {code}.")
    for collection in found:
        await collections.add_items(session, target, collection, ids, now=now)


# Taking it away


_HOLDERS = text("""
    select distinct child.entity_id as child, draft.entity_id as holder
    from child join draft on draft.version_id = child.version_id
    where child.entity_id = any(cast(:ids as bigint[]))
""")


async def _going(session: AsyncSession, nodes: Sequence[Node], tops: Sequence[int]) -> set[int]:
    """What goes: the named items, and below them what nothing that stays holds.

    A draft that was not copied, for a pin shows another version, stays.
    """
    live = [node for node in nodes if node.row.live == node.row.version_id]
    connection = await session.connection()
    rows = await connection.execute(_HOLDERS, {"ids": [node.row.id for node in live]})
    holders: dict[int, set[int]] = {}
    for row in rows:
        holders.setdefault(row.child, set()).add(row.holder)
    going = set(tops)
    for kind in reversed(LEVELS):
        going |= {
            node.row.id
            for node in live
            if node.kind is kind and holders.get(node.row.id, {0}) <= going
        }
    return going


async def _delete(
    session: AsyncSession,
    sources: Mapping[int, Library],
    by_entity: Mapping[int, Node],
    going: set[int],
    *,
    user: str,
    now: datetime,
) -> None:
    for ident in sorted(sources):
        mine: dict[int, int | None] = {
            one: None for one in sorted(going) if by_entity[one].row.library_id == ident
        }
        await branches.move_drafts(session, sources[ident], mine, user=user, now=now)


def _told(
    target: Library,
    sources: Mapping[int, Library],
    by_entity: Mapping[int, Node],
    going: set[int] | None,
) -> Transferred:
    keys: dict[str, str] = {}
    kept: list[str] = []
    for ident, node in by_entity.items():
        row = node.row
        old = object_key(sources[row.library_id].key, node.kind, row.type, row.code)
        keys[old] = object_key(target.key, node.kind, row.type, node.code)
        if going is not None and ident not in going:
            kept.append(old)
    return Transferred(keys, kept)
