"""The order in which runs changed, for those who follow them."""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"


def upgrade() -> None:
    """Add a column and its index."""
    op.add_column("runs", sa.Column("revision", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.create_index("ix_runs_revision", "runs", ["revision"])
