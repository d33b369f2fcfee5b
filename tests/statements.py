"""Counting the statements of a piece of work, without those of what works beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from asyncpg.connection import Connection
from sqlalchemy import event

_sent: ContextVar[list[str] | None] = ContextVar("sent", default=None)


@contextmanager
def statements(engine: Any) -> Iterator[list[str]]:
    """What the code inside sends, through an engine or by the driver itself.

    Requests to an app in process are included. The app's own loops began in another context, so
    theirs are not among them.
    """
    found: list[str] = []

    def note(*arguments: Any) -> None:
        if _sent.get() is found:
            found.append(arguments[2])

    plain: Any = Connection
    by_itself = plain._execute

    async def noted(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        if _sent.get() is found:
            found.append(query)
        return await by_itself(self, query, *arguments, **options)

    engine = getattr(engine, "sync_engine", engine)
    token = _sent.set(found)
    event.listen(engine, "before_cursor_execute", note)
    plain._execute = noted
    try:
        yield found
    finally:
        plain._execute = by_itself
        event.remove(engine, "before_cursor_execute", note)
        _sent.reset(token)
