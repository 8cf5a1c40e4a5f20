"""The tables of execution requests. `gateway.store.tables` has the others."""

from sqlalchemy import Column, ForeignKey, Index, Integer, LargeBinary, Table, Text, text

from gateway.store.columns import Instant, Sequence, metadata, partial_index

executions = Table(
    "executions",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("connection", ForeignKey("connections.id"), nullable=False),
    Column("delivery", ForeignKey("deliveries.id"), nullable=False, index=True),
    Column("ref_update", ForeignKey("ref_updates.seq"), nullable=False, index=True),
    Column("project", Text, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("lane", Text),
    Column("policy", Text, nullable=False, server_default=text("'every'")),
    Column("superseded_by", Text),
    Column("planned_at", Instant, nullable=False),
    Column("published_at", Instant),
    Column("redrives", Integer, nullable=False, server_default=text("0")),
    Column("republished_at", Instant),
    Column("rerun_of", Text),
    Column("cancel_requested_at", Instant),
    # In seconds, 0 for never; null where the trigger leaves it to the setting.
    Column("lost_after", Integer),
    Index("ix_executions_connection_seq", "connection", "seq"),
    Index("ix_executions_state_seq", "state", "seq"),
    Index("ix_executions_connection_state_seq", "connection", "state", "seq"),
    partial_index("ix_executions_superseded_by", "superseded_by", where="superseded_by IS NOT NULL"),
    partial_index("ix_executions_pending", "seq", where="state = 'pending'"),
)

# The JSON of the wire contract, in a table of its own, because SQLite rewrites the whole row at each change.
execution_bodies = Table(
    "execution_bodies",
    metadata,
    Column("execution", ForeignKey("executions.seq"), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)
