"""Telling other processes, after a commit, that there is something new for them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from shared.database import after_commit

CANCEL_CHANNEL = "lyceum:cancel"


def wake_later(session: AsyncSession, ready: Iterable[Mapping[str, Any]]) -> None:
    """When this transaction is committed, wake the queues of these ready tasks (id, queue).

    Those that are taken in the same transaction wake nobody.
    """
    waiting = _waiting(session)
    if waiting is not None:
        waiting.update((row["id"], row["queue"]) for row in ready)


def taken(session: AsyncSession, rows: Sequence[Mapping[str, Any]], *, more: bool) -> None:
    """A worker took these in this transaction; perhaps there are more than it has room for."""
    waiting = _waiting(session)
    if waiting is not None and rows:
        for row in rows:
            waiting.pop(row["id"], None)
        if more:
            waiting[rows[0]["id"]] = rows[0]["queue"]


def _waiting(session: AsyncSession) -> dict[UUID, str] | None:
    pusher: Any = session.info.get("pusher")
    if pusher is None:
        return None
    if "waiting" not in session.info:
        waiting: dict[UUID, str] = {}
        session.info["waiting"] = waiting

        def wake() -> None:
            pusher.wake(set(waiting.values()))
            waiting.clear()

        after_commit(session, wake)
    found: dict[UUID, str] = session.info["waiting"]
    return found


def push_after_commit(session: AsyncSession, canceling: list[UUID] | None = None) -> None:
    """When this transaction is committed, tell the workers of the tasks it canceled."""
    pusher: Any = session.info.get("pusher")
    if pusher is not None and canceling:
        after_commit(session, lambda: pusher.tell_soon(canceling))
