"""Links to what was recorded about tasks. contract: dispatcher §5.2"""

import hmac
from datetime import datetime
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.errors import LinkExpired
from services.dispatcher.models import ProfileArtifact
from services.dispatcher.settings import Settings


async def links(
    session: AsyncSession, task_id: UUID, settings: Settings, *, now: datetime
) -> dict[str, str]:
    """Name → address at which anyone gets the file for a while."""
    expires = int(now.timestamp()) + settings.link_seconds
    query = (
        select(ProfileArtifact)
        .where(ProfileArtifact.task_id == task_id)
        .order_by(col(ProfileArtifact.name))
    )
    return {
        row.name: f"{settings.origin_url}/pulp/api/v3/tasks/{task_id}/profile_artifacts/{row.name}/"
        f"?expires={expires}&signature={_signature(task_id, row.name, expires, settings)}"
        for row in await session.exec(query)
    }


async def files_of(session: AsyncSession, task_id: UUID) -> list[str]:
    """Where the recordings of a task are stored."""
    query = select(ProfileArtifact.file).where(ProfileArtifact.task_id == task_id)
    return list(await session.exec(query))


async def by_link(
    session: AsyncSession,
    task_id: UUID,
    name: str,
    *,
    expires: int,
    signature: str,
    settings: Settings,
    now: datetime,
) -> ProfileArtifact:
    """The file a link names. Raises LinkExpired for any other link."""
    genuine = hmac.compare_digest(
        _signature(task_id, name, expires, settings).encode(), signature.encode()
    )
    query = select(ProfileArtifact).where(
        ProfileArtifact.task_id == task_id, ProfileArtifact.name == name
    )
    found = (await session.exec(query)).first() if genuine else None
    if found is None or expires < now.timestamp():
        raise LinkExpired
    return found


def _signature(task_id: UUID, name: str, expires: int, settings: Settings) -> str:
    key = b"profile link " + settings.token_secret.get_secret_value().encode()
    return hmac.digest(key, f"{task_id} {name} {expires}".encode(), "sha256").hex()
