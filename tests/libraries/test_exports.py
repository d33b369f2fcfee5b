"""Exports: exporters, folder trees and archives, increments, places, lost runs, permissions."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import select

from services.libraries import (
    components,
    containers,
    drafts,
    entities,
    export_names,
    export_places,
    leftovers,
    libraries,
    library_versions,
    media,
    publishing,
)
from services.libraries.components import NewComponent
from services.libraries.errors import ExportRefused, Superseded, VersionUnknown
from services.libraries.models import Export, Exporter, Library
from services.libraries.registry import GENERAL
from services.libraries.states import ExportFormat, Kind
from services.libraries.worker import runner
from shared.database import utc_now
from shared.files import Files
from shared.problems import BadInput, Forbidden
from shared.testing import as_user
from tests.libraries.conftest import NOON, STAFF, V2
from tests.libraries.runs import Asked, files_in, make_library, make_task
from tests.libraries.test_general_tasks import Tasks
from tests.statements import statements

LIB = "lib:Fjord:BIRDS"
EXPORTS = f"{V2}/{LIB}/exports/"
EXPORTERS = f"{V2}/resources/exporters/"


@pytest.fixture
def asked(app: FastAPI) -> Asked:
    return Asked(app)


@pytest_asyncio.fixture
async def library(app: FastAPI) -> Library:
    async with app.state.database.sessions.begin() as session:
        return await make_library(session, user="ines", title="Birds", license="")


class Shelf:
    """A library whose versions are exported, and the exports of it."""

    def __init__(self, app: FastAPI, http: httpx.AsyncClient, asked: Asked, library: Library):
        self.app, self.http, self.asked, self.library = app, http, asked, library
        self.sessions, self.files = app.state.database.sessions, app.state.files

    async def version(self, *unit: str, **olx: str) -> int:
        """Publish these components, each with a file, and make a version of them."""
        async with self.sessions.begin() as session:
            await media.use_files(session, self.library)
            items = []
            for code, body in olx.items():
                file = await media.store_file(
                    self.files, self.library, f"{code} picture".encode(), "image/png"
                )
                assets = {"static/map.png": file}
                items.append(NewComponent("html", code, code, f"<html>{body}</html>", assets))
            await components.add_many(session, self.library, items, user="ada", now=NOON)
            if unit:
                await containers.create(
                    session, self.library, kind=Kind.UNIT, code=unit[0], title="U", user="ada",
                    children=[(f"xblock.v1:html:{code}", None) for code in unit[1:]], now=NOON,
                )  # fmt: skip
        return await self.snapshot()

    async def delete(self, code: str) -> None:
        async with self.sessions.begin() as session:
            entity = await entities.get(session, self.library, f"xblock.v1:html:{code}")
            await drafts.delete(session, self.library, entity, user="ada", now=NOON)

    async def snapshot(self) -> int:
        async with self.sessions.begin() as session:
            await publishing.publish_all(session, self.library, user="ada", now=NOON)
            made = await library_versions.snapshot(session, self.library, user="ada", now=NOON)
            assert made is not None
            return made.number

    async def exporter(self, path: str = "out/{number}", **values: Any) -> dict[str, Any]:
        body = {"library": LIB, "name": f"e-{uuid4()}", "path": path, **values}
        answer = await self.http.post(EXPORTERS, json=body, headers=STAFF)
        assert answer.status_code == 202, answer.text
        made: dict[str, Any] = await self.asked.run()
        return made

    async def publication(self, number: int) -> str:
        path = f"{V2}/{LIB}/versions/{number}/publish/"
        answer = await self.http.post(path, headers=STAFF)
        assert answer.status_code == 202, answer.text
        return ident_of(await self.asked.run())

    async def ask(self, exporter: dict[str, Any], **wanted: Any) -> httpx.Response:
        body = {"exporter": ident_of(exporter), **wanted}
        return await self.http.post(EXPORTS, json=body, headers=STAFF)

    async def export(self, exporter: dict[str, Any], **wanted: Any) -> dict[str, Any]:
        answer = await self.ask(exporter, **wanted)
        assert answer.status_code == 202, answer.text
        result = await self.asked.run()
        shown = await self.newest()
        assert shown["path"] == result["path"]
        assert (shown["files"], shown["size"]) == (result["files"], result["size"])
        return shown

    async def newest(self) -> dict[str, Any]:
        answer = await self.http.get(EXPORTS, params={"size": 1}, headers=STAFF)
        shown: dict[str, Any] = answer.json()["results"][0]
        return shown

    async def tree(self, path: str) -> dict[str, bytes]:
        """Everything in the object store below a place, by its name there."""
        names = await files_in(self.files, path)
        return {name.removeprefix(f"{path}/"): await self.files.read(name) for name in names}

    async def archive(self, path: str) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(await self.files.read(path))) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in archive.namelist()}


def ident_of(thing: dict[str, Any]) -> str:
    href: str = thing["pulp_href"]
    return href.split("/")[-2]


@pytest_asyncio.fixture
async def shelf(
    app: FastAPI, http: httpx.AsyncClient, asked: Asked, library: Library
) -> AsyncIterator[Shelf]:
    shelf = Shelf(app, http, asked, library)
    yield shelf
    await shelf.files.delete(await files_in(shelf.files, "exports"))


def component(code: str, body: str) -> dict[str, bytes]:
    folder = f"components/html/{code}"
    return {
        f"{folder}/block.xml": f"<html>{body}</html>".encode(),
        f"{folder}/static/map.png": f"{code} picture".encode(),
    }


# Exporters


async def test_exporters_are_made_changed_and_deleted_by_general_tasks(shelf: Shelf) -> None:
    made = await shelf.exporter("{org}/{slug}/{number}", name="nightly")
    href = made["pulp_href"]
    claims = shelf.asked.requests[-1]
    assert (claims.exclusive, claims.shared) == ([], [LIB])
    assert shelf.asked.created == [(made["prn"], href)]
    assert (made["path"], made["format"]) == ("{org}/{slug}/{number}", "tree")

    same = await shelf.http.patch(href, json={"format": "tree"}, headers=STAFF)
    assert (same.status_code, same.json()) == (200, made)
    await shelf.http.patch(href, json={"format": "zip"}, headers=STAFF)
    changed = await shelf.asked.run()
    claims = shelf.asked.requests[-1]
    assert (claims.exclusive, claims.shared) == ([made["prn"]], [LIB])
    assert changed == made | {"format": "zip"}
    other = await shelf.exporter(name="other")
    await shelf.http.patch(other["pulp_href"], json={"name": "nightly"}, headers=STAFF)
    with pytest.raises(BadInput, match="taken"):
        await shelf.asked.run()
    await shelf.http.delete(href, headers=STAFF)
    assert await shelf.asked.run() == {"libraries.Exporter": 1}
    assert (await shelf.http.get(href, headers=STAFF)).status_code == 404
    assert (await shelf.http.get(other["pulp_href"], headers=STAFF)).json() == other


@pytest.mark.parametrize(
    "path",
    ["", "/", "/etc", "a//b", "a/", "..", "a/../b", "a/./b", "./a", "a/...", "a\\b", "a b", "a\x00",
     "{slug", "slug}", "{}", "{slug}{", "{nothing}", "{org!r}", "{org.x}", "a.zip", "ä" * 501,
     "a" * 501, "~/x", "a:b", "C:", "a\nb", "\ud800", "%2e%2e", "a?b"],
)  # fmt: skip
async def test_patterns_that_could_lead_elsewhere_are_refused(shelf: Shelf, path: str) -> None:
    body = json.dumps({"library": LIB, "name": "n", "path": path})
    headers = STAFF | {"Content-Type": "application/json"}
    answer = await shelf.http.post(EXPORTERS, content=body, headers=headers)

    assert answer.status_code == 400, path
    assert list(answer.json()) == ["path"]
    assert await shelf.asked.waiting() == []


@pytest.mark.parametrize(("org", "slug"), [("..", ".."), (".", ".."), ("a", "..")])
def test_a_place_is_below_its_library_whatever_its_names_are(org: str, slug: str) -> None:
    library = Library(key="k", org=org, slug=slug, title="", created=NOON, updated=NOON)
    for pattern in ("{org}", "{org}/{slug}", "{start}", "{org}/{start}/{slug}", "{start}{org}"):
        exporter = Exporter(
            library_id=1, name="n", path=export_names.checked(pattern),
            format=ExportFormat.TREE, created=NOON,
        )  # fmt: skip
        path = export_names.place(
            exporter, library, number=1, start=None, task_id=uuid4(), now=NOON
        )
        parts = path.split("/")
        assert parts[:2] == ["exports", str(library.uuid)]
        assert len(parts) > 2
        assert all(part.strip(".") for part in parts)


async def test_every_field_of_a_pattern_is_filled_in(shelf: Shelf) -> None:
    await shelf.version(a="1")
    exporter = await shelf.exporter(
        "{org}/{slug}/{number}-{start}/{date}T{time}/{exporter}/{task}", format="zip"
    )
    made = await shelf.export(exporter, version=1, start_version=0)

    ident, task = ident_of(exporter), made["task"].split("/")[-2]
    folder = f"exports/{shelf.library.uuid}/Fjord/BIRDS/1-0/"
    assert made["path"].startswith(folder)
    assert made["path"].endswith(f"/{ident}/{task}.zip")
    assert f"{utc_now():%Y-%m-}" in made["path"]


# What is written


async def test_a_version_is_written_as_a_tree_of_its_files_and_nothing_else(
    shelf: Shelf,
) -> None:
    await shelf.version("unit", "b", "a", a="one", b="two")
    made = await shelf.export(await shelf.exporter(), version=1)

    assert made["path"] == f"exports/{shelf.library.uuid}/out/1"
    tree = await shelf.tree(made["path"])
    unit = json.loads(tree.pop("containers/unit/unit.json"))
    assert tree == component("a", "one") | component("b", "two")
    assert [child["key"] for child in unit["children"]] == [
        "xblock.v1:html:b", "xblock.v1:html:a",
    ]  # fmt: skip
    assert (unit["title"], unit["kind"], unit["version_num"]) == ("U", "unit", 1)
    assert made["files"] == 5
    assert made["finished"] is not None
    assert made["exported_resources"] == [f"{V2}/{LIB}/versions/1/"]
    assert made["params"] == {
        "repository_version": f"{V2}/{LIB}/versions/1/", "start_repository_version": None,
    }  # fmt: skip
    assert (made["prn"], made["pulp_href"]) in shelf.asked.created
    assert shelf.asked.task.reports.numbers() == {"export.units": (3, 3)}  # type: ignore[attr-defined]


async def test_an_archive_holds_the_same_as_the_tree(shelf: Shelf) -> None:
    await shelf.version("unit", "a", a="one", b="two")
    tree = await shelf.export(await shelf.exporter("tree"), version=1)
    archive = await shelf.export(await shelf.exporter("packed", format="zip"), version=1)

    assert archive["path"].endswith("/packed.zip")
    assert await shelf.archive(archive["path"]) == await shelf.tree(tree["path"])
    assert archive["files"] == tree["files"]
    assert archive["size"] == len(await shelf.files.read(archive["path"]))


async def test_what_is_written_is_what_the_version_held_whatever_came_later(
    shelf: Shelf,
) -> None:
    await shelf.version("unit", "a", "b", a="one", b="two")
    await shelf.version(a="changed", c="new")
    await shelf.delete("b")
    await shelf.snapshot()
    async with shelf.sessions.begin() as session:
        library = await libraries.get(session, LIB)
        draft = [NewComponent("html", "a", "a", "<html>draft</html>")]
        await components.add_many(session, library, draft, user="ada", now=NOON)

    for number, expected in (
        (1, component("a", "one") | component("b", "two")),
        (2, component("a", "changed") | component("b", "two") | component("c", "new")),
        (3, component("a", "changed") | component("c", "new")),
        (0, {}),
    ):
        made = await shelf.export(await shelf.exporter(f"v{number}"), version=number)
        tree = await shelf.tree(made["path"])
        tree.pop("containers/unit/unit.json", None)
        assert tree == expected, number


async def test_an_increment_has_only_what_the_start_has_not(shelf: Shelf) -> None:
    await shelf.version(a="one", b="two", gone="x")
    await shelf.delete("gone")
    await shelf.version(a="changed", c="new")
    exporter = await shelf.exporter("{start}-{number}")

    made = await shelf.export(exporter, version=2, start_version=1)
    from_empty = await shelf.export(exporter, version=2, start_version=0)
    none = await shelf.export(exporter, version=2, start_version=2)

    # The picture of a is in the start, at the same place.
    changed = {"components/html/a/block.xml": b"<html>changed</html>"}
    assert await shelf.tree(made["path"]) == changed | component("c", "new")
    whole = component("a", "changed") | component("b", "two") | component("c", "new")
    assert await shelf.tree(from_empty["path"]) == whole
    assert (none["files"], await shelf.tree(none["path"])) == (0, {})
    assert made["params"]["start_repository_version"] == f"{V2}/{LIB}/versions/1/"


async def test_a_publication_is_written_with_what_describes_it(shelf: Shelf) -> None:
    await shelf.version(a="one", gone="x")
    await shelf.delete("gone")
    await shelf.version(a="changed", b="two")
    publication = await shelf.publication(2)
    async with shelf.sessions.begin() as session:
        library = await libraries.get(session, LIB)
        await libraries.update(session, library, {"title": "Later"}, now=utc_now())
    exporter = await shelf.exporter("{start}-{number}", format="zip")

    whole = await shelf.archive((await shelf.export(exporter, publication=publication))["path"])
    made = await shelf.export(exporter, publication=publication, start_version=1)
    part = await shelf.archive(made["path"])

    about = json.loads(whole.pop("library.json"))
    lines = [json.loads(line) for line in whole.pop("index.jsonl").splitlines()]
    assert (about["key"], about["title"], about["number"]) == (LIB, "Birds", 2)
    assert about["publication"] == publication
    assert [(line["entity_ref"], line["version_num"]) for line in lines] == [
        ("xblock.v1:html:a", 2), ("xblock.v1:html:b", 1),
    ]  # fmt: skip
    assert {file["path"] for file in lines[0]["files"]} == {"block.xml", "static/map.png"}
    assert whole == component("a", "changed") | component("b", "two")
    assert json.loads(part.pop("library.json"))["start_number"] == 1
    index = [json.loads(line) for line in part.pop("index.jsonl").splitlines()]
    assert index == [*lines, {"entity_ref": "xblock.v1:html:gone", "removed": True}]
    assert set(part) == {"components/html/a/block.xml", *component("b", "")}
    assert made["exported_resources"] == [f"{V2}/resources/publications/{publication}/"]


async def test_codes_that_would_be_awkward_names_get_others_and_never_clash(
    shelf: Shelf,
) -> None:
    codes = ["a", "A", "..", ".", "ä", "x.", "CON", "a" * 200]
    await shelf.version(**dict.fromkeys(codes, "one"))
    made = await shelf.export(await shelf.exporter(), version=1)

    names = {name.split("/")[2] for name in await shelf.tree(made["path"])}
    assert len(names) == len({name.lower() for name in names}) == len(codes)
    for name in names:
        assert name.strip(".")


async def test_the_number_of_statements_grows_by_pages_not_by_components(
    shelf: Shelf, app: FastAPI
) -> None:
    await shelf.version(**{f"c{number}": "x" for number in range(3)})
    await shelf.version(**{f"d{number}": "x" for number in range(80)})

    async def cost(number: int) -> int:
        exporter = await shelf.exporter(f"cost-{number}")
        assert (await shelf.ask(exporter, version=number)).status_code == 202
        with statements(app.state.database.engine) as seen:
            await shelf.asked.run()
        return len(seen)

    assert await cost(1) == await cost(2) > 0


# Places


async def test_nothing_that_is_there_is_overwritten_added_to_or_put_below(
    shelf: Shelf,
) -> None:
    await shelf.version(a="one")
    await shelf.version(a="two")
    first = await shelf.export(await shelf.exporter("x/y"), version=1)
    before = await shelf.tree(first["path"])

    for path in ("x/y", "x", "x/y/components", "x/y/new"):
        await shelf.ask(await shelf.exporter(path), version=2)
        with pytest.raises(ExportRefused, match="existing data"):
            await shelf.asked.run()
        assert (await shelf.newest())["finished"] is None
    assert await shelf.tree(first["path"]) == before
    assert (await shelf.export(await shelf.exporter("x/yy"), version=2))["files"] == 2
    await shelf.files.put(f"exports/{shelf.library.uuid}/foreign/file", b"x")
    await shelf.ask(await shelf.exporter("foreign"), version=2)
    with pytest.raises(ExportRefused):
        await shelf.asked.run()
    assert await shelf.tree(f"exports/{shelf.library.uuid}/foreign") == {"file": b"x"}


class Failing(Files):
    """An object store that goes away after some files."""

    def __init__(self, url: str, error: type[BaseException] = OSError) -> None:
        super().__init__(url)
        self.left, self.error, self.gone = 3, error, False

    async def put(self, path: str, data: Any, **values: Any) -> Any:
        if self.left == 0:
            self.gone = True
            raise self.error("away")
        self.left -= 1
        return await super().put(path, data, **values)


class Killed(Failing):
    """And then nothing more can be done to it."""

    async def delete(self, paths: Iterable[str]) -> None:
        if self.gone:
            raise OSError("dead")
        await super().delete(paths)


async def run_with(shelf: Shelf, files: Files, *, fence: int = 50, **wanted: Any) -> Any:
    """Run what was asked for with another object store: the request, to run it again."""
    [request] = await shelf.asked.waiting()
    await shelf.asked.forget()
    await run_again(shelf, request, files, fence=fence)


async def run_again(shelf: Shelf, request: Any, files: Files, *, fence: int) -> Any:
    task = make_task(
        shelf.app.state.database, files, user=request.username, fence=fence, task_id=request.id
    )
    try:
        return await runner._functions[request.function](task, **request.arguments)
    finally:
        await shelf.asked.take_news()


@pytest.mark.parametrize("error", [OSError, asyncio.CancelledError])
async def test_a_failed_export_takes_away_what_it_has_written(
    shelf: Shelf, error: type[BaseException]
) -> None:
    await shelf.version(**{f"c{number}": "x" for number in range(40)})
    exporter = await shelf.exporter("place")
    await shelf.ask(exporter, version=1)
    with pytest.raises(error):
        await run_with(shelf, Failing(shelf.files.url, error))

    failed = await shelf.newest()
    assert (failed["finished"], failed["files"]) == (None, 0)
    assert await shelf.tree(failed["path"]) == {}
    name = "components/html/c0/block.xml"
    answer = await shelf.http.get(f"{failed['pulp_href']}files/{name}", headers=STAFF)
    assert answer.status_code == 404
    shelf.asked.fence = 60
    assert (await shelf.export(exporter, version=1))["files"] == 80


async def test_a_killed_export_shows_nothing_and_the_same_task_goes_through_again(
    shelf: Shelf,
) -> None:
    await shelf.version(**{f"c{number}": "x" for number in range(40)})
    await shelf.ask(await shelf.exporter("place"), version=1)
    [request] = await shelf.asked.waiting()
    assert request.repeatable
    with pytest.raises(OSError, match="dead"):
        await run_with(shelf, Killed(shelf.files.url), fence=50)
    half = await shelf.newest()
    assert 0 < len(await shelf.tree(half["path"])) < 80
    name = next(iter(await shelf.tree(half["path"])))
    hidden = await shelf.http.get(f"{half['pulp_href']}files/{name}", headers=STAFF)
    await shelf.files.put(f"{half['path']}/rest-of-a-killed-run", b"x")

    result = await run_again(shelf, request, shelf.files, fence=51)
    whole = await shelf.newest()

    assert (hidden.status_code, half["finished"]) == (404, None)
    assert (whole["pulp_href"], whole["files"], result["files"]) == (half["pulp_href"], 80, 80)
    assert len(await shelf.tree(whole["path"])) == 80
    shown = await shelf.http.get(f"{whole['pulp_href']}files/{name}", headers=STAFF)
    assert shown.status_code == 200
    # Its end was not told: once more, and nothing changes.
    assert await run_again(shelf, request, shelf.files, fence=52) == result
    assert await shelf.newest() == whole


async def test_what_a_killed_export_left_is_cleared_for_the_next_at_that_place(
    shelf: Shelf,
) -> None:
    await shelf.version(**{f"c{number}": "x" for number in range(40)})
    await shelf.version(c0="y")
    await shelf.ask(await shelf.exporter("place/{number}"), version=1)
    with pytest.raises(OSError, match="dead"):
        await run_with(shelf, Killed(shelf.files.url))
    half = await shelf.newest()

    exporter = await shelf.exporter("place")
    made = await shelf.export(exporter, version=2, start_version=1)

    assert await shelf.tree(made["path"]) == {"components/html/c0/block.xml": b"<html>y</html>"}
    again = await shelf.http.get(half["pulp_href"], headers=STAFF)
    assert again.json()["finished"] is None


async def test_a_run_that_lost_its_place_cannot_finish_or_clear_it(shelf: Shelf) -> None:
    await shelf.version(a="one")
    await shelf.ask(await shelf.exporter("place"), version=1)
    [request] = await shelf.asked.waiting()
    await shelf.asked.forget()
    with pytest.raises(Superseded):
        await run_again(shelf, request, Overtaken(shelf, request), fence=50)

    whole = await shelf.newest()
    assert whole["finished"] is not None
    assert await shelf.tree(whole["path"]) == component("a", "one")
    with pytest.raises(Superseded):
        await run_again(shelf, request, shelf.files, fence=49)


class Overtaken(Files):
    """While the first file is written, the task runs again elsewhere, and to its end."""

    def __init__(self, shelf: Shelf, request: Any) -> None:
        super().__init__(shelf.files.url)
        self.shelf, self.request = shelf, request
        self.first = True

    async def put(self, path: str, data: Any, **values: Any) -> Any:
        if self.first:
            self.first = False
            await run_again(self.shelf, self.request, self.shelf.files, fence=51)
        return await super().put(path, data, **values)


async def test_leftovers_go_with_the_exporter_and_with_the_clean_up(shelf: Shelf) -> None:
    await shelf.version(**{f"c{number}": "x" for number in range(40)})
    exporters = [await shelf.exporter(f"place-{number}") for number in range(3)]
    tasks = []
    for exporter in exporters[:2]:
        await shelf.ask(exporter, version=1)
        [request] = await shelf.asked.waiting()
        tasks.append(str(request.id))
        with pytest.raises(OSError, match="dead"):
            await run_with(shelf, Killed(shelf.files.url), fence=50)
    whole = await shelf.export(exporters[2], version=1)
    folder = f"exports/{shelf.library.uuid}"

    await shelf.http.delete(exporters[0]["pulp_href"], headers=STAFF)
    shelf.asked.fence = 60
    assert await shelf.asked.run() == {"libraries.Exporter": 1, "libraries.Export": 1}
    assert await shelf.tree(f"{folder}/place-0") == {}
    async with shelf.sessions() as session:
        assert len((await session.exec(select(Export))).all()) == 2

    async def clean(state: str) -> None:
        clients = Tasks(**{tasks[1]: state})
        task = make_task(shelf.app.state.database, shelf.files, user=None, clients=clients)
        later = utc_now() + timedelta(days=2)
        await leftovers._clean_exports(task, later, later)

    await clean("running")
    assert await shelf.tree(f"{folder}/place-1") != {}
    await clean("failed")
    assert await shelf.tree(f"{folder}/place-1") == {}
    assert len(await shelf.tree(whole["path"])) == 80


async def test_exporting_beside_a_retention_that_drops_the_version_fails_or_is_whole(
    shelf: Shelf,
) -> None:
    await shelf.version(a="one")
    exporter = await shelf.exporter("place")
    await shelf.ask(exporter, version=1)
    async with shelf.sessions.begin() as session:
        library = await libraries.get(session, LIB)
        library.retain_versions = 1
    await shelf.version(a="two")
    with pytest.raises(VersionUnknown):
        await shelf.asked.run()
    assert await files_in(shelf.files, f"exports/{shelf.library.uuid}") == []


# Asking, reading, permissions


async def test_what_cannot_be_exported_is_refused_with_the_field(shelf: Shelf) -> None:
    await shelf.version(a="one")
    publication = await shelf.publication(1)
    exporter = await shelf.exporter()
    async with shelf.sessions.begin() as session:
        other = await make_library(session, slug="FISH", user="ines")
        foreign = Exporter(
            library_id=other.id, name="n", path="p", format=ExportFormat.TREE, created=NOON
        )
        session.add(foreign)
        await session.flush()
        version = await library_versions.get(session, other, 0)
        others = await library_versions.publish(session, other, version, user="a", now=NOON)
    mine = ident_of(exporter)
    for body, field in (
        ({"version": 1}, "exporter"),
        ({"exporter": "x", "version": 1}, "exporter"),
        ({"exporter": str(uuid4()), "version": 1}, "exporter"),
        ({"exporter": str(foreign.id), "version": 1}, "exporter"),
        ({"exporter": mine, "version": 7}, "version"),
        ({"exporter": mine, "version": -1}, "version"),
        ({"exporter": mine, "version": 2**31}, "version"),
        ({"exporter": mine, "version": "\x00"}, "version"),
        ({"exporter": mine, "version": 1, "start_version": 9}, "start_version"),
        ({"exporter": mine, "version": 1, "start_version": 10**40}, "start_version"),
        ({"exporter": mine, "publication": str(others.id)}, "publication"),
        ({"exporter": mine, "publication": str(uuid4())}, "publication"),
        ({"exporter": mine, "publication": publication, "version": 1}, "exactly one"),
        ({"exporter": mine}, "exactly one"),
        ([], ""),
    ):
        answer = await shelf.http.post(EXPORTS, json=body, headers=STAFF)
        assert answer.status_code == 400, (body, answer.text)
        assert field in answer.text, (body, answer.text)
    assert await shelf.asked.waiting() == []
    missing = f"{V2}/lib:No:Such/exports/"
    answer = await shelf.http.post(missing, json={"exporter": mine, "version": 1}, headers=STAFF)
    assert answer.status_code == 404


async def test_an_export_claims_its_exporter_and_reads_the_library(shelf: Shelf) -> None:
    await shelf.version(a="one")
    exporter = await shelf.exporter()
    answer = await shelf.ask(exporter, version=1)
    [request] = await shelf.asked.waiting()

    assert answer.json() == {"task": f"/pulp/api/v3/tasks/{request.id}/"}
    assert request.function == "fs_repo_version_export"
    assert request.exclusive == [exporter["prn"], f"exports:{LIB}"]
    assert request.shared == [LIB]
    await shelf.asked.forget()
    await shelf.ask(exporter, publication=await shelf.publication(1))
    [request] = await shelf.asked.waiting()
    assert request.function == "fs_publication_export"


async def test_who_may_export_is_asked_before_and_again_when_it_runs(shelf: Shelf) -> None:
    await shelf.version(a="one")
    exporter = await shelf.exporter()
    body = {"exporter": ident_of(exporter), "version": 1}
    async with shelf.sessions.begin() as session:
        grant = 'insert into "grant" (library_id, username, access_level) values (:id, :who, :to)'
        for who, level in (("reader", "read"), ("author", "author")):
            values = {"id": shelf.library.id, "who": who, "to": level}
            await (await session.connection()).execute(text(grant), values)

    for headers, status in (({}, 401), (as_user("mallory"), 403), (as_user("reader"), 403)):
        assert (await shelf.http.post(EXPORTS, json=body, headers=headers)).status_code == status
        gone = await shelf.http.delete(exporter["pulp_href"], headers=headers)
        assert gone.status_code == status
        new = {"library": LIB, "name": "n", "path": "p"}
        refused = await shelf.http.post(EXPORTERS, json=new, headers=headers)
        assert refused.status_code == status
    assert await shelf.asked.waiting() == []
    author = as_user("author")
    assert (await shelf.http.post(EXPORTS, json=body, headers=author)).status_code == 202
    async with shelf.sessions.begin() as session:
        connection = await session.connection()
        await connection.execute(text('delete from "grant"'))
        await connection.execute(text("delete from role_assignment"))
    with pytest.raises(Forbidden):
        await shelf.asked.run()
    assert (await shelf.http.get(EXPORTS, headers=STAFF)).json()["results"] == []


async def test_exports_are_listed_by_pages_read_and_downloaded_by_readers(shelf: Shelf) -> None:
    await shelf.version(a="one")
    exporter = await shelf.exporter("{task}")
    made = [await shelf.export(exporter, version=1) for _ in range(3)]
    packed = await shelf.export(await shelf.exporter("packed", format="zip"), version=1)

    first = (await shelf.http.get(EXPORTS, params={"size": 2}, headers=STAFF)).json()
    rest = await shelf.http.get(EXPORTS, params={"size": 2, "after": first["next"]}, headers=STAFF)
    assert first["results"] + rest.json()["results"] == [packed, *reversed(made)]
    for cursor in ("x", "\x00", "W10", "WzFd"):
        bad = await shelf.http.get(EXPORTS, params={"after": cursor}, headers=STAFF)
        assert bad.status_code == 400, cursor
    href = made[0]["pulp_href"]
    one = await shelf.http.get(f"{href}files/components/html/a/block.xml", headers=STAFF)
    assert one.content == b"<html>one</html>"
    whole = await shelf.http.get(f"{packed['pulp_href']}files/archive.zip", headers=STAFF)
    assert whole.content == await shelf.files.read(packed["path"])
    for name in ("no", "..", "%2e%2e/x", "a/%2e%2e/%2e%2e/x", "a%00", "components", "", "//x"):
        answer = await shelf.http.get(f"{href}files/{name}", headers=STAFF)
        assert answer.status_code == 404, name
    for headers, status in (({}, 401), (as_user("mallory"), 403)):
        for path in (EXPORTS, href, f"{href}files/components/html/a/block.xml"):
            assert (await shelf.http.get(path, headers=headers)).status_code == status
    async with shelf.sessions.begin() as session:
        await make_library(session, slug="FISH", user="ines")
    elsewhere = href.replace("BIRDS", "FISH")
    assert (await shelf.http.get(elsewhere, headers=STAFF)).status_code == 404


async def test_changing_an_exporter_with_an_old_fence_is_refused(shelf: Shelf) -> None:
    exporter = await shelf.exporter("place")
    shelf.asked.fence = 20
    await shelf.http.patch(exporter["pulp_href"], json={"path": "new"}, headers=STAFF)
    await shelf.asked.run()
    late = make_task(shelf.app.state.database, shelf.files, user="ines", fence=19)
    with pytest.raises(Superseded):
        await GENERAL.general_update(
            late, resource="exporters", instance_id=ident_of(exporter), data={"path": "late"},
            partial=True,
        )  # fmt: skip
    with pytest.raises(Superseded):
        await GENERAL.general_delete(late, resource="exporters", instance_id=ident_of(exporter))
    shown = await shelf.http.get(exporter["pulp_href"], headers=STAFF)
    assert shown.json()["path"] == "new"


async def test_an_export_is_removed_with_its_files_and_its_place_is_free_again(
    shelf: Shelf,
) -> None:
    await shelf.version(a="x")
    tree, packed = await shelf.exporter("one"), await shelf.exporter("two", format="zip")
    shown = [await shelf.export(one, version=1) for one in (tree, packed)]
    shelf.asked.gone.clear()

    for one in shown:
        where = f"{EXPORTS}{ident_of(one)}/"
        for headers, status in ((as_user("eve"), 403), ({}, 401), (STAFF, 204), (STAFF, 404)):
            answer = await shelf.http.delete(where, headers=headers)
            assert answer.status_code == status
    await shelf.asked.take_news()

    assert await files_in(shelf.files, "exports") == []
    assert (await shelf.http.get(EXPORTS, headers=STAFF)).json()["results"] == []
    assert shelf.asked.gone == [one["prn"] for one in shown]
    await shelf.export(tree, version=1)


async def test_an_export_of_another_library_is_not_removed(shelf: Shelf) -> None:
    await shelf.version(a="x")
    shown = await shelf.export(await shelf.exporter(), version=1)
    async with shelf.sessions.begin() as session:
        await make_library(session, slug="OTHER", user="ines")

    for ident in (ident_of(shown), str(uuid4()), "x"):
        path = f"{V2}/lib:Fjord:OTHER/exports/{ident}/"
        assert (await shelf.http.delete(path, headers=STAFF)).status_code == 404
    assert await files_in(shelf.files, "exports") != []


async def test_an_export_that_is_written_is_not_removed(shelf: Shelf) -> None:
    await shelf.version(**{f"c{number}": "x" for number in range(40)})
    await shelf.ask(await shelf.exporter(), version=1)
    with pytest.raises(OSError, match="dead"):
        await run_with(shelf, Killed(shelf.files.url), fence=50)
    where = f"{EXPORTS}{ident_of(await shelf.newest())}/"

    assert (await shelf.http.delete(where, headers=STAFF)).status_code == 409
    async with shelf.sessions.begin() as session:
        export = (await session.exec(select(Export))).one()
        await export_places.give_up(session, shelf.files, export)
    assert (await shelf.http.delete(where, headers=STAFF)).status_code == 204


async def test_old_exports_go_with_the_clean_up_when_the_settings_say_so(shelf: Shelf) -> None:
    await shelf.version(a="x")
    old = await shelf.export(await shelf.exporter("old"), version=1)
    new = await shelf.export(await shelf.exporter("new"), version=1)
    async with shelf.sessions.begin() as session:
        export = await session.get(Export, UUID(ident_of(old)))
        assert export is not None
        export.finished = utc_now() - timedelta(days=8)
        session.add(export)

    async def left(days: float) -> list[str]:
        task = make_task(
            shelf.app.state.database, shelf.files, user=None, clients=Tasks(), export_days=days
        )
        await leftovers.clean_files(task, limit=utc_now() - timedelta(days=1), now=utc_now())
        rows = (await shelf.http.get(EXPORTS, headers=STAFF)).json()["results"]
        return [row["path"] for row in rows]

    both = [new["path"], old["path"]]
    assert [await left(days) for days in (0, 9)] == [both, both]
    assert await left(7) == both[:1]
    assert await shelf.tree(old["path"]) == {}
    assert await shelf.tree(new["path"]) != {}
