"""Finding content by its words; tags."""

from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text

from services.libraries import (
    collections,
    components,
    containers,
    directory,
    libraries,
    publishing,
)
from services.libraries.components import NewComponent
from services.libraries.states import Kind
from shared.database import utc_now
from shared.testing import as_user
from tests.libraries.conftest import NOON, STAFF, V2, make_library
from tests.statements import statements

BIRDS, TIDES = "lib:Fjord:BIRDS", "lib:Fjord:TIDES"
GULL, TERN, QUIZ, MOON = (
    "lb:Fjord:BIRDS:html:gull", "lb:Fjord:BIRDS:html:tern", "lb:Fjord:BIRDS:problem:quiz",
    "lb:Fjord:TIDES:html:moon",
)  # fmt: skip
SHORE = "lct:Fjord:BIRDS:unit:shore"
ADA = as_user("ada")


def html(code: str, title: str, body: str, block_type: str = "html") -> NewComponent:
    olx = f'<{block_type} display_name="{title}">{body}</{block_type}>'
    return NewComponent(block_type, code, title, olx)


@pytest_asyncio.fixture(autouse=True)
async def content(app: FastAPI) -> None:
    """Two libraries; gull is published, tern was changed after that, the rest is new."""
    async with app.state.database.sessions.begin() as session:
        # Public reading is for those who may create libraries.
        await directory.put_person(session, "ada", {"creator": True}, now=NOON)
        birds = await make_library(session, org="Fjord", slug="BIRDS", title="Birds")
        tides = await make_library(session, org="Fjord", slug="TIDES", allow_public_read=True)
        say = {"user": "ines", "now": NOON}
        await components.add_many(
            session,
            birds,
            [
                html("gull", "Gulls &amp; more", "<p>The herring gull <b>screams</b> and eats</p>"),
                html("tern", "Terns", "<![CDATA[<p>A tern dives for herring</p>]]>"),
            ],
            **say,
        )
        await publishing.publish_all(session, birds, **say)
        await components.add_many(
            session,
            birds,
            [
                html("tern", "Arctic terns", "<p>A tern dives for sand eels</p>"),
                html("quiz", "Quiz", "<p>Which gull?</p><style>p {color: red}</style>", "problem"),
            ],
            **say,
        )
        await components.add_many(
            session, tides, [html("moon", "Moon and tides", "<p>gull</p>")], **say
        )
        await containers.create(
            session, birds, kind=Kind.UNIT, code="shore", title="Shore birds: gull",
            children=[("xblock.v1:html:gull", None)], **say,
        )  # fmt: skip
        loud = await collections.create(session, birds, code="loud", title="Loud", **say)
        await collections.add(session, birds, loud, ["xblock.v1:html:gull", "shore"], now=NOON)


async def search(http: httpx.AsyncClient, user: dict[str, str] = STAFF, **query: Any) -> Any:
    answer = await http.get(f"{V2}/search/", headers=user, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def found(http: httpx.AsyncClient, user: dict[str, str] = STAFF, **query: Any) -> set[str]:
    return {row["id"] for row in (await search(http, user, **query))["results"]}


@pytest.mark.parametrize(
    ("q", "keys"),
    [
        ("", {GULL, TERN, QUIZ, MOON, SHORE}),
        ("tern", {TERN}),
        ("TERN", {TERN}),
        ("arct", {TERN}),
        ("dives tern", {TERN}),
        ("dives gull", set()),
        ("gull -which", {GULL, MOON, SHORE}),
        ('"herring gull"', {GULL}),
        ('"gull herring"', set()),
        ("screams", {GULL}),
        ("herring", {GULL}),
        ("color", set()),
        ("display_name", set()),
        ("amp", set()),
        ("shore birds", {SHORE}),
        ("'); drop table", set()),
        (r"gull\\'", {GULL, QUIZ, MOON, SHORE}),
        ("&|!:*()", set()),
        ("a\x00b", set()),
        ("-gull", {TERN}),
    ],
)
async def test_words_must_all_stand_somewhere(
    http: httpx.AsyncClient, q: str, keys: set[str]
) -> None:
    assert await found(http, q=q) == keys


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({"library": BIRDS}, {GULL, QUIZ, SHORE}),
        ({"library": [BIRDS, TIDES]}, {GULL, QUIZ, SHORE, MOON}),
        ({"library": "lib:No:one"}, set()),
        ({"type": "html"}, {GULL, MOON}),
        ({"type": ["unit", "problem"]}, {QUIZ, SHORE}),
        ({"collection": "loud"}, {GULL, SHORE}),
        ({"collection": "loud", "type": "html"}, {GULL}),
        ({"state": "published"}, {GULL}),
        ({"state": ["published", "unpublished"]}, {GULL, QUIZ, MOON, SHORE}),
        ({"tag": "sea"}, set()),
    ],
)
async def test_what_is_found_is_narrowed(
    http: httpx.AsyncClient, query: dict[str, Any], keys: set[str]
) -> None:
    assert await found(http, q="gull", **query) == keys


async def test_titles_count_more_than_text_and_matches_are_marked(http: httpx.AsyncClient) -> None:
    rows = (await search(http, q="gull", library=BIRDS))["results"]

    assert rows[0]["id"] == SHORE
    assert rows[0]["kind"] == "container"
    gull = next(row for row in rows if row["id"] == GULL)
    assert gull["snippet"] == "herring <mark>gull</mark> screams and eats"
    assert gull["display_name"] == "Gulls &amp; more"
    assert gull["collections"] == [{"key": "loud", "title": "Loud"}]
    assert (gull["state"], gull["version_num"], gull["library"]) == ("published", 1, BIRDS)


async def test_a_snippet_is_safe_html(app: FastAPI, http: httpx.AsyncClient) -> None:
    async with app.state.database.sessions.begin() as session:
        library = await libraries.get(session, BIRDS)
        item = html("evil", "Evil", "puffin &lt;script &#60;b 1 > 0 <![CDATA[<b onclick=']]>")
        await components.add_many(session, library, [item], user="ines", now=NOON)

    (row,) = (await search(http, q="puffin"))["results"]

    assert "<mark>puffin</mark>" in row["snippet"]
    assert "<" not in row["snippet"].replace("<mark>", "").replace("</mark>", "")


async def test_facets_count_everything_that_was_found(http: httpx.AsyncClient) -> None:
    shown = await search(http, q="gull", page_size=1)

    assert (shown["count"], shown["num_pages"], len(shown["results"])) == (4, 4, 1)
    assert shown["facets"] == {
        "library": {BIRDS: 3, TIDES: 1},
        "type": {"html": 2, "problem": 1, "unit": 1},
        "state": {"published": 1, "unpublished": 3},
        "collection": {"loud": 2},
        "tag": {},
    }
    seen = [
        (await search(http, q="gull", page_size=1, page=page))["results"][0]["id"]
        for page in range(1, 5)
    ]
    assert sorted(seen) == sorted([GULL, QUIZ, MOON, SHORE])


async def test_everybody_finds_only_what_they_may_view(http: httpx.AsyncClient) -> None:
    assert await found(http, ADA, q="gull") == {MOON}
    assert (await search(http, ADA, q="gull"))["facets"]["library"] == {TIDES: 1}
    assert (await http.get(f"{V2}/search/")).status_code == 401


async def test_it_follows_every_change_of_a_draft(app: FastAPI, http: httpx.AsyncClient) -> None:
    await http.post(
        f"{V2}/blocks/{QUIZ}/olx/", headers=STAFF, json={"olx": "<problem>A plover</problem>"}
    )
    assert await found(http, q="plover") == {QUIZ}

    await http.delete(f"{V2}/blocks/{QUIZ}/", headers=STAFF)
    assert await found(http, q="plover") == set()

    await http.post(f"{V2}/blocks/{QUIZ}/restore/", headers=STAFF)
    assert await found(http, q="plover") == {QUIZ}

    async with app.state.database.sessions.begin() as session:
        library = await libraries.get(session, BIRDS)
        await publishing.revert(session, library, user="ines", now=utc_now())
    assert await found(http, q="eels") == set()
    assert await found(http, q="dives") == {TERN}


async def test_what_was_rolled_back_was_never_found(app: FastAPI, http: httpx.AsyncClient) -> None:
    async with app.state.database.sessions() as session:
        library = await libraries.get(session, BIRDS)
        item = html("auk", "Auk", "<p>auk</p>")
        await components.add_many(session, library, [item], user="ines", now=NOON)
        await session.rollback()

    assert await found(http, q="auk") == set()


async def test_staged_archives_are_not_found(app: FastAPI, http: httpx.AsyncClient) -> None:
    async with app.state.database.sessions.begin() as session:
        connection = await session.connection()
        await connection.execute(text("update library set staged_at = now() where key = :key"),
                                 {"key": TIDES})  # fmt: skip

    assert MOON not in await found(http, q="gull")


async def test_the_words_of_a_huge_text_are_found_up_to_a_limit(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    """What PostgreSQL can keep of one text has an end; saving it must not fail for that."""
    many = " ".join(f"word{number}" for number in range(200_000))
    olx = {"olx": f"<problem><p>skua</p><p>{many}</p></problem>"}

    saved = await http.post(f"{V2}/blocks/{QUIZ}/olx/", headers=STAFF, json=olx)

    assert saved.status_code == 200
    assert await found(http, q="skua") == {QUIZ}
    assert await found(http, q="word100") == {QUIZ}


async def test_a_search_takes_the_same_statements_whatever_it_finds(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    async def cost(q: str) -> int:
        with statements(app.state.database.engine) as seen:
            await search(http, q=q)
        return sum("findable" in statement for statement in seen)

    assert [await cost("screams"), await cost(""), await cost("nothing")] == [2, 2, 2]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"q": "x" * 501}, "q"),
        ({"state": "new"}, "state"),
        ({"page": "0"}, "page"),
        ({"page": "x"}, "page"),
        ({"page_size": "101"}, "page_size"),
        ({"library": ["l"] * 51}, "library"),
        ({"tag": "t" * 501}, "tag"),
    ],
)
async def test_a_bad_search_is_refused_by_its_field(
    http: httpx.AsyncClient, query: dict[str, Any], field: str
) -> None:
    answer = await http.get(f"{V2}/search/", headers=STAFF, params=query)

    assert answer.status_code == 400
    assert field in answer.text


async def test_a_page_that_is_not_there_is_not_found(http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{V2}/search/", headers=STAFF, params={"q": "gull", "page": 2})
    assert answer.status_code == 404


# Tags


async def tag(
    http: httpx.AsyncClient, *names: Any, key: str = GULL, user: dict[str, str] = STAFF
) -> httpx.Response:
    return await http.put(f"{V2}/blocks/{key}/tags/", headers=user, json={"tags": list(names)})


async def test_tags_are_found_counted_and_listed(http: httpx.AsyncClient) -> None:
    assert (await tag(http, "Sea", "wader", "sea")).json() == {"tags": ["Sea", "wader"]}
    await tag(http, "sea", key=TERN)

    assert await found(http, tag="SEA") == {GULL, TERN}
    assert await found(http, q="wader") == {GULL}
    assert (await search(http, library=BIRDS))["facets"]["tag"] == {"wader": 1, "sea": 1, "Sea": 1}
    block = (await http.get(f"{V2}/blocks/{GULL}/", headers=STAFF)).json()
    assert block["tags_count"] == 2
    listed = (await http.get(f"{V2}/{BIRDS}/blocks/", headers=STAFF)).json()["results"]
    assert {row["id"]: row["tags_count"] for row in listed} == {GULL: 2, TERN: 1, QUIZ: 0}


async def test_replacing_tags_forgets_the_others(http: httpx.AsyncClient) -> None:
    await tag(http, "old", "kept")
    await tag(http, "kept", "new")

    shown = await http.get(f"{V2}/blocks/{GULL}/tags/", headers=STAFF)
    assert shown.json() == {"tags": ["kept", "new"]}
    assert await found(http, q="old") == set()
    assert (await tag(http)).json() == {"tags": []}


async def test_tags_outlive_a_deletion(http: httpx.AsyncClient) -> None:
    await tag(http, "sea")
    await http.delete(f"{V2}/blocks/{GULL}/", headers=STAFF)
    assert await found(http, tag="sea") == set()

    await http.post(f"{V2}/blocks/{GULL}/restore/", headers=STAFF)

    assert await found(http, q="sea") == {GULL}


@pytest.mark.parametrize("names", [[""], ["x" * 101], ["a\x00"], [1], ["t"] * 101, [" "]])
async def test_bad_tags_are_refused(http: httpx.AsyncClient, names: list[Any]) -> None:
    answer = await tag(http, *names)

    assert answer.status_code == 400
    assert "tags" in answer.text
    shown = await http.get(f"{V2}/blocks/{GULL}/tags/", headers=STAFF)
    assert shown.json() == {"tags": []}


async def test_tagging_needs_the_right_to_edit(http: httpx.AsyncClient) -> None:
    assert (await tag(http, "x", key=MOON, user=ADA)).status_code == 403
    assert (await http.get(f"{V2}/blocks/{MOON}/tags/", headers=ADA)).status_code == 200
