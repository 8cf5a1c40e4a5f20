"""How long runners may be silent: requests that nobody accepts, and runs that are no longer reported."""

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"

_ACTIVE = sa.text("state IN ('accepted', 'running')")


def upgrade() -> None:
    """Add columns and two tables; whoever has reported counts as one that reports."""
    op.add_column("executions", sa.Column("lost_after", sa.Integer()))
    op.add_column("runs", sa.Column("lost_at", sa.DateTime(timezone=True)))
    op.add_column("runs", sa.Column("lost_after", sa.Integer()))
    op.create_index(
        "ix_runs_lost_after_reported_at",
        "runs",
        ["lost_after", "reported_at"],
        sqlite_where=_ACTIVE,
        postgresql_where=_ACTIVE,
    )
    op.create_table(
        "unaccepted",
        sa.Column("execution", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lost_after", sa.Integer()),
        sa.ForeignKeyConstraint(
            ["execution"], ["executions.seq"], name=op.f("fk_unaccepted_execution"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("execution", name=op.f("pk_unaccepted")),
    )
    op.create_index("ix_unaccepted_connection_published_at", "unaccepted", ["connection", "published_at"])
    op.create_index("ix_unaccepted_lost_after_published_at", "unaccepted", ["lost_after", "published_at"])
    op.create_table(
        "reporting_projects",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_reporting_projects")),
    )
    op.execute(
        "INSERT INTO reporting_projects (project, first_at)"
        " SELECT executions.project, min(runs.reported_at) FROM runs"
        " JOIN executions ON executions.seq = runs.execution GROUP BY executions.project"
    )
