"""moving drafts looks up what is held in a set"""

from shared.migrations.functions import install_functions

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    install_functions("libraries")


def downgrade() -> None:
    """The functions before did the same, slower."""
