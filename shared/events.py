"""Events: facts published for anyone, on one Redis stream per service.

An event is a row written with what it tells of, as the last thing before the commit. A relay puts
rows on the stream and deletes them afterwards: at least once, whatever is killed, and within a
topic in the order of the commits. Consumers treat an event as news that something is to be read
again; its `id` tells one that comes twice.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from redis.exceptions import RedisError
from sqlalchemy import BigInteger, Column, Identity, Table, Text, event, func, text
from sqlalchemy.dialects.postgresql import UUID as Uuid
from sqlalchemy.orm import Session, SessionTransaction
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.database import Json, Sessions, UTCDateTime, begun, driver, remember
from shared.loops import end, wait_for_news
from shared.metrics import EVENTS_PUBLISHED
from shared.problems import Unavailable
from shared.queue import Queue
from shared.settings import ServiceSettings

log = structlog.get_logger("events")

BATCH = 500
REST_SECONDS = 2.0
# Between the news and the round it asks for, so that what is told at the same time goes together.
GATHER_SECONDS = 0.02
_LOCK = 7120044


@dataclass(frozen=True, slots=True)
class Event:
    """A fact: its public name, and the few words that say what it is about."""

    name: str
    data: dict[str, Any]


def event_table(base: type[SQLModel]) -> Table:
    """Where one service's events wait for the stream. Call once in its models."""
    return Table(
        "event_outbox",
        base.metadata,
        Column("id", BigInteger, Identity(), primary_key=True),
        Column("topic", Text, nullable=False),
        Column("event_id", Uuid(as_uuid=True), nullable=False),
        Column("name", Text, nullable=False),
        Column("data", Json, nullable=False),
        Column("at", UTCDateTime, nullable=False, server_default=func.now()),
    )


def publish(session: AsyncSession, topic: str, events: Sequence[Event]) -> None:
    """Tell everyone when, and only if, this transaction commits."""
    if not events:
        return
    sync = session.sync_session
    told = sync.info.setdefault("events", [])
    told += [(topic, one, sync.get_nested_transaction()) for one in events]


# The lock is taken at the very end, when the transaction waits for nothing else any more: so it
# cannot be part of a deadlock, and numbers are given in the order of the commits.
_STORE = """
    with turn as materialized (
      select count(cast(pg_advisory_xact_lock($1, hashtext(topic)) as text)) as topics
      from (select distinct topic from unnest(cast($2 as text[])) as topic order by 1)
    )
    insert into event_outbox (topic, event_id, name, data)
    select topic, gen_random_uuid(), name, data
    from turn, jsonb_to_recordset(cast(cast($3 as text) as jsonb))
      as r (place int, topic text, name text, data jsonb)
    order by place
"""


@event.listens_for(Session, "before_commit")
def _store(session: Session) -> None:
    if not session.info.get("events") or session.in_nested_transaction():
        return
    # Told twice in one transaction is news once: at its last place.
    rows: dict[bytes, dict[str, Any]] = {}
    for topic, one, _ in session.info["events"]:
        same = orjson.dumps([topic, one.name, one.data])
        rows.pop(same, None)
        rows[same] = {"topic": topic, "name": one.name, "data": one.data}
    session.info["events"] = []
    session.flush()
    topics = sorted({row["topic"] for row in rows.values()})
    placed = [row | {"place": place} for place, row in enumerate(rows.values())]
    values = (_LOCK, topics, orjson.dumps(placed).decode())
    connection: Any = session.connection().connection.dbapi_connection

    async def append(_: Any) -> None:
        await (await begun(connection)).execute(_STORE, *values)

    connection.run_async(append)
    session.info["events_told"] = True


@event.listens_for(Session, "after_commit")
def _wake(session: Session) -> None:
    if session.info.pop("events_told", False) and "events_wake" in session.info:
        session.info["events_wake"]()


@event.listens_for(Session, "after_soft_rollback")
def _forget(session: Session, ended: SessionTransaction) -> None:
    """What was told inside a savepoint that is rolled back never happened."""
    if session.info.get("events"):
        session.info["events"] = [
            told for told in session.info["events"] if ended.nested and not _within(told[2], ended)
        ]


def _within(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


_OLDEST = "select id, event_id, name, topic, data, at from event_outbox order by id limit $1"
_DONE = "delete from event_outbox where id = any($1)"


class EventRelay:
    """Puts this service's events on its stream until stopped. Any number may run; one works."""

    def __init__(
        self, sessions: Sessions, queue: Queue, service: str, *, poll_seconds: float, longest: int
    ) -> None:
        self._sessions, self._queue, self._service = sessions, queue, service
        self._poll, self._longest = poll_seconds, longest
        self._news = asyncio.Event()
        remember(sessions, "events_wake", self._news.set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["EventRelay"]:
        task = asyncio.create_task(self._run(), name="event-relay")
        try:
            yield self
        finally:
            await end([task])

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                while await self.deliver() == BATCH:
                    pass
            except asyncio.CancelledError:
                raise
            except (Unavailable, RedisError, OSError) as problem:
                log.warning("events.stream_away", why=type(problem).__name__)
                await asyncio.sleep(REST_SECONDS)
            except Exception:  # The relay outlives any outage of its database.
                log.exception("events.relay_failed")
                await asyncio.sleep(REST_SECONDS)
            await wait_for_news(self._news, self._poll)
            await asyncio.sleep(GATHER_SECONDS)

    async def deliver(self) -> int:
        """One round: the oldest that wait. Returns how many went. Raises Unavailable."""
        async with self._sessions.begin() as session:
            connection = await session.connection()
            mine = await connection.execute(
                text("select pg_try_advisory_xact_lock(:lock) as outbox_is_mine"), {"lock": _LOCK}
            )
            if not mine.scalar_one():
                return 0
            plain = await driver(session)
            rows = await plain.fetch(_OLDEST, BATCH)
            if not rows:
                return 0
            await self._add(rows)
            await plain.execute(_DONE, [row["id"] for row in rows])
        EVENTS_PUBLISHED.labels(self._service).inc(len(rows))
        return len(rows)

    async def _add(self, rows: Sequence[Any]) -> None:
        redis = await self._queue.redis()
        async with redis.pipeline(transaction=False) as pipeline:
            for row in rows:
                pipeline.xadd(
                    stream_name(self._service),
                    {
                        "id": str(row["event_id"]),
                        "type": row["name"],
                        "source": f"lyceum/{self._service}",
                        "subject": row["topic"],
                        "time": row["at"].isoformat(),
                        "minorversion": "0",
                        "data": orjson.dumps(row["data"]),
                    },
                    maxlen=self._longest or None,
                    approximate=True,
                )
            await pipeline.execute()


def event_relay(sessions: Sessions, queue: Queue, settings: ServiceSettings) -> EventRelay:
    """The relay of one process of a service, as its settings say."""
    return EventRelay(
        sessions, queue, settings.service, poll_seconds=settings.outbox_poll_seconds,
        longest=settings.event_stream_length,
    )  # fmt: skip


def told(session: AsyncSession) -> list[tuple[str, Event]]:
    """What this transaction will tell when it commits: topics and events."""
    return [(topic, one) for topic, one, _ in session.sync_session.info.get("events", [])]


def stream_name(service: str) -> str:
    """The Redis key of a service's stream."""
    return f"lyceum:events:{service}"
