"""Holding the reins of a running function: one that will not stop is never resumed."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

# A frozen coroutine must not be collected: closing it would run its code once more.
_frozen: list[Coroutine[Any, Any, Any]] = []


class Reins:
    """Awaits a coroutine and can let go of it.

    An event loop cannot kill a coroutine, but it need not go on with it either: once let go, the
    next cancel is not passed on to it, and none of its code runs any more.
    contract: dispatcher DI-52
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._let_go = False

    def let_go(self) -> None:
        """Leave the coroutine where it is at the next cancel."""
        self._let_go = True

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                waits_for = (
                    self._coroutine.send(None) if error is None else self._coroutine.throw(error)
                )
            except StopIteration as stop:
                return stop.value
            error = None
            try:
                yield waits_for
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as thrown:  # Whatever the loop throws is for the function.
                if self._let_go and isinstance(thrown, asyncio.CancelledError):
                    _frozen.append(self._coroutine)
                    raise
                error = thrown
