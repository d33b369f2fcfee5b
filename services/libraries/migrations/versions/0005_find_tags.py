"""find tags"""

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

from shared.migrations.functions import drop_functions, install_functions

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "findable",
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("title", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column(
            "words",
            postgresql.TSVECTOR(),
            sa.Computed(
                "setweight(to_tsvector('simple', title), 'A') || setweight(to_tsvector('simple', tags), 'B') || setweight(to_tsvector('simple', body), 'D')",
                persisted=True,
            ),
            nullable=True,
        ),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entity_id"),
    )
    op.create_index("findable_words", "findable", ["words"], unique=False, postgresql_using="gin")
    op.create_index(op.f("ix_findable_library_id"), "findable", ["library_id"], unique=False)
    op.create_table(
        "tag",
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entity_id", "name"),
    )
    op.create_index("tag_name", "tag", [sa.literal_column("lower(name)")], unique=False)
    install_functions("libraries")
    op.execute("""
        create trigger draft_made after insert on draft
        referencing new table as moved
        for each statement execute function draft_was_made()
    """)
    op.execute("""
        create trigger draft_moved after update on draft
        referencing old table as before new table as moved
        for each statement execute function draft_was_moved()
    """)
    op.execute("select keep_findable(array(select entity_id from draft))")


def downgrade() -> None:
    op.execute("drop trigger draft_moved on draft")
    op.execute("drop trigger draft_made on draft")
    drop_functions("libraries")
    op.drop_index("tag_name", table_name="tag")
    op.drop_table("tag")
    op.drop_index(op.f("ix_findable_library_id"), table_name="findable")
    op.drop_index("findable_words", table_name="findable", postgresql_using="gin")
    op.drop_table("findable")
