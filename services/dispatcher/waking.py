"""Telling other processes, after a commit, that there is something new for them."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from shared.database import after_commit

CANCEL_CHANNEL = "lyceum:cancel"
# The queue of leases: no worker takes from it, those who wait for a lease listen to its channel.
LEASES = "lease"
LEASE_CHANNEL = "lyceum:leases"


def wake_later(session: AsyncSession, ready: Iterable[Mapping[str, Any]]) -> None:
    """When this transaction is committed, wake the queues of these ready tasks (id, queue).

    Those that are taken in the same transaction wake nobody.
    """
    waiting = _waiting(session)
    if waiting is not None:
        waiting.update((str(row["id"]), row["queue"]) for row in ready)


def taken(session: AsyncSession, rows: Iterable[Mapping[str, Any]]) -> None:
    """These were taken in this transaction."""
    waiting = _waiting(session)
    if waiting is not None:
        for row in rows:
            waiting.pop(str(row["id"]), None)


def _waiting(session: AsyncSession) -> dict[str, str] | None:
    pusher: Any = session.info.get("pusher")
    if pusher is None:
        return None
    if "waiting" not in session.info:
        waiting: dict[str, str] = {}
        session.info["waiting"] = waiting

        def wake() -> None:
            pusher.wake(set(waiting.values()))
            waiting.clear()

        after_commit(session, wake)
    found: dict[str, str] = session.info["waiting"]
    return found


def push_after_commit(session: AsyncSession, canceling: list[UUID] | None = None) -> None:
    """When this transaction is committed, tell the workers of the tasks it canceled."""
    pusher: Any = session.info.get("pusher")
    if pusher is not None and canceling:
        after_commit(session, lambda: pusher.tell_soon(canceling))
