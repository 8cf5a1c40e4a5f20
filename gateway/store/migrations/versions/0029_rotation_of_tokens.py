"""Identities whose tokens Pushgate rotates."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Add the columns. Nobody has agreed that the tokens that are stored today are rotated."""
    no = sa.text("false")
    op.add_column("identities", sa.Column("rotates", sa.Boolean(), nullable=False, server_default=no))
    op.add_column("identities", sa.Column("rotation_started_at", sa.DateTime(timezone=True), nullable=True))
