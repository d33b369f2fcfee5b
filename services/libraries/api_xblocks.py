"""Routes of components as blocks: OLX and fields of any version. contract: libraries §3.12"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from services.libraries import block_fields, components, entities, libraries, permissions
from services.libraries.access import Block, hold_for
from services.libraries.api import settings_of
from services.libraries.errors import BlockUnknown, LibraryUnknown
from services.libraries.keys import parse_usage_key
from services.libraries.schemas import BlockFields, FieldChanges, FieldsSaved
from services.libraries.states import Permission, component_ref
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now

router = APIRouter(prefix="/api/xblock/v2/xblocks", tags=["blocks"])


async def _block(
    session: SessionDep, caller: Caller, text: str, permission: Permission, *, deleted: bool
) -> Block:
    key = parse_usage_key(text)
    try:
        library = await libraries.get(session, str(key.lib_key), hold_for(permission))
    except LibraryUnknown:
        raise LibraryUnknown(f"Content Library '{key.lib_key}' does not exist") from None
    await permissions.require(session, library, caller, permission)
    try:
        ref = component_ref(key.block_type, key.usage_id)
        return Block(library, await entities.get(session, library, ref, deleted=deleted))
    except BlockUnknown:
        raise _unknown(text) from None


def _unknown(key: str) -> BlockUnknown:
    return BlockUnknown(f"The component '{key}' does not exist.")


async def editable(usage_key: str, caller: CallerDep, session: SessionDep) -> Block:
    return await _block(session, caller, usage_key, Permission.EDIT, deleted=False)


async def shown_olx(usage_key: str, caller: CallerDep, session: SessionDep) -> str:
    """The OLX of `KEY`, `KEY@draft`, `KEY@published` or `KEY@NUMBER`."""
    text, _, version = usage_key.partition("@")
    version = version or "draft"
    numbered_version = version.isascii() and version.isdecimal() and len(version) < 10
    if version not in ("draft", "published") and not numbered_version:
        raise BlockUnknown
    block = await _block(session, caller, text, Permission.VIEW, deleted=version != "draft")
    try:
        return await components.get_olx(session, block.entity, version)
    except BlockUnknown:
        raise _unknown(usage_key) from None


Editable = Annotated[Block, Depends(editable)]
ShownOlx = Annotated[str, Depends(shown_olx)]


@router.get("/{usage_key}/olx/")
async def get_xblock_olx(content: ShownOlx) -> dict[str, str]:
    """The OLX of `KEY`, `KEY@draft`, `KEY@published` or `KEY@NUMBER`."""
    return {"olx": content}


@router.get("/{usage_key}/fields/")
async def get_fields(usage_key: str, content: ShownOlx) -> BlockFields:
    """The fields of `KEY`, `KEY@draft`, `KEY@published` or `KEY@NUMBER`.

    `metadata` are the attributes of the OLX; `data` is the text of `html`, the whole element of
    a `problem`, and of others what is inside the element.
    """
    block_type = parse_usage_key(usage_key.partition("@")[0]).block_type
    fields = block_fields.read(content, block_type=block_type)
    return BlockFields(display_name=fields.display_name, metadata=fields.metadata, data=fields.data)


@router.post("/{usage_key}/fields/")
async def set_fields(
    request: Request,
    usage_key: str,
    block: Editable,
    body: FieldChanges,
    caller: CallerDep,
    session: SessionDep,
) -> FieldsSaved:
    """Save fields: one new draft version. What is not named stays, `null` removes it."""
    made, fields = await block_fields.save(
        session, block.library, block.entity, data=body.data, metadata=body.metadata or {},
        user=caller.username, now=utc_now(), limits=settings_of(request).olx_limits,
    )  # fmt: skip
    return FieldsSaved(
        id=usage_key, version_num=made.version_num, display_name=fields.display_name,
        metadata=fields.metadata, data=fields.data,
    )  # fmt: skip
