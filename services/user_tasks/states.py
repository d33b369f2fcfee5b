"""The words for a user task's state, and which change is legal. contract: user_tasks §2.3, §4.5"""

from enum import StrEnum


class State(StrEnum):
    """What is stored; a stage the job names is kept beside it."""

    PENDING = "Pending"
    IN_PROGRESS = "In Progress"
    RETRYING = "Retrying"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELED = "Canceled"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED})


def follows(now: State, attempt: int, news: State, news_attempt: int) -> bool:
    """Whether news about a task changes its state.

    Final is final. News of an earlier attempt is late. Within one attempt a task goes from
    retrying, or pending, to in progress to an end, and never back.
    """
    if now.final:
        return False
    if news.final:
        return True
    if news_attempt != attempt:
        return news_attempt > attempt
    return news is State.IN_PROGRESS
