"""The words for a task's state, and which of them are final."""

from enum import StrEnum


class State(StrEnum):
    """contract: dispatcher §1.2"""

    WAITING = "waiting"
    SKIPPED = "skipped"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    CANCELING = "canceling"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset({State.SKIPPED, State.COMPLETED, State.FAILED, State.CANCELED})
