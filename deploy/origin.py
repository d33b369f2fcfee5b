"""All five services in one web process, composed by path: the embedded way to run."""

import contextlib
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from deploy import index, paths
from shared import metrics
from shared.app import not_ready
from shared.problems import PROBLEM_JSON, NotFound


def create_app() -> "Origin":
    """uvicorn --factory deploy.origin:create_app"""
    return Origin()


class Origin:
    """Passes each request, unchanged, to the service that owns its path."""

    def __init__(self) -> None:
        self.services: dict[str, FastAPI] = {
            name: importlib.import_module(f"services.{name}.app").create_app()
            for name in paths.prefixes()
        }
        self._front = Starlette(
            routes=[
                Route("/", self._index),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={404: self._nothing_here},
            lifespan=self._lifespan,
        )
        self._front.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = paths.owner(scope["path"]) if scope["type"] == "http" else None
        app = self._front if service is None else self.services[service]
        await app(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for app in self.services.values():
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    async def _index(self, _: Request) -> Response:
        return HTMLResponse(index.page(self.services))

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "services": list(self.services)})

    async def _readyz(self, _: Request) -> Response:
        missing = {name: await not_ready(app) for name, app in self.services.items()}
        missing = {name: stores for name, stores in missing.items() if stores}
        return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)

    async def _metrics(self, _: Request) -> Response:
        return metrics.page()

    async def _nothing_here(self, request: Request, _: Exception) -> Response:
        problem = NotFound("No service answers under this path.")
        return JSONResponse(problem.as_json(), 404, media_type=PROBLEM_JSON)
