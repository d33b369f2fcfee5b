"""How our own services call the dispatcher. Clients written for Pulp use `api_pulp`."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from services.dispatcher import assigning, explaining, reports, runs, workers
from services.dispatcher.schemas import (
    Exchange,
    ExchangeAnswer,
    Heartbeat,
    HeartbeatAnswer,
    ImmediateAnswer,
    ImmediateRequest,
    TaskRequest,
    TaskView,
    Updates,
)
from services.dispatcher.waking import push_after_commit
from shared.callers import ServiceDep
from shared.database import SessionDep, utc_now

router = APIRouter(prefix="/api/dispatcher/v1", tags=["services"])
MOST = 1000


@router.post("/tasks", status_code=202, response_model=list[UUID])
async def dispatch_tasks(
    request: Request,
    service: ServiceDep,
    tasks: Annotated[list[TaskRequest], Body(max_length=MOST)],
) -> Response:
    """Accept tasks. Once answered, each will reach exactly one final state.

    Sent again with the same ids, nothing is stored twice.
    """
    accepted: Sequence[UUID] = await request.app.state.accepting.add(tasks)
    return _json(list(accepted), 202)


@router.post("/tasks/immediate")
async def dispatch_immediately(
    request: ImmediateRequest, service: ServiceDep, session: SessionDep
) -> ImmediateAnswer:
    """Accept a task and run it in the calling process, if its resources are free."""
    answer = await assigning.run_immediately(session, request, now=utc_now())
    if answer.known:
        answer.task = await explaining.view(session, request.task.id)
    return answer


@router.get("/tasks/{task_id}", response_model=TaskView)
async def show_task(request: Request, task_id: UUID, service: ServiceDep) -> Response:
    """One task as services see it; while it waits, what for."""
    async with request.app.state.connections.acquire() as connection:
        found = await explaining.view_json(connection, task_id)
    return Response(found, media_type="application/json")


@router.post("/tasks/{task_id}/cancel")
async def cancel_task(task_id: UUID, service: ServiceDep, session: SessionDep) -> TaskView:
    """Ask a task to stop; one that has ended stays as it is."""
    running = await runs.cancel(session, [task_id], now=utc_now())
    push_after_commit(session, running)
    return await explaining.view(session, task_id)


@router.post("/workers/{worker_id}/exchange", response_model=ExchangeAnswer)
async def exchange(
    request: Request, worker_id: UUID, exchange: Exchange, service: ServiceDep
) -> Response:
    """A worker reports ends and takes as many ready tasks as it has room for.

    When this is answered, the resources of what ended are free and the new runs are its own.
    """
    answers = await request.app.state.exchanging.add([(worker_id, exchange)])
    return _json(answers[0])


@router.post("/reports", status_code=204)
async def take_reports(updates: Updates, service: ServiceDep, session: SessionDep) -> None:
    """A run tells of itself: its parts, its share of its group's counts, what was recorded."""
    await reports.apply(session, [updates], now=utc_now())


@router.post("/workers/{worker_id}/heartbeat")
async def take_heartbeat(
    worker_id: UUID, report: Heartbeat, service: ServiceDep, session: SessionDep
) -> HeartbeatAnswer:
    """A process is alive."""
    return await workers.heartbeat(session, worker_id, report, now=utc_now())


@router.post("/workers/{worker_id}/leave", status_code=204)
async def leave(worker_id: UUID, service: ServiceDep, session: SessionDep) -> None:
    """A process stops in good order."""
    await workers.leave(session, worker_id)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
