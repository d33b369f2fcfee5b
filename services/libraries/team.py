"""The team of a library: grants to people and to groups. contract: libraries §3.3"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Row
from sqlalchemy import select as select_columns
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import directory
from services.libraries.errors import FieldRefused, GrantUnknown, LastAdmin
from services.libraries.models import Grant, Library, Person, RoleAssignment
from services.libraries.states import AccessLevel, Role
from shared.problems import BadInput

HAS_ACCESS = "This user already has access to this library."
Member = Row[tuple[Grant, str | None]]


async def own(session: AsyncSession, library: Library, *, user: str, now: datetime) -> None:
    """What the creator of a library gets: a grant, and the role over it alone."""
    session.add(Grant(library_id=library.id, username=user, access_level=AccessLevel.ADMIN))
    session.add(
        RoleAssignment(
            username=user, role=Role.ADMIN, scope=library.key, created=now, created_by=user
        )
    )
    await session.flush()


async def members(session: AsyncSession, library: Library) -> Sequence[Member]:
    """All grants with their holders' e-mail: groups first, then people, by name."""
    connection = await session.connection()
    query = (
        select_columns(Grant.__table__, col(Person.email))  # type: ignore[attr-defined]
        .join_from(Grant, Person, col(Person.username) == col(Grant.username), isouter=True)
        .where(col(Grant.library_id) == library.id)
        .order_by(col(Grant.username).nulls_first(), col(Grant.group_name))
    )
    found: Sequence[Member] = (await connection.execute(query)).all()
    return found


async def member(session: AsyncSession, library: Library, username: str) -> Member:
    """Raises GrantUnknown."""
    for one in await members(session, library):
        if one.username == username:
            return one
    raise GrantUnknown


async def invite(session: AsyncSession, library: Library, email: str, level: AccessLevel) -> Member:
    """Let somebody in who has no grant yet. Raises FieldRefused or BadInput on `email`."""
    found = await directory.people_of_email(session, email)
    if not found:
        raise FieldRefused("email", "We could not find a user with that email address.")
    if len(found) > 1:
        raise FieldRefused("email", "More than one user has that email address.")
    query = (
        insert(Grant)
        .values(library_id=library.id, username=found[0].username, access_level=level)
        .on_conflict_do_nothing()
    )
    if not (await session.exec(query)).rowcount:
        raise BadInput(HAS_ACCESS, fields={"email": [HAS_ACCESS]})
    return await member(session, library, found[0].username)


async def set_person(
    session: AsyncSession, library: Library, username: str, level: AccessLevel
) -> Member:
    """Raises PersonUnknown, or LastAdmin when this is the only admin, whatever the level."""
    grants = await _locked(session, library)
    mine = next((grant for grant in grants if grant.username == username), None)
    if mine is None:
        await directory.get_person(session, username)
    _keep_an_admin(grants, mine)
    await _grant(session, Grant(library_id=library.id, username=username, access_level=level))
    return await member(session, library, username)


async def remove_person(session: AsyncSession, library: Library, username: str) -> None:
    """Nothing to remove is fine. Raises PersonUnknown or LastAdmin."""
    grants = await _locked(session, library)
    mine = next((grant for grant in grants if grant.username == username), None)
    if mine is None:
        await directory.get_person(session, username)
        return
    _keep_an_admin(grants, mine)
    await session.exec(delete(Grant).where(col(Grant.id) == mine.id))


async def set_group(
    session: AsyncSession, library: Library, group: str, level: AccessLevel
) -> None:
    """Raises GroupUnknown, or LastAdmin when nobody else would be one."""
    await directory.get_group(session, group)
    grants = await _locked(session, library)
    mine = next((grant for grant in grants if grant.group_name == group), None)
    if level is not AccessLevel.ADMIN:
        _keep_an_admin(grants, mine)
    await _grant(session, Grant(library_id=library.id, group_name=group, access_level=level))


async def remove_group(session: AsyncSession, library: Library, group: str) -> None:
    """Nothing to remove is fine. Raises GroupUnknown or LastAdmin."""
    await directory.get_group(session, group)
    grants = await _locked(session, library)
    mine = next((grant for grant in grants if grant.group_name == group), None)
    if mine is not None:
        _keep_an_admin(grants, mine)
        await session.exec(delete(Grant).where(col(Grant.id) == mine.id))


async def _locked(session: AsyncSession, library: Library) -> Sequence[Grant]:
    """All grants as they are now and stay: of two that demote at once, one sees the other's.

    Asked twice: whoever was waited for may have made grants that the first answer has not.
    """
    query = (
        select(Grant)
        .where(col(Grant.library_id) == library.id)
        .order_by(col(Grant.id))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    await session.exec(query)
    return (await session.exec(query)).all()


def _keep_an_admin(grants: Sequence[Grant], mine: Grant | None) -> None:
    admins = [grant for grant in grants if grant.access_level is AccessLevel.ADMIN]
    if mine is not None and admins == [mine]:
        raise LastAdmin


async def _grant(session: AsyncSession, grant: Grant) -> None:
    holder = "username" if grant.username is not None else "group_name"
    values = {
        "library_id": grant.library_id,
        holder: getattr(grant, holder),
        "access_level": grant.access_level,
    }
    await session.exec(
        insert(Grant)
        .values(values)
        .on_conflict_do_update(
            index_elements=["library_id", holder], set_={"access_level": grant.access_level}
        )
    )
