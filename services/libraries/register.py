"""Writes down who calls, beside the requests and not for each of them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import structlog

from services.libraries import directory
from shared.callers import Caller
from shared.database import Sessions, utc_now

# More callers than this at once are written down when they call the next time.
MOST_WAITING = 1000
MOST_REMEMBERED = 50_000
RETRY_SECONDS = 5.0
log = structlog.get_logger("directory")


class Register:
    """What this process has seen of callers: each is stored at most once in `fresh` seconds.

    Only that somebody was seen is remembered, and no right follows from it.
    """

    def __init__(self, sessions: Sessions, *, fresh: float) -> None:
        self._sessions, self._fresh = sessions, fresh
        self._stored: dict[str, tuple[float, Caller]] = {}
        self._waiting: dict[str, Caller] = {}
        self._news = asyncio.Event()

    def see(self, caller: Caller) -> None:
        """Somebody called: quick, and nothing for those who are known as they are."""
        until, known = self._stored.get(caller.username, (0.0, None))
        same = known is not None and (known.email, known.groups) == (caller.email, caller.groups)
        if (same and time.monotonic() < until) or len(self._waiting) >= MOST_WAITING:
            return
        if len(self._stored) >= MOST_REMEMBERED:
            self._stored.clear()
        self._stored[caller.username] = (time.monotonic() + self._fresh, caller)
        self._waiting[caller.username] = caller
        self._news.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Store as long as this is entered, and what is left at the end."""
        writing = asyncio.create_task(self._write())
        try:
            yield
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
            if self._waiting:
                await self.store()

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if not await self.store():
                await asyncio.sleep(RETRY_SECONDS)

    async def store(self) -> bool:
        """Write down all that wait; what could not be stored waits on."""
        waiting, self._waiting = self._waiting, {}
        try:
            async with self._sessions.begin() as session:
                await directory.note(session, list(waiting.values()), now=utc_now())
        except Exception as error:  # Nobody's request may suffer from this; operators read why.
            log.warning("directory.not_stored", why=type(error).__name__)
            self._waiting = waiting | self._waiting
            self._news.set()
            return False
        return True
