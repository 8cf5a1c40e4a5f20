"""Platforms that fetch by themselves, and how that goes; ref updates are found by their commit."""

import sqlalchemy as sa
from alembic import op

from gateway.store.migrations import build_index

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Bring the schema forward."""
    build_index("ix_ref_updates_after", "ref_updates", ["after"])
    op.create_table(
        "platform_fetches",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_platform_fetches_connection")
        ),
        sa.PrimaryKeyConstraint("connection", name=op.f("pk_platform_fetches")),
    )
