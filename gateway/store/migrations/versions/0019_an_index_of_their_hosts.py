"""The index of the hosts of reconciliations."""

from gateway.store.migrations import build_index

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Add an index with one row for each connection."""
    build_index("ix_reconciliations_host_due_at", "reconciliations", ["host", "due_at"])
