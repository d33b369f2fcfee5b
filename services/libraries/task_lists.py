"""Backups and restores somebody asked for: what became of them, and how long they are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client as dispatcher
from services.libraries import backup, restoring, staged, work
from services.libraries.models import Library, LibraryTask
from services.libraries.settings import Settings
from services.user_tasks import client as user_tasks
from services.user_tasks.schemas import StatusView
from shared.callers import Caller
from shared.clients import ServiceClients

KINDS = {backup.FUNCTION: "backup", restoring.FUNCTION: "restore"}
MOST = 20


@dataclass(frozen=True, slots=True)
class Listed:
    """One backup or restore: `expires` is when its archive or unused package is removed."""

    task_id: UUID
    kind: str
    created: datetime
    state: str
    url: str | None = None
    learning_package: int | None = None
    expires: datetime | None = None


async def page(
    session: AsyncSession,
    clients: ServiceClients,
    library_key: str,
    settings: Settings,
    *,
    caller: Caller,
    before: UUID | None = None,
) -> list[Listed]:
    """The caller's newest backups and restores of this library, at most MOST; then `before`."""
    query = (
        select(LibraryTask, Library)
        .outerjoin(Library, col(Library.uuid) == col(LibraryTask.task_id))
        .where(
            col(LibraryTask.library_key) == library_key,
            col(LibraryTask.username) == caller.username,
            col(LibraryTask.kind).in_(list(KINDS)),
        )
        .order_by(col(LibraryTask.task_id).desc())
        .limit(MOST)
    )
    if before is not None:
        query = query.where(col(LibraryTask.task_id) < before)
    rows: Sequence[Any] = (await session.exec(query)).all()
    known = await user_tasks.get_statuses(clients, [task.task_id for task, _ in rows])
    views = {view.uuid: view for view in known}
    return [_listed(task, package, views.get(task.task_id), settings) for task, package in rows]


def _listed(
    task: LibraryTask, package: Library | None, view: StatusView | None, settings: Settings
) -> Listed:
    state = view.base_state if view else _unknown(task, settings)
    url, expires, waiting = None, None, None
    if task.kind == backup.FUNCTION and view is not None:
        url = next((one.file for one in view.artifacts if one.name == backup.OUTPUT), None)
        if url and view.finished_at:
            expires = view.finished_at + timedelta(days=settings.max_age_days)
    if package is not None and package.staged_at is not None:
        waiting = package.id
        expires = package.staged_at + timedelta(hours=settings.staged_hours)
    kind = KINDS[task.kind]
    return Listed(task.task_id, kind, task.created, state, url, waiting, expires)


def _unknown(task: LibraryTask, settings: Settings) -> str:
    """News of a new task is on its way; what ended long ago is kept no more."""
    kept = timedelta(days=settings.max_age_days)
    return "Pending" if task.created > datetime.now(task.created.tzinfo) - kept else "Expired"


async def cancel_backup(
    session: AsyncSession, library: Library, task_id: UUID, *, caller: Caller
) -> None:
    """Stop the caller's backup; one that has ended stays. Raises LibraryTaskUnknown."""
    await work.get(session, task_id, kind=backup.FUNCTION, library_key=library.key, caller=caller)
    await dispatcher.cancel(session, task_id)


async def cancel_restore(session: AsyncSession, task_id: UUID, *, caller: Caller) -> UUID | None:
    """Stop the caller's restore, or give up what it made; a library made of it stays.

    Returns what the files of a package that is gone are under. Raises LibraryTaskUnknown.
    """
    await work.get(session, task_id, kind=restoring.FUNCTION, library_key=None, caller=caller)
    await dispatcher.cancel(session, task_id)
    return await staged.discard(session, task_id, user=caller.username)
