"""Trees of containers: what they cost, and many hands on them at once."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import (
    containers,
    drafts,
    entities,
    hierarchy,
    history,
    libraries,
    publishing,
)
from services.libraries.containers import Change
from services.libraries.errors import BlockUnknown
from services.libraries.keys import ItemKey
from services.libraries.models import Library
from services.libraries.states import Kind
from shared.database import Database
from tests.conftest import Servers
from tests.libraries.conftest import NOON, make_library
from tests.libraries.test_publishing import add, edit, own, publish_all, query
from tests.statements import statements

ROUNDS = 6
BY: dict[str, Any] = {"user": "ines", "now": NOON}


def key_of(library: Library, code: str, kind: Kind = Kind.COMPONENT) -> ItemKey:
    return ItemKey(library.key, kind, "problem" if kind is Kind.COMPONENT else kind.value, code)


async def change(
    session: AsyncSession,
    library: Library,
    parent: str,
    how: Change,
    *codes: str,
    kind: Kind = Kind.COMPONENT,
) -> None:
    container = await entities.get(session, library, parent)
    keys = [key_of(library, code, kind) for code in codes]
    await containers.change_children(session, library, container, how, keys, **BY)


async def listed(session: AsyncSession, library: Library, parent: str) -> list[str]:
    container = await entities.get(session, library, parent)
    return [row.code for row in await containers.children(session, container)]


async def tree(session: AsyncSession, library: Library, width: int) -> None:
    """A section of subsections of units of components, `width` of each, and one shared."""
    codes = [f"p{number}" for number in range(width)]
    await add(session, library, *codes)
    names = {Kind.COMPONENT: [f"xblock.v1:problem:{code}" for code in codes]}
    for kind, below in [(Kind.UNIT, Kind.COMPONENT), (Kind.SUBSECTION, Kind.UNIT)]:
        names[kind] = [f"{kind}{number}" for number in range(width)]
        for code in names[kind]:
            await containers.create(
                session, library, kind=kind, code=code, title=code,
                children=[(ref, None) for ref in names[below]], **BY,
            )  # fmt: skip
    await containers.create(
        session, library, kind=Kind.SECTION, code="top", title="top",
        children=[(ref, None) for ref in names[Kind.SUBSECTION]], **BY,
    )  # fmt: skip


async def costs(database: Database, session: AsyncSession, width: int) -> list[int]:
    library = await make_library(session, slug=f"w-{width}")
    await tree(session, library, width)
    top = await entities.get(session, library, "top")
    unit = await entities.get(session, library, "unit0")
    codes = [f"p{number}" for number in range(width)]
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: change(session, library, "unit0", Change.APPEND, *codes),
        lambda: change(session, library, "unit0", Change.REPLACE, *codes),
        lambda: change(session, library, "unit0", Change.REMOVE, codes[0]),
        lambda: containers.remove_at(session, library, unit, 0, **BY),
        lambda: containers.rename(session, library, unit, "New", **BY),
        lambda: publishing.preview(session, library, top.id),
        lambda: publishing.publish(session, library, [top.id], **BY),
        lambda: publish_all(session, library),
        lambda: edit(session, library, "p1", "<problem>2</problem>"),
        lambda: publishing.publish(session, library, [unit.id], **BY),
        lambda: containers.children(session, top),
        lambda: containers.children(session, top, published=True),
        lambda: containers.page(session, library, size=100, number=1),
        lambda: entities.changed_below(session, [top.id, unit.id]),
        lambda: hierarchy.show(session, top),
        lambda: hierarchy.show(session, unit),
        lambda: history.unpublished(session, top),
        lambda: history.publishes(session, top),
        lambda: drafts.discard(session, library, [top.id], below=True, **BY),
        lambda: drafts.delete(session, library, unit, **BY),
        lambda: drafts.restore(session, library, unit, **BY),
    ]
    counts = []
    for call in calls:
        with statements(database.engine) as seen:
            await call()
        counts.append(len(seen))
    return counts


async def test_the_number_of_statements_does_not_grow_with_the_tree(
    database: Database, session: AsyncSession
) -> None:
    few = await costs(database, session, 3)

    assert await costs(database, session, 12) == few
    assert max(few) <= 20


async def test_lists_of_the_same_many_times_do_not_multiply(
    session: AsyncSession, library: Library
) -> None:
    await add(session, library, "p")
    below = "xblock.v1:problem:p"
    for kind in (Kind.UNIT, Kind.SUBSECTION, Kind.SECTION):
        await containers.create(
            session, library, kind=kind, code=kind, title=kind, children=[(below, None)] * 500,
            **BY,
        )  # fmt: skip
        below = kind

    top = await entities.get(session, library, "section")
    async with asyncio.timeout(20):
        found = await hierarchy.show(session, top)
        flags = await entities.changed_below(session, [top.id])

    assert [len(found.levels[kind]) for kind in Kind] == [1, 1, 1, 1]
    assert flags == {top.id}


@pytest.mark.parametrize("published", [False, True])
async def test_a_container_that_was_never_anything_has_no_changes(
    session: AsyncSession, library: Library, published: bool
) -> None:
    unit = await containers.create(session, library, kind=Kind.UNIT, code="u", title="u", **BY)
    if published:
        await publish_all(session, library)
    await drafts.delete(session, library, unit, **BY)

    assert await entities.changed_below(session, [unit.id]) == ({unit.id} if published else set())


@pytest_asyncio.fixture
async def grown(clean: Servers, database: Database) -> Library:
    """A tree that really is committed."""
    async with database.sessions.begin() as session:
        library = await make_library(session)
        await tree(session, library, 4)
        await publish_all(session, library)
    return library


async def test_children_appended_by_many_at_once_are_all_there(
    database: Database, grown: Library
) -> None:
    async with own(database) as session:
        await add(session, grown, *(f"n{number}" for number in range(8)))

    async def once(number: int) -> None:
        async with own(database) as session:
            await change(session, grown, "unit0", Change.APPEND, f"n{number}")

    await asyncio.gather(*(once(number) for number in range(8)))

    async with own(database) as session:
        codes = await listed(session, grown, "unit0")
    assert codes[:4] == ["p0", "p1", "p2", "p3"]
    assert sorted(codes[4:]) == [f"n{number}" for number in range(8)]


async def test_of_many_that_delete_one_container_one_has_done_it(
    database: Database, grown: Library
) -> None:
    async def once() -> None:
        async with own(database) as session:
            unit = await entities.get(session, grown, "unit0", deleted=True)
            await drafts.delete(session, grown, unit, **BY)

    outcomes = await asyncio.gather(*(once() for _ in range(5)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if outcome] == [BlockUnknown] * 4


async def test_an_edit_does_not_bring_back_what_was_deleted_before_it(
    database: Database, grown: Library
) -> None:
    async def remove() -> None:
        async with own(database) as session:
            unit = await entities.get(session, grown, "unit0")
            await drafts.delete(session, grown, unit, **BY)

    async def append() -> None:
        async with own(database) as session:
            await change(session, grown, "unit0", Change.APPEND, "p1")

    for _ in range(ROUNDS):
        outcomes = await asyncio.gather(append(), remove(), return_exceptions=True)
        assert outcomes[1] is None
        assert outcomes[0] is None or isinstance(outcomes[0], BlockUnknown)
        async with own(database) as session:
            unit = await entities.get(session, grown, "unit0", deleted=True)
            found = await query(
                session, "select version_id from draft where entity_id = :id", id=unit.id
            )
            assert found == [(None,)]
            await drafts.restore(session, grown, unit, **BY)


async def test_a_child_deleted_while_lists_are_replaced(database: Database, grown: Library) -> None:
    async def remove() -> None:
        async with own(database) as session:
            child = await entities.get(session, grown, "xblock.v1:problem:p0")
            await drafts.delete(session, grown, child, **BY)

    async def replace(unit: str) -> None:
        async with own(database) as session:
            await change(session, grown, unit, Change.REPLACE, "p3", "p0")

    for _ in range(ROUNDS):
        units = ["unit0", "unit1", "unit2"]
        outcomes = await asyncio.gather(
            remove(), *(replace(unit) for unit in units), return_exceptions=True
        )
        assert outcomes[0] is None
        async with own(database) as session:
            for unit, outcome in zip(units, outcomes[1:], strict=True):
                assert outcome is None or isinstance(outcome, BlockUnknown)
                assert "p0" not in await listed(session, grown, unit)
            child = await entities.get(session, grown, "xblock.v1:problem:p0", deleted=True)
            await drafts.restore(session, grown, child, **BY)
            for unit, outcome in zip(units, outcomes[1:], strict=True):
                if outcome is None:
                    assert await listed(session, grown, unit) == ["p3", "p0"]


async def test_a_publish_shows_one_list_or_the_other(database: Database, grown: Library) -> None:
    async def publish() -> None:
        async with own(database) as session:
            unit = await entities.get(session, grown, "unit0")
            await publishing.publish(session, grown, [unit.id], **BY)

    async def replace(codes: list[str]) -> None:
        async with own(database) as session:
            await change(session, grown, "unit0", Change.REPLACE, *codes)

    before = ["p0", "p1", "p2", "p3"]
    for _ in range(ROUNDS):
        after = random.sample(before, 4)
        await asyncio.gather(publish(), replace(after), publish())
        async with own(database) as session:
            unit = await entities.get(session, grown, "unit0")
            seen = [row.code for row in await containers.children(session, unit, published=True)]
        assert seen in (before, after)
        await publish()
        async with own(database) as session:
            assert await entities.changed_below(session, [unit.id]) == set()
        before = after


async def test_everything_at_once_from_all_sides_never_waits_in_a_circle(
    database: Database, grown: Library
) -> None:
    """Edits below and changes above, in any order; a deadlock would be an error here."""

    async def touch(number: int) -> None:
        dice = random.Random(number)
        async with own(database) as session:
            place = dice.randrange(4)
            match number % 5:
                case 0 | 1:
                    codes = dice.sample([f"p{n}" for n in range(4)], 3)
                    for code in codes[:1]:
                        await edit(session, grown, code, f"<problem>{number}</problem>")
                case 2:
                    await change(session, grown, f"unit{place}", Change.APPEND, "p2")
                case 3:
                    await change(
                        session, grown, f"subsection{place}", Change.APPEND, f"unit{place}",
                        kind=Kind.UNIT,
                    )  # fmt: skip
                case _:
                    await publish_all(session, grown)

    async with asyncio.timeout(60):
        for first in range(ROUNDS):
            await asyncio.gather(*(touch(first * 15 + number) for number in range(15)))
    async with own(database) as session:
        await publish_all(session, grown)
        top = await entities.get(session, grown, "top")
        assert await entities.changed_below(session, [top.id]) == set()
        assert await query(session, "select count(*) from draft where record_id is null") == [(0,)]


async def test_a_parent_made_before_and_one_made_after_its_children_are_locked_in_one_order(
    database: Database, clean: Servers
) -> None:
    """Here a section is older than the unit in it: ids say nothing about what is above."""
    async with own(database) as session:
        library = await make_library(session)
        await add(session, library, "p", "q")
        for kind, code in [
            (Kind.SUBSECTION, "old"), (Kind.UNIT, "u1"), (Kind.UNIT, "u2"),
            (Kind.SUBSECTION, "new"),
        ]:  # fmt: skip
            await containers.create(session, library, kind=kind, code=code, title=code, **BY)
        for unit in ("u1", "u2"):
            await change(session, library, unit, Change.REPLACE, "p", "q")
        for sub in ("old", "new"):
            await change(session, library, sub, Change.REPLACE, "u1", "u2", kind=Kind.UNIT)

    async def save(code: str, mark: int) -> None:
        async with own(database) as session:
            await edit(session, library, code, f"<problem>{mark}</problem>")

    async def append(unit: str) -> None:
        async with own(database) as session:
            await change(session, library, unit, Change.APPEND, "p")

    async with asyncio.timeout(60):
        for mark in range(ROUNDS * 3):
            await asyncio.gather(
                save("p", mark), save("q", mark), append("u1"), append("u2"), save("p", -mark)
            )
    async with own(database) as session:
        assert (await libraries.describe(session, library)).changes
        assert len(await listed(session, library, "u1")) == 2 + ROUNDS * 3
