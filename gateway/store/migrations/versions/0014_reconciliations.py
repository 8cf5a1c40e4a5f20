"""The field's word for comparing refs: sweeps become reconciliations. Nothing was released before."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Rename the table, its column and its indexes, and the source of deliveries."""
    op.rename_table("sweeps", "reconciliations")
    with op.batch_alter_table("reconciliations") as table:
        table.alter_column("swept_at", new_column_name="reconciled_at")
    for name, columns in {"asked_by": ["asked_by"], "delivery": ["delivery"], "due_at": ["due_at"]}.items():
        op.drop_index(f"ix_sweeps_{name}", "reconciliations")
        op.create_index(f"ix_reconciliations_{name}", "reconciliations", columns)
    op.drop_index("ix_sweeps_held", "reconciliations")
    is_held = sa.text("held_until IS NOT NULL")
    op.create_index(
        "ix_reconciliations_held",
        "reconciliations",
        ["held_until"],
        sqlite_where=is_held,
        postgresql_where=is_held,
    )
    op.execute("UPDATE deliveries SET source = 'reconciliation' WHERE source = 'sweep'")
