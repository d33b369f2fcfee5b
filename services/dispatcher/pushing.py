"""Handing ready tasks to their owners' queues.

Redis only carries. A task stays ready in the database until a worker has started it, so a push
that was lost, with Redis or with this process, is made again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import runs, workers
from services.dispatcher.settings import Settings
from shared.database import Sessions, after_commit, remember, utc_now
from shared.loops import end, wait_for_news
from shared.problems import Unavailable
from shared.queue import Queue

log = structlog.get_logger("dispatcher")

BATCH = 200
CANCEL_CHANNEL = "lyceum:cancel"

_UNPUSHED = text("""
    select id, queue, name, arguments, attempt, username from task
    where state = 'waiting' and blocked_by = 0 and pushed_at is null
    order by seq limit :batch for update skip locked
""")
_PUSHED = text("update task set pushed_at = :now where id = any(cast(:ids as uuid[]))")
_FORGOTTEN = text("""
    update task set pushed_at = null
    where id in (
      select id from task
      where state = 'waiting' and blocked_by = 0 and pushed_at < :limit
      order by pushed_at limit :batch for update skip locked)
""")


class Pusher:
    """Pushes what became ready, soon after the commit that made it so."""

    def __init__(self, sessions: Sessions, queue: Queue, settings: Settings) -> None:
        self._sessions, self._queue, self._settings = sessions, queue, settings
        self._news = asyncio.Event()
        self._telling: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Something may have become ready."""
        self._news.set()

    def tell_soon(self, ids: list[UUID]) -> None:
        """Tell the workers of running tasks, without waiting for it."""
        if ids:
            task = asyncio.create_task(self.tell_to_cancel(ids))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def push(self) -> int:
        """Push up to one batch. Returns how many were ready. Raises Unavailable without Redis."""
        async with self._sessions.begin() as session:
            connection = await session.connection()
            ready = (await connection.execute(_UNPUSHED, {"batch": BATCH})).all()
            await asyncio.gather(*(self._hand_over(row) for row in ready))
            if ready:
                ids = [row.id for row in ready]
                await connection.execute(_PUSHED, {"ids": ids, "now": utc_now()})
        return len(ready)

    async def _hand_over(self, row: Any) -> None:
        await self._queue.push(
            row.queue,
            "run_task",
            job_id=f"task:{row.id}:{row.attempt}",
            task_id=str(row.id),
            function_name=row.name.removeprefix(f"{row.queue}."),
            arguments=row.arguments,
            attempt=row.attempt,
            username=row.username,
        )

    async def tell_to_cancel(self, ids: list[UUID]) -> None:
        """Tell the workers of running tasks at once; if Redis is away, their heartbeat will."""
        with contextlib.suppress(Unavailable, OSError):
            redis = await self._queue.redis()
            for task_id in ids:
                await redis.publish(CANCEL_CHANNEL, str(task_id))

    async def run(self) -> None:
        while True:
            self._news.clear()
            try:
                while await self.push() == BATCH:
                    pass
            except Unavailable as problem:
                log.warning("dispatcher.push_waits", why=problem.detail)
                await asyncio.sleep(0.5)
                continue
            except Exception:  # The pusher outlives any outage of its stores.
                log.exception("dispatcher.push_failed")
                await asyncio.sleep(0.5)
                continue
            await wait_for_news(self._news, self._settings.sweep_seconds)

    async def sweep(self) -> None:
        """Give up lost workers, and push again what was pushed long ago and never started."""
        now = utc_now()
        async with self._sessions.begin() as session:
            await workers.forgive_own_absence(session, now=now, ttl=self._settings.worker_ttl)
            lost = await runs.give_up_lost_workers(
                session,
                now=now,
                ttl=self._settings.worker_ttl,
                most_attempts=self._settings.most_attempts,
            )
        for worker_id in lost:
            log.warning("dispatcher.worker_lost", worker=str(worker_id))
        async with self._sessions.begin() as session:
            await forget_unstarted(session, before=now - self._settings.repush_after)
        self.wake()

    async def sweep_for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:  # The sweep outlives any outage of its database.
                log.exception("dispatcher.sweep_failed")
            await asyncio.sleep(self._settings.sweep_seconds)


def push_after_commit(session: AsyncSession, canceling: list[UUID] | None = None) -> None:
    """When this transaction is committed, push what it made ready and tell whom it canceled."""
    pusher: Pusher | None = session.info.get("pusher")
    if pusher is not None:
        after_commit(session, pusher.wake)
        after_commit(session, lambda: pusher.tell_soon(canceling or []))


async def forget_unstarted(session: AsyncSession, *, before: datetime) -> None:
    """Let tasks that were pushed before this moment, and not started since, be pushed again."""
    connection = await session.connection()
    await connection.execute(_FORGOTTEN, {"limit": before, "batch": 1000})


@contextlib.asynccontextmanager
async def pushing(app: FastAPI) -> AsyncIterator[None]:
    """Push and sweep while the web process lives."""
    pusher = Pusher(app.state.database.sessions, app.state.queue, app.state.settings)
    app.state.pusher = pusher
    remember(app.state.database.sessions, "pusher", pusher)
    loops = [asyncio.create_task(pusher.run()), asyncio.create_task(pusher.sweep_for_ever())]
    try:
        yield
    finally:
        await end(loops)
