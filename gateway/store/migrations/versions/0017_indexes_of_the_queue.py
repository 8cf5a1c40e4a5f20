"""The indexes of the queue of connections that have work."""

from gateway.store.migrations import build_index

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add three indexes, of few rows each."""
    build_index("ix_ref_updates_new", "ref_updates", ["connection"], where="state = 'pending' AND NOT queued")
    build_index(
        "ix_leases_queue",
        "leases",
        ["queue_host", "queue_project", "due_at"],
        where="queue_host IS NOT NULL",
    )
    build_index(
        "ix_leases_postponed",
        "leases",
        ["ready_at"],
        where="ready_at IS NOT NULL AND queue_host IS NULL",
    )
