"""The dispatcher's queue process. Its work is done in the web process; see `pushing`."""

from services.dispatcher.settings import Settings
from shared.worker import WorkerSpec

SERVICE = WorkerSpec(settings=Settings)
