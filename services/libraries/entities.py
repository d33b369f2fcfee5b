"""The identity of components and containers: making, finding and looking at them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Row, text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.errors import BlockUnknown
from services.libraries.models import Draft, Entity, Library
from services.libraries.states import Kind
from shared.lookups import Lookup, Source


@dataclass(frozen=True, slots=True)
class NewEntity:
    """An entity to make."""

    ref: str
    kind: Kind
    type: str
    code: str
    can_stand_alone: bool = True
    created: datetime | None = None


_CREATE = text("""
    insert into entity (uuid, library_id, entity_ref, kind, type, code, can_stand_alone, created,
                        created_by)
    select gen_random_uuid(), :library_id, r.ref, r.kind, r.type, r.code, r.can_stand_alone,
           coalesce(r.created, :now), :user
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      place integer, ref text, kind text, type text, code text, can_stand_alone boolean,
      created timestamptz)
    order by r.place
    on conflict (library_id, entity_ref) do nothing
    returning id, entity_ref
""")


async def create_many(
    session: AsyncSession,
    library: Library,
    news: Sequence[NewEntity],
    *,
    user: str | None,
    now: datetime,
) -> dict[str, int]:
    """Make entities with one statement; ids by ref of those that were new."""
    rows = [
        {
            "place": place,
            "ref": new.ref,
            "kind": new.kind,
            "type": new.type,
            "code": new.code,
            "can_stand_alone": new.can_stand_alone,
            "created": new.created,
        }
        for place, new in enumerate(news)
    ]
    connection = await session.connection()
    values = {
        "library_id": library.id,
        "rows": orjson.dumps(rows).decode(),
        "now": now,
        "user": user,
    }
    made = await connection.execute(_CREATE, values)
    return {row.entity_ref: row.id for row in made}


async def ids_of(session: AsyncSession, library: Library, refs: Iterable[str]) -> dict[str, int]:
    """Ids by ref of those entities that exist, deleted ones included."""
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select entity_ref, id from entity
            where library_id = :library_id and entity_ref = any(cast(:refs as text[]))
        """),
        {"library_id": library.id, "refs": list(refs)},
    )
    return {row.entity_ref: row.id for row in found}


async def get(
    session: AsyncSession, library: Library, ref: str, *, deleted: bool = False
) -> Entity:
    """A live entity, or with `deleted` one in any state. Raises BlockUnknown."""
    query = select(Entity).where(
        col(Entity.library_id) == library.id, col(Entity.entity_ref) == ref
    )
    if not deleted:
        query = query.join(Draft, col(Draft.entity_id) == col(Entity.id)).where(
            col(Draft.version_id).is_not(None)
        )
    entity = (await session.exec(query)).first()
    if entity is None:
        raise BlockUnknown
    return entity


VIEW = """
    select entity.id, entity.code, entity.type, entity.kind, entity.entity_ref,
           entity.can_stand_alone, entity.created, entity.created_by,
           live.id as version_id, live.uuid as version_uuid, live.title,
           live.version_num, live.created as modified, live.created_by as modified_by,
           live.created as drafted, live.created_by as drafted_by,
           shown.id as published_id, shown.title as published_title,
           (select count(*) from tag where tag.entity_id = entity.id) as tags,
           publish_log.published_at, publish_log.published_by,
           draft.version_id is distinct from published.version_id as changed
    from entity
    join draft on draft.entity_id = entity.id
    join version live on live.id = draft.version_id
    left join published on published.entity_id = entity.id
    left join version shown on shown.id = published.version_id
    left join publish_record on publish_record.id = published.record_id
    left join publish_log on publish_log.id = publish_record.log_id
"""


_BELOW = """
      select entity.id, draft.version_id where entity.kind <> 'component'
      union
      select lower.entity_id, lower.version_id from below
      join dependency on dependency.version_id = below.version_id
      join draft lower on lower.entity_id = dependency.entity_id
"""
_SHOW = Lookup(
    VIEW.replace(
        "    from entity\n",
        f"""
    , coalesce(cast((
      select json_agg(json_build_object('key', collection.code, 'title', collection.title)
                      order by collection.id)
      from collection_member join collection on collection.id = collection_member.collection_id
      where collection_member.entity_id = entity.id and collection.enabled) as text), '[]')
      as collections,
    exists (
      with recursive below (entity_id, version_id) as ({_BELOW})
      select from below left join published seen on seen.entity_id = below.entity_id
      where below.version_id is distinct from seen.version_id) as changed_below
    from entity
""",
    )
    + " where entity.id = :id"
)


async def show(source: Source, entity_id: int) -> Row[Any]:
    """A live entity with what its draft and its published version say. Raises BlockUnknown.

    A row of VIEW and `changed_below`, which is False for components.
    """
    rows = await _SHOW.rows(source, id=entity_id)
    if not rows:
        raise BlockUnknown
    found: Row[Any] = rows[0]
    return found


@dataclass(frozen=True, slots=True)
class JustMade:
    """What `show` says of an entity right after it was made, without asking for it."""

    type: str
    code: str
    can_stand_alone: bool
    title: str
    created: datetime
    created_by: str | None
    published_title: None = None
    published_at: None = None
    published_by: None = None
    tags: int = 0
    changed: bool = True

    @property
    def modified(self) -> datetime:
        return self.created

    drafted = modified

    @property
    def drafted_by(self) -> str | None:
        return self.created_by


def collections_of(row: Row[Any]) -> list[dict[str, str]]:
    """The enabled collections of an item that was shown."""
    found: list[dict[str, str]] = orjson.loads(row.collections)
    return found


_CHANGED_BELOW = text("""
    with recursive below (top, entity_id, version_id) as (
      select entity.id, entity.id, draft.version_id
      from entity join draft on draft.entity_id = entity.id
      where entity.id = any(cast(:ids as bigint[])) and entity.kind <> 'component'
      union
      select below.top, draft.entity_id, draft.version_id from below
      join dependency on dependency.version_id = below.version_id
      join draft on draft.entity_id = dependency.entity_id
    )
    select distinct below.top from below
    left join published on published.entity_id = below.entity_id
    where below.version_id is distinct from published.version_id
""")


async def changed_below(session: AsyncSession, ids: Sequence[int]) -> set[int]:
    """Those of these containers that differ from what is published, themselves or below.

    A child that was deleted counts until its deletion is published. One statement for any
    number of containers. contract: libraries §4.5
    """
    if not ids:
        return set()
    connection = await session.connection()
    return set((await connection.execute(_CHANGED_BELOW, {"ids": list(ids)})).scalars())
