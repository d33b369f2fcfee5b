"""Routes of long work on a library: import and backup. contract: libraries §3.5"""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile

from services.libraries import backup, importing, work
from services.libraries.access import EditLibrary
from services.libraries.api import settings_of
from services.libraries.errors import FieldRefused, LibraryTaskUnknown
from services.libraries.schemas import TaskStarted
from services.user_tasks import client as user_tasks
from services.user_tasks.errors import StatusUnknown
from shared.callers import CallerDep
from shared.database import SessionDep, utc_now
from shared.problems import BadInput
from shared.uploads import chunks

router = APIRouter(prefix="/api/libraries/v2", tags=["import and backup"])
REQUIRED = "This field is required."


def task_id_of(request: Request) -> UUID:
    """The `task_id` parameter. Raises FieldRefused without, LibraryTaskUnknown for nonsense."""
    text = request.query_params.get("task_id")
    if not text:
        raise FieldRefused("task_id", REQUIRED)
    try:
        return UUID(text)
    except ValueError as error:
        raise LibraryTaskUnknown(backup.NO_BACKUP) from error


@router.post("/{lib_key}/backup/")
async def start_backup(library: EditLibrary, caller: CallerDep, session: SessionDep) -> TaskStarted:
    """Write the library into an archive. Edits go on meanwhile; publishing all waits."""
    task_id = await backup.start(session, library, caller=caller, now=utc_now())
    return TaskStarted(task_id=str(task_id))


@router.get("/{lib_key}/backup/")
async def get_backup(
    request: Request, library: EditLibrary, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """How far your backup `task_id` is, and when it is done where the archive is."""
    found = await backup.status(
        session, request.app.state.clients, library, str(task_id_of(request)), caller=caller
    )
    return {"state": found.state, "url": found.url}


@router.post("/{lib_key}/import/")
async def start_import(
    request: Request, library: EditLibrary, caller: CallerDep, session: SessionDep
) -> TaskStarted:
    """Import OLX: a `.tar.gz` or `.zip` of a library, a course, or loose components.

    Sent as the multipart part `file`. Components that exist get a new version where they differ.
    """
    async with request.form() as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            message = "No file was submitted."
            raise BadInput(f"file: {message}", fields={"file": [message]})
        task_id = await importing.start(
            session, request.app.state.files, library, chunks(upload), caller=caller,
            now=utc_now(), limit=settings_of(request).max_upload_bytes,
        )  # fmt: skip
    return TaskStarted(task_id=str(task_id))


@router.get("/{lib_key}/import/")
async def get_import(
    request: Request, library: EditLibrary, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """How far your import `task_id` is, and its report when it has ended."""
    task_id = task_id_of(request)
    await work.get(
        session, task_id, kind=importing.FUNCTION, library_key=library.key, caller=caller
    )
    try:
        status = await user_tasks.get_status(request.app.state.clients, task_id)
    except StatusUnknown:
        return {"state": "Pending", "completed_steps": 0, "total_steps": 0, "report": None}
    texts = [artifact.text for artifact in status.artifacts if artifact.name == importing.REPORT]
    return {
        "state": status.state,
        "completed_steps": status.completed_steps,
        "total_steps": status.total_steps,
        "report": texts[-1] if texts else None,
    }
