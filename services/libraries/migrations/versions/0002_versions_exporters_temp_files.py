"""versions exporters temp files

Processes of the release before run beside this for a while: new columns have defaults for them.
"""

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "temp_file",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("path", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_temp_file_created_at"), "temp_file", ["created_at"], unique=False)
    op.create_table(
        "exporter",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("path", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column(
            "format",
            sa.Enum(
                "tree",
                "zip",
                name="exporter_format",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("library_id", "name"),
    )
    op.create_table(
        "library_version",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("base_number", sa.Integer(), nullable=True),
        sa.Column(
            "present", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("added", sa.Integer(), nullable=False),
        sa.Column("removed", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("library_id", "number"),
    )
    op.create_table(
        "export",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("exporter_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("start_number", sa.Integer(), nullable=True),
        sa.Column("publication_id", sa.Uuid(), nullable=True),
        sa.Column("path", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["exporter_id"], ["exporter.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_export_exporter_id"), "export", ["exporter_id"], unique=False)
    op.create_table(
        "publication",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("title", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("license", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["library_version.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("version_id"),
    )
    op.create_index(op.f("ix_publication_library_id"), "publication", ["library_id"], unique=False)
    op.create_table(
        "library_version_content",
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("added", sa.Integer(), nullable=False),
        sa.Column("removed", sa.Integer(), nullable=True),
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("removed > added", name="library_version_content_range"),
        sa.ForeignKeyConstraint(
            ["entity_id"],
            ["entity.id"],
        ),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["version.id"],
        ),
        sa.PrimaryKeyConstraint("library_id", "version_id", "added"),
    )
    op.create_index(
        "library_version_content_entities",
        "library_version_content",
        ["entity_id", "added"],
        unique=False,
    )
    op.create_index(
        "library_version_content_latest",
        "library_version_content",
        ["library_id", "entity_id"],
        unique=True,
        postgresql_where=sa.text("removed is null"),
    )
    op.create_index(
        "library_version_content_versions", "library_version_content", ["version_id"], unique=False
    )
    op.create_index(
        "child_pins",
        "child",
        ["pinned_version_id"],
        unique=False,
        postgresql_where=sa.text("pinned_version_id is not null"),
    )
    op.add_column(
        "library", sa.Column("next_version", sa.Integer(), nullable=False, server_default="1")
    )
    op.add_column("library", sa.Column("retain_versions", sa.Integer(), nullable=True))
    op.add_column(
        "media",
        sa.Column(
            "interest_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
        ),
    )
    op.execute("update media set interest_at = created")
    op.execute("""
        insert into library_version (library_id, number, present, added, removed, created)
        select id, 0, '{}', 0, 0, created from library
    """)
    op.create_index("media_by_hash", "media", ["library_id", "hash"], unique=False)
    op.add_column("version", sa.Column("interest_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("version", sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("version", "pruned_at")
    op.drop_column("version", "interest_at")
    op.drop_index("media_by_hash", table_name="media")
    op.drop_column("media", "interest_at")
    op.drop_column("library", "retain_versions")
    op.drop_column("library", "next_version")
    op.drop_index(
        "child_pins", table_name="child", postgresql_where=sa.text("pinned_version_id is not null")
    )
    op.drop_index("library_version_content_versions", table_name="library_version_content")
    op.drop_index(
        "library_version_content_latest",
        table_name="library_version_content",
        postgresql_where=sa.text("removed is null"),
    )
    op.drop_index("library_version_content_entities", table_name="library_version_content")
    op.drop_table("library_version_content")
    op.drop_index(op.f("ix_publication_library_id"), table_name="publication")
    op.drop_table("publication")
    op.drop_index(op.f("ix_export_exporter_id"), table_name="export")
    op.drop_table("export")
    op.drop_table("library_version")
    op.drop_table("exporter")
    op.drop_index(op.f("ix_temp_file_created_at"), table_name="temp_file")
    op.drop_table("temp_file")
