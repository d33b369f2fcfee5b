"""Telling other processes, after a commit, that there is something new for them."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from shared.database import after_commit

CANCEL_CHANNEL = "lyceum:cancel"


def wake_later(session: AsyncSession, queues: Iterable[str]) -> None:
    """When this transaction is committed, wake a worker of each of these queues."""
    pusher: Any = session.info.get("pusher")
    names = set(queues)
    if pusher is not None and names:
        after_commit(session, lambda: pusher.wake(names))


def push_after_commit(session: AsyncSession, canceling: list[UUID] | None = None) -> None:
    """When this transaction is committed, tell the workers of the tasks it canceled."""
    pusher: Any = session.info.get("pusher")
    if pusher is not None and canceling:
        after_commit(session, lambda: pusher.tell_soon(canceling))
