"""Connections are found by their names, without reading all of them."""

from alembic import op

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_connections_name", "connections", ["name"])
