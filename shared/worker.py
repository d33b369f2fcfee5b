"""The queue process of any service: `python -m shared.worker services.libraries.worker`.

arq behind it. Jobs that wait for a neighbour which is away are tried again; any other error
is logged once and final. A lost Redis ends no running job: the queue is opened anew.
"""

import asyncio
import contextlib
import importlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog
import uvicorn
from arq import Retry, func
from arq.worker import Worker as ArqWorker
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared import logs, metrics
from shared.clients import ServiceClients
from shared.database import Database, Sessions
from shared.events import EventRelay, event_relay
from shared.files import Files
from shared.garbage import collect_seldom
from shared.loops import end
from shared.migrations import require_current
from shared.outbox import Relay
from shared.problems import Unavailable
from shared.queue import Queue, redis_settings
from shared.settings import ServiceSettings

log = structlog.get_logger("worker")

Job = Callable[..., Awaitable[Any]]
LONGEST_JOB = 7 * 24 * 3600
TRIES = 10
POLL_SECONDS = 0.02
RECONNECT_SECONDS = 0.5


@dataclass
class WorkerContext:
    """What a job, or something that runs beside the jobs, has at hand."""

    settings: ServiceSettings
    database: Database
    clients: ServiceClients
    files: Files
    queue: Queue
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    # While set, jobs are left in the queue for other workers.
    full: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def sessions(self) -> Sessions:
        return self.database.sessions


Background = Callable[[WorkerContext], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True)
class WorkerSpec:
    """One service's worker: its settings, its jobs by name, and what runs beside them."""

    settings: Callable[[], ServiceSettings]
    jobs: Sequence[Job] = ()
    background: Sequence[Background] = ()


async def run(spec: WorkerSpec) -> None:
    """Work until SIGTERM or SIGINT, then let running jobs end within the grace time."""
    settings = spec.settings()
    logs.configure(settings)
    async with contextlib.AsyncExitStack() as stack:
        context = await _open(settings, stack)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, context.stopping.set)
        await stack.enter_async_context(_health_page(context))
        for start in spec.background:
            await stack.enter_async_context(start(context))
        collect_seldom()
        log.info("worker.ready", service=settings.service)
        await _work(spec, context)
    log.info("worker.stopped", service=settings.service)


async def _open(settings: ServiceSettings, stack: contextlib.AsyncExitStack) -> WorkerContext:
    database = Database(settings.database_url, pool=settings.database_pool)
    stack.push_async_callback(database.close)
    await require_current(database.engine, settings.service)
    clients = ServiceClients(settings)
    stack.push_async_callback(clients.close)
    queue = Queue(settings.redis_url)
    stack.push_async_callback(queue.close)
    relay = Relay(database.sessions, clients, poll_seconds=settings.outbox_poll_seconds)
    await stack.enter_async_context(relay.running())
    return WorkerContext(settings, database, clients, Files(settings.object_store), queue)


async def _work(spec: WorkerSpec, context: WorkerContext) -> None:
    stopped = asyncio.create_task(context.stopping.wait())
    while not context.stopping.is_set():
        worker = _arq_worker(spec, context)
        working = asyncio.create_task(worker.async_run())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        except (RedisError, OSError) as error:
            log.warning("worker.queue_lost", why=type(error).__name__)
            await asyncio.sleep(RECONNECT_SECONDS)
        finally:
            await end([working])
            with contextlib.suppress(RedisError, OSError):
                await _let_go(worker)
    stopped.cancel()


async def _let_go(worker: ArqWorker) -> None:
    running = [task for task in worker.tasks.values() if not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await worker.pool.aclose(close_connection_pool=True)


class _Worker(ArqWorker):
    """Takes jobs only while its process has room for what they bring."""

    async def _poll_iteration(self) -> None:
        context: WorkerContext = self.ctx["lyceum"]
        self.allow_pick_jobs = not context.full.is_set()
        await super()._poll_iteration()


def _arq_worker(spec: WorkerSpec, context: WorkerContext) -> ArqWorker:
    functions = [
        func(_guarded(job, context), name=job.__name__, timeout=LONGEST_JOB, max_tries=TRIES)  # type: ignore[arg-type]
        for job in spec.jobs or [_nothing]
    ]
    return _Worker(
        functions=functions,
        queue_name=context.settings.queue,
        redis_settings=redis_settings(context.settings.redis_url),
        max_jobs=context.settings.worker_concurrency,
        poll_delay=POLL_SECONDS,
        keep_result=0,
        handle_signals=False,
        job_serializer=orjson.dumps,
        job_deserializer=orjson.loads,
        ctx={"lyceum": context},
    )


async def _nothing(context: WorkerContext) -> None:
    """A service that has no jobs yet still has a worker."""


def _guarded(job: Job, context: WorkerContext) -> Callable[..., Awaitable[None]]:
    async def guarded(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(job=job.__name__, job_id=ctx["job_id"])
        started, outcome = time.perf_counter(), "done"
        try:
            await job(context, *args, **kwargs)
        except Unavailable as problem:
            outcome = "again"
            log.warning("job.again", why=problem.detail, attempt=ctx["job_try"])
            raise Retry(defer=min(60, 2 ** ctx["job_try"])) from problem
        except Exception:  # The queue goes on; the job's own rows tell what became of it.
            outcome = "failed"
            log.exception("job.failed")
        finally:
            seconds = time.perf_counter() - started
            metrics.JOBS.labels(context.settings.service, job.__name__, outcome).observe(seconds)

    guarded.__qualname__ = job.__name__
    return guarded


def every(seconds: float, call: Callable[[WorkerContext], Awaitable[Any]]) -> Background:
    """Something to do again and again beside the jobs. Errors are logged and do not end it."""

    @contextlib.asynccontextmanager
    async def running(context: WorkerContext) -> AsyncIterator[None]:
        async def loop() -> None:
            while True:
                try:
                    await call(context)
                except Exception:  # A sweep outlives whatever one round of it met.
                    log.exception("sweep.failed", sweep=getattr(call, "__name__", "?"))
                await asyncio.sleep(seconds)

        task = asyncio.create_task(loop())
        try:
            yield
        finally:
            await end([task])

    return running


def tells_events(context: WorkerContext) -> AbstractAsyncContextManager[EventRelay]:
    """Background of a service that has events to tell."""
    return event_relay(context.sessions, context.queue, context.settings).running()


@contextlib.asynccontextmanager
async def _health_page(context: WorkerContext) -> AsyncIterator[None]:
    """`/healthz`, `/readyz` and `/metrics` of this process, when it has a port."""
    port = context.settings.worker_port
    if not port:
        yield
        return

    async def ready(_: Any) -> Response:
        return JSONResponse({"ready": True, "service": context.settings.service})

    async def numbers(_: Any) -> Response:
        return metrics.page()

    app = Starlette(
        routes=[Route("/healthz", ready), Route("/readyz", ready), Route("/metrics", numbers)]
    )
    # A container's health check and the metrics collector come from outside it.
    host = "0.0.0.0" if context.settings.environment == "production" else "127.0.0.1"  # noqa: S104
    config = uvicorn.Config(app, host=host, port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)


def main() -> None:
    """Run the worker of the module named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m shared.worker services.NAME.worker", file=sys.stderr)
        raise SystemExit(0 if "--help" in sys.argv or "-h" in sys.argv else 2)
    spec: WorkerSpec = importlib.import_module(sys.argv[1]).SERVICE
    uvicorn_loop = importlib.import_module("uvloop")
    uvicorn_loop.run(run(spec))


if __name__ == "__main__":
    main()
