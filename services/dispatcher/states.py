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

# What a user task shows while the dispatcher's task is in a state.
USER_STATES = {
    State.WAITING: "Pending",
    State.RUNNING: "In Progress",
    State.COMPLETED: "Succeeded",
    State.FAILED: "Failed",
    State.CANCELED: "Canceled",
}
