"""Archives there and back with the real upstream package, where it is installed.

Needs an interpreter (Python 3.12 or newer) with `openedx-core` in LYCEUM_PEER_PYTHON; see
docs/operations.md. Skipped without.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.libraries.archive_contents import ArchivedEntity
from services.libraries.archive_reading import read_archive
from shared.database import Database
from shared.files import Files
from tests.conftest import Servers
from tests.libraries.test_archive import SAMPLE, data_of
from tests.libraries.test_restoring import back_up, everything, made_of, run

PYTHON = os.environ.get("LYCEUM_PEER_PYTHON", "")
SCRIPT = Path(__file__).with_name("peer_archives.py")
pytestmark = pytest.mark.skipif(not PYTHON, reason="LYCEUM_PEER_PYTHON is not set")

Seen = dict[str, Any]


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    database = Database(clean.urls["libraries"])
    yield database
    await database.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(f"file://{tmp_path}/objects")


async def through_peer(tmp_path: Path, data: bytes) -> bytes:
    """What the upstream package writes after it has read an archive."""
    source, target = tmp_path / "in.zip", tmp_path / "out.zip"
    source.write_bytes(data)
    process = await asyncio.create_subprocess_exec(
        PYTHON, str(SCRIPT), str(source), str(target),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(180):
        printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return target.read_bytes()


async def seen(tmp_path: Path, data: bytes) -> Seen:
    """All that an archive says, whatever its files are called."""
    path = tmp_path / "seen.zip"
    path.write_bytes(data)
    with read_archive(path) as contents:
        return {
            "title": contents.manifest.title,
            "description": contents.manifest.description,
            "created": contents.manifest.created,
            "collections": {
                one.code: (one.title, one.description, sorted(one.members))  # type: ignore[arg-type]
                for one in contents.collections
                if one.enabled
            },
            "entities": {one.key: await _entity(one) for one in contents.entities},
        }


async def _entity(one: ArchivedEntity) -> Seen:
    versions = {
        version.version_num: {
            "title": version.title,
            "children": version.children,
            "media": {file.path: await data_of(file) for file in version.media},
        }
        for version in one.versions
        if version.version_num in (one.draft_num, one.published_num)
    }
    return {
        "type": one.container_type, "alone": one.can_stand_alone, "created": one.created,
        "draft": one.draft_num, "published": one.published_num, "versions": versions,
    }  # fmt: skip


async def test_their_archive_through_us_and_back_is_the_same(
    database: Database, files: Files, tmp_path: Path
) -> None:
    theirs = await through_peer(tmp_path, SAMPLE.read_bytes())

    library = await made_of(database, await run(database, files, theirs))
    ours = await back_up(database, files, library.key)
    back = await through_peer(tmp_path, ours)

    expected = await seen(tmp_path, SAMPLE.read_bytes())
    for data in (theirs, ours, back):
        found = await seen(tmp_path, data)
        if data is not theirs:
            # A library is called what its creator calls it.
            found |= {"title": expected["title"], "description": expected["description"]}
        assert found == expected


async def test_our_archive_restores_there_but_for_what_they_cannot_keep(
    database: Database, files: Files, tmp_path: Path
) -> None:
    library = await everything(database, files, odd_paths=False)
    ours = await back_up(database, files, library.key)

    theirs = await through_peer(tmp_path, ours)
    again = await made_of(database, await run(database, files, theirs))

    expected = await seen(tmp_path, ours)
    # A pending delete, and empty files, are what the peer has no place for.
    expected["entities"]["xblock.v1:html:gone"]["draft"] = 1
    for entity in expected["entities"].values():
        for version in entity["versions"].values():
            version["media"] = {path: data for path, data in version["media"].items() if data}
    assert await seen(tmp_path, theirs) == expected
    back = await seen(tmp_path, await back_up(database, files, again.key))
    assert back | {name: expected[name] for name in ("title", "description")} == expected
