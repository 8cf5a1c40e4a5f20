"""Settings of identities that are not secret, such as the id of an App."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    """Add a column."""
    settings = sa.Column("settings", sa.JSON(), nullable=False, server_default=sa.text("'{}'"))
    op.add_column("identities", settings)
