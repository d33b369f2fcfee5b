"""Routes of restoring an archive. contract: libraries §3.5 #3, #4"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import UploadFile

from services.libraries import restoring, staged, task_lists
from services.libraries.access import EditLibrary
from services.libraries.api import creator, settings_of
from services.libraries.importing import UploadRefused
from services.libraries.schemas import TaskStarted
from services.libraries.task_lists import Listed
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.problems import BadInput
from shared.uploads import chunks

router = APIRouter(prefix="/api/libraries/v2", tags=["import and backup"])


@router.post("/restore/")
async def start_restore(
    request: Request, session: SessionDep, caller: Annotated[Caller, Depends(creator)]
) -> TaskStarted:
    """Restore a backup archive, sent as the multipart part `file`, as a package of your own.

    When the task has ended, create a library with the package as its `learning_package`.
    """
    async with request.form() as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise UploadRefused("No file was submitted.")
        task_id = await restoring.start(
            session, request.app.state.files, chunks(upload), content_type=upload.content_type,
            caller=caller, now=utc_now(), limit=settings_of(request).max_upload_bytes,
        )  # fmt: skip
    return TaskStarted(task_id=str(task_id))


def restore_task(request: Request) -> UUID:
    """The `task_id` parameter. Raises BadInput."""
    text = request.query_params.get("task_id")
    try:
        return UUID(text or "")
    except ValueError:
        message = "Must be a valid UUID." if text else "This field is required."
        raise BadInput(f"task_id: {message}", fields={"task_id": [message]}) from None


@router.get("/restore/")
async def get_restore(
    caller: CallerDep,
    session: SessionDep,
    request: Request,
    task_id: Annotated[UUID, Depends(restore_task)],
) -> dict[str, Any]:
    """How far your restore `task_id` is, and when it is done what was in the archive."""
    clients = request.app.state.clients
    found = await restoring.status(session, clients, task_id, caller=caller)
    return {
        "state": found.state,
        "result": found.result,
        "error": found.error,
        "error_log": found.error_log,
    }


# Ours: what was asked for, and giving it up


@router.delete("/restore/", status_code=204)
async def cancel_restore(
    request: Request, caller: CallerDep, task_id: Annotated[UUID, Depends(restore_task)]
) -> None:
    """Stop your restore `task_id`, or remove the package it made that is no library yet."""
    state = request.app.state
    async with state.database.sessions.begin() as session:
        gone = await task_lists.cancel_restore(session, task_id, caller=caller)
    if gone is not None:
        await staged.delete_files(state.database.sessions, state.files, gone)


@router.get("/restores/")
async def list_restores(
    request: Request, caller: CallerDep, session: SessionDep, before: UUID | None = None
) -> list[Listed]:
    """Your restores that are no libraries yet, newest first; `before` is the last one seen."""
    return await task_lists.page(
        session, request.app.state.clients, restoring.listed_under(caller),
        settings_of(request), caller=caller, before=before,
    )  # fmt: skip


@router.get("/{lib_key}/backups/")
async def list_backups(
    request: Request,
    library: EditLibrary,
    caller: CallerDep,
    session: SessionDep,
    before: UUID | None = None,
) -> list[Listed]:
    """Your backups of a library, and the restore it came from, newest first."""
    return await task_lists.page(
        session, request.app.state.clients, library.key, settings_of(request),
        caller=caller, before=before,
    )  # fmt: skip


@router.delete("/{lib_key}/backups/{task_id}/", status_code=204)
async def cancel_backup(
    library: EditLibrary, task_id: UUID, caller: CallerDep, session: SessionDep
) -> None:
    """Stop a backup of yours. Nothing of it is kept; one that has ended stays."""
    await task_lists.cancel_backup(session, library, task_id, caller=caller)
