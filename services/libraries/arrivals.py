"""What nearly every request begins with: a library, an item of it, and what the caller may do.

All of it in one statement, because each costs a round trip. contract: libraries §2.4
"""

from typing import Any

from services.libraries import permissions
from services.libraries.errors import BlockUnknown, LibraryUnknown
from services.libraries.keys import canonical_library_key
from services.libraries.models import Entity, EntityRow, Library, LibraryRow
from services.libraries.permissions import HELD_SQL
from services.libraries.states import Kind, Permission
from shared.callers import Caller
from shared.lookups import Lookup, Source
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

_SEE, _HOLD = Lookup(_ARRIVE), Lookup(_ARRIVE + "for key share of library")
_WIDTH = len(_TABLES[0].columns)


async def library(
    source: Source, key: str, caller: Caller, permission: Permission, *, holds: bool = False
) -> Library:
    """A library as it is; with `holds` it is not deleted before the end of the transaction.

    Raises LibraryUnknown or Forbidden.
    """
    found, _, _ = await _arrive(source, key, None, caller, permission, holds=holds)
    return found


async def item(
    source: Source,
    key: str,
    ref: str,
    caller: Caller,
    permission: Permission,
    *,
    holds: bool = False,
    deleted: bool = False,
) -> tuple[Library, Entity, bool]:
    """A live item, or with `deleted` one in any state, its library, and whether it is live.

    Raises LibraryUnknown, Forbidden or BlockUnknown, in this order.
    """
    found, entity, live = await _arrive(source, key, ref, caller, permission, holds=holds)
    if entity is None or not (live or deleted):
        raise BlockUnknown
    return found, entity, live


async def _arrive(
    source: Source,
    key: str,
    ref: str | None,
    caller: Caller,
    permission: Permission,
    *,
    holds: bool,
) -> tuple[Library, Entity | None, bool]:
    key = canonical_library_key(key)
    values = permissions.asked(caller, [key]) | {"key": key, "ref": ref}
    rows = await (_HOLD if holds else _SEE).records(source, **values)
    if not rows:
        raise LibraryUnknown
    *columns, live, held = rows[0]
    library: Library = LibraryRow._make(columns[:_WIDTH])
    mine = permissions.holdings(source, caller, held or (), [library])
    if not mine.allow(library.key, permission):
        raise Forbidden
    entity = EntityRow._make(columns[_WIDTH:])
    if entity.id is None:
        return library, None, False
    return library, entity._replace(kind=Kind(entity.kind)), live
