"""What the health of connections is judged by: registrations, recovered pushes, and the state of tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    """Add the columns. The next registration, reconciliation and check of a token fill them."""
    op.add_column("webhook_registrations", sa.Column("registered_at", sa.DateTime(timezone=True)))
    op.add_column("webhook_registrations", sa.Column("is_tested", sa.Boolean()))
    op.add_column("reconciliations", sa.Column("recovered", sa.Text()))
    op.add_column("identities", sa.Column("rights", sa.JSON()))
    op.add_column("identities", sa.Column("reason", sa.Text()))
    op.add_column("identities", sa.Column("checked_at", sa.DateTime(timezone=True)))
    op.add_column("identities", sa.Column("due_at", sa.DateTime(timezone=True)))
    op.execute("UPDATE identities SET due_at = created_at")
