"""Pulp's own dispatcher and one worker, from a virtual environment of its own.

Set up as its documentation says and treated as a black box:
`python3 -m venv DIR && DIR/bin/pip install pulpcore`, then `--pulp-python DIR/bin/python`.
"""

import base64
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from benchmarks import peers

SETTINGS = """
from pathlib import Path
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": {name!r},
    "USER": {user!r}, "PASSWORD": {password!r}, "HOST": {host!r}, "PORT": {port!r}}}}}
REDIS_URL = {redis!r}
SECRET_KEY = "only a benchmark"
DB_ENCRYPTION_KEY = {folder!r} + "/key"
DEPLOY_ROOT = Path({folder!r})
MEDIA_ROOT = {folder!r} + "/media"
STATIC_ROOT = {folder!r} + "/static"
WORKING_DIRECTORY = {folder!r} + "/tmp"
FILE_UPLOAD_TEMP_DIR = {folder!r} + "/tmp"
CONTENT_ORIGIN = "http://127.0.0.1:24816"
ANALYTICS = False
"""


def available() -> str | None:
    """Never in our own environment: its dependencies exclude ours."""
    return "runs only with --pulp-python, from a virtual environment with pulpcore"


def usable(python: str) -> str | None:
    """Why this python cannot run it, or None."""
    done = subprocess.run([python, "-c", "import pulpcore"], capture_output=True, check=False)
    return None if done.returncode == 0 else f"{python} cannot import pulpcore"


def prepare(folder: Path, place: dict[str, str], python: str) -> dict[str, str]:
    """Settings, key and schema; the variables its processes need."""
    folder.mkdir(exist_ok=True)
    for name in ("media", "static", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    url = urlsplit(place["BENCH_DATABASE_URL"])
    (folder / "key").write_text(base64.urlsafe_b64encode(os.urandom(32)).decode())
    (folder / "settings.py").write_text(
        SETTINGS.format(
            name=url.path.lstrip("/"), user=unquote(url.username or ""),
            password=unquote(url.password or ""), host=url.hostname, port=url.port,
            redis=place["BENCH_REDIS_URL"], folder=str(folder),
        )
    )  # fmt: skip
    variables = {
        "PULP_SETTINGS": str(folder / "settings.py"),
        "DJANGO_SETTINGS_MODULE": "pulpcore.app.settings",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    subprocess.run(
        [str(Path(python).with_name("pulpcore-manager")), "migrate", "--noinput"],
        env=os.environ | variables, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return variables


def measure(variables: dict[str, str], python: str, kind: str, count: int) -> Callable[[], float]:
    """An entrant: tasks per second from the first dispatch to the last end."""
    return lambda: peers.ask("pulp", kind, count, variables, python=python)["rate"]


def nothing() -> None:
    """A task."""


def claimed(kind: str, number: int, mark: str) -> list[str]:
    return {"none": [], "own": [f"r-{mark}-{number}"], "one": [f"r-{mark}"]}[kind]


def main() -> None:
    """Runs in Pulp's environment."""
    import django

    django.setup()
    from django_guid import set_guid  # type: ignore[import-not-found]
    from pulpcore.plugin.models import Task  # type: ignore[import-not-found]
    from pulpcore.plugin.tasking import dispatch  # type: ignore[import-not-found]

    kind, count, mark = sys.argv[1], int(sys.argv[2]), uuid.uuid4().hex
    set_guid(mark)  # outside of a request nobody gives one
    worker = subprocess.Popen(
        [str(Path(sys.executable).with_name("pulpcore-worker"))], stdout=sys.stderr.fileno()
    )

    def send(how_many: int) -> None:
        for number in range(how_many):
            dispatch(
                "benchmarks.peers.pulp.nothing",
                exclusive_resources=claimed(kind, number, mark),
                versions={},  # the function belongs to none of its components
            )

    def left() -> Any:
        return Task.objects.filter(state__in=["waiting", "running"]).exists()

    try:
        # What came before it listens it finds only much later, or with what comes afterwards.
        for _ in range(30):
            send(1)
            time.sleep(1)
            if not left():
                break
        peers.wait_until(lambda: not left(), pause=0.05, seconds=30)
        began = time.perf_counter()
        send(count)
        peers.wait_until(lambda: not left(), pause=0.05)
        seconds = time.perf_counter() - began
        failed = Task.objects.exclude(state="completed").count()
        assert not failed, f"{failed} tasks did not complete"
        peers.tell(rate=count / seconds)
    finally:
        peers.stop(worker)


if __name__ == "__main__":
    main()
