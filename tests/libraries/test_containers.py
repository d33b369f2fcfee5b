"""Containers over HTTP. contract: libraries §10 (numbers are its scenarios)"""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2
from tests.libraries.test_api import BLOCK_FIELDS, LIB, STRANGER, Author

FIELDS = {*BLOCK_FIELDS, "container_type", "container_type_code"} - {"block_type"}
CODE = re.compile(r"lct:CL-TEST:lib-1:unit:my-unit-[0-9a-f]{6}")


def p(code: str) -> str:
    return f"lb:CL-TEST:lib-1:problem:{code}"


def ct(code: str, kind: str = "unit") -> str:
    return f"lct:CL-TEST:lib-1:{kind}:{code}"


class Builder(Author):
    """An author who also makes containers."""

    async def call(self, method: str, path: str, body: Any = None, **params: Any) -> httpx.Response:
        return await self.http.request(
            method, f"{V2}/{path}", json=body, params=params, headers=STAFF
        )

    async def made(self, *codes: str) -> None:
        for code in codes:
            assert (await self.block(code)).status_code == 200

    async def container(self, code: str, kind: str = "unit", *children: str) -> str:
        body = {"container_type": kind, "display_name": code, "slug": code}
        answer = await self.post(f"{LIB}/containers/", body)
        assert answer.status_code == 200, answer.text
        if children:
            assert (await self.put_children(ct(code, kind), *children)).status_code == 200
        return ct(code, kind)

    async def put_children(self, key: str, *children: str, method: str = "POST") -> httpx.Response:
        return await self.call(method, f"containers/{key}/children/", {"usage_keys": children})

    async def children(self, key: str, **params: Any) -> list[str]:
        answer = await self.get(f"containers/{key}/children/", **params)
        assert answer.status_code == 200
        return [row["id"] for row in answer.json()]

    async def show(self, key: str) -> dict[str, Any]:
        kind = "blocks" if key.startswith("lb:") else "containers"
        answer = await self.get(f"{kind}/{key}/")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def changed(self, key: str) -> bool:
        return bool((await self.show(key))["has_unpublished_changes"])

    async def publish(self, key: str) -> None:
        kind = "blocks" if key.startswith("lb:") else "containers"
        answer = await self.post(f"{kind}/{key}/publish/")
        assert (answer.status_code, answer.json()) == (200, {})

    async def edit(self, code: str, content: str, name: str | None = None) -> None:
        title = f' display_name="{name}"' if name else ""
        body = {"olx": f"<problem{title}>{content}</problem>"}
        assert (await self.post(f"blocks/{p(code)}/olx/", body)).status_code == 200

    async def remove(self, key: str) -> None:
        kind = "blocks" if key.startswith("lb:") else "containers"
        assert (await self.delete(f"{kind}/{key}/")).status_code in (200, 204)

    async def restore(self, key: str, how: str = "") -> httpx.Response:
        kind = "blocks" if key.startswith("lb:") else "containers"
        return await self.call("POST", f"{kind}/{key}/restore/{how}")


@pytest_asyncio.fixture
async def author(http: httpx.AsyncClient, app: FastAPI) -> AsyncIterator[Builder]:
    author = Builder(http, app)
    assert (await author.create()).status_code == 200
    yield author


async def test_28_a_key_is_made_out_of_the_name(author: Builder) -> None:
    body = {"container_type": "unit", "display_name": " My Unit! ", "can_stand_alone": False}
    answer = await author.post(f"{LIB}/containers/", body)

    made = answer.json()
    assert answer.status_code == 200
    assert set(made) == FIELDS
    assert CODE.fullmatch(made["id"])
    assert made["display_name"] == "My Unit!"
    assert (made["container_type"], made["container_type_code"]) == ("unit", "unit")
    assert (made["can_stand_alone"], made["collections"]) == (True, [])
    assert (made["has_unpublished_changes"], made["last_published"]) == (True, None)
    assert await author.children(made["id"]) == []
    assert await author.children(made["id"], published="true") == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"display_name": "x"}, "container_type_code"),
        ({"container_type": "shelf", "display_name": "x"}, "container_type_code"),
        ({"container_type_code": ["unit"], "display_name": "x"}, "container_type_code"),
        ({"container_type": "unit"}, "display_name"),
        ({"container_type": "unit", "display_name": " "}, "display_name"),
        ({"container_type": "unit", "display_name": "x" * 501}, "display_name"),
        ({"container_type": "unit", "display_name": "a\x00"}, "display_name"),
        ({"container_type": "unit", "display_name": "x", "slug": "a.b"}, "slug"),
        ({"container_type": "unit", "display_name": "x", "slug": "a:b"}, "slug"),
        ({"container_type": "unit", "display_name": "x", "slug": "x" * 256}, "slug"),
    ],
)
async def test_a_container_that_cannot_be_names_the_field(
    author: Builder, body: dict[str, Any], field: str
) -> None:
    answer = await author.post(f"{LIB}/containers/", body)

    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert (await author.library())["num_blocks"] == 0


async def test_one_code_for_all_types_also_of_a_deleted_container(author: Builder) -> None:
    await author.remove(await author.container("x"))

    body = {"container_type": "section", "display_name": "x", "slug": "x"}
    answer = await author.post(f"{LIB}/containers/", body)

    assert (answer.status_code, type(answer.json())) == (400, list)
    assert (await author.get(f"containers/{ct('x', 'section')}/")).status_code == 404


@pytest.mark.parametrize("title", ["!!!", "日本語", "x" * 500, "- a  b -", "É\tü"])
async def test_any_name_makes_a_key(author: Builder, title: str) -> None:
    body = {"container_type": "unit", "display_name": title}
    made = (await author.post(f"{LIB}/containers/", body)).json()

    assert (await author.get(f"containers/{made['id']}/")).json() == made


@pytest.mark.parametrize(
    "key",
    [
        "lct:CL-TEST:lib-1:section:u",
        "lct:CL-TEST:lib-1:unit:other",
        "lct:CL-TEST:lib-1:problem:p",
        "lct:CL-TEST:none:unit:u",
        "lct:CL-TEST:lib-1:unit",
        "lb:CL-TEST:lib-1:problem:p",
        "u",
        "lct:CL-TEST:lib-1:unit:u%00",
    ],
)
async def test_what_is_not_a_container_is_not_found(author: Builder, key: str) -> None:
    await author.made("p")
    await author.container("u", "unit", p("p"))

    for method, tail in [
        ("GET", ""), ("DELETE", ""), ("GET", "children/"), ("POST", "restore/"),
        ("POST", "publish/"), ("GET", "hierarchy/"), ("GET", "draft_history/"),
        ("GET", "publish_history/"), ("GET", "creation_entry/"), ("GET", "publish/preview/"),
        ("GET", "publish_history/8d1cbf4f-92a2-4d4c-8d5c-4b0e0a0a0a0a/children/"),
        ("POST", "discard/"), ("POST", "restore/before_deletion/"), ("DELETE", "children/0/"),
    ]:  # fmt: skip
        answer = await author.call(method, f"containers/{key}/{tail}")
        assert answer.status_code == 404, (method, tail)
    assert await author.children(ct("u")) == [p("p")]


async def test_renaming_makes_a_version_also_to_the_same_title(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))

    for title in ("New", "New"):
        answer = await author.call("PATCH", f"containers/{unit}/", {"display_name": title})
        assert (answer.status_code, answer.json()["display_name"]) == (200, title)

    assert await author.children(unit) == [p("a")]
    rows = (await author.get(f"containers/{unit}/draft_history/")).json()
    numbers = [row["new_version"] for row in rows if row["item_type"] == "unit"]
    assert numbers == [4, 3, 2, 1]
    for wrong in ({}, {"display_name": ""}, {"display_name": 3}):
        answer = await author.call("PATCH", f"containers/{unit}/", wrong)
        assert (answer.status_code, list(answer.json())) == (400, ["display_name"])


async def test_29_appending_replacing_and_removing(author: Builder) -> None:
    await author.made("a", "b", "c")
    unit = await author.container("u")

    answer = await author.put_children(unit, p("a"), p("b"))
    assert (answer.status_code, answer.json()["id"]) == (200, unit)
    await author.put_children(unit, p("c"))
    assert await author.children(unit) == [p("a"), p("b"), p("c")]
    await author.put_children(unit, p("c"), p("a"), p("b"), method="PATCH")
    assert await author.children(unit) == [p("c"), p("a"), p("b")]
    await author.put_children(unit, p("a"), p("gone"), ct("u"), method="DELETE")
    assert await author.children(unit) == [p("c"), p("b")]


async def test_30_the_same_child_twice_and_one_copy_removed(author: Builder) -> None:
    await author.made("a", "b")
    unit = await author.container("u", "unit", p("a"), p("b"), p("a"))
    assert await author.children(unit) == [p("a"), p("b"), p("a")]
    where = f"containers/{unit}/children"
    assert (await author.get(f"{where}/2/")).json()["id"] == p("a")

    taken = await author.call("DELETE", f"{where}/2/", expected=p("b"))
    assert taken.status_code == 409
    for position in ("3", "999999999"):
        assert (await author.delete(f"{where}/{position}/")).status_code == 404
        assert (await author.get(f"{where}/{position}/")).status_code == 404
    for position in ("-1", "x", "99999999999999999999"):
        assert (await author.delete(f"{where}/{position}/")).status_code == 404
    assert (await author.call("DELETE", f"{where}/0/", expected="x")).status_code == 400
    assert (await author.call("DELETE", f"{where}/0/", expected=p("a"))).status_code == 200
    assert await author.children(unit) == [p("b"), p("a")]
    await author.put_children(unit, p("a"))
    await author.put_children(unit, p("a"), method="DELETE")
    assert await author.children(unit) == [p("b")]


async def test_a_key_of_another_type_or_library_removes_no_child(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))
    top = await author.container("s", "subsection", unit)

    for parent, wrong in [
        (top, ct("u", "section")), (top, "lct:CL-TEST:other:unit:u"),
        (unit, "lb:CL-TEST:other:problem:a"), (unit, "lb:CL-TEST:lib-1:html:a"),
    ]:  # fmt: skip
        answer = await author.put_children(parent, wrong, method="DELETE")
        assert answer.status_code == 200
        where = f"containers/{parent}/children/0/"
        assert (await author.call("DELETE", where, expected=wrong)).status_code == 409

    assert (await author.children(top), await author.children(unit)) == ([unit], [p("a")])


async def test_31_32_lists_that_are_refused_change_nothing(author: Builder) -> None:
    await author.made("a", "dead")
    await author.create(slug="other")
    await author.remove(p("dead"))
    unit = await author.container("u", "unit", p("a"))
    section = await author.container("s", "section")
    await author.container("u2")
    before = await author.show(unit)

    for body in ({"usage_keys": []}, {"usage_keys": None}, {}, {"usage_keys": "x"}, [], "x"):
        answer = await author.call("PATCH", f"containers/{unit}/children/", body)
        assert answer.status_code == 400, body
    empty = await author.put_children(unit, method="PATCH")
    assert empty.json() == {"usage_keys": ["This list may not be empty."]}
    for wrong in ("x", 3, None, LIB, "lct:CL-TEST:lib-1:shelf:x", p("a") + "\x00", ["a"]):
        answer = await author.put_children(unit, p("a"), wrong)  # type: ignore[arg-type]
        assert (answer.status_code, list(answer.json()["usage_keys"])) == (400, ["1"]), wrong
    foreign = "lb:CL-TEST:other:problem:a"
    for parent, child in [(unit, ct("u2")), (unit, foreign), (section, p("a")), (section, unit)]:
        answer = await author.put_children(parent, child)
        assert (answer.status_code, type(answer.json())) == (400, list)
    for child in (p("gone"), p("dead")):
        for method in ("POST", "PATCH"):
            assert (
                await author.put_children(unit, p("a"), child, method=method)
            ).status_code == 404
    assert await author.show(unit) == before
    assert await author.children(unit) == [p("a")]
    assert await author.children(section) == []


async def test_33_a_restored_child_comes_back_at_its_position(author: Builder) -> None:
    await author.made("a", "b", "c")
    unit = await author.container("u", "unit", p("a"), p("b"))
    await author.publish(unit)
    assert not await author.changed(unit)

    await author.remove(p("a"))
    await author.put_children(unit, p("c"))
    assert await author.children(unit) == [p("b"), p("c")]
    assert await author.changed(unit)
    assert (await author.restore(p("a"))).status_code == 204

    assert await author.children(unit) == [p("a"), p("b"), p("c")]
    await author.delete(f"{LIB}/commit/")
    assert not await author.changed(unit)


async def test_deleting_and_restoring_a_child_leaves_the_flag_as_before(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))
    top = await author.container("s", "subsection", unit)
    await author.publish(top)

    await author.remove(p("a"))
    assert (await author.changed(unit), await author.changed(top)) == (True, True)
    await author.restore(p("a"))

    assert (await author.changed(unit), await author.changed(top)) == (False, False)


async def test_replacing_drops_hidden_children_for_good(author: Builder) -> None:
    await author.made("a", "b")
    unit = await author.container("u", "unit", p("a"), p("b"))
    await author.remove(p("a"))

    await author.put_children(unit, p("b"), method="PATCH")
    await author.restore(p("a"))

    assert await author.children(unit) == [p("b")]


async def test_positions_are_those_that_are_shown(author: Builder) -> None:
    await author.made("a", "b", "c")
    unit = await author.container("u", "unit", p("a"), p("b"), p("c"))
    await author.remove(p("a"))

    await author.delete(f"containers/{unit}/children/0/")
    await author.restore(p("a"))

    assert await author.children(unit) == [p("a"), p("c")]


async def test_34_publishing_a_unit_publishes_what_is_in_it(author: Builder) -> None:
    await author.made("a", "b")
    unit = await author.container("u", "unit", p("a"), p("b"))

    await author.publish(unit)

    assert not await author.changed(unit)
    assert not await author.changed(p("a"))
    rows = (await author.get(f"containers/{unit}/children/", published="true")).json()
    assert [row["id"] for row in rows] == [p("a"), p("b")]


async def test_35_publishing_a_child_alone(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))
    await author.publish(p("a"))
    shown = await author.show(unit)
    assert (shown["has_unpublished_changes"], shown["last_published"]) == (True, None)

    await author.publish(unit)
    await author.edit("a", "2")
    assert await author.changed(unit)
    await author.publish(p("a"))

    shown = await author.show(unit)
    assert (shown["has_unpublished_changes"], shown["published_by"]) == (False, "ines")
    groups = (await author.get(f"containers/{unit}/publish_history/")).json()
    # Also the first, when the unit was not published: its component was.
    assert len(groups) == 3


async def test_what_readers_see_of_the_children(author: Builder) -> None:
    await author.made("a", "b")
    unit = await author.container("u", "unit", p("a"), p("b"))
    await author.publish(unit)
    await author.edit("a", "2", "Renamed")
    await author.remove(p("b"))

    rows = (await author.get(f"containers/{unit}/children/", published="true")).json()
    assert [(row["id"], row["display_name"]) for row in rows] == [
        (p("a"), "Blank Problem"),
        (p("b"), "Blank Problem"),
    ]
    assert [row["has_unpublished_changes"] for row in rows] == [True, True]
    assert (rows[1]["last_draft_created"], rows[1]["last_draft_created_by"]) == (None, None)
    rows = (await author.get(f"containers/{unit}/children/", published="false")).json()
    assert [(row["id"], row["display_name"]) for row in rows] == [(p("a"), "Renamed")]
    assert rows[0]["published_display_name"] == "Blank Problem"
    assert list(rows[0]) == BLOCK_FIELDS
    await author.publish(unit)
    assert await author.children(unit, published="true") == [p("a")]


async def test_36_37_a_section_with_all_below(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))
    sub = await author.container("ss", "subsection", unit)
    section = await author.container("s", "section", sub)

    await author.publish(section)

    assert [await author.changed(key) for key in (p("a"), unit, sub, section)] == [False] * 4
    await author.edit("a", "2")
    assert [await author.changed(key) for key in (unit, sub, section)] == [True] * 3
    rows = (await author.get(f"containers/{section}/children/")).json()
    assert [(row["id"], row["has_unpublished_changes"]) for row in rows] == [(sub, True)]
    assert set(rows[0]) == FIELDS
    await author.publish(section)

    await author.remove(unit)
    assert (await author.get(f"containers/{unit}/")).status_code == 404
    assert (await author.delete(f"containers/{unit}/")).status_code == 404
    assert (await author.post(f"containers/{unit}/publish/")).status_code == 404
    assert (await author.put_children(unit, p("a"))).status_code == 404
    assert (await author.get(f"blocks/{p('a')}/")).status_code == 200
    assert await author.children(sub) == []
    answer = await author.restore(unit)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await author.children(unit) == [p("a")]
    assert await author.children(sub) == [unit]
    assert not await author.changed(section)


async def test_38_what_a_component_is_in(author: Builder) -> None:
    await author.made("a", "b")
    first = await author.container("u1", "unit", p("a"), p("b"), p("a"))
    second = await author.container("u2", "unit", p("a"))
    sub = await author.container("ss", "subsection", first, second)

    found = (await author.get(f"blocks/{p('a')}/hierarchy/")).json()

    def ids(level: str) -> list[str]:
        return [member["id"] for member in found[level]]

    assert list(found) == ["sections", "subsections", "units", "components", "object_key"]
    assert (ids("sections"), ids("subsections")) == ([], [sub])
    assert (ids("units"), ids("components")) == ([first, second], [p("a")])
    assert found["object_key"] == p("a")
    assert found["units"][0] == {
        "id": first, "display_name": "u1", "has_unpublished_changes": True,
    }  # fmt: skip
    found = (await author.get(f"containers/{sub}/hierarchy/")).json()
    assert (ids("units"), ids("components")) == ([first, second], [p("a"), p("b")])
    await author.remove(second)
    found = (await author.get(f"containers/{first}/hierarchy/")).json()
    assert (ids("subsections"), ids("units")) == ([sub], [first])
    await author.remove(p("a"))
    assert (await author.get(f"blocks/{p('a')}/hierarchy/")).status_code == 404
    found = (await author.get(f"containers/{sub}/hierarchy/")).json()
    assert (ids("units"), ids("components")) == ([first], [p("b")])


async def test_a_hierarchy_keeps_the_order_of_the_lists(author: Builder) -> None:
    await author.made("a", "b", "c")
    first = await author.container("u1", "unit", p("c"), p("a"))
    second = await author.container("u2", "unit", p("b"), p("a"))
    sub = await author.container("ss", "subsection", second, first)

    found = (await author.get(f"containers/{sub}/hierarchy/")).json()

    assert [member["id"] for member in found["units"]] == [second, first]
    assert [member["id"] for member in found["components"]] == [p("b"), p("a"), p("c")]


async def test_the_list_of_containers(author: Builder) -> None:
    await author.made("a")
    for number in range(11):
        await author.container(f"u{number}")
    sub = await author.container("top", "subsection", ct("u0"))
    await author.remove(ct("u1"))

    page = (await author.get(f"{LIB}/containers/")).json()
    assert (page["count"], page["num_pages"], len(page["results"])) == (11, 2, 10)
    assert page["next"].startswith(f"http://lyceum.test{V2}/{LIB}/containers/?")
    last = (await author.get(f"{LIB}/containers/", page="last")).json()
    assert [row["id"] for row in last["results"]] == [sub]
    params = {"container_type": ["section", "subsection"]}
    assert (await author.get(f"{LIB}/containers/", **params)).json()["count"] == 1
    assert (await author.get(f"{LIB}/containers/", text_search="U1")).json()["count"] == 1
    assert (await author.get(f"{LIB}/containers/", text_search="%")).json()["count"] == 0
    assert (await author.get(f"{LIB}/containers/", text_search="\x00")).json()["count"] == 11
    assert (await author.get(f"{LIB}/containers/", page="3")).status_code == 404


async def test_what_a_publish_would_do(author: Builder) -> None:
    await author.made("a", "b")
    unit = await author.container("u", "unit", p("a"), p("b"))
    other = await author.container("v", "unit", p("a"))
    await author.publish_all()
    await author.made("new")
    await author.edit("a", "2", "Renamed")
    await author.remove(p("b"))
    await author.put_children(unit, p("new"))

    before = await author.library()
    found = (await author.get(f"containers/{unit}/publish/preview/")).json()

    assert await author.library() == before
    assert {row["id"]: row["action"] for row in found["publishes"]} == {
        unit: "edited", p("a"): "renamed", p("b"): "deleted", p("new"): "created",
    }  # fmt: skip
    assert found["touches"] == [{"id": other, "display_name": "v"}]
    found = (await author.get(f"blocks/{p('a')}/publish/preview/")).json()
    assert found["publishes"] == [
        {"id": p("a"), "display_name": "Renamed", "action": "renamed",
         "old_version": 1, "new_version": 2},
    ]  # fmt: skip
    assert [row["id"] for row in found["touches"]] == [unit, other]
    await author.publish(p("a"))
    nothing = (await author.get(f"blocks/{p('a')}/publish/preview/")).json()
    assert nothing == {"publishes": [], "touches": []}


async def test_giving_up_the_changes_of_one_item(author: Builder) -> None:
    await author.made("a", "b", "new")
    unit = await author.container("u", "unit", p("a"), p("b"))
    assert (await author.post(f"containers/{unit}/discard/")).status_code == 400
    await author.publish(unit)
    await author.edit("a", "2")
    await author.edit("b", "2")
    await author.remove(p("b"))
    await author.put_children(unit, p("new"))

    answer = await author.post(f"containers/{unit}/discard/")
    assert answer.json() == {"discarded": [unit]}
    assert await author.children(unit) == [p("a")]
    assert await author.changed(unit)
    answer = await author.post(f"blocks/{p('b')}/discard/")
    assert answer.json() == {"discarded": [p("b")]}
    assert (await author.get(f"blocks/{p('b')}/olx/")).json() == {"olx": "<problem />"}
    await author.put_children(unit, p("new"))
    answer = await author.call("POST", f"containers/{unit}/discard/", below="true")
    assert answer.json() == {"discarded": [p("a"), unit]}

    assert not await author.changed(unit)
    assert await author.changed(p("new"))
    again = await author.call("POST", f"containers/{unit}/discard/", below="true")
    assert again.json() == {"discarded": []}


async def test_giving_up_what_is_below_covers_children_that_were_taken_out(
    author: Builder,
) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))
    await author.publish(unit)
    await author.edit("a", "2")
    await author.put_children(unit, p("a"), method="DELETE")

    answer = await author.call("POST", f"containers/{unit}/discard/", below="true")

    assert answer.json() == {"discarded": [p("a"), unit]}
    assert not await author.changed(unit)


async def test_restoring_what_was_there_before_the_deletion(author: Builder) -> None:
    await author.made("a")
    await author.publish(p("a"))
    await author.edit("a", "2")
    await author.delete(f"{LIB}/commit/")
    await author.remove(p("a"))

    assert (await author.restore(p("a"), "before_deletion/")).status_code == 204
    assert (await author.get(f"blocks/{p('a')}/olx/")).json() == {"olx": "<problem />"}
    assert not await author.changed(p("a"))
    assert (await author.restore(p("a"), "before_deletion/")).status_code == 409
    assert (await author.restore(p("a"))).status_code == 204
    assert (await author.get(f"blocks/{p('a')}/olx/")).json() == {"olx": "<problem>2</problem>"}
    assert (await author.restore(p("never"), "before_deletion/")).status_code == 404


READS = ["", "children/", "children/0/", "hierarchy/", "draft_history/", "publish_history/",
         "creation_entry/", "publish/preview/"]  # fmt: skip
WRITES = [
    ("PATCH", ""), ("DELETE", ""), ("POST", "children/"), ("PATCH", "children/"),
    ("DELETE", "children/"), ("DELETE", "children/0/"), ("POST", "restore/"),
    ("POST", "restore/before_deletion/"), ("POST", "publish/"), ("POST", "discard/"),
]  # fmt: skip


async def test_25_who_may_do_what_with_containers(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))
    routes = [("GET", f"containers/{unit}/{tail}") for tail in READS]
    routes += [(method, f"containers/{unit}/{tail}") for method, tail in WRITES]
    routes += [("GET", f"{LIB}/containers/"), ("POST", f"{LIB}/containers/")]
    routes += [("GET", f"{LIB}/publish_history_entries/")]
    routes += [("GET", f"blocks/{p('a')}/{tail}") for tail in READS[3:]]
    routes += [("POST", f"blocks/{p('a')}/discard/")]

    for method, path in routes:
        anonymous = await author.http.request(method, f"{V2}/{path}")
        assert anonymous.status_code == 401, path
        body = {"display_name": "x", "usage_keys": [p("a")], "container_type": "unit"}
        stranger = await author.http.request(method, f"{V2}/{path}", headers=STRANGER, json=body)
        assert stranger.status_code == 403, (method, path)

    await author.http.patch(f"{V2}/{LIB}/", json={"allow_public_read": True}, headers=STAFF)
    reader = as_user("reader")
    # Public reading is for those who may create libraries.
    person = "/api/libraries-admin/v1/people/reader/"
    await author.http.put(person, json={"creator": True}, headers=STAFF)
    for method, path in routes:
        answer = await author.http.request(method, f"{V2}/{path}", headers=reader, json={})
        allowed = {400} if "entries" in path else {200}
        assert answer.status_code in (allowed if method == "GET" else {403}), (method, path)
    assert await author.children(unit) == [p("a")]
