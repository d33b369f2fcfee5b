"""Waking the workers of queues in which tasks became ready, and what is swept regularly.

Redis only carries wake-ups: a worker then takes what is ready by an exchange with the dispatcher.
A wake-up that was lost, with Redis or with this process, is sent again while tasks stay ready.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from uuid import UUID

import structlog
from fastapi import FastAPI
from redis.exceptions import RedisError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import leases, runs, schedules, workers
from services.dispatcher.settings import Settings
from services.dispatcher.waking import CANCEL_CHANNEL, LEASE_CHANNEL, LEASES
from shared import ids
from shared.database import Sessions, driver, remember, utc_now
from shared.loops import end, wait_for_news
from shared.problems import Unavailable
from shared.queue import Queue

log = structlog.get_logger("dispatcher")

WAKE_UP = "take_work"
LEFT = timedelta(seconds=1)
PAUSE_SECONDS = 0.5
# Between two wake-ups: about as often as a worker looks for them.
GATHER_SECONDS = 0.02

# Hops from queue to queue over the index of ready tasks, however many there are.
_LEFT_READY = """
with recursive waiting as (
  (select queue from task
   where state || '' = 'waiting' and blocked_by = 0 and lease_seconds is null and retry_at is null
   order by queue limit 1)
  union all
  select (select task.queue from task
          where state || '' = 'waiting' and blocked_by = 0 and lease_seconds is null
            and retry_at is null and task.queue > waiting.queue
          order by task.queue limit 1)
  from waiting where waiting.queue is not null
)
select queue from waiting where queue is not null
"""


class Pusher:
    """Wakes workers soon after the commit that made something ready."""

    def __init__(self, sessions: Sessions, queue: Queue, settings: Settings) -> None:
        self._sessions, self._queue, self._settings = sessions, queue, settings
        self._news = asyncio.Event()
        self._waking: set[str] = set()
        self._telling: set[asyncio.Task[None]] = set()

    def wake(self, queues: Iterable[str]) -> None:
        """Something became ready in these queues."""
        before = len(self._waking)
        self._waking.update(queues)
        if len(self._waking) > before:
            self._news.set()

    def tell_soon(self, ids: list[UUID]) -> None:
        """Tell the workers of running tasks, without waiting for it."""
        if ids:
            task = asyncio.create_task(self.tell_to_cancel(ids))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def push(self) -> None:
        """One wake-up for each queue with news. Raises Unavailable without Redis."""
        queues, self._waking = self._waking, set()
        try:
            for queue in sorted(queues):
                await self._wake(queue)
                queues.discard(queue)
        finally:
            self._waking |= queues

    async def _wake(self, queue: str) -> None:
        if queue != LEASES:
            await self._queue.push(queue, WAKE_UP, job_id=f"wake:{ids.new_id()}")
            return
        try:
            await (await self._queue.redis()).publish(LEASE_CHANNEL, "")
        except (RedisError, OSError) as error:
            raise Unavailable("Redis cannot be reached.") from error

    async def tell_to_cancel(self, ids: list[UUID]) -> None:
        """Tell the workers of running tasks at once; if Redis is away, their heartbeat will."""
        with contextlib.suppress(Unavailable, OSError):
            redis = await self._queue.redis()
            for task_id in ids:
                await redis.publish(CANCEL_CHANNEL, str(task_id))

    async def run(self) -> None:
        while True:
            await wait_for_news(self._news, self._settings.sweep_seconds)
            self._news.clear()
            try:
                await self.push()
                await asyncio.sleep(GATHER_SECONDS)
            except Unavailable as problem:
                log.warning("dispatcher.wake_up_waits", why=problem.detail)
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:  # The pusher outlives any outage of its stores.
                log.exception("dispatcher.wake_up_failed")
                await asyncio.sleep(PAUSE_SECONDS)

    async def sweep(self) -> None:
        """Give up lost workers, repeat what is due, and wake queues that were not heard."""
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
            await leases.expire(session, now=now)
            await runs.repeat_due(session, now=now)
            self.wake(await queues_left_ready(session))
        await schedules.dispatch_due(self._sessions, now=now)

    async def sweep_for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:  # The sweep outlives any outage of its database.
                log.exception("dispatcher.sweep_failed")
            await asyncio.sleep(self._settings.sweep_seconds)


async def queues_left_ready(session: AsyncSession) -> list[str]:
    """Queues in which tasks are ready."""
    rows = await (await driver(session)).fetch(_LEFT_READY)
    return [row["queue"] for row in rows]


@contextlib.asynccontextmanager
async def pushing(app: FastAPI) -> AsyncIterator[None]:
    """Wake and sweep while the web process lives."""
    pusher = Pusher(app.state.database.sessions, app.state.queue, app.state.settings)
    app.state.pusher = pusher
    remember(app.state.database.sessions, "pusher", pusher)
    loops = [asyncio.create_task(pusher.run()), asyncio.create_task(pusher.sweep_for_ever())]
    try:
        yield
    finally:
        await end(loops)
