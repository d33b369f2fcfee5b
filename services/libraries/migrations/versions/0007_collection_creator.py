"""who made a collection, as the number that clients know

Collections are the one place where the wire names people by number; older rows have none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("collection", sa.Column("created_by_id", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("collection", "created_by_id")
