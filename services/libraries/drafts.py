"""The draft of one item: deleting, restoring, giving up its changes. contract: libraries §4.2"""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import branches, publishing
from services.libraries.errors import BlockUnknown, NotDeleted, RuleBroken
from services.libraries.models import Entity, Library
from shared.database import driver


class NeverPublished(RuleBroken):
    """These never were published, or are not any more."""

    def __init__(self, entity_ids: Collection[int]) -> None:
        super().__init__(NOTHING_PUBLISHED)
        self.entity_ids = entity_ids


async def require_live(session: AsyncSession, entity: Entity) -> None:
    """Raises BlockUnknown for what is deleted by now. Ask under the library's lock."""
    if await (await driver(session)).fetchval(_LIVE, entity.id) is None:
        raise BlockUnknown


_LIVE = "select version_id from draft where entity_id = $1"
_HOLD = "select id from entity where id = $1 for no key update"


async def hold(session: AsyncSession, entity: Entity) -> None:
    """Nobody makes a version of it meanwhile, so that its newest one stays the newest."""
    await (await driver(session)).execute(_HOLD, entity.id)


async def _hold(session: AsyncSession, library: Library, entity: Entity) -> None:
    await publishing.lock(session, library)
    await hold(session, entity)


async def delete(
    session: AsyncSession, library: Library, entity: Entity, *, user: str, now: datetime
) -> None:
    """Point the draft at nothing; children and collections keep what they have.

    Raises BlockUnknown for what is deleted already, so that of two at once only one has done it.
    """
    await publishing.lock(session, library)
    await require_live(session, entity)
    await branches.move_drafts(session, library, {entity.id: None}, user=user, now=now)


async def restore(
    session: AsyncSession, library: Library, entity: Entity, *, user: str, now: datetime
) -> None:
    """Point the draft at the newest version, whatever it points at. contract: libraries #26, #48

    Raises BlockUnknown for what never had a version.
    """
    await _hold(session, library, entity)
    connection = await session.connection()
    newest = await connection.execute(
        text("select id from version where entity_id = :id order by version_num desc limit 1"),
        {"id": entity.id},
    )
    version_id = newest.scalar()
    if version_id is None:
        raise BlockUnknown
    await branches.move_drafts(session, library, {entity.id: version_id}, user=user, now=now)


async def undelete(
    session: AsyncSession, library: Library, entity: Entity, *, user: str, now: datetime
) -> None:
    """Point a deleted draft at the version it had when it was deleted.

    Raises NotDeleted, or BlockUnknown when that version is not kept any more.
    """
    await _hold(session, library, entity)
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select draft.version_id as live, before.id, before.pruned_at from draft
            left join lateral (
              select old_version_id from draft_record
              where draft_record.entity_id = draft.entity_id
                and new_version_id is null and old_version_id is not null
              order by log_id desc limit 1) deletion on true
            left join version before on before.id = deletion.old_version_id
            where draft.entity_id = :id
        """),
        {"id": entity.id},
    )
    row = found.first()
    if row is not None and row.live is not None:
        raise NotDeleted
    if row is None or row.id is None or row.pruned_at is not None:
        raise BlockUnknown("The version before the deletion is not kept.")
    await branches.move_drafts(session, library, {entity.id: row.id}, user=user, now=now)


# Below, by what the draft lists and by what the published version lists: both lists come into it.
_DIFFERENT = text("""
    with recursive tree (entity_id) as (
      select unnest(cast(:ids as bigint[]))
      union
      select dependency.entity_id from tree
      left join draft on draft.entity_id = tree.entity_id
      left join published on published.entity_id = tree.entity_id
      join dependency on dependency.version_id in (draft.version_id, published.version_id)
      where :below
    )
    select entity.id, entity.kind, entity.type, entity.code, published.version_id from tree
    join entity on entity.id = tree.entity_id
    join published on published.entity_id = tree.entity_id
    join draft on draft.entity_id = tree.entity_id
    where draft.version_id is distinct from published.version_id
      and published.version_id is not null
    order by entity.id
""")
NOTHING_PUBLISHED = "This is not published: there is nothing to go back to."


async def discard(
    session: AsyncSession,
    library: Library,
    entity_ids: Sequence[int],
    *,
    below: bool,
    user: str,
    now: datetime,
) -> Sequence[tuple[str, str, str]]:
    """Take drafts back to what is published, and with `below` all that they hold.

    What never was published is left alone below, and refused itself with NeverPublished: there
    is nothing to go back to. Returns kind, type and code of what moved.
    """
    await publishing.lock(session, library)
    connection = await session.connection()
    shown = await connection.execute(
        text("""
            select entity_id from published
            where entity_id = any(cast(:ids as bigint[])) and version_id is not null
        """),
        {"ids": list(entity_ids)},
    )
    never = set(entity_ids) - set(shown.scalars())
    if never:
        raise NeverPublished(never)
    values = {"ids": list(entity_ids), "below": below}
    rows = (await connection.execute(_DIFFERENT, values)).all()
    moves = {row.id: row.version_id for row in rows}
    await branches.move_drafts(session, library, moves, user=user, now=now)
    return [(row.kind, row.type, row.code) for row in rows]
