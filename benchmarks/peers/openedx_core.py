"""The content core of Open edX on PostgreSQL, in one process and without a web stack.

Treated as a black box behind its public API, from a virtual environment of its own:
`python3 -m venv DIR && DIR/bin/pip install openedx-core 'psycopg[binary]'`, then
`--core-python DIR/bin/python`. Runs `all COUNT`, in the phases of contract: content_core §5.3.
"""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from benchmarks import peers

STATEMENTS = """
select coalesce(sum(calls), 0) from pg_stat_statements
where dbid = (select oid from pg_database where datname = current_database()) and toplevel
  and query !~* '^(begin|commit|rollback|savepoint|release|set|show|discard|start)'
  and query !~ 'FROM ONLY .* FOR KEY SHARE'
"""


def available() -> str | None:
    """Never in our own environment: its dependencies are many and none of ours."""
    return "runs only with --core-python, from a virtual environment with openedx-core"


def usable(python: str) -> str | None:
    """Why this python cannot run it, or None."""
    check = [python, "-c", "import openedx_content, psycopg"]
    done = subprocess.run(check, capture_output=True, check=False)
    return None if done.returncode == 0 else f"{python} cannot import openedx_content and psycopg"


def olx(number: int, edit: int = 0) -> str:
    """A problem of about 600 bytes; no two are the same."""
    text = f"Question {number} in edit {edit}: which of these is right? {uuid.uuid4()} "
    choices = "".join(
        f'<choice correct="{str(place == number % 4).lower()}">Answer {place}</choice>'
        for place in range(4)
    )
    return (
        f'<problem display_name="Problem {number}"><multiplechoiceresponse><p>{text * 2}</p>'
        f"<choicegroup>{choices}</choicegroup></multiplechoiceresponse></problem>"
    )


def figure(number: int) -> bytes:
    """20 KiB that no other component has."""
    return f"{number} {uuid.uuid4()}".encode().ljust(20 * 1024, b"x")


def start(folder: Path) -> None:
    """Django with the packages that belong to it, and an up-to-date schema."""
    import django
    from django.conf import settings
    from openedx_content.settings_api import (  # type: ignore[import-not-found]
        openedx_content_backcompat_apps_to_install,
    )

    url = urlsplit(os.environ["BENCH_DATABASE_URL"])
    settings.configure(
        SECRET_KEY="only a benchmark",
        USE_TZ=True,
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql", "NAME": url.path.lstrip("/"),
                "USER": unquote(url.username or ""), "PASSWORD": unquote(url.password or ""),
                "HOST": url.hostname, "PORT": url.port,
            }
        },
        INSTALLED_APPS=[
            "django.contrib.contenttypes", "django.contrib.auth", "openedx_tagging",
            "organizations", "openedx_catalog", "openedx_content",
            *openedx_content_backcompat_apps_to_install(),
        ],
        OPENEDX_LEARNING={
            "MEDIA": {
                "BACKEND": "django.core.files.storage.FileSystemStorage",
                "OPTIONS": {"location": str(folder / "media")},
            }
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )  # fmt: skip
    django.setup()
    from django.core.management import call_command
    from django.db import connection

    with Path(os.devnull).open("w") as nowhere, connection.execute_wrapper(_checked_first):
        call_command("migrate", verbosity=0, interactive=False, stdout=nowhere)


def _checked_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    """PostgreSQL alters no table while rows of it wait for their deferred check."""
    if sql.startswith("ALTER TABLE"):
        execute("SET CONSTRAINTS ALL IMMEDIATE", None, False, context)
        execute("SET CONSTRAINTS ALL DEFERRED", None, False, context)
    return execute(sql, params, many, context)


class Meter:
    """Seconds and statements of each phase."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def phase(self, name: str, work: Callable[[], Any], times: int = 1) -> Any:
        before = self.statements()
        began = time.perf_counter()
        outcome = work()
        self.found[name] = (time.perf_counter() - began) / times
        self.found[f"{name} statements"] = (self.statements() - before - 1) / times
        return outcome

    def statements(self) -> int:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(STATEMENTS)
            return int(cursor.fetchone()[0])


class Core:
    """One package and the work on it."""

    def __init__(self, user: Any) -> None:
        import openedx_content.api as api  # type: ignore[import-not-found]

        self.api, self.user = api, user
        self.ref = f"lib:bench:{uuid.uuid4().hex}"
        self.package = api.create_learning_package(self.ref, "A library")
        self.components: list[Any] = []

    def text(self, number: int, edit: int = 0) -> Any:
        kind = self.api.get_or_create_media_type("application/vnd.openedx.xblock.v1.problem+xml")
        return self.api.get_or_create_text_media(
            self.package.id, kind.id, text=olx(number, edit), created=datetime.now(UTC)
        )

    def create(self, number: int) -> Any:
        from django.db import transaction

        with transaction.atomic():
            kind = self.api.get_or_create_component_type("xblock.v1", "problem")
            media = {"block.xml": self.text(number).id}
            if number % 10 == 0:
                png = self.api.get_or_create_media_type("image/png")
                media["static/figure.png"] = self.api.get_or_create_file_media(
                    self.package.id, png.id, data=figure(number), created=datetime.now(UTC)
                ).id
            component, _ = self.api.create_component_and_version(
                self.package.id, component_type=kind, component_code=f"problem-{number}",
                title=f"Problem {number}", created=datetime.now(UTC), created_by=self.user.id,
                media=media,
            )  # fmt: skip
            self.components.append(component)

    def edit(self, number: int, edit: int) -> None:
        from django.db import transaction

        with transaction.atomic():
            self.api.create_next_component_version(
                self.components[number].id,
                media_to_replace={"block.xml": self.text(number, edit).id},
                title=f"Problem {number}", created=datetime.now(UTC), created_by=self.user.id,
            )  # fmt: skip

    def edit_all(self, edit: int) -> None:
        with self.api.bulk_draft_changes_for(self.package.id, changed_by=self.user.id):
            for number in range(len(self.components)):
                self.edit(number, edit)

    def publish(self, entity: int) -> None:
        drafts = self.api.get_all_drafts(self.package.id).filter(entity_id=entity)
        self.api.publish_from_drafts(self.package.id, drafts, published_by=self.user.id)

    def publish_all(self) -> None:
        self.api.publish_all_drafts(self.package.id, published_by=self.user.id)

    def flags(self) -> int:
        found = self.api.get_components(self.package.id)
        return sum(one.versioning.has_unpublished_changes for one in found)

    def tree(self) -> tuple[list[Any], Any]:
        """Units of 20 components, subsections of 10 units, one section."""
        common = {"created_by": self.user.id}
        units = []
        for first in range(0, len(self.components), 20):
            unit, _ = self.api.create_unit_and_version(
                self.package.id, f"unit-{first}", title=f"Unit {first}",
                components=self.components[first : first + 20], created=datetime.now(UTC),
                **common,
            )  # fmt: skip
            units.append(unit)
        subsections = []
        for first in range(0, len(units), 10):
            subsection, _ = self.api.create_subsection_and_version(
                self.package.id, f"subsection-{first}", title=f"Subsection {first}",
                units=units[first : first + 10], created=datetime.now(UTC), **common,
            )  # fmt: skip
            subsections.append(subsection)
        section, _ = self.api.create_section_and_version(
            self.package.id, "section", title="Section", subsections=subsections,
            created=datetime.now(UTC), **common,
        )  # fmt: skip
        return units, section

    def contains(self, units: list[Any], samples: int) -> list[bool]:
        return [
            self.api.contains_unpublished_changes(units[place % len(units)].pk)
            for place in range(samples)
        ]

    def history(self, number: int) -> None:
        list(self.api.get_entity_draft_history(self.components[number].id))
        list(self.api.get_entity_publish_history(self.components[number].id))

    def collect(self) -> None:
        entities = self.api.get_publishable_entities(self.package.id)
        wanted = [component.id for component in self.components]
        self.api.add_to_collection(
            self.package.id, "all", entities.filter(id__in=wanted), created_by=self.user.id
        )


def run(count: int, samples: int, folder: Path) -> dict[str, float]:
    """All phases, one after the other, on a package of its own."""
    from django.contrib.auth import get_user_model

    user, _ = get_user_model().objects.get_or_create(username="ada", email="ada@example.test")
    meter, core = Meter(), Core(user)
    phase, some = meter.phase, range(samples)

    def each(work: Callable[[int], Any]) -> Callable[[], Any]:
        return lambda: [work(number) for number in some]

    phase("create_components", lambda: [core.create(number) for number in range(count)])
    phase("publish_all", core.publish_all)
    phase("edit_one", each(lambda number: core.edit(number, 1)), samples)
    assert phase("list_unpublished_flags", core.flags) == samples
    pending = core.api.get_entities_with_unpublished_changes
    assert phase("count_unpublished", lambda: pending(core.package.id).count()) == samples
    phase("publish_one", each(lambda number: core.publish(core.components[number].id)), samples)
    units, section = phase("create_unit_tree", core.tree)
    phase("publish_tree", lambda: core.publish(section.id))
    phase("edit_in_tree", each(lambda number: core.edit(number, 2)), samples)
    contained = phase("contains_unpublished", lambda: core.contains(units, samples), samples)
    assert contained[0]
    phase(
        "publish_one_in_tree",
        each(lambda number: core.publish(core.components[number].id)),
        samples,
    )
    phase("bulk_edit", lambda: core.edit_all(3))
    phase("publish_all_edited", core.publish_all)
    for number in range(min(100, count)):
        core.edit(number, 4)
    phase("reset_100", lambda: core.api.reset_drafts_to_published(core.package.id))
    phase("history", each(core.history), samples)
    core.api.create_collection(core.package.id, "all", title="All", created_by=user.id)
    phase("collection_add", core.collect)
    archive, copy = str(folder / "archive.zip"), f"{core.ref}2"
    phase("backup", lambda: core.api.create_zip_file(core.ref, archive, user=user))
    outcome = phase(
        "restore", lambda: core.api.load_learning_package(archive, package_ref=copy, user=user)
    )
    restored = core.api.get_learning_package_by_ref(copy)
    assert core.api.get_components(restored.id).count() == count, outcome
    return meter.found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lyceum-bench-") as name:
        start(Path(name))
        found = run(int(sys.argv[2]), int(os.environ["BENCH_SAMPLES"]), Path(name))
    peers.tell(**found)


if __name__ == "__main__":
    main()
