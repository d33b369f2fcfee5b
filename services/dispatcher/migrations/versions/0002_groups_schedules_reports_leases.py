"""groups schedules reports leases"""

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

from shared.migrations.functions import drop_functions, install_functions

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "requirement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(
            "versions", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("versions"),
    )
    op.create_table(
        "rolegrant",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("role", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("group_name", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("object_kind", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "role",
            "username",
            "group_name",
            "object_kind",
            "object_id",
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(op.f("ix_rolegrant_group_name"), "rolegrant", ["group_name"], unique=False)
    op.create_index(op.f("ix_rolegrant_username"), "rolegrant", ["username"], unique=False)
    op.create_index("role_grant_object", "rolegrant", ["object_kind", "object_id"], unique=False)
    op.create_table(
        "taskgroup",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("description", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("all_tasks_dispatched", sa.Boolean(), nullable=False),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("task_group_created", "taskgroup", ["created_at", "id"], unique=False)
    op.create_table(
        "taskschedule",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("next_dispatch", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dispatch_interval", sa.Interval(), nullable=True),
        sa.Column("task_name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("queue", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column(
            "arguments", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("last_task_id", sa.Uuid(), nullable=True),
        sa.Column("built_in", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_index(
        op.f("ix_taskschedule_next_dispatch"), "taskschedule", ["next_dispatch"], unique=False
    )
    op.create_table(
        "createdresource",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("prn", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("href", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "prn"),
    )
    op.create_index(op.f("ix_createdresource_href"), "createdresource", ["href"], unique=False)
    op.create_index(op.f("ix_createdresource_prn"), "createdresource", ["prn"], unique=False)
    op.create_index(
        op.f("ix_createdresource_task_id"), "createdresource", ["task_id"], unique=False
    )
    op.create_table(
        "groupreport",
        sa.Column("group_id", sa.Uuid(), nullable=False),
        sa.Column("code", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("message", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("suffix", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["taskgroup.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("group_id", "code"),
    )
    op.create_table(
        "profileartifact",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("file", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "name"),
    )
    op.create_index(
        op.f("ix_profileartifact_task_id"), "profileartifact", ["task_id"], unique=False
    )
    op.create_table(
        "taskreport",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("message", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("code", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
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
                name="task_report_state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("suffix", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_taskreport_task_id"), "taskreport", ["task_id"], unique=False)
    op.create_table(
        "groupshare",
        sa.Column("group_id", sa.Uuid(), nullable=False),
        sa.Column("code", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id", "code"], ["groupreport.group_id", "groupreport.code"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "code", "task_id"),
    )
    op.drop_constraint("claim_pkey", "claim")
    op.add_column("claim", sa.Column("place", sa.Integer(), nullable=True))
    op.execute("""
        update claim set place = numbered.place
        from (select resource, seq, row_number() over (partition by seq order by resource) as place
              from claim) as numbered
        where claim.resource = numbered.resource and claim.seq = numbered.seq
    """)
    op.create_primary_key("claim_pkey", "claim", ["seq", "place"])
    op.drop_index("claim_exclusive", table_name="claim")
    op.drop_index("claim_task", table_name="claim")
    op.drop_index("claim_waiting", table_name="claim")
    op.create_index(
        "claim_waiting",
        "claim",
        ["resource", sa.literal_column("(seq + 0)")],
        unique=False,
        postgresql_where=sa.text("not granted"),
    )
    op.create_index(
        "claim_held",
        "claim",
        ["resource", "exclusive"],
        unique=False,
        postgresql_where=sa.text("granted"),
    )
    op.add_column("task", sa.Column("group_id", sa.Uuid(), nullable=True))
    op.add_column("task", sa.Column("chain_id", sa.Uuid(), nullable=True))
    op.add_column(
        "task", sa.Column("dependent", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column(
        "task", sa.Column("immediate", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column(
        "task", sa.Column("deferred", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column(
        "task",
        sa.Column(
            "versions",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            nullable=False,
            server_default="{}",
        ),
    )
    op.add_column(
        "task", sa.Column("requirement_id", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column(
        "task",
        sa.Column(
            "profile_options", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False
        ),
    )
    op.add_column(
        "task", sa.Column("owned", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column("task", sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("task", sa.Column("lease_seconds", sa.Float(), nullable=True))
    op.add_column("task", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_index("task_unpushed", table_name="task")
    op.drop_index("task_unstarted", table_name="task")
    op.drop_column("task", "pushed_at")
    op.create_index("task_cid", "task", ["logging_cid"], unique=False)
    op.create_index(
        "task_state",
        "task",
        ["state", "created_at"],
        unique=False,
        postgresql_where=sa.text("state <> 'completed'"),
    )
    op.create_index(
        "task_ended",
        "task",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at is not null"),
    )
    op.create_index(
        "task_expiring",
        "task",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text(
            "lease_seconds is not null and state in ('waiting', 'running', 'canceling')"
        ),
    )
    op.create_index(
        "task_of_chain",
        "task",
        ["chain_id", "seq"],
        unique=False,
        postgresql_where=sa.text("chain_id is not null"),
    )
    op.create_index(
        "task_of_group",
        "task",
        ["group_id", "seq"],
        unique=False,
        postgresql_where=sa.text("group_id is not null"),
    )
    op.create_index(
        "task_ready",
        "task",
        ["queue", "requirement_id", sa.literal_column("(not immediate)"), "seq"],
        unique=False,
        postgresql_where=sa.text(
            "state || '' = 'waiting' and blocked_by = 0 and lease_seconds is null and retry_at is null"
        ),
    )
    op.create_index(
        "task_retry",
        "task",
        ["retry_at"],
        unique=False,
        postgresql_where=sa.text("retry_at is not null"),
    )
    op.add_column(
        "worker",
        sa.Column(
            "app_type", sqlmodel.sql.sqltypes.AutoString(), nullable=False, server_default="worker"
        ),
    )
    op.add_column(
        "worker",
        sa.Column("meets", postgresql.ARRAY(sa.Integer()), server_default="{0}", nullable=False),
    )
    op.add_column("worker", sa.Column("turn", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column(
        "worker", sa.Column("concurrency", sa.Integer(), nullable=False, server_default="1")
    )
    op.create_table(
        "goneresource",
        sa.Column("prn", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("gone_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("prn"),
    )
    op.create_index(op.f("ix_goneresource_told_at"), "goneresource", ["told_at"], unique=False)
    op.create_table(
        "measurement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "numbers", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    install_functions("dispatcher")


def downgrade() -> None:
    drop_functions("dispatcher")
    op.drop_table("measurement")
    op.drop_table("goneresource")
    op.drop_column("worker", "concurrency")
    op.drop_column("worker", "turn")
    op.drop_column("worker", "meets")
    op.drop_column("worker", "app_type")
    op.drop_index("task_state", table_name="task", postgresql_where=sa.text("state <> 'completed'"))
    op.drop_index("task_cid", table_name="task")
    op.drop_index("task_retry", table_name="task", postgresql_where=sa.text("retry_at is not null"))
    op.drop_index(
        "task_ready",
        table_name="task",
        postgresql_where=sa.text(
            "state || '' = 'waiting' and blocked_by = 0 and lease_seconds is null and retry_at is null"
        ),
    )
    op.drop_index(
        "task_of_group", table_name="task", postgresql_where=sa.text("group_id is not null")
    )
    op.drop_index(
        "task_of_chain",
        table_name="task",
        postgresql_where=sa.text("chain_id is not null"),
    )
    op.drop_index(
        "task_expiring",
        table_name="task",
        postgresql_where=sa.text(
            "lease_seconds is not null and state in ('waiting', 'running', 'canceling')"
        ),
    )
    op.drop_index(
        "task_ended", table_name="task", postgresql_where=sa.text("finished_at is not null")
    )
    op.drop_column("task", "expires_at")
    op.drop_column("task", "lease_seconds")
    op.drop_column("task", "retry_at")
    op.drop_column("task", "owned")
    op.drop_column("task", "profile_options")
    op.drop_column("task", "requirement_id")
    op.drop_column("task", "versions")
    op.drop_column("task", "deferred")
    op.drop_column("task", "immediate")
    op.drop_column("task", "dependent")
    op.drop_column("task", "chain_id")
    op.drop_column("task", "group_id")
    op.drop_index("claim_waiting", table_name="claim")
    op.create_index(
        "claim_waiting",
        "claim",
        ["resource", "seq"],
        unique=False,
        postgresql_where=sa.text("not granted"),
    )
    op.create_index("claim_task", "claim", ["seq"], unique=False)
    op.drop_constraint("claim_pkey", "claim")
    op.drop_column("claim", "place")
    op.create_primary_key("claim_pkey", "claim", ["resource", "seq"])
    op.create_index(
        "claim_exclusive",
        "claim",
        ["resource", "seq"],
        unique=False,
        postgresql_where=sa.text("exclusive"),
    )
    op.drop_index("claim_held", table_name="claim", postgresql_where=sa.text("granted"))
    op.drop_table("groupshare")
    op.drop_index(op.f("ix_taskreport_task_id"), table_name="taskreport")
    op.drop_table("taskreport")
    op.drop_index(op.f("ix_profileartifact_task_id"), table_name="profileartifact")
    op.drop_table("profileartifact")
    op.drop_table("groupreport")
    op.drop_index(op.f("ix_createdresource_task_id"), table_name="createdresource")
    op.drop_index(op.f("ix_createdresource_prn"), table_name="createdresource")
    op.drop_index(op.f("ix_createdresource_href"), table_name="createdresource")
    op.drop_table("createdresource")
    op.drop_index(op.f("ix_taskschedule_next_dispatch"), table_name="taskschedule")
    op.drop_table("taskschedule")
    op.drop_index("task_group_created", table_name="taskgroup")
    op.drop_table("taskgroup")
    op.drop_index("role_grant_object", table_name="rolegrant")
    op.drop_index(op.f("ix_rolegrant_username"), table_name="rolegrant")
    op.drop_index(op.f("ix_rolegrant_group_name"), table_name="rolegrant")
    op.drop_table("rolegrant")
    op.add_column("task", sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "task_unpushed",
        "task",
        ["seq"],
        postgresql_where=sa.text("state = 'waiting' and blocked_by = 0 and pushed_at is null"),
    )
    op.create_index(
        "task_unstarted",
        "task",
        ["pushed_at"],
        postgresql_where=sa.text("state = 'waiting' and blocked_by = 0"),
    )
    op.drop_table("requirement")
