"""What Prometheus, and whatever starts and stops workers by its numbers, reads at /metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import structlog
from fastapi import FastAPI
from prometheus_client import Gauge

from services.dispatcher import measuring
from services.dispatcher.schemas import QueueNumbers
from services.dispatcher.settings import Settings
from shared.database import Sessions, utc_now
from shared.loops import end

log = structlog.get_logger("gauges")

GAUGES = {
    "ready": Gauge(
        "lyceum_dispatcher_tasks_ready",
        "Tasks that have had all their resources for at least 5 s and wait for a worker",
        ["queue"],
    ),
    "longest_ready_seconds": Gauge(
        "lyceum_dispatcher_longest_ready_seconds",
        "How long the one of them has waited that has waited longest",
        ["queue"],
    ),
    "parallel": Gauge(
        "lyceum_dispatcher_tasks_parallel",
        "Tasks running or ready for at least 5 s: those that locks would let run side by side",
        ["queue"],
    ),
    "wanting": Gauge(
        "lyceum_dispatcher_tasks_wanting_workers",
        "Ready tasks that are more than the workers' free slots: scale on this",
        ["queue"],
    ),
    "unmet": Gauge(
        "lyceum_dispatcher_tasks_unmet",
        "Ready tasks that need component versions which no worker of their queue has",
        ["queue"],
    ),
    "running": Gauge("lyceum_dispatcher_tasks_running", "Tasks that run now", ["queue"]),
    "workers": Gauge("lyceum_dispatcher_workers", "Workers online", ["queue"]),
    "slots": Gauge(
        "lyceum_dispatcher_worker_slots", "Tasks these workers can run at once", ["queue"]
    ),
}


def show(numbers: Sequence[QueueNumbers]) -> None:
    """Replace what is shown; queues without any number vanish."""
    for name, gauge in GAUGES.items():
        gauge.clear()
        for one in numbers:
            gauge.labels(one.queue).set(getattr(one, name))


async def refresh(sessions: Sessions, settings: Settings, *, now: datetime) -> None:
    """Show the newest measurement, making it if it is this process's turn."""
    period = timedelta(seconds=settings.measure_seconds)
    async with sessions.begin() as session:
        _, numbers = await measuring.current(
            session, now=now, period=period, ttl=settings.worker_ttl
        )
    show(numbers)


async def _refresh_for_ever(sessions: Sessions, settings: Settings) -> None:
    while True:
        try:
            async with asyncio.timeout(settings.measure_seconds):
                await refresh(sessions, settings, now=utc_now())
        except Exception:  # The loop outlives any outage of its database.
            log.exception("gauges.not_measured")
            # None at all are better than wrong ones.
            show([])
        await asyncio.sleep(settings.measure_seconds)


@contextlib.asynccontextmanager
async def measured(app: FastAPI) -> AsyncIterator[None]:
    """Keep the gauges fresh while the web process lives."""
    loop = asyncio.create_task(_refresh_for_ever(app.state.database.sessions, app.state.settings))
    try:
        yield
    finally:
        await end([loop])
        show([])
