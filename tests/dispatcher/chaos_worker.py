"""A worker for the chaos test: its functions write their own history, surviving kill -9."""

import asyncio
import os
import time

from services.dispatcher.runner import TaskContext, TaskRunner
from services.dispatcher.settings import Settings
from shared.worker import WorkerSpec


def record(task: TaskContext, event: str, history: str) -> None:
    line = f"{time.monotonic_ns()} {os.getpid()} {task.task_id} {task.fence} {event}\n"
    handle = os.open(history, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


async def work(task: TaskContext, *, seconds: float, history: str) -> str:
    """Hold the resources for a while."""
    record(task, "start", history)
    try:
        await asyncio.sleep(seconds)
    finally:
        record(task, "end", history)
    return "done"


async def noop(task: TaskContext) -> None:
    """The least a task can be."""


runner = TaskRunner({"work": work, "noop": noop})
SERVICE = WorkerSpec(settings=Settings, jobs=[runner.take_work], background=[runner.alive])
