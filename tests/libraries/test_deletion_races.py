"""A library that is deleted while others work on it: nobody sees a failure, nothing is left."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from fastapi import FastAPI

from services.libraries.jobs import delete_library, publish_library
from services.libraries.orphans import orphan_cleanup
from shared.problems import Unavailable
from shared.testing import as_user
from tests.libraries.conftest import STAFF, V2
from tests.libraries.runs import make_task
from tests.libraries.test_publishing import query

LIB = "lib:R:gone"
ROUNDS = 6
Call = Callable[[], Awaitable[httpx.Response]]
GUEST = as_user("guest")
# What stays on purpose: who was asked for which work, what is told of it, who is known.
KEPT = {
    "alembic_version", "person", "library_task", "clipboard", "event_outbox", "outbox",
}  # fmt: skip


def block(number: int) -> str:
    return f"lb:R:gone:problem:p{number}"


UNIT, SUBSECTION = "lct:R:gone:unit:u", "lct:R:gone:subsection:s"


class Hands:
    """Everything that people do with a library, as calls that are made at any moment."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        if body is not None:
            more["json"] = body
        return await self.http.request(method, f"{V2}/{path}", headers=STAFF, **more)

    async def at(self, method: str, where: str, body: Any) -> httpx.Response:
        return await self.http.request(method, where, json=body, headers=STAFF)

    async def make(self) -> None:
        body = {"org": "R", "slug": "gone", "title": "Gone", "description": ""}
        calls: list[tuple[str, str, Any]] = [("POST", "", body)]
        for number in range(4):
            calls.append(
                ("POST", f"{LIB}/blocks/", {"block_type": "problem", "definition_id": f"p{number}"})
            )
        for kind, slug in (("unit", "u"), ("subsection", "s")):
            what = {"container_type": kind, "display_name": slug, "slug": slug}
            calls.append(("POST", f"{LIB}/containers/", what))
        calls += [
            ("POST", f"containers/{UNIT}/children/", {"usage_keys": [block(0), block(1)]}),
            ("POST", f"containers/{SUBSECTION}/children/", {"usage_keys": [UNIT]}),
            ("POST", f"{LIB}/collections/", {"title": "c", "description": ""}),
            ("PATCH", f"{LIB}/collections/c/items/", {"usage_keys": [block(0), UNIT]}),
            ("POST", f"containers/{UNIT}/copy/", {}),
            ("POST", f"containers/{SUBSECTION}/publish/", {}),
            ("POST", f"blocks/{block(3)}/publish/", {}),
        ]
        for method, path, sent in calls:
            answer = await self.call(method, path, sent)
            assert answer.status_code in (200, 204), (method, path, answer.text)

    def all(self) -> list[tuple[str, Call]]:
        return [*self._writing(), *self._reading()]

    def _writing(self) -> list[tuple[str, Call]]:
        keys = {"usage_keys": [block(2), block(3)]}
        calls: list[tuple[str, str, Any]] = [
            ("PATCH", f"{LIB}/", {"title": "New"}),
            ("POST", f"{LIB}/blocks/", {"block_type": "html", "definition_id": "n"}),
            ("POST", f"blocks/{block(0)}/olx/", {"olx": "<problem>2</problem>"}),
            ("POST", f"blocks/{block(1)}/publish/", {}),
            ("DELETE", f"blocks/{block(3)}/", None),
            ("POST", f"blocks/{block(3)}/restore/", {}),
            ("PATCH", f"blocks/{block(0)}/collections/", {"collection_keys": ["c"]}),
            ("DELETE", f"blocks/{block(0)}/assets/static/a", None),
            ("POST", f"{LIB}/containers/", {"container_type": "unit", "display_name": "more"}),
            ("PATCH", f"containers/{UNIT}/", {"display_name": "other"}),
            ("POST", f"containers/{UNIT}/children/", keys),
            ("PATCH", f"containers/{UNIT}/children/", keys),
            ("DELETE", f"containers/{UNIT}/children/", keys),
            ("POST", f"containers/{UNIT}/publish/", {}),
            ("DELETE", f"containers/{SUBSECTION}/", None),
            ("POST", f"containers/{UNIT}/copy/", {}),
            ("POST", f"{LIB}/paste_clipboard/", {}),
            ("POST", f"{LIB}/collections/", {"title": "d", "description": ""}),
            ("PATCH", f"{LIB}/collections/c/", {"title": "e"}),
            ("PATCH", f"{LIB}/collections/c/items/", keys),
            ("DELETE", f"{LIB}/collections/c/items/", keys),
            ("DELETE", f"{LIB}/collections/c/", None),
            ("POST", f"{LIB}/collections/c/restore/", {}),
            ("DELETE", f"{LIB}/commit/", None),
            ("PUT", f"{LIB}/team/user/guest/", {"access_level": "read"}),
            ("DELETE", f"{LIB}/team/user/guest/", None),
            ("POST", f"{LIB}/team/", {"email": "guest@example.test", "access_level": "read"}),
            ("PUT", f"blocks/{block(0)}/tags/", {"tags": ["a"]}),
            ("POST", f"{LIB}/backup/", {}),
            (
                "POST",
                f"{LIB}/blocks/bulk_edit/",
                {
                    "blocks": [
                        {"usage_key": block(number), "olx": "<problem>3</problem>"}
                        for number in (1, 2)
                    ]
                },
            ),
            ("POST", f"{LIB}/discard/", {"usage_keys": [block(3)]}),
            ("POST", f"{LIB}/transfer/", {"items": [UNIT], "mode": "copy"}),
            ("POST", f"{LIB}/versions/", {}),
        ]
        made = [(f"{method} {path}", self._later(method, path, sent))
                for method, path, sent in calls]  # fmt: skip
        fields = f"/api/xblock/v2/xblocks/{block(2)}/fields/"
        made.append((fields, lambda: self.at("POST", fields, {"metadata": {"weight": "1"}})))
        for name in ("a", "b"):
            path = f"blocks/{block(0)}/assets/static/{name}"
            made.append((f"PUT {path}", self._later("PUT", path, None, files={"content": b"x"})))
        files = {"file": ("a.tar.gz", b"\x1f\x8b nothing")}
        made.append(("import", self._later("POST", f"{LIB}/import/", None, files=files)))
        return made

    def _reading(self) -> list[tuple[str, Call]]:
        paths = [
            "", f"{LIB}/", f"{LIB}/blocks/", f"{LIB}/containers/", f"{LIB}/collections/",
            f"{LIB}/team/", f"{LIB}/versions/", f"{LIB}/collections/c/", "search/?text=p",
        ]  # fmt: skip
        for key in (f"blocks/{block(0)}", f"containers/{UNIT}"):
            paths += [f"{key}/{tail}" for tail in (
                "", "hierarchy/", "draft_history/", "publish_history/", "creation_entry/",
                "publish/preview/",
            )]  # fmt: skip
        paths += [f"blocks/{block(0)}/olx/", f"blocks/{block(0)}/assets/",
                  f"containers/{UNIT}/children/"]  # fmt: skip
        return [(f"GET {path}", self._later("GET", path, None)) for path in paths]

    def _later(self, method: str, path: str, body: Any, **more: Any) -> Call:
        return lambda: self.call(method, path, body, **more)


class Midway:
    """Tells when so many calls have been answered."""

    def __init__(self, after: int) -> None:
        self.after, self.reached = after, asyncio.Event()

    async def make(self, call: Call) -> httpx.Response:
        answer = await call()
        self.after -= 1
        if self.after <= 0:
            self.reached.set()
        return answer


async def gone(app: FastAPI, midway: Midway) -> None:
    """What the dispatched deletion does."""
    await midway.reached.wait()
    task = make_task(app.state.database, app.state.files)
    await delete_library(task, library_key=LIB)


async def clean_up(app: FastAPI, fence: int) -> None:
    task = make_task(app.state.database, app.state.files, user=None, fence=fence)
    await orphan_cleanup(task, orphan_protection_time=0)


async def left(app: FastAPI) -> dict[str, int]:
    """How many rows each table has that should be empty now."""
    found = {}
    async with app.state.database.sessions() as session:
        tables = await query(session, "select tablename from pg_tables where schemaname = 'public'")
        for (table,) in tables:
            [(count,)] = await query(session, f'select count(*) from "{table}"')
            if count and table not in KEPT:
                found[table] = count
    return found


def failures(calls: list[tuple[str, Call]], answers: list[httpx.Response]) -> list[Any]:
    return [
        (name, answer.status_code, answer.text)
        for (name, _), answer in zip(calls, answers, strict=True)
        if answer.status_code >= 500
    ]


async def test_a_library_is_deleted_under_everybodys_hands(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    await http.get(f"{V2}/", headers=as_user("guest", email="guest@example.test"))
    hands = Hands(http)
    seen: set[int] = set()
    for number in range(ROUNDS):
        await hands.make()
        calls = hands.all()
        random.Random(number).shuffle(calls)
        midway = Midway(after=number * 4)

        async with asyncio.timeout(60):
            answers, *_ = await asyncio.gather(
                asyncio.gather(*(midway.make(call) for _, call in calls)),
                gone(app, midway),
                clean_up(app, number),
            )

        assert failures(calls, answers) == []
        assert await left(app) == {}
        seen |= {answer.status_code for answer in answers}
    assert {200, 204, 404} <= seen


async def test_everybody_works_on_one_library_at_once(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    await http.get(f"{V2}/", headers=as_user("guest", email="guest@example.test"))
    hands = Hands(http)
    await hands.make()
    for number in range(ROUNDS):
        calls = [*hands.all(), *hands.all(), *hands.all()]
        random.Random(number).shuffle(calls)

        async with asyncio.timeout(60):
            answers, *_ = await asyncio.gather(
                asyncio.gather(*(call() for _, call in calls)),
                publish_library(
                    make_task(app.state.database, app.state.files, fence=number), library_key=LIB
                ),
                clean_up(app, number),
            )

        assert failures(calls, answers) == []


class Asking:
    """Takes what the dispatcher is asked for; it is away when it is asked how that is."""

    def __init__(self) -> None:
        self.arguments: list[dict[str, Any]] = []

    async def post(self, service: str, path: str, body: Any, **more: Any) -> None:
        self.arguments += [request["arguments"] for request in body]

    async def get(self, service: str, path: str) -> None:
        raise Unavailable


async def test_a_deletion_that_runs_again_leaves_the_library_that_was_made_since(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    hands, asking = Hands(http), Asking()
    await hands.make()
    state: Any = app.state
    state.clients = asking
    await hands.call("DELETE", f"{LIB}/")
    [arguments] = asking.arguments

    await delete_library(make_task(state.database, state.files), **arguments)
    assert (await hands.call("GET", f"{LIB}/")).status_code == 404
    await hands.make()
    await delete_library(make_task(state.database, state.files), **arguments)

    assert (await hands.call("GET", f"{LIB}/")).json()["num_blocks"] == 6
