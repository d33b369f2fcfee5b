"""The dispatcher's web process."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI

from services.dispatcher import (
    api,
    api_groups,
    api_leases,
    api_orphans,
    api_pulp,
    api_roles,
    api_schedules,
    api_workers,
    assigning,
    runs,
    schedules,
)
from services.dispatcher.gauges import measured
from services.dispatcher.jobs import NOTES
from services.dispatcher.lease_waits import waiting
from services.dispatcher.pushing import pushing
from services.dispatcher.schemas import Exchange, TaskRequest
from services.dispatcher.settings import Settings
from shared.app import create_service_app
from shared.arrivals import Arrivals
from shared.database import connections, utc_now


@contextlib.asynccontextmanager
async def collecting(app: FastAPI) -> AsyncIterator[None]:
    """Callers that come at the same time share a transaction."""
    state = app.state
    sessions = state.database.sessions
    async with sessions.begin() as session:
        await schedules.keep_built_in(session, state.settings, now=utc_now())
    async with connections(state.settings.database_url, most=4) as pool:
        state.connections = pool

        async def exchange(
            connection: Any, items: Sequence[tuple[UUID, Exchange]], *, now: datetime
        ) -> list[dict[str, Any]]:
            answers, queues, told = await assigning.exchange(connection, items, now=now)
            state.pusher.wake(queues)
            if told:
                state.relay.wake()
            return answers

        async def accept(
            connection: Any, requests: Sequence[TaskRequest], *, now: datetime
        ) -> Sequence[UUID]:
            state.pusher.wake(await runs.accept_at_once(connection, requests, now=now))
            if any(request.user_task for request in requests):
                state.relay.wake()
            return [request.id for request in requests]

        state.accepting = Arrivals[TaskRequest, UUID](pool.acquire, accept)
        state.exchanging = Arrivals[tuple[UUID, Exchange], dict[str, Any]](pool.acquire, exchange)
        yield


def create_app(
    settings: Settings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    return create_service_app(
        settings or Settings(),
        title="Lyceum dispatcher",
        description="Tasks that run when their resources are free.",
        routers=[
            # First: routes are tried in order, and workers ask for one of these all the time.
            api.router,
            api_workers.router,
            api_groups.router,
            api_groups.own_router,
            api_schedules.router,
            api_schedules.own_router,
            api_orphans.router,
            api_roles.router,
            api_roles.own_router,
            api_leases.router,
            api_pulp.router,
        ],
        notes=NOTES,
        compatible=["/pulp/"],
        background=[pushing, waiting, collecting, measured],
        transport=transport,
    )
