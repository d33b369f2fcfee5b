"""The queue process of libraries."""

from services.dispatcher.runner import TaskRunner
from services.libraries.backup import backup_library
from services.libraries.importing import import_library
from services.libraries.jobs import delete_library, publish_library
from services.libraries.settings import Settings
from shared.worker import WorkerSpec

runner = TaskRunner(
    {
        "backup_library": backup_library,
        "delete_library": delete_library,
        "import_library": import_library,
        "publish_library": publish_library,
    }
)
SERVICE = WorkerSpec(settings=Settings, jobs=[runner.take_work], background=[runner.alive])
