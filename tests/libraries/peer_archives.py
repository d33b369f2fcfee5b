"""Runs in an environment of its own, with `openedx-core`: archives go in, archives come out.

`python peer_archives.py IN.zip OUT.zip` restores IN with the real upstream package into a new
SQLite database, backs the result up again as OUT, and prints the reference it was given.
"""

import io
import sys
import tempfile
from pathlib import Path


def main(source: str, target: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start(Path(folder))
        from django.apps import apps
        from django.contrib.auth import get_user_model
        from django.core.management import call_command

        quiet = {"stdout": io.StringIO(), "stderr": io.StringIO()}
        call_command("migrate", verbosity=0, interactive=False, **quiet)
        get_user_model().objects.create_user("ada", "ada@example.test", "x")
        call_command("lp_load", source, "ada", **quiet)
        packages = list(apps.get_model("openedx_content", "LearningPackage").objects.all())
        if len(packages) != 1:
            sys.exit(quiet["stdout"].getvalue() + quiet["stderr"].getvalue())
        call_command("lp_dump", packages[0].package_ref, target, username="ada", **quiet)
        print(packages[0].package_ref)


def start(folder: Path) -> None:
    import django
    from django.conf import settings
    from openedx_content.settings_api import openedx_content_backcompat_apps_to_install

    settings.configure(
        SECRET_KEY="x",
        USE_TZ=True,
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3")}
        },
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "openedx_tagging",
            "organizations",
            "openedx_catalog",
            "openedx_content",
            *openedx_content_backcompat_apps_to_install(),
        ],
        OPENEDX_LEARNING={
            "MEDIA": {
                "BACKEND": "django.core.files.storage.FileSystemStorage",
                "OPTIONS": {"location": str(folder / "media")},
            }
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()


if __name__ == "__main__":
    main(*sys.argv[1:])
