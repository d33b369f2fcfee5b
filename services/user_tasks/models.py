"""Tables of user_tasks. contract: user_tasks §2"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Text
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel

from services.user_tasks.states import State
from shared import outbox
from shared.database import Json, UTCDateTime, new_registry, text_enum


class Base(SQLModel, registry=new_registry()):
    """This service's own registry."""


Outbox = outbox.outbox_table(Base)


class Status(Base, table=True):
    """One user task. A deleted one stays, hidden, so that late notes do not bring it back."""

    uuid: UUID = Field(primary_key=True)
    user: str
    task_id: str = Field(max_length=128, unique=True)
    parent_id: UUID | None = Field(
        default=None,
        sa_column=Column(ForeignKey("status.uuid", ondelete="CASCADE"), index=True, nullable=True),
    )
    is_container: bool = False
    task_class: str
    task_type: str = ""
    name: str
    state: State = Field(default=State.PENDING, sa_type=text_enum(State, name="status_state"))
    stage: str | None = None
    completed_steps: int = Field(default=0, sa_type=BigInteger)
    total_steps: int = Field(sa_type=BigInteger)
    attempts: int = Field(default=1, sa_type=BigInteger)
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    created: datetime = Field(sa_type=UTCDateTime)
    modified: datetime = Field(sa_type=UTCDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    reported_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    deleted_at: datetime | None = Field(default=None, sa_type=UTCDateTime)

    __table_args__ = (
        Index("status_of_user", "user", sql("created desc"), sql("uuid desc")),
        Index("status_newest", sql("created desc"), sql("uuid desc")),
        Index(
            "status_live",
            "state",
            postgresql_where=sql("state not in ('Succeeded', 'Failed', 'Canceled')"),
        ),
    )


class Artifact(Base, table=True):
    """Something the work left: normally one of file, text and url."""

    uuid: UUID = Field(primary_key=True)
    # No foreign key: a quick task's result may come before the news of the task.
    status_id: UUID = Field(index=True)
    name: str = "Output"
    file: str | None = None
    file_name: str | None = None
    content_type: str | None = None
    size: int | None = Field(default=None, sa_type=BigInteger)
    url: str = Field(default="", sa_type=Text)
    text: str = Field(default="", sa_type=Text)
    created: datetime = Field(sa_type=UTCDateTime)
    modified: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (Index("artifact_newest", sql("created desc"), sql("uuid desc")),)
