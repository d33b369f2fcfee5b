"""runs of exports

Processes of the release before run beside this for a while: new columns have defaults for them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("exporter", "export"):
        op.add_column(
            table, sa.Column("fence", sa.BigInteger(), nullable=False, server_default="0")
        )
    op.add_column(
        "export", sa.Column("writing", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.create_index("export_of_task", "export", ["task_id"], unique=True)
    op.create_index("export_unfinished", "export", ["id"], postgresql_where=sa.text("writing"))


def downgrade() -> None:
    op.drop_index("export_unfinished", "export", postgresql_where=sa.text("writing"))
    op.drop_index("export_of_task", "export")
    op.drop_column("export", "writing")
    op.drop_column("export", "fence")
    op.drop_column("exporter", "fence")
