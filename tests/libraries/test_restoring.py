"""Restoring archives: what arrives, what is refused, and that nothing is left behind."""

import asyncio
import io
import os
import tracemalloc
import zipfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
import pytest_asyncio
from sqlalchemy import text

from services.libraries import (
    collections,
    components,
    containers,
    drafts,
    entities,
    libraries,
    media,
)
from services.libraries.backup import backup_library
from services.libraries.components import NewComponent
from services.libraries.errors import FieldRefused, RuleBroken
from services.libraries.leftovers import upload_cleanup
from services.libraries.models import Library
from services.libraries.orphans import orphan_cleanup
from services.libraries.publishing import publish_all
from services.libraries.restoring import RestoreFailed, described, restore_library
from services.libraries.settings import Settings
from services.libraries.states import Kind
from services.user_tasks.schemas import StatusView
from shared.database import Database, utc_now
from shared.files import Files
from tests.conftest import Servers
from tests.libraries.runs import NOON, Recorded, files_in, make_library, make_task
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


async def everything(database: Database, files: Files, *, odd_paths: bool = True) -> Library:
    """A library with all that upstream's archives lose; odd paths upstream cannot even read."""
    async with database.sessions.begin() as session:
        library = await make_library(session, description='a "b"\nc')
        picture = await media.store_file(files, library, b"\x89PNG", "image/x-own")
        empty = await media.store_file(files, library, b"", "text/plain")
        assets = {"static/a.png": picture, "static/empty.txt": empty}
        if odd_paths:
            assets |= {"static/v1/a.png": picture, "static/x.toml": picture}
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
                await drafts.delete(session, library, never, user="ada", now=later)
                await publish_all(session, library, user="ada", now=later)
    async with database.sessions.begin() as session:
        gone = await entities.get(session, library, "xblock.v1:html:gone")
        await drafts.delete(session, library, gone, user="ada", now=NOON)
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


async def test_names_as_long_and_deep_as_they_may_be_come_back(
    database: Database, files: Files
) -> None:
    paths = ["漢" * 500, "é" * 400 + ".png", "/".join("a" * 250), "static/a\u202fb.png"]
    async with database.sessions.begin() as session:
        library = await make_library(session)
        picture = await media.store_file(files, library, b"\x89PNG", "image/png")
        assets = {components.checked_path(path): picture for path in paths}
        item = NewComponent("x" * 100, "漢" * 255, "Long", f"<{'x' * 100}/>", assets)
        await components.add_many(session, library, [item], user="ada", now=NOON)
    first = await back_up(database, files, library.key)

    restored = await made_of(database, await run(database, files, first))

    assert content(await back_up(database, files, restored.key)) == content(first)
    assert sum(name.rpartition(".")[2] != "toml" for name in content(first)) == 1 + len(paths)


NAMES = {
    "long words": (["語" * 255], ["static/" + "語" * 490, "static/" + "a/" * 200 + "b"]),
    "what others take for junk": (
        ["__MACOSX", "._x", ".DS_Store", "Thumbs.db"],
        ["static/._a.png", "static/.DS_Store", "static/Thumbs.db", "__MACOSX/a", "._a"],
    ),
    "parts of the format": (
        ["component_versions", "v1", "block.xml", "a.toml"],
        ["component_versions/v1/block.xml", "block.xml/x", "static", "package.toml", "C:x"],
    ),
}


@pytest.mark.parametrize(("codes", "paths"), NAMES.values(), ids=NAMES.keys())
async def test_names_of_any_kind_come_back(
    database: Database, files: Files, codes: list[str], paths: list[str]
) -> None:
    async with database.sessions.begin() as session:
        library = await make_library(session)
        picture = await media.store_file(files, library, b"\x89PNG", "image/png")
        assets = dict.fromkeys(paths, picture)
        items = [
            NewComponent("html", code, code[:9], f"<html>{code}</html>", assets) for code in codes
        ]
        await components.add_many(session, library, items, user="ada", now=NOON)
        for code in codes:
            await containers.create(
                session, library, kind=Kind.UNIT, code=code, title="t", user="ada", now=NOON
            )
    first = await back_up(database, files, library.key)

    restored = await made_of(database, await run(database, files, first))

    assert content(await back_up(database, files, restored.key)) == content(first)
    assert len(content(first)) == len(codes) * (len(paths) + 3)


async def test_files_that_compress_very_well_come_back(database: Database, files: Files) -> None:
    """As whole and as many small ones: none makes the archive look like a bomb to its reader."""
    async with database.sessions.begin() as session:
        library = await make_library(session)
        large = {
            f"static/{number}": await media.store_file(
                files, library, _pieces(bytes([number]) * 2**18, 60), "image/bmp"
            )
            for number in range(3)
        }
        item = NewComponent("html", "a", "a", "<html/>", large)
        await components.add_many(session, library, [item], user="ada", now=NOON)
    data = await back_up(database, files, library.key)

    restored = await made_of(database, await run(database, files, data))

    assert content(await back_up(database, files, restored.key)) == content(data)
    assert sum(map(len, content(data).values())) > 45_000_000
    assert len(data) < 2_000_000


async def _pieces(piece: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


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


async def test_after_the_last_number_there_is_no_version(database: Database, files: Files) -> None:
    contents = {
        name.replace(f"{A}/component_versions/v1/", f"{A}/component_versions/v2147483647/"): data
        for name, data in sample().items()
    }
    contents[f"{A}.toml"] = contents[f"{A}.toml"].replace(b"num = 1", b"num = 2147483647")
    library = await made_of(database, await run(database, files, make_zip(*contents.items())))

    async with database.sessions() as session:
        last = await entities.get(session, library, "xblock.v1:html:never-published")
        with pytest.raises(RuleBroken, match="no number left"):
            await components.set_olx(session, library, last, "<html/>", user="ada", now=NOON)


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


async def test_the_dates_of_an_archive_are_kept_and_missing_ones_are_now(
    database: Database, files: Files
) -> None:
    library = await made_of(database, await run(database, files, SAMPLE.read_bytes()))

    async with database.sessions() as session:
        connection = await session.connection()
        found = await connection.execute(
            text("select min(created) as oldest, max(created) as newest from entity")
        )
        created = found.one()
        versions = await connection.execute(text("select min(created) from version"))
    assert library.created.year == created.oldest.year == created.newest.year == 2026
    assert created.newest < NOON
    assert utc_now() - versions.scalar_one() < timedelta(minutes=5)


# What is refused


def changed(name: str, old: str, new: str) -> bytes:
    contents = sample()
    assert old.encode() in contents[name]
    contents[name] = contents[name].replace(old.encode(), new.encode())
    return make_zip(*contents.items())


def with_files(*more: tuple[Any, bytes]) -> bytes:
    return make_zip(*sample().items(), *more)


def encrypted() -> bytes:
    data = bytearray(SAMPLE.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = data.find(mark)
        while position >= 0:
            data[position + place] |= 1
            position = data.find(mark, position + 4)
    return bytes(data)


A = "entities/xblock.v1/html/never-published"
UNIT = "entities/vertical-names.toml"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a text": (b"hello", "neither a zip nor a tar.gz archive"),
    "nothing": (b"", "neither a zip nor a tar.gz archive"),
    "truncated": (SAMPLE.read_bytes()[:3000], "damaged"),
    "encrypted": (encrypted(), "encrypted"),
    "a way out": (with_files(("../../etc/x", b"x")), "leads out of the archive"),
    "an absolute path": (with_files(("/etc/x", b"x")), "absolute"),
    "a way out in media": (
        with_files((f"{A}/component_versions/v1/static/../../../x", b"")), "leads out",
    ),
    "a link": (with_files((special("entities/x.toml", 0o120777), b"/etc/passwd")), "links"),
    "a bomb": (with_files((f"{A}/component_versions/v1/static/x", b"\0" * 49_000_000)), "times"),
    "wrong types": (changed("package.toml", "format_version = 1", 'format_version = "1"'),
                    "A valid integer is required."),
    "a list as title": (changed(UNIT, 'title = "', 'title = ["'), "not valid TOML"),
    "a newer format": (changed("package.toml", "format_version = 1", "format_version = 2"),
                       "format_version 2 is not known"),
    "deep TOML": (with_files(("entities/x.toml", b"a=" + b"[" * 100_000)), "not valid TOML"),
    "a huge number": (changed(UNIT, "version_num = 1", f"version_num = {10**30}"), "between"),
    "a key twice": (with_files(("entities/other.toml", sample()[UNIT])), "this key twice"),
    "a long key": (changed("package.toml", "lib:Example:Sampler", "lib:" + "x" * 3000),
                   "no more than 255"),
    "another namespace": (changed(f"{A}.toml", "xblock.v1:html", "other.v1:html"), "of xblock.v1"),
    "NUL in OLX": (
        make_zip(*(sample() | {f"{A}/component_versions/v1/block.xml": b"\0"}).items()), "NUL",
    ),
    "an unknown child": (changed(UNIT, '"xblock.v1:', '"xblock.v9:'), "is not in the archive"),
    "a pin to nothing": (
        changed(UNIT, "version_num = 1\n\n[version.container]",
                "version_num = 1\npins = [9, 9]\n\n[version.container]"),
        "which it pins, is not in the archive",
    ),
    "pins that do not fit": (
        changed(UNIT, "version_num = 1\n\n[version.container]",
                "version_num = 1\npins = [true]\n\n[version.container]"),
        "'pins' must have",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("data", "why"), HOSTILE.values(), ids=[*HOSTILE])
async def test_hostile_archives_fail_with_a_log_and_leave_nothing(
    database: Database, files: Files, data: bytes, why: str
) -> None:
    log = await refused(database, files, data)

    assert log.startswith("Errors encountered during restore:\n")
    assert why in log
    assert set((await rows(database)).values()) == {0}


@pytest.mark.filterwarnings("ignore:Duplicate name")
async def test_one_name_twice_in_the_zip(database: Database, files: Files) -> None:
    assert "twice" in await refused(database, files, with_files((UNIT, b"[entity]")))


async def test_all_that_is_wrong_is_in_the_log(database: Database, files: Files) -> None:
    contents = sample()
    broken = [name for name in contents if name.startswith("entities/") and name.endswith(".toml")]
    for name in broken:
        contents[name] = b"[entity]\n"
    many = {f"entities/x{number}.toml": b"[entity]\n" for number in range(300)}

    log = await refused(database, files, make_zip(*(contents | many).items()))

    for name in [*broken, *many]:
        assert f"{name}: key: This field is required.\n" in log


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"archive_most_entries": 10}, "more than 10 entries"),
        ({"archive_most_file_bytes": 100}, "larger than 100 bytes"),
        ({"archive_most_bytes": 500}, "more than 500 bytes"),
        ({"archive_most_depth": 3}, "deeper than 3"),
        ({"archive_most_name_bytes": 20}, "longer than 20 bytes"),
        ({"archive_most_segment_bytes": 12}, "is longer than 12 bytes"),
        ({"archive_most_toml_bytes": 100}, "larger than 100 bytes"),
        ({"most_blocks": 10}, "Library cannot have more than 10 Components."),
    ],
)
async def test_limits_are_settings(
    database: Database, files: Files, settings: dict[str, int], why: str
) -> None:
    assert why in await refused(database, files, SAMPLE.read_bytes(), **settings)
    assert set((await rows(database)).values()) == {0}


def test_every_limit_is_a_setting(servers: Servers) -> None:
    names = [name for name in Settings.model_fields if name.startswith(("archive_", "olx_"))]
    settings = Settings(**dict.fromkeys(names, 7))

    assert set(asdict(settings.archive_limits).values()) == {7}
    assert set(asdict(settings.olx_limits).values()) == {7}


async def test_an_upload_that_is_gone_gets_a_log_too(database: Database, files: Files) -> None:
    task_id, progress = uuid4(), Recorded()
    task = make_task(database, files, progress, task_id=task_id)

    with pytest.raises(RestoreFailed):
        await restore_library(task, upload="library_restore/x")

    log = await the_log(files, progress, task_id)
    assert log == "Unexpected error during library restore: The file is not there any more\n"


# What is interrupted


class Tasks:
    """The dispatcher, as far as it says how a task is."""

    def __init__(self, state: str) -> None:
        self.state = state

    async def get(self, service: str, path: str) -> Any:
        return {
            "id": path.rpartition("/")[2], "name": "x", "state": self.state, "unblocked_at": None,
            "started_at": None, "finished_at": None, "error": None, "result": None,
        }  # fmt: skip


async def interrupted(
    database: Database, files: Files, state: str, progress: Recorded
) -> tuple[UUID, str]:
    task_id = uuid4()
    upload = f"library_restore/{task_id}"
    await files.put(upload, SAMPLE.read_bytes())
    clients = Tasks(state)
    task = make_task(database, files, progress, task_id=task_id, clients=clients)
    with pytest.raises(asyncio.CancelledError):
        await restore_library(task, upload=upload)
    return task_id, upload


async def test_canceling_leaves_nothing(database: Database, files: Files) -> None:
    await interrupted(database, files, "canceling", Recorded(cancel_after=8))

    assert await files_in(files, "") == []
    assert set((await rows(database)).values()) == {0}


class Told(Recorded):
    """Stops when the result is told: everything is stored by then."""

    async def artifact(self, name: str, **values: Any) -> UUID:
        raise asyncio.CancelledError


async def test_canceling_at_the_very_end_leaves_nothing(database: Database, files: Files) -> None:
    await interrupted(database, files, "canceling", Told())

    assert await files_in(files, "") == []
    assert set((await rows(database)).values()) == {0}


async def test_a_run_of_a_lost_worker_is_repeated_from_its_upload(
    database: Database, files: Files
) -> None:
    task_id, upload = await interrupted(database, files, "running", Recorded(cancel_after=8))
    assert await files_in(files, "") == [upload]
    assert set((await rows(database)).values()) == {0}

    result = await run(database, files, SAMPLE.read_bytes(), task_id=task_id)

    assert (await rows(database))["library"] == 1
    assert result["lp_restored_data"]["num_components"] == 7


async def test_a_run_again_finds_what_the_first_one_has_staged(
    database: Database, files: Files
) -> None:
    task_id, _ = await interrupted(database, files, "running", Told())
    before = await rows(database)
    assert before["library"] == 1

    result = await run(database, files, SAMPLE.read_bytes(), task_id=task_id)

    assert await rows(database) == before
    await made_of(database, result)


async def test_two_runs_of_one_task_at_once_stage_one_package(
    database: Database, files: Files
) -> None:
    task_id = uuid4()
    upload = f"library_restore/{task_id}"
    await files.put(upload, SAMPLE.read_bytes())
    tasks = [make_task(database, files, Recorded(), task_id=task_id) for _ in range(2)]

    ends = await asyncio.gather(
        *(restore_library(task, upload=upload) for task in tasks), return_exceptions=True
    )

    assert (await rows(database))["library"] == 1
    assert ends[0] == ends[1]
    assert len(await files_in(files, "content")) == 1


# Making a library of it


async def test_of_two_libraries_of_one_package_one_is_made(
    database: Database, files: Files
) -> None:
    result = await run(database, files, SAMPLE.read_bytes())

    ends = await asyncio.gather(
        *(made_of(database, result, slug) for slug in ("ONE", "TWO")), return_exceptions=True
    )

    refusals = [end for end in ends if isinstance(end, FieldRefused)]
    package = result["lp_restored_data"]["id"]
    message = f'Invalid pk "{package}" - object does not exist.'
    assert [end.fields for end in refusals] == [{"learning_package": [message]}]
    assert (await rows(database))["library"] == 1


async def test_a_package_is_its_restorers_alone(database: Database, files: Files) -> None:
    result = await run(database, files, SAMPLE.read_bytes())

    with pytest.raises(FieldRefused):
        await made_of(database, result, user="eve")

    await made_of(database, result)
    with pytest.raises(FieldRefused):
        await made_of(database, result, slug="AGAIN")


async def test_a_taken_slug_leaves_the_package_for_another_try(
    database: Database, files: Files
) -> None:
    result = await run(database, files, SAMPLE.read_bytes())
    async with database.sessions.begin() as session:
        await make_library(session, slug="TAKEN")

    with pytest.raises(FieldRefused) as refusal:
        await made_of(database, result, "TAKEN")

    assert refusal.value.fields == {"slug": "A library with that ID already exists."}
    assert (await made_of(database, result, "FREE")).slug == "FREE"


async def test_unused_packages_expire_with_their_files(database: Database, files: Files) -> None:
    used = await run(database, files, SAMPLE.read_bytes())
    library = await made_of(database, used)
    await run(database, files, SAMPLE.read_bytes())
    await run(database, files, SAMPLE.read_bytes())
    old = """
        update library set staged_at = now() - interval '3 hours'
        where id = (select max(id) from library)
    """
    async with database.sessions.begin() as session:
        await (await session.connection()).execute(text(old))

    for task in (upload_cleanup, orphan_cleanup):
        await task(make_task(database, files, user=None, staged_hours=4))
        assert (await rows(database))["library"] == 3
    await upload_cleanup(make_task(database, files, user=None, staged_hours=2))
    assert (await rows(database))["library"] == 2
    assert len(await files_in(files, "content")) == 2
    async with database.sessions.begin() as session:
        await (await session.connection()).execute(text(old))
    await orphan_cleanup(make_task(database, files, user=None, staged_hours=2))

    assert (await rows(database))["library"] == 1
    assert await files_in(files, "content") == await files_in(files, f"content/{library.uuid}")


async def test_memory_does_not_grow_with_the_files(database: Database, files: Files) -> None:
    noise = os.urandom(1024)
    big = [
        (f"{A}/component_versions/v1/static/{number}.bin", os.urandom(8) + noise * 12_000)
        for number in range(4)
    ]
    data = make_zip(*sample().items(), *big, method=zipfile.ZIP_STORED)
    size = len(data)
    upload = f"library_restore/{uuid4()}"
    await files.put(upload, data)
    del data, big
    task = make_task(database, files, Recorded())

    tracemalloc.start()
    try:
        await restore_library(task, upload=upload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert size > 45_000_000
    assert peak < 20_000_000


# What a user reads


def view(base_state: str, *artifacts: dict[str, Any]) -> StatusView:
    common = {"file_name": None, "size": None, "url": "", "created": NOON, "uuid": uuid4()}
    return StatusView.model_validate(
        {
            "uuid": uuid4(), "user": "ada", "name": "x", "state": base_state, "stage": None,
            "base_state": base_state, "completed_steps": 0, "total_steps": 1, "attempts": 1,
            "task_class": "", "task_type": "", "parent": None, "error": None, "created": NOON,
            "modified": NOON, "started_at": None, "finished_at": None,
            "artifacts": [common | artifact for artifact in artifacts],
        }
    )  # fmt: skip


async def test_the_result_has_the_words_of_the_contract(database: Database, files: Files) -> None:
    stored = await run(database, files, SAMPLE.read_bytes())

    seen = described(
        view("Succeeded", {"name": "Library Restore", "text": orjson.dumps(stored), "file": ""})
    )

    assert (seen.state, seen.error, seen.error_log) == ("Succeeded", None, None)
    assert seen.result is not None
    assert list(seen.result) == [
        "learning_package_id", "title", "org", "slug", "key", "archive_key", "containers",
        "components", "collections", "sections", "subsections", "units", "created_on_server",
        "created_at", "created_by",
    ]  # fmt: skip
    assert (seen.result["org"], seen.result["slug"]) == ("Example", "Sampler")
    assert seen.result["archive_key"] == "lib:Example:Sampler"
    assert (seen.result["containers"], seen.result["components"]) == (4, 7)
    assert set(seen.result["created_by"]) == {"username", "email"}


@pytest.mark.parametrize(
    ("key", "ref"), [("lib:O:S", "ada:O:S"), ("other", "ada:other"), ("a:b:c:d", "ada:b:c")]
)
async def test_the_archives_key_is_only_a_suggestion(
    database: Database, files: Files, key: str, ref: str
) -> None:
    data = changed("package.toml", "lib:Example:Sampler", key)
    package = (await run(database, files, data))["lp_restored_data"]

    assert package["package_ref"].rpartition(":")[0] == f"lp-restore:{ref}"
    known = package["archive_org_code"] is not None
    assert known == (key.count(":") >= 2)


@pytest.mark.parametrize(
    ("base", "shown"),
    [("Pending", "Pending"), ("In Progress", "In Progress"), ("Retrying", "In Progress"),
     ("Canceled", "Canceled")],
)  # fmt: skip
def test_states_are_words_that_clients_know(base: str, shown: str) -> None:
    assert described(view(base)).state == shown


def test_failures_link_to_their_log_and_bad_results_are_told() -> None:
    log = {"name": "Error log", "text": "", "file": "http://x/log"}
    failed = described(view("Failed", log))
    bad = described(view("Succeeded", {"name": "Library Restore", "text": "{", "file": ""}))

    assert failed.error == "Library restore failed. See error log for details."
    assert failed.error_log == "http://x/log"
    assert described(view("Failed")).error_log is None
    assert bad.error == "Could not decode artifact JSON. Artifact Text: {"
    assert (bad.result, bad.error_log) == (None, None)
