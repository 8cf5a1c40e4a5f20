"""The tables: columns, keys and indexes. The module of each record explains its rows.

The tables are portable between SQLite and PostgreSQL. Each change needs a migration: a test compares the two.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)

from gateway.store import (  # noqa: F401 - their tables
    app_tables,
    columns,
    execution_tables,
    notification_tables,
    redelivery_tables,
    run_tables,
)
from gateway.store.columns import Instant, Sequence, partial_index, prefix_index

metadata = columns.metadata

connections = Table(
    "connections",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("provider", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False, server_default=text("''")),
    Column("project", Text, nullable=False),
    Column("auth", JSON, nullable=False),
    Column("triggers", JSON, nullable=False),
    Column("yaml_path", Text, nullable=False),
    Column("repository_id", Text, index=True),
    Column("networks", JSON, nullable=False, server_default=text("'[]'")),
    Column("follows", JSON, nullable=False, server_default=text("'[]'")),
    Column("package_format", Text, nullable=False, server_default=text("'tar.gz'")),
    Column("credentials", LargeBinary),
    Column("deploy_key", Text),
    # The id of an identity, without a constraint: migrations only add.
    Column("identity", Text),
    Column("statuses", Boolean, nullable=False, server_default=text("true")),
    Column("status_webhook", Text),
    Column("status_webhook_secret", LargeBinary),
    # `repository`, or `source`: see gateway/store/sources.py. `source` is the source of a repository.
    Column("kind", Text, nullable=False, server_default=text("'repository'")),
    Column("source", Text, index=True),
    # The canonical form of `url`; null in rows of earlier versions that were not changed since.
    Column("repository_key", Text, index=True),
    Column("platform", JSON),
    Column("platform_token", LargeBinary),
    Column("other_repository", JSON),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("deleted_at", Instant),
)

secrets = Table(
    "secrets",
    metadata,
    Column("id", Sequence, primary_key=True, autoincrement=True),
    Column("connection", ForeignKey("connections.id"), nullable=False, index=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("last_used_at", Instant),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("connection", ForeignKey("connections.id"), nullable=False),
    Column("source", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("provider_delivery_id", Text),
    Column("received_at", Instant, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text),
    Column("pusher", Text),
    Column("repository", JSON),
    Column("detail", JSON),
    Column("headers", JSON, nullable=False),
    Column("secret", BigInteger),
    Column("body", LargeBinary, nullable=False),
    # See gateway/store/outcomes.py; null until a row of a previous version is found.
    Column("outcome", Text),
    # The pusher as `person_key` in gateway/store/people.py has it.
    Column("pusher_key", Text),
    # See `NewDelivery` in gateway/store/accept.py; with the `verdict` and the `reason` of the answer.
    Column("exchange", JSON),
    Index("ix_deliveries_connection_id", "connection", "id"),
    Index("ix_deliveries_outcome_id", "outcome", "id"),
    Index("ix_deliveries_connection_outcome_id", "connection", "outcome", "id"),
    prefix_index("ix_deliveries_pusher_key_id", "pusher_key", "id"),
    Index("ix_deliveries_verdict_id", "verdict", "id"),
    Index("ix_deliveries_connection_verdict_id", "connection", "verdict", "id"),
    partial_index(
        "uq_deliveries_connection_provider_delivery_id",
        "connection",
        "provider_delivery_id",
        where="verdict = 'accepted'",
        unique=True,
    ),
)

# `facts` are the inputs of the plan, packed by gateway/worker/plan_inputs.py; None if they are too large.
# `queued` is set once the lease of the connection takes the update into account: see `leases`.
ref_updates = Table(
    "ref_updates",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("connection", ForeignKey("connections.id"), nullable=False),
    Column("delivery", ForeignKey("deliveries.id"), nullable=False, index=True),
    Column("ref", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("peeled", Text),
    Column("action", Text, nullable=False),
    Column("forced", Boolean),
    Column("commits", JSON, nullable=False),
    Column("truncated", Boolean),
    Column("total", Integer),
    Column("generation", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("pull_request", JSON),
    Column("settled_at", Instant),
    Column("verdicts", JSON),
    Column("facts", LargeBinary),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("due_at", Instant),
    Column("queued", Boolean, nullable=False, server_default=text("false")),
    # The author of the commit, once it was fetched.
    Column("author_key", Text),
    # When its commit was in the mirror, the last time that it was planned.
    Column("fetched_at", Instant),
    Index("ix_ref_updates_after", "after"),
    prefix_index("ix_ref_updates_name_delivery", "name", "delivery"),
    prefix_index(
        "ix_ref_updates_author_key_delivery", "author_key", "delivery", where="author_key IS NOT NULL"
    ),
    partial_index("ix_ref_updates_peeled", "peeled", where="peeled IS NOT NULL"),
    partial_index("ix_ref_updates_pending", "connection", "seq", where="state = 'pending'"),
    partial_index(
        "ix_ref_updates_postponed", "connection", "ref", where="state = 'pending' AND due_at IS NOT NULL"
    ),
    partial_index("ix_ref_updates_new", "connection", where="state = 'pending' AND NOT queued"),
)

# How a ref update ended before it was replayed. A row is deleted with its ref update, even by a version of
# Pushgate that is older than this table.
update_attempts = Table(
    "update_attempts",
    metadata,
    Column("ref_update", ForeignKey("ref_updates.seq", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("settled_at", Instant),
    Column("verdicts", JSON),
    Column("replayed_at", Instant, nullable=False),
)

# `delivery` reported the latest move, and may have been deleted since. The last columns, which most moves
# leave unchanged, hold the position that the remote has shown and the gaps in the history of the ref.
refs = Table(
    "refs",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("ref", Text, primary_key=True),
    Column("before", Text),
    Column("after", Text),
    Column("generation", Integer, nullable=False),
    Column("delivery", Text),
    Column("shown", Integer),
    Column("shown_id", Text),
    Column("gaps", Text),
)

# Events that are still to be published; a row is deleted after the broker's confirm.
events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, index=True),
    Column("connection", ForeignKey("connections.id"), nullable=False),
    Column("delivery", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("reason", Text),
    Column("settled_at", Instant, nullable=False),
)

# Why requests or events are not published at present; no row means no outage.
outages = Table(
    "outages",
    metadata,
    Column("what", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("since", Instant, nullable=False),
)

# Requests that the webhook endpoint refused: see gateway/store/refusals.py. `connection` is None if the URL
# named none that exists; `requested` is then the id in the URL, if it could be one.
refusals = Table(
    "refusals",
    metadata,
    Column("key", Text, primary_key=True),
    Column("id", Text, nullable=False),
    Column("connection", ForeignKey("connections.id")),
    Column("requested", Text),
    Column("client", Text),
    Column("status", Integer, nullable=False),
    Column("cause", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("provider_delivery_id", Text),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("count", BigInteger, nullable=False),
    Index("ix_refusals_id", "id"),
    Index("ix_refusals_connection_id", "connection", "id"),
)

# One row: the oldest revision whose code works on this schema. See gateway/store/migrate.py.
schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    Column("usable_since", Text, primary_key=True),
)

# Which worker works on a connection's pending ref updates, and when the next try is due after a failure.
# `process` was the last to work on the connection, and so has its mirror. gateway/store/ready_queue.py
# maintains the last three columns, by which the connections that have work now are found.
leases = Table(
    "leases",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("owner", Text),
    Column("expires_at", Instant),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("process", Text),
    Column("ready_at", Instant),
    Column("queue_host", Text),
    Column("queue_project", Text),
    partial_index("ix_leases_queue", "queue_host", "queue_project", "due_at", where="queue_host IS NOT NULL"),
    partial_index("ix_leases_postponed", "ready_at", where="ready_at IS NOT NULL AND queue_host IS NULL"),
    partial_index("ix_leases_held", "expires_at", where="owner IS NOT NULL"),
)

# The webhook of each connection that Pushgate has registered at the provider, what the last check found, and
# the next task and when it is due. A claim moves the due time to the end of its lease.
webhook_registrations = Table(
    "webhook_registrations",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("task", Text, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("differences", JSON, nullable=False),
    Column("webhook", Text),
    Column("url", Text),
    Column("problem", Text),
    Column("reason", Text),
    Column("checked_at", Instant),
    Column("registered_at", Instant),
    Column("is_tested", Boolean),
    Column("advice", Text),
    Index("ix_webhook_registrations_due_at", "due_at"),
)

# The worker processes and their last heartbeats. An embedded store has one process, and no heartbeats.
processes = Table(
    "processes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("seen_at", Instant, nullable=False),
)

# When a project last had its turn: a connection of it was claimed.
turns = Table(
    "turns",
    metadata,
    Column("project", Text, primary_key=True),
    Column("claimed_at", Instant, nullable=False),
)

# When a connection's refs are next compared with the remote's, what requested it, and what was found last.
# `reconciled_at` is the end of the last successful comparison, `tried_at` the beginning of the last that
# ended. `held_until` is set during a comparison; `seen` holds what a second look must confirm; `agreed`
# counts the consecutive looks that confirmed the reports of webhooks. `recovered` is the last delivery of a
# push whose webhook had not arrived; it may have been deleted since. `host` is that of the connection.
reconciliations = Table(
    "reconciliations",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("due_at", Instant, nullable=False),
    Column("asked", Boolean, nullable=False, server_default=text("false")),
    Column("asked_by", ForeignKey("deliveries.id"), index=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("reconciled_at", Instant),
    Column("tried_at", Instant),
    Column("delivery", ForeignKey("deliveries.id"), index=True),
    Column("reason", Text),
    Column("held_until", Instant),
    Column("seen", JSON),
    Column("agreed", Integer, nullable=False, server_default=text("0")),
    Column("host", Text),
    Column("default_branch", Text),
    Column("recovered", Text),
    Index("ix_reconciliations_due_at", "due_at"),
    Index("ix_reconciliations_host_due_at", "host", "due_at"),
    partial_index("ix_reconciliations_held", "held_until", where="held_until IS NOT NULL"),
)

# What Pushgate is at the providers: see gateway/store/identities.py. `sealed` is the secret, by its kind. The
# last columns hold what the provider said of it at the last check, and when the next one is due.
identities = Table(
    "identities",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("provider", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("user", Text),
    Column("settings", JSON, nullable=False, server_default=text("'{}'")),
    Column("api_url", Text),
    Column("expires_at", Instant),
    Column("rotates", Boolean, nullable=False, server_default=text("false")),
    Column("rotation_started_at", Instant),
    Column("sealed", LargeBinary),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("rights", JSON),
    Column("reason", Text),
    Column("checked_at", Instant),
    Column("due_at", Instant),
)

# What a source has beside its row in `connections`: see gateway/store/sources.py. `due_at` is when its
# repositories are listed next; null if it has no identity.
sources = Table(
    "sources",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("scope", Text, nullable=False),
    Column("rules", JSON, nullable=False),
    Column("due_at", Instant, index=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("listed_at", Instant),
    Column("reason", Text),
)

# The repositories of a source, by the provider's ids: see gateway/store/source_repositories.py.
source_repositories = Table(
    "source_repositories",
    metadata,
    Column("source", ForeignKey("sources.connection"), primary_key=True),
    Column("repository", Text, primary_key=True),
    Column("full_name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("default_branch", Text),
    Column("seen_at", Instant, nullable=False),
    Column("due_at", Instant, index=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("is_listed", Boolean, nullable=False, server_default=text("false")),
    # A repository that is seen again is upserted by the columns before these.
    Column("state", Text, nullable=False, server_default=text("'due'")),
    Column("connection", ForeignKey("connections.id"), index=True),
    Column("reason", Text),
    Column("lacks_manifest", Boolean, nullable=False, server_default=text("false")),
    Column("is_adopted", Boolean, nullable=False, server_default=text("false")),
)

# Deliveries to a source about a repository without a connection, until the rules have decided.
waiting_deliveries = Table(
    "waiting_deliveries",
    metadata,
    Column("delivery", ForeignKey("deliveries.id"), primary_key=True),
    Column("source", ForeignKey("sources.connection"), nullable=False),
    Column("repository", Text, nullable=False),
    Column("event", JSON, nullable=False),
    Index("ix_waiting_deliveries_source_repository", "source", "repository"),
)

# When the fetch of a connection's platform is due, and the outcome of the last fetch.
platform_fetches = Table(
    "platform_fetches",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("due_at", Instant, index=True),
    Column("attempts", Integer, nullable=False),
    Column("fetched_at", Instant),
    Column("reason", Text),
)

packages = Table(
    "packages",
    metadata,
    Column("id", Text, primary_key=True),
    Column("format", Text, primary_key=True),
    Column("object", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("tar_size", BigInteger, nullable=False),
    Column("files", Integer, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("made_at", Instant, nullable=False),
    Column("last_used_at", Instant, nullable=False),
    Index("ix_packages_last_used_at", "last_used_at"),
)

# The commit and the rules from which each package was built.
package_builds = Table(
    "package_builds",
    metadata,
    Column("connection", ForeignKey("connections.id"), primary_key=True),
    Column("commit", Text, primary_key=True),
    Column("format", Text, primary_key=True),
    Column("rules", Text, nullable=False),
    Column("package", Text, nullable=False),
    Column("submodules", JSON, nullable=False),
    ForeignKeyConstraint(["package", "format"], ["packages.id", "packages.format"]),
    Index("ix_package_builds_package_format", "package", "format"),
)
