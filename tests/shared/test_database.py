"""The driver's own connection belongs to the session, and to its transaction."""

import asyncio
from typing import Any

import asyncpg
import pytest
from asyncpg.transaction import Transaction

from shared.database import Database, driver, plain_url, positional
from tests.conftest import Servers
from tests.statements import statements


async def test_what_goes_through_the_driver_first_is_undone_with_the_session(
    clean: Servers,
) -> None:
    database = Database(clean.urls["dispatcher"], pool=1)
    try:
        with pytest.raises(ZeroDivisionError):
            async with database.sessions.begin() as session:
                await (await driver(session)).execute(
                    "insert into sweep (id, swept_at) values (7, now())"
                )
                raise ZeroDivisionError
        async with database.sessions.begin() as session:
            found = await (await driver(session)).fetchval("select count(*) from sweep")
    finally:
        await database.close()

    assert found == 0


def test_names_of_values_become_places_and_types_stay_types() -> None:
    statement = "select :b::text, cast(:a as int), $$x$$, t.c::date where :a = :b_c"

    assert positional(statement) == (
        "select $1::text, cast($2 as int), $$x$$, t.c::date where $2 = $3",
        ["b", "a", "b_c"],
    )


async def test_a_connection_that_was_lost_in_the_pool_is_replaced(clean: Servers) -> None:
    database = Database(clean.urls["dispatcher"], pool=1)
    other = await asyncpg.connect(plain_url(clean.urls["dispatcher"]))
    lost = asyncio.Event()
    try:
        async with database.sessions.begin() as session:
            connection = await driver(session)
            connection.add_termination_listener(lambda _: lost.set())
            pid = await connection.fetchval("select pg_backend_pid()")
        await other.execute("select pg_terminate_backend($1)", pid)
        async with asyncio.timeout(10):
            await lost.wait()
        async with database.sessions.begin() as session:
            assert await (await driver(session)).fetchval("select pg_backend_pid()") != pid
    finally:
        await other.close()
        await database.close()


async def test_the_driver_begins_without_a_statement_of_its_own(clean: Servers) -> None:
    database = Database(clean.urls["dispatcher"], pool=1)
    try:
        with statements(database.engine) as sent:
            async with database.sessions.begin() as session:
                assert (await driver(session)).is_in_transaction()
                assert await driver(session) is await driver(session)
                await (await driver(session)).fetchval("select 1")
    finally:
        await database.close()

    assert sent == ["select 1"]


async def test_who_gives_up_while_a_transaction_begins_leaves_none_behind(
    clean: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what the next one writes would be part of it, and never be committed."""
    database = Database(clean.urls["dispatcher"], pool=1)
    other = await asyncpg.connect(plain_url(clean.urls["dispatcher"]))
    begin = Transaction.start

    async def canceled(self: Transaction) -> None:
        await begin(self)
        raise asyncio.CancelledError

    write = "insert into sweep (id, swept_at) values (1, now())"
    try:
        async with database.sessions.begin() as session:
            await driver(session)
        with monkeypatch.context() as patched, pytest.raises(asyncio.CancelledError):
            patched.setattr(Transaction, "start", canceled)
            async with database.sessions.begin() as session:
                await driver(session)
        async with database.sessions.begin() as session:
            await (await driver(session)).execute(write)
        assert await other.fetchval("select id from sweep") == 1
    finally:
        await other.close()
        await database.close()


async def test_a_connection_left_in_a_transaction_is_given_to_nobody(clean: Servers) -> None:
    database = Database(clean.urls["dispatcher"], pool=1)
    try:
        async with database.reading() as session:
            pooled = await (await session.connection()).get_raw_connection()
            left: Any = pooled.driver_connection
            await left.execute("begin")
        async with database.sessions.begin() as session:
            assert await driver(session) is not left
    finally:
        await database.close()
