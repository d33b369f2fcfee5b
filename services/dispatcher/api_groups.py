"""Task groups over HTTP. contract: dispatcher §5.4"""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse

from services.dispatcher import canceling, groups
from services.dispatcher.api_pulp import canceled_wanted
from services.dispatcher.filters import Search, number, parameters, parse_selection, selected
from services.dispatcher.groups import UNFINISHED
from services.dispatcher.models import TaskGroup
from services.dispatcher.schemas import CancelAnswer, CancelRequest, GroupRequest
from services.dispatcher.views import group as view
from shared import ids
from shared.callers import AnyCallerDep, Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.paging import windowed
from shared.problems import BadInput, Forbidden

router = APIRouter(prefix="/pulp/api/v3/task-groups", tags=["task groups"])
own_router = APIRouter(prefix="/api/dispatcher/v1", tags=["task groups"])


@router.get(
    "/",
    operation_id="task_groups_list",
    openapi_extra={"parameters": parameters("limit", "offset", "fields", "exclude_fields")},
)
async def list_groups(request: Request, caller: CallerDep, session: SessionDep) -> JSONResponse:
    """Groups with a task you may see, oldest first. Other parameters than paging do nothing."""
    limit, offset = _window(request, "limit", 100, 1), _window(request, "offset", 0, 0)
    rows, count = await groups.page(session, caller=caller, limit=limit, offset=offset)
    search = parse_selection(request.query_params.multi_items())
    shown = await _shown(session, rows, search)
    return JSONResponse(windowed(request, shown, count=count, limit=limit, offset=offset))


def _window(request: Request, name: str, default: int, least: int) -> int:
    value = request.query_params.get(name)
    try:
        return default if value is None else number(value, least=least)
    except ValueError as error:
        raise BadInput(f"{name}: {error}", fields={name: [str(error)]}) from error


async def _shown(
    session: SessionDep, rows: Sequence[TaskGroup], search: Search
) -> list[dict[str, Any]]:
    found = await groups.contents(session, rows, members=search.shows("tasks"))
    views = [
        view(
            row, found.counts.get(row.id, {}), found.reports.get(row.id, []),
            found.tasks.get(row.id, []),
        )
        for row in rows
    ]  # fmt: skip
    return [selected(one, search) for one in views]


@router.get(
    "/{group_id}/",
    operation_id="task_groups_read",
    openapi_extra={"parameters": parameters("fields", "exclude_fields")},
)
async def read_group(
    request: Request, group_id: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """One group with its tasks."""
    search = parse_selection(request.query_params.multi_items())
    group = await groups.get(session, group_id, caller=caller)
    return JSONResponse((await _shown(session, [group], search))[0])


@router.patch("/{group_id}/", operation_id="task_groups_cancel")
async def cancel_group(
    group_id: UUID,
    caller: CallerDep,
    session: SessionDep,
    body: Annotated[dict[str, Any], Body()],
) -> JSONResponse:
    """Stop all tasks of a group: send `{"state": "canceled"}`."""
    canceled_wanted(body)
    group = await groups.get(session, group_id, caller=caller)
    await groups.cancel(session, group, caller=caller, now=utc_now())
    shown = (await _shown(session, [group], Search()))[0]
    left = any(shown[state.value] for state in UNFINISHED)
    return JSONResponse(shown, 409 if left else 200)


@own_router.post("/task-groups/", status_code=201)
async def make_group(
    wanted: GroupRequest, caller: AnyCallerDep, session: SessionDep
) -> dict[str, str]:
    """Make a group to dispatch tasks into. With an id of yours, twice makes one."""
    _privileged(caller)
    group_id = wanted.id or ids.new_id()
    await groups.create(
        session, group_id, description=wanted.description, username=caller.username, now=utc_now()
    )
    return {"id": str(group_id), "pulp_href": f"/pulp/api/v3/task-groups/{group_id}/"}


@own_router.post("/task-groups/{group_id}/finish", status_code=204)
async def finish_group(group_id: UUID, caller: AnyCallerDep, session: SessionDep) -> None:
    """No more tasks will be dispatched into this group."""
    _privileged(caller)
    await groups.finish(session, group_id, now=utc_now())


@own_router.post("/tasks/cancel")
async def cancel_tasks(
    wanted: CancelRequest, caller: CallerDep, session: SessionDep
) -> CancelAnswer:
    """Stop many tasks: those named, or those of yours a filter finds. Says what became of each."""
    return await canceling.cancel_many(session, wanted, caller=caller, now=utc_now())


def _privileged(caller: Caller) -> None:
    if not (caller.service or caller.administrator):
        raise Forbidden
