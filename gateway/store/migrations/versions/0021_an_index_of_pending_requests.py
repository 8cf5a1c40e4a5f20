"""The index in whose order the relay reads its outbox."""

from gateway.store.migrations import build_index

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add an index, of few rows but after an outage of the broker."""
    build_index("ix_executions_pending", "executions", ["seq"], where="state = 'pending'")
