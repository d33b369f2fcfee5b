"""Handing events to those who follow, as they are committed.

One reader in each web process reads new events once, for all who are connected to it: the
database does the same work for one follower and for ten thousand. Redis only says that there is
something new; without it the reader looks by itself every second.
"""

import asyncio
import contextlib
import signal
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import structlog
from fastapi import FastAPI
from redis.exceptions import RedisError

from services.user_tasks import events
from services.user_tasks.events import CHANNEL, UNWATCHED, Bounds, Scope
from services.user_tasks.settings import Settings
from shared.database import Sessions, remember
from shared.loops import end, wait_for_news
from shared.problems import TooManyRequests, Unavailable
from shared.queue import Queue

log = structlog.get_logger("stream")
BATCH = 1000
HELD = 1000
POLL_SECONDS = 1.0
PAUSE_SECONDS = 0.5
# Between two reads: what is committed meanwhile is read together.
GATHER_SECONDS = 0.02
Event = dict[str, Any]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Start:
    """Behind which event a connection begins, and how."""

    position: int
    # What lies between is forgotten: the follower is told how things stand instead.
    reset: bool = False
    live: bool = True


def start(position: int | None, bounds: Bounds, *, ended: bool) -> Start | None:
    """Where to begin for somebody who has seen events up to a position, or comes for the first
    time. None: what they follow has ended, and they have seen all of it.

    First time of something that has ended: all that is kept of it.
    """
    if position is None:
        if ended:
            return Start(0, reset=bounds.last == 0, live=False)
        return Start(bounds.newest)
    if ended and bounds.last <= position <= bounds.newest:
        return None
    lost = position > bounds.newest or bounds.oldest > position + 1
    return Start(bounds.newest if lost else position, reset=lost, live=not ended)


class Follower:
    """One connection: what it has not been sent yet, in order, and never more than it can hold."""

    def __init__(self, scope: Scope, username: str) -> None:
        self.scope, self.username = scope, username
        self.position = 0
        self.news = asyncio.Event()
        self.waiting: list[Event] = []
        self.closed = False

    def offer(self, event: Event) -> None:
        if event["id"] <= self.position or self.closed:
            return
        if len(self.waiting) >= HELD:
            # It is slower than the events come: it shall come again and read from the table.
            self.closed = True
        else:
            self.waiting.append(event)
        self.news.set()

    def close(self) -> None:
        """Send what is waiting and end; the client comes again with its last id."""
        self.closed = True
        self.news.set()


class Stream:
    """The followers of this process, and the one reader."""

    def __init__(self, sessions: Sessions, queue: Queue, settings: Settings) -> None:
        self._sessions, self._queue, self._settings = sessions, queue, settings
        self._by_scope: dict[Scope, set[Follower]] = defaultdict(set)
        self._by_user: dict[str, set[Follower]] = defaultdict(set)
        self._news = asyncio.Event()
        self._position = 0
        self._telling: asyncio.Task[None] | None = None
        self._untold = False
        self._stopping = False

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

    def join(self, scope: Scope, username: str) -> Follower:
        """A new connection of this person. Raises TooManyRequests, Unavailable at the end."""
        if self._stopping:
            raise Unavailable("This process is about to stop; connect again.")
        most = self._settings.streams_per_user
        if len(self._by_user.get(username, ())) >= most:
            raise TooManyRequests(f"You have {most} streams open already.")
        follower = Follower(scope, username)
        self._by_scope[scope].add(follower)
        self._by_user[username].add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        _forget(self._by_scope, follower.scope, follower)
        _forget(self._by_user, follower.username, follower)

    def stop(self) -> None:
        """End every connection, so that the process can end."""
        self._stopping = True
        self._close_all()

    def _close_all(self) -> None:
        for followers in self._by_user.values():
            for follower in followers:
                follower.close()

    async def close(self) -> None:
        self.stop()
        if self._telling is not None:
            await end([self._telling])

    async def read_for_ever(self) -> None:
        while True:
            self._news.clear()
            try:
                while await self.read() == BATCH:
                    pass
                await asyncio.sleep(GATHER_SECONDS)
            except Exception:  # The reader outlives any outage of its database.
                log.exception("stream.read_failed")
                await asyncio.sleep(PAUSE_SECONDS)
            await wait_for_news(self._news, POLL_SECONDS)

    async def begin(self) -> None:
        """Find the place of the first read, before anybody joins."""
        async with self._sessions() as session:
            self._position = await events.newest(session)

    async def read(self) -> int:
        """Read what is new, once, and offer it to everyone. Returns how much it was."""
        async with self._sessions() as session:
            rows = await events.after(session, self._position, most=BATCH)
            newest = self._position if rows else await events.newest(session)
        if newest < self._position:
            self._begin_again(newest)
        for row in rows:
            self._hand_out(row)
        if rows:
            self._position = rows[-1]["id"]
        return len(rows)

    def _begin_again(self, newest: int) -> None:
        """The database was set back, to a copy or an older replica: nobody's position holds."""
        log.warning("stream.set_back", position=self._position, newest=newest)
        self._position = newest
        self._close_all()

    def _hand_out(self, event: Event) -> None:
        if event["kind"] == UNWATCHED:
            for follower in self._by_user.get(event["payload"]["username"], ()):
                follower.close()
            return
        for scope in events.scopes(event):
            for follower in self._by_scope.get(scope, ()):
                follower.offer(event)

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
        self, follower: Follower, position: int, *, live: bool = True
    ) -> AsyncGenerator[Event | None, None]:
        """Events behind a position, then new ones as they come; None when nothing came for a while.

        Ends when the follower is too slow, was connected for long enough or the process stops, and
        without `live` after what there is: whoever comes again with the last id misses nothing.
        """
        follower.position = position
        async for event in self._missed(follower):
            yield event
        limit = asyncio.get_running_loop().call_later(self._settings.stream_seconds, follower.close)
        try:
            while live and (follower.waiting or not follower.closed):
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
            limit.cancel()

    async def _missed(self, follower: Follower) -> AsyncIterator[Event]:
        """What is in the table already; what comes meanwhile is held for afterwards."""
        while not follower.closed:
            async with self._sessions() as session:
                rows = await events.kept(session, follower.scope, follower.position, most=BATCH)
            for row in rows:
                follower.position = row["id"]
                yield row
            if len(rows) < BATCH:
                return


def _forget(index: dict[Key, set[Follower]], key: Key, follower: Follower) -> None:
    index[key].discard(follower)
    if not index[key]:
        del index[key]


@contextlib.contextmanager
def before_the_server_waits(stop: Callable[[], None]) -> Iterator[None]:
    """Stop at the signal that ends the process.

    A server first waits for open answers to end and then ends the app: at the app's own end it
    would be too late.
    """
    loop, changed = asyncio.get_running_loop(), {}
    with contextlib.suppress(ValueError):  # Not the main thread: no signals here.
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if callable(before):
                changed[number] = (before, _both(loop, stop, before))
                signal.signal(number, changed[number][1])
    try:
        yield
    finally:
        for number, (before, ours) in changed.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, before)


def _both(
    loop: asyncio.AbstractEventLoop,
    stop: Callable[[], None],
    before: Callable[[int, FrameType | None], Any],
) -> Callable[[int, FrameType | None], Any]:
    def handle(number: int, frame: FrameType | None) -> Any:
        with contextlib.suppress(RuntimeError):  # The loop is closed already.
            loop.call_soon_threadsafe(stop)
        return before(number, frame)

    return handle


@contextlib.asynccontextmanager
async def streaming(app: FastAPI) -> AsyncIterator[None]:
    """Read and hand out events while the web process lives."""
    state = app.state
    stream = Stream(state.database.sessions, state.queue, state.settings)
    await stream.begin()
    state.stream = stream
    remember(state.database.sessions, "stream_wake", stream.wake)
    loops = [
        asyncio.create_task(stream.read_for_ever()),
        asyncio.create_task(stream.listen_for_ever()),
    ]
    try:
        with before_the_server_waits(stream.stop):
            yield
    finally:
        await end(loops)
        await stream.close()
