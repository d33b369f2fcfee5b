"""The queue process of user_tasks."""

from services.user_tasks.settings import Settings
from shared.worker import WorkerSpec

SERVICE = WorkerSpec(settings=Settings)
