"""What sharing the work out needs: who has which mirror, which processes live, whose turn it was."""

import sqlalchemy as sa
from alembic import op

from providers.clone_urls import repository_key

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add two tables, and the columns by which a connection's host and its last process are known."""
    op.add_column("connections", sa.Column("host", sa.Text(), nullable=False, server_default=sa.text("''")))
    _fill_in_hosts()
    op.add_column("leases", sa.Column("process", sa.Text()))
    held = sa.text("owner IS NOT NULL")
    op.create_index("ix_leases_held", "leases", ["expires_at"], sqlite_where=held, postgresql_where=held)
    op.create_table(
        "processes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_processes")),
    )
    op.create_table(
        "turns",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_turns")),
    )


def _fill_in_hosts() -> None:
    connections = sa.table("connections", sa.column("id"), sa.column("url"), sa.column("host"))
    for connection, url in op.get_bind().execute(sa.select(connections.c.id, connections.c.url)).all():
        host = repository_key(url).partition("/")[0]
        op.execute(connections.update().where(connections.c.id == connection).values(host=host))
