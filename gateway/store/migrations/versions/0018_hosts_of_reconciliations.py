"""The host of each reconciliation, so that a claim passes over the hosts that are at their limit."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add a column; its index is the next one's."""
    op.add_column("reconciliations", sa.Column("host", sa.Text()))
    op.execute(
        "UPDATE reconciliations SET host ="
        " (SELECT connections.host FROM connections WHERE connections.id = reconciliations.connection)"
    )
