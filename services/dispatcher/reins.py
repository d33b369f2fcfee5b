"""Holding the reins of a running function: one that will not stop is never resumed."""

from collections.abc import Coroutine, Generator
from typing import Any

PATIENCE = 3
# A frozen coroutine must not be collected: closing it would run its code once more.
_frozen: list[Coroutine[Any, Any, Any]] = []


class Driven:
    """Awaits a coroutine, and lets it swallow only so many cancels.

    An event loop cannot kill a coroutine, but it need not go on with it either: after the last
    cancel that was swallowed, none of its code runs any more. contract: dispatcher DI-52
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._canceled = 0

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
                self._canceled += 1
                if self._canceled > PATIENCE:
                    _frozen.append(self._coroutine)
                    raise
                error = thrown
