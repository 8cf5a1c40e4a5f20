"""The bodies of execution requests in a table of their own, so that recording one does not write it anew."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Move the bodies."""
    op.create_table(
        "execution_bodies",
        sa.Column(
            "execution",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["execution"], ["executions.seq"], name="fk_execution_bodies_execution"),
        sa.PrimaryKeyConstraint("execution", name="pk_execution_bodies"),
    )
    op.execute("INSERT INTO execution_bodies (execution, body) SELECT seq, body FROM executions")
    op.drop_column("executions", "body")
