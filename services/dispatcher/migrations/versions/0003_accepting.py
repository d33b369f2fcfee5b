"""accepting"""

from shared.migrations.functions import install_functions

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    install_functions("dispatcher")


def downgrade() -> None:
    """The functions of the release before are installed with it."""
