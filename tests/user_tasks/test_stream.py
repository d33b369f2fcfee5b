"""Following tasks live: nothing missed, nothing twice. contract: user_tasks §10"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
import pytest_asyncio
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import event as sql_event
from sqlmodel import col, select

from services.user_tasks import events, statuses, stream
from services.user_tasks.events import Bounds, Scope
from services.user_tasks.models import Event
from services.user_tasks.schemas import ContainerSpec
from services.user_tasks.settings import Settings
from services.user_tasks.stream import HELD, Follower, Start, Stream, start
from shared.callers import service_token
from shared.database import Database, utc_now
from shared.testing import as_user, truncate_all
from tests.conftest import Servers
from tests.processes import Processes, free_port, processes
from tests.user_tasks.conftest import NOON, later, make_news, make_report, tell

FOLLOWERS, WRITERS, STEPS = 200, 4, 25


@pytest.mark.parametrize(
    ("position", "ended", "expected"),
    [
        (None, False, Start(90)),
        (70, False, Start(70)),
        (90, False, Start(90)),
        (49, False, Start(49)),
        (48, False, Start(90, reset=True)),
        (91, False, Start(90, reset=True)),
        (None, True, Start(0, live=False)),
        (70, True, Start(70, live=False)),
        (80, True, None),
        (90, True, None),
        (91, True, Start(90, reset=True, live=False)),
        (0, True, Start(90, reset=True, live=False)),
    ],
)
def test_where_a_connection_begins(
    position: int | None, ended: bool, expected: Start | None
) -> None:
    assert start(position, Bounds(oldest=50, newest=90, last=80), ended=ended) == expected


def test_what_ended_so_long_ago_that_nothing_is_kept_is_shown_as_it_stands() -> None:
    nothing = Bounds(oldest=50, newest=90, last=0)

    assert start(None, nothing, ended=True) == Start(0, reset=True, live=False)


def test_a_follower_that_is_too_slow_holds_a_bounded_part_and_ends() -> None:
    follower = Follower(Scope("user", "ines"), "ines")

    for ident in range(1, HELD + 100):
        follower.offer({"id": ident})

    assert follower.closed
    assert [event["id"] for event in follower.waiting] == list(range(1, HELD + 1))


def hub_of(app: FastAPI) -> Stream:
    hub: Stream = app.state.stream
    # Two hundred people from one test.
    hub._settings = hub._settings.model_copy(update={"streams_per_user": FOLLOWERS})
    return hub


async def seen_by_one(hub: Stream, task: UUID, leaves_after: int) -> list[dict[str, Any]]:
    """What one person sees who loses the connection once, and comes again with the last id."""
    seen: list[dict[str, Any]] = []
    for most in (leaves_after, None):
        if seen and seen[-1]["kind"] == "task.finished":
            break
        follower = hub.join(Scope("task", task), "ines")
        position = seen[-1]["id"] if seen else 0
        source = hub.follow(follower, position)
        try:
            async for one in source:
                if one is None:
                    continue
                seen.append(one)
                if one["kind"] == "task.finished" or len(seen) == most:
                    break
        finally:
            await source.aclose()
            hub.leave(follower)
    return seen


async def writes(sessions: Any, task: UUID) -> None:
    async with sessions.begin() as session:
        await tell(session, "In Progress", task_id=task, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        report = make_report(task_id=task, completed_steps=step, at=later(step))
        async with sessions.begin() as session:
            await statuses.record_progress(session, [report], now=NOON)
    async with sessions.begin() as session:
        await tell(session, "Succeeded", task_id=task, at=later(STEPS + 1))


async def test_two_hundred_followers_see_all_of_their_task_once_and_in_order(app: FastAPI) -> None:
    sessions, hub = app.state.database.sessions, hub_of(app)
    tasks = [uuid4() for _ in range(WRITERS)]

    following = [
        asyncio.create_task(seen_by_one(hub, tasks[n % WRITERS], 1 + n % STEPS))
        for n in range(FOLLOWERS)
    ]
    await asyncio.gather(*(writes(sessions, task) for task in tasks))
    seen = await asyncio.wait_for(asyncio.gather(*following), 60)

    async with sessions() as session:
        rows = await session.exec(select(Event.status_id, Event.id).order_by(col(Event.id)))
        kept: dict[UUID, list[int]] = {task: [] for task in tasks}
        for task, ident in rows:
            kept[task].append(ident)
    assert all(len(ids) == STEPS + 3 for ids in kept.values())
    for n, mine in enumerate(seen):
        assert [one["id"] for one in mine] == kept[tasks[n % WRITERS]]
    assert hub._by_scope == {}
    assert hub._by_user == {}


@pytest.mark.parametrize("followers", [1, FOLLOWERS])
async def test_the_database_works_no_more_for_many_followers_than_for_one(
    app: FastAPI, database: Database, followers: int
) -> None:
    hub, task = hub_of(app), uuid4()
    async with database.sessions.begin() as session:
        await tell(session, "Pending", task_id=task)
    following = [asyncio.create_task(seen_by_one(hub, task, FOLLOWERS)) for _ in range(followers)]
    while len(hub._by_scope.get(Scope("task", task), ())) < followers or any(
        one.position == 0 for one in hub._by_scope[Scope("task", task)]
    ):
        await asyncio.sleep(0.01)
    taken: list[float] = []
    engine = app.state.database.engine.sync_engine
    sql_event.listen(engine, "checkout", lambda *_: taken.append(time.monotonic()))

    begin = time.monotonic()
    await writes(database.sessions, task)
    await asyncio.wait_for(asyncio.gather(*following), 60)

    # The writers work elsewhere: whatever is taken here, the one reader takes, once a second, and
    # the outbox' own relay.
    seconds = time.monotonic() - begin
    assert 1 <= len(taken) <= 3 * (seconds + 2)


async def test_a_slow_follower_is_sent_away_and_misses_nothing(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HELD", 3)
    # A hub whose reader reads when the test says so.
    sessions, task = app.state.database.sessions, uuid4()
    hub = Stream(sessions, app.state.queue, app.state.settings)
    await hub.begin()
    slow = hub.join(Scope("task", task), "ines")
    source = hub.follow(slow, 0)
    async with sessions.begin() as session:
        await tell(session, "Pending", "In Progress", task_id=task)
    seen = [await anext(source)]

    await writes(sessions, task)
    await hub.read()
    seen += [one async for one in source]
    assert len(seen) < STEPS
    again = hub.join(Scope("task", task), "ines")
    seen += [one async for one in hub.follow(again, seen[-1]["id"], live=False)]

    async with sessions() as session:
        kept = await events.after(session, 0, most=100)
    assert [one["id"] for one in seen] == [row["id"] for row in kept]


async def test_a_database_that_was_set_back_sends_everybody_to_start_again(
    app: FastAPI, servers: Servers
) -> None:
    sessions = app.state.database.sessions
    hub = Stream(sessions, app.state.queue, app.state.settings)
    async with sessions.begin() as session:
        await tell(session, "Pending", "In Progress")
    await hub.begin()
    follower = hub.join(Scope("user", "ines"), "ines")

    await truncate_all(servers.urls["user_tasks"])
    await hub.read()

    assert follower.closed
    again = hub.join(Scope("user", "ines"), "ines")
    async with sessions.begin() as session:
        await tell(session, "Pending")
    await hub.read()
    assert [one["kind"] for one in again.waiting] == ["task.created"]


# From here on: a real web process, and notes as other services send them.


@dataclass
class Web:
    """A real process of user_tasks."""

    http: httpx.AsyncClient
    started: Processes
    process: Any

    async def note(self, name: str, *payloads: BaseModel) -> None:
        notes = [
            {"id": n, "name": name, "payload": payload.model_dump(mode="json")}
            for n, payload in enumerate(payloads)
        ]
        headers = {
            "Authorization": f"JWT {service_token(Settings())}",
            "Content-Type": "application/json",
        }
        body = orjson.dumps({"notes": notes})
        answer = await self.http.post("/user_tasks/notes", content=body, headers=headers)
        assert answer.json() == {"refused": {}}

    async def tell(self, *states: str, **overrides: Any) -> None:
        for second, state in enumerate(states):
            news = make_news(**{"state": state, "at": later(second), **overrides})
            await self.note("on_lifecycle", news)


SETTINGS = {"USER_TASKS_STREAM_HEARTBEAT_SECONDS": "0.3", "USER_TASKS_STREAMS_PER_USER": "3"}


@contextlib.contextmanager
def web_process(folder: Path, **settings: str) -> Iterator[tuple[str, Processes, Any]]:
    with processes(folder, SETTINGS | settings) as started:
        port = free_port()
        process = started.web("user_tasks", "services.user_tasks.app:create_app", port)
        yield f"http://127.0.0.1:{port}", started, process


@pytest_asyncio.fixture(scope="module")
async def web(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Web]:
    with web_process(tmp_path_factory.mktemp("web")) as (url, started, process):
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
            yield Web(http, started, process)
    await truncate_all(servers.urls["user_tasks"])


@contextlib.asynccontextmanager
async def opened(
    web: Web, path: str, user: str, last: int | str | None = None
) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[dict[str, Any]]]]:
    headers = as_user(user) | ({} if last is None else {"Last-Event-ID": str(last)})
    async with web.http.stream("GET", f"/api/tasks/v1/{path}", headers=headers) as answer:
        yield answer, blocks(answer)


async def blocks(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The parts of a stream as they come: id, event, data, retry or comment."""
    block: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        if not line:
            yield block
            block = {}
            continue
        name, _, value = line.partition(":")
        block[name or "comment"] = value.strip()
        if name == "data":
            block["data"] = orjson.loads(value)


async def events_in(source: AsyncIterator[dict[str, Any]], *, most: int = 1000) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(15):
        async for block in source:
            if "event" in block:
                found.append(block)
                if len(found) == most:
                    break
    return found


async def test_a_task_is_followed_to_its_end_and_not_beyond(web: Web) -> None:
    task = uuid4()
    await web.tell("Pending", task_id=task)
    path = f"tasks/{task}/events/"

    async with opened(web, path, "ines") as (answer, source):
        hello = await anext(source)
        await web.tell("In Progress", task_id=task)
        report = make_report(task_id=task, completed_steps=2, stage="Packing", at=later(2))
        await web.note("on_progress", report)
        await web.tell("Succeeded", task_id=task, at=later(5))
        seen = await events_in(source)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert (hello["retry"], hello["id"].isdigit()) == ("2000", True)
    assert [one["event"] for one in seen] == [
        "task.started", "task.stage", "task.progress", "task.finished",
    ]  # fmt: skip
    assert {one["data"]["task"] for one in seen} == {str(task)}
    assert seen[2]["data"]["completed_steps"] == 2

    async with opened(web, path, "ines", last=seen[1]["id"]) as (_, source):
        assert [one["id"] for one in await events_in(source)] == [one["id"] for one in seen[2:]]
    async with opened(web, path, "ines", last=seen[-1]["id"]) as (answer, _):
        assert answer.status_code == 204
    async with opened(web, path, "ines") as (_, source):
        kinds = [one["event"] for one in await events_in(source)]
        assert (kinds[0], kinds[-1]) == ("task.created", "task.finished")


async def test_mine_has_all_my_tasks_and_nobody_elses(web: Web) -> None:
    mine, others = uuid4(), uuid4()

    async with opened(web, "events/", "mia") as (_, source):
        await anext(source)
        await web.tell("Pending", task_id=others, user="olga")
        await web.tell("Pending", "In Progress", task_id=mine, user="mia")
        seen = await events_in(source, most=2)

    assert [one["data"]["task"] for one in seen] == [str(mine)] * 2


async def test_a_tree_is_followed_until_everything_in_it_has_ended(web: Web) -> None:
    group = ContainerSpec(id=uuid4(), kind="group", members=2, total_steps=2)
    one, two = uuid4(), uuid4()
    for task in (one, two):
        await web.tell("Pending", task_id=task, containers=[group])

    async with opened(web, f"tasks/{one}/tree/events/", "ines") as (_, source):
        await anext(source)
        await web.tell("In Progress", "Failed", task_id=one, containers=[group])
        await web.tell("In Progress", "Succeeded", task_id=two, containers=[group])
        seen = await events_in(source)

    ended = [one["data"]["task"] for one in seen if one["event"] == "task.finished"]
    assert sorted(ended) == sorted([str(one), str(two), str(group.id)])
    assert ended[-1] == str(two)


async def test_a_quiet_stream_shows_that_it_lives(web: Web) -> None:
    async with opened(web, "events/", "quentin") as (_, source):
        await anext(source)
        async with asyncio.timeout(10):
            assert "comment" in await anext(source)
            assert "comment" in await anext(source)


async def test_whose_last_event_is_forgotten_gets_how_things_stand(
    web: Web, database: Database
) -> None:
    task = uuid4()
    await web.tell("Pending", "In Progress", task_id=task, user="rita")
    async with database.sessions.begin() as session:
        ids = select(Event.id).where(Event.status_id == task).order_by(col(Event.id))
        first = (await session.exec(ids)).first()
        later_than_all = utc_now() + timedelta(days=2)
        assert await events.prune(session, now=later_than_all, keep=timedelta(hours=1)) > 0

    async with opened(web, "events/", "rita", last=(first or 1) - 1) as (_, source):
        reset = (await events_in(source, most=1))[0]
        await web.tell("Succeeded", task_id=task, user="rita", at=later(9))
        after = (await events_in(source, most=1))[0]

    assert reset["event"] == "reset"
    assert [one["uuid"] for one in reset["data"]["tasks"]] == [str(task)]
    assert reset["data"]["tasks"][0]["base_state"] == "In Progress"
    assert (after["event"], int(after["id"]) > int(reset["id"])) == ("task.finished", True)


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "٣", str(2**63), "9" * 30])
async def test_an_id_that_is_none_is_refused_by_name(web: Web, last: str) -> None:
    given: list[dict[str, Any]] = [{"params": {"after": last}}]
    if last.isascii():
        given.append({"headers": {"Last-Event-ID": last}})
    for one in given:
        headers = as_user("ines") | one.pop("headers", {})
        answer = await web.http.get("/api/tasks/v1/events/", headers=headers, **one)
        assert answer.status_code in (400, 422)
        assert "Last-Event-ID" in answer.text or "after" in answer.text


@pytest.mark.parametrize("path", ["events/", "tree/events/"])
async def test_others_tasks_cannot_be_followed(web: Web, path: str) -> None:
    task = uuid4()
    await web.tell("Pending", task_id=task)
    address = f"/api/tasks/v1/tasks/{task}/{path}"

    assert (await web.http.get(address)).status_code == 401
    assert (await web.http.get(address, headers=as_user("olga"))).status_code == 404
    unknown = f"/api/tasks/v1/tasks/{uuid4()}/{path}"
    assert (await web.http.get(unknown, headers=as_user("ines"))).status_code == 404


async def test_a_watcher_follows_until_removed(web: Web) -> None:
    task, owner = uuid4(), as_user("ines")
    watch = f"/api/tasks/v1/tasks/{task}/watchers/walter/"
    await web.tell("Pending", task_id=task)
    assert (await web.http.put(watch, headers=owner)).status_code == 204

    async with opened(web, f"tasks/{task}/events/", "walter") as (answer, source):
        await anext(source)
        await web.tell("In Progress", task_id=task)
        assert [one["event"] for one in await events_in(source, most=1)] == ["task.started"]

        assert (await web.http.delete(watch, headers=owner)).status_code == 204
        assert await events_in(source) == []

    assert answer.status_code == 200
    async with opened(web, f"tasks/{task}/events/", "walter") as (answer, _):
        assert answer.status_code == 404


async def test_one_person_has_a_bounded_number_of_streams_and_gets_places_back(web: Web) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # Kept: a source that nobody holds closes its connection.
        sources = [
            (await stack.enter_async_context(opened(web, "events/", "greta")))[1] for _ in range(3)
        ]
        for source in sources:
            await anext(source)
        async with opened(web, "events/", "greta") as (answer, _):
            assert answer.status_code == 429
        async with opened(web, "events/", "hans") as (answer, _):
            assert answer.status_code == 200

    async def allowed() -> bool:
        async with opened(web, "events/", "greta") as (answer, _):
            return answer.status_code == 200

    async with asyncio.timeout(10):
        while not await allowed():
            await asyncio.sleep(0.05)


async def test_a_stream_ends_after_its_time_and_goes_on_with_the_last_id(
    servers: Servers, tmp_path: Path
) -> None:
    with web_process(tmp_path, USER_TASKS_STREAM_SECONDS="0.5") as (url, started, process):
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
            web = Web(http, started, process)
            async with opened(web, "events/", "udo") as (_, source):
                hello = await anext(source)
                assert await events_in(source) == []
            await web.tell("Pending", task_id=uuid4(), user="udo")
            async with opened(web, "events/", "udo", last=hello["id"]) as (_, source):
                assert [one["event"] for one in await events_in(source)] == ["task.created"]


async def test_a_process_asked_to_stop_ends_its_streams_at_once(
    servers: Servers, tmp_path: Path
) -> None:
    with web_process(tmp_path, USER_TASKS_STREAM_HEARTBEAT_SECONDS="60") as (url, started, process):
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
            web = Web(http, started, process)
            async with contextlib.AsyncExitStack() as stack:
                open_ones = [
                    (await stack.enter_async_context(opened(web, "events/", f"user{n}")))[1]
                    for n in range(20)
                ]
                for source in open_ones:
                    await anext(source)

                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                for source in open_ones:
                    assert await events_in(source) == []
                await asyncio.to_thread(process.wait, 15)

        assert time.monotonic() - began < 8
        assert "Traceback" not in started.log("user_tasks")


async def test_what_another_process_commits_comes_without_waiting_for_the_poll(
    web: Web, tmp_path: Path
) -> None:
    with web_process(tmp_path) as (url, started, process):
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
            elsewhere = Web(http, started, process)
            waits = []
            async with opened(elsewhere, "events/", "pia") as (_, source):
                await anext(source)
                for _ in range(5):
                    begin = time.monotonic()
                    await web.tell("Pending", task_id=uuid4(), user="pia")
                    await events_in(source, most=1)
                    waits.append(time.monotonic() - begin)

    # The poll comes every second: five in a row are not quicker than half of that by chance.
    assert sorted(waits)[2] < 0.5
