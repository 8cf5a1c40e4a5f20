"""The tables of what runners report and of verdicts on commits. `gateway.store.tables` has the others."""

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, Table, Text, text

from gateway.store.columns import Instant, metadata, partial_index

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
    Column("lost_at", Instant),
    # That of the execution, so that an index finds who has been silent for too long.
    Column("lost_after", Integer),
    Index("ix_runs_state_execution", "state", "execution"),
    Index("ix_runs_revision", "revision"),
    partial_index(
        "ix_runs_lost_after_reported_at",
        "lost_after",
        "reported_at",
        where="state IN ('accepted', 'running')",
    ),
)

# One row: the last `revision` that was given, which the newest row need not have any more.
run_revisions = Table(
    "run_revisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)

# Published requests that a runner is expected to accept: see gateway/store/unaccepted.py.
unaccepted = Table(
    "unaccepted",
    metadata,
    Column("execution", ForeignKey("executions.seq", ondelete="CASCADE"), primary_key=True),
    Column("connection", Text, nullable=False),
    Column("published_at", Instant, nullable=False),
    Column("lost_after", Integer),
    Index("ix_unaccepted_connection_published_at", "connection", "published_at"),
    Index("ix_unaccepted_lost_after_published_at", "lost_after", "published_at"),
)

# The projects about whose executions a runner has ever reported.
reporting_projects = Table(
    "reporting_projects",
    metadata,
    Column("project", Text, primary_key=True),
    Column("first_at", Instant, nullable=False),
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

# The verdicts on commits, by their contexts at the provider: see gateway/store/commit_statuses.py. Without an
# execution, `outcome` is the verdict. A row is deleted with its delivery or its execution, even by a version
# of Pushgate that is older than this table. `due_at` is null if the provider has the verdict.
commit_statuses = Table(
    "commit_statuses",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("commit", Text, primary_key=True),
    Column("context", Text, primary_key=True),
    Column("ref", Text, nullable=False),
    Column("pull_request", Integer),
    Column("delivery", ForeignKey("deliveries.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("execution", ForeignKey("executions.seq", ondelete="CASCADE"), index=True),
    Column("outcome", Text),
    Column("reason", Text),
    Column("file", Text),
    Column("line", Integer),
    Column("due_at", Instant),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("sent", Text),
    Column("memory", JSON, nullable=False, server_default=text("'{}'")),
    Column("problem", Text),
    Column("tried_at", Instant),
    partial_index("ix_commit_statuses_due", "due_at", where="due_at IS NOT NULL"),
    Index("ix_commit_statuses_connection_tried_at", "connection", "tried_at"),
)
