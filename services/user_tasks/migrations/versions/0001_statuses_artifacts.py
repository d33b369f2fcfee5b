"""statuses artifacts"""

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
        "status",
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("user", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("task_id", sqlmodel.sql.sqltypes.AutoString(length=128), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("is_container", sa.Boolean(), nullable=False),
        sa.Column("task_class", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("task_type", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "Pending",
                "In Progress",
                "Retrying",
                "Succeeded",
                "Failed",
                "Canceled",
                name="status_state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("stage", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("completed_steps", sa.BigInteger(), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column(
            "error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["parent_id"], ["status.uuid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uuid"),
        sa.UniqueConstraint("task_id"),
    )
    op.create_index(op.f("ix_status_parent_id"), "status", ["parent_id"], unique=False)
    op.create_index(
        "status_live",
        "status",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state not in ('Succeeded', 'Failed', 'Canceled')"),
    )
    op.create_index(
        "status_newest",
        "status",
        [sa.literal_column("created desc"), sa.literal_column("uuid desc")],
        unique=False,
    )
    op.create_index(
        "status_of_user",
        "status",
        ["user", sa.literal_column("created desc"), sa.literal_column("uuid desc")],
        unique=False,
    )
    op.create_table(
        "artifact",
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("status_id", sa.Uuid(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("file", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("file_name", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("content_type", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("uuid"),
    )
    op.create_index(
        "artifact_newest",
        "artifact",
        [sa.literal_column("created desc"), sa.literal_column("uuid desc")],
        unique=False,
    )
    op.create_index(op.f("ix_artifact_status_id"), "artifact", ["status_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_artifact_status_id"), table_name="artifact")
    op.drop_index("artifact_newest", table_name="artifact")
    op.drop_table("artifact")
    op.drop_index("status_of_user", table_name="status")
    op.drop_index("status_newest", table_name="status")
    op.drop_index(
        "status_live",
        table_name="status",
        postgresql_where=sa.text("state not in ('Succeeded', 'Failed', 'Canceled')"),
    )
    op.drop_index(op.f("ix_status_parent_id"), table_name="status")
    op.drop_table("status")
    op.drop_index("outbox_waiting", table_name="outbox", postgresql_where=sa.text("failed is null"))
    op.drop_table("outbox")
