"""The web process of libraries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from services.libraries import (
    api,
    api_blocks,
    api_bulk,
    api_clipboard,
    api_collections,
    api_containers,
    api_directory,
    api_histories,
    api_resources,
    api_restore,
    api_search,
    api_tasks,
    api_team,
    api_versions,
    api_xblocks,
    permissions,
)
from services.libraries.register import Register
from services.libraries.settings import Settings
from shared.app import create_service_app, tells_events


def create_app(
    settings: Settings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    return create_service_app(
        settings or Settings(),
        title="Lyceum libraries",
        description="Authored content outside any course: drafts, publishing, backup.",
        # Words like `blocks` and `resources` are reserved where a library key could stand.
        routers=[
            # Routes are tried in order: what is called most comes first.
            api_blocks.router,
            api_containers.router,
            api_bulk.router,
            api_search.router,
            api_clipboard.router,
            api_clipboard.staging_router,
            api_histories.router,
            api_resources.router,
            api_restore.router,
            api_versions.router,
            api_collections.router,
            api_tasks.router,
            api_team.router,
            api.router,
            api_directory.router,
            api_blocks.bytes_router,
            api_xblocks.router,
        ],
        compatible=[
            "/api/libraries/v2/",
            "/api/xblock/v2/",
            "/library_assets/",
            "/api/content-staging/v1/",
        ],
        background=[knowing, tells_events],
        transport=transport,
    )


@asynccontextmanager
async def knowing(app: FastAPI) -> AsyncIterator[None]:
    """Sessions know who creates; who calls is written down."""
    settings: Settings = app.state.settings
    sessions = app.state.database.sessions
    permissions.configure(sessions, settings)
    register = Register(sessions, fresh=settings.directory_minutes * 60)
    async with register.running():
        app.state.tokens.on_caller = register.see
        yield
