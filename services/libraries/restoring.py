"""Restoring an archive: the upload, the task that stages it, and what its user is told.

contract: libraries §3.5, §6.2; content_core §4.9 to §4.11
"""

import asyncio
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client as dispatcher
from services.dispatcher.runner import TaskContext
from services.dispatcher.schemas import UserTaskSpec
from services.dispatcher.states import FINAL, State
from services.libraries import media, staged, work
from services.libraries.archive_contents import FORMAT_VERSION, Manifest
from services.libraries.archive_reading import ArchiveContents, ArchiveInvalid, read_archive
from services.libraries.archive_tables import UNKNOWN_TIME
from services.libraries.importing import UploadRefused
from services.libraries.models import Library
from services.libraries.restored_contents import Restore, counts
from services.libraries.settings import Settings
from services.libraries.views import moment
from services.user_tasks import client as user_tasks
from services.user_tasks.errors import StatusUnknown
from services.user_tasks.schemas import ARTIFACTS, StatusView
from shared import outbox
from shared.callers import Caller
from shared.clients import ServiceClients
from shared.database import utc_now
from shared.files import Files, TooBig, spool
from shared.problems import BadInput, Problem

FUNCTION = "restore_library"
UPLOADS = "library_restore"
ZIP = "application/zip"
RESULT, ERROR_LOG = "Library Restore", "Error log"
ONLY_ZIP = "Only ZIP files are allowed."
FAILED = "Library restore failed. See error log for details."
UNEXPECTED = "Unexpected error during library restore: "
TEXT = "text/plain; charset=utf-8"


class RestoreFailed(BadInput):
    """The archive was not restored; the task's log says why."""

    type, title = "restore-failed", "Error(s) restoring learning package"


# Asking for it, and how far it is


async def start(
    session: AsyncSession,
    files: Files,
    upload: AsyncIterable[bytes],
    *,
    content_type: str | None,
    caller: Caller,
    now: datetime,
    limit: int,
) -> UUID:
    """Keep the upload and ask for its restore, in this transaction. The task's id.

    Raises UploadRefused for what is not sent as a zip or is too large; nothing is kept then.
    """
    if content_type != ZIP:
        raise UploadRefused(ONLY_ZIP)
    task = dispatcher.make_request(
        FUNCTION, queue="libraries", kwargs={}, caller=caller, repeatable=True
    )
    # Named after its task, so that what a lost restore leaves behind can be told.
    path = f"{UPLOADS}/{task.id}"
    task.arguments["upload"] = path
    task.user_task = UserTaskSpec(
        name=f"Library Learning Package Restore of {path}",
        total_steps=1,
        task_type="library-restore",
        parameters={},
    )
    try:
        await files.put(path, upload, limit=limit)
    except TooBig as error:
        raise UploadRefused(error.detail) from error
    try:
        where = listed_under(caller)
        await work.record(session, task, caller=caller, now=now, library_key=where)
        await outbox.send(session, dispatcher.SERVICE, "on_dispatch", task)
        return task.id
    except BaseException:
        await files.delete([path])
        raise


def listed_under(caller: Caller) -> str:
    """In the place of a library's key, until the restore has become one."""
    return f"{staged.ORG}:{caller.username}"


@dataclass(frozen=True, slots=True)
class RestoreStatus:
    """contract: libraries §3.5 #4"""

    state: str
    result: dict[str, Any] | None = None
    error: str | None = None
    error_log: str | None = None


async def status(
    session: AsyncSession, clients: ServiceClients, task_id: UUID, *, caller: Caller
) -> RestoreStatus:
    """How far the caller's restore is. Raises LibraryTaskUnknown."""
    await work.get(session, task_id, kind=FUNCTION, library_key=None, caller=caller)
    try:
        view = await user_tasks.get_status(clients, task_id)
    except StatusUnknown:
        return RestoreStatus("Pending")  # The news of it is still on its way.
    return described(view)


def described(view: StatusView) -> RestoreStatus:
    newest = {artifact.name: artifact for artifact in view.artifacts}
    if view.base_state == "Failed":
        log = newest.get(ERROR_LOG)
        return RestoreStatus("Failed", error=FAILED, error_log=log.file if log else None)
    if view.base_state == "Succeeded":
        text = newest[RESULT].text if RESULT in newest else ""
        try:
            return RestoreStatus("Succeeded", result=_result(orjson.loads(text)))
        except (ValueError, KeyError, TypeError):
            error = f"Could not decode artifact JSON. Artifact Text: {text}"
            return RestoreStatus("Succeeded", error=error)
    # Existing clients go on asking while they read one of exactly two words.
    state = "In Progress" if view.base_state == "Retrying" else view.base_state
    return RestoreStatus(state)


def _result(stored: dict[str, Any]) -> dict[str, Any]:
    """The stored result in the words of the wire. contract: libraries §3.5 #4"""
    package, backup = stored["lp_restored_data"], stored["backup_metadata"]
    created_at = backup["created_at"]
    return {
        "learning_package_id": package["id"],
        "title": package["title"],
        "org": package["archive_org_code"] or staged.UNKNOWN,
        "slug": package["archive_package_code"] or staged.UNKNOWN,
        "key": package["package_ref"],
        "archive_key": package["archive_package_ref"],
        "containers": package["num_containers"],
        "components": package["num_components"],
        "collections": package["num_collections"],
        "sections": package["num_sections"],
        "subsections": package["num_subsections"],
        "units": package["num_units"],
        "created_on_server": backup["original_server"],
        "created_at": moment(datetime.fromisoformat(created_at)) if created_at else None,
        "created_by": {"username": backup["created_by"], "email": backup["created_by_email"]},
    }


# The task


async def restore_library(task: TaskContext, *, upload: str) -> dict[str, Any]:
    """Make a staged package of an uploaded archive: all of it, or nothing and a log.

    May run again: a second run finds what the first one has made. The upload is removed at every
    end; only while another run may still need it, it waits for the clean-up.
    """
    try:
        result = await _staged(task, upload)
        if result is not None:
            await task.progress.artifact(RESULT, text=orjson.dumps(result).decode())
    except Exception as error:
        await _drop(task)
        await _tell(task, error)
        await task.files.delete([upload])
        raise RestoreFailed from error
    except asyncio.CancelledError:
        if await _is_over(task):
            await task.files.delete([upload])
            await _drop(task)
        else:
            await staged.delete_files(task.sessions, task.files, task.task_id)
        raise
    await task.files.delete([upload])
    return {} if result is None else {"learning_package": result["lp_restored_data"]["id"]}


async def _staged(task: TaskContext, upload: str) -> dict[str, Any] | None:
    """The result, or None when an earlier run has told it: then it removed the upload too."""
    if task.user is None:
        raise BadInput("The restore has no user.")
    if task.attempt > 1 and not await task.files.exists(upload):
        async with task.sessions() as session:
            if await staged.find(session, task.task_id) is not None:
                return None
    async with _opened(task, upload) as contents:
        await task.progress.stage("Restoring")
        async with task.sessions.begin() as session:
            package = await _write(task, session, contents, user=task.user)
            return _described(package, contents)


@asynccontextmanager
async def _opened(task: TaskContext, upload: str) -> AsyncIterator[ArchiveContents]:
    """The archive, unpacked and understood, for the time of the restore."""
    settings = _settings(task)
    await task.progress.stage("Unpacking")
    with tempfile.TemporaryDirectory(prefix="lyceum-") as folder:
        source = Path(folder) / "upload"
        await spool(task.files.stream(upload), source, limit=settings.max_upload_bytes)
        await task.progress.stage("Reading")
        contents = await asyncio.to_thread(
            read_archive, source, settings.archive_limits, task.progress.check
        )
    with contents:
        await task.progress.total(len(contents.entities) + len(contents.collections))
        yield contents


async def _write(
    task: TaskContext, session: AsyncSession, contents: ArchiveContents, *, user: str
) -> Library:
    most = _settings(task).most_blocks
    if contents.entities.count_drafts() > most:
        raise ArchiveInvalid(f"Library cannot have more than {most} Components.")
    now = utc_now()
    manifest = contents.manifest
    package = await staged.create(session, task.task_id, manifest, user=user, now=now)
    if package is None:
        known = await staged.find(session, task.task_id)
        assert known is not None
        await task.progress.advance(len(contents.entities) + len(contents.collections))
        return known
    await media.use_files(session, package)
    restore = Restore(session, task.files, package, task.progress, user, now)
    await restore.write(contents)
    return package


def _described(package: Library, contents: ArchiveContents) -> dict[str, Any]:
    """contract: content_core §4.11"""
    manifest = contents.manifest
    org, code = staged.archive_names(manifest.key) or (None, None)
    return {
        "status": "success",
        "log_file_error": None,
        "lp_restored_data": {
            "id": package.id,
            "package_ref": package.key,
            "archive_package_ref": manifest.key,
            "archive_org_code": org,
            "archive_package_code": code,
            "title": manifest.title,
            **counts(contents),
        },
        "backup_metadata": _backup_metadata(manifest),
    }


def _backup_metadata(manifest: Manifest) -> dict[str, Any]:
    known = manifest.created_at != UNKNOWN_TIME
    return {
        "format_version": FORMAT_VERSION,
        "created_by": manifest.created_by or None,
        "created_by_email": manifest.created_by_email or None,
        "created_at": manifest.created_at.isoformat() if known else None,
        "original_server": manifest.origin_server or None,
    }


async def _tell(task: TaskContext, error: Exception) -> None:
    """Keep the log of all that is wrong. contract: libraries §6.2"""
    if isinstance(error, ArchiveInvalid):
        text = error.log
    else:
        # Only the text of a Problem is known to be meant for people.
        why = error.detail if isinstance(error, Problem) else type(error).__name__
        text = f"{UNEXPECTED}{why}\n"
    name = f"{task.task_id}-error.log"
    path = f"{ARTIFACTS}/{utc_now():%Y/%m/%d}/{task.task_id}-{task.attempt}/{name}"
    stored = await task.files.put(path, text.encode())
    await task.progress.artifact(
        ERROR_LOG, file=path, file_name=name, size=stored.size, content_type=TEXT
    )


async def _drop(task: TaskContext) -> None:
    """Leave nothing of this restore: no package that nobody was told of, and no files."""
    if task.user is not None:
        async with task.sessions.begin() as session:
            await staged.discard(session, task.task_id, user=task.user)
    await staged.delete_files(task.sessions, task.files, task.task_id)


async def _is_over(task: TaskContext) -> bool:
    """Whether somebody canceled the task, so that no other run of it will need the upload."""
    with suppress(Problem):
        state = (await dispatcher.get_task(task.clients, task.task_id)).state
        return state in FINAL or state is State.CANCELING
    return False


def _settings(task: TaskContext) -> Settings:
    assert isinstance(task.settings, Settings)
    return task.settings
