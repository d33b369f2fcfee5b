"""Looking rows up: in a transaction or on connections of their own, which come and go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from shared.database import Database, driver, plain_url
from shared.lookups import SETTINGS, Lookup, LookupConnections, positional
from tests.conftest import Servers

MOST = 2


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    database = Database(clean.urls["dispatcher"], pool=1)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def lookups(clean: Servers, database: Database) -> AsyncIterator[LookupConnections]:
    lookups = LookupConnections(clean.urls["dispatcher"], most=MOST, sessions=database.sessions)
    yield lookups
    await lookups.close()


PID = Lookup("select pg_backend_pid() as pid")
SLOW = Lookup(
    "select pg_backend_pid() as pid, count(*) as times from pg_sleep(cast(:seconds as float))"
)


async def test_a_statement_sees_what_its_transaction_wrote(
    database: Database, lookups: LookupConnections
) -> None:
    ids = Lookup("select id, id + cast(:more as int) as other from sweep")
    async with database.sessions() as session:
        await (await driver(session)).execute("insert into sweep (id, swept_at) values (7, now())")
        found = await ids.rows(session, more=3)

    assert [(row.id, row.other) for row in found] == [(7, 10)]
    assert await ids.rows(lookups, more=3) == []


async def test_a_session_that_only_reads_leaves_it_to_the_connections(
    database: Database, lookups: LookupConnections
) -> None:
    [row] = await PID.rows(lookups)
    async with database.reading(lookups=lookups) as session:
        assert await PID.rows(session) == [row]


async def test_statements_are_planned_once_and_walk_through_no_table(
    lookups: LookupConnections,
) -> None:
    setting = Lookup("select current_setting(:name) as value")

    rows = [await setting.rows(lookups, name=name) for name in SETTINGS]

    assert [row.value for [row] in rows] == list(SETTINGS.values())


async def test_the_last_connection_used_comes_first(lookups: LookupConnections) -> None:
    await asyncio.gather(*(SLOW.rows(lookups, seconds=0.05) for _ in range(MOST)))

    seen = {(await PID.rows(lookups))[0].pid for _ in range(5)}

    assert len(seen) == 1


async def test_there_are_never_more_than_allowed(lookups: LookupConnections) -> None:
    found = await asyncio.gather(*(SLOW.rows(lookups, seconds=0.01) for _ in range(4 * MOST)))

    assert len({row.pid for [row] in found}) == MOST


async def test_who_holds_another_connection_may_wait(
    database: Database, lookups: LookupConnections
) -> None:
    async def read() -> int:
        async with database.reading(lookups=lookups) as session:
            await session.connection()
            [row] = await SLOW.rows(session, seconds=0.01)
            return int(row.times)

    async with asyncio.timeout(10):
        # More at once than there are connections of either kind.
        assert await asyncio.gather(*(read() for _ in range(8))) == [1] * 8


async def test_reading_goes_on_after_the_database_closed_all_connections(
    clean: Servers, lookups: LookupConnections
) -> None:
    found = await asyncio.gather(*(SLOW.rows(lookups, seconds=0.05) for _ in range(MOST)))
    lost = {row.pid for [row] in found}
    other = await asyncpg.connect(plain_url(clean.urls["dispatcher"]))
    try:
        await other.execute("select pg_terminate_backend(pid) from unnest($1::int[]) as pid", lost)
    finally:
        await other.close()

    [row] = await PID.rows(lookups)

    assert row.pid not in lost


async def test_who_gives_up_leaves_a_connection_that_works(lookups: LookupConnections) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await SLOW.rows(lookups, seconds=30)

    async with asyncio.timeout(5):
        assert await SLOW.rows(lookups, seconds=0)


@pytest.mark.parametrize("number", [0, 10**30, "one"])
async def test_a_statement_that_fails_costs_no_connection(
    lookups: LookupConnections, number: Any
) -> None:
    [before] = await PID.rows(lookups)
    with pytest.raises(asyncpg.DataError):
        await Lookup("select 1 / cast(:number as int) as one").rows(lookups, number=number)

    assert await PID.rows(lookups) == [before]


def test_names_of_values_become_places_and_types_stay_types() -> None:
    statement = "select :b::text, cast(:a as int), $$x$$, t.c::date where :a = :b_c"

    assert positional(statement) == (
        "select $1::text, cast($2 as int), $$x$$, t.c::date where $2 = $3",
        ["b", "a", "b_c"],
    )
