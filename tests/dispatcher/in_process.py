"""A worker beside the dispatcher's app, in the test's own process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI

from services.dispatcher import client
from services.dispatcher.runner import TaskRunner
from services.dispatcher.schemas import TaskRequest, TaskView
from services.dispatcher.states import FINAL
from shared.clients import ServiceClients
from shared.worker import WorkerContext

LIMIT = 15.0


class Losing(httpx.AsyncBaseTransport):
    """The way to the app; loses the answers of the exchanges it is told to."""

    def __init__(self, app: FastAPI) -> None:
        self._inner = httpx.ASGITransport(app=app)
        self.lose = 0
        self.lost = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if self.lose and request.url.path.endswith("/exchange"):
            body = await response.aread()
            if b'"start":[{' in body.replace(b" ", b""):
                self.lose -= 1
                self.lost += 1
                raise httpx.ReadError("lost", request=request)
            return httpx.Response(response.status_code, content=body, request=request)
        return response


class Worker:
    """A runner beside the app, in this process."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.way = app, Losing(app)
        self.clients = ServiceClients(app.state.settings, transport=self.way)

    @contextlib.asynccontextmanager
    async def runs(
        self, *, settings: dict[str, Any] | None = None, **functions: Callable[..., Any]
    ) -> AsyncIterator[TaskRunner]:
        state = self.app.state
        context = WorkerContext(
            state.settings.model_copy(
                update={"worker_heartbeat_seconds": 0.2, "worker_grace_seconds": 1.0}
                | (settings or {})
            ),
            state.database,
            self.clients,
            state.files,
            state.queue,
        )
        found = TaskRunner(functions)
        async with found.alive(context):
            yield found
            context.stopping.set()

    async def dispatch(self, function: str, **values: Any) -> UUID:
        request = TaskRequest.model_validate(
            {"id": uuid4(), "function": function, "queue": "dispatcher", **values}
        )
        await client.dispatch_now(self.clients, [request])
        return request.id

    async def until(self, task_id: UUID, good: Callable[[TaskView], bool]) -> TaskView:
        async with asyncio.timeout(LIMIT):
            while True:
                task = await client.get_task(self.clients, task_id)
                if good(task):
                    return task
                await asyncio.sleep(0.02)

    async def ended(self, task_id: UUID) -> TaskView:
        return await self.until(task_id, lambda task: task.state in FINAL)

    async def cancel(self, task_id: UUID) -> None:
        await self.clients.post("dispatcher", f"/api/dispatcher/v1/tasks/{task_id}/cancel", {})
