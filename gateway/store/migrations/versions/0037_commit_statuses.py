"""Verdicts on commits, as the providers show them."""

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    """Add a table, and the setting of connections."""
    op.add_column(
        "connections", sa.Column("statuses", sa.Boolean(), nullable=False, server_default=sa.text("true"))
    )
    op.create_table(
        "commit_statuses",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("commit", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("pull_request", sa.Integer()),
        sa.Column("delivery", sa.Text(), nullable=False),
        sa.Column("execution", sa.BigInteger().with_variant(sa.Integer(), "sqlite")),
        sa.Column("outcome", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("file", sa.Text()),
        sa.Column("line", sa.Integer()),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("sent", sa.Text()),
        sa.Column("memory", sa.JSON(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("problem", sa.Text()),
        sa.Column("tried_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_commit_statuses_connection")
        ),
        sa.ForeignKeyConstraint(
            ["delivery"], ["deliveries.id"], name=op.f("fk_commit_statuses_delivery"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["execution"], ["executions.seq"], name=op.f("fk_commit_statuses_execution"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("connection", "commit", "context", name=op.f("pk_commit_statuses")),
    )
    op.create_index("ix_commit_statuses_delivery", "commit_statuses", ["delivery"])
    op.create_index("ix_commit_statuses_execution", "commit_statuses", ["execution"])
    due = sa.text("due_at IS NOT NULL")
    op.create_index(
        "ix_commit_statuses_due", "commit_statuses", ["due_at"], sqlite_where=due, postgresql_where=due
    )
    op.create_index("ix_commit_statuses_connection_tried_at", "commit_statuses", ["connection", "tried_at"])
