"""What tasks made, and whether it still exists. contract: dispatcher §1.4, DI-61

News of a thing may come twice, late, and its end before its beginning. A thing made anew under
the name of one that is gone is another thing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.runs import as_json
from services.dispatcher.schemas import Created, Gone
from shared.database import driver

# A beginning and an end that come at the same moment must see each other.
_LOCK = "select pg_advisory_xact_lock(7120043)"
# The longest that news of a beginning may be later than that of the end.
REMEMBERED = timedelta(days=7)

_ADD = """
insert into createdresource (task_id, prn, href, gone, made_at)
select r.task_id, r.prn, r.href,
       exists (select from goneresource where goneresource.prn = r.prn and gone_at >= r.at), r.at
from jsonb_to_recordset($1::jsonb) as r (
  place int, task_id uuid, prn text, href text, at timestamptz)
join task on task.id = r.task_id
order by r.place
for key share of task
on conflict do nothing
"""


async def add(session: AsyncSession, things: Sequence[Created]) -> None:
    """Note what tasks made, each thing once for its task; for tasks that are gone, nothing."""
    connection = await driver(session)
    await connection.execute(_LOCK)
    rows = [{"place": place, **one.model_dump()} for place, one in enumerate(things)]
    await connection.execute(_ADD, as_json(rows))


_REMEMBER = """
insert into goneresource (prn, gone_at, told_at)
select r.prn, max(r.at), $2
from jsonb_to_recordset($1::jsonb) as r (prn text, at timestamptz)
group by r.prn order by r.prn
on conflict (prn) do update set
  gone_at = greatest(goneresource.gone_at, excluded.gone_at), told_at = excluded.told_at
"""
_MARK = """
update createdresource set gone = true
from jsonb_to_recordset($1::jsonb) as r (prn text, at timestamptz)
where createdresource.prn = r.prn and made_at <= r.at and not gone
"""
_FORGET = "delete from goneresource where told_at < $1"


async def gone(session: AsyncSession, things: Sequence[Gone], *, now: datetime) -> None:
    """These things exist no more: where they are listed they are shown as unavailable."""
    connection = await driver(session)
    await connection.execute(_LOCK)
    rows = as_json([one.model_dump() for one in things])
    await connection.execute(_REMEMBER, rows, now)
    await connection.execute(_MARK, rows)
    await connection.execute(_FORGET, now - REMEMBERED)
