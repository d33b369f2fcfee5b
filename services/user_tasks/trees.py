"""Tasks and the containers that hold them, changed together.

Whoever changes a task locks the root of its tree first and then the rest in a fixed order, so two
children that end at the same moment cannot miss each other, and nobody deadlocks. What a
container shows follows from its children and is worked out anew after each change of them.
contract: user_tasks §4.2, §4.6, §12
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import orjson
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, events
from services.user_tasks.schemas import ArtifactReport, Lifecycle
from services.user_tasks.states import FINAL, State
from shared.database import driver

CLASSES = {"chain": "celery.chain", "group": "celery.group", "chord": "celery.chord"}
Row = dict[str, Any]

_CREATE = """
insert into status (uuid, root_id, parent_id, "user", task_id, is_container, kind, members,
                    task_class, task_type, name, state, completed_steps, total_steps, attempts,
                    created, modified)
select r.uuid, r.root_id, r.parent_id, r."user", r.uuid::text, r.kind is not null, r.kind,
       r.members, r.task_class, r.task_type, r.name, 'Pending', 0, r.total_steps, 1, r.at, r.at
from jsonb_to_recordset($1::jsonb) as r (
  uuid uuid, root_id uuid, parent_id uuid, "user" text, kind text, members int, task_class text,
  task_type text, name text, total_steps bigint, at timestamptz)
order by r.uuid
on conflict do nothing
returning uuid
"""

_ROOTS = "select distinct root_id from status where uuid = any($1::uuid[]) order by root_id"
_LOCK_ROOTS = "select uuid from status where uuid = any($1::uuid[]) order by uuid for no key update"

_COLUMNS = """
uuid, root_id, parent_id, "user", is_container, kind, members, name, task_type, state, stage,
completed_steps, total_steps, attempts, rate, rate_at, error, created, modified, started_at,
finished_at, reported_at, deleted_at
"""
_LOAD = (
    f"select {_COLUMNS} from status where uuid = any($1::uuid[]) order by uuid for no key update"
)
_ANCESTORS = f"""
with recursive up as (
  select parent_id from status where uuid = any($1::uuid[]) and parent_id is not null
  union
  select status.parent_id from status join up on status.uuid = up.parent_id
  where status.parent_id is not null)
select {_COLUMNS} from status where uuid in (select parent_id from up)
order by uuid for no key update
"""
BELOW = """
with recursive down as (
  select uuid from status where uuid = $1
  union all
  select status.uuid from status join down on status.parent_id = down.uuid)
select uuid from down
"""

_STORE = """
update status set state = r.state, stage = r.stage, completed_steps = r.completed_steps,
                  total_steps = r.total_steps, attempts = r.attempts, name = r.name,
                  rate = r.rate, rate_at = r.rate_at, error = r.error, created = r.created,
                  modified = r.modified, started_at = r.started_at,
                  finished_at = r.finished_at, reported_at = r.reported_at,
                  deleted_at = r.deleted_at
from jsonb_to_recordset($1::jsonb) as r (
  uuid uuid, state text, stage text, completed_steps bigint, total_steps bigint,
  attempts bigint, name text, rate float, rate_at timestamptz, error jsonb, created timestamptz,
  modified timestamptz, started_at timestamptz, finished_at timestamptz, reported_at timestamptz,
  deleted_at timestamptz)
where status.uuid = r.uuid
"""
_STAGES = """
insert into stage (status_id, attempt, stage, at)
select r.uuid, r.attempts, r.stage, r.at
from jsonb_to_recordset($1::jsonb) as r (uuid uuid, attempts bigint, stage text, at timestamptz)
"""

_CHILDREN = """
select parent_id, count(*)::int as children,
       count(*) filter (where state = 'Succeeded')::int as succeeded,
       count(*) filter (where state = 'Failed')::int as failed,
       count(*) filter (where state = 'Canceled')::int as canceled,
       count(*) filter (where state <> 'Pending')::int as begun,
       sum(least(completed_steps, total_steps))::bigint as completed,
       sum(total_steps)::bigint as total,
       min(started_at) as started,
       (array_agg(stage order by reported_at desc nulls last)
          filter (where state = 'In Progress' and stage is not null))[1] as stage,
       (array_agg(error order by finished_at) filter (where state = 'Failed'))[1] as error
from status where parent_id = any($1::uuid[]) group by parent_id
"""


def as_json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


@dataclass
class Tree:
    """Tasks under change: their values as they were and as they shall be."""

    rows: dict[UUID, Row] = field(default_factory=dict)
    before: dict[UUID, Row] = field(default_factory=dict)
    created: set[UUID] = field(default_factory=set)
    # Those that were asked for; the rest are containers above them.
    wanted: list[UUID] = field(default_factory=list)
    errors: list[ArtifactReport] = field(default_factory=list)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self.rows[row["uuid"]] = dict(row)
            self.before[row["uuid"]] = dict(row)


async def create(session: AsyncSession, news: Sequence[Lifecycle]) -> set[UUID]:
    """Make rows for tasks and containers heard of for the first time. Returns what is new."""
    connection = await driver(session)
    new: set[UUID] = set()
    for rows in _levels(news):
        new |= {row["uuid"] for row in await connection.fetch(_CREATE, as_json(rows))}
    return new


def _levels(news: Sequence[Lifecycle]) -> list[list[Row]]:
    """Rows by depth: what holds others comes first, and everybody in the same order."""
    levels: list[dict[UUID, Row]] = []

    def put(depth: int, row: Row) -> None:
        while len(levels) <= depth:
            levels.append({})
        known = levels[depth].setdefault(row["uuid"], row)
        known["at"] = min(known["at"], row["at"])

    for piece in news:
        path = [spec.id for spec in piece.containers] + [piece.task_id]
        shared = {"root_id": path[0], "user": piece.user, "at": piece.at}
        for depth, spec in enumerate(piece.containers):
            row = shared | {
                "uuid": spec.id, "parent_id": path[depth - 1] if depth else None,
                "kind": spec.kind, "members": spec.members, "task_class": CLASSES[spec.kind],
                "task_type": "", "name": spec.name, "total_steps": spec.total_steps,
            }  # fmt: skip
            put(depth, row)
        leaf = shared | {
            "uuid": piece.task_id, "parent_id": path[-2] if piece.containers else None,
            "kind": None, "members": None, "task_class": piece.task_class,
            "task_type": piece.task_type, "name": piece.name, "total_steps": piece.total_steps,
        }  # fmt: skip
        put(len(piece.containers), leaf)
    return [sorted(level.values(), key=lambda row: row["uuid"]) for level in levels]


async def load(session: AsyncSession, ids: Iterable[UUID]) -> Tree:
    """Lock tasks and everything above them. Unknown ids are passed over."""
    wanted = sorted(set(ids))
    connection = await driver(session)
    roots = [row["root_id"] for row in await connection.fetch(_ROOTS, wanted)]
    await connection.fetch(_LOCK_ROOTS, roots)
    tree = Tree()
    tree.add(await connection.fetch(_LOAD, wanted))
    tree.wanted = list(tree.rows)
    if any(row["parent_id"] is not None for row in tree.rows.values()):
        tree.add(await connection.fetch(_ANCESTORS, wanted))
    return tree


async def save(session: AsyncSession, tree: Tree, *, now: datetime) -> None:
    """Store what was changed, let the containers follow, and tell those who watch."""
    connection = await driver(session)
    await _store(connection, tree, list(tree.rows))
    for level in _upwards(tree):
        await _derive(connection, tree, level, now)
    await artifacts.store(session, tree.errors)
    await events.append(
        session,
        [
            events.Change(None if uuid in tree.created else tree.before[uuid], row)
            for uuid, row in tree.rows.items()
        ],
        now=now,
    )


async def _store(connection: Any, tree: Tree, ids: Sequence[UUID]) -> None:
    changed = [tree.rows[uuid] for uuid in ids if tree.rows[uuid] != tree.before[uuid]]
    if not changed:
        return
    await connection.execute(_STORE, as_json(changed))
    stages = [
        {"uuid": row["uuid"], "attempts": row["attempts"], "stage": row["stage"],
         "at": row["reported_at"] or row["modified"]}
        for row in changed
        if row["stage"] and row["stage"] != tree.before[row["uuid"]]["stage"]
    ]  # fmt: skip
    if stages:
        await connection.execute(_STAGES, as_json(stages))


def _upwards(tree: Tree) -> list[list[UUID]]:
    """Containers above what was changed, by level, the lowest first."""
    heights: dict[UUID, int] = {}
    touched = [
        row for uuid, row in tree.rows.items()
        if uuid in tree.created or row != tree.before[uuid]
    ]  # fmt: skip
    for row in touched:
        height, parent = 1, row["parent_id"]
        while parent is not None and parent in tree.rows:
            heights[parent] = max(heights.get(parent, 0), height)
            height, parent = height + 1, tree.rows[parent]["parent_id"]
    return [
        sorted(uuid for uuid, height in heights.items() if height == level)
        for level in range(1, max(heights.values(), default=0) + 1)
    ]


async def _derive(connection: Any, tree: Tree, ids: list[UUID], now: datetime) -> None:
    for facts in await connection.fetch(_CHILDREN, ids):
        follow(tree.rows[facts["parent_id"]], facts, now)
        _copy_errors(tree, facts["parent_id"])
    await _store(connection, tree, ids)


def follow(row: Row, children: Mapping[str, Any], now: datetime) -> None:
    """Let a container's values follow from its children's. Final is final."""
    row["completed_steps"] = children["completed"]
    row["total_steps"] = max(row["total_steps"], children["total"])
    row["started_at"] = row["started_at"] or children["started"]
    if State(row["state"]) in FINAL:
        return
    row["modified"] = max(row["modified"], now)
    row["stage"] = None if row["kind"] == "group" else children["stage"]
    state = _follows(row, children)
    row["state"] = state.value
    if state in FINAL:
        row["finished_at"] = now
    if state is State.FAILED:
        row["error"] = children["error"]


def _follows(row: Row, children: Mapping[str, Any]) -> State:
    ended = children["succeeded"] + children["failed"] + children["canceled"]
    complete = children["children"] >= (row["members"] or 0) and ended == children["children"]
    if children["failed"]:
        return State.FAILED
    if children["canceled"] and (complete or row["kind"] == "chain"):
        return State.CANCELED
    if complete:
        return State.SUCCEEDED
    return State.IN_PROGRESS if children["begun"] else State(row["state"])


def _copy_errors(tree: Tree, container: UUID) -> None:
    """Each failure below is shown on the container too, once however often it is told."""
    for report in list(tree.errors):
        row = tree.rows.get(report.task_id)
        if row is not None and row["parent_id"] == container:
            copy = report.model_copy(
                update={
                    "artifact_id": uuid5(container, str(report.artifact_id)),
                    "task_id": container,
                }
            )
            if copy.artifact_id not in {one.artifact_id for one in tree.errors}:
                tree.errors.append(copy)
