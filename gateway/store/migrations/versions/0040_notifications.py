"""Notifications: channels, an outbox, and what was told last."""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"


def upgrade() -> None:
    """Add four tables."""
    moment = sa.DateTime(timezone=True)
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "notification_channels",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("happenings", sa.JSON(), nullable=False),
        sa.Column("connections", sa.JSON(), nullable=False),
        sa.Column("projects", sa.JSON(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("due_at", moment),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("batch", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("tried_at", moment),
        sa.Column("sent_at", moment),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification_channels")),
        sa.UniqueConstraint("name", name=op.f("uq_notification_channels_name")),
    )
    op.create_table(
        "notifications",
        sa.Column("seq", number, autoincrement=True, nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("batch", sa.Integer()),
        sa.ForeignKeyConstraint(
            ["channel"],
            ["notification_channels.id"],
            name=op.f("fk_notifications_channel"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_notifications")),
    )
    op.create_index("ix_notifications_channel_seq", "notifications", ["channel", "seq"])
    op.create_table(
        "notification_states",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("connection", sa.Text()),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("since", moment, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_notification_states")),
    )
    op.create_table(
        "unexecuted",
        sa.Column("seq", number, autoincrement=True, nullable=False),
        sa.Column("ref_update", number, nullable=False),
        sa.Column("trigger", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ref_update"], ["ref_updates.seq"], name=op.f("fk_unexecuted_ref_update"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_unexecuted")),
    )
    op.create_index("ix_unexecuted_ref_update", "unexecuted", ["ref_update"])
