"""What nearly every request begins with: a library, an item of it, and what the caller may do.

All of it in one statement, because each costs a round trip. contract: libraries §2.4
"""

from typing import Any

from sqlalchemy import Boolean, column, select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import permissions
from services.libraries.errors import BlockUnknown, LibraryUnknown
from services.libraries.keys import canonical_library_key
from services.libraries.libraries import Hold
from services.libraries.models import Entity, Library
from services.libraries.permissions import HELD_SQL
from services.libraries.states import Kind, Permission
from shared.callers import Caller
from shared.database import Json, positional, reader, row_type
from shared.problems import Forbidden

_TABLES: list[Any] = [Library.__table__, Entity.__table__]  # type: ignore[attr-defined]
_COLUMNS = [column for table in _TABLES for column in table.columns]
_NAMES = ", ".join(
    f"{column.table.name}.{column.name} as {column.table.name}_{column.name}" for column in _COLUMNS
)
_ARRIVE = f"""
    select {_NAMES}, draft.version_id is not null as live, (
      select json_agg(json_build_array(kind, group_name, what, scope, denied, creator))
      from ({HELD_SQL}) as held) as held
    from library
    left join entity on entity.library_id = library.id and entity.entity_ref = :ref
    left join draft on draft.entity_id = entity.id
    where library.key = :key and library.staged_at is null
"""


def _query(lock: str) -> Any:
    found = text(_ARRIVE + lock).columns(*_COLUMNS, column("live", Boolean), column("held", Json))
    columns = found.selected_columns
    query = select(Library, Entity, columns.live, columns.held).from_statement(found)
    return query.execution_options(populate_existing=bool(lock))


_QUERIES = {
    None: _query(""),
    Hold.STAYS: _query("for key share of library"),
}


# What a request that only reads gets: the columns of both, and no session that looks after them.
_seen_library: Any = row_type("SeenLibrary", _TABLES[0].columns.keys())
_seen_entity: Any = row_type("SeenEntity", _TABLES[1].columns.keys())
_WIDTH = len(_TABLES[0].columns)
_SEE, _SEEN_VALUES = positional(_ARRIVE)


async def library(
    session: AsyncSession,
    key: str,
    caller: Caller,
    permission: Permission,
    hold: Hold | None = None,
) -> Library:
    """Raises LibraryUnknown or Forbidden."""
    found, _, _ = await _arrive(session, key, None, caller, permission, hold)
    return found


async def item(
    session: AsyncSession,
    key: str,
    ref: str,
    caller: Caller,
    permission: Permission,
    hold: Hold | None = None,
    *,
    deleted: bool = False,
) -> tuple[Library, Entity, bool]:
    """A live item, or with `deleted` one in any state, and whether it is live.

    Raises LibraryUnknown, Forbidden or BlockUnknown, in this order.
    """
    found, entity, live = await _arrive(session, key, ref, caller, permission, hold)
    if entity is None or not (live or deleted):
        raise BlockUnknown
    return found, entity, live


async def library_to_read(
    session: AsyncSession, key: str, caller: Caller, permission: Permission
) -> Library:
    """As `library`; what comes can only be read. Raises LibraryUnknown or Forbidden."""
    found, _, _ = await _see(session, key, None, caller, permission)
    return found


async def item_to_read(
    session: AsyncSession,
    key: str,
    ref: str,
    caller: Caller,
    permission: Permission,
    *,
    deleted: bool = False,
) -> tuple[Library, Entity, bool]:
    """As `item`; what comes can only be read. Raises LibraryUnknown, Forbidden, BlockUnknown."""
    found, entity, live = await _see(session, key, ref, caller, permission)
    if entity is None or not (live or deleted):
        raise BlockUnknown
    return found, entity, live


async def _see(
    session: AsyncSession, key: str, ref: str | None, caller: Caller, permission: Permission
) -> tuple[Library, Entity | None, bool]:
    key = canonical_library_key(key)
    values = permissions.asked(caller, [key]) | {"key": key, "ref": ref}
    connection = await reader(session)
    row = await connection.fetchrow(_SEE, *[values[name] for name in _SEEN_VALUES])
    if row is None:
        raise LibraryUnknown
    *columns, live, held = row
    library: Library = _seen_library._make(columns[:_WIDTH])
    _check(session, caller, library, held or (), permission)
    entity = _seen_entity._make(columns[_WIDTH:])
    if entity.id is None:
        return library, None, False
    return library, entity._replace(kind=Kind(entity.kind)), live


def _check(
    session: AsyncSession, caller: Caller, library: Library, held: Any, permission: Permission
) -> None:
    mine = permissions.holdings(session, caller, held, [library])
    if not mine.allow(library.key, permission):
        raise Forbidden


async def _arrive(
    session: AsyncSession,
    key: str,
    ref: str | None,
    caller: Caller,
    permission: Permission,
    hold: Hold | None,
) -> tuple[Library, Entity | None, bool]:
    key = canonical_library_key(key)
    values = permissions.asked(caller, [key]) | {"key": key, "ref": ref}
    row = (await session.exec(_QUERIES[hold], params=values)).first()
    if row is None:
        raise LibraryUnknown
    library, entity, live, held = row
    _check(session, caller, library, held or (), permission)
    return library, entity, bool(live)
