"""accepting"""

import sqlalchemy as sa
from alembic import op

from shared.migrations.functions import install_functions

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "task_parent",
        "task",
        ["parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id is not null"),
    )
    op.drop_index(op.f("ix_task_parent_id"), table_name="task")
    op.execute("drop function if exists end_tasks(uuid[], timestamptz)")
    op.execute("drop function if exists tell_user_tasks(uuid[], timestamptz)")
    install_functions("dispatcher")


def downgrade() -> None:
    """The functions stay: the release before calls them with what they have in common."""
    op.create_index(op.f("ix_task_parent_id"), "task", ["parent_id"], unique=False)
    op.drop_index(
        "task_parent", table_name="task", postgresql_where=sa.text("parent_id is not null")
    )
