"""What becomes of user tasks: news of their life, progress, cancel, delete."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import orjson
from sqlalchemy import func, text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts
from services.user_tasks.errors import StatusUnknown
from services.user_tasks.models import Status
from services.user_tasks.schemas import ArtifactReport, Lifecycle, ProgressReport
from services.user_tasks.states import State, follows
from shared import outbox
from shared.callers import Caller

_CREATE = text("""
    insert into status (uuid, root_id, "user", task_id, parent_id, is_container, task_class,
                        task_type, name, state, completed_steps, total_steps, attempts, created,
                        modified)
    select distinct on (r.task_id) r.task_id, r.task_id, r."user", r.task_id::text, null, false,
           r.task_class, r.task_type, r.name, 'Pending', 0, r.total_steps, 1, r.at, r.at
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      task_id uuid, "user" text, task_class text, task_type text, name text,
      total_steps bigint, at timestamptz)
    order by r.task_id, r.at
    on conflict do nothing
""")

_LOCK = text("""
    select uuid, state, attempts, completed_steps, total_steps, stage, error, created, modified,
           started_at, finished_at, reported_at
    from status where uuid = any(cast(:ids as uuid[])) order by uuid for update
""")

_STORE = text("""
    update status set state = r.state, attempts = r.attempts, stage = r.stage,
                      completed_steps = r.completed_steps, error = r.error, created = r.created,
                      modified = r.modified, started_at = r.started_at,
                      finished_at = r.finished_at, reported_at = r.reported_at
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      uuid uuid, state text, attempts bigint, stage text, completed_steps bigint, error jsonb,
      created timestamptz, modified timestamptz, started_at timestamptz, finished_at timestamptz,
      reported_at timestamptz)
    where status.uuid = r.uuid
""")


async def record_lifecycle(session: AsyncSession, news: Sequence[Lifecycle]) -> None:
    """Apply news of tasks' lives. Any piece may come first, twice, late or out of order.

    A fixed number of statements, however much news. contract: user_tasks §4.1, §4.5, §4.9
    """
    connection = await session.connection()
    ids = sorted({piece.task_id for piece in news})
    await connection.execute(_CREATE, {"rows": _json([piece.model_dump() for piece in news])})
    rows = (await connection.execute(_LOCK, {"ids": ids})).all()
    by_id = {row.uuid: dict(row._mapping) for row in rows}
    errors: list[ArtifactReport] = []
    for piece in news:
        if apply(by_id[piece.task_id], piece) and State(piece.state) is State.FAILED:
            errors.append(_error_artifact(piece))
    await connection.execute(_STORE, {"rows": _json(list(by_id.values()))})
    await artifacts.store(session, errors)


def apply(row: dict[str, Any], piece: Lifecycle) -> bool:
    """Change a row's values as one piece of news says. True when it brought a new state."""
    row["created"] = min(row["created"], piece.at)
    state, news = State(row["state"]), State(piece.state)
    changes = follows(state, row["attempts"], news, piece.attempt)
    if piece.attempt > row["attempts"]:
        row["attempts"] = piece.attempt
        if not state.final:
            # Steps, stage and the newest report told of the attempt before.
            row["completed_steps"], row["stage"], row["reported_at"] = 0, None, None
    if news is State.IN_PROGRESS:
        row["started_at"] = min(row["started_at"] or piece.at, piece.at)
    row["modified"] = max(row["modified"], piece.at)
    if not changes:
        return False
    row["state"] = news.value
    if news.final:
        row["finished_at"], row["error"] = piece.at, piece.error
    if news is State.SUCCEEDED:
        row["completed_steps"] = max(row["completed_steps"], row["total_steps"])
    return True


def _error_artifact(piece: Lifecycle) -> ArtifactReport:
    message = str((piece.error or {}).get("message") or "The task failed.")
    return ArtifactReport(
        # The same failure has the same artifact, however often it is told.
        artifact_id=uuid5(piece.task_id, f"error-{piece.attempt}"),
        task_id=piece.task_id,
        name="Error",
        text=message,
        at=piece.at,
    )


_PROGRESS = text("""
    update status set
      attempts = r.attempt,
      completed_steps = coalesce(r.completed_steps,
        case when r.attempt > status.attempts then 0 else status.completed_steps end),
      total_steps = coalesce(r.total_steps, status.total_steps),
      stage = coalesce(r.stage, case when r.attempt > status.attempts then null
                                     else status.stage end),
      modified = greatest(status.modified, r.at),
      reported_at = r.at
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      task_id uuid, attempt bigint, at timestamptz, completed_steps bigint, total_steps bigint,
      stage text)
    where status.uuid = r.task_id and r.attempt >= status.attempts
      and (r.attempt > status.attempts or status.reported_at is null or r.at > status.reported_at)
      and status.state <> 'Succeeded'
      and (status.finished_at is null or r.at <= status.finished_at)
""")


async def record_progress(session: AsyncSession, reports: Sequence[ProgressReport]) -> None:
    """Apply how far runs are. Late, repeated and unknown reports change nothing."""
    newest: dict[UUID, dict[str, Any]] = {}
    for report in sorted(reports, key=lambda report: (report.attempt, report.at)):
        values = report.model_dump()
        before = newest.get(report.task_id)
        if before is not None and before["attempt"] == report.attempt:
            values = before | {key: value for key, value in values.items() if value is not None}
        newest[report.task_id] = values
    connection = await session.connection()
    rows = [newest[task_id] for task_id in sorted(newest)]
    await connection.execute(_PROGRESS, {"rows": _json(rows)})


async def cancel(session: AsyncSession, uuid: UUID, *, caller: Caller, now: datetime) -> Status:
    """Mark a task canceled and ask the dispatcher to stop its work. A final one stays as it is.

    Raises StatusUnknown, also for others' tasks. contract: user_tasks §4.7
    """
    status = await get(session, uuid, caller=caller, lock=True)
    if not status.state.final:
        status.state, status.finished_at = State.CANCELED, now
        status.modified = max(status.modified, now)
        await _stop_work(session, status, caller)
    return status


async def delete(session: AsyncSession, uuid: UUID, *, caller: Caller, now: datetime) -> list[str]:
    """Remove a task with its artifacts; work still under way is asked to stop.

    Returns the files to remove once this is committed. Raises StatusUnknown.
    """
    status = await get(session, uuid, caller=caller, lock=True)
    if not status.state.final:
        status.state, status.finished_at = State.CANCELED, now
        await _stop_work(session, status, caller)
    status.deleted_at = now
    return await artifacts.delete_all(session, uuid)


async def _stop_work(session: AsyncSession, status: Status, caller: Caller) -> None:
    note = {"task_id": str(status.uuid), "by": caller.username}
    await outbox.send(session, "dispatcher", "on_cancel_requested", note)


async def get(session: AsyncSession, uuid: UUID, *, caller: Caller, lock: bool = False) -> Status:
    """A task this caller may see: its user, superusers, our services. Raises StatusUnknown."""
    query = select(Status).where(col(Status.uuid) == uuid, *visible_to(caller))
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    status = (await session.exec(query)).first()
    if status is None:
        raise StatusUnknown
    return status


def visible_to(caller: Caller) -> list[Any]:
    """contract: user_tasks §5.5"""
    hidden = [col(Status.deleted_at).is_(None)]
    if caller.superuser or caller.service:
        return hidden
    return [*hidden, col(Status.user) == caller.username]


async def page(
    session: AsyncSession,
    *,
    caller: Caller,
    size: int,
    after: tuple[datetime, UUID] | None = None,
    filters: Iterable[Any] = (),
) -> Sequence[Status]:
    """Tasks, newest first, behind a position."""
    query = select(Status).where(*visible_to(caller), *filters)
    if after is not None:
        position = func.row(col(Status.created), col(Status.uuid))
        query = query.where(position < func.row(*after))
    query = query.order_by(col(Status.created).desc(), col(Status.uuid).desc()).limit(size)
    return (await session.exec(query)).all()


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()
