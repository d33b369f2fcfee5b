"""The import task on a real database: what it stores, reports, repeats and refuses."""

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from services.libraries import components, entities, importing, media, olx_trees, versions
from services.libraries.entities import NewEntity
from services.libraries.entries import ArchiveRefused, Folder, read
from services.libraries.errors import LimitReached
from services.libraries.import_reports import Report
from services.libraries.importing import UploadRefused, import_library
from services.libraries.models import Library
from services.libraries.states import Kind
from services.libraries.versions import NewVersion
from shared import outbox
from shared.database import Database
from shared.files import Files, TooBig, digest
from tests.conftest import Servers
from tests.libraries.runs import ADA, NOON, Recorded, files_in, make_library, make_task
from tests.libraries.test_import_archives import make_tar, make_zip

SAMPLES = Path("samples/coast-and-sky")
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


def packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


async def run(database: Database, files: Files, data: bytes, **settings: Any) -> Recorded:
    await files.put("library_import/x", data)
    progress = Recorded()
    task = make_task(database, files, progress, **settings)
    try:
        await import_library(task, library_key=KEY, upload="library_import/x")
    finally:
        assert await files_in(files, "library_import") == []
    return progress


async def stored(database: Database) -> dict[str, dict[str, str]]:
    """Hashes of the live drafts' files, by ref and path."""
    async with database.sessions() as session:
        rows = await (await session.connection()).execute(
            text("""
                select entity_ref, version.title, version_media.path, media.hash from entity
                join draft on draft.entity_id = entity.id
                join version on version.id = draft.version_id
                join version_media on version_media.version_id = version.id
                join media on media.id = version_media.media_id
            """)
        )
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            found.setdefault(row.entity_ref, {"title": row.title})[row.path] = row.hash
        return found


async def count(database: Database, table: str) -> int:
    async with database.sessions() as session:
        found = await (await session.connection()).execute(text(f"select count(*) from {table}"))
        return int(found.scalar_one())


async def test_the_sample_content_arrives_complete(
    database: Database, files: Files, library: Library
) -> None:
    progress = await run(database, files, packed(SAMPLES))

    tree = olx_trees.OlxTree(Folder(SAMPLES))
    expected = {}
    for found in tree.components:
        loaded = tree.load(found)
        expected[f"xblock.v1:{found.name.replace('/', ':')}"] = {
            "title": loaded.block.title,
            "block.xml": digest(loaded.block.olx.encode()),
        } | {path: digest(read(tree.tree, name)) for path, name in loaded.assets.items()}
    assert await stored(database) == expected
    assert progress.stages == ["Unpacking", "Reading", "Importing"]
    assert progress.totals == [62]
    assert progress.completed == 62
    assert [artifact["name"] for artifact in progress.artifacts] == ["Import report"]
    assert "62 added, 0 changed, 0 unchanged, 0 skipped" in progress.artifacts[0]["text"]
    contents = await files_in(files, f"content/{library.uuid}")
    assert len(contents) == len(list((SAMPLES / "static").iterdir()))
    assert await files_in(files, "incoming") == []


async def test_repeating_changes_nothing_and_new_content_makes_a_version(
    database: Database, files: Files, library: Library
) -> None:
    first = make_tar(("problem/a.xml", b"<problem/>"), ("problem/b.xml", b"<problem/>"))
    await run(database, files, first)

    again = await run(database, files, first)
    versions = await count(database, "version")
    second = make_tar(("problem/a.xml", b"<problem>x</problem>"), ("html/c.xml", b"<html/>"))
    changed = await run(database, files, second)

    assert versions == 2
    assert "0 added, 0 changed, 2 unchanged" in again.artifacts[0]["text"]
    assert "1 added, 1 changed, 0 unchanged" in changed.artifacts[0]["text"]
    assert await count(database, "version") == 4
    assert await count(database, "entity") == 3
    async with database.sessions() as session:
        entity = await entities.get(session, library, "xblock.v1:problem:a")
        assert await components.get_olx(session, entity) == "<problem>x</problem>"


async def test_bad_components_are_left_out_with_a_reason(
    database: Database, files: Files, library: Library
) -> None:
    data = make_zip(
        ("library.xml", b'<library><problem url_name="good"/><problem url_name="bad"/>'
         b'<problem url_name="bomb"/><html url_name="big"/></library>'),
        ("problem/good.xml", '<problem display_name="é"><img src="/static/gone.png"/>'
         "</problem>".encode()),
        ("problem/bad.xml", b"<problem>"),
        ("problem/bomb.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><problem>&b;</problem>'),
        ("html/big.xml", b'<html><img src="/static/big.bin"/></html>'),
        ("static/big.bin", b"0" * 2000),
    )  # fmt: skip

    progress = await run(database, files, data, most_asset_bytes=1000)

    report = progress.artifacts[0]["text"]
    assert list(await stored(database)) == ["xblock.v1:problem:good"]
    assert "problem/bad: The OLX is not well-formed XML" in report
    assert "problem/bomb: A document type declaration is not allowed." in report
    assert "html/big: static/big.bin has more than 1000 bytes." in report
    assert "problem/good: static/gone.png" in report
    assert progress.completed == progress.totals[0] == 4


@pytest.mark.parametrize(
    "data",
    [
        make_zip(("problem/a.xml", b"<problem/>"), ("../b.xml", b"")),
        make_tar(("problem/a.xml", b"<problem/>"))[:-10],
        make_tar(("problem/a.xml", b"<problem/>"), ("zeros", b"\0" * 49_000_000)),
        make_tar(("readme.txt", b"nothing here")),
    ],
    ids=["path", "damaged", "bomb", "no component"],
)
async def test_a_refused_upload_stores_nothing_and_says_why(
    database: Database, files: Files, library: Library, data: bytes
) -> None:
    await files.put("library_import/x", data)
    progress = Recorded()
    task = make_task(database, files, progress)

    with pytest.raises(ArchiveRefused):
        await import_library(task, library_key=KEY, upload="library_import/x")

    assert "Nothing was imported:" in progress.artifacts[0]["text"]
    assert await files_in(files, "") == []
    assert await count(database, "entity") == 0


async def test_canceling_in_the_middle_leaves_nothing_behind(
    database: Database, files: Files, library: Library
) -> None:
    data = make_tar(*((f"problem/{n}.xml", b"<problem/>") for n in range(250)))
    await files.put("library_import/x", data)
    task = make_task(database, files, Recorded(cancel_after=100))

    with pytest.raises(asyncio.CancelledError):
        await import_library(task, library_key=KEY, upload="library_import/x")

    assert await count(database, "entity") == 0
    assert await files_in(files, "library_import") == []


async def test_an_import_that_the_database_gives_up_for_somebody_else_is_done_again(
    database: Database, files: Files, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for what the other has just made, until PostgreSQL ends one of them."""
    monkeypatch.setattr(importing, "BATCH", 1)
    same = "<problem>the same</problem>"
    data = make_tar(*((f"problem/{code}.xml", same.encode()) for code in "ab"))
    async with database.sessions.begin() as session:
        news = [NewEntity("xblock.v1:problem:b", Kind.COMPONENT, "problem", "b")]
        made = await entities.create_many(session, library, news, user="ines", now=NOON)
        importer = asyncio.create_task(run(database, files, data))
        await wait_for_lock(database)
        kept = media.text_media(same, media.olx_type("problem"))
        ids = await media.store_many(session, library, [kept], now=NOON)
        content = {"block.xml": ids[kept.media_type, kept.hash]}
        first = NewVersion(made["xblock.v1:problem:b"], title="Mine", media=content)
        await versions.make(session, library, [first], user="ines", now=NOON)

    async with asyncio.timeout(20):
        progress = await importer

    assert progress.completed == 2
    assert "1 added, 0 changed, 1 unchanged" in progress.artifacts[0]["text"]
    assert {ref: parts["title"] for ref, parts in (await stored(database)).items()} == {
        "xblock.v1:problem:a": "Blank Problem", "xblock.v1:problem:b": "Mine",
    }  # fmt: skip


async def wait_for_lock(database: Database) -> None:
    """Until somebody waits for somebody else's row."""
    asked = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
    async with asyncio.timeout(10), database.reading() as session:
        while not (await (await session.connection()).execute(asked)).scalar_one():
            await asyncio.sleep(0.01)


async def test_a_library_takes_no_more_than_its_limit(
    database: Database, files: Files, library: Library
) -> None:
    data = make_tar(*((f"problem/{n}.xml", b"<problem/>") for n in range(5)))
    await run(database, files, make_tar(("html/x.xml", b"<html/>")))

    with pytest.raises(LimitReached):
        await run(database, files, data, most_blocks=5)

    assert await count(database, "entity") == 1
    await run(database, files, data, most_blocks=6)
    assert await count(database, "entity") == 6


async def pieces(data: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for position in range(0, len(data), size):
        yield data[position : position + size]


async def test_an_upload_is_kept_and_its_import_asked_for(
    database: Database, files: Files, library: Library
) -> None:
    data = packed(SAMPLES)
    async with database.sessions.begin() as session:
        task_id = await importing.start(
            session, files, library, pieces(data), caller=ADA, now=NOON, limit=10_000_000
        )
        waiting = await outbox.waiting(session)

    [path] = await files_in(files, "library_import")
    assert await files.read(path) == data
    [(service, name, request)] = waiting
    assert (service, name) == ("dispatcher", "on_dispatch")
    assert request["id"] == str(task_id)
    assert request["function"] == "import_library"
    assert request["exclusive"] == [KEY]
    assert request["arguments"] == {"library_key": KEY, "upload": path}


@pytest.mark.parametrize(
    ("data", "limit", "problem"),
    [(b"hello", 1000, UploadRefused), (b"", 1000, UploadRefused), (make_zip(), 10, TooBig)],
)
async def test_what_is_no_archive_is_not_kept(
    database: Database,
    files: Files,
    library: Library,
    data: bytes,
    limit: int,
    problem: type[Exception],
) -> None:
    async with database.sessions() as session:
        with pytest.raises(problem):
            await importing.start(
                session, files, library, pieces(data), caller=ADA, now=NOON, limit=limit
            )

        assert await outbox.waiting(session) == []
    assert await files_in(files, "") == []


def test_a_long_report_stays_readable() -> None:
    report = Report(KEY, skipped={f"problem/{n}": "no." for n in range(2000)})

    lines = report.text().splitlines()

    assert len(lines) < 1010
    assert lines[-1] == "  and 1000 more"
