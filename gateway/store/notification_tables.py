"""The tables of notifications: where they go, what was told last, and what is still to be sent."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)

from gateway.store.columns import Instant, Sequence, metadata

# Where notifications go: see gateway/store/notification_channels.py. `sealed` is the URL, secret or password,
# by the kind of the channel. `due_at` is when the next message is sent; null if there is nothing to send.
# `batch` counts the messages: notifications with a number are in the message that is sent next.
notification_channels = Table(
    "notification_channels",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("happenings", JSON, nullable=False),
    Column("connections", JSON, nullable=False),
    Column("projects", JSON, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("due_at", Instant),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("batch", Integer, nullable=False, server_default=text("0")),
    Column("tried_at", Instant),
    Column("sent_at", Instant),
    Column("problem", Text),
)

# The outbox: a row is deleted once its message was sent, or refused for good.
notifications = Table(
    "notifications",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("channel", ForeignKey("notification_channels.id", ondelete="CASCADE"), nullable=False),
    Column("body", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("batch", Integer),
    Index("ix_notifications_channel_seq", "channel", "seq"),
)

# What is not in order, so that only changes are told: see gateway/store/notification_states.py. `key` is a
# hash of what identifies the subject.
notification_states = Table(
    "notification_states",
    metadata,
    Column("key", Text, primary_key=True),
    Column("what", Text, nullable=False),
    Column("connection", Text),
    Column("position", BigInteger, nullable=False),
    Column("since", Instant, nullable=False),
)

# Requests that no runner will ever execute, until the observer of notifications has seen them: triggers, or
# whole ref updates, that could not be planned, and requests that the broker refuses.
unexecuted = Table(
    "unexecuted",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("ref_update", ForeignKey("ref_updates.seq", ondelete="CASCADE"), nullable=False, index=True),
    Column("trigger", Text),
    Column("reason", Text, nullable=False),
)
