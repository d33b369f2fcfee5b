"""`python -m shared.migrations upgrade|make|check`: schema histories on the command line."""

import importlib
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from alembic import command
from alembic.util.exc import CommandError

from shared.migrations import config_of
from shared.settings import ServiceSettings

SERVICES = ("dispatcher", "user_tasks", "libraries", "instructor_tasks", "credentials")
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


def database_url(service: str) -> str:
    settings: ServiceSettings = importlib.import_module(f"services.{service}.settings").Settings()
    return settings.database_url


def upgrade_one(service: str, url: str) -> None:
    config = config_of(service)
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")


@app.command()
def upgrade(
    services: Annotated[list[str] | None, typer.Argument(help="all by default")] = None,
) -> None:
    """Bring databases to the newest schema; their addresses come from the settings."""
    for service in services or SERVICES:
        upgrade_one(service, database_url(service))
        typer.echo(f"{service}: schema is current")


@app.command()
def make(service: str, message: str) -> None:
    """Write a migration from what the models say, on a scratch server."""
    with _scratch() as urls:
        upgrade_one(service, urls[service])
        config = config_of(service)
        config.set_main_option("sqlalchemy.url", urls[service])
        command.revision(config, message, autogenerate=True, rev_id=_next_number(service))


@app.command()
def check() -> None:
    """Run every migration on a scratch server and see that models and schema agree."""
    behind = []
    with _scratch() as urls:
        for service in SERVICES:
            upgrade_one(service, urls[service])
            config = config_of(service)
            config.set_main_option("sqlalchemy.url", urls[service])
            try:
                command.check(config)
            except CommandError as error:
                behind.append(f"{service}: {error}")
    for line in behind:
        typer.echo(line, err=True)
    raise typer.Exit(1 if behind else 0)


def _next_number(service: str) -> str:
    folder = Path(config_of(service).get_main_option("version_locations") or "")
    return f"{len(list(folder.glob('*.py'))) + 1:04d}"


class _scratch:
    """A PostgreSQL of its own with an empty database per service, gone afterwards."""

    def __enter__(self) -> dict[str, str]:
        from deploy.databases import create_databases
        from deploy.stores import start_stores

        self._folder = tempfile.TemporaryDirectory(prefix="lyceum-")
        self._stores = start_stores(Path(self._folder.name))
        os.environ.setdefault("LYCEUM_TOKEN_SECRET", "development-only-" + "x" * 32)
        return dict(create_databases(self._stores.database_url))

    def __exit__(self, *_: object) -> None:
        self._stores.stop()
        self._folder.cleanup()


if __name__ == "__main__":
    app()
