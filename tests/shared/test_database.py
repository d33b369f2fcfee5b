"""The driver's own connection belongs to the session; what only reads has its own."""

import asyncio

import asyncpg
import pytest

from shared.database import LOOKING_UP, Database, Lookup, driver, plain_url, positional
from tests.conftest import Servers


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


async def test_a_plain_statement_sees_what_its_transaction_wrote(clean: Servers) -> None:
    ids = Lookup("select id, id + cast(:more as int) as other from sweep")
    database = Database(clean.urls["dispatcher"], pool=1)
    try:
        async with database.sessions() as session:
            await (await driver(session)).execute(
                "insert into sweep (id, swept_at) values (7, now())"
            )
            found = await ids.rows(session, more=3)
        async with database.reading() as session:
            after = await ids.rows(session, more=3)
    finally:
        await database.close()

    assert [(row.id, row.other) for row in found] == [(7, 10)]
    assert after == []


async def test_reading_goes_on_after_the_database_closed_a_connection(clean: Servers) -> None:
    one = Lookup("select pg_backend_pid() as pid")
    database = Database(clean.urls["dispatcher"], pool=1)
    other = await asyncpg.connect(plain_url(clean.urls["dispatcher"]))
    try:
        async with database.reading() as session:
            [first] = await one.rows(session)
        await other.execute("select pg_terminate_backend($1)", first.pid)
        async with database.reading() as session:
            [second] = await one.rows(session)
    finally:
        await other.close()
        await database.close()

    assert second.pid != first.pid


async def test_who_reads_waits_for_nobody_who_holds_a_connection(clean: Servers) -> None:
    """One statement at a time is all that such a connection is held for."""
    slow = Lookup("select count(*) as times from pg_sleep(cast(:seconds as float))")
    database = Database(clean.urls["dispatcher"], pool=1)

    async def read() -> int:
        async with database.reading() as session:
            await session.connection()
            [row] = await slow.rows(session, seconds=0.01)
            return int(row.times)

    try:
        async with asyncio.timeout(10):
            # More at once than both pools have connections.
            assert await asyncio.gather(*(read() for _ in range(8))) == [1] * 8
    finally:
        await database.close()


async def test_lookups_are_planned_once_and_walk_through_no_table(clean: Servers) -> None:
    setting = Lookup("select current_setting(:name) as value")
    database = Database(clean.urls["dispatcher"], pool=1)
    try:
        async with database.reading() as session:
            rows = [await setting.rows(session, name=name) for name in LOOKING_UP]
    finally:
        await database.close()

    assert [row.value for [row] in rows] == list(LOOKING_UP.values())
