"""Roles on tasks and schedules. contract: dispatcher §5.2, §5.3, §5.5"""

from typing import Any
from uuid import UUID

from fastapi import APIRouter
from sqlmodel import col, select

from services.dispatcher import api_pulp, roles, schedules
from services.dispatcher.models import RoleGrant, Task, TaskSchedule
from services.dispatcher.schemas import RoleRequest
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.problems import Forbidden

router = APIRouter(prefix="/pulp/api/v3", tags=["roles"])
own_router = APIRouter(prefix="/api/dispatcher/v1/roles", tags=["roles"])


async def _task(
    session: SessionDep, ident: UUID, caller: Caller, *, manage: bool
) -> Task | TaskSchedule:
    permission = roles.MANAGE if manage else roles.VIEW
    return await api_pulp.visible(session, ident, caller, permission=permission)


async def _schedule(
    session: SessionDep, ident: UUID, caller: Caller, *, manage: bool
) -> Task | TaskSchedule:
    may_see = await roles.permitted(session, caller, roles.VIEW_SCHEDULE, kind=roles.SCHEDULE)
    found = await schedules.get(session, ident, conditions=[may_see])
    if manage:
        await roles.require(
            session, caller, roles.MANAGE_SCHEDULE, kind=roles.SCHEDULE, thing=found
        )
    return found


def _mount(collection: str, word: str, kind: str, get: Any) -> None:
    """The four role routes of one kind of thing."""

    @router.get(f"/{collection}/{{ident}}/list_roles/", operation_id=f"{word}_list_roles")
    async def list_roles(ident: UUID, caller: CallerDep, session: SessionDep) -> dict[str, Any]:
        """Who holds which role on this."""
        thing = await get(session, ident, caller, manage=True)
        return {"roles": await roles.holders(session, kind=kind, thing=thing)}

    @router.post(
        f"/{collection}/{{ident}}/add_role/", status_code=201, operation_id=f"{word}_add_role"
    )
    async def add_role(
        ident: UUID, wanted: RoleRequest, caller: CallerDep, session: SessionDep
    ) -> RoleRequest:
        """Give users and groups a role on this."""
        thing = await get(session, ident, caller, manage=True)
        await roles.grant(
            session, kind=kind, object_id=thing.id, role=wanted.role, users=wanted.users,
            groups=wanted.groups, now=utc_now(),
        )  # fmt: skip
        return wanted

    @router.post(
        f"/{collection}/{{ident}}/remove_role/",
        status_code=201,
        operation_id=f"{word}_remove_role",
    )
    async def remove_role(
        ident: UUID, wanted: RoleRequest, caller: CallerDep, session: SessionDep
    ) -> RoleRequest:
        """Take a role on this away from users and groups."""
        thing = await get(session, ident, caller, manage=True)
        await roles.revoke(
            session, kind=kind, thing=thing, role=wanted.role, users=wanted.users,
            groups=wanted.groups,
        )  # fmt: skip
        return wanted

    @router.get(f"/{collection}/{{ident}}/my_permissions/", operation_id=f"{word}_my_permissions")
    async def my_permissions(
        ident: UUID, caller: CallerDep, session: SessionDep
    ) -> dict[str, list[str]]:
        """What you may do with this."""
        thing = await get(session, ident, caller, manage=False)
        held = await roles.permissions(session, caller, kind=kind, thing=thing)
        return {"permissions": held}


_mount("tasks", "tasks", roles.TASK, _task)
_mount("task-schedules", "task_schedules", roles.SCHEDULE, _schedule)


def _administrator(caller: Caller) -> None:
    if not caller.administrator:
        raise Forbidden


@own_router.get("/{kind}/")
async def list_general_roles(
    kind: roles.Kind, caller: CallerDep, session: SessionDep
) -> list[RoleRequest]:
    """Who holds roles on all tasks or schedules. For administrators."""
    _administrator(caller)
    rows = await session.exec(
        select(RoleGrant)
        .where(RoleGrant.object_kind == kind, col(RoleGrant.object_id).is_(None))
        .order_by(col(RoleGrant.role), col(RoleGrant.created_at), col(RoleGrant.id))
    )
    found: dict[str, RoleRequest] = {}
    for row in rows:
        entry = found.setdefault(row.role, RoleRequest(role=row.role))
        if row.username is not None:
            entry.users.append(row.username)
        if row.group_name is not None:
            entry.groups.append(row.group_name)
    return list(found.values())


@own_router.post("/{kind}/add/", status_code=201)
async def give_general_role(
    kind: roles.Kind, wanted: RoleRequest, caller: CallerDep, session: SessionDep
) -> RoleRequest:
    """Give users and groups a role on all tasks or schedules. For administrators."""
    _administrator(caller)
    await roles.grant(
        session, kind=kind, object_id=None, role=wanted.role, users=wanted.users,
        groups=wanted.groups, now=utc_now(),
    )  # fmt: skip
    return wanted


@own_router.post("/{kind}/remove/", status_code=201)
async def take_general_role(
    kind: roles.Kind, wanted: RoleRequest, caller: CallerDep, session: SessionDep
) -> RoleRequest:
    """Take a role on all tasks or schedules away. For administrators."""
    _administrator(caller)
    await roles.revoke(
        session, kind=kind, thing=None, role=wanted.role, users=wanted.users,
        groups=wanted.groups,
    )  # fmt: skip
    return wanted
