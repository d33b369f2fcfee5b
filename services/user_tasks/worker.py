"""The queue process of user_tasks."""

from services.user_tasks.purging import purge
from services.user_tasks.settings import Settings
from shared.worker import WorkerSpec, every

PURGE_SECONDS = 3600.0
SERVICE = WorkerSpec(settings=Settings, background=[every(PURGE_SECONDS, purge)])
