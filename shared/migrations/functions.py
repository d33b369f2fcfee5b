"""Database functions of a service, kept in its `functions.sql` and installed by its migrations."""

import re
from pathlib import Path

from alembic import op

SERVICES = Path(__file__).parents[2] / "services"
HEAD = re.compile(r"^create or replace function (\w+)", re.MULTILINE)


def functions_of(service: str) -> dict[str, str]:
    """Name -> statement, in the order of the file."""
    text = (SERVICES / service / "functions.sql").read_text()
    heads = list(HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {head.group(1): text[head.start() : end] for head, end in zip(heads, ends, strict=True)}


def install_functions(service: str) -> None:
    """Bring a service's functions to what its file says. For migrations.

    What they name may be made by a later migration.
    """
    op.get_bind().exec_driver_sql("set local check_function_bodies = off")
    for statement in functions_of(service).values():
        op.get_bind().exec_driver_sql(statement)


def drop_functions(service: str) -> None:
    """Remove a service's functions. For migrations."""
    for name in reversed(functions_of(service)):
        op.get_bind().exec_driver_sql(f"drop function if exists {name}")
