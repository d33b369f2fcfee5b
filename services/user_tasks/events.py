"""Changes of user tasks, kept in the order in which they were committed, for those who follow.

contract: user_tasks §10.2
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import estimates
from services.user_tasks.states import FINAL, State
from shared.database import after_commit, driver

LOCK = 7120043
CHANNEL = "lyceum:user-tasks"
PRUNED = 5000
# Not shown to anyone: those who follow as this person must ask again.
UNWATCHED = "watcher.removed"

_APPEND = """
insert into event (status_id, root_id, "user", kind, payload, at)
select r.status_id, r.root_id, r."user", r.kind, r.payload, r.at
from jsonb_to_recordset($1::jsonb) as r (
  place int, status_id uuid, root_id uuid, "user" text, kind text, payload jsonb, at timestamptz)
order by r.place
"""


@dataclass(frozen=True)
class Change:
    """One task's values before and after a transaction."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    # It was made in this transaction: nobody has seen how it was before.
    new: bool = False
    # Who asked for its cancel.
    by: str | None = None


async def append(
    session: AsyncSession,
    changes: Sequence[Change],
    added: Sequence[Mapping[str, Any]] = (),
    *,
    now: datetime,
) -> None:
    """Keep what happened. To be called last: other writers wait until this one has committed.

    That wait is what makes the order of ids the order of commits, so that a reader who has seen
    one id has seen all before it. A final state is kept exactly once, because it is entered once.
    Artifacts that were added, as for `artifacts_added`, come before the end of their tasks.
    """
    left = [_artifact(one, now) for one in added]
    rows = []
    for change in changes:
        for row in _events(change, now):
            if row["kind"] == "task.finished":
                rows += [one for one in left if one["status_id"] == row["status_id"]]
                left = [one for one in left if one["status_id"] != row["status_id"]]
            rows.append(row)
    await _keep(session, rows + left)


async def artifacts_added(
    session: AsyncSession, added: Sequence[Mapping[str, Any]], *, now: datetime
) -> None:
    """Tell of new artifacts: each has uuid, name, kind, and its task's status_id, root_id, user."""
    await _keep(session, [_artifact(one, now) for one in added])


def _artifact(one: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    shown = {"artifact": str(one["uuid"]), "name": one["name"], "kind": one["kind"]}
    return _row(one, "task.artifact", shown, now)


async def watcher_removed(
    session: AsyncSession, status: Mapping[str, Any], username: str, *, now: datetime
) -> None:
    """Let every process end what this person follows, so that it is asked again what they may."""
    await _keep(session, [_row(status, UNWATCHED, {"username": username}, now)])


async def _keep(session: AsyncSession, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    for place, row in enumerate(rows):
        row["place"] = place
    connection = await session.connection()
    await connection.execute(text(f"select pg_advisory_xact_lock({LOCK})"))
    await (await driver(session)).execute(_APPEND, orjson.dumps(rows, default=str).decode())
    wake = session.info.get("stream_wake")
    if wake is not None:
        after_commit(session, wake)


def _row(
    of: Mapping[str, Any], kind: str, payload: dict[str, Any], now: datetime
) -> dict[str, Any]:
    return {
        "status_id": of.get("status_id") or of["uuid"],
        "root_id": of["root_id"],
        "user": of["user"],
        "kind": kind,
        "payload": payload,
        "at": now,
    }


def _events(change: Change, now: datetime) -> list[dict[str, Any]]:
    before, after = change.before, change.after
    if before["deleted_at"] is not None:
        return []
    kinds = _kinds(change)
    # Also of a task that is deleted while it runs the end is told, once, and then the removal.
    if after["deleted_at"] is not None:
        kinds = [kind for kind in kinds if kind in LAST] + ["task.deleted"]
    shown = payload(after, now) if kinds else {}
    return [_row(after, kind, shown | _details(kind, change), now) for kind in kinds]


LAST = ("task.cancel_requested", "task.finished")


def _kinds(change: Change) -> list[str]:
    before, after = change.before, change.after
    kinds = ["task.created"] if change.new else []
    was, state = State(before["state"]), State(after["state"])
    reported = after["reported_at"] != before["reported_at"]
    if state in FINAL:
        if was in FINAL:
            return kinds
        # It may have begun, come some way and ended since it was last looked at.
        if before["started_at"] is None and after["started_at"] is not None:
            kinds.append("task.started")
        if reported:
            kinds += _advances(before, after)
        asked = ["task.cancel_requested"] if change.by is not None else []
        return [*kinds, *asked, "task.finished"]
    if state is not was:
        kinds.append("task.retrying" if state is State.RETRYING else "task.started")
    elif after["attempts"] > before["attempts"]:
        kinds.append("task.retrying")
    return kinds if change.new and not reported else kinds + _advances(before, after)


def _advances(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    counts = ("completed_steps", "total_steps", "name")
    staged = after["stage"] and after["stage"] != before["stage"]
    counted = any(after[name] != before[name] for name in counts)
    return ["task.stage"] * bool(staged) + ["task.progress"] * counted


def _details(kind: str, change: Change) -> dict[str, Any]:
    """What only this kind of event tells."""
    before, after = change.before, change.after
    if kind == "task.started":
        return {"queue_seconds": _between(after["created"], after["started_at"])}
    if kind == "task.stage":
        return {"previous_stage": before["stage"]}
    if kind == "task.cancel_requested":
        return {"by": change.by}
    if kind == "task.finished":
        return {"duration_seconds": _between(after["started_at"], after["finished_at"])}
    return {}


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return max(0.0, (end - start).total_seconds()) if start and end else None


def payload(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """What an event carries of its task: all that a list shows of it."""
    return {
        "name": row["name"],
        "type": row["task_type"],
        "parent": str(row["parent_id"]) if row["parent_id"] else None,
        "is_container": row["is_container"],
        "kind": row["kind"],
        "state": row["state"],
        "stage": row["stage"],
        "completed_steps": min(row["completed_steps"], row["total_steps"]),
        "total_steps": row["total_steps"],
        "attempts": row["attempts"],
        "rate": row["rate"],
        # By its rate alone: what its kind usually takes, and its members, are not asked for here.
        "eta_seconds": None if row["is_container"] else estimates.eta(row, {}, {}, now),
        "error": row["error"],
        "created": _moment(row["created"]),
        "started_at": _moment(row["started_at"]),
        "finished_at": _moment(row["finished_at"]),
    }


def _moment(value: datetime | None) -> str | None:
    return value.isoformat() if value is not None else None


@dataclass(frozen=True)
class Scope:
    """Whose events: of one task, of a whole tree, or of all tasks of a user."""

    kind: str
    key: UUID | str

    @property
    def column(self) -> str:
        return COLUMNS[self.kind]


COLUMNS = {"task": "status_id", "tree": "root_id", "user": "user"}


def scopes(row: Mapping[str, Any]) -> list[Scope]:
    """All that an event belongs to."""
    return [Scope(kind, row[column]) for kind, column in COLUMNS.items()]


_SHOWN = 'id, status_id, root_id, "user", kind, payload, at'


@dataclass(frozen=True)
class Bounds:
    """The first and the last id that are kept, and the last of one scope; 0 without any."""

    oldest: int
    newest: int
    last: int


async def bounds(session: AsyncSession, scope: Scope) -> Bounds:
    """Between which ids events are kept, looked up in three indexes with one statement."""
    row = await (await driver(session)).fetchrow(
        f"""
        select coalesce((select min(id) from event), 0) as oldest,
               coalesce((select max(id) from event), 0) as newest,
               coalesce((select max(id) from event where "{scope.column}" = $1), 0) as last
        """,
        scope.key,
    )
    return Bounds(**row)


async def newest(session: AsyncSession) -> int:
    """The id of the last event there is."""
    found = await (await driver(session)).fetchval("select max(id) from event")
    return int(found or 0)


async def after(session: AsyncSession, position: int, *, most: int) -> list[dict[str, Any]]:
    """Events behind a position, of everything, in the order in which they were committed."""
    query = f"select {_SHOWN} from event where id > $1 order by id limit $2"
    rows = await (await driver(session)).fetch(query, position, most)
    return [dict(row) for row in rows]


async def kept(
    session: AsyncSession, scope: Scope, position: int, *, most: int
) -> list[dict[str, Any]]:
    """Events behind a position, of one scope, as those who follow see them."""
    query = (
        f'select {_SHOWN} from event where "{scope.column}" = $3 and id > $1 and kind <> $4 '
        "order by id limit $2"
    )
    rows = await (await driver(session)).fetch(query, position, most, scope.key, UNWATCHED)
    return [dict(row) for row in rows]


async def prune(session: AsyncSession, *, now: datetime, keep: timedelta) -> int:
    """Forget old events, a batch at a time; the newest stays, so that positions go on from it.

    Returns how many.
    """
    found = await (await driver(session)).fetch(
        """
        delete from event where id in (
          select id from event where at < $1 and id < (select max(id) from event)
          order by at limit $2 for update skip locked)
        returning id
        """,
        now - keep,
        PRUNED,
    )
    return len(found)
