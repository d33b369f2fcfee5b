"""Leases over HTTP: locks for anyone who has work of their own to protect."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request

from services.dispatcher import leases
from services.dispatcher.lease_waits import LeaseWaits
from services.dispatcher.schemas import LeaseRelease, LeaseRenewal, LeaseRequest, LeaseView
from shared.callers import AnyCallerDep
from shared.database import SessionDep, utc_now
from shared.paging import KeysetPage, make_cursor

router = APIRouter(prefix="/api/dispatcher/v1/leases", tags=["leases"])
MOST_SHOWN = 100


@router.post("/", status_code=201)
async def take_lease(request: Request, wanted: LeaseRequest, caller: AnyCallerDep) -> LeaseView:
    """Hold resources: all of them, or 409 `resources-busy` that names the busy ones.

    Pass `fence` on to whatever you change under the lease, and have older numbers refused there.
    Send the same `id` again when an answer was lost. A caller that leaves while it waits gives up
    its place.
    """
    waits: LeaseWaits = request.app.state.lease_waits

    async def gone() -> None:
        # The wait has no transaction open and no connection in use.
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return LeaseView.of(await waits.take(wanted, caller=caller, gone=gone))


@router.get("/")
async def list_leases(
    caller: AnyCallerDep,
    session: SessionDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = MOST_SHOWN,
) -> KeysetPage[LeaseView]:
    """Your leases that are held or waiting; administrators see all."""
    found = await leases.list_current(
        session, caller=caller, after=leases.place(after), limit=limit + 1
    )
    shown = found[:limit]
    more = make_cursor(shown[-1].seq) if len(found) > limit else None
    return KeysetPage(results=[LeaseView.of(lease) for lease in shown], next=more)


@router.get("/{lease_id}")
async def show_lease(lease_id: UUID, caller: AnyCallerDep, session: SessionDep) -> LeaseView:
    """One lease of yours, also after its end."""
    return LeaseView.of(await leases.get(session, lease_id, caller=caller))


@router.post("/{lease_id}/renew")
async def renew_lease(
    request: Request,
    lease_id: UUID,
    renewal: LeaseRenewal,
    caller: AnyCallerDep,
    session: SessionDep,
) -> LeaseView:
    """Hold on: the time counts anew from now. 409 `lease-lost` when it is not yours any more."""
    lease = await leases.renew(
        session,
        lease_id,
        renewal,
        caller=caller,
        settings=request.app.state.settings,
        now=utc_now(),
    )
    return LeaseView.of(lease)


@router.post("/{lease_id}/release")
async def release_lease(
    lease_id: UUID, held: LeaseRelease, caller: AnyCallerDep, session: SessionDep
) -> LeaseView:
    """Give the resources back; those who wait get them at once. Sent again it changes nothing.

    409 `lease-lost` when the lease had ended before, so that others may have held the resources.
    """
    lease = await leases.release(session, lease_id, fence=held.fence, caller=caller, now=utc_now())
    return LeaseView.of(lease)
