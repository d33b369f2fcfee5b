"""Which processes are alive, and what they are told when they say so."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims, requirements
from services.dispatcher.schemas import Heartbeat, HeartbeatAnswer
from shared.database import driver

_REGISTER = """
insert into worker (
  id, app_type, name, queue, versions, meets, concurrency, turn, started_at, last_heartbeat)
values ($1, $2, $3, $4, $5::jsonb, $6::int[], $7, 0, $8, $8)
on conflict (id) do update set last_heartbeat = excluded.last_heartbeat
"""
_ALIVE = text("update worker set last_heartbeat = :now where id = :id")
_HELD = text("""
    select id, state from task where worker_id = :id and state in ('running', 'canceling')
""")


async def heartbeat(
    session: AsyncSession, worker_id: UUID, report: Heartbeat, *, now: datetime
) -> HeartbeatAnswer:
    """Note that a worker is alive; tell it which of its runs go on and which to cancel.

    A worker that was given up is not known any more: only a first heartbeat registers one.
    """
    connection = await session.connection()
    if report.first:
        await _register(session, worker_id, report, now)
    elif (await connection.execute(_ALIVE, {"id": worker_id, "now": now})).rowcount == 0:
        return HeartbeatAnswer(known=False)
    held = (await connection.execute(_HELD, {"id": worker_id})).all()
    return HeartbeatAnswer(
        known=True,
        running=[row.id for row in held if row.state == "running"],
        cancel=[row.id for row in held if row.state == "canceling"],
    )


async def _register(
    session: AsyncSession, worker_id: UUID, report: Heartbeat, now: datetime
) -> None:
    await claims.serialized(session)
    met = await requirements.met_by(session, report.versions)
    await (await driver(session)).execute(
        _REGISTER, worker_id, report.app_type, report.name, report.queue,
        requirements.canonical(report.versions), met, report.concurrency, now,
    )  # fmt: skip


async def leave(session: AsyncSession, worker_id: UUID) -> None:
    """A worker stopped in good order and runs nothing any more."""
    connection = await session.connection()
    await connection.execute(
        text("""
            delete from worker where id = :id and not exists (
              select from task where worker_id = :id and state in ('running', 'canceling'))
        """),
        {"id": worker_id},
    )


_SWEPT = text("""
    insert into sweep (id, swept_at) values (1, :now)
    on conflict (id) do update set swept_at = :now
    returning (select swept_at from sweep where id = 1) as before
""")


async def forgive_own_absence(session: AsyncSession, *, now: datetime, ttl: timedelta) -> bool:
    """After a pause of the dispatcher itself, give every worker a whole time limit again.

    Workers could not report while nobody listened. Call before each check for lost workers.
    Takes the dispatcher's lock first: who holds it gives runs to workers, and waits for their rows.
    """
    await claims.serialized(session)
    connection = await session.connection()
    before = (await connection.execute(_SWEPT, {"now": now})).scalar()
    if before is not None and now - before < ttl / 2:
        return False
    await connection.execute(text("update worker set last_heartbeat = :now"), {"now": now})
    return True
