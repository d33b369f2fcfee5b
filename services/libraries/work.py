"""Work dispatched for a library, and the record of whose it is."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client as dispatcher
from services.dispatcher.schemas import TaskRequest, UserTaskSpec
from services.libraries.errors import LibraryTaskUnknown
from services.libraries.models import LibraryTask
from shared import outbox
from shared.callers import Caller


def request(
    function: str,
    library_key: str,
    *,
    caller: Caller,
    name: str,
    task_type: str,
    alone: bool,
    total_steps: int = 1,
    repeatable: bool = False,
    **arguments: Any,
) -> TaskRequest:
    """Describe work that needs a library: alone, or together with other readers."""
    return dispatcher.make_request(
        function,
        queue="libraries",
        kwargs={"library_key": library_key} | arguments,
        exclusive=[library_key] if alone else [],
        shared=[] if alone else [library_key],
        caller=caller,
        user_task=UserTaskSpec(
            name=name[:255],
            total_steps=total_steps,
            task_type=task_type,
            parameters={"library_key": library_key},
        ),
        repeatable=repeatable,
    )


async def record(
    session: AsyncSession,
    task: TaskRequest,
    *,
    caller: Caller,
    now: datetime,
    library_key: str | None = None,
) -> None:
    """Remember whose work this is, and of which library, for its status routes."""
    session.add(
        LibraryTask(
            task_id=task.id,
            library_key=library_key or str(task.arguments["library_key"]),
            kind=task.function,
            username=caller.username,
            created=now,
        )
    )
    await session.flush()


async def dispatch(
    session: AsyncSession, task: TaskRequest, *, caller: Caller, now: datetime
) -> UUID:
    """Ask for the work in this transaction, and remember whose it is."""
    await record(session, task, caller=caller, now=now)
    await outbox.send(session, dispatcher.SERVICE, "on_dispatch", task)
    return task.id


async def get(
    session: AsyncSession, task_id: UUID, *, kind: str, library_key: str | None, caller: Caller
) -> LibraryTask:
    """Work of this kind that this caller started for this library, or for any when it is None.

    Raises LibraryTaskUnknown.
    """
    task = await session.get(LibraryTask, task_id)
    own = task is not None and task.username == caller.username
    if task is None or not own or task.kind != kind:
        raise LibraryTaskUnknown
    if library_key is not None and task.library_key != library_key:
        raise LibraryTaskUnknown
    return task
