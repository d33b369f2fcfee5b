"""Tasks as clients written for Pulp read, cancel and purge them. contract: dispatcher §5"""

from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response
from sqlmodel import col, select
from starlette.background import BackgroundTask

from services.dispatcher import artifacts, client, roles, runs, searching
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.filters import parameters, parse_selection, selected
from services.dispatcher.models import Task
from services.dispatcher.schemas import PurgeRequest
from services.dispatcher.searching import TASKS
from services.dispatcher.states import State
from services.dispatcher.views import full, href, minimal
from services.dispatcher.waking import push_after_commit
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.downloads import download
from shared.paging import windowed
from shared.problems import BadInput

router = APIRouter(prefix="/pulp/api/v3", tags=["tasks"])
PURGED_AFTER = timedelta(days=30)
ONLY_CANCELED = 'The only acceptable value for state is "canceled".'


def canceled_wanted(body: dict[str, Any]) -> None:
    if body.get("state") != "canceled":
        raise BadInput(ONLY_CANCELED, fields={"state": [ONLY_CANCELED]})


@router.get("/tasks/", operation_id="tasks_list", openapi_extra={"parameters": TASKS.parameters()})
async def list_tasks(request: Request, caller: CallerDep, session: SessionDep) -> JSONResponse:
    """Tasks you may see, newest first; administrators see all."""
    search = TASKS.parse(request.query_params.multi_items())
    tasks, count, related = await searching.find(session, search, caller=caller)
    rows = [
        selected(minimal(task) if search.minimal else full(task, related), search) for task in tasks
    ]
    page = windowed(request, rows, count=count, limit=search.limit, offset=search.offset)
    return JSONResponse(page)


@router.post("/tasks/purge/", status_code=202, operation_id="tasks_purge")
async def purge_tasks(
    caller: CallerDep, session: SessionDep, wanted: PurgeRequest | None = None
) -> dict[str, str | None]:
    """Remove the records of ended tasks; a task does it. By default: completed 30 days ago."""
    wanted = wanted or PurgeRequest()
    before = wanted.finished_before or _start_of_day(utc_now() - PURGED_AFTER)
    request = client.make_request(
        "purge",
        queue="dispatcher",
        kwargs={
            "finished_before": before.isoformat(),
            "states": ["completed"] if wanted.states is None else wanted.states,
            "username": None if caller.administrator else caller.username,
            "groups": [] if caller.administrator else list(caller.groups),
        },
        caller=caller,
    )
    await runs.accept(session, [request], now=utc_now())
    return {"task": href(request.id)}


def _start_of_day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


@router.get(
    "/tasks/{task_id}/",
    operation_id="tasks_read",
    openapi_extra={"parameters": parameters("fields", "exclude_fields", "minimal")},
)
async def read_task(
    request: Request, task_id: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """One task."""
    search = parse_selection(request.query_params.multi_items())
    task = await visible(session, task_id, caller)
    if search.minimal:
        return JSONResponse(selected(minimal(task), search))
    related = await searching.related_to(session, [task])
    return JSONResponse(selected(full(task, related), search))


@router.patch("/tasks/{task_id}/", operation_id="tasks_cancel")
async def cancel_task(
    task_id: UUID,
    caller: CallerDep,
    session: SessionDep,
    body: Annotated[dict[str, Any], Body()],
) -> JSONResponse:
    """Stop a task: send `{"state": "canceled"}`. 409, with the task, if it ended otherwise."""
    canceled_wanted(body)
    await visible(session, task_id, caller, permission=roles.CHANGE)
    running = await runs.cancel(session, [task_id], now=utc_now())
    push_after_commit(session, running)
    task = await session.get(Task, task_id, populate_existing=True)
    assert task is not None
    related = await searching.related_to(session, [task])
    stopping = task.state in (State.CANCELED, State.CANCELING)
    return JSONResponse(full(task, related, creator=False), 200 if stopping else 409)


@router.delete("/tasks/{task_id}/", status_code=204, operation_id="tasks_delete")
async def delete_task(
    request: Request, task_id: UUID, caller: CallerDep, session: SessionDep
) -> Response:
    """Remove the record of a task that has ended; 409 while it has not."""
    await visible(session, task_id, caller, permission=roles.DELETE)
    recorded = await artifacts.files_of(session, task_id)
    if not await runs.delete_finished(session, task_id):
        return Response(status_code=409)
    # After the commit: a record never names a file that is gone.
    removal = BackgroundTask(request.app.state.files.delete, recorded)
    return Response(status_code=204, background=removal)


@router.get("/tasks/{task_id}/profile_artifacts/", operation_id="tasks_profile_artifacts")
async def list_profile_artifacts(
    request: Request, task_id: UUID, caller: CallerDep, session: SessionDep
) -> dict[str, dict[str, str]]:
    """What was recorded about a task: links that work for a while, by name."""
    task = await visible(session, task_id, caller, permission=roles.PROFILES)
    settings = request.app.state.settings
    return {"urls": await artifacts.links(session, task.id, settings, now=utc_now())}


@router.get(
    "/tasks/{task_id}/profile_artifacts/{name}/", operation_id="tasks_profile_artifact_file"
)
async def download_profile_artifact(
    request: Request,
    task_id: UUID,
    name: str,
    session: SessionDep,
    expires: int = 0,
    signature: str = "",
) -> Response:
    """A recorded file, by its signed link."""
    found = await artifacts.by_link(
        session, task_id, name, expires=expires, signature=signature,
        settings=request.app.state.settings, now=utc_now(),
    )  # fmt: skip
    return await download(
        request,
        request.app.state.files,
        found.file,
        content_type=None,
        file_name=found.file.rpartition("/")[2],
    )


async def visible(
    session: SessionDep, task_id: UUID, caller: Caller, *, permission: str = roles.VIEW
) -> Task:
    """A task this caller may see, and do this with. Raises TaskUnknown, Forbidden."""
    may_see = await roles.permitted(session, caller, roles.VIEW)
    found = await session.exec(select(Task).where(col(Task.id) == task_id, may_see))
    task = found.first()
    if task is None:
        raise TaskUnknown("Not found.")
    if permission != roles.VIEW:
        await roles.require(session, caller, permission, kind=roles.TASK, thing=task)
    return task
