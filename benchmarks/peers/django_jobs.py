"""Celery jobs of the Django project: nothing, and five steps that a person can watch."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.peers.django_settings")

import django  # type: ignore[import-not-found]
from celery import Celery  # type: ignore[import-not-found]

django.setup()
app = Celery("bench", broker=os.environ["BENCH_REDIS_URL"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True

from user_tasks.tasks import UserTask  # type: ignore[import-not-found]  # noqa: E402


@app.task
def nothing() -> None:
    """A job."""


class FiveSteps(UserTask):  # type: ignore[misc]
    """A user task of five steps."""

    abstract = True

    @staticmethod
    def calculate_total_steps(arguments_dict: dict[str, object]) -> int:
        return 5


@app.task(bind=True, base=FiveSteps)
def five_steps(self: FiveSteps, user_id: int) -> None:
    """A job that a person can watch."""
    for _ in range(5):
        self.status.increment_completed_steps()
