"""The queue process of libraries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.dispatcher.runner import TaskRunner
from services.libraries import permissions
from services.libraries.backup import backup_library
from services.libraries.exports import fs_publication_export, fs_repo_version_export
from services.libraries.importing import import_library
from services.libraries.jobs import (
    add_and_remove,
    delete_library,
    make_library_version,
    publish_library,
)
from services.libraries.leftovers import tmpfile_cleanup, upload_cleanup
from services.libraries.orphans import orphan_cleanup
from services.libraries.registry import GENERAL
from services.libraries.restoring import restore_library
from services.libraries.settings import Settings
from shared.worker import WorkerContext, WorkerSpec, tells_events

runner = TaskRunner(
    {
        **GENERAL.functions(),
        "add_and_remove": add_and_remove,
        "backup_library": backup_library,
        "delete_library": delete_library,
        "fs_publication_export": fs_publication_export,
        "fs_repo_version_export": fs_repo_version_export,
        "import_library": import_library,
        "make_library_version": make_library_version,
        "orphan_cleanup": orphan_cleanup,
        "publish_library": publish_library,
        "restore_library": restore_library,
        "tmpfile_cleanup": tmpfile_cleanup,
        "upload_cleanup": upload_cleanup,
    }
)


@asynccontextmanager
async def knowing(context: WorkerContext) -> AsyncIterator[None]:
    """Sessions know who creates."""
    settings = context.settings
    assert isinstance(settings, Settings)
    permissions.configure(context.sessions, settings)
    yield


SERVICE = WorkerSpec(
    settings=Settings,
    jobs=[runner.take_work],
    background=[knowing, runner.alive, tells_events],
)
