"""The outcome of each delivery, and whose push it was in the form that is searched.

Rows of before, and those of a previous version that is still running, have no outcome:
gateway/worker/outcome_repair.py finds them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"


def upgrade() -> None:
    """Add three columns."""
    op.add_column("deliveries", sa.Column("outcome", sa.Text()))
    op.add_column("deliveries", sa.Column("pusher_key", sa.Text()))
    op.add_column("ref_updates", sa.Column("author_key", sa.Text()))
