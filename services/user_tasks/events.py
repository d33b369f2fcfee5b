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

from services.user_tasks.states import FINAL, State
from shared.database import after_commit, driver

LOCK = 7120043
CHANNEL = "lyceum:user-tasks"
PRUNED = 5000

_APPEND = """
insert into event (status_id, root_id, "user", kind, payload, at)
select r.status_id, r.root_id, r."user", r.kind, r.payload, r.at
from jsonb_to_recordset($1::jsonb) as r (
  place int, status_id uuid, root_id uuid, "user" text, kind text, payload jsonb, at timestamptz)
order by r.place
"""


@dataclass(frozen=True)
class Change:
    """One task's values before and after a transaction; None before: it is new."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any]


async def append(session: AsyncSession, changes: Sequence[Change], *, now: datetime) -> None:
    """Keep what happened. To be called last: other writers wait until this one has committed.

    That wait is what makes the order of ids the order of commits, so that a reader who has seen
    one id has seen all before it. A final state is kept exactly once, because it is entered once.
    """
    rows = [row for change in changes for row in _events(change, now)]
    await _keep(session, rows)


async def artifacts_added(
    session: AsyncSession, added: Sequence[Mapping[str, Any]], *, now: datetime
) -> None:
    """Tell of new artifacts: each has uuid, name, and its task's status_id, root_id and user."""
    await _keep(
        session,
        [
            _row(one, "task.artifact", {"artifact": str(one["uuid"]), "name": one["name"]}, now)
            for one in added
        ],
    )


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
    if after["deleted_at"] is not None:
        deleted = before is not None and before["deleted_at"] is None
        return [_row(after, "task.deleted", {}, now)] if deleted else []
    return [_row(after, kind, payload(after), now) for kind in _kinds(before, after)]


def _kinds(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    kinds = ["task.created"] if before is None else []
    was = State(before["state"]) if before is not None else State.PENDING
    state = State(after["state"])
    if state in FINAL:
        return [*kinds, "task.finished"] if was not in FINAL else kinds
    if state is not was:
        kinds.append("task.retrying" if state is State.RETRYING else "task.started")
    elif before is not None and after["attempts"] > before["attempts"]:
        kinds.append("task.retrying")
    if before is None:
        return kinds
    if after["stage"] and after["stage"] != before["stage"]:
        kinds.append("task.stage")
    counts = ("completed_steps", "total_steps", "name")
    if any(after[name] != before[name] for name in counts):
        kinds.append("task.progress")
    return kinds


def payload(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an event carries of its task."""
    return {
        "name": row["name"],
        "type": row["task_type"],
        "parent": str(row["parent_id"]) if row["parent_id"] else None,
        "is_container": row["is_container"],
        "state": row["state"],
        "stage": row["stage"],
        "completed_steps": min(row["completed_steps"], row["total_steps"]),
        "total_steps": row["total_steps"],
        "attempts": row["attempts"],
        "rate": row["rate"],
        "error": row["error"],
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

    def covers(self, row: Mapping[str, Any]) -> bool:
        return bool(row[COLUMNS[self.kind]] == self.key)


COLUMNS = {"task": "status_id", "tree": "root_id", "user": "user"}
_SHOWN = 'id, status_id, root_id, "user", kind, payload, at'


async def newest(session: AsyncSession) -> int:
    """The id of the last event there is."""
    found = await (await driver(session)).fetchval("select max(id) from event")
    return int(found or 0)


async def after(
    session: AsyncSession, position: int, *, most: int, scope: Scope | None = None
) -> list[dict[str, Any]]:
    """Events behind a position in their order, of everything or of a scope."""
    connection = await driver(session)
    if scope is None:
        query = f"select {_SHOWN} from event where id > $1 order by id limit $2"
        rows = await connection.fetch(query, position, most)
    else:
        column = f'"{COLUMNS[scope.kind]}"'
        query = f"select {_SHOWN} from event where {column} = $3 and id > $1 order by id limit $2"
        rows = await connection.fetch(query, position, most, scope.key)
    return [dict(row) for row in rows]


async def oldest(session: AsyncSession) -> int:
    """The id of the first event that is still kept."""
    found = await (await driver(session)).fetchval("select min(id) from event")
    return int(found or 0)


async def prune(session: AsyncSession, *, now: datetime, keep: timedelta) -> int:
    """Forget old events, a batch at a time. Returns how many."""
    found = await (await driver(session)).fetch(
        """
        delete from event where id in (
          select id from event where at < $1 order by id limit $2 for update skip locked)
        returning id
        """,
        now - keep,
        PRUNED,
    )
    return len(found)
