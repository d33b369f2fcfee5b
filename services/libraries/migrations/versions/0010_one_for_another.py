"""rows are looked up one for another, whatever is known of the tables"""

from shared.migrations.functions import install_functions

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    install_functions("libraries")


def downgrade() -> None:
    """The functions before did the same, slower."""
