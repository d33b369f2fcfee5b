"""Finding tasks by what Pulp's clients filter on. contract: dispatcher §5.2"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import and_, exists, false, func, literal_column, select, text
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel import select as select_tasks
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.filters import (
    Condition,
    Filter,
    Search,
    Searchable,
    among_ids,
    dates,
    identities,
    matching,
    reference,
    refused,
    texts,
)
from services.dispatcher.models import CreatedResource, Task, TaskReport
from services.dispatcher.roles import VIEW, permitted
from services.dispatcher.states import State
from shared.callers import Caller

DOMAIN_ID = "00000000-0000-0000-0000-000000000000"
# In which forms a claim may stand in the record, by filter.
CLAIM_FORMS = {
    "reserved_resources": ("", "shared:"),
    "exclusive_resources": ("",),
    "shared_resources": ("shared:",),
}
# Addresses by which old clients name what belongs to the whole system. contract §1.5
OLD_ADDRESSES = {
    "/api/v3/distributions/": "distributions",
    "/api/v3/orphans/cleanup/": "orphans",
    "/api/v3/repair/": "repair",
    "/api/v3/servers/": "servers",
    "/api/v3/repositories/reclaim_space/": "reclaim_space",
}
# No task can claim more: 1,000 of each form, and its domain.
MOST_CLAIMS = 2001
OWN_HREF = re.compile(
    r"/pulp/api/v3/(tasks|task-groups|task-schedules|workers)/([0-9a-fA-F-]{36})/"
)
KINDS = {
    "tasks": "task",
    "task-groups": "taskgroup",
    "task-schedules": "taskschedule",
    "workers": "worker",
}


def task_id(value: str) -> UUID:
    """The id in an href or a PRN of a task. Raises ValueError."""
    return reference(value, "task", "tasks")


def resource_name(value: str) -> str:
    """A resource as it is claimed: addresses of ours stand for the names of what is there."""
    own = OWN_HREF.fullmatch(value)
    if own:
        return f"prn:core.{KINDS[own.group(1)]}:{own.group(2).lower()}"
    for address, word in OLD_ADDRESSES.items():
        if value in (address, f"/pulp{address}"):
            return f"pdrn:{DOMAIN_ID}:{word}"
    return value


def _state(value: str) -> State:
    try:
        return State(value)
    except ValueError as error:
        raise ValueError(
            f"Select a valid choice. {value} is not one of the available choices."
        ) from error


def _states(value: str) -> list[State]:
    return list(dict.fromkeys(_state(part) for part in value.split(",")))


def _claims(forms: Sequence[str], values: Sequence[str]) -> Condition:
    """All of these resources are claimed, each in one of the given forms."""
    record: Any = col(Task.reserved)
    names = list(dict.fromkeys(resource_name(value) for value in values))
    if len(names) > MOST_CLAIMS:
        return false()
    if len(forms) == 1:
        only: Condition = record.contains([forms[0] + name for name in names])
        return only
    return and_(*(record.overlap([form + name for form in forms]) for name in names))


def _resource_filters() -> dict[str, Filter]:
    filters: dict[str, Filter] = {}
    for name, forms in CLAIM_FORMS.items():
        filters[name] = partial(_one_claim, forms)
        filters[f"{name}__in"] = partial(_many_claims, forms)
    return filters


def _one_claim(forms: Sequence[str], value: str) -> Condition:
    return _claims(forms, [value])


def _many_claims(forms: Sequence[str], value: str) -> Condition:
    return _claims(forms, value.split(","))


def _related(column: Any, kind: str, collection: str, value: str) -> Condition:
    if value == "null":
        none: Condition = column.is_(None)
        return none
    same: Condition = column == reference(value, kind, collection)
    return same


def _with_child(value: str) -> Condition:
    child = aliased(Task)
    if value == "null":
        return ~exists().where(col(child.parent_id) == col(Task.id))
    parent = select(col(child.parent_id)).where(col(child.id) == task_id(value))
    return col(Task.id).in_(parent)


def _created(value: str) -> Condition:
    """Whether there is such a thing is seen in `_resolved`."""
    if not re.fullmatch(r"prn:.+|/.+", value):
        raise ValueError("URI or PRN not valid.")
    made = select(col(CreatedResource.task_id)).where(
        (col(CreatedResource.prn) == value) | (col(CreatedResource.href) == value)
    )
    return col(Task.id).in_(made)


_MISSING = text("""
    select value from unnest(cast(:values as text[])) as value
    where not exists (select from createdresource where prn = value or href = value)
""")


async def _resolved(session: AsyncSession, search: Search) -> None:
    """Raises BadInput, naming the parameter, for a created resource that no task ever made."""
    uses = [use for use in search.uses if use.filter == "created_resources"]
    if uses:
        values = {"values": [use.value for use in uses]}
        missing = set((await (await session.connection()).execute(_MISSING, values)).scalars())
        if wrong := {use.parameter for use in uses if use.value in missing}:
            raise refused(dict.fromkeys(sorted(wrong), "URI or PRN not found."))


TASKS = Searchable(
    filters={
        "state": lambda value: col(Task.state) == _state(value),
        "state__in": lambda value: col(Task.state).in_(_states(value)),
        "state__ne": lambda value: col(Task.state) != _state(value),
        **texts("name", col(Task.name), "contains", "in", "ne"),
        **texts("logging_cid", col(Task.logging_cid), "contains"),
        "parent_task": partial(_related, col(Task.parent_id), "task", "tasks"),
        "child_tasks": _with_child,
        "task_group": partial(_related, col(Task.group_id), "taskgroup", "task-groups"),
        "created_resources": _created,
        # Old clients still send it; a worker is not shown any more, so nothing matches.
        "worker": lambda value: col(Task.id).is_(None),
        "worker__in": lambda value: col(Task.id).is_(None),
        **identities("task", "tasks", col(Task.id)),
        **dates("pulp_created", col(Task.created_at)),
        **dates("unblocked_at", col(Task.unblocked_at)),
        **dates("started_at", col(Task.started_at)),
        **dates("finished_at", col(Task.finished_at)),
        **_resource_filters(),
    },
    order={
        "pulp_id": Task.id,
        "pulp_created": Task.created_at,
        "pulp_last_updated": Task.updated_at,
        "state": Task.state,
        "name": Task.name,
        "logging_cid": Task.logging_cid,
        "unblocked_at": Task.unblocked_at,
        "started_at": Task.started_at,
        "finished_at": Task.finished_at,
        "error": Task.error,
        "result": Task.result,
        "reserved_resources_record": Task.reserved,
        "versions": Task.versions,
        "profile_options": Task.profile_options,
        "immediate": Task.immediate,
        "deferred": Task.deferred,
        # The same for all.
        "pulp_api_version": literal_column("'v3'::text"),
    },
)


@dataclass
class Related:
    """What belongs to the tasks of a page, by task."""

    children: dict[UUID, list[UUID]] = field(default_factory=dict)
    reports: dict[UUID, list[TaskReport]] = field(default_factory=dict)
    created: dict[UUID, list[CreatedResource]] = field(default_factory=dict)


async def find(
    session: AsyncSession, search: Search, *, caller: Caller
) -> tuple[Sequence[Task], int, Related]:
    """The page of tasks this caller may see, how many there are in all, and what belongs to it.

    Raises BadInput for values that only the database can judge.
    """
    await _resolved(session, search)
    conditions = [*search.conditions, await permitted(session, caller, VIEW)]
    connection = await session.connection()
    async with matching(session, search):
        counted = await connection.execute(
            select(func.count()).select_from(Task).where(*conditions)
        )
        rows = await session.exec(
            select_tasks(Task)
            .where(*conditions)
            .order_by(*search.order, col(Task.created_at).desc(), col(Task.seq).desc())
            .limit(search.limit)
            .offset(search.offset)
        )
    tasks = rows.all()
    related = Related() if search.minimal else await related_to(session, tasks)
    return tasks, counted.scalar_one(), related


async def related_to(session: AsyncSession, tasks: Sequence[Task]) -> Related:
    """Children, reports and created resources of these tasks, in one statement each."""
    related, ids = Related(), [task.id for task in tasks]
    if not ids:
        return related
    connection = await session.connection()
    children = await connection.execute(
        select(col(Task.parent_id), col(Task.id))
        .where(among_ids(col(Task.parent_id), ids))
        .order_by(col(Task.seq))
    )
    for parent, child in children:
        if parent is not None:
            related.children.setdefault(parent, []).append(child)
    reports = await session.exec(
        select_tasks(TaskReport)
        .where(among_ids(col(TaskReport.task_id), ids))
        .order_by(col(TaskReport.place), col(TaskReport.id))
    )
    _gather(related.reports, reports, lambda row: row.task_id)
    created = await session.exec(
        select_tasks(CreatedResource)
        .where(among_ids(col(CreatedResource.task_id), ids))
        .order_by(col(CreatedResource.id))
    )
    _gather(related.created, created, lambda row: row.task_id)
    return related


def _gather(into: dict[UUID, list[Any]], rows: Any, key: Callable[[Any], UUID]) -> None:
    for row in rows:
        into.setdefault(key(row), []).append(row)
