"""What runners report about executions, and reports that name no execution."""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "runs",
        sa.Column("execution", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True)),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("url", sa.Text()),
        sa.Column("log_url", sa.Text()),
        sa.Column("summary", sa.Text()),
        sa.Column("metrics", sa.JSON()),
        sa.Column("outputs", sa.JSON()),
        sa.Column("runner", sa.Text()),
        sa.ForeignKeyConstraint(
            ["execution"], ["executions.seq"], name=op.f("fk_runs_execution"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("execution", name=op.f("pk_runs")),
    )
    op.create_index("ix_runs_state_execution", "runs", ["state", "execution"])
    op.create_table(
        "unknown_reports",
        sa.Column("execution", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("runner", sa.Text()),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("execution", name=op.f("pk_unknown_reports")),
    )
    op.create_index("ix_unknown_reports_last_at", "unknown_reports", ["last_at"])
