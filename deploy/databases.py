"""A database and a role for every service on one PostgreSQL server.

`python -m deploy.databases` makes them on the server that ADMIN_DATABASE_URL names.
"""

import asyncio
import os
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

from deploy import paths


def create_databases(admin_url: str) -> dict[str, str]:
    """Create what is missing; each service's own address.

    Each role gets the administrator's password. Nobody else may connect to a service's database.
    """
    parts = urlsplit(admin_url)
    asyncio.run(_create(admin_url, unquote(parts.password or "")))
    host = parts.netloc.rpartition("@")[2]
    secret = f":{parts.password}" if parts.password else ""
    return {
        service: urlunsplit(
            parts._replace(netloc=f"{role(service)}{secret}@{host}", path=f"/{role(service)}")
        )
        for service in paths.prefixes()
    }


def role(service: str) -> str:
    """The name of a service's role and of its database."""
    return f"lyceum_{service}"


async def _create(admin_url: str, password: str) -> None:
    connection = await asyncpg.connect(admin_url)
    try:
        for name in map(role, paths.prefixes()):
            if not await connection.fetchval("select 1 from pg_roles where rolname = $1", name):
                await connection.execute(f"create role {name} login")
            if password:
                quoted = await connection.fetchval("select quote_literal($1)", password)
                await connection.execute(f"alter role {name} password {quoted}")
            if not await connection.fetchval("select 1 from pg_database where datname = $1", name):
                await connection.execute(f"grant {name} to current_user")
                await connection.execute(f"create database {name} owner {name}")
                await connection.execute(f"revoke connect on database {name} from public")
    finally:
        await connection.close()


if __name__ == "__main__":
    create_databases(os.environ["ADMIN_DATABASE_URL"])
