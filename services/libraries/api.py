"""Routes of libraries: this file has those of whole libraries. contract: libraries §3.2"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from services.dispatcher import client as dispatcher
from services.dispatcher.schemas import TaskRequest
from services.dispatcher.states import State
from services.libraries import libraries, olx, orgs, permissions, publishing, work
from services.libraries.access import EditLibrary, ViewLibrary
from services.libraries.models import Library
from services.libraries.schemas import LibraryChanges, LibraryCreation
from services.libraries.settings import Settings
from services.libraries.states import DISPLAY_NAMES, Permission
from services.libraries.views import library_json
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.lookups import LookupDep
from shared.paging import numbered
from shared.problems import Conflict, NotFound

router = APIRouter(prefix="/api/libraries/v2", tags=["libraries"])
PAGE_SIZE, LARGEST_PAGE = 10, 100
# No page has more digits.
LONGEST_PAGE = 9
LAST = 10**9
NO_CHANGES = LibraryChanges()


def settings_of(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def page_number(text: str) -> int:
    """`last` or a number from 1. Raises NotFound. contract: libraries §2.5"""
    if text == "last":
        return LAST
    digits = text.lstrip("0")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > LONGEST_PAGE:
        raise NotFound("Invalid page.")
    return int(digits)


def page_size(text: str) -> int:
    digits = text.lstrip("0")
    valid = digits.isascii() and digits.isdecimal()
    return min(int(digits[:9]), LARGEST_PAGE) if valid else PAGE_SIZE


Fetch = Callable[[int, int], Awaitable[tuple[Sequence[Any], int]]]


@dataclass(frozen=True)
class NumberedPage:
    """The rows of a page, and what its envelope tells."""

    rows: Sequence[Any]
    count: int
    number: int
    size: int

    def envelope(self, request: Request, results: Sequence[Any]) -> dict[str, Any]:
        origin = settings_of(request).origin_url
        return numbered(
            request, origin, results, count=self.count, page=self.number, size=self.size
        )


async def numbered_page(page: str, size_text: str, fetch: Fetch) -> NumberedPage:
    """What a list was asked for; `fetch` gives the rows of a page, and how many match in all.

    Raises NotFound beyond the last page. contract: libraries §2.5
    """
    size, number = page_size(size_text), page_number(page)
    rows, count = await fetch(1 if number == LAST else number, size)
    last = max(1, -(-count // size))
    if number == LAST:
        number = last
        rows, _ = await fetch(last, size)
    elif number > last:
        raise NotFound("Invalid page.")
    return NumberedPage(rows, count, number, size)


async def creator(request: Request, caller: CallerDep, session: SessionDep) -> Caller:
    await permissions.require_create(session, caller, settings_of(request))
    return caller


@router.get("/")
async def list_libraries(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    org: str = "",
    text_search: str = "",
    order: str = "",
    pagination: str = "",
    page: str = "1",
    page_size_text: Annotated[str, Query(alias="page_size")] = "",
) -> JSONResponse:
    """Libraries you may view. Without `pagination=true` a bare array, still of one page."""

    async def fetch(number: int, size: int) -> tuple[Sequence[Any], int]:
        return await libraries.page(
            session, caller=caller, size=size, number=number,
            org=org, text_search=text_search.strip(), order=order,
        )  # fmt: skip

    found = await numbered_page(page, page_size_text, fetch)
    results = [library_json(library, None) for library in found.rows]
    if pagination.lower() not in ("true", "1"):
        return JSONResponse(results)
    return JSONResponse(found.envelope(request, results))


@router.post("/")
async def create_library(
    request: Request,
    body: LibraryCreation,
    session: SessionDep,
    caller: Annotated[Caller, Depends(creator)],
) -> JSONResponse:
    """A new, empty library. You become its admin."""
    await orgs.require(session, caller, body.org, settings_of(request))
    library = await libraries.create(
        session, **body.model_dump(), user=caller.username, now=utc_now()
    )
    return JSONResponse(library_json(library, await libraries.describe(session, library)))


@router.get("/{lib_key}/")
async def get_library(library: ViewLibrary, caller: CallerDep, lookups: LookupDep) -> JSONResponse:
    """One library, with what its content is like."""
    can_edit = await permissions.may(lookups, library, caller, Permission.EDIT)
    content = await libraries.describe(lookups, library)
    return JSONResponse(library_json(library, content, can_edit=can_edit))


@router.patch("/{lib_key}/")
async def update_library(
    library: EditLibrary, session: SessionDep, body: LibraryChanges = NO_CHANGES
) -> JSONResponse:
    """Change title, description, flags or licence. Nothing given changes nothing."""
    given = body.model_dump(exclude_unset=True)
    library = await libraries.update(session, library, given, now=utc_now())
    return JSONResponse(library_json(library, await libraries.describe(session, library)))


@router.get("/{lib_key}/block_types/")
async def list_block_types(request: Request, library: ViewLibrary) -> list[dict[str, str]]:
    """What a front end offers to create; the settings say whether other types are accepted too."""
    return [
        {"block_type": name, "display_name": DISPLAY_NAMES.get(name) or olx.default_title(name)}
        for name in sorted(settings_of(request).block_types)
    ]


@router.post("/{lib_key}/commit/")
async def publish_library(
    request: Request,
    lib_key: str,
    caller: CallerDep,
    wait: Annotated[bool, Query()] = True,
) -> JSONResponse:
    """Publish every unpublished change, deletions included.

    The work needs the library alone, so it waits for a backup that is under way. The answer
    comes when it is done; if that takes longer than the server waits, or with `wait=false`,
    it is 202 and names the task to follow.
    """
    library = await _library_of(request, lib_key, caller, Permission.PUBLISH)
    task = work.request(
        "publish_library", library.key, caller=caller, name=f"Publish {library.key}",
        task_type="library-publish", alone=True, repeatable=True,
    )  # fmt: skip
    return await _run(request, task, caller, wait=wait)


@router.delete("/{lib_key}/commit/")
async def revert_library(
    library: EditLibrary, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Take every draft back to what is published."""
    await publishing.revert(session, library, user=caller.username, now=utc_now())
    return {}


@router.delete("/{lib_key}/")
async def delete_library(request: Request, lib_key: str, caller: CallerDep) -> JSONResponse:
    """Remove a library for good. Waits for work that holds it, as `commit` does."""
    library = await _library_of(request, lib_key, caller, Permission.DELETE_LIBRARY)
    task = work.request(
        "delete_library", library.key, caller=caller, name=f"Delete {library.key}",
        task_type="library-delete", alone=True, repeatable=True, library_id=library.id,
    )  # fmt: skip
    return await _run(request, task, caller, wait=True)


async def _library_of(
    request: Request, key: str, caller: Caller, permission: Permission
) -> Library:
    # A session of its own, closed before the wait that follows.
    async with request.app.state.database.sessions.begin() as session:
        library = await libraries.get(session, key)
        await permissions.require(session, library, caller, permission)
        return library


async def _run(request: Request, task: TaskRequest, caller: Caller, *, wait: bool) -> JSONResponse:
    """Dispatch work and wait for it as long as the settings say."""
    state = request.app.state
    async with state.database.sessions.begin() as session:
        await work.record(session, task, caller=caller, now=utc_now())
    await dispatcher.dispatch_now(state.clients, [task])
    ended = None
    if wait:
        ended = await dispatcher.wait_for(state.clients, task.id, settings_of(request).wait_seconds)
    if ended is None or not ended.state.final:
        return JSONResponse({"task_id": str(task.id)}, 202)
    if ended.state is not State.COMPLETED:
        reason = (ended.error or {}).get("description") or (ended.error or {}).get("reason")
        raise Conflict(reason or f"The task was {ended.state}.", task_id=str(task.id))
    return JSONResponse({})
