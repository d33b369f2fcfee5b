"""Tables of libraries. contract: content_core §1"""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Identity,
    Index,
    Text,
    UniqueConstraint,
    Uuid,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlmodel import Field, SQLModel

from services.libraries.states import AccessLevel, ExportFormat, Kind
from shared import events, outbox
from shared.database import Json, UTCDateTime, new_registry, row_type, text_enum
from shared.ids import new_id


class Base(SQLModel, registry=new_registry()):
    """This service's own registry."""


Outbox = outbox.outbox_table(Base)


def identity() -> Column[int]:
    return Column(BigInteger, Identity(), primary_key=True)


def owned_by(target: str, *, nullable: bool = False, **options: Any) -> Column[int]:
    """A reference that goes with what it refers to."""
    return Column(BigInteger, ForeignKey(target, ondelete="CASCADE"), nullable=nullable, **options)


class Library(Base, table=True):
    """One pool of content, and the package of all its entities. contract: libraries §1.4"""

    id: int = Field(default=None, sa_column=identity())
    uuid: UUID = Field(default_factory=uuid4, unique=True)
    key: str = Field(unique=True)
    org: str
    slug: str
    title: str
    description: str = Field(default="", sa_type=Text)
    license: str = ""
    allow_public_learning: bool = False
    allow_public_read: bool = False
    # The highest fence of work that changed the library alone.
    fence: int = Field(default=0, sa_type=BigInteger)
    # Numbers of library versions are given once; how many of them are kept, None for all.
    next_version: int = 1
    retain_versions: int | None = None
    created: datetime = Field(sa_type=UTCDateTime)
    updated: datetime = Field(sa_type=UTCDateTime)
    # A restored archive that is not a library yet: who restored it, and when. contract: §3.5
    staged_by: str | None = None
    staged_at: datetime | None = Field(default=None, sa_type=UTCDateTime)

    __table_args__ = (
        UniqueConstraint("org", "slug"),
        Index("library_staged", "staged_at", postgresql_where=sql("staged_at is not null")),
    )


class Grant(Base, table=True):
    """What a person or a group may do with a library. contract: libraries §3.3"""

    id: int = Field(default=None, sa_column=identity())
    library_id: int = Field(sa_column=owned_by("library.id"))
    username: str | None = Field(default=None, index=True)
    group_name: str | None = None
    access_level: AccessLevel = Field(sa_type=text_enum(AccessLevel, name="grant_level"))

    __table_args__ = (
        UniqueConstraint("library_id", "username"),
        UniqueConstraint("library_id", "group_name"),
        CheckConstraint("(username is null) <> (group_name is null)", name="grant_one_holder"),
    )


class Entity(Base, table=True):
    """The identity of a component or container; never removed while its library lives."""

    id: int = Field(default=None, sa_column=identity())
    uuid: UUID = Field(default_factory=uuid4, unique=True)
    library_id: int = Field(sa_column=owned_by("library.id"))
    entity_ref: str
    kind: Kind = Field(sa_type=text_enum(Kind, name="entity_kind"))
    type: str
    code: str
    can_stand_alone: bool = True
    created: datetime = Field(sa_type=UTCDateTime)
    created_by: str | None = None

    __table_args__ = (
        UniqueConstraint("library_id", "entity_ref"),
        Index("entity_of_library", "library_id", "id"),
        Index("entity_of_type", "library_id", "type", "id"),
    )


# The columns of both as plain rows, for requests that have no session look after them.
LibraryRow: Any = row_type("LibraryRow", list(Library.__table__.columns.keys()))  # type: ignore[attr-defined]
EntityRow: Any = row_type("EntityRow", list(Entity.__table__.columns.keys()))  # type: ignore[attr-defined]


class Version(Base, table=True):
    """An immutable state of an entity. contract: content_core §1.2"""

    id: int = Field(default=None, sa_column=identity())
    uuid: UUID = Field(default_factory=uuid4, unique=True)
    entity_id: int = Field(sa_column=owned_by("entity.id"))
    version_num: int
    title: str
    created: datetime = Field(sa_type=UTCDateTime)
    created_by: str | None = None
    # When a library version last took it up, and when its content was cleaned up.
    interest_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    pruned_at: datetime | None = Field(default=None, sa_type=UTCDateTime)

    __table_args__ = (
        UniqueConstraint("entity_id", "version_num"),
        CheckConstraint("version_num >= 1", name="version_num_positive"),
    )


class Dependency(Base, table=True):
    """A version refers, without a pin, to an entity: its direct children."""

    version_id: int = Field(sa_column=owned_by("version.id", primary_key=True))
    entity_id: int = Field(sa_column=owned_by("entity.id", primary_key=True))

    __table_args__ = (Index("dependency_parents", "entity_id", "version_id"),)


class Child(Base, table=True):
    """One row of a container version's ordered list; a version here is a pin."""

    version_id: int = Field(sa_column=owned_by("version.id", primary_key=True))
    order_num: int = Field(primary_key=True)
    entity_id: int = Field(sa_column=owned_by("entity.id", index=True))
    pinned_version_id: int | None = Field(
        default=None, sa_column=owned_by("version.id", nullable=True)
    )

    __table_args__ = (
        Index(
            "child_pins",
            "pinned_version_id",
            postgresql_where=sql("pinned_version_id is not null"),
        ),
    )


class Draft(Base, table=True):
    """Where editing stands: no row, never; null, deleted; else the live version."""

    entity_id: int = Field(sa_column=owned_by("entity.id", primary_key=True))
    version_id: int | None = Field(
        default=None, sa_column=owned_by("version.id", nullable=True, unique=True)
    )
    record_id: int | None = Field(
        default=None, sa_column=owned_by("draft_record.id", nullable=True)
    )


class DraftLog(Base, table=True):
    """One operation on drafts."""

    __tablename__ = "draft_log"
    id: int = Field(default=None, sa_column=identity())
    uuid: UUID = Field(default_factory=uuid4, unique=True)
    library_id: int = Field(sa_column=owned_by("library.id", index=True))
    changed_at: datetime = Field(sa_type=UTCDateTime)
    changed_by: str | None = None


class DraftRecord(Base, table=True):
    """What one operation did to one entity's draft; equal versions are a side effect."""

    __tablename__ = "draft_record"
    id: int = Field(default=None, sa_column=identity())
    log_id: int = Field(sa_column=owned_by("draft_log.id"))
    entity_id: int = Field(sa_column=owned_by("entity.id"))
    old_version_id: int | None = Field(
        default=None, sa_column=owned_by("version.id", nullable=True)
    )
    new_version_id: int | None = Field(
        default=None, sa_column=owned_by("version.id", nullable=True)
    )

    __table_args__ = (
        UniqueConstraint("log_id", "entity_id"),
        Index("draft_record_history", "entity_id", sql("log_id desc")),
    )


class DraftSideEffect(Base, table=True):
    """One edge: the child's record caused the parent's. One level only."""

    __tablename__ = "draft_side_effect"
    cause_id: int = Field(sa_column=owned_by("draft_record.id", primary_key=True))
    effect_id: int = Field(sa_column=owned_by("draft_record.id", primary_key=True, index=True))


class Published(Base, table=True):
    """What readers see: no row, never published; null, its deletion was published."""

    entity_id: int = Field(sa_column=owned_by("entity.id", primary_key=True))
    version_id: int | None = Field(
        default=None, sa_column=owned_by("version.id", nullable=True, unique=True)
    )
    record_id: int = Field(sa_column=owned_by("publish_record.id"))


class PublishLog(Base, table=True):
    """One publish operation."""

    __tablename__ = "publish_log"
    id: int = Field(default=None, sa_column=identity())
    uuid: UUID = Field(default_factory=uuid4, unique=True)
    library_id: int = Field(sa_column=owned_by("library.id"))
    message: str = ""
    published_at: datetime = Field(sa_type=UTCDateTime)
    published_by: str | None = None

    __table_args__ = (Index("publish_log_of_library", "library_id", sql("id desc")),)


class PublishRecord(Base, table=True):
    """What one publish did to one entity; `direct` when it was asked for by itself."""

    __tablename__ = "publish_record"
    id: int = Field(default=None, sa_column=identity())
    log_id: int = Field(sa_column=owned_by("publish_log.id"))
    entity_id: int = Field(sa_column=owned_by("entity.id"))
    old_version_id: int | None = Field(
        default=None, sa_column=owned_by("version.id", nullable=True)
    )
    new_version_id: int | None = Field(
        default=None, sa_column=owned_by("version.id", nullable=True)
    )
    direct: bool | None = False
    # The change of the draft that this made public; what came later is not in it.
    draft_log_id: int | None = Field(default=None, sa_type=BigInteger)

    __table_args__ = (
        UniqueConstraint("log_id", "entity_id"),
        Index("publish_record_history", "entity_id", sql("log_id desc")),
    )


class PublishSideEffect(Base, table=True):
    """One edge, as for drafts."""

    __tablename__ = "publish_side_effect"
    cause_id: int = Field(sa_column=owned_by("publish_record.id", primary_key=True))
    effect_id: int = Field(sa_column=owned_by("publish_record.id", primary_key=True, index=True))


class Media(Base, table=True):
    """Bytes by their content: a text here, or a file in the object store at `content_path`."""

    id: int = Field(default=None, sa_column=identity())
    library_id: int = Field(sa_column=owned_by("library.id"))
    media_type: str
    hash: str = Field(max_length=40)
    size: int = Field(sa_type=BigInteger)
    text: str | None = Field(default=None, sa_type=Text)
    has_file: bool = False
    created: datetime = Field(sa_type=UTCDateTime)
    # When it was last stored again; what is old and referred to by nothing is an orphan.
    interest_at: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (
        UniqueConstraint("library_id", "media_type", "hash"),
        Index("media_by_hash", "library_id", "hash"),
        CheckConstraint("has_file or text is not null", name="media_somewhere"),
    )


class VersionMedia(Base, table=True):
    """A component version's files: `block.xml` is its OLX."""

    __tablename__ = "version_media"
    version_id: int = Field(sa_column=owned_by("version.id", primary_key=True))
    path: str = Field(primary_key=True)
    media_id: int = Field(sa_column=owned_by("media.id", index=True))


class Collection(Base, table=True):
    """A group of entities; not versioned, not published. contract: content_core §1.7"""

    id: int = Field(default=None, sa_column=identity())
    library_id: int = Field(sa_column=owned_by("library.id"))
    code: str
    title: str
    description: str = Field(default="", sa_type=Text)
    enabled: bool = True
    created: datetime = Field(sa_type=UTCDateTime)
    modified: datetime = Field(sa_type=UTCDateTime)
    created_by: str | None = None
    # The same person's number in their token: the wire shows it, for collections alone.
    created_by_id: int | None = Field(default=None, sa_type=BigInteger)

    __table_args__ = (UniqueConstraint("library_id", "code"),)


class CollectionMember(Base, table=True):
    """An entity in a collection, deleted or not."""

    __tablename__ = "collection_member"
    collection_id: int = Field(sa_column=owned_by("collection.id", primary_key=True))
    entity_id: int = Field(sa_column=owned_by("entity.id", primary_key=True, index=True))
    created: datetime = Field(sa_type=UTCDateTime)


class LibraryTask(Base, table=True):
    """Work dispatched for a library: whose it is and what it does."""

    __tablename__ = "library_task"
    task_id: UUID = Field(primary_key=True)
    library_key: str = Field(index=True)
    kind: str
    username: str
    created: datetime = Field(sa_type=UTCDateTime)


class LibraryVersion(Base, table=True):
    """An immutable, numbered snapshot of a library's content. contract: dispatcher §6.7

    The row is written after its content, in the same transaction: what has a row is complete.
    """

    __tablename__ = "library_version"
    id: int = Field(default=None, sa_column=identity())
    library_id: int = Field(sa_column=owned_by("library.id"))
    number: int
    base_number: int | None = None
    present: dict[str, int] = Field(default_factory=dict, sa_type=Json)
    added: int = 0
    removed: int = 0
    created: datetime = Field(sa_type=UTCDateTime)
    created_by: str | None = None

    __table_args__ = (UniqueConstraint("library_id", "number"),)


class LibraryVersionContent(Base, table=True):
    """A version of an entity is in all library versions from `added` up to, not with, `removed`.

    One row however many library versions hold it; a library version costs what it changed.
    """

    __tablename__ = "library_version_content"
    library_id: int = Field(sa_column=owned_by("library.id", primary_key=True))
    version_id: int = Field(
        sa_column=Column(BigInteger, ForeignKey("version.id"), primary_key=True)
    )
    added: int = Field(primary_key=True)
    removed: int | None = None
    entity_id: int = Field(sa_column=Column(BigInteger, ForeignKey("entity.id"), nullable=False))

    __table_args__ = (
        Index("library_version_content_versions", "version_id"),
        Index("library_version_content_entities", "entity_id", "added"),
        Index(
            "library_version_content_latest",
            "library_id",
            "entity_id",
            unique=True,
            postgresql_where=sql("removed is null"),
        ),
        CheckConstraint("removed > added", name="library_version_content_range"),
    )


class Publication(Base, table=True):
    """A library version that was published, with what the library said of itself then."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    library_id: int = Field(sa_column=owned_by("library.id", index=True))
    # Refuses to let its version go.
    version_id: int = Field(
        sa_column=Column(BigInteger, ForeignKey("library_version.id"), nullable=False, unique=True)
    )
    title: str
    description: str = Field(sa_type=Text)
    license: str
    created: datetime = Field(sa_type=UTCDateTime)
    created_by: str | None = None


class Exporter(Base, table=True):
    """How and where the versions of a library are exported. contract: dispatcher §6.8"""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    library_id: int = Field(sa_column=owned_by("library.id"))
    name: str
    path: str
    format: ExportFormat = Field(sa_type=text_enum(ExportFormat, name="exporter_format"))
    created: datetime = Field(sa_type=UTCDateTime)
    created_by: str | None = None
    fence: int = Field(default=0, sa_type=BigInteger)

    __table_args__ = (UniqueConstraint("library_id", "name"),)


class Export(Base, table=True):
    """One export: what of, where to, and how much has been written.

    While `writing`, what is at its place is its own and nothing that anyone may see.
    """

    id: UUID = Field(default_factory=new_id, primary_key=True)
    exporter_id: UUID = Field(
        sa_column=Column(
            Uuid, ForeignKey("exporter.id", ondelete="CASCADE"), nullable=False, index=True
        )
    )
    task_id: UUID
    number: int
    start_number: int | None = None
    publication_id: UUID | None = None
    path: str
    files: int = 0
    size: int = Field(default=0, sa_type=BigInteger)
    created: datetime = Field(sa_type=UTCDateTime)
    finished: datetime | None = Field(default=None, sa_type=UTCDateTime)
    fence: int = Field(default=0, sa_type=BigInteger)
    writing: bool = False

    __table_args__ = (
        Index("export_of_task", "task_id", unique=True),
        Index("export_unfinished", "id", postgresql_where=sql("writing")),
    )


class TempFile(Base, table=True):
    """An uploaded file that waits for the task that will own it. contract: dispatcher §6.2"""

    __tablename__ = "temp_file"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    path: str
    size: int = Field(sa_type=BigInteger)
    sha256: str
    created_by: str
    created_at: datetime = Field(sa_type=UTCDateTime, index=True)
    task_id: UUID | None = None


class Person(Base, table=True):
    """Somebody who has called, or whom an administrator named. contract: libraries §3.3"""

    username: str = Field(primary_key=True)
    email: str = ""
    active: bool = True
    # Whether this person may create libraries where not everybody may.
    creator: bool = False
    seen: datetime = Field(sa_type=UTCDateTime)

    __table_args__ = (Index("person_email", sql("lower(email)")),)


class TeamGroup(Base, table=True):
    """A group that grants and roles may name."""

    __tablename__ = "team_group"
    name: str = Field(primary_key=True)
    created: datetime = Field(sa_type=UTCDateTime)


class TeamGroupMember(Base, table=True):
    """Somebody an administrator put into a group; tokens may name more groups of a person."""

    __tablename__ = "team_group_member"
    group_name: str = Field(
        sa_column=Column(Text, ForeignKey("team_group.name", ondelete="CASCADE"), primary_key=True)
    )
    username: str = Field(primary_key=True, index=True)


class RoleAssignment(Base, table=True):
    """A role of a person or a group over a scope: one library, an org's, or all."""

    __tablename__ = "role_assignment"
    id: int = Field(default=None, sa_column=identity())
    username: str | None = None
    group_name: str | None = None
    role: str
    scope: str
    # A denial counts more than any allowance.
    denied: bool = False
    created: datetime = Field(sa_type=UTCDateTime)
    created_by: str | None = None

    __table_args__ = (
        UniqueConstraint(
            "username", "group_name", "role", "scope", "denied",
            name="role_assignment_once", postgresql_nulls_not_distinct=True,
        ),
        Index("role_assignment_person", "username"),
        Index("role_assignment_group", "group_name"),
        Index("role_assignment_scope", "scope"),
        CheckConstraint(
            "(username is null) <> (group_name is null)", name="role_assignment_one_holder"
        ),
    )  # fmt: skip


class Clipboard(Base, table=True):
    """What somebody copied last: OLX of a component, or of a container with all it holds.

    contract: libraries §4.10
    """

    username: str = Field(primary_key=True)
    id: UUID = Field(default_factory=new_id, unique=True)
    source_key: str
    source_title: str = ""
    block_type: str
    title: str
    olx: str = Field(sa_type=Text)
    created: datetime = Field(sa_type=UTCDateTime)


class Tag(Base, table=True):
    """A word that authors gave to an entity. Not versioned, as collections are not."""

    entity_id: int = Field(sa_column=owned_by("entity.id", primary_key=True))
    name: str = Field(primary_key=True)

    __table_args__ = (Index("tag_name", sql("lower(name)")),)


class Findable(Base, table=True):
    """The words of a live draft. Kept by triggers on `draft`, see functions.sql."""

    entity_id: int = Field(sa_column=owned_by("entity.id", primary_key=True))
    library_id: int = Field(sa_column=owned_by("library.id", index=True))
    title: str
    tags: str = Field(default="", sa_type=Text)
    body: str = Field(default="", sa_type=Text)
    words: str = Field(
        default=None,
        sa_column=Column(
            TSVECTOR,
            Computed(
                "setweight(to_tsvector('simple', title), 'A')"
                " || setweight(to_tsvector('simple', tags), 'B')"
                " || setweight(to_tsvector('simple', body), 'D')",
                persisted=True,
            ),
        ),
    )

    __table_args__ = (Index("findable_words", "words", postgresql_using="gin"),)


class Unpublished(Base, table=True):
    """A draft that differs from what is published, or just did: look at the pointers as well.

    None that differs is missing. Kept by triggers on `draft` and `published`, see functions.sql.
    """

    entity_id: int = Field(sa_column=owned_by("entity.id", primary_key=True))
    library_id: int = Field(sa_column=owned_by("library.id"))
    version_id: int | None = Field(default=None, sa_type=BigInteger)

    __table_args__ = (Index("unpublished_of_library", "library_id", "entity_id"),)


class LiveCount(Base, table=True):
    """So many live items of a kind more, or less; their sum is how many a library has.

    Kept by triggers on `draft`, see functions.sql.
    """

    __tablename__ = "live_count"
    id: int = Field(default=None, sa_column=identity())
    library_id: int = Field(sa_column=owned_by("library.id"))
    kind: str = Field(sa_type=Text)
    items: int = Field(sa_type=BigInteger)

    __table_args__ = (Index("live_count_of_library", "library_id", "id"),)


EventOutbox = events.event_table(Base)
