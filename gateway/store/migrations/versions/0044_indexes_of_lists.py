"""Lists of deliveries by outcome, ref and person are index range scans."""

from gateway.store.migrations import build_index

revision = "0044"
down_revision = "0043"


def upgrade() -> None:
    """Add the indexes."""
    build_index("ix_deliveries_outcome_id", "deliveries", ["outcome", "id"])
    build_index("ix_deliveries_connection_outcome_id", "deliveries", ["connection", "outcome", "id"])
    build_index("ix_deliveries_pusher_key_id", "deliveries", ["pusher_key", "id"], prefixes_of="pusher_key")
    build_index("ix_ref_updates_name_delivery", "ref_updates", ["name", "delivery"], prefixes_of="name")
    build_index(
        "ix_ref_updates_author_key_delivery",
        "ref_updates",
        ["author_key", "delivery"],
        where="author_key IS NOT NULL",
        prefixes_of="author_key",
    )
    build_index(
        "ix_executions_superseded_by", "executions", ["superseded_by"], where="superseded_by IS NOT NULL"
    )
