"""General tasks on registered resources: what they make, change, delete, refuse and tell."""

import asyncio
import hashlib
import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import select

from services.dispatcher.errors import TaskUnknown
from services.dispatcher.general import InstanceUnknown, ResourceUnknown, resource_of
from services.libraries import (
    components,
    directory,
    libraries,
    library_versions,
    publishing,
    team,
)
from services.libraries.components import NewComponent
from services.libraries.errors import Superseded, TempFileUnknown
from services.libraries.leftovers import tmpfile_cleanup
from services.libraries.models import Collection, Library, TempFile
from services.libraries.registry import GENERAL, RESOURCES
from services.libraries.states import AccessLevel
from services.libraries.worker import runner
from shared.database import utc_now
from shared.problems import BadInput, Conflict, Forbidden
from shared.testing import as_user
from tests.libraries.conftest import NOON, STAFF, V2
from tests.libraries.runs import Asked, files_in, make_library, make_task
from tests.statements import statements

LIB = "lib:Fjord:BIRDS"
RES = f"{V2}/resources"
GULL = "lb:Fjord:BIRDS:html:gull"


@pytest.fixture
def asked(app: FastAPI) -> Asked:
    return Asked(app)


@pytest_asyncio.fixture(autouse=True)
async def no_files(app: FastAPI) -> None:
    """Rows go after each test, files do not."""
    await app.state.files.delete(await files_in(app.state.files, "temp_files"))


@pytest_asyncio.fixture
async def library(app: FastAPI) -> Library:
    async with app.state.database.sessions.begin() as session:
        return await make_library(session, user="ines")


async def post(http: httpx.AsyncClient, path: str, body: Any, **headers: Any) -> httpx.Response:
    # As ASCII, so that a test can ask for what is not Unicode.
    return await http.post(
        f"{RES}/{path}", content=json.dumps(body),
        headers={"Content-Type": "application/json"} | (headers or STAFF),
    )  # fmt: skip


async def show(http: httpx.AsyncClient, path: str) -> dict[str, Any]:
    answer = await http.get(f"{RES}/{path}", headers=STAFF)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def stored(http: httpx.AsyncClient, path: str) -> bool:
    return (await http.get(f"{RES}/{path}", headers=STAFF)).status_code == 200


async def made(http: httpx.AsyncClient, asked: Asked, name: str, **body: Any) -> dict[str, Any]:
    answer = await post(http, f"{name}/", body)
    assert answer.status_code == 202, answer.text
    result: dict[str, Any] = await asked.run()
    return result


async def test_creating_gives_the_object_as_result_and_as_created_resource(
    http: httpx.AsyncClient, asked: Asked
) -> None:
    body = {
        "org": "Fjord",
        "slug": "BIRDS",
        "title": "Birds",
        "description": "",
        "retain_repo_versions": 5,
    }
    answer = await post(http, "libraries/", body)
    [request] = await asked.waiting()
    result = await asked.run()

    assert answer.status_code == 202
    assert answer.json() == {"task": f"/pulp/api/v3/tasks/{request.id}/"}
    assert request.exclusive == [LIB]
    assert asked.created == [(result["prn"], f"{V2}/{LIB}/")]
    assert result == await show(http, f"libraries/{LIB}/")
    assert result["retain_repo_versions"] == 5


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("libraries", {"org": "A B", "slug": "x", "title": "T", "description": ""}, "org"),
        ("libraries", {"org": "A", "slug": "x", "title": "\x00", "description": ""}, "title"),
        ("libraries", {"org": "A", "slug": "x", "title": "\ud800", "description": ""}, "title"),
        ("libraries", {"org": "A", "slug": "x", "title": "T", "description": "",
                       "license": "\udfff"}, "license"),
        ("libraries", {"org": "A", "slug": "x", "title": "T", "description": "",
                       "retain_repo_versions": 0}, "retain_repo_versions"),
        ("libraries", {"org": "A", "slug": "x", "title": "x" * 501, "description": ""}, "title"),
        ("libraries", {"org": "A", "slug": "x", "title": ["T"], "description": ""}, "title"),
        ("collections", {"library": LIB, "key": "a/b", "title": "T"}, "key"),
        ("collections", {"library": LIB, "key": "é", "title": "T"}, "key"),
        ("components", {"library": LIB, "block_type": "..", "definition_id": "a"}, "block_type"),
        ("collections", {"library": "lib:\x00:No", "key": "a", "title": "T"}, "library"),
        ("collections", {"library": {"a": []}, "key": "a", "title": "T"}, "library"),
        ("components", {"library": LIB, "block_type": "html", "definition_id": "a",
                        "olx": "\ud800"}, "olx"),
        ("components", {"library": LIB, "block_type": "html", "definition_id": "a",
                        "olx": "x" * 200_001}, "olx"),
        ("collections", {"library": "lib:No:Such", "key": "a", "title": "T"}, "library"),
        ("collections", {"library": LIB, "key": "a", "title": "T", "more": 1}, "more"),
        ("components", {"library": LIB, "block_type": "html"}, "definition_id"),
        ("exporters", {"library": LIB, "name": "n", "path": "../x"}, "path"),
        ("exporters", {"library": LIB, "name": "n", "path": "{nothing}"}, "path"),
        ("exporters", {"library": LIB, "name": "n", "path": "a.zip"}, "path"),
        ("publications", {"library": LIB, "number": 2**80}, "number"),
    ],
)  # fmt: skip
async def test_bad_data_is_refused_before_there_is_a_task(
    http: httpx.AsyncClient, asked: Asked, library: Any, name: str, body: Any, field: str
) -> None:
    answer = await post(http, f"{name}/", body)

    assert answer.status_code == 400, answer.text
    assert field in answer.json()
    assert await asked.waiting() == []


async def test_hostile_bodies_and_names_are_refused_and_nothing_is_asked_for(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    deep = '{"a":' * 50_000 + "1" + "}" * 50_000
    for body in (deep, "[]", "null", '"x"', "{", '{"title": NaN}', '{"number": 1e999}', "\x00"):
        for path in ("collections/", "delete/", "components/from_temp_file/", "publications/"):
            answer = await http.post(
                f"{RES}/{path}", content=body, headers=STAFF | {"Content-Type": "application/json"}
            )
            assert answer.status_code == 400, (path, body[:20], answer.text)
    instances: list[Any] = [
        [], [{"resource": "libraries", "id": "x" * 601}], [{"resource": "libraries"}],
        [{"resource": "collections", "id": "1"}] * 101, {"resource": "collections"}, [[]],
        [{"resource": "libraries", "id": 7}],
    ]  # fmt: skip
    for wanted in instances:
        answer = await post(http, "delete/", {"instances": wanted})
        assert (answer.status_code, "instances" in answer.text) == (400, True), wanted
    unknown = await post(http, "delete/", {"instances": [{"resource": "no", "id": "1"}]})
    assert unknown.status_code == 404
    assert await asked.waiting() == []


@pytest.mark.parametrize("name", ["libraries", "collections", "components", "versions",
                                  "publications", "exporters"])  # fmt: skip
async def test_ids_that_cannot_be_are_not_found_whatever_they_are(
    http: httpx.AsyncClient, asked: Asked, library: Any, name: str
) -> None:
    for ident in ("9" * 40, f"{LIB}:{'9' * 30}", f"{LIB}:-1", "٣", "²", "..", "lb:::", "-"):
        answer = await post(http, "delete/", {"instances": [{"resource": name, "id": ident}]})
        assert answer.status_code == 202, (ident, answer.text)
        [request] = await asked.waiting()
        assert request.exclusive == []
        await asked.run()
    for ident in ("x\x00y", f"{LIB}\x00", "\ud800"):
        answer = await post(http, "delete/", {"instances": [{"resource": name, "id": ident}]})
        assert (answer.status_code, "instances" in answer.text) == (400, True), ident
    for ident in ("x%00y", f"{LIB}%00", "9" * 40, "%D9%A3", "%FF", f"{LIB}:99999999999"):
        answer = await http.get(f"{RES}/{name}/{ident}/", headers=STAFF)
        assert answer.status_code == 404, (ident, answer.text)


async def test_unknown_kinds_and_things_are_not_found(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    for path in ("nothing/", "versions/", "libraries/from/", "libraries/from_temp_file/"):
        answer = await post(http, path, {"temp_file": str(uuid4()), "data": {
            "org": "A", "slug": "s", "title": "T", "description": ""}})  # fmt: skip
        assert answer.status_code in (404, 405), path
    for path in ("libraries/lib:No:Such/", "collections/77/", "collections/x/", "content/x/",
                 "versions/lib:Fjord:BIRDS:x/", "versions/x/", "exporters/x/", "publications/-/",
                 "components/lb:Fjord:BIRDS:html:none/", f"content/{uuid4()}/"):  # fmt: skip
        assert (await http.get(f"{RES}/{path}", headers=STAFF)).status_code in (404, 422, 400), path
    with pytest.raises(ResourceUnknown) as unknown:
        resource_of(RESOURCES, "nothing")
    assert unknown.value.code == "PLP0002"
    assert await asked.waiting() == []


async def test_data_that_became_wrong_fails_the_task_and_nothing_is_stored(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    body = {"library": LIB, "key": "gulls", "title": "Gulls"}
    await made(http, asked, "collections", **body)
    assert (await post(http, "collections/", body)).status_code == 202
    with pytest.raises(BadInput, match="taken"):
        await asked.run()
    assert len(asked.created) == 1


async def test_an_update_that_changes_nothing_is_answered_at_once(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    collection = await made(http, asked, "collections", library=LIB, key="gulls", title="Gulls")
    href = collection["pulp_href"]
    same = await http.patch(href, json={"title": "Gulls"}, headers=STAFF)
    whole = await http.put(href, json={"title": "Gulls"}, headers=STAFF)

    assert (same.status_code, same.json()) == (200, collection)
    assert whole.status_code == 200
    assert await asked.waiting() == []


async def test_a_partial_update_keeps_the_rest_and_a_full_one_does_not(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    collection = await made(
        http, asked, "collections", library=LIB, key="gulls", title="G", description="white"
    )
    href = collection["pulp_href"]
    answer = await http.patch(href, json={"title": "Gulls"}, headers=STAFF)
    partial = await asked.run()
    await http.put(href, json={"title": "Gulls"}, headers=STAFF)
    full = await asked.run()

    assert answer.status_code == 202
    assert asked.requests[-1].exclusive == [LIB]
    assert (partial["title"], partial["description"]) == ("Gulls", "white")
    assert (full["title"], full["description"]) == ("Gulls", "")
    assert await show(http, f"collections/{href.split('/')[-2]}/") == full
    assert (await http.patch(href, json={"title": ""}, headers=STAFF)).status_code == 400
    assert (await http.put(href, json={}, headers=STAFF)).json() == {"title": ["Field required"]}


async def test_updating_what_is_gone_fails(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    collection = await made(http, asked, "collections", library=LIB, key="g", title="G")
    await http.patch(collection["pulp_href"], json={"title": "H"}, headers=STAFF)
    async with asked.app.state.database.sessions.begin() as session:
        await (await session.connection()).execute(text("delete from collection"))
    with pytest.raises(InstanceUnknown):
        await asked.run()


async def test_deleting_counts_and_what_is_gone_already_is_skipped(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    collection = await made(http, asked, "collections", library=LIB, key="g", title="G")
    href = collection["pulp_href"]
    assert (await http.delete(href, headers=STAFF)).status_code == 202
    assert await asked.run() == {"libraries.Collection": 1}
    assert asked.gone == [collection["prn"]]
    again = await GENERAL.general_delete(
        asked.task, resource="collections", instance_id=href.split("/")[-2], administrator=True
    )

    assert again == {"skipped": [f"libraries.Collection:{href.split('/')[-2]}"]}
    assert (await http.delete(href, headers=STAFF)).status_code == 404


async def publish_version(asked: Asked) -> None:
    async with asked.app.state.database.sessions.begin() as session:
        library = await libraries.get(session, LIB)
        item = NewComponent("html", "gull", "Gull", "<html/>")
        await components.add_many(session, library, [item], user="ada", now=NOON)
        await publishing.publish_all(session, library, user="ada", now=NOON)
        await library_versions.snapshot(session, library, user="ada", now=NOON)


async def test_several_are_deleted_together_or_not_at_all(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    await publish_version(asked)
    collection = await made(http, asked, "collections", library=LIB, key="g", title="G")
    publication = await made(http, asked, "publications", library=LIB, number=1)
    ident = collection["pulp_href"].split("/")[-2]
    wanted = [
        {"resource": "collections", "id": ident},
        {"resource": "versions", "id": f"{LIB}:1"},
        {"resource": "components", "id": GULL},
    ]
    assert (await post(http, "delete/", {"instances": wanted})).status_code == 202
    with pytest.raises(Conflict) as refused:
        await asked.run()
    assert getattr(refused.value, "code", None) == "PLP0029"
    assert await stored(http, f"collections/{ident}/")
    assert asked.gone == []

    first = {"resource": "publications", "id": publication["pulp_href"].split("/")[-2]}
    missing = {"resource": "exporters", "id": str(uuid4())}
    await post(http, "delete/", {"instances": [first, missing, *wanted]})
    assert await asked.run() == {
        "libraries.Publication": 1, "libraries.Collection": 1, "libraries.LibraryVersion": 1,
        "libraries.Component": 1, "skipped": [f"libraries.Exporter:{missing['id']}"],
    }  # fmt: skip
    assert len(asked.gone) == 4
    assert asked.requests[-1].exclusive == [LIB]
    assert not await stored(http, f"components/{GULL}/")


async def test_components_are_made_changed_and_deleted(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    component = await made(
        http, asked, "components", library=LIB, block_type="html", definition_id="gull",
        olx='<html display_name="Gull"/>',
    )  # fmt: skip
    href = component["pulp_href"]
    assert (component["id"], component["display_name"], component["version_num"]) == (
        GULL, "Gull", 1,
    )  # fmt: skip
    await http.put(href, json={"olx": '<html display_name="Herring gull"/>'}, headers=STAFF)
    assert (await asked.run())["version_num"] == 2
    await http.put(href, json={"olx": "<not-closed>"}, headers=STAFF)
    with pytest.raises(BadInput):
        await asked.run()
    assert (await http.put(href, json={"olx": "\x00"}, headers=STAFF)).status_code == 400
    await http.delete(href, headers=STAFF)
    assert await asked.run() == {"libraries.Component": 1}


async def test_a_library_goes_with_its_files(
    http: httpx.AsyncClient, asked: Asked, library: Any, app: FastAPI
) -> None:
    await app.state.files.put(f"content/{library.uuid}/{'0' * 40}", b"x")
    await publish_version(asked)
    await made(http, asked, "publications", library=LIB, number=1)
    await http.delete(f"{RES}/libraries/{LIB}/", headers=STAFF)
    assert await asked.run() == {"libraries.Library": 1}
    assert await files_in(app.state.files, f"content/{library.uuid}") == []
    assert (await http.get(f"{V2}/{LIB}/", headers=STAFF)).status_code == 404


async def test_libraries_deleted_together_all_go_with_their_files(
    http: httpx.AsyncClient, asked: Asked, library: Any, app: FastAPI
) -> None:
    async with app.state.database.sessions.begin() as session:
        other = await make_library(session, slug="FISH", user="ines")
    for one in (library, other):
        await app.state.files.put(f"content/{one.uuid}/{'0' * 40}", b"x")
    collection = await made(http, asked, "collections", library=LIB, key="g", title="G")
    wanted = [
        {"resource": "libraries", "id": LIB},
        {"resource": "collections", "id": collection["pulp_href"].split("/")[-2]},
        {"resource": "libraries", "id": other.key},
        {"resource": "libraries", "id": LIB},
    ]
    await post(http, "delete/", {"instances": wanted})
    result = await asked.run()

    assert set(asked.requests[-1].exclusive) == {LIB, other.key}
    assert result["libraries.Library"] == 2
    assert result["skipped"] == [
        f"libraries.Collection:{wanted[1]['id']}", f"libraries.Library:{LIB}",
    ]  # fmt: skip
    for one in (library, other):
        assert await files_in(app.state.files, f"content/{one.uuid}") == []


async def test_asking_to_delete_many_costs_as_many_statements_as_for_one(
    http: httpx.AsyncClient, asked: Asked, library: Any, app: FastAPI
) -> None:
    wanted: dict[str, list[Any]] = {}
    async with app.state.database.sessions.begin() as session:
        items = [NewComponent("html", f"c{n}", "T", "<html/>") for n in range(20)]
        await components.add_many(session, library, items, user="ada", now=NOON)
        for number in range(20):
            other = await make_library(session, slug=f"L{number}", user="ines")
            session.add(
                Collection(
                    library_id=other.id, code="k", title="T", created=NOON, modified=NOON
                )
            )  # fmt: skip
            for kind, ident in (("libraries", other.key), ("versions", f"{other.key}:0"),
                                ("collections", f"{number + 1}"),
                                ("components", f"lb:Fjord:BIRDS:html:c{number}"),
                                ("exporters", str(uuid4()))):  # fmt: skip
                wanted.setdefault(kind, []).append({"resource": kind, "id": ident})

    async def cost(number: int) -> int:
        instances = [one for some in wanted.values() for one in some[:number]]
        with statements(app.state.database.engine) as seen:
            answer = await post(http, "delete/", {"instances": instances}, **as_user("ines"))
        assert answer.status_code == 202, answer.text
        return len(seen)

    assert await cost(1) == await cost(20) > 0
    assert len((await asked.waiting())[-1].exclusive) == 21


# Who may


async def test_who_may_is_asked_before_and_again_when_it_runs(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    stranger, author = as_user("mallory"), as_user("ines")
    body = {"library": LIB, "key": "g", "title": "G"}
    assert (await post(http, "collections/", body, **stranger)).status_code == 403
    new = {"org": "A", "slug": "s", "title": "T", "description": ""}
    assert (await post(http, "libraries/", new, **stranger)).status_code == 403
    wanted = {"instances": [{"resource": "libraries", "id": LIB}]}
    assert (await post(http, "delete/", wanted, **stranger)).status_code == 403
    assert (await http.post(f"{RES}/collections/", json=body)).status_code == 401
    assert await asked.waiting() == []

    assert (await post(http, "collections/", body, **author)).status_code == 202
    async with asked.app.state.database.sessions.begin() as session:
        connection = await session.connection()
        await connection.execute(text('delete from "grant"'))
        await connection.execute(text("delete from role_assignment"))
    with pytest.raises(Forbidden):
        await asked.run()
    assert asked.created == []


async def test_a_change_or_deletion_by_one_who_lost_the_right_meanwhile_fails(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    author = as_user("ines")
    collection = await made(http, asked, "collections", library=LIB, key="g", title="G")
    href = collection["pulp_href"]
    several = {"instances": [{"resource": "collections", "id": href.split("/")[-2]}]}
    asks = [
        lambda: http.patch(href, json={"title": "H"}, headers=author),
        lambda: http.put(href, json={"title": "H"}, headers=author),
        lambda: http.delete(href, headers=author),
        lambda: post(http, "delete/", several, **author),
    ]
    requests = []
    for ask in asks:
        assert (await ask()).status_code == 202
        requests += await asked.waiting()
        await asked.forget()
    async with asked.app.state.database.sessions.begin() as session:
        connection = await session.connection()
        await connection.execute(text('delete from "grant"'))
        await connection.execute(text("delete from role_assignment"))

    for ask in asks:
        assert (await ask()).status_code == 403
    for request in requests:
        task = make_task(asked.app.state.database, asked.app.state.files, user="ines", fence=9)
        with pytest.raises(Forbidden):
            await runner._functions[request.function](task, **request.arguments)
    assert await show(http, f"collections/{href.split('/')[-2]}/") == collection


async def test_nobody_can_make_himself_an_administrator_by_his_data(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    body = {"library": LIB, "key": "g", "title": "G", "administrator": True}
    refused = await post(http, "collections/", body, **as_user("ines"))
    assert (refused.status_code, list(refused.json())) == (400, ["administrator"])
    for headers, administrator in ((as_user("ines"), False), (STAFF, True)):
        await post(http, "collections/", {"library": LIB, "key": "g", "title": "G"}, **headers)
        [request] = await asked.waiting()
        assert request.arguments["administrator"] is administrator
        await asked.forget()


async def test_groups_that_only_a_token_names_count_in_its_tasks(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    async with asked.app.state.database.sessions.begin() as session:
        await directory.make_group(session, "editors", now=NOON)
        await team.set_group(session, library, "editors", AccessLevel.AUTHOR)
    member, stranger = as_user("ben", groups=["editors"]), as_user("cem", groups=["x"])
    body = {"library": LIB, "key": "g", "title": "G", "groups": ["editors"]}
    assert (await post(http, "collections/", body, **stranger)).status_code == 400
    del body["groups"]
    assert (await post(http, "collections/", body, **stranger)).status_code == 403

    assert (await post(http, "collections/", body, **member)).status_code == 202
    href = (await asked.run())["pulp_href"]
    assert asked.requests[-1].arguments["groups"] == ["editors"]
    assert (await http.patch(href, json={"title": "H"}, headers=member)).status_code == 202
    assert (await asked.run())["title"] == "H"
    for path, sent in (("versions/", {}), ("modify/", {"base_version": 0})):
        answer = await http.post(f"{V2}/{LIB}/{path}", json=sent, headers=member)
        assert answer.status_code == 202, answer.text
        await asked.run()
    exporter = {"library": LIB, "name": "e", "path": "groups/{task}"}
    assert (await post(http, "exporters/", exporter, **member)).status_code == 202
    made = await asked.run()
    wanted = {"exporter": made["pulp_href"].split("/")[-2], "version": 0}
    answer = await http.post(f"{V2}/{LIB}/exports/", json=wanted, headers=member)
    assert answer.status_code == 202, answer.text
    assert (await asked.run())["files"] == 0
    several = {"instances": [{"resource": "collections", "id": href.split("/")[-2]}]}
    assert (await post(http, "delete/", several, **member)).status_code == 202
    await asked.run()
    assert not await stored(http, f"collections/{href.split('/')[-2]}/")


async def test_a_group_that_lost_its_grant_ends_the_task(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    async with asked.app.state.database.sessions.begin() as session:
        await directory.make_group(session, "editors", now=NOON)
        await team.set_group(session, library, "editors", AccessLevel.AUTHOR)
    body = {"library": LIB, "key": "g", "title": "G"}
    member = as_user("ben", groups=["editors"])
    assert (await post(http, "collections/", body, **member)).status_code == 202
    async with asked.app.state.database.sessions.begin() as session:
        await (await session.connection()).execute(text('delete from "grant"'))

    with pytest.raises(Forbidden):
        await asked.run()


async def test_two_creations_of_one_name_at_once_make_one(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    state = asked.app.state

    async def create() -> bool:
        task = make_task(state.database, state.files, user="ines", fence=1)
        data = {"library": LIB, "key": "g", "title": "G"}
        try:
            await GENERAL.general_create(task, resource="collections", data=data)
        except BadInput:
            return False
        return True

    outcomes = await asyncio.gather(*(create() for _ in range(5)))

    assert sorted(outcomes) == [False] * 4 + [True]
    assert await stored(http, "collections/1/") or await stored(http, "collections/2/")


async def test_deleting_one_thing_twice_at_once_deletes_it_once(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    state = asked.app.state
    for resource, body in (
        ("collections", {"library": LIB, "key": "g", "title": "G"}),
        ("exporters", {"library": LIB, "name": "n", "path": "p"}),
        ("libraries", {"org": "A", "slug": "s", "title": "T", "description": ""}),
    ):
        await post(http, f"{resource}/", body)
        thing = await asked.run()
        ident = thing["pulp_href"].split("/")[-2]
        results = await asyncio.gather(
            *(
                GENERAL.general_delete(
                    make_task(state.database, state.files, user=None, fence=9),
                    resource=resource, instance_id=ident,
                )
                for _ in range(4)
            )
        )  # fmt: skip
        assert sorted(results, key=str)[0].keys() == {RESOURCES[resource].label}
        assert sum("skipped" in result for result in results) == 3


async def test_a_run_whose_lock_was_given_away_changes_nothing(
    http: httpx.AsyncClient, asked: Asked, library: Any
) -> None:
    collection = await made(http, asked, "collections", library=LIB, key="g", title="G")
    ident = collection["pulp_href"].split("/")[-2]
    state = asked.app.state
    late = make_task(state.database, state.files, user="ines", fence=0)
    with pytest.raises(Superseded):
        await GENERAL.general_update(
            late, resource="collections", instance_id=ident, data={"title": "late"}, partial=True
        )
    with pytest.raises(Superseded):
        await GENERAL.general_delete(late, resource="collections", instance_id=ident)
    assert (await show(http, f"collections/{ident}/"))["title"] == "G"


# Temporary files


async def upload(
    http: httpx.AsyncClient, data: bytes, sha256: str = "", headers: Any = None
) -> httpx.Response:
    return await http.post(
        f"{V2}/temp_files/", files={"file": ("gull.xml", data)}, data={"sha256": sha256},
        headers=headers or STAFF,
    )  # fmt: skip


def from_file(ident: str, code: str = "gull") -> dict[str, Any]:
    data = {"library": LIB, "block_type": "html", "definition_id": code}
    return {"temp_file": ident, "data": data}


async def temp_files(app: FastAPI) -> tuple[int, list[str]]:
    async with app.state.database.sessions() as session:
        rows = (await session.exec(select(TempFile))).all()
    return len(rows), await files_in(app.state.files, "temp_files")


async def test_a_component_is_made_from_a_temporary_file_which_goes(
    http: httpx.AsyncClient, asked: Asked, library: Any, app: FastAPI
) -> None:
    data = b'<html display_name="From a file"/>'
    answer = await upload(http, data, hashlib.sha256(data).hexdigest().upper())
    kept = answer.json()
    assert (answer.status_code, kept["size"]) == (201, len(data))
    assert (await temp_files(app))[0] == 1

    started = await post(http, "components/from_temp_file/", from_file(kept["id"]))
    taken = await post(http, "components/from_temp_file/", from_file(kept["id"], "other"))
    result = await asked.run()

    assert (started.status_code, taken.status_code) == (202, 409)
    assert (result["display_name"], result["version_num"]) == ("From a file", 1)
    assert asked.created == [(result["prn"], result["pulp_href"])]
    assert await temp_files(app) == (0, [])


async def test_a_failed_creation_removes_its_file_too(
    http: httpx.AsyncClient, asked: Asked, library: Any, app: FastAPI
) -> None:
    for data in (b"<html", b"\xff\xfe", b"<video/>"):
        kept = (await upload(http, data)).json()
        await post(http, "components/from_temp_file/", from_file(kept["id"]))
        with pytest.raises(BadInput):
            await asked.run()
    assert await temp_files(app) == (0, [])
    assert not await stored(http, f"components/{GULL}/")


async def test_a_temporary_file_is_its_owners_and_must_be_what_it_says(
    http: httpx.AsyncClient, asked: Asked, library: Any, app: FastAPI
) -> None:
    wrong = await upload(http, b"<html/>", "0" * 64)
    assert wrong.json() == {"sha256": ["The file does not have this SHA-256."]}
    assert await temp_files(app) == (0, [])
    nothing = await http.post(f"{V2}/temp_files/", data={"sha256": "1"}, headers=STAFF)
    assert "file" in nothing.json()

    kept = (await upload(http, b"<html/>", headers=as_user("bob"))).json()
    for ident in (kept["id"], str(uuid4())):
        answer = await post(http, "components/from_temp_file/", from_file(ident))
        assert (answer.status_code, list(answer.json())) == (400, ["temp_file"])
    late = make_task(app.state.database, app.state.files)
    with pytest.raises(TempFileUnknown):
        await GENERAL.general_create_from_temp_file(
            late, resource="components", temp_file=kept["id"], data=from_file("")["data"]
        )
    assert (await temp_files(app))[0] == 1


class Tasks:
    """What the dispatcher would answer about tasks."""

    def __init__(self, **states: str) -> None:
        self.states = states

    async def get(self, service: str, path: str) -> Any:
        task_id = path.rpartition("/")[2]
        if task_id not in self.states:
            raise TaskUnknown
        times = dict.fromkeys(("unblocked_at", "started_at", "finished_at", "error", "result"))
        return {"id": task_id, "name": "x", "state": self.states[task_id], **times}


async def test_stale_temporary_files_are_removed_but_not_under_a_waiting_task(
    http: httpx.AsyncClient, asked: Asked, library: Any, app: FastAPI
) -> None:
    idents = [(await upload(http, b"<html/>")).json()["id"] for _ in range(4)]
    task_ids = []
    for ident in idents[2:]:
        assert (await post(http, "components/from_temp_file/", from_file(ident))).status_code == 202
    task_ids = [str(request.id) for request in await asked.waiting()]
    async with app.state.database.sessions.begin() as session:
        old = {"old": utc_now() - timedelta(hours=2), "young": idents[0]}
        await (await session.connection()).execute(
            text("update temp_file set created_at = :old where id <> cast(:young as uuid)"), old
        )
    clients = Tasks(**{task_ids[0]: "waiting", task_ids[1]: "failed"})
    task = make_task(
        app.state.database, app.state.files, user=None, clients=clients,
        tmpfile_protection_minutes=60,
    )  # fmt: skip
    await tmpfile_cleanup(task)

    async with app.state.database.sessions() as session:
        left = {str(row.id) for row in (await session.exec(select(TempFile))).all()}
    assert left == {idents[0], idents[2]}
    assert len(await files_in(app.state.files, "temp_files")) == 2
