"""The driver's own connection belongs to the session, and to its transaction."""

import pytest

from shared.database import Database, driver, positional
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
