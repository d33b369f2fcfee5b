"""Notes the dispatcher takes from other services."""

from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import created, reports, runs
from services.dispatcher.schemas import Created, Gone, TaskRequest, Updates
from services.dispatcher.waking import push_after_commit
from shared.database import utc_now
from shared.outbox import NoteHandler


class CancelRequest(BaseModel):
    """A person asked that a task stop."""

    task_id: UUID
    by: str | None = None


async def on_dispatch(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """Services asked for tasks."""
    requests = [TaskRequest.model_validate(payload) for payload in payloads]
    await runs.accept(session, requests, now=utc_now())


async def on_cancel_requested(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """People canceled their user tasks."""
    ids = [CancelRequest.model_validate(payload).task_id for payload in payloads]
    running = await runs.cancel(session, ids, now=utc_now())
    push_after_commit(session, running)


async def on_reports(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """Runs told of themselves while the dispatcher was away."""
    updates = [Updates.model_validate(payload) for payload in payloads]
    await reports.apply(session, updates, now=utc_now())


async def on_created(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """Tasks made something."""
    await created.add(session, [Created.model_validate(payload) for payload in payloads])


async def on_resource_gone(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """Things exist no more."""
    things = [Gone.model_validate(payload) for payload in payloads]
    await created.gone(session, things, now=utc_now())


NOTES: dict[str, NoteHandler] = {
    "on_reports": on_reports,
    "on_created": on_created,
    "on_resource_gone": on_resource_gone,
    "on_dispatch": on_dispatch,
    "on_cancel_requested": on_cancel_requested,
}
