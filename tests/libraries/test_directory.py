"""Who is known: from tokens and from administrators."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import directory
from services.libraries.models import Grant, Person, TeamGroup
from services.libraries.register import Register
from services.libraries.states import AccessLevel
from shared.callers import Caller
from shared.database import Database
from shared.testing import as_user
from tests.conftest import Servers
from tests.libraries.conftest import NOON, STAFF, V2, make_library

ADMIN = "/api/libraries-admin/v1"


async def people(session: AsyncSession) -> list[tuple[str, str, bool]]:
    found = await session.exec(select(Person).order_by(col(Person.username)))
    return [(person.username, person.email, person.active) for person in found]


async def stored(database: Database) -> list[tuple[str, str, bool]]:
    async with database.sessions.begin() as session:
        return await people(session)


async def test_who_calls_is_known_after_that(http: httpx.AsyncClient, app: FastAPI) -> None:
    headers = as_user("ada", email="ada@x.org", groups=["authors", "a\x00b"])

    await http.get(f"{V2}/", headers=headers)

    async with asyncio.timeout(10):
        while await stored(app.state.database) != [("ada", "ada@x.org", True)]:
            await asyncio.sleep(0.01)
    async with app.state.database.sessions.begin() as session:
        assert (await session.exec(select(TeamGroup.name))).all() == ["authors"]


async def test_what_is_known_is_not_written_again(clean: Servers, database: Database) -> None:
    register = Register(database.sessions, fresh=300)
    ada = Caller("ada", email="ada@x.org")
    register.see(ada)
    assert await register.store()
    async with database.sessions.begin() as session:
        await session.exec(text("delete from person"))  # type: ignore[call-overload]

    register.see(ada)
    await register.store()
    assert await stored(database) == []
    register.see(Caller("ada", email="new@x.org"))
    await register.store()
    assert await stored(database) == [("ada", "new@x.org", True)]


async def test_what_is_no_longer_fresh_is_written_again(clean: Servers, database: Database) -> None:
    register = Register(database.sessions, fresh=0)
    for email in ("one@x.org", "one@x.org"):
        register.see(Caller("ada", email=email))
        await register.store()
        async with database.sessions.begin() as session:
            await session.exec(text("delete from person"))  # type: ignore[call-overload]

    register.see(Caller("ada", email="one@x.org"))
    await register.store()

    assert await stored(database) == [("ada", "one@x.org", True)]


async def test_a_database_that_is_away_harms_no_caller(clean: Servers) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    register = Register(away.sessions, fresh=300)
    register.see(Caller("ada"))

    assert not await register.store()

    await away.close()


async def test_tokens_keep_what_administrators_decided(session: AsyncSession) -> None:
    changes = {"email": "ada@x.org", "active": False, "creator": True}
    await directory.put_person(session, "ada", changes, now=NOON)

    await directory.note(session, [Caller("ada"), Caller("bob", email="b\x00")], now=NOON)

    assert await people(session) == [("ada", "ada@x.org", False), ("bob", "", True)]


async def test_a_group_that_a_token_named_lets_in_only_who_comes_with_it(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    async with app.state.database.sessions.begin() as session:
        library = await make_library(session)
        session.add(
            Grant(library_id=library.id, group_name="authors", access_level=AccessLevel.READ)
        )
    url = f"{V2}/{library.key}/"

    assert (await http.get(url, headers=as_user("ada", groups=["authors"]))).status_code == 200
    assert (await http.get(url, headers=as_user("ada"))).status_code == 403


async def test_people_are_found_in_pages(http: httpx.AsyncClient) -> None:
    for name in ("ada", "bob", "eve", "zoe"):
        body = {"email": f"{name}@x.org"}
        await http.put(f"{ADMIN}/people/{name}/", json=body, headers=STAFF)

    async def find(**params: Any) -> dict[str, Any]:
        answer = await http.get(f"{ADMIN}/people/", params=params, headers=STAFF)
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    first = await find(limit=2, search="@x.org")
    rest = await find(limit=2, search="@x.org", after=first["next"])
    assert [row["username"] for row in first["results"]] == ["ada", "bob"]
    assert [row["username"] for row in rest["results"]] == ["eve", "zoe"]
    assert rest["next"] is None
    assert [row["username"] for row in (await find(search="VE@"))["results"]] == ["eve"]
    assert (await find(search="%"))["results"] == []


async def test_a_person_is_changed_only_where_it_is_said(http: httpx.AsyncClient) -> None:
    url = f"{ADMIN}/people/ada/"

    made = await http.put(url, json={"email": "ada@x.org", "creator": True}, headers=STAFF)
    changed = await http.put(url, json={"active": False}, headers=STAFF)
    read = await http.get(url, headers=STAFF)

    assert (made.status_code, made.json()["active"]) == (200, True)
    assert changed.json() == read.json()
    assert made.json() | {"active": False} == read.json()


async def test_groups_have_members(http: httpx.AsyncClient) -> None:
    await http.put(f"{ADMIN}/people/ada/", json={}, headers=STAFF)
    group = f"{ADMIN}/groups/authors/"

    assert (await http.get(group, headers=STAFF)).status_code == 404
    assert (await http.put(group, headers=STAFF)).json() == {"name": "authors", "members": []}
    for _ in range(2):
        assert (await http.put(f"{group}members/ada/", headers=STAFF)).status_code == 204
    assert (await http.get(group, headers=STAFF)).json()["members"] == ["ada"]
    listing = (await http.get(f"{ADMIN}/groups/", headers=STAFF)).json()["results"]
    assert [(row["name"], row["members"]) for row in listing] == [("authors", 1)]
    for _ in range(2):
        assert (await http.delete(f"{group}members/ada/", headers=STAFF)).status_code == 204
    assert (await http.put(f"{group}members/nobody/", headers=STAFF)).status_code == 404
    assert (await http.delete(group, headers=STAFF)).status_code == 204
    assert (await http.delete(group, headers=STAFF)).status_code == 404


async def test_a_group_that_has_rights_stays(http: httpx.AsyncClient, app: FastAPI) -> None:
    async with app.state.database.sessions.begin() as session:
        library = await make_library(session)
        await directory.make_group(session, "authors", now=NOON)
    grant = f"{V2}/{library.key}/team/group/authors/"
    await http.put(grant, json={"access_level": "read"}, headers=STAFF)

    refused = await http.delete(f"{ADMIN}/groups/authors/", headers=STAFF)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:lyceum:group-in-use")
    await http.delete(grant, headers=STAFF)
    assert (await http.delete(f"{ADMIN}/groups/authors/", headers=STAFF)).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "people/a%00b/", {}),
        ("PUT", f"people/{'x' * 256}/", {}),
        ("PUT", "people/ada/", {"email": "a\x00b"}),
        ("PUT", "people/ada/", {"email": "x" * 400}),
        ("PUT", "people/ada/", {"active": "perhaps"}),
        ("PUT", "groups/a%00b/", None),
        ("GET", "people/?after=x", None),
        ("GET", "people/?limit=0", None),
        ("GET", "people/?search=%00", None),
        ("GET", "roles/?after=WzFlOTldCg", None),
        ("GET", "roles/?scope=lib:x", None),
    ],
)
async def test_bad_input_is_named_and_nothing_is_stored(
    http: httpx.AsyncClient, app: FastAPI, method: str, path: str, body: Any
) -> None:
    answer = await http.request(method, f"{ADMIN}/{path}", json=body, headers=STAFF)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["fields"]
    assert "ada" not in [name for name, *_ in await stored(app.state.database)]


@pytest.mark.parametrize("path", ["people/", "people/ada/", "groups/", "groups/x/", "roles/"])
async def test_the_directory_is_for_staff(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(f"{ADMIN}/{path}")).status_code == 401
    assert (await http.get(f"{ADMIN}/{path}", headers=as_user("ada"))).status_code == 403
