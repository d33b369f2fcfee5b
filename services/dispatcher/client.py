"""How the other services ask for tasks, and what became of them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.holding import holding, release_lease, renew_lease, take_lease
from services.dispatcher.options import requested
from services.dispatcher.schemas import (
    Created,
    Gone,
    TaskRequest,
    TaskView,
    Updates,
    UserTaskSpec,
)
from services.dispatcher.states import FINAL
from shared import ids, outbox
from shared.callers import Caller
from shared.clients import ServiceClients
from shared.database import utc_now

SERVICE = "dispatcher"
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5


def make_request(
    function: str,
    *,
    queue: str,
    kwargs: dict[str, Any],
    exclusive: Sequence[str] = (),
    shared: Sequence[str] = (),
    caller: Caller | None = None,
    user_task: UserTaskSpec | None = None,
    repeatable: bool = False,
    group_id: UUID | None = None,
    versions: Mapping[str, str] | None = None,
    immediate: bool = False,
    deferred: bool = True,
    profile_options: Sequence[str] | None = None,
) -> TaskRequest:
    """Describe a task. `repeatable`: safe to run again when its worker is lost.

    What a running task dispatches is its child, in its correlation, with its diagnostics; what a
    request dispatches is recorded as the request's header X-Task-Diagnostics asks.
    contract: dispatcher §2.1, DI-31, DI-32
    """
    context = structlog.contextvars.get_contextvars()
    if profile_options is None:
        profile_options = context.get("profile_options")
    if profile_options is None:
        profile_options = requested(context.get("task_diagnostics"))
    return TaskRequest(
        id=ids.new_id(),
        function=function,
        queue=queue,
        arguments=kwargs,
        exclusive=list(exclusive),
        shared=list(shared),
        username=caller.username if caller else None,
        logging_cid=str(context.get("request_id") or ids.new_id().hex),
        parent_id=context.get("task_id"),
        repeatable=repeatable,
        user_task=user_task,
        group_id=group_id,
        versions=dict(versions or {}),
        immediate=immediate,
        deferred=deferred,
        profile_options=list(profile_options),
    )


async def dispatch(session: AsyncSession, function: str, **kwargs: Any) -> UUID:
    """Ask for a task in this transaction: it runs if and only if the transaction commits.

    Takes what `make_request` takes. The id is also the user task's.
    """
    request = make_request(function, **kwargs)
    await outbox.send(session, SERVICE, "on_dispatch", request)
    return request.id


async def dispatch_now(clients: ServiceClients, requests: Sequence[TaskRequest]) -> list[UUID]:
    """Ask for tasks at once: when this returns they are accepted, and each reaches one end."""
    body = [request.model_dump(mode="json") for request in requests]
    await clients.post(SERVICE, "/api/dispatcher/v1/tasks", body)
    return [request.id for request in requests]


async def dispatch_all(session: AsyncSession, requests: Sequence[TaskRequest]) -> list[UUID]:
    """Ask for tasks in this transaction, in this order."""
    await outbox.send_many(session, SERVICE, "on_dispatch", requests)
    return [request.id for request in requests]


async def cancel(session: AsyncSession, task_id: UUID) -> None:
    """Ask, in this transaction, that a task stop."""
    await outbox.send(session, SERVICE, "on_cancel_requested", {"task_id": str(task_id)})


async def get_task(clients: ServiceClients, task_id: UUID) -> TaskView:
    """Raises TaskUnknown."""
    return TaskView.model_validate(
        await clients.get(SERVICE, f"/api/dispatcher/v1/tasks/{task_id}")
    )


async def wait_for(clients: ServiceClients, task_id: UUID, timeout: float) -> TaskView:
    """The task once it has ended, or as it is when the time is over. Raises TaskUnknown."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        task = await get_task(clients, task_id)
        waited = loop.time() - began
        if task.state in FINAL or waited >= timeout:
            return task
        # The answer is at most a tenth later than the end.
        pause = min(max(FIRST_PAUSE, waited / 10), LONGEST_PAUSE)
        await asyncio.sleep(min(pause, timeout - waited))


async def report(clients: ServiceClients, updates: Updates) -> None:
    """Tell at once what a run reports of itself. Raises Unavailable."""
    await clients.post(
        SERVICE, "/api/dispatcher/v1/reports", updates.model_dump(mode="json"), attempts=1
    )


async def report_later(session: AsyncSession, updates: Updates) -> None:
    """Tell, in this transaction, what a run reports of itself."""
    await outbox.send(session, SERVICE, "on_reports", updates)


async def created(session: AsyncSession, task_id: UUID, prn: str, href: str) -> None:
    """Tell, in the transaction that makes something, that a task made it."""
    note = Created(task_id=task_id, prn=prn, href=href, at=utc_now())
    await outbox.send(session, SERVICE, "on_created", note)


async def gone(session: AsyncSession, prn: str) -> None:
    """Tell, in the transaction that removes something, that it exists no more."""
    await outbox.send(session, SERVICE, "on_resource_gone", Gone(prn=prn, at=utc_now()))


__all__ = [
    "cancel",
    "created",
    "dispatch",
    "dispatch_all",
    "dispatch_now",
    "get_task",
    "gone",
    "holding",
    "make_request",
    "release_lease",
    "renew_lease",
    "report",
    "report_later",
    "requested",
    "take_lease",
    "wait_for",
]
