"""Notes user_tasks takes from other services."""

from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, statuses
from services.user_tasks.schemas import ArtifactReport, Lifecycle, ProgressReport
from shared.database import utc_now
from shared.outbox import NoteHandler


async def on_lifecycle(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """Tasks came into states."""
    news = [Lifecycle.model_validate(payload) for payload in payloads]
    await statuses.record_lifecycle(session, news, now=utc_now())


async def on_progress(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """Runs tell how far they are."""
    reports = [ProgressReport.model_validate(payload) for payload in payloads]
    await statuses.record_progress(session, reports, now=utc_now())


async def on_artifact(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
    """Runs left results."""
    reports = [ArtifactReport.model_validate(payload) for payload in payloads]
    await artifacts.record(session, reports, now=utc_now())


NOTES: dict[str, NoteHandler] = {
    "on_lifecycle": on_lifecycle,
    "on_progress": on_progress,
    "on_artifact": on_artifact,
}
