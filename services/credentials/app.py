"""The web process of credentials: health, documentation and notes."""

import httpx
from fastapi import FastAPI

from services.credentials.settings import Settings
from shared.app import create_service_app


def create_app(
    settings: Settings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    return create_service_app(
        settings or Settings(),
        title="Lyceum credentials",
        description="Tells a Credentials server of certificates and grades.",
        routers=[],
        transport=transport,
    )
