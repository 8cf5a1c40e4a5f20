"""The webhooks that Pushgate has registered at the providers, and what the last check of each found."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Add a table with at most one row for each connection."""
    op.create_table(
        "webhook_registrations",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("differences", sa.JSON(), nullable=False),
        sa.Column("webhook", sa.Text()),
        sa.Column("url", sa.Text()),
        sa.Column("problem", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("checked_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_webhook_registrations_connection_connections")
        ),
        sa.PrimaryKeyConstraint("connection", name=op.f("pk_webhook_registrations")),
    )
    op.create_index("ix_webhook_registrations_due_at", "webhook_registrations", ["due_at"])
