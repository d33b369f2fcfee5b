"""Copying and pasting. contract: libraries §3.4 #18, §3.8 #51, §3.12, §4.10"""

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from lxml import etree
from sqlalchemy import text

from services.libraries import libraries, publishing
from shared.database import utc_now
from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2, make_library
from tests.statements import statements

CLIPBOARD = "/api/content-staging/v1/clipboard/"
BIRDS, TIDES = "lib:Fjord:BIRDS", "lib:Fjord:TIDES"
GULL, QUIZ = "lb:Fjord:BIRDS:html:gull", "lb:Fjord:BIRDS:problem:quiz"
SHORE, WEEK, COURSE = (
    "lct:Fjord:BIRDS:unit:shore", "lct:Fjord:BIRDS:subsection:week",
    "lct:Fjord:BIRDS:section:course",
)  # fmt: skip
ADA = as_user("ada")
GULL_OLX = (
    '<html display_name="Gulls &amp; co"><![CDATA[<p>A <b>gull</b></p>]]><!-- kept --></html>'
)


async def post(http: httpx.AsyncClient, path: str, body: Any = None) -> httpx.Response:
    answer = await http.post(path, headers=STAFF, json=body or {})
    assert answer.status_code in (200, 204), answer.text
    return answer


@pytest_asyncio.fixture(autouse=True)
async def content(app: FastAPI, http: httpx.AsyncClient) -> None:
    """A section of one subsection of one unit: gull, quiz, gull again; and an empty library."""
    async with app.state.database.sessions.begin() as session:
        await make_library(session, org="Fjord", slug="BIRDS", title="Birds")
        await make_library(session, org="Fjord", slug="TIDES", title="Tides")
    for block_type, code in (("html", "gull"), ("problem", "quiz")):
        body = {"block_type": block_type, "definition_id": code}
        await post(http, f"{V2}/{BIRDS}/blocks/", body)
    await post(http, f"{V2}/blocks/{GULL}/olx/", {"olx": GULL_OLX})
    await http.put(
        f"{V2}/blocks/{GULL}/assets/static/gull.png", headers=STAFF,
        files={"content": ("gull.png", b"gull bytes", "image/png")},
    )  # fmt: skip
    for kind, slug, children in (
        ("unit", "shore", [GULL, QUIZ, GULL]), ("subsection", "week", [SHORE]),
        ("section", "course", [WEEK]),
    ):  # fmt: skip
        body = {"container_type": kind, "display_name": slug.title(), "slug": slug}
        await post(http, f"{V2}/{BIRDS}/containers/", body)
        key = f"lct:Fjord:BIRDS:{kind}:{slug}"
        await post(http, f"{V2}/containers/{key}/children/", {"usage_keys": children})


async def copy(http: httpx.AsyncClient, key: str) -> dict[str, Any]:
    found: dict[str, Any] = (await post(http, CLIPBOARD, {"usage_key": key})).json()
    return found


async def paste(http: httpx.AsyncClient, library: str = TIDES) -> dict[str, Any]:
    made: dict[str, Any] = (await post(http, f"{V2}/{library}/paste_clipboard/")).json()
    return made


async def children(http: httpx.AsyncClient, key: str) -> list[str]:
    rows = (await http.get(f"{V2}/containers/{key}/children/", headers=STAFF)).json()
    return [row["id"] for row in rows]


async def olx_of(http: httpx.AsyncClient, key: str) -> str:
    return str((await http.get(f"{V2}/blocks/{key}/olx/", headers=STAFF)).json()["olx"])


async def count(app: FastAPI, library: str) -> int:
    async with app.state.database.sessions() as session:
        connection = await session.connection()
        found = await connection.execute(
            text("""select count(*) from entity join library on library.id = entity.library_id
                    where library.key = :key"""),
            {"key": library},
        )
        return int(found.scalar_one())


async def test_the_clipboard_shows_what_was_copied(http: httpx.AsyncClient) -> None:
    nothing = (await http.get(CLIPBOARD, headers=STAFF)).json()
    shown = await copy(http, GULL)

    assert nothing == {
        "content": None, "source_usage_key": "", "source_context_title": "", "source_edit_url": ""
    }  # fmt: skip
    assert shown == (await http.get(CLIPBOARD, headers=STAFF)).json()
    assert shown["source_usage_key"] == GULL
    assert shown["source_context_title"] == "Birds"
    content = shown["content"]
    assert set(content) == {
        "id", "user_id", "created", "purpose", "status", "block_type", "block_type_display",
        "display_name", "olx_url",
    }  # fmt: skip
    assert (content["purpose"], content["status"]) == ("clipboard", "ready")
    assert (content["block_type"], content["display_name"]) == ("html", "Gulls & co")
    assert (await http.get(CLIPBOARD, headers=ADA)).json()["content"] is None


async def test_a_copied_container_is_its_whole_tree_in_olx(http: httpx.AsyncClient) -> None:
    await post(http, f"{V2}/containers/{COURSE}/copy/")
    content = (await http.get(CLIPBOARD, headers=STAFF)).json()["content"]

    answer = await http.get(urlsplit(content["olx_url"]).path, headers=STAFF)

    root = etree.fromstring(answer.content)
    assert [element.tag for element in root.iter("*") if element.get("copied_from_block")] == [
        "chapter", "sequential", "vertical", "html", "problem", "html"
    ]  # fmt: skip
    assert root.get("copied_from_block") == COURSE
    assert root.get("display_name") == "Course"
    unit = root.find("sequential/vertical")
    assert unit is not None and unit.get("copied_from_version") == "2"
    assert content["block_type"] == "chapter"


async def test_only_its_owner_reads_staged_olx(http: httpx.AsyncClient) -> None:
    url = (await copy(http, GULL))["content"]["olx_url"]
    url = urlsplit(url).path

    assert (await http.get(url, headers=ADA)).status_code == 404
    assert (await http.get(url)).status_code == 401
    await copy(http, QUIZ)
    assert (await http.get(url, headers=STAFF)).status_code == 404


@pytest.mark.parametrize("library", [BIRDS, TIDES])
async def test_a_pasted_component_has_the_exact_text_and_the_files(
    http: httpx.AsyncClient, library: str
) -> None:
    await copy(http, GULL)

    made = await paste(http, library)

    assert re.fullmatch(rf"lb:{library[4:]}:html:gulls-co-[0-9a-f]{{6}}", made["id"])
    assert made["display_name"] == "Gulls & co"
    assert (made["block_type"], made["published_display_name"]) == ("html", None)
    assert await olx_of(http, made["id"]) == GULL_OLX
    listed = (await http.get(f"{V2}/blocks/{made['id']}/assets/", headers=STAFF)).json()["files"]
    assert [(file["path"], file["size"]) for file in listed] == [("static/gull.png", 10)]
    path = f"/library_assets/blocks/{made['id']}/static/gull.png"
    assert (await http.get(path, headers=STAFF)).content == b"gull bytes"


async def test_what_was_copied_is_pasted_though_it_was_changed_since(
    http: httpx.AsyncClient,
) -> None:
    await copy(http, GULL)
    await post(http, f"{V2}/blocks/{GULL}/olx/", {"olx": "<html>other</html>"})
    await http.delete(f"{V2}/blocks/{GULL}/", headers=STAFF)

    made = await paste(http)

    assert await olx_of(http, made["id"]) == GULL_OLX


async def test_what_was_copied_is_pasted_though_its_library_is_gone(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    """Its text was kept; its files are missing and passed over."""
    await copy(http, SHORE)
    async with app.state.database.sessions.begin() as session:
        library = await libraries.get(session, BIRDS)
        await libraries.delete(session, library)

    made = await paste(http)

    first, *_ = await children(http, made["id"])
    pasted = etree.fromstring(await olx_of(http, first))
    assert (pasted.tag, dict(pasted.attrib)) == ("html", {"display_name": "Gulls & co"})
    assert (await http.get(f"{V2}/blocks/{first}/assets/", headers=STAFF)).json()["files"] == []


async def test_a_tree_is_pasted_into_another_library_each_source_once(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    await copy(http, COURSE)

    made = await paste(http)

    assert re.fullmatch(r"lct:Fjord:TIDES:section:course-[0-9a-f]{6}", made["id"])
    assert made["container_type"] == made["container_type_code"] == "section"
    (week,) = await children(http, made["id"])
    (shore,) = await children(http, week)
    gull, quiz, again = await children(http, shore)
    assert gull == again != quiz
    assert await count(app, TIDES) == 5
    assert await olx_of(http, gull) == GULL_OLX
    assert made["has_unpublished_changes"] is True


async def test_below_the_top_what_is_here_already_is_linked(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    """contract: libraries §10 55"""
    await copy(http, SHORE)
    before = await count(app, BIRDS)

    made = await paste(http, BIRDS)

    assert await children(http, made["id"]) == [GULL, QUIZ, GULL]
    assert await count(app, BIRDS) == before + 1


async def test_types_that_are_not_allowed_are_linked_and_not_made(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    await post(http, f"{V2}/containers/{COURSE}/copy/")
    app.state.settings.block_types, app.state.settings.only_block_types = ["problem"], True
    before = await count(app, TIDES)

    refused = await http.post(f"{V2}/{TIDES}/paste_clipboard/", headers=STAFF)

    assert refused.status_code == 400
    assert refused.json() == {
        "block_type": 'The "html" XBlock is of a type that is not allowed here.'
    }
    assert await count(app, TIDES) == before
    await paste(http, BIRDS)


async def test_what_was_here_and_was_deleted_is_copied(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    await copy(http, SHORE)
    await http.delete(f"{V2}/blocks/{QUIZ}/", headers=STAFF)

    made = await paste(http, BIRDS)

    gull, quiz, again = await children(http, made["id"])
    assert (gull, again) == (GULL, GULL)
    assert quiz != QUIZ


async def test_pasting_twice_makes_two(http: httpx.AsyncClient) -> None:
    await copy(http, GULL)

    assert (await paste(http))["id"] != (await paste(http))["id"]


async def test_codes_that_are_taken_are_not_given(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter(["same", "same", "other"])
    monkeypatch.setattr("services.libraries.pasting.new_code", lambda title: next(codes))
    await copy(http, GULL)

    made = [(await paste(http))["id"] for _ in range(2)]

    assert made == ["lb:Fjord:TIDES:html:same", "lb:Fjord:TIDES:html:other"]
    assert await olx_of(http, made[0]) == GULL_OLX


async def test_an_empty_clipboard_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{V2}/{TIDES}/paste_clipboard/", headers=STAFF, json={})

    assert answer.status_code == 400
    assert "empty" in answer.text


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("lb:Fjord:BIRDS:html:none", 404),
        ("lct:Fjord:BIRDS:unit:none", 404),
        ("lb:No:one:html:x", 404),
        ("nonsense", 404),
        ("lct:Fjord:BIRDS:chapter:shore", 404),
        ("", 404),
        ("lb:Fjord:BIRDS:html:gull\x00", 400),
        (5, 400),
    ],
)
async def test_what_is_not_there_cannot_be_copied(
    http: httpx.AsyncClient, key: Any, status: int
) -> None:
    answer = await http.post(CLIPBOARD, headers=STAFF, json={"usage_key": key})

    assert answer.status_code == status
    assert (await http.get(CLIPBOARD, headers=STAFF)).json()["content"] is None


async def test_copying_needs_to_see_and_pasting_to_edit(http: httpx.AsyncClient) -> None:
    copied = await http.post(CLIPBOARD, headers=ADA, json={"usage_key": GULL})
    tree = await http.post(f"{V2}/containers/{SHORE}/copy/", headers=ADA, json={})
    pasted = await http.post(f"{V2}/{TIDES}/paste_clipboard/", headers=ADA, json={})

    assert [copied.status_code, tree.status_code, pasted.status_code] == [403, 403, 403]


async def test_a_library_that_is_full_takes_all_or_nothing(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    app.state.settings.most_blocks = 4
    await copy(http, COURSE)

    answer = await http.post(f"{V2}/{TIDES}/paste_clipboard/", headers=STAFF, json={})

    assert answer.status_code == 400
    assert answer.json() == ["Library cannot have more than 4 Components."]
    assert await count(app, TIDES) == 0


async def test_the_limits_of_olx_are_the_settings_of_the_library(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    app.state.settings.olx_most_depth = 300
    deep = f"<problem>{'<a>' * 150}{'</a>' * 150}</problem>"
    await post(http, f"{V2}/blocks/{QUIZ}/olx/", {"olx": deep})
    await copy(http, QUIZ)
    assert await olx_of(http, (await paste(http))["id"]) == deep

    for limit, value in (("olx_most_depth", 100), ("olx_most_bytes", 500)):
        setattr(app.state.settings, limit, value)
        answer = await http.post(f"{V2}/{TIDES}/paste_clipboard/", headers=STAFF, json={})
        assert (answer.status_code, type(answer.json())) == (400, list)
        setattr(app.state.settings, limit, 100_000)
    assert await count(app, TIDES) == 1


async def test_a_tree_may_have_more_olx_than_one_component(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    app.state.settings.olx_most_bytes = 600
    for key, kind in ((GULL, "html"), (QUIZ, "problem")):
        await post(http, f"{V2}/blocks/{key}/olx/", {"olx": f"<{kind}>{'x' * 500}</{kind}>"})
    await copy(http, SHORE)

    assert len(await children(http, (await paste(http))["id"])) == 3


async def test_pasting_beside_publishing_and_pasting(app: FastAPI, http: httpx.AsyncClient) -> None:
    await copy(http, COURSE)

    async def publish() -> None:
        async with app.state.database.sessions.begin() as session:
            library = await libraries.get(session, TIDES)
            await publishing.publish_all(session, library, user="ines", now=utc_now())

    async with asyncio.timeout(30):
        made = await asyncio.gather(
            *(paste(http) for _ in range(4)), *(publish() for _ in range(4))
        )

    tops = [one["id"] for one in made if one]
    assert len(set(tops)) == 4
    assert await count(app, TIDES) == 20


async def test_the_cost_does_not_grow_with_the_tree(app: FastAPI, http: httpx.AsyncClient) -> None:
    async def cost() -> int:
        with statements(app.state.database.engine) as seen:
            await copy(http, SHORE)
            await paste(http)
        return len(seen)

    before = await cost()
    keys = []
    for number in range(20):
        body = {"block_type": "html", "definition_id": f"more{number}"}
        keys.append((await post(http, f"{V2}/{BIRDS}/blocks/", body)).json()["id"])
    await post(http, f"{V2}/containers/{SHORE}/children/", {"usage_keys": keys})

    assert await cost() == before


@pytest.mark.parametrize("title", ["a\x01b", "a\ufffeb"])
async def test_a_title_with_what_xml_does_not_know_is_copied_without_it(
    http: httpx.AsyncClient, title: str
) -> None:
    named = await http.patch(
        f"{V2}/containers/{SHORE}/", headers=STAFF, json={"display_name": title}
    )
    assert named.json()["display_name"] == title

    await post(http, f"{V2}/containers/{WEEK}/copy/")
    await copy(http, SHORE)

    assert (await paste(http))["display_name"] == "ab"


async def test_a_key_with_the_type_of_another_container_copies_nothing(
    http: httpx.AsyncClient,
) -> None:
    answer = await http.post(
        CLIPBOARD, headers=STAFF, json={"usage_key": "lct:Fjord:BIRDS:section:shore"}
    )

    assert answer.status_code == 404
    assert (await http.get(CLIPBOARD, headers=STAFF)).json()["content"] is None


async def test_tags_come_along(http: httpx.AsyncClient) -> None:
    for where, tags in ((f"blocks/{GULL}", ["bird", "sea"]), (f"containers/{SHORE}", ["walk"])):
        await http.put(f"{V2}/{where}/tags/", headers=STAFF, json={"tags": tags})
    await copy(http, COURSE)

    made = await paste(http)

    (week,) = await children(http, made["id"])
    (shore,) = await children(http, week)
    gull, quiz, _ = await children(http, shore)
    for where, tags in (
        (f"containers/{shore}", ["walk"]), (f"blocks/{gull}", ["bird", "sea"]),
        (f"blocks/{quiz}", []),
    ):  # fmt: skip
        found = await http.get(f"{V2}/{where}/tags/", headers=STAFF)
        assert found.json() == {"tags": tags}
    found = await http.get(f"{V2}/search/", headers=STAFF, params={"q": "sea"})
    assert gull in {row["id"] for row in found.json()["results"]}
    await copy(http, GULL)
    assert (await paste(http, BIRDS))["tags_count"] == 2


async def test_what_is_listed_many_times_is_not_copied_without_end(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    """Thirty times thirty times thirty are 27,931 places."""
    key = GULL
    for kind in ("unit", "subsection", "section"):
        body = {"container_type": kind, "display_name": "many", "slug": f"many-{kind}"}
        await post(http, f"{V2}/{BIRDS}/containers/", body)
        parent = f"lct:Fjord:BIRDS:{kind}:many-{kind}"
        await post(http, f"{V2}/containers/{parent}/children/", {"usage_keys": [key] * 30})
        key = parent

    answers = [
        await http.post(CLIPBOARD, headers=STAFF, json={"usage_key": key}),
        await http.post(f"{V2}/containers/{key}/copy/", headers=STAFF, json={}),
    ]

    for answer in answers:
        assert answer.status_code == 400
        assert answer.json() == ["At most 5000 items can be copied at once."]
    app.state.settings.most_transferred = 28_000
    await copy(http, key)


async def test_a_library_of_the_same_key_shows_nothing_to_who_copied_out_of_the_old_one(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    for library, level in ((BIRDS, "read"), (TIDES, "author")):
        await http.get(f"{V2}/", headers=ADA)
        grant = f"{V2}/{library}/team/user/ada/"
        made = await http.put(grant, headers=STAFF, json={"access_level": level})
        assert made.status_code == 200
    copied = await http.post(CLIPBOARD, headers=ADA, json={"usage_key": GULL})
    assert copied.status_code == 200
    async with app.state.database.sessions.begin() as session:
        await libraries.delete(session, await libraries.get(session, BIRDS))
        await make_library(session, org="Fjord", slug="BIRDS", title="Other birds")
    body = {"block_type": "html", "definition_id": "gull"}
    await post(http, f"{V2}/{BIRDS}/blocks/", body)
    for content in ("<html>secret</html>", "<html>secret too</html>"):
        await post(http, f"{V2}/blocks/{GULL}/olx/", {"olx": content})
    await http.put(f"{V2}/blocks/{GULL}/tags/", headers=STAFF, json={"tags": ["secret"]})

    answer = await http.post(f"{V2}/{TIDES}/paste_clipboard/", headers=ADA, json={})

    assert answer.status_code == 200
    assert answer.json()["tags_count"] == 0
    assert "secret" not in await olx_of(http, answer.json()["id"])
