"""The default branch of each remote."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Add the column. The next requested reconciliation fills it."""
    op.add_column("reconciliations", sa.Column("default_branch", sa.Text()))
