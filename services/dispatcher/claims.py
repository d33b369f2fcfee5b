"""Who stands where in the queue of which resource, and whose turn it is.

Every function here needs the dispatcher's lock (`serialized`): positions are given and grants
are decided by one transaction at a time. That is what makes the rule simple enough to trust,
and it is fast because each transaction handles everything that arrived together, with one
statement for each step.
What becomes of claims when a task ends is in functions.sql.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.waking import wake_later
from shared.database import driver

LOCK = 7120042

# The statements below are made of index probes. The planner must neither prefer scans while
# the tables are small, and keep that plan when they have grown, nor plan anew each time.
TURN = text(f"""
    select pg_advisory_xact_lock({LOCK}),
           set_config('plan_cache_mode', 'force_generic_plan', true),
           set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
           set_config('enable_mergejoin', 'off', true), set_config('enable_material', 'off', true),
           set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)
""")


async def serialized(session: AsyncSession) -> None:
    """Wait for the turn of this transaction; it lasts until commit, and a crash ends it."""
    connection = await session.connection()
    await connection.execute(TURN)


# $1 is a JSON array of tasks in their order. A claim is granted when nothing conflicting stands
# before it: neither in the table, where everything is earlier, nor in this batch. Where claims
# wait, an exclusive one is held or waits first, so who shares need not look for it among them.
# `offset 0` keeps the planner from reading the whole table into a hash, which it likes to do
# while that is empty.
ACCEPT = """
with asked as materialized (
  select * from jsonb_to_recordset($1::jsonb) as r (
    place int, id uuid, name text, queue text, arguments jsonb, username text, logging_cid text,
    parent_id uuid, group_id uuid, chain_id uuid, dependent boolean, immediate boolean,
    deferred boolean, versions jsonb, requirement_id int, profile_options text[],
    exclusive text[], shared text[], reserved text[], user_task jsonb, repeatable boolean,
    lease_seconds float, wait_seconds float)
  where not exists (select from task where task.id = r.id offset 0)
), placed as materialized (
  select nextval(pg_get_serial_sequence('task', 'seq')) as seq, ordered.*
  from (select row_number() over (order by place) as number, asked.* from asked
        order by place) as ordered
), wish as (
  select seq, named.place::int, named.resource, named.place <= cardinality(exclusive) as exclusive
  from placed cross join lateral unnest(exclusive || shared)
    with ordinality as named (resource, place)
), judged as materialized (
  select seq, place, resource, exclusive,
         case when exclusive
           then count(*) over before = 0
                and not exists (
                  select from claim where claim.resource = wish.resource and granted offset 0)
           else not coalesce(bool_or(exclusive) over before, false)
                and not exists (
                  select from claim
                  where claim.resource = wish.resource and claim.exclusive and granted offset 0)
         end
         and not exists (
           select from claim where claim.resource = wish.resource and not granted offset 0)
         as granted
  from wish
  window before as (
    partition by resource order by seq rows between unbounded preceding and 1 preceding)
), stored as (
  insert into claim (seq, place, resource, exclusive, granted)
  select seq, place, resource, exclusive, granted from judged
), waits as materialized (
  -- By the task's number in this batch: each has a claim, on its domain. A join of the two would
  -- compare all with all, as hashing is off.
  select array_agg(claims order by seq) as claims
  from (select seq, count(*) filter (where not granted)::int as claims
        from judged group by seq) as one
)
insert into task (
  id, seq, state, name, queue, arguments, username, logging_cid, parent_id, group_id, chain_id,
  dependent, immediate, deferred, versions, requirement_id, profile_options, owned, reserved,
  user_task, repeatable, attempt, blocked_by, created_at, updated_at, unblocked_at,
  lease_seconds, started_at, fence, expires_at)
overriding system value
select
  id, placed.seq, case when granted_lease then 'running' else 'waiting' end, name, queue,
  arguments, username, logging_cid, parent_id, group_id, chain_id, dependent, immediate,
  deferred, versions, requirement_id, profile_options, true, reserved, user_task, repeatable,
  1, ungranted.claims, $2, $2, case when ungranted.claims = 0 then $2::timestamptz end,
  lease_seconds,
  case when granted_lease then $2::timestamptz end,
  case when granted_lease then nextval('fence_seq') end,
  $2::timestamptz + make_interval(
    secs => case when granted_lease then lease_seconds else wait_seconds end)
from placed cross join waits
cross join lateral (select waits.claims[placed.number] as claims) as ungranted
cross join lateral (
  select ungranted.claims = 0 and lease_seconds is not null as granted_lease) as lease
returning id, queue, blocked_by
"""


async def enqueue(session: AsyncSession, tasks: str, *, now: datetime) -> Sequence[Any]:
    """Store tasks at the end of their resources' queues; known ids are passed over.

    Returns (id, queue, blocked_by) of those that are new. contract: dispatcher §3.1
    """
    rows: Sequence[Any] = await (await driver(session)).fetch(ACCEPT, tasks, now)
    wake_later(session, [row for row in rows if row["blocked_by"] == 0])
    return rows
