"""Ref updates that are put off by themselves, while others of their connection go on."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add columns, which say of what is pending now that it is due; their index is the next one's."""
    op.add_column(
        "ref_updates", sa.Column("tries", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column("ref_updates", sa.Column("due_at", sa.DateTime(timezone=True)))
