"""People besides the owner who may see a task and follow it. contract: user_tasks §10"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import statuses
from services.user_tasks.models import Watcher
from shared.callers import Caller


async def names(session: AsyncSession, uuid: UUID, *, caller: Caller) -> Sequence[str]:
    """Who watches a task. Raises StatusUnknown, Forbidden for those who only watch it."""
    await statuses.get(session, uuid, caller=caller, own=True)
    query = select(Watcher.username).where(Watcher.status_id == uuid)
    return list(await session.exec(query.order_by(col(Watcher.username))))


async def add(
    session: AsyncSession, uuid: UUID, username: str, *, caller: Caller, now: datetime
) -> None:
    """Let somebody watch a task, and all it holds. Raises as `names` does."""
    await statuses.get(session, uuid, caller=caller, own=True)
    values = {
        "status_id": uuid, "username": username, "added_by": caller.username, "created": now,
    }  # fmt: skip
    await session.exec(insert(Watcher).values(**values).on_conflict_do_nothing())


async def remove(session: AsyncSession, uuid: UUID, username: str, *, caller: Caller) -> None:
    """Somebody watches a task no more; watchers may remove themselves. Raises as `names` does."""
    themselves = username == caller.username
    await statuses.get(session, uuid, caller=caller, own=not themselves)
    await session.exec(
        delete(Watcher).where(col(Watcher.status_id) == uuid, col(Watcher.username) == username)
    )
