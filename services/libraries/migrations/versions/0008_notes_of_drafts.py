"""what is unpublished and how many are live, noted with each draft; writes as functions"""

import sqlalchemy as sa
from alembic import op

from shared.migrations.functions import install_functions

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NEW = (
    "create_component", "make_versions", "publish_versions", "move_drafts", "add_up_live", "published_was_moved",
    "keep_unpublished",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "unpublished",
        sa.Column("entity_id", sa.BigInteger(), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["entity_id"], ["entity.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entity_id"),
    )
    op.create_index("unpublished_of_library", "unpublished", ["library_id", "entity_id"])
    op.create_table(
        "live_count",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("library_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("items", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["library_id"], ["library.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("live_count_of_library", "live_count", ["library_id", "id"])
    op.execute("drop function keep_findable")  # it was written in another language
    install_functions("libraries")
    for name, moment in (("published_made", "insert"), ("published_moved", "update")):
        op.execute(f"""
            create trigger {name} after {moment} on published
            referencing new table as moved
            for each statement execute function published_was_moved()
        """)
    op.execute("select keep_unpublished(array(select entity_id from draft))")
    op.execute("""
        insert into live_count (library_id, kind, items)
        select entity.library_id, entity.kind, count(*)
        from draft join entity on entity.id = draft.entity_id
        where draft.version_id is not null group by entity.library_id, entity.kind
    """)


def downgrade() -> None:
    # The functions of drafts do without these tables from here on.
    op.execute("""
        create or replace function draft_was_made() returns trigger language plpgsql as $$
        begin
          perform keep_findable(array(select entity_id from moved));
          return null;
        end $$
    """)
    op.execute("""
        create or replace function draft_was_moved() returns trigger language plpgsql as $$
        begin
          perform keep_findable(array(
            select moved.entity_id from moved join before using (entity_id)
            where moved.version_id is distinct from before.version_id));
          return null;
        end $$
    """)
    op.execute("drop trigger published_moved on published")
    op.execute("drop trigger published_made on published")
    for name in NEW:
        op.execute(f"drop function {name}")
    op.drop_table("live_count")
    op.drop_table("unpublished")
