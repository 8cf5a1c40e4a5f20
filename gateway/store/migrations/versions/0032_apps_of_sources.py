"""GitHub Apps that are being made for sources."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    """Add the table of the codes that are to be exchanged for Apps."""
    op.create_table(
        "source_apps",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed", sa.LargeBinary()),
        sa.Column("reason", sa.Text()),
        sa.ForeignKeyConstraint(
            ["source"], ["sources.connection"], name=op.f("fk_source_apps_source_sources")
        ),
        sa.PrimaryKeyConstraint("source", name=op.f("pk_source_apps")),
    )
    op.create_index("ix_source_apps_due_at", "source_apps", ["due_at"])
