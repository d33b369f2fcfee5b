"""containers stages watchers events"""

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
        "event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("status_id", sa.Uuid(), nullable=False),
        sa.Column("root_id", sa.Uuid(), nullable=False),
        sa.Column("user", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("kind", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column(
            "payload", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("event_of_root", "event", ["root_id", "id"], unique=False)
    op.create_index("event_of_status", "event", ["status_id", "id"], unique=False)
    op.create_index("event_of_user", "event", ["user", "id"], unique=False)
    op.create_index(op.f("ix_event_at"), "event", ["at"], unique=False)
    op.create_table(
        "stage",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("status_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("stage", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["status_id"], ["status.uuid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_stage_status_id"), "stage", ["status_id"], unique=False)
    op.create_table(
        "watcher",
        sa.Column("status_id", sa.Uuid(), nullable=False),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("added_by", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["status_id"], ["status.uuid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("status_id", "username"),
    )
    op.create_index(op.f("ix_watcher_username"), "watcher", ["username"], unique=False)
    op.add_column("status", sa.Column("root_id", sa.Uuid(), nullable=True))
    op.add_column("status", sa.Column("kind", sqlmodel.sql.sqltypes.AutoString(), nullable=True))
    op.add_column("status", sa.Column("members", sa.BigInteger(), nullable=True))
    op.add_column(
        "status", sa.Column("canceled_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True)
    )
    op.add_column("status", sa.Column("rate", sa.Float(), nullable=True))
    op.add_column("status", sa.Column("rate_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "status",
        sa.Column(
            "parameters",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
        ),
    )
    op.execute("update status set root_id = uuid")
    op.alter_column("status", "root_id", nullable=False)
    op.create_index(op.f("ix_status_root_id"), "status", ["root_id"], unique=False)
    op.create_index(
        "status_duration",
        "status",
        ["task_type", sa.literal_column("finished_at desc")],
        unique=False,
        postgresql_where=sa.text("state = 'Succeeded' and not is_container"),
    )
    op.create_index(
        "status_purge",
        "status",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text(
            "parent_id is null and state in ('Succeeded', 'Failed', 'Canceled')"
        ),
    )
    op.create_index(
        "status_failed",
        "status",
        ["parent_id"],
        unique=False,
        postgresql_where=sa.text("state = 'Failed'"),
    )
    # A trusted extension: the owner of a database may create it there.
    op.execute("create extension if not exists pg_trgm")
    op.create_index(
        "artifact_file",
        "artifact",
        ["file"],
        unique=False,
        postgresql_where=sa.text("file is not null"),
    )
    op.add_column(
        "artifact",
        sa.Column(
            "words",
            sa.Text(),
            sa.Computed("uuid::text || E'\\n' || name || E'\\n' || text", persisted=True),
        ),
    )
    op.execute("create index artifact_search on artifact using gin (words gin_trgm_ops)")
    op.create_table(
        "searchable",
        sa.Column("status_id", sa.Uuid(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["status_id"], ["status.uuid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("status_id"),
    )
    op.execute(
        "insert into searchable (status_id, words) select uuid, "
        "concat_ws(E'\\n', uuid, task_id, task_class, name, \"user\") from status"
    )
    op.execute("create index searchable_words on searchable using gin (words gin_trgm_ops)")


def downgrade() -> None:
    op.drop_table("searchable")
    op.drop_index("artifact_search", table_name="artifact")
    op.drop_column("artifact", "words")
    op.drop_index("artifact_file", table_name="artifact")
    op.drop_index("status_failed", table_name="status")
    op.drop_index(
        "status_purge",
        table_name="status",
        postgresql_where=sa.text(
            "parent_id is null and state in ('Succeeded', 'Failed', 'Canceled')"
        ),
    )
    op.drop_index(
        "status_duration",
        table_name="status",
        postgresql_where=sa.text("state = 'Succeeded' and not is_container"),
    )
    op.drop_index(op.f("ix_status_root_id"), table_name="status")
    op.drop_column("status", "parameters")
    op.drop_column("status", "rate_at")
    op.drop_column("status", "rate")
    op.drop_column("status", "canceled_by")
    op.drop_column("status", "members")
    op.drop_column("status", "kind")
    op.drop_column("status", "root_id")
    op.drop_index(op.f("ix_watcher_username"), table_name="watcher")
    op.drop_table("watcher")
    op.drop_index(op.f("ix_stage_status_id"), table_name="stage")
    op.drop_table("stage")
    op.drop_index(op.f("ix_event_at"), table_name="event")
    op.drop_index("event_of_user", table_name="event")
    op.drop_index("event_of_status", table_name="event")
    op.drop_index("event_of_root", table_name="event")
    op.drop_table("event")
