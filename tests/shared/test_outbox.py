"""Notes are delivered if and only if their transaction commits, and never lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest_asyncio
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.settings import Settings
from shared import outbox
from shared.clients import ServiceClients
from shared.database import Database
from shared.outbox import Delivery, Inbox, Note, Relay
from shared.problems import Conflict, Unavailable
from tests.conftest import Servers


class Receiver(httpx.AsyncBaseTransport):
    """A service that keeps what it was sent, and can be away."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.away = False
        self.refuse: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            raise httpx.ConnectError("away", request=request)
        delivery = Delivery.model_validate_json(await request.aread())
        refused = {}
        for note in delivery.notes:
            if note.name in self.refuse:
                refused[note.id] = "never"
            else:
                self.taken.append(note.payload)
        return httpx.Response(200, json={"refused": refused}, request=request)


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    database = Database(clean.urls["dispatcher"])
    yield database
    await database.close()


@pytest_asyncio.fixture
async def receiver() -> Receiver:
    return Receiver()


@pytest_asyncio.fixture
async def relay(database: Database, receiver: Receiver) -> AsyncIterator[Relay]:
    clients = ServiceClients(Settings(), transport=receiver)
    yield Relay(database.sessions, clients, poll_seconds=0.05)
    await clients.close()


async def waiting(database: Database) -> int:
    async with database.sessions() as session:
        return len(await outbox.waiting(session))


async def test_a_note_goes_only_when_its_transaction_commits(
    database: Database, relay: Relay, receiver: Receiver
) -> None:
    async with database.sessions() as session:
        await outbox.send(session, "user_tasks", "on_x", {"n": 1})
        await session.rollback()
    async with database.sessions.begin() as session:
        await outbox.send(session, "user_tasks", "on_x", {"n": 2})

    await relay.deliver()

    assert receiver.taken == [{"n": 2}]
    assert await waiting(database) == 0


async def test_a_running_relay_delivers_soon_after_the_commit(
    database: Database, relay: Relay, receiver: Receiver
) -> None:
    async with relay.running():
        async with database.sessions.begin() as session:
            await outbox.send(session, "user_tasks", "on_x", {"n": 1})
        async with asyncio.timeout(5):
            while not receiver.taken:
                await asyncio.sleep(0.01)

    assert receiver.taken == [{"n": 1}]


async def test_notes_wait_while_the_receiver_is_away(
    database: Database, relay: Relay, receiver: Receiver
) -> None:
    receiver.away = True
    async with database.sessions.begin() as session:
        await outbox.send_many(session, "user_tasks", "on_x", [{"n": n} for n in range(3)])

    assert await relay.deliver() == 0
    assert await waiting(database) == 3
    receiver.away = False
    async with relay.running(), asyncio.timeout(5):
        while await waiting(database):
            await asyncio.sleep(0.05)

    assert receiver.taken == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_refused_note_is_kept_with_the_reason_and_holds_up_nothing(
    database: Database, relay: Relay, receiver: Receiver
) -> None:
    receiver.refuse = {"on_bad"}
    async with database.sessions.begin() as session:
        await outbox.send(session, "user_tasks", "on_bad", {"n": 1})
        await outbox.send(session, "user_tasks", "on_x", {"n": 2})

    await relay.deliver()

    assert receiver.taken == [{"n": 2}]
    async with database.engine.connect() as connection:
        kept = (await connection.execute(text("select name, failed from outbox"))).all()
    assert [tuple(row) for row in kept] == [("on_bad", "never")]


async def test_large_notes_go_in_several_requests(
    database: Database, relay: Relay, receiver: Receiver
) -> None:
    async with database.sessions.begin() as session:
        large = [{"n": n, "text": "x" * 1_500_000} for n in range(5)]
        await outbox.send_many(session, "user_tasks", "on_x", large)

    sizes = [await relay.deliver() for _ in range(3)]

    assert sizes == [2, 2, 1]
    assert [payload["n"] for payload in receiver.taken] == [0, 1, 2, 3, 4]


async def test_several_relays_deliver_each_note_once(
    database: Database, receiver: Receiver
) -> None:
    async with database.sessions.begin() as session:
        await outbox.send_many(session, "user_tasks", "on_x", [{"n": n} for n in range(1200)])
    clients = ServiceClients(Settings(), transport=receiver)
    relays = [Relay(database.sessions, clients, poll_seconds=1) for _ in range(4)]

    while await waiting(database):
        await asyncio.gather(*(relay.deliver() for relay in relays))

    await clients.close()
    assert sorted(payload["n"] for payload in receiver.taken) == list(range(1200))


async def test_a_bad_note_in_a_delivery_does_not_hold_up_the_others(database: Database) -> None:
    stored: list[int] = []

    async def on_x(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
        if any(payload["n"] == 2 for payload in payloads):
            raise Conflict("not this one")
        stored.extend(payload["n"] for payload in payloads)

    notes = [Note(id=n, name="on_x", payload={"n": n}) for n in range(4)]
    notes.append(Note(id=9, name="on_unknown", payload={}))

    receipt = await Inbox(database.sessions, {"on_x": on_x}).take(Delivery(notes=notes))

    assert stored == [0, 1, 3]
    assert receipt.refused == {2: "not this one", 9: "there is no note called on_unknown"}


async def test_an_outage_behind_the_receiver_refuses_nothing(database: Database) -> None:
    async def on_x(session: AsyncSession, payloads: list[dict[str, Any]]) -> None:
        raise Unavailable

    inbox = Inbox(database.sessions, {"on_x": on_x})

    try:
        await inbox.take(Delivery(notes=[Note(id=1, name="on_x", payload={})]))
    except Unavailable:
        return
    raise AssertionError("the sender must keep the note")
