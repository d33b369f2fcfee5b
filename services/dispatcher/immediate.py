"""Running short tasks in a web process, under the same locks as everything else.

The process registers with the dispatcher as a worker does and reports in the same way; only it
takes no work: each run is one that a request of its own asked for. contract: dispatcher §2.3, §2.4
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal
from uuid import UUID

from fastapi import FastAPI

from services.dispatcher import client
from services.dispatcher.runner import API, TaskFunction, TaskRunner
from services.dispatcher.schemas import (
    Assignment,
    FinishReport,
    ImmediateAnswer,
    ImmediateRequest,
    TaskRequest,
    TaskView,
)
from services.dispatcher.states import State
from shared.problems import Unavailable
from shared.worker import WorkerContext

REGISTRATIONS = 3


class ImmediateRunner(TaskRunner):
    """The functions that a web process may run itself."""

    app_type: Literal["worker", "api"] = "api"

    def __init__(
        self, functions: Mapping[str, TaskFunction], *, versions: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(functions, versions=versions)
        self._context: WorkerContext | None = None
        self._waiting: dict[UUID, asyncio.Event] = {}

    def beside(self) -> Callable[[FastAPI], AbstractAsyncContextManager[Any]]:
        """What `create_service_app` takes as `background`."""

        @contextlib.asynccontextmanager
        async def running(app: FastAPI) -> AsyncIterator[None]:
            state = app.state
            self._context = WorkerContext(
                state.settings, state.database, state.clients, state.files, state.queue
            )
            async with self.alive(self._context):
                state.immediate = self
                yield

        return running

    async def run_now(self, request: TaskRequest) -> TaskView:
        """Run a task here if its resources are free; it has ended when this returns.

        If they are not free it is left to a worker, or canceled when it may not be deferred. The
        task's own failure is in what is returned, never raised. Raises Unavailable without the
        dispatcher.
        """
        assert self._context is not None, "the process has not started"
        task = request.model_copy(update={"immediate": True})
        ended = self._waiting.setdefault(task.id, asyncio.Event())
        try:
            answer = await self._ask_to_run(task)
            if answer.start is not None:
                self._start(self._context, answer.start)
            elif answer.task is not None and answer.task.state is State.RUNNING:
                self._answer_was_lost()
            else:
                assert answer.task is not None
                return answer.task
            await ended.wait()
        finally:
            del self._waiting[task.id]
        return await client.get_task(self._context.clients, task.id)

    async def _ask_to_run(self, task: TaskRequest) -> ImmediateAnswer:
        assert self._context is not None
        for _ in range(REGISTRATIONS):
            await self._registered.wait()
            body = ImmediateRequest(task=task, worker_id=self._worker_id)
            answer = ImmediateAnswer.model_validate(
                await self._context.clients.post(
                    "dispatcher", f"{API}/tasks/immediate", body.model_dump(mode="json")
                )
            )
            if answer.known:
                return answer
            self._given_up(body.worker_id)
        raise Unavailable("The dispatcher does not keep this process registered.")

    def _answer_was_lost(self) -> None:
        """The task is ours already: the next exchange gives it again."""
        self._uncertain = True
        self._ask()

    def _taken(self, report: FinishReport) -> None:
        waits = self._waiting.get(report.task_id)
        if waits is not None:
            waits.set()

    def _void(self, assignment: Assignment) -> None:
        waits = self._waiting.get(assignment.task_id)
        if waits is not None:
            waits.set()
