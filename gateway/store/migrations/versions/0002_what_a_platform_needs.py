"""Source networks, credentials and packages of connections; sweeps; what pull requests and triggers tell."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what was not there; every connection that exists is swept soon."""
    with op.batch_alter_table("connections") as batch:
        batch.add_column(sa.Column("networks", sa.JSON(), nullable=False, server_default=sa.text("'[]'")))
        batch.add_column(sa.Column("follows", sa.JSON(), nullable=False, server_default=sa.text("'[]'")))
        batch.add_column(
            sa.Column("package_format", sa.Text(), nullable=False, server_default=sa.text("'tar.gz'"))
        )
        batch.add_column(sa.Column("credentials", sa.LargeBinary()))
        batch.add_column(sa.Column("deploy_key", sa.Text()))
        batch.add_column(sa.Column("platform", sa.JSON()))
        batch.add_column(sa.Column("platform_token", sa.LargeBinary()))
    with op.batch_alter_table("deliveries") as batch:
        batch.add_column(sa.Column("detail", sa.JSON()))
    with op.batch_alter_table("ref_updates") as batch:
        batch.add_column(sa.Column("pull_request", sa.JSON()))
        batch.add_column(sa.Column("verdicts", sa.JSON()))
    with op.batch_alter_table("executions") as batch:
        batch.add_column(sa.Column("lane", sa.Text()))
        batch.add_column(sa.Column("policy", sa.Text(), nullable=False, server_default=sa.text("'every'")))
        batch.add_column(sa.Column("superseded_by", sa.Text()))
    with op.batch_alter_table("refs") as batch:
        batch.alter_column("delivery", existing_type=sa.Text(), nullable=True)
    op.create_table(
        "sweeps",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("asked", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("asked_by", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delivery", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["delivery"], ["deliveries.id"], name=op.f("fk_sweeps_delivery")),
        sa.ForeignKeyConstraint(["asked_by"], ["deliveries.id"], name=op.f("fk_sweeps_asked_by")),
        sa.ForeignKeyConstraint(["connection"], ["connections.id"], name=op.f("fk_sweeps_connection")),
        sa.PrimaryKeyConstraint("connection", name=op.f("pk_sweeps")),
    )
    op.create_index("ix_sweeps_due_at", "sweeps", ["due_at"])
    op.execute("INSERT INTO sweeps (connection, due_at) SELECT id, updated_at FROM connections")
