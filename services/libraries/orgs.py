"""Orgs: names that libraries use, or that somebody declared. contract: libraries §3.2 #2

An org is there when a library is in it, when a role over its libraries was assigned, or when the
settings name it. Unless the settings say otherwise, its first library makes it.
"""

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import permissions, scopes
from services.libraries.errors import FieldRefused
from services.libraries.models import Library, RoleAssignment
from services.libraries.settings import Settings
from shared.callers import Caller


async def require(session: AsyncSession, caller: Caller, org: str, settings: Settings) -> None:
    """Raises FieldRefused on `org` when it is not there, or not for this caller's libraries."""
    if not settings.create_orgs and not await exists(session, org, settings):
        raise FieldRefused("org", f"No such organization '{org}' found.")
    if not await permissions.may_create_in(session, caller, org, settings):
        raise FieldRefused("org", f"User not allowed to create libraries in '{org}'.")


async def exists(session: AsyncSession, org: str, settings: Settings) -> bool:
    if org in settings.orgs:
        return True
    used = select(Library.id).where(col(Library.org) == org, col(Library.staged_by).is_(None))
    declared = select(RoleAssignment.id).where(col(RoleAssignment.scope) == scopes.of_org(org))
    found = await session.exec(select(used.exists() | declared.exists()))
    return bool(found.one())
