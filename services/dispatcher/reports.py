"""How far the parts of a task are, what it made, and what was recorded about it.

Updates carry absolute numbers, so that one that comes twice counts once and a late one changes
nothing. contract: dispatcher §7, §1.4, DI-34
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.runs import as_json
from services.dispatcher.schemas import (
    Created,
    GroupShareUpdate,
    ProfileUpdate,
    ReportUpdate,
    Updates,
)
from shared.database import driver

# A share lock on the task: its end comes wholly before, and then decides, or wholly after.
_TASK = "select state from task where id = $1 for share"

_STORE = """
insert into taskreport
  (id, task_id, place, message, code, state, total, done, suffix, created_at, updated_at)
select r.id, $2, r.place, r.message, r.code,
       case when r.state = 'running' and $3 in ('completed', 'failed', 'canceled')
            then $3 else r.state end,
       r.total, r.done, r.suffix, r.at, r.at
from jsonb_to_recordset($1::jsonb) as r (
  id uuid, place int, message text, code text, state text, total bigint, done bigint,
  suffix text, at timestamptz)
on conflict (id) do update set
  message = excluded.message, total = excluded.total, done = excluded.done,
  suffix = excluded.suffix, state = excluded.state, updated_at = excluded.updated_at
where taskreport.task_id = excluded.task_id and taskreport.updated_at < excluded.updated_at
  and taskreport.state in ('waiting', 'running')
"""


async def store(session: AsyncSession, updates: Sequence[ReportUpdate]) -> None:
    """Keep the newest state of each report; those of tasks that are gone are dropped.

    A report that is still running when its task has ended gets the task's state.
    """
    newest: dict[UUID, dict[UUID, ReportUpdate]] = {}
    for update in sorted(updates, key=lambda update: update.at):
        newest.setdefault(update.task_id, {})[update.id] = update
    connection = await driver(session)
    for task_id in sorted(newest):
        state = await connection.fetchval(_TASK, task_id)
        if state is not None:
            rows = [newest[task_id][key].model_dump() for key in sorted(newest[task_id])]
            await connection.execute(_STORE, as_json(rows), task_id, state)


_GROUP_REPORTS = """
insert into groupreport (group_id, code, message, suffix, total, created_at)
select distinct on (r.group_id, r.code) r.group_id, r.code, r.message, r.suffix, 0, r.at
from jsonb_to_recordset($1::jsonb) as r (
  group_id uuid, code text, message text, suffix text, at timestamptz)
join taskgroup on taskgroup.id = r.group_id
order by r.group_id, r.code, r.at
on conflict do nothing
"""
_SHARES = """
insert into groupshare (group_id, code, task_id, done, total)
select distinct on (r.group_id, r.code, r.task_id) r.group_id, r.code, r.task_id, r.done, r.total
from jsonb_to_recordset($1::jsonb) as r (
  group_id uuid, code text, task_id uuid, done bigint, total bigint, at timestamptz)
join groupreport on groupreport.group_id = r.group_id and groupreport.code = r.code
order by r.group_id, r.code, r.task_id, r.at desc
on conflict (group_id, code, task_id) do update set
  done = greatest(groupshare.done, excluded.done),
  total = greatest(groupshare.total, excluded.total)
"""


async def store_shares(session: AsyncSession, updates: Sequence[GroupShareUpdate]) -> None:
    """Keep what each task has added to its group's counts; those of unknown groups are dropped."""
    if updates:
        connection = await driver(session)
        rows = as_json([update.model_dump() for update in updates])
        await connection.execute(_GROUP_REPORTS, rows)
        await connection.execute(_SHARES, rows)


_CREATED = """
insert into createdresource (task_id, prn, href, gone)
select r.task_id, r.prn, r.href, false
from jsonb_to_recordset($1::jsonb) as r (place int, task_id uuid, prn text, href text)
join task on task.id = r.task_id
order by r.place
on conflict do nothing
"""


async def created(session: AsyncSession, resources: Sequence[Created]) -> None:
    """Note what tasks made, each thing once for its task."""
    rows = as_json([{"place": place, **one.model_dump()} for place, one in enumerate(resources)])
    await (await driver(session)).execute(_CREATED, rows)


async def gone(session: AsyncSession, prns: Sequence[str]) -> None:
    """These things exist no more; where they are listed they are shown as unavailable. DI-61"""
    await (await driver(session)).execute(
        "update createdresource set gone = true where prn = any($1::text[])", list(prns)
    )


_PROFILES = """
insert into profileartifact (id, task_id, name, file, size, created_at)
select r.id, r.task_id, r.name, r.file, r.size, $2
from jsonb_to_recordset($1::jsonb) as r (id uuid, task_id uuid, name text, file text, size bigint)
join task on task.id = r.task_id
on conflict do nothing
"""


async def store_profiles(
    session: AsyncSession, profiles: Sequence[ProfileUpdate], *, now: datetime
) -> None:
    """Keep what was recorded about runs; the files are stored already."""
    if profiles:
        rows = as_json([profile.model_dump() for profile in profiles])
        await (await driver(session)).execute(_PROFILES, rows, now)


async def apply(session: AsyncSession, updates: Sequence[Updates], *, now: datetime) -> None:
    """Everything that runs told of themselves at once."""
    await store(session, [one for update in updates for one in update.reports])
    await store_shares(session, [one for update in updates for one in update.shares])
    await store_profiles(session, [one for update in updates for one in update.profiles], now=now)
