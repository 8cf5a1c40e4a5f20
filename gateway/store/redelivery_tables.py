"""The tables of redeliveries. `gateway.store.tables` has the others."""

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, Table, Text, text

from gateway.store.columns import Instant, metadata

# When the log of a connection's webhook is next searched for failed deliveries: see
# gateway/store/redeliveries.py. The part before `since` has been searched. An unfinished check began at
# `began_at` and goes on at the page `cursor`.
redelivery_checks = Table(
    "redelivery_checks",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("due_at", Instant, nullable=False),
    Column("since", Instant, nullable=False),
    Column("is_urgent", Boolean, nullable=False, server_default=text("false")),
    Column("began_at", Instant),
    Column("cursor", Text),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("checked_at", Instant),
    Column("reason", Text),
    Index("ix_redelivery_checks_due_at", "due_at"),
)

# The deliveries that were requested again, by the provider's id: how often, and the last attempt's result.
redeliveries = Table(
    "redeliveries",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("guid", Text, primary_key=True),
    Column("event", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("is_given_up", Boolean, nullable=False, server_default=text("false")),
)

# When something was last known to run: see gateway/store/uptime.py.
last_seen = Table(
    "last_seen",
    metadata,
    Column("what", Text, primary_key=True),
    Column("at", Instant, nullable=False),
)
