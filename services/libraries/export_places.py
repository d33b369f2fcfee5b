"""Places in the object store where exports are written: who has them, and clearing them.

Exports of one library run one at a time. A place belongs to the export that is `writing` there
until it has finished; what others left there unfinished goes, and finished exports stay as they
are. contract: dispatcher §6.8
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.errors import (
    ExportRefused,
    ExportRunning,
    ExportUnknown,
    Superseded,
)
from services.libraries.export_names import ARCHIVED
from services.libraries.models import Export, Exporter, Library
from shared.files import Files

EXISTING = "Cannot export to directories that contain existing data."

# At this place, above it or below it.
_THERE = text("""
    select export.id, export.path, export.writing, export.finished from export
    join exporter on exporter.id = export.exporter_id
    where exporter.library_id = :library_id
      and (export.writing or export.finished is not null)
      and (export.path = :path or starts_with(export.path, :path || '/')
           or starts_with(:path, export.path || '/'))
    order by export.id for update of export
""")
_LEFT = text("update export set writing = false where id = any(cast(:ids as uuid[]))")
_TAKE = text("""
    update export set writing = true where id = :id and fence = :fence and finished is null
""")
_OURS = text("""
    select id from export where id = :id and fence = :fence and writing for update
""")
_OF_EXPORTER = text("""
    select id, path from export where exporter_id = :id and writing order by id for update
""")
_THESE = text("""
    select id, path from export where id = any(cast(:ids as uuid[])) and writing
    order by id for update
""")
_ONE = text("select id, path, writing, finished from export where id = :id for update")
_FORGET = text("delete from export where id = :id")
_FINISH = text("""
    update export set writing = false, finished = :finished, files = :files, size = :size
    where id = :id and fence = :fence and writing
""")


async def take(session: AsyncSession, files: Files, library: Library, export: Export) -> None:
    """Make this place the export's own: nothing is there then.

    Raises ExportRefused when something else is there, also a finished export above or below.
    """
    connection = await session.connection()
    values = {"library_id": library.id, "path": export.path}
    rows = (await connection.execute(_THERE, values)).all()
    if any(row.finished is not None for row in rows):
        raise ExportRefused(EXISTING, path=export.path)
    await _clear(session, files, rows)
    async for _ in files.list(export.path):
        raise ExportRefused(EXISTING, path=export.path)
    if await files.exists(export.path):
        raise ExportRefused(EXISTING, path=export.path)
    taken = await connection.execute(_TAKE, {"id": export.id, "fence": export.fence})
    if taken.rowcount == 0:
        raise Superseded("Another run of this export has begun.")


async def give_up(session: AsyncSession, files: Files, export: Export) -> None:
    """Remove what was written so far, unless another run has the place now."""
    connection = await session.connection()
    ours = await connection.execute(_OURS, {"id": export.id, "fence": export.fence})
    await _clear(session, files, [export] if ours.first() is not None else [])


async def clear_all(session: AsyncSession, files: Files, exporter: Exporter) -> None:
    """Remove what unfinished exports of an exporter that nobody uses now have left."""
    connection = await session.connection()
    rows = (await connection.execute(_OF_EXPORTER, {"id": exporter.id})).all()
    await _clear(session, files, rows)


async def clear(session: AsyncSession, files: Files, ids: Sequence[UUID]) -> int:
    """Remove what exports whose tasks have ended have left unfinished. How many had something."""
    rows = (await (await session.connection()).execute(_THESE, {"ids": list(ids)})).all()
    await _clear(session, files, rows)
    return len(rows)


async def remove(session: AsyncSession, files: Files, ident: UUID) -> None:
    """Forget an export and remove what it has written; nobody is given its place meanwhile.

    Raises ExportUnknown, or ExportRunning while it is written.
    """
    connection = await session.connection()
    row = (await connection.execute(_ONE, {"id": ident})).first()
    if row is None:
        raise ExportUnknown
    if row.writing:
        raise ExportRunning
    if row.finished is not None:
        await _clear(session, files, [row])
    await connection.execute(_FORGET, {"id": ident})


async def finish(session: AsyncSession, export: Export) -> None:
    """From now on the export can be seen. Raises Superseded if the place was given to another."""
    connection = await session.connection()
    values = export.model_dump(include={"id", "fence", "finished", "files", "size"})
    if (await connection.execute(_FINISH, values)).rowcount == 0:
        raise Superseded("Another export has been given this place.")


async def _clear(
    session: AsyncSession, files: Files, rows: Sequence[Row[Any]] | Sequence[Export]
) -> None:
    """Were this to be undone, the files would still be nobody's but the export's to remove."""
    ids: list[UUID] = []
    for row in rows:
        packed = row.path.endswith(ARCHIVED)
        there = [row.path] if packed else [path async for path in files.list(row.path)]
        await files.delete(there)
        ids.append(row.id)
    if ids:
        await (await session.connection()).execute(_LEFT, {"ids": ids})
