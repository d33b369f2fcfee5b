"""Who may do what with tasks and schedules. contract: dispatcher §5.3

Administrators may do everything. Whoever a task was made for is its owner, until that role is
taken away. Everything else is a grant: of a role, to a user or a group, on one thing or on all.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import delete, func, or_, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.filters import Condition, among_texts
from services.dispatcher.models import RoleGrant, Task, TaskSchedule
from shared import ids
from shared.callers import Caller
from shared.problems import BadInput, Forbidden

Kind = Literal["task", "taskschedule"]
TASK: Kind = "task"
SCHEDULE: Kind = "taskschedule"
VIEW, CHANGE, DELETE = "core.view_task", "core.change_task", "core.delete_task"
MANAGE, PROFILES = "core.manage_roles_task", "core.view_task_profile_artifacts"
VIEW_SCHEDULE, MANAGE_SCHEDULE = "core.view_taskschedule", "core.manage_roles_taskschedule"
OWNER, DISPATCHER = "core.task_owner", "core.task_user_dispatcher"
ROLES: dict[str, dict[str, frozenset[str]]] = {
    TASK: {
        OWNER: frozenset({VIEW, CHANGE, DELETE, MANAGE, PROFILES}),
        "core.task_viewer": frozenset({VIEW}),
        DISPATCHER: frozenset({"core.add_task"}),
    },
    SCHEDULE: {
        "core.taskschedule_owner": frozenset({VIEW_SCHEDULE, MANAGE_SCHEDULE}),
        "core.taskschedule_viewer": frozenset({VIEW_SCHEDULE}),
    },
}


def roles_with(kind: str, permission: str) -> list[str]:
    return [role for role, permissions in ROLES[kind].items() if permission in permissions]


def _of(caller: Caller) -> Condition:
    return or_(
        col(RoleGrant.username) == caller.username,
        among_texts(col(RoleGrant.group_name), caller.groups),
    )


async def permitted(
    session: AsyncSession, caller: Caller, permission: str, *, kind: str = TASK
) -> Condition:
    """The condition under which this caller has a permission on a row of this kind."""
    if caller.administrator:
        return true()
    held = [
        col(RoleGrant.object_kind) == kind,
        among_texts(col(RoleGrant.role), roles_with(kind, permission)),
        _of(caller),
    ]
    counted = await (await session.connection()).execute(
        select(func.count(), func.count(col(RoleGrant.object_id))).where(*held)
    )
    grants, on_one = counted.one()
    if grants > on_one:
        return true()
    granted = select(col(RoleGrant.object_id)).where(*held)
    if kind == SCHEDULE:
        return col(TaskSchedule.id).in_(granted)
    if not on_one:
        return col(Task.owned) & (col(Task.username) == caller.username)
    # A union, because an "or" over two tables would look at every task.
    own = aliased(Task)
    owned = select(col(own.id)).where(col(own.owned), col(own.username) == caller.username)
    return col(Task.id).in_(owned.union(granted))


async def permissions(
    session: AsyncSession, caller: Caller, *, kind: str, thing: Task | TaskSchedule
) -> list[str]:
    """What this caller may do with one thing."""
    if caller.administrator:
        return sorted(frozenset().union(*ROLES[kind].values()))
    rows = await (await session.connection()).execute(
        select(col(RoleGrant.role)).where(
            col(RoleGrant.object_kind) == kind,
            or_(col(RoleGrant.object_id).is_(None), col(RoleGrant.object_id) == thing.id),
            _of(caller),
        )
    )
    held = set(rows.scalars()) | (_implicit(thing) if _is_creator(thing, caller) else set())
    return sorted(frozenset().union(*(ROLES[kind].get(role, frozenset()) for role in held)))


def _is_creator(thing: Task | TaskSchedule, caller: Caller) -> bool:
    return isinstance(thing, Task) and thing.username == caller.username


def _implicit(thing: Task | TaskSchedule) -> set[str]:
    owned = isinstance(thing, Task) and thing.owned
    return {OWNER, DISPATCHER} if owned else {DISPATCHER}


async def require(
    session: AsyncSession,
    caller: Caller,
    permission: str,
    *,
    kind: str,
    thing: Task | TaskSchedule,
) -> None:
    """Raises Forbidden. Whether the caller may see the thing at all was decided before."""
    if permission not in await permissions(session, caller, kind=kind, thing=thing):
        raise Forbidden


async def holders(
    session: AsyncSession, *, kind: str, thing: Task | TaskSchedule
) -> list[dict[str, Any]]:
    """Who holds which role on one thing."""
    rows = await (await session.connection()).execute(
        select(col(RoleGrant.role), col(RoleGrant.username), col(RoleGrant.group_name))
        .where(col(RoleGrant.object_kind) == kind, col(RoleGrant.object_id) == thing.id)
        .order_by(col(RoleGrant.role), col(RoleGrant.created_at), col(RoleGrant.id))
    )
    found: dict[str, dict[str, Any]] = {}

    def entry(role: str) -> dict[str, Any]:
        return found.setdefault(role, {"role": role, "users": [], "groups": []})

    if isinstance(thing, Task) and thing.username is not None:
        for role in sorted(_implicit(thing)):
            entry(role)["users"].append(thing.username)
    for role, username, group in rows:
        if username is not None and username not in entry(role)["users"]:
            entry(role)["users"].append(username)
        if group is not None:
            entry(role)["groups"].append(group)
    return list(found.values())


async def grant(
    session: AsyncSession,
    *,
    kind: str,
    object_id: UUID | None,
    role: str,
    users: Sequence[str],
    groups: Sequence[str],
    now: datetime,
) -> None:
    """Give a role; giving it again changes nothing. Raises BadInput."""
    _check(kind, role, users, groups)
    rows = [
        {
            "id": ids.new_id(), "role": role, "username": user, "group_name": group,
            "object_kind": kind, "object_id": object_id, "created_at": now,
        }
        for user, group in [(user, None) for user in users] + [(None, group) for group in groups]
    ]  # fmt: skip
    await session.exec(insert(RoleGrant).on_conflict_do_nothing(), params=rows)


async def revoke(
    session: AsyncSession,
    *,
    kind: str,
    thing: Task | TaskSchedule | None,
    role: str,
    users: Sequence[str],
    groups: Sequence[str],
) -> None:
    """Take a role away, also from a task's creator. Raises BadInput."""
    _check(kind, role, users, groups)
    object_id = thing.id if thing is not None else None
    held_by = or_(col(RoleGrant.username).in_(users), col(RoleGrant.group_name).in_(groups))
    same = col(RoleGrant.object_id).is_not_distinct_from(object_id)
    await session.exec(
        delete(RoleGrant).where(
            col(RoleGrant.object_kind) == kind, same, col(RoleGrant.role) == role, held_by
        )
    )
    if isinstance(thing, Task) and role == OWNER and thing.username in users:
        thing.owned = False


def _check(kind: str, role: str, users: Sequence[str], groups: Sequence[str]) -> None:
    if role == DISPATCHER:
        message = f"The role {DISPATCHER} cannot be given or taken."
        raise BadInput(message, fields={"role": [message]})
    if role not in ROLES[kind]:
        message = f"There is no role {role} for this."
        raise BadInput(message, fields={"role": [message]})
    if not users and not groups:
        message = "At least one user or group is required."
        raise BadInput(message, fields={"non_field_errors": [message]})
