"""Pasting: what a clipboard holds becomes new drafts of a library. contract: libraries §4.10"""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from lxml import etree
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import (
    components,
    entities,
    libraries,
    media,
    olx,
    permissions,
    publishing,
    tags,
    versions,
)
from services.libraries.clipboard import SOURCE, SOURCE_VERSION
from services.libraries.components import NewComponent
from services.libraries.entities import NewEntity
from services.libraries.errors import FieldRefused
from services.libraries.keys import parse_item_key
from services.libraries.media import CONTENT, NewMedia
from services.libraries.models import Clipboard, Entity, Library
from services.libraries.olx import OlxLimits
from services.libraries.states import (
    CHILD_KIND,
    KIND_OF_TAG,
    WITH_CHILDREN,
    Kind,
    Permission,
    component_ref,
    new_code,
    why_no_component,
)
from services.libraries.versions import OLX_PATH, NewVersion
from shared.callers import Caller
from shared.files import Files

AT_ONCE = 8


@dataclass(eq=False)
class Node:
    """An element of the clipboard, and what it is, or will be, in the library."""

    kind: Kind
    block_type: str
    title: str
    source: str
    version: int
    element: etree._Element
    children: list["Node"] = field(default_factory=list)
    # One of these: what is there already, another element that is the same, a new entity's code.
    linked: str = ""
    same: "Node | None" = None
    code: str = ""

    @property
    def ref(self) -> str:
        if self.same is not None:
            return self.same.ref
        component = self.kind is Kind.COMPONENT
        return self.linked or (
            component_ref(self.block_type, self.code) if component else self.code
        )

    def walk(self) -> Iterator["Node"]:
        """Itself and everything below, children first."""
        for child in self.children:
            yield from child.walk()
        yield self


@dataclass(frozen=True)
class Content:
    """The exact text and the files of one version."""

    olx: str
    assets: Mapping[str, NewMedia]


async def paste(
    session: AsyncSession,
    files: Files,
    library: Library,
    kept: Clipboard,
    *,
    most: int,
    limits: OlxLimits,
    caller: Caller,
    now: datetime,
    allowed: Collection[str] | None = None,
) -> Entity:
    """Make drafts of what is on a clipboard; the top one is returned.

    What was copied out of this library is linked below the top, everything else is copied once
    per source, with its tags. Of a library that the caller does not see any more only what was
    kept is there. All or nothing, with a fixed number of statements. Raises FieldRefused for a
    type that no library holds, LimitReached, or InvalidOlx for what is beyond the limits by now.
    """
    top = _read(kept)
    await publishing.lock(session, library)
    await media.use_files(session, library)
    await _link(session, library, top)
    new = _distinct(top)
    await _name(session, library, new)
    await components.require_room(session, library, len(new), most=most)
    say: dict[str, Any] = {"user": caller.username, "now": now}
    source = await _seen(session, kept, caller)
    leaves = [node for node in new if node.kind is Kind.COMPONENT]
    _require_allowed(leaves, allowed)
    contents = await _contents(session, files, library, source, leaves)
    items = [_component(one, contents, limits) for one in leaves]
    await components.add_many(session, library, items, **say)
    for kind in (Kind.UNIT, Kind.SUBSECTION, Kind.SECTION):
        await _containers(session, library, [node for node in new if node.kind is kind], **say)
    if source is not None:
        await _tag(session, library, source, new)
    return await entities.get(session, library, top.ref)


def _read(kept: Clipboard) -> Node:
    root = olx.read_xml(kept.olx, olx.STORED)
    node = _node(root, None)
    if node is None:
        tag = str(root.tag)
        raise FieldRefused("block_type", f'The "{tag}" XBlock is not supported in libraries.')
    return node


def _node(element: etree._Element, parent: Kind | None) -> Node | None:
    """None for what cannot be there: below the top it is passed over."""
    tag = str(element.tag)
    kind = KIND_OF_TAG.get(tag, Kind.COMPONENT)
    known = kind is not Kind.COMPONENT or tag not in WITH_CHILDREN
    if not known or (parent is not None and CHILD_KIND.get(parent) is not kind):
        return None
    number = element.get(SOURCE_VERSION, "")
    node = Node(
        kind=kind,
        block_type=tag if kind is Kind.COMPONENT else kind.value,
        title=str(element.get("display_name") or olx.default_title(tag)),
        source=str(element.get(SOURCE, "")),
        version=int(number) if number.isdecimal() else 0,
        element=element,
    )
    if kind is not Kind.COMPONENT:
        found = [_node(child, kind) for child in element if isinstance(child.tag, str)]
        node.children = [child for child in found if child is not None]
    return node


_LIVE = text("""
    select entity.entity_ref from entity join draft on draft.entity_id = entity.id
    where entity.library_id = :library_id and draft.version_id is not null
      and entity.entity_ref = any(cast(:refs as text[]))
""")


async def _link(session: AsyncSession, library: Library, top: Node) -> None:
    """Children that live in this library already stay what they are."""
    mine: dict[str, list[Node]] = {}
    for node in top.walk():
        source = _source(node)
        if node is not top and source is not None and source[0] == library.key:
            mine.setdefault(source[1], []).append(node)
    connection = await session.connection()
    values = {"library_id": library.id, "refs": list(mine)}
    for ref in (await connection.execute(_LIVE, values)).scalars():
        for node in mine[ref]:
            node.linked, node.children = ref, []


def _source(node: Node) -> tuple[str, str] | None:
    """The library's key and the ref of what was copied."""
    prefix, _, rest = node.source.partition(":")
    parts = rest.split(":")
    if prefix not in ("lb", "lct") or len(parts) != 4:
        return None
    org, slug, block_type, code = parts
    ref = component_ref(block_type, code) if prefix == "lb" else code
    return f"lib:{org}:{slug}", ref


def _distinct(top: Node) -> list[Node]:
    """What is to be made, children first; of one source only once, but the top by itself."""
    made: dict[tuple[str, int], Node] = {}
    new = []
    for node in top.walk():
        if node.linked:
            continue
        first = made.setdefault((node.source, node.version), node) if node.source else node
        if first is node or node is top:
            new.append(node)
        else:
            node.same = first
    return new


async def _name(session: AsyncSession, library: Library, new: Sequence[Node]) -> None:
    """Codes that nobody has; the library is locked, so they stay free."""
    unnamed = list(new)
    while unnamed:
        for node in unnamed:
            node.code = new_code(node.title)
        taken = await entities.ids_of(session, library, {node.ref for node in unnamed})
        unnamed = [node for node in unnamed if node.ref in taken]


def _require_allowed(leaves: Sequence[Node], allowed: Collection[str] | None) -> None:
    for node in leaves:
        if (why := why_no_component(node.block_type, allowed)) is not None:
            raise FieldRefused("block_type", f'The "{node.block_type}" XBlock {why}')


async def _seen(session: AsyncSession, kept: Clipboard, caller: Caller) -> Library | None:
    """Where it was copied, if the caller still sees that.

    Another library may have this key by now.
    """
    source = await libraries.find(session, parse_item_key(kept.source_key).library_key)
    if source is None or not await permissions.may(session, source, caller, Permission.VIEW):
        return None
    return source


async def _tag(
    session: AsyncSession, library: Library, source: Library, new: Sequence[Node]
) -> None:
    copied = {node.ref: found[1] for node in new if (found := _source(node)) is not None}
    made = await entities.ids_of(session, library, copied)
    old = await entities.ids_of(session, source, set(copied.values()))
    pairs = [(old[was], made[ref]) for ref, was in copied.items() if was in old]
    await tags.copy(session, [one for one, _ in pairs], [other for _, other in pairs])


_CONTENTS = text("""
    select wanted.place, version_media.path, media.media_type, media.hash, media.size, media.text,
           library.uuid as library_uuid
    from jsonb_to_recordset(cast(:wanted as jsonb)) as wanted (
      place integer, ref text, version integer)
    join library on library.id = cast(:source_id as bigint)
    join entity on entity.library_id = library.id and entity.entity_ref = wanted.ref
    join version on version.entity_id = entity.id and version.version_num = wanted.version
      and version.pruned_at is null
    join version_media on version_media.version_id = version.id
    join media on media.id = version_media.media_id
    order by wanted.place, version_media.path
""")


async def _contents(
    session: AsyncSession,
    files: Files,
    library: Library,
    source: Library | None,
    leaves: Sequence[Node],
) -> dict[Node, Content]:
    """Of each copied version what is stored of it; of one that is gone, what was copied."""
    wanted = [
        {"place": place, "ref": found[1], "version": node.version}
        for place, node in enumerate(leaves)
        if (found := _source(node)) is not None
    ]
    connection = await session.connection()
    values = {
        "wanted": orjson.dumps(wanted).decode(),
        "source_id": source.id if source is not None else None,
    }
    rows = (await connection.execute(_CONTENTS, values)).all()
    brought = await bring(files, library, {(row.library_uuid, row.hash) for row in rows
                                            if row.text is None})  # fmt: skip
    texts: dict[int, str] = {}
    assets: dict[int, dict[str, NewMedia]] = {}
    for row in rows:
        if row.path == OLX_PATH:
            texts[row.place] = row.text
        elif row.text is not None or row.hash in brought:
            new = NewMedia(row.media_type, row.hash, row.size, row.text)
            assets.setdefault(row.place, {})[row.path] = new
    return {
        node: Content(texts.get(place) or _own_text(node), assets.get(place, {}))
        for place, node in enumerate(leaves)
    }


async def bring(files: Files, library: Library, wanted: set[tuple[Any, str]]) -> set[str]:
    """Files of other libraries come along; what is missing there is passed over."""
    brought = {hash for uuid, hash in wanted if uuid == library.uuid}
    foreign = [(uuid, hash) for uuid, hash in wanted if uuid != library.uuid]
    for first in range(0, len(foreign), AT_ONCE):
        some = foreign[first : first + AT_ONCE]
        done = await asyncio.gather(
            *(
                files.copy(f"{CONTENT}/{uuid}/{hash}", media.content_path(library, hash))
                for uuid, hash in some
            )
        )
        brought |= {hash for (_, hash), came in zip(some, done, strict=True) if came}
    return brought


def _own_text(node: Node) -> str:
    for name in (SOURCE, SOURCE_VERSION):
        node.element.attrib.pop(name, "")
    return olx.serialize(node.element)


def _component(node: Node, contents: Mapping[Node, Content], limits: OlxLimits) -> NewComponent:
    content = contents[node]
    block = olx.parse(content.olx, block_type=node.block_type, limits=limits)
    return NewComponent(node.block_type, node.code, block.title, block.olx, content.assets)


async def _containers(
    session: AsyncSession, library: Library, nodes: Sequence[Node], *, user: str, now: datetime
) -> None:
    if not nodes:
        return
    news = [NewEntity(node.code, node.kind, node.kind.value, node.code) for node in nodes]
    made = await entities.create_many(session, library, news, user=user, now=now)
    below = {child.ref for node in nodes for child in node.children}
    ids = await entities.ids_of(session, library, below)
    changes = [
        NewVersion(
            made[node.ref],
            title=node.title,
            children=[(ids[child.ref], None) for child in node.children],
        )
        for node in nodes
    ]
    await versions.make(session, library, changes, user=user, now=now)
