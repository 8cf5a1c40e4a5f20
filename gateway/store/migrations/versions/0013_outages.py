"""Why nothing is published, for those who look; and which code works on the schema."""

import sqlalchemy as sa
from alembic import op

from gateway.store.migrations import build_index

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add two tables, and the index of what the migration before has added."""
    build_index(
        "ix_ref_updates_postponed",
        "ref_updates",
        ["connection", "ref"],
        where="state = 'pending' AND due_at IS NOT NULL",
    )
    op.create_table(
        "outages",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("what", name=op.f("pk_outages")),
    )
    op.create_table(
        "schema_compatibility",
        sa.Column("usable_since", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("usable_since", name=op.f("pk_schema_compatibility")),
    )
