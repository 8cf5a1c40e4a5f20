"""When a look at a remote was last tried; and how a ref update ended before it was replayed."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add a column and a table, of which the version before needs to know nothing."""
    op.add_column("sweeps", sa.Column("tried_at", sa.DateTime(timezone=True)))
    op.create_table(
        "update_attempts",
        sa.Column("ref_update", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("verdicts", sa.JSON(), nullable=True),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["ref_update"],
            ["ref_updates.seq"],
            name=op.f("fk_update_attempts_ref_update"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("ref_update", "number", name=op.f("pk_update_attempts")),
    )
