"""Backing up a real library: what is in the archive, what it costs, and who may have it."""

import asyncio
import io
import os
import re
import tomllib
import tracemalloc
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from sqlalchemy import event

from services.libraries import (
    backup,
    collections,
    components,
    containers,
    drafts,
    entities,
    media,
    people,
)
from services.libraries.archive_contents import OLX_PATH, ArchivedEntity
from services.libraries.archive_reading import read_archive
from services.libraries.backup import backup_library, file_name
from services.libraries.components import NewComponent
from services.libraries.errors import LibraryTaskUnknown
from services.libraries.exporting import ContentMissing
from services.libraries.models import Library
from services.libraries.publishing import publish_all
from services.libraries.states import Kind
from shared import outbox
from shared.callers import Caller
from shared.database import Database, utc_now
from shared.files import Files
from shared.problems import Problem
from tests.conftest import Servers
from tests.libraries.runs import ADA, NOON, Recorded, files_in, make_library, make_task
from tests.libraries.test_archive import SAMPLE, data_of

KEY = "lib:Fjord:BIRDS"


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    database = Database(clean.urls["libraries"])
    yield database
    await database.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(f"file://{tmp_path}/objects")


@pytest_asyncio.fixture
async def library(database: Database) -> Library:
    async with database.sessions.begin() as session:
        return await make_library(session)


async def run(database: Database, files: Files, key: str = KEY, **values: Any) -> bytes:
    progress = Recorded()
    task = make_task(database, files, progress)
    result = await backup_library(task, library_key=key, **values)
    [artifact] = progress.artifacts
    assert artifact["name"] == "Output"
    assert artifact["file"] == result["file"]
    assert progress.stages == ["Exporting"]
    assert progress.completed == sum(progress.totals)
    data = await files.read(artifact["file"])
    assert artifact["size"] == len(data)
    return data


def opened(data: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(data))


async def add(
    database: Database, library: Library, *items: NewComponent, now: datetime = NOON
) -> None:
    async with database.sessions.begin() as session:
        await components.add_many(session, library, items, user="ada", now=now)


def html(code: str, body: str = "", **assets: media.NewMedia) -> NewComponent:
    return NewComponent("html", code, code, f"<html>{body}</html>", assets)


# The same content as upstream's sample, made through our own functions


async def add_version(
    database: Database, files: Files, library: Library, entity: ArchivedEntity, place: int
) -> None:
    """What one version of a component in the sample says, as our own newest version."""
    version = entity.versions[place]
    contents = {one.path: await data_of(one) for one in version.media}
    olx = contents.pop(OLX_PATH).decode()
    assets = {
        path: await media.store_file(files, library, data, "image/png")
        for path, data in contents.items()
    }
    _, block_type, code = entity.key.split(":")
    item = NewComponent(block_type, code, version.title, olx, assets)
    await add(database, library, item, now=entity.created)


async def make_sample(database: Database, files: Files) -> Library:
    with read_archive(SAMPLE) as contents:
        manifest = contents.manifest
        async with database.sessions.begin() as session:
            library = await make_library(
                session, org="Example", slug="Sampler", title=manifest.title,
                description=manifest.description, now=manifest.created,
            )  # fmt: skip
        by_key = {entity.key: entity for entity in contents.entities}
        for entity in contents.entities:
            if entity.container_type is None and entity.published_num:
                await add_version(database, files, library, entity, -1)
        for kind in (Kind.UNIT, Kind.SUBSECTION, Kind.SECTION):
            for entity in contents.entities:
                if entity.container_type == kind:
                    await make_container(database, library, entity, kind)
        async with database.sessions.begin() as session:
            await publish_all(session, library, user="ada", now=NOON)
        await add_version(database, files, library, by_key["xblock.v1:problem:water-boils"], 0)
        await add_version(database, files, library, by_key["xblock.v1:html:never-published"], 0)
        async with database.sessions.begin() as session:
            [group] = contents.collections
            collection = await collections.create(
                session, library, code=group.code, title=group.title,
                description=group.description, user="ada", now=group.created,
            )  # fmt: skip
            members = list(group.members)  # type: ignore[arg-type]
            await collections.add(session, library, collection, members, now=NOON)
    return library


async def make_container(
    database: Database, library: Library, entity: ArchivedEntity, kind: Kind
) -> None:
    [version] = entity.versions
    async with database.sessions.begin() as session:
        await containers.create(
            session, library, kind=kind, code=entity.key, title=version.title,
            children=[(ref, None) for ref in version.children or ()], user="ada",
            now=entity.created,
        )  # fmt: skip


async def test_the_same_content_gives_the_same_archive_as_upstream(
    database: Database, files: Files
) -> None:
    library = await make_sample(database, files)
    async with database.sessions.begin() as session:
        await people.remember(session, ADA, now=NOON)

    ours = opened(await run(database, files, library.key))

    theirs = zipfile.ZipFile(SAMPLE)
    renamed = {name: name.replace("/capitalcode", "/CapitalCode") for name in theirs.namelist()}
    assert ours.namelist() == list(renamed.values())
    for name in theirs.namelist():
        text, wanted = (
            ours.read(renamed[name]).decode("latin-1"),
            theirs.read(name).decode("latin-1"),
        )
        if name == "package.toml":
            meta, wanted_meta = tomllib.loads(text), tomllib.loads(wanted)
            assert list(meta["meta"]) == list(wanted_meta["meta"])
            assert meta["learning_package"] == wanted_meta["learning_package"]
            assert meta["meta"]["created_by_email"] == "ada@example.test"
            continue
        if name.endswith(".toml"):
            text = re.sub(r"(version_num = \d+\n)created = .*\n", r"\1", text)
        assert text == wanted, name


# What is in it, what not


async def test_only_draft_and_published_versions_and_all_collections(
    database: Database, files: Files, library: Library, tmp_path: Path
) -> None:
    for body in ("one", "two", "three"):
        await add(database, library, html("a", body), html("b", body))
        if body == "one":
            async with database.sessions.begin() as session:
                await publish_all(session, library, user="ada", now=NOON)
    async with database.sessions.begin() as session:
        entity = await entities.get(session, library, "xblock.v1:html:b")
        await drafts.delete(session, library, entity, user="ada", now=NOON)
        for code in ("on", "off"):
            collection = await collections.create(
                session, library, code=code, title=code, user="ada", now=NOON
            )
            refs = ["xblock.v1:html:b", "xblock.v1:html:a"]
            await collections.add(session, library, collection, refs, now=NOON)
            collection.enabled = code == "on"

    path = tmp_path / "archive.zip"
    path.write_bytes(await run(database, files))

    with read_archive(path) as contents:
        a, b = contents.entities
        assert (a.draft_num, a.published_num, a.draft_deleted) == (3, 1, False)
        assert [version.version_num for version in a.versions] == [3, 1]
        assert (b.draft_num, b.published_num, b.draft_deleted) == (None, 1, True)
        texts = [await data_of(version.media[0]) for version in (*a.versions, *b.versions)]
        assert texts == [b"<html>three</html>", b"<html>one</html>", b"<html>one</html>"]
        on, off = contents.collections
        assert (on.code, on.enabled, off.code, off.enabled) == ("on", True, "off", False)
        assert on.members == off.members == ["xblock.v1:html:a", "xblock.v1:html:b"]
        assert contents.manifest.created_by == "ada"
        assert contents.manifest.created_by_email == ""
        assert contents.manifest.origin_server == "lyceum.test"


async def test_entities_stand_in_byte_order(
    database: Database, files: Files, library: Library
) -> None:
    codes = ["b", "B", "a", "A", "é", "_", "-", "1"]
    await add(database, library, *(html(code) for code in codes))

    names = opened(await run(database, files)).namelist()

    found = [re.fullmatch(r"entities/xblock\.v1/html/([^/]+)\.toml", name) for name in names]
    assert [one[1][0] for one in found if one] == sorted(codes)


async def test_large_texts_and_files_are_whole(
    database: Database, files: Files, library: Library
) -> None:
    data = os.urandom(3_000_000)
    large = await media.store_file(files, library, data, "video/mp4")
    empty = await media.store_file(files, library, b"", "text/plain")
    assets = {"static/large.mp4": large, "static/empty.txt": empty}
    olx = f"<html>{'é' * 99999}</html>"
    await add(database, library, NewComponent("html", "a", "A", olx, assets))

    archive = opened(await run(database, files))

    place = "entities/xblock.v1/html/a/component_versions/v1/"
    assert archive.read(place + OLX_PATH).decode() == olx
    assert archive.read(place + "static/large.mp4") == data
    assert archive.read(place + "static/empty.txt") == b""
    assert archive.testzip() is None


async def test_everything_is_of_one_moment(
    database: Database, files: Files, library: Library
) -> None:
    await add(database, library, *(html(f"c{number:03}", "old") for number in range(250)))
    progress = Recorded()
    task = make_task(database, files, progress)
    edited = False

    async def advance(steps: int = 1) -> None:
        nonlocal edited
        progress.completed += steps
        if not edited:
            edited = True
            await add(database, library, *(html(f"c{n:03}", "new") for n in range(300)))

    progress.advance = advance  # type: ignore[method-assign]
    result = await backup_library(task, library_key=KEY)

    archive = opened(await files.read(result["file"]))
    texts = {archive.read(name) for name in archive.namelist() if name.endswith(OLX_PATH)}
    assert texts == {b"<html>old</html>"}
    assert progress.completed == 250


async def test_a_missing_file_fails_the_backup_and_leaves_nothing(
    database: Database, files: Files, library: Library
) -> None:
    for size in (10, 100_000):
        stored = await media.store_file(files, library, b"x" * size, "text/plain")
        await add(database, library, html("a", **{"static/x.txt": stored}))
        await files.delete(await files_in(files, "content"))

        with pytest.raises(ContentMissing, match=r"static/x\.txt is not in the object store"):
            await backup_library(make_task(database, files), library_key=KEY)

    assert await files_in(files, "user_tasks") == []


async def test_canceling_in_the_middle_leaves_no_file(
    database: Database, files: Files, library: Library
) -> None:
    await add(database, library, *(html(f"c{number}") for number in range(150)))
    task = make_task(database, files, Recorded(cancel_after=120))

    with pytest.raises(asyncio.CancelledError):
        await backup_library(task, library_key=KEY)

    assert await files_in(files, "user_tasks") == []


async def test_an_archive_that_may_have_been_shown_is_left_to_the_purge(
    database: Database, files: Files, library: Library
) -> None:
    progress = Recorded()

    async def refuse(name: str, **values: Any) -> UUID:
        raise Problem("no")

    progress.artifact = refuse  # type: ignore[method-assign]
    with pytest.raises(Problem):
        await backup_library(make_task(database, files, progress), library_key=KEY)

    # The answer may be all that was lost; what has no record after a day, user_tasks removes.
    assert len(await files_in(files, "user_tasks")) == 1


async def test_cost_does_not_grow_with_the_library(
    database: Database, files: Files, library: Library
) -> None:
    """2,000 components with 30 kB of their own each: few statements, little memory."""
    for first in range(0, 2000, 200):
        items = []
        for number in range(first, first + 200):
            stored = await media.store_file(
                files, library, os.urandom(30_000), "application/octet-stream"
            )
            items.append(html(f"c{number}", "x" * 500, **{"static/data.bin": stored}))
        await add(database, library, *items)
    statements: list[str] = []

    def heard(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", heard)
    progress = Recorded()
    task = make_task(database, files, progress)
    tracemalloc.start()
    try:
        result = await backup_library(task, library_key=KEY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert result["size"] > 60_000_000
    assert progress.completed == 2000
    assert peak < 16_000_000
    assert len(statements) <= 10 + 2 * 20


# Asking for it, and finding it


def test_the_file_is_named_after_library_and_moment() -> None:
    moment = datetime(2026, 3, 1, 9, 5, 7, tzinfo=UTC)

    assert file_name("lib:CL-TEST:Bird_s", moment) == "lib-cl-test-bird_s-2026-03-01-090507.zip"
    assert file_name("lib:O:日本", moment) == "lib-o-2026-03-01-090507.zip"


async def test_a_backup_is_asked_for_with_the_library_shared(
    database: Database, library: Library
) -> None:
    async with database.sessions.begin() as session:
        task_id = await backup.start(session, library, caller=ADA, now=NOON)
        [(service, name, request)] = await outbox.waiting(session)

    assert (service, name) == ("dispatcher", "on_dispatch")
    assert request["id"] == str(task_id)
    assert (request["shared"], request["exclusive"]) == ([KEY], [])
    assert request["arguments"] == {"library_key": KEY}
    assert request["user_task"]["name"] == f"Library Learning Package Backup of {KEY}"


class UserTasks:
    """The user_tasks service, as far as a status asks it."""

    def __init__(self, state: str | None, *artifacts: str, stage: str | None = None) -> None:
        self._state, self._stage, self._artifacts = state, stage, artifacts

    async def get(self, service: str, path: str) -> Any:
        from services.user_tasks.errors import StatusUnknown

        if self._state is None:
            raise StatusUnknown
        moment = NOON.isoformat()
        return {
            "uuid": str(uuid4()), "user": "ada", "name": "n", "state": self._stage or self._state,
            "base_state": self._state, "stage": self._stage, "completed_steps": 0,
            "total_steps": 1, "attempts": 1, "task_class": "", "task_type": "", "parent": None,
            "error": None, "created": moment, "modified": moment, "started_at": None,
            "finished_at": None,
            "artifacts": [
                {"uuid": str(uuid4()), "name": name, "file": f"http://x.test/{name}",
                 "file_name": None, "size": 1, "text": "", "url": "", "created": moment}
                for name in self._artifacts
            ],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("user_tasks", "state", "url"),
    [
        (UserTasks(None), "Pending", None),
        (UserTasks("Pending"), "Pending", None),
        (UserTasks("In Progress"), "Exporting", None),
        (UserTasks("In Progress", stage="Exporting"), "Exporting", None),
        (UserTasks("Succeeded", "Output"), "Succeeded", "http://x.test/Output"),
        (UserTasks("Failed"), "Failed", None),
        (UserTasks("Canceled"), "Canceled", None),
        (UserTasks("Retrying"), "Exporting", None),
    ],
)
async def test_status_speaks_the_words_of_the_contract(
    database: Database, library: Library, user_tasks: Any, state: str, url: str | None
) -> None:
    async with database.sessions.begin() as session:
        task_id = await backup.start(session, library, caller=ADA, now=NOON)

        found = await backup.status(session, user_tasks, library, str(task_id), caller=ADA)

    assert (found.state, found.url) == (state, url)


async def test_a_backup_is_found_by_its_owner_in_its_library_only(
    database: Database, library: Library
) -> None:
    done: Any = UserTasks("Succeeded", "Output")
    empty: Any = UserTasks("Succeeded", "Something else")
    async with database.sessions.begin() as session:
        other = await make_library(session, slug="OTHER")
        mine = str(await backup.start(session, library, caller=ADA, now=NOON))

        for where, task_id, who, service in (
            (other, mine, ADA, done),
            (library, mine, Caller("bob"), done),
            (library, str(uuid4()), ADA, done),
            (library, "nonsense", ADA, done),
            (library, mine, ADA, empty),
        ):
            with pytest.raises(LibraryTaskUnknown, match=r"No backup found for this library\."):
                await backup.status(session, service, where, task_id, caller=who)


async def test_times_in_the_archive_are_those_of_the_content(
    database: Database, files: Files, library: Library
) -> None:
    later = NOON + timedelta(days=2)
    await add(database, library, html("a"), now=later)

    archive = opened(await run(database, files))

    entity = tomllib.loads(archive.read("entities/xblock.v1/html/a.toml").decode())
    assert entity["entity"]["created"] == entity["version"][0]["created"] == later
    assert archive.getinfo("entities/xblock.v1/html/a.toml").date_time[2] == 23
    assert archive.getinfo("package.toml").date_time[2] == 21
    package = tomllib.loads(archive.read("package.toml").decode())
    assert abs(package["meta"]["created_at"] - utc_now()) < timedelta(minutes=1)


async def test_an_empty_library_has_an_archive_too(
    database: Database, files: Files, library: Library
) -> None:
    assert opened(await run(database, files)).namelist() == [
        "package.toml", "entities/", "collections/",
    ]  # fmt: skip
