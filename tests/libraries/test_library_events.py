"""What a library tells everyone, row by row of its contract. contract: libraries §7"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
from fastapi import FastAPI
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
    publishing,
)
from services.libraries.components import NewComponent
from services.libraries.errors import BlockExists, BlockUnknown
from services.libraries.keys import collection_key, container_key, object_key, usage_key
from services.libraries.models import Collection, Entity, Library
from services.libraries.states import Kind
from shared.events import stream_name, told
from shared.testing import as_user
from tests.libraries.conftest import NOON, STAFF, V2, make_library
from tests.statements import statements

PREFIX = "org.openedx.content_authoring."
WHO: dict[str, Any] = {"user": "ines", "now": NOON}
LIB = "lib:CL-TEST:lib-1"
CHANGED = "content.object.associations.changed"


def short(name: str, data: dict[str, Any]) -> tuple[Any, ...]:
    """An event as a test reads it: its name, what it is about, and `changes`."""
    assert name.startswith(PREFIX)
    assert name.endswith(".v1")
    [about] = data.values()
    keys = ("usage_key", "container_key", "collection_key", "object_id", "library_key")
    key = next(about[name] for name in keys if name in about)
    what = name.removeprefix(PREFIX).removesuffix(".v1")
    shown = key.split(":", 3)[-1] if key.count(":") > 2 else key
    return (what, shown, *([about["changes"]] if "changes" in about else []))


class World:
    """A library, and what is told since somebody last listened."""

    def __init__(self, session: AsyncSession, library: Library) -> None:
        self.session, self.library, self._heard = session, library, 0

    def heard(self) -> list[tuple[Any, ...]]:
        """Sorted: the order inside one operation is not promised."""
        new = told(self.session)[self._heard :]
        self._heard += len(new)
        assert {topic for topic, _ in new} <= {LIB}
        return sorted((short(one.name, one.data) for _, one in new), key=str)

    async def block(self, code: str) -> Entity:
        return await components.create(
            self.session, self.library, block_type="html", code=code, can_stand_alone=True,
            most=1_000_000, **WHO,
        )  # fmt: skip

    async def hold(self, kind: Kind, code: str, *refs: str) -> Entity:
        return await containers.create(
            self.session, self.library, kind=kind, code=code, title=code,
            children=[(ref, None) for ref in refs], **WHO,
        )  # fmt: skip

    async def children(self, container: Entity, *refs: str) -> None:
        rows = [(ref, None) for ref in refs]
        await containers.set_children(self.session, self.library, container, rows, **WHO)

    async def collection(self, title: str, *items: Entity) -> Collection:
        made = await collections.create(self.session, self.library, title=title, **WHO)
        ids = [item.id for item in items]
        await collections.add_items(self.session, self.library, made, ids, now=NOON)
        return made

    async def edit(self, entity: Entity, olx: str = "<html>new</html>") -> None:
        await components.set_olx(self.session, self.library, entity, olx, **WHO)

    async def delete(self, entity: Entity) -> None:
        await drafts.delete(self.session, self.library, entity, **WHO)

    async def restore(self, entity: Entity) -> None:
        await drafts.restore(self.session, self.library, entity, **WHO)

    async def publish(self, *items: Entity) -> None:
        ids = [item.id for item in items]
        await publishing.publish(self.session, self.library, ids, **WHO)

    async def revert(self) -> None:
        await publishing.revert(self.session, self.library, **WHO)


@pytest.fixture
def world(session: AsyncSession, library: Library) -> World:
    world = World(session, library)
    assert world.heard() == [("content_library.created", LIB)]
    return world


def changed(key: str, *changes: str) -> tuple[Any, ...]:
    return (CHANGED, key, list(changes))


def container(verb: str, key: str) -> tuple[str, str]:
    return (f"content_library.container.{verb}", key)


def collection(verb: str, code: str) -> tuple[str, str]:
    return (f"content_library.collection.{verb}", code)


def block(verb: str, code: str) -> tuple[str, str]:
    return (f"library_block.{verb}", f"html:{code}")


REF = "xblock.v1:html:{}".format


def test_keys_are_those_of_the_platform() -> None:
    for library, org, slug in (("lib:A.b:ü-1", "A.b", "ü-1"), (LIB, "CL-TEST", "lib-1")):
        assert object_key(library, Kind.COMPONENT, "html", "ä.1") == usage_key(
            org, slug, "html", "ä.1"
        )
        assert object_key(library, Kind.UNIT, "unit", "u") == container_key(org, slug, "unit", "u")
        assert collection_key(library, "c") == f"lib-collection:{org}:{slug}:c"


async def test_payloads_have_the_fields_of_the_contract(world: World) -> None:
    one = await world.block("a")
    await world.hold(Kind.UNIT, "u", REF("a"))
    await world.collection("C", one)
    await libraries.update(world.session, world.library, {"title": "New"}, now=NOON)

    said = {one.name.removeprefix(PREFIX): one.data for _, one in told(world.session)}

    unit, mine = "lct:CL-TEST:lib-1:unit:u", "lb:CL-TEST:lib-1:html:a"
    about_library = {"content_library": {"library_key": LIB, "update_blocks": False}}
    about_collection = {"collection_key": "lib-collection:CL-TEST:lib-1:c", "background": False}
    assert said == {
        "content_library.created.v1": about_library,
        "content_library.updated.v1": about_library,
        "library_block.created.v1": {"library_block": {"library_key": LIB, "usage_key": mine}},
        "content_library.container.created.v1": {
            "library_container": {"container_key": unit, "background": False}
        },
        "content_library.collection.created.v1": {"library_collection": about_collection},
        "content_library.collection.updated.v1": {"library_collection": about_collection},
        "content.object.associations.changed.v1": {
            "content_object": {"object_id": mine, "changes": ["collections"]}
        },
    }


async def test_a_library_that_changes_and_goes(world: World) -> None:
    await world.block("a")
    world.heard()

    await libraries.update(world.session, world.library, {}, now=NOON)
    assert world.heard() == []
    await libraries.update(world.session, world.library, {"license": "CC:4.0:BY"}, now=NOON)
    assert world.heard() == [("content_library.updated", LIB)]
    await libraries.delete(world.session, world.library)
    assert world.heard() == [("content_library.deleted", LIB)]


async def test_a_component_from_creation_to_restoring(world: World) -> None:
    one = await world.block("a")
    assert world.heard() == [block("created", "a")]

    await world.edit(one)
    assert world.heard() == [block("updated", "a")]
    await world.edit(one)
    assert world.heard() == [block("updated", "a")]
    await components.delete_asset(world.session, world.library, one, "static/x", **WHO)
    assert world.heard() == [block("updated", "a")]

    await world.delete(one)
    assert world.heard() == [block("deleted", "a")]
    await world.restore(one)
    assert world.heard() == [block("created", "a")]


@pytest_asyncio.fixture
async def tree(world: World) -> dict[str, Entity]:
    """Block a in unit u in subsection s in section t; a and u are in collections."""
    a = await world.block("a")
    u = await world.hold(Kind.UNIT, "u", REF("a"))
    s = await world.hold(Kind.SUBSECTION, "s", "u")
    t = await world.hold(Kind.SECTION, "t", "s")
    await world.collection("Blocks", a)
    await world.collection("Units", u)
    hidden = await world.collection("Hidden", a, u)
    await collections.delete(world.session, world.library, hidden, now=NOON)
    world.heard()
    return {"a": a, "u": u, "s": s, "t": t}


ABOVE = [
    container("updated", "section:t"),
    container("updated", "subsection:s"),
    container("updated", "unit:u"),
]


def said(*events: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return sorted(events, key=str)


async def test_what_holds_a_component_hears_of_it(world: World, tree: dict[str, Entity]) -> None:
    await world.edit(tree["a"])
    assert world.heard() == said(block("updated", "a"), *ABOVE)

    await world.delete(tree["a"])
    assert world.heard() == said(block("deleted", "a"), *ABOVE, collection("updated", "blocks"))

    await world.restore(tree["a"])
    assert world.heard() == said(
        block("created", "a"), *ABOVE, collection("updated", "blocks"),
        changed("html:a", "collections", "tags"),
    )  # fmt: skip


async def test_a_component_in_no_shown_collection_is_restored_without_associations(
    world: World,
) -> None:
    one = await world.block("a")
    hidden = await world.collection("Hidden", one)
    await collections.delete(world.session, world.library, hidden, now=NOON)
    await world.delete(one)
    world.heard()

    await world.restore(one)

    assert world.heard() == [block("created", "a")]


async def test_a_container_from_creation_to_restoring(
    world: World, tree: dict[str, Entity]
) -> None:
    await world.hold(Kind.UNIT, "v")
    assert world.heard() == [container("created", "unit:v")]
    await world.hold(Kind.UNIT, "w", REF("a"))
    assert world.heard() == said(container("created", "unit:w"), changed("html:a", "units"))

    await containers.rename(world.session, world.library, tree["u"], "New", **WHO)
    assert world.heard() == said(*ABOVE, changed("html:a", "units"))
    await containers.rename(world.session, world.library, tree["s"], "New", **WHO)
    assert world.heard() == said(*ABOVE[:2], changed("unit:u", "subsections"))
    await containers.rename(world.session, world.library, tree["t"], "New", **WHO)
    assert world.heard() == said(ABOVE[0], changed("subsection:s", "sections"))

    await world.delete(tree["u"])
    assert world.heard() == said(
        container("deleted", "unit:u"), *ABOVE[:2], collection("updated", "units")
    )
    await world.restore(tree["u"])
    assert world.heard() == said(
        container("created", "unit:u"), *ABOVE[:2], collection("updated", "units")
    )


async def test_children_that_come_and_go(world: World, tree: dict[str, Entity]) -> None:
    for code in "bcd":
        await world.block(code)
    world.heard()

    await world.children(tree["u"], REF("a"), REF("b"), REF("c"))
    assert world.heard() == said(*ABOVE, changed("html:b", "units"), changed("html:c", "units"))
    await world.children(tree["u"], REF("c"), REF("a"), REF("b"), REF("b"))
    assert world.heard() == said(*ABOVE)
    await world.children(tree["u"], REF("d"), REF("b"), REF("c"))
    assert world.heard() == said(*ABOVE, changed("html:a", "units"), changed("html:d", "units"))


async def test_a_revert_tells_of_each_change(world: World, tree: dict[str, Entity]) -> None:
    await world.publish(tree["t"])
    gone = await world.block("gone")
    await world.publish(gone)
    await world.delete(gone)
    await world.block("new")
    await world.edit(tree["a"])
    await world.children(tree["u"], REF("a"), REF("new"))
    await containers.rename(world.session, world.library, tree["s"], "New", **WHO)
    await world.collection("More", gone)
    world.heard()

    await world.revert()

    assert world.heard() == said(
        block("created", "gone"), block("deleted", "new"), block("updated", "a"), *ABOVE,
        changed("unit:u", "subsections"), changed("html:gone", "collections", "tags"),
        collection("updated", "more"),
    )  # fmt: skip


async def test_publishing_tells_of_every_record(world: World, tree: dict[str, Entity]) -> None:
    published = [container("published", one[1]) for one in ABOVE]

    await world.publish(tree["t"])
    assert world.heard() == said(
        block("published", "a"), *published,
        collection("updated", "blocks"), collection("updated", "units"),
    )  # fmt: skip
    await world.publish(tree["t"])
    assert world.heard() == []

    await world.edit(tree["a"])
    world.heard()
    await world.publish(tree["a"])
    assert world.heard() == said(
        block("published", "a"), *published,
        collection("updated", "blocks"), collection("updated", "units"),
    )  # fmt: skip


async def test_a_published_deletion_is_told_as_published(world: World) -> None:
    one = await world.block("a")
    await world.publish(one)
    await world.delete(one)
    world.heard()

    await publishing.publish_all(world.session, world.library, **WHO)

    assert world.heard() == [block("published", "a")]


async def test_collections_and_their_members(world: World) -> None:
    a, b, gone = await world.block("a"), await world.block("b"), await world.block("gone")
    await world.delete(gone)
    world.heard()
    tools = {"session": world.session, "library": world.library}
    later = {"now": NOON + timedelta(minutes=1)}

    mine = await collections.create(**tools, title="C", **WHO)
    assert world.heard() == [collection("created", "c")]

    ids = [a.id, b.id, gone.id]
    await collections.add_items(**tools, collection=mine, ids=ids, **later)
    both = [changed("html:a", "collections"), changed("html:b", "collections")]
    assert world.heard() == said(collection("updated", "c"), *both)
    await collections.add_items(**tools, collection=mine, ids=ids, **later)
    assert world.heard() == [collection("updated", "c")]

    await collections.update(**tools, collection=mine, changes={}, **later)
    assert world.heard() == []
    await collections.update(**tools, collection=mine, changes={"title": "D"}, **later)
    assert world.heard() == said(collection("updated", "c"), *both)

    await collections.delete(**tools, collection=mine, **later)
    assert world.heard() == said(collection("deleted", "c"), *both)
    await collections.update(**tools, collection=mine, changes={"title": "E"}, **later)
    assert world.heard() == []
    await collections.restore(**tools, collection=mine, **later)
    assert world.heard() == said(collection("created", "c"), *both)
    await collections.restore(**tools, collection=mine, **later)
    assert world.heard() == []

    await collections.remove_items(**tools, collection=mine, ids=[a.id], **later)
    assert world.heard() == said(collection("updated", "c"), both[0])
    await collections.remove_for_good(**tools, collection=mine)
    assert world.heard() == said(collection("deleted", "c"), both[1])


async def test_56_renaming_a_collection_with_three_members(world: World) -> None:
    items = [await world.block(code) for code in "abc"]
    mine = await world.collection("C", *items)
    world.heard()

    await collections.update(world.session, world.library, mine, {"title": "New"}, now=NOON)

    assert world.heard() == said(
        collection("updated", "c"), *(changed(f"html:{code}", "collections") for code in "abc")
    )


async def test_an_item_that_is_put_into_other_collections(world: World) -> None:
    one = await world.block("a")
    await world.collection("Left", one)
    await world.collection("Kept", one)
    await world.collection("Entered")
    world.heard()

    async def put(*codes: str) -> list[tuple[Any, ...]]:
        await collections.replace_of(world.session, world.library, one, codes, now=NOON)
        return world.heard()

    assert await put("kept", "entered", "unknown") == said(
        collection("updated", "left"), collection("updated", "entered"),
        changed("html:a", "collections"),
    )  # fmt: skip
    assert await put("entered", "kept") == []


async def test_a_staged_archive_tells_nothing(world: World, tree: dict[str, Entity]) -> None:
    world.library.staged_at = NOON

    await world.edit(tree["a"])
    await world.collection("C", tree["a"])
    await publishing.publish_all(world.session, world.library, **WHO)
    await libraries.update(world.session, world.library, {"title": "New"}, now=NOON)
    await libraries.delete(world.session, world.library)

    assert world.heard() == []


async def test_an_import_tells_of_what_it_added_and_what_it_changed(world: World) -> None:
    unit_block = await world.block("a")
    await world.hold(Kind.UNIT, "u", REF("a"))
    world.heard()
    items = [NewComponent("html", code, "T", f"<html>{code}</html>") for code in ("a", "b", "c")]

    await components.add_many(world.session, world.library, items, **WHO)
    assert world.heard() == said(
        block("updated", "a"), block("created", "b"), block("created", "c"),
        container("updated", "unit:u"),
    )  # fmt: skip
    await components.add_many(world.session, world.library, items, **WHO)
    assert world.heard() == []
    assert unit_block.code == "a"


async def test_54_what_fails_tells_nothing(world: World) -> None:
    await world.block("a")
    world.heard()

    with pytest.raises(BlockExists):
        async with world.session.begin_nested():
            await libraries.update(world.session, world.library, {"title": "New"}, now=NOON)
            await world.block("a")

    assert world.heard() == []
    await world.session.refresh(world.library)
    with pytest.raises(BlockUnknown):
        async with world.session.begin_nested():
            await world.hold(Kind.UNIT, "u", REF("a"), REF("none"))
    assert world.heard() == []


async def test_many_cost_as_many_statements_as_one(world: World) -> None:
    async def cost(work: Callable[[], Awaitable[Any]]) -> int:
        with statements(world.session.get_bind().engine) as seen:
            await work()
        return len(seen)

    async def life(codes: list[str]) -> list[int]:
        items = [NewComponent("html", code, "T", f"<html>{code}</html>") for code in codes]
        session, library = world.session, world.library
        costs = [await cost(lambda: components.add_many(session, library, items, **WHO))]
        ids = await entities.ids_of(session, library, [item.ref for item in items])
        mine = await world.collection(codes[0])
        rows = list(ids.values())
        costs += [
            await cost(lambda: collections.add_items(session, library, mine, rows, now=NOON)),
            await cost(lambda: publishing.publish_all(session, library, **WHO)),
            await cost(lambda: collections.delete(session, library, mine, now=NOON)),
        ]
        nowhere = dict.fromkeys(rows)
        costs += [
            await cost(lambda: branches.move_drafts(session, library, nowhere, **WHO)),
            await cost(lambda: publishing.revert(session, library, **WHO)),
        ]
        return costs

    one = await life(["only"])
    world.heard()
    thousand = await life([f"c{number}" for number in range(1000)])

    assert one == thousand
    heard = [name for name, *_ in world.heard()]
    assert heard.count("library_block.published") == 1000
    # Made, and back from their deletion.
    assert heard.count("library_block.created") == 2000


# With real commits, a relay and a stream


class Stream:
    """What came out on the stream since this was made."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.last = app, "0"

    async def forget(self) -> None:
        await self.all()

    async def all(self) -> list[tuple[Any, ...]]:
        """Everything new, once nothing waits in the database."""
        async with asyncio.timeout(20):
            while await self._waiting():
                await asyncio.sleep(0.01)
        redis = await self.app.state.queue.redis()
        rows = await redis.xrange(stream_name("libraries"), min=f"({self.last}")
        if rows:
            self.last = rows[-1][0].decode()
        return [
            short(fields[b"type"].decode(), orjson.loads(fields[b"data"])) for _, fields in rows
        ]

    async def _waiting(self) -> bool:
        async with self.app.state.database.sessions() as session:
            connection = await session.connection()
            found = await connection.execute(text("select exists (select from event_outbox)"))
            return bool(found.scalar_one())


@pytest_asyncio.fixture
async def stream(http: httpx.AsyncClient, app: FastAPI) -> Stream:
    await (await app.state.queue.redis()).delete(stream_name("libraries"))
    body = {"org": "CL-TEST", "slug": "lib-1", "title": "L", "description": ""}
    assert (await http.post(f"{V2}/", json=body, headers=STAFF)).status_code == 200
    return Stream(app)


async def make_block(http: httpx.AsyncClient, code: str) -> str:
    body = {"block_type": "html", "definition_id": code}
    answer = await http.post(f"{V2}/{LIB}/blocks/", json=body, headers=STAFF)
    assert answer.status_code == 200
    return f"{V2}/blocks/{answer.json()['id']}"


async def test_53_an_edit_of_a_block_in_a_unit_in_a_subsection(
    http: httpx.AsyncClient, app: FastAPI, stream: Stream
) -> None:
    url = await make_block(http, "a")
    async with app.state.database.sessions.begin() as session:
        world = World(session, await libraries.get(session, LIB))
        await world.hold(Kind.UNIT, "u", REF("a"))
        await world.hold(Kind.SUBSECTION, "s", "u")
    heard = await stream.all()
    assert heard[:2] == [("content_library.created", LIB), block("created", "a")]

    answer = await http.post(f"{url}/olx/", json={"olx": "<html>x</html>"}, headers=STAFF)

    assert answer.status_code == 200
    assert said(*await stream.all()) == said(block("updated", "a"), *ABOVE[1:])


async def test_54_a_refused_request_puts_nothing_on_the_stream(
    http: httpx.AsyncClient, stream: Stream
) -> None:
    url = await make_block(http, "a")
    await stream.forget()

    for answer in (
        await http.post(f"{url}/olx/", json={"olx": "<problem/>"}, headers=STAFF),
        await http.post(f"{url}/olx/", json={"olx": "<html/>"}, headers=as_user("nobody")),
        await http.patch(f"{V2}/{LIB}/", json={"title": ""}, headers=STAFF),
    ):
        assert answer.status_code in (400, 403)

    assert await stream.all() == []


async def test_edits_at_once_are_told_in_their_order(
    http: httpx.AsyncClient, stream: Stream
) -> None:
    urls = [await make_block(http, code) for code in "ab"]
    await stream.forget()

    async def live(url: str) -> None:
        for _ in range(5):
            assert (await http.delete(f"{url}/", headers=STAFF)).status_code == 200
            assert (await http.post(f"{url}/restore/", headers=STAFF)).status_code == 204

    await asyncio.gather(*(live(url) for url in urls))

    heard = await stream.all()
    for code in "ab":
        mine = [one for one in heard if one[1] == f"html:{code}"]
        assert mine == [block("deleted", code), block("created", code)] * 5


async def test_edits_of_one_block_by_many_are_each_told(
    http: httpx.AsyncClient, stream: Stream
) -> None:
    url = await make_block(http, "a")
    await stream.forget()

    async def save(number: int) -> None:
        olx = {"olx": f"<html>{number}</html>"}
        assert (await http.post(f"{url}/olx/", json=olx, headers=STAFF)).status_code == 200

    await asyncio.gather(*(save(number) for number in range(10)))

    assert await stream.all() == [block("updated", "a")] * 10


async def test_a_collection_over_http_is_told(http: httpx.AsyncClient, stream: Stream) -> None:
    await make_block(http, "a")
    await stream.forget()
    url = f"{V2}/{LIB}/collections"

    await http.post(f"{url}/", json={"title": "C", "description": ""}, headers=STAFF)
    await http.patch(
        f"{url}/c/items/", json={"usage_keys": ["lb:CL-TEST:lib-1:html:a"]}, headers=STAFF
    )
    await http.delete(f"{url}/c/", headers=STAFF)

    member = changed("html:a", "collections")
    assert await stream.all() == [
        collection("created", "c"), collection("updated", "c"), member,
        collection("deleted", "c"), member,
    ]  # fmt: skip


async def test_libraries_that_are_made_at_the_same_place_again(session: AsyncSession) -> None:
    first = await make_library(session, slug="again")
    await libraries.delete(session, first)
    await make_library(session, slug="again")

    verbs = [short(one.name, one.data)[0].rpartition(".")[2] for _, one in told(session)]
    assert verbs == ["created", "deleted", "created"]
