"""Why a task has not started yet."""

from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.errors import TaskUnknown
from services.dispatcher.models import Task
from services.dispatcher.schemas import TaskView, WaitingFor
from services.dispatcher.states import State
from shared.database import driver

_BUSY = "select resource from claim where seq = $1 and not granted order by resource"
_WORKERS = """
select count(*) as alive, count(*) filter (where $2 = any(meets)) as able
from worker where queue = $1 and app_type = 'worker'
"""


async def view(session: AsyncSession, task_id: UUID) -> TaskView:
    """A task as services see it. Raises TaskUnknown."""
    task = await session.get(Task, task_id, populate_existing=True)
    if task is None:
        raise TaskUnknown()
    shown = TaskView.model_validate(task, from_attributes=True)
    shown.waiting_for = await waiting_for(session, task)
    return shown


async def waiting_for(session: AsyncSession, task: Task) -> WaitingFor | None:
    """The resources, the versions or the worker a waiting task lacks. None if it has all.

    contract: dispatcher §2.5
    """
    if task.state is not State.WAITING:
        return None
    connection = await driver(session)
    if task.blocked_by:
        rows = await connection.fetch(_BUSY, task.seq)
        return WaitingFor(resources=[row["resource"] for row in rows])
    workers = await connection.fetchrow(_WORKERS, task.queue, task.requirement_id)
    if workers["able"]:
        return None
    return WaitingFor(versions=task.versions, worker=workers["alive"] == 0)
