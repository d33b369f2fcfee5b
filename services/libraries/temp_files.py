"""Uploaded files that wait for a task which will own them. contract: dispatcher §6.2"""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.general import GivenFile
from services.dispatcher.runner import TaskContext
from services.libraries.errors import TempFileTaken, TempFileUnknown
from services.libraries.models import TempFile
from shared.files import Files
from shared.ids import new_id
from shared.problems import BadInput

FOLDER = "temp_files"
WRONG_SUM = "The file does not have this SHA-256."


async def store(
    session: AsyncSession,
    files: Files,
    upload: AsyncIterable[bytes],
    *,
    user: str,
    now: datetime,
    limit: int,
    sha256: str | None = None,
) -> TempFile:
    """Keep an upload. Raises TooBig, or BadInput when it is not what `sha256` says."""
    state = hashlib.sha256()

    async def summed() -> AsyncIterator[bytes]:
        async for chunk in upload:
            state.update(chunk)
            yield chunk

    ident = new_id()
    path = f"{FOLDER}/{ident}"
    try:
        stored = await files.put(path, summed(), limit=limit)
        if sha256 is not None and sha256.lower() != state.hexdigest():
            raise BadInput(f"sha256: {WRONG_SUM}", fields={"sha256": [WRONG_SUM]})
        kept = TempFile(
            id=ident, path=path, size=stored.size, sha256=state.hexdigest(), created_by=user,
            created_at=now,
        )  # fmt: skip
        session.add(kept)
        await session.flush()
    except BaseException:
        await files.delete([path])
        raise
    return kept


async def give(session: AsyncSession, ident: UUID, task_id: UUID, *, user: str) -> TempFile:
    """Make a task the owner of a person's file. Raises TempFileUnknown or TempFileTaken."""
    kept = await session.get(TempFile, ident, with_for_update=True)
    if kept is None or kept.created_by != user:
        raise TempFileUnknown(fields={"temp_file": [TempFileUnknown.title]})
    if kept.task_id is not None:
        raise TempFileTaken(task_id=str(kept.task_id))
    kept.task_id = task_id
    session.add(kept)
    await session.flush()
    return kept


class OwnedFiles:
    """What a running task does with the file that was given to it."""

    @asynccontextmanager
    async def owned(self, task: TaskContext, ident: str) -> AsyncIterator[GivenFile]:
        """The file; it is removed when this is left, whatever happened. Raises TempFileUnknown."""
        async with task.sessions() as session:
            query = select(TempFile).where(
                col(TempFile.id) == UUID(ident), col(TempFile.task_id) == task.task_id
            )
            kept = (await session.exec(query)).first()
        if kept is None:
            raise TempFileUnknown
        try:
            yield GivenFile(kept.path, kept.size, kept.sha256)
        finally:
            await remove(task, [kept])


async def remove(task: TaskContext, kept: Sequence[TempFile]) -> None:
    """Remove files and then their rows, so that nothing is forgotten half-way."""
    await task.files.delete([one.path for one in kept])
    async with task.sessions.begin() as session:
        await session.exec(delete(TempFile).where(col(TempFile.id).in_([one.id for one in kept])))


async def remove_free(task: TaskContext, kept: Sequence[TempFile]) -> None:
    """The same for those that no task has taken since they were read."""
    async with task.sessions.begin() as session:
        query = (
            select(TempFile)
            .where(col(TempFile.id).in_([one.id for one in kept]))
            .order_by(col(TempFile.id))
            .with_for_update(skip_locked=True)
        )
        owners = {one.id: one.task_id for one in kept}
        rows = (await session.exec(query.execution_options(populate_existing=True))).all()
        free = [row for row in rows if row.task_id == owners[row.id]]
        await session.exec(delete(TempFile).where(col(TempFile.id).in_([one.id for one in free])))
        await task.files.delete([row.path for row in free])
