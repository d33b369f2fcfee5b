"""Task schedules over HTTP: to read for everyone who may, to change for administrators.

contract: dispatcher §5.5
"""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import func
from sqlalchemy import select as select_count
from sqlmodel import col, select

from services.dispatcher import roles, schedules
from services.dispatcher.filters import (
    Searchable,
    dates,
    identities,
    parameters,
    parse_selection,
    selected,
    texts,
)
from services.dispatcher.models import TaskSchedule
from services.dispatcher.schemas import ScheduleRequest
from services.dispatcher.views import schedule as view
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.paging import windowed
from shared.problems import Forbidden

router = APIRouter(prefix="/pulp/api/v3/task-schedules", tags=["task schedules"])
own_router = APIRouter(prefix="/api/dispatcher/v1/task-schedules", tags=["task schedules"])

FULL_NAME: Any = col(TaskSchedule.queue) + "." + col(TaskSchedule.task_name)
SCHEDULES = Searchable(
    filters={
        **texts("name", col(TaskSchedule.name), "contains"),
        **texts("task_name", FULL_NAME, "contains"),
        **identities("taskschedule", "task-schedules", col(TaskSchedule.id)),
        **dates("pulp_created", col(TaskSchedule.created_at)),
    },
    order={
        "pulp_id": TaskSchedule.id,
        "pulp_created": TaskSchedule.created_at,
        "name": TaskSchedule.name,
        "task_name": TaskSchedule.task_name,
        "next_dispatch": TaskSchedule.next_dispatch,
        "dispatch_interval": TaskSchedule.dispatch_interval,
    },
)


@router.get(
    "/",
    operation_id="task_schedules_list",
    openapi_extra={"parameters": SCHEDULES.parameters()},
)
async def list_schedules(request: Request, caller: CallerDep, session: SessionDep) -> JSONResponse:
    """Schedules you may see, newest first."""
    search = SCHEDULES.parse(request.query_params.multi_items())
    may_see = await roles.permitted(session, caller, roles.VIEW_SCHEDULE, kind=roles.SCHEDULE)
    conditions = [*search.conditions, may_see]
    connection = await session.connection()
    counted = await connection.execute(
        select_count(func.count()).select_from(TaskSchedule).where(*conditions)
    )
    rows = await session.exec(
        select(TaskSchedule)
        .where(*conditions)
        .order_by(*search.order, col(TaskSchedule.created_at).desc(), col(TaskSchedule.id).desc())
        .limit(search.limit)
        .offset(search.offset)
    )
    shown = [selected(view(row), search) for row in rows]
    count = counted.scalar_one()
    return JSONResponse(
        windowed(request, shown, count=count, limit=search.limit, offset=search.offset)
    )


@router.get(
    "/{schedule_id}/",
    operation_id="task_schedules_read",
    openapi_extra={"parameters": parameters("fields", "exclude_fields")},
)
async def read_schedule(
    request: Request, schedule_id: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """One schedule."""
    search = parse_selection(request.query_params.multi_items())
    may_see = await roles.permitted(session, caller, roles.VIEW_SCHEDULE, kind=roles.SCHEDULE)
    found = await schedules.get(session, schedule_id, conditions=[may_see])
    return JSONResponse(selected(view(found), search))


@own_router.post("/", status_code=201)
async def make_schedule(
    wanted: ScheduleRequest, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Dispatch a task at a time, or again and again. For administrators."""
    _administrator(caller)
    return view(await schedules.create(session, wanted, now=utc_now()))


@own_router.put("/{schedule_id}/")
async def change_schedule(
    schedule_id: UUID, wanted: ScheduleRequest, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Change a schedule. For administrators."""
    _administrator(caller)
    return view(await schedules.change(session, schedule_id, wanted, now=utc_now()))


@own_router.delete("/{schedule_id}/", status_code=204)
async def remove_schedule(schedule_id: UUID, caller: CallerDep, session: SessionDep) -> None:
    """Remove a schedule; its tasks stay. For administrators."""
    _administrator(caller)
    await schedules.remove(session, schedule_id)


def _administrator(caller: Caller) -> None:
    if not caller.administrator:
        raise Forbidden
