"""people roles clipboard staged events

Processes of the release before run beside this for a while: new columns have defaults for them.
"""

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "clipboard",
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("source_key", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("source_title", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("block_type", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("title", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("olx", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("username"),
        sa.UniqueConstraint("id"),
    )
    op.create_table(
        "event_outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "data", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "person",
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("email", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("creator", sa.Boolean(), nullable=False),
        sa.Column("seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("username"),
    )
    op.create_index("person_email", "person", [sa.literal_column("lower(email)")], unique=False)
    op.create_table(
        "role_assignment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("group_name", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.Column("role", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("scope", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("denied", sa.Boolean(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True),
        sa.CheckConstraint(
            "(username is null) <> (group_name is null)", name="role_assignment_one_holder"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "username",
            "group_name",
            "role",
            "scope",
            "denied",
            name="role_assignment_once",
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index("role_assignment_group", "role_assignment", ["group_name"], unique=False)
    op.create_index("role_assignment_person", "role_assignment", ["username"], unique=False)
    op.create_index("role_assignment_scope", "role_assignment", ["scope"], unique=False)
    op.create_table(
        "team_group",
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "team_group_member",
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("username", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.ForeignKeyConstraint(["group_name"], ["team_group.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("group_name", "username"),
    )
    op.create_index(
        op.f("ix_team_group_member_username"), "team_group_member", ["username"], unique=False
    )
    op.add_column(
        "library", sa.Column("staged_by", sqlmodel.sql.sqltypes.AutoString(), nullable=True)
    )
    op.add_column("library", sa.Column("staged_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "library_staged",
        "library",
        ["staged_at"],
        unique=False,
        postgresql_where=sa.text("staged_at is not null"),
    )


def downgrade() -> None:
    op.drop_index(
        "library_staged", table_name="library", postgresql_where=sa.text("staged_at is not null")
    )
    op.drop_column("library", "staged_at")
    op.drop_column("library", "staged_by")
    op.drop_index(op.f("ix_team_group_member_username"), table_name="team_group_member")
    op.drop_table("team_group_member")
    op.drop_table("team_group")
    op.drop_index("role_assignment_scope", table_name="role_assignment")
    op.drop_index("role_assignment_person", table_name="role_assignment")
    op.drop_index("role_assignment_group", table_name="role_assignment")
    op.drop_table("role_assignment")
    op.drop_index("person_email", table_name="person")
    op.drop_table("person")
    op.drop_table("event_outbox")
    op.drop_table("clipboard")
