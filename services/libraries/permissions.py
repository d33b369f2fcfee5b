"""Who may do what with a library: one rule for every route. contract: libraries §5"""

from collections.abc import Sequence
from typing import Any

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.models import Grant, Library
from services.libraries.settings import Settings
from services.libraries.states import ALLOWED, AccessLevel, Permission
from shared.callers import Caller
from shared.problems import Forbidden


async def allowed(session: AsyncSession, library: Library, caller: Caller) -> set[Permission]:
    """Everything this caller may do with this library."""
    if caller.administrator:
        return set(Permission)
    query = select(Grant).where(
        col(Grant.library_id) == library.id, col(Grant.username) == caller.username
    )
    return _with((await session.exec(query)).first(), library)


def _with(grant: Grant | None, library: Library) -> set[Permission]:
    mine: set[Permission] = set(ALLOWED[grant.access_level]) if grant else set()
    return mine | ({Permission.VIEW} if library.allow_public_read else set())


async def require(
    session: AsyncSession, library: Library, caller: Caller, permission: Permission
) -> None:
    """Raises Forbidden."""
    await require_all(session, [library], caller, permission)


async def require_all(
    session: AsyncSession, libraries: Sequence[Library], caller: Caller, permission: Permission
) -> None:
    """The same for several at once. Raises Forbidden."""
    if not libraries or caller.administrator:
        return
    query = select(Grant).where(
        col(Grant.library_id).in_([library.id for library in libraries]),
        col(Grant.username) == caller.username,
    )
    grants = {grant.library_id: grant for grant in await session.exec(query)}
    for library in libraries:
        if permission not in _with(grants.get(library.id), library):
            raise Forbidden


def require_create(caller: Caller, settings: Settings) -> None:
    """Raises Forbidden for those who may not create libraries."""
    if not caller.administrator and settings.creators == "staff":
        raise Forbidden


def visible_to(caller: Caller) -> list[Any]:
    """The same rule for VIEW as a condition on libraries; staged packages are none."""
    live = col(Library.staged_at).is_(None)
    if caller.administrator:
        return [live]
    granted = select(Grant.library_id).where(
        col(Grant.username) == caller.username, col(Grant.access_level).in_(list(AccessLevel))
    )
    return [live, col(Library.id).in_(granted) | col(Library.allow_public_read)]
