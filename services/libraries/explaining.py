"""Why somebody may do something with a library, or may not. contract: libraries §5"""

from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import directory, libraries, permissions
from services.libraries.states import OF_LIBRARY, Permission
from services.libraries.team_schemas import PermissionsView, PermissionView, Reason
from shared.callers import Caller


async def explain(
    session: AsyncSession, library_key: str, caller: Caller, username: str | None
) -> PermissionsView:
    """Each permission with what speaks for and against it.

    Raises LibraryUnknown; for another person Forbidden to who may not view the team, and
    PersonUnknown.
    """
    library = await libraries.get(session, library_key)
    whose = caller
    if username is not None and username != caller.username:
        await permissions.require(session, library, caller, Permission.VIEW_TEAM)
        await directory.get_person(session, username)
        whose = Caller(username)
    held = await permissions.held(session, whose, (), [library])
    return PermissionsView(
        library=library.key,
        username=whose.username,
        active=held.active,
        permissions=[
            PermissionView(
                permission=one,
                allowed=held.allow(library.key, one),
                because=[
                    Reason(by=each.holding, scope=each.scope, group=each.group, denied=each.denied)
                    for each in held.reasons(library.key, one)
                ],
            )
            for one in Permission
            if one in OF_LIBRARY
        ],
    )
