"""Every route of the service, sent what no client should send: never a failure, nothing stored."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from tests.libraries.conftest import STAFF
from tests.libraries.test_deletion_races import LIB, UNIT, Hands, block
from tests.libraries.test_publishing import query

NONE = "01970000-0000-7000-8000-000000000000"
TEXTS = [
    "\x00", "a\x00b", "1" + "0" * 30, "-1", "0", "9" * 400, "x" * 20_000, "../../etc/passwd",
    "\ud800", "💥", "%", "'; drop table library --", " ", ".", "..", "NaN", "1e400", "٣",
    "lib:R:gone:x", "lb:R:gone:problem", "lb:Else:where:problem:p0", "lct:R:gone:unit:nothing",
    "lct:R:gone:section:u", "lb:R:gone:problem:p0\n", "lib:R:GONE", NONE, "true", "[]",
]  # fmt: skip
IN_PATHS = [
    "\x00", "a\x00b", "1" + "0" * 30, "-1", "x" * 2000, "\ud800", "💥", "lib:R:gone:x",
    "lb:Else:where:problem:p0", "lct:R:gone:section:u", "lb:R:gone:problem:p0\n", NONE,
]  # fmt: skip
DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, -1, 10**30, 1e300, "", [], {}, [None], [[]], [1], {"a": 1}, DEEP, ["\x00"],
    ["\ud800"], ["lb:Else:where:problem:p0"], ["x" * 5000], {"\x00": "\x00"}, "\x00", "a\x00b",
    "9" * 400, "x" * 20_000, "\ud800", "..", "lct:R:gone:section:u", NONE, " ",
]  # fmt: skip
LONG: list[Any] = [["a"] * 10**5, list(range(10**5)), "x" * 10**6]
RAW = [
    b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000,
    b'{"title": 1e999}', b'{"title": NaN}', b'"\\ud800"', b"true", b"[]",
    b'{"usage_keys": "\\u0000"}',
]  # fmt: skip
# What is written and delivered beside requests.
BESIDE = {"person", "outbox", "event_outbox"}
AT_ONCE = 6
GOOD: dict[str, str] = {
    "lib_key": LIB, "usage_key": block(0), "container_key": UNIT, "code": "c",
    "path": "static/a", "version_uuid": NONE, "publish_log_uuid": NONE, "number": "0",
    "other": "0", "position": "0", "username": "ines", "group": "g", "name": "components",
    "ident": block(0), "content_id": NONE, "staged_id": NONE, "task_id": NONE, "export_id": NONE,
    "assignment_id": NONE,
}  # fmt: skip
# They ask the dispatcher, which is away here.
AWAY = {
    ("post", "/api/libraries/v2/{lib_key}/commit/"),
    ("delete", "/api/libraries/v2/{lib_key}/"),
}
Request = tuple[str, bytes | None, dict[str, str]]


def quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def paths(path: str, names: list[str]) -> Iterator[str]:
    """The path with one part after the other replaced by what it should not be."""
    good = {name: quoted(GOOD[name]) for name in names}
    yield path.format(**good)
    for name in names:
        for text in IN_PATHS:
            yield path.format(**(good | {name: quoted(text)}))


def sample(schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The properties of a body, each with something."""
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    values = {
        "title": "T", "description": "", "usage_keys": [block(0)], "collection_keys": ["c"],
        "olx": "<problem/>", "display_name": "D", "container_type_code": "unit", "tags": ["a"],
        "block_type": "problem", "definition_id": "n", "access_level": "read", "org": "R",
        "email": "a@example.test", "usage_key": block(0), "items": [block(0)], "keys": [block(0)],
        "mode": "copy", "collections": [], "data": "", "metadata": {"a": 1},
        "pinned_version_num": 1,
    }  # fmt: skip
    return {name: values.get(name) for name in schema.get("properties", {})}


def bodies(operation: dict[str, Any], known: dict[str, Any]) -> Iterator[bytes]:
    found = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if found is None:
        return
    yield from RAW
    good = sample(found["schema"], known)
    for value in VALUES:
        yield json.dumps(value).encode()
        for name in good:
            yield json.dumps(good | {name: value}).encode()
    for value in LONG:
        for name in good:
            yield json.dumps(good | {name: value}).encode()


def requests(
    method: str, path: str, operation: dict[str, Any], known: dict[str, Any]
) -> Iterator[Request]:
    parameters = operation.get("parameters", [])
    names = [one["name"] for one in parameters if one["in"] == "path"]
    plain = [*paths(path, names)]
    for one in plain:
        yield one, None, {}
    asked = [one["name"] for one in parameters if one["in"] == "query"] or ["task_id"]
    for name in asked:
        for text in TEXTS:
            yield f"{plain[0]}?{name}={quoted(text)}", None, {}
    as_json = {"Content-Type": "application/json"}
    for body in bodies(operation, known):
        yield plain[0], body, as_json
    if "requestBody" not in operation and method != "get":
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "application/json"):
            for body in (b"", b"--x\r\n", b"\x00" * 100, *NO_PARTS):
                yield plain[0], body, {"Content-Type": kind}


def part(disposition: str, data: bytes) -> bytes:
    head = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    return head + data + b"\r\n--x--\r\n"


NO_PARTS = [
    part('name="file"', b"text, not a file"),
    part('name="file"; filename="a\x00b.zip"', b"x"),
    part('name="content"', b"text, not a file"),
    part('name="other"; filename="a"', b"x"),
    part("", b"x"),
]


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete"])
async def test_whatever_is_sent_to_any_route_is_refused_or_done(
    http: httpx.AsyncClient, app: FastAPI, method: str
) -> None:
    await Hands(http).make()
    document = app.openapi()
    known = document["components"]["schemas"]
    found: list[Any] = []
    for path, operations in document["paths"].items():
        if method in operations:
            found += await swept(http, app, method, path, operations[method], known)

    assert found == []


async def swept(
    http: httpx.AsyncClient,
    app: FastAPI,
    method: str,
    path: str,
    operation: dict[str, Any],
    known: dict[str, Any],
) -> list[Any]:
    """What one operation did wrong."""
    before = await rows(app)
    turn = asyncio.Semaphore(AT_ONCE)

    async def send(request: Request) -> int:
        where, body, headers = request
        async with turn:
            answer = await http.request(method, where, content=body, headers=STAFF | headers)
        return answer.status_code

    sent = [*requests(method, path, operation, known)]
    statuses = await asyncio.gather(*(send(request) for request in sent))

    away = {503} if (method, path) in AWAY else set()
    wrong = [
        (method, where, (body or b"")[:80], status)
        for (where, body, _), status in zip(sent, statuses, strict=True)
        if status >= 500 and status not in away
    ]
    if (method == "get" or min(statuses) >= 400) and not away:
        after = await rows(app)
        if after != before:
            changed = {name for name, count in after.items() if count != before.get(name)}
            wrong.append((method, path, "stored", changed))
    return wrong


async def rows(app: FastAPI) -> dict[str, int]:
    """How many rows every table has; who calls is written down beside the requests."""
    async with app.state.database.sessions() as session:
        tables = await query(session, "select tablename from pg_tables where schemaname = 'public'")
        names = sorted(name for (name,) in tables if name not in BESIDE)
        counts = ", ".join(f'(select count(*) from "{name}")' for name in names)
        [found] = await query(session, f"select {counts}")
    return dict(zip(names, found, strict=True))
