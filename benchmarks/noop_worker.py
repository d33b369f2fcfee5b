"""A worker with the least possible task."""

from services.dispatcher.runner import TaskContext, TaskRunner
from services.dispatcher.settings import Settings
from shared.worker import WorkerSpec


async def noop(task: TaskContext) -> None:
    """Nothing."""


runner = TaskRunner({"noop": noop})
SERVICE = WorkerSpec(settings=Settings, jobs=[runner.take_work], background=[runner.alive])
