"""Teams of libraries over HTTP. contract: libraries §3.3, §10 (numbers are its scenarios)"""

import asyncio
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import event

from services.libraries import directory, team
from services.libraries.errors import LastAdmin
from services.libraries.libraries import get
from services.libraries.states import AccessLevel
from shared.database import Database
from shared.testing import as_user
from tests.libraries.conftest import NOON, STAFF, V2, make_library

LIB = "lib:CL-TEST:lib-1"
TEAM = f"{V2}/{LIB}/team/"
ONLY_ADMIN = ["Cannot change or remove the access level for the only admin."]
INES = as_user("ines")


@pytest_asyncio.fixture(autouse=True)
async def people(app: FastAPI) -> None:
    """A library of ines's, people whose e-mails are known, and a group."""
    async with app.state.database.sessions.begin() as session:
        await make_library(session)
        for name in ("ines", "ada", "bob"):
            changes = {"email": f"{name.title()}@example.test"}
            await directory.put_person(session, name, changes, now=NOON)
        await directory.make_group(session, "authors", now=NOON)
        await directory.add_member(session, "authors", "bob")


async def put(http: httpx.AsyncClient, path: str, level: str) -> httpx.Response:
    return await http.put(f"{TEAM}{path}/", json={"access_level": level}, headers=INES)


async def levels(http: httpx.AsyncClient) -> list[tuple[str, str]]:
    rows = (await http.get(TEAM, headers=STAFF)).json()
    return [(row["username"] or row["group_name"], row["access_level"]) for row in rows]


async def test_the_team_has_groups_first_and_then_people_by_name(http: httpx.AsyncClient) -> None:
    await put(http, "user/bob", "read")
    await put(http, "user/ada", "author")
    await put(http, "group/authors", "author")

    assert (await http.get(TEAM, headers=INES)).json() == [
        {"access_level": "author", "email": None, "username": None, "group_name": "authors"},
        {
            "access_level": "author",
            "email": "Ada@example.test",
            "username": "ada",
            "group_name": None,
        },
        {
            "access_level": "read",
            "email": "Bob@example.test",
            "username": "bob",
            "group_name": None,
        },
        {
            "access_level": "admin",
            "email": "ines@example.test",
            "username": "ines",
            "group_name": None,
        },
    ]


async def test_26_people_are_let_in_by_email_once(http: httpx.AsyncClient) -> None:
    async def invite(email: str) -> httpx.Response:
        body = {"email": email, "access_level": "read", "library_id": LIB}
        return await http.post(TEAM, json=body, headers=INES)

    unknown, known, again = [
        await invite(email)
        for email in ("nobody@example.test", "ada@EXAMPLE.test", "ada@example.test")
    ]

    assert (unknown.status_code, unknown.json()) == (
        400,
        {"email": "We could not find a user with that email address."},
    )
    assert (known.status_code, known.json()) == (
        200,
        {
            "access_level": "read",
            "email": "Ada@example.test",
            "username": "ada",
            "group_name": None,
        },
    )
    assert (again.status_code, again.json()) == (
        400,
        {"email": ["This user already has access to this library."]},
    )


async def test_an_email_of_two_people_lets_nobody_in(http: httpx.AsyncClient, app: FastAPI) -> None:
    async with app.state.database.sessions.begin() as session:
        await directory.put_person(session, "ada2", {"email": "ada@example.test"}, now=NOON)
    body = {"email": "ada@example.test", "access_level": "read"}

    answer = await http.post(TEAM, json=body, headers=INES)

    assert answer.json() == {"email": "More than one user has that email address."}
    assert await levels(http) == [("ines", "admin")]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            {"email": "ada@example.test", "access_level": "x"},
            {"access_level": ['"x" is not a valid choice.']},
        ),
        (
            {},
            {"email": ["This field is required."], "access_level": ["This field is required."]},
        ),
        ({"email": 7, "access_level": "read"}, {"email": ["Not a valid string."]}),
        (
            {"email": "a\x00", "access_level": "read"},
            {"email": ["Null characters are not allowed."]},
        ),
    ],
)
async def test_bad_invitations_name_their_fields(
    http: httpx.AsyncClient, body: dict[str, Any], answer: dict[str, Any]
) -> None:
    refused = await http.post(TEAM, json=body, headers=INES)

    found = {name: sorted(texts) for name, texts in refused.json().items()}
    assert (refused.status_code, found) == (400, answer)
    assert await levels(http) == [("ines", "admin")]


async def test_a_grant_is_read_changed_and_removed(http: httpx.AsyncClient) -> None:
    url = f"{TEAM}user/ada/"

    missing = await http.get(url, headers=INES)
    made = await put(http, "user/ada", "read")
    changed = await put(http, "user/ada", "author")
    read = await http.get(url, headers=INES)
    removed = [await http.delete(url, headers=INES) for _ in range(2)]

    assert missing.status_code == 404
    assert (made.json()["access_level"], made.status_code) == ("read", 200)
    assert changed.json() == read.json()
    assert read.json()["access_level"] == "author"
    assert [(each.status_code, each.json()) for each in removed] == [(200, {}), (200, {})]


@pytest.mark.parametrize("name", ["nobody", "a%00b", "x" * 300])
async def test_unknown_people_and_groups_are_not_found(http: httpx.AsyncClient, name: str) -> None:
    for kind in ("user", "group"):
        url = f"{TEAM}{kind}/{name}/"
        assert (await put(http, f"{kind}/{name}", "read")).status_code == 404
        assert (await http.delete(url, headers=INES)).status_code == 404
    assert (await http.get(f"{TEAM}user/{name}/", headers=INES)).status_code == 404


@pytest.mark.parametrize("level", ["admin", "author", "read"])
async def test_27_the_only_admin_stays_one(http: httpx.AsyncClient, level: str) -> None:
    await put(http, "user/ada", "author")

    changed = await put(http, "user/ines", level)
    removed = await http.delete(f"{TEAM}user/ines/", headers=INES)

    assert (changed.status_code, changed.json()) == (400, ONLY_ADMIN)
    assert (removed.status_code, removed.json()) == (400, ONLY_ADMIN)
    assert await levels(http) == [("ada", "author"), ("ines", "admin")]


async def test_a_group_counts_as_an_admin_and_stays_when_it_is_the_only_one(
    http: httpx.AsyncClient,
) -> None:
    await put(http, "group/authors", "admin")

    assert (await put(http, "user/ines", "read")).status_code == 200
    refused = await http.delete(f"{TEAM}group/authors/", headers=STAFF)
    assert (refused.status_code, refused.json()) == (400, ONLY_ADMIN)
    # bob is in the group, so he may give ines back what she had.
    again = await http.put(
        f"{TEAM}user/ines/", json={"access_level": "admin"}, headers=as_user("bob")
    )
    assert again.status_code == 200
    assert (await http.delete(f"{TEAM}group/authors/", headers=INES)).json() == {}
    assert await levels(http) == [("ines", "admin")]


async def test_members_have_what_their_group_was_granted(http: httpx.AsyncClient) -> None:
    bob, zoe = as_user("bob"), as_user("zoe", groups=["authors"])
    assert (await http.get(f"{V2}/{LIB}/", headers=bob)).status_code == 403

    assert (await put(http, "group/authors", "author")).json() == {}

    for member in (bob, zoe):
        assert (await http.get(f"{V2}/{LIB}/", headers=member)).json()["can_edit_library"]
        assert [row["id"] for row in (await http.get(f"{V2}/", headers=member)).json()] == [LIB]
    await http.delete(f"{TEAM}group/authors/", headers=INES)
    assert (await http.get(f"{V2}/{LIB}/", headers=bob)).status_code == 403


@pytest.mark.parametrize("how", ["demote", "remove"])
async def test_of_two_admins_that_take_each_other_out_at_once_one_stays(
    app: FastAPI, how: str
) -> None:
    """Each has read the team before the other changed it; the second must look again."""
    database: Database = app.state.database
    async with database.sessions.begin() as session:
        library = await get(session, LIB)
        await team.set_person(session, library, "ada", AccessLevel.ADMIN)

    async with database.sessions() as one, database.sessions() as other:
        asked = asyncio.Event()

        def waiting(*args: Any) -> None:
            asked.set()

        await take_out(one, how, "ada")
        connection = await other.connection()
        event.listen(connection.sync_connection, "before_cursor_execute", waiting)
        second = asyncio.create_task(take_out(other, how, "ines"))
        await asyncio.wait_for(asked.wait(), 10)
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        await one.commit()
        with pytest.raises(LastAdmin):
            await asyncio.wait_for(second, 10)
        await other.rollback()


async def take_out(session: Any, how: str, username: str) -> None:
    library = await get(session, LIB)
    if how == "demote":
        await team.set_person(session, library, username, AccessLevel.READ)
    else:
        await team.remove_person(session, library, username)


async def test_who_was_made_the_only_admin_meanwhile_stays_one(app: FastAPI) -> None:
    """The grant is newer than the question that waited for it."""
    database: Database = app.state.database
    async with database.sessions() as one, database.sessions() as other:
        library = await get(one, LIB)
        await team.set_person(one, library, "ada", AccessLevel.ADMIN)
        await team.set_person(one, library, "ines", AccessLevel.READ)

        second = asyncio.create_task(take_out(other, "demote", "ada"))
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        await one.commit()

        with pytest.raises(LastAdmin):
            await asyncio.wait_for(second, 10)
        await other.rollback()


async def test_at_least_one_admin_is_left_however_many_leave_at_once(
    http: httpx.AsyncClient,
) -> None:
    for name in ("ada", "bob"):
        assert (await put(http, f"user/{name}", "admin")).status_code == 200

    answers = await asyncio.gather(
        *(
            http.put(f"{TEAM}user/{name}/", json={"access_level": "read"}, headers=STAFF)
            for name in ("ines", "ada", "bob")
        )
    )

    assert sorted(answer.status_code for answer in answers) == [200, 200, 400]
    assert [level for _, level in await levels(http)].count("admin") == 1


async def test_a_changed_grant_changes_no_role(http: httpx.AsyncClient) -> None:
    await put(http, "user/ada", "admin")

    assert (await put(http, "user/ines", "read")).status_code == 200

    # She is still the library_admin that its creator became.
    assert (await http.get(f"{V2}/{LIB}/", headers=INES)).json()["can_edit_library"] is True
