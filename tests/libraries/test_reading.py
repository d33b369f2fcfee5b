"""Lists and reading of many items at once, and tags of containers."""

from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2
from tests.libraries.test_api import LIB
from tests.libraries.test_containers import Builder, ct, p
from tests.statements import statements


@pytest_asyncio.fixture
async def author(http: httpx.AsyncClient, app: FastAPI) -> Builder:
    author = Builder(http, app)
    assert (await author.create()).status_code == 200
    await author.made("a", "b")
    await author.container("u", "unit", p("a"), p("b"), p("a"))
    await author.container("s", "subsection", ct("u"))
    return author


async def read(author: Builder, *keys: str, **more: Any) -> dict[str, Any]:
    answer = await author.post(f"{LIB}/read/", {"keys": keys, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_many_items_are_read_as_one_by_one(author: Builder) -> None:
    body = {"title": "C", "description": ""}
    await author.post(f"{LIB}/collections/", body)
    for key in (p("a"), ct("u")):
        kind = "blocks" if key.startswith("lb:") else "containers"
        await author.call("PATCH", f"{kind}/{key}/collections/", {"collection_keys": ["c"]})
        await author.call("PUT", f"{kind}/{key}/tags/", {"tags": ["two", "one"]})
    await author.publish(ct("s", "subsection"))
    await author.edit("b", "x", name="B")

    keys = [ct("s", "subsection"), p("b"), ct("u"), p("a"), p("b"), p("gone")]
    found = await read(author, *keys)

    assert [item["id"] for item in found["items"]] == keys[:4]
    assert found["missing"] == [p("gone")]
    more = {
        ct("s", "subsection"): {"tags": [], "children": [ct("u")]},
        p("b"): {"tags": []},
        ct("u"): {"tags": ["one", "two"], "children": [p("a"), p("b"), p("a")]},
        p("a"): {"tags": ["one", "two"]},
    }
    for item in found["items"]:
        assert item == {**await author.show(item["id"]), **more[item["id"]]}


async def test_olx_is_read_when_it_is_asked_for(author: Builder) -> None:
    await author.edit("a", "x")
    found = (await read(author, p("a"), p("b"), ct("u"), olx=True))["items"]

    assert [item.get("olx") for item in found] == ["<problem>x</problem>", "<problem />", None]


async def test_what_is_deleted_or_elsewhere_is_missing(author: Builder) -> None:
    await author.create(slug="other")
    await author.remove(p("a"))
    wanted = [p("a"), "lb:CL-TEST:other:problem:b", ct("u", "section"), "lb:No:one:html:x"]
    found = await read(author, *wanted, ct("u"))

    assert found["missing"] == wanted
    assert [item["children"] for item in found["items"]] == [[p("b")]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "keys"), ({"keys": []}, "keys"), ({"keys": "x"}, "keys"), ({"keys": [1]}, "keys.0"),
        ({"keys": ["x"]}, "keys"), ({"keys": [p("a")] * 101}, "keys"),
        ({"keys": [p("a") + "\x00"]}, "keys.0"), ({"keys": [p("a")], "olx": "maybe"}, "olx"),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_names_the_field(
    author: Builder, body: dict[str, Any], field: str
) -> None:
    answer = await author.post(f"{LIB}/read/", body)
    assert (answer.status_code, list(answer.json())) == (400, [field])


async def test_reading_needs_the_right_to_see(author: Builder) -> None:
    for headers, status in ((as_user("ben"), 403), ({}, 401)):
        answer = await author.http.post(
            f"{V2}/{LIB}/read/", json={"keys": [p("a")]}, headers=headers
        )
        assert answer.status_code == status


async def test_the_cost_of_reading_does_not_grow(app: FastAPI, author: Builder) -> None:
    await author.made(*(f"x{number}" for number in range(10)))

    async def cost(*keys: str) -> int:
        with statements(app.state.database.engine) as seen:
            await read(author, *keys, olx=True)
        return len(seen)

    few = await cost(p("a"), ct("u"))
    many = await cost(ct("s", "subsection"), ct("u"), p("a"), *(p(f"x{n}") for n in range(10)))
    assert few == many


async def test_containers_by_whether_readers_see_them(author: Builder) -> None:
    await author.container("new")
    await author.publish(ct("u"))

    async def listed(**params: Any) -> list[str]:
        found = (await author.get(f"{LIB}/containers/", **params)).json()
        assert found["count"] == len(found["results"])
        return [row["id"] for row in found["results"]]

    subsection = ct("s", "subsection")
    assert await listed() == [ct("u"), subsection, ct("new")]
    assert await listed(published="true") == [ct("u")]
    assert await listed(published="false") == [subsection, ct("new")]
    assert await listed(published="false", container_type="unit") == [ct("new")]
    await author.remove(ct("u"))
    assert await listed(published="true") == []
    answer = await author.get(f"{LIB}/containers/", published="perhaps")
    assert (answer.status_code, list(answer.json())) == (400, ["published"])


async def test_tags_of_a_container_and_what_is_found_by_them(author: Builder) -> None:
    unit, where = ct("u"), f"containers/{ct('u')}/tags/"
    assert (await author.get(where)).json() == {"tags": []}

    answer = await author.call("PUT", where, {"tags": ["Sea", "birds", "sea"]})

    assert (answer.status_code, answer.json()) == (200, {"tags": ["Sea", "birds"]})
    assert (await author.get(where)).json() == {"tags": ["Sea", "birds"]}
    assert (await author.show(unit))["tags_count"] == 2
    for params in ({"tag": "sea"}, {"q": "birds"}):
        found = (await author.get("search/", **params)).json()
        assert [row["id"] for row in found["results"]] == [unit]
    await author.call("PUT", where, {"tags": []})
    assert (await author.get("search/", q="birds")).json()["count"] == 0


async def test_tags_of_what_is_no_container_of_ones_own(author: Builder) -> None:
    gone = await author.container("gone")
    await author.remove(gone)
    for key in (gone, p("a"), ct("u", "section"), "lct:No:one:unit:u", "x"):
        for method in ("GET", "PUT"):
            answer = await author.call(method, f"containers/{key}/tags/", {"tags": ["x"]})
            assert answer.status_code == 404, key
    for tags in ("x", [""], ["x" * 101], ["x\x00"], [3], [str(n) for n in range(101)]):
        answer = await author.call("PUT", f"containers/{ct('u')}/tags/", {"tags": tags})
        assert answer.status_code == 400
    where = f"{V2}/containers/{ct('u')}/tags/"
    for headers, status in ((as_user("ben"), 403), ({}, 401)):
        assert (await author.http.get(where, headers=headers)).status_code == status
        answer = await author.http.put(where, json={"tags": ["x"]}, headers=headers)
        assert answer.status_code == status
    assert (await author.http.get(where, headers=STAFF)).json() == {"tags": []}
