"""Routes about where an item is, what happened to it, and taking that back.

Each exists for components and for containers. contract: libraries §3.9, §3.10
"""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request

from services.libraries import containers, drafts, entities, hierarchy, history, publishing
from services.libraries.access import (
    Block,
    EditBlockEver,
    EditContainerEver,
    ViewBlock,
    ViewBlockEver,
    ViewContainer,
    ViewContainerEver,
    ViewLibrary,
)
from services.libraries.api import settings_of
from services.libraries.errors import BlockUnknown
from services.libraries.keys import item_key, parse_item_key
from services.libraries.models import Entity, Library
from services.libraries.schemas import Discarded
from services.libraries.states import Kind
from services.libraries.views import (
    People,
    entry_json,
    hierarchy_json,
    past_child_json,
    preview_json,
    publish_json,
)
from shared.callers import CallerDep
from shared.database import ReadDep, SessionDep, utc_now
from shared.lookups import LookupConnections, LookupDep
from shared.problems import BadInput, NotFound

router = APIRouter(prefix="/api/libraries/v2", tags=["hierarchy and history"])


def _people(request: Request) -> People:
    return People(settings_of(request).profile_images)


@router.get("/blocks/{usage_key}/hierarchy/")
async def get_block_hierarchy(block: ViewBlock, session: ReadDep) -> dict[str, Any]:
    """All containers that hold a component, at every level."""
    return await _hierarchy(session, block)


@router.get("/containers/{container_key}/hierarchy/")
async def get_container_hierarchy(container: ViewContainer, session: ReadDep) -> dict[str, Any]:
    """All that holds a container and all that it holds, at every level."""
    return await _hierarchy(session, container)


async def _hierarchy(session: SessionDep, item: Block) -> dict[str, Any]:
    found = await hierarchy.show(session, item.entity)
    return hierarchy_json(item.library, _key(item), found)


def _key(item: Block) -> str:
    library, entity = item.library, item.entity
    return item_key(library.org, library.slug, entity.kind, entity.type, entity.code)


@router.get("/blocks/{usage_key}/draft_history/")
async def get_block_draft_history(
    request: Request, block: ViewBlockEver, lookups: LookupDep
) -> list[dict[str, Any]]:
    """What was changed since the last publish, newest first."""
    return await _draft_history(request, lookups, block)


@router.get("/containers/{container_key}/draft_history/")
async def get_container_draft_history(
    request: Request, container: ViewContainerEver, lookups: LookupDep
) -> list[dict[str, Any]]:
    """What was changed since the last publish, of the container and of the components in it."""
    return await _draft_history(request, lookups, container)


async def _draft_history(
    request: Request, lookups: LookupConnections, item: Block
) -> list[dict[str, Any]]:
    rows = await history.unpublished(lookups, item.entity)
    return [entry_json(row, _people(request)) for row in rows]


@router.get("/blocks/{usage_key}/publish_history/")
async def get_block_publish_history(
    request: Request, block: ViewBlockEver, lookups: LookupDep
) -> list[dict[str, Any]]:
    """Every publish that touched a component, newest first."""
    return await _publish_history(request, lookups, block)


@router.get("/containers/{container_key}/publish_history/")
async def get_container_publish_history(
    request: Request, container: ViewContainerEver, lookups: LookupDep
) -> list[dict[str, Any]]:
    """Every publish that touched a container or a component in it, newest first."""
    return await _publish_history(request, lookups, container)


@router.get("/containers/{container_key}/publish_history/{publish_log_uuid}/children/")
async def list_children_as_of_publish(
    container: ViewContainerEver, publish_log_uuid: UUID, session: ReadDep
) -> list[dict[str, Any]]:
    """The children in order that readers saw right after a publish."""
    library = container.library
    rows = await containers.children_as_of(session, library, container.entity, publish_log_uuid)
    return [past_child_json(library, row) for row in rows]


async def _publish_history(
    request: Request, lookups: LookupConnections, item: Block
) -> list[dict[str, Any]]:
    groups = await history.publishes(lookups, item.entity)
    return [publish_json(item.library, group, _people(request)) for group in groups]


@router.get("/blocks/{usage_key}/creation_entry/")
async def get_block_creation_entry(
    request: Request, block: ViewBlockEver, session: ReadDep
) -> dict[str, Any] | None:
    """Who made a component, and when."""
    return await _creation_entry(request, session, block)


@router.get("/containers/{container_key}/creation_entry/")
async def get_container_creation_entry(
    request: Request, container: ViewContainerEver, session: ReadDep
) -> dict[str, Any] | None:
    """Who made a container, and when."""
    return await _creation_entry(request, session, container)


async def _creation_entry(
    request: Request, session: SessionDep, item: Block
) -> dict[str, Any] | None:
    row = await history.creation(session, item.entity)
    return entry_json(row, _people(request)) if row is not None else None


@router.get("/{lib_key}/publish_history_entries/")
async def list_publish_history_entries(
    request: Request,
    library: ViewLibrary,
    session: ReadDep,
    scope_entity_key: str = "",
    publish_log_uuid: str = "",
) -> list[dict[str, Any]]:
    """The changes of one item, and of what is in it, that one publish made public."""
    if not scope_entity_key or not publish_log_uuid:
        raise _refused("scope_entity_key and publish_log_uuid are required.")
    try:
        publish = UUID(publish_log_uuid)
    except ValueError as error:
        raise _refused(f"Invalid publish_log_uuid: '{publish_log_uuid}'") from error
    item = await _scope(session, library, scope_entity_key)
    if item is None:
        return []
    rows = await history.entries(session, library, item, publish)
    return [entry_json(row, _people(request)) for row in rows]


async def _scope(session: SessionDep, library: Library, text: str) -> Entity | None:
    """None for a component that does not exist; a container that does not is BlockUnknown."""
    try:
        key = parse_item_key(text)
    except BlockUnknown as error:
        raise _refused(f"Invalid scope_entity_key: '{text}'") from error
    if key.library_key != library.key:
        raise NotFound
    try:
        entity = await entities.get(session, library, key.ref, deleted=True)
    except BlockUnknown:
        if key.kind is Kind.COMPONENT:
            return None
        raise
    if entity.kind is not key.kind:
        raise BlockUnknown
    return entity


def _refused(message: str) -> BadInput:
    return BadInput(message, body={"error": message})


@router.get("/blocks/{usage_key}/publish/preview/")
async def preview_block_publish(block: ViewBlock, session: ReadDep) -> dict[str, Any]:
    """What publishing a component would publish, and which containers would show it."""
    return await _preview(session, block)


@router.get("/containers/{container_key}/publish/preview/")
async def preview_container_publish(container: ViewContainer, session: ReadDep) -> dict[str, Any]:
    """What publishing a container would publish, and which other containers would show it."""
    return await _preview(session, container)


async def _preview(session: SessionDep, item: Block) -> dict[str, Any]:
    found = await publishing.preview(session, item.library, item.entity.id)
    return preview_json(item.library, *found)


@router.post("/blocks/{usage_key}/discard/")
async def discard_block_changes(
    block: EditBlockEver, caller: CallerDep, session: SessionDep
) -> Discarded:
    """Take a component back to its published version, also a deleted one."""
    return await _discard(session, block, caller, below=False)


@router.post("/containers/{container_key}/discard/")
async def discard_container_changes(
    container: EditContainerEver, caller: CallerDep, session: SessionDep, below: bool = False
) -> Discarded:
    """Take a container back to its published version, with `below=true` also all that it holds.

    What is below and was never published stays in the library as it is.
    """
    return await _discard(session, container, caller, below=below)


async def _discard(
    session: SessionDep, item: Block, caller: CallerDep, *, below: bool
) -> Discarded:
    moved = await drafts.discard(
        session, item.library, [item.entity.id], below=below, user=caller.username, now=utc_now()
    )
    library = item.library
    return Discarded(discarded=[item_key(library.org, library.slug, *names) for names in moved])


@router.post("/blocks/{usage_key}/restore/before_deletion/", status_code=204)
async def restore_block_before_deletion(
    block: EditBlockEver, caller: CallerDep, session: SessionDep
) -> None:
    """Bring a deleted component back at the version it had then, not at its newest one."""
    await _undelete(session, block, caller)


@router.post("/containers/{container_key}/restore/before_deletion/", status_code=204)
async def restore_container_before_deletion(
    container: EditContainerEver, caller: CallerDep, session: SessionDep
) -> None:
    """Bring a deleted container back at the version it had then, not at its newest one."""
    await _undelete(session, container, caller)


async def _undelete(session: SessionDep, item: Block, caller: CallerDep) -> None:
    await drafts.undelete(session, item.library, item.entity, user=caller.username, now=utc_now())
