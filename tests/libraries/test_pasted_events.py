"""What a paste tells: each thing it made, once, or nothing. contract: libraries §7.2"""

from collections import Counter
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import clipboard, containers, libraries, pasting
from services.libraries.components import NewComponent, add_many
from services.libraries.errors import LimitReached
from services.libraries.models import Clipboard, Entity, Library
from services.libraries.olx import LIMITS
from services.libraries.states import Kind
from shared.callers import Caller
from shared.events import told
from shared.files import Files
from tests.libraries.conftest import NOON, make_library
from tests.libraries.test_library_events import PREFIX, REF, WHO

ADA = Caller("ada", user_id=1)


class Pasting:
    """A tree in one library, copied; and another library to paste it into."""

    def __init__(self, session: AsyncSession, source: Library, target: Library) -> None:
        self.session, self.source, self.target = session, source, target

    async def grow(self) -> Entity:
        items = [NewComponent("html", code, code, f"<html>{code}</html>") for code in "abc"]
        await add_many(self.session, self.source, items, **WHO)
        below = [REF(code) for code in "abca"]
        for kind, code in ((Kind.UNIT, "u"), (Kind.SUBSECTION, "s"), (Kind.SECTION, "top")):
            made = await containers.create(
                self.session, self.source, kind=kind, code=code, title=code,
                children=[(ref, None) for ref in below], **WHO,
            )  # fmt: skip
            below = [code, code]
        return made

    async def copy(self, entity: Entity) -> Clipboard:
        return await clipboard.copy(
            self.session, self.source, entity, most=100, caller=ADA, now=NOON
        )

    async def paste(self, kept: Clipboard, into: Library, most: int = 100) -> list[tuple[str, str]]:
        """What was told of it: names and keys, in their order."""
        before = len(told(self.session))
        await pasting.paste(
            self.session, Files("memory:///"), into, kept, most=most, limits=LIMITS, caller=ADA,
            now=NOON,
        )  # fmt: skip
        return self.since(before)

    def since(self, before: int) -> list[tuple[str, str]]:
        new = told(self.session)[before:]
        return [(one.name.removeprefix(PREFIX), key_in(one.data)) for _, one in new]


def key_in(data: dict[str, Any]) -> str:
    [about] = data.values()
    names = ("usage_key", "container_key", "object_id")
    return next(about[name] for name in names if name in about)


@pytest.fixture
async def pasting_(session: AsyncSession) -> Pasting:
    source = await make_library(session, slug="source")
    return Pasting(session, source, await make_library(session, slug="target"))


async def test_a_pasted_tree_tells_each_thing_it_made_once(pasting_: Pasting) -> None:
    kept = await pasting_.copy(await pasting_.grow())

    news = await pasting_.paste(kept, pasting_.target)

    created = [(name, key) for name, key in news if name.endswith(".created.v1")]
    assert Counter(name for name, _ in created) == {
        "library_block.created.v1": 3,
        "content_library.container.created.v1": 3,
    }
    assert len({key for _, key in created}) == 6
    assert all(":target:" in key for _, key in news)
    assert max(Counter(news).values()) == 1


async def test_what_is_below_is_told_before_what_holds_it(pasting_: Pasting) -> None:
    kept = await pasting_.copy(await pasting_.grow())

    news = await pasting_.paste(kept, pasting_.target)

    kinds = [key.split(":")[3] for name, key in news if name.endswith(".created.v1")]
    assert kinds == ["html"] * 3 + ["unit", "subsection", "section"]


async def test_what_is_linked_is_not_told_as_made(pasting_: Pasting) -> None:
    kept = await pasting_.copy(await pasting_.grow())

    news = await pasting_.paste(kept, pasting_.source)

    assert [name for name, _ in news if name.endswith(".created.v1")] == [
        "content_library.container.created.v1"
    ]
    changed = [key for name, key in news if name.startswith("content.object")]
    assert changed == ["lct:CL-TEST:source:subsection:s"]


async def test_a_paste_that_is_refused_tells_nothing(pasting_: Pasting) -> None:
    kept = await pasting_.copy(await pasting_.grow())
    before = len(told(pasting_.session))

    with pytest.raises(LimitReached):
        async with pasting_.session.begin_nested():
            await pasting_.paste(kept, pasting_.target, most=5)

    assert pasting_.since(before) == []


FULL = """
    create function full_disk() returns trigger language plpgsql as $$
    begin raise exception 'The disk is full.' using errcode = 'disk_full'; end $$
"""
WHEN = """
    create trigger full_disk before insert on version
    for each row when (new.title = 's') execute function full_disk()
"""


async def test_a_paste_that_breaks_in_the_middle_tells_and_leaves_nothing(
    pasting_: Pasting,
) -> None:
    """The error comes out as itself, and the same session goes on.

    contract: content_core §7 12
    """
    kept = await pasting_.copy(await pasting_.grow())
    session, before = pasting_.session, len(told(pasting_.session))
    for statement in (FULL, WHEN):
        await (await session.connection()).execute(text(statement))

    with pytest.raises(asyncpg.DiskFullError, match=r"The disk is full\."):
        async with session.begin_nested():
            await pasting_.paste(kept, pasting_.target)

    assert pasting_.since(before) == []
    assert (await libraries.describe(session, pasting_.target)).num_blocks == 0
    await (await session.connection()).execute(text("drop trigger full_disk on version"))
    assert len(await pasting_.paste(kept, pasting_.target)) > 5
