"""django-user-tasks with Celery on the same PostgreSQL, through its public models, task base and
routes. Its lists are asked for in its own process: no network, in its favour.
"""

import os
import sys
import time
from datetime import timedelta
from typing import Any

from benchmarks.peers import celery_redis, missing, stop, tell, wait_until
from benchmarks.rounds import percentile

BATCH = 5000


def available() -> str | None:
    return missing("celery", "django", "user_tasks", "psycopg")


def prepare() -> Any:
    """A migrated database and a user."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.peers.django_settings")
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    return User.objects.get_or_create(username="ada")[0]


def live(count: int) -> None:
    """Create, five steps, succeed: from the first call to the last row in its final state."""
    user = prepare()
    from user_tasks.models import UserTaskStatus

    from benchmarks.peers.django_jobs import five_steps

    def done() -> bool:
        return not UserTaskStatus.objects.exclude(state="Succeeded").exists()

    UserTaskStatus.objects.all().delete()
    process = celery_redis.worker()
    try:
        for _ in range(4):
            five_steps.delay(user_id=user.id)
        wait_until(done)
        began = time.perf_counter()
        for _ in range(count):
            five_steps.delay(user_id=user.id)
        wait_until(done, pause=0.02)
        tell(rate=count / (time.perf_counter() - began))
    finally:
        stop(process)


def fill(count: int) -> None:
    """Rows of one user."""
    user = prepare()
    from user_tasks.models import UserTaskStatus

    UserTaskStatus.objects.all().delete()
    for first in range(0, count, BATCH):
        UserTaskStatus.objects.bulk_create(
            UserTaskStatus(
                user=user, task_id=f"t-{number}", task_class="bench.task", name=f"Task {number}",
                total_steps=5, completed_steps=5, state="Succeeded",
            )
            for number in range(first, min(count, first + BATCH))
        )  # fmt: skip
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("vacuum analyze")
    tell(rows=UserTaskStatus.objects.count())


def pages(size: int) -> None:
    """The first page of a person's tasks: query, permissions, serialisation."""
    user = prepare()
    from rest_framework.test import APIClient
    from user_tasks.rules import add_rules

    add_rules()
    client = APIClient()
    client.force_authenticate(user)
    seen = []
    for _ in range(22):
        began = time.perf_counter()
        answer = client.get("/tasks/", {"page_size": size})
        seen.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.content
        assert len(answer.json()["results"]) == size
    tell(milliseconds=percentile(seen[2:], 0.5) * 1000)


def purge(count: int) -> None:
    """Its own purge job over rows that are all old enough."""
    prepare()
    from django.utils.timezone import now
    from user_tasks.models import UserTaskStatus
    from user_tasks.tasks import purge_old_user_tasks

    rows = UserTaskStatus.objects.all()
    assert rows.count() == count
    rows.update(created=now() - timedelta(days=100))
    began = time.perf_counter()
    purge_old_user_tasks()
    seconds = time.perf_counter() - began
    assert not rows.exists()
    tell(rate=count / seconds)


def main() -> None:
    count = int(sys.argv[2])
    {"live": live, "fill": fill, "pages": pages, "purge": purge}[sys.argv[1]](count)


if __name__ == "__main__":
    main()
