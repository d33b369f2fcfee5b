"""Sessions, column types, and the transaction around every request."""

import asyncio
import contextlib
import re
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import asyncpg
import orjson
from fastapi import Depends, Request
from sqlalchemy import DateTime, Enum, event, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, registry
from sqlmodel.ext.asyncio.session import AsyncSession

Sessions = async_sessionmaker[AsyncSession]
Json = JSONB(none_as_null=True)

# Rows are looked up by keys: planned once for each connection, and never as a walk through tables.
LOOKING_UP = {
    "plan_cache_mode": "force_generic_plan", "jit": "off", "enable_seqscan": "off",
    "enable_hashjoin": "off", "enable_mergejoin": "off", "enable_material": "off",
}  # fmt: skip


class Database:
    """One service's database: a pool of connections and a maker of sessions."""

    def __init__(
        self, url: str, *, pool: int = 10, lock_seconds: float = 0, **engine_options: Any
    ) -> None:
        """With `lock_seconds` a statement that waits longer for somebody's lock fails."""
        limits = {"lock_timeout": str(int(lock_seconds * 1000))} if lock_seconds else {}
        self.engine: AsyncEngine = create_async_engine(
            async_url(url),
            connect_args={"server_settings": limits},
            pool_size=pool,
            max_overflow=pool,
            pool_pre_ping=False,
            pool_use_lifo=True,  # the last one used has the plans and pages at hand
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
            **engine_options,
        )
        self.sessions: Sessions = async_sessionmaker(
            self.engine, class_=AsyncSession, expire_on_commit=False
        )
        # For reading only: each statement sees what is committed then, as it does in a
        # transaction too, and the round trips of one's begin and end are saved.
        self._plain = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._lookups = LookupConnections(url, most=pool)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session that takes no locks and writes nothing, without a transaction.

        What it is asked by a Lookup goes over connections of their own.
        """
        async with self.sessions(bind=self._plain, info={_LOOKUPS: self._lookups}) as session:
            yield session

    async def close(self) -> None:
        await self._lookups.close()
        await self.engine.dispose()


def async_url(url: str) -> str:
    """The same address for SQLAlchemy's asyncpg driver."""
    return "postgresql+asyncpg://" + url.partition("://")[2]


def plain_url(url: str) -> str:
    """The same address for asyncpg itself and for PostgreSQL's own tools."""
    return "postgresql://" + url.partition("://")[2]


def new_registry() -> registry:
    """Each service has its own, so that no table of one is visible to another."""
    return registry()


def text_enum(states: type[StrEnum], *, name: str) -> Enum:
    """The value as text with a check, so that adding a word is an ordinary migration."""
    return Enum(
        states,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=32,
        values_callable=lambda kind: [member.value for member in kind],
    )


# Not the second half of `::type`, nor of a time between quotes.
_NAMED = re.compile(r"(?<![:\w]):([a-z_]+)\b")

UTCDateTime = DateTime(timezone=True)


def utc_now() -> datetime:
    return datetime.now(UTC)


async def transaction(request: Request) -> AsyncIterator[AsyncSession]:
    """One transaction for this request, committed before the answer leaves."""
    database: Database = request.app.state.database
    async with database.sessions.begin() as session:
        yield session


# scope="function": otherwise the commit would come after the answer was sent.
SessionDep = Annotated[AsyncSession, Depends(transaction, scope="function")]


async def reading(request: Request) -> AsyncIterator[AsyncSession]:
    """A session for a request that only reads."""
    database: Database = request.app.state.database
    async with database.reading() as session:
        yield session


ReadDep = Annotated[AsyncSession, Depends(reading, scope="function")]


async def driver(session: AsyncSession) -> Any:
    """The asyncpg connection inside the same transaction, for the paths that run per task."""
    connection = await session.connection()
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    if not driver.is_in_transaction():
        # SQLAlchemy begins with its own first statement, and not before.
        await connection.execute(text("select"))
    return driver


def positional(statement: str) -> tuple[str, list[str]]:
    """A statement with `:names` as asyncpg takes it, and the names in the order of its values."""
    names = list(dict.fromkeys(_NAMED.findall(statement)))
    return _NAMED.sub(lambda name: f"${names.index(name[1]) + 1}", statement), names


def row_type(name: str, names: list[str]) -> Any:
    """What makes light rows with these names."""
    return namedtuple(name, names)


class Lookup:
    """A fixed statement that finds a few rows by keys; its rows have names.

    In a transaction it sees what was written before, if anything was.
    """

    def __init__(self, statement: str) -> None:
        self._statement, self._names = positional(statement)
        self._row: Any = None

    async def records(self, session: AsyncSession, **values: Any) -> list[Any]:
        """The rows as asyncpg has them."""
        arguments = [values[name] for name in self._names]
        lookups: LookupConnections | None = session.info.get(_LOOKUPS)
        if lookups is not None:
            return await lookups.fetch(self._statement, arguments)
        found: list[Any] = await (await driver(session)).fetch(self._statement, *arguments)
        return found

    async def rows(self, session: AsyncSession, **values: Any) -> list[Any]:
        found = await self.records(session, **values)
        if found and (self._row is None or self._row._fields != tuple(found[0].keys())):
            self._row = row_type("Row", list(found[0].keys()))
        return [self._row._make(row) for row in found]


_LOOKUPS = "lookups"
# A connection that the server closed, maybe long before it was asked again.
_LOST = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, ConnectionError)


class LookupConnections:
    """Connections for single statements that look rows up, each held for one of them only.

    So whoever holds another connection may wait for one of these.
    """

    def __init__(self, url: str, *, most: int) -> None:
        self._url, self._most = url, most
        self._opening = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._pool: Any = None

    async def fetch(self, statement: str, arguments: Sequence[Any]) -> list[Any]:
        if self._pool is None:
            await self._open()
        try:
            found: list[Any] = await self._pool.fetch(statement, *arguments)
        except _LOST:
            # Reading twice does no harm, and the pool has another connection by now.
            found = await self._pool.fetch(statement, *arguments)
        return found

    async def _open(self) -> None:
        async with self._opening:
            if self._pool is None:
                pool = connections(self._url, most=self._most, settings=LOOKING_UP)
                self._pool = await self._stack.enter_async_context(pool)

    async def close(self) -> None:
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def connections(
    url: str, *, most: int, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Any]:
    """A pool of plain asyncpg connections, for a path whose every statement is a transaction."""

    async def prepare(connection: Any) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name, encoder=str, decoder=orjson.loads, schema="pg_catalog"
            )

    async def keep(connection: Any) -> None:
        """Such statements leave nothing behind that would have to be reset on the way back."""

    async with asyncpg.create_pool(
        plain_url(url), min_size=1, max_size=most, init=prepare, reset=keep,
        server_settings=dict(settings or {}),
    ) as pool:  # fmt: skip
        yield pool


def after_commit(session: AsyncSession, call: Callable[[], None]) -> None:
    """Run a plain, quick function whenever the given session commits."""
    session.info.setdefault(_AFTER_COMMIT, []).append(call)


_AFTER_COMMIT = "after_commit"


@event.listens_for(Session, "after_commit")
def _run_after_commit(session: Session) -> None:
    # One listener for all sessions: to add one to a session costs as much as a statement.
    for call in session.info.get(_AFTER_COMMIT, ()):
        call()


def remember(sessions: Sessions, key: str, value: Any) -> None:
    """Let every session made from now on carry something of this process in its `info`."""
    sessions.configure(info={**sessions.kw.get("info", {}), key: value})
