"""Running dispatched functions in a service's worker.

A worker and the dispatcher *exchange*: the worker reports what ended and takes what is ready, as
much as it has room for, in one call. A function runs only under the fence it was given with, and
its end is reported until the dispatcher has taken it. A worker that cannot reach the dispatcher
for the length of its time limit stops its runs by itself, because their locks may have been
given away.
"""

import asyncio
import contextlib
import inspect
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import orjson
import structlog
from redis.exceptions import RedisError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client
from services.dispatcher.diagnostics import recording
from services.dispatcher.folders import TaskFolder
from services.dispatcher.progress import Progress, Teller
from services.dispatcher.reins import Reins
from services.dispatcher.reporting import Reports
from services.dispatcher.schemas import (
    Assignment,
    Exchange,
    ExchangeAnswer,
    FinishReport,
    Heartbeat,
    HeartbeatAnswer,
)
from services.dispatcher.waking import CANCEL_CHANNEL
from shared import ids
from shared.clients import ServiceClients
from shared.database import Sessions
from shared.files import Files
from shared.loops import end
from shared.problems import Problem, Unavailable
from shared.settings import ServiceSettings
from shared.worker import WorkerContext

log = structlog.get_logger("runner")

API = "/api/dispatcher/v1"
IMMEDIATE_SECONDS = 5.0
MOST_ENDED = 1000
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
# Long enough for a function to clean up behind itself.
CANCEL_AGAIN_SECONDS = 5.0
CANCELS = 2
SHUTDOWN = "Aborted during worker shutdown."


class Again(Exception):
    """Raised by a function that wants to be run again, with its resources kept."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds = seconds


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
    reports: Reports
    folder: TaskFolder
    group_id: UUID | None = None

    async def created(self, session: AsyncSession, prn: str, href: str) -> None:
        """Tell, in the transaction that makes something, that this task made it."""
        await client.created(session, self.task_id, prn, href)


RunEnd = Literal["completed", "failed", "canceled", "retry"]
TaskFunction = Callable[..., Coroutine[Any, Any, Any]]


async def outcome(
    call: Reins, task: TaskContext, assignment: Assignment, canceled: set[UUID]
) -> FinishReport:
    """Run a function to its end, whatever that is. contract: dispatcher §2.4, §4.9"""
    try:
        # Immediate tasks are too short to record.
        options = () if assignment.immediate else assignment.profile_options
        async with recording(
            options, task.settings.task_diagnostics, task.task_id, task.files,
            task.reports,
        ):  # fmt: skip
            result = _storable(await _in_time(call, assignment))
    except Again as wish:
        return _report(task, "retry", retry_seconds=wish.seconds)
    except asyncio.CancelledError:
        if task.task_id in canceled:
            return _report(task, "canceled")
        return _report(task, "failed", error={"reason": SHUTDOWN})
    except Exception as error:  # The task's own failure: recorded, the process goes on.
        log.warning("task.failed", exc_info=not isinstance(error, Problem))
        return _report(task, "failed", error=_described(error))
    return _report(task, "completed", result=result)


async def _in_time(call: Reins, assignment: Assignment) -> Any:
    if not assignment.immediate:
        return await call
    try:
        async with asyncio.timeout(IMMEDIATE_SECONDS) as limit:
            return await call
    except TimeoutError:
        if not limit.expired():
            raise
        raise TooSlow(
            f"{assignment.function}: timed out after {IMMEDIATE_SECONDS:.0f} seconds."
        ) from None


async def _called(call: TaskFunction | None, task: TaskContext, assignment: Assignment) -> Any:
    if call is None:
        raise LookupError(f"This worker has no function called {assignment.function}.")
    if not inspect.iscoroutinefunction(call):
        raise Misconfigured(f"{assignment.function}: immediate tasks must be async functions.")
    return await call(task, **assignment.arguments)


class Misconfigured(Problem):
    type = "task-misconfigured"
    code = "PLP0023"


class TooSlow(Problem):
    type = "immediate-timeout"
    code = "PLP0024"


def _report(task: TaskContext, state: RunEnd, **values: Any) -> FinishReport:
    return FinishReport.model_construct(
        task_id=task.task_id, fence=task.fence, state=state, progress=task.progress.last(), **values
    )


class TaskRunner:
    """The dispatched functions of one service, by name, and those running in this process."""

    app_type: Literal["worker", "api"] = "worker"

    def __init__(
        self, functions: Mapping[str, TaskFunction], *, versions: Mapping[str, str] | None = None
    ) -> None:
        self._functions = dict(functions)
        self._versions = dict(versions or {})
        self._running: dict[UUID, asyncio.Task[FinishReport]] = {}
        self._ended: list[FinishReport] = []
        self._worker_id = ids.new_id()
        self._turn = 0
        self._reins: dict[UUID, Reins] = {}
        self._canceled: set[UUID] = set()
        self._registered = asyncio.Event()
        self._news = asyncio.Event()
        # Whether there may be work for us; whether the last exchange's answer was lost.
        self._asking = self._uncertain = False
        self._told = asyncio.Event()
        self._teller: Teller | None = None

    async def take_work(self, context: WorkerContext) -> None:
        """The one job the dispatcher sends: there is something ready."""
        self._ask()

    def _ask(self) -> None:
        self._asking = True
        self._news.set()

    @contextlib.asynccontextmanager
    async def alive(self, context: WorkerContext) -> AsyncIterator[None]:
        """Heartbeats, exchanges and cancel calls while the worker lives; an orderly end after."""
        loops = [
            asyncio.create_task(self._beat_for_ever(context)),
            asyncio.create_task(self._exchange_for_ever(context)),
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

    async def _exchange_for_ever(self, context: WorkerContext) -> None:
        pause = FIRST_PAUSE
        while True:
            await self._news.wait()
            await self._registered.wait()
            self._news.clear()
            try:
                await self._exchange(context)
                pause = FIRST_PAUSE
                continue
            except Unavailable as problem:
                log.warning("runner.dispatcher_away", why=problem.detail)
            except Exception:  # Ends must be told and work taken whatever one exchange met.
                log.exception("runner.exchange_failed")
            self._uncertain = True
            self._news.set()
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _room(self, context: WorkerContext) -> int:
        if self.app_type == "api" or context.stopping.is_set():
            return 0
        return max(0, context.settings.worker_concurrency - len(self._running))

    async def _exchange(self, context: WorkerContext) -> None:
        room = self._room(context)
        if not (self._ended or self._uncertain or (room and self._asking)):
            return
        self._asking = False
        self._turn += 1
        worker_id, ended = self._worker_id, self._ended[:MOST_ENDED]
        answer = await self._post_exchange(context, room, ended)
        if worker_id != self._worker_id:
            return
        if not answer.known:
            self._given_up(worker_id)
            return
        self._uncertain = False
        self._end_taken(ended, answer)
        for assignment in answer.start:
            self._start(context, assignment)
        self._show_room(context)
        if self._ended or len(answer.start) == room > 0:
            self._ask()

    async def _post_exchange(
        self, context: WorkerContext, room: int, ended: list[FinishReport]
    ) -> ExchangeAnswer:
        holding = [*self._running, *(report.task_id for report in self._ended)]
        body = Exchange.model_construct(
            turn=self._turn, room=room, ended=ended, holding=holding if self._uncertain else None
        )
        path = f"{API}/workers/{self._worker_id}/exchange"
        return ExchangeAnswer.model_validate(
            await context.clients.post(
                "dispatcher", path, body.model_dump(mode="json", exclude_defaults=True), attempts=1
            )
        )

    def _end_taken(self, ended: list[FinishReport], answer: ExchangeAnswer) -> None:
        del self._ended[: len(ended)]
        for report in ended:
            self._taken(report)
        for taken in answer.ended:
            if not taken.accepted:
                log.warning("task.finish_refused", task_id=str(taken.task_id))
        self._told.set()

    def _show_room(self, context: WorkerContext) -> None:
        """A full worker leaves wake-ups to others."""
        if self._room(context):
            context.full.clear()
        else:
            context.full.set()

    def _start(self, context: WorkerContext, assignment: Assignment) -> None:
        if assignment.task_id in self._running:
            return
        run = asyncio.create_task(self._run(context, assignment))
        self._running[assignment.task_id] = run
        run.add_done_callback(lambda run: self._ends(context, assignment, run))

    def _ends(
        self, context: WorkerContext, assignment: Assignment, run: "asyncio.Task[FinishReport]"
    ) -> None:
        task_id = assignment.task_id
        if self._running.get(task_id) is not run:
            self._void(assignment)
            return
        del self._running[task_id]
        if run.cancelled():  # before its first step
            report = _canceled(assignment, task_id in self._canceled)
        else:
            report = run.result()
        self._canceled.discard(task_id)
        self._ended.append(report)
        self._told.clear()
        self._show_room(context)
        self._ask()

    def _taken(self, report: FinishReport) -> None:
        """The dispatcher has taken the end of a run."""

    def _void(self, assignment: Assignment) -> None:
        """A run has stopped that was not ours any more: this process was given up meanwhile."""

    async def _run(self, context: WorkerContext, assignment: Assignment) -> FinishReport:
        task_id = assignment.task_id
        structlog.contextvars.clear_contextvars()
        # What this run dispatches is its child and belongs to the same correlation.
        structlog.contextvars.bind_contextvars(
            task_id=str(task_id),
            request_id=assignment.logging_cid,
            profile_options=assignment.profile_options,
        )
        log.info(
            "task.started",
            function=assignment.function,
            fence=assignment.fence,
            attempt=assignment.attempt,
        )
        if self._teller is None or self._teller.clients is not context.clients:
            self._teller = Teller(context.clients)
        progress = Progress(task_id, assignment.attempt, self._teller)
        reports = Reports(
            task_id, assignment.group_id, context.clients, context.sessions,
            attempt=assignment.attempt,
        )  # fmt: skip
        folder = TaskFolder()
        task = TaskContext(
            task_id, assignment.username, assignment.fence, assignment.attempt, context.settings,
            context.sessions, context.files, context.clients, progress, reports, folder,
            assignment.group_id,
        )  # fmt: skip
        reins = Reins(_called(self._functions.get(assignment.function), task, assignment))
        self._reins[task_id] = reins
        try:
            report = await outcome(reins, task, assignment, self._canceled)
        finally:
            del self._reins[task_id]
            folder.remove()
        await reports.close()
        log.info("task.finished", function=assignment.function, state=report.state)
        return report

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
                self._start_over()
            pause = context.settings.worker_heartbeat_seconds
            await asyncio.sleep(pause if self._registered.is_set() else min(pause, 0.5))

    async def _beat(self, context: WorkerContext) -> None:
        worker_id = self._worker_id
        report = Heartbeat(
            name=f"{os.getpid()}@{socket.gethostname()}",
            queue=context.settings.service,
            app_type=self.app_type,
            versions=self._versions,
            concurrency=context.settings.worker_concurrency,
            first=not self._registered.is_set(),
        )
        path = f"{API}/workers/{worker_id}/heartbeat"
        answer = HeartbeatAnswer.model_validate(
            await context.clients.post(
                "dispatcher", path, report.model_dump(mode="json"), attempts=1
            )
        )
        if not answer.known:
            self._given_up(worker_id)
            return
        self._registered.set()
        for task_id in answer.cancel:
            self.cancel(task_id)
        held = {*self._running, *(report.task_id for report in self._ended)}
        # Runs that are ours and that we never heard of: the answer that gave them was lost.
        self._uncertain |= not held.issuperset([*answer.running, *answer.cancel])
        # And a wake-up may have been lost.
        self._ask()

    def _given_up(self, worker_id: UUID) -> None:
        if worker_id == self._worker_id:
            log.error("runner.given_up_by_dispatcher", runs=len(self._running))
            self._start_over()

    def _start_over(self) -> None:
        """Everything this worker ran is void; it comes back as a new one."""
        self._registered.clear()
        self._worker_id = ids.new_id()
        self._turn = 0
        self._ended.clear()
        self._canceled.clear()
        self._told.set()
        voided, self._running = list(self._running.values()), {}
        for run in voided:
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
        """Stop one run at its next await, and go on until it has stopped."""
        run = self._running.get(task_id)
        # Each heartbeat tells of it again, which must not disturb the cleaning up.
        if run is None or run.done() or task_id in self._canceled:
            return
        self._canceled.add(task_id)
        run.cancel()
        asyncio.get_running_loop().call_later(
            CANCEL_AGAIN_SECONDS, self._cancel_again, task_id, run, CANCELS
        )

    def _cancel_again(
        self, task_id: UUID, run: "asyncio.Task[FinishReport]", patience: int
    ) -> None:
        """A function may swallow a cancel, but not for ever."""
        if run.done():
            return
        log.warning("task.ignores_cancel", task_id=str(task_id), patience=patience)
        reins = self._reins.get(task_id)
        if patience == 0 and reins is not None:
            reins.let_go()
        run.cancel()
        asyncio.get_running_loop().call_later(
            CANCEL_AGAIN_SECONDS, self._cancel_again, task_id, run, max(0, patience - 1)
        )

    async def _stop_runs(self, grace: float) -> None:
        """Let runs end, cancel the late ones, and tell the dispatcher of all of them."""
        running = set(self._running.values())
        if running:
            log.info("runner.waiting_for_runs", runs=len(running), seconds=grace)
            _, late = await asyncio.wait(running, timeout=grace)
            while late:
                for run in late:
                    run.cancel()
                _, late = await asyncio.wait(late, timeout=CANCEL_AGAIN_SECONDS)
                for reins in self._reins.values():
                    reins.let_go()
        if self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_PAUSE):
                    await self._told.wait()


def _canceled(assignment: Assignment, by_person: bool) -> FinishReport:
    return FinishReport(
        task_id=assignment.task_id,
        fence=assignment.fence,
        state="canceled" if by_person else "failed",
        error=None if by_person else {"reason": SHUTDOWN},
    )


def _storable(result: Any) -> Any:
    if result is None:
        return None
    try:
        dumped = orjson.dumps(result)
    except TypeError as error:
        raise TypeError("The function's result is not JSON.") from error
    return orjson.loads(dumped.replace(b"\\u0000", b""))


def _described(error: Exception) -> dict[str, Any]:
    """What a person may read; only a Problem's text is known to be meant for them."""
    if isinstance(error, Problem):
        code = getattr(error, "code", None)
        described = {"description": error.detail, "code": error.type} | _details(error)
        if code is not None:
            described |= {"description": f"[{code}] {error.detail}", "error_code": code}
        return described
    return {"description": f"{type(error).__name__}: {error}".replace("\x00", "")[:2000]}


def _details(problem: Problem) -> dict[str, Any]:
    return {"details": problem.extensions} if problem.extensions else {}
