"""A database and a role for every service on one PostgreSQL server."""

import asyncio
from urllib.parse import urlsplit, urlunsplit

import asyncpg

SERVICES = ("dispatcher", "user_tasks", "libraries", "instructor_tasks", "credentials")


def create_databases(admin_url: str) -> dict[str, str]:
    """Create what is missing; each service's address."""
    asyncio.run(_create(admin_url))
    parts = urlsplit(admin_url)
    host = parts.netloc.rpartition("@")[2]
    return {
        service: urlunsplit(
            parts._replace(netloc=f"lyceum_{service}@{host}", path=f"/lyceum_{service}")
        )
        for service in SERVICES
    }


async def _create(admin_url: str) -> None:
    connection = await asyncpg.connect(admin_url)
    try:
        for service in SERVICES:
            name = f"lyceum_{service}"
            if not await connection.fetchval("select 1 from pg_roles where rolname = $1", name):
                await connection.execute(f"create role {name} login")
            if not await connection.fetchval("select 1 from pg_database where datname = $1", name):
                await connection.execute(f"create database {name} owner {name}")
    finally:
        await connection.close()
