"""Reading many components and containers of a library at once, in a fixed number of statements."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import entities
from services.libraries.entities import VIEW
from services.libraries.keys import ItemKey, object_key
from services.libraries.models import Library
from services.libraries.states import Kind
from services.libraries.versions import OLX_PATH
from services.libraries.views import block_json, container_json

_ITEMS = text(f"""
    {VIEW} where entity.library_id = :library_id
      and entity.entity_ref = any(cast(:refs as text[]))
""")
_COLLECTIONS = text("""
    select member.entity_id, collection.code, collection.title from collection_member member
    join collection on collection.id = member.collection_id
    where member.entity_id = any(cast(:ids as bigint[])) and collection.enabled
    order by collection.id
""")
_TAGS = text("""
    select entity_id, name from tag where entity_id = any(cast(:ids as bigint[])) order by name
""")
_CHILDREN = text("""
    select draft.entity_id as holder, entity.kind, entity.type, entity.code from draft
    join child on child.version_id = draft.version_id
    join entity on entity.id = child.entity_id
    left join draft own on own.entity_id = child.entity_id
    where draft.entity_id = any(cast(:ids as bigint[]))
      and coalesce(child.pinned_version_id, own.version_id) is not null
    order by draft.entity_id, child.order_num
""")
_OLX = text(f"""
    select draft.entity_id, media.text from draft
    join version_media on version_media.version_id = draft.version_id
      and version_media.path = '{OLX_PATH}'
    join media on media.id = version_media.media_id
    where draft.entity_id = any(cast(:ids as bigint[]))
""")


async def read(
    session: AsyncSession, library: Library, keys: Sequence[ItemKey], *, olx: bool = False
) -> list[dict[str, Any]]:
    """Those of these items that are live in this library, in this order, each once."""
    connection = await session.connection()
    wanted = {(key.ref, key.kind): None for key in keys if key.library_key == library.key}
    values = {"library_id": library.id, "refs": [ref for ref, _ in wanted]}
    found = {
        (row.entity_ref, Kind(row.kind)): row for row in await connection.execute(_ITEMS, values)
    }
    rows = [found[name] for name in wanted if name in found]
    ids = [row.id for row in rows]
    below = await entities.changed_below(session, [row.id for row in rows if _holds(row)])
    mine: dict[int, dict[str, Any]] = {
        row.id: {"collections": [], "tags": []} | ({"children": []} if _holds(row) else {})
        for row in rows
    }
    for row in await connection.execute(_COLLECTIONS, {"ids": ids}):
        mine[row.entity_id]["collections"].append({"key": row.code, "title": row.title})
    for row in await connection.execute(_TAGS, {"ids": ids}):
        mine[row.entity_id]["tags"].append(row.name)
    for row in await connection.execute(_CHILDREN, {"ids": ids}):
        key = object_key(library.key, Kind(row.kind), row.type, row.code)
        mine[row.holder]["children"].append(key)
    if olx:
        for row in await connection.execute(_OLX, {"ids": ids}):
            mine[row.entity_id]["olx"] = row.text
    return [_shown(library, row, below) | mine[row.id] for row in rows]


def _holds(row: Row[Any]) -> bool:
    return Kind(row.kind) is not Kind.COMPONENT


def _shown(library: Library, row: Row[Any], below: set[int]) -> dict[str, Any]:
    if _holds(row):
        return container_json(library, row, [], changed_below=below)
    return block_json(library, row, [])
