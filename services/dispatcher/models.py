"""Tables of the dispatcher."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    Sequence,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field, SQLModel

from services.dispatcher.states import State
from shared import outbox
from shared.database import Json, UTCDateTime, new_registry, text_enum


class Base(SQLModel, registry=new_registry()):
    """The dispatcher's own registry."""


Outbox = outbox.outbox_table(Base)
fences = Sequence("fence_seq", metadata=Base.metadata)


class Task(Base, table=True):
    """Work that runs when its resources are free. contract: dispatcher §1.1"""

    id: UUID = Field(primary_key=True)
    # Its place in every queue: given under the dispatcher's lock, so it is also commit order.
    seq: int = Field(
        sa_column=Column(BigInteger, Identity(always=True), unique=True, nullable=False)
    )
    state: State = Field(sa_type=text_enum(State, name="task_state"))
    name: str
    queue: str
    arguments: dict[str, Any] = Field(sa_type=Json)
    username: str | None = None
    logging_cid: str
    parent_id: UUID | None = None
    group_id: UUID | None = None
    # A link of a chain is canceled when one before it did not complete.
    chain_id: UUID | None = None
    dependent: bool = False
    immediate: bool = False
    deferred: bool = True
    versions: dict[str, str] = Field(default_factory=dict, sa_type=Json)
    requirement_id: int = 0
    profile_options: list[str] = Field(
        default_factory=list, sa_column=Column(ARRAY(Text), nullable=False, server_default="{}")
    )
    # The creator's own role; a role given to anyone else is a Grant.
    owned: bool = True
    reserved: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    user_task: dict[str, Any] | None = Field(default=None, sa_type=Json)
    repeatable: bool = False
    attempt: int = 1
    blocked_by: int = 0
    fence: int | None = Field(default=None, sa_type=BigInteger)
    worker_id: UUID | None = None
    created_at: datetime = Field(sa_type=UTCDateTime)
    updated_at: datetime = Field(sa_type=UTCDateTime)
    unblocked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    # A repeated run begins no earlier than this.
    retry_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    # Only for leases: locks that somebody holds without a function of ours.
    lease_seconds: float | None = None
    expires_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    result: Any = Field(default=None, sa_type=Json, nullable=True)

    __table_args__ = (
        Index("task_created", "created_at", "id"),
        Index("task_owner", "username", "created_at"),
        Index("task_name", "name", "created_at"),
        Index("task_cid", "logging_cid"),
        # All but the state that most tasks are in, which is found by their time.
        Index("task_state", "state", "created_at", postgresql_where=text("state <> 'completed'")),
        # `state || ''` is asked here only: no other index can be chosen for what is ready.
        Index(
            "task_ready",
            "queue",
            "requirement_id",
            text("(not immediate)"),
            "seq",
            postgresql_where=text(
                "state || '' = 'waiting' and blocked_by = 0 and lease_seconds is null"
                " and retry_at is null"
            ),
        ),
        Index("task_retry", "retry_at", postgresql_where=text("retry_at is not null")),
        Index(
            "task_expiring",
            "expires_at",
            postgresql_where=text(
                "lease_seconds is not null and state in ('waiting', 'running', 'canceling')"
            ),
        ),
        Index("task_parent", "parent_id", postgresql_where=text("parent_id is not null")),
        Index("task_of_group", "group_id", "seq", postgresql_where=text("group_id is not null")),
        Index(
            "task_of_chain",
            "chain_id",
            "seq",
            postgresql_where=text("chain_id is not null"),
        ),
        Index(
            "task_ended",
            "finished_at",
            postgresql_where=text("finished_at is not null"),
        ),
        Index(
            "task_held",
            "worker_id",
            postgresql_where=text("state in ('running', 'canceling')"),
        ),
        Index(
            "task_resources",
            "reserved",
            postgresql_using="gin",
        ),
    )


class Claim(Base, table=True):
    """One task's place in the queue of one resource; gone when the task has ended."""

    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    # Numbers the claims of one task.
    place: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    resource: str
    exclusive: bool
    granted: bool = False

    # For each question about a resource exactly one index that can answer it: of several the
    # planner may choose the one that leads through all claims, while the table is empty, and keep
    # that plan. So the key has no resource in it, and `(seq + 0)` is in one index only.
    __table_args__ = (
        Index("claim_waiting", "resource", text("(seq + 0)"), postgresql_where=text("not granted")),
        Index("claim_held", "resource", "exclusive", postgresql_where=text("granted")),
    )


class Worker(Base, table=True):
    """A process that has reported within its time limit. contract: dispatcher §1.6

    `app_type` is worker, or api for a web process, which runs immediate tasks only.
    """

    id: UUID = Field(primary_key=True)
    app_type: str = "worker"
    name: str
    queue: str
    versions: dict[str, str] = Field(default_factory=dict, sa_type=Json)
    # The requirements its versions meet; 0, no requirement, is met by all.
    meets: list[int] = Field(
        default_factory=list, sa_column=Column(ARRAY(Integer), nullable=False, server_default="{0}")
    )
    # How many tasks it runs at once.
    concurrency: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    # The number of its newest exchange: an older one that comes late changes nothing.
    turn: int = Field(default=0, sa_type=BigInteger)
    started_at: datetime = Field(sa_type=UTCDateTime)
    last_heartbeat: datetime = Field(sa_type=UTCDateTime, index=True)


class Requirement(Base, table=True):
    """A set of least component versions that some task asked for. contract: dispatcher §2.5"""

    id: int | None = Field(default=None, primary_key=True)
    versions: dict[str, str] = Field(sa_column=Column(Json, unique=True, nullable=False))


class TaskGroup(Base, table=True):
    """Tasks that belong together. contract: dispatcher §1.3"""

    id: UUID = Field(primary_key=True)
    description: str = ""
    all_tasks_dispatched: bool = False
    username: str | None = None
    created_at: datetime = Field(sa_type=UTCDateTime)
    updated_at: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (Index("task_group_created", "created_at", "id"),)


class TaskSchedule(Base, table=True):
    """A task to dispatch at a time, once or again and again. contract: dispatcher §1.7"""

    id: UUID = Field(primary_key=True)
    name: str = Field(unique=True)
    next_dispatch: datetime | None = Field(default=None, sa_type=UTCDateTime, index=True)
    dispatch_interval: timedelta | None = None
    task_name: str
    queue: str
    arguments: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    last_task_id: UUID | None = None
    built_in: bool = False
    created_at: datetime = Field(sa_type=UTCDateTime)
    updated_at: datetime = Field(sa_type=UTCDateTime)


class TaskReport(Base, table=True):
    """How far one part of a task is. contract: dispatcher §7"""

    id: UUID = Field(primary_key=True)
    task_id: UUID = Field(
        sa_column=Column(ForeignKey("task.id", ondelete="CASCADE"), index=True, nullable=False)
    )
    place: int = 0
    # The attempt it tells of: a repeated run begins its reports anew.
    attempt: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    message: str
    code: str
    state: State = Field(sa_type=text_enum(State, name="task_report_state"))
    total: int | None = Field(default=None, sa_type=BigInteger)
    done: int = Field(default=0, sa_type=BigInteger)
    suffix: str | None = None
    created_at: datetime = Field(sa_type=UTCDateTime)
    updated_at: datetime = Field(sa_type=UTCDateTime)


class GroupReport(Base, table=True):
    """A count that several tasks of a group raise together. contract: dispatcher §7"""

    group_id: UUID = Field(
        sa_column=Column(ForeignKey("taskgroup.id", ondelete="CASCADE"), primary_key=True)
    )
    code: str = Field(primary_key=True)
    message: str
    suffix: str | None = None
    total: int = Field(default=0, sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UTCDateTime)


class GroupShare(Base, table=True):
    """What one task has added to a group's count: absolute, so that telling it twice adds once."""

    group_id: UUID = Field(primary_key=True)
    code: str = Field(primary_key=True)
    task_id: UUID = Field(primary_key=True)
    done: int = Field(default=0, sa_type=BigInteger)
    total: int = Field(default=0, sa_type=BigInteger)

    __table_args__ = (
        ForeignKeyConstraint(
            ["group_id", "code"], ["groupreport.group_id", "groupreport.code"], ondelete="CASCADE"
        ),
    )


class CreatedResource(Base, table=True):
    """Something a task made. contract: dispatcher §1.4"""

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(), primary_key=True))
    task_id: UUID = Field(
        sa_column=Column(ForeignKey("task.id", ondelete="CASCADE"), index=True, nullable=False)
    )
    prn: str = Field(index=True)
    href: str = Field(index=True)
    gone: bool = False
    made_at: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (UniqueConstraint("task_id", "prn"),)


class GoneResource(Base, table=True):
    """When a thing of this name last ceased to be; kept until no late news can come any more."""

    prn: str = Field(primary_key=True)
    gone_at: datetime = Field(sa_type=UTCDateTime)
    told_at: datetime = Field(sa_type=UTCDateTime, index=True)


class ProfileArtifact(Base, table=True):
    """What was recorded about a run on request. contract: dispatcher DI-34"""

    id: UUID = Field(primary_key=True)
    task_id: UUID = Field(
        sa_column=Column(ForeignKey("task.id", ondelete="CASCADE"), index=True, nullable=False)
    )
    name: str
    file: str
    size: int | None = Field(default=None, sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (UniqueConstraint("task_id", "name"),)


class RoleGrant(Base, table=True):
    """A role somebody holds: on one object, or on all of its kind. contract: dispatcher §5.3"""

    id: UUID = Field(primary_key=True)
    role: str
    username: str | None = Field(default=None, index=True)
    group_name: str | None = Field(default=None, index=True)
    object_kind: str
    object_id: UUID | None = None
    created_at: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (
        UniqueConstraint(
            "role", "username", "group_name", "object_kind", "object_id",
            postgresql_nulls_not_distinct=True,
        ),
        Index("role_grant_object", "object_kind", "object_id"),
    )  # fmt: skip


class Measurement(Base, table=True):
    """What was measured last, by one process for all. contract: dispatcher §4.10"""

    id: int = Field(default=1, primary_key=True)
    measured_at: datetime = Field(sa_type=UTCDateTime)
    numbers: list[dict[str, Any]] = Field(sa_type=Json)


class Sweep(Base, table=True):
    """When workers were last checked: after a pause of the dispatcher's own they get grace."""

    id: int = Field(default=1, primary_key=True)
    swept_at: datetime = Field(sa_type=UTCDateTime)
