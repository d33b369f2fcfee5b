"""Scenarios of the contract that no other test tells whole. contract: libraries §10

docs/compatibility.md says which test has which scenario.
"""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI

from services.libraries.states import Role
from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2
from tests.libraries.test_api import BLOCK_FIELDS, FIELDS, LIB, STRANGER, Author, author, key
from tests.libraries.test_bad_input import GOOD, quoted
from tests.libraries.test_deletion_races import Hands

__all__ = ["author"]
CONTAINER_FIELDS = [
    *(name for name in BLOCK_FIELDS if name != "block_type"), "container_type_code",
    "container_type",
]  # fmt: skip
OPEN = {
    # Rows are filtered by what one may view, or it is one's own.
    ("get", "/api/libraries/v2/"), ("get", "/api/libraries/v2/search/"),
    ("get", "/api/libraries/v2/restore/"), ("get", "/api/libraries/v2/restores/"),
    ("delete", "/api/libraries/v2/restore/"), ("post", "/api/libraries/v2/temp_files/"),
    ("get", "/api/libraries/v2/resources/"),
    # Everybody may ask what they may do.
    ("get", "/api/libraries/v2/{lib_key}/permissions/"),
}  # fmt: skip


async def test_5_a_new_title_leaves_the_description(author: Author) -> None:
    await author.http.patch(f"{V2}/{LIB}/", json={"description": "About it"}, headers=STAFF)

    answer = await author.http.patch(f"{V2}/{LIB}/", json={"title": "New"}, headers=STAFF)

    assert list(answer.json()) == FIELDS
    shown = await author.library()
    assert (shown["title"], shown["description"]) == ("New", "About it")
    for empty in ({"json": {}}, {"content": b""}):
        nothing = await author.http.patch(f"{V2}/{LIB}/", headers=STAFF, **empty)  # type: ignore[arg-type]
        assert (nothing.status_code, nothing.json()["updated"]) == (200, shown["updated"])


@pytest.mark.parametrize(
    "field", ["title", "description", "license", "allow_public_learning", "allow_public_read"]
)
async def test_a_change_to_null_is_refused(author: Author, field: str) -> None:
    before = await author.library()

    answer = await author.http.patch(
        f"{V2}/{LIB}/", json={"title": "New", field: None}, headers=STAFF
    )

    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert await author.library() == before


async def test_8_whatever_order_is_bogus_is_the_default(author: Author) -> None:
    for org, slug, title in (("B", "b", "1"), ("A", "z", "2"), ("A", "a", "3")):
        await author.create(org=org, slug=slug, title=title)

    async def listed(**params: str) -> list[str]:
        return [row["id"] for row in (await author.get("", **params)).json()]

    default = ["lib:A:a", "lib:A:z", "lib:B:b", LIB]
    assert await listed() == await listed(order="bogus") == await listed(order="") == default
    assert await listed(order="title") == ["lib:B:b", "lib:A:z", "lib:A:a", LIB]
    assert await listed(order="-title") == [LIB, "lib:A:a", "lib:A:z", "lib:B:b"]
    assert await listed(order="-created") == ["lib:A:a", "lib:A:z", "lib:B:b", LIB]
    assert await listed(org="A") == ["lib:A:a", "lib:A:z"]


async def test_23_twenty_one_mebibytes_are_too_many(author: Author) -> None:
    await author.block()
    where = f"{V2}/blocks/{key()}/assets/static/a.bin"

    big = await author.http.put(where, files={"content": b"x" * (21 << 20)}, headers=STAFF)
    full = await author.http.put(where, files={"content": b"x" * (20 << 20)}, headers=STAFF)

    assert (big.status_code, big.json()) == (400, ["File too big"])
    assert (full.status_code, full.json()["size"]) == (200, 20 << 20)


async def test_25_nobody_gets_anything_at_any_route_without_a_grant(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    """Also those that this service adds; whoever has no token is told 401, or 403 (§2.2)."""
    await Hands(http).make()
    wrong = []
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            names = [one["name"] for one in operation.get("parameters", []) if one["in"] == "path"]
            where = path.format(**{name: quoted(GOOD[name]) for name in names})
            stranger = await http.request(method, where, headers=STRANGER)
            nobody = await http.request(method, where)
            collections = "/collections/" in path and "{lib_key}" in path
            if nobody.status_code != (403 if collections else 401):
                wrong.append((method, path, "nobody", nobody.status_code))
            mine = (method, path) in OPEN or "/content-staging/" in path
            if not mine and stranger.status_code not in (403, 404, 400):
                wrong.append((method, path, "stranger", stranger.status_code))
            if "{lib_key}" in path and not mine and stranger.status_code != 403:
                wrong.append((method, path, "stranger", stranger.status_code))

    assert wrong == []


async def test_52_a_contributor_edits_and_reverts_but_publishes_nothing(author: Author) -> None:
    await author.block()
    carla = as_user("carla")
    await author.http.put("/api/libraries-admin/v1/people/carla/", json={}, headers=STAFF)
    role = {"username": "carla", "role": Role.CONTRIBUTOR, "scope": LIB}
    made = await author.http.post("/api/libraries-admin/v1/roles/", json=role, headers=STAFF)
    assert made.status_code == 200, made.text

    async def call(method: str, path: str, body: Any = None) -> int:
        answer = await author.http.request(method, f"{V2}/{path}", json=body, headers=carla)
        return answer.status_code

    assert await call("POST", f"blocks/{key()}/olx/", {"olx": "<problem>1</problem>"}) == 200
    assert await call("POST", f"blocks/{key()}/publish/") == 403
    assert await call("POST", f"{LIB}/commit/") == 403
    assert await call("DELETE", f"{LIB}/commit/") == 200


FIELD = "This field is required."
BLOCK, UNIT = "blocks/{block}", "containers/{unit}"
# Path, method, body, status, and what exactly is answered; contract: libraries §2.4, §3.2 to §3.11
MISTAKES: list[tuple[str, str, Any, int, Any]] = [
    ("POST", "", {"slug": "x", "title": "T", "description": ""}, 400, {"org": [FIELD]}),
    ("POST", "", {"org": "a b", "slug": "x", "title": "T", "description": ""}, 400, {"org": [
        'Enter a valid "slug" consisting of letters, numbers, underscores or hyphens.']}),
    ("POST", "", {"org": "A", "slug": "a b", "title": "T", "description": ""}, 400, {"slug": [
        "Enter a valid “slug” consisting of Unicode letters, numbers, underscores, or hyphens."]}),
    ("POST", "", {"org": "A", "slug": "x", "title": " ", "description": ""}, 400,
     {"title": ["This field may not be blank."]}),
    ("POST", "", {"org": "A", "slug": "x", "title": "T", "description": "", "license": "x"}, 400,
     {"license": ['"x" is not a valid choice.']}),
    ("POST", "", {"org": "A", "slug": "x", "title": "T", "description": "",
                  "learning_package": 999}, 400,
     {"learning_package": ['Invalid pk "999" - object does not exist.']}),
    ("POST", "{lib}/team/", {"email": "x@example.test", "access_level": "read"}, 400,
     {"email": "We could not find a user with that email address."}),
    ("POST", "{lib}/team/", {"email": "x@example.test", "access_level": "x"}, 400,
     {"access_level": ['"x" is not a valid choice.']}),
    ("PUT", "{lib}/team/user/nobody/", {"access_level": "read"}, 404, None),
    ("PUT", "{lib}/team/user/ines/", {"access_level": "admin"}, 400,
     ["Cannot change or remove the access level for the only admin."]),
    ("DELETE", "{lib}/team/user/ines/", None, 400,
     ["Cannot change or remove the access level for the only admin."]),
    ("PUT", "{lib}/team/group/none/", {"access_level": "read"}, 404, None),
    ("DELETE", "{lib}/team/group/none/", None, 404, None),
    ("GET", "{lib}/publish_history_entries/", None, 400,
     {"error": "scope_entity_key and publish_log_uuid are required."}),
    ("GET", "{lib}/publish_history_entries/?scope_entity_key={block}&publish_log_uuid=x", None,
     400, {"error": "Invalid publish_log_uuid: 'x'"}),
    ("GET", "{lib}/publish_history_entries/?scope_entity_key=x&publish_log_uuid={none}", None,
     400, {"error": "Invalid scope_entity_key: 'x'"}),
    ("GET", "{lib}/publish_history_entries/?scope_entity_key={block}&publish_log_uuid={none}",
     None, 200, []),
    ("GET", "{lib}/backup/", None, 400, {"task_id": "This field is required."}),
    ("GET", "{lib}/backup/?task_id={none}", None, 404,
     {"detail": "No backup found for this library."}),
    ("GET", "restore/", None, 400, {"task_id": [FIELD]}),
    ("GET", "restore/?task_id=x", None, 400, {"task_id": ["Must be a valid UUID."]}),
    ("GET", "restore/?task_id={none}", None, 404, None),
    ("POST", "{lib}/blocks/", {"block_type": "problem", "definition_id": "a b"}, 400,
     {"definition_id": ["Enter a valid “slug” consisting of Unicode letters, numbers, "
                        "underscores, or hyphens."]}),
    ("POST", "{lib}/blocks/", {"block_type": "vertical", "definition_id": "v"}, 400,
     {"block_type": 'The "vertical" XBlock (ID: "v") has children, '
                    "so it is not supported in content libraries."}),
    ("POST", "{lib}/blocks/", {"definition_id": "v"}, 400, {"block_type": [FIELD]}),
    ("PATCH", BLOCK + "/collections/", {}, 400, {"collection_keys": [FIELD]}),
    ("PATCH", BLOCK + "/collections/", {"collection_keys": []}, 200, {"count": 0}),
    ("POST", BLOCK + "/olx/", {}, 400, {"olx": [FIELD]}),
    ("POST", BLOCK + "/olx/", {"olx": " "}, 400, {"olx": ["This field may not be blank."]}),
    ("PUT", BLOCK + "/assets/static/", None, 400, ["Invalid file path"]),
    ("GET", BLOCK + "/assets/static/none", None, 404, None),
    ("DELETE", BLOCK + "/assets/static/none", None, 204, None),
    ("POST", "{lib}/containers/", {"display_name": "D"}, 400, {"container_type_code": [FIELD]}),
    ("POST", "{lib}/containers/", {"container_type": "unit"}, 400, {"display_name": [FIELD]}),
    ("PATCH", UNIT + "/", {"display_name": " "}, 400,
     {"display_name": ["This field may not be blank."]}),
    ("POST", UNIT + "/children/", {"usage_keys": []}, 400,
     {"usage_keys": ["This list may not be empty."]}),
    ("POST", UNIT + "/children/", {}, 400, {"usage_keys": [FIELD]}),
    ("GET", UNIT + "/children/?published=true", None, 200, []),
    ("POST", "{lib}/collections/", {"title": "c"}, 400, {"description": [FIELD]}),
    ("PUT", "{lib}/collections/c/", {"title": "c"}, 405, {"detail": 'Method "PUT" not allowed.'}),
    ("GET", "{lib}/collections/c/items/", None, 405, {"detail": 'Method "GET" not allowed.'}),
    ("PATCH", "{lib}/collections/c/items/", {}, 400, {"usage_keys": [FIELD]}),
    ("PATCH", "{lib}/collections/none/items/", {"usage_keys": [key()]}, 404, None),
    ("DELETE", "{lib}/blocks/", None, 405, {"detail": 'Method "DELETE" not allowed.'}),
    ("GET", "{lib}/blocks/?page=99", None, 404, {"detail": "Invalid page."}),
    ("GET", "{lib}/blocks/?page_size=0", None, 200, None),
    ("GET", "lib:CL-TEST:none/", None, 404, None),
    ("GET", "blocks/lb:CL-TEST:lib-1:problem:none/", None, 404, None),
    ("DELETE", "blocks/lb:CL-TEST:lib-1:problem:none/", None, 404, None),
    ("POST", "blocks/lb:CL-TEST:lib-1:problem:none/restore/", None, 404, None),
    ("GET", "containers/lct:CL-TEST:lib-1:section:u/", None, 404, None),
]  # fmt: skip


async def prepared(author: Author) -> dict[str, str]:
    await author.block()
    unit = {"container_type": "unit", "display_name": "U", "slug": "u"}
    await author.post(f"{LIB}/containers/", unit)
    await author.post(f"{LIB}/collections/", {"title": "c", "description": ""})
    none = "01970000-0000-7000-8000-000000000000"
    return {"lib": LIB, "block": key(), "unit": "lct:CL-TEST:lib-1:unit:u", "none": none}


async def test_every_mistake_is_told_in_the_words_of_the_contract(author: Author) -> None:
    names = await prepared(author)
    wrong = []
    for method, path, body, status, expected in MISTAKES:
        where = f"{V2}/{path.format(**names)}"
        sent = {} if body is None else {"json": body}
        answer = await author.http.request(method, where, headers=STAFF, **sent)
        told = answer.json() if expected is not None else None
        if (answer.status_code, told) != (status, expected):
            wrong.append((method, path, body, answer.status_code, answer.text))

    assert wrong == []


@pytest.mark.parametrize("where", [f"{LIB}/", f"{LIB}/blocks/", f"{LIB}/collections/"])
async def test_what_is_no_json_is_told_so(author: Author, where: str) -> None:
    method = "PATCH" if where == f"{LIB}/" else "POST"
    headers = STAFF | {"Content-Type": "application/json"}

    answer = await author.http.request(method, f"{V2}/{where}", content=b"{", headers=headers)

    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("JSON parse error - ")


async def test_answers_have_the_fields_of_the_contract(author: Author) -> None:
    names = await prepared(author)
    await author.post(f"containers/{names['unit']}/children/", {"usage_keys": [key()]})
    await author.post(f"containers/{names['unit']}/publish/")

    async def keys(path: str) -> list[str]:
        found = (await author.get(path)).json()
        return list(found[0] if isinstance(found, list) else found)

    entry = [
        "contributor", "changed_at", "title", "item_type", "action", "old_version", "new_version"
    ]  # fmt: skip
    group = [
        "publish_log_uuid", "published_by", "published_at", "contributors",
        "direct_published_entities", "scope_entity_key",
    ]  # fmt: skip
    levels = ["sections", "subsections", "units", "components", "object_key"]
    page = ["next", "previous", "count", "num_pages", "current_page", "start", "results"]
    collection = {
        "key", "id", "title", "description", "enabled", "created", "modified", "learning_package",
        "created_by", "entities",
    }  # fmt: skip
    assert sorted(await keys(f"containers/{names['unit']}/")) == sorted(CONTAINER_FIELDS)
    assert await keys(f"containers/{names['unit']}/children/") == BLOCK_FIELDS
    assert await keys(f"blocks/{key()}/") == BLOCK_FIELDS
    assert await keys(f"{LIB}/blocks/") == page
    assert await keys(f"{LIB}/collections/") == page
    assert set(await keys(f"{LIB}/collections/c/")) == collection
    assert await keys(f"{LIB}/team/") == ["access_level", "email", "username", "group_name"]
    assert await keys(f"{LIB}/block_types/") == ["block_type", "display_name"]
    for item in (f"blocks/{key()}", f"containers/{names['unit']}"):
        assert await keys(f"{item}/hierarchy/") == levels
        assert sorted(await keys(f"{item}/creation_entry/")) == sorted(entry)
        assert sorted(await keys(f"{item}/publish_history/")) == sorted(group)


SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
MICROSECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def test_dates_have_whole_seconds_but_in_collections(author: Author) -> None:
    """contract: libraries §2.3"""
    await prepared(author)
    await author.publish_all()

    library = await author.library()
    block = (await author.get(f"blocks/{key()}/")).json()
    [group] = (await author.get(f"blocks/{key()}/publish_history/")).json()
    collection = (await author.get(f"{LIB}/collections/c/")).json()

    for name in ("created", "updated", "last_published"):
        assert SECONDS.fullmatch(library[name]), name
    for name in ("created", "modified", "last_published", "last_draft_created"):
        assert SECONDS.fullmatch(block[name]), name
    assert SECONDS.fullmatch(group["published_at"])
    for name in ("created", "modified"):
        assert MICROSECONDS.fullmatch(collection[name]), name


async def test_who_has_no_token_is_told_how_to_come(author: Author) -> None:
    """contract: libraries §2.2"""
    answer = await author.http.get(f"{V2}/{LIB}/")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'JWT realm="api"'
    assert answer.json() == {"detail": "Authentication credentials were not provided."}
    refused = await author.http.get(f"{V2}/{LIB}/", headers=STRANGER)
    assert refused.json() == {"detail": "You do not have permission to perform this action."}


async def test_pages_link_to_each_other_with_what_was_asked(author: Author) -> None:
    """contract: libraries §2.5"""
    for number in range(5):
        await author.block(f"p{number}")

    page = (await author.get(f"{LIB}/blocks/", page="2", page_size="2", text_search="p")).json()

    assert (page["count"], page["num_pages"], page["current_page"], page["start"]) == (5, 3, 2, 2)
    for name, number in (("next", "3"), ("previous", "1")):
        asked = parse_qs(urlsplit(page[name]).query)
        asked.setdefault("page", ["1"])
        assert asked == {"page": [number], "page_size": ["2"], "text_search": ["p"]}
    sizes = {"0": 10, "-3": 10, "x": 10, "500": 100, "3": 3}
    for size, meant in sizes.items():
        found = (await author.get(f"{LIB}/blocks/", page_size=size)).json()
        assert found["num_pages"] == -(-5 // meant)
