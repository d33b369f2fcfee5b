"""User tasks over HTTP: the compatible routes (v0) and our own (v1). contract: user_tasks §5"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from services.user_tasks import artifacts, permissions, statuses
from services.user_tasks.errors import ArtifactUnknown
from services.user_tasks.models import Status
from services.user_tasks.settings import Settings
from services.user_tasks.views import artifact_json, status_json
from shared.callers import Caller, CallerDep, caller
from shared.database import SessionDep, utc_now
from shared.downloads import download
from shared.problems import Forbidden, MethodNotAllowed

router = APIRouter(tags=["user tasks"])
V0 = "/api/tasks/v0"
ROWS = 500


def settings_of(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


@router.head(f"{V0}/tasks/", include_in_schema=False)
@router.get(f"{V0}/tasks/", operation_id="tasks_list")
async def list_tasks(request: Request, caller: CallerDep) -> StreamingResponse:
    """All your tasks, newest first, as a bare array; superusers see everyone's."""
    return StreamingResponse(_task_rows(request, caller), media_type="application/json")


async def _task_rows(request: Request, caller: Caller) -> AsyncIterator[bytes]:
    # The array has no end in the contract: it is sent page by page, never held whole.
    after: tuple[datetime, UUID] | None = None
    separator = b"["
    while True:
        async with request.app.state.database.sessions() as session:
            rows = await statuses.page(
                session, conditions=permissions.owned_by(caller), size=ROWS, after=after
            )
            mine = await artifacts.of_statuses(session, [row.uuid for row in rows])
        for row in rows:
            yield separator + orjson.dumps(status_json(row, mine[row.uuid], settings_of(request)))
            separator = b","
        if len(rows) < ROWS:
            break
        after = (rows[-1].created, rows[-1].uuid)
    yield b"[]" if separator == b"[" else b"]"


@router.head(f"{V0}/tasks/{{uuid}}/", include_in_schema=False)
@router.get(f"{V0}/tasks/{{uuid}}/", operation_id="tasks_read")
async def read_task(
    request: Request, uuid: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """One of your tasks."""
    status = await statuses.get(session, uuid, caller=caller)
    return await _shown(request, session, status)


@router.delete(f"{V0}/tasks/{{uuid}}/", status_code=204, operation_id="tasks_delete")
async def delete_task(
    request: Request,
    uuid: UUID,
    caller: CallerDep,
    session: SessionDep,
    afterwards: BackgroundTasks,
) -> None:
    """Remove a task and what it left. Work still under way is asked to stop."""
    paths = await statuses.delete(session, uuid, caller=caller, now=utc_now())
    afterwards.add_task(request.app.state.files.delete, paths)


@router.post(f"{V0}/tasks/{{uuid}}/cancel/", operation_id="tasks_cancel")
async def cancel_task(
    request: Request, uuid: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """Stop a task. One that has ended stays as it is, and is answered all the same."""
    status, changed = await statuses.cancel(session, uuid, caller=caller, now=utc_now())
    return await _shown(request, session, status, changed=changed)


async def _shown(
    request: Request, session: SessionDep, status: Status, **more: Any
) -> JSONResponse:
    mine = await artifacts.of_statuses(session, [status.uuid])
    return JSONResponse(status_json(status, mine[status.uuid], settings_of(request)) | more)


@router.head(f"{V0}/artifacts/", include_in_schema=False)
@router.get(f"{V0}/artifacts/", operation_id="artifacts_list")
async def list_artifacts(request: Request, caller: CallerDep) -> StreamingResponse:
    """What your tasks left, newest first, as a bare array."""
    return StreamingResponse(_artifact_rows(request, caller), media_type="application/json")


async def _artifact_rows(request: Request, caller: Caller) -> AsyncIterator[bytes]:
    after: tuple[datetime, UUID] | None = None
    separator = b"["
    while True:
        async with request.app.state.database.sessions() as session:
            rows = await artifacts.page(
                session, conditions=permissions.owned_by(caller), size=ROWS, after=after
            )
        for row in rows:
            shown = artifact_json(row, settings_of(request), now=utc_now())
            yield separator + orjson.dumps(shown)
            separator = b","
        if len(rows) < ROWS:
            break
        after = (rows[-1].created, rows[-1].uuid)
    yield b"[]" if separator == b"[" else b"]"


@router.head(f"{V0}/artifacts/{{uuid}}/", include_in_schema=False)
@router.get(f"{V0}/artifacts/{{uuid}}/", operation_id="artifacts_read")
async def read_artifact(
    request: Request, uuid: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """One artifact; `file` is a link that works for a while without a token."""
    artifact = await artifacts.get(session, uuid, caller=caller)
    return JSONResponse(artifact_json(artifact, settings_of(request), now=utc_now()))


@router.head(f"{V0}/artifacts/{{uuid}}/file", include_in_schema=False)
@router.get(f"{V0}/artifacts/{{uuid}}/file", operation_id="artifacts_file")
async def download_artifact(
    request: Request,
    uuid: UUID,
    session: SessionDep,
    expires: Annotated[int | None, Query(ge=0, le=2**40)] = None,
    signature: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The file itself, by its signed link or with a token; ranges are supported."""
    if expires is None:
        artifact = await artifacts.get(session, uuid, caller=await caller(request))
    else:
        artifact = await artifacts.by_link(
            session, uuid, expires=expires, signature=signature, settings=settings_of(request),
            now=utc_now(),
        )  # fmt: skip
    if artifact.file is None:
        raise ArtifactUnknown("This artifact has no file.")
    return await download(
        request,
        request.app.state.files,
        artifact.file,
        content_type=artifact.content_type,
        file_name=artifact.file_name or artifact.file.rpartition("/")[2],
    )


def _options(allowed: str) -> Response:
    return Response(headers={"Allow": allowed})


@router.options(f"{V0}/tasks/", include_in_schema=False)
@router.options(f"{V0}/tasks/{{uuid}}/", include_in_schema=False)
async def task_options(request: Request, caller: CallerDep) -> Response:
    one = "uuid" in request.path_params
    return _options("GET, DELETE, HEAD, OPTIONS" if one else "GET, HEAD, OPTIONS")


@router.options(f"{V0}/tasks/{{uuid}}/cancel/", include_in_schema=False)
async def cancel_options(request: Request, caller: CallerDep) -> Response:
    return _options("POST, OPTIONS")


@router.options(f"{V0}/artifacts/", include_in_schema=False)
@router.options(f"{V0}/artifacts/{{uuid}}/", include_in_schema=False)
async def artifact_options(request: Request, caller: CallerDep) -> Response:
    return _options("GET, HEAD, OPTIONS")


@router.api_route(f"{V0}/tasks/", methods=["POST", "DELETE"], include_in_schema=False)
@router.post(f"{V0}/tasks/{{uuid}}/", include_in_schema=False)
@router.api_route(
    f"{V0}/tasks/{{uuid}}/cancel/", methods=["GET", "HEAD", "DELETE"], include_in_schema=False
)
async def no_such_method(request: Request, caller: CallerDep) -> None:
    """contract: user_tasks §5.6: 405 for anyone who is known."""
    raise MethodNotAllowed(f'Method "{request.method}" not allowed.')


@router.api_route(f"{V0}/tasks/", methods=["PUT", "PATCH"], include_in_schema=False)
@router.api_route(f"{V0}/tasks/{{uuid}}/", methods=["PUT", "PATCH"], include_in_schema=False)
@router.api_route(f"{V0}/tasks/{{uuid}}/cancel/", methods=["PUT", "PATCH"], include_in_schema=False)
@router.api_route(
    f"{V0}/artifacts/", methods=["POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
)
@router.api_route(
    f"{V0}/artifacts/{{uuid}}/",
    methods=["POST", "PUT", "PATCH", "DELETE"],
    include_in_schema=False,
)
async def not_for_you(request: Request, caller: CallerDep) -> None:
    """contract: user_tasks §5.6: 403, and 405 for superusers, who miss no permission."""
    if not caller.superuser:
        raise Forbidden
    raise MethodNotAllowed(f'Method "{request.method}" not allowed.')
