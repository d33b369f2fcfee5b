"""User tasks as the wire shows them. contract: user_tasks §5.2, §5.3"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, estimates, trees
from services.user_tasks.models import Artifact, Status
from services.user_tasks.schemas import ArtifactView, StatusView
from services.user_tasks.settings import Settings
from services.user_tasks.states import State

API = "/api/tasks/v0"


def shown_state(status: Status) -> str:
    """The state's word, or the stage the running job named."""
    if status.state is State.IN_PROGRESS and status.stage:
        return status.stage
    return status.state.value


def moment(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def status_json(status: Status, mine: Sequence[Artifact], settings: Settings) -> dict[str, Any]:
    """The compatible form, with `uuid` added so that a list can be addressed."""
    return {
        "name": status.name,
        "state": shown_state(status),
        "state_text": shown_state(status),
        "completed_steps": min(status.completed_steps, status.total_steps),
        "total_steps": status.total_steps,
        "attempts": status.attempts,
        "created": moment(status.created),
        "modified": moment(status.modified),
        "artifacts": [
            f"{settings.origin_url}{API}/artifacts/{artifact.uuid}/" for artifact in mine
        ],
        "uuid": str(status.uuid),
    }


def artifact_json(artifact: Artifact, settings: Settings, *, now: datetime) -> dict[str, Any]:
    """The compatible form; `file` is a link that works for a while."""
    return {
        "name": artifact.name,
        "created": moment(artifact.created),
        "modified": moment(artifact.modified),
        "status": f"{settings.origin_url}{API}/tasks/{artifact.status_id}/",
        "file": artifacts.link(artifact, settings, now=now),
        "text": artifact.text,
        "url": artifact.url,
        "uuid": str(artifact.uuid),
    }


def artifact_view(artifact: Artifact, settings: Settings, *, now: datetime) -> ArtifactView:
    """Our own form."""
    return ArtifactView(
        **artifact.model_dump(exclude={"file"}),
        summary=artifact.summary,
        file=artifacts.link(artifact, settings, now=now),
    )


def status_view(
    status: Status,
    mine: Sequence[Artifact],
    settings: Settings,
    *,
    now: datetime,
    eta: float | None = None,
) -> StatusView:
    """Our own form."""
    return StatusView(
        **status.model_dump(include=SAME),
        state=shown_state(status),
        base_state=status.state.value,
        completed_steps=min(status.completed_steps, status.total_steps),
        parent=status.parent_id,
        root=status.root_id,
        eta_seconds=eta,
        heartbeat_at=status.reported_at,
        artifacts=[artifact_view(artifact, settings, now=now) for artifact in mine],
    )


async def status_views(
    session: AsyncSession, rows: Sequence[Status], settings: Settings, *, now: datetime
) -> list[StatusView]:
    """Our own form of several tasks, with as many statements as of one."""
    mine = await artifacts.of_statuses(session, [row.uuid for row in rows])
    left = await estimates.etas(session, rows, now=now)
    views = [
        status_view(row, mine[row.uuid], settings, now=now, eta=left.get(row.uuid)) for row in rows
    ]
    holders = {view.uuid: view for view in views if view.is_container}
    children = await trees.children(session, list(holders))
    failures = await trees.failures(session, list(holders))
    for uuid, view in holders.items():
        view.children_by_state, view.failures = children[uuid], failures[uuid]
    return views


SAME = {
    "uuid", "user", "name", "stage", "total_steps", "attempts", "task_class", "task_type",
    "error", "created", "modified", "started_at", "finished_at", "kind", "is_container",
    "members", "rate", "canceled_by", "parameters",
}  # fmt: skip
