"""Exporting library versions and publications into the object store.

contract: dispatcher §6.8, §6.9

An export is written once: a place where something is already is refused. The record of a failed
export stays; what it has written goes, at once or, if it was killed, with the next that is
written there.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client as dispatcher
from services.dispatcher.general import Action, call_of, found, rights_of
from services.dispatcher.runner import TaskContext
from services.dispatcher.schemas import UserTaskSpec
from services.libraries import export_names, export_places, library_versions, media
from services.libraries.archive import Entry, pack
from services.libraries.errors import ExportUnknown, VersionUnknown
from services.libraries.export_contents import Contents, Source
from services.libraries.models import (
    Export,
    Exporter,
    Library,
    LibraryVersion,
    Publication,
)
from services.libraries.states import ExportFormat
from services.libraries.version_resources import EXPORTERS, export_href, hold_exporter
from shared.callers import Caller
from shared.database import utc_now
from shared.files import Files
from shared.problems import BadInput

AT_ONCE = 16
SourceOf = Callable[[AsyncSession, Library], Awaitable[Source]]
ARCHIVE = "archive.zip"


async def start(
    session: AsyncSession,
    library: Library,
    exporter: Exporter,
    *,
    publication: Publication | None,
    number: int | None,
    start_number: int | None,
    caller: Caller,
) -> UUID:
    """Ask for an export in this transaction. The task's id. Raises BadInput for unknown numbers."""
    for field, wanted in (("version", number), ("start_version", start_number)):
        if wanted is not None and await library_versions.find(session, library, wanted) is None:
            message = f"There is no version {wanted}."
            raise BadInput(f"{field}: {message}", fields={field: [message]})
    what: dict[str, Any] = (
        {"publication_id": str(publication.id)} if publication else {"number": number}
    )
    return await dispatcher.dispatch(
        session,
        "fs_publication_export" if publication else "fs_repo_version_export",
        queue="libraries",
        kwargs={
            "exporter_id": str(exporter.id),
            "start_number": start_number,
            **what,
            **rights_of(caller),
        },
        exclusive=[EXPORTERS.prn(str(exporter.id)), f"exports:{library.key}"],
        shared=[library.key],
        caller=caller,
        user_task=UserTaskSpec(
            name=f"Export {library.key}"[:255], total_steps=1, task_type="library-export"
        ),
        repeatable=True,
    )


async def fs_publication_export(
    task: TaskContext,
    *,
    exporter_id: str,
    publication_id: str,
    start_number: int | None = None,
    administrator: bool = False,
    groups: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a published version with what describes it."""

    async def source(session: AsyncSession, library: Library) -> Source:
        publication = await session.get(Publication, UUID(publication_id))
        if publication is None or publication.library_id != library.id:
            raise VersionUnknown("There is no such publication.")
        version = await session.get(LibraryVersion, publication.version_id)
        assert version is not None
        return Source(library, version.number, start_number, version.created, publication)

    return await _export(task, exporter_id, start_number, administrator, groups, source)


async def fs_repo_version_export(
    task: TaskContext,
    *,
    exporter_id: str,
    number: int,
    start_number: int | None = None,
    administrator: bool = False,
    groups: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the files of a version, and nothing about it."""

    async def source(session: AsyncSession, library: Library) -> Source:
        version = await library_versions.get(session, library, number)
        return Source(library, version.number, start_number, version.created)

    return await _export(task, exporter_id, start_number, administrator, groups, source)


async def _export(
    task: TaskContext,
    exporter_id: str,
    start_number: int | None,
    administrator: bool,
    groups: Sequence[str],
    source_of: SourceOf,
) -> dict[str, Any]:
    async with task.sessions.begin() as session:
        call = call_of(task, session, administrator, groups)
        exporter = await found(session, EXPORTERS, exporter_id)
        await EXPORTERS.permit(call, Action.UPDATE, [exporter])
        await hold_exporter(session, exporter, task.fence)
        session.expire_all()
        exporter = await found(session, EXPORTERS, exporter_id)
        library = await EXPORTERS.library_of(session, exporter)
        source = await source_of(session, library)
        if start_number is not None:
            await library_versions.get(session, library, start_number)
        export = await _record(task, session, exporter, source)
    if export.finished is None:
        async with task.sessions.begin() as session:
            await export_places.take(session, task.files, library, export)
        try:
            await _write(task, exporter.format, source, export)
        except BaseException:  # Also a cancel: nobody shall take half an export for a whole one.
            async with task.sessions.begin() as session:
                await export_places.give_up(session, task.files, export)
            raise
    return {"path": export.path, "files": export.files, "size": export.size}


async def _record(
    task: TaskContext, session: AsyncSession, exporter: Exporter, source: Source
) -> Export:
    """The export of this task; that of its first run when it runs again."""
    now = utc_now()
    query = select(Export).where(col(Export.task_id) == task.task_id).with_for_update()
    export = (await session.exec(query)).first()
    if export is not None:
        export.fence = task.fence
        return export
    path = export_names.place(
        exporter, source.library, number=source.number, start=source.start,
        task_id=task.task_id, now=now,
    )  # fmt: skip
    export = Export(
        exporter_id=exporter.id, task_id=task.task_id, number=source.number,
        start_number=source.start, created=now, path=path, fence=task.fence,
        publication_id=source.publication.id if source.publication else None,
    )  # fmt: skip
    session.add(export)
    href = export_href(source.library.key, export.id)
    await task.created(session, f"prn:libraries.export:{export.id}", href)
    return export


async def _write(task: TaskContext, format: ExportFormat, source: Source, export: Export) -> None:
    await task.progress.stage("Exporting")
    writing = Writing(task.files, export)
    async with task.sessions() as session:
        await session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        await media.use_files(session, source.library)
        contents = Contents(session, task.files, source, task.progress)
        count = await contents.count()
        await task.progress.total(count)
        async with task.reports.report("Exporting units", "export.units", total=count) as report:
            if format is ExportFormat.ZIP:
                await writing.archive(contents.entries())
            else:
                await writing.tree(contents.entries())
            await report.increase_by(count)
    export.files, export.size, export.finished = writing.count, writing.size, utc_now()
    async with task.sessions.begin() as session:
        await export_places.finish(session, export)


class Writing:
    """Puts entries where an export goes, and counts them."""

    def __init__(self, files: Files, export: Export) -> None:
        self._files, self._path = files, export.path
        self.count = self.size = 0

    async def archive(self, entries: AsyncGenerator[Entry]) -> None:
        async with aclosing(pack(self._counted(entries))) as pieces:
            self.size = (await self._files.put(self._path, pieces)).size

    async def tree(self, entries: AsyncGenerator[Entry]) -> None:
        """Small files are put several at a time, large ones as streams."""
        small: list[Entry] = []
        async with aclosing(self._counted(entries)) as counted:
            async for entry in counted:
                if callable(entry.data):
                    await self._put(entry)
                    continue
                small.append(entry)
                if len(small) >= AT_ONCE:
                    await self._put_all(small)
                    small = []
        await self._put_all(small)

    async def _put_all(self, entries: Sequence[Entry]) -> None:
        await asyncio.gather(*(self._put(entry) for entry in entries))

    async def _put(self, entry: Entry) -> None:
        data = entry.data() if callable(entry.data) else entry.data or b""
        stored = await self._files.put(f"{self._path}/{entry.name}", data)
        self.size += stored.size

    async def _counted(self, entries: AsyncGenerator[Entry]) -> AsyncGenerator[Entry]:
        async with aclosing(entries):
            async for entry in entries:
                self.count += 1
                yield entry


async def get(session: AsyncSession, library: Library, ident: UUID) -> Export:
    """Raises ExportUnknown."""
    query = (
        select(Export)
        .join(Exporter, col(Exporter.id) == col(Export.exporter_id))
        .where(col(Export.id) == ident, col(Exporter.library_id) == library.id)
    )
    export = (await session.exec(query)).first()
    if export is None:
        raise ExportUnknown
    return export


async def remove(session: AsyncSession, files: Files, export_id: UUID) -> None:
    """Remove an export with its files, and tell that it is gone. As `export_places.remove`."""
    await export_places.remove(session, files, export_id)
    await dispatcher.gone(session, f"prn:libraries.export:{export_id}")


async def page(
    session: AsyncSession, library: Library, *, before: UUID | None, size: int
) -> Sequence[Export]:
    """Exports of a library, newest first; their ids are in the order of their making."""
    query = (
        select(Export)
        .join(Exporter, col(Exporter.id) == col(Export.exporter_id))
        .where(col(Exporter.library_id) == library.id)
    )
    if before is not None:
        query = query.where(col(Export.id) < before)
    return (await session.exec(query.order_by(col(Export.id).desc()).limit(size))).all()


def file_of(export: Export, path: str) -> str:
    """Where a file of a finished export is. Raises ExportUnknown for what cannot be one."""
    if (
        export.finished is None
        or "\x00" in path
        or not all(part.strip(".") for part in path.split("/"))
    ):
        raise ExportUnknown
    if export.path.endswith(export_names.ARCHIVED):
        if path != ARCHIVE:
            raise ExportUnknown
        return export.path
    return f"{export.path}/{path}"
