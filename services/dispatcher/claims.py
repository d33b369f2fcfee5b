"""Who stands where in the queue of which resource, and whose turn it is.

Every function here needs the dispatcher's lock (`serialized`): positions are given and grants
are decided by one transaction at a time. That is what makes the rule simple enough to trust,
and it is fast because each transaction handles everything that arrived together.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

LOCK = 7120042


async def serialized(session: AsyncSession) -> None:
    """Wait for the turn of this transaction; it lasts until commit, and a crash ends it."""
    connection = await session.connection()
    await connection.execute(text(f"select pg_advisory_xact_lock({LOCK})"))


_ENQUEUE = text("""
    insert into claim (resource, seq, exclusive, granted)
    select c.resource, task.seq, c.exclusive, false
    from jsonb_to_recordset(cast(:claims as jsonb)) as c (id uuid, resource text, exclusive boolean)
    join task on task.id = c.id
    where task.seq = any(cast(:seqs as bigint[]))
""")

# Two separate look-ups, each one probe of its own index however long the queue is.
_GRANT_NEW = text("""
    update claim set granted = true
    where seq = any(cast(:seqs as bigint[]))
      and case
        when exclusive then not exists (
          select from claim earlier
          where earlier.resource = claim.resource and earlier.seq < claim.seq)
        else not exists (
          select from claim earlier
          where earlier.resource = claim.resource and earlier.seq < claim.seq
            and earlier.exclusive)
      end
""")

_COUNT_BLOCKED = text("""
    update task set blocked_by = waits.claims,
                    unblocked_at = case when waits.claims = 0 then cast(:now as timestamptz) end
    from (select seq, count(*) filter (where not granted) as claims
          from claim where seq = any(cast(:seqs as bigint[])) group by seq) as waits
    where task.seq = waits.seq
""")


async def enqueue(
    session: AsyncSession, claims: str, seqs: Sequence[int], *, now: datetime
) -> None:
    """Put new tasks at the end of their resources' queues and grant what nothing stands before.

    `claims` is a JSON array of {id, resource, exclusive}. contract: dispatcher §3.1
    """
    connection = await session.connection()
    await connection.execute(_ENQUEUE, {"claims": claims, "seqs": list(seqs)})
    await connection.execute(_GRANT_NEW, {"seqs": list(seqs)})
    await connection.execute(_COUNT_BLOCKED, {"seqs": list(seqs), "now": now})


_LEAVE = text("delete from claim where seq = any(cast(:seqs as bigint[])) returning resource")

_GRANT_NEXT = text("""
    with freed as (
      select distinct unnest(cast(:resources as text[])) as resource
    ), turn as (
      select freed.resource,
             head.seq as head, head.exclusive, head.granted,
             coalesce(writer.seq, 9223372036854775807) as writer
      from freed
      cross join lateral (
        select seq, exclusive, granted from claim
        where claim.resource = freed.resource order by seq limit 1) as head
      left join lateral (
        select seq from claim
        where claim.resource = freed.resource and claim.exclusive
        order by seq limit 1) as writer on true
    ), granted as (
      select resource, head as seq from turn where exclusive and not granted
      union all
      select turn.resource, reader.seq
      from turn cross join lateral (
        select seq from claim
        where claim.resource = turn.resource and not claim.granted and claim.seq < turn.writer
      ) as reader
      where not turn.exclusive
    )
    update claim set granted = true from granted
    where claim.resource = granted.resource and claim.seq = granted.seq
    returning claim.seq
""")

_UNBLOCK = text("""
    update task set blocked_by = blocked_by - turn.claims,
                    unblocked_at = case when blocked_by = turn.claims
                                        then cast(:now as timestamptz) end
    from (select seq, count(*) as claims
          from unnest(cast(:seqs as bigint[])) as seq group by seq) as turn
    where task.seq = turn.seq
""")


async def release(session: AsyncSession, seqs: Sequence[int], *, now: datetime) -> None:
    """Take ended tasks out of their queues; those whose turn it now is become ready."""
    if not seqs:
        return
    connection = await session.connection()
    left = await connection.execute(_LEAVE, {"seqs": list(seqs)})
    resources: list[Any] = sorted(set(left.scalars()))
    if not resources:
        return
    granted = await connection.execute(_GRANT_NEXT, {"resources": resources})
    turns = list(granted.scalars())
    if turns:
        await connection.execute(_UNBLOCK, {"seqs": turns, "now": now})
