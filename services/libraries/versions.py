"""New versions of entities, many at once. contract: content_core §2.1, §2.9"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import branches
from services.libraries.models import Library

OLX_PATH = "block.xml"


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What is different in an entity's next version.

    `media` overlays the files of the version before: an id adds or replaces, None removes;
    `only_media` starts without them. `children` are (entity id, pinned version id or None).
    """

    entity_id: int
    title: str | None = None
    media: Mapping[str, int | None] = field(default_factory=dict)
    only_media: bool = False
    children: Sequence[tuple[int, int | None]] | None = None


@dataclass(frozen=True, slots=True)
class MadeVersion:
    """A version that was made."""

    id: int
    version_num: int


# The entity's row is locked, so that two editors get two numbers, one after the other. What a
# new version is based on is what its editor saw: the live draft, or the newest of a deleted one.
_LOCK = text("""
    select id from entity where id = any(cast(:ids as bigint[])) order by id for no key update
""")
_MAKE = text("""
    insert into version (uuid, entity_id, version_num, title, created, created_by)
    select gen_random_uuid(), r.entity_id, coalesce(newest.version_num, 0) + 1,
           coalesce(r.title, live.title, newest.title, ''), :now, :user
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (entity_id bigint, title text)
    left join lateral (
      select version_num, title from version
      where version.entity_id = r.entity_id order by version_num desc limit 1) newest on true
    left join draft on draft.entity_id = r.entity_id
    left join version live on live.id = draft.version_id
    order by r.entity_id
    returning id, entity_id, version_num
""")
_KEEP_MEDIA = text("""
    insert into version_media (version_id, path, media_id)
    select r.version_id, kept.path, kept.media_id
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      entity_id bigint, version_id bigint, version_num integer, dropped text[])
    left join draft on draft.entity_id = r.entity_id
    join version base on base.id = coalesce(draft.version_id, (
      select id from version older
      where older.entity_id = r.entity_id and older.version_num < r.version_num
      order by version_num desc limit 1))
    join version_media kept on kept.version_id = base.id
    where not kept.path = any(r.dropped)
""")
_ADD_MEDIA = text("""
    insert into version_media (version_id, path, media_id)
    select * from unnest(cast(:versions as bigint[]), cast(:paths as text[]),
                         cast(:media as bigint[]))
""")
_KEEP_CHILDREN = text("""
    insert into child (version_id, order_num, entity_id, pinned_version_id)
    select r.version_id, kept.order_num, kept.entity_id, kept.pinned_version_id
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      entity_id bigint, version_id bigint, version_num integer)
    left join draft on draft.entity_id = r.entity_id
    join version base on base.id = coalesce(draft.version_id, (
      select id from version older
      where older.entity_id = r.entity_id and older.version_num < r.version_num
      order by version_num desc limit 1))
    join child kept on kept.version_id = base.id
""")
_ADD_CHILDREN = text("""
    insert into child (version_id, order_num, entity_id, pinned_version_id)
    select * from unnest(cast(:versions as bigint[]), cast(:orders as integer[]),
                         cast(:entities as bigint[]), cast(:pins as bigint[]))
""")
_DEPEND = text("""
    insert into dependency (version_id, entity_id)
    select distinct version_id, entity_id from child
    where version_id = any(cast(:versions as bigint[])) and pinned_version_id is null
""")


async def make(
    session: AsyncSession,
    library: Library,
    news: Sequence[NewVersion],
    *,
    user: str | None,
    now: datetime,
) -> dict[int, MadeVersion]:
    """Make the next version of each entity and point its draft there, in one change log.

    Returns the versions by entity id. A fixed number of statements for any number of entities.
    """
    if not news:
        return {}
    connection = await session.connection()
    await connection.execute(_LOCK, {"ids": [new.entity_id for new in news]})
    rows = [{"entity_id": new.entity_id, "title": new.title} for new in news]
    made = await connection.execute(
        _MAKE, {"rows": orjson.dumps(rows).decode(), "now": now, "user": user}
    )
    by_entity = {row.entity_id: MadeVersion(row.id, row.version_num) for row in made}
    await _fill_media(session, news, by_entity)
    await _fill_children(session, news, by_entity)
    moves = {entity: version.id for entity, version in by_entity.items()}
    await branches.move_drafts(session, library, moves, user=user, now=now)
    return by_entity


async def _fill_media(
    session: AsyncSession, news: Sequence[NewVersion], made: Mapping[int, MadeVersion]
) -> None:
    connection = await session.connection()
    keep = [
        _based(new, made) | {"dropped": list(new.media)}
        for new in news
        if not new.only_media and made[new.entity_id].version_num > 1
    ]
    if keep:
        await connection.execute(_KEEP_MEDIA, {"rows": orjson.dumps(keep).decode()})
    added = [
        (made[new.entity_id].id, path, media_id)
        for new in news
        for path, media_id in new.media.items()
        if media_id is not None
    ]
    if added:
        versions, paths, media = zip(*added, strict=True)
        values = {"versions": list(versions), "paths": list(paths), "media": list(media)}
        await connection.execute(_ADD_MEDIA, values)


async def _fill_children(
    session: AsyncSession, news: Sequence[NewVersion], made: Mapping[int, MadeVersion]
) -> None:
    connection = await session.connection()
    containers = [new for new in news if not new.media and not new.only_media]
    keep = [
        _based(new, made)
        for new in containers
        if new.children is None and made[new.entity_id].version_num > 1
    ]
    if keep:
        await connection.execute(_KEEP_CHILDREN, {"rows": orjson.dumps(keep).decode()})
    added = [
        (made[new.entity_id].id, order, entity, pin)
        for new in containers
        for order, (entity, pin) in enumerate(new.children or ())
    ]
    if added:
        versions, orders, entities, pins = zip(*added, strict=True)
        values: dict[str, Any] = {
            "versions": list(versions),
            "orders": list(orders),
            "entities": list(entities),
            "pins": list(pins),
        }
        await connection.execute(_ADD_CHILDREN, values)
    if keep or added:
        ids = [made[new.entity_id].id for new in containers]
        await connection.execute(_DEPEND, {"versions": ids})


def _based(new: NewVersion, made: Mapping[int, MadeVersion]) -> dict[str, Any]:
    version = made[new.entity_id]
    return {
        "entity_id": new.entity_id,
        "version_id": version.id,
        "version_num": version.version_num,
    }
