"""Traps of the content core that no other test walks into. contract: content_core §7

docs/compatibility.md says which test has which trap.
"""

import asyncio
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import (
    branches,
    collections,
    components,
    containers,
    drafts,
    entities,
    libraries,
    media,
    publishing,
)
from services.libraries.errors import BlockExists, RuleBroken
from services.libraries.media import NewMedia
from services.libraries.models import Library
from services.libraries.states import Kind
from shared.database import Database
from shared.files import digest
from tests.conftest import Servers
from tests.libraries.conftest import NOON, make_library
from tests.libraries.test_publishing import (
    add,
    component,
    edit,
    find,
    own,
    publish_all,
    query,
    unit_in_subsection,
)

BY: dict[str, Any] = {"user": "ines", "now": NOON}
LOGS = "select (select count(*) from draft_log), (select count(*) from draft_record)"


async def code(session: AsyncSession, library: Library, name: str, kind: str = "problem") -> None:
    await components.create(
        session, library, block_type=kind, code=name, can_stand_alone=True, most=100, **BY
    )


async def test_2_a_draft_that_is_set_to_where_it_is_writes_nothing(
    session: AsyncSession, library: Library
) -> None:
    await add(session, library, "p")
    before = await query(session, LOGS)
    problem = await find(session, library, "p")

    await drafts.restore(session, library, problem, **BY)

    assert await query(session, LOGS) == before


async def test_3_what_never_was_published_and_is_deleted_is_no_change(
    session: AsyncSession, library: Library
) -> None:
    await add(session, library, "p")
    await drafts.delete(session, library, await find(session, library, "p"), **BY)
    before = await query(session, LOGS)

    assert await publish_all(session, library) == 0
    assert await publishing.revert(session, library, **BY) == 0
    await branches.move_drafts(
        session, library, {(await find(session, library, "p")).id: None}, **BY
    )

    assert await query(session, LOGS) == before
    found = await libraries.describe(session, library)
    assert (found.changes, found.deletes) == (False, False)


async def test_5_an_edit_that_is_taken_back_leaves_no_difference_above(
    session: AsyncSession, library: Library
) -> None:
    top = await unit_in_subsection(session, library)
    await publish_all(session, library)
    await edit(session, library, "p", "<problem>2</problem>")
    assert await entities.changed_below(session, [top.id]) == {top.id}

    await publishing.revert(session, library, **BY)

    assert await entities.changed_below(session, [top.id]) == set()
    assert await publishing.publish(session, library, [top.id], **BY) == 0


async def test_8_a_publish_walks_through_what_is_unchanged_in_the_middle(
    session: AsyncSession, library: Library
) -> None:
    """Units and the subsection are as published; only what is two levels below differs."""
    top = await unit_in_subsection(session, library)
    await publish_all(session, library)
    await edit(session, library, "p", "<problem>2</problem>")

    assert await publishing.publish(session, library, [top.id], **BY) == 1
    assert (await libraries.describe(session, library)).changes is False


async def test_8_what_holds_something_cannot_be_put_into_it(
    session: AsyncSession, library: Library
) -> None:
    top = await unit_in_subsection(session, library)
    unit = await entities.get(session, library, "u1")

    for container, ref in ((unit, "s"), (top, "s"), (unit, "u2"), (top, "xblock.v1:problem:p")):
        with pytest.raises(RuleBroken):
            await containers.set_children(session, library, container, [(ref, None)], **BY)


async def test_9_what_was_asked_for_is_direct_also_when_it_is_unchanged(
    session: AsyncSession, library: Library
) -> None:
    top = await unit_in_subsection(session, library)
    await publish_all(session, library)
    await edit(session, library, "p", "<problem>2</problem>")

    await publishing.publish(session, library, [top.id], **BY)

    direct = await query(
        session,
        "select entity.code from publish_record join entity on entity.id = entity_id "
        "where direct and log_id = (select max(id) from publish_log)",
    )
    assert direct == [("s",)]


async def test_11_a_publish_sees_nothing_of_a_bulk_change_that_is_under_way(
    clean: Servers, database: Database
) -> None:
    async with own(database) as session:
        library = await make_library(session)
        other = await make_library(session, slug="other")
        await add(session, library, "old")
        await add(session, other, "theirs")
    items = [component(name, "<problem>2</problem>") for name in ("old", "new", "newer")]

    async with asyncio.timeout(20):
        async with database.sessions.begin() as bulk:
            await components.add_many(bulk, library, items[:2], **BY)
            async with own(database) as session:
                assert await publish_all(session, other) == 1
            beside = asyncio.create_task(_publish(database, library))
            await components.add_many(bulk, library, items[2:], **BY)
        assert await beside in (1, 3)

    async with own(database) as session:
        await publish_all(session, library)
        shown = await query(
            session,
            "select entity.code, publish_record.log_id, count(*) over (partition by log_id) "
            "from publish_record join entity on entity.id = entity_id "
            "where entity.code in ('new', 'newer')",
        )
    logs = {log for _, log, _ in shown}
    assert len(shown) == 2
    assert len(logs) == 1


async def _publish(database: Database, library: Library) -> int:
    async with own(database) as session:
        return await publish_all(session, library)


async def test_12_an_error_in_a_bulk_change_comes_out_as_itself_and_the_session_goes_on(
    session: AsyncSession, library: Library
) -> None:
    await add(session, library, "p")
    connection = await session.connection()
    for statement in (
        "create function full_disk() returns trigger language plpgsql as $$ "
        "begin raise exception 'The disk is full.' using errcode = 'disk_full'; end $$",
        "create trigger full_disk before insert on version for each row "
        "when (new.title = 'broken') execute function full_disk()",
    ):
        await connection.execute(text(statement))
    before = await query(session, LOGS)
    items = [component(name) for name in ("one", "two", "broken")]

    with pytest.raises(asyncpg.DiskFullError, match=r"The disk is full\."):
        async with session.begin_nested():
            await components.add_many(session, library, items, **BY)

    assert await query(session, LOGS) == before
    assert (await libraries.describe(session, library)).num_blocks == 1
    assert await edit(session, library, "p", "<problem>2</problem>") == 2


async def test_13_components_of_two_types_may_have_one_code(
    session: AsyncSession, library: Library
) -> None:
    await code(session, library, "same")
    await code(session, library, "same", "html")
    await containers.create(session, library, kind=Kind.UNIT, code="same", title="same", **BY)

    with pytest.raises(BlockExists):
        await code(session, library, "same")
    with pytest.raises(RuleBroken):
        await containers.create(session, library, kind=Kind.SECTION, code="same", title="s", **BY)


@pytest.mark.parametrize("name", ["é", "日本語", "ΩΜΈΓΑ", "٣"])
async def test_14_codes_in_any_script_whatever_the_databases_locale_is(
    session: AsyncSession, library: Library, name: str
) -> None:
    """The database has no say in it: no rule of its own on codes could depend on its locale."""
    await code(session, library, name)
    await containers.create(session, library, kind=Kind.UNIT, code=name, title="u", **BY)

    found = await query(session, "select distinct code from entity")

    assert found == [(name,)]
    rules = "select pg_get_constraintdef(oid) from pg_constraint where contype = 'c'"
    assert [rule for (rule,) in await query(session, rules) if "~" in rule] == []


async def test_15_a_text_that_is_stored_as_a_file_too_keeps_both(
    session: AsyncSession, library: Library
) -> None:
    written = media.text_media("same", "text/plain")
    as_file = NewMedia("text/plain", digest(b"same"), 4)
    key = (written.media_type, written.hash)

    first = await media.store_many(session, library, [written], now=NOON)
    second = await media.store_many(session, library, [as_file], now=NOON)

    assert first[key] == second[key]
    assert await query(session, "select text, has_file from media") == [("same", True)]


async def test_15_libraries_share_no_content(session: AsyncSession, library: Library) -> None:
    other = await make_library(session, slug="other")
    written = media.text_media("same", "text/plain")

    mine = await media.store_many(session, library, [written], now=NOON)
    theirs = await media.store_many(session, other, [written], now=NOON)

    assert set(mine.values()).isdisjoint(theirs.values())
    assert media.content_path(library, written.hash) != media.content_path(other, written.hash)


async def test_18_a_collection_that_is_deleted_takes_nothing_and_keeps_its_code(
    session: AsyncSession, library: Library
) -> None:
    await add(session, library, "p")
    ref = "xblock.v1:problem:p"
    made = await collections.create(session, library, title="c", **BY)
    await collections.add(session, library, made, [ref], now=NOON)
    await collections.delete(session, library, made, now=NOON)

    with pytest.raises(RuleBroken):
        await collections.add(session, library, made, [ref], now=NOON)
    again = await collections.create(session, library, title="c", **BY)
    await collections.restore(session, library, made, now=NOON)

    assert (made.code, again.code) == ("c", "c-1")
    assert len((await collections.members(session, [made]))[made.id]) == 1


@pytest.mark.parametrize("words", ["école", "ÉCOLE", "straßen", "ПРИВЕТ", "i", "ξένο"])
async def test_28_searching_a_title_does_not_mind_case_in_any_language(
    session: AsyncSession, library: Library, words: str
) -> None:
    title = "École, STRASSEN straßen привет ΞΈΝΟΣ I"
    olx = f'<problem display_name="{title}"/>'
    item = components.NewComponent("problem", "p", title, olx)
    await components.add_many(session, library, [item], **BY)
    await libraries.update(session, library, {"title": title}, now=NOON)

    rows, count = await components.page(session, library, size=10, number=1, text_search=words)

    assert ([row.code for row in rows], count) == (["p"], 1)
