"""What a ref update was planned from, for dry runs; and finding annotated tags by their commits."""

import sqlalchemy as sa
from alembic import op

from gateway.store.migrations import build_index

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add a column, in which what was planned before has nothing, and an index."""
    build_index("ix_ref_updates_peeled", "ref_updates", ["peeled"], where="peeled IS NOT NULL")
    op.add_column("ref_updates", sa.Column("facts", sa.LargeBinary()))
