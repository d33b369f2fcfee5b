"""How much work waits for workers: what is counted, and what counting costs."""

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import gauges, measuring, runs, workers
from services.dispatcher.models import Measurement
from services.dispatcher.schemas import Heartbeat, QueueNumbers
from shared.database import Database, driver, utc_now
from tests.conftest import Servers
from tests.dispatcher.conftest import NOON, accept, finish, make_request, register, start

TTL = timedelta(seconds=20)
PERIOD = timedelta(seconds=10)
LATER = NOON + timedelta(seconds=6)


async def measured(session: AsyncSession, **values: Any) -> dict[str, QueueNumbers]:
    found = await measuring.measure(session, **{"now": LATER, "ttl": TTL} | values)
    return {one.queue: one for one in found}


async def libraries(session: AsyncSession, **values: Any) -> QueueNumbers:
    return (await measured(session, **values))["libraries"]


async def more_workers(session: AsyncSession, **values: Any) -> None:
    report = Heartbeat.model_validate({"name": "w", "queue": "libraries", "first": True} | values)
    await workers.heartbeat(session, uuid4(), report, now=NOON)


# T-19: what could run side by side under the locks


async def test_behind_an_exclusive_holder_nothing_could_run(session: AsyncSession) -> None:
    holder = await accept(session, exclusive=["a"])
    await start(session, holder)
    for _ in range(5):
        await accept(session, exclusive=["a"])
        await accept(session, shared=["a"])

    found = await libraries(session)

    assert (found.parallel, found.ready, found.wanting) == (1, 0, 0)


async def test_each_lane_could_run_one(session: AsyncSession) -> None:
    for lane in "ab":
        for _ in range(5):
            await accept(session, exclusive=[lane])

    assert (await libraries(session)).parallel == 2


async def test_readers_could_all_run(session: AsyncSession) -> None:
    for _ in range(5):
        await accept(session, shared=["a"])

    assert (await libraries(session)).parallel == 5


async def test_of_an_overlapping_chain_only_the_first_could_run(session: AsyncSession) -> None:
    for names in (["a", "b"], ["b", "c"], ["c"]):
        await accept(session, exclusive=names)

    assert (await libraries(session)).parallel == 1


async def test_what_became_ready_less_than_5_seconds_ago_is_not_counted(
    session: AsyncSession,
) -> None:
    holder = await accept(session, exclusive=["a"])
    fence = await start(session, holder)
    assert fence is not None
    await accept(session, exclusive=["a"])
    await finish(session, holder, fence)

    early = await libraries(session, now=NOON + timedelta(seconds=4.9))
    late = await libraries(session, now=NOON + timedelta(seconds=5))

    assert (early.parallel, early.ready, early.longest_ready_seconds) == (0, 0, 0.0)
    assert (late.parallel, late.ready, late.longest_ready_seconds) == (1, 1, 5.0)


# Scaling: what more workers would help


async def test_free_slots_are_subtracted_from_what_is_ready(session: AsyncSession) -> None:
    await more_workers(session, concurrency=3)
    await start(session, await accept(session))
    for _ in range(5):
        await accept(session)

    found = await libraries(session)

    assert (found.workers, found.slots, found.running) == (2, 4, 1)
    assert (found.ready, found.wanting) == (5, 2)


async def test_tasks_that_no_workers_versions_meet_ask_for_no_more_of_the_same_workers(
    session: AsyncSession,
) -> None:
    for _ in range(3):
        await accept(session, versions={"libraries": "2.0"})
    await accept(session)
    await start(session, await accept(session))

    found = await libraries(session)

    assert (found.ready, found.unmet, found.wanting) == (4, 3, 1)


async def test_without_any_worker_all_that_is_ready_wants_one(session: AsyncSession) -> None:
    for _ in range(3):
        await accept(session, queue="credentials", versions={"credentials": "2.0"})

    found = (await measured(session))["credentials"]

    assert (found.workers, found.slots, found.unmet, found.wanting) == (0, 0, 0, 3)


async def test_silent_workers_are_not_online(session: AsyncSession) -> None:
    await accept(session)

    found = await libraries(session, now=NOON + TTL)

    assert (found.workers, found.slots, found.wanting) == (0, 0, 1)


async def test_web_processes_run_tasks_but_are_no_workers(session: AsyncSession) -> None:
    web = uuid4()
    report = Heartbeat(name="a", queue="libraries", app_type="api", concurrency=9, first=True)
    await workers.heartbeat(session, web, report, now=NOON)
    await start(session, await accept(session), worker=web)

    found = await libraries(session)

    assert (found.workers, found.slots, found.running) == (1, 1, 1)


async def test_leases_and_pauses_want_no_worker(session: AsyncSession) -> None:
    await accept(session, lease_seconds=60)
    task = await accept(session)
    fence = await start(session, task)
    assert fence is not None
    await finish(session, task, fence, "retry", retry_seconds=60)

    found = await libraries(session)

    assert (found.ready, found.running, found.parallel) == (0, 0, 0)


async def test_of_a_long_line_only_the_beginning_is_counted(
    session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "MOST_READY", 10)
    await runs.accept(session, [make_request() for _ in range(25)], now=NOON)

    assert (await libraries(session)).ready == 10


async def test_what_is_blocked_or_ended_costs_nothing(session: AsyncSession) -> None:
    await start(session, await accept(session, exclusive=["a"]))
    for _ in range(3):
        await runs.accept(session, [make_request(exclusive=["a"]) for _ in range(1000)], now=NOON)
    await runs.accept(session, [make_request() for _ in range(50)], now=NOON)
    connection = await driver(session)
    await connection.execute("analyze task")
    await connection.execute("set local enable_seqscan = off")

    explain = f"explain (analyze, format json) {measuring.MEASURE}"
    found = await connection.fetchval(explain, NOON, NOON, 10_000)
    plan = json.loads(found) if isinstance(found, str) else found

    scans = [node for node in _nodes(plan[0]["Plan"]) if node.get("Relation Name") == "task"]
    assert scans
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    assert {node["Index Name"] for node in scans} <= {"task_ready", "task_held"}
    looked_at = sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in scans
    )
    assert looked_at < 60


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


# One measures for all


async def test_within_a_period_processes_measure_once_and_show_the_same(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    now = NOON + timedelta(hours=1)

    async def one(number: int) -> tuple[Any, list[str]]:
        async with sessions.begin() as session:
            at, found = await measuring.current(
                session, now=now + timedelta(milliseconds=number), period=PERIOD, ttl=TTL
            )
        return at, [numbers.queue for numbers in found]

    async with sessions.begin() as session:
        await accept(session)
    answers = await asyncio.gather(*(one(number) for number in range(8)))

    assert {tuple(queues) for _, queues in answers} == {("libraries",)}
    assert len({at for at, _ in answers}) == 1
    later = await one(10_000)
    assert later[0] > answers[0][0]


async def test_a_wrong_clock_stops_no_measuring(session: AsyncSession) -> None:
    session.add(Measurement(measured_at=NOON + timedelta(days=365), numbers=[]))
    await session.flush()

    at, _ = await measuring.current(session, now=NOON, period=PERIOD, ttl=TTL)

    assert at == NOON


async def test_the_metrics_page_shows_each_queue(app: FastAPI, http: httpx.AsyncClient) -> None:
    sessions, settings = app.state.database.sessions, app.state.settings
    async with sessions.begin() as session:
        await accept(session)
    now = NOON + timedelta(days=1)

    await gauges.refresh(sessions, settings, now=now)
    page = (await http.get("/dispatcher/metrics")).text

    assert 'lyceum_dispatcher_tasks_ready{queue="libraries"} 1.0' in page
    assert 'lyceum_dispatcher_tasks_wanting_workers{queue="libraries"} 1.0' in page
    waited = (now - NOON).total_seconds()
    assert f'lyceum_dispatcher_longest_ready_seconds{{queue="libraries"}} {waited}' in page


async def test_queues_without_numbers_are_not_shown(http: httpx.AsyncClient) -> None:
    gauges.show([QueueNumbers(queue="x", **dict.fromkeys(_NUMBERS, 1))])
    assert '{queue="x"}' in (await http.get("/dispatcher/metrics")).text

    gauges.show([])

    assert '{queue="x"}' not in (await http.get("/dispatcher/metrics")).text


async def test_after_an_outage_measuring_goes_on_and_meanwhile_nothing_is_shown(
    app: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = asyncio.Event()
    measure = measuring.current

    async def failing(*args: Any, **kwargs: Any) -> Any:
        if not back.is_set():
            raise ConnectionError("away")
        return await measure(*args, **kwargs)

    async with app.state.database.sessions.begin() as session:
        await register(session, now=utc_now())
    monkeypatch.setattr(measuring, "current", failing)
    gauges.show([QueueNumbers(queue="x", **dict.fromkeys(_NUMBERS, 1))])
    app.state.settings.measure_seconds = 0.1
    async with gauges.measured(app), asyncio.timeout(10):
        while '{queue="x"}' in (await http.get("/dispatcher/metrics")).text:
            await asyncio.sleep(0.01)
        back.set()
        while '{queue="libraries"}' not in (await http.get("/dispatcher/metrics")).text:
            await asyncio.sleep(0.01)


_NUMBERS = set(QueueNumbers.model_fields) - {"queue"}
