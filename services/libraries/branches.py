"""The two branches of every entity, draft and published: moving their pointers, with a log.

Both work the same way: a log, one record per entity that moved, and for each ancestor whose
current version depends on it a record with equal versions, joined by side effects. Each is one
call of a function of the database, see functions.sql, however many entities move.
contract: content_core §2.2, §2.5, §2.6
"""

from collections.abc import Mapping
from datetime import datetime

from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import events
from services.libraries.models import Library
from shared.database import driver

# An edit that is under way holds its entity: it comes first, or sees what became of the draft.
_MOVE = """
    select move.log, move.moved
    from (select count(*) as held from (
      select id from entity where id = any($2) order by id for no key update) as entities) as first,
    lateral move_drafts($1, case when first.held >= 0 then $2 end, $3, $4, $5) as move
"""


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
    database = await driver(session)
    moved = await database.fetchrow(_MOVE, library.id, list(moves), list(moves.values()), now, user)
    if moved["log"] is None:
        return 0
    await events.tell_drafts(session, library, moved["log"])
    return int(moved["moved"])
