"""Routes of collections, and of what collections an item is in. contract: libraries §3.11"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import collections, libraries, permissions
from services.libraries.access import EditBlockEver, EditContainerEver, hold_for
from services.libraries.api import numbered_page
from services.libraries.models import Collection, Library
from services.libraries.schemas import (
    CollectionChanges,
    CollectionCreation,
    CollectionItems,
    ItemCollections,
    ItemCount,
)
from services.libraries.states import Permission
from services.libraries.views import collection_json
from shared import callers
from shared.callers import Caller
from shared.database import ReadDep, SessionDep, utc_now
from shared.problems import Forbidden, NotAuthenticated

router = APIRouter(prefix="/api/libraries/v2", tags=["collections"])
LARGEST_NUMBER = 2**63


async def known_caller(request: Request) -> Caller:
    """As everywhere, but here a request without a valid token is 403. contract: libraries §2.2"""
    try:
        return await callers.caller(request)
    except NotAuthenticated as problem:
        raise Forbidden(problem.detail) from problem


KnownCaller = Annotated[Caller, Depends(known_caller)]


class LibraryWith:
    """The library of the path, for callers with all of these permissions. contract: §5.3"""

    def __init__(self, *needed: Permission) -> None:
        self._needed = needed

    async def __call__(self, lib_key: str, caller: KnownCaller, session: SessionDep) -> Library:
        return await self.find(lib_key, caller, session)

    async def find(self, lib_key: str, caller: Caller, session: AsyncSession) -> Library:
        library = await libraries.get(session, lib_key, hold_for(self._needed[-1]))
        await permissions.require_each(session, library, caller, self._needed)
        return library


class LibraryToRead(LibraryWith):
    """The same for a request that only reads."""

    async def __call__(self, lib_key: str, caller: KnownCaller, session: ReadDep) -> Library:
        return await self.find(lib_key, caller, session)


ViewLibrary = Annotated[Library, Depends(LibraryToRead(Permission.VIEW))]
CreateIn = Annotated[Library, Depends(LibraryWith(Permission.CREATE_COLLECTION, Permission.EDIT))]
EditIn = Annotated[Library, Depends(LibraryWith(Permission.EDIT_COLLECTION, Permission.EDIT))]
DeleteIn = Annotated[Library, Depends(LibraryWith(Permission.DELETE_COLLECTION, Permission.EDIT))]


@router.get("/{lib_key}/collections/")
async def list_collections(
    request: Request,
    library: ViewLibrary,
    session: ReadDep,
    page: str = "1",
    page_size_text: Annotated[str, Query(alias="page_size")] = "",
) -> JSONResponse:
    """Collections that are not deleted, in the order in which they were made."""

    async def fetch(number: int, size: int) -> tuple[Sequence[Any], int]:
        rows = await collections.page(session, library, size=size, number=number)
        return rows, await collections.count(session, library)

    found = await numbered_page(page, page_size_text, fetch)
    members = await collections.members(session, found.rows)
    results = [collection_json(row, members[row.id]) for row in found.rows]
    return JSONResponse(found.envelope(request, results))


@router.post("/{lib_key}/collections/")
async def create_collection(
    library: CreateIn, body: CollectionCreation, caller: KnownCaller, session: SessionDep
) -> JSONResponse:
    """A new, empty collection. Its key is made of its title and never changes."""
    number = caller.user_id if 0 < (caller.user_id or 0) < LARGEST_NUMBER else None
    collection = await collections.create(
        session, library, **body.model_dump(), user=caller.username, user_id=number, now=utc_now()
    )
    return JSONResponse(collection_json(collection, []))


@router.get("/{lib_key}/collections/{code}/")
async def get_collection(library: ViewLibrary, code: str, session: ReadDep) -> JSONResponse:
    """One collection that is not deleted."""
    return await _shown(session, await collections.get(session, library, code))


async def _shown(session: SessionDep, collection: Collection) -> JSONResponse:
    members = await collections.members(session, [collection])
    return JSONResponse(collection_json(collection, members[collection.id]))


@router.patch("/{lib_key}/collections/{code}/")
async def update_collection(
    library: EditIn, code: str, body: CollectionChanges, session: SessionDep
) -> JSONResponse:
    """Change title or description, of a deleted one too."""
    collection = await collections.get_ever(session, library, code, held=True)
    given = body.model_dump(exclude_unset=True)
    await collections.update(session, library, collection, given, now=utc_now())
    return await _shown(session, collection)


@router.delete("/{lib_key}/collections/{code}/", status_code=204)
async def delete_collection(library: DeleteIn, code: str, session: SessionDep) -> None:
    """Hide a collection; it keeps its members and its key."""
    collection = await collections.get_ever(session, library, code, held=True)
    await collections.delete(session, library, collection, now=utc_now())


@router.post("/{lib_key}/collections/{code}/restore/", status_code=204)
async def restore_collection(library: EditIn, code: str, session: SessionDep) -> None:
    """Show a deleted collection again, with the members it had."""
    collection = await collections.get_ever(session, library, code, held=True)
    await collections.restore(session, library, collection, now=utc_now())


@router.patch("/{lib_key}/collections/{code}/items/")
async def add_items(
    library: EditIn, code: str, body: CollectionItems, session: SessionDep
) -> ItemCount:
    """Add components and containers; what is in it already is fine."""
    collection = await collections.get(session, library, code, held=True)
    ids = await collections.find_items(session, library, body.items)
    await collections.add_items(session, library, collection, ids, now=utc_now())
    return ItemCount(count=len(body.usage_keys))


@router.delete("/{lib_key}/collections/{code}/items/")
async def remove_items(
    library: EditIn, code: str, body: CollectionItems, session: SessionDep
) -> ItemCount:
    """Take components and containers out; what is not in it is fine."""
    collection = await collections.get(session, library, code, held=True)
    ids = await collections.find_items(session, library, body.items)
    await collections.remove_items(session, library, collection, ids, now=utc_now())
    return ItemCount(count=len(body.usage_keys))


@router.patch("/blocks/{usage_key}/collections/")
async def set_collections_of_block(
    block: EditBlockEver, body: ItemCollections, session: SessionDep
) -> ItemCount:
    """Put a component into exactly these collections; keys that do not exist count all the same."""
    codes = body.collection_keys
    await collections.replace_of(session, block.library, block.entity, codes, now=utc_now())
    return ItemCount(count=len(codes))


@router.patch("/containers/{container_key}/collections/")
async def set_collections_of_container(
    container: EditContainerEver, body: ItemCollections, session: SessionDep
) -> ItemCount:
    """Put a container into exactly these collections, as for a component."""
    codes = body.collection_keys
    await collections.replace_of(session, container.library, container.entity, codes, now=utc_now())
    return ItemCount(count=len(codes))
