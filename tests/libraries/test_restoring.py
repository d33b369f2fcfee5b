"""Restoring archives: what arrives, what is refused, and that nothing is left behind."""

import asyncio
import io
import os
import tracemalloc
import zipfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
import pytest_asyncio
from sqlalchemy import text

from services.libraries import collections, components, containers, entities, libraries, media
from services.libraries.archive_reading import read_archive
from services.libraries.backup import backup_library
from services.libraries.components import NewComponent
from services.libraries.errors import FieldRefused
from services.libraries.leftovers import upload_cleanup
from services.libraries.models import Library
from services.libraries.orphans import orphan_cleanup
from services.libraries.publishing import publish_all
from services.libraries.restoring import RestoreFailed, described, restore_library
from services.libraries.states import Kind
from services.user_tasks.schemas import StatusView
from shared.callers import Caller
from shared.database import Database, utc_now
from shared.files import Files, digest
from tests.conftest import Servers
from tests.libraries.runs import ADA, NOON, Recorded, files_in, make_library, make_task
from tests.libraries.test_archive import SAMPLE
from tests.libraries.test_archive_reading import sample
from tests.libraries.test_import_archives import make_zip, special

TABLES = (
    "library", "entity", "version", "media", "version_media", "child", "dependency", "draft",
    "published", "draft_log", "publish_log", "collection", "collection_member", "grant", "findable",
)  # fmt: skip


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    database = Database(clean.urls["libraries"])
    yield database
    await database.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(f"file://{tmp_path}/objects")


async def run(
    database: Database,
    files: Files,
    data: bytes,
    *,
    task_id: UUID | None = None,
    user: str = "ada",
    **settings: Any,
) -> dict[str, Any]:
    """Restore an archive: the result its user reads."""
    task_id = task_id or uuid4()
    upload = f"library_restore/{task_id}"
    await files.put(upload, data)
    progress = Recorded()
    task = make_task(database, files, progress, user=user, task_id=task_id, **settings)
    await restore_library(task, upload=upload)
    assert progress.stages == ["Unpacking", "Reading", "Restoring"]
    assert progress.completed == sum(progress.totals)
    [artifact] = progress.artifacts
    assert artifact["name"] == "Library Restore"
    assert await files_in(files, "library_restore") == []
    result: dict[str, Any] = orjson.loads(artifact["text"])
    return result


async def refused(database: Database, files: Files, data: bytes, **settings: Any) -> str:
    """The log of an archive that is refused; nothing else of it is left."""
    task_id = uuid4()
    upload = f"library_restore/{task_id}"
    await files.put(upload, data)
    progress = Recorded()
    task = make_task(database, files, progress, task_id=task_id, **settings)
    with pytest.raises(RestoreFailed, match=r"Error\(s\) restoring learning package"):
        await restore_library(task, upload=upload)
    return await the_log(files, progress, task_id)


async def the_log(files: Files, progress: Recorded, task_id: UUID) -> str:
    [artifact] = progress.artifacts
    assert artifact["name"] == "Error log"
    assert artifact["file_name"] == f"{task_id}-error.log"
    assert await files_in(files, "") == [artifact["file"]]
    log = (await files.read(artifact["file"])).decode()
    assert artifact["size"] == len(log.encode())
    assert log.endswith("\n")
    return log


async def rows(database: Database) -> dict[str, int]:
    async with database.sessions() as session:
        connection = await session.connection()
        return {
            table: (await connection.execute(text(f'select count(*) from "{table}"'))).scalar_one()
            for table in TABLES
        }


async def made_of(
    database: Database, result: dict[str, Any], slug: str = "BACK", user: str = "ada"
) -> Library:
    async with database.sessions.begin() as session:
        return await make_library(
            session, slug=slug, title="Back", user=user,
            learning_package=result["lp_restored_data"]["id"],
        )  # fmt: skip


async def back_up(database: Database, files: Files, key: str) -> bytes:
    progress = Recorded()
    await backup_library(make_task(database, files, progress), library_key=key)
    return await files.read(progress.artifacts[0]["file"])


def content(data: bytes) -> dict[str, bytes]:
    """All files of an archive but what tells of the library and the moment."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return {
        name: archive.read(name)
        for name in archive.namelist()
        if not name.endswith("/") and name != "package.toml"
    }


# What arrives


async def test_upstreams_archive_becomes_a_library_with_the_same_content(
    database: Database, files: Files
) -> None:
    result = await run(database, files, SAMPLE.read_bytes())
    package = result["lp_restored_data"]
    library = await made_of(database, result)

    numbers = {name: value for name, value in package.items() if name.startswith("num_")}
    assert numbers == {
        "num_containers": 4, "num_sections": 1, "num_subsections": 1, "num_units": 2,
        "num_components": 7, "num_collections": 1,
    }  # fmt: skip
    assert result["status"] == "success"
    assert package["package_ref"].startswith("lp-restore:ada:Example:Sampler:")
    assert (package["archive_org_code"], package["archive_package_code"]) == ("Example", "Sampler")
    again = await back_up(database, files, library.key)
    theirs, ours = content(SAMPLE.read_bytes()), content(again)
    lower = {name.lower(): data for name, data in ours.items()}
    assert set(lower) == set(theirs)
    for name in theirs:
        if not name.endswith(".toml"):
            assert lower[name] == theirs[name], name
    async with database.sessions() as session:
        found = await libraries.describe(session, library)
        assert (found.num_blocks, found.changes, found.deletes) == (11, True, False)
        assert found.published_by == "ada"
        [log] = (
            await (await session.connection()).execute(text("select message from publish_log"))
        ).scalars()
    assert log == "Restore from backup."


async def everything(database: Database, files: Files) -> Library:
    """A library with all that upstream's archives lose."""
    async with database.sessions.begin() as session:
        library = await make_library(session, description='a "b"\nc')
        picture = await media.store_file(files, library, b"\x89PNG", "image/x-own")
        empty = await media.store_file(files, library, b"", "text/plain")
        assets = {"static/v1/a.png": picture, "static/empty.txt": empty, "static/x.toml": picture}
        items = [
            NewComponent("html", "Case", "", "<html>1</html>", assets),
            NewComponent("html", "case", "lower", "<html>lower</html>"),
            NewComponent("html", "...", "dots", "<html/>"),
            NewComponent("html", "gone", "gone", "<html/>"),
            NewComponent("html", "never", "never", "<html/>"),
        ]
        for item in items:
            await components.add_many(session, library, [item], user="ada", now=NOON)
        await containers.create(
            session, library, kind=Kind.UNIT, code="unit", title="Unit", user="ada", now=NOON,
            children=[("xblock.v1:html:Case", 1), ("xblock.v1:html:case", None),
                      ("xblock.v1:html:Case", None)],
        )  # fmt: skip
        await containers.create(
            session, library, kind=Kind.SUBSECTION, code="sub", title="Sub", user="ada", now=NOON,
            children=[("unit", 1), ("unit", None)],
        )  # fmt: skip
    for number in (2, 3, 4):
        async with database.sessions.begin() as session:
            later = NOON + timedelta(days=number)
            new = NewComponent("html", "Case", f"Case {number}", f"<html>{number}</html>")
            await components.add_many(session, library, [new], user="ada", now=later)
            if number == 2:
                unit = await entities.get(session, library, "unit")
                refs = [("xblock.v1:html:case", None)]
                await containers.set_children(session, library, unit, refs, user="ada", now=later)
            if number == 3:
                never = await entities.get(session, library, "xblock.v1:html:never")
                await components.delete(session, library, never, user="ada", now=later)
                await publish_all(session, library, user="ada", now=later)
    async with database.sessions.begin() as session:
        gone = await entities.get(session, library, "xblock.v1:html:gone")
        await components.delete(session, library, gone, user="ada", now=NOON)
        for code in ("on", "OFF"):
            made = await collections.create(
                session, library, code=code, title=code, user="ada", now=NOON
            )
            refs_of = ["unit", "xblock.v1:html:gone"]
            await collections.add(session, library, made, refs_of, now=NOON)
            made.enabled = code == "on"
            session.add(made)
    return library


async def test_nothing_is_lost_on_the_way_out_and_back(database: Database, files: Files) -> None:
    library = await everything(database, files)
    first = await back_up(database, files, library.key)

    restored = await made_of(database, await run(database, files, first))
    second = await back_up(database, files, restored.key)

    assert content(second) == content(first)
    assert "entities/xblock.v1/html/Case/component_versions/v1/static/v1/a.png" in content(first)
    assert b"pins = [1, 0, 0]" in content(first)["entities/unit.toml"]
    assert b"draft_deleted = true" in content(first)["entities/xblock.v1/html/gone.toml"]
    assert b"draft_deleted = true" in content(first)["entities/xblock.v1/html/never.toml"]
    assert "disabled_collections/OFF.toml" in content(first)


async def test_the_next_edit_and_publish_go_on_from_what_was_restored(
    database: Database, files: Files
) -> None:
    library = await everything(database, files)
    data = await back_up(database, files, library.key)
    restored = await made_of(database, await run(database, files, data))

    async with database.sessions.begin() as session:
        case = await entities.get(session, restored, "xblock.v1:html:Case")
        made = await components.set_olx(
            session, restored, case, "<html>5</html>", user="ada", now=NOON
        )
        assert made.version_num == 5
        found = await libraries.describe(session, restored)
        assert (found.changes, found.deletes) == (True, True)
        assert await publish_all(session, restored, user="ada", now=NOON) == 2
        assert await components.get_olx(session, case, "1") == "<html>1</html>"


async def test_files_stay_where_they_are_when_a_library_is_made(
    database: Database, files: Files
) -> None:
    result = await run(database, files, SAMPLE.read_bytes())
    before = await files_in(files, "content")

    library = await made_of(database, result)

    assert before == await files_in(files, "content") != []
    async with database.sessions() as session:
        entity = await entities.get(session, library, "xblock.v1:html:välkommen")
        [asset] = await components.list_assets(session, entity)
        stored = await components.find_asset(
            session, (await entities.show(session, entity.id)).version_id, asset.path
        )
        assert len(await files.read(media.content_path(library, stored.hash))) == asset.size
