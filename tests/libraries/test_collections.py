"""Collections over HTTP. contract: libraries §3.11, §4.12, scenarios 43 to 47"""

import asyncio
import re
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from services.libraries import containers, libraries
from services.libraries.collections import LONGEST_CODE, code_of
from services.libraries.states import Kind
from shared.database import utc_now
from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2
from tests.statements import statements

LIB = "lib:CL-TEST:lib-1"
FIELDS = {
    "key", "id", "title", "description", "enabled", "created", "modified", "learning_package",
    "created_by", "entities",
}  # fmt: skip
ADA = as_user("ada", staff=True, user_id=77)


class Author:
    """Calls the API as one person."""

    def __init__(self, http: httpx.AsyncClient, app: FastAPI) -> None:
        self.http, self.app = http, app

    async def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.http.request(method, f"{V2}/{path}", json=body, headers=ADA)

    async def make(self, title: str = "My Col", **body: Any) -> str:
        answer = await self.call(
            "POST", f"{LIB}/collections/", {"title": title, "description": "", **body}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["key"])

    async def get(self, code: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.call("GET", f"{LIB}/collections/{code}/")).json()
        return found

    async def titles(self) -> list[str]:
        answer = await self.call("GET", f"{LIB}/collections/")
        return [row["title"] for row in answer.json()["results"]]

    async def block(self, code: str, library: str = LIB) -> str:
        body = {"block_type": "html", "definition_id": code}
        return str((await self.call("POST", f"{library}/blocks/", body)).json()["id"])

    async def items(self, method: str, code: str, *keys: str) -> httpx.Response:
        return await self.call(
            method, f"{LIB}/collections/{code}/items/", {"usage_keys": list(keys)}
        )

    async def collections_of(self, key: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = (await self.call("GET", f"blocks/{key}/")).json()[
            "collections"
        ]
        return found

    async def unit(self, code: str) -> str:
        async with self.app.state.database.sessions.begin() as session:
            library = await libraries.get(session, LIB)
            await containers.create(
                session, library, kind=Kind.UNIT, code=code, title="U", user="ines", now=utc_now()
            )
        return f"lct:CL-TEST:lib-1:unit:{code}"


@pytest_asyncio.fixture
async def author(http: httpx.AsyncClient, app: FastAPI) -> Author:
    body = {"org": "CL-TEST", "slug": "lib-1", "title": "L", "description": ""}
    assert (await http.post(f"{V2}/", json=body, headers=STAFF)).status_code == 200
    body["slug"] = "lib-2"
    assert (await http.post(f"{V2}/", json=body, headers=STAFF)).status_code == 200
    return Author(http, app)


async def test_43_a_title_makes_a_key_and_a_taken_one_is_numbered(author: Author) -> None:
    assert [await author.make() for _ in range(3)] == ["my-col", "my-col-1", "my-col-2"]


async def test_a_collection_shows_every_field(author: Author) -> None:
    answer = await author.call(
        "POST", f"{LIB}/collections/", {"title": "T", "description": "d", "key": "mine"}
    )

    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == FIELDS
    assert (body["key"], body["title"], body["description"]) == ("t", "T", "d")
    assert (body["enabled"], body["created_by"], body["entities"]) == (True, 77, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", body["created"])
    assert body["created"] == body["modified"]
    assert await author.get("t") == body


async def test_who_has_no_number_makes_a_collection_without_one(author: Author) -> None:
    for number in (None, 2**70, -(2**70)):
        answer = await author.http.post(
            f"{V2}/{LIB}/collections/",
            json={"title": "T", "description": ""},
            headers=as_user("bob", staff=True, user_id=number),
        )
        assert (answer.status_code, answer.json()["created_by"]) == (200, None)


@pytest.mark.parametrize(
    ("title", "code"),
    [
        ("Ünit  -- Tests!", "unit-tests"),
        ("_a_b_", "a_b"),
        ("x" * 500, "x" * LONGEST_CODE),
        ("ﬁne", "fine"),
    ],
)
def test_a_code_is_plain_ascii(title: str, code: str) -> None:
    assert code_of(title) == code


def test_a_title_without_a_letter_gets_a_random_code() -> None:
    first, second = code_of("日本語"), code_of("日本語")

    assert re.fullmatch(r"[0-9a-f]{12}", first)
    assert first != second


async def test_collections_made_at_once_get_different_keys(author: Author) -> None:
    made = await asyncio.gather(*(author.make() for _ in range(12)))

    assert set(made) == {"my-col", *(f"my-col-{number}" for number in range(1, 12))}


async def test_a_deleted_collection_keeps_its_key(author: Author) -> None:
    await author.call("DELETE", f"{LIB}/collections/{await author.make()}/")

    assert await author.make() == "my-col-1"


async def test_44_deleting_and_restoring_keeps_the_members(author: Author) -> None:
    code, key = await author.make(), await author.block("a")
    await author.items("PATCH", code, key)

    assert (await author.call("DELETE", f"{LIB}/collections/{code}/")).status_code == 204
    assert await author.titles() == []
    assert (await author.call("GET", f"{LIB}/collections/{code}/")).status_code == 404
    assert await author.collections_of(key) == []
    assert (await author.call("DELETE", f"{LIB}/collections/{code}/")).status_code == 404
    assert (await author.items("PATCH", code, key)).status_code == 404

    for _ in range(2):
        restored = await author.call("POST", f"{LIB}/collections/{code}/restore/")
        assert restored.status_code == 204
    assert await author.titles() == ["My Col"]
    assert len((await author.get(code))["entities"]) == 1
    assert await author.collections_of(key) == [{"key": code, "title": "My Col"}]


async def test_items_are_added_and_removed_however_often(author: Author) -> None:
    code = await author.make()
    keys = [await author.block("a"), await author.block("b"), await author.unit("u")]
    before = (await author.get(code))["modified"]

    for _ in range(2):
        answer = await author.items("PATCH", code, *keys)
        assert (answer.status_code, answer.json()) == (200, {"count": 3})
    collection = await author.get(code)
    assert len(collection["entities"]) == 3
    assert collection["modified"] > before

    for _ in range(2):
        answer = await author.items("DELETE", code, keys[2], keys[0], keys[0])
        assert (answer.status_code, answer.json()) == (200, {"count": 3})
    assert len((await author.get(code))["entities"]) == 1


async def test_a_deleted_item_may_be_added(author: Author) -> None:
    code, key = await author.make(), await author.block("a")
    await author.call("DELETE", f"blocks/{key}/")

    assert (await author.items("PATCH", code, key)).status_code == 200
    await author.call("POST", f"blocks/{key}/restore/")
    assert await author.collections_of(key) == [{"key": code, "title": "My Col"}]


async def test_45_items_of_elsewhere_are_not_found(author: Author) -> None:
    code, mine = await author.make(), await author.block("a")
    foreign = await author.block("a", "lib:CL-TEST:lib-2")
    await author.unit("u")

    for wrong in (
        foreign,
        "lb:CL-TEST:lib-1:html:none",
        "lb:CL-TEST:lib-1:video:a",
        "lct:CL-TEST:lib-1:section:u",
        "lct:CL-TEST:lib-1:unit:xblock.v1",
    ):
        assert (await author.items("PATCH", code, mine, wrong)).status_code == 404, wrong
        assert (await author.items("DELETE", code, wrong)).status_code == 404, wrong
    assert (await author.get(code))["entities"] == []
    elsewhere = f"lib:CL-TEST:lib-2/collections/{code}/items/"
    assert (await author.call("PATCH", elsewhere, {"usage_keys": [foreign]})).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {}, {"usage_keys": []}, {"usage_keys": "lb:CL-TEST:lib-1:html:a"}, {"usage_keys": [7]},
        {"usage_keys": ["nothing"]}, {"usage_keys": ["lib:CL-TEST:lib-1"]},
        {"usage_keys": ["lb:CL-TEST:lib-1:html:a\x00"]}, {"usage_keys": None},
    ],
)  # fmt: skip
async def test_bad_items_are_named_and_nothing_is_added(author: Author, body: Any) -> None:
    code = await author.make()

    answer = await author.call("PATCH", f"{LIB}/collections/{code}/items/", body)

    assert answer.status_code == 400
    assert list(answer.json()) == ["usage_keys"]
    assert all(isinstance(message, str) for message in answer.json()["usage_keys"])
    if body == {}:
        assert answer.json() == {"usage_keys": ["This field is required."]}
    assert (await author.get(code))["entities"] == []


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"title": " "}, "title"), ({"title": "x" * 501}, "title"), ({"title": "a\x00"}, "title"),
        ({"title": None}, "title"), ({"description": 7}, "description"),
        ({"description": "x" * 10_001}, "description"),
    ],
)  # fmt: skip
async def test_bad_fields_change_nothing(author: Author, wrong: Any, field: str) -> None:
    code = await author.make()
    before = await author.get(code)

    created = await author.call("POST", f"{LIB}/collections/", {"title": "T"} | wrong)
    changed = await author.call("PATCH", f"{LIB}/collections/{code}/", wrong)

    assert (created.status_code, changed.status_code) == (400, 400)
    assert field in created.json()
    assert field in changed.json()
    assert await author.titles() == ["My Col"]
    assert await author.get(code) == before


async def test_changing_words_keeps_the_key_also_of_a_deleted_one(author: Author) -> None:
    code = await author.make()
    before = await author.get(code)

    nothing = await author.call("PATCH", f"{LIB}/collections/{code}/", {})
    changed = await author.call("PATCH", f"{LIB}/collections/{code}/", {"title": "New"})
    await author.call("DELETE", f"{LIB}/collections/{code}/")
    hidden = await author.call("PATCH", f"{LIB}/collections/{code}/", {"description": "d"})

    assert nothing.json() == before
    assert (changed.json()["key"], changed.json()["title"]) == (code, "New")
    assert changed.json()["modified"] > before["modified"]
    assert (hidden.json()["description"], hidden.json()["enabled"]) == ("d", False)


async def test_46_an_item_is_put_into_exactly_these_collections(author: Author) -> None:
    one, two, key = await author.make("One"), await author.make("Two"), await author.block("a")
    path = f"blocks/{key}/collections/"

    answer = await author.call("PATCH", path, {"collection_keys": [one, "unknown"]})
    assert (answer.status_code, answer.json()) == (200, {"count": 2})
    assert await author.collections_of(key) == [{"key": "one", "title": "One"}]
    untouched = (await author.get(one))["modified"]

    await author.call("PATCH", path, {"collection_keys": [two, one]})
    assert [row["key"] for row in await author.collections_of(key)] == [one, two]
    assert (await author.get(one))["modified"] == untouched

    await author.call("PATCH", path, {"collection_keys": []})
    assert await author.collections_of(key) == []
    assert (await author.get(one))["modified"] > untouched


async def test_a_container_is_put_into_collections_likewise(author: Author) -> None:
    code, unit = await author.make(), await author.unit("u")

    answer = await author.call(
        "PATCH", f"containers/{unit}/collections/", {"collection_keys": [code]}
    )
    wrong = await author.call(
        "PATCH", f"containers/{unit.replace(':unit:', ':section:')}/collections/",
        {"collection_keys": [code]},
    )  # fmt: skip

    assert (answer.status_code, answer.json()) == (200, {"count": 1})
    assert len((await author.get(code))["entities"]) == 1
    assert wrong.status_code == 404


async def test_a_place_in_a_deleted_collection_is_kept(author: Author) -> None:
    code, key = await author.make(), await author.block("a")
    await author.items("PATCH", code, key)
    await author.call("DELETE", f"{LIB}/collections/{code}/")

    await author.call("PATCH", f"blocks/{key}/collections/", {"collection_keys": []})
    await author.call("POST", f"{LIB}/collections/{code}/restore/")

    assert await author.collections_of(key) == [{"key": code, "title": "My Col"}]


@pytest.mark.parametrize("body", [{}, {"collection_keys": None}, {"collection_keys": [7]},
                                  {"collection_keys": ["a\x00"]}])  # fmt: skip
async def test_bad_collection_keys_are_refused(author: Author, body: Any) -> None:
    code, key = await author.make(), await author.block("a")
    await author.items("PATCH", code, key)

    answer = await author.call("PATCH", f"blocks/{key}/collections/", body)

    assert answer.status_code == 400
    assert list(answer.json()) == ["collection_keys"]
    assert len(await author.collections_of(key)) == 1


async def test_whoever_replaces_at_once_leaves_one_of_both_wishes(author: Author) -> None:
    codes = [await author.make(f"C{number}") for number in range(6)]
    key = await author.block("a")

    answers = await asyncio.gather(
        *(
            author.call("PATCH", f"blocks/{key}/collections/", {"collection_keys": [code]})
            for code in codes
        )
    )

    assert {answer.status_code for answer in answers} == {200}
    assert len(await author.collections_of(key)) == 1


async def test_the_list_is_paged_in_the_order_of_creation(author: Author) -> None:
    for number in range(12):
        await author.make(f"C{number:02}")

    first = (await author.call("GET", f"{LIB}/collections/")).json()
    last = (await author.call("GET", f"{LIB}/collections/?page=last&page_size=5")).json()

    assert (first["count"], first["num_pages"], first["start"]) == (12, 2, 0)
    assert [row["title"] for row in first["results"]] == [f"C{number:02}" for number in range(10)]
    assert set(first["results"][0]) == FIELDS
    assert [row["title"] for row in last["results"]] == ["C10", "C11"]
    for page in ("3", "0", "x", "0" * 20 + "9" * 20, "0" * 11 + "1" * 5000):
        answer = await author.call("GET", f"{LIB}/collections/?page={page}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Invalid page."})
    again = (await author.call("GET", f"{LIB}/collections/?page=0000000000002")).json()
    assert [row["title"] for row in again["results"]] == ["C10", "C11"]


@pytest.mark.parametrize("path", ["my-col/items/", "my-col/restore/"])
async def test_items_and_restore_cannot_be_read(author: Author, path: str) -> None:
    await author.make()

    answer = await author.call("GET", f"{LIB}/collections/{path}")

    assert answer.status_code == 405


async def test_nothing_is_replaced_with_put(author: Author) -> None:
    await author.make()

    answer = await author.call(
        "PUT", f"{LIB}/collections/my-col/", {"title": "T", "description": ""}
    )

    assert (answer.status_code, answer.json()) == (405, {"detail": 'Method "PUT" not allowed.'})


ROUTES = [
    ("GET", "", None, 200),
    ("POST", "", {"title": "T", "description": ""}, 200),
    ("GET", "my-col/", None, 200),
    ("PATCH", "my-col/", {"title": "T"}, 200),
    ("PATCH", "my-col/items/", {"usage_keys": ["lb:CL-TEST:lib-1:html:a"]}, 200),
    ("DELETE", "my-col/items/", {"usage_keys": ["lb:CL-TEST:lib-1:html:a"]}, 200),
    ("DELETE", "my-col/", None, 204),
    ("POST", "my-col/restore/", None, 204),
]


@pytest.mark.parametrize(("method", "path", "body", "done"), ROUTES)
async def test_47_who_may_do_what(
    author: Author, method: str, path: str, body: Any, done: int
) -> None:
    await author.make()
    await author.block("a")
    for name, level in (("reader", "read"), ("writer", "author")):
        await _grant(author, name, level)
    if path == "my-col/restore/":
        await author.call("DELETE", f"{LIB}/collections/my-col/")
    url = f"{V2}/{LIB}/collections/{path}"

    async def status(headers: dict[str, str], url: str = url) -> int:
        return (await author.http.request(method, url, json=body, headers=headers)).status_code

    assert await status({}) == 403
    assert await status({"Authorization": "JWT forged"}) == 403
    assert await status(as_user("nobody")) == 403
    assert await status(as_user("reader")) == (200 if method == "GET" else 403)
    assert await status(as_user("nobody"), url.replace("lib-1", "none")) == 404
    assert await status(as_user("nobody"), url.replace(LIB, "no-key")) == 404
    assert await status(as_user("writer")) == done


async def _grant(author: Author, name: str, level: str) -> None:
    from services.libraries.models import Grant
    from services.libraries.states import AccessLevel

    async with author.app.state.database.sessions.begin() as session:
        library = await libraries.get(session, LIB)
        session.add(Grant(library_id=library.id, username=name, access_level=AccessLevel(level)))


async def test_elsewhere_no_token_is_401(author: Author) -> None:
    assert (await author.http.get(f"{V2}/{LIB}/")).status_code == 401
    key = await author.block("a")
    answer = await author.http.patch(
        f"{V2}/blocks/{key}/collections/", json={"collection_keys": []}
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("code", ["none", "a%00b", "%F0%9F%98%80", "x" * 3000, "a.b", "a%20b"])
async def test_unknown_collections_are_not_found(author: Author, code: str) -> None:
    for method in ("GET", "PATCH", "DELETE"):
        answer = await author.call(method, f"{LIB}/collections/{code}/", {"title": "T"})
        assert answer.status_code == 404, answer.text


async def test_several_permissions_are_one_question(app: FastAPI, author: Author) -> None:
    with statements(app.state.database.engine) as seen:
        body = {"title": "T", "description": ""}
        answer = await author.call("POST", f"{LIB}/collections/", body)

    assert answer.status_code == 200
    assert sum("team_group_member" in statement for statement in seen) == 1
