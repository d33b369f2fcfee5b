"""Backing up a library: the task, what it reads, and where its user finds the archive."""

import re
import unicodedata
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.runner import TaskContext
from services.libraries import libraries, media, people, work
from services.libraries.archive import write_archive
from services.libraries.archive_contents import Manifest
from services.libraries.errors import LibraryTaskUnknown
from services.libraries.exporting import Export
from services.libraries.models import Library
from services.user_tasks import client as user_tasks
from services.user_tasks.errors import StatusUnknown
from services.user_tasks.schemas import ARTIFACTS
from shared.callers import Caller
from shared.clients import ServiceClients
from shared.database import utc_now

FUNCTION = "backup_library"
NO_BACKUP = "No backup found for this library."
OUTPUT = "Output"
ZIP = "application/zip"


async def start(session: AsyncSession, library: Library, *, caller: Caller, now: datetime) -> UUID:
    """Ask for a backup in this transaction. The task's id."""
    task = work.request(
        FUNCTION,
        library.key,
        caller=caller,
        name=f"Library Learning Package Backup of {library.key}",
        task_type="library-backup",
        alone=False,
        repeatable=True,
    )
    await people.remember(session, caller, now=now)
    return await work.dispatch(session, task, caller=caller, now=now)


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """contract: libraries §3.5 #21"""

    state: str
    url: str | None


async def status(
    session: AsyncSession,
    clients: ServiceClients,
    library: Library,
    task_id: str,
    *,
    caller: Caller,
) -> BackupStatus:
    """How far the caller's backup of this library is.

    Raises LibraryTaskUnknown, also for others' tasks and for a backup without its archive.
    """
    known = await _own_backup(session, library, task_id, caller)
    try:
        view = await user_tasks.get_status(clients, known)
    except StatusUnknown:
        return BackupStatus("Pending", None)  # The news of it is still on its way.
    if view.base_state == "Succeeded":
        for artifact in view.artifacts:
            if artifact.name == OUTPUT:
                return BackupStatus("Succeeded", artifact.file)
        raise LibraryTaskUnknown(NO_BACKUP)
    # Existing clients go on asking while they read one of exactly two words.
    # Also while it begins anew after its worker was lost.
    under_way = view.base_state in ("In Progress", "Retrying")
    state = "Exporting" if under_way else view.base_state
    return BackupStatus(state, None)


async def _own_backup(
    session: AsyncSession, library: Library, task_id: str, caller: Caller
) -> UUID:
    try:
        wanted = UUID(task_id)
        await work.get(session, wanted, kind=FUNCTION, library_key=library.key, caller=caller)
    except (ValueError, LibraryTaskUnknown):
        raise LibraryTaskUnknown(NO_BACKUP) from None
    return wanted


async def backup_library(task: TaskContext, *, library_key: str) -> dict[str, Any]:
    """Write the library's archive into the object store, and show it to the user."""
    await task.progress.stage("Exporting")
    now = utc_now()
    name = file_name(library_key, now)
    path = f"{ARTIFACTS}/{now:%Y/%m/%d}/{task.task_id}-{task.attempt}/{name}"
    async with task.sessions() as session:
        library = await libraries.get(session, library_key)
        email = await people.email_of(session, task.user)
    async with task.sessions() as session:
        await session.connection(
            execution_options={
                "isolation_level": "REPEATABLE READ",
                "postgresql_readonly": True,
            }
        )
        # With the first look at the library: what it holds then is not cleaned up until the end.
        await media.use_files(session, library)
        library = await libraries.get(session, library_key)
        export = Export(session, task.files, library, task.progress)
        manifest = make_manifest(
            library, now, task.user or "", email, urlsplit(task.settings.origin_url).hostname or ""
        )
        await task.progress.total(await export.count())
        archive = write_archive(manifest, export.entities(), export.collections())
        async with aclosing(archive):
            stored = await task.files.put(path, archive)
    # If this fails, the file may still have been recorded; user_tasks removes it if it was not.
    await task.progress.artifact(
        OUTPUT, file=path, file_name=name, size=stored.size, content_type=ZIP
    )
    return {"file": path, "size": stored.size}


def file_name(library_key: str, now: datetime) -> str:
    """contract: libraries §6.1"""
    plain = unicodedata.normalize("NFKD", library_key.replace(":", "-"))
    words = re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode().lower())
    slug = re.sub(r"[-\s]+", "-", words).strip("-_")
    return f"{slug}-{now.astimezone(UTC):%Y-%m-%d-%H%M%S}.zip"


def make_manifest(library: Library, now: datetime, user: str, email: str, origin: str) -> Manifest:
    return Manifest(
        title=library.title,
        key=library.key,
        description=library.description,
        created=library.created,
        updated=library.updated,
        created_at=now,
        created_by=user,
        created_by_email=email,
        origin_server=origin,
    )
