"""The tables of what runners report. `gateway.store.tables` has the others."""

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, Table, Text, text

from gateway.store.columns import Instant, metadata

# What runners have reported about each execution: see gateway/store/runs.py. A row is deleted with its
# execution, even by a version of Pushgate that is older than this table. `revision` numbers all changes.
runs = Table(
    "runs",
    metadata,
    Column("execution", ForeignKey("executions.seq", ondelete="CASCADE"), primary_key=True),
    Column("state", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("reported_at", Instant, nullable=False),
    Column("accepted_at", Instant),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    Column("url", Text),
    Column("log_url", Text),
    Column("summary", Text),
    Column("metrics", JSON),
    Column("outputs", JSON),
    Column("runner", Text),
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Index("ix_runs_state_execution", "state", "execution"),
    Index("ix_runs_revision", "revision"),
)

# Reports that name no execution, by the id that they name: the newest few.
unknown_reports = Table(
    "unknown_reports",
    metadata,
    Column("execution", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("runner", Text),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("count", Integer, nullable=False),
    Index("ix_unknown_reports_last_at", "last_at"),
)
