"""What placing moves in any order needs: what the remote has shown, and the gaps in what is known."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add columns that a version which does not know them leaves as they are."""
    op.add_column("refs", sa.Column("shown", sa.Integer()))
    op.add_column("refs", sa.Column("shown_id", sa.Text()))
    op.add_column("refs", sa.Column("gaps", sa.Text()))
    op.add_column("sweeps", sa.Column("held_until", sa.DateTime(timezone=True)))
    op.add_column("sweeps", sa.Column("seen", sa.JSON()))
    op.add_column("sweeps", sa.Column("agreed", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("connections", sa.Column("other_repository", sa.JSON()))
    held = sa.text("held_until IS NOT NULL")
    op.create_index("ix_sweeps_held", "sweeps", ["held_until"], sqlite_where=held, postgresql_where=held)
