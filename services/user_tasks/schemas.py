"""What goes over the wire to and from user_tasks."""

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

ContainerKind = Literal["chain", "group", "chord"]
LifecycleState = Literal["Pending", "In Progress", "Retrying", "Succeeded", "Failed", "Canceled"]
LARGEST = 2**62
# Where in the object store the files of artifacts are; what lies there without one is removed.
ARTIFACTS = "user_tasks"
LONGEST_STAGE = 128
SCHEMES = ("http", "https", "ftp", "ftps")


def without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("NUL characters are not allowed.")
    return value


def printable(value: str | None) -> str | None:
    """A content type only if it can be sent as a header."""
    return value if value and value.isascii() and value.isprintable() else None


def storable(value: Any) -> Any:
    """The same JSON without what PostgreSQL's jsonb refuses, so that a failure is always told."""
    if isinstance(value, dict):
        return {storable(str(key)): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, str):
        whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return whole.replace("\x00", "\ufffd")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > LARGEST:
        return str(value)
    return value


def not_a_state(stage: str) -> str:
    """A stage that is one of the fixed words would make a running task look ended."""
    if stage.strip() in get_args(LifecycleState):
        raise ValueError(f"{stage.strip()} is a state; name the stage otherwise.")
    return stage


def stage_of(text: str) -> str:
    """The nearest stage to a text: a run never ends because of what it says of itself."""
    stage = str(storable(text))[:LONGEST_STAGE]
    return f"{stage.strip()}..." if stage.strip() in get_args(LifecycleState) else stage


def address(value: str) -> str:
    """As given, if it is empty or an address that a browser may safely follow."""
    try:
        scheme = AnyUrl(value).scheme if value else None
    except ValidationError:
        scheme = ""
    if value and (scheme not in SCHEMES or re.search(r"[\s\x00-\x1f\x7f]", value)):
        raise ValueError(f"Enter a valid URL: one of {', '.join(SCHEMES)}.")
    return value


Text = Annotated[str, AfterValidator(without_nul)]
Moment = Annotated[
    AwareDatetime,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), le=datetime(9999, 12, 30, tzinfo=UTC)),
]


class ContainerSpec(BaseModel):
    """A chain, group or chord that holds tasks; every member's news carries its whole path."""

    id: UUID
    kind: ContainerKind
    name: Annotated[Text, Field(max_length=255)] = ""
    members: int = Field(ge=0, le=LARGEST)
    total_steps: int = Field(default=0, ge=0, le=LARGEST)


class LastProgress(BaseModel):
    """How far a run is: absolute numbers."""

    at: Moment
    completed_steps: int | None = Field(default=None, ge=0, le=LARGEST)
    total_steps: int | None = Field(default=None, ge=0, le=LARGEST)
    stage: Annotated[Text, Field(max_length=LONGEST_STAGE), AfterValidator(not_a_state)] | None = (
        None
    )
    # A new name, for the task and all that hold it.
    name: Annotated[Text, Field(max_length=255)] | None = None


class ProgressReport(LastProgress):
    """How far a run is; a late or repeated report changes nothing."""

    task_id: UUID
    attempt: int = Field(ge=1, le=LARGEST)


class Lifecycle(BaseModel):
    """A task came into a state. Carries the whole description, so that any may come first."""

    task_id: UUID
    state: LifecycleState
    at: Moment
    attempt: int = Field(default=1, ge=1, le=LARGEST)
    error: Annotated[dict[str, Any], AfterValidator(storable)] | None = None
    user: Annotated[Text, Field(min_length=1, max_length=255)]
    name: Annotated[Text, Field(max_length=255)]
    task_class: Annotated[Text, Field(max_length=1000)]
    task_type: Annotated[Text, Field(max_length=128)] = ""
    total_steps: int = Field(default=1, ge=0, le=LARGEST)
    parameters: Annotated[dict[str, Any], AfterValidator(storable)] = {}
    # Root first, the direct parent last.
    containers: list[ContainerSpec] = Field(default=[], max_length=10)
    # How far this attempt came before it ended.
    progress: LastProgress | None = None

    @model_validator(mode="after")
    def a_path(self) -> Self:
        if len({self.task_id, *(spec.id for spec in self.containers)}) <= len(self.containers):
            raise ValueError("A task and what holds it are different from each other.")
        return self


class ArtifactReport(BaseModel):
    """A result of a run: a stored file, a text or an address."""

    artifact_id: UUID
    task_id: UUID
    name: Annotated[Text, Field(max_length=255)] = "Output"
    file: Annotated[Text, Field(max_length=1000)] | None = None
    file_name: Annotated[Text, Field(max_length=255)] | None = None
    size: int | None = Field(default=None, ge=0, le=LARGEST)
    content_type: Annotated[
        Annotated[str, Field(max_length=255)] | None, AfterValidator(printable)
    ] = None
    text: Text = ""
    url: Annotated[Text, AfterValidator(address)] = ""
    at: Moment


class ArtifactView(BaseModel):
    """An artifact as our own clients see it; `file` is a link that works for a while."""

    uuid: UUID
    name: str
    file: str
    file_name: str | None
    size: int | None
    text: str
    url: str
    # What it is, in at most fifty characters if it is a text.
    summary: str = ""
    created: datetime


class StageView(BaseModel):
    """What a job said it was doing, from when on."""

    stage: str
    attempt: int
    at: datetime


class WatcherView(BaseModel):
    """Somebody besides the owner who may see and follow a task."""

    username: str
    added_by: str
    created: datetime


class Failure(BaseModel):
    """Why a task in a container failed."""

    uuid: UUID
    name: str
    attempt: int
    error: dict[str, Any]


class StatusView(BaseModel):
    """A user task as our own clients see it. `state` may be a stage; `base_state` never is."""

    uuid: UUID
    user: str
    name: str
    state: str
    base_state: str
    stage: str | None
    completed_steps: int
    total_steps: int
    attempts: int
    task_class: str
    task_type: str
    parent: UUID | None
    # With defaults, so that a service understands a user_tasks that is a release behind.
    parameters: dict[str, Any] = {}
    root: UUID | None = None
    kind: str | None = None
    is_container: bool = False
    members: int | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    heartbeat_at: datetime | None = None
    children: list[UUID] = []
    stages: list[StageView] = []
    watchers: int | None = None
    # Of a container: how many direct children are in which state, and why tasks in it failed.
    children_by_state: dict[str, int] = {}
    failures: list[Failure] = []
    canceled_by: str | None = None
    error: dict[str, Any] | None
    created: datetime
    modified: datetime
    started_at: datetime | None
    finished_at: datetime | None
    artifacts: list[ArtifactView]
