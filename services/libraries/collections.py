"""Collections: unordered groups of entities. contract: content_core §2.11"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.errors import BlockUnknown, RuleBroken
from services.libraries.models import Collection, Library


async def create(
    session: AsyncSession,
    library: Library,
    *,
    code: str,
    title: str,
    description: str = "",
    user: str | None,
    now: datetime,
) -> Collection:
    """A new, empty collection."""
    collection = Collection(
        library_id=library.id, code=code, title=title, description=description,
        created=now, modified=now, created_by=user,
    )  # fmt: skip
    session.add(collection)
    await session.flush()
    return collection


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
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select id from entity where library_id = :library_id
              and entity_ref = any(cast(:refs as text[]))
        """),
        {"library_id": library.id, "refs": list(refs)},
    )
    ids = list(found.scalars())
    if len(ids) != len(set(refs)):
        raise BlockUnknown
    await connection.execute(
        text("""
            insert into collection_member (collection_id, entity_id, created)
            select :collection_id, id, :now from unnest(cast(:ids as bigint[])) as id
            on conflict do nothing
        """),
        {"collection_id": collection.id, "ids": ids, "now": now},
    )
    collection.modified = now
    session.add(collection)
    await session.flush()
