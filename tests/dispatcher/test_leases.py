"""Locks for anyone: taken, waited for, renewed, given back, lost."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import leases, runs
from services.dispatcher.app import create_app
from services.dispatcher.client import holding, release_lease, renew_lease, take_lease
from services.dispatcher.errors import LeaseLost, ResourcesBusy
from services.dispatcher.lease_waits import LeaseWaits
from services.dispatcher.models import Task
from services.dispatcher.schemas import DOMAIN, LeaseRenewal, LeaseRequest
from services.dispatcher.settings import Settings
from services.dispatcher.states import State
from shared.callers import Caller, service_token
from shared.clients import ServiceClients
from shared.database import Database, utc_now
from shared.problems import BadInput
from shared.testing import as_user, client, running
from tests.conftest import Servers
from tests.dispatcher.conftest import NOON, accept, finish, get, ready, start
from tests.dispatcher.in_process import Worker
from tests.processes import free_port, kill, processes

ADA, BOB = as_user("ada"), as_user("bob")
PATH = "/api/dispatcher/v1/leases"
LIMIT = 10.0


async def ask(http: httpx.AsyncClient, who: dict[str, str] = ADA, **body: Any) -> httpx.Response:
    return await http.post(f"{PATH}/", json=body, headers=who)


async def take(http: httpx.AsyncClient, who: dict[str, str] = ADA, **body: Any) -> dict[str, Any]:
    answer = await ask(http, who, **body)
    assert answer.status_code == 201, answer.text
    lease: dict[str, Any] = answer.json()
    return lease


async def end(
    http: httpx.AsyncClient, lease: dict[str, Any], who: dict[str, str] = ADA
) -> httpx.Response:
    body = {"fence": lease["fence"]}
    return await http.post(f"{PATH}/{lease['id']}/release", json=body, headers=who)


async def renew(
    http: httpx.AsyncClient, lease: dict[str, Any], who: dict[str, str] = ADA, **body: Any
) -> httpx.Response:
    body = {"fence": lease["fence"]} | body
    return await http.post(f"{PATH}/{lease['id']}/renew", json=body, headers=who)


async def count(database: Database, table: str) -> int:
    async with database.engine.connect() as connection:
        return int((await connection.execute(text(f"select count(*) from {table}"))).scalar_one())


async def until(good: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT):
        while not await good():
            await asyncio.sleep(0.01)


def standing(database: Database, waiting: int) -> Callable[[], Awaitable[bool]]:
    """Whether so many leases wait."""

    async def look() -> bool:
        return await count(database, "task where state = 'waiting'") == waiting

    return look


async def lease_in(session: AsyncSession, name: str = "ada", **values: Any) -> Task:
    request = LeaseRequest.model_validate({"exclusive": ["a"], "wait_seconds": 10} | values)
    return await leases.take(session, request, caller=Caller(name), settings=Settings(), now=NOON)


# Taking


async def test_free_resources_are_held_at_once(http: httpx.AsyncClient) -> None:
    before = utc_now()

    lease = await take(http, exclusive=["a", "b"], shared=["c"], ttl_seconds=60, purpose="backup")

    assert lease["state"] == "running"
    assert lease["fence"] > 0
    assert (sorted(lease["exclusive"]), lease["shared"]) == (["a", "b"], ["c"])
    left = datetime.fromisoformat(lease["expires_at"]) - before
    assert timedelta(seconds=59) < left < timedelta(seconds=62)
    shown = await http.get(f"{PATH}/{lease['id']}", headers=ADA)
    assert shown.json() == lease


async def test_what_cannot_wait_is_refused_at_once_and_leaves_nothing_behind(
    http: httpx.AsyncClient, database: Database
) -> None:
    await take(http, BOB, exclusive=["a", "secret"])
    tasks, claims = await count(database, "task"), await count(database, "claim")

    answer = await ask(http, exclusive=["a", "free"])

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:lyceum:resources-busy"
    assert answer.json()["resources"] == ["a"]
    assert "secret" not in answer.text and "bob" not in answer.text
    assert (await count(database, "task"), await count(database, "claim")) == (tasks, claims)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("shared", "shared", True),
        ("shared", "exclusive", False),
        ("exclusive", "shared", False),
        ("exclusive", "exclusive", False),
    ],
)
async def test_only_shared_claims_are_held_together(
    session: AsyncSession, first: str, second: str, together: bool
) -> None:
    await lease_in(session, **{"exclusive": [], first: ["a"]})

    other = await lease_in(session, **{"exclusive": [], second: ["a"]})

    assert (other.state is State.RUNNING) is together


async def test_leases_and_tasks_stand_in_one_queue(session: AsyncSession) -> None:
    first = await accept(session, exclusive=["a"])
    lease = await lease_in(session)
    last = await accept(session, exclusive=["a"])
    assert lease.state is State.WAITING

    fence = await start(session, first)
    assert fence is not None
    await finish(session, first, fence)
    held = await get(session, lease.id)
    assert held.state is State.RUNNING
    assert held.fence is not None and held.fence > fence
    assert held.expires_at == NOON + timedelta(seconds=30)
    assert not await ready(session, last)

    await leases.release(session, lease.id, fence=held.fence, caller=Caller("ada"), now=NOON)
    assert await ready(session, last)


async def test_the_busy_domain_is_told_as_the_names_that_were_asked_for(
    session: AsyncSession,
) -> None:
    await accept(session, exclusive=[DOMAIN])
    lease = await lease_in(session, exclusive=["b"], shared=["a"])

    assert await leases.busy(session, lease) == ["a", "b"]


async def test_a_service_takes_leases_too(worker: Worker) -> None:
    lease = await take_lease(worker.clients, exclusive=["a"])

    assert lease.username == "service:dispatcher"
    with pytest.raises(ResourcesBusy) as caught:
        await take_lease(worker.clients, shared=["a", "b"])
    assert caught.value.extensions == {"resources": ["a"]}
    assert lease.fence is not None
    longer = await renew_lease(worker.clients, lease.id, lease.fence, ttl_seconds=600)
    assert longer.expires_at is not None and lease.expires_at is not None
    assert longer.expires_at > lease.expires_at + timedelta(seconds=500)
    assert (await release_lease(worker.clients, lease.id, lease.fence)).state is State.COMPLETED


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("ttl_seconds", {"exclusive": ["a"], "ttl_seconds": 0}),
        ("ttl_seconds", {"exclusive": ["a"], "ttl_seconds": 3601}),
        ("ttl_seconds", {"exclusive": ["a"], "ttl_seconds": 1e300}),
        ("wait_seconds", {"exclusive": ["a"], "wait_seconds": -1}),
        ("wait_seconds", {"exclusive": ["a"], "wait_seconds": 301}),
        ("exclusive", {"exclusive": [f"r{number}" for number in range(101)]}),
        ("shared", {"shared": [f"r{number}" for number in range(101)]}),
        ("exclusive.0", {"exclusive": ["a\x00b"]}),
        ("exclusive.0", {"exclusive": [""]}),
        ("exclusive.0", {"exclusive": ["a" * 501]}),
        ("shared.0", {"shared": ["shared:a"]}),
        ("purpose", {"exclusive": ["a"], "purpose": "p\x00"}),
        ("purpose", {"exclusive": ["a"], "purpose": "p" * 201}),
        ("id", {"exclusive": ["a"], "id": "not-an-id"}),
        ("non_field_errors", {"ttl_seconds": 5}),
    ],
)
async def test_a_bad_request_names_its_field_and_stores_nothing(
    http: httpx.AsyncClient, database: Database, field: str, body: dict[str, Any]
) -> None:
    answer = await ask(http, **body)

    assert answer.status_code == 400
    assert list(answer.json()["fields"]) == [field]
    assert await count(database, "task") == 0


async def test_only_administrators_and_services_hold_a_whole_domain(
    http: httpx.AsyncClient, database: Database
) -> None:
    assert (await ask(http, exclusive=[DOMAIN])).status_code == 403
    assert await count(database, "task") == 0

    lease = await take(http, as_user("root", staff=True), exclusive=[DOMAIN])

    assert lease["exclusive"] == [DOMAIN]


async def test_without_a_token_nothing_is_given(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{PATH}/", json={"exclusive": ["a"]})

    assert answer.status_code == 401


async def test_the_same_id_is_the_same_lease(http: httpx.AsyncClient) -> None:
    lease = await take(http, id=str(uuid4()), exclusive=["a"])

    again = await take(http, id=lease["id"], exclusive=["a"])
    other = await ask(http, id=lease["id"], exclusive=["b"])
    stranger = await ask(http, BOB, id=lease["id"], exclusive=["a"])

    assert again == lease
    assert other.json()["type"] == stranger.json()["type"] == "urn:lyceum:lease-exists"
    await end(http, lease)
    ended = await ask(http, id=lease["id"], exclusive=["a"])
    assert ended.json()["type"] == "urn:lyceum:lease-lost"


# Waiting


async def test_who_waits_holds_the_resource_when_it_is_given_back(
    http: httpx.AsyncClient, database: Database
) -> None:
    first = await take(http, BOB, exclusive=["a"])
    second = asyncio.create_task(take(http, exclusive=["a"], wait_seconds=10))
    await until(standing(database, 1))

    released = time.monotonic()
    await end(http, first, BOB)
    lease = await second

    assert time.monotonic() - released < 1.0
    assert lease["fence"] > first["fence"]


async def test_a_grant_in_another_process_is_noticed(
    app: FastAPI, http: httpx.AsyncClient, database: Database
) -> None:
    settings = Settings(lease_poll_seconds=60)
    async with running(create_app(settings)) as other, client(other) as there:
        first = await take(http, BOB, exclusive=["a"])
        second = asyncio.create_task(take(there, exclusive=["a"], wait_seconds=10))
        await until(standing(database, 1))
        # The first look, which follows the beginning of the wait, is over.
        await asyncio.sleep(0.3)

        await end(http, first, BOB)

        async with asyncio.timeout(5):
            await second


async def test_a_grant_is_noticed_without_redis(
    http: httpx.AsyncClient, app: FastAPI, database: Database, servers: Servers
) -> None:
    first = await take(http, BOB, exclusive=["a"])
    second = asyncio.create_task(take(http, exclusive=["a"], wait_seconds=20))
    await until(standing(database, 1))
    await asyncio.to_thread(servers.stores.kill_redis)
    try:
        await end(http, first, BOB)

        async with asyncio.timeout(5):
            await second
    finally:
        await asyncio.to_thread(servers.stores.start_redis)


async def test_a_wait_that_ends_names_the_busy_and_gives_up_its_place(
    http: httpx.AsyncClient, database: Database
) -> None:
    first = await take(http, BOB, shared=["a"])

    refused = await ask(http, exclusive=["a", "b"], wait_seconds=0.2)

    assert refused.status_code == 409
    assert refused.json()["resources"] == ["a"]
    assert await count(database, "task where state = 'canceled'") == 1
    assert await count(database, "claim") == 2
    behind = await take(http, shared=["a"])
    assert behind["fence"] > first["fence"]


async def test_what_was_granted_when_the_wait_ended_counts_as_granted(
    session: AsyncSession,
) -> None:
    holder = await lease_in(session, "bob")
    lease = await lease_in(session)
    assert holder.fence is not None
    await leases.release(session, holder.id, fence=holder.fence, caller=Caller("bob"), now=NOON)

    held, busy = await leases.conclude(session, lease, now=NOON)

    assert (held.state, busy) == (State.RUNNING, [])


async def test_twenty_who_wait_cost_one_query_at_a_time(app: FastAPI, database: Database) -> None:
    begun = 0

    class Counting:
        """Sessions, counted."""

        def begin(self) -> Any:
            nonlocal begun
            begun += 1
            return database.sessions.begin()

    settings = Settings(lease_poll_seconds=0.1)
    waits = LeaseWaits(Counting(), app.state.queue, settings)  # type: ignore[arg-type]
    looking = asyncio.create_task(waits.look_for_ever())
    try:
        request = LeaseRequest(exclusive=["a"], wait_seconds=30)
        left = asyncio.Event()

        async def gone() -> None:
            await left.wait()

        await waits.take(request, caller=Caller("bob"), gone=gone)
        others = [
            asyncio.create_task(waits.take(request, caller=Caller("ada"), gone=gone))
            for _ in range(20)
        ]
        await until(standing(database, 20))
        before = begun
        await asyncio.sleep(1.0)
        assert 3 <= begun - before <= 12
        left.set()
        refused = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(one, ResourcesBusy) for one in refused)
        assert await count(database, "task where state = 'waiting'") == 0
    finally:
        looking.cancel()


async def test_a_caller_that_leaves_while_it_waits_gives_up_its_place(
    app: FastAPI, http: httpx.AsyncClient, database: Database
) -> None:
    await take(http, BOB, exclusive=["a"])
    left = asyncio.Event()
    body = orjson.dumps({"exclusive": ["a"], "wait_seconds": 60})
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """Nobody is there to hear."""

    headers = [(name.lower().encode(), value.encode()) for name, value in ADA.items()]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": f"{PATH}/", "raw_path": f"{PATH}/".encode(), "query_string": b"",
        "root_path": "", "scheme": "http", "server": ("lyceum.test", 80), "client": ("x", 1),
        "headers": [*headers, (b"content-type", b"application/json")],
    }  # fmt: skip
    call = asyncio.create_task(app(scope, receive, send))
    await until(standing(database, 1))

    left.set()
    await call

    assert await count(database, "task where state = 'canceled'") == 1
    assert await count(database, "claim") == 2


async def test_a_request_that_is_stopped_gives_up_its_place(
    http: httpx.AsyncClient, database: Database
) -> None:
    await take(http, BOB, exclusive=["a"])
    call = asyncio.create_task(ask(http, exclusive=["a"], wait_seconds=60))
    await until(standing(database, 1))

    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call

    await until(standing(database, 0))


async def test_a_caller_that_left_takes_nothing_from_its_own_newer_call(
    session: AsyncSession,
) -> None:
    holder = await lease_in(session, "bob")
    lease_id = uuid4()
    old = (await lease_in(session, id=lease_id)).model_copy()
    new = (await lease_in(session, id=lease_id)).model_copy()
    assert holder.fence is not None
    await leases.release(session, holder.id, fence=holder.fence, caller=Caller("bob"), now=NOON)

    await leases.conclude(session, old, now=NOON, gone=True)
    held = (await get(session, lease_id)).model_copy()
    await leases.conclude(session, new, now=NOON, gone=True)

    assert held.state is State.RUNNING
    assert (await get(session, lease_id)).state is State.CANCELED


# Renewing, releasing, expiring


async def test_renewing_counts_the_time_anew(session: AsyncSession) -> None:
    lease = await lease_in(session)
    assert lease.fence is not None
    later = NOON + timedelta(seconds=20)

    await renewed(session, lease, now=later)

    assert (await get(session, lease.id)).expires_at == later + timedelta(seconds=30)
    await renewed(session, lease, now=later, ttl_seconds=100)
    assert (await get(session, lease.id)).expires_at == later + timedelta(seconds=100)


async def renewed(
    session: AsyncSession, lease: Task, *, now: datetime, who: str = "ada", **values: Any
) -> Task:
    renewal = LeaseRenewal.model_validate({"fence": lease.fence} | values)
    return await leases.renew(
        session, lease.id, renewal, caller=Caller(who), settings=Settings(), now=now
    )


async def test_an_expired_lease_is_not_renewed_even_before_it_is_swept(
    session: AsyncSession,
) -> None:
    lease = await lease_in(session)

    with pytest.raises(LeaseLost):
        await renewed(session, lease, now=NOON + timedelta(seconds=30))
    with pytest.raises(LeaseLost):
        await renewed(session, lease, now=NOON, fence=(lease.fence or 0) + 1)
    with pytest.raises(BadInput):
        await renewed(session, lease, now=NOON, ttl_seconds=3601)


async def test_an_expired_lease_fails_and_the_next_in_line_holds_its_resources(
    session: AsyncSession,
) -> None:
    lease = await lease_in(session)
    behind = await lease_in(session, "bob", wait_seconds=300)
    moment = NOON + timedelta(seconds=30)
    assert await leases.expire(session, now=moment - timedelta(microseconds=1)) == []

    assert await leases.expire(session, now=moment) == [lease.id]

    ended, held = await get(session, lease.id), await get(session, behind.id)
    assert (ended.state, ended.error) == (State.FAILED, {"reason": "The lease has expired."})
    assert (held.state, held.expires_at) == (State.RUNNING, moment + timedelta(seconds=30))


async def test_a_wait_that_nobody_ends_is_ended_by_the_sweep(session: AsyncSession) -> None:
    await lease_in(session, "bob", ttl_seconds=3600)
    waiting = await lease_in(session, wait_seconds=10)

    in_time = await leases.expire(session, now=NOON + timedelta(seconds=12))
    swept = await leases.expire(session, now=NOON + timedelta(seconds=16))

    assert (in_time, swept) == ([], [waiting.id])
    assert (await get(session, waiting.id)).state is State.CANCELED


async def test_releasing_twice_is_releasing_once(http: httpx.AsyncClient) -> None:
    lease = await take(http, exclusive=["a"])

    first, second = await end(http, lease), await end(http, lease)

    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert first.json()["state"] == "completed"


async def test_a_lost_lease_is_neither_renewed_nor_released(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    lease = await take(http, exclusive=["a"], ttl_seconds=0.05)
    await asyncio.sleep(0.1)
    await app.state.pusher.sweep()

    answers = [await renew(http, lease), await end(http, lease)]

    assert [answer.status_code for answer in answers] == [409, 409]
    assert {answer.json()["type"] for answer in answers} == {"urn:lyceum:lease-lost"}
    assert (await take(http, BOB, exclusive=["a"]))["fence"] > lease["fence"]


async def test_others_leases_are_not_there_but_for_administrators(
    http: httpx.AsyncClient,
) -> None:
    root = as_user("root", staff=True)
    lease = await take(http, exclusive=["a"])
    unknown = {"id": str(uuid4()), "fence": 1}
    path = f"{PATH}/{lease['id']}"

    assert (await http.get(path, headers=BOB)).status_code == 404
    assert (await renew(http, lease, BOB)).status_code == 404
    assert (await end(http, lease, BOB)).status_code == 404
    assert (await end(http, unknown)).status_code == 404
    assert (await http.get(f"{PATH}/", headers=BOB)).json()["results"] == []
    assert (await http.get(path, headers=root)).json() == lease
    assert (await renew(http, lease, root)).status_code == 200
    assert (await end(http, lease, root)).status_code == 200


async def test_a_task_that_is_no_lease_is_not_served_as_one(
    http: httpx.AsyncClient, worker: Worker
) -> None:
    task_id = await worker.dispatch("noop", username="ada")

    assert (await http.get(f"{PATH}/{task_id}", headers=ADA)).status_code == 404
    answer = await ask(http, id=str(task_id), exclusive=["a"])
    assert answer.json()["type"] == "urn:lyceum:lease-exists"


async def test_the_list_has_pages_of_what_is_held_or_waited_for(
    http: httpx.AsyncClient,
) -> None:
    held = [await take(http, exclusive=[f"r{number}"]) for number in range(5)]
    await take(http, BOB, exclusive=["b"])
    await end(http, held[1])

    first = (await http.get(f"{PATH}/?limit=3", headers=ADA)).json()
    second = (await http.get(f"{PATH}/?limit=3&after={first['next']}", headers=ADA)).json()
    every = (await http.get(f"{PATH}/", headers=as_user("root", superuser=True))).json()

    assert first["results"] + second["results"] == [held[0], *held[2:]]
    assert second["next"] is None
    assert len(every["results"]) == 5
    for wrong in ("x", "WyJhIl0", "WzFlMzAwXQ", "Wy0xXQ"):
        answer = await http.get(f"{PATH}/?after={wrong}", headers=ADA)
        assert (answer.status_code, list(answer.json()["fields"])) == (400, ["after"])


async def test_a_lease_is_seen_and_canceled_as_a_task(
    http: httpx.AsyncClient, database: Database
) -> None:
    lease = await take(http, exclusive=["a"], purpose="nightly")
    waiter = asyncio.create_task(ask(http, BOB, exclusive=["a"], wait_seconds=10))
    await until(standing(database, 1))
    path = f"/pulp/api/v3/tasks/{lease['id']}/"

    task = (await http.get(path, headers=ADA)).json()
    assert (task["name"], task["state"]) == ("lease.nightly", "running")
    canceled = await http.patch(path, json={"state": "canceled"}, headers=ADA)

    assert canceled.json()["state"] == "canceled"
    assert (await waiter).status_code == 201
    assert (await renew(http, lease)).status_code == 409


async def test_a_waiting_lease_that_is_canceled_answers_its_caller(
    http: httpx.AsyncClient, database: Database
) -> None:
    await take(http, BOB, exclusive=["a"])
    waiter = asyncio.create_task(ask(http, exclusive=["a"], wait_seconds=20))
    await until(standing(database, 1))
    async with database.sessions.begin() as session:
        found = await leases.list_current(session, caller=Caller("ada"), after=0, limit=5)
        await runs.cancel(session, [found[0].id], now=utc_now())

    async with asyncio.timeout(5):
        answer = await waiter

    assert answer.json()["type"] == "urn:lyceum:lease-lost"


# Races, with real commits


async def test_twenty_takers_of_one_resource_never_overlap(
    http: httpx.AsyncClient, worker: Worker
) -> None:
    holding_now = 0
    held: list[int] = []

    async def one() -> None:
        nonlocal holding_now
        lease = await take_lease(worker.clients, exclusive=["a"], wait_seconds=60)
        assert holding_now == 0
        holding_now += 1
        assert lease.fence is not None
        held.append(lease.fence)
        await asyncio.sleep(0.005)
        holding_now -= 1
        await release_lease(worker.clients, lease.id, lease.fence)

    await asyncio.gather(*(one() for _ in range(20)))

    assert len(held) == 20
    assert held == sorted(held)


async def raced(
    database: Database, rival: Callable[[AsyncSession, Task], Awaitable[Any]]
) -> set[tuple[bool, State]]:
    """Whether the rival won against the expiry, and how the lease was left, over many rounds."""
    seen = set()
    for number in range(40):
        async with database.sessions.begin() as session:
            lease = await lease_in(session, exclusive=[f"r{number}"])
        moment = NOON + timedelta(seconds=30)

        async def expiring(moment: datetime = moment) -> list[UUID]:
            async with database.sessions.begin() as session:
                return await leases.expire(session, now=moment)

        async def other(lease: Task = lease) -> bool:
            try:
                async with database.sessions.begin() as session:
                    await rival(session, lease)
            except LeaseLost:
                return False
            return True

        calls = [expiring(), other()] if number % 2 else [other(), expiring()]
        results = await asyncio.gather(*calls)
        expired, won = results if number % 2 else results[::-1]
        assert bool(expired) is not won
        async with database.sessions.begin() as session:
            seen.add((bool(won), (await get(session, lease.id)).state))
            await runs.cancel(session, [lease.id], now=NOON)
    return seen


async def test_of_a_renewal_and_an_expiry_exactly_one_counts(
    clean: Servers, database: Database
) -> None:
    async def rival(session: AsyncSession, lease: Task) -> None:
        # The renewer's clock is a little behind: both may think that they are in time.
        await renewed(session, lease, now=NOON + timedelta(seconds=29.9))

    assert await raced(database, rival) <= {(True, State.RUNNING), (False, State.FAILED)}


async def test_of_a_release_and_an_expiry_exactly_one_counts(
    clean: Servers, database: Database
) -> None:
    async def rival(session: AsyncSession, lease: Task) -> None:
        assert lease.fence is not None
        await leases.release(session, lease.id, fence=lease.fence, caller=Caller("ada"), now=NOON)

    assert await raced(database, rival) <= {(True, State.COMPLETED), (False, State.FAILED)}


async def test_the_lease_of_a_killed_taker_goes_to_who_waits(
    clean: Servers, tmp_path: Path
) -> None:
    port = free_port()
    environment = {
        "LYCEUM_ORIGIN_URL": f"http://127.0.0.1:{port}",
        "DISPATCHER_SWEEP_SECONDS": "0.2",
    }
    with processes(tmp_path, environment) as started:
        started.web("web", "services.dispatcher.app:create_app", port)
        taker = started.start("taker", "-m", "tests.dispatcher.lease_taker", "a", "1")
        async with asyncio.timeout(20):
            while "held" not in started.log("taker"):
                assert taker.poll() is None, started.log("taker")
                await asyncio.sleep(0.05)
        headers = {"Authorization": f"Bearer {service_token(Settings())}"}
        async with httpx.AsyncClient(
            base_url=environment["LYCEUM_ORIGIN_URL"], headers=headers, timeout=20
        ) as http:
            # It renews by itself: longer than its time nobody else gets the resource.
            refused = await ask(http, {}, exclusive=["a"], wait_seconds=1.5)
            assert refused.status_code == 409
            await asyncio.to_thread(kill, taker)
            killed = time.monotonic()
            await take(http, {}, exclusive=["a"], wait_seconds=15)
        assert time.monotonic() - killed < 5


# Holding


async def test_a_held_lease_renews_itself_and_is_given_back(
    worker: Worker, http: httpx.AsyncClient
) -> None:
    async with holding(worker.clients, exclusive=["a"], ttl_seconds=0.4) as lease:
        await asyncio.sleep(1.0)
        assert (await ask(http, exclusive=["a"])).status_code == 409
        shown = await http.get(f"{PATH}/{lease.id}", headers=as_user("root", staff=True))
        assert shown.json()["state"] == "running"

    assert (await ask(http, exclusive=["a"])).status_code == 201


async def test_a_block_whose_lease_is_lost_is_stopped(
    worker: Worker, http: httpx.AsyncClient
) -> None:
    went_on = False
    with pytest.raises(LeaseLost):
        async with holding(worker.clients, exclusive=["a"], ttl_seconds=0.4) as lease:
            await worker.cancel(lease.id)
            await asyncio.sleep(5)
            went_on = True

    assert not went_on


async def test_a_block_that_cannot_be_renewed_is_stopped_before_the_lease_ends(
    app: FastAPI,
) -> None:
    away = False

    class Way(httpx.AsyncBaseTransport):
        """To the app, until it is cut."""

        inner = httpx.ASGITransport(app=app)

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if away:
                raise httpx.ConnectError("cut", request=request)
            return await self.inner.handle_async_request(request)

    clients = ServiceClients(app.state.settings, transport=Way())
    stopped = None
    with pytest.raises(LeaseLost):
        async with holding(clients, exclusive=["a"], ttl_seconds=1.0) as lease:
            away = True
            try:
                await asyncio.sleep(10)
            finally:
                stopped = utc_now()

    assert stopped is not None and lease.expires_at is not None
    assert stopped <= lease.expires_at


async def test_the_block_keeps_its_own_errors(worker: Worker) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with holding(worker.clients, exclusive=["a"]):
            raise TimeoutError("mine")
    async with holding(worker.clients, exclusive=["a"]):
        with pytest.raises(ResourcesBusy):
            async with holding(worker.clients, exclusive=["a"]):
                raise AssertionError("never held")


async def test_a_lease_whose_answer_was_lost_is_asked_for_again(app: FastAPI) -> None:
    lost: list[str] = []

    class Way(httpx.AsyncBaseTransport):
        """To the app; loses the first answer."""

        inner = httpx.ASGITransport(app=app)

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await self.inner.handle_async_request(request)
            if not lost:
                lost.append(orjson.loads(await response.aread())["id"])
                raise httpx.ReadError("lost", request=request)
            return response

    clients = ServiceClients(app.state.settings, transport=Way())

    lease = await take_lease(clients, exclusive=["a"])

    assert str(lease.id) == lost[0]
