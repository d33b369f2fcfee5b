"""How much work waits for workers, and how many there are.

One process measures for all: whoever finds the last measurement a period old makes the next one,
and every process shows what was measured last. So the numbers are the same wherever they are
read, and their cost does not grow with the number of processes.
contract: dispatcher §4.10, T-19, P-08
"""

from datetime import datetime, timedelta
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.runs import as_json
from services.dispatcher.schemas import QueueNumbers
from shared.database import driver

# Workers take what is ready within moments: only what is older lacks a worker.
RIPE = timedelta(seconds=5)
# Of each queue so many ready tasks are looked at, the first in line.
MOST_READY = 10_000

# Of processes that come together one gets a row; the others wait until it has measured. A time
# more than a period in the future is of a clock that was wrong.
_TURN = """
with turn as (
  insert into measurement (id, measured_at, numbers) values (1, $1, '[]')
  on conflict (id) do update set measured_at = $1
  where measurement.measured_at <= $2 or measurement.measured_at > $3
  returning id
)
select set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true) from turn
"""
_LAST = "select measured_at, numbers from measurement where id = 1"
_STORE = "update measurement set numbers = $1::jsonb where id = 1"

# Hops over the indexes of ready and of running tasks; what is blocked or has ended costs nothing.
MEASURE = """
with recursive waiting as (
  (select queue from task
   where state || '' = 'waiting' and blocked_by = 0 and lease_seconds is null and retry_at is null
   order by queue limit 1)
  union all
  select (select task.queue from task
          where state || '' = 'waiting' and blocked_by = 0 and lease_seconds is null
            and retry_at is null and task.queue > waiting.queue
          order by task.queue limit 1)
  from waiting where waiting.queue is not null
), alive as materialized (
  select * from worker where app_type = 'worker' and last_heartbeat > $2
), ready as (
  select waiting.queue, count(*) as ready, min(line.unblocked_at) as since,
         count(*) filter (where not exists (
           select from alive
           where alive.queue = waiting.queue and line.requirement_id = any(alive.meets))) as unmet
  from waiting cross join lateral (
    select task.requirement_id, task.unblocked_at from task
    where task.queue = waiting.queue and task.state || '' = 'waiting' and task.blocked_by = 0
      and task.lease_seconds is null and task.retry_at is null
    order by task.queue, task.requirement_id, (not task.immediate), task.seq
    limit $3) as line
  where waiting.queue is not null and line.unblocked_at <= $1
  group by waiting.queue
), running as (
  select task.queue, count(*) as running,
         count(*) filter (where task.unblocked_at <= $1) as ripe,
         count(*) filter (where worker.app_type = 'worker') as busy
  from worker join task
    on task.worker_id = worker.id and task.state in ('running', 'canceling')
  group by task.queue
), staffed as (
  select queue, count(*) as workers, sum(concurrency) as slots from alive group by queue
)
select queue, coalesce(ready, 0) as ready, coalesce(unmet, 0) as unmet, since,
       coalesce(running, 0) as running, coalesce(ripe, 0) as ripe, coalesce(busy, 0) as busy,
       coalesce(workers, 0) as workers, coalesce(slots, 0)::bigint as slots
from ready full join running using (queue) full join staffed using (queue)
order by queue
"""


async def current(
    session: AsyncSession, *, now: datetime, period: timedelta, ttl: timedelta
) -> tuple[datetime, list[QueueNumbers]]:
    """When was last measured, and what; measured now if that was a period ago."""
    connection = await driver(session)
    # A little less than the period, or a loop that wakes a moment early would skip one.
    if await connection.fetchrow(_TURN, now, now - period * 0.9, now + period) is None:
        last = await connection.fetchrow(_LAST)
        found = [QueueNumbers.model_validate(one) for one in last["numbers"]]
        return last["measured_at"], found
    numbers = await measure(session, now=now, ttl=ttl)
    await connection.execute(_STORE, as_json([one.model_dump() for one in numbers]))
    return now, numbers


async def measure(session: AsyncSession, *, now: datetime, ttl: timedelta) -> list[QueueNumbers]:
    """The numbers of every queue that has ready tasks, running tasks or workers."""
    rows = await (await driver(session)).fetch(MEASURE, now - RIPE, now - ttl, MOST_READY)
    return [_numbers(row, now) for row in rows]


def _numbers(row: Any, now: datetime) -> QueueNumbers:
    ready, unmet = row["ready"], row["unmet"]
    if row["workers"]:
        wanting = max(0, ready - unmet - max(0, row["slots"] - row["busy"]))
    else:
        unmet, wanting = 0, ready
    return QueueNumbers(
        queue=row["queue"],
        ready=ready,
        longest_ready_seconds=(now - row["since"]).total_seconds() if ready else 0.0,
        parallel=ready + row["ripe"],
        wanting=wanting,
        unmet=unmet,
        running=row["running"],
        workers=row["workers"],
        slots=row["slots"],
    )
