"""Executions that run another one again, and when an execution was to be cancelled."""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"


def upgrade() -> None:
    """Add two columns."""
    op.add_column("executions", sa.Column("rerun_of", sa.Text()))
    op.add_column("executions", sa.Column("cancel_requested_at", sa.DateTime(timezone=True)))
