"""Events: only what was committed, all of it, in order, whatever is away."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio
from sqlalchemy import event, text
from sqlmodel.ext.asyncio.session import AsyncSession

from deploy.stores import free_port
from services.libraries.settings import Settings
from services.libraries.worker import SERVICE
from shared import events
from shared.clients import ServiceClients
from shared.database import Database
from shared.events import Event, EventRelay, stream_name
from shared.files import Files
from shared.problems import Unavailable
from shared.queue import Queue
from shared.worker import WorkerContext, tells_events
from tests.conftest import Servers

STREAM = stream_name("libraries")


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    database = Database(clean.urls["libraries"], pool=20)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def queue(clean: Servers) -> AsyncIterator[Queue]:
    queue = Queue(clean.stores.redis_url)
    await (await queue.redis()).delete(STREAM)
    yield queue
    await queue.close()


def make_relay(database: Database, queue: Queue, longest: int = 0) -> EventRelay:
    return EventRelay(database.sessions, queue, "libraries", poll_seconds=0.05, longest=longest)


async def tell(database: Database, *numbers: int, topic: str = "lib:A:B") -> None:
    async with database.sessions.begin() as session:
        say(session, *numbers, topic=topic)


def say(session: AsyncSession, *numbers: int, topic: str = "lib:A:B") -> None:
    events.publish(session, topic, [Event("made.v1", {"n": number}) for number in numbers])


async def waiting(database: Database) -> int:
    async with database.sessions() as session:
        connection = await session.connection()
        return int(
            (await connection.execute(text("select count(*) from event_outbox"))).scalar_one()
        )


async def on_stream(queue: Queue) -> list[dict[bytes, bytes]]:
    redis = await queue.redis()
    return [fields for _, fields in await redis.xrange(STREAM)]


async def numbers(queue: Queue) -> list[int]:
    return [orjson.loads(fields[b"data"])["n"] for fields in await on_stream(queue)]


async def test_an_event_says_what_happened_where_and_when(database: Database, queue: Queue) -> None:
    await tell(database, 1)

    assert await make_relay(database, queue).deliver() == 1

    (fields,) = await on_stream(queue)
    assert fields[b"type"] == b"made.v1"
    assert fields[b"source"] == b"lyceum/libraries"
    assert fields[b"subject"] == b"lib:A:B"
    assert orjson.loads(fields[b"data"]) == {"n": 1}
    assert set(fields) == {
        b"id", b"type", b"source", b"subject", b"time", b"minorversion", b"data"
    }  # fmt: skip
    assert await waiting(database) == 0


async def test_nothing_is_told_of_what_was_rolled_back(database: Database, queue: Queue) -> None:
    async with database.sessions() as session:
        await session.connection()
        say(session, 1)
        await session.rollback()
        say(session, 2)
        await session.commit()
        say(session, 3)
        await session.commit()

    await make_relay(database, queue).deliver()

    assert await numbers(queue) == [2, 3]


async def test_a_commit_that_fails_at_the_very_end_has_told_nothing(
    database: Database, queue: Queue
) -> None:
    """Also where telling is all that the transaction does."""

    def fail(_: Any) -> None:
        raise ValueError("no")

    async with database.sessions() as session:
        event.listen(session.sync_session, "before_commit", fail)
        say(session, 1)
        with pytest.raises(ValueError, match="no"):
            await session.commit()

    assert await waiting(database) == 0


async def test_a_savepoint_takes_its_events_along(database: Database, queue: Queue) -> None:
    async with database.sessions.begin() as session:
        say(session, 1)
        async with session.begin_nested():
            say(session, 2)
        with pytest.raises(ValueError, match="no"):
            async with session.begin_nested():
                say(session, 3)
                async with session.begin_nested():
                    say(session, 4)
                raise ValueError("no")
        say(session, 5)

    await make_relay(database, queue).deliver()

    assert await numbers(queue) == [1, 2, 5]


async def test_within_a_topic_the_order_is_that_of_the_commits(
    database: Database, queue: Queue
) -> None:
    """Who told first but committed last comes last."""
    told, committed = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with database.sessions.begin() as session:
            say(session, 1)
            told.set()
            await committed.wait()

    async def quick() -> None:
        await told.wait()
        await tell(database, 2)
        committed.set()

    await asyncio.gather(slow(), quick())
    await make_relay(database, queue).deliver()

    assert await numbers(queue) == [2, 1]


async def test_what_is_told_again_in_a_transaction_is_news_once(
    database: Database, queue: Queue
) -> None:
    await tell(database, 1, 2, 1, 3, 2)
    await tell(database, 1)
    await make_relay(database, queue).deliver()

    assert await numbers(queue) == [1, 3, 2, 1]


async def test_many_writers_over_many_topics_wait_for_each_other_only_in_turn(
    database: Database, queue: Queue
) -> None:
    async def write(number: int) -> None:
        async with database.sessions.begin() as session:
            for topic in ("b", "a", "c") if number % 2 else ("c", "a", "b"):
                say(session, number, topic=topic)

    async with asyncio.timeout(20):
        await asyncio.gather(*(write(number) for number in range(40)))
    relay = make_relay(database, queue)
    while await relay.deliver():
        pass

    told: dict[bytes, list[int]] = {}
    for fields in await on_stream(queue):
        told.setdefault(fields[b"subject"], []).append(orjson.loads(fields[b"data"])["n"])
    assert {topic: sorted(seen) for topic, seen in told.items()} == {
        topic: list(range(40)) for topic in (b"a", b"b", b"c")
    }
    assert told[b"a"] == told[b"b"] == told[b"c"]


async def test_relays_beside_each_other_keep_the_order(database: Database, queue: Queue) -> None:
    relays = [make_relay(database, queue) for _ in range(4)]

    async def relay_all(relay: EventRelay) -> None:
        async with relay.running(), asyncio.timeout(20):
            while len(await on_stream(queue)) < 300:
                await asyncio.sleep(0.01)

    async def write() -> None:
        for first in range(0, 300, 3):
            await tell(database, first, first + 1, first + 2)

    await asyncio.gather(write(), *(relay_all(relay) for relay in relays))

    assert await numbers(queue) == list(range(300))


async def test_without_redis_events_wait(database: Database, queue: Queue) -> None:
    away = Queue(f"redis://127.0.0.1:{free_port()}/0")
    await tell(database, 1)

    with pytest.raises(Unavailable):
        await make_relay(database, away).deliver()
    assert await waiting(database) == 1

    assert await make_relay(database, queue).deliver() == 1
    assert await numbers(queue) == [1]


async def test_a_relay_killed_after_the_stream_had_it_tells_again(
    database: Database, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(database, 1)
    relay = make_relay(database, queue)
    add = relay._add

    async def add_and_die(rows: Any) -> None:
        await add(rows)
        raise ConnectionError("killed")

    monkeypatch.setattr(relay, "_add", add_and_die)
    with pytest.raises(ConnectionError):
        await relay.deliver()
    await make_relay(database, queue).deliver()

    first, second = await on_stream(queue)
    assert first[b"id"] == second[b"id"]


async def test_a_commit_wakes_the_relay_of_its_process(database: Database, queue: Queue) -> None:
    relay = EventRelay(database.sessions, queue, "libraries", poll_seconds=60, longest=0)
    async with relay.running():
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            await tell(database, 1)
            while not await on_stream(queue):
                await asyncio.sleep(0.01)


async def test_a_stream_keeps_about_as_many_as_it_is_told_to(
    database: Database, queue: Queue
) -> None:
    await tell(database, *range(1000))
    relay = make_relay(database, queue, longest=100)
    while await relay.deliver():
        pass

    kept = await numbers(queue)
    assert 100 <= len(kept) <= 300
    assert kept[-1] == 999


async def test_every_process_of_a_service_can_tell(
    database: Database, queue: Queue, clean: Servers
) -> None:
    settings = Settings()
    clients = ServiceClients(settings)
    context = WorkerContext(settings, database, clients, Files(settings.object_store), queue)
    async with tells_events(context), asyncio.timeout(10):
        await tell(database, 1)
        while not await on_stream(queue):
            await asyncio.sleep(0.01)
    await clients.close()

    assert tells_events in SERVICE.background


async def test_a_transaction_knows_what_it_will_tell(database: Database) -> None:
    async with database.sessions() as session:
        await session.connection()
        assert events.told(session) == []
        say(session, 1)
        assert [(topic, one.data) for topic, one in events.told(session)] == [("lib:A:B", {"n": 1})]
        await session.rollback()
        assert events.told(session) == []
