"""The example of a consumer: every event once it is finished, however it ends."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import examples.consume_events as example
from shared import events
from shared.database import Database
from shared.events import Event, EventRelay, stream_name
from shared.queue import Queue
from tests.conftest import Servers

STREAM = stream_name("libraries")
LIB = "lib:A:B"


@pytest_asyncio.fixture
async def queue(clean: Servers) -> AsyncIterator[Queue]:
    queue = Queue(clean.stores.redis_url)
    await (await queue.redis()).delete(STREAM)
    yield queue
    await queue.close()


async def tell(servers: Servers, queue: Queue, *numbers: int) -> None:
    database = Database(servers.urls["libraries"])
    relay = EventRelay(database.sessions, queue, "libraries", poll_seconds=1, longest=0)
    async with database.sessions.begin() as session:
        events.publish(session, LIB, [Event("made.v1", {"n": number}) for number in numbers])
    assert await relay.deliver() == len(numbers)
    await database.close()


async def run(servers: Servers, *arguments: str) -> list[str]:
    """The lines that the program prints, but its remarks."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(example.__file__)), "--redis", servers.stores.redis_url,
        *arguments, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return [line for line in out.decode().splitlines() if not line.startswith("#")]


async def test_each_group_gets_every_event_once_and_in_order(clean: Servers, queue: Queue) -> None:
    await tell(clean, queue, *range(250))

    first = await run(clean, "--once", "--group", "search")
    again = await run(clean, "--once", "--group", "search")
    other = await run(clean, "--once", "--group", "mail")
    await tell(clean, queue, 250)
    later = await run(clean, "--once", "--group", "search", "--name", "elsewhere")

    assert [json.loads(line.split(" ", 3)[3]) for line in first] == [{"n": n} for n in range(250)]
    assert first[0].split(" ")[1:3] == [LIB, "made.v1"]
    assert (again, other) == ([], first)
    assert [line.split(" ", 3)[3] for line in later] == ['{"n": 250}']


async def test_what_a_consumer_did_not_finish_is_taken_again(
    clean: Servers, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(clean, queue, 1, 2, 3)
    redis = await queue.redis()
    taken: list[int] = []

    async def die_at_two(event: dict[str, dict[str, int]]) -> None:
        if event["data"]["n"] == 2:
            raise RuntimeError("killed")
        taken.append(event["data"]["n"])

    monkeypatch.setattr(example, "take", die_at_two)
    with pytest.raises(RuntimeError):
        await example.follow(redis, STREAM, "search", "one", once=True)

    assert taken == [1]
    lines = await run(clean, "--once", "--group", "search", "--name", "one")
    assert [line.split(" ", 3)[3] for line in lines] == ['{"n": 2}', '{"n": 3}']


async def test_what_a_dead_consumer_held_goes_to_another(
    clean: Servers, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(clean, queue, 1)
    redis = await queue.redis()
    taken: list[int] = []

    async def note(event: dict[str, dict[str, int]]) -> None:
        taken.append(event["data"]["n"])

    monkeypatch.setattr(example, "take", note)
    await example.join(redis, STREAM, "search")
    await redis.xreadgroup("search", "dead", {STREAM: ">"})

    await example.follow(redis, STREAM, "search", "alive", once=True)
    assert taken == []
    monkeypatch.setattr(example, "ABANDONED_MS", 0)
    await example.follow(redis, STREAM, "search", "alive", once=True)
    assert taken == [1]


async def test_a_redis_that_lost_its_data_is_joined_anew(
    clean: Servers, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    redis = await queue.redis()
    following = asyncio.create_task(example.follow(redis, STREAM, "search", "one", once=False))
    try:
        async with asyncio.timeout(20):
            while not await redis.exists(STREAM):
                await asyncio.sleep(0.01)
            await redis.delete(STREAM)
            await tell(clean, queue, 7)
            out = ""
            while '{"n": 7}' not in out:
                await asyncio.sleep(0.01)
                out += capsys.readouterr().out
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    assert out.count("is new") == 2


async def test_help_says_what_it_does(clean: Servers) -> None:
    assert "what libraries tell" in " ".join(await run(clean, "--help"))
