"""What an item is in and what is in it, in drafts. contract: libraries §3.9"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import entities
from services.libraries.models import Entity
from services.libraries.states import Kind

_ABOVE = text("""
    with recursive above (entity_id) as (
      select cast(:id as bigint)
      union
      select draft.entity_id from above
      join child on child.entity_id = above.entity_id
      join draft on draft.version_id = child.version_id
    )
    select entity_id from above order by entity_id
""")

# Each version's children once, however often it is itself a child: lists cannot multiply.
_BELOW = text("""
    with recursive below (version_id) as (
      select version_id from draft where entity_id = :id
      union
      select inside.version_id from below
      cross join lateral (
        select distinct coalesce(child.pinned_version_id, draft.version_id) as version_id
        from child left join draft on draft.entity_id = child.entity_id
        where child.version_id = below.version_id) inside
      where inside.version_id is not null
    )
    select child.entity_id, child.version_id as holder,
           coalesce(child.pinned_version_id, draft.version_id) as version_id
    from below join child on child.version_id = below.version_id
    left join draft on draft.entity_id = child.entity_id
    where coalesce(child.pinned_version_id, draft.version_id) is not null
    order by child.version_id, child.order_num
""")

_MEMBERS = text("""
    select entity.id, entity.kind, entity.type, entity.code, version.title,
           draft.version_id as live, draft.version_id is distinct from published.version_id
             as changed
    from entity
    left join draft on draft.entity_id = entity.id
    left join published on published.entity_id = entity.id
    left join version on version.id = coalesce(draft.version_id, (
      select max(id) from version newest where newest.entity_id = entity.id))
    where entity.id = any(cast(:ids as bigint[]))
""")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Rows of the members of each level in order, and the containers with changes below."""

    levels: dict[Kind, list[Row[Any]]]
    changed_below: set[int]


async def show(session: AsyncSession, item: Entity) -> Hierarchy:
    """Every live container above an item, the item, and what is below it; each member once."""
    connection = await session.connection()
    above = (await connection.execute(_ABOVE, {"id": item.id})).scalars().all()
    below = await _below(session, item)
    ids = list(dict.fromkeys([*above, *below]))
    rows = {row.id: row for row in await connection.execute(_MEMBERS, {"ids": ids})}
    levels: dict[Kind, list[Row[Any]]] = {kind: [] for kind in Kind}
    for ident in ids:
        levels[Kind(rows[ident].kind)].append(rows[ident])
    containers = [ident for ident in ids if rows[ident].kind != Kind.COMPONENT]
    return Hierarchy(levels, await entities.changed_below(session, containers))


async def _below(session: AsyncSession, item: Entity) -> Iterable[int]:
    if item.kind is Kind.COMPONENT:
        return []
    connection = await session.connection()
    lists: dict[int, list[Row[Any]]] = {}
    for row in await connection.execute(_BELOW, {"id": item.id}):
        lists.setdefault(row.holder, []).append(row)
    top = await connection.execute(
        text("select version_id from draft where entity_id = :id"), {"id": item.id}
    )
    found: dict[int, None] = {}
    level: Sequence[int] = [top.scalar_one()]
    while level:
        rows = [row for holder in level for row in lists.pop(holder, ())]
        found.update(dict.fromkeys(row.entity_id for row in rows))
        level = list(dict.fromkeys(row.version_id for row in rows))
    return found
