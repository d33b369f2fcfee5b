"""Tables of user_tasks. contract: user_tasks §2"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Column, Computed, ForeignKey, Identity, Index, Text
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
    # The top of its tree; its own id for a task that stands alone.
    root_id: UUID = Field(index=True)
    is_container: bool = False
    # chain, group or chord, for containers.
    kind: str | None = None
    # How many direct children a container will have, known from its first mention.
    members: int | None = Field(default=None, sa_type=BigInteger)
    task_class: str
    task_type: str = ""
    name: str
    state: State = Field(default=State.PENDING, sa_type=text_enum(State, name="status_state"))
    stage: str | None = None
    completed_steps: int = Field(default=0, sa_type=BigInteger)
    total_steps: int = Field(sa_type=BigInteger)
    attempts: int = Field(default=1, sa_type=BigInteger)
    # Steps per second of this attempt, weighted towards the newest, and when it was measured.
    rate: float | None = None
    rate_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    parameters: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(Json, nullable=False, server_default="{}")
    )
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    created: datetime = Field(sa_type=UTCDateTime)
    modified: datetime = Field(sa_type=UTCDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    reported_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    # Who asked that it ends; a container's children that become known later end as well.
    canceled_by: str | None = None
    deleted_at: datetime | None = Field(default=None, sa_type=UTCDateTime)

    # No index on what changes with every step: such an update then touches no index at all.
    __table_args__ = (
        Index("status_of_user", "user", sql("created desc"), sql("uuid desc")),
        Index("status_newest", sql("created desc"), sql("uuid desc")),
        Index(
            "status_live",
            "state",
            postgresql_where=sql("state not in ('Succeeded', 'Failed', 'Canceled')"),
        ),
        Index(
            "status_purge",
            "finished_at",
            postgresql_where=sql(
                "parent_id is null and state in ('Succeeded', 'Failed', 'Canceled')"
            ),
        ),
        Index("status_failed", "parent_id", postgresql_where=sql("state = 'Failed'")),
        Index(
            "status_duration",
            "task_type",
            sql("finished_at desc"),
            postgresql_where=sql("state = 'Succeeded' and not is_container"),
        ),
    )

    def __str__(self) -> str:
        return f"<UserTaskStatus: {self.name}>"


# A word has no line break, so that it is found within one of these or not at all.
SEARCHED = "uuid::text || E'\\n' || name || E'\\n' || text"


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
    # What staff may find it by.
    words: str = Field(default=None, sa_column=Column(Text, Computed(SEARCHED, persisted=True)))
    created: datetime = Field(sa_type=UTCDateTime)
    modified: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (
        Index("artifact_newest", sql("created desc"), sql("uuid desc")),
        Index("artifact_file", "file", postgresql_where=sql("file is not null")),
        Index(
            "artifact_search",
            "words",
            postgresql_using="gin",
            postgresql_ops={"words": "gin_trgm_ops"},
        ),
    )

    def __str__(self) -> str:
        return f"<UserTaskArtifact: ({self.name}) {self.summary}>"

    @property
    def summary(self) -> str:
        """What it is, in a few words. contract: user_tasks §2.2"""
        if self.file or self.url:
            return self.file_name or self.file or self.url
        return self.text if len(self.text) <= 50 else self.text[:47] + "..."


class Searchable(Base, table=True):
    """What staff may find a task by. Apart from its row, which changes with every step."""

    status_id: UUID = Field(
        sa_column=Column(ForeignKey("status.uuid", ondelete="CASCADE"), primary_key=True)
    )
    words: str = Field(sa_type=Text)

    __table_args__ = (
        Index(
            "searchable_words",
            "words",
            postgresql_using="gin",
            postgresql_ops={"words": "gin_trgm_ops"},
        ),
    )


class Stage(Base, table=True):
    """What a job said it was doing, and since when."""

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(), primary_key=True))
    status_id: UUID = Field(
        sa_column=Column(ForeignKey("status.uuid", ondelete="CASCADE"), index=True, nullable=False)
    )
    attempt: int = Field(sa_type=BigInteger)
    stage: str
    at: datetime = Field(sa_type=UTCDateTime)


class Watcher(Base, table=True):
    """Somebody besides the owner who may see a task and follow it."""

    status_id: UUID = Field(
        sa_column=Column(ForeignKey("status.uuid", ondelete="CASCADE"), primary_key=True)
    )
    username: str = Field(primary_key=True, index=True)
    added_by: str
    created: datetime = Field(sa_type=UTCDateTime)


class Event(Base, table=True):
    """A change of a user task, for those who follow it; ids are given in the order of commits."""

    id: int | None = Field(
        default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True)
    )
    status_id: UUID
    root_id: UUID
    user: str
    kind: str
    payload: dict[str, Any] = Field(sa_type=Json)
    at: datetime = Field(sa_type=UTCDateTime, index=True)

    __table_args__ = (
        Index("event_of_status", "status_id", "id"),
        Index("event_of_root", "root_id", "id"),
        Index("event_of_user", "user", "id"),
    )
