"""Alembic's environment, the same for every service."""

import asyncio
import importlib

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

from shared.database import async_url

service = context.config.config_ini_section
models = importlib.import_module(f"services.{service}.models")
metadata = models.Base.metadata
assert metadata is not SQLModel.metadata, f"{service} needs a registry of its own"


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_type=True)
    with context.begin_transaction():
        # Two deploys at once: the second waits, then finds nothing to do.
        connection.exec_driver_sql("select pg_advisory_xact_lock(7120001)")
        context.run_migrations()


async def main() -> None:
    url = context.config.get_main_option("sqlalchemy.url")
    assert url, "set sqlalchemy.url before running a migration"
    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(main())
