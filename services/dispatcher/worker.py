"""The dispatcher's own queue process; giving work to others' is the web process's (`pushing`)."""

from services.dispatcher.purge import purge
from services.dispatcher.runner import TaskRunner
from services.dispatcher.settings import Settings
from shared.worker import WorkerSpec

runner = TaskRunner({"purge": purge})
SERVICE = WorkerSpec(settings=Settings, jobs=[runner.take_work], background=[runner.alive])
