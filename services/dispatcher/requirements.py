"""Which versions tasks ask for, and which workers meet them. contract: dispatcher §2.5

Each distinct set of versions is stored once. A worker knows the numbers of the sets it meets, so
that choosing work for it is a look-up. Workers and requirements are registered under the
dispatcher's lock: whichever comes second sees the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from packaging.version import InvalidVersion, Version
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.claims import LOCK
from shared.database import driver

NONE = 0


def meets(installed: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Every wanted component is there, in at least the wanted version (PEP 440)."""
    try:
        return all(
            label in installed and Version(installed[label]) >= Version(version)
            for label, version in wanted.items()
        )
    except InvalidVersion:
        return False


_KNOWN = "select id, versions from requirement where versions = any($1::jsonb[])"
_ADD = "insert into requirement (versions) select unnest($1::jsonb[]) returning id, versions"
_WORKERS = "select id, versions from worker order by id for update"
_MEET = "update worker set meets = meets || $2::int[] where id = $1"


async def numbers(connection: Any, wanted: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """The number of each set of versions, by its canonical JSON.

    Takes the dispatcher's lock, if there are any.
    """
    sets = sorted({canonical(versions) for versions in wanted if versions})
    if not sets:
        return {}
    await connection.execute(f"select pg_advisory_xact_lock({LOCK})")
    known = {canonical(row["versions"]): row["id"] for row in await connection.fetch(_KNOWN, sets)}
    missing = [versions for versions in sets if versions not in known]
    if missing:
        added = await connection.fetch(_ADD, missing)
        await _show_to_workers(connection, added)
        known |= {canonical(row["versions"]): row["id"] for row in added}
    return known


async def _show_to_workers(connection: Any, added: Sequence[Any]) -> None:
    for worker in await connection.fetch(_WORKERS):
        met = [row["id"] for row in added if meets(worker["versions"], row["versions"])]
        if met:
            await connection.execute(_MEET, worker["id"], met)


async def met_by(session: AsyncSession, installed: Mapping[str, str]) -> list[int]:
    """The numbers of all sets that these versions meet. Needs the dispatcher's lock."""
    rows = await (await driver(session)).fetch("select id, versions from requirement")
    return [NONE, *(row["id"] for row in rows if meets(installed, row["versions"]))]


def canonical(versions: Mapping[str, str]) -> str:
    """One text for equal sets."""
    return orjson.dumps(dict(versions), option=orjson.OPT_SORT_KEYS).decode()
