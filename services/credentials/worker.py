"""The queue process of credentials."""

from services.credentials.settings import Settings
from shared.worker import WorkerSpec

SERVICE = WorkerSpec(settings=Settings)
