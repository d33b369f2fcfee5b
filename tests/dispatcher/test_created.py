"""What tasks made, and whether it still exists. contract: dispatcher §1.4, DI-61, T-24"""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client, created, runs
from services.dispatcher.jobs import NOTES
from services.dispatcher.models import CreatedResource, GoneResource
from services.dispatcher.schemas import Created, Gone
from shared import outbox
from shared.database import Database, utc_now
from shared.testing import as_user
from tests.conftest import Servers
from tests.dispatcher.conftest import NOON, accept

SECOND = timedelta(seconds=1)
BIRDS = "lib:Fjord:BIRDS"


def made(task: UUID, prn: str = BIRDS, at: datetime = NOON) -> Created:
    return Created(task_id=task, prn=prn, href=f"/{prn}/", at=at)


async def shown(session: AsyncSession) -> list[tuple[str, bool]]:
    rows = await session.exec(
        select(CreatedResource)
        .order_by(col(CreatedResource.id))
        .execution_options(populate_existing=True)
    )
    return [(row.prn, row.gone) for row in rows]


async def test_a_thing_is_listed_once_for_its_task_in_the_order_of_making(
    session: AsyncSession,
) -> None:
    task = await accept(session)

    await created.add(session, [made(task, "b"), made(task, "a"), made(task, "b")])
    await created.add(session, [made(task, "b"), made(uuid4(), "c")])

    assert await shown(session) == [("b", False), ("a", False)]


async def test_a_thing_that_is_gone_is_marked_for_every_task_that_made_it(
    session: AsyncSession,
) -> None:
    one, two = await accept(session), await accept(session)
    await created.add(session, [made(one), made(two), made(one, "other")])

    for _ in range(2):
        await created.gone(session, [Gone(prn=BIRDS, at=NOON + SECOND)], now=NOON)

    assert await shown(session) == [(BIRDS, True), (BIRDS, True), ("other", False)]


async def test_the_news_of_the_end_may_come_before_that_of_the_beginning(
    session: AsyncSession,
) -> None:
    task = await accept(session)

    await created.gone(session, [Gone(prn=BIRDS, at=NOON + SECOND)], now=NOON)
    await created.add(session, [made(task)])

    assert await shown(session) == [(BIRDS, True)]


async def test_a_thing_made_anew_under_the_same_name_is_another_one(session: AsyncSession) -> None:
    one, two = await accept(session), await accept(session)
    end = Gone(prn=BIRDS, at=NOON + SECOND)
    await created.add(session, [made(one)])
    await created.gone(session, [end], now=NOON)

    await created.add(session, [made(two, at=NOON + 2 * SECOND)])
    await created.gone(session, [end], now=NOON)

    assert await shown(session) == [(BIRDS, True), (BIRDS, False)]


async def test_ends_are_remembered_for_a_week(session: AsyncSession) -> None:
    await created.gone(session, [Gone(prn="old", at=NOON)], now=NOON)

    await created.gone(session, [Gone(prn="new", at=NOON)], now=NOON + timedelta(days=8))

    assert [row.prn for row in await session.exec(select(GoneResource))] == ["new"]


async def test_a_beginning_and_an_end_at_the_same_moment_come_out_the_same(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        task = await accept(session)

    async def begin(prn: str) -> None:
        async with sessions.begin() as session:
            await created.add(session, [made(task, prn)])

    async def cease(prn: str) -> None:
        async with sessions.begin() as session:
            await created.gone(session, [Gone(prn=prn, at=NOON + SECOND)], now=NOON)

    prns = [f"lib:{number}" for number in range(15)]
    await asyncio.gather(*(change(prn) for prn in prns for change in (begin, cease)))

    async with sessions() as session:
        assert sorted(await shown(session)) == sorted((prn, True) for prn in prns)


async def test_a_note_that_comes_while_its_task_is_removed_is_dropped(
    clean: Servers, database: Database
) -> None:
    sessions = database.sessions
    async with sessions.begin() as session:
        tasks = [await accept(session) for _ in range(10)]
        await runs.cancel(session, tasks, now=NOON)

    async def remove(task: UUID) -> None:
        async with sessions.begin() as session:
            assert await runs.delete_finished(session, task)

    async def note(task: UUID) -> None:
        async with sessions.begin() as session:
            await created.add(session, [made(task)])

    await asyncio.gather(*(step(task) for task in tasks for step in (remove, note)))

    async with sessions() as session:
        assert await shown(session) == []


async def test_notes_reach_the_task_as_clients_see_it(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    async with app.state.database.sessions.begin() as session:
        task = await accept(session, username="ada")
        await client.created(session, task, "lib:A", "/libraries/A/")
        await client.created(session, task, "lib:B", "/libraries/B/")
        await client.gone(session, "lib:A")
        for receiver, name, payload in await outbox.waiting(session):
            assert receiver == "dispatcher"
            await NOTES[name](session, [payload])

    found = (await http.get(f"/pulp/api/v3/tasks/{task}/", headers=as_user("ada"))).json()

    assert found["created_resources"] == ["<unavailable>", "/libraries/B/"]
    assert found["created_resource_prns"] == ["<unavailable>", "lib:B"]


@pytest.mark.parametrize(
    "values",
    [
        {"prn": "a\x00b"},
        {"prn": ""},
        {"prn": "x" * 501},
        {"href": "a\x00b"},
        {"at": "9999-12-31T23:59:59-12:00"},
        {"at": "2026-11-21T12:00:00"},
        {"task_id": "x"},
    ],
)
def test_hostile_values_are_refused(values: dict[str, str]) -> None:
    good = made(uuid4(), at=utc_now()).model_dump(mode="json")

    with pytest.raises(ValidationError):
        Created.model_validate(good | values)
