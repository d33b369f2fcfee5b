"""How fast a task is and when it will be done. contract: user_tasks §10.1"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks.models import Status
from services.user_tasks.states import State
from shared.database import driver

NEWEST = 0.3
ENOUGH = 0.02
LAST = 50
MOST_CHILDREN = 5000


def rate(
    row: Mapping[str, Any], completed: int, at: datetime
) -> tuple[float | None, datetime | None]:
    """Steps per second, weighted towards the newest, and since when it holds.

    None until there are two samples of this attempt, or two percent are done.
    """
    steps = completed - row["completed_steps"]
    if row["rate_at"] is None:
        enough = row["total_steps"] > 0 and completed / row["total_steps"] >= ENOUGH
        began = row["started_at"]
        if not (enough and began is not None and at > began and completed > 0):
            return None, at
        return completed / (at - began).total_seconds(), at
    seconds = (at - row["rate_at"]).total_seconds()
    if steps <= 0 or seconds <= 0:
        return row["rate"], row["rate_at"]
    now = steps / seconds
    before = row["rate"]
    return (now if before is None else NEWEST * now + (1 - NEWEST) * before), at


_MEDIANS = """
select wanted.task_type, percentile_cont(0.5) within group (
         order by extract(epoch from last.finished_at - last.started_at)) as seconds
from unnest($1::text[]) as wanted (task_type)
cross join lateral (
  select started_at, finished_at from status
  where status.task_type = wanted.task_type and state = 'Succeeded' and not is_container
    and started_at is not null
  order by finished_at desc limit $2) as last
group by wanted.task_type
"""
_CHILDREN = """
select uuid, parent_id, is_container, kind, members, state, task_type, completed_steps,
       total_steps, rate, rate_at, started_at
from status where root_id = any($1::uuid[]) order by created, uuid limit $2
"""


async def etas(
    session: AsyncSession, statuses: Sequence[Status], *, now: datetime
) -> dict[UUID, float]:
    """Seconds left, for those tasks of which it can be said; two statements at most."""
    going = [status for status in statuses if not status.state.final]
    if not going:
        return {}
    connection = await driver(session)
    rows: list[Mapping[str, Any]] = [status.model_dump() for status in going]
    roots = [status.root_id for status in going if status.is_container]
    if roots:
        rows += await connection.fetch(_CHILDREN, roots, MOST_CHILDREN)
    types = sorted({row["task_type"] for row in rows if row["task_type"]})
    medians = {
        row["task_type"]: float(row["seconds"])
        for row in await connection.fetch(_MEDIANS, types, LAST)
        if row["seconds"] is not None
    }
    return _all(rows, medians, now)


def _all(
    rows: Sequence[Mapping[str, Any]], medians: Mapping[str, float], now: datetime
) -> dict[UUID, float]:
    by_id = {row["uuid"]: row for row in rows}
    children: dict[UUID, list[Mapping[str, Any]]] = {}
    for row in by_id.values():
        if row["parent_id"] is not None:
            children.setdefault(row["parent_id"], []).append(row)
    found: dict[UUID, float] = {}
    for uuid, row in by_id.items():
        seconds = eta(row, children, medians, now)
        if seconds is not None:
            found[uuid] = seconds
    return found


def eta(
    row: Mapping[str, Any],
    children: Mapping[UUID, Sequence[Mapping[str, Any]]],
    medians: Mapping[str, float],
    now: datetime,
) -> float | None:
    """Seconds left of one task: by its rate, else by what its kind usually takes.

    Members of a group run beside each other, links of a chain and the two parts of a chord one
    after another.
    """
    if State(row["state"]).final:
        return 0.0
    if row["is_container"]:
        left = [eta(child, children, medians, now) for child in children.get(row["uuid"], ())]
        known = [seconds for seconds in left if seconds is not None]
        if not known or len(known) < max(len(left), row["members"] or 0):
            return None
        return max(known) if row["kind"] == "group" else sum(known)
    remaining = max(0, row["total_steps"] - row["completed_steps"])
    if row["rate"] and row["rate_at"] is not None:
        since: timedelta = now - row["rate_at"]
        return max(0.0, float(remaining / row["rate"]) - since.total_seconds())
    usual = medians.get(row["task_type"])
    if usual is None:
        return None
    elapsed = (now - row["started_at"]) if row["started_at"] else timedelta(0)
    return max(0.0, usual - elapsed.total_seconds())
