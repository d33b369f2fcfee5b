"""The queue process of instructor_tasks."""

from services.instructor_tasks.settings import Settings
from shared.worker import WorkerSpec

SERVICE = WorkerSpec(settings=Settings)
