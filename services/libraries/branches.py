"""The two branches of every entity, draft and published: moving their pointers, with a log.

Both work the same way: a log, one record per entity that moved, and for each ancestor whose
current version depends on it a record with equal versions, joined by side effects. Every
function uses a fixed number of statements, however many entities move.
contract: content_core §2.2, §2.5, §2.6
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import TextClause, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import events
from services.libraries.models import Library


def _walk(pointer: str, record: str) -> TextClause:
    # All edges from moved entities upwards, each once: `union` ends on what was seen before.
    return text(f"""
        with recursive edge (child, parent, version) as (
          select dependency.entity_id, {pointer}.entity_id, {pointer}.version_id
          from {record} moved
          join dependency on dependency.entity_id = moved.entity_id
          join {pointer} on {pointer}.version_id = dependency.version_id
          where moved.log_id = :log
          union
          select dependency.entity_id, {pointer}.entity_id, {pointer}.version_id
          from edge
          join dependency on dependency.entity_id = edge.parent
          join {pointer} on {pointer}.version_id = dependency.version_id
        )
        select child, parent, version from edge
    """)


def _effects(table: str, record: str) -> TextClause:
    return text(f"""
        insert into {table} (cause_id, effect_id)
        select cause.id, effect.id
        from unnest(cast(:children as bigint[]), cast(:parents as bigint[])) as edge (child, parent)
        join {record} cause on cause.log_id = :log and cause.entity_id = edge.child
        join {record} effect on effect.log_id = :log and effect.entity_id = edge.parent
        on conflict do nothing
    """)


@dataclass(frozen=True)
class Branch:
    """The statements of one branch."""

    walk: TextClause
    touch: TextClause
    point: TextClause
    effects: TextClause


DRAFT = Branch(
    walk=_walk("draft", "draft_record"),
    touch=text("""
        insert into draft_record (log_id, entity_id, old_version_id, new_version_id)
        select :log, up.entity_id, up.version_id, up.version_id
        from unnest(cast(:parents as bigint[]), cast(:versions as bigint[]))
          as up (entity_id, version_id)
        order by up.entity_id
        on conflict (log_id, entity_id) do nothing
    """),
    point=text("""
        insert into draft (entity_id, version_id, record_id)
        select entity_id, new_version_id, id from draft_record where log_id = :log
        order by entity_id
        on conflict (entity_id) do update
        set version_id = excluded.version_id, record_id = excluded.record_id
    """),
    effects=_effects("draft_side_effect", "draft_record"),
)
PUBLISHED = Branch(
    walk=_walk("published", "publish_record"),
    touch=text("""
        insert into publish_record (log_id, entity_id, old_version_id, new_version_id, direct)
        select :log, up.entity_id, up.version_id, up.version_id, false
        from unnest(cast(:parents as bigint[]), cast(:versions as bigint[]))
          as up (entity_id, version_id)
        order by up.entity_id
        on conflict (log_id, entity_id) do nothing
    """),
    point=text("""
        insert into published (entity_id, version_id, record_id)
        select entity_id, new_version_id, id from publish_record where log_id = :log
        order by entity_id
        on conflict (entity_id) do update
        set version_id = excluded.version_id, record_id = excluded.record_id
    """),
    effects=_effects("publish_side_effect", "publish_record"),
)


async def spread(
    session: AsyncSession, branch: Branch, log: int, *, within: Collection[int] | None = None
) -> None:
    """Point to what the log's records say, then carry the news up to every ancestor.

    `within` is what was locked beforehand: a container that took an entity in meanwhile has a
    record of that itself, and waiting for it out of order could wait forever.
    """
    connection = await session.connection()
    await connection.execute(branch.point, {"log": log})
    edges = (await connection.execute(branch.walk, {"log": log})).all()
    if within is not None:
        edges = [edge for edge in edges if edge.parent in within and edge.child in within]
    if not edges:
        return
    versions = {edge.parent: edge.version for edge in edges}
    values = {"log": log, "parents": list(versions), "versions": list(versions.values())}
    await connection.execute(branch.touch, values)
    await connection.execute(branch.point, {"log": log})
    pairs = {
        "log": log,
        "children": [edge.child for edge in edges],
        "parents": [edge.parent for edge in edges],
    }
    await connection.execute(branch.effects, pairs)


_DRAFT_LOG = text("""
    insert into draft_log (uuid, library_id, changed_at, changed_by)
    values (gen_random_uuid(), :library_id, :now, :user) returning id
""")
_DRAFT_RECORDS = text("""
    insert into draft_record (log_id, entity_id, old_version_id, new_version_id)
    select :log, moved.entity_id, draft.version_id, moved.version_id
    from jsonb_to_recordset(cast(:moves as jsonb)) as moved (entity_id bigint, version_id bigint)
    left join draft on draft.entity_id = moved.entity_id
    where draft.version_id is distinct from moved.version_id
    order by moved.entity_id
""")
# What moves and everything above it, in one order: whoever else comes waits before it has begun.
_LOCK_DRAFTS = text("""
    with recursive up (entity_id) as (
      select unnest(cast(:ids as bigint[]))
      union
      select draft.entity_id
      from up
      join dependency on dependency.entity_id = up.entity_id
      join draft on draft.version_id = dependency.version_id
    )
    select entity_id from draft where entity_id in (select entity_id from up)
    order by entity_id for update
""")


async def move_drafts(
    session: AsyncSession,
    library: Library,
    moves: Mapping[int, int | None],
    *,
    user: str | None,
    now: datetime,
) -> int:
    """Point drafts of entities at versions, or at nothing (deleted), in one change log.

    Those that point there already are left out; when that is all of them nothing is written.
    Everyone is told. Returns how many moved. contract: content_core §2.2
    """
    if not moves:
        return 0
    connection = await session.connection()
    locked = (await connection.execute(_LOCK_DRAFTS, {"ids": list(moves)})).scalars().all()
    values: dict[str, Any] = {"library_id": library.id, "now": now, "user": user}
    log = (await connection.execute(_DRAFT_LOG, values)).scalar_one()
    rows = [{"entity_id": entity, "version_id": version} for entity, version in moves.items()]
    moved = await connection.execute(
        _DRAFT_RECORDS, {"log": log, "moves": orjson.dumps(rows).decode()}
    )
    if moved.rowcount == 0:
        await connection.execute(text("delete from draft_log where id = :log"), {"log": log})
        return 0
    await spread(session, DRAFT, log, within={*locked, *moves})
    await events.tell_drafts(session, library, log)
    return int(moved.rowcount)
