"""Drafts and publishing: what moves, what is recorded, at what cost. contract: content_core §7"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import (
    components,
    containers,
    drafts,
    entities,
    libraries,
    media,
    publishing,
)
from services.libraries.components import NewComponent
from services.libraries.errors import BlockExists, LimitReached, Superseded
from services.libraries.models import Entity, Library
from services.libraries.states import Kind
from shared.database import Database
from tests.conftest import Servers
from tests.libraries.conftest import NOON, make_library
from tests.statements import statements

ROUNDS = 5


def component(code: str, olx: str = "<problem />") -> NewComponent:
    return NewComponent("problem", code, code, olx)


async def add(session: AsyncSession, library: Library, *codes: str) -> None:
    items = [component(code) for code in codes]
    await components.add_many(session, library, items, user="ines", now=NOON)


async def edit(session: AsyncSession, library: Library, code: str, olx: str) -> int:
    entity = await find(session, library, code)
    made = await components.set_olx(session, library, entity, olx, user="ines", now=NOON)
    return made.version_num


async def find(session: AsyncSession, library: Library, code: str) -> Entity:
    return await entities.get(session, library, f"xblock.v1:problem:{code}", deleted=True)


async def publish_all(session: AsyncSession, library: Library) -> int:
    return await publishing.publish_all(session, library, user="ines", now=NOON)


async def query(session: AsyncSession, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    connection = await session.connection()
    return [tuple(row) for row in await connection.execute(text(statement), values)]


RECORDS = """
    select entity.code, old.version_num, new.version_num, record.direct
    from publish_record record join entity on entity.id = record.entity_id
    left join version old on old.id = record.old_version_id
    left join version new on new.id = record.new_version_id
    where record.log_id = (select max(id) from publish_log) order by entity.code
"""


async def unit_in_subsection(session: AsyncSession, library: Library) -> Entity:
    """`p` in units `u1` and `u2`, both in subsection `s`: a diamond."""
    await add(session, library, "p")
    ref = "xblock.v1:problem:p"
    for code in ("u1", "u2"):
        await containers.create(
            session, library, kind=Kind.UNIT, code=code, title=code, children=[(ref, None)],
            user="ines", now=NOON,
        )  # fmt: skip
    return await containers.create(
        session, library, kind=Kind.SUBSECTION, code="s", title="s",
        children=[("u1", None), ("u2", None)], user="ines", now=NOON,
    )  # fmt: skip


async def test_numbers_go_on_after_a_revert(session: AsyncSession, library: Library) -> None:
    await add(session, library, "p")
    await publish_all(session, library)
    assert await edit(session, library, "p", "<problem>2</problem>") == 2

    assert await publishing.revert(session, library, user="ines", now=NOON) == 1

    assert await edit(session, library, "p", "<problem>3</problem>") == 3


async def test_publishing_or_reverting_nothing_writes_nothing(
    session: AsyncSession, library: Library
) -> None:
    await add(session, library, "p")
    await publish_all(session, library)

    assert await publish_all(session, library) == 0
    assert await publishing.revert(session, library, user="ines", now=NOON) == 0

    logs = "select (select count(*) from publish_log), (select count(*) from draft_log)"
    assert await query(session, logs) == [(1, 1)]


async def test_an_edit_is_carried_up_every_edge_of_a_diamond(
    session: AsyncSession, library: Library
) -> None:
    await unit_in_subsection(session, library)

    await edit(session, library, "p", "<problem>2</problem>")

    edges = await query(
        session,
        """
        select child.code, parent.code from draft_side_effect
        join draft_record cause on cause.id = cause_id
        join entity child on child.id = cause.entity_id
        join draft_record effect on effect.id = effect_id
        join entity parent on parent.id = effect.entity_id
        where cause.log_id = (select max(id) from draft_log) order by 1, 2
        """,
    )
    assert edges == [("p", "u1"), ("p", "u2"), ("u1", "s"), ("u2", "s")]


async def test_publishing_a_container_takes_what_is_below_and_says_what_was_asked(
    session: AsyncSession, library: Library
) -> None:
    subsection = await unit_in_subsection(session, library)
    await publish_all(session, library)
    await edit(session, library, "p", "<problem>2</problem>")

    await publishing.publish(session, library, [subsection.id], user="ines", now=NOON)

    assert await query(session, RECORDS) == [
        ("p", 1, 2, False),
        ("s", 1, 1, True),
        ("u1", 1, 1, False),
        ("u2", 1, 1, False),
    ]


async def test_publishing_a_child_leaves_unpublished_parents_alone(
    session: AsyncSession, library: Library
) -> None:
    await unit_in_subsection(session, library)
    problem = await find(session, library, "p")

    await publishing.publish(session, library, [problem.id], user="ines", now=NOON)

    assert await query(session, RECORDS) == [("p", None, 1, True)]


async def test_a_childs_deletion_is_published_with_its_parent(
    session: AsyncSession, library: Library
) -> None:
    subsection = await unit_in_subsection(session, library)
    await publish_all(session, library)
    problem = await find(session, library, "p")
    await drafts.delete(session, library, problem, user="ines", now=NOON)

    await publishing.publish(session, library, [subsection.id], user="ines", now=NOON)

    assert ("p", 1, None, False) in await query(session, RECORDS)


async def test_a_library_with_containers_can_be_deleted(
    session: AsyncSession, library: Library
) -> None:
    await unit_in_subsection(session, library)
    await publish_all(session, library)
    await edit(session, library, "p", "<problem>2</problem>")

    await libraries.delete(session, library)

    for table in ("entity", "version", "draft", "published", "publish_log", "media"):
        assert await query(session, f"select count(*) from {table}") == [(0,)]


async def test_work_that_lost_its_lock_comes_too_late(
    session: AsyncSession, library: Library
) -> None:
    await publishing.hold(session, library, 7)
    await publishing.hold(session, library, 7)
    await publishing.hold(session, library, 9)

    with pytest.raises(Superseded):
        await publishing.hold(session, library, 8)


async def test_the_number_of_statements_does_not_grow_with_the_library(
    database: Database, session: AsyncSession
) -> None:
    counts = []
    for size in (5, 200):
        library = await make_library(session, slug=f"n-{size}")
        codes = [f"p{number}" for number in range(size)]
        with statements(database.engine) as adding:
            await add(session, library, *codes)
        with statements(database.engine) as publish:
            await publish_all(session, library)
        items = [component(code, "<problem>2</problem>") for code in codes]
        with statements(database.engine) as editing:
            await components.add_many(session, library, items, user="ines", now=NOON)
        with statements(database.engine) as revert:
            await publishing.revert(session, library, user="ines", now=NOON)
        counts.append([len(found) for found in (adding, publish, editing, revert)])

    assert counts[0] == counts[1]


@pytest_asyncio.fixture
async def shared_library(clean: Servers, database: Database) -> Library:
    """A library that really is committed, for several sessions at once."""
    async with database.sessions.begin() as session:
        library = await make_library(session)
        await add(session, library, "p")
    return library


@asynccontextmanager
async def own(database: Database) -> AsyncIterator[AsyncSession]:
    async with database.sessions.begin() as session:
        yield session


async def test_editors_of_one_component_all_get_their_version(
    database: Database, shared_library: Library
) -> None:
    async def once(number: int) -> int:
        async with own(database) as session:
            return await edit(session, shared_library, "p", f"<problem>{number}</problem>")

    for first in range(ROUNDS):
        numbers = await asyncio.gather(*(once(number) for number in range(4)))
        assert sorted(numbers) == [2 + first * 4 + place for place in range(4)]


async def test_two_publishes_at_once_record_each_change_once(
    database: Database, shared_library: Library
) -> None:
    async def once() -> int:
        async with own(database) as session:
            return await publish_all(session, shared_library)

    for number in range(ROUNDS):
        if number:
            async with own(database) as session:
                await edit(session, shared_library, "p", f"<problem>{number}</problem>")
        assert sorted(await asyncio.gather(once(), once())) == [0, 1]
    async with own(database) as session:
        assert await query(session, "select count(*) from publish_record") == [(ROUNDS,)]


async def test_the_same_new_media_stored_at_once_is_one_row(
    database: Database, shared_library: Library
) -> None:
    async def once(content: str) -> int:
        async with own(database) as session:
            new = media.text_media(content, "text/plain")
            stored = await media.store_many(session, shared_library, [new], now=NOON)
            return stored[(new.media_type, new.hash)]

    for number in range(ROUNDS):
        ids = await asyncio.gather(*(once(f"text {number}") for _ in range(4)))
        assert len(set(ids)) == 1


async def test_a_code_created_twice_at_once_is_made_once(
    database: Database, shared_library: Library
) -> None:
    outcomes = await asyncio.gather(
        *(make(database, shared_library, "new") for _ in range(4)), return_exceptions=True
    )

    assert sum(isinstance(outcome, BlockExists) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, BaseException) for outcome in outcomes) == 3


async def test_two_cannot_pass_the_limit_together(
    database: Database, shared_library: Library
) -> None:
    outcomes = await asyncio.gather(
        *(make(database, shared_library, f"n{number}", most=3) for number in range(5)),
        return_exceptions=True,
    )

    assert sum(isinstance(outcome, LimitReached) for outcome in outcomes) == 3


async def make(database: Database, library: Library, code: str, most: int = 100) -> Entity:
    async with own(database) as session:
        return await components.create(
            session, library, block_type="problem", code=code, can_stand_alone=True, most=most,
            user="ines", now=NOON,
        )  # fmt: skip


async def test_edits_of_siblings_in_opposite_order_do_not_deadlock(
    database: Database, shared_library: Library
) -> None:
    codes = [f"q{number}" for number in range(20)]
    async with own(database) as session:
        await add(session, shared_library, *codes)
        refs = [(f"xblock.v1:problem:{code}", None) for code in codes]
        for unit in ("u1", "u2"):
            await containers.create(
                session, shared_library, kind=Kind.UNIT, code=unit, title=unit, children=refs,
                user="ines", now=NOON,
            )  # fmt: skip

    async def change(order: list[str], mark: str) -> None:
        items = [component(code, f"<problem>{mark}</problem>") for code in order]
        async with own(database) as session:
            await components.add_many(session, shared_library, items, user="ines", now=NOON)

    for number in range(ROUNDS):
        await asyncio.gather(change(codes, f"a{number}"), change(codes[::-1], f"b{number}"))


_READ = """
    select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) from pg_stat_xact_user_tables
"""


async def test_one_more_component_reads_as_many_rows_whatever_there_is(
    session: AsyncSession, library: Library
) -> None:
    """Also where PostgreSQL has not counted the rows yet, and takes all tables for small."""

    async def cost(code: str) -> int:
        (before,), *_ = await query(session, _READ)
        await components.create(
            session, library, block_type="problem", code=code, can_stand_alone=True, most=100_000,
            user="ines", now=NOON,
        )  # fmt: skip
        (after,), *_ = await query(session, _READ)
        return int(after - before)

    await cost("warm")
    few = await cost("few")
    await add(session, library, *(f"c{number}" for number in range(400)))

    assert await cost("many") < few + 60
