"""Tasks as clients written for Pulp read and cancel them. contract: dispatcher §5"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response

from services.dispatcher import runs, searching
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.models import Task
from services.dispatcher.states import State
from services.dispatcher.views import full, minimal, selected
from services.dispatcher.waking import push_after_commit
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.paging import windowed
from shared.problems import BadInput

router = APIRouter(prefix="/pulp/api/v3", tags=["tasks"])

QUERY_PARAMETERS = {
    "parameters": [
        {"name": name, "in": "query", "schema": {"type": "string"}, "description": about}
        for name, about in searching.PARAMETERS.items()
    ]
}


@router.get("/tasks/", operation_id="tasks_list", openapi_extra=QUERY_PARAMETERS)
async def list_tasks(request: Request, caller: CallerDep, session: SessionDep) -> JSONResponse:
    """Tasks you may see, newest first; administrators see all."""
    search = searching.parse(request.query_params.multi_items())
    tasks, count, children = await searching.find(session, search, caller=caller)
    rows = [
        selected(minimal(task) if search.minimal else full(task, children), search)
        for task in tasks
    ]
    page = windowed(request, rows, count=count, limit=search.limit, offset=search.offset)
    return JSONResponse(page)


@router.get("/tasks/{task_id}/", operation_id="tasks_read")
async def read_task(
    request: Request, task_id: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """One task."""
    search = searching.parse(request.query_params.multi_items(), only_selection=True)
    task = await visible(session, task_id, caller)
    children = await searching.children_of(session, [task.id])
    view = minimal(task) if search.minimal else full(task, children)
    return JSONResponse(selected(view, search))


@router.patch("/tasks/{task_id}/", operation_id="tasks_cancel")
async def cancel_task(
    task_id: UUID,
    caller: CallerDep,
    session: SessionDep,
    body: Annotated[dict[str, Any], Body()],
) -> JSONResponse:
    """Stop a task: send `{"state": "canceled"}`. 409, with the task, if it ended otherwise."""
    if body.get("state") != "canceled":
        message = 'The only acceptable value for state is "canceled".'
        raise BadInput(message, fields={"state": [message]})
    await visible(session, task_id, caller)
    running = await runs.cancel(session, [task_id], now=utc_now())
    push_after_commit(session, running)
    task = await session.get(Task, task_id, populate_existing=True)
    assert task is not None
    children = await searching.children_of(session, [task.id])
    stopping = task.state in (State.CANCELED, State.CANCELING)
    return JSONResponse(full(task, children, creator=False), 200 if stopping else 409)


@router.delete("/tasks/{task_id}/", status_code=204, operation_id="tasks_delete")
async def delete_task(task_id: UUID, caller: CallerDep, session: SessionDep) -> Response:
    """Remove the record of a task that has ended; 409 while it has not."""
    await visible(session, task_id, caller)
    deleted = await runs.delete_finished(session, task_id)
    return Response(status_code=204 if deleted else 409)


async def visible(session: SessionDep, task_id: UUID, caller: Caller) -> Task:
    """The task, for its owner and administrators. Raises TaskUnknown, also for others' tasks."""
    task = await session.get(Task, task_id)
    if task is None or not (caller.administrator or task.username == caller.username):
        raise TaskUnknown("Not found.")
    return task
