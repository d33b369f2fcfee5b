"""Copying: one clipboard per person, with the OLX of what was copied.

A copied container is its whole draft tree; every element says by `copied_from_block` and
`copied_from_version` which version of what it is, so that pasting finds the exact text and the
static files of that version. contract: libraries §3.12, §4.10
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lxml import etree
from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import insert
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import olx
from services.libraries.errors import BlockUnknown, ClipboardEmpty, LimitReached
from services.libraries.keys import container_key, usage_key
from services.libraries.models import Clipboard, Entity, Library
from services.libraries.states import OLX_TAGS, Kind
from shared.callers import Caller
from shared.ids import new_id

SOURCE, SOURCE_VERSION = "copied_from_block", "copied_from_version"
MOST_BYTES = 100 * 1024 * 1024

_TREE = text("""
    with recursive tree (entity_id, version_id, path) as (
      select draft.entity_id, draft.version_id, array[]::integer[] from draft
      where draft.entity_id = :id and draft.version_id is not null
      union all
      select child.entity_id, coalesce(child.pinned_version_id, draft.version_id),
             tree.path || child.order_num
      from tree
      join child on child.version_id = tree.version_id
      join draft on draft.entity_id = child.entity_id and draft.version_id is not null
    ),
    place as (select * from tree limit :most)
    select place.path, place.version_id, entity.kind, entity.type, entity.code, version.title,
           version.version_num, coalesce(media.size, 0) as size
    from place
    join entity on entity.id = place.entity_id
    join version on version.id = place.version_id
    left join version_media
      on version_media.version_id = place.version_id and version_media.path = 'block.xml'
    left join media on media.id = version_media.media_id
    order by place.path
""")
_TEXTS = text("""
    select version_media.version_id, media.text
    from version_media join media on media.id = version_media.media_id
    where version_media.version_id = any(cast(:versions as bigint[]))
      and version_media.path = 'block.xml' and media.text is not null
""")


async def copy(
    session: AsyncSession,
    library: Library,
    entity: Entity,
    *,
    most: int,
    caller: Caller,
    now: datetime,
) -> Clipboard:
    """Put a live component or container with all it holds on the caller's clipboard.

    What was there before is gone; of two copies at once the later one stays. Raises BlockUnknown,
    or LimitReached when it would be too much: what is listed many times is there many times.
    """
    rows = await _places(session, entity, most)
    texts = await _texts(session, rows)
    values = {
        "id": new_id(),
        "source_key": _key(library, rows[0]),
        "source_title": library.title,
        "block_type": _tag(rows[0]),
        "title": rows[0].title,
        "olx": olx.serialize(_element(library, rows, texts)),
        "created": now,
    }
    query = insert(Clipboard).values(username=caller.username, **values)
    await session.exec(query.on_conflict_do_update(index_elements=["username"], set_=values))
    return Clipboard(username=caller.username, **values)


async def _places(session: AsyncSession, entity: Entity, most: int) -> Sequence[Row[Any]]:
    connection = await session.connection()
    rows = (await connection.execute(_TREE, {"id": entity.id, "most": most + 1})).all()
    if not rows:
        raise BlockUnknown
    if len(rows) > most:
        raise LimitReached(f"At most {most} items can be copied at once.")
    if sum(row.size for row in rows) > MOST_BYTES:
        raise LimitReached(f"At most {MOST_BYTES} bytes of OLX can be copied at once.")
    return rows


async def _texts(session: AsyncSession, rows: Sequence[Row[Any]]) -> dict[int, str]:
    """The OLX of each version, however many places it has."""
    connection = await session.connection()
    values = {"versions": list({row.version_id for row in rows})}
    return {row.version_id: row.text for row in await connection.execute(_TEXTS, values)}


def _element(
    library: Library, rows: Sequence[Row[Any]], texts: Mapping[int, str]
) -> etree._Element:
    """The tree of rows that come with every parent before its children."""
    places: dict[tuple[int, ...], etree._Element] = {}
    for row in rows:
        path = tuple(row.path)
        if Kind(row.kind) is Kind.COMPONENT:
            content = texts.get(row.version_id) or olx.blank(row.type).olx
            element = olx.read_xml(content, olx.STORED)
        else:
            title = olx.NOT_XML.sub("", row.title)
            element = etree.Element(OLX_TAGS[Kind(row.kind)], display_name=title)
        element.set(SOURCE, _key(library, row))
        element.set(SOURCE_VERSION, str(row.version_num))
        places[path] = element
        if path:
            places[path[:-1]].append(element)
    return places[()]


def _key(library: Library, row: Row[Any]) -> str:
    make = usage_key if Kind(row.kind) is Kind.COMPONENT else container_key
    return make(library.org, library.slug, row.type, row.code)


def _tag(row: Row[Any]) -> str:
    kind = Kind(row.kind)
    return str(row.type) if kind is Kind.COMPONENT else OLX_TAGS[kind]


async def find(session: AsyncSession, caller: Caller) -> Clipboard | None:
    return await session.get(Clipboard, caller.username)


async def get(session: AsyncSession, caller: Caller) -> Clipboard:
    """Raises ClipboardEmpty."""
    kept = await find(session, caller)
    if kept is None:
        raise ClipboardEmpty
    return kept
