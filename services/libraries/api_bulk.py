"""Routes of many items of a library at once. These are ours; the contract has none."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from services.libraries import bulk, publishing
from services.libraries.access import EditLibrary, ViewLibrary
from services.libraries.api import settings_of
from services.libraries.keys import item_key
from services.libraries.schemas import (
    BlockEdited,
    BlockEdits,
    BlocksEdited,
    Discarded,
    Discards,
    Unpublished,
)
from shared.callers import CallerDep
from shared.database import SessionDep, utc_now
from shared.lookups import LookupDep
from shared.problems import BadInput

router = APIRouter(prefix="/api/libraries/v2", tags=["many at once"])


def _require_few(request: Request, name: str, items: Sequence[Any]) -> None:
    most = settings_of(request).most_bulk_items
    if len(items) > most:
        message = f"At most {most} at once."
        raise BadInput(f"{name}: {message}", fields={name: [message]})


@router.post("/{lib_key}/blocks/bulk_edit/")
async def edit_blocks(
    request: Request,
    library: EditLibrary,
    body: BlockEdits,
    caller: CallerDep,
    session: SessionDep,
) -> BlocksEdited:
    """Save new OLX of many components in one change: all of them, or none.

    What is wrong is named by its place, like `blocks.3.olx`. With `version_num` it is 409 when a
    component's draft is another version by now.
    """
    _require_few(request, "blocks", body.blocks)
    edits = [bulk.Edit(each.usage_key, each.olx, each.version_num) for each in body.blocks]
    made = await bulk.edit(
        session, library, edits, user=caller.username, now=utc_now(),
        limits=settings_of(request).olx_limits,
    )  # fmt: skip
    return BlocksEdited(
        blocks=[BlockEdited(usage_key=key, version_num=number) for key, number in made]
    )


@router.post("/{lib_key}/discard/")
async def discard_changes(
    request: Request, library: EditLibrary, body: Discards, caller: CallerDep, session: SessionDep
) -> Discarded:
    """Take many items back to their published versions in one change, also deleted ones.

    What never was published is refused, and nothing is done then; below a container it is left.
    """
    _require_few(request, "usage_keys", body.usage_keys)
    moved = await bulk.discard(
        session, library, body.usage_keys, below=body.below, user=caller.username, now=utc_now()
    )
    return Discarded(discarded=[item_key(library.org, library.slug, *names) for names in moved])


@router.get("/{lib_key}/unpublished/")
async def count_unpublished(library: ViewLibrary, lookups: LookupDep) -> Unpublished:
    """How many components and containers differ from what readers see."""
    changes, deletes = await publishing.count_unpublished(lookups, library)
    return Unpublished(changes=changes, deletes=deletes)
