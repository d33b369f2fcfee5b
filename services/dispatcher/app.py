"""The dispatcher's web process."""

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
from fastapi import FastAPI

from services.dispatcher import api, api_pulp, assigning, runs
from services.dispatcher.arrivals import Arrivals
from services.dispatcher.jobs import NOTES
from services.dispatcher.pushing import pushing
from services.dispatcher.schemas import Exchange, ExchangeAnswer, TaskRequest
from services.dispatcher.settings import Settings
from shared.app import create_service_app


@contextlib.asynccontextmanager
async def collecting(app: FastAPI) -> AsyncIterator[None]:
    """Callers that come at the same time share a transaction."""
    sessions = app.state.database.sessions
    app.state.accepting = Arrivals[TaskRequest, UUID](sessions, runs.accept_each)
    app.state.exchanging = Arrivals[tuple[UUID, Exchange], ExchangeAnswer](
        sessions, assigning.exchange
    )
    yield


def create_app(
    settings: Settings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    return create_service_app(
        settings or Settings(),
        title="Lyceum dispatcher",
        description="Tasks that run when their resources are free.",
        routers=[api.router, api_pulp.router],
        notes=NOTES,
        compatible=["/pulp/"],
        background=[pushing, collecting],
        transport=transport,
    )
