"""How our own services call the dispatcher. Clients written for Pulp use `api_pulp`."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Request

from services.dispatcher import runs, workers
from services.dispatcher.errors import TaskUnknown
from services.dispatcher.models import Task
from services.dispatcher.pushing import push_after_commit
from services.dispatcher.schemas import (
    FinishAnswer,
    FinishReport,
    Heartbeat,
    HeartbeatAnswer,
    StartAnswer,
    StartReport,
    TaskRequest,
    TaskView,
)
from shared.callers import ServiceDep
from shared.database import SessionDep, utc_now

router = APIRouter(prefix="/api/dispatcher/v1", tags=["services"])
MOST = 1000


@router.post("/tasks", status_code=202)
async def dispatch_tasks(
    request: Request,
    service: ServiceDep,
    tasks: Annotated[list[TaskRequest], Body(max_length=MOST)],
) -> list[UUID]:
    """Accept tasks. Once answered, each will reach exactly one final state.

    Sent again with the same ids, nothing is stored twice.
    """
    accepted: list[UUID] = await request.app.state.accepting.add(tasks)
    return accepted


@router.post("/starts")
async def start_tasks(
    request: Request,
    service: ServiceDep,
    reports: Annotated[list[StartReport], Body(max_length=MOST)],
) -> list[StartAnswer]:
    """A worker asks whether it may run these. Without a fence it may not."""
    answers: list[StartAnswer] = await request.app.state.starting.add(reports)
    return answers


@router.post("/finishes")
async def finish_tasks(
    request: Request,
    service: ServiceDep,
    reports: Annotated[list[FinishReport], Body(max_length=MOST)],
) -> list[FinishAnswer]:
    """A worker reports ends; resources are free when this is answered."""
    answers: list[FinishAnswer] = await request.app.state.finishing.add(reports)
    return answers


@router.get("/tasks/{task_id}", response_model=TaskView)
async def show_task(task_id: UUID, service: ServiceDep, session: SessionDep) -> Task:
    """One task as services see it."""
    task = await session.get(Task, task_id)
    if task is None:
        raise TaskUnknown()
    return task


@router.post("/tasks/{task_id}/cancel", response_model=TaskView)
async def cancel_task(task_id: UUID, service: ServiceDep, session: SessionDep) -> Task:
    """Ask a task to stop; one that has ended stays as it is."""
    running = await runs.cancel(session, [task_id], now=utc_now())
    push_after_commit(session, running)
    task = await session.get(Task, task_id)
    if task is None:
        raise TaskUnknown()
    return task


@router.post("/workers/{worker_id}/heartbeat")
async def take_heartbeat(
    worker_id: UUID, report: Heartbeat, service: ServiceDep, session: SessionDep
) -> HeartbeatAnswer:
    """A worker is alive."""
    return await workers.heartbeat(session, worker_id, report, now=utc_now())


@router.post("/workers/{worker_id}/leave", status_code=204)
async def leave(worker_id: UUID, service: ServiceDep, session: SessionDep) -> None:
    """A worker stops in good order."""
    await workers.leave(session, worker_id)
