"""What arrives together is handled together: many callers, one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from shared.database import utc_now
from shared.problems import Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")
MOST = 1000


class Arrivals(Generic[Item, Answer]):
    """Collects items while one transaction is under way, then handles them in the next.

    `begin` opens a transaction, or a connection if one statement is all; `store` answers each
    item, in order. A caller returns after the commit that holds its items. When a transaction of
    several callers fails, each is tried alone: only the one whose items are at fault gets the
    error. What is away is nobody's fault: all get Unavailable at once.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractAsyncContextManager[Any]],
        store: Callable[..., Awaitable[Sequence[Answer]]],
    ) -> None:
        self._begin, self._store = begin, store
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]] = []
        self._busy = False

    async def add(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Store items durably; their answers."""
        future: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if not self._busy:
            self._busy = True
            self._loop = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._one_batch(self._take())
        finally:
            self._busy = False

    def _take(self) -> list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]]:
        size = count = 0
        for items, _ in self._waiting:
            size += len(items)
            if count and size > MOST:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def _one_batch(
        self, batch: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]]
    ) -> None:
        items = [item for group, _ in batch for item in group]
        try:
            async with self._begin() as session:
                answers = await self._store(session, items, now=utc_now())
        except Exception as error:  # The callers get it; the next batch is not to blame.
            if isinstance(error, Unavailable):
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            elif len(batch) > 1:
                for one in batch:
                    await self._one_batch([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        position = 0
        for group, future in batch:
            if not future.done():
                future.set_result(answers[position : position + len(group)])
            position += len(group)
