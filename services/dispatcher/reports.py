"""How far the parts of a task are, and what was recorded about it.

Updates carry absolute numbers, so that one that comes twice counts once and a late one changes
nothing. contract: dispatcher §7, DI-04, DI-34
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import claims
from services.dispatcher.runs import as_json
from services.dispatcher.schemas import GroupShareUpdate, ProfileUpdate, ReportUpdate, Updates
from shared.database import driver

# The end of a task comes wholly before, and then decides, or wholly after. Whoever ends several
# tasks has the dispatcher's lock: sharing it, a batch about several cannot deadlock with that.
_STILL = f"select pg_advisory_xact_lock_shared({claims.LOCK})"
_TASKS = "select id from task where id = any($1::uuid[]) order by id for share"

_STORE = """
insert into taskreport (
  id, task_id, place, attempt, message, code, state, total, done, suffix, created_at, updated_at)
select r.id, r.task_id, r.place, r.attempt, r.message, r.code,
       case when r.state = 'running' and task.state in ('completed', 'failed', 'canceled')
            then task.state else r.state end,
       r.total, r.done, r.suffix, r.at, r.at
from jsonb_to_recordset($1::jsonb) as r (
  id uuid, task_id uuid, place int, attempt int, message text, code text, state text,
  total bigint, done bigint, suffix text, at timestamptz)
join task on task.id = r.task_id and task.attempt = r.attempt
order by r.id
on conflict (id) do update set
  attempt = excluded.attempt, message = excluded.message, code = excluded.code,
  total = excluded.total, done = excluded.done, suffix = excluded.suffix,
  state = excluded.state, updated_at = excluded.updated_at
where taskreport.task_id = excluded.task_id and (
  taskreport.attempt < excluded.attempt
  or taskreport.attempt = excluded.attempt and taskreport.updated_at < excluded.updated_at
     and taskreport.state in ('waiting', 'running'))
"""


async def store(session: AsyncSession, updates: Sequence[ReportUpdate]) -> None:
    """Keep the newest state of each report. Those of tasks that are gone are dropped, and of
    attempts that are over.

    A report that is still running when its task has ended gets the task's state.
    """
    newest: dict[UUID, ReportUpdate] = {}
    for update in sorted(updates, key=lambda update: (update.attempt, update.at)):
        newest[update.id] = update
    tasks = {update.task_id for update in newest.values()}
    if not tasks:
        return
    connection = await driver(session)
    if len(tasks) > 1:
        await connection.execute(_STILL)
    there = {row["id"] for row in await connection.fetch(_TASKS, list(tasks))}
    rows = [update.model_dump() for update in newest.values() if update.task_id in there]
    await connection.execute(_STORE, as_json(rows))


_GROUP_REPORTS = """
insert into groupreport (group_id, code, message, suffix, total, created_at)
select r.group_id, r.code, r.message, r.suffix, 0, r.at
from (
  select distinct on (r.group_id, r.code) r.*
  from jsonb_to_recordset($1::jsonb) as r (
    group_id uuid, code text, task_id uuid, message text, suffix text, at timestamptz)
  join task on task.id = r.task_id and task.group_id = r.group_id
  order by r.group_id, r.code, r.at) as r
join taskgroup on taskgroup.id = r.group_id
order by r.group_id, r.code
for key share of taskgroup
on conflict do nothing
"""
_SHARES = """
insert into groupshare (group_id, code, task_id, done, total)
select r.group_id, r.code, r.task_id, max(r.done), max(r.total)
from jsonb_to_recordset($1::jsonb) as r (
  group_id uuid, code text, task_id uuid, done bigint, total bigint)
join task on task.id = r.task_id and task.group_id = r.group_id
join groupreport on groupreport.group_id = r.group_id and groupreport.code = r.code
group by r.group_id, r.code, r.task_id
order by r.group_id, r.code, r.task_id
on conflict (group_id, code, task_id) do update set
  done = greatest(groupshare.done, excluded.done),
  total = greatest(groupshare.total, excluded.total)
"""


async def store_shares(session: AsyncSession, updates: Sequence[GroupShareUpdate]) -> None:
    """Keep what each task has added to the counts of its own group; all else is dropped."""
    if updates:
        connection = await driver(session)
        rows = as_json([update.model_dump() for update in updates])
        await connection.execute(_GROUP_REPORTS, rows)
        await connection.execute(_SHARES, rows)


_PROFILES = """
insert into profileartifact (id, task_id, name, file, size, created_at)
select gen_random_uuid(), r.task_id, r.name, r.file, r.size, $2
from (
  select distinct on (task_id, name) *
  from jsonb_to_recordset($1::jsonb) as r (task_id uuid, name text, file text, size bigint)
  order by task_id, name) as r
join task on task.id = r.task_id
for key share of task
on conflict (task_id, name) do update set
  file = excluded.file, size = excluded.size, created_at = excluded.created_at
"""


async def store_profiles(
    session: AsyncSession, profiles: Sequence[ProfileUpdate], *, now: datetime
) -> None:
    """Keep what was recorded about runs; the files are stored already. A repeated run's counts."""
    if profiles:
        rows = as_json([profile.model_dump() for profile in profiles])
        await (await driver(session)).execute(_PROFILES, rows, now)


async def apply(session: AsyncSession, updates: Sequence[Updates], *, now: datetime) -> None:
    """Everything that runs told of themselves at once."""
    await store(session, [one for update in updates for one in update.reports])
    await store_shares(session, [one for update in updates for one in update.shares])
    await store_profiles(session, [one for update in updates for one in update.profiles], now=now)
