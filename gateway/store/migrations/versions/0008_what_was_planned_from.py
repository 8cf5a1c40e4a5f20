"""What a ref update was planned from, so that a dry run can plan it again under other rules."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add a column; what was planned before has nothing in it."""
    op.add_column("ref_updates", sa.Column("facts", sa.LargeBinary()))
