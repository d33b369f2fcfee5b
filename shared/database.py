"""Sessions, column types, and the transaction around every request."""

import asyncio
import contextlib
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import asyncpg
import orjson
from fastapi import Depends, Request
from sqlalchemy import DateTime, Enum, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, registry
from sqlmodel.ext.asyncio.session import AsyncSession

Sessions = async_sessionmaker[AsyncSession]
Json = JSONB(none_as_null=True)


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
        event.listen(self.engine.sync_engine, "checkout", _require_idle)
        self.sessions: Sessions = async_sessionmaker(
            self.engine, class_=AsyncSession, expire_on_commit=False
        )
        # For reading only: each statement sees what is committed then, as it does in a
        # transaction too, and the round trips of one's begin and end are saved.
        self._plain = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextlib.asynccontextmanager
    async def reading(self, **info: Any) -> AsyncIterator[AsyncSession]:
        """A session that takes no locks and writes nothing, without a transaction."""
        async with self.sessions(bind=self._plain, info=info) as session:
            yield session

    async def close(self) -> None:
        await self.engine.dispose()


def _require_idle(connection: Any, *_: Any) -> None:
    """One that was lost while it lay in the pool, or that somebody left in the middle of something,
    is replaced before anybody gets it.
    """
    driver = connection.driver_connection
    if driver.is_closed() or driver.is_in_transaction():
        raise DisconnectionError


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


UTCDateTime = DateTime(timezone=True)


def utc_now() -> datetime:
    return datetime.now(UTC)


async def transaction(request: Request) -> AsyncIterator[AsyncSession]:
    """One transaction for this request, committed before the answer leaves."""
    database: Database = request.app.state.database
    session = database.sessions()
    try:
        yield session
        await session.commit()
    finally:
        # What is not committed is rolled back, whoever gave up.
        await asyncio.shield(session.close())


# scope="function": otherwise the commit would come after the answer was sent.
SessionDep = Annotated[AsyncSession, Depends(transaction, scope="function")]


async def reading(request: Request) -> AsyncIterator[AsyncSession]:
    """A session for a request that only reads."""
    state = request.app.state
    async with state.database.reading(lookups=state.lookups) as session:
        yield session


ReadDep = Annotated[AsyncSession, Depends(reading, scope="function")]


async def driver(session: AsyncSession) -> Any:
    """The asyncpg connection inside the same transaction, for statements that run often."""
    pooled = await (await session.connection()).get_raw_connection()
    return await begun(pooled.dbapi_connection)


async def begun(adapted: Any) -> Any:
    """The asyncpg connection below SQLAlchemy's own, in the transaction of that one.

    SQLAlchemy begins with its own first statement; one for nothing but that is a round trip.
    """
    driver = adapted.driver_connection
    if not driver.is_in_transaction():
        try:
            await adapted._start_transaction()
        except BaseException:
            driver.terminate()  # it may have begun, and nobody would end it
            raise
    return driver


def row_type(name: str, names: list[str]) -> Any:
    """What makes light rows with these names."""
    return namedtuple(name, names)


@contextlib.asynccontextmanager
async def connections(url: str, *, most: int) -> AsyncIterator[Any]:
    """A pool of plain asyncpg connections, for a path whose every statement is a transaction."""

    async def keep(connection: Any) -> None:
        """Such statements leave nothing behind that would have to be reset on the way back."""

    async with asyncpg.create_pool(
        plain_url(url), min_size=1, max_size=most, init=read_json, reset=keep
    ) as pool:
        yield pool


async def read_json(connection: Any) -> None:
    """Let a plain connection give JSON as values, and take it as text."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, encoder=str, decoder=orjson.loads, schema="pg_catalog"
        )


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
