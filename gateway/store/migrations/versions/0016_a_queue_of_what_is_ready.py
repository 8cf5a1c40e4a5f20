"""A queue of the connections that have work now: see gateway/store/ready_queue.py."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add columns; their indexes are the next one's. No ref update is queued yet: the first claim does it."""
    op.add_column(
        "ref_updates", sa.Column("queued", sa.Boolean(), nullable=False, server_default=sa.text("false"))
    )
    op.add_column("leases", sa.Column("ready_at", sa.DateTime(timezone=True)))
    op.add_column("leases", sa.Column("queue_host", sa.Text()))
    op.add_column("leases", sa.Column("queue_project", sa.Text()))
