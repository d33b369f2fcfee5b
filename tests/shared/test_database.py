"""The driver's own connection belongs to the session, and to its transaction."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from asyncpg.transaction import Transaction

from shared.database import Database, driver, plain_url
from tests.conftest import Servers
from tests.statements import statements


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    """With one connection, which everybody gets in turn."""
    database = Database(clean.urls["dispatcher"], pool=1)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def other(clean: Servers) -> AsyncIterator[Any]:
    """A connection to the same database that has nothing to do with it."""
    connection = await asyncpg.connect(plain_url(clean.urls["dispatcher"]))
    yield connection
    await connection.close()


async def test_what_goes_through_the_driver_first_is_undone_with_the_session(
    database: Database,
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.sessions.begin() as session:
            await (await driver(session)).execute(
                "insert into sweep (id, swept_at) values (7, now())"
            )
            raise ZeroDivisionError
    async with database.sessions.begin() as session:
        found = await (await driver(session)).fetchval("select count(*) from sweep")

    assert found == 0


async def test_a_connection_that_was_lost_in_the_pool_is_replaced(
    database: Database, other: Any
) -> None:
    lost = asyncio.Event()
    async with database.sessions.begin() as session:
        connection = await driver(session)
        connection.add_termination_listener(lambda _: lost.set())
        pid = await connection.fetchval("select pg_backend_pid()")
    await other.execute("select pg_terminate_backend($1)", pid)
    async with asyncio.timeout(10):
        await lost.wait()
    async with database.sessions.begin() as session:
        assert await (await driver(session)).fetchval("select pg_backend_pid()") != pid


async def test_the_driver_begins_without_a_statement_of_its_own(database: Database) -> None:
    with statements(database.engine) as sent:
        async with database.sessions.begin() as session:
            assert (await driver(session)).is_in_transaction()
            assert await driver(session) is await driver(session)
            await (await driver(session)).fetchval("select 1")

    assert sent == ["select 1"]


async def test_who_gives_up_while_a_transaction_begins_leaves_none_behind(
    database: Database, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what the next one writes would be part of it, and never be committed."""
    begin = Transaction.start

    async def canceled(self: Transaction) -> None:
        await begin(self)
        raise asyncio.CancelledError

    write = "insert into sweep (id, swept_at) values (1, now())"
    async with database.sessions.begin() as session:
        await driver(session)
    with monkeypatch.context() as patched, pytest.raises(asyncio.CancelledError):
        patched.setattr(Transaction, "start", canceled)
        async with database.sessions.begin() as session:
            await driver(session)
    async with database.sessions.begin() as session:
        await (await driver(session)).execute(write)
    assert await other.fetchval("select id from sweep") == 1


async def test_a_connection_left_in_a_transaction_is_given_to_nobody(database: Database) -> None:
    async with database.reading() as session:
        pooled = await (await session.connection()).get_raw_connection()
        left: Any = pooled.driver_connection
        await left.execute("begin")
    async with database.sessions.begin() as session:
        assert await driver(session) is not left
