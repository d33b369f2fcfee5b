"""Waiting for leases: all who wait in one process share one look at the database.

A grant may be made in any process. Redis tells the others at once; when that is lost, the next
look does. PostgreSQL decides what is so.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from uuid import UUID

import structlog
from fastapi import FastAPI
from redis.exceptions import RedisError

from services.dispatcher import leases
from services.dispatcher.errors import LeaseLost, ResourcesBusy
from services.dispatcher.models import Task
from services.dispatcher.schemas import LeaseRequest
from services.dispatcher.settings import Settings
from services.dispatcher.states import State
from services.dispatcher.waking import LEASE_CHANNEL
from shared.callers import Caller
from shared.database import Sessions, utc_now
from shared.loops import end, wait_for_news
from shared.problems import Unavailable
from shared.queue import Queue

log = structlog.get_logger("leases")

PAUSE_SECONDS = 1.0
Gone = Callable[[], Awaitable[None]]


class LeaseWaits:
    """Everyone in this process who waits for a lease."""

    def __init__(self, sessions: Sessions, queue: Queue, settings: Settings) -> None:
        self._sessions, self._queue, self._settings = sessions, queue, settings
        self._waiting: dict[UUID, list[asyncio.Event]] = {}
        self._somebody, self._news = asyncio.Event(), asyncio.Event()

    async def take(self, request: LeaseRequest, *, caller: Caller, gone: Gone) -> Task:
        """A lease that is held, after a wait if need be. `gone` returns when the caller left:
        nothing is held for it then.

        Raises what `leases.take` does, ResourcesBusy after the wait, or LeaseLost when the lease
        was canceled meanwhile.
        """
        async with self._sessions.begin() as session:
            lease = await leases.take(
                session, request, caller=caller, settings=self._settings, now=utc_now()
            )
        if lease.state is State.RUNNING:
            return lease
        left = True
        try:
            left = await self._turn_or_end(lease.id, request.wait_seconds, gone)
        finally:
            # Also when this request itself is canceled.
            async with self._sessions.begin() as session:
                lease, busy = await leases.conclude(session, lease, now=utc_now(), gone=left)
        if lease.state is State.RUNNING:
            return lease
        raise ResourcesBusy(resources=busy) if busy else LeaseLost(leases.ENDED)

    async def _turn_or_end(self, lease_id: UUID, seconds: float, gone: Gone) -> bool:
        """Until the lease waits no longer, the time is over, or the caller left: whether it did."""
        with self._listening(lease_id) as heard:
            turn = asyncio.ensure_future(heard.wait())
            leaving = asyncio.ensure_future(gone())
            try:
                await asyncio.wait(
                    {turn, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
                return leaving.done() and not turn.done()
            finally:
                turn.cancel()
                leaving.cancel()

    @contextlib.contextmanager
    def _listening(self, lease_id: UUID) -> Iterator[asyncio.Event]:
        heard = asyncio.Event()
        self._waiting.setdefault(lease_id, []).append(heard)
        self._somebody.set()
        self._news.set()
        try:
            yield heard
        finally:
            self._waiting[lease_id].remove(heard)
            if not self._waiting[lease_id]:
                del self._waiting[lease_id]
            if not self._waiting:
                self._somebody.clear()

    async def look_for_ever(self) -> None:
        """One query for all who wait, when there is news and otherwise now and then."""
        while True:
            await self._somebody.wait()
            self._news.clear()
            try:
                await self._look()
            except Exception:  # The look outlives any outage of its database.
                log.exception("leases.look_failed")
            await wait_for_news(self._news, self._settings.lease_poll_seconds)

    async def _look(self) -> None:
        async with self._sessions.begin() as session:
            decided = await leases.decided(session, list(self._waiting))
        for lease_id in decided:
            for heard in self._waiting.get(lease_id, ()):
                heard.set()

    async def listen_for_ever(self) -> None:
        """News from the processes in which leases are granted."""
        while True:
            try:
                redis = await self._queue.redis()
                async with redis.pubsub() as channel:
                    await channel.subscribe(LEASE_CHANNEL)
                    async for _ in channel.listen():
                        self._news.set()
            except (Unavailable, RedisError, OSError):
                await asyncio.sleep(PAUSE_SECONDS)


@contextlib.asynccontextmanager
async def waiting(app: FastAPI) -> AsyncIterator[None]:
    """Callers can wait for leases while the web process lives."""
    state = app.state
    state.lease_waits = LeaseWaits(state.database.sessions, state.queue, state.settings)
    loops = [
        asyncio.create_task(state.lease_waits.look_for_ever()),
        asyncio.create_task(state.lease_waits.listen_for_ever()),
    ]
    try:
        yield
    finally:
        await end(loops)
