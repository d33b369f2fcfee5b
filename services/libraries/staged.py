"""Staged packages: restored archives that are not libraries yet. contract: libraries §3.5, §6.2

A staged package is a row of `library` that no list, key or permission shows. Its owner makes a
library of it, once; if nobody does, it expires.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete as sql_delete
from sqlalchemy import update as sql_update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import media
from services.libraries.archive_contents import Manifest
from services.libraries.errors import FieldRefused
from services.libraries.models import Library, LibraryTask
from shared.database import Sessions
from shared.files import Files

# No library can have a slug with colons, so that no library can be in the way.
ORG = "lp-restore"
LONGEST_USER = 150
LARGEST_ID = 2**63 - 1
MOST_TRIES = 100
UNKNOWN = "unknown"


def archive_names(archive_key: str) -> tuple[str, str] | None:
    """Org and slug in the key of an archive, if it has them. contract: content_core §4.9"""
    parts = archive_key.split(":")
    return (parts[1], parts[2]) if len(parts) >= 3 else None


def package_ref(user: str, archive_key: str, milliseconds: int) -> str:
    """`lp-restore:{user}:{org}:{slug}:{milliseconds}`: the archive's key is only a suggestion."""
    names = archive_names(archive_key)
    middle = ":".join(names) if names else archive_key
    return f"{ORG}:{user[:LONGEST_USER]}:{middle}:{milliseconds}"


async def find(session: AsyncSession, task_id: UUID) -> Library | None:
    """What this restore has made, whatever became of it."""
    return (await session.exec(select(Library).where(col(Library.uuid) == task_id))).first()


async def create(
    session: AsyncSession, task_id: UUID, manifest: Manifest, *, user: str, now: datetime
) -> Library | None:
    """A new staged package; None when this task has made one already.

    It is known by its task, so that a task that runs again cannot make two.
    """
    milliseconds = int(now.timestamp() * 1000)
    for attempt in range(MOST_TRIES):
        key = package_ref(user, manifest.key, milliseconds + attempt)
        library = Library(
            uuid=task_id, key=key, org=ORG, slug=key, title=manifest.title,
            description=manifest.description, created=manifest.created, updated=manifest.updated,
            staged_by=user, staged_at=now,
        )  # fmt: skip
        try:
            async with session.begin_nested():
                session.add(library)
        except IntegrityError:
            if await find(session, task_id) is not None:
                return None
        else:
            return library
    raise RuntimeError("There is no free name for the package.")


async def take(
    session: AsyncSession, package: int, values: dict[str, Any], *, user: str
) -> Library:
    """Make a library of the caller's staged package; of two at once one succeeds.

    Its content stays where it is. Raises FieldRefused on `learning_package`.
    """
    known = 0 < package <= LARGEST_ID
    query = (
        select(Library)
        .where(
            col(Library.id) == (package if known else 0),
            col(Library.staged_by) == user,
            col(Library.staged_at).is_not(None),
        )
        .with_for_update()
    )
    library = (await session.exec(query)).first()
    if library is None:
        message = f'Invalid pk "{package}" - object does not exist.'
        raise FieldRefused("learning_package", [message])
    for name, value in values.items():
        if name != "created":
            setattr(library, name, value)
    library.staged_by = library.staged_at = None
    # The restore is told of among the library's own from now on.
    await session.exec(
        sql_update(LibraryTask)
        .where(col(LibraryTask.task_id) == library.uuid)
        .values(library_key=values["key"])
    )
    return library


async def discard(session: AsyncSession, task_id: UUID, *, user: str) -> UUID | None:
    """Remove the caller's package of this restore, unless it is a library by now.

    Returns what its files are kept under, to be removed after the commit.
    """
    gone = await session.exec(
        sql_delete(Library)
        .where(
            col(Library.uuid) == task_id,
            col(Library.staged_by) == user,
            col(Library.staged_at).is_not(None),
        )
        .returning(col(Library.uuid))
    )
    return gone.scalar_one_or_none()


async def expire(sessions: Sessions, files: Files, *, before: datetime) -> int:
    """Remove packages that nobody used, one at a time, with their files. Returns how many.

    One that somebody is making a library of at this moment stays.
    """
    count = 0
    for package in await _old(sessions, before):
        async with sessions.begin() as session:
            gone = await session.exec(
                sql_delete(Library)
                .where(col(Library.id) == package.id, col(Library.staged_at) < before)
                .returning(col(Library.uuid))
            )
            removed = gone.scalar_one_or_none()
        if removed is not None:
            await delete_files(sessions, files, removed)
            count += 1
    return count


async def _old(sessions: Sessions, before: datetime) -> Sequence[Library]:
    async with sessions() as session:
        query = select(Library).where(col(Library.staged_at) < before).order_by(col(Library.id))
        return (await session.exec(query)).all()


async def delete_files(sessions: Sessions, files: Files, task_id: UUID) -> None:
    """Remove what a restore stored and did not keep.

    Not while another run of the same restore stores the same files; the clean-up of files
    without records does it then.
    """
    async with sessions.begin() as session:
        if await media.try_to_own_files(session, task_id) and await find(session, task_id) is None:
            folder = f"{media.CONTENT}/{task_id}"
            await files.delete([path async for path in files.list(folder)])
