"""The dispatcher's own worker with functions of the tests beside its own."""

from services.dispatcher.purge import purge
from services.dispatcher.runner import TaskRunner
from services.dispatcher.settings import Settings
from shared.worker import WorkerSpec
from tests.dispatcher.chaos_worker import noop, work

runner = TaskRunner({"work": work, "noop": noop, "purge": purge})
SERVICE = WorkerSpec(settings=Settings, jobs=[runner.take_work], background=[runner.alive])
