"""A task as clients written for Pulp see it. contract: dispatcher §5.2"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from services.dispatcher.models import Task
from services.dispatcher.searching import Search

Children = Mapping[UUID, Sequence[UUID]]


def href(task_id: UUID | None) -> str | None:
    return f"/pulp/api/v3/tasks/{task_id}/" if task_id else None


def moment(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value else None


def minimal(task: Task) -> dict[str, Any]:
    """The fields of `minimal=true`."""
    return {
        "pulp_href": href(task.id),
        "prn": f"prn:core.task:{task.id}",
        "pulp_created": moment(task.created_at),
        "pulp_last_updated": moment(task.updated_at),
        "pulp_api_version": "v3",
        "name": task.name,
        "state": task.state.value,
        "unblocked_at": moment(task.unblocked_at),
        "started_at": moment(task.started_at),
        "finished_at": moment(task.finished_at),
        "worker": None,
    }


def full(task: Task, children: Children, *, creator: bool = True) -> dict[str, Any]:
    """All fields; who created it only where the contract shows it (DI-60)."""
    shown = creator and task.username is not None
    return minimal(task) | {
        "logging_cid": task.logging_cid,
        "created_by": f"/pulp/api/v3/users/{task.username}/" if shown else None,
        "error": task.error,
        "parent_task": href(task.parent_id),
        "child_tasks": [href(child) for child in children.get(task.id, ())],
        "task_group": None,
        "progress_reports": [],
        "created_resources": [],
        "created_resource_prns": [],
        "reserved_resources_record": task.reserved,
        "result": task.result,
    }


def selected(view: dict[str, Any], search: Search) -> dict[str, Any]:
    """Only the fields that were asked for."""
    if search.fields:
        return {name: value for name, value in view.items() if name in search.fields}
    return {name: value for name, value in view.items() if name not in search.without}
