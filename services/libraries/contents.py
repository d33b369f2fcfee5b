"""Units of content: single versions of components and containers, by their UUIDs."""

from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import library_version_contents, permissions
from services.libraries.errors import BlockUnknown, ContentUnknown
from services.libraries.keys import item_key
from services.libraries.models import Library
from services.libraries.resources import moment, resource_href
from services.libraries.states import Kind, Permission
from shared.callers import Caller


def key_of(library: Library, kind: str, type: str, code: str) -> str:
    """How callers name a component or container."""
    return item_key(library.org, library.slug, kind, type, code)


def view(library: Library, row: Row[Any]) -> dict[str, Any]:
    """A unit; `row` has an entity's kind, type, code and a version's columns."""
    return {
        "pulp_href": resource_href("content", str(row.uuid)),
        "prn": f"prn:libraries.content:{row.uuid}",
        "id": key_of(library, row.kind, row.type, row.code),
        "kind": row.kind,
        "type": row.type,
        "uuid": str(row.uuid),
        "version_num": row.version_num,
        "title": row.title,
        "created": moment(row.created),
        "created_by": row.created_by,
    }


async def show(session: AsyncSession, ident: UUID, *, caller: Caller) -> dict[str, Any]:
    """One unit with its text and files. Raises ContentUnknown, also for cleaned up ones."""
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select entity.library_id, entity.kind, entity.type, entity.code, version.id,
                   version.uuid, version.version_num, version.title, version.created,
                   version.created_by
            from version join entity on entity.id = version.entity_id
            where version.uuid = :uuid and version.pruned_at is null
        """),
        {"uuid": ident},
    )
    row = found.first()
    library = await session.get(Library, row.library_id) if row is not None else None
    if row is None or library is None or library.staged_at is not None:
        raise ContentUnknown
    await permissions.require(session, library, caller, Permission.VIEW)
    return view(library, row) | await inside(session, library, row.id, row.kind)


async def inside(
    session: AsyncSession, library: Library, version_id: int, kind: str, number: int = -1
) -> dict[str, Any]:
    """OLX and files of a component; children of a container, as a library version has them."""
    if kind == Kind.COMPONENT:
        rows = await library_version_contents.assets(session, version_id)
        return {
            "olx": await library_version_contents.olx(session, version_id),
            "files": [
                {"path": row.path, "size": row.size, "blake2b": row.hash, "type": row.media_type}
                for row in rows
            ],
        }
    rows = await library_version_contents.children(session, library, number, version_id)
    return {"children": [_child(library, row) for row in rows]}


def _child(library: Library, row: Row[Any]) -> dict[str, Any]:
    key = key_of(library, row.kind, row.type, row.code)
    version = None if row.uuid is None else view(library, row)
    return {"id": key, "kind": row.kind, "pinned": row.pinned, "content": version}


async def as_of(
    session: AsyncSession, library: Library, number: int, ref: str, type: str
) -> dict[str, Any]:
    """A unit of a library version with what is inside it. Raises BlockUnknown."""
    row = await library_version_contents.unit(session, library, number, ref)
    if row is None or row.type != type:
        raise BlockUnknown
    return view(library, row) | await inside(session, library, row.version_id, row.kind, number)


def difference(library: Library, row: Row[Any]) -> dict[str, Any]:
    """One line of the comparison of two library versions."""
    old, new = row.old_uuid is not None, row.new_uuid is not None
    return {
        "id": key_of(library, row.kind, row.type, row.code),
        "kind": row.kind,
        "change": "changed" if old and new else "added" if new else "removed",
        "old": _side(row.old_uuid, row.old_num, row.old_title) if old else None,
        "new": _side(row.new_uuid, row.new_num, row.new_title) if new else None,
    }


def _side(uuid: UUID, version_num: int, title: str) -> dict[str, Any]:
    return {
        "pulp_href": resource_href("content", str(uuid)),
        "uuid": str(uuid),
        "version_num": version_num,
        "title": title,
    }
