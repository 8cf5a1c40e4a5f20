"""Sources: one webhook for many repositories, which rules connect."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Add columns to connections, with indexes to find those of a repository, and the tables of sources."""
    op.add_column(
        "connections",
        sa.Column("kind", sa.Text(), nullable=False, server_default=sa.text("'repository'")),
    )
    op.add_column("connections", sa.Column("source", sa.Text()))
    op.add_column("connections", sa.Column("repository_key", sa.Text()))
    for column in ("source", "repository_key", "repository_id"):
        op.create_index(f"ix_connections_{column}", "connections", [column])
    op.create_table(
        "sources",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("listed_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text()),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_sources_connection_connections")
        ),
        sa.PrimaryKeyConstraint("connection", name=op.f("pk_sources")),
    )
    op.create_index("ix_sources_due_at", "sources", ["due_at"])
    op.create_table(
        "source_repositories",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("full_name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("default_branch", sa.Text()),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'due'")),
        sa.Column("connection", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("lacks_manifest", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("is_adopted", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.ForeignKeyConstraint(
            ["source"], ["sources.connection"], name=op.f("fk_source_repositories_source_sources")
        ),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_source_repositories_connection_connections")
        ),
        sa.PrimaryKeyConstraint("source", "repository", name=op.f("pk_source_repositories")),
    )
    op.create_index("ix_source_repositories_connection", "source_repositories", ["connection"])
    op.create_index("ix_source_repositories_due_at", "source_repositories", ["due_at"])
    op.create_table(
        "waiting_deliveries",
        sa.Column("delivery", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery"], ["deliveries.id"], name=op.f("fk_waiting_deliveries_delivery_deliveries")
        ),
        sa.ForeignKeyConstraint(
            ["source"], ["sources.connection"], name=op.f("fk_waiting_deliveries_source_sources")
        ),
        sa.PrimaryKeyConstraint("delivery", name=op.f("pk_waiting_deliveries")),
    )
    op.create_index("ix_waiting_deliveries_source_repository", "waiting_deliveries", ["source", "repository"])
