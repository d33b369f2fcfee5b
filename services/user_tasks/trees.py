"""Tasks and the containers that hold them, changed together.

Whoever changes a task locks the root of its tree first and then the rest in a fixed order, so two
children that end at the same moment cannot miss each other, and nobody deadlocks. What a
container shows follows from its children and is worked out anew after each change of them.
The locks are `no key` ones: a new member's foreign key locks its container's key, and two
transactions that each add a member before they lock the container would wait for each other.
contract: user_tasks §4.2, §4.6, §12
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import orjson
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, events, stages
from services.user_tasks.errors import PlacedElsewhere
from services.user_tasks.models import Status
from services.user_tasks.schemas import ArtifactReport, Failure, Lifecycle
from services.user_tasks.states import FINAL, State
from shared.database import driver

CLASSES = {"chain": "celery.chain", "group": "celery.group", "chord": "celery.chord"}
Row = dict[str, Any]

_CREATE = """
with made as (
insert into status (uuid, root_id, parent_id, "user", task_id, is_container, kind, members,
                    task_class, task_type, name, state, completed_steps, total_steps, attempts,
                    created, modified, parameters)
select r.uuid, r.root_id, r.parent_id, r."user", r.uuid::text, r.kind is not null, r.kind,
       r.members, r.task_class, r.task_type, r.name, 'Pending', 0, r.total_steps, 1, r.at, r.at,
       coalesce(r.parameters, '{}')
from jsonb_to_recordset($1::jsonb) as r (
  uuid uuid, root_id uuid, parent_id uuid, "user" text, kind text, members bigint, task_class text,
  task_type text, name text, total_steps bigint, at timestamptz, parameters jsonb)
order by r.uuid
on conflict do nothing
returning uuid, task_class, name, "user"),
found as (
insert into searchable (status_id, words)
select uuid, concat_ws(E'\\n', uuid, task_class, name, "user") from made)
select uuid from made
"""
# A new name is found from now on.
_RENAME = """
update searchable set words = concat_ws(E'\\n', uuid, task_class, name, "user")
from status where status_id = uuid and uuid = any($1::uuid[])
"""

_ROOTS = "select distinct root_id from status where uuid = any($1::uuid[]) order by root_id"
_LOCK_ROOTS = "select uuid from status where uuid = any($1::uuid[]) order by uuid for no key update"

_COLUMNS = """
uuid, root_id, parent_id, "user", is_container, kind, members, name, task_type, state, stage,
completed_steps, total_steps, attempts, rate, rate_at, error, created, modified, started_at,
finished_at, reported_at, canceled_by, deleted_at
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
                  canceled_by = r.canceled_by, deleted_at = r.deleted_at
from jsonb_to_recordset($1::jsonb) as r (
  uuid uuid, state text, stage text, completed_steps bigint, total_steps bigint,
  attempts bigint, name text, rate float, rate_at timestamptz, error jsonb, created timestamptz,
  modified timestamptz, started_at timestamptz, finished_at timestamptz, reported_at timestamptz,
  canceled_by text, deleted_at timestamptz)
where status.uuid = r.uuid
"""

_CHILDREN = """
select parent_id, count(*)::int as children,
       count(*) filter (where state = 'Succeeded')::int as succeeded,
       count(*) filter (where state = 'Failed')::int as failed,
       count(*) filter (where state = 'Canceled')::int as canceled,
       -- Not those canceled because another link broke: that one tells how the chain ends.
       count(*) filter (where state = 'Canceled' and error is null)::int as stopped,
       count(*) filter (where state <> 'Pending')::int as begun,
       least(sum(least(completed_steps, total_steps)), 4611686018427387904)::bigint as completed,
       least(sum(total_steps), 4611686018427387904)::bigint as total,
       min(started_at) as started, max(modified) as modified,
       (array_agg(stage order by reported_at desc nulls last)
          filter (where state = 'In Progress' and stage is not null))[1] as stage,
       (array_agg(coalesce(error, '{}')
          || jsonb_build_object('child', coalesce(error -> 'child', to_jsonb(uuid)))
          order by finished_at, uuid) filter (where state = 'Failed'))[1] as error,
       (array_agg(error order by finished_at, uuid) filter (where state = 'Canceled'))[1] as reason
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
    # Stages that were named, in order: each is kept, also when the next came with it.
    stages: list[Row] = field(default_factory=list)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self.rows[row["uuid"]] = dict(row)
            self.before[row["uuid"]] = dict(row)

    def name_stage(self, row: Row, before: str | None, at: datetime) -> None:
        """Remember the stage a row came into, if it did."""
        if row["stage"] and row["stage"] != before:
            stage = {"status_id": row["uuid"], "attempt": row["attempts"], "stage": row["stage"]}
            self.stages.append(stage | {"at": at})

    def changes(self) -> list[events.Change]:
        """What became of each, and who asked in this transaction that it ends."""
        found = []
        for uuid, row in self.rows.items():
            before = self.before[uuid]
            by = row["canceled_by"] if row["canceled_by"] != before["canceled_by"] else None
            found.append(events.Change(before, row, by=by, new=uuid in self.created))
        return found

    def above(self, uuid: UUID) -> Iterable[UUID]:
        """What holds a task, from the inside outwards."""
        parent: UUID | None = self.rows[uuid]["parent_id"]
        while parent is not None and parent in self.rows:
            yield parent
            parent = self.rows[parent]["parent_id"]


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
            "parameters": piece.parameters,
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


async def load_inside(session: AsyncSession, status: Status) -> Tree:
    """Lock a task, all it holds, and everything above it."""
    if not status.is_container:
        return await load(session, [status.uuid])
    connection = await driver(session)
    # Before looking: until then others may still add members.
    await connection.fetch(_LOCK_ROOTS, [status.root_id])
    return await load(session, [row["uuid"] for row in await connection.fetch(BELOW, status.uuid)])


def check_places(tree: Tree, news: Sequence[Lifecycle]) -> None:
    """Raises PlacedElsewhere when a task is known, but not at the place that its news says."""
    for piece in news:
        uuid = piece.task_id
        right = not tree.rows[uuid]["is_container"]
        for spec in reversed(piece.containers):
            right = right and tree.rows[uuid]["parent_id"] == spec.id
            right = right and tree.rows[spec.id]["is_container"]
            uuid = spec.id
        if not right or (piece.containers and tree.rows[uuid]["parent_id"] is not None):
            raise PlacedElsewhere(f"Task {piece.task_id} is already known at another place.")


def join(tree: Tree) -> list[Row]:
    """New members of what was canceled are canceled, and of what was deleted are deleted.

    Returns the tasks whose work is to be stopped.
    """
    stopped = []
    for uuid in tree.created & tree.rows.keys():
        row, above = tree.rows[uuid], [tree.rows[holder] for holder in tree.above(uuid)]
        by = next((holder["canceled_by"] for holder in above if holder["canceled_by"]), None)
        if by is not None and State(row["state"]) not in FINAL:
            row |= {"state": "Canceled", "canceled_by": by, "finished_at": row["modified"]}
            stopped.append(row)
        gone = next((holder["deleted_at"] for holder in above if holder["deleted_at"]), None)
        row["deleted_at"] = row["deleted_at"] or gone
    return [row for row in stopped if not row["is_container"]]


def name_containers(tree: Tree, news: Sequence[Lifecycle]) -> None:
    """Of the names told of a container the first that is not empty counts."""
    for spec in (spec for piece in news for spec in piece.containers):
        tree.rows[spec.id]["name"] = tree.rows[spec.id]["name"] or spec.name


async def save(session: AsyncSession, tree: Tree, *, now: datetime) -> None:
    """Store what was changed, let the containers follow, and tell those who watch."""
    connection = await driver(session)
    await _store(connection, tree, list(tree.rows))
    for level in _upwards(tree):
        await _derive(connection, tree, level, now)
    await stages.store(session, tree.stages)
    failures = await artifacts.store(session, tree.errors)
    added = [_told(tree.rows[row.status_id], row) for row in failures]
    await events.append(session, tree.changes(), added, now=now)


def _told(row: Row, artifact: Any) -> Row:
    return {
        "status_id": row["uuid"], "root_id": row["root_id"], "user": row["user"],
        "uuid": artifact.uuid, "name": artifact.name, "kind": artifact.kind,
    }  # fmt: skip


async def _store(connection: Any, tree: Tree, ids: Sequence[UUID]) -> None:
    changed = [tree.rows[uuid] for uuid in ids if tree.rows[uuid] != tree.before[uuid]]
    if not changed:
        return
    await connection.execute(_STORE, as_json(changed))
    renamed = [row["uuid"] for row in changed if row["name"] != tree.before[row["uuid"]]["name"]]
    if renamed:
        await connection.execute(_RENAME, renamed)


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
        row = tree.rows[facts["parent_id"]]
        before = row["stage"]
        follow(row, facts, now)
        tree.name_stage(row, before, now)
        _copy_errors(tree, facts["parent_id"])
    await _store(connection, tree, ids)


def follow(row: Row, children: Mapping[str, Any], now: datetime) -> None:
    """Let a container's values follow from its children's. Final is final."""
    known = children["children"] >= (row["members"] or 0)
    row["completed_steps"] = children["completed"]
    row["total_steps"] = children["total"] if known else max(row["total_steps"], children["total"])
    row["started_at"] = row["started_at"] or children["started"]
    row["modified"] = max(row["modified"], children["modified"])
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
    if state is State.CANCELED and not children["stopped"]:
        row["error"] = children["reason"]


def _follows(row: Row, children: Mapping[str, Any]) -> State:
    ended = children["succeeded"] + children["failed"] + children["canceled"]
    complete = children["children"] >= (row["members"] or 0) and ended == children["children"]
    if children["failed"]:
        return State.FAILED
    if children["stopped"] and row["kind"] == "chain":
        return State.CANCELED
    if children["canceled"] and complete:
        return State.CANCELED
    if complete:
        return State.SUCCEEDED
    return State.IN_PROGRESS if children["begun"] else State(row["state"])


def _copy_errors(tree: Tree, container: UUID) -> None:
    """Each failure below is shown on a container that failed, once however often it is told."""
    if State(tree.rows[container]["state"]) is not State.FAILED:
        return
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


_STATES = """
select parent_id, state, count(*) as number from status
where parent_id = any($1::uuid[]) and deleted_at is null group by parent_id, state
"""

# Down through what failed only: an index holds just these.
_FAILURES = """
with recursive failed as (
  select parent_id as holder, uuid, is_container, name, attempts, error, finished_at
  from status where parent_id = any($1::uuid[]) and state = 'Failed' and deleted_at is null
  union all
  select failed.holder, status.uuid, status.is_container, status.name, status.attempts,
         status.error, status.finished_at
  from failed join status on status.parent_id = failed.uuid
  where failed.is_container and status.state = 'Failed' and status.deleted_at is null),
placed as (
  select *, row_number() over (partition by holder order by finished_at, uuid) as place
  from failed where not is_container)
select * from placed where place <= $2 order by holder, place
"""
MOST_FAILURES = 100


async def children(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, dict[str, int]]:
    """How many direct children of these containers are in which state."""
    found: dict[UUID, dict[str, int]] = {uuid: {} for uuid in ids}
    if ids:
        for row in await (await driver(session)).fetch(_STATES, ids):
            found[row["parent_id"]][row["state"]] = row["number"]
    return found


async def failures(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, list[Failure]]:
    """Why these containers failed: the errors of the failing tasks in them, the first ones first.

    contract: user_tasks §4.9
    """
    found: dict[UUID, list[Failure]] = {uuid: [] for uuid in ids}
    if ids:
        for row in await (await driver(session)).fetch(_FAILURES, ids, MOST_FAILURES):
            found[row["holder"]].append(
                Failure(
                    uuid=row["uuid"], name=row["name"], attempt=row["attempts"],
                    error=row["error"] or {},
                )
            )  # fmt: skip
    return found
