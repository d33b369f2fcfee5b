"""What jobs said they were doing, and since when. contract: user_tasks §10"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks.models import Stage
from shared.database import driver

MOST = 200

_STORE = """
insert into stage (status_id, attempt, stage, at)
select r.status_id, r.attempt, r.stage, r.at
from jsonb_to_recordset($1::jsonb) as r (
  place int, status_id uuid, attempt bigint, stage text, at timestamptz)
order by r.place
"""


async def store(session: AsyncSession, named: Sequence[Mapping[str, Any]]) -> None:
    """Keep stages in the order in which they were named."""
    if not named:
        return
    rows = [dict(stage) | {"place": place} for place, stage in enumerate(named)]
    await (await driver(session)).execute(_STORE, orjson.dumps(rows, default=str).decode())


async def of_status(session: AsyncSession, uuid: UUID) -> list[Stage]:
    """The stages of one task, oldest first; of very many the newest."""
    query = select(Stage).where(Stage.status_id == uuid).order_by(col(Stage.id).desc())
    return list(reversed((await session.exec(query.limit(MOST))).all()))
