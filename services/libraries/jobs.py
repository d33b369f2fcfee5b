"""Dispatched functions of libraries; import and backup have modules of their own."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.general import call_of
from services.dispatcher.runner import TaskContext
from services.libraries import libraries, library_versions, permissions, publishing
from services.libraries.libraries import Hold
from services.libraries.library_versions import EVERYTHING, Change
from services.libraries.models import Library, LibraryVersion
from services.libraries.states import Permission
from services.libraries.version_resources import VERSIONS
from shared.database import utc_now


async def publish_library(task: TaskContext, *, library_key: str) -> dict[str, int]:
    """Publish every unpublished change of a library."""
    await task.progress.stage("Publishing")
    async with task.sessions.begin() as session:
        library = await libraries.get(session, library_key)
        await publishing.hold(session, library, task.fence)
        count = await publishing.publish_all(session, library, user=task.user, now=utc_now())
    await task.progress.advance()
    return {"published": count}


async def delete_library(
    task: TaskContext, *, library_key: str, library_id: int | None = None
) -> None:
    """Remove a library and then its files. Done already is done.

    A library that was made under the same key meanwhile is another one, and stays.
    """
    async with task.sessions.begin() as session:
        library = await libraries.find(session, library_key, Hold.GOES)
        if library is not None and library_id not in (None, library.id):
            library = None
        if library is not None:
            await publishing.hold(session, library, task.fence)
            await libraries.delete(session, library)
    if library is not None:
        await libraries.delete_files(task.files, library)
    await task.progress.advance()


async def make_library_version(
    task: TaskContext,
    *,
    library_key: str,
    administrator: bool = False,
    groups: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Make the next library version of what is published; None when nothing is different."""
    await task.progress.stage("Making a version")
    async with task.sessions.begin() as session:
        library = await _held(task, session, library_key, administrator, groups)
        made = await library_versions.snapshot(session, library, user=task.user, now=utc_now())
        return await _made(task, session, library, made)


async def add_and_remove(
    task: TaskContext,
    *,
    library_key: str,
    add_content_units: Sequence[str] = (),
    remove_content_units: Sequence[str] = (),
    base_version: int | None = None,
    overwrite: bool = True,
    administrator: bool = False,
    groups: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Make the next library version from another one. contract: dispatcher §6.7"""
    await task.progress.stage("Making a version")
    change = Change(
        add=[UUID(unit) for unit in add_content_units],
        remove=[unit if unit == EVERYTHING else UUID(unit) for unit in remove_content_units],
        base=base_version,
        overwrite=overwrite,
    )
    async with task.sessions.begin() as session:
        library = await _held(task, session, library_key, administrator, groups)
        made = await library_versions.add_and_remove(
            session, library, change, user=task.user, now=utc_now()
        )
        return await _made(task, session, library, made)


async def _held(
    task: TaskContext,
    session: AsyncSession,
    library_key: str,
    administrator: bool,
    groups: Sequence[str],
) -> Library:
    library = await libraries.get(session, library_key)
    caller = call_of(task, session, administrator, groups).caller
    await permissions.require(session, library, caller, Permission.PUBLISH)
    await publishing.hold(session, library, task.fence)
    return library


async def _made(
    task: TaskContext, session: AsyncSession, library: Library, made: LibraryVersion | None
) -> dict[str, Any] | None:
    await task.progress.advance()
    if made is None:
        return None
    ident = VERSIONS.ident((library, made))
    await task.created(session, VERSIONS.prn(ident), VERSIONS.href(ident))
    return VERSIONS.view(library, made, None)
