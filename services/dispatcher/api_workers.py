"""Workers and the state of the whole, over HTTP. contract: dispatcher §5.6"""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import func, not_, text
from sqlalchemy import select as select_columns
from sqlmodel import col, select

from services.dispatcher.document import pulp_document
from services.dispatcher.errors import WorkerUnknown
from services.dispatcher.filters import (
    Condition,
    Searchable,
    boolean,
    dates,
    identities,
    matching,
    parameters,
    parse_selection,
    selected,
    texts,
)
from services.dispatcher.models import Worker
from services.dispatcher.settings import Settings
from services.dispatcher.views import worker as view
from shared.app import not_ready
from shared.callers import Caller, CallerDep
from shared.database import SessionDep
from shared.files import local_folder
from shared.paging import windowed
from shared.problems import Forbidden
from shared.version import VERSION

router = APIRouter(prefix="/pulp/api/v3", tags=["workers"])


def online(settings: Settings) -> Condition:
    """Heard of within the time limit."""
    condition: Condition = col(Worker.last_heartbeat) >= func.now() - settings.worker_ttl
    return condition


def _searchable(settings: Settings) -> Searchable:
    alive = online(settings)
    return Searchable(
        filters={
            **texts("name", col(Worker.name)),
            **dates("last_heartbeat", col(Worker.last_heartbeat)),
            "online": lambda value: alive if boolean(value) else not_(alive),
            "missing": lambda value: not_(alive) if boolean(value) else alive,
            **identities("worker", "workers", col(Worker.id)),
            **dates("pulp_created", col(Worker.started_at)),
        },
        order={
            "pulp_id": Worker.id,
            "pulp_created": Worker.started_at,
            "pulp_last_updated": Worker.last_heartbeat,
            "name": Worker.name,
            "last_heartbeat": Worker.last_heartbeat,
        },
    )


@router.get(
    "/workers/",
    operation_id="workers_list",
    openapi_extra={
        "parameters": _searchable(Settings.model_construct(worker_ttl_seconds=20)).parameters()
    },
)
async def list_workers(request: Request, caller: CallerDep, session: SessionDep) -> JSONResponse:
    """Workers, newest first. For administrators."""
    _administrator(caller)
    search = _searchable(request.app.state.settings).parse(request.query_params.multi_items())
    conditions = [*search.conditions, col(Worker.app_type) == "worker"]
    connection = await session.connection()
    async with matching(session, search):
        counted = await connection.execute(
            select_columns(func.count()).select_from(Worker).where(*conditions)
        )
        found = await session.exec(
            select(Worker)
            .where(*conditions)
            .order_by(*search.order, col(Worker.started_at).desc(), col(Worker.id).desc())
            .limit(search.limit)
            .offset(search.offset)
        )
    rows = found.all()
    current = await _current_tasks(session, rows)
    shown = [selected(view(row, current.get(row.id)), search) for row in rows]
    page = windowed(
        request, shown, count=counted.scalar_one(), limit=search.limit, offset=search.offset
    )
    return JSONResponse(page)


@router.get(
    "/workers/{worker_id}/",
    operation_id="workers_read",
    openapi_extra={"parameters": parameters("fields", "exclude_fields")},
)
async def read_worker(
    request: Request, worker_id: UUID, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """One worker. For administrators."""
    _administrator(caller)
    search = parse_selection(request.query_params.multi_items())
    row = await session.get(Worker, worker_id)
    if row is None or row.app_type != "worker":
        raise WorkerUnknown("Not found.")
    current = await _current_tasks(session, [row])
    return JSONResponse(selected(view(row, current.get(row.id)), search))


_CURRENT = text("""
    select distinct on (worker_id) worker_id, id from task
    where worker_id = any(:workers) and state in ('running', 'canceling')
    order by worker_id, started_at
""")


async def _current_tasks(session: SessionDep, rows: Sequence[Worker]) -> dict[UUID, UUID]:
    """The oldest run of each worker, in one statement."""
    workers = [row.id for row in rows]
    found = await (await session.connection()).execute(_CURRENT, {"workers": workers})
    return {row.worker_id: row.id for row in found}


@router.get("/status/", operation_id="status_read")
async def read_status(request: Request) -> dict[str, Any]:
    """What is alive. Open to everyone, and answered when stores are away too."""
    missing = await not_ready(request.app)
    connected = "postgresql" not in missing
    found = await _online(request) if connected else []
    return {
        "versions": [
            {
                "component": "core",
                "version": VERSION,
                "package": "lyceum",
                "module": "services.dispatcher",
                "domain_compatible": True,
            }
        ],
        "online_workers": [_app(row) for row in found if row.app_type == "worker"],
        "online_api_apps": [_app(row) for row in found if row.app_type == "api"],
        "online_content_apps": [],
        "database_connection": {"connected": connected},
        "redis_connection": {"connected": "redis" not in missing},
        "storage": await _storage(request.app.state.settings),
        "content_settings": None,
        "domain_enabled": False,
    }


async def _online(request: Request) -> Sequence[Worker]:
    alive = online(request.app.state.settings)
    async with request.app.state.database.sessions() as session:
        rows = await session.exec(
            select(Worker).where(alive).order_by(col(Worker.name), col(Worker.id))
        )
        found: Sequence[Worker] = rows.all()
        return found


async def _storage(settings: Settings) -> dict[str, int] | None:
    """Bytes of the disk the files are on; None if they are in a bucket, which has no end."""
    folder = local_folder(settings.object_store)
    return None if folder is None else await asyncio.to_thread(_usage, folder)


def _usage(folder: Path) -> dict[str, int] | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return {"total": usage.total, "used": usage.used, "free": usage.free}


@router.get("/docs/api.json", include_in_schema=False)
async def read_document(request: Request) -> JSONResponse:
    """The description of these routes. Open to everyone."""
    return JSONResponse(pulp_document(request.app))


def _app(row: Worker) -> dict[str, Any]:
    shown = view(row, None)
    return {name: shown[name] for name in ("name", "last_heartbeat", "versions")}


def _administrator(caller: Caller) -> None:
    if not caller.administrator:
        raise Forbidden
