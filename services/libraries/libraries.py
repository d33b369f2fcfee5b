"""Libraries: creating, finding, describing, deleting. contract: libraries §3.2"""

from collections.abc import Sequence
from datetime import datetime
from enum import Enum, auto
from typing import Any

from sqlalchemy import func, or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import events, roles, staged, team
from services.libraries.errors import FieldRefused, LibraryUnknown
from services.libraries.keys import canonical_library_key, library_key
from services.libraries.models import Library, LibraryVersion
from services.libraries.permissions import everybody_creates, visible_to
from shared.callers import Caller
from shared.files import Files
from shared.lookups import Lookup, Source

TAKEN = "A library with that ID already exists."
ORDERS = {"title": Library.title, "created": Library.created, "updated": Library.updated}


async def create(
    session: AsyncSession,
    *,
    org: str,
    slug: str,
    title: str,
    description: str,
    allow_public_learning: bool,
    allow_public_read: bool,
    license: str,
    user: str,
    now: datetime,
    learning_package: int | None = None,
) -> Library:
    """A new library, empty or made of a staged package; its creator becomes its admin.

    Raises FieldRefused on `slug`, or on `learning_package` when it is no package of this user.
    """
    values: dict[str, Any] = {
        "key": library_key(org, slug), "org": org, "slug": slug, "title": title,
        "description": description, "license": license, "updated": now, "created": now,
        "allow_public_learning": allow_public_learning, "allow_public_read": allow_public_read,
    }  # fmt: skip
    if learning_package is None:
        library = Library(**values)
    else:
        with session.no_autoflush:
            library = await staged.take(session, learning_package, values, user=user)
    try:
        async with session.begin_nested():
            session.add(library)
    except IntegrityError as error:
        raise FieldRefused("slug", TAKEN) from error
    await team.own(session, library, user=user, now=now)
    session.add(LibraryVersion(library_id=library.id, number=0, created=now))
    await session.flush()
    events.tell_library(session, library, "created")
    return library


class Hold(Enum):
    """What a transaction does to a library: `STAYS` while it is edited, `GOES` to delete it."""

    STAYS = auto()
    GOES = auto()


async def find(session: AsyncSession, key: str, hold: Hold | None = None) -> Library | None:
    """The library with this key, if there is one.

    One that is held to stay is not deleted before the end of the transaction; whoever deletes
    holds it first of all, so that neither waits for the other in a circle.
    """
    query = select(Library).where(col(Library.key) == key, col(Library.staged_at).is_(None))
    if hold is not None:
        stays = hold is Hold.STAYS
        query = query.with_for_update(read=stays, key_share=stays)
        query = query.execution_options(populate_existing=True)
    return (await session.exec(query)).first()


async def get(session: AsyncSession, key: str, hold: Hold | None = None) -> Library:
    """Raises LibraryUnknown, also for what is not a library key."""
    library = await find(session, canonical_library_key(key), hold)
    if library is None:
        raise LibraryUnknown
    return library


async def page(
    session: AsyncSession,
    *,
    caller: Caller,
    size: int,
    number: int,
    org: str = "",
    text_search: str = "",
    order: str = "",
) -> tuple[Sequence[Library], int]:
    """Libraries this caller may view, and how many match. contract: libraries §3.2 #1"""
    conditions: list[Any] = visible_to(caller, everybody_creates=everybody_creates(session))
    if org:
        conditions.append(col(Library.org) == org.replace("\x00", ""))
    if text_search:
        words = text_search.replace("\x00", "")
        fields = (Library.slug, Library.org, Library.title, Library.description)
        conditions.append(or_(*(col(field).icontains(words, autoescape=True) for field in fields)))
    connection = await session.connection()
    count = await connection.execute(select(func.count()).select_from(Library).where(*conditions))
    query = (
        select(Library)
        .where(*conditions)
        .order_by(*_ordering(order), col(Library.org), col(Library.slug))
        .limit(size)
        .offset((number - 1) * size)
    )
    return (await session.exec(query)).all(), count.scalar_one()


def _ordering(order: str) -> list[Any]:
    column = ORDERS.get(order.removeprefix("-"))
    if column is None:
        return []
    return [col(column).desc() if order.startswith("-") else col(column).asc()]


async def update(
    session: AsyncSession, library: Library, changes: dict[str, Any], *, now: datetime
) -> Library:
    """Change what is given; a new title or description moves `updated`."""
    found = await session.get_one(Library, library.id)
    for name, value in changes.items():
        setattr(found, name, value)
    if {"title", "description"} & set(changes):
        found.updated = now
    await session.flush()
    if changes:
        events.tell_library(session, found, "updated")
    return found


async def delete(session: AsyncSession, library: Library) -> None:
    """Remove a library and everything of it; its files are the caller's to remove."""
    await session.delete(library)
    await session.flush()
    events.tell_library(session, library, "deleted")
    # After the row is gone nobody assigns one more: who assigns a role holds the library.
    await roles.forget(session, library.key)


async def delete_files(files: Files, library: Library) -> None:
    """Remove what a library that is gone had in the object store."""
    await files.delete([path async for path in files.list(f"content/{library.uuid}")])


_DESCRIBE = Lookup("""
    select
      (select cast(coalesce(sum(items), 0) as bigint) from live_count
       where library_id = :id) as num_blocks,
      last.published_at, last.published_by, edit.changed_at, edit.changed_by,
      exists (
        select from differences(:id) where draft is not null) as changes,
      exists (
        select from differences(:id) where draft is null) as deletes
    from (select 1) as one
    left join lateral (
      select published_at, published_by from publish_log
      where library_id = :id order by id desc limit 1) as last on true
    left join lateral (
      select changed_at, changed_by from draft_log
      where library_id = :id order by id desc limit 1) as edit on true
""")


async def describe(source: Source, library: Library) -> Any:
    """What a library's answer tells of its content, in one statement. contract: libraries §4.5"""
    [found] = await _DESCRIBE.rows(source, id=library.id)
    return found
