"""Any sequence of changes against a small model of what comes of it. contract: content_core §7

After each step: where both branches of every item stand, the records of the operation with every
edge upwards, the flags, the children, the histories, and numbers that are never given twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import containers, drafts, entities, history, libraries, publishing
from services.libraries.containers import Change
from services.libraries.keys import ItemKey
from services.libraries.models import Entity, Library
from services.libraries.states import CHILD_KIND, Kind
from shared.database import Database
from shared.testing import rolled_back
from tests.libraries.conftest import NOON, make_library
from tests.libraries.test_publishing import add, edit, query

PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
BY: dict[str, Any] = {"user": "ines", "now": NOON}
KINDS = {
    "p0": Kind.COMPONENT, "p1": Kind.COMPONENT, "p2": Kind.COMPONENT, "u0": Kind.UNIT,
    "u1": Kind.UNIT, "s0": Kind.SUBSECTION, "s1": Kind.SUBSECTION, "t0": Kind.SECTION,
}  # fmt: skip
# None is the item of the step before: most that can go wrong is several changes of one item.
CODES = [*[None] * 10, "p0", "p0", "u0", *KINDS]
NAMES = [
    "edit", "edit", "append", "append", "replace", "remove", "remove_at", "delete", "restore",
    "undelete", "publish", "publish", "publish_all", "revert", "discard", "discard_below",
    "discard_below",
]  # fmt: skip
STEP = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(CODES),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
)

Move = tuple[int | None, int | None]


@dataclass
class Item:
    """One item: the children of each of its versions, and where its branches stand."""

    kind: Kind
    versions: list[list[str]] = field(default_factory=list)
    draft: int | None = None
    shown: int | None = None
    ever_shown: bool = False
    # Changes since the last publish, and those of them that the next publish will tell.
    since: list[Move] = field(default_factory=list)
    window: list[Move] = field(default_factory=list)

    def listed(self, version: int | None) -> list[str]:
        return self.versions[version - 1] if version else []


class Model:
    """What should be there."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        # The latest operation on each branch: own moves, and for publishes what was asked for.
        self.drafted: dict[str, Move] = {}
        self.published: dict[str, Move] = {}
        self.asked: set[str] = set()
        self.told: list[dict[str, list[Move]]] = []

    def live(self, kind: Kind | None = None) -> list[str]:
        return [
            code for code, item in self.items.items() if item.draft and kind in (None, item.kind)
        ]

    def move(self, moves: dict[str, int | None]) -> None:
        real = {
            code: (self.items[code].draft, new)
            for code, new in moves.items()
            if self.items[code].draft != new
        }
        if not real:
            return
        self.drafted = real
        for code, (old, new) in real.items():
            item = self.items[code]
            item.draft = new
            item.since.append((old, new))
            item.window.append((old, new))
            if new == item.shown:
                item.window.clear()
                if item.ever_shown:
                    item.since.clear()

    def write(self, code: str, children: list[str]) -> None:
        item = self.items[code]
        item.versions.append(children)
        self.move({code: len(item.versions)})

    def different(self) -> list[str]:
        return [code for code, item in self.items.items() if item.draft != item.shown]

    def publish(self, asked: Iterable[str], also: Iterable[str] = ()) -> None:
        asked = list(asked)
        codes = {*asked, *(code for code in also if code in self.different())}
        moves = {code: (self.items[code].shown, self.items[code].draft) for code in codes}
        if all(old == new for old, new in moves.values()):
            return
        self.published, self.asked = moves, set(asked)
        self.told.append({})
        for code, (old, new) in moves.items():
            item = self.items[code]
            item.shown, item.ever_shown = new, True
            if old != new:
                self.told[-1][code] = list(item.window)
                item.since.clear()
                item.window.clear()

    def below(self, code: str, *, both: bool = False) -> set[str]:
        found, queue = set[str](), [code]
        while queue:
            item = self.items[queue.pop()]
            lists = item.listed(item.draft) + (item.listed(item.shown) if both else [])
            queue += [child for child in lists if child not in found]
            found.update(lists)
        return found

    def changed(self, code: str) -> bool:
        return any(other in self.different() for other in {code} | self.below(code))

    def records(self, own: dict[str, Move], branch: str) -> tuple[dict[str, Move], set[Any]]:
        """All records of one operation, and its edges from child to parent."""
        found, edges, queue = dict(own), set[tuple[str, str]](), list(own)
        while queue:
            child = queue.pop()
            for code, item in self.items.items():
                version = getattr(item, branch)
                if child in item.listed(version) and (child, code) not in edges:
                    edges.add((child, code))
                    if code not in found:
                        found[code] = (version, version)
                    queue.append(code)
        return found, edges


class Both:
    """Does everything twice, in the library and in the model, and compares."""

    def __init__(self, session: AsyncSession, library: Library) -> None:
        self.session, self.library, self.model = session, library, Model()
        self.entities: dict[str, Entity] = {}
        self.mark = 0

    async def make(self, code: str, *children: str) -> None:
        kind = KINDS[code]
        self.model.items[code] = Item(kind)
        if kind is Kind.COMPONENT:
            await add(self.session, self.library, code)
            ref = f"xblock.v1:problem:{code}"
        else:
            below = [(self.entities[child].entity_ref, None) for child in children]
            await containers.create(
                self.session, self.library, kind=kind, code=code, title=code, children=below, **BY
            )
            ref = code
        self.entities[code] = await entities.get(self.session, self.library, ref)
        self.model.write(code, list(children))

    def key(self, code: str) -> ItemKey:
        kind = KINDS[code]
        name = "problem" if kind is Kind.COMPONENT else kind.value
        return ItemKey(self.library.key, kind, name, code)

    async def step(self, name: str, code: str, picks: list[int]) -> None:
        if code not in self.entities:
            await self.make(code)
        elif name in ("publish_all", "revert"):
            await getattr(self, name)()
        elif name in ("restore", "undelete"):
            await getattr(self, name)(code)
        elif name in ("discard", "discard_below"):
            await self.discard(code, below=name == "discard_below")
        elif code in self.model.live():
            await self.live_step(name, code, picks)

    async def live_step(self, name: str, code: str, picks: list[int]) -> None:
        if name == "publish":
            self.model.publish([code], self.model.below(code))
            ident = self.entities[code].id
            await publishing.publish(self.session, self.library, [ident], **BY)
        elif name == "delete":
            self.model.move({code: None})
            await drafts.delete(self.session, self.library, self.entities[code], **BY)
        elif KINDS[code] is Kind.COMPONENT:
            self.mark += 1
            self.model.write(code, [])
            number = await edit(self.session, self.library, code, f"<problem>{self.mark}</problem>")
            assert number == len(self.model.items[code].versions)
        elif name == "remove_at":
            await self.remove_at(code, picks[0])
        elif name == "edit":
            self.model.write(
                code, list(self.model.items[code].listed(self.model.items[code].draft))
            )
            await containers.rename(self.session, self.library, self.entities[code], "New", **BY)
        else:
            await self.change(Change(name), code, picks)

    async def change(self, how: Change, code: str, picks: list[int]) -> None:
        possible = self.model.live(CHILD_KIND[KINDS[code]])
        chosen = [possible[pick % len(possible)] for pick in picks] if possible else []
        if not chosen:
            return
        item = self.model.items[code]
        before = item.listed(item.draft)
        after = {
            Change.APPEND: before + chosen,
            Change.REPLACE: chosen,
            Change.REMOVE: [child for child in before if child not in chosen],
        }[how]
        self.model.write(code, after)
        keys = [self.key(child) for child in chosen]
        made = await containers.change_children(
            self.session, self.library, self.entities[code], how, keys, **BY
        )
        assert made.version_num == len(item.versions)

    async def remove_at(self, code: str, position: int) -> None:
        item = self.model.items[code]
        before = item.listed(item.draft)
        shown = [place for place, child in enumerate(before) if self.model.items[child].draft]
        if position < len(shown):
            place = shown[position]
            self.model.write(code, before[:place] + before[place + 1 :])
            await containers.remove_at(
                self.session, self.library, self.entities[code], position, **BY
            )

    async def restore(self, code: str) -> None:
        self.model.move({code: len(self.model.items[code].versions)})
        await drafts.restore(self.session, self.library, self.entities[code], **BY)

    async def undelete(self, code: str) -> None:
        item = self.model.items[code]
        if item.draft is None:
            found = await query(
                self.session,
                "select version_num from version join draft_record on old_version_id = version.id "
                "where draft_record.entity_id = :id and new_version_id is null "
                "order by draft_record.id desc limit 1",
                id=self.entities[code].id,
            )
            self.model.move({code: found[0][0]})
            await drafts.undelete(self.session, self.library, self.entities[code], **BY)

    async def publish_all(self) -> None:
        self.model.publish(self.model.different())
        await publishing.publish_all(self.session, self.library, **BY)

    async def revert(self) -> None:
        self.model.move({code: self.model.items[code].shown for code in self.model.different()})
        await publishing.revert(self.session, self.library, **BY)

    async def discard(self, code: str, *, below: bool) -> None:
        items = self.model.items
        if items[code].shown is None:
            return
        codes = {code} | (self.model.below(code, both=True) if below else set())
        self.model.move({one: items[one].shown for one in codes if items[one].shown})
        ids = [self.entities[code].id]
        await drafts.discard(self.session, self.library, ids, below=below, **BY)

    async def compare(self) -> None:
        await self.compare_pointers()
        await self.compare_records("draft", self.model.drafted)
        await self.compare_records("publish", self.model.published)
        await self.compare_flags()
        await self.compare_histories()

    async def compare_pointers(self) -> None:
        rows = await query(
            self.session,
            """
            select entity.code, live.version_num, seen.version_num, published.entity_id is not null,
                   (select array_agg(version_num order by version_num) from version
                    where version.entity_id = entity.id)
            from entity left join draft on draft.entity_id = entity.id
            left join version live on live.id = draft.version_id
            left join published on published.entity_id = entity.id
            left join version seen on seen.id = published.version_id
            where entity.library_id = :id
            """,
            id=self.library.id,
        )
        assert {row[0]: row[1:] for row in rows} == {
            code: (
                item.draft, item.shown, item.ever_shown, list(range(1, len(item.versions) + 1)),
            )
            for code, item in self.model.items.items()
        }  # fmt: skip

    async def compare_records(self, branch: str, own: dict[str, Move]) -> None:
        if not own:
            return
        pointer = {"draft": "draft", "publish": "shown"}[branch]
        records, edges = self.model.records(own, pointer)
        direct = "record.direct" if branch == "publish" else "null"
        newest = f"(select max(id) from {branch}_log where library_id = :id)"
        rows = await query(
            self.session,
            f"""
            select entity.code, old.version_num, new.version_num, {direct}
            from {branch}_record record join entity on entity.id = record.entity_id
            left join version old on old.id = record.old_version_id
            left join version new on new.id = record.new_version_id
            where record.log_id = {newest}
            """,
            id=self.library.id,
        )
        if branch == self.latest:
            assert {row[0]: row[1:3] for row in rows} == records
            if branch == "publish":
                assert {row[0] for row in rows if row[3]} == self.model.asked
            found = await query(
                self.session,
                f"""
                select child.code, parent.code from {branch}_side_effect effect
                join {branch}_record cause on cause.id = effect.cause_id
                join {branch}_record caused on caused.id = effect.effect_id
                join entity child on child.id = cause.entity_id
                join entity parent on parent.id = caused.entity_id
                where cause.log_id = {newest}
                """,
                id=self.library.id,
            )
            assert set(found) == edges

    latest = ""

    async def compare_flags(self) -> None:
        live = [code for code in self.model.live() if KINDS[code] is not Kind.COMPONENT]
        ids = {self.entities[code].id: code for code in live}
        found = await entities.changed_below(self.session, list(ids))
        assert {ids[ident] for ident in found} == {
            code for code in live if self.model.changed(code)
        }
        about = await libraries.describe(self.session, self.library)
        different = [self.model.items[code] for code in self.model.different()]
        assert about.changes == any(item.draft for item in different)
        assert about.deletes == any(not item.draft for item in different)
        for code in live:
            item = self.model.items[code]
            for published, version, pointer in [
                (False, item.draft, "draft"), (True, item.shown, "shown"),
            ]:  # fmt: skip
                rows = await containers.children(
                    self.session, self.entities[code], published=published
                )
                assert [row.code for row in rows] == [
                    child
                    for child in item.listed(version)
                    if getattr(self.model.items[child], pointer)
                ]

    async def compare_histories(self) -> None:
        for code, item in self.model.items.items():
            if KINDS[code] is Kind.COMPONENT:
                rows = await history.unpublished(self.session, self.entities[code])
                assert [(row.old_num, row.new_num) for row in rows] == item.since[::-1]

    async def compare_publishes(self) -> None:
        logs = await query(
            self.session, "select uuid from publish_log where library_id = :id order by id",
            id=self.library.id,
        )  # fmt: skip
        assert len(logs) == len(self.model.told)
        for (ident,), told in zip(logs, self.model.told, strict=True):
            for code, entity in self.entities.items():
                if KINDS[code] is Kind.COMPONENT:
                    rows = await history.entries(
                        self.session, self.library, entity, UUID(str(ident))
                    )
                    found = [(row.old_num, row.new_num) for row in rows]
                    assert found == told.get(code, [])[::-1]


async def diamond(both: Both) -> None:
    for code in ("p0", "p1"):
        await both.make(code)
    await both.make("u0", "p0", "p1", "p0")
    await both.make("u1", "p0")
    await both.make("s0", "u0", "u1")
    await both.make("t0", "s0")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(st.booleans(), st.lists(STEP, min_size=6, max_size=16))
async def test_any_sequence_of_changes(
    database: Database, publish_first: bool, steps: list[tuple[str, str | None, list[int]]]
) -> None:
    async with rolled_back(database) as session:
        both = Both(session, await make_library(session))
        await diamond(both)
        if publish_first:
            await both.publish_all()
        latest = "p0"
        for name, code, picks in steps:
            latest = code or latest
            before = both.model.drafted, both.model.published
            await both.step(name, latest, picks)
            changed = both.model.drafted is not before[0], both.model.published is not before[1]
            both.latest = "draft" if changed[0] else "publish" if changed[1] else ""
            await both.compare()
        await both.compare_publishes()
