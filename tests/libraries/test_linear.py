"""Work on a whole library looks rows up; nowhere do all of them meet all others."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest_asyncio
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import components, entities, publishing, versions
from services.libraries.components import NewComponent
from services.libraries.entities import NewEntity
from services.libraries.models import Library
from services.libraries.states import Kind
from services.libraries.versions import NewVersion
from shared.database import Database
from shared.testing import rolled_back
from tests.conftest import Servers
from tests.libraries.conftest import NOON, make_library

COMPONENTS = 300
WIDTH = 10
"""Components in a unit."""

# Plans of every statement, those within functions included, come to the client as notices.
_EXPLAIN = (
    "load 'auto_explain'",
    "set local auto_explain.log_analyze = on",
    "set local auto_explain.log_timing = off",
    "set local auto_explain.log_nested_statements = on",
    "set local auto_explain.log_min_duration = 0",
    "set local auto_explain.log_format = json",
    "set local auto_explain.log_level = notice",
)


@pytest_asyncio.fixture
async def session(servers: Servers) -> AsyncIterator[AsyncSession]:
    """One of the superuser, who alone may have plans explained."""
    database = Database(servers.stores.database_url.rpartition("/")[0] + "/lyceum_libraries")
    try:
        async with rolled_back(database) as session:
            yield session
    finally:
        await database.close()


async def test_whole_libraries_are_worked_on_in_linear_time(session: AsyncSession) -> None:
    library = await make_library(session)
    async with plans(session) as seen:
        await add(session, library, "one")
        refs = [f"xblock.v1:html:c{number}" for number in range(COMPONENTS)]
        ids = await entities.ids_of(session, library, refs)
        await put_in_units(session, library, [ids[ref] for ref in refs])
        await publishing.publish_all(session, library, user="ines", now=NOON)
        await add(session, library, "two")
        await publishing.revert(session, library, user="ines", now=NOON)
        await add(session, library, "three")
        await publishing.publish_all(session, library, user="ines", now=NOON)

    assert any("draft_side_effect" in query for query, _ in seen)
    assert any("publish_side_effect" in query for query, _ in seen)
    wasteful = {query: wasted(plan) for query, plan in seen if wasted(plan) > 10 * COMPONENTS}
    assert wasteful == {}


async def add(session: AsyncSession, library: Library, words: str) -> None:
    """Makes all components, or edits all of them."""
    items = [
        NewComponent("html", f"c{number}", "T", f"<html>{words} {number}</html>")
        for number in range(COMPONENTS)
    ]
    await components.add_many(session, library, items, user="ines", now=NOON)


async def put_in_units(session: AsyncSession, library: Library, ids: list[int]) -> None:
    codes = [f"u{number}" for number in range(COMPONENTS // WIDTH)]
    units = [NewEntity(code, Kind.UNIT, "unit", code, True) for code in codes]
    made = await entities.create_many(session, library, units, user="ines", now=NOON)
    contents = [
        NewVersion(
            made[code],
            title="U",
            children=[(child, None) for child in ids[place * WIDTH : (place + 1) * WIDTH]],
        )
        for place, code in enumerate(codes)
    ]
    await versions.make(session, library, contents, user="ines", now=NOON)


@asynccontextmanager
async def plans(session: AsyncSession) -> AsyncIterator[list[tuple[str, dict[str, Any]]]]:
    """Every statement that runs inside, with its plan as it was carried out."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def note(_connection: Any, message: Any) -> None:
        if found := re.search(r"plan:\n(\{.*\})", str(message), re.DOTALL):
            explained = json.loads(found[1])
            seen.append((explained["Query Text"], explained["Plan"]))

    connection = await session.connection()
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    for statement in _EXPLAIN:
        await connection.execute(text(statement))
    raw.add_log_listener(note)
    try:
        yield seen
    finally:
        raw.remove_log_listener(note)


def wasted(plan: dict[str, Any]) -> int:
    """Rows, or pairs of rows, that were looked at and thrown away."""
    here = plan.get("Rows Removed by Join Filter", 0) + plan.get("Rows Removed by Filter", 0)
    return int(here * plan["Actual Loops"] + sum(map(wasted, plan.get("Plans", ()))))
