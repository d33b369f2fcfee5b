"""Routes for finding content, and for its tags."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, FailFast, Field, StringConstraints

from services.libraries import reading, search, tags
from services.libraries.access import (
    EditBlock,
    EditContainer,
    ViewBlock,
    ViewContainer,
    ViewLibrary,
)
from services.libraries.api import settings_of
from services.libraries.schemas import ItemsWanted, ManyItems, Plain
from services.libraries.search import Wanted
from shared.callers import CallerDep
from shared.database import ReadDep, SessionDep
from shared.paging import numbered
from shared.problems import NotFound

router = APIRouter(prefix="/api/libraries/v2", tags=["search"])
Name = Annotated[Plain, StringConstraints(min_length=1, max_length=100)]


class Tags(BaseModel):
    """All tags of one component or container."""

    tags: Annotated[list[Name], FailFast(), Field(max_length=tags.MOST)]


@router.get("/search/", operation_id="search")
async def find(
    request: Request, caller: CallerDep, session: SessionDep, wanted: Annotated[Wanted, Query()]
) -> dict[str, Any]:
    """Live drafts in the libraries you may view, the best matches first.

    Of the values of one filter any may hold, of all filters all must. `facets` count what was
    found by library, type, state, collection and tag. `snippet` is HTML.
    """
    found = await search.find(session, wanted, caller=caller)
    if wanted.page > 1 and not found.results:
        raise NotFound("Invalid page.")
    origin, page, size = settings_of(request).origin_url, wanted.page, wanted.page_size
    shown = numbered(request, origin, found.results, count=found.count, page=page, size=size)
    return shown | {"facets": found.facets}


@router.get("/blocks/{usage_key}/tags/", operation_id="read_block_tags")
async def read_block_tags(block: ViewBlock, session: ReadDep) -> Tags:
    """The tags of a component."""
    return Tags(tags=await tags.of_entity(session, block.entity))


@router.put("/blocks/{usage_key}/tags/", operation_id="replace_block_tags")
async def replace_block_tags(block: EditBlock, body: Tags, session: SessionDep) -> Tags:
    """Give a component exactly these tags."""
    return Tags(tags=await tags.replace(session, block.entity, body.tags))


@router.get("/containers/{container_key}/tags/", operation_id="read_container_tags")
async def read_container_tags(container: ViewContainer, session: ReadDep) -> Tags:
    """The tags of a container."""
    return Tags(tags=await tags.of_entity(session, container.entity))


@router.put("/containers/{container_key}/tags/", operation_id="replace_container_tags")
async def replace_container_tags(container: EditContainer, body: Tags, session: SessionDep) -> Tags:
    """Give a container exactly these tags."""
    return Tags(tags=await tags.replace(session, container.entity, body.tags))


@router.post("/{lib_key}/read/", operation_id="read_items")
async def read_items(library: ViewLibrary, body: ItemsWanted, session: ReadDep) -> ManyItems:
    """Up to 100 live components and containers of a library at once.

    Each as when it is read alone, with the `collections` it is in and its `tags`; a container
    with the keys of its `children`, a component with its `olx` if that is asked for.
    """
    found = await reading.read(session, library, body.items, olx=body.olx)
    there = {item["id"] for item in found}
    return ManyItems(items=found, missing=[key for key in body.keys if key not in there])
