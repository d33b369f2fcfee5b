"""What becomes of user tasks: news of their life, progress, cancel, delete."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, estimates, permissions, trees
from services.user_tasks.errors import StatusUnknown
from services.user_tasks.models import Status
from services.user_tasks.schemas import ArtifactReport, LastProgress, Lifecycle, ProgressReport
from services.user_tasks.states import State, follows
from services.user_tasks.trees import Row, Tree
from shared import outbox
from shared.callers import Caller


async def record_lifecycle(
    session: AsyncSession, news: Sequence[Lifecycle], *, now: datetime
) -> None:
    """Apply news of tasks' lives. Any piece may come first, twice, late or out of order.

    A fixed number of statements, however much news. contract: user_tasks §4.1, §4.5, §4.9
    """
    created = await trees.create(session, news)
    tree = await trees.load(session, [piece.task_id for piece in news])
    tree.created = created
    # Late news of what was purged in between are of no interest.
    news = [piece for piece in news if piece.task_id in tree.rows]
    trees.check_places(tree, news)
    trees.name_containers(tree, news)
    for piece in news:
        row = tree.rows[piece.task_id]
        if piece.progress is not None:
            _progress(tree, row, piece.attempt, piece.progress)
        if apply(row, piece) and State(piece.state) is State.FAILED:
            tree.errors.append(_error_artifact(piece))
    await _stop_work(session, trees.join(tree))
    await trees.save(session, tree, now=now)


def apply(row: Row, piece: Lifecycle) -> bool:
    """Change a row's values as one piece of news says. True when it brought a new state."""
    row["created"] = min(row["created"], piece.at)
    state, news = State(row["state"]), State(piece.state)
    changes = follows(state, row["attempts"], news, piece.attempt)
    if piece.attempt > row["attempts"]:
        _next_attempt(row, piece.attempt)
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


def _next_attempt(row: Row, attempt: int) -> None:
    row["attempts"] = attempt
    if not State(row["state"]).final:
        # Steps, stage, rate and the newest report told of the attempt before.
        row |= {
            "completed_steps": 0, "stage": None, "reported_at": None, "rate": None,
            "rate_at": None,
        }  # fmt: skip


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


async def record_progress(
    session: AsyncSession, reports: Sequence[ProgressReport], *, now: datetime
) -> None:
    """Apply how far runs are. Late, repeated and unknown reports change nothing."""
    tree = await trees.load(session, [report.task_id for report in reports])
    for report in sorted(reports, key=lambda report: (report.attempt, report.at)):
        row = tree.rows.get(report.task_id)
        if row is not None:
            _progress(tree, row, report.attempt, report)
    await trees.save(session, tree, now=now)


def _progress(tree: Tree, row: Row, attempt: int, report: LastProgress) -> None:
    if counts(row, attempt, report):
        before = row["stage"] if attempt == row["attempts"] else None
        advance(row, attempt, report)
        tree.name_stage(row, before, report.at)
        if report.name is not None:
            _rename(tree, row, report.name)


def counts(row: Row, attempt: int, report: LastProgress) -> bool:
    """Whether a report is news: of this attempt or a later one, newer than the last, in time."""
    if attempt < row["attempts"] or State(row["state"]) is State.SUCCEEDED:
        return False
    if row["finished_at"] is not None and report.at > row["finished_at"]:
        return False
    newest = row["reported_at"] if attempt == row["attempts"] else None
    return newest is None or report.at > newest


def advance(row: Row, attempt: int, report: LastProgress) -> None:
    """Change a row's values as a report that counts says."""
    if attempt > row["attempts"]:
        _next_attempt(row, attempt)
    if report.completed_steps is not None:
        row["rate"], row["rate_at"] = estimates.rate(row, report.completed_steps, report.at)
        row["completed_steps"] = report.completed_steps
    if report.total_steps is not None:
        row["total_steps"] = report.total_steps
    if report.stage is not None:
        row["stage"] = report.stage
    row["modified"] = max(row["modified"], report.at)
    row["reported_at"] = report.at


def _rename(tree: Tree, row: Row, name: str) -> None:
    """A new name goes up to all that hold the task."""
    above: Row | None = row
    while above is not None:
        above["name"] = name
        above = tree.rows.get(above["parent_id"])


async def cancel(
    session: AsyncSession, uuid: UUID, *, caller: Caller, now: datetime
) -> tuple[Status, bool]:
    """Mark a task canceled and ask the dispatcher to stop its work; a container with all it holds.

    What has ended stays as it is, also in a container. Returns the task and whether anything
    changed. Raises StatusUnknown, also for others' tasks, Forbidden for watchers.
    contract: user_tasks §4.7
    """
    status = await get(session, uuid, caller=caller, own=True)
    tree = await _inside(session, status)
    changed = await _stop(session, tree, caller, now)
    if changed:
        await trees.save(session, tree, now=now)
        await session.refresh(status)
    return status, changed


async def _inside(session: AsyncSession, status: Status) -> Tree:
    """A task and all it holds, locked. Raises StatusUnknown when it was just deleted."""
    tree = await trees.load_inside(session, status)
    if status.uuid not in tree.rows or tree.rows[status.uuid]["deleted_at"] is not None:
        raise StatusUnknown
    return tree


async def _stop(session: AsyncSession, tree: Tree, caller: Caller, now: datetime) -> bool:
    """Everything asked for that has not ended is canceled; containers above follow by rule."""
    asked = [tree.rows[uuid] for uuid in tree.wanted]
    stopped = [row for row in asked if not State(row["state"]).final]
    for row in stopped:
        row["state"], row["finished_at"] = State.CANCELED.value, now
        row["canceled_by"] = caller.username
        row["modified"] = max(row["modified"], now)
    await _stop_work(session, [row for row in stopped if not row["is_container"]])
    return bool(stopped)


async def _stop_work(session: AsyncSession, stopped: Iterable[Row]) -> None:
    notes = [{"task_id": str(row["uuid"]), "by": row["canceled_by"]} for row in stopped]
    await outbox.send_many(session, "dispatcher", "on_cancel_requested", notes)


async def delete(session: AsyncSession, uuid: UUID, *, caller: Caller, now: datetime) -> list[str]:
    """Remove a task with its artifacts, a container with all it holds.

    Work still under way is asked to stop. Returns the files to remove once this is committed.
    Raises StatusUnknown, Forbidden for watchers.
    """
    status = await get(session, uuid, caller=caller, own=True)
    tree = await _inside(session, status)
    await _stop(session, tree, caller, now)
    for ident in tree.wanted:
        row = tree.rows[ident]
        row["deleted_at"] = row["deleted_at"] or now
    await trees.save(session, tree, now=now)
    return await artifacts.delete_all(session, list(tree.wanted))


async def get(session: AsyncSession, uuid: UUID, *, caller: Caller, own: bool = False) -> Status:
    """A task this caller may see: its user, those who watch it, superusers, our services.

    `own`: to change it, which those who only watch may not. Raises StatusUnknown, Forbidden.
    """
    query = select(Status).where(col(Status.uuid) == uuid, *permissions.visible_to(caller))
    status = (await session.exec(query)).first()
    if status is None:
        raise StatusUnknown
    if own:
        permissions.require_own(status, caller)
    return status


async def going(session: AsyncSession, root_id: UUID) -> set[UUID]:
    """What has not ended in a tree."""
    query = select(Status.uuid).where(
        Status.root_id == root_id,
        col(Status.state).not_in([state for state in State if state.final]),
        col(Status.deleted_at).is_(None),
    )
    return set(await session.exec(query))


async def page(
    session: AsyncSession,
    *,
    conditions: Iterable[Any],
    size: int,
    after: tuple[datetime, UUID] | None = None,
) -> Sequence[Status]:
    """Tasks, newest first, behind a position."""
    query = select(Status).where(*conditions)
    if after is not None:
        position = func.row(col(Status.created), col(Status.uuid))
        query = query.where(position < func.row(*after))
    query = query.order_by(col(Status.created).desc(), col(Status.uuid).desc()).limit(size)
    return (await session.exec(query)).all()
