"""What is old can be deleted, and is found among millions: indexes; a ref may outlive its delivery."""

from alembic import op

from gateway.store.migrations import build_index

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Bring the schema forward."""
    build_index("ix_deliveries_verdict_id", "deliveries", ["verdict", "id"])
    build_index("ix_deliveries_connection_verdict_id", "deliveries", ["connection", "verdict", "id"])
    build_index("ix_executions_ref_update", "executions", ["ref_update"])
    build_index("ix_executions_state_seq", "executions", ["state", "seq"])
    build_index("ix_executions_connection_state_seq", "executions", ["connection", "state", "seq"])
    with op.batch_alter_table("refs") as batch:
        batch.drop_constraint("fk_refs_delivery", type_="foreignkey")
    op.drop_index("ix_executions_pending", "executions")
    op.create_index("ix_sweeps_asked_by", "sweeps", ["asked_by"])
    op.create_index("ix_sweeps_delivery", "sweeps", ["delivery"])
    op.create_index("ix_platform_fetches_due_at", "platform_fetches", ["due_at"])
