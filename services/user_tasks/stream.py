"""Handing events to those who follow, as they are committed.

One reader in each web process reads new events once, for all who are connected to it: the
database does the same work for one follower and for ten thousand. Redis only says that there is
something new; without it the reader looks by itself every second.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import structlog
from fastapi import FastAPI
from redis.exceptions import RedisError

from services.user_tasks import events
from services.user_tasks.events import CHANNEL, Scope
from services.user_tasks.settings import Settings
from shared.database import Sessions, remember
from shared.loops import end, wait_for_news
from shared.problems import Unavailable
from shared.queue import Queue

log = structlog.get_logger("stream")
BATCH = 1000
HELD = 1000
POLL_SECONDS = 1.0
PAUSE_SECONDS = 0.5


class Follower:
    """One connection: what it has not been sent yet, in order, and never more than it can hold."""

    def __init__(self, scope: Scope, position: int) -> None:
        self.scope, self.position = scope, position
        self.news = asyncio.Event()
        self.waiting: list[dict[str, Any]] = []
        self.closed = False

    def offer(self, event: dict[str, Any]) -> None:
        if event["id"] <= self.position or self.closed:
            return
        if len(self.waiting) >= HELD:
            # It is slower than the events come: it shall come again and read from the table.
            self.closed = True
        else:
            self.waiting.append(event)
        self.news.set()


class Stream:
    """The followers of this process, and the one reader."""

    def __init__(self, sessions: Sessions, queue: Queue, settings: Settings) -> None:
        self._sessions, self._queue, self._settings = sessions, queue, settings
        self._followers: set[Follower] = set()
        self._news = asyncio.Event()
        self._position: int | None = None
        self.per_user: Counter[str] = Counter()
        self.reads = 0
        self._telling: asyncio.Task[None] | None = None
        self._untold = False

    def wake(self) -> None:
        """This process committed events: its own followers hear at once, others through Redis."""
        self._news.set()
        self._untold = True
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_others())

    async def _tell_others(self) -> None:
        with contextlib.suppress(Unavailable, RedisError, OSError):
            while self._untold:
                self._untold = False
                await (await self._queue.redis()).publish(CHANNEL, "1")

    def join(self, follower: Follower) -> None:
        self._followers.add(follower)

    def leave(self, follower: Follower) -> None:
        self._followers.discard(follower)

    async def close(self) -> None:
        """End every connection, so that the process can stop."""
        for follower in self._followers:
            follower.closed = True
            follower.news.set()
        if self._telling is not None:
            await end([self._telling])

    async def read_for_ever(self) -> None:
        while True:
            self._news.clear()
            try:
                while await self.read() == BATCH:
                    pass
            except Exception:  # The reader outlives any outage of its database.
                log.exception("stream.read_failed")
                await asyncio.sleep(PAUSE_SECONDS)
            await wait_for_news(self._news, POLL_SECONDS)

    async def read(self) -> int:
        """Read what is new, once, and offer it to everyone. Returns how much it was."""
        async with self._sessions() as session:
            if self._position is None:
                self._position = await events.newest(session)
            rows = await events.after(session, self._position, most=BATCH)
        self.reads += 1
        for row in rows:
            for follower in self._followers:
                if follower.scope.covers(row):
                    follower.offer(row)
        if rows:
            self._position = rows[-1]["id"]
        return len(rows)

    async def listen_for_ever(self) -> None:
        while True:
            try:
                redis = await self._queue.redis()
                async with redis.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    async for message in channel.listen():
                        if message["type"] == "message":
                            self._news.set()
            except (Unavailable, RedisError, OSError):
                await asyncio.sleep(1.0)

    async def follow(
        self, scope: Scope, position: int | None, *, live: bool = True
    ) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Events behind a position, then new ones as they come; None when nothing came for long.

        Without a position: new ones only, or without `live` all that are kept. First a `reset`
        when events behind the position are forgotten already. Ends when the follower is too slow
        or the process stops, and without `live` after what there is.
        """
        async with self._sessions() as session:
            newest, oldest = await events.newest(session), await events.oldest(session)
        beginning = newest if live else 0
        start = beginning if position is None else min(position, newest)
        follower = Follower(scope, start)
        self.join(follower)
        try:
            if position is not None and position != start:
                yield {"id": start, "kind": "reset"}
            elif position is not None and oldest > position + 1 and position < newest:
                yield {"id": oldest - 1, "kind": "reset"}
            async for event in self._missed(follower):
                yield event
            if not live:
                return
            while not follower.closed or follower.waiting:
                if not follower.waiting:
                    follower.news.clear()
                    await wait_for_news(follower.news, self._settings.stream_heartbeat_seconds)
                    if not follower.waiting and not follower.closed:
                        yield None
                taken, follower.waiting = follower.waiting, []
                for event in taken:
                    if event["id"] > follower.position:
                        follower.position = event["id"]
                        yield event
        finally:
            self.leave(follower)

    async def _missed(self, follower: Follower) -> AsyncIterator[dict[str, Any]]:
        """What is in the table already; what comes meanwhile is held for afterwards."""
        while True:
            async with self._sessions() as session:
                rows = await events.after(
                    session, follower.position, most=BATCH, scope=follower.scope
                )
            for row in rows:
                follower.position = row["id"]
                yield row
            if len(rows) < BATCH:
                return


@contextlib.asynccontextmanager
async def streaming(app: FastAPI) -> AsyncIterator[None]:
    """Read and hand out events while the web process lives."""
    state = app.state
    stream = Stream(state.database.sessions, state.queue, state.settings)
    state.stream = stream
    remember(state.database.sessions, "stream_wake", stream.wake)
    loops = [
        asyncio.create_task(stream.read_for_ever()),
        asyncio.create_task(stream.listen_for_ever()),
    ]
    try:
        yield
    finally:
        await end(loops)
        await stream.close()
