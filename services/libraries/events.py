"""What a library tells everyone: the events of edits, publishes and collections.

Each operation hands over its log, or what it changed; what follows from it is found with one
statement, however much it was. Staged archives are no library yet and tell nothing.
contract: libraries §7
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.keys import collection_key, object_key
from services.libraries.models import Library
from services.libraries.states import Kind
from shared import events
from shared.events import Event
from shared.lookups import Lookup

PREFIX = "org.openedx.content_authoring"
# In this order in `changes`.
BELONGINGS = ("collections", "tags", "units", "subsections", "sections")

# Rows of three kinds, in the order in which they are told:
# 1 what happened to an entity, 2 what it belongs to is different, 3 a collection is to be read.
_OF_DRAFTS = Lookup("select * from news_of_drafts(:library_id, :log)")
_OF_PUBLISH = Lookup("select * from news_of_publish(:library_id, :log)")
_OF_MEMBERS = Lookup("""
    select 2 as what, entity.id, kind, type, code, '' as verb, array['collections'] as changes
    from entity
    where entity.id = any(cast(:ids as bigint[])) and (
      (select version_id from draft where entity_id = entity.id) is not null
      or (select version_id from published where entity_id = entity.id) is not null)
    order by entity.id
""")


async def tell_drafts(session: AsyncSession, library: Library, log: int) -> None:
    """What one change log of drafts means to others. contract: libraries §7.2"""
    await _tell(session, library, _OF_DRAFTS, {"log": log, "library_id": library.id})


def tell_created(session: AsyncSession, library: Library, block_type: str, code: str) -> None:
    """A component is new: nothing holds it, so there is nothing else to look for."""
    if library.staged_at is None:
        key = object_key(library.key, Kind.COMPONENT, block_type, code)
        about = {"library_block": {"library_key": library.key, "usage_key": key}}
        events.publish(session, library.key, [Event(f"{PREFIX}.library_block.created.v1", about)])


async def tell_publish(session: AsyncSession, library: Library, log: int) -> None:
    """What one publish means to others. contract: libraries §7.3"""
    await _tell(session, library, _OF_PUBLISH, {"log": log, "library_id": library.id})


async def tell_members(session: AsyncSession, library: Library, entity_ids: Sequence[int]) -> None:
    """The collections of these items are different, or are called differently."""
    if entity_ids:
        await _tell(session, library, _OF_MEMBERS, {"ids": list(entity_ids)})


async def _tell(
    session: AsyncSession, library: Library, statement: Lookup, values: dict[str, Any]
) -> None:
    if library.staged_at is not None:
        return
    rows = await statement.rows(session, **values)
    events.publish(session, library.key, [_event(library.key, row) for row in rows])


def tell_library(session: AsyncSession, library: Library, verb: str) -> None:
    """A library was `created`, `updated` or `deleted`."""
    if library.staged_at is not None:
        return
    about = {"library_key": library.key, "update_blocks": False}
    name = f"{PREFIX}.content_library.{verb}.v1"
    events.publish(session, library.key, [Event(name, {"content_library": about})])


def tell_collections(
    session: AsyncSession, library: Library, codes: Iterable[str], verb: str
) -> None:
    """Collections were `created` (or restored), `updated` or `deleted`."""
    if library.staged_at is None:
        found = [_collection_event(library.key, code, verb) for code in codes]
        events.publish(session, library.key, found)


def _event(library: str, row: Row[Any]) -> Event:
    if row.what == 3:
        return _collection_event(library, row.code, row.verb)
    kind = Kind(row.kind)
    key = object_key(library, kind, row.type, row.code)
    if row.what == 2:
        changes = sorted(row.changes, key=BELONGINGS.index)
        about = {"object_id": key, "changes": changes}
        return Event(f"{PREFIX}.content.object.associations.changed.v1", {"content_object": about})
    if kind is Kind.COMPONENT:
        block = {"library_key": library, "usage_key": key}
        return Event(f"{PREFIX}.library_block.{row.verb}.v1", {"library_block": block})
    container = {"container_key": key, "background": False}
    name = f"{PREFIX}.content_library.container.{row.verb}.v1"
    return Event(name, {"library_container": container})


def _collection_event(library: str, code: str, verb: str) -> Event:
    about = {"collection_key": collection_key(library, code), "background": False}
    name = f"{PREFIX}.content_library.collection.{verb}.v1"
    return Event(name, {"library_collection": about})
