"""Copying: one clipboard per person, with the OLX of what was copied.

A copied container is its whole draft tree; every element says by `copied_from_block` and
`copied_from_version` which version of what it is, so that pasting finds the exact text and the
static files of that version. contract: libraries §3.12, §4.10
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from lxml import etree
from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import insert
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import olx
from services.libraries.errors import BlockUnknown, ClipboardEmpty
from services.libraries.keys import container_key, usage_key
from services.libraries.models import Clipboard, Entity, Library
from services.libraries.states import OLX_TAGS, Kind
from shared.callers import Caller
from shared.ids import new_id

SOURCE, SOURCE_VERSION = "copied_from_block", "copied_from_version"

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
    )
    select tree.path, entity.kind, entity.type, entity.code, version.title, version.version_num,
           media.text as olx
    from tree
    join entity on entity.id = tree.entity_id
    join version on version.id = tree.version_id
    left join version_media
      on version_media.version_id = tree.version_id and version_media.path = 'block.xml'
    left join media on media.id = version_media.media_id
    order by tree.path
""")


async def copy(
    session: AsyncSession, library: Library, entity: Entity, *, caller: Caller, now: datetime
) -> Clipboard:
    """Put a live component or container with all it holds on the caller's clipboard.

    What was there before is gone; of two copies at once the later one stays. Raises BlockUnknown.
    """
    connection = await session.connection()
    rows = (await connection.execute(_TREE, {"id": entity.id})).all()
    if not rows:
        raise BlockUnknown
    values = {
        "id": new_id(),
        "source_key": _key(library, rows[0]),
        "source_title": library.title,
        "block_type": _tag(rows[0]),
        "title": rows[0].title,
        "olx": olx.serialize(_element(library, rows)),
        "created": now,
    }
    query = insert(Clipboard).values(username=caller.username, **values)
    await session.exec(query.on_conflict_do_update(index_elements=["username"], set_=values))
    return Clipboard(username=caller.username, **values)


def _element(library: Library, rows: Sequence[Row[Any]]) -> etree._Element:
    """The tree of rows that come with every parent before its children."""
    places: dict[tuple[int, ...], etree._Element] = {}
    for row in rows:
        path = tuple(row.path)
        if Kind(row.kind) is Kind.COMPONENT:
            element = olx.read_xml(row.olx, olx.STORED)
        else:
            element = etree.Element(OLX_TAGS[Kind(row.kind)], display_name=row.title)
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
