"""New versions of entities, many at once. contract: content_core §2.1, §2.9"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from asyncpg import NumericValueOutOfRangeError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import events
from services.libraries.errors import RuleBroken
from services.libraries.models import Library
from shared.database import driver

OLX_PATH = "block.xml"


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What is different in an entity's next version.

    `media` overlays the files of the version before: an id adds or replaces, None removes;
    `only_media` starts without them. `children` are (entity id, pinned version id or None).
    """

    entity_id: int
    title: str | None = None
    media: Mapping[str, int | None] = field(default_factory=dict)
    only_media: bool = False
    children: Sequence[tuple[int, int | None]] | None = None


@dataclass(frozen=True, slots=True)
class MadeVersion:
    """A version that was made."""

    id: int
    version_num: int


_MAKE = "select entity_id, version_id, version_num, log from make_versions($1, $2, $3, $4)"


async def make(
    session: AsyncSession,
    library: Library,
    news: Sequence[NewVersion],
    *,
    user: str | None,
    now: datetime,
) -> dict[int, MadeVersion]:
    """Make the next version of each entity and point its draft there, in one change log.

    Returns the versions by entity id. A fixed number of statements for any number of entities.
    Raises RuleBroken after the last number there is, which only a restored archive can have.
    """
    if not news:
        return {}
    database = await driver(session)
    rows = orjson.dumps([_row(new) for new in news]).decode()
    try:
        made = await database.fetch(_MAKE, library.id, rows, now, user)
    except NumericValueOutOfRangeError as error:
        raise RuleBroken("There is no number left for another version.") from error
    await events.tell_drafts(session, library, made[0]["log"])
    return {row["entity_id"]: MadeVersion(row["version_id"], row["version_num"]) for row in made}


def _row(new: NewVersion) -> dict[str, Any]:
    return {
        "entity_id": new.entity_id,
        "title": new.title,
        "media": dict(new.media),
        "only_media": new.only_media,
        "container": not new.media and not new.only_media,
        "children": new.children,
    }
