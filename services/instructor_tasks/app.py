"""The web process of instructor_tasks: health, documentation and notes."""

import httpx
from fastapi import FastAPI

from services.instructor_tasks.settings import Settings
from shared.app import create_service_app


def create_app(
    settings: Settings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    return create_service_app(
        settings or Settings(),
        title="Lyceum course tasks",
        description="What instructors ask for: rescoring, reports, schedules.",
        routers=[],
        transport=transport,
    )
