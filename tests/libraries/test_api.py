"""Libraries and blocks over HTTP. contract: libraries §10 (numbers are its scenarios)"""

from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from services.libraries import libraries, publishing
from shared.database import utc_now
from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2

LIB = "lib:CL-TEST:lib-1"
FIELDS = [
    "id", "org", "slug", "title", "description", "num_blocks", "last_published", "published_by",
    "last_draft_created", "last_draft_created_by", "allow_public_learning", "allow_public_read",
    "has_unpublished_changes", "has_unpublished_deletes", "license", "can_edit_library",
    "created", "updated",
]  # fmt: skip
BLOCK_FIELDS = [
    "id", "display_name", "published_display_name", "tags_count", "last_published",
    "published_by", "last_draft_created", "last_draft_created_by", "has_unpublished_changes",
    "created", "created_by", "modified", "collections", "can_stand_alone", "block_type",
]  # fmt: skip


class Author:
    """Calls the API as one person."""

    def __init__(self, http: httpx.AsyncClient, app: FastAPI) -> None:
        self.http, self.app = http, app

    async def create(self, **overrides: Any) -> httpx.Response:
        body = {"org": "CL-TEST", "slug": "lib-1", "title": "L", "description": "", **overrides}
        return await self.http.post(f"{V2}/", json=body, headers=STAFF)

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.http.get(f"{V2}/{path}", params=params, headers=STAFF)

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.http.post(f"{V2}/{path}", json=body or {}, headers=STAFF)

    async def delete(self, path: str) -> httpx.Response:
        return await self.http.delete(f"{V2}/{path}", headers=STAFF)

    async def block(self, code: str = "p1", block_type: str = "problem") -> httpx.Response:
        body = {"block_type": block_type, "definition_id": code}
        return await self.post(f"{LIB}/blocks/", body)

    async def publish_all(self) -> None:
        """What the dispatched task does, without a dispatcher."""
        async with self.app.state.database.sessions.begin() as session:
            library = await libraries.get(session, LIB)
            await publishing.publish_all(session, library, user="ines", now=utc_now())

    async def library(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get(f"{LIB}/")).json()
        return found


@pytest_asyncio.fixture
async def author(http: httpx.AsyncClient, app: FastAPI) -> Author:
    author = Author(http, app)
    assert (await author.create()).status_code == 200
    return author


def key(code: str = "p1", block_type: str = "problem") -> str:
    return f"lb:CL-TEST:lib-1:{block_type}:{code}"


async def test_1_a_new_library(http: httpx.AsyncClient, app: FastAPI) -> None:
    answer = await Author(http, app).create(description="d")

    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == FIELDS
    assert (body["id"], body["num_blocks"]) == (LIB, 0)
    assert (body["has_unpublished_changes"], body["has_unpublished_deletes"]) == (False, False)


async def test_2_the_same_library_again(author: Author) -> None:
    answer = await author.create()

    assert answer.status_code == 400
    assert answer.json() == {"slug": "A library with that ID already exists."}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"slug": "a b"}, "slug"),
        ({"slug": "a.b"}, "slug"),
        ({"slug": "x" * 51}, "slug"),
        ({"org": "a.b"}, "org"),
        ({"org": "é"}, "org"),
        ({"title": "  "}, "title"),
        ({"title": "x" * 501}, "title"),
        ({"title": "a\x00b"}, "title"),
        ({"title": None}, "title"),
        ({"description": 7}, "description"),
        ({"license": "MIT"}, "license"),
        ({"allow_public_read": "perhaps"}, "allow_public_read"),
    ],
)
async def test_3_bad_fields_are_named_and_nothing_is_stored(
    http: httpx.AsyncClient, app: FastAPI, wrong: dict[str, Any], field: str
) -> None:
    author = Author(http, app)

    answer = await author.create(**wrong)

    assert answer.status_code == 400
    assert field in answer.json()
    assert (await author.get("")).json() == []


async def test_what_is_too_long_is_told_in_characters(author: Author) -> None:
    for field, most in (("slug", 50), ("org", 255), ("title", 500), ("description", 10_000)):
        answer = await author.create(**{field: "x" * (most + 1)})
        assert answer.json() == {field: [f"Ensure this field has no more than {most} characters."]}
    full = await author.create(slug="s" * 50, title=f" {'t' * 500} ", description="d" * 10_000)
    assert full.status_code == 200


async def test_only_types_that_are_offered_are_made_where_that_is_set(author: Author) -> None:
    settings = author.app.state.settings
    settings.block_types, settings.only_block_types = ["problem"], True
    assert (await author.block("p1", "problem")).status_code == 200

    refused = await author.post(f"{LIB}/blocks/", {"block_type": "video", "definition_id": "v1"})

    why = 'The "video" XBlock (ID: "v1") is of a type that is not allowed here.'
    assert (refused.status_code, refused.json()) == (400, {"block_type": why})
    offered = (await author.get(f"{LIB}/block_types/")).json()
    assert [one["block_type"] for one in offered] == ["problem"]
    settings.only_block_types = False
    assert (await author.block("v1", "video")).status_code == 200


async def test_4_a_unicode_slug(author: Author) -> None:
    assert (await author.create(slug="ülib")).json()["id"] == "lib:CL-TEST:ülib"
    assert (await author.get("lib:CL-TEST:ülib/")).status_code == 200


async def test_5_changing_the_title_keeps_the_rest(author: Author) -> None:
    answer = await author.http.patch(f"{V2}/{LIB}/", json={"title": "New"}, headers=STAFF)

    assert (answer.status_code, answer.json()["title"]) == (200, "New")
    assert (await author.library())["title"] == "New"
    assert (await author.library())["can_edit_library"] is True


async def test_7_8_9_the_list(author: Author) -> None:
    for number in range(2, 13):
        await author.create(slug=f"lib-{number:02}", title=f"T{number:02}", description="findme")

    page = (await author.get("", pagination="true")).json()
    assert (len(page["results"]), page["count"], page["num_pages"]) == (10, 12, 2)
    assert (page["start"], page["current_page"], page["previous"]) == (0, 1, None)
    assert page["next"].startswith("http://lyceum.test/api/libraries/v2/?")
    assert len((await author.get("")).json()) == 10
    last = (await author.get("", pagination="true", page="last")).json()
    assert (last["current_page"], len(last["results"])) == (2, 2)
    for wrong in ("0", "3", "x", "-1", "99999999999999"):
        missing = await author.get("", page=wrong)
        assert (missing.status_code, missing.json()) == (404, {"detail": "Invalid page."})
    ordered = (await author.get("", order="-title")).json()
    assert ordered[0]["title"] == "T12"
    assert (await author.get("", order="bogus")).status_code == 200
    for words in ("LIB-05", "cl-test", "t05", "FINDME", "%"):
        found = (await author.get("", text_search=words, page_size="100")).json()
        assert len(found) == {"LIB-05": 1, "cl-test": 12, "t05": 1, "FINDME": 11, "%": 0}[words]


async def test_numbers_of_pages_may_begin_with_noughts(author: Author) -> None:
    for path in ("", f"{LIB}/blocks/"):
        for page in ("01", "0" * 20 + "1"):
            assert (await author.get(path, page=page)).status_code == 200
        for page in ("0" * 11 + "1" + "9" * 30, "0" * 5000, "0" * 20 + "2"):
            assert (await author.get(path, page=page)).json() == {"detail": "Invalid page."}
    await author.create(slug="lib-2")
    for size, found in (("0" * 20 + "1", 1), ("0" * 20, 2), ("9" * 50, 2)):
        assert len((await author.get("", page_size=size)).json()) == found


async def test_white_space_around_what_is_searched_does_not_count(author: Author) -> None:
    for words, found in ((" lib-1 ", 1), ("  ", 1), (" x", 0)):
        assert len((await author.get("", text_search=words)).json()) == found


async def test_10_11_a_block_from_creation_to_publishing(author: Author) -> None:
    made = (await author.block()).json()
    assert list(made) == BLOCK_FIELDS
    assert (made["id"], made["display_name"]) == (key(), "Blank Problem")
    assert (await author.get(f"blocks/{key()}/")).json() == made
    assert (made["has_unpublished_changes"], made["last_published"]) == (True, None)
    library = await author.library()
    assert (library["has_unpublished_changes"], library["num_blocks"]) == (True, 1)

    await author.publish_all()

    block = (await author.get(f"blocks/{key()}/")).json()
    assert (block["has_unpublished_changes"], block["published_by"]) == (False, "ines")
    assert (await author.library())["last_published"] is not None


async def test_12_13_14_editing_and_reverting(author: Author) -> None:
    await author.block()
    await author.publish_all()
    saved = await author.post(f"blocks/{key()}/olx/", {"olx": ' <problem display_name="X"/> '})
    assert saved.json() == {"olx": '<problem display_name="X"/>', "version_num": 2}
    block = (await author.get(f"blocks/{key()}/")).json()
    assert (block["display_name"], block["published_display_name"]) == ("X", "Blank Problem")

    assert (await author.delete(f"{LIB}/commit/")).json() == {}

    block = (await author.get(f"blocks/{key()}/")).json()
    assert (block["display_name"], block["has_unpublished_changes"]) == ("Blank Problem", False)
    assert (await author.get(f"blocks/{key()}/olx/")).json() == {"olx": "<problem />"}
    again = await author.post(f"blocks/{key()}/olx/", {"olx": "<problem>3</problem>"})
    assert again.json()["version_num"] == 3


async def test_15_16_deleting_a_published_block(author: Author) -> None:
    await author.block()
    await author.publish_all()

    assert (await author.delete(f"blocks/{key()}/")).json() == {}
    assert (await author.get(f"blocks/{key()}/")).status_code == 404
    library = await author.library()
    assert (library["has_unpublished_changes"], library["has_unpublished_deletes"]) == (False, True)
    await author.delete(f"{LIB}/commit/")
    assert (await author.get(f"blocks/{key()}/")).status_code == 200
    await author.delete(f"blocks/{key()}/")
    await author.publish_all()
    library = await author.library()
    assert (library["has_unpublished_changes"], library["has_unpublished_deletes"]) == (
        False,
        False,
    )


async def test_17_18_19_codes_stay_taken(author: Author) -> None:
    await author.block()
    again = await author.block()
    assert (again.status_code, type(again.json())) == (400, list)
    await author.delete(f"{LIB}/commit/")
    assert (await author.get(f"blocks/{key()}/")).status_code == 404
    assert (await author.library())["num_blocks"] == 0
    assert (await author.block()).status_code == 400
    assert (await author.post(f"blocks/{key()}/restore/")).status_code == 204
    assert (await author.get(f"blocks/{key()}/")).status_code == 200


async def test_20_the_limit(author: Author) -> None:
    author.app.state.settings.most_blocks = 1
    await author.block("p1")

    answer = await author.block("p2")

    assert answer.status_code == 400
    assert answer.json() == ["Library cannot have more than 1 Components."]


BOMB = (
    '<!DOCTYPE p [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<problem>&b;</problem>"
)


@pytest.mark.parametrize(
    "olx",
    [
        "<html/>",
        "<problem>",
        "not xml",
        BOMB,
        '<!DOCTYPE p SYSTEM "file:///etc/passwd"><problem/>',
        "<?xml version='1.0' encoding='utf-8'?><problem/>",
        "<problem>\x00</problem>",
        "<problem>" + "<a>" * 500 + "</a>" * 500 + "</problem>",
        "",
        "   ",
    ],
)
async def test_21_bad_olx_changes_nothing(author: Author, olx: str) -> None:
    await author.block()

    answer = await author.post(f"blocks/{key()}/olx/", {"olx": olx})

    assert answer.status_code == 400
    assert (await author.get(f"blocks/{key()}/olx/")).json() == {"olx": "<problem />"}


async def test_22_static_files(author: Author) -> None:
    await author.block()
    path = f"blocks/{key()}/assets/static/a b.txt"
    put = await author.http.put(f"{V2}/{path}", files={"content": b"hello"}, headers=STAFF)
    assert (put.status_code, put.json()["path"], put.json()["size"]) == (200, "static/a_b.txt", 5)
    listed = (await author.get(f"blocks/{key()}/assets/")).json()["files"]
    assert listed == [put.json()]

    got = await author.http.get(put.json()["url"], headers=STAFF)
    assert (got.content, got.headers["content-type"]) == (b"hello", "text/plain; charset=utf-8")
    assert got.headers["x-open-edx-component-ref"] == "xblock.v1:problem:p1"
    assert got.headers["x-open-edx-component-version-num"] == "2"
    part = await author.http.get(put.json()["url"], headers=STAFF | {"Range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, b"el")
    assert part.headers["content-range"] == "bytes 1-2/5"
    head = await author.http.head(put.json()["url"], headers=STAFF)
    assert (head.content, head.headers["content-length"]) == (b"", "5")
    beyond = await author.http.get(put.json()["url"], headers=STAFF | {"Range": "bytes=9-"})
    assert beyond.status_code == 416
    for kept, status in ((got.headers["etag"], 206), ('"of another content"', 200)):
        more = STAFF | {"Range": "bytes=1-", "If-Range": kept}
        assert (await author.http.get(put.json()["url"], headers=more)).status_code == status
    senseless = await author.http.get(put.json()["url"], headers=STAFF | {"Range": "bytes=3-1"})
    assert (senseless.status_code, senseless.content) == (200, b"hello")
    told = await author.http.head(put.json()["url"], headers=STAFF | {"Range": "bytes=1-2"})
    assert (told.status_code, told.headers["content-length"]) == (200, "5")
    cached = await author.http.get(
        put.json()["url"], headers=STAFF | {"If-None-Match": got.headers["etag"]}
    )
    assert cached.status_code == 304
    draft = await author.http.get(f"/library_assets/blocks/{key()}/static/a_b.txt", headers=STAFF)
    assert draft.content == b"hello"
    olx = await author.http.get(f"/library_assets/blocks/{key()}/block.xml", headers=STAFF)
    assert olx.status_code == 404

    assert (await author.delete(f"blocks/{key()}/assets/static/a_b.txt")).status_code == 204
    assert (await author.get(f"blocks/{key()}/assets/")).json() == {"files": []}
    assert (await author.http.get(put.json()["url"], headers=STAFF)).content == b"hello"
    saved = await author.post(f"blocks/{key()}/olx/", {"olx": "<problem/>"})
    assert saved.json()["version_num"] == 4


async def test_23_24_bad_static_files(author: Author) -> None:
    await author.block()
    author.app.state.settings.most_asset_bytes = 10

    async def put(path: str, **kwargs: Any) -> httpx.Response:
        where = f"{V2}/blocks/{key()}/assets/{path}"
        return await author.http.put(where, headers=STAFF, **kwargs)

    big = await put("static/a", files={"content": b"x" * 11})
    assert (big.status_code, big.json()) == (400, ["File too big"])
    assert (await put("static/a", files={"other": b"x"})).status_code == 400
    assert (await put("static/a", json={})).status_code in (400, 415)
    for path in ("..%2Fx", "%2Fx", "a%2F%2Fb", "a%2F", "a%00b", "a%5Cb", "block.xml"):
        answer = await put(path, files={"content": b"x"})
        assert answer.status_code == 400, path
        assert answer.json() == ["Invalid file path"]
    assert (await author.get(f"blocks/{key()}/assets/")).json() == {"files": []}


STRANGER = as_user("stranger")
ROUTES = [
    ("GET", f"{LIB}/"), ("PATCH", f"{LIB}/"), ("DELETE", f"{LIB}/"), ("POST", f"{LIB}/commit/"),
    ("DELETE", f"{LIB}/commit/"), ("GET", f"{LIB}/blocks/"), ("POST", f"{LIB}/blocks/"),
    ("GET", f"{LIB}/block_types/"), ("GET", f"blocks/{key()}/"), ("DELETE", f"blocks/{key()}/"),
    ("POST", f"blocks/{key()}/olx/"), ("GET", f"blocks/{key()}/olx/"),
    ("POST", f"blocks/{key()}/publish/"), ("POST", f"blocks/{key()}/restore/"),
    ("GET", f"blocks/{key()}/assets/"), ("PUT", f"blocks/{key()}/assets/static/a"),
    ("DELETE", f"blocks/{key()}/assets/static/a"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_25_47_who_gets_what(author: Author, method: str, path: str) -> None:
    await author.block()

    async def call(headers: dict[str, str], where: str = path) -> int:
        answer = await author.http.request(method, f"{V2}/{where}", headers=headers)
        return answer.status_code

    assert await call({}) == 401
    assert await call(STRANGER) == 403
    assert await call(STRANGER, path.replace("lib-1", "lib-9")) == 404
    assert await call(STRANGER, path.replace("CL-TEST", "CL TEST")) == 404
    assert (await author.get("")).status_code == 200
    assert (await author.http.get(f"{V2}/", headers=STRANGER)).json() == []


async def test_only_those_who_may_create_do(http: httpx.AsyncClient) -> None:
    body = {"org": "A", "slug": "b", "title": "c", "description": ""}

    assert (await http.post(f"{V2}/", json=body, headers=STRANGER)).status_code == 403
    assert (await http.post(f"{V2}/", json=body)).status_code == 401


@pytest.mark.parametrize(
    "wrong",
    ["lib:a", "lib:a:b:c", "lb:a:b:problem:c", "course-v1:a+b+c", "%00", "lib:a:b%0A", "lib:A:b "],
)
async def test_malformed_keys_are_not_found(author: Author, wrong: str) -> None:
    assert (await author.get(f"{wrong}/")).status_code == 404
    assert (await author.get(f"blocks/{wrong}/")).status_code == 404


async def test_34_publishing_one_block_leaves_the_others(author: Author) -> None:
    await author.block("p1")
    await author.block("p2")

    assert (await author.post(f"blocks/{key('p1')}/publish/")).json() == {}
    assert (await author.post(f"blocks/{key('p1')}/publish/")).json() == {}

    first = (await author.get(f"blocks/{key('p1')}/")).json()
    second = (await author.get(f"blocks/{key('p2')}/")).json()
    assert (first["has_unpublished_changes"], second["has_unpublished_changes"]) == (False, True)
    assert (second["last_published"], second["published_display_name"]) == (None, None)


async def test_blocks_are_listed_searched_and_paged(author: Author) -> None:
    for number in range(12):
        await author.block(f"p{number:02}")
    await author.block("intro", "html")

    page = (await author.get(f"{LIB}/blocks/")).json()
    assert (page["count"], page["num_pages"], len(page["results"])) == (13, 2, 10)
    assert page["results"][0]["id"] == key("p00")
    only = (await author.get(f"{LIB}/blocks/", block_type="html")).json()
    assert [row["id"] for row in only["results"]] == [key("intro", "html")]
    assert (await author.get(f"{LIB}/blocks/", text_search="P03")).json()["count"] == 1
    assert (await author.get(f"{LIB}/blocks/", text_search="blank")).json()["count"] == 12
    assert (await author.get(f"{LIB}/blocks/", page="3")).status_code == 404


async def test_olx_of_any_version(author: Author) -> None:
    await author.block()
    await author.publish_all()
    await author.post(f"blocks/{key()}/olx/", {"olx": "<problem>2</problem>"})

    async def olx(suffix: str) -> httpx.Response:
        where = f"/api/xblock/v2/xblocks/{key()}{suffix}/olx/"
        return await author.http.get(where, headers=STAFF)

    assert (await olx("")).json() == {"olx": "<problem>2</problem>"}
    assert (await olx("@draft")).json() == {"olx": "<problem>2</problem>"}
    assert (await olx("@published")).json() == {"olx": "<problem />"}
    assert (await olx("@2")).json() == {"olx": "<problem>2</problem>"}
    for wrong in ("@3", "@x", "@-1", "@99999999999"):
        assert (await olx(wrong)).status_code == 404


async def test_what_is_not_supported_is_refused(author: Author) -> None:
    refused = [
        {"block_type": "vertical", "definition_id": "x"},
        {"block_type": "problem", "definition_id": "a b"},
        {"block_type": "..", "definition_id": "x"},
        {"block_type": "problem", "definition_id": "x", "parent_block": "y"},
        {"block_type": "<script>", "definition_id": "x"},
        {"block_type": "problem"},
    ]
    for body in refused:
        assert (await author.post(f"{LIB}/blocks/", body)).status_code == 400
    assert (await author.library())["num_blocks"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "a#b.txt", "a?b.txt", "100%.txt", "%2e.txt", "ü.txt", "a;b@c.txt", "a&b=c+d.txt",
        "Shot-1.00\u202fPM.txt", "می\u200cخواهم.txt", "a\u00a0b.txt",
    ],
)  # fmt: skip
async def test_a_static_file_of_any_name_is_found_at_its_url(author: Author, name: str) -> None:
    await author.block()
    where = f"{V2}/blocks/{key()}/assets/static/{quote(name)}"

    put = await author.http.put(where, files={"content": b"hello"}, headers=STAFF)

    assert (put.status_code, put.json()["path"]) == (200, f"static/{name}")
    assert put.json()["url"].isascii()
    assert (await author.http.get(put.json()["url"], headers=STAFF)).content == b"hello"
    assert (await author.http.get(where, headers=STAFF)).json() == put.json()


@pytest.mark.parametrize(
    "name",
    ["a\x7fb", "a\x01b", "a\u2028b", "a\x85b", "\u00a0a", "a\u3000", "static%2F.%2Fa", ".%2Fa"],
)
async def test_a_name_that_no_browser_could_ask_for_is_refused(author: Author, name: str) -> None:
    await author.block()
    where = f"{V2}/blocks/{key()}/assets/{quote(name, safe='%')}"

    answer = await author.http.put(where, files={"content": b"x"}, headers=STAFF)

    assert (answer.status_code, answer.json()) == (400, ["Invalid file path"])


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.srt", "application/x-subrip"), ("a.tar.gz", "application/gzip"),
        ("a.webp", "image/webp"), ("data:text/html,x", "application/octet-stream"),
    ],
)  # fmt: skip
async def test_the_type_of_a_static_file_is_the_same_on_every_machine(
    author: Author, name: str, media_type: str
) -> None:
    await author.block()
    where = f"{V2}/blocks/{key()}/assets/{quote(name)}"

    url = (await author.http.put(where, files={"content": b"x"}, headers=STAFF)).json()["url"]

    assert (await author.http.head(url, headers=STAFF)).headers["content-type"] == media_type


async def test_what_browsers_keep_of_a_static_file(author: Author) -> None:
    await author.block()
    where = f"{V2}/blocks/{key()}/assets/a.txt"
    url = (await author.http.put(where, files={"content": b"1"}, headers=STAFF)).json()["url"]
    draft = f"/library_assets/blocks/{key()}/a.txt"

    fixed, moving = [await author.http.get(one, headers=STAFF) for one in (url, draft)]

    assert fixed.headers["cache-control"] == "private, max-age=86400"
    assert moving.headers["cache-control"] == "private, no-cache"
    tag = moving.headers["etag"]
    for known, status in (
        (tag, 304), (f"W/{tag}", 304), (f'"other", {tag}', 304), ("*", 304), ('"other"', 200),
    ):  # fmt: skip
        answer = await author.http.get(draft, headers=STAFF | {"If-None-Match": known})
        assert answer.status_code == status
    await author.http.put(where, files={"content": b"2"}, headers=STAFF)
    again = await author.http.get(draft, headers=STAFF | {"If-None-Match": tag})
    assert (again.status_code, again.content) == (200, b"2")


async def test_front_ends_that_may_show_static_files_are_a_setting(author: Author) -> None:
    await author.block()
    where = f"{V2}/blocks/{key()}/assets/a.txt"
    url = (await author.http.put(where, files={"content": b"1"}, headers=STAFF)).json()["url"]

    async def policy() -> str:
        answer = await author.http.get(url, headers=STAFF)
        return str(answer.headers["content-security-policy"])

    assert await policy() == "frame-ancestors 'self'; sandbox"
    author.app.state.settings.frame_ancestors = ["https://apps.example.test"]
    assert await policy() == "frame-ancestors 'self' https://apps.example.test; sandbox"


@pytest.mark.parametrize("block_type", ["3", "-x", ".", "1abc", "a b", "<x>"])
async def test_a_type_that_no_element_can_have_is_refused(author: Author, block_type: str) -> None:
    answer = await author.block("p1", block_type)

    assert (answer.status_code, [*answer.json()]) == (400, ["block_type"])
    assert (await author.library())["num_blocks"] == 0


@pytest.mark.parametrize("blank", ["", " \n"])
async def test_blank_olx_is_told_in_the_words_of_the_contract(author: Author, blank: str) -> None:
    await author.block()

    answer = await author.post(f"blocks/{key()}/olx/", {"olx": blank})

    assert answer.status_code == 400
    assert answer.json() == {"olx": ["This field may not be blank."]}
