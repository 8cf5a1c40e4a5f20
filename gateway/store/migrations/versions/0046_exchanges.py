"""What is known of a webhook's client and of the answer, and when a commit was fetched."""

import sqlalchemy as sa
from alembic import op

revision = "0046"
down_revision = "0044"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("deliveries", sa.Column("exchange", sa.JSON()))
    op.add_column("ref_updates", sa.Column("fetched_at", sa.DateTime(timezone=True)))
