"""Many components edited, and many drafts taken back, in one request."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from shared.database import Database
from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2
from tests.statements import statements

pytestmark = pytest.mark.asyncio
KEY = "lib:CL-TEST:lib-1"


class Author:
    """Somebody who works on one library."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        headers = more.pop("headers", STAFF)
        return await self.http.request(method, f"{V2}/{path}", json=body, headers=headers)

    async def make(self, *codes: str) -> None:
        for code in codes:
            body = {"block_type": "html", "definition_id": code, "olx": olx(code)}
            answer = await self.call("POST", f"{KEY}/blocks/", body)
            assert answer.status_code == 200, answer.text

    async def edit(self, *blocks: dict[str, Any], **more: Any) -> httpx.Response:
        return await self.call("POST", f"{KEY}/blocks/bulk_edit/", {"blocks": blocks}, **more)

    async def discard(self, *keys: str, **body: Any) -> httpx.Response:
        return await self.call("POST", f"{KEY}/discard/", {"usage_keys": keys} | body)

    async def olx(self, code: str) -> str:
        text_of: str = (await self.call("GET", f"blocks/{key(code)}/olx/")).json()["olx"]
        return text_of


def key(code: str) -> str:
    return f"lb:CL-TEST:lib-1:html:{code}"


def olx(words: str) -> str:
    return f'<html display_name="{words}">{words}</html>'


def edit(code: str, words: str, **more: Any) -> dict[str, Any]:
    return {"usage_key": key(code), "olx": olx(words)} | more


@pytest_asyncio.fixture
async def author(http: httpx.AsyncClient) -> AsyncIterator[Author]:
    author = Author(http)
    body = {"org": "CL-TEST", "slug": "lib-1", "title": "L", "description": ""}
    assert (await author.call("POST", "", body)).status_code == 200
    await author.make("a", "b", "c")
    yield author


async def rows(database: Database, statement: str) -> list[Any]:
    async with database.sessions() as session:
        return list((await (await session.connection()).execute(text(statement))).all())


async def test_a_component_can_be_made_with_its_text(author: Author) -> None:
    shown = (await author.call("GET", f"blocks/{key('a')}/")).json()

    assert await author.olx("a") == olx("a")
    assert shown["display_name"] == "a"


@pytest.mark.parametrize("bad", ["<html", "<problem/>", "", "<html>\x00</html>"])
async def test_a_component_with_a_wrong_text_is_not_made(author: Author, bad: str) -> None:
    body = {"block_type": "html", "definition_id": "d", "olx": bad}

    assert (await author.call("POST", f"{KEY}/blocks/", body)).status_code == 400
    assert (await author.call("GET", f"blocks/{key('d')}/")).status_code == 404


async def test_many_edits_are_one_change(author: Author, database: Database) -> None:
    before = await rows(database, "select id from draft_log")

    answer = await author.edit(edit("c", "new c"), edit("a", "new a"))

    made = [{"usage_key": key("c"), "version_num": 2}, {"usage_key": key("a"), "version_num": 2}]
    assert (answer.status_code, answer.json()) == (200, {"blocks": made})
    assert [await author.olx(code) for code in "abc"] == [olx("new a"), olx("b"), olx("new c")]
    logs = await rows(database, "select id from draft_log")
    assert len(logs) == len(before) + 1


async def test_all_are_edited_or_none_and_what_is_wrong_is_named(author: Author) -> None:
    good = edit("a", "new")
    foreign = "lb:CL-TEST:other:html:a"
    unit = "lct:CL-TEST:lib-1:unit:u"
    cases: list[tuple[list[Any], int, str]] = [
        ([good, edit("b", "x") | {"olx": "<html"}], 400, "blocks.1.olx"),
        ([good, edit("b", "x") | {"olx": "<problem/>"}], 400, "blocks.1.olx"),
        ([good, edit("b", "x") | {"olx": "<html>\x00</html>"}], 400, "blocks.1.olx"),
        ([good, {"usage_key": key("b")}], 400, "blocks.1.olx"),
        ([good, edit("b", "x", version_num=10**30)], 400, "blocks.1.version_num"),
        ([good, edit("a", "again")], 400, "blocks.1.usage_key"),
        ([good, edit("zzz", "x")], 404, "blocks.1.usage_key"),
        ([good, edit("b", "x") | {"usage_key": foreign}], 404, "blocks.1.usage_key"),
        ([good, edit("b", "x") | {"usage_key": unit}], 404, "blocks.1.usage_key"),
        ([good, edit("b", "x") | {"usage_key": "nonsense"}], 404, "blocks.1.usage_key"),
        ([good, edit("b", "x", version_num=7)], 409, "blocks.1.version_num"),
        ([], 400, "blocks"),
    ]
    for blocks, status, field in cases:
        answer = await author.edit(*blocks)
        assert (answer.status_code, list(answer.json())) == (status, [field]), answer.text
    assert await author.olx("a") == olx("a")


async def test_a_deleted_component_is_not_edited(author: Author) -> None:
    await author.call("DELETE", f"blocks/{key('b')}/")

    assert (await author.edit(edit("a", "new"), edit("b", "new"))).status_code == 404
    assert await author.olx("a") == olx("a")


async def test_an_edit_of_the_expected_version_is_made(author: Author) -> None:
    assert (await author.edit(edit("a", "second", version_num=1))).status_code == 200
    assert (await author.edit(edit("a", "third", version_num=1))).status_code == 409
    assert await author.olx("a") == olx("second")


async def test_more_than_the_settings_allow_is_refused(author: Author) -> None:
    many = [edit(str(number), "x") for number in range(1001)]

    answer = await author.edit(*many)

    assert (answer.status_code, answer.json()) == (400, {"blocks": ["At most 1000 at once."]})


async def test_only_editors_edit(author: Author) -> None:
    assert (await author.edit(edit("a", "x"), headers=as_user("eve"))).status_code == 403
    assert (await author.edit(edit("a", "x"), headers={})).status_code == 401


async def test_opposite_orders_at_once_do_not_wait_for_each_other(author: Author) -> None:
    codes = [f"x{number}" for number in range(20)]
    await author.make(*codes)

    for number in range(5):
        forth = [edit(code, f"forth {number}") for code in codes]
        back = [edit(code, f"back {number}") for code in reversed(codes)]
        answers = await asyncio.gather(
            author.edit(*forth), author.edit(*back),
            author.call("POST", f"blocks/{key('x3')}/olx/", {"olx": olx(f"alone {number}")}),
            author.call("POST", f"blocks/{key('x7')}/publish/"),
        )  # fmt: skip
        assert [answer.status_code for answer in answers] == [200] * 4
    texts = {await author.olx(code) for code in codes if code != "x3"}
    assert len(texts) == 1


async def test_many_cost_as_many_statements_as_one(author: Author, app: Any) -> None:
    async def count(*blocks: dict[str, Any]) -> int:
        with statements(app.state.database.engine) as seen:
            assert (await author.edit(*blocks)).status_code == 200
        return len(seen)

    await count(edit("a", "warm"))
    one = await count(edit("a", "one"))

    assert await count(*(edit(code, "many") for code in "abc")) == one


async def test_chosen_drafts_go_back_to_what_is_published(author: Author) -> None:
    for code in "abc":
        await author.call("POST", f"blocks/{key(code)}/publish/")
    await author.edit(*(edit(code, "new") for code in "abc"))
    await author.call("DELETE", f"blocks/{key('b')}/")
    assert (await author.call("GET", f"{KEY}/unpublished/")).json() == {"changes": 2, "deletes": 1}

    answer = await author.discard(key("a"), key("b"))

    assert (answer.status_code, answer.json()) == (200, {"discarded": [key("a"), key("b")]})
    assert [await author.olx(code) for code in "abc"] == [olx("a"), olx("b"), olx("new")]
    assert (await author.call("GET", f"{KEY}/unpublished/")).json() == {"changes": 1, "deletes": 0}


async def test_what_never_was_published_is_not_taken_back(author: Author) -> None:
    await author.call("POST", f"blocks/{key('a')}/publish/")
    await author.edit(edit("a", "new"))

    answer = await author.discard(key("a"), key("b"))

    assert (answer.status_code, list(answer.json())) == (400, ["usage_keys.1"])
    assert await author.olx("a") == olx("new")
    assert (await author.discard(key("zzz"))).status_code == 404
    assert (await author.discard(key("a"), key("a"))).status_code == 400
    assert (await author.discard()).status_code == 400


async def test_what_is_unpublished_is_noted_and_forgotten(
    author: Author, database: Database
) -> None:
    differ = """
        select entity_id from draft left join published using (entity_id)
        where draft.version_id is distinct from published.version_id
    """
    noted = "select entity_id from unpublished"
    live = "select sum(items) from live_count"
    moves = [
        ("POST", f"blocks/{key('a')}/publish/", None),
        ("POST", f"blocks/{key('a')}/olx/", {"olx": olx("new")}),
        ("DELETE", f"blocks/{key('b')}/", None),
        ("POST", f"blocks/{key('b')}/restore/", None),
        ("DELETE", f"{KEY}/commit/", None),
    ]
    counts = []
    for method, path, body in moves:
        assert (await author.call(method, path, body)).status_code in (200, 204)
        assert sorted(await rows(database, noted)) == sorted(await rows(database, differ)), path
        counts.append(int((await rows(database, live))[0][0]))
    # The last one takes away what never was published.
    assert counts == [3, 3, 2, 3, 1]
    assert (await author.call("GET", f"{KEY}/")).json()["num_blocks"] == 1
    assert (await author.call("GET", f"{KEY}/blocks/")).json()["count"] == 1
