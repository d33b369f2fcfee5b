"""Importing OLX into a library: the upload, the task that reads it, and its report."""

import asyncio
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from asyncpg import PostgresError
from sqlalchemy.exc import DBAPIError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.runner import TaskContext
from services.libraries import components, entities, libraries, media, publishing, work
from services.libraries.components import NewComponent
from services.libraries.entries import read, shown
from services.libraries.errors import LimitReached
from services.libraries.import_reports import Report
from services.libraries.media import NewMedia
from services.libraries.models import Library
from services.libraries.olx import InvalidOlx
from services.libraries.olx_trees import Found, Loaded, OlxTree
from services.libraries.settings import Settings
from services.libraries.states import component_ref
from services.libraries.unpacking import LONGEST_MARK, NO_ARCHIVE, kind_of, unpack
from shared.callers import Caller
from shared.database import utc_now
from shared.files import Files, spool
from shared.problems import BadInput, Problem, was_given_up

FUNCTION = "import_library"
UPLOADS = "library_import"
REPORT = "Import report"
BATCH = 100
BATCH_BYTES = 4 * 1024 * 1024
READ_AT_ONCE = 20
ATTEMPTS = 3
SMALL_FILE = 1024 * 1024


class UploadRefused(BadInput):
    """The uploaded file is not one that can be imported."""

    type, title = "upload-refused", "The upload cannot be imported"

    def __init__(self, detail: str | None = None, **kwargs: Any) -> None:
        super().__init__(detail, fields={"file": [detail or self.title]})


async def start(
    session: AsyncSession,
    files: Files,
    library: Library,
    upload: AsyncIterable[bytes],
    *,
    caller: Caller,
    now: datetime,
    limit: int,
) -> UUID:
    """Keep the upload and ask for its import, in this transaction. The task's id.

    Raises UploadRefused for what is no archive, or TooBig; nothing is kept then.
    """
    task = work.request(
        FUNCTION,
        library.key,
        caller=caller,
        name=f"Import into {library.key}",
        task_type="library-import",
        alone=True,
        repeatable=True,
    )
    # Named after its task, so that what a lost import leaves behind can be told.
    path = f"{UPLOADS}/{task.id}"
    task.arguments["upload"] = path
    await files.put(path, _archive_only(upload), limit=limit)
    try:
        return await work.dispatch(session, task, caller=caller, now=now)
    except BaseException:
        await files.delete([path])
        raise


async def _archive_only(upload: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, once the first of them look like an archive."""
    head: bytes | None = b""
    async for chunk in upload:
        if head is None:
            yield chunk
            continue
        head += chunk
        if len(head) >= LONGEST_MARK:
            yield _checked(head)
            head = None
    if head is not None:
        yield _checked(head)


def _checked(head: bytes) -> bytes:
    if kind_of(head) is None:
        raise UploadRefused(NO_ARCHIVE)
    return head


async def import_library(task: TaskContext, *, library_key: str, upload: str) -> dict[str, Any]:
    """Read the upload's components into the library: all of them, or none.

    Components that exist get a new version where their content differs, so that repeating this
    changes nothing. Those that cannot be read are left out and reported. The upload is removed
    at the very end: a run whose worker is lost before is repeated from it.
    """
    report = Report(library_key)
    try:
        await _import_upload(task, library_key, upload, report)
        await task.progress.artifact(REPORT, text=report.text())
    finally:
        await task.files.delete([upload])
    return report.numbers()


async def _import_upload(task: TaskContext, library_key: str, upload: str, report: Report) -> None:
    try:
        async with _opened(task, upload) as tree:
            await task.progress.stage("Importing")
            await _import_until_done(task, library_key, tree, report)
    except Problem as problem:
        report.failed(problem)
        await task.progress.artifact(REPORT, text=report.text())
        raise


async def _import_until_done(
    task: TaskContext, library_key: str, tree: OlxTree, report: Report
) -> None:
    """Again when PostgreSQL gave it up: for somebody who made one of these at the same time."""
    for left in reversed(range(ATTEMPTS)):
        report.begin(tree)
        try:
            async with task.sessions.begin() as session:
                await _import_all(task, session, library_key, tree, report)
            return
        except (DBAPIError, PostgresError) as error:
            if not (left and was_given_up(error)):
                raise
            await task.progress.advance(-report.done)


@asynccontextmanager
async def _opened(task: TaskContext, upload: str) -> AsyncIterator[OlxTree]:
    """The uploaded tree, unpacked into temporary files for the time of the import."""
    check = task.progress.check
    assert isinstance(task.settings, Settings)
    limits = task.settings.archive_limits
    await task.progress.stage("Unpacking")
    with tempfile.TemporaryDirectory(prefix="lyceum-") as folder:
        source = Path(folder) / "upload"
        await spool(task.files.stream(upload), source, limit=task.settings.max_upload_bytes)
        unpacked = await asyncio.to_thread(unpack, source, limits, check)
    with unpacked:
        await task.progress.stage("Reading")
        settings = task.settings
        tree = await asyncio.to_thread(
            OlxTree, unpacked, settings.olx_limits, settings.allowed_types
        )
        await task.progress.total(len(tree.components))
        yield tree


async def _import_all(
    task: TaskContext, session: AsyncSession, library_key: str, tree: OlxTree, report: Report
) -> None:
    assert isinstance(task.settings, Settings)
    library = await libraries.get(session, library_key)
    await media.use_files(session, library)
    most = task.settings.most_blocks
    if len(tree.components) > most:
        raise LimitReached(f"Library cannot have more than {most} Components.")
    assets = Assets(task.files, library, tree, task.settings.most_asset_bytes)
    refs = [component_ref(found.block_type, found.code) for found in tree.components]
    if await entities.ids_of(session, library, refs):
        # In the order of all who change what is there already; new components are in nobody's way.
        await publishing.hold(session, library, task.fence)
        await components.hold_all(session, library, refs)
    batch: list[NewComponent] = []
    done = 0
    async for item in _read_all(tree, assets, report, task.progress.check):
        done += 1
        if item is not None:
            batch.append(item)
        if len(batch) >= BATCH or sum(len(one.olx) for one in batch) > BATCH_BYTES:
            await _add(session, library, batch, report, user=task.user)
            await _advance(task, report, done)
            batch, done = [], 0
    await _add(session, library, batch, report, user=task.user)
    # Of what is all new only now, so that other people need not wait for the whole import.
    await publishing.hold(session, library, task.fence)
    await components.require_room(session, library, 0, most=most)
    await _advance(task, report, done)


async def _advance(task: TaskContext, report: Report, steps: int) -> None:
    report.done += steps
    await task.progress.advance(steps)


async def _add(
    session: AsyncSession,
    library: Library,
    batch: Sequence[NewComponent],
    report: Report,
    *,
    user: str | None,
) -> None:
    if batch:
        outcome = await components.add_many(session, library, batch, user=user, now=utc_now())
        for item in batch:
            report.added(item.block_type, outcome[item.ref])


async def _read_all(
    tree: OlxTree, assets: "Assets", report: Report, check: Callable[[], None]
) -> AsyncIterator[NewComponent | None]:
    """Every component of the tree with its files stored; None for one that is left out."""
    found = tree.components
    for first in range(0, len(found), READ_AT_ONCE):
        some = found[first : first + READ_AT_ONCE]
        for one, loaded in await asyncio.to_thread(_load, tree, some, check):
            yield await _with_assets(one, loaded, assets, report)


def _load(
    tree: OlxTree, some: Sequence[Found], check: Callable[[], None]
) -> list[tuple[Found, Loaded | InvalidOlx]]:
    loaded: list[tuple[Found, Loaded | InvalidOlx]] = []
    for found in some:
        check()
        try:
            loaded.append((found, tree.load(found)))
        except InvalidOlx as error:
            loaded.append((found, error))
    return loaded


async def _with_assets(
    found: Found, loaded: Loaded | InvalidOlx, assets: "Assets", report: Report
) -> NewComponent | None:
    if isinstance(loaded, InvalidOlx):
        report.skipped[found.name] = loaded.detail
        return None
    too_large = next((name for name in loaded.assets.values() if assets.too_large(name)), None)
    if too_large is not None:
        report.skipped[found.name] = f"{shown(too_large)} has more than {assets.limit} bytes."
        return None
    if loaded.missing:
        report.missing[found.name] = ", ".join(shown(path) for path in loaded.missing)
    stored = {path: await assets.store(name) for path, name in loaded.assets.items()}
    block = loaded.block
    return NewComponent(found.block_type, found.code, block.title, block.olx, stored)


@dataclass
class Assets:
    """The static files of a tree; each is put into the object store once."""

    files: Files
    library: Library
    tree: OlxTree
    limit: int
    _stored: dict[str, NewMedia] = field(default_factory=dict)

    def too_large(self, name: str) -> bool:
        return self.tree.tree.size(name) > self.limit

    async def store(self, name: str) -> NewMedia:
        if name not in self._stored:
            source = self.tree.tree
            small = source.size(name) <= SMALL_FILE
            data = await asyncio.to_thread(read, source, name) if small else self._stream(name)
            self._stored[name] = await media.store_file(
                self.files, self.library, data, media.media_type_of(name)
            )
        return self._stored[name]

    async def _stream(self, name: str) -> AsyncIterator[bytes]:
        pieces = self.tree.tree.chunks(name)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece
