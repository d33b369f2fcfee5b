"""One task as services see it, and what a waiting one waits for. contract: dispatcher §2.5"""

from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.errors import TaskUnknown
from services.dispatcher.schemas import TaskView
from shared.database import driver

# Services ask for tasks all the time, so the answer is made where the task is.
_VIEW = """
select json_build_object(
  'id', task.id, 'name', task.name, 'state', task.state, 'unblocked_at', task.unblocked_at,
  'started_at', task.started_at, 'finished_at', task.finished_at, 'error', task.error,
  'result', task.result,
  'waiting_for', case
    when task.state <> 'waiting' then null
    when task.blocked_by > 0 then (
      select json_build_object('resources', json_agg(claim.resource order by claim.resource))
      from claim where claim.seq = task.seq and not claim.granted)
    else (
      select json_build_object('versions', task.versions, 'worker', count(*) = 0)
      from worker where worker.queue = task.queue and worker.app_type = 'worker'
      having count(*) filter (where task.requirement_id = any(worker.meets)) = 0)
  end)::text
from task where task.id = $1
"""


async def view(session: AsyncSession, task_id: UUID) -> TaskView:
    """Raises TaskUnknown."""
    return TaskView.model_validate_json(await view_json(await driver(session), task_id))


async def view_json(connection: Any, task_id: UUID) -> str:
    """The same as JSON text: while it waits, with the resources, the versions or the worker it
    lacks. Raises TaskUnknown.
    """
    found = await connection.fetchval(_VIEW, task_id)
    if found is None:
        raise TaskUnknown()
    return str(found)
