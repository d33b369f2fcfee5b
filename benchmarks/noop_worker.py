"""A worker with the least possible tasks."""

import time

from services.dispatcher.runner import TaskContext, TaskRunner
from services.dispatcher.settings import Settings
from shared.worker import WorkerSpec


async def noop(task: TaskContext) -> None:
    """Nothing."""


async def stamped(task: TaskContext) -> float:
    """The moment it ran: what rows of the database cannot tell."""
    return time.time()


async def five_steps(task: TaskContext) -> None:
    """A person could watch it."""
    for _ in range(5):
        await task.progress.advance()


runner = TaskRunner({"noop": noop, "stamped": stamped, "five_steps": five_steps})
SERVICE = WorkerSpec(settings=Settings, jobs=[runner.take_work], background=[runner.alive])
