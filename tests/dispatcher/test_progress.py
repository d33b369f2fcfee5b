"""What a run tells of itself while it lasts, and what goes with its end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest_asyncio

from services.dispatcher.progress import Progress, Teller
from services.dispatcher.settings import Settings
from shared import ids
from shared.clients import ServiceClients
from tests.conftest import Servers


class UserTasks(httpx.AsyncBaseTransport):
    """Keeps what it is told; can be away, and can be slow to answer."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.away = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.set()
        await self.answers.wait()
        if self.away:
            raise httpx.ConnectError("away", request=request)
        notes = orjson.loads(await request.aread())["notes"]
        self.told += [note["payload"] for note in notes]
        return httpx.Response(200, json={}, request=request)


@pytest_asyncio.fixture
async def user_tasks() -> UserTasks:
    return UserTasks()


@pytest_asyncio.fixture
async def progress(servers: Servers, user_tasks: UserTasks) -> AsyncIterator[Progress]:
    clients = ServiceClients(Settings(), transport=user_tasks)
    yield Progress(ids.new_id(), 1, Teller(clients))
    await clients.close()


async def ended(progress: Progress) -> None:
    """Nothing is on its way any more."""
    sender = progress._sender
    assert sender is not None
    await sender


async def test_a_short_run_tells_everything_with_its_end(
    progress: Progress, user_tasks: UserTasks
) -> None:
    await progress.stage("Packing")
    await progress.advance(2)

    last = progress.last()
    await ended(progress)

    assert last is not None
    assert (last.stage, last.completed_steps) == ("Packing", 2)
    assert user_tasks.told == []


async def test_what_was_told_is_not_told_again_with_the_end(
    progress: Progress, user_tasks: UserTasks
) -> None:
    await progress.advance()
    async with asyncio.timeout(10):
        await user_tasks.asked.wait()
        while not user_tasks.told:
            await asyncio.sleep(0)
        progress._closing.set()
        await ended(progress)

    assert progress.last() is None
    assert [report["completed_steps"] for report in user_tasks.told] == [1]


async def test_what_nobody_answered_for_yet_goes_with_the_end(
    progress: Progress, user_tasks: UserTasks
) -> None:
    user_tasks.answers.clear()
    await progress.advance(3)
    async with asyncio.timeout(10):
        await user_tasks.asked.wait()

    last = progress.last()
    user_tasks.answers.set()
    await ended(progress)

    assert last is not None
    assert last.completed_steps == 3


async def test_what_could_not_be_told_goes_with_the_end(
    progress: Progress, user_tasks: UserTasks
) -> None:
    user_tasks.away = True
    await progress.advance(3)
    async with asyncio.timeout(10):
        await user_tasks.asked.wait()
        await ended(progress)

    last = progress.last()

    assert last is not None
    assert last.completed_steps == 3
