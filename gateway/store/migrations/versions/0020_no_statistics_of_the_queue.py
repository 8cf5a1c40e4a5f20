"""No statistics of the columns of leases that change with each claim.

Nearly all of their values are NULL while the queue is empty, and none while it is full. With statistics of
the one, PostgreSQL plans badly for the other; without any, it uses the indexes in either case.
"""

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Remove the statistics, and collect no more. SQLite has none."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for column in ("owner", "queue_host", "queue_project"):
        # A change of the type removes the statistics, and one to the same type does nothing else.
        op.execute(f"ALTER TABLE leases ALTER COLUMN {column} TYPE TEXT")
        op.execute(f"ALTER TABLE leases ALTER COLUMN {column} SET STATISTICS 0")
