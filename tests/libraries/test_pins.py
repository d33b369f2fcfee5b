"""Children that are pinned to a version. contract: content_core §7 trap 16, §2.9"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from shared.files import Files
from tests.libraries import test_restoring
from tests.libraries.conftest import STAFF
from tests.libraries.test_api import LIB
from tests.libraries.test_containers import Builder, ct, p

SUB = ct("s", "subsection")


class Pinner(Builder):
    """An author who pins children."""

    async def pin(
        self, key: str, position: int, number: Any, expected: str | None = None
    ) -> httpx.Response:
        body = {"pinned_version_num": number, "expected": expected}
        return await self.call("PATCH", f"containers/{key}/children/{position}/", body)

    async def listed(self, key: str, **params: Any) -> list[tuple[str, str, int | None]]:
        rows = (await self.get(f"containers/{key}/children/", **params)).json()
        return [
            (row["id"].rpartition(":")[2], row["display_name"], row.get("pinned_version_num"))
            for row in rows
        ]


@pytest_asyncio.fixture
async def author(http: httpx.AsyncClient, app: FastAPI) -> AsyncIterator[Pinner]:
    """Two problems with two versions each in a unit in a subsection."""
    author = Pinner(http, app)
    assert (await author.create()).status_code == 200
    await author.made("a", "b")
    await author.container("u", "unit", p("a"), p("b"), p("a"))
    await author.container("s", "subsection", ct("u"))
    await author.edit("a", "2", name="A2")
    await author.edit("b", "2", name="B2")
    yield author


BLANK = "Blank Problem"


async def test_a_pinned_child_stays_as_it_is(author: Pinner) -> None:
    answer = await author.pin(ct("u"), 0, 1, expected=p("a"))

    assert (answer.status_code, answer.json()["id"]) == (200, ct("u"))
    expected = [("a", BLANK, 1), ("b", "B2", None), ("a", "A2", None)]
    assert await author.listed(ct("u")) == expected
    await author.edit("a", "3", name="A3")
    assert await author.listed(ct("u")) == [*expected[:2], ("a", "A3", None)]
    first = (await author.get(f"containers/{ct('u')}/children/0/")).json()
    assert (first["display_name"], first["pinned_version_num"]) == (BLANK, 1)
    await author.pin(ct("u"), 0, None)
    assert (await author.listed(ct("u")))[0] == ("a", "A3", None)


async def test_it_is_readable_after_its_deletion_and_counts_agree(author: Pinner) -> None:
    await author.pin(ct("u"), 0, 1)
    await author.remove(p("a"))

    assert await author.listed(ct("u")) == [("a", BLANK, 1), ("b", "B2", None)]
    read = (await author.post(f"{LIB}/read/", {"keys": [ct("u")]})).json()["items"]
    assert read[0]["children"] == [p("a"), p("b")]
    levels = (await author.get(f"containers/{ct('u')}/hierarchy/")).json()
    assert [row["id"] for row in levels["components"]] == [p("a"), p("b")]
    where = f"/api/xblock/v2/xblocks/{p('a')}@1/olx/"
    olx = await author.http.get(where, headers=STAFF)
    assert olx.json() == {"olx": "<problem />"}
    assert (await author.get(f"blocks/{p('a')}/")).status_code == 404
    assert (await author.get(f"containers/{ct('u')}/children/2/")).status_code == 404
    assert (await author.pin(ct("u"), 2, 1)).status_code == 404
    assert (await author.delete(f"containers/{ct('u')}/children/0/")).status_code == 200
    assert await author.listed(ct("u")) == [("b", "B2", None)]


async def test_it_is_not_published_with_its_parent_and_readers_see_it(author: Pinner) -> None:
    await author.pin(ct("u"), 0, 1)
    await author.put_children(ct("u"), p("a"), p("b"), method="PATCH")
    await author.publish(ct("u"))

    shown = await author.listed(ct("u"), published="true")
    assert shown == [("a", BLANK, 1), ("b", "B2", None)]
    assert (await author.show(p("a")))["last_published"] is None
    assert not await author.changed(ct("u"))
    await author.edit("a", "3")
    assert not await author.changed(ct("u"))
    await author.remove(p("a"))
    assert await author.listed(ct("u"), published="true") == shown


async def test_a_pinned_container_is_readable_with_its_children(author: Pinner) -> None:
    await author.pin(SUB, 0, 2)
    await author.put_children(ct("u"), p("b"), method="PATCH")
    await author.remove(ct("u"))

    assert await author.listed(SUB) == [("u", "u", 2)]
    where = f"containers/{ct('u')}/versions"
    rows = (await author.get(f"{where}/2/children/")).json()
    assert [row["id"] for row in rows] == [p("a"), p("b"), p("a")]
    assert [row["id"] for row in (await author.get(f"{where}/3/children/")).json()] == [p("b")]
    assert (await author.get(f"{where}/1/children/")).json() == []
    for wrong in ("0", "-1", "x", "9" * 20):
        assert (await author.get(f"{where}/{wrong}/children/")).status_code == 404


async def test_pins_are_kept_when_the_list_is_changed(author: Pinner) -> None:
    await author.made("c")
    await author.pin(ct("u"), 0, 1)
    await author.pin(ct("u"), 1, 1)
    await author.remove(p("b"))

    wanted = [p("c"), p("a"), p("b"), p("a"), p("a")]
    assert (await author.put_children(ct("u"), *wanted, method="PATCH")).status_code == 200

    assert await author.listed(ct("u")) == [
        ("c", BLANK, None), ("a", BLANK, 1), ("b", BLANK, 1), ("a", "A2", None), ("a", "A2", None)
    ]  # fmt: skip
    await author.put_children(ct("u"), p("c"))
    assert (await author.listed(ct("u")))[1:3] == [("a", BLANK, 1), ("b", BLANK, 1)]
    again = await author.put_children(ct("u"), p("b"), p("b"), method="PATCH")
    assert again.status_code == 404
    await author.pin(ct("u"), 2, None)
    assert [code for code, *_ in await author.listed(ct("u"))] == ["c", "a", "a", "a", "c"]
    assert (await author.put_children(ct("u"), p("b"), method="PATCH")).status_code == 404


@pytest.mark.parametrize(
    ("position", "body", "status", "field"),
    [
        (0, {}, 400, "pinned_version_num"),
        (0, {"pinned_version_num": 0}, 400, "pinned_version_num"),
        (0, {"pinned_version_num": 3}, 400, "pinned_version_num"),
        (0, {"pinned_version_num": 2**31}, 400, "pinned_version_num"),
        (0, {"pinned_version_num": "x"}, 400, "pinned_version_num"),
        (0, {"pinned_version_num": 1, "expected": "x"}, 400, "expected"),
        (0, {"pinned_version_num": 1, "expected": p("b")}, 409, "detail"),
        (3, {"pinned_version_num": 1}, 404, "detail"),
        ("x", {"pinned_version_num": 1}, 404, "detail"),
    ],
)
async def test_pins_that_cannot_be_change_nothing(
    author: Pinner, position: Any, body: dict[str, Any], status: int, field: str
) -> None:
    before = await author.show(ct("u"))
    where = f"containers/{ct('u')}/children/{position}/"
    answer = await author.call("PATCH", where, body)

    assert (answer.status_code, list(answer.json())) == (status, [field])
    assert await author.show(ct("u")) == before


async def test_pins_of_a_restored_archive_are_shown(author: Pinner) -> None:
    files: Files = author.app.state.files
    database = author.app.state.database
    await author.pin(ct("u"), 0, 1)
    await author.edit("a", "3", name="A3")
    data = await test_restoring.back_up(database, files, LIB)
    package = (await test_restoring.run(database, files, data, user="ines"))["lp_restored_data"]
    made = await author.create(slug="back", learning_package=package["id"])
    assert made.status_code == 200, made.text

    unit = ct("u").replace("lib-1", "back")
    expected = [("a", BLANK, 1), ("b", "B2", None), ("a", "A3", None)]
    assert await author.listed(unit) == expected
    assert (await author.pin(unit, 0, None)).status_code == 200
    assert (await author.listed(unit))[0] == ("a", "A3", None)
