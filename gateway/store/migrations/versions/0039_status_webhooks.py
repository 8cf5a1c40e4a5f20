"""Webhooks that receive the verdicts of connections in place of the provider."""

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"


def upgrade() -> None:
    """Add two columns."""
    op.add_column("connections", sa.Column("status_webhook", sa.Text()))
    op.add_column("connections", sa.Column("status_webhook_secret", sa.LargeBinary()))
