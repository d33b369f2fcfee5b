"""Background loops: waiting for news, and ending for certain."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any


async def wait_for_news(news: asyncio.Event, seconds: float) -> None:
    """Return when there is news, at the latest after some seconds.

    Not `asyncio.wait_for`: before Python 3.12 it loses a cancellation that comes together
    with the event, and then its loop never ends.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await news.wait()


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until all have ended; a library in one of them may lose the first try."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)
