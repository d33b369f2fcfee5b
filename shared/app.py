"""The web process of any service: what is the same around everyone's routes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import structlog
from fastapi import APIRouter, FastAPI, Request
from sqlalchemy import text
from starlette.responses import JSONResponse, Response

from shared import logs, metrics, problems
from shared.callers import SCHEMES_SHOWN, ServiceDep, Tokens
from shared.clients import ServiceClients
from shared.database import Database
from shared.events import EventRelay, event_relay
from shared.files import Files
from shared.garbage import collect_seldom
from shared.limits import Boundary
from shared.lookups import LookupConnections
from shared.migrations import require_current
from shared.outbox import Delivery, Inbox, NoteHandler, Receipt, Relay
from shared.queue import Queue
from shared.settings import ServiceSettings

Background = Callable[[FastAPI], AbstractAsyncContextManager[Any]]
log = structlog.get_logger("app")


def create_service_app(
    settings: ServiceSettings,
    *,
    title: str,
    description: str,
    routers: Sequence[APIRouter],
    notes: Mapping[str, NoteHandler] | None = None,
    compatible: Sequence[str] = (),
    contract_body: problems.ContractBody = problems.contract_body,
    background: Sequence[Background] = (),
    transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """One service's web process.

    `compatible` are the path prefixes that existing clients call; `background` is entered after
    the process can reach its database, and left before it lets go of it. `transport` replaces
    the network towards the other services, for tests.
    """
    name = settings.service

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logs.configure(settings)
        async with contextlib.AsyncExitStack() as stack:
            await _open(app, settings, transport, stack)
            app.state.inbox = Inbox(app.state.database.sessions, notes or {})
            for start in background:
                await stack.enter_async_context(start(app))
            collect_seldom()
            log.info("web.ready", service=name)
            yield

    app = FastAPI(
        title=title,
        description=description,
        docs_url=f"/{name}/docs",
        redoc_url=None,
        openapi_url=f"/{name}/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
        swagger_ui_parameters={"persistAuthorization": True},
    )
    app.state.settings = settings
    for router in [*routers, _plumbing(settings)]:
        # Flat: an included router would look for the route of each request twice.
        app.router.routes.extend(router.routes)
    _document_tokens(app)
    problems.install(app, compatible=compatible, body=contract_body)
    app.add_middleware(Boundary, settings=settings)
    return app


def _document_tokens(app: FastAPI) -> None:
    """So that Swagger UI's Authorize offers both schemes; dependencies would run each time."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        first = app.openapi_schema is None
        schema = made()
        if first:
            schema.setdefault("components", {})["securitySchemes"] = SCHEMES_SHOWN
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation["security"] = [{name: []} for name in SCHEMES_SHOWN]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


async def _open(
    app: FastAPI,
    settings: ServiceSettings,
    transport: httpx.AsyncBaseTransport | None,
    stack: contextlib.AsyncExitStack,
) -> None:
    state = app.state
    state.database = Database(
        settings.database_url,
        pool=settings.database_pool,
        lock_seconds=settings.lock_wait_seconds,
    )
    stack.push_async_callback(state.database.close)
    state.lookups = LookupConnections(
        settings.database_url, most=settings.database_pool, sessions=state.database.sessions
    )
    stack.push_async_callback(state.lookups.close)
    await require_current(state.database.engine, settings.service)
    state.tokens = Tokens(settings)
    state.files = Files(settings.object_store)
    state.queue = Queue(settings.redis_url)
    stack.push_async_callback(state.queue.close)
    state.clients = ServiceClients(settings, transport=transport)
    stack.push_async_callback(state.clients.close)
    state.relay = Relay(
        state.database.sessions, state.clients, poll_seconds=settings.outbox_poll_seconds
    )
    await stack.enter_async_context(state.relay.running())


def tells_events(app: FastAPI) -> AbstractAsyncContextManager[EventRelay]:
    """Background of a service that has events to tell."""
    state = app.state
    return event_relay(state.database.sessions, state.queue, state.settings).running()


def _plumbing(settings: ServiceSettings) -> APIRouter:
    """Health, metrics and the door for other services' notes."""
    router = APIRouter(include_in_schema=False)
    name = settings.service

    async def healthz() -> dict[str, str]:
        return {"status": "ok", "service": name}

    async def readyz(request: Request) -> Response:
        missing = await not_ready(request.app)
        body = {"service": name, "ready": not missing, "missing": missing}
        return JSONResponse(body, 503 if missing else 200)

    async def metrics_page() -> Response:
        return metrics.page()

    for prefix in ("", f"/{name}"):
        router.add_api_route(f"{prefix}/healthz", healthz)
        router.add_api_route(f"{prefix}/readyz", readyz)
        router.add_api_route(f"{prefix}/metrics", metrics_page)

    @router.post(f"/{name}/notes")
    async def take_notes(request: Request, sender: ServiceDep, delivery: Delivery) -> Receipt:
        inbox: Inbox = request.app.state.inbox
        return await inbox.take(delivery)

    return router


async def not_ready(app: FastAPI) -> list[str]:
    """Which of this process's stores do not answer within a second."""
    missing = []
    for store, ask in (("postgresql", _ask_database(app)), ("redis", _ask_redis(app))):
        try:
            async with asyncio.timeout(1.0):
                await ask
        except Exception as error:  # Whatever a store says, it is not ready; operators read which.
            log.warning("web.not_ready", store=store, why=type(error).__name__)
            missing.append(store)
    return missing


async def _ask_database(app: FastAPI) -> None:
    async with app.state.database.engine.connect() as connection:
        await connection.execute(text("select 1"))


async def _ask_redis(app: FastAPI) -> None:
    await (await app.state.queue.redis()).ping()
