"""What only a person can correct at a provider, because its API cannot."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    """Add the column."""
    op.add_column("webhook_registrations", sa.Column("advice", sa.Text()))
