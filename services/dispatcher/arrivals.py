"""What arrives together is handled together: many callers, one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from shared.database import Sessions, utc_now

Item = TypeVar("Item")
Answer = TypeVar("Answer")
MOST = 1000


class Arrivals(Generic[Item, Answer]):
    """Collects items while one transaction is under way, then handles them in the next.

    `store` answers each item, in order. A caller returns after the commit that holds its items.
    When a transaction fails, all whose items were in it get its error; nothing was stored.
    """

    def __init__(
        self,
        sessions: Sessions,
        store: Callable[..., Awaitable[Sequence[Answer]]],
        after: Callable[[], None],
    ) -> None:
        self._sessions, self._store, self._after = sessions, store, after
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
        taken: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]] = []
        size = 0
        while self._waiting and (not taken or size + len(self._waiting[0][0]) <= MOST):
            taken.append(self._waiting.pop(0))
            size += len(taken[-1][0])
        return taken

    async def _one_batch(
        self, batch: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]]
    ) -> None:
        items = [item for group, _ in batch for item in group]
        try:
            async with self._sessions.begin() as session:
                answers = await self._store(session, items, now=utc_now())
        except Exception as error:  # Every caller gets it; the next batch is not to blame.
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self._after()
        position = 0
        for group, future in batch:
            if not future.done():
                future.set_result(answers[position : position + len(group)])
            position += len(group)
