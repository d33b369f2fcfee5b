"""Notes to other services: written with the change they tell of, delivered afterwards.

A note is a row in the sender's own transaction. A relay in every process of the sender posts
waiting notes, many at once, and deletes a row only when the receiver has answered that the
note's effect is stored. So a note is delivered at least once, whatever is killed or lost, and
receivers make no difference between one delivery and two.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, get_args

import orjson
import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    Index,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
    text,
)
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.arrivals import Arrivals
from shared.clients import ServiceClients
from shared.database import Json, Sessions, UTCDateTime, after_commit, driver, remember
from shared.loops import end, wait_for_news
from shared.metrics import NOTES_DELIVERED, NOTES_FAILED
from shared.problems import Problem
from shared.settings import ServiceName

log = structlog.get_logger("outbox")

BATCH = 500
# Well below the limit of a body, whatever one payload more brings.
MOST_BYTES = 4 * 1024 * 1024
FIRST_WAIT, LONGEST_WAIT = 0.2, 15.0
PAUSE_SECONDS = 0.025


class NoteHandler(Protocol):
    """Applies notes of one kind that arrived together, in the given transaction.

    Notes may come twice, late, or after newer ones; the outcome must be the same.
    """

    async def __call__(self, session: AsyncSession, payloads: list[dict[str, Any]], /) -> None: ...


class Note(BaseModel):
    """One note on the wire."""

    id: int
    name: str
    payload: dict[str, Any]


class Delivery(BaseModel):
    """Notes that were waiting together, oldest first."""

    notes: list[Note]


class Receipt(BaseModel):
    """What was refused for good, by note id; everything else is stored."""

    refused: dict[int, str] = {}


def outbox_table(base: type[SQLModel]) -> Table:
    """The outbox of one service. Call once in its models."""
    return _table(base.metadata)


def _table(metadata: MetaData) -> Table:
    return Table(
        "outbox",
        metadata,
        Column("id", BigInteger, Identity(), primary_key=True),
        Column("receiver", Text, nullable=False),
        Column("name", Text, nullable=False),
        Column("payload", Json, nullable=False),
        Column("created_at", UTCDateTime, nullable=False, server_default=func.now()),
        Column("failed", Text, nullable=True),
        Index("outbox_waiting", "receiver", "id", postgresql_where=text("failed is null")),
    )


# For statements only: the table of this name in whichever service's database the session is.
_outbox = _table(MetaData())


async def send(
    session: AsyncSession, receiver: str, name: str, payload: dict[str, Any] | BaseModel
) -> None:
    """Leave a note in this transaction; it is delivered if and only if it commits."""
    await send_many(session, receiver, name, [payload])


async def send_many(
    session: AsyncSession,
    receiver: str,
    name: str,
    payloads: Sequence[dict[str, Any] | BaseModel],
) -> None:
    """Leave several notes of one kind with one statement."""
    if not payloads:
        return
    rows = [
        {"receiver": receiver, "name": name, "payload": _plain(payload)} for payload in payloads
    ]
    await session.exec(insert(_outbox), params=rows)
    wake_relay_later(session)


def wake_relay_later(session: AsyncSession) -> None:
    """When this transaction is committed, let the relay look for notes."""
    wake = session.info.get("relay_wake")
    if wake is not None and "relay_listens" not in session.info:
        session.info["relay_listens"] = True
        after_commit(session, wake)


def _plain(payload: dict[str, Any] | BaseModel) -> dict[str, Any]:
    return payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload


async def waiting(session: AsyncSession) -> list[tuple[str, str, dict[str, Any]]]:
    """What has been left and not yet delivered: (receiver, name, payload), oldest first."""
    connection = await session.connection()
    rows = await connection.execute(
        select(_outbox).where(_outbox.c.failed.is_(None)).order_by(_outbox.c.id)
    )
    return [(row.receiver, row.name, row.payload) for row in rows]


# One look-up in an index for each service, however many notes wait.
_RECEIVERS = """
select service from unnest($1::text[]) as every (service)
where exists (select from outbox where receiver = service and failed is null)
"""
_OLDEST = """
select id, name, payload from outbox where receiver = $1 and failed is null
order by id limit $2 for update skip locked
"""


class Relay:
    """Delivers this service's notes until stopped. Any number may run beside each other."""

    def __init__(self, sessions: Sessions, clients: ServiceClients, *, poll_seconds: float) -> None:
        self._sessions, self._clients, self._poll = sessions, clients, poll_seconds
        self._news = asyncio.Event()
        self._resting: dict[str, tuple[float, float]] = {}
        remember(sessions, "relay_wake", self._news.set)

    def wake(self) -> None:
        """There may be notes to deliver."""
        self._news.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        task = asyncio.create_task(self._run(), name="outbox-relay")
        try:
            yield self
        finally:
            await end([task])

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                while await self._round():
                    pass
            except asyncio.CancelledError:
                raise
            except Exception:  # The relay outlives any outage of its database.
                log.exception("outbox.relay_failed")
                await asyncio.sleep(FIRST_WAIT)
            await wait_for_news(self._news, self._poll)

    async def _round(self) -> int:
        """The first note goes at once; of those that follow it some go together."""
        count = await self.deliver()
        await asyncio.sleep(PAUSE_SECONDS if count else 0)
        return count

    async def deliver(self) -> int:
        """One round: what waits, to every receiver that is not resting. Returns how many went."""
        async with self._sessions() as session:
            found = await (await driver(session)).fetch(_RECEIVERS, get_args(ServiceName))
        receivers = [row["service"] for row in found]
        awake = [receiver for receiver in receivers if not self._rests(receiver)]
        counts = await asyncio.gather(*(self._deliver_to(receiver) for receiver in awake))
        return sum(counts)

    async def _deliver_to(self, receiver: str) -> int:
        # The rows stay locked while they are posted, so that other relays pass over them;
        # nobody ever waits for these locks, and a killed relay gives them back at once.
        async with self._sessions.begin() as session:
            connection = await driver(session)
            rows = _fitting(await connection.fetch(_OLDEST, receiver, BATCH))
            if not rows:
                return 0
            try:
                receipt = await self._post(receiver, rows)
            except Problem as problem:
                self._rest(receiver)
                log.warning("outbox.receiver_away", receiver=receiver, why=problem.detail)
                return 0
            self._resting.pop(receiver, None)
            await _settle(connection, rows, receipt)
            NOTES_DELIVERED.labels(receiver).inc(len(rows))
            return len(rows)

    async def _post(self, receiver: str, rows: Sequence[Any]) -> Receipt:
        delivery = {"notes": [dict(row) for row in rows]}
        answer = await self._clients.post(receiver, f"/{receiver}/notes", delivery, attempts=1)
        return Receipt.model_validate(answer)

    def _rests(self, receiver: str) -> bool:
        until, _ = self._resting.get(receiver, (0.0, 0.0))
        return asyncio.get_running_loop().time() < until

    def _rest(self, receiver: str) -> None:
        _, last = self._resting.get(receiver, (0.0, 0.0))
        pause = min(LONGEST_WAIT, last * 2 or FIRST_WAIT)
        self._resting[receiver] = (asyncio.get_running_loop().time() + pause, pause)


def _fitting(rows: Sequence[Any]) -> Sequence[Any]:
    """As many of the oldest as fit into one request; the first one always."""
    size = 0
    for place, row in enumerate(rows):
        size += len(orjson.dumps(row["payload"]))
        if place and size > MOST_BYTES:
            return rows[:place]
    return rows


async def _settle(connection: Any, rows: Sequence[Any], receipt: Receipt) -> None:
    refused = receipt.refused
    done = [row["id"] for row in rows if row["id"] not in refused]
    if done:
        await connection.execute("delete from outbox where id = any($1::bigint[])", done)
    for note_id, why in refused.items():
        log.error("outbox.note_refused", note_id=note_id, why=why)
        NOTES_FAILED.inc()
        await connection.execute("update outbox set failed = $2 where id = $1", note_id, why[:2000])


class Inbox:
    """Takes deliveries for one service: those that arrive together share transactions."""

    def __init__(self, sessions: Sessions, handlers: Mapping[str, NoteHandler]) -> None:
        self._kinds = {
            name: Arrivals[dict[str, Any], None](sessions.begin, _storing(handler))
            for name, handler in handlers.items()
        }

    async def take(self, delivery: Delivery) -> Receipt:
        """Store the effect of every note, or say which are refused for good.

        Neighbours of one kind are handled in one transaction. When one of them is at fault,
        they are handled one by one, so that a bad note never holds up the good ones.
        """
        receipt = Receipt()
        for name, group in itertools.groupby(delivery.notes, key=lambda note: note.name):
            await self._take_group(name, list(group), receipt)
        return receipt

    async def _take_group(self, name: str, notes: list[Note], receipt: Receipt) -> None:
        if name not in self._kinds:
            receipt.refused |= {note.id: f"there is no note called {name}" for note in notes}
            return
        why = await self._apply(name, notes)
        if why is None:
            return
        if len(notes) == 1:
            receipt.refused[notes[0].id] = why
            return
        for note in notes:
            await self._take_group(name, [note], receipt)

    async def _apply(self, name: str, notes: list[Note]) -> str | None:
        try:
            await self._kinds[name].add([note.payload for note in notes])
        except ValidationError as error:
            return f"invalid payload: {error.error_count()} fields"
        except Problem as problem:
            if problem.status >= 500:
                raise
            return problem.detail
        return None


def _storing(handler: NoteHandler) -> Callable[..., Awaitable[Sequence[None]]]:
    async def store(
        session: AsyncSession, payloads: list[dict[str, Any]], *, now: datetime
    ) -> Sequence[None]:
        await handler(session, payloads)
        return [None] * len(payloads)

    return store
