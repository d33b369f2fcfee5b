"""Routes of a library's team, and of who may do what. contract: libraries §3.3"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from services.libraries import explaining, team
from services.libraries.access import LibraryFor
from services.libraries.models import Library
from services.libraries.states import Permission
from services.libraries.team_schemas import Access, Invitation, PermissionsView
from shared.callers import CallerDep
from shared.database import SessionDep

router = APIRouter(prefix="/api/libraries/v2", tags=["teams"])
TeamLibrary = Annotated[Library, Depends(LibraryFor(Permission.VIEW_TEAM))]
ManagedLibrary = Annotated[Library, Depends(LibraryFor(Permission.EDIT_TEAM))]


def grant_json(member: team.Member) -> dict[str, Any]:
    return {
        "access_level": member.access_level,
        "email": (member.email or "") if member.username is not None else None,
        "username": member.username,
        "group_name": member.group_name,
    }


@router.get("/{lib_key}/team/")
async def list_team(library: TeamLibrary, session: SessionDep) -> list[dict[str, Any]]:
    """Everybody with a grant: groups first, then people, by name."""
    return [grant_json(member) for member in await team.members(session, library)]


@router.post("/{lib_key}/team/")
async def invite(library: ManagedLibrary, body: Invitation, session: SessionDep) -> dict[str, Any]:
    """Let somebody in by e-mail."""
    return grant_json(await team.invite(session, library, body.email, body.access_level))


@router.get("/{lib_key}/team/user/{username}/")
async def get_member(library: TeamLibrary, username: str, session: SessionDep) -> dict[str, Any]:
    """What one person was granted."""
    return grant_json(await team.member(session, library, username))


@router.put("/{lib_key}/team/user/{username}/")
async def set_member(
    library: ManagedLibrary, username: str, body: Access, session: SessionDep
) -> dict[str, Any]:
    """Let somebody in, or change what they may do. The only admin stays one."""
    return grant_json(await team.set_person(session, library, username, body.access_level))


@router.delete("/{lib_key}/team/user/{username}/")
async def remove_member(
    library: ManagedLibrary, username: str, session: SessionDep
) -> dict[str, Any]:
    """Take somebody's grant away. The only admin stays."""
    await team.remove_person(session, library, username)
    return {}


@router.put("/{lib_key}/team/group/{group}/")
async def set_group(
    library: ManagedLibrary, group: str, body: Access, session: SessionDep
) -> dict[str, Any]:
    """Let a group in, or change what its members may do."""
    await team.set_group(session, library, group, body.access_level)
    return {}


@router.delete("/{lib_key}/team/group/{group}/")
async def remove_group(library: ManagedLibrary, group: str, session: SessionDep) -> dict[str, Any]:
    """Take a group's grant away."""
    await team.remove_group(session, library, group)
    return {}


@router.get("/{lib_key}/permissions/")
async def explain_permissions(
    lib_key: str,
    caller: CallerDep,
    session: SessionDep,
    username: Annotated[str | None, Query(max_length=255)] = None,
) -> PermissionsView:
    """What you may do with this library, and which grant or role says so.

    Who may view the team may ask for another person by `username`. What only that person's own
    token says is not known then: being staff, and groups that nobody put them into here.
    """
    return await explaining.explain(session, lib_key, caller, username)
