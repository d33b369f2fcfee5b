"""User tasks in full: pages, filters, estimates, watchers. contract: user_tasks §6, §10"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import TypeAdapter
from sqlmodel import col

from services.user_tasks import artifacts, permissions, stages, statuses, watchers
from services.user_tasks.models import Status
from services.user_tasks.schemas import (
    ArtifactView,
    Moment,
    StageView,
    StatusView,
    Text,
    WatcherView,
)
from services.user_tasks.searching import Filters, artifact_conditions
from services.user_tasks.settings import Settings
from services.user_tasks.states import State
from services.user_tasks.views import artifact_view, status_views
from shared.callers import AnyCallerDep, Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.paging import KeysetPage, make_cursor, read_cursor
from shared.problems import Forbidden

router = APIRouter(prefix="/api/tasks/v1", tags=["user tasks"])
MOMENT = TypeAdapter[datetime](Moment)
Word = Annotated[str | None, Query(max_length=255)]
Limit = Annotated[int, Query(ge=1, le=200)]
Username = Annotated[Text, Path(min_length=1, max_length=255)]


def settings_of(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


@router.get("/tasks/", operation_id="tasks_page")
async def page_tasks(
    request: Request,
    caller: AnyCallerDep,
    session: SessionDep,
    uuid: Annotated[list[UUID] | None, Query(max_length=200)] = None,
    state: Annotated[list[State] | None, Query(max_length=6)] = None,
    name: Word = None,
    task_type: Annotated[str | None, Query(max_length=128)] = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    parent: UUID | None = None,
    root_only: bool = False,
    watched: bool = False,
    after: str | None = None,
    limit: Limit = 50,
) -> KeysetPage[StatusView]:
    """Your tasks, newest first, a page at a time; with `watched` also those you watch.

    Services see everyone's.
    """
    filters = Filters(
        uuids=tuple(uuid or ()), states=tuple(state or ()), name=name, task_type=task_type,
        created_after=created_after, created_before=created_before, parent=parent,
        root_only=root_only,
    )  # fmt: skip
    allowed = permissions.visible_to(caller) if watched else permissions.owned_by(caller)
    return await _page(request, session, [*allowed, *filters.conditions()], after, limit)


@router.get("/admin/tasks/", operation_id="admin_tasks_page")
async def search_tasks(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    q: Word = None,
    state: Annotated[list[State] | None, Query(max_length=6)] = None,
    user: Word = None,
    task_type: Annotated[str | None, Query(max_length=128)] = None,
    task_class: Word = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    root_only: bool = False,
    after: str | None = None,
    limit: Limit = 50,
) -> KeysetPage[StatusView]:
    """Everyone's tasks. For staff: every word of `q` stands in an id, the class, name or user."""
    _staff(caller)
    filters = Filters(
        q=q, states=tuple(state or ()), user=user, task_type=task_type, task_class=task_class,
        created_after=created_after, created_before=created_before, root_only=root_only,
    )  # fmt: skip
    conditions = [col(Status.deleted_at).is_(None), *filters.conditions()]
    return await _page(request, session, conditions, after, limit)


@router.get("/admin/artifacts/", operation_id="admin_artifacts_page")
async def search_artifacts(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    q: Word = None,
    name: Word = None,
    after: str | None = None,
    limit: Limit = 50,
) -> KeysetPage[ArtifactView]:
    """Everyone's artifacts. For staff."""
    _staff(caller)
    conditions = [col(Status.deleted_at).is_(None), *artifact_conditions(q, name)]
    rows = await artifacts.page(
        session, conditions=conditions, size=limit + 1, after=_position(after)
    )
    settings, now = settings_of(request), utc_now()
    return KeysetPage(
        results=[artifact_view(row, settings, now=now) for row in rows[:limit]],
        next=_cursor(rows, limit),
    )


def _staff(caller: Caller) -> None:
    if not caller.administrator:
        raise Forbidden


async def _page(
    request: Request, session: SessionDep, conditions: list[Any], after: str | None, limit: int
) -> KeysetPage[StatusView]:
    rows = await statuses.page(
        session, conditions=conditions, size=limit + 1, after=_position(after)
    )
    shown = await status_views(session, rows[:limit], settings_of(request), now=utc_now())
    return KeysetPage(results=shown, next=_cursor(rows, limit))


def _cursor(rows: Any, limit: int) -> str | None:
    if len(rows) <= limit:
        return None
    last = rows[limit - 1]
    return make_cursor(last.created.isoformat(), str(last.uuid))


def _position(after: str | None) -> tuple[datetime, UUID] | None:
    if after is None:
        return None
    created, uuid = read_cursor(after, 2)
    try:
        return MOMENT.validate_python(datetime.fromisoformat(created)), UUID(uuid)
    except (TypeError, ValueError, AttributeError):
        read_cursor("", 2)
        raise


@router.get("/tasks/{uuid}/", operation_id="tasks_show")
async def show_task(
    request: Request, uuid: UUID, caller: AnyCallerDep, session: SessionDep
) -> StatusView:
    """One task in full: its stages, error, artifacts, and how long it will take."""
    status = await statuses.get(session, uuid, caller=caller)
    view = (await status_views(session, [status], settings_of(request), now=utc_now()))[0]
    view.stages = [
        StageView.model_validate(row, from_attributes=True)
        for row in await stages.of_status(session, uuid)
    ]
    view.watchers = await watchers.count(session, uuid)
    if status.is_container:
        children = await statuses.page(
            session, conditions=[col(Status.parent_id) == uuid], size=1001
        )
        view.children = [child.uuid for child in reversed(children)]
    return view


@router.get("/tasks/{uuid}/watchers/", operation_id="watchers_list")
async def list_watchers(uuid: UUID, caller: CallerDep, session: SessionDep) -> list[str]:
    """Who may see and follow this task besides you."""
    return list(await watchers.names(session, uuid, caller=caller))


@router.get("/tasks/{uuid}/watchers/{username}/", operation_id="watchers_show")
async def show_watcher(
    uuid: UUID, username: Username, caller: CallerDep, session: SessionDep
) -> WatcherView:
    """Since when somebody watches this task, and who let them."""
    watcher = await watchers.get(session, uuid, username, caller=caller)
    return WatcherView.model_validate(watcher, from_attributes=True)


@router.put("/tasks/{uuid}/watchers/{username}/", status_code=204, operation_id="watchers_add")
async def add_watcher(
    uuid: UUID, username: Username, caller: CallerDep, session: SessionDep
) -> None:
    """Let somebody see and follow this task, and all it holds."""
    await watchers.add(session, uuid, username, caller=caller, now=utc_now())


@router.delete(
    "/tasks/{uuid}/watchers/{username}/", status_code=204, operation_id="watchers_remove"
)
async def remove_watcher(
    uuid: UUID, username: Username, caller: CallerDep, session: SessionDep
) -> None:
    """Somebody follows this task no more. Watchers may remove themselves."""
    await watchers.remove(session, uuid, username, caller=caller, now=utc_now())
