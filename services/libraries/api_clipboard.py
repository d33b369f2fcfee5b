"""Routes for copying and pasting. contract: libraries §3.4 #18, §3.8 #51, §3.12, §4.10"""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from services.libraries import (
    clipboard,
    entities,
    libraries,
    olx,
    pasting,
    permissions,
    transferring,
)
from services.libraries.access import CopyContainer, EditLibrary
from services.libraries.api import settings_of
from services.libraries.errors import BlockUnknown, ClipboardUnknown
from services.libraries.keys import parse_item_key
from services.libraries.models import Clipboard
from services.libraries.schemas import Plain, Transfer, TransferDone
from services.libraries.settings import Settings
from services.libraries.states import DISPLAY_NAMES, KIND_OF_TAG, Permission
from services.libraries.transferring import Limits
from services.libraries.views import item_json, moment
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now

STAGING = "/api/content-staging/v1"
router = APIRouter(prefix="/api/libraries/v2", tags=["clipboard"])
staging_router = APIRouter(prefix=STAGING, tags=["clipboard"])


class Copied(BaseModel):
    """What to copy: the key of a component or a container."""

    usage_key: Plain


@staging_router.get("/clipboard/", operation_id="read_clipboard")
async def read_clipboard(
    request: Request, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """What you copied last; `content` is null if nothing."""
    kept = await clipboard.find(session, caller)
    return _clipboard_json(kept, caller, settings_of(request))


@staging_router.post("/clipboard/", operation_id="copy")
async def copy(
    request: Request, body: Copied, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Copy a component, or a container with all it holds, as their drafts are now."""
    key = parse_item_key(body.usage_key)
    library = await libraries.get(session, key.library_key)
    await permissions.require(session, library, caller, Permission.VIEW)
    entity = await entities.get(session, library, key.ref)
    if entity.kind is not key.kind:
        raise BlockUnknown
    settings = settings_of(request)
    kept = await clipboard.copy(
        session, library, entity, most=settings.most_transferred, caller=caller, now=utc_now()
    )
    return _clipboard_json(kept, caller, settings)


@staging_router.get("/staged-content/{staged_id}/olx", operation_id="read_staged_olx")
async def read_staged_olx(staged_id: UUID, caller: CallerDep, session: SessionDep) -> Response:
    """The OLX of what you copied."""
    kept = await clipboard.find(session, caller)
    if kept is None or kept.id != staged_id:
        raise ClipboardUnknown
    return Response(kept.olx, media_type="application/xml")


@router.post("/containers/{container_key}/copy/", operation_id="copy_container")
async def copy_container(
    request: Request, container: CopyContainer, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Copy a container with all it holds."""
    await clipboard.copy(
        session, container.library, container.entity,
        most=settings_of(request).most_transferred, caller=caller, now=utc_now(),
    )  # fmt: skip
    return {}


@router.post("/{lib_key}/paste_clipboard/", operation_id="paste_clipboard")
async def paste_clipboard(
    request: Request, library: EditLibrary, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """Make new drafts of what you copied.

    Below the top, what was copied out of this library is linked, not made again.
    """
    kept = await clipboard.get(session, caller)
    settings = settings_of(request)
    entity = await pasting.paste(
        session, request.app.state.files, library, kept, most=settings.most_blocks,
        limits=settings.olx_limits, caller=caller, now=utc_now(), allowed=settings.allowed_types,
    )  # fmt: skip
    row = await entities.show(session, entity.id)
    below = {row.id} if row.changed_below else set()
    return JSONResponse(item_json(library, row, changed_below=below))


@router.post("/{lib_key}/transfer/", operation_id="transfer_items")
async def transfer_items(
    request: Request, library: EditLibrary, body: Transfer, caller: CallerDep, session: SessionDep
) -> TransferDone:
    """Copy or move items of other libraries into this one, with all that is below them.

    Drafts are copied as they stand, each item once; published states and histories are not. The
    named items join `collections`. A move deletes the drafts it was made of, but below the named
    items not what something else in its library holds. All or nothing.
    """
    settings = settings_of(request)
    done = await transferring.transfer(
        session, request.app.state.files, library, body.keys, body.mode,
        codes=body.collections, caller=caller, now=utc_now(),
        limits=Limits(blocks=settings.most_blocks, items=settings.most_transferred),
    )  # fmt: skip
    return TransferDone(mode=body.mode, keys=done.keys, kept=done.kept)


def _clipboard_json(kept: Clipboard | None, caller: Caller, settings: Settings) -> dict[str, Any]:
    content = None
    if kept is not None:
        content = {
            "id": str(kept.id),
            "user_id": caller.user_id,
            "created": moment(kept.created),
            "purpose": "clipboard",
            "status": "ready",
            "block_type": kept.block_type,
            "block_type_display": _display(kept.block_type),
            "display_name": kept.title,
            "olx_url": f"{settings.origin_url}{STAGING}/staged-content/{kept.id}/olx",
        }
    return {
        "content": content,
        "source_usage_key": kept.source_key if kept else "",
        "source_context_title": kept.source_title if kept else "",
        "source_edit_url": "",
    }


def _display(block_type: str) -> str:
    if block_type in KIND_OF_TAG:
        return KIND_OF_TAG[block_type].value.capitalize()
    return DISPLAY_NAMES.get(block_type) or olx.default_title(block_type)
