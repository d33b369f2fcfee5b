"""Tasks, groups, schedules and workers as clients written for Pulp see them.

contract: dispatcher §5.2, §5.4, §5.5, §5.6
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

from services.dispatcher.models import (
    GroupReport,
    Task,
    TaskGroup,
    TaskReport,
    TaskSchedule,
    Worker,
)
from services.dispatcher.searching import Related
from services.dispatcher.states import State

API = "/pulp/api/v3"
UNAVAILABLE = "<unavailable>"


def href(task_id: UUID | None) -> str | None:
    return f"{API}/tasks/{task_id}/" if task_id else None


def group_href(group_id: UUID | None) -> str | None:
    return f"{API}/task-groups/{group_id}/" if group_id else None


def _user_href(username: str | None) -> str | None:
    return f"{API}/users/{quote(username, safe='@')}/" if username is not None else None


def moment(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value else None


def _identity(
    collection: str, kind: str, ident: UUID, created: datetime, updated: datetime
) -> dict[str, Any]:
    return {
        "pulp_href": f"{API}/{collection}/{ident}/",
        "prn": f"prn:core.{kind}:{ident}",
        "pulp_created": moment(created),
        "pulp_last_updated": moment(updated),
    }


def minimal(task: Task) -> dict[str, Any]:
    """The fields of `minimal=true`."""
    return _identity("tasks", "task", task.id, task.created_at, task.updated_at) | {
        "pulp_api_version": "v3",
        "name": task.name,
        "state": task.state.value,
        "unblocked_at": moment(task.unblocked_at),
        "started_at": moment(task.started_at),
        "finished_at": moment(task.finished_at),
        "worker": None,
    }


def full(task: Task, related: Related, *, creator: bool = True) -> dict[str, Any]:
    """All fields; who created it only where the contract shows it (DI-60)."""
    created = related.created.get(task.id, ())
    return minimal(task) | {
        "logging_cid": task.logging_cid,
        "created_by": _user_href(task.username) if creator else None,
        "error": task.error,
        "parent_task": href(task.parent_id),
        "child_tasks": [href(child) for child in related.children.get(task.id, ())],
        "task_group": group_href(task.group_id),
        "progress_reports": [report(row) for row in related.reports.get(task.id, ())],
        "created_resources": [UNAVAILABLE if row.gone else row.href for row in created],
        "created_resource_prns": [UNAVAILABLE if row.gone else row.prn for row in created],
        "reserved_resources_record": task.reserved,
        "result": task.result,
    }


def report(row: TaskReport) -> dict[str, Any]:
    return {
        "message": row.message,
        "code": row.code,
        "state": row.state.value,
        "total": row.total,
        "done": row.done,
        "suffix": row.suffix,
    }


def group(
    row: TaskGroup,
    counts: Mapping[str, int],
    reports: Sequence[tuple[GroupReport, int, int]],
    tasks: Sequence[Task],
) -> dict[str, Any]:
    """contract: dispatcher §5.4"""
    return {
        "pulp_href": group_href(row.id),
        "prn": f"prn:core.taskgroup:{row.id}",
        "description": row.description,
        "all_tasks_dispatched": row.all_tasks_dispatched,
        **{state.value: counts.get(state.value, 0) for state in State},
        "group_progress_reports": [
            {
                "message": one.message,
                "code": one.code,
                "total": one.total + total,
                "done": done,
                "suffix": one.suffix,
            }
            for one, done, total in reports
        ],
        "tasks": [minimal(task) for task in tasks],
    }


def schedule(row: TaskSchedule) -> dict[str, Any]:
    """contract: dispatcher §5.5"""
    identity = _identity("task-schedules", "taskschedule", row.id, row.created_at, row.updated_at)
    return identity | {
        "name": row.name,
        "task_name": f"{row.queue}.{row.task_name}",
        "dispatch_interval": duration(row.dispatch_interval),
        "next_dispatch": moment(row.next_dispatch),
        "last_task": href(row.last_task_id),
    }


def duration(value: timedelta | None) -> str | None:
    """Days, hours, minutes and seconds, as `1 02:03:04`."""
    if value is None:
        return None
    seconds = value.seconds
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    fraction = f".{value.microseconds:06}" if value.microseconds else ""
    return f"{value.days} {clock}{fraction}" if value.days else f"{clock}{fraction}"


def worker(row: Worker, current: UUID | None) -> dict[str, Any]:
    """contract: dispatcher §5.6"""
    identity = _identity("workers", "worker", row.id, row.started_at, row.last_heartbeat)
    return identity | {
        "name": row.name,
        "last_heartbeat": moment(row.last_heartbeat),
        "versions": row.versions,
        "current_task": href(current),
    }
