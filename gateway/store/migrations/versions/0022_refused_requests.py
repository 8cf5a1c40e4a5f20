"""Refused requests of the webhook endpoint."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Add a table."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "refusals",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("connection", sa.Text(), nullable=True),
        sa.Column("requested", sa.Text(), nullable=True),
        sa.Column("client", sa.Text(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("provider_delivery_id", sa.Text(), nullable=True),
        sa.Column("first_at", moment, nullable=False),
        sa.Column("last_at", moment, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["connection"], ["connections.id"], name=op.f("fk_refusals_connection")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_refusals")),
    )
    op.create_index("ix_refusals_id", "refusals", ["id"])
    op.create_index("ix_refusals_connection_id", "refusals", ["connection", "id"])
