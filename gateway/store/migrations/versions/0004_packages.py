"""Packages, and which commit gave which."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the two tables."""
    op.create_table(
        "packages",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("tar_size", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", "format", name=op.f("pk_packages")),
    )
    op.create_index("ix_packages_last_used_at", "packages", ["last_used_at"])
    op.create_table(
        "package_builds",
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("commit", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("rules", sa.Text(), nullable=False),
        sa.Column("package", sa.Text(), nullable=False),
        sa.Column("submodules", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["connection"], ["connections.id"], name=op.f("fk_package_builds_connection")
        ),
        sa.ForeignKeyConstraint(
            ["package", "format"],
            ["packages.id", "packages.format"],
            name=op.f("fk_package_builds_package_format"),
        ),
        sa.PrimaryKeyConstraint("connection", "commit", "format", name=op.f("pk_package_builds")),
    )
    op.create_index("ix_package_builds_package_format", "package_builds", ["package", "format"])
