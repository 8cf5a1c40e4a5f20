"""Which repositories of a source its provider has listed, so that their ids and URLs are certain."""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "source_repositories",
        sa.Column("is_listed", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
