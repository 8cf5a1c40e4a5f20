"""Failed deliveries that are requested of the provider again, and when the webhook endpoint last ran."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    """Add three tables."""
    op.create_table(
        "redelivery_checks",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("began_at", sa.DateTime(timezone=True)),
        sa.Column("cursor", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("checked_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text()),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_redelivery_checks_connection_connections")
        ),
        sa.PrimaryKeyConstraint("connection", name=op.f("pk_redelivery_checks")),
    )
    op.create_index("ix_redelivery_checks_due_at", "redelivery_checks", ["due_at"])
    op.create_table(
        "redeliveries",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("guid", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_given_up", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_redeliveries_connection_connections")
        ),
        sa.PrimaryKeyConstraint("connection", "guid", name=op.f("pk_redeliveries")),
    )
    op.create_table(
        "last_seen",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("what", name=op.f("pk_last_seen")),
    )
