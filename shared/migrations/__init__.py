"""Schema histories: one per service, one environment for all of them."""

from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

ROOT = Path(__file__).parents[2]


class SchemaBehind(RuntimeError):
    """The database lacks migrations that this code needs."""


def config_of(service: str) -> Config:
    config = Config(str(ROOT / "alembic.ini"), ini_section=service)
    config.set_main_option("script_location", str(ROOT / "shared" / "migrations"))
    versions = ROOT / "services" / service / "migrations" / "versions"
    config.set_main_option("version_locations", str(versions))
    return config


async def require_current(engine: AsyncEngine, service: str) -> None:
    """Refuse to start on a schema that is behind. Raises SchemaBehind.

    A schema that is ahead is fine: old and new code run side by side during a deploy.
    """
    script = ScriptDirectory.from_config(config_of(service))
    head = script.get_current_head()
    try:
        async with engine.connect() as connection:
            found = (
                await connection.execute(text("select version_num from alembic_version"))
            ).scalar()
    except ProgrammingError:
        found = None
    known = {revision.revision for revision in script.walk_revisions()}
    if found == head or (found is not None and found not in known):
        return
    raise SchemaBehind(
        f"The schema of {service} is at {found}, this code needs {head}: run `make migrate`."
    )
