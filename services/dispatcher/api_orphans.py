"""Cleaning up what nothing refers to any more. contract: dispatcher §6.6, DI-74"""

import re
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, Field
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client, runs
from services.dispatcher.schemas import UserTaskSpec
from services.dispatcher.views import href
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.problems import Forbidden

router = APIRouter(prefix="/pulp/api/v3/orphans", tags=["orphans"])
ORPHANS = "pdrn:00000000-0000-0000-0000-000000000000:orphans"
LONGEST_PROTECTION = 4_294_967_295
MOST_CONTENT = 10_000
_CONTENT = re.compile(
    r"(?:(?:https?://[^/]+)?/api/libraries/v2/resources/content/([0-9a-fA-F-]{36})/"
    r"|prn:libraries\.content:([0-9a-fA-F-]{36}))"
)


def administrator(caller: CallerDep) -> Caller:
    """Raises Forbidden for everyone else, whatever the body is like."""
    if not caller.administrator:
        raise Forbidden
    return caller


Administrator = Annotated[Caller, Depends(administrator)]


def content_id(address: str) -> str:
    """The id in the href or PRN of content. Raises ValueError."""
    named = _CONTENT.fullmatch(address)
    try:
        return str(UUID((named[1] or named[2]) if named else ""))
    except ValueError:
        raise ValueError(f"{address[:200]!r} is not the address of content.") from None


class OrphansCleanup(BaseModel):
    """What to clean up, and for how many minutes without use it is protected."""

    content_hrefs: Annotated[
        list[Annotated[str, AfterValidator(content_id)]],
        Field(min_length=1, max_length=MOST_CONTENT),
    ] = []
    orphan_protection_time: Annotated[int, Field(ge=0, le=LONGEST_PROTECTION)] | None = None


@router.post("/cleanup/", status_code=202, operation_id="orphans_cleanup_cleanup")
async def clean_up_orphans(
    caller: Administrator, session: SessionDep, wanted: OrphansCleanup | None = None
) -> dict[str, str | None]:
    """Remove content that nothing refers to, and then its files; a task does it.

    With `content_hrefs` only these, and their files. Without `orphan_protection_time`: what the
    settings of the service say. For administrators.
    """
    return await _dispatch(session, wanted or OrphansCleanup(), caller, now=utc_now())


@router.delete("/", status_code=202, operation_id="orphans_delete", deprecated=True)
async def delete_orphans(caller: Administrator, session: SessionDep) -> dict[str, str | None]:
    """The same with the protection time of the settings, as older clients ask for it."""
    return await _dispatch(session, OrphansCleanup(), caller, now=utc_now())


async def _dispatch(
    session: AsyncSession, wanted: OrphansCleanup, caller: Caller, *, now: datetime
) -> dict[str, str | None]:
    request = client.make_request(
        "orphan_cleanup",
        queue="libraries",
        kwargs={
            "content_pks": wanted.content_hrefs or None,
            "orphan_protection_time": wanted.orphan_protection_time,
            "administrator": True,
        },
        exclusive=[ORPHANS],
        caller=caller,
        user_task=UserTaskSpec(name="Clean up orphans", task_type="orphan-cleanup"),
        repeatable=True,
    )
    await runs.accept(session, [request], now=now)
    return {"task": href(request.id)}
