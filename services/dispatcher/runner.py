"""Running dispatched functions in a service's worker.

A function is run only after the dispatcher has said so, under the fence it gave, and its end is
reported until the dispatcher has taken it. A worker that cannot reach the dispatcher for the
length of its time limit stops its runs by itself, because their locks may have been given away.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import structlog
from redis.exceptions import RedisError

from services.dispatcher.progress import Progress
from services.dispatcher.pushing import CANCEL_CHANNEL
from services.dispatcher.schemas import FinishReport, Heartbeat, HeartbeatAnswer, StartReport
from shared import ids
from shared.clients import ServiceClients, patiently
from shared.database import Sessions
from shared.files import Files
from shared.loops import end
from shared.problems import Problem, Unavailable
from shared.settings import ServiceSettings
from shared.worker import WorkerContext

log = structlog.get_logger("runner")

API = "/api/dispatcher/v1"


@dataclass(frozen=True)
class TaskContext:
    """What a dispatched function has at hand."""

    task_id: UUID
    user: str | None
    fence: int
    attempt: int
    settings: ServiceSettings
    sessions: Sessions
    files: Files
    clients: ServiceClients
    progress: Progress


TaskFunction = Callable[..., Awaitable[Any]]


class TaskRunner:
    """The dispatched functions of one service, by name, and those running in this process."""

    def __init__(self, functions: Mapping[str, TaskFunction]) -> None:
        self._functions = dict(functions)
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._worker_id = ids.new_id()
        self._canceled: set[UUID] = set()
        self._registered = asyncio.Event()

    async def run_task(
        self,
        context: WorkerContext,
        *,
        task_id: str,
        function_name: str,
        arguments: dict[str, Any],
        attempt: int,
        username: str | None,
    ) -> None:
        """The one job the dispatcher pushes. The run itself outlives a lost queue."""
        ident = UUID(task_id)
        if ident in self._running or context.stopping.is_set():
            return
        run = asyncio.create_task(
            self._run(context, ident, function_name, arguments, attempt, username),
            name=f"task-{task_id}",
        )
        self._running[ident] = run
        run.add_done_callback(lambda _: self._running.pop(ident, None))
        await asyncio.shield(run)

    async def _run(
        self,
        context: WorkerContext,
        task_id: UUID,
        function: str,
        arguments: dict[str, Any],
        attempt: int,
        username: str | None,
    ) -> None:
        structlog.contextvars.bind_contextvars(task_id=str(task_id))
        await self._registered.wait()
        fence = await self._may_start(context, task_id, attempt)
        if fence is None:
            log.info("task.not_ours", function=function)
            return
        log.info("task.started", function=function, fence=fence, attempt=attempt)
        progress = Progress(task_id, attempt, context.clients, context.sessions)
        task = TaskContext(
            task_id, username, fence, attempt, context.settings,
            context.sessions, context.files, context.clients, progress,
        )  # fmt: skip
        report = await self._outcome(task, function, arguments)
        self._canceled.discard(task_id)
        await asyncio.shield(self._report_finish(context, report))
        log.info("task.finished", function=function, state=report.state)

    async def _outcome(
        self, task: TaskContext, function: str, arguments: dict[str, Any]
    ) -> FinishReport:
        try:
            call = self._functions.get(function)
            if call is None:
                raise LookupError(f"This worker has no function called {function}.")
            result = _storable(await call(task, **arguments))
            await task.progress.close()
            return FinishReport(
                task_id=task.task_id, fence=task.fence, state="completed", result=result
            )
        except asyncio.CancelledError:
            by_person = task.task_id in self._canceled
            return FinishReport(
                task_id=task.task_id,
                fence=task.fence,
                state="canceled" if by_person else "failed",
                error=None if by_person else {"reason": "Aborted during worker shutdown."},
            )
        except Exception as error:  # The task's own failure: recorded, the worker goes on.
            log.warning("task.failed", function=function, exc_info=not isinstance(error, Problem))
            return FinishReport(
                task_id=task.task_id, fence=task.fence, state="failed", error=_described(error)
            )

    async def _may_start(self, context: WorkerContext, task_id: UUID, attempt: int) -> int | None:
        report = StartReport(task_id=task_id, attempt=attempt, worker_id=self._worker_id)
        answers = await context.clients.post(
            "dispatcher", f"{API}/starts", [report.model_dump(mode="json")]
        )
        fence: int | None = answers[0]["fence"]
        return fence

    async def _report_finish(self, context: WorkerContext, report: FinishReport) -> None:
        body = [report.model_dump(mode="json")]
        answers = await patiently(
            lambda: context.clients.post("dispatcher", f"{API}/finishes", body, attempts=1),
            what="finish report",
        )
        if not answers[0]["accepted"]:
            log.warning("task.finish_refused", fence=report.fence)

    @contextlib.asynccontextmanager
    async def alive(self, context: WorkerContext) -> AsyncIterator[None]:
        """Heartbeats and cancel calls while the worker lives; an orderly end afterwards."""
        loops = [
            asyncio.create_task(self._beat_for_ever(context)),
            asyncio.create_task(self._listen_for_ever(context)),
        ]
        try:
            yield
        finally:
            await self._stop_runs(context.settings.worker_grace_seconds)
            await end(loops)
            with contextlib.suppress(Problem):
                path = f"{API}/workers/{self._worker_id}/leave"
                await context.clients.post("dispatcher", path, {}, attempts=1)

    async def _beat_for_ever(self, context: WorkerContext) -> None:
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            began = loop.time()
            try:
                # Bounded, so that silence is noticed in time however a connection hangs.
                async with asyncio.timeout(context.settings.worker_heartbeat_seconds):
                    await self._beat(context)
                heard = began
            except Unavailable as problem:
                log.warning("runner.dispatcher_away", why=problem.detail)
            except Exception:  # Heartbeats go on whatever one of them met.
                log.exception("runner.heartbeat_failed")
            if loop.time() - heard > context.settings.worker_silence_seconds and self._running:
                log.error("runner.silent_too_long", runs=len(self._running))
                await self._start_over()
            pause = context.settings.worker_heartbeat_seconds
            await asyncio.sleep(pause if self._registered.is_set() else min(pause, 0.5))

    async def _beat(self, context: WorkerContext) -> None:
        report = Heartbeat(
            name=f"{os.getpid()}@{socket.gethostname()}",
            queue=context.settings.service,
            first=not self._registered.is_set(),
        )
        path = f"{API}/workers/{self._worker_id}/heartbeat"
        body = report.model_dump(mode="json")
        answer = HeartbeatAnswer.model_validate(
            await context.clients.post("dispatcher", path, body, attempts=1)
        )
        if not answer.known:
            log.error("runner.given_up_by_dispatcher", runs=len(self._running))
            await self._start_over()
            return
        self._registered.set()
        for task_id in answer.cancel:
            self.cancel(task_id)

    async def _start_over(self) -> None:
        """Everything this worker ran is void; it comes back as a new one."""
        self._registered.clear()
        self._worker_id = ids.new_id()
        for run in list(self._running.values()):
            run.cancel()

    async def _listen_for_ever(self, context: WorkerContext) -> None:
        while True:
            try:
                redis = await context.queue.redis()
                async with redis.pubsub() as channel:
                    await channel.subscribe(CANCEL_CHANNEL)
                    async for message in channel.listen():
                        if message["type"] == "message":
                            self.cancel(UUID(message["data"].decode()))
            except (Unavailable, RedisError, OSError):
                await asyncio.sleep(1.0)

    def cancel(self, task_id: UUID) -> None:
        """Stop one run at its next await."""
        run = self._running.get(task_id)
        if run is not None and task_id not in self._canceled:
            self._canceled.add(task_id)
            run.cancel()

    async def _stop_runs(self, grace: float) -> None:
        running = set(self._running.values())
        if running:
            log.info("runner.waiting_for_runs", runs=len(running), seconds=grace)
            _, late = await asyncio.wait(running, timeout=grace)
            for run in late:
                run.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _storable(result: Any) -> Any:
    try:
        dumped = orjson.dumps(result)
    except TypeError as error:
        raise TypeError("The function's result is not JSON.") from error
    return orjson.loads(dumped.replace(b"\\u0000", b""))


def _described(error: Exception) -> dict[str, Any]:
    """What a person may read; only a Problem's text is known to be meant for them."""
    if isinstance(error, Problem):
        return {"description": error.detail, "code": error.type} | _details(error)
    return {"description": f"{type(error).__name__}: {error}".replace("\x00", "")[:2000]}


def _details(problem: Problem) -> dict[str, Any]:
    return {"details": problem.extensions} if problem.extensions else {}
