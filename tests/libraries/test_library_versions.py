"""Library versions: numbers, content, differences, reading as of a version, races."""

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import (
    components,
    containers,
    drafts,
    entities,
    libraries,
    library_version_contents,
    library_versions,
    media,
    publishing,
)
from services.libraries.components import NewComponent
from services.libraries.errors import (
    ContentOverwrite,
    LastVersion,
    Superseded,
    VersionProtected,
    VersionUnknown,
)
from services.libraries.jobs import add_and_remove, make_library_version
from services.libraries.library_versions import EVERYTHING, Change
from services.libraries.models import Library, LibraryVersion
from services.libraries.states import Kind
from shared.database import Database, utc_now
from shared.problems import BadInput
from shared.testing import as_user
from tests.conftest import Servers
from tests.libraries.conftest import NOON, STAFF, V2
from tests.libraries.runs import Asked, make_library, make_task
from tests.statements import statements

LIB = "lib:Fjord:BIRDS"


def html(code: str, body: str = "", **assets: media.NewMedia) -> NewComponent:
    return NewComponent("html", code, code, f"<html>{body}</html>", assets)


async def write(session: AsyncSession, library: Library, *items: NewComponent) -> None:
    await components.add_many(session, library, items, user="ada", now=NOON)


async def write_and_publish(session: AsyncSession, library: Library, *items: NewComponent) -> None:
    await write(session, library, *items)
    await publishing.publish_all(session, library, user="ada", now=NOON)


async def snapshot(session: AsyncSession, library: Library) -> LibraryVersion | None:
    return await library_versions.snapshot(session, library, user="ada", now=NOON)


async def change(session: AsyncSession, library: Library, **values: Any) -> LibraryVersion | None:
    return await library_versions.add_and_remove(
        session, library, Change(**values), user="ada", now=NOON
    )


async def units(session: AsyncSession, library: Library, number: int) -> dict[str, UUID]:
    rows = await library_version_contents.content(session, library, number)
    return {row.code: row.uuid for row in rows}


async def numbers(session: AsyncSession, library: Library) -> list[int]:
    rows = await library_versions.page(session, library, before=None, size=100)
    return [row.number for row in rows]


async def draft_of(session: AsyncSession, library: Library, code: str) -> UUID:
    entity = await entities.get(session, library, f"xblock.v1:html:{code}")
    row = await entities.show(session, entity.id)
    uuid: UUID = row.version_uuid
    return uuid


async def test_a_new_library_has_version_0_and_it_is_empty(
    session: AsyncSession, library: Library
) -> None:
    version = await library_versions.get(session, library, 0)

    assert (version.present, version.added, version.removed) == ({}, 0, 0)
    assert await numbers(session, library) == [0]


async def test_a_snapshot_holds_what_is_published_and_nothing_else(
    session: AsyncSession, library: Library
) -> None:
    await write_and_publish(session, library, html("a"), html("b"))
    await write(session, library, html("c"), html("a", "newer draft"))
    made = await snapshot(session, library)

    assert made is not None
    assert (made.number, made.present, made.added, made.removed) == (1, {"component": 2}, 2, 0)
    assert set(await units(session, library, 1)) == {"a", "b"}
    assert (await units(session, library, 1))["a"] != await draft_of(session, library, "a")


async def test_without_a_difference_no_number_is_used(
    session: AsyncSession, library: Library
) -> None:
    await write_and_publish(session, library, html("a"))
    first = await snapshot(session, library)
    second = await snapshot(session, library)
    await write_and_publish(session, library, html("b"))
    third = await snapshot(session, library)

    assert first is not None
    assert second is None
    assert third is not None
    assert third.number == 2
    assert await numbers(session, library) == [2, 1, 0]


async def test_versions_stay_as_they_were_made(session: AsyncSession, library: Library) -> None:
    await write_and_publish(session, library, html("a"), html("b"))
    await snapshot(session, library)
    before = await units(session, library, 1)
    await write_and_publish(session, library, html("a", "second"))
    gone = await entities.get(session, library, "xblock.v1:html:b")
    await drafts.delete(session, library, gone, user="ada", now=NOON)
    await publishing.publish_all(session, library, user="ada", now=NOON)
    made = await snapshot(session, library)

    assert made is not None
    assert (made.number, made.added, made.removed) == (2, 1, 2)
    assert await units(session, library, 1) == before
    assert set(await units(session, library, 2)) == {"a"}
    assert await units(session, library, 0) == {}


async def test_a_difference_names_what_was_added_removed_and_changed(
    session: AsyncSession, library: Library
) -> None:
    await write_and_publish(session, library, html("a"), html("b"), html("same"))
    await snapshot(session, library)
    await write_and_publish(session, library, html("a", "second"), html("c"))
    await change(session, library, remove=[(await units(session, library, 1))["b"]])
    await snapshot(session, library)
    await change(session, library, remove=[(await units(session, library, 1))["b"]])
    rows = await library_version_contents.difference(session, library, 1, 4)
    changes = {row.code: (row.old_num, row.new_num) for row in rows}

    assert changes == {"a": (1, 2), "b": (1, None), "c": (None, 1)}


# Adding and removing


@pytest.fixture
async def three(session: AsyncSession, library: Library) -> dict[str, UUID]:
    """A library whose version 1 holds a, b and c."""
    await write_and_publish(session, library, html("a"), html("b"), html("c"))
    await snapshot(session, library)
    return await units(session, library, 1)


async def test_removing_comes_before_adding(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    made = await change(session, library, remove=[EVERYTHING], add=[three["a"]])

    assert made is not None
    assert (made.number, made.added, made.removed) == (2, 0, 2)
    assert await units(session, library, 2) == {"a": three["a"]}


async def test_a_unit_that_is_removed_and_added_makes_no_version(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    assert await change(session, library, remove=[three["a"]], add=[three["a"]]) is None
    assert await numbers(session, library) == [1, 0]


async def test_a_base_gives_exactly_its_content(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    await change(session, library, remove=[three["a"], three["b"]])
    made = await change(session, library, base=1, remove=[three["c"]])
    same = await change(session, library, base=3)

    assert made is not None
    assert (made.number, made.base_number) == (3, 1)
    assert set(await units(session, library, 3)) == {"a", "b"}
    assert same is None


async def test_everything_means_the_newest_version_not_the_base(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    await change(session, library, remove=[three["a"]])
    made = await change(session, library, base=1, remove=[EVERYTHING])

    assert made is not None
    assert set(await units(session, library, made.number)) == {"a"}


async def test_a_newer_unit_replaces_the_older_of_its_component(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    await write(session, library, html("a", "draft"))
    draft = await draft_of(session, library, "a")
    await change(session, library, add=[draft])

    assert await units(session, library, 2) == three | {"a": draft}


async def test_replacing_is_refused_when_it_is_not_wanted(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    await write(session, library, html("a", "draft"))
    draft = await draft_of(session, library, "a")
    with pytest.raises(ContentOverwrite) as refused:
        await change(session, library, add=[draft], overwrite=False)
    same = await change(session, library, add=[three["b"]], overwrite=False)
    moved = await change(session, library, add=[draft], remove=[three["a"]], overwrite=False)

    assert refused.value.code == "PLP0023"
    assert refused.value.extensions["entities"] == ["xblock.v1:html:a"]
    assert same is None
    assert moved is not None
    assert moved.number == 2


async def test_two_units_of_one_component_are_refused(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    await write(session, library, html("a", "draft"))
    with pytest.raises(BadInput, match=r"several of xblock\.v1:html:a"):
        await change(session, library, add=[three["a"], await draft_of(session, library, "a")])


async def test_units_that_are_unknown_or_anothers_are_ignored(
    session: AsyncSession, library: Library, three: dict[str, UUID]
) -> None:
    other = await make_library(session, slug="OTHER")
    await write_and_publish(session, other, html("x"))
    made = await change(session, library, add=[await draft_of(session, other, "x"), UUID(int=9)])

    assert made is None


async def test_an_unknown_base_is_refused(session: AsyncSession, library: Library) -> None:
    with pytest.raises(VersionUnknown):
        await change(session, library, base=7)
    with pytest.raises(VersionUnknown):
        await library_versions.get(session, library, 2**40)


# Keeping and deleting


async def make_versions(session: AsyncSession, library: Library, count: int) -> None:
    for number in range(count):
        await write_and_publish(session, library, html("a", f"{number}"), html(f"n{number}"))
        await snapshot(session, library)


async def rows_of(session: AsyncSession, library: Library) -> int:
    connection = await session.connection()
    counted = await connection.execute(
        text("select count(*) from library_version_content where library_id = :id"),
        {"id": library.id},
    )
    return int(counted.scalar_one())


async def test_only_so_many_versions_are_kept_and_published_ones_longer(
    session: AsyncSession, library: Library
) -> None:
    await make_versions(session, library, 3)
    published = await library_versions.get(session, library, 1)
    await library_versions.publish(session, library, published, user="ada", now=NOON)
    kept = await units(session, library, 1)
    library.retain_versions = 2
    await session.flush()
    await make_versions(session, library, 1)

    assert await numbers(session, library) == [4, 3, 1]
    assert await units(session, library, 1) == kept
    # n0 to n2, and what versions 1, 3 and 4 have of a; not what only version 2 had.
    assert await rows_of(session, library) == 6


async def test_deleting_any_version_leaves_the_others_and_frees_its_rows(
    session: AsyncSession, library: Library
) -> None:
    await make_versions(session, library, 4)
    before = {number: await units(session, library, number) for number in (1, 3)}
    for number in (2, 4, 0):
        version = await library_versions.get(session, library, number)
        await library_versions.delete(session, library, version)

    assert await numbers(session, library) == [3, 1]
    assert {number: await units(session, library, number) for number in (1, 3)} == before
    assert await rows_of(session, library) == 5


async def test_a_deleted_number_is_not_given_again(session: AsyncSession, library: Library) -> None:
    await make_versions(session, library, 2)
    await library_versions.delete(session, library, await library_versions.newest(session, library))
    again = await snapshot(session, library)

    assert again is not None
    assert (again.number, again.added, again.removed) == (3, 2, 1)


async def test_published_and_last_versions_are_not_deleted(
    session: AsyncSession, library: Library
) -> None:
    first = await library_versions.get(session, library, 0)
    await library_versions.publish(session, library, first, user="ada", now=NOON)
    with pytest.raises(VersionProtected):
        await library_versions.delete(session, library, first)
    other = await make_library(session, slug="OTHER")
    with pytest.raises(LastVersion):
        await library_versions.delete(session, other, await library_versions.newest(session, other))


async def test_a_library_with_published_versions_can_be_deleted(
    session: AsyncSession, library: Library
) -> None:
    await make_versions(session, library, 2)
    version = await library_versions.newest(session, library)
    await library_versions.publish(session, library, version, user="ada", now=NOON)
    await libraries.delete(session, library)

    assert await libraries.find(session, library.key) is None


async def test_the_number_of_statements_does_not_grow(
    session: AsyncSession, library: Library, database: Database
) -> None:

    async def cost(*items: NewComponent) -> int:
        await write_and_publish(session, library, *items)
        with statements(database.engine) as seen:
            assert await snapshot(session, library) is not None
        return len(seen)

    few = await cost(html("a"))
    many = await cost(*(html(f"c{number}") for number in range(300)))

    assert 0 < few == many < 12


# As of a version


async def test_containers_are_read_with_the_children_of_their_time(
    session: AsyncSession, library: Library
) -> None:
    await write(session, library, html("a"), html("b"), html("pinned"))
    children = [
        ("xblock.v1:html:a", None),
        ("xblock.v1:html:b", None),
        ("xblock.v1:html:pinned", 1),
    ]
    await containers.create(
        session, library, kind=Kind.UNIT, code="u", title="U", children=children, user="ada",
        now=NOON,
    )  # fmt: skip
    await publishing.publish_all(session, library, user="ada", now=NOON)
    await snapshot(session, library)
    await write_and_publish(session, library, html("a", "second"), html("pinned", "second"))
    gone = await entities.get(session, library, "xblock.v1:html:b")
    await drafts.delete(session, library, gone, user="ada", now=NOON)
    await publishing.publish_all(session, library, user="ada", now=NOON)
    await snapshot(session, library)

    async def children_in(number: int) -> list[tuple[str, int | None, bool]]:
        unit = await library_version_contents.unit(session, library, number, "u")
        assert unit is not None
        rows = await library_version_contents.children(session, library, number, unit.version_id)
        return [(row.code, row.version_num, row.pinned) for row in rows]

    assert await children_in(1) == [("a", 1, False), ("b", 1, False), ("pinned", 1, True)]
    assert await children_in(2) == [("a", 2, False), ("b", None, False), ("pinned", 1, True)]


# Over HTTP


@pytest.fixture
def asked(app: FastAPI) -> Asked:
    return Asked(app)


@pytest.fixture
async def stored(app: FastAPI) -> Library:
    async with app.state.database.sessions.begin() as session:
        library = await make_library(session, user="ines")
        await write_and_publish(session, library, html("a"), html("b"))
    return library


async def test_a_version_is_made_read_compared_and_deleted(
    http: httpx.AsyncClient, asked: Asked, stored: Library
) -> None:
    started = await http.post(f"{V2}/{LIB}/versions/", headers=STAFF)
    result = await asked.run()
    shown = (await http.get(f"{V2}/{LIB}/versions/1/", headers=STAFF)).json()
    listed = (await http.get(f"{V2}/{LIB}/versions/", headers=STAFF)).json()
    content = (await http.get(f"{V2}/{LIB}/versions/1/content/?size=1", headers=STAFF)).json()
    rest = await http.get(
        f"{V2}/{LIB}/versions/1/content/", params={"after": content["next"]}, headers=STAFF
    )
    diff = (await http.get(f"{V2}/{LIB}/versions/0/diff/1/", headers=STAFF)).json()
    unit = (await http.get(content["results"][0]["pulp_href"], headers=STAFF)).json()

    assert started.status_code == 202
    assert started.json() == {"task": f"/pulp/api/v3/tasks/{asked.requests[0].id}/"}
    assert asked.requests[0].exclusive == [LIB]
    assert asked.created == [(shown["prn"], shown["pulp_href"])]
    assert result == shown
    assert shown["number"] == 1
    assert shown["content_summary"] == {"present": {"component": 2}, "added": 2, "removed": 0}
    assert [row["number"] for row in listed["results"]] == [1, 0]
    assert content["results"][0]["id"] == "lb:Fjord:BIRDS:html:a"
    assert [row["id"] for row in rest.json()["results"]] == ["lb:Fjord:BIRDS:html:b"]
    assert rest.json()["next"] is None
    assert {(row["id"][-1], row["change"]) for row in diff["results"]} == {
        ("a", "added"), ("b", "added"),
    }  # fmt: skip
    assert unit["olx"] == "<html></html>"

    assert (await http.delete(f"{V2}/{LIB}/versions/1/", headers=STAFF)).status_code == 202
    assert await asked.run() == {"libraries.LibraryVersion": 1}
    assert asked.gone == [shown["prn"]]
    assert (await http.get(f"{V2}/{LIB}/versions/1/", headers=STAFF)).status_code == 404


async def test_modify_names_its_units_and_says_what_is_wrong(
    http: httpx.AsyncClient, asked: Asked, stored: Library
) -> None:
    await http.post(f"{V2}/{LIB}/versions/", headers=STAFF)
    await asked.run()
    content = (await http.get(f"{V2}/{LIB}/versions/1/content/", headers=STAFF)).json()["results"]
    first = content[0]

    async def modify(**body: Any) -> httpx.Response:
        return await http.post(f"{V2}/{LIB}/modify/", json=body, headers=STAFF)

    nowhere = f"{V2}/resources/content/{UUID(int=5)}/"
    for body, field in (
        ({"add_content_units": ["nonsense"]}, "add_content_units"),
        ({"add_content_units": [nowhere]}, "add_content_units"),
        ({"remove_content_units": [nowhere]}, "remove_content_units"),
        ({"remove_content_units": ["*", first["prn"]]}, ""),
        ({"base_version": 9}, "base_version"),
        ({"base_version": 2**70}, "base_version"),
    ):
        answer = await modify(**body)
        assert answer.status_code == 400, body
        assert field in answer.text
    assert await asked.waiting() == []

    answer = await modify(remove_content_units=[first["pulp_href"]], base_version=1)
    result = await asked.run()

    assert answer.status_code == 202
    assert asked.requests[-1].exclusive == [LIB]
    assert result["number"] == 2
    assert result["base_version"] == f"{V2}/{LIB}/versions/1/"
    await modify(remove_content_units=[first["prn"]])
    assert await asked.run() is None


async def test_blocks_and_containers_are_read_as_of_a_version(
    http: httpx.AsyncClient, app: FastAPI, asked: Asked, stored: Library
) -> None:
    async with app.state.database.sessions.begin() as session:
        library = await libraries.get(session, LIB)
        data = b"\x89PNG"
        image = await media.store_file(app.state.files, library, data, "image/png")
        await write(session, library, html("a", "pictured", **{"static/x.png": image}))
        await containers.create(
            session, library, kind=Kind.UNIT, code="u", title="U",
            children=[("xblock.v1:html:a", None)], user="ada", now=NOON,
        )  # fmt: skip
        await publishing.publish_all(session, library, user="ada", now=NOON)
    await http.post(f"{V2}/{LIB}/versions/", headers=STAFF)
    await asked.run()
    async with app.state.database.sessions.begin() as session:
        await write_and_publish(session, library, html("a", "later"))

    block = f"{V2}/{LIB}/versions/1/blocks/lb:Fjord:BIRDS:html:a/"
    unit = f"{V2}/{LIB}/versions/1/containers/lct:Fjord:BIRDS:unit:u/"
    found = (await http.get(block, headers=STAFF)).json()
    contained = (await http.get(unit, headers=STAFF)).json()
    picture = await http.get(
        f"/library_assets/component_versions/{found['uuid']}/static/x.png", headers=STAFF
    )

    assert found["olx"] == "<html>pictured</html>"
    assert [(file["path"], file["size"]) for file in found["files"]] == [("static/x.png", 4)]
    assert picture.content == data
    assert [child["content"]["uuid"] for child in contained["children"]] == [found["uuid"]]
    for missing in (
        block.replace("/1/", "/0/"), block.replace(":a/", ":zz/"), block.replace("/1/", "/7/"),
        unit.replace(":unit:", ":section:"), block.replace("lb:Fjord", "lb:Other"),
    ):  # fmt: skip
        assert (await http.get(missing, headers=STAFF)).status_code == 404, missing


async def test_who_may_make_and_read_versions(
    http: httpx.AsyncClient, asked: Asked, stored: Library
) -> None:
    stranger = as_user("mallory")
    for method, path in (
        ("GET", "versions/"), ("POST", "versions/"), ("GET", "versions/0/"),
        ("DELETE", "versions/0/"), ("POST", "modify/"), ("GET", "versions/0/content/"),
        ("GET", "versions/0/diff/0/"), ("POST", "versions/0/publish/"), ("POST", "exports/"),
        ("GET", "exports/"),
    ):  # fmt: skip
        answer = await http.request(method, f"{V2}/{LIB}/{path}", headers=stranger, json={})
        assert answer.status_code == 403, path
        assert (await http.request(method, f"{V2}/{LIB}/{path}")).status_code == 401
    assert await asked.waiting() == []


async def test_a_permission_that_was_taken_meanwhile_counts(
    http: httpx.AsyncClient, app: FastAPI, asked: Asked, stored: Library
) -> None:
    author = as_user("ines")
    assert (await http.post(f"{V2}/{LIB}/versions/", headers=author)).status_code == 202
    async with app.state.database.sessions.begin() as session:
        connection = await session.connection()
        await connection.execute(text('delete from "grant"'))
        await connection.execute(text("delete from role_assignment"))
    with pytest.raises(Exception, match="do not have permission"):
        await asked.run()


# Races, with real commits


@pytest.fixture
async def real(clean: Servers, database: Database) -> Library:
    async with database.sessions.begin() as session:
        library = await make_library(session)
        await write_and_publish(session, library, html("a"), html("b"), html("c"))
    return library


async def test_changes_at_once_get_dense_numbers(
    real: Library, database: Database, app: FastAPI
) -> None:
    async with database.sessions.begin() as session:
        await snapshot(session, real)
        held = await units(session, real, 1)
    await asyncio.gather(
        *(
            add_and_remove(
                make_task(database, app.state.files, fence=7),
                library_key=real.key,
                remove_content_units=[str(unit)],
            )
            for unit in held.values()
        )
    )

    async with database.sessions() as session:
        assert await numbers(session, real) == [4, 3, 2, 1, 0]
        sizes = [len(await units(session, real, number)) for number in range(5)]
    assert sizes == [0, 3, 2, 1, 0]


async def test_work_whose_lock_was_given_away_is_refused(
    real: Library, database: Database, app: FastAPI
) -> None:
    await make_library_version(make_task(database, app.state.files, fence=9), library_key=real.key)
    async with database.sessions() as session:
        held = await units(session, real, 1)
    with pytest.raises(Superseded):
        await add_and_remove(
            make_task(database, app.state.files, fence=8),
            library_key=real.key,
            remove_content_units=[str(held["a"])],
        )


async def test_a_snapshot_beside_publishing_sees_all_of_a_publish_or_nothing(
    real: Library, database: Database, app: FastAPI
) -> None:
    async def publish(round: int) -> None:
        async with database.sessions.begin() as session:
            library = await libraries.get(session, real.key)
            await publishing.lock(session, library)
            items = [html(code, f"round {round}") for code in "abc"]
            await components.add_many(session, library, items, user="ada", now=utc_now())
            await publishing.publish_all(session, library, user="ada", now=utc_now())

    async def publish_often() -> None:
        for round in range(8):
            await publish(round)

    async def snapshot_often() -> None:
        for _ in range(8):
            await make_library_version(
                make_task(database, app.state.files, fence=3), library_key=real.key
            )

    await asyncio.gather(publish_often(), snapshot_often())

    async with database.sessions() as session:
        made = await numbers(session, real)
        for number in made[:-1]:
            rows = await library_version_contents.content(session, real, number)
            assert len({row.version_num for row in rows}) == 1
            assert len(rows) == 3
    assert made == list(range(len(made) - 1, -1, -1))
