"""How the other services tell people what becomes of their tasks."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks.errors import StatusUnknown  # noqa: F401  (known here, so raised again)
from services.user_tasks.schemas import (
    ArtifactReport,
    Lifecycle,
    ProgressReport,
    StatusView,
)
from shared import outbox
from shared.clients import ServiceClients

SERVICE = "user_tasks"


async def lifecycle_many(
    session: AsyncSession, notes: Sequence[Lifecycle | dict[str, Any]]
) -> None:
    """Tell, in this transaction, that tasks came into states (as Lifecycle or its JSON)."""
    await outbox.send_many(session, SERVICE, "on_lifecycle", notes)


async def progress_later(session: AsyncSession, reports: Sequence[ProgressReport]) -> None:
    """Tell, in this transaction, how far runs are."""
    await outbox.send_many(session, SERVICE, "on_progress", reports)


async def progress(clients: ServiceClients, reports: Sequence[ProgressReport]) -> None:
    """Tell at once how far runs are. Raises Unavailable."""
    await _post(clients, "on_progress", reports)


async def artifact(clients: ServiceClients, report: ArtifactReport) -> None:
    """Keep a result; it is kept when this returns. Raises Unavailable."""
    await _post(clients, "on_artifact", [report])


async def _post(clients: ServiceClients, name: str, reports: Sequence[BaseModel]) -> None:
    notes: list[dict[str, Any]] = [
        {"id": number, "name": name, "payload": report.model_dump(mode="json")}
        for number, report in enumerate(reports)
    ]
    await clients.post(SERVICE, f"/{SERVICE}/notes", {"notes": notes}, attempts=1)


async def get_status(clients: ServiceClients, task_id: UUID) -> StatusView:
    """A user task as it is now. Raises StatusUnknown."""
    return StatusView.model_validate(await clients.get(SERVICE, f"/api/tasks/v1/tasks/{task_id}/"))


async def get_statuses(clients: ServiceClients, task_ids: Sequence[UUID]) -> list[StatusView]:
    """Those of up to 200 user tasks that are known, as they are now, with one request."""
    if not task_ids:
        return []
    found = await clients.get(
        SERVICE, "/api/tasks/v1/tasks/", uuid=[str(one) for one in task_ids], limit=len(task_ids)
    )
    return [StatusView.model_validate(one) for one in found["results"]]
