"""Requests that are published again: how often, and when that was last asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add two columns; every present request was never republished."""
    op.add_column(
        "executions", sa.Column("redrives", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column("executions", sa.Column("republished_at", sa.DateTime(timezone=True)))
