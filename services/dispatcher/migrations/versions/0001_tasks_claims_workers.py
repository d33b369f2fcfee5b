"""tasks claims workers"""

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("fence_seq", data_type=sa.BigInteger())))
    op.create_table(
        "claim",
        sa.Column("resource", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("exclusive", sa.Boolean(), nullable=False),
        sa.Column("granted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("resource", "seq"),
    )
    op.create_index(
        "claim_exclusive",
        "claim",
        ["resource", "seq"],
        unique=False,
        postgresql_where=sa.text("exclusive"),
    )
    op.create_index("claim_task", "claim", ["seq"], unique=False)
    op.create_index(
        "claim_waiting",
        "claim",
        ["resource", "seq"],
        unique=False,
        postgresql_where=sa.text("not granted"),
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
        "sweep",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "waiting",
                "skipped",
                "running",
                "completed",
                "failed",
                "canceled",
                "canceling",
                name="task_state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("queue", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column(
            "arguments", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("logging_cid", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("reserved", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "user_task", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("repeatable", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("blocked_by", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=True),
        sa.Column("worker_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("unblocked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column(
            "result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("seq"),
    )
    op.create_index(op.f("ix_task_parent_id"), "task", ["parent_id"], unique=False)
    op.create_index("task_created", "task", ["created_at", "id"], unique=False)
    op.create_index(
        "task_held",
        "task",
        ["worker_id"],
        unique=False,
        postgresql_where=sa.text("state in ('running', 'canceling')"),
    )
    op.create_index("task_name", "task", ["name", "created_at"], unique=False)
    op.create_index("task_owner", "task", ["username", "created_at"], unique=False)
    op.create_index("task_resources", "task", ["reserved"], unique=False, postgresql_using="gin")
    op.create_index(
        "task_unpushed",
        "task",
        ["seq"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting' and blocked_by = 0 and pushed_at is null"),
    )
    op.create_index(
        "task_unstarted",
        "task",
        ["pushed_at"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting' and blocked_by = 0"),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("queue", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column(
            "versions", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_heartbeat", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_worker_last_heartbeat"), "worker", ["last_heartbeat"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_worker_last_heartbeat"), table_name="worker")
    op.drop_table("worker")
    op.drop_index(
        "task_unstarted",
        table_name="task",
        postgresql_where=sa.text("state = 'waiting' and blocked_by = 0"),
    )
    op.drop_index(
        "task_unpushed",
        table_name="task",
        postgresql_where=sa.text("state = 'waiting' and blocked_by = 0 and pushed_at is null"),
    )
    op.drop_index("task_resources", table_name="task", postgresql_using="gin")
    op.drop_index("task_owner", table_name="task")
    op.drop_index("task_name", table_name="task")
    op.drop_index(
        "task_held",
        table_name="task",
        postgresql_where=sa.text("state in ('running', 'canceling')"),
    )
    op.drop_index("task_created", table_name="task")
    op.drop_index(op.f("ix_task_parent_id"), table_name="task")
    op.drop_table("task")
    op.drop_table("sweep")
    op.drop_index("outbox_waiting", table_name="outbox", postgresql_where=sa.text("failed is null"))
    op.drop_table("outbox")
    op.drop_index("claim_waiting", table_name="claim", postgresql_where=sa.text("not granted"))
    op.drop_index("claim_task", table_name="claim")
    op.drop_index("claim_exclusive", table_name="claim", postgresql_where=sa.text("exclusive"))
    op.drop_table("claim")
    op.execute(sa.schema.DropSequence(sa.Sequence("fence_seq")))
