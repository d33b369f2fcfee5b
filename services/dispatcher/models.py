"""Tables of the dispatcher."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Column, Identity, Index, Sequence, Text, text
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
    parent_id: UUID | None = Field(default=None, index=True)
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
    pushed_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    result: Any = Field(default=None, sa_type=Json, nullable=True)

    __table_args__ = (
        Index("task_created", "created_at", "id"),
        Index("task_owner", "username", "created_at"),
        Index("task_name", "name", "created_at"),
        Index(
            "task_unpushed",
            "seq",
            postgresql_where=text("state = 'waiting' and blocked_by = 0 and pushed_at is null"),
        ),
        Index(
            "task_unstarted",
            "pushed_at",
            postgresql_where=text("state = 'waiting' and blocked_by = 0"),
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

    resource: str = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    exclusive: bool
    granted: bool = False

    __table_args__ = (
        Index("claim_task", "seq"),
        Index("claim_exclusive", "resource", "seq", postgresql_where=text("exclusive")),
        Index("claim_waiting", "resource", "seq", postgresql_where=text("not granted")),
    )


class Worker(Base, table=True):
    """A worker process that has reported within its time limit. contract: dispatcher §1.6"""

    id: UUID = Field(primary_key=True)
    name: str
    queue: str
    versions: dict[str, str] = Field(default_factory=dict, sa_type=Json)
    started_at: datetime = Field(sa_type=UTCDateTime)
    last_heartbeat: datetime = Field(sa_type=UTCDateTime, index=True)


class Sweep(Base, table=True):
    """When workers were last checked: after a pause of the dispatcher's own they get grace."""

    id: int = Field(default=1, primary_key=True)
    swept_at: datetime = Field(sa_type=UTCDateTime)
