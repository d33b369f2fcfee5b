"""What work left behind, and links to its files."""

import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import func, text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import events, permissions
from services.user_tasks.errors import ArtifactUnknown, LinkExpired
from services.user_tasks.models import Artifact, Status
from services.user_tasks.schemas import ArtifactReport
from services.user_tasks.settings import Settings
from shared.callers import Caller

_STORE = text("""
    insert into artifact (uuid, status_id, name, file, file_name, content_type, size, url, text,
                          created, modified)
    select r.artifact_id, r.task_id, r.name, r.file, r.file_name, r.content_type, r.size, r.url,
           r.text, r.at, r.at
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      artifact_id uuid, task_id uuid, name text, file text, file_name text, content_type text,
      size bigint, url text, text text, at timestamptz)
    where not r.task_id = any(cast(:deleted as uuid[]))
    on conflict (uuid) do nothing
    returning uuid, status_id, name,
              case when file is not null then 'file' when url <> '' then 'url' else 'text' end
                as kind
""")

_ADDED = text("""
    select uuid, root_id, "user" from status
    where uuid = any(cast(:ids as uuid[])) and deleted_at is null
""")

# Shared locks: a delete of one of these tasks comes wholly before or wholly after.
_DELETED = text("""
    select uuid, deleted_at from status where uuid = any(cast(:ids as uuid[]))
    order by uuid for share
""")


async def record(
    session: AsyncSession, reports: Sequence[ArtifactReport], *, now: datetime
) -> None:
    """Keep results, and tell those who follow their tasks."""
    added = await store(session, reports)
    connection = await session.connection()
    ids = sorted({row.status_id for row in added})
    found = await connection.execute(_ADDED, {"ids": ids})
    of = {row.uuid: {"root_id": row.root_id, "user": row.user} for row in found}
    told = [
        {"uuid": row.uuid, "name": row.name, "kind": row.kind, "status_id": row.status_id}
        | of[row.status_id]
        for row in added
        if row.status_id in of
    ]
    await events.artifacts_added(session, told, now=now)


async def store(session: AsyncSession, reports: Sequence[ArtifactReport]) -> Sequence[Any]:
    """Keep results, each once however often it is told; those of deleted tasks are dropped.

    A quick task's result may come before the news of the task itself: it is kept, and seen as
    soon as the task is known. Returns what is new.
    """
    if not reports:
        return []
    connection = await session.connection()
    ids = sorted({report.task_id for report in reports})
    found = await connection.execute(_DELETED, {"ids": ids})
    deleted = [row.uuid for row in found if row.deleted_at is not None]
    rows = orjson.dumps([report.model_dump() for report in reports], default=str).decode()
    return (await connection.execute(_STORE, {"rows": rows, "deleted": deleted})).all()


async def get(session: AsyncSession, uuid: UUID, *, caller: Caller) -> Artifact:
    """An artifact of a task this caller may see. Raises ArtifactUnknown."""
    query = (
        select(Artifact)
        .join(Status, col(Status.uuid) == col(Artifact.status_id))
        .where(col(Artifact.uuid) == uuid, *permissions.visible_to(caller))
    )
    artifact = (await session.exec(query)).first()
    if artifact is None:
        raise ArtifactUnknown
    return artifact


async def by_link(
    session: AsyncSession, uuid: UUID, *, expires: int, signature: str, settings: Settings,
    now: datetime,
) -> Artifact:  # fmt: skip
    """The artifact a signed link names. Raises LinkExpired for any other link."""
    genuine = hmac.compare_digest(_signature(uuid, expires, settings).encode(), signature.encode())
    if not genuine or expires < now.timestamp():
        raise LinkExpired
    artifact = await session.get(Artifact, uuid)
    if artifact is None:
        raise ArtifactUnknown
    return artifact


async def of_statuses(session: AsyncSession, ids: Sequence[UUID]) -> Mapping[UUID, list[Artifact]]:
    """Artifacts by task, oldest first, in one statement."""
    found: dict[UUID, list[Artifact]] = {uuid: [] for uuid in ids}
    if ids:
        query = (
            select(Artifact)
            .where(col(Artifact.status_id).in_(ids))
            .order_by(col(Artifact.created), col(Artifact.uuid))
        )
        for artifact in await session.exec(query):
            found[artifact.status_id].append(artifact)
    return found


async def page(
    session: AsyncSession,
    *,
    conditions: Sequence[Any],
    size: int,
    after: tuple[datetime, UUID] | None = None,
) -> Sequence[Artifact]:
    """Artifacts of tasks under these conditions, newest first, behind a position."""
    query = (
        select(Artifact)
        .join(Status, col(Status.uuid) == col(Artifact.status_id))
        .where(*conditions)
    )
    if after is not None:
        position: Any = func.row(col(Artifact.created), col(Artifact.uuid))
        query = query.where(position < func.row(*after))
    query = query.order_by(col(Artifact.created).desc(), col(Artifact.uuid).desc()).limit(size)
    return (await session.exec(query)).all()


async def delete_all(session: AsyncSession, status_ids: Sequence[UUID]) -> list[str]:
    """Remove the artifacts of tasks; the paths of their files."""
    connection = await session.connection()
    gone = await connection.execute(
        text("delete from artifact where status_id = any(:ids) returning file"),
        {"ids": list(status_ids)},
    )
    return [path for path in gone.scalars() if path]


def link(artifact: Artifact, settings: Settings, *, now: datetime) -> str:
    """An address at which a browser gets the file for a while; empty without a file."""
    if artifact.file is None:
        return ""
    expires = int((now + settings.link_ttl).timestamp())
    signature = _signature(artifact.uuid, expires, settings)
    return (
        f"{settings.origin_url}/api/tasks/v0/artifacts/{artifact.uuid}/file"
        f"?expires={expires}&signature={signature}"
    )


def _signature(uuid: UUID, expires: int, settings: Settings) -> str:
    key = b"artifact link " + settings.token_secret.get_secret_value().encode()
    return hmac.digest(key, f"{uuid} {expires}".encode(), "sha256").hex()
