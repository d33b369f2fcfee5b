"""Which change of a draft each publish made public.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("publish_record", sa.Column("draft_log_id", sa.BigInteger(), nullable=True))
    op.execute("""
        update publish_record set draft_log_id = (
          select max(moved.log_id) from draft_record moved
          join draft_log on draft_log.id = moved.log_id
          where moved.entity_id = publish_record.entity_id
            and moved.new_version_id is not distinct from publish_record.new_version_id
            and moved.old_version_id is distinct from moved.new_version_id
            and draft_log.changed_at <= publish_log.published_at)
        from publish_log where publish_log.id = publish_record.log_id
          and publish_record.old_version_id is distinct from publish_record.new_version_id
    """)


def downgrade() -> None:
    op.drop_column("publish_record", "draft_log_id")
