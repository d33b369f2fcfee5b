"""The live stream. contract: user_tasks §10, §10.2"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, events, statuses, stream
from services.user_tasks.events import Scope
from services.user_tasks.schemas import ContainerSpec
from services.user_tasks.stream import Stream
from shared.database import Database
from shared.testing import as_user
from tests.user_tasks.conftest import TASK, later, make_artifact, make_news, make_report, tell

OWNER, BOB = as_user("ines"), as_user("bob")
URL = f"/api/tasks/v1/tasks/{TASK}/events/"


async def kinds(session: AsyncSession, scope: Scope | None = None) -> list[str]:
    return [row["kind"] for row in await events.after(session, 0, most=1000, scope=scope)]


async def test_a_life_leaves_its_events(session: AsyncSession) -> None:
    await tell(session, "Pending", "In Progress")
    report = make_report(completed_steps=1, stage="Zipping", at=later(2))
    await statuses.record_progress(session, [report], now=later(2))
    await artifacts.record(session, [make_artifact()], now=later(3))
    await tell(session, "Succeeded", at=later(4))

    assert await kinds(session) == [
        "task.created", "task.started", "task.stage", "task.progress", "task.artifact",
        "task.finished",
    ]  # fmt: skip


async def test_the_last_event_is_there_exactly_once_for_every_row(session: AsyncSession) -> None:
    group = ContainerSpec(id=uuid4(), kind="group", members=2, total_steps=2)
    pieces = [
        make_news(task_id=uuid4(), state=state, at=later(second), containers=[group])
        for state, second in (("Succeeded", 1), ("Failed", 2))
    ]
    for _ in range(2):
        for piece in pieces:
            await statuses.record_lifecycle(session, [piece], now=later(9))

    rows = await events.after(session, 0, most=100)
    finished = [row["status_id"] for row in rows if row["kind"] == "task.finished"]
    assert sorted(finished) == sorted([*(piece.task_id for piece in pieces), group.id])


async def test_repeated_and_late_news_leave_nothing(session: AsyncSession) -> None:
    await tell(session, "Pending", "In Progress", "Succeeded")
    before = await kinds(session)

    await tell(session, "Pending", "In Progress", "Succeeded", "Failed")

    assert await kinds(session) == before


async def test_events_are_found_by_task_tree_and_user(session: AsyncSession) -> None:
    group = ContainerSpec(id=uuid4(), kind="group", members=1)
    one = uuid4()
    await statuses.record_lifecycle(
        session, [make_news(task_id=one, containers=[group], user="ines")], now=later(0)
    )
    await tell(session, "Pending", user="bob")

    assert len(await kinds(session, Scope("task", one))) == 1
    assert len(await kinds(session, Scope("tree", group.id))) == 2
    assert len(await kinds(session, Scope("user", "ines"))) == 2
    assert len(await kinds(session, Scope("user", "bob"))) == 1


async def test_old_events_are_forgotten(session: AsyncSession) -> None:
    await tell(session, "Pending")

    assert await events.prune(session, now=later(60), keep=timedelta(hours=1)) == 0
    assert await events.prune(session, now=later(3601), keep=timedelta(hours=1)) == 1


# Many at once


class Collected:
    """One follower of one task over connections that break."""

    def __init__(self, stream: Stream, task: UUID) -> None:
        self.stream, self.task = stream, task
        self.seen: list[int] = []
        self.steps: list[int] = []

    async def follow(self, *, breaks_after: int | None = None) -> None:
        position = self.seen[-1] if self.seen else 0
        source = self.stream.follow(Scope("task", self.task), position)
        async with contextlib.aclosing(source):
            async for event in source:
                if event is None or event["kind"] == "reset":
                    continue
                self.seen.append(event["id"])
                self.steps.append(event["payload"]["completed_steps"])
                if event["kind"] == "task.finished":
                    return
                if breaks_after is not None and len(self.seen) >= breaks_after:
                    return


async def test_every_follower_sees_everything_once_and_in_order(app: FastAPI) -> None:
    tasks = [uuid4() for _ in range(10)]
    sessions = app.state.database.sessions
    steps = 20

    async def write(mine: list[UUID]) -> None:
        for second in range(1, steps + 1):
            reports = [
                make_report(
                    task_id=task, completed_steps=second, total_steps=steps, at=later(second)
                )
                for task in mine
            ]
            async with sessions.begin() as session:
                await statuses.record_progress(session, reports, now=later(second))

    async with sessions.begin() as session:
        await statuses.record_lifecycle(
            session,
            [make_news(task_id=task, state="In Progress", total_steps=steps) for task in tasks],
            now=later(0),
        )
    followers = [Collected(app.state.stream, tasks[place % 10]) for place in range(200)]
    reads, queries = app.state.stream.reads, _Count(app)

    async def follow(place: int, follower: Collected) -> None:
        if place % 3 == 0:
            await follower.follow(breaks_after=5)
        await follower.follow()

    following = [
        asyncio.create_task(follow(place, follower)) for place, follower in enumerate(followers)
    ]
    with queries:
        await asyncio.gather(*(write(tasks[start::4]) for start in range(4)))
        async with sessions.begin() as session:
            ends = [make_news(task_id=task, state="Succeeded", at=later(99)) for task in tasks]
            await statuses.record_lifecycle(session, ends, now=later(99))
        async with asyncio.timeout(60):
            await asyncio.gather(*following)

    for follower in followers:
        assert follower.seen == sorted(set(follower.seen))
        assert [step for step in follower.steps if step] == [*range(1, steps + 1), steps]
    # What is written, once over; not once for each follower.
    assert app.state.stream.reads - reads <= steps * 4 + 40


class _Count:
    def __init__(self, app: FastAPI) -> None:
        self._engine, self.count = app.state.database.engine.sync_engine, 0

    def _one(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> None:
        sqlalchemy_event.listen(self._engine, "before_cursor_execute", self._one)

    def __exit__(self, *_: object) -> None:
        sqlalchemy_event.remove(self._engine, "before_cursor_execute", self._one)


async def test_another_process_hears_of_it_soon(app: FastAPI, database: Database) -> None:
    """What is written elsewhere, with no wake-up at all, is read by the next look."""
    follower = Collected(app.state.stream, TASK)
    following = asyncio.create_task(follower.follow())
    async with database.sessions.begin() as session:
        await tell(session, "Pending", "In Progress", "Succeeded")

    async with asyncio.timeout(10):
        await following

    assert len(follower.seen) == 3


async def test_a_slow_follower_is_sent_away_and_misses_nothing(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HELD", 3)
    sessions = app.state.database.sessions
    async with sessions.begin() as session:
        await tell(session, "Pending", "In Progress", total_steps=50)
    source = app.state.stream.follow(Scope("task", TASK), 0)
    seen = [(await anext(source))["id"], (await anext(source))["id"]]

    for second in range(3, 30):
        async with sessions.begin() as session:
            report = make_report(completed_steps=second, at=later(second))
            await statuses.record_progress(session, [report], now=later(second))
    await app.state.stream.read()
    async with asyncio.timeout(10):
        async for one in source:
            seen.append(one["id"])
        async for one in app.state.stream.follow(Scope("task", TASK), seen[-1], live=False):
            seen.append(one["id"])

    async with sessions() as session:
        rows = await events.after(session, 0, most=100)
    assert seen == [row["id"] for row in rows]


# Over HTTP


@contextlib.asynccontextmanager
async def opened(http: httpx.AsyncClient, url: str, **headers: str) -> AsyncIterator[list[str]]:
    """The lines of a stream that ends."""
    async with asyncio.timeout(20):
        answer = await http.get(url, headers=OWNER | headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer.text.splitlines()


async def test_a_task_that_has_ended_is_told_whole_and_ends(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Pending", "In Progress", "Succeeded", user="ines")

    async with opened(http, URL) as lines:
        told = [line for line in lines if line.startswith("event: ")]
        ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    assert lines[0] == "retry: 2000"
    assert told == ["event: task.created", "event: task.started", "event: task.finished"]

    async with opened(http, URL, **{"Last-Event-ID": ids[1]}) as rest:
        assert [line for line in rest if line.startswith("id: ")] == [f"id: {ids[2]}"]


async def test_a_running_task_is_followed_to_its_end(app: FastAPI, http: httpx.AsyncClient) -> None:
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Pending", "In Progress", user="ines")

    async def ends() -> None:
        while not app.state.stream.per_user:
            await asyncio.sleep(0.01)
        async with app.state.database.sessions.begin() as session:
            await tell(session, "Succeeded", at=later(9), user="ines")

    ending = asyncio.create_task(ends())
    async with opened(http, f"{URL}?after=0") as lines:
        assert "event: task.finished" in lines
    await ending
    assert not app.state.stream.per_user


async def test_a_position_that_is_forgotten_begins_with_a_reset(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    sessions = app.state.database.sessions
    async with sessions.begin() as session:
        await tell(session, "Pending", "In Progress", "Succeeded", user="ines")
        await session.exec(text("delete from event where kind <> 'task.finished'"))  # type: ignore[call-overload]

    async with opened(http, URL, **{"Last-Event-ID": "0"}) as lines:
        assert "event: reset" in lines
    async with opened(http, URL, **{"Last-Event-ID": "999999"}) as lines:
        assert "event: reset" in lines


@pytest.mark.parametrize("url", [URL, URL.replace("events/", "tree/events/")])
async def test_only_those_who_may_see_a_task_may_follow_it(
    app: FastAPI, http: httpx.AsyncClient, url: str
) -> None:
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Succeeded", user="ines")

    assert (await http.get(url, headers=BOB)).status_code == 404
    assert (await http.get(url)).status_code == 401
    await http.put(f"/api/tasks/v1/tasks/{TASK}/watchers/bob/", headers=OWNER)
    assert (await http.get(url, headers=BOB)).status_code == 200


@pytest.mark.parametrize("position", ["-1", "x", "9" * 19, "1.5"])
async def test_a_bad_position_is_refused(
    app: FastAPI, http: httpx.AsyncClient, position: str
) -> None:
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Succeeded", user="ines")

    answer = await http.get(URL, headers=OWNER | {"Last-Event-ID": position})

    assert answer.status_code in (400, 422)
    assert "Last-Event-ID" in answer.text


async def test_one_person_has_a_limited_number_of_streams(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    app.state.stream.per_user["ines"] = app.state.settings.streams_per_user

    answer = await http.get("/api/tasks/v1/events/", headers=OWNER)

    assert answer.status_code == 429
