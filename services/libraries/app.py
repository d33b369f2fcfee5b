"""The web process of libraries."""

import httpx
from fastapi import FastAPI

from services.libraries import (
    api,
    api_blocks,
    api_clipboard,
    api_containers,
    api_histories,
    api_resources,
    api_restore,
    api_search,
    api_tasks,
    api_versions,
)
from services.libraries.settings import Settings
from shared.app import create_service_app


def create_app(
    settings: Settings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    return create_service_app(
        settings or Settings(),
        title="Lyceum libraries",
        description="Authored content outside any course: drafts, publishing, backup.",
        # Words like `blocks` and `containers` are reserved where a library key could stand.
        routers=[
            api_search.router,
            api_clipboard.router,
            api_clipboard.staging_router,
            api_histories.router,
            api_containers.router,
            api_blocks.router,
            api_resources.router,
            api_restore.router,
            api_versions.router,
            api_tasks.router,
            api.router,
            api_blocks.bytes_router,
            api_blocks.xblock_router,
        ],
        compatible=[
            "/api/libraries/v2/",
            "/api/xblock/v2/",
            "/library_assets/",
            "/api/content-staging/v1/",
        ],
        transport=transport,
    )
