"""What goes over the wire between the dispatcher and the other services."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import orjson
from pydantic import AfterValidator, BaseModel, Field, model_validator

from services.dispatcher.states import State

MOST_RESOURCES = 1000
LONGEST_NAME = 500
LONGEST_ARGUMENTS = 1024 * 1024


def without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("NUL characters are not allowed.")
    return value


Text = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(without_nul)]
Resource = Text


class UserTaskSpec(BaseModel):
    """How a task shows itself to the person it works for. contract: user_tasks §2.1"""

    name: Annotated[str, Field(max_length=255), AfterValidator(without_nul)]
    total_steps: int = Field(default=1, ge=0)
    task_type: str = Field(default="", max_length=128)


class TaskRequest(BaseModel):
    """A task to accept. Sent twice with one id it is accepted once."""

    id: UUID
    function: Text
    queue: Text
    arguments: dict[str, Any] = {}
    exclusive: list[Resource] = Field(default=[], max_length=MOST_RESOURCES)
    shared: list[Resource] = Field(default=[], max_length=MOST_RESOURCES)
    username: Text | None = None
    logging_cid: str = Field(default="", max_length=128)
    parent_id: UUID | None = None
    repeatable: bool = False
    user_task: UserTaskSpec | None = None
    created_at: datetime | None = None

    @model_validator(mode="after")
    def storable(self) -> Self:
        dumped = orjson.dumps(self.arguments)
        if len(dumped) > LONGEST_ARGUMENTS:
            raise ValueError(
                f"arguments may have at most {LONGEST_ARGUMENTS} bytes; pass ids instead."
            )
        if b"\\u0000" in dumped:
            raise ValueError("NUL characters are not allowed in arguments.")
        if self.user_task is not None and self.username is None:
            raise ValueError("A user task needs its user.")
        return self

    @property
    def name(self) -> str:
        return f"{self.queue}.{self.function}"


class TaskView(BaseModel):
    """A task as services see it."""

    id: UUID
    name: str
    state: State
    unblocked_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    error: dict[str, Any] | None
    result: Any


class StartReport(BaseModel):
    """A worker is about to run a task."""

    task_id: UUID
    attempt: int
    worker_id: UUID


class StartAnswer(BaseModel):
    """Whether it may. Without a fence it must not run."""

    task_id: UUID
    fence: int | None


class FinishReport(BaseModel):
    """A worker has ended a task."""

    task_id: UUID
    fence: int
    state: Literal["completed", "failed", "canceled"]
    result: Any = None
    error: dict[str, Any] | None = None


class FinishAnswer(BaseModel):
    """Whether the report counted; a run that lost its fence does not."""

    task_id: UUID
    accepted: bool


class Heartbeat(BaseModel):
    """A worker is alive. The first one registers it."""

    name: Text
    queue: Text
    versions: dict[str, str] = {}
    first: bool = False


class HeartbeatAnswer(BaseModel):
    """`known` is false for a worker that was given up: its runs are void, it must start over."""

    known: bool
    cancel: list[UUID] = []
    running: list[UUID] = []
