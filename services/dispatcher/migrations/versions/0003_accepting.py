"""accepting"""

from alembic import op

from shared.migrations.functions import install_functions

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("drop function if exists end_tasks(uuid[], timestamptz)")
    op.execute("drop function if exists tell_user_tasks(uuid[], timestamptz)")
    install_functions("dispatcher")


def downgrade() -> None:
    """The functions of the release before are installed with it."""
