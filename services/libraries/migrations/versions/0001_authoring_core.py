"""authoring core"""

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "library",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("key", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("org", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("slug", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("title", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("license", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("allow_public_learning", sa.Boolean(), nullable=False),
        sa.Column("allow_public_read", sa.Boolean(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
        sa.UniqueConstraint("org", "slug"),
        sa.UniqueConstraint("uuid"),
    )
    op.create_table(
        "library_task",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("library_key", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("kind", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_index(
        op.f("ix_library_task_library_key"), "library_task", ["library_key"], unique=False
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "payload", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("failed", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "outbox_waiting",
        "outbox",
        ["receiver", "id"],
        unique=False,
        postgresql_where=sa.text("failed is null"),
    )
    op.create_table(
        "collection",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("code", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("title", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("library_id", "code"),
    )
    op.create_table(
        "draft_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("uuid"),
    )
    op.create_index(op.f("ix_draft_log_library_id"), "draft_log", ["library_id"], unique=False)
    op.create_table(
        "entity",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("entity_ref", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "component",
                "unit",
                "subsection",
                "section",
                name="entity_kind",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("type", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("code", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("can_stand_alone", sa.Boolean(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("library_id", "entity_ref"),
        sa.UniqueConstraint("uuid"),
    )
    op.create_index("entity_of_library", "entity", ["library_id", "id"], unique=False)
    op.create_index("entity_of_type", "entity", ["library_id", "type", "id"], unique=False)
    op.create_table(
        "grant",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("group_name", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column(
            "access_level",
            sa.Enum(
                "admin",
                "author",
                "read",
                name="grant_level",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.CheckConstraint("(username is null) <> (group_name is null)", name="grant_one_holder"),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("library_id", "group_name"),
        sa.UniqueConstraint("library_id", "username"),
    )
    op.create_index(op.f("ix_grant_username"), "grant", ["username"], unique=False)
    op.create_table(
        "media",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("hash", sqlmodel.sql.sqltypes.AutoString(length=40), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("has_file", sa.Boolean(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("has_file or text is not null", name="media_somewhere"),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("library_id", "media_type", "hash"),
    )
    op.create_table(
        "publish_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("message", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("uuid"),
    )
    op.create_index(
        "publish_log_of_library",
        "publish_log",
        ["library_id", sa.literal_column("id desc")],
        unique=False,
    )
    op.create_table(
        "collection_member",
        sa.Column("collection_id", sa.BigInteger(), nullable=False),
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["collection_id"], ["collection.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("collection_id", "entity_id"),
    )
    op.create_index(
        op.f("ix_collection_member_entity_id"), "collection_member", ["entity_id"], unique=False
    )
    op.create_table(
        "version",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("version_num", sa.Integer(), nullable=False),
        sa.Column("title", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.CheckConstraint("version_num >= 1", name="version_num_positive"),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("entity_id", "version_num"),
        sa.UniqueConstraint("uuid"),
    )
    op.create_table(
        "child",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("order_num", sa.Integer(), nullable=False),
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("pinned_version_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["pinned_version_id"], ["version.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version_id", "order_num"),
    )
    op.create_index(op.f("ix_child_entity_id"), "child", ["entity_id"], unique=False)
    op.create_table(
        "dependency",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version_id", "entity_id"),
    )
    op.create_index("dependency_parents", "dependency", ["entity_id", "version_id"], unique=False)
    op.create_table(
        "draft_record",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("old_version_id", sa.BigInteger(), nullable=True),
        sa.Column("new_version_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["log_id"], ["draft_log.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["new_version_id"], ["version.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["old_version_id"], ["version.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("log_id", "entity_id"),
    )
    op.create_index(
        "draft_record_history",
        "draft_record",
        ["entity_id", sa.literal_column("log_id desc")],
        unique=False,
    )
    op.create_table(
        "publish_record",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("log_id", sa.BigInteger(), nullable=False),
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("old_version_id", sa.BigInteger(), nullable=True),
        sa.Column("new_version_id", sa.BigInteger(), nullable=True),
        sa.Column("direct", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["log_id"], ["publish_log.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["new_version_id"], ["version.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["old_version_id"], ["version.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("log_id", "entity_id"),
    )
    op.create_index(
        "publish_record_history",
        "publish_record",
        ["entity_id", sa.literal_column("log_id desc")],
        unique=False,
    )
    op.create_table(
        "version_media",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("path", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("media_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["media_id"], ["media.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version_id", "path"),
    )
    op.create_index(op.f("ix_version_media_media_id"), "version_media", ["media_id"], unique=False)
    op.create_table(
        "draft",
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.Column("record_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["record_id"], ["draft_record.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entity_id"),
        sa.UniqueConstraint("version_id"),
    )
    op.create_table(
        "draft_side_effect",
        sa.Column("cause_id", sa.BigInteger(), nullable=False),
        sa.Column("effect_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["cause_id"], ["draft_record.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["effect_id"], ["draft_record.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("cause_id", "effect_id"),
    )
    op.create_index(
        op.f("ix_draft_side_effect_effect_id"), "draft_side_effect", ["effect_id"], unique=False
    )
    op.create_table(
        "publish_side_effect",
        sa.Column("cause_id", sa.BigInteger(), nullable=False),
        sa.Column("effect_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["cause_id"], ["publish_record.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["effect_id"], ["publish_record.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("cause_id", "effect_id"),
    )
    op.create_index(
        op.f("ix_publish_side_effect_effect_id"), "publish_side_effect", ["effect_id"], unique=False
    )
    op.create_table(
        "published",
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.Column("record_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["record_id"], ["publish_record.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entity_id"),
        sa.UniqueConstraint("version_id"),
    )


def downgrade() -> None:
    op.drop_table("published")
    op.drop_index(op.f("ix_publish_side_effect_effect_id"), table_name="publish_side_effect")
    op.drop_table("publish_side_effect")
    op.drop_index(op.f("ix_draft_side_effect_effect_id"), table_name="draft_side_effect")
    op.drop_table("draft_side_effect")
    op.drop_table("draft")
    op.drop_index(op.f("ix_version_media_media_id"), table_name="version_media")
    op.drop_table("version_media")
    op.drop_index("publish_record_history", table_name="publish_record")
    op.drop_table("publish_record")
    op.drop_index("draft_record_history", table_name="draft_record")
    op.drop_table("draft_record")
    op.drop_index("dependency_parents", table_name="dependency")
    op.drop_table("dependency")
    op.drop_index(op.f("ix_child_entity_id"), table_name="child")
    op.drop_table("child")
    op.drop_table("version")
    op.drop_index(op.f("ix_collection_member_entity_id"), table_name="collection_member")
    op.drop_table("collection_member")
    op.drop_index("publish_log_of_library", table_name="publish_log")
    op.drop_table("publish_log")
    op.drop_table("media")
    op.drop_index(op.f("ix_grant_username"), table_name="grant")
    op.drop_table("grant")
    op.drop_index("entity_of_type", table_name="entity")
    op.drop_index("entity_of_library", table_name="entity")
    op.drop_table("entity")
    op.drop_index(op.f("ix_draft_log_library_id"), table_name="draft_log")
    op.drop_table("draft_log")
    op.drop_table("collection")
    op.drop_index("outbox_waiting", table_name="outbox", postgresql_where=sa.text("failed is null"))
    op.drop_table("outbox")
    op.drop_index(op.f("ix_library_task_library_key"), table_name="library_task")
    op.drop_table("library_task")
    op.drop_table("library")
