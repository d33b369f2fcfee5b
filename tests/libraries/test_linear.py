"""Work on a whole library looks rows up; nowhere do all of them meet all others.

Not even when the planner knows its tables from another time, or as empty ones.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import branches, components, entities, publishing, versions
from services.libraries.components import NewComponent
from services.libraries.entities import NewEntity
from services.libraries.models import Library
from services.libraries.states import Kind
from services.libraries.versions import NewVersion
from shared.database import Database
from shared.migrations.__main__ import upgrade_one
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
async def database(servers: Servers) -> AsyncIterator[Database]:
    """A new one, used by the superuser, who alone may have plans explained."""
    server, name = servers.stores.database_url.rpartition("/")[0], f"linear_{uuid4().hex}"
    admin = await asyncpg.connect(servers.stores.database_url)
    await admin.execute(f"create database {name}")
    await asyncio.to_thread(upgrade_one, "libraries", f"{server}/{name}")
    database = Database(f"{server}/{name}")
    try:
        yield database
    finally:
        await database.close()
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()


@pytest.mark.parametrize("known", ["nothing", "tables are empty", "all that was there is gone"])
async def test_whole_libraries_are_worked_on_in_linear_time(database: Database, known: str) -> None:
    if known == "all that was there is gone":
        async with rolled_back(database) as session:
            await work(session)
    if known != "nothing":
        async with database.engine.begin() as connection:
            await connection.execute(text("analyze"))

    async with rolled_back(database) as session, plans(session) as seen:
        await work(session)

    assert any("draft_side_effect" in query for query, _ in seen)
    assert any("publish_side_effect" in query for query, _ in seen)
    wasteful = {query: wasted(plan) for query, plan in seen if wasted(plan) > 10 * COMPONENTS}
    assert wasteful == {}


async def work(session: AsyncSession) -> None:
    """All that is done with a whole library."""
    library = await make_library(session)
    await add(session, library, "one")
    refs = [f"xblock.v1:html:c{number}" for number in range(COMPONENTS)]
    ids = await entities.ids_of(session, library, refs)
    units = await put_in_units(session, library, [ids[ref] for ref in refs])
    await publishing.publish_all(session, library, user="ines", now=NOON)
    await add(session, library, "two")
    await publishing.revert(session, library, user="ines", now=NOON)
    await add(session, library, "three")
    await publishing.publish(session, library, units, user="ines", now=NOON)
    deletions = dict.fromkeys(ids.values())
    await branches.move_drafts(session, library, deletions, user="ines", now=NOON)
    await publishing.publish_all(session, library, user="ines", now=NOON)


async def add(session: AsyncSession, library: Library, words: str) -> None:
    """Makes all components, or edits all of them."""
    items = [
        NewComponent("html", f"c{number}", "T", f"<html>{words} {number}</html>")
        for number in range(COMPONENTS)
    ]
    await components.add_many(session, library, items, user="ines", now=NOON)


async def put_in_units(session: AsyncSession, library: Library, ids: list[int]) -> list[int]:
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
    return list(made.values())


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
