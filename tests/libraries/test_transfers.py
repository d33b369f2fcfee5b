"""Copying and moving items between libraries over HTTP."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.libraries import components, containers, entities, libraries, transferring
from services.libraries.errors import BlockUnknown
from services.libraries.keys import parse_item_key
from services.libraries.states import Mode
from services.libraries.transferring import Limits
from shared.callers import Caller
from shared.database import utc_now
from shared.events import told
from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2, make_library
from tests.libraries.test_clipboard import (
    ADA,
    BIRDS,
    COURSE,
    GULL,
    GULL_OLX,
    QUIZ,
    SHORE,
    TIDES,
    WEEK,
    children,
    content,
    count,
    olx_of,
    post,
)
from tests.statements import statements

__all__ = ["content"]
PREFIX = "org.openedx.content_authoring."


def there(key: str, library: str = "TIDES") -> str:
    """The same key in another library."""
    return key.replace(":BIRDS:", f":{library}:")


async def ask(
    http: httpx.AsyncClient, mode: str, *items: str, to: str = TIDES, headers: Any = STAFF,
    **more: Any,
) -> httpx.Response:  # fmt: skip
    body = {"items": items, "mode": mode, **more}
    return await http.post(f"{V2}/{to}/transfer/", json=body, headers=headers)


async def done(http: httpx.AsyncClient, mode: str, *items: str, **more: Any) -> dict[str, Any]:
    answer = await ask(http, mode, *items, **more)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def is_there(http: httpx.AsyncClient, key: str) -> bool:
    kind = "blocks" if key.startswith("lb:") else "containers"
    return (await http.get(f"{V2}/{kind}/{key}/", headers=STAFF)).status_code == 200


async def test_a_tree_is_copied_under_the_same_codes_each_item_once(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    await http.put(f"{V2}/blocks/{GULL}/tags/", headers=STAFF, json={"tags": ["sea"]})
    answer = await done(http, "copy", COURSE, GULL)

    assert answer == {
        "mode": "copy", "kept": [],
        "keys": {key: there(key) for key in (GULL, QUIZ, SHORE, WEEK, COURSE)},
    }  # fmt: skip
    assert await children(http, there(COURSE)) == [there(WEEK)]
    assert await children(http, there(WEEK)) == [there(SHORE)]
    assert await children(http, there(SHORE)) == [there(GULL), there(QUIZ), there(GULL)]
    assert await olx_of(http, there(GULL)) == GULL_OLX
    path = f"/library_assets/blocks/{there(GULL)}/static/gull.png"
    assert (await http.get(path, headers=STAFF)).content == b"gull bytes"
    found = await http.get(f"{V2}/search/?tag=sea&library={TIDES}", headers=STAFF)
    assert [row["id"] for row in found.json()["results"]] == [there(GULL)]
    assert await count(app, BIRDS) == await count(app, TIDES) == 5
    assert await is_there(http, COURSE)


async def test_the_draft_is_copied_and_its_history_begins_anew(http: httpx.AsyncClient) -> None:
    await post(http, f"{V2}/blocks/{QUIZ}/publish/")
    await post(http, f"{V2}/blocks/{QUIZ}/olx/", {"olx": '<problem display_name="Q">2</problem>'})

    await done(http, "copy", QUIZ)

    shown = (await http.get(f"{V2}/blocks/{there(QUIZ)}/", headers=STAFF)).json()
    assert (shown["display_name"], shown["published_display_name"]) == ("Q", None)
    assert (shown["has_unpublished_changes"], shown["last_published"]) == (True, None)
    history = await http.get(f"{V2}/blocks/{there(QUIZ)}/draft_history/", headers=STAFF)
    assert [row["new_version"] for row in history.json()] == [1]


async def test_a_copy_shares_nothing_with_what_it_was_made_of(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    await done(http, "copy", SHORE)
    async with app.state.database.sessions.begin() as session:
        library = await libraries.get(session, BIRDS)
        await libraries.delete(session, library)
    await libraries.delete_files(app.state.files, library)

    assert await olx_of(http, there(GULL)) == GULL_OLX
    path = f"/library_assets/blocks/{there(GULL)}/static/gull.png"
    assert (await http.get(path, headers=STAFF)).content == b"gull bytes"


async def test_taken_codes_are_replaced_also_when_the_taker_is_deleted(
    http: httpx.AsyncClient,
) -> None:
    first = await done(http, "copy", SHORE)
    await http.delete(f"{V2}/blocks/{there(QUIZ)}/", headers=STAFF)
    second = await done(http, "copy", SHORE)

    assert set(first["keys"]) == set(second["keys"])
    assert not set(first["keys"].values()) & set(second["keys"].values())
    unit = second["keys"][SHORE]
    assert unit.startswith("lct:Fjord:TIDES:unit:shore-")
    names = [second["keys"][key] for key in (GULL, QUIZ, GULL)]
    assert await children(http, unit) == names
    assert await olx_of(http, names[0]) == GULL_OLX


async def test_equal_codes_of_several_libraries_do_not_clash(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    async with app.state.database.sessions.begin() as session:
        await make_library(session, org="Fjord", slug="WINDS")
    winds = "lib:Fjord:WINDS"
    await done(http, "copy", SHORE, to=winds)
    answer = await done(http, "copy", SHORE, there(SHORE, "WINDS"))

    assert len(answer["keys"]) == len(set(answer["keys"].values())) == 6
    for source in (SHORE, there(SHORE, "WINDS")):
        names = await children(http, answer["keys"][source])
        assert len(names) == 3
        assert len(set(names)) == 2


async def test_copying_inside_a_library_makes_a_second_one(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    answer = await done(http, "copy", SHORE, to=BIRDS)

    assert await count(app, BIRDS) == 8
    unit = answer["keys"][SHORE]
    assert await children(http, unit) == [answer["keys"][key] for key in (GULL, QUIZ, GULL)]
    assert await olx_of(http, answer["keys"][GULL]) == GULL_OLX


async def test_what_is_moved_is_gone_from_where_it_was(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    await post(http, f"{V2}/containers/{SHORE}/publish/")
    answer = await done(http, "move", COURSE)

    assert (answer["kept"], len(answer["keys"])) == ([], 5)
    for key in answer["keys"]:
        assert not await is_there(http, key)
        assert await is_there(http, answer["keys"][key])
    shown = await http.get(f"{V2}/{BIRDS}/", headers=STAFF)
    assert (shown.json()["num_blocks"], shown.json()["has_unpublished_deletes"]) == (0, True)
    await post(http, f"{V2}/containers/{COURSE}/restore/")
    assert await is_there(http, COURSE)


async def test_below_what_is_moved_stays_what_others_hold(http: httpx.AsyncClient) -> None:
    body = {"container_type": "unit", "display_name": "Other", "slug": "other"}
    await post(http, f"{V2}/{BIRDS}/containers/", body)
    other = "lct:Fjord:BIRDS:unit:other"
    await post(http, f"{V2}/containers/{other}/children/", {"usage_keys": [QUIZ, GULL]})

    answer = await done(http, "move", COURSE, GULL)

    assert answer["kept"] == [QUIZ]
    assert await children(http, other) == [QUIZ]
    assert await children(http, there(SHORE)) == [there(GULL), there(QUIZ), there(GULL)]
    assert not await is_there(http, GULL)


async def test_pins_go_along_and_what_is_pinned_stays(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    await post(http, f"{V2}/blocks/{QUIZ}/olx/", {"olx": "<problem>new</problem>"})
    async with app.state.database.sessions.begin() as session:
        library = await libraries.get(session, BIRDS)
        unit = await entities.get(session, library, "shore")
        pins = [("xblock.v1:problem:quiz", 1), ("xblock.v1:html:gull", None)]
        await containers.set_children(session, library, unit, pins, user="ines", now=utc_now())

    answer = await done(http, "move", SHORE)

    assert answer["kept"] == [QUIZ]
    assert await olx_of(http, QUIZ) == "<problem>new</problem>"
    assert await olx_of(http, there(QUIZ)) == "<problem />"
    await post(http, f"{V2}/blocks/{there(QUIZ)}/olx/", {"olx": "<problem>later</problem>"})
    await http.delete(f"{V2}/blocks/{there(QUIZ)}/", headers=STAFF)
    assert await children(http, there(SHORE)) == [there(QUIZ), there(GULL)]


async def test_named_items_join_collections(http: httpx.AsyncClient) -> None:
    for title in ("One", "Two"):
        await post(http, f"{V2}/{TIDES}/collections/", {"title": title, "description": ""})
    await done(http, "copy", SHORE, collections=["one", "two"])

    shown = (await http.get(f"{V2}/containers/{there(SHORE)}/", headers=STAFF)).json()
    assert [one["key"] for one in shown["collections"]] == ["one", "two"]
    shown = (await http.get(f"{V2}/blocks/{there(GULL)}/", headers=STAFF)).json()
    assert shown["collections"] == []


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "items"),
        ({"items": []}, 400, "items"),
        ({"items": "x"}, 400, "items"),
        ({"items": [5]}, 400, "items.0"),
        ({"items": ["nonsense"]}, 400, "items"),
        ({"items": [GULL + "\x00"]}, 400, "items.0"),
        ({"items": [GULL] * 1001}, 400, "items"),
        ({"items": [GULL], "mode": "link"}, 400, "mode"),
        ({"items": [GULL], "collections": "x"}, 400, "collections"),
        ({"items": [GULL], "collections": ["none"]}, 404, "detail"),
        ({"items": ["lb:Fjord:TIDES:html:x"], "mode": "move"}, 400, "items"),
        ({"items": ["lb:No:one:html:x"]}, 404, "detail"),
        ({"items": ["lb:Fjord:BIRDS:html:none"]}, 404, "detail"),
        ({"items": [GULL, "lct:Fjord:BIRDS:section:shore"]}, 404, "detail"),
        ({"items": [GULL, QUIZ.replace("quiz", "gone")], "mode": "move"}, 404, "detail"),
    ],
)
async def test_what_cannot_be_transferred_is_refused_whole(
    app: FastAPI, http: httpx.AsyncClient, body: dict[str, Any], status: int, field: str
) -> None:
    made = {"block_type": "problem", "definition_id": "gone"}
    await post(http, f"{V2}/{BIRDS}/blocks/", made)
    await http.delete(f"{V2}/blocks/{QUIZ.replace('quiz', 'gone')}/", headers=STAFF)

    answer = await http.post(f"{V2}/{TIDES}/transfer/", json=body, headers=STAFF)

    assert (answer.status_code, list(answer.json())) == (status, [field]), answer.text
    assert await count(app, TIDES) == 0
    assert await is_there(http, GULL)


async def test_own_errors_come_as_problems(http: httpx.AsyncClient) -> None:
    headers = {**STAFF, "Accept": "application/problem+json"}
    answer = await ask(http, "move", GULL, to=BIRDS, headers=headers)

    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["type"], list(answer.json()["fields"])) == (
        "urn:lyceum:field-refused", ["items"],
    )  # fmt: skip


@pytest.mark.parametrize("limit", ["most_blocks", "most_transferred"])
async def test_limits_refuse_all_of_it(app: FastAPI, http: httpx.AsyncClient, limit: str) -> None:
    setattr(app.state.settings, limit, 4)
    answer = await ask(http, "move", COURSE)

    assert (answer.status_code, type(answer.json())) == (400, list)
    assert await count(app, TIDES) == 0
    setattr(app.state.settings, limit, 5)
    await done(http, "move", COURSE)


async def test_who_may_copy_and_who_may_move(http: httpx.AsyncClient) -> None:
    async def may(birds: str | None, tides: str | None) -> list[int]:
        for library, level in ((BIRDS, birds), (TIDES, tides)):
            where = f"{V2}/{library}/team/user/ada/"
            if level is None:
                await http.delete(where, headers=STAFF)
            else:
                await http.put(where, headers=STAFF, json={"access_level": level})
        answers = [await ask(http, mode, QUIZ, headers=ADA) for mode in ("copy", "move")]
        return [answer.status_code for answer in answers]

    await http.get(f"{V2}/", headers=ADA)
    assert await may("author", "read") == [403, 403]
    assert await may(None, "author") == [403, 403]
    assert await may("read", "author") == [200, 403]
    assert await may("author", "author") == [200, 200]
    assert (await ask(http, "copy", QUIZ, headers={})).status_code == 401
    assert (await ask(http, "copy", QUIZ, to="lib:No:one")).status_code == 404
    assert (await ask(http, "copy", QUIZ, headers=as_user("ben"))).status_code == 403


async def test_opposite_moves_at_once_come_to_an_end(app: FastAPI, http: httpx.AsyncClient) -> None:
    away: list[str] = []
    back: list[str] = []
    for number in range(6):
        for library, keys in ((BIRDS, away), (TIDES, back)):
            body = {"block_type": "html", "definition_id": f"x{number}"}
            keys.append((await post(http, f"{V2}/{library}/blocks/", body)).json()["id"])

    async with asyncio.timeout(60):
        answers = await asyncio.gather(
            *(ask(http, "move", key, to=TIDES) for key in away),
            *(ask(http, "move", key, to=BIRDS) for key in back),
        )

    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        [(old, new)] = answer.json()["keys"].items()
        assert (await is_there(http, old), await is_there(http, new)) == (False, True)
    assert await count(app, BIRDS) == 5 + 6 + 6


async def test_an_edit_beside_a_move_is_moved_or_refused(http: httpx.AsyncClient) -> None:
    keys = []
    for number in range(8):
        body = {"block_type": "html", "definition_id": f"e{number}"}
        keys.append((await post(http, f"{V2}/{BIRDS}/blocks/", body)).json()["id"])
    await post(http, f"{V2}/containers/{SHORE}/children/", {"usage_keys": keys})

    async def edit(key: str) -> int:
        body = {"olx": "<html>edited</html>"}
        answer = await http.post(f"{V2}/blocks/{key}/olx/", json=body, headers=STAFF)
        return answer.status_code

    async with asyncio.timeout(60):
        first = [asyncio.create_task(edit(key)) for key in keys[:4]]
        moved = asyncio.create_task(done(http, "move", COURSE))
        last = [asyncio.create_task(edit(key)) for key in keys[4:]]
        edits = [await task for task in (*first, *last)]
        answer = await moved

    for key, status in zip(keys, edits, strict=True):
        expected = {200: "<html>edited</html>", 404: "<html />"}[status]
        assert await olx_of(http, answer["keys"][key]) == expected


async def test_of_two_moves_of_the_same_item_one_wins(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(ask(http, "move", COURSE) for _ in range(3)))

    assert sorted(answer.status_code for answer in answers) == [200, 404, 404]
    assert await count(app, TIDES) == 5


async def test_both_libraries_tell_what_happened(app: FastAPI) -> None:
    async with app.state.database.sessions() as session:
        target = await libraries.get(session, TIDES)
        await transferring.transfer(
            session, app.state.files, target, [parse_item_key(SHORE)], Mode.MOVE,
            caller=Caller("ines", staff=True), limits=Limits(100, 100), now=utc_now(),
        )  # fmt: skip
        news = [(topic, one.name.removeprefix(PREFIX)) for topic, one in told(session)]

    assert news.count((TIDES, "library_block.created.v1")) == 2
    assert news.count((TIDES, "content_library.container.created.v1")) == 1
    assert news.count((BIRDS, "library_block.deleted.v1")) == 2
    assert news.count((BIRDS, "content_library.container.deleted.v1")) == 1
    assert {topic for topic, _ in news} == {BIRDS, TIDES}


@pytest.mark.parametrize("mode", ["copy", "move"])
async def test_the_cost_does_not_grow_with_what_is_transferred(
    app: FastAPI, http: httpx.AsyncClient, mode: str
) -> None:
    async def cost(*items: str) -> int:
        with statements(app.state.database.engine) as seen:
            await done(http, mode, *items)
        return len(seen)

    async def unit(slug: str, children: int) -> str:
        keys = []
        for number in range(children):
            body = {"block_type": "html", "definition_id": f"{slug}{number}"}
            keys.append((await post(http, f"{V2}/{BIRDS}/blocks/", body)).json()["id"])
        body = {"container_type": "unit", "display_name": slug, "slug": slug}
        key = str((await post(http, f"{V2}/{BIRDS}/containers/", body)).json()["id"])
        await post(http, f"{V2}/containers/{key}/children/", {"usage_keys": keys})
        return key

    small, large, larger = await unit("s", 1), await unit("l", 12), await unit("m", 7)
    assert await cost(small) == await cost(large, larger)


async def test_an_edit_after_the_deletion_does_not_undo_it(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    """Who has found the block before it was deleted edits it no more."""
    async with app.state.database.sessions.begin() as session:
        library = await libraries.get(session, BIRDS)
        quiz = await entities.get(session, library, "xblock.v1:problem:quiz")
        await http.delete(f"{V2}/blocks/{QUIZ}/", headers=STAFF)
        say: dict[str, Any] = {"user": "ines", "now": utc_now()}
        with pytest.raises(BlockUnknown):
            await components.set_olx(session, library, quiz, "<problem/>", **say)
        with pytest.raises(BlockUnknown):
            await components.delete_asset(session, library, quiz, "static/a", **say)

    assert not await is_there(http, QUIZ)
