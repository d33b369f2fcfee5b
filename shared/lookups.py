"""Looking rows up by keys: fixed statements that only read, on connections of their own.

A request that only reads needs no session and no transaction. Planning these statements anew costs
more than running them, so their plans are made once for each connection.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, Request
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.database import Sessions, driver, plain_url, read_json, row_type

# A plan that is kept is never one that walks through tables, however small they were then.
SETTINGS = {
    "plan_cache_mode": "force_generic_plan", "jit": "off", "enable_seqscan": "off",
    "enable_hashjoin": "off", "enable_mergejoin": "off", "enable_material": "off",
}  # fmt: skip
# A connection that the server closed, maybe long before it was asked again, or while it was: then
# the driver may not know what to make of what it reads.
LOST = (
    asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, ConnectionError,
    asyncpg.InterfaceError, asyncpg.InternalClientError,
)  # fmt: skip


class LookupConnections:
    """Up to `most` connections, each held for one statement only; the last one used comes first.

    So whoever holds another connection may wait for one of these.
    """

    def __init__(self, url: str, *, most: int, sessions: Sessions) -> None:
        self._url, self._sessions = plain_url(url), sessions
        self._room = asyncio.Semaphore(most)
        self._idle: list[Any] = []

    @property
    def info(self) -> dict[str, Any]:
        """What every session of this process carries."""
        return self._sessions.kw.get("info") or {}

    async def fetch(self, statement: str, arguments: Sequence[Any]) -> list[Any]:
        async with self._room:
            try:
                return await self._ask(statement, arguments)
            except LOST:
                # Whoever lost one lost all. Reading twice does no harm.
                self._drop()
                return await self._ask(statement, arguments)

    async def _ask(self, statement: str, arguments: Sequence[Any]) -> list[Any]:
        connection = self._newest() or await self._connect()
        try:
            found: list[Any] = await connection.fetch(statement, *arguments)
            return found
        except asyncpg.PostgresError:
            raise  # a value or the statement did not fit; the connection is as good as before
        except BaseException:
            connection.terminate()  # who was canceled does not know what is still on its way
            raise
        finally:
            if not connection.is_closed():
                self._idle.append(connection)

    def _newest(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def _connect(self) -> Any:
        connection = await asyncpg.connect(self._url, server_settings=SETTINGS)
        try:
            await read_json(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _drop(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


Source = AsyncSession | LookupConnections

# Not the second half of `::type`, nor of a time between quotes.
_NAMED = re.compile(r"(?<![:\w]):([a-z_]+)\b")


def positional(statement: str) -> tuple[str, list[str]]:
    """A statement with `:names` as asyncpg takes it, and the names in the order of its values."""
    names = list(dict.fromkeys(_NAMED.findall(statement)))
    return _NAMED.sub(lambda name: f"${names.index(name[1]) + 1}", statement), names


class Lookup:
    """A fixed statement that finds rows by keys; its rows have names.

    Asked of a session's transaction, it sees what that wrote.
    """

    def __init__(self, statement: str) -> None:
        self._statement, self._names = positional(statement)
        self._row: Any = None

    async def records(self, source: Source, **values: Any) -> list[Any]:
        """The rows as asyncpg has them."""
        arguments = [values[name] for name in self._names]
        if isinstance(source, AsyncSession):
            lookups: LookupConnections | None = source.info.get("lookups")
            if lookups is None:
                found: list[Any] = await (await driver(source)).fetch(self._statement, *arguments)
                return found
            source = lookups
        return await source.fetch(self._statement, arguments)

    async def rows(self, source: Source, **values: Any) -> list[Any]:
        found = await self.records(source, **values)
        if found and self._row is None:
            self._row = row_type("Row", list(found[0].keys()))
        return [self._row._make(row) for row in found]


async def lookups(request: Request) -> LookupConnections:
    """For a request that only looks rows up."""
    found: LookupConnections = request.app.state.lookups
    return found


LookupDep = Annotated[LookupConnections, Depends(lookups)]
