"""Words that authors give to components and containers, to find them by.

Tags are not versioned and not published; they stay when an entity is deleted and restored.
"""

from collections.abc import Sequence

from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.models import Entity, Tag

MOST = 100

_FORGET = text("delete from tag where entity_id = :id and name <> all(cast(:names as text[]))")
_ADD = text("""
    insert into tag (entity_id, name)
    select :id, name from unnest(cast(:names as text[])) as name order by name
    on conflict do nothing
""")
_FIND = text("select keep_findable(array[cast(:id as bigint)])")
_LOCK = text("select id from entity where id = :id for no key update")

_COPY = text("""
    with tagged as (
      insert into tag (entity_id, name)
      select pair.new, tag.name
      from unnest(cast(:old as bigint[]), cast(:new as bigint[])) as pair (old, new)
      join tag on tag.entity_id = pair.old
      order by pair.new, tag.name
      returning entity_id
    )
    select distinct entity_id from tagged
""")
_FIND_ALL = text("select keep_findable(cast(:ids as bigint[]))")


async def of_entity(session: AsyncSession, entity: Entity) -> list[str]:
    query = select(Tag.name).where(col(Tag.entity_id) == entity.id).order_by(col(Tag.name))
    return list((await session.exec(query)).all())


async def replace(session: AsyncSession, entity: Entity, names: Sequence[str]) -> list[str]:
    """Give an entity exactly these tags; those that differ in case only are one."""
    wanted = sorted({name.casefold(): name for name in reversed(names)}.values())
    connection = await session.connection()
    await connection.execute(_LOCK, {"id": entity.id})
    for statement in (_FORGET, _ADD):
        await connection.execute(statement, {"id": entity.id, "names": wanted})
    await connection.execute(_FIND, {"id": entity.id})
    return wanted


async def copy(session: AsyncSession, old: Sequence[int], new: Sequence[int]) -> None:
    """Give new entities, which have none yet, the tags of those at the same place in `old`."""
    connection = await session.connection()
    tagged = (await connection.execute(_COPY, {"old": old, "new": new})).scalars().all()
    await connection.execute(_FIND_ALL, {"ids": list(tagged)})
