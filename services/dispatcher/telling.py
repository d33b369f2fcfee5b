"""What user_tasks is told of a task, in the same transaction as each change of its state."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.schemas import TaskRequest
from services.dispatcher.states import USER_STATES, State
from services.user_tasks import client as user_tasks

# What a statement that changes states must return of each task for `tell`.
TOLD = "id, seq, state, name, username, user_task, attempt, error, chain_id, queue"


async def tell(session: AsyncSession, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Leave a note for each task that a person sees."""
    notes = [
        _lifecycle(
            row["id"], row["state"], row["name"], row["username"], row["user_task"],
            row["attempt"], row["error"], now,
        )
        for row in rows
        if row["user_task"] is not None
    ]  # fmt: skip
    await user_tasks.lifecycle_many(session, notes)


async def tell_accepted(
    session: AsyncSession, requests: Sequence[TaskRequest], now: datetime
) -> None:
    """Leave a note for each new task that a person sees."""
    notes = [
        _lifecycle(
            request.id, State.WAITING, request.name, request.username,
            request.user_task.model_dump(), 1, None, now,
        )
        for request in requests
        if request.user_task is not None
    ]  # fmt: skip
    await user_tasks.lifecycle_many(session, notes)


def _lifecycle(
    task_id: Any,
    state: str,
    name: str,
    username: str | None,
    spec: Mapping[str, Any],
    attempt: int,
    error: Mapping[str, Any] | None,
    now: datetime,
) -> dict[str, Any]:
    repeated = state == State.WAITING and attempt > 1
    message = (error or {}).get("description") or (error or {}).get("reason")
    return {
        "task_id": str(task_id),
        "state": "Retrying" if repeated else USER_STATES[State(state)],
        "at": now.isoformat(),
        "attempt": attempt,
        "error": {"code": (error or {}).get("code", "failed"), "message": message}
        if message
        else None,
        "user": username,
        "name": spec["name"],
        "task_class": name,
        "task_type": spec.get("task_type", ""),
        "total_steps": spec.get("total_steps", 1),
        "containers": _plain(spec.get("containers") or []),
    }


def _plain(containers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**container, "id": str(container["id"])} for container in containers]
