"""`python -m deploy`: start, stop and look at the suite on this machine."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy import embedded
from deploy.databases import create_databases
from shared.callers import make_token
from shared.migrations.__main__ import upgrade_one

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
console = Console(highlight=False)


@contextmanager
def one_line() -> Iterator[None]:
    """A known trouble is one line on standard error, and exit code 1."""
    try:
        yield
    except embedded.CannotStart as error:
        typer.echo(f"lyceum: {error}", err=True)
        raise typer.Exit(1) from error
    except embedded.KNOWN as error:
        typer.echo(f"lyceum: {embedded.one_line(error)}", err=True)
        raise typer.Exit(1) from error


@app.command()
def up() -> None:
    """Start everything in the background; return when it is ready."""
    # Asked to end in the middle: what was started so far is stopped on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with one_line():
        suite = embedded.Suite.of_environment()
        embedded.up(suite, typer.echo)
    typer.echo(f"\nLyceum is ready: {suite.origin}/  (stop it with: make down)")


@app.command()
def down() -> None:
    """Stop what `up` started; the data is kept."""
    with one_line():
        embedded.down(embedded.Suite.of_environment(), typer.echo)


@app.command()
def clean() -> None:
    """Stop everything and remove the data folder."""
    with one_line():
        embedded.clean(embedded.Suite.of_environment(), typer.echo)


@app.command()
def status() -> None:
    """Each process: pid, time up, memory, readiness."""
    with one_line():
        rows = embedded.status(embedded.Suite.of_environment())
    table = Table(box=None, pad_edge=False)
    for title in ("process", "pid", "up", "memory", "state"):
        table.add_column(title, justify="right" if title in ("pid", "up", "memory") else "left")
    for row in rows:
        state = "ready" if row["ready"] else "not ready" if row["pid"] else "not running"
        up_for = f"{row['uptime']:.0f} s" if row["pid"] else ""
        memory = f"{row['memory'] // 2**20} MiB" if row["pid"] else ""
        table.add_row(row["name"], str(row["pid"] or ""), up_for, memory, state)
    console.print(table)
    raise typer.Exit(0 if all(row["ready"] for row in rows) else 1)


@app.command()
def logs(name: Annotated[str, typer.Argument(help="one process; all by default")] = "") -> None:
    """Follow the logs until Ctrl-C."""
    with one_line():
        suite = embedded.Suite.of_environment()
    files = sorted((suite.folder / "logs").glob(f"{name or '*'}.log"))
    if not files:
        typer.echo(f"lyceum: there is no log in {suite.folder / 'logs'}", err=True)
        raise typer.Exit(1)
    subprocess.run(["tail", "-n", "20", "-F", *map(str, files)], check=False)


@app.command()
def token(
    user: Annotated[str, typer.Option(help="username")],
    staff: bool = False,
    superuser: bool = False,
    email: str = "",
    user_id: int | None = None,
) -> None:
    """Print an access token for development, valid for 12 hours."""
    if not re.fullmatch(r"[\w.@+-]{1,150}", user):
        typer.echo("lyceum: a username has letters, digits and @ . + - _ only", err=True)
        raise typer.Exit(1)
    with one_line():
        suite = embedded.Suite.of_environment()
        secret = suite.secrets["token_secret"]
    made = make_token(secret, user, user_id=user_id, email=email, staff=staff, superuser=superuser)
    typer.echo(made)
    # Not on standard output: scripts take the token from there.
    typer.echo(f"their tasks: {suite.origin}/tasks/#token={made}", err=True)


@app.command()
def migrate() -> None:
    """Bring the databases of the running stores to the newest schema."""
    with one_line():
        suite = embedded.Suite.of_environment()
        if "postgres" in suite.store_names and suite.child("postgres").process() is None:
            raise embedded.CannotStart("PostgreSQL is not running: `make up` starts it.")
        for service, url in create_databases(suite.database_url).items():
            upgrade_one(service, url)
            typer.echo(f"{service}: schema is current")


if __name__ == "__main__":
    sys.exit(app())
