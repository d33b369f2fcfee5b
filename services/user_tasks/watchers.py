"""People besides the owner who may see a task and follow it. contract: user_tasks §10"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import events, statuses
from services.user_tasks.errors import TooManyWatchers, WatcherUnknown
from services.user_tasks.models import Watcher
from shared.callers import Caller

MOST = 200


async def names(session: AsyncSession, uuid: UUID, *, caller: Caller) -> Sequence[str]:
    """Who watches a task. Raises StatusUnknown, Forbidden for those who only watch it."""
    await statuses.get(session, uuid, caller=caller, own=True)
    query = select(Watcher.username).where(Watcher.status_id == uuid)
    return list(await session.exec(query.order_by(col(Watcher.username))))


async def get(session: AsyncSession, uuid: UUID, username: str, *, caller: Caller) -> Watcher:
    """One watcher; people may also look themselves up. Raises WatcherUnknown and as `names`."""
    await statuses.get(session, uuid, caller=caller, own=username != caller.username)
    watcher = await session.get(Watcher, (uuid, username))
    if watcher is None:
        raise WatcherUnknown
    return watcher


async def count(session: AsyncSession, uuid: UUID) -> int:
    """How many watch a task."""
    query = select(func.count()).where(col(Watcher.status_id) == uuid)
    return (await session.exec(query)).one()


async def add(
    session: AsyncSession, uuid: UUID, username: str, *, caller: Caller, now: datetime
) -> None:
    """Let somebody watch a task, and all it holds. Raises TooManyWatchers, and as `names`."""
    await statuses.get(session, uuid, caller=caller, own=True)
    if await count(session, uuid) >= MOST:
        raise TooManyWatchers
    values = {
        "status_id": uuid, "username": username, "added_by": caller.username, "created": now,
    }  # fmt: skip
    await session.exec(insert(Watcher).values(**values).on_conflict_do_nothing())


async def remove(
    session: AsyncSession, uuid: UUID, username: str, *, caller: Caller, now: datetime
) -> None:
    """Somebody watches a task no more; watchers may remove themselves. Raises as `names` does.

    What they follow at this moment ends.
    """
    themselves = username == caller.username
    status = await statuses.get(session, uuid, caller=caller, own=not themselves)
    gone = await session.exec(
        delete(Watcher).where(col(Watcher.status_id) == uuid, col(Watcher.username) == username)
    )
    if gone.rowcount:
        await events.watcher_removed(session, status.model_dump(), username, now=now)
