"""The web process of user_tasks."""

import httpx
from fastapi import FastAPI

from services.user_tasks import api, api_stream, api_v1, pages
from services.user_tasks.jobs import NOTES
from services.user_tasks.settings import Settings
from services.user_tasks.stream import streaming
from shared.app import create_service_app


def create_app(
    settings: Settings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    return create_service_app(
        settings or Settings(),
        title="Lyceum user tasks",
        description="What becomes of the work that is done for you.",
        routers=[api.router, api_v1.router, api_stream.router, pages.router],
        notes=NOTES,
        compatible=["/api/tasks/v0/"],
        background=[streaming],
        transport=transport,
    )
