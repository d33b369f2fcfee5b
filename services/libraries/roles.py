"""Roles of people and groups over scopes. contract: libraries §5.4"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import directory, permissions, scopes
from services.libraries.errors import FieldRefused, RoleAssignmentUnknown
from services.libraries.models import Library, RoleAssignment
from services.libraries.states import Permission, Role
from shared.callers import Caller
from shared.problems import Forbidden


async def page(
    session: AsyncSession,
    *,
    caller: Caller,
    scope: str | None,
    username: str | None,
    group: str | None,
    after: int,
    size: int,
) -> Sequence[RoleAssignment]:
    """Assignments in the order they were made: one's own, of a scope for its team, all for staff.

    Raises Forbidden.
    """
    if scope is not None and username != caller.username:
        await permissions.require_over(session, caller, scope, Permission.VIEW_TEAM)
    elif username != caller.username and not caller.administrator:
        raise Forbidden
    query = select(RoleAssignment).where(col(RoleAssignment.id) > after)
    for column, value in (
        (RoleAssignment.scope, scope),
        (RoleAssignment.username, username),
        (RoleAssignment.group_name, group),
    ):
        if value is not None:
            query = query.where(col(column) == value)
    return (await session.exec(query.order_by(col(RoleAssignment.id)).limit(size))).all()


async def assign(
    session: AsyncSession,
    *,
    caller: Caller,
    username: str | None,
    group: str | None,
    role: Role,
    scope: str,
    denied: bool,
    now: datetime,
) -> RoleAssignment:
    """Give, or deny, a role; what is so already stays as it is.

    Raises Forbidden, or FieldRefused on `username`, `group` or `scope`.
    """
    await _require_manager(session, caller, role, scope, denied=denied)
    await _require_target(session, scope)
    await _require_holder(session, username, group)
    values = {"username": username, "group_name": group, "role": role, "scope": scope}
    await session.exec(
        insert(RoleAssignment)
        .values(**values, denied=denied, created=now, created_by=caller.username)
        .on_conflict_do_nothing()
    )
    query = select(RoleAssignment).where(
        col(RoleAssignment.username).is_not_distinct_from(username),
        col(RoleAssignment.group_name).is_not_distinct_from(group),
        col(RoleAssignment.role) == role,
        col(RoleAssignment.scope) == scope,
        col(RoleAssignment.denied).is_(denied),
    )
    found = (await session.exec(query)).first()
    if found is None:
        # Somebody has just taken it away again.
        raise RoleAssignmentUnknown
    return found


async def remove(session: AsyncSession, assignment_id: int, *, caller: Caller) -> None:
    """Raises RoleAssignmentUnknown, also to those who may not know of it, or Forbidden."""
    found = await session.get(RoleAssignment, assignment_id, with_for_update=True)
    if found is None:
        raise RoleAssignmentUnknown
    mine = await permissions.held(session, caller, [found.scope])
    if not mine.allow(found.scope, Permission.VIEW_TEAM):
        raise RoleAssignmentUnknown
    await _require_manager(session, caller, Role(found.role), found.scope, denied=found.denied)
    await session.delete(found)
    await session.flush()


async def forget(session: AsyncSession, scope: str) -> None:
    """Remove what was assigned over a library that is gone."""
    await session.exec(delete(RoleAssignment).where(col(RoleAssignment.scope) == scope))


async def _require_manager(
    session: AsyncSession, caller: Caller, role: Role, scope: str, *, denied: bool
) -> None:
    """Who manages the team over a scope gives roles there; denials and creators are staff's."""
    if (denied or role is Role.CREATOR) and not caller.administrator:
        raise Forbidden
    await permissions.require_over(session, caller, scope, Permission.EDIT_TEAM)


async def _require_target(session: AsyncSession, scope: str) -> None:
    """A library is there and stays until this is stored, so that no role outlives it."""
    if not scopes.is_library(scope):
        return
    query = select(Library.id).where(col(Library.key) == scope, col(Library.staged_by).is_(None))
    if (await session.exec(query.with_for_update(key_share=True, read=True))).first() is None:
        raise FieldRefused("scope", f"There is no library {scope}.")


async def _require_holder(session: AsyncSession, username: str | None, group: str | None) -> None:
    if username is not None and await directory.find_person(session, username) is None:
        raise FieldRefused("username", "Nobody of this name is known.")
    if group is not None and await directory.find_group(session, group) is None:
        raise FieldRefused("group", "There is no such group.")
