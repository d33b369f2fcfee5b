"""Taking and keeping leases from another process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import structlog

from services.dispatcher.errors import LeaseLost
from services.dispatcher.schemas import LeaseRelease, LeaseRenewal, LeaseRequest, LeaseView
from shared import ids
from shared.clients import ServiceClients
from shared.loops import end
from shared.problems import Problem, Unavailable

log = structlog.get_logger("leases")

SERVICE = "dispatcher"
LEASES = "/api/dispatcher/v1/leases"
ATTEMPTS = 3
PAUSE_SECONDS = 0.2
# Renewed this often in the time of a lease, so that a lost answer or two do not lose it.
RENEWALS = 4


async def take_lease(
    clients: ServiceClients,
    *,
    exclusive: Sequence[str] = (),
    shared: Sequence[str] = (),
    ttl_seconds: float = 30.0,
    wait_seconds: float = 0.0,
    purpose: str = "lock",
) -> LeaseView:
    """Hold resources until `ttl_seconds` after the grant, all or none.

    Raises ResourcesBusy, naming the busy ones, at once or after `wait_seconds`; Unavailable
    without the dispatcher: what it may have granted then ends by itself.
    """
    wanted = LeaseRequest(
        id=ids.new_id(),
        exclusive=list(exclusive),
        shared=list(shared),
        ttl_seconds=ttl_seconds,
        wait_seconds=wait_seconds,
        purpose=purpose,
    )
    for left in reversed(range(ATTEMPTS)):
        try:
            return await _take(clients, wanted)
        except Unavailable:
            if not left:
                raise
        except LeaseLost:
            # An earlier answer was lost, and the lease was given up because nobody was there.
            if not left or left == ATTEMPTS - 1:
                raise
            wanted = wanted.model_copy(update={"id": ids.new_id()})
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


async def _take(clients: ServiceClients, wanted: LeaseRequest) -> LeaseView:
    body = wanted.model_dump(mode="json")
    return LeaseView.model_validate(
        await clients.post(SERVICE, f"{LEASES}/", body, attempts=1, patience=wanted.wait_seconds)
    )


async def renew_lease(
    clients: ServiceClients, lease_id: UUID, fence: int, *, ttl_seconds: float | None = None
) -> LeaseView:
    """Hold on for the lease's time, or another one, from now. Raises LeaseLost."""
    body = LeaseRenewal(fence=fence, ttl_seconds=ttl_seconds).model_dump(mode="json")
    return LeaseView.model_validate(await clients.post(SERVICE, f"{LEASES}/{lease_id}/renew", body))


async def release_lease(clients: ServiceClients, lease_id: UUID, fence: int) -> LeaseView:
    """Give the resources back. Raises LeaseLost when the lease had ended before."""
    body = LeaseRelease(fence=fence).model_dump(mode="json")
    return LeaseView.model_validate(
        await clients.post(SERVICE, f"{LEASES}/{lease_id}/release", body)
    )


@contextlib.asynccontextmanager
async def holding(
    clients: ServiceClients,
    *,
    exclusive: Sequence[str] = (),
    shared: Sequence[str] = (),
    ttl_seconds: float = 30.0,
    wait_seconds: float = 0.0,
    purpose: str = "lock",
) -> AsyncIterator[LeaseView]:
    """Hold resources while the block runs, however long; its `fence` is what to pass on.

    When the lease is lost, or cannot be renewed in time, the block is stopped at its next await,
    before anyone else can hold the resources, and LeaseLost is raised. Raises what `take_lease`
    does before the block begins.
    """
    clock = asyncio.get_running_loop().time
    asked = clock()
    lease = await take_lease(
        clients, exclusive=exclusive, shared=shared, ttl_seconds=ttl_seconds,
        wait_seconds=wait_seconds, purpose=purpose,
    )  # fmt: skip
    assert lease.fence is not None
    try:
        if clock() - asked > ttl_seconds / RENEWALS:
            asked = clock()
            await renew_lease(clients, lease.id, lease.fence)
        async with _kept(clients, lease.id, lease.fence, ttl_seconds, until=asked + ttl_seconds):
            yield lease
    finally:
        with contextlib.suppress(Problem):
            await release_lease(clients, lease.id, lease.fence)


@contextlib.asynccontextmanager
async def _kept(
    clients: ServiceClients, lease_id: UUID, fence: int, ttl: float, *, until: float
) -> AsyncIterator[None]:
    """Renews beside the block, and stops the block when its time is over."""
    try:
        async with asyncio.timeout_at(until) as limit:
            keeper = asyncio.create_task(_renew_for_ever(clients, lease_id, fence, ttl, limit))
            try:
                yield
            finally:
                await end([keeper])
    except TimeoutError:
        if not limit.expired():
            raise
    if limit.expired():
        raise LeaseLost


async def _renew_for_ever(
    clients: ServiceClients, lease_id: UUID, fence: int, ttl: float, limit: asyncio.Timeout
) -> None:
    """Renew in time; each answer moves the moment at which the block must have stopped."""
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(ttl / RENEWALS)
        asked = clock()
        try:
            async with asyncio.timeout(ttl / RENEWALS):
                await renew_lease(clients, lease_id, fence)
        except (Unavailable, TimeoutError):
            log.warning("lease.renewal_waits", lease=str(lease_id))
            continue
        except Problem:
            if not limit.expired():
                limit.reschedule(asked)
            return
        if limit.expired():
            return
        limit.reschedule(asked + ttl)
