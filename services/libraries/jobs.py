"""Dispatched functions of libraries; import and backup have modules of their own."""

from services.dispatcher.runner import TaskContext
from services.libraries import libraries, publishing
from shared.database import utc_now


async def publish_library(task: TaskContext, *, library_key: str) -> dict[str, int]:
    """Publish every unpublished change of a library."""
    await task.progress.stage("Publishing")
    async with task.sessions.begin() as session:
        library = await libraries.get(session, library_key)
        await publishing.hold(session, library, task.fence)
        count = await publishing.publish_all(session, library, user=task.user, now=utc_now())
    await task.progress.advance()
    return {"published": count}


async def delete_library(task: TaskContext, *, library_key: str) -> None:
    """Remove a library and then its files. Done already is done."""
    async with task.sessions.begin() as session:
        library = await libraries.find(session, library_key)
        if library is not None:
            await publishing.hold(session, library, task.fence)
            await libraries.delete(session, library)
    if library is not None:
        await task.files.delete([path async for path in task.files.list(f"content/{library.uuid}")])
    await task.progress.advance()
