"""What was changed and published, when and by whom. contract: libraries §3.10, content_core §2.10

Everything is bounded by ids of logs, never by clocks. A change is a record that moved a pointer;
records with equal versions only pass on the news of something below and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.models import Entity, Library
from services.libraries.states import Kind
from shared.lookups import Lookup, Source

# How many of the things that were published together one group names.
MOST_NAMED = 100

_DESCENDANTS = """
    with recursive below (entity_id, version_id) as (
      select entity_id, version_id from draft where entity_id = :id
      union
      select draft.entity_id, draft.version_id from below
      join dependency on dependency.version_id = below.version_id
      join draft on draft.entity_id = dependency.entity_id
    )
"""
_SCOPE = Lookup(f"""
    {_DESCENDANTS}
    select entity.id from entity
    where entity.id in (select entity_id from below) and entity.kind = 'component'
    union select cast(:id as bigint)
""")

# What took part in one publish as part of a container, also what has left it since.
_PART = text("""
    with recursive part (id, entity_id) as (
      select id, entity_id from publish_record where log_id = :log and entity_id = :id
      union
      select cause.id, cause.entity_id from part
      join publish_side_effect on publish_side_effect.effect_id = part.id
      join publish_record cause on cause.id = publish_side_effect.cause_id
    )
    select entity.id from part join entity on entity.id = part.entity_id
    where entity.kind = 'component'
""")

_ENTRY = """
    select record.id, record.log_id, entity.type, old.version_num as old_num,
           new.version_num as new_num, coalesce(new.title, old.title) as title,
           old.title as old_title, draft_log.changed_at, draft_log.changed_by
    from draft_record record
    join draft_log on draft_log.id = record.log_id
    join entity on entity.id = record.entity_id
    left join version old on old.id = record.old_version_id
    left join version new on new.id = record.new_version_id
"""
_NEWEST_FIRST = "order by record.log_id desc, title desc, record.id desc"

# Behind the newest change that led to the published version: its publish, or a return to it.
_UNPUBLISHED = Lookup(f"""
    {_ENTRY}
    left join published on published.entity_id = record.entity_id
    where record.entity_id = any(cast(:ids as bigint[]))
      and record.old_version_id is distinct from record.new_version_id
      and (published.entity_id is null or record.log_id > coalesce((
        select max(back.log_id) from draft_record back
        where back.entity_id = record.entity_id
          and back.new_version_id is not distinct from published.version_id
          and back.old_version_id is distinct from back.new_version_id), 0))
    {_NEWEST_FIRST}
""")

# The changes that one publish record made public: behind the newest one that led to what was
# published before, up to the one that was current.
_WINDOW = """
    and publish.old_version_id is distinct from publish.new_version_id
    and record.old_version_id is distinct from record.new_version_id
    and record.log_id <= publish.draft_log_id
    and record.log_id > coalesce((
      select max(back.log_id) from draft_record back
      where back.entity_id = publish.entity_id and back.log_id < publish.draft_log_id
        and back.new_version_id is not distinct from publish.old_version_id
        and back.old_version_id is distinct from back.new_version_id), 0)
"""
_PUBLISHED_ENTRIES = text(f"""
    {_ENTRY}
    join publish_record publish
      on publish.entity_id = record.entity_id and publish.log_id = :log {_WINDOW}
    where record.entity_id = any(cast(:ids as bigint[]))
    {_NEWEST_FIRST}
""")
_CONTRIBUTORS = Lookup(f"""
    select publish.log_id, publish.entity_id, draft_log.changed_by, max(record.log_id) as latest
    from publish_record publish
    join draft_record record on record.entity_id = publish.entity_id {_WINDOW}
    join draft_log on draft_log.id = record.log_id
    where publish.entity_id = any(cast(:ids as bigint[])) and draft_log.changed_by is not null
    group by publish.log_id, publish.entity_id, draft_log.changed_by
    order by latest desc, draft_log.changed_by
""")

_PUBLISHES = Lookup("""
    select record.log_id, record.direct, record.entity_id, log.uuid, log.published_at,
           log.published_by, entity.kind, entity.type, entity.code,
           coalesce(new.title, old.title, '') as title
    from publish_record record
    join publish_log log on log.id = record.log_id
    join entity on entity.id = record.entity_id
    left join version old on old.id = record.old_version_id
    left join version new on new.id = record.new_version_id
    where record.entity_id = any(cast(:ids as bigint[]))
    order by record.log_id desc, record.entity_id
""")
_DIRECT = Lookup(f"""
    select asked.log_id, entity.id as entity_id, entity.kind, entity.type, entity.code,
           coalesce(new.title, old.title, '') as title
    from unnest(cast(:logs as bigint[])) as log (id)
    cross join lateral (
      select * from publish_record
      where log_id = log.id and direct order by entity_id limit {MOST_NAMED}) asked
    join entity on entity.id = asked.entity_id
    left join version old on old.id = asked.old_version_id
    left join version new on new.id = asked.new_version_id
    order by asked.log_id, asked.entity_id
""")


@dataclass(frozen=True, slots=True)
class Publish:
    """One group of a publish history; `scope` is None for the container that is looked at."""

    log: Row[Any]
    contributors: list[str]
    asked_for: list[Row[Any]]
    scope: Row[Any] | None


async def unpublished(source: Source, item: Entity) -> Sequence[Row[Any]]:
    """Changes since the last publish, of an item and of the components in it; newest first."""
    ids = await _scope(source, item)
    return await _UNPUBLISHED.rows(source, ids=ids)


async def creation(session: AsyncSession, item: Entity) -> Row[Any] | None:
    """Its first version, or None for what never had one."""
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select version_num as new_num, null as old_num, title, title as old_title,
                   created as changed_at, created_by as changed_by, cast(:type as text) as type
            from version where entity_id = :id order by version_num limit 1
        """),
        {"id": item.id, "type": item.type},
    )
    return found.first()


async def entries(
    session: AsyncSession, library: Library, item: Entity, publish: UUID
) -> Sequence[Row[Any]]:
    """The changes that one publish made public of an item and of the components in it.

    Nothing when the publish is unknown or did not touch them. contract: libraries #19
    """
    connection = await session.connection()
    log = await connection.execute(
        text("select id from publish_log where library_id = :library_id and uuid = :uuid"),
        {"library_id": library.id, "uuid": publish},
    )
    log_id = log.scalar()
    if log_id is None:
        return []
    ids = set(await _scope(session, item))
    if item.kind is not Kind.COMPONENT:
        part = await connection.execute(_PART, {"log": log_id, "id": item.id})
        ids.update(part.scalars())
    found = await connection.execute(_PUBLISHED_ENTRIES, {"log": log_id, "ids": list(ids)})
    return found.all()


async def publishes(source: Source, item: Entity) -> list[Publish]:
    """Every publish that touched an item or a component in it, newest first."""
    ids = await _scope(source, item)
    rows = await _PUBLISHES.rows(source, ids=ids)
    people: dict[tuple[int, int], list[str]] = {}
    for row in await _CONTRIBUTORS.rows(source, ids=ids):
        people.setdefault((row.log_id, row.entity_id), []).append(row.changed_by)
    groups = _grouped(item, rows)
    asked: dict[int, list[Row[Any]]] = {}
    logs = list({group[0].log_id for group in groups if not _tells_itself(item, group[0])})
    for row in await _DIRECT.rows(source, logs=logs) if logs else ():
        asked.setdefault(row.log_id, []).append(row)
    return [_group(item, group, people, asked.get(group[0].log_id, [])) for group in groups]


def _grouped(item: Entity, rows: Sequence[Row[Any]]) -> Sequence[list[Row[Any]]]:
    # One group per publish; each entity has its own where it is not known what was asked for.
    groups: dict[tuple[int, int | None], list[Row[Any]]] = {}
    for row in rows:
        groups.setdefault((row.log_id, row.entity_id if row.direct is None else None), []).append(
            row
        )
    return list(groups.values())


def _tells_itself(item: Entity, first: Row[Any]) -> bool:
    """Where it is not known what was asked for, or it was this very component."""
    return first.direct is None or (item.kind is Kind.COMPONENT and first.direct)


def _group(
    item: Entity,
    rows: list[Row[Any]],
    people: dict[tuple[int, int], list[str]],
    asked: list[Row[Any]],
) -> Publish:
    first = rows[0]
    names = [name for row in rows for name in people.get((row.log_id, row.entity_id), [])]
    contributors = list(dict.fromkeys(names))
    if _tells_itself(item, first):
        return Publish(first, contributors, [first], first)
    own = [row for row in rows if row.direct]
    known = {row.entity_id for row in asked}
    missing = [row for row in own if row.entity_id not in known]
    scope = first if item.kind is Kind.COMPONENT else None
    return Publish(first, contributors, missing + asked, scope)


async def _scope(source: Source, item: Entity) -> list[int]:
    """An item, and for a container the live components in it at any depth."""
    if item.kind is Kind.COMPONENT:
        return [item.id]
    return [row.id for row in await _SCOPE.rows(source, id=item.id)]
