"""Who there is: people and groups, from the tokens of callers and from administrators.

A token is the platform's word on a person's e-mail. What it says of groups makes these known
but puts nobody into them: by token, one is in a group for as long as the token says so.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, or_, text
from sqlalchemy import select as select_columns
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.errors import FieldRefused, GroupInUse, GroupUnknown, PersonUnknown
from services.libraries.models import Grant, Person, RoleAssignment, TeamGroup, TeamGroupMember
from shared.callers import Caller

LONGEST_NAME, LONGEST_EMAIL, MOST_GROUPS = 255, 320, 200


def storable(name: str, longest: int = LONGEST_NAME) -> bool:
    """Whether a database takes this text as a name."""
    plain = "\x00" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)
    return plain and 0 < len(name) <= longest


# People


async def note(session: AsyncSession, callers: Sequence[Caller], *, now: datetime) -> None:
    """Take down whose tokens were seen, in two statements however many they are."""
    people = {each.username: each for each in callers if storable(each.username)}
    groups = {group for each in people.values() for group in each.groups[:MOST_GROUPS]}
    names = sorted(people)
    emails = [_email(people[name].email) for name in names]
    connection = await session.connection()
    await connection.execute(
        text("""
            insert into person (username, email, active, creator, seen)
            select username, email, true, false, :now
            from unnest(cast(:names as text[]), cast(:emails as text[])) as t (username, email)
            on conflict (username) do update set
              seen = greatest(person.seen, excluded.seen),
              email = case excluded.email when '' then person.email else excluded.email end
        """),
        {"names": names, "emails": emails, "now": now},
    )
    await _make_groups(session, groups, now=now)


async def _make_groups(session: AsyncSession, groups: set[str], *, now: datetime) -> None:
    rows = [{"name": name, "created": now} for name in sorted(groups) if storable(name)]
    if rows:
        await session.exec(insert(TeamGroup).values(rows).on_conflict_do_nothing())


def _email(email: str) -> str:
    return email if storable(email, LONGEST_EMAIL) else ""


async def find_person(session: AsyncSession, username: str) -> Person | None:
    return await session.get(Person, username) if storable(username) else None


async def get_person(session: AsyncSession, username: str) -> Person:
    """Raises PersonUnknown."""
    if (person := await find_person(session, username)) is None:
        raise PersonUnknown
    return person


async def people_of_email(session: AsyncSession, email: str) -> Sequence[Person]:
    """Who has this address, whatever its case; two are enough to know that it is not one."""
    query = select(Person).where(func.lower(Person.email) == func.lower(email), Person.email != "")
    return (await session.exec(query.order_by(col(Person.username)).limit(2))).all()


async def list_people(
    session: AsyncSession, *, search: str = "", after: str = "", size: int
) -> Sequence[Person]:
    """People by name, also those whose name or e-mail only contains a text."""
    query = select(Person).where(col(Person.username) > after)
    if search:
        fields = (Person.username, Person.email)
        query = query.where(or_(*(col(each).icontains(search, autoescape=True) for each in fields)))
    return (await session.exec(query.order_by(col(Person.username)).limit(size))).all()


async def put_person(
    session: AsyncSession, username: str, changes: dict[str, Any], *, now: datetime
) -> Person:
    """Make somebody known, or change what is given. Raises FieldRefused on `username`."""
    if not storable(username):
        raise FieldRefused("username", "This is not a name.")
    values = {"username": username, "email": "", "active": True, "creator": False, "seen": now}
    query = insert(Person).values(values | changes)
    if changes:
        query = query.on_conflict_do_update(index_elements=["username"], set_=changes)
    else:
        query = query.on_conflict_do_nothing()
    await session.exec(query)
    found = await session.get(Person, username, populate_existing=True)
    assert found is not None
    return found


# Groups


async def find_group(session: AsyncSession, name: str) -> TeamGroup | None:
    """The group, which stays until the transaction ends."""
    if not storable(name):
        return None
    query = select(TeamGroup).where(col(TeamGroup.name) == name)
    return (await session.exec(query.with_for_update(read=True, key_share=True))).first()


async def get_group(session: AsyncSession, name: str) -> TeamGroup:
    """Raises GroupUnknown."""
    if (group := await find_group(session, name)) is None:
        raise GroupUnknown
    return group


async def list_groups(
    session: AsyncSession, *, search: str = "", after: str = "", size: int
) -> Sequence[Row[Any]]:
    """Groups by name, with how many an administrator put into each."""
    count = (
        select(func.count())
        .where(col(TeamGroupMember.group_name) == col(TeamGroup.name))
        .scalar_subquery()
        .label("members")
    )
    query = select_columns(col(TeamGroup.name), col(TeamGroup.created), count).where(
        col(TeamGroup.name) > after
    )
    if search:
        query = query.where(col(TeamGroup.name).icontains(search, autoescape=True))
    connection = await session.connection()
    return (await connection.execute(query.order_by(col(TeamGroup.name)).limit(size))).all()


async def make_group(session: AsyncSession, name: str, *, now: datetime) -> TeamGroup:
    """Make a group known; that it is so already is fine. Raises FieldRefused on `name`."""
    if not storable(name):
        raise FieldRefused("name", "This is not a name.")
    await _make_groups(session, {name}, now=now)
    return await get_group(session, name)


async def delete_group(session: AsyncSession, name: str) -> None:
    """Remove a group with its members. Raises GroupUnknown, or GroupInUse while it holds rights."""
    group = await session.get(TeamGroup, name, with_for_update=True) if storable(name) else None
    if group is None:
        raise GroupUnknown
    grants = select(Grant.id).where(col(Grant.group_name) == name)
    roles = select(RoleAssignment.id).where(col(RoleAssignment.group_name) == name)
    if (await session.exec(select(grants.exists() | roles.exists()))).one():
        raise GroupInUse
    await session.delete(group)
    await session.flush()


async def members_of(session: AsyncSession, name: str) -> Sequence[str]:
    """Who was put into a group. Raises GroupUnknown."""
    await get_group(session, name)
    query = select(TeamGroupMember.username).where(col(TeamGroupMember.group_name) == name)
    return (await session.exec(query.order_by(col(TeamGroupMember.username)))).all()


async def add_member(session: AsyncSession, name: str, username: str) -> None:
    """Raises GroupUnknown or PersonUnknown."""
    await get_person(session, username)
    await get_group(session, name)
    values = {"group_name": name, "username": username}
    await session.exec(insert(TeamGroupMember).values(values).on_conflict_do_nothing())


async def remove_member(session: AsyncSession, name: str, username: str) -> None:
    """Nothing to remove is fine. Raises GroupUnknown."""
    await get_group(session, name)
    if storable(username):
        await session.exec(
            delete(TeamGroupMember).where(
                col(TeamGroupMember.group_name) == name,
                col(TeamGroupMember.username) == username,
            )
        )
