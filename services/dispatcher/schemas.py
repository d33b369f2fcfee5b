"""What goes over the wire between the dispatcher and the other services."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import orjson
from packaging.version import InvalidVersion, Version
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

from services.dispatcher.states import State
from services.user_tasks.schemas import ContainerSpec, LastProgress
from shared.problems import NO_NUL

DOMAIN = "prn:core.domain:00000000-0000-0000-0000-000000000000"
MOST_RESOURCES = 1000
LONGEST_NAME = 500
LONGEST_ARGUMENTS = 1024 * 1024
LONGEST_RETRY = 30 * 24 * 3600
LARGEST = 2**62
MOST_VERSIONS = 50
MOST_RUNS = 1000
MOST_LEVELS = 10
MOST_CANCELED = 10_000
LONGEST_INTERVAL = timedelta(days=3660)
MOMENT = TypeAdapter(datetime)


def without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("NUL characters are not allowed.")
    return value


def in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("This is not a time in UTC.") from error


def moment(value: object) -> datetime:
    """A moment in ISO 8601; in UTC where no other zone is said. Raises ValueError."""
    try:
        if not isinstance(value, str) or not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError
        found = MOMENT.validate_python(value)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    # Moments of the first and of the last day may lie outside the calendar in UTC.
    except (ValueError, OverflowError) as error:
        raise ValueError("Enter a valid date/time.") from error


Text = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, pattern=NO_NUL)]
AnyText = Annotated[str, Field(max_length=LONGEST_NAME, pattern=NO_NUL)]
Moment = Annotated[AwareDatetime, AfterValidator(in_utc)]
Resource = Text


def storable_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        dumped = orjson.dumps(arguments)
    except TypeError as error:
        raise ValueError(f"arguments cannot be stored: {error}") from error
    if len(dumped) > LONGEST_ARGUMENTS:
        raise ValueError(f"arguments may have at most {LONGEST_ARGUMENTS} bytes; pass ids instead.")
    if b"\\u0000" in dumped:
        raise ValueError("NUL characters are not allowed in arguments.")
    return arguments


class Strict(BaseModel):
    """A misspelled field is refused: passed over, it could mean more than was asked for."""

    model_config = ConfigDict(extra="forbid")


class UserTaskSpec(BaseModel):
    """How a task shows itself to the person it works for. contract: user_tasks §2.1"""

    name: Annotated[str, Field(max_length=255), AfterValidator(without_nul)]
    total_steps: int = Field(default=1, ge=0, le=LARGEST)
    task_type: Annotated[str, Field(max_length=128), AfterValidator(without_nul)] = ""
    # What it was asked for, for the person to see.
    parameters: Annotated[dict[str, Any], AfterValidator(storable_arguments)] = {}
    containers: list[ContainerSpec] = Field(default=[], max_length=MOST_LEVELS)


class TaskRequest(BaseModel):
    """A task to accept. Sent twice with one id it is accepted once."""

    id: UUID
    function: Text
    queue: Text
    arguments: dict[str, Any] = Field(default_factory=dict)
    exclusive: list[Resource] = Field(default_factory=list, max_length=MOST_RESOURCES)
    shared: list[Resource] = Field(default_factory=list, max_length=MOST_RESOURCES)
    username: Text | None = None
    logging_cid: Annotated[str, Field(max_length=128, pattern=NO_NUL)] = ""
    parent_id: UUID | None = None
    group_id: UUID | None = None
    chain_id: UUID | None = None
    dependent: bool = False
    immediate: bool = False
    deferred: bool = True
    versions: dict[Text, Text] = Field(default_factory=dict, max_length=MOST_VERSIONS)
    profile_options: list[Text] = Field(default_factory=list, max_length=MOST_VERSIONS)
    repeatable: bool = False
    user_task: UserTaskSpec | None = None
    lease_seconds: float | None = Field(default=None, gt=0, le=LONGEST_RETRY, allow_inf_nan=False)
    # How long a lease may wait for its resources.
    wait_seconds: float | None = Field(default=None, ge=0, le=LONGEST_RETRY, allow_inf_nan=False)

    @model_validator(mode="after")
    def storable(self) -> Self:
        if self.arguments:
            storable_arguments(self.arguments)
        if self.user_task is not None and self.username is None:
            raise ValueError("A user task needs its user.")
        if not (self.immediate or self.deferred):
            raise ValueError("A task must be at least one of deferred and immediate.")
        return self

    @field_validator("versions")
    @classmethod
    def comparable(cls, versions: dict[str, str]) -> dict[str, str]:
        for label, version in versions.items():
            try:
                Version(version)
            except InvalidVersion as error:
                raise ValueError(f"{version} is not a version of {label}.") from error
        return versions

    @property
    def name(self) -> str:
        return f"{self.queue}.{self.function}"


LEASE_MARK = "shared:"


def unmarked(resource: str) -> str:
    if resource.startswith(LEASE_MARK):
        raise ValueError(f"A resource's name does not begin with {LEASE_MARK}")
    return resource


LeaseResources = Annotated[
    list[Annotated[Resource, AfterValidator(unmarked)]], Field(max_length=MOST_RESOURCES)
]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_RETRY, allow_inf_nan=False)]


class LeaseRequest(BaseModel):
    """Resources to hold, all of them or none. Sent again with the same id it is the same lease.

    With `wait_seconds` 0 it is granted or refused at once.
    """

    id: UUID | None = None
    exclusive: LeaseResources = []
    shared: LeaseResources = []
    ttl_seconds: Seconds = 30.0
    wait_seconds: float = Field(default=0.0, ge=0, le=LONGEST_RETRY, allow_inf_nan=False)
    purpose: Annotated[Text, Field(max_length=200)] = "lock"

    @model_validator(mode="after")
    def something(self) -> Self:
        if not (self.exclusive or self.shared):
            raise ValueError("Name at least one resource.")
        return self


class LeaseRenewal(BaseModel):
    """Hold on for `ttl_seconds` from now; without it, for as long as before."""

    fence: int = Field(ge=0, le=LARGEST)
    ttl_seconds: Seconds | None = None


class LeaseRelease(BaseModel):
    """Give the resources back."""

    fence: int = Field(ge=0, le=LARGEST)


class LeaseView(BaseModel):
    """A lease as its holder sees it. `fence` grows with every grant: an older one is void."""

    id: UUID
    state: State
    purpose: str
    exclusive: list[str]
    shared: list[str]
    ttl_seconds: float
    fence: int | None
    username: str | None
    created_at: datetime
    granted_at: datetime | None
    expires_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, task: Any) -> Self:
        """From a task that is a lease."""
        names = [name for name in task.reserved if name != f"{LEASE_MARK}{DOMAIN}"]
        return cls(
            id=task.id,
            state=task.state,
            purpose=task.name.removeprefix("lease."),
            exclusive=[name for name in names if not name.startswith(LEASE_MARK)],
            shared=[name[len(LEASE_MARK) :] for name in names if name.startswith(LEASE_MARK)],
            ttl_seconds=task.lease_seconds,
            fence=task.fence,
            username=task.username,
            created_at=task.created_at,
            granted_at=task.started_at,
            expires_at=task.expires_at if task.started_at else None,
            finished_at=task.finished_at,
        )


class WaitingFor(BaseModel):
    """Why a task has not started yet."""

    resources: list[str] = []
    versions: dict[str, str] = {}
    worker: bool = False


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
    waiting_for: WaitingFor | None = None


class FinishReport(BaseModel):
    """A worker has ended a run. `retry`: it shall be run again, after `retry_seconds`."""

    task_id: UUID
    fence: int = Field(ge=0, le=LARGEST)
    state: Literal["completed", "failed", "canceled", "retry"]
    result: Any = None
    error: dict[str, Any] | None = None
    retry_seconds: float = Field(default=0, ge=0, le=LONGEST_RETRY, allow_inf_nan=False)
    # How far the run came, as far as it was not told before.
    progress: LastProgress | None = None


class FinishAnswer(BaseModel):
    """Whether the report counted; a run that lost its fence does not."""

    task_id: UUID
    accepted: bool


class Assignment(BaseModel):
    """A run that this worker, and nobody else, may make now."""

    task_id: UUID
    attempt: int
    fence: int
    function: str
    arguments: dict[str, Any]
    username: str | None
    logging_cid: str
    group_id: UUID | None
    immediate: bool
    profile_options: list[str]


class Exchange(BaseModel):
    """A worker reports ends and takes as many new runs as it has room for.

    `turn` grows with each exchange of a worker. After an exchange whose answer was lost, `holding`
    names the runs it has, so that those it never heard of are given again.
    """

    turn: int = Field(ge=1, le=LARGEST)
    room: int = Field(ge=0, le=MOST_RUNS)
    ended: list[FinishReport] = Field(default=[], max_length=MOST_RUNS)
    holding: list[UUID] | None = Field(default=None, max_length=2 * MOST_RUNS)


class ExchangeAnswer(BaseModel):
    """`known` is false for a worker that was given up: its runs are void, it must start over."""

    known: bool
    ended: list[FinishAnswer] = []
    start: list[Assignment] = []


class ImmediateRequest(BaseModel):
    """A task to run at once in the calling process, which is registered as `worker_id`."""

    task: TaskRequest
    worker_id: UUID


class ImmediateAnswer(BaseModel):
    """`start` is there if the caller shall run it now."""

    known: bool
    task: TaskView | None = None
    start: Assignment | None = None


class Heartbeat(BaseModel):
    """A process is alive. The first one registers it."""

    name: Text
    queue: Text
    app_type: Literal["worker", "api"] = "worker"
    versions: dict[Text, Text] = Field(default={}, max_length=MOST_VERSIONS)
    concurrency: int = Field(default=1, ge=1, le=MOST_RUNS)
    first: bool = False


class HeartbeatAnswer(BaseModel):
    """`known` is false for a worker that was given up: its runs are void, it must start over."""

    known: bool
    cancel: list[UUID] = []
    running: list[UUID] = []


ReportState = Literal["waiting", "running", "completed", "failed", "canceled"]
Count = Annotated[int, Field(ge=0, le=LARGEST)]


class ReportUpdate(BaseModel):
    """How far one part of a task is. contract: dispatcher §7"""

    id: UUID
    task_id: UUID
    place: int = Field(default=0, ge=0, le=2**31 - 1)
    attempt: int = Field(default=1, ge=1, le=2**31 - 1)
    message: AnyText
    code: Text
    state: ReportState
    total: Count | None = None
    done: Count = 0
    suffix: AnyText | None = None
    at: Moment


class GroupShareUpdate(BaseModel):
    """What one task has added to a count of its group, in all."""

    group_id: UUID
    task_id: UUID
    code: Text
    message: AnyText
    suffix: AnyText | None = None
    done: Count = 0
    total: Count = 0
    at: Moment


class ProfileUpdate(BaseModel):
    """Something recorded about a run; its file is stored already."""

    task_id: UUID
    name: Literal["memory_profile", "pyinstrument_profile", "memray_profile", "task_logs"]
    file: Text
    size: Count | None = None

    @model_validator(mode="after")
    def of_this_task(self) -> Self:
        """Its link must never lead to any other file of the store."""
        if not self.file.startswith(f"diagnostics/{self.task_id}/") or "/." in self.file:
            raise ValueError("file must be below the task's own diagnostics.")
        return self


class Updates(BaseModel):
    """What a run tells of itself at once."""

    reports: list[ReportUpdate] = Field(default=[], max_length=MOST_RUNS)
    shares: list[GroupShareUpdate] = Field(default=[], max_length=MOST_RUNS)
    profiles: list[ProfileUpdate] = Field(default=[], max_length=MOST_RUNS)


class Created(BaseModel):
    """Something a task made: its name for programs and its address."""

    task_id: UUID
    prn: Text
    href: Text
    at: Moment


class Gone(BaseModel):
    """Something that exists no more."""

    prn: Text
    at: Moment


class ScheduleRequest(Strict):
    """When to dispatch which task. Without an interval: once; `next_dispatch` null: never."""

    name: Text
    queue: Text
    task_name: Text
    arguments: dict[str, Any] = {}
    dispatch_interval: timedelta | None = None
    next_dispatch: Annotated[AwareDatetime, AfterValidator(in_utc)] | None = None

    @field_validator("dispatch_interval")
    @classmethod
    def positive(cls, interval: timedelta | None) -> timedelta | None:
        if interval is not None and not timedelta(seconds=1) <= interval <= LONGEST_INTERVAL:
            raise ValueError("An interval is between a second and ten years.")
        return interval

    @field_validator("arguments")
    @classmethod
    def storable(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return storable_arguments(arguments)


class GroupRequest(Strict):
    """A group of tasks to come."""

    id: UUID | None = None
    description: Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(without_nul)] = ""


class RoleRequest(BaseModel):
    """A role to give or take away."""

    role: Text
    users: list[Text] = Field(default=[], max_length=100)
    groups: list[Text] = Field(default=[], max_length=100)


class CancelRequest(Strict):
    """Which tasks to stop: these, or all that fit everything said about them."""

    tasks: list[UUID] | None = Field(default=None, max_length=MOST_CANCELED)
    name: Text | None = None
    state: Literal["waiting", "running", "canceling"] | None = None
    group: UUID | None = None

    @model_validator(mode="after")
    def one_way(self) -> Self:
        described = any(value is not None for value in (self.name, self.state, self.group))
        if described is (self.tasks is not None):
            raise ValueError("Say which tasks: either by tasks, or by name, state or group.")
        return self


class CancelOutcome(BaseModel):
    """What became of one task. `state` is null for one that is unknown to the caller."""

    task: str
    state: State | None
    outcome: Literal["canceled", "canceling", "ended", "forbidden", "unknown"]


class CancelAnswer(BaseModel):
    """`more`: the filter found more than can be stopped at once; ask again."""

    tasks: list[CancelOutcome]
    more: bool = False


class PurgeRequest(BaseModel):
    """Which ended tasks to remove."""

    finished_before: Annotated[datetime, BeforeValidator(moment)] | None = None
    states: list[Literal["skipped", "completed", "failed", "canceled"]] | None = Field(
        default=None, max_length=100
    )


class QueueNumbers(BaseModel):
    """How much work of one queue waits for workers. contract: dispatcher §4.10"""

    queue: str
    ready: int
    longest_ready_seconds: float
    parallel: int
    wanting: int
    unmet: int
    running: int
    workers: int
    slots: int
