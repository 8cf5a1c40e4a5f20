"""Metrics for Prometheus. Labels have few values, and contain no secret, path, repository or person.

Hosts are the only names among them, and only the first ones are: see `Hosts`. docs/observability.md lists all
metrics; `make documents` writes it. Where several processes share a port, each one reports what all of them
have counted: see `gateway.api.exposition`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# When a counter began: nobody uses it, and it would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()

Stage = Literal["accept", "queue", "fetch", "plan", "publish"]
"""The stages of a push, one after the other: none overlaps the next."""

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (*_SHORT, 30, 60, 300)
# Fewer, because each series of a host has all of them.
_OF_HOST = (0.1, 0.25, 1, 2.5, 10, 60, 300, 1800)
_OF_ROUTE = (0.005, 0.025, 0.1, 0.25, 1, 2.5, 10)
_MAX_HOSTS = 30
_OTHER = "other"

# How the values of several processes become one.
_Mode = Literal["mostrecent", "livesum", "livemin", "livemax"]


class Hosts:
    """The values of a label `host`: the first hosts by their names, all others as `other`."""

    def __init__(self, most: int = _MAX_HOSTS) -> None:
        """Begin without hosts."""
        self._most = most
        self._known: set[str] = set()

    def label(self, host: str) -> str:
        """Return the value for a host."""
        if host not in self._known:
            if len(self._known) >= self._most:
                return _OTHER
            self._known.add(host)
        return host


GIT_HOSTS = Hosts()
"""The hosts that repositories are fetched from."""

API_HOSTS = Hosts()
"""The hosts of providers' APIs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A metric as the reference in docs/ shows it: its name in queries, its type, labels and help text."""

    name: str
    type: str
    labels: Sequence[str]
    text: str


DESCRIBED: list[Described] = []
"""All metrics of this module."""


def _described(kind: str, name: str, text: str, labels: Sequence[str]) -> None:
    shown = f"{name}_total" if kind == "counter" else name
    DESCRIBED.append(Described(name=shown, type=kind, labels=labels, text=text))


def _counter(name: str, text: str, *labels: str) -> Counter:
    _described("counter", name, text, labels)
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str, mode: _Mode = "mostrecent") -> Gauge:
    _described("gauge", name, text, labels)
    return Gauge(name, text, labels, registry=REGISTRY, multiprocess_mode=mode)


def _store_gauge(name: str, text: str, *labels: str) -> Gauge:
    # The latest value is right, whichever process has read it.
    return _gauge(name, f"{text} Of the whole store.", *labels)


def _histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = _SHORT) -> Histogram:
    _described("histogram", name, text, labels)
    return Histogram(name, text, labels, registry=REGISTRY, buckets=buckets)


# HTTP
HTTP_SECONDS = _histogram(
    "pushgate_http_request_seconds",
    "Time until the answer to an HTTP request began, by the template of its route and the class of its"
    " status.",
    "method",
    "route",
    "status",
    buckets=_OF_ROUTE,
)
HTTP_CONNECTIONS = _gauge("pushgate_http_connections", "Open HTTP connections of clients.", mode="livesum")
HTTP_CONNECTIONS_LIMIT = _gauge(
    "pushgate_http_connections_limit", "How many HTTP connections may be open.", mode="livesum"
)

# The webhook endpoint
DELIVERIES = _counter("pushgate_deliveries", "Deliveries that were stored.", "provider", "verdict")
REFUSED = _counter("pushgate_refused", "Webhook requests that were refused.", "status", "reason")
PROVIDER_LAG = _histogram(
    "pushgate_provider_lag_seconds",
    "Time from the push to the arrival of its webhook, where the payload has the time of the push.",
    "provider",
    buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600),
)

# The way of a push
STAGE = _histogram(
    "pushgate_stage_seconds",
    "Duration of a stage: `accept` a delivery; `queue`, from the webhook to the start of the fetch; `fetch`"
    " and `plan` of a batch; `publish`, from the plan to the broker's confirm.",
    "stage",
    buckets=_LONG,
)
PUSH_SECONDS = _histogram(
    "pushgate_push_seconds",
    "Time from the webhook of a push until its ref update was settled.",
    buckets=_LONG,
)
SETTLED = _counter("pushgate_ref_updates_settled", "Ref updates that are settled.", "state")
POSTPONED = _counter(
    "pushgate_ref_updates_postponed",
    "Tries of ref updates that failed and are repeated.",
    "host",
    "reason",
)
PENDING_UPDATES = _store_gauge("pushgate_pending_ref_updates", "Pending ref updates.")
OLDEST_PENDING = _store_gauge("pushgate_oldest_pending_seconds", "Age of the oldest pending ref update.")
QUEUE = _store_gauge(
    "pushgate_queue_connections",
    "Connections with work: `waiting` for a worker, `held` by one, or `postponed` after a failure.",
    "state",
)
CLAIMED = _counter("pushgate_claims", "Connections that workers have claimed.")
LEASES_EXPIRED = _counter(
    "pushgate_leases_expired",
    "Claims of processes that died or hung; their connections are queued again.",
)
LEASES_LOST = _counter(
    "pushgate_leases_lost", "Claims that expired during the work: another process has taken over."
)
WORKERS_ALIVE = _store_gauge(
    "pushgate_worker_processes_alive", "Processes with the role worker or all whose heartbeat is recent."
)

# Fetches
FETCH_SECONDS = _histogram(
    "pushgate_fetch_seconds",
    "Duration of a fetch of a connection's pushes, also of one that failed.",
    "host",
    buckets=_OF_HOST,
)
FETCH_FAILURES = _counter("pushgate_fetch_failures", "Fetches that failed.", "host", "reason")
FETCHED_BYTES = _counter("pushgate_fetched_bytes", "Bytes of objects that git has received.", "host")
SCRATCH_WRITABLE = _gauge(
    "pushgate_fetch_disk_writable",
    "0 if this process cannot fetch because its disk is full or not writable, else 1.",
    mode="livemin",
)
MIRRORS = _gauge("pushgate_mirrors", "Mirrors on the disk of this process, counted every five minutes.")
MIRROR_BYTES = _gauge(
    "pushgate_mirror_bytes", "Size of all mirrors on the disk of this process, measured every five minutes."
)
MIRROR_BUDGET = _gauge("pushgate_mirror_budget_bytes", "What all mirrors may occupy.")
MIRRORS_EVICTED = _counter("pushgate_mirrors_evicted", "Mirrors that were removed to keep the budget.")
EVICTED_BYTES = _counter(
    "pushgate_mirrors_evicted_bytes", "Size of the mirrors that were removed to keep the budget."
)

# Reconciliation
RECONCILIATION_SECONDS = _histogram(
    "pushgate_reconciliation_seconds",
    "Duration of a reconciliation: `agrees`, `recovered` missed pushes, or `failed`.",
    "outcome",
    buckets=_OF_HOST,
)
RECONCILIATION_LAG = _store_gauge(
    "pushgate_reconciliation_lag_seconds", "For how long the reconciliation that is due has waited."
)
SILENT = _store_gauge(
    "pushgate_connections_silent",
    "Connections of which a push was recovered whose webhook never arrived, and none has arrived since.",
)

# Publishing
PUBLISHED = _counter("pushgate_requests_published", "Execution requests that the broker confirmed.")
EVENTS_PUBLISHED = _counter("pushgate_events_published", "Events that the broker confirmed.")
UNDELIVERABLE = _counter(
    "pushgate_messages_undeliverable", "Messages that the broker refused permanently.", "what"
)
PENDING_REQUESTS = _store_gauge(
    "pushgate_pending_requests", "Execution requests that the broker has not confirmed."
)
PENDING_EVENTS = _store_gauge("pushgate_pending_events", "Events that the broker has not confirmed.")
OLDEST_REQUEST = _store_gauge(
    "pushgate_oldest_unpublished_request_seconds",
    "Age of the oldest unpublished execution request; 0 without a broker.",
)
OLDEST_EVENT = _store_gauge(
    "pushgate_oldest_unpublished_event_seconds", "Age of the oldest unpublished event; 0 without a broker."
)
# Labelled, so that a process without a relay does not report a lost connection.
BROKER_CONNECTED = _gauge(
    "pushgate_broker_connected",
    "Whether this process is connected to the broker, for requests and for events.",
    "what",
    mode="livemax",
)
BROKER_FAILURES = _counter(
    "pushgate_broker_failures",
    "Failed attempts to reach the broker, and lost connections.",
    "what",
)
RELAYS_LEADING = _gauge(
    "pushgate_relays_leading",
    "Relays of this process that lead, and so publish: one for events, and one for each lane of requests.",
    "what",
    mode="livesum",
)

# Providers
STATUSES = _counter(
    "pushgate_statuses",
    "Verdicts on commits by provider and outcome: sent, postponed, or refused for good.",
    "provider",
    "outcome",
)
NOTIFICATIONS = _counter(
    "pushgate_notifications",
    "Messages to notification channels by kind and outcome: sent, postponed, or refused for good.",
    "kind",
    "outcome",
)
WEBHOOKS = _store_gauge(
    "pushgate_webhooks",
    "Webhooks that Pushgate has registered at providers, by the result of the last check: `ok`, `differs`"
    " from what is needed, `failing` to be checked or to deliver, `unknown` if not checked for a day.",
    "state",
)
WEBHOOK_REPAIRS = _counter(
    "pushgate_webhook_repairs", "Registered webhooks that differed from what is needed, and were repaired."
)
REDELIVERIES_REQUESTED = _counter(
    "pushgate_redeliveries_requested",
    "Failed deliveries that providers were requested to send again.",
    "provider",
)
REDELIVERIES_FAILED = _counter(
    "pushgate_redeliveries_failed",
    "Deliveries that were given up because they failed each time they were requested.",
    "provider",
)
IDENTITY_EXPIRY = _store_gauge(
    "pushgate_identity_expiry_timestamp_seconds",
    "When the first identity expires, as Unix time; +Inf if none does.",
)
API_SECONDS = _histogram(
    "pushgate_provider_request_seconds",
    "Duration of a request to a provider's API, by the class of the answer: `none` if there was none.",
    "host",
    "status",
    buckets=_OF_HOST,
)
RATE_LIMITED = _counter(
    "pushgate_provider_rate_limited",
    "Requests that an API refused because there were too many.",
    "host",
)
RATE_LIMIT_REMAINING = _gauge(
    "pushgate_provider_rate_limit_remaining",
    "Requests that a provider's API still allows, according to its last answer.",
    "host",
)

# The store
STATEMENT_SECONDS = _histogram(
    "pushgate_store_statement_seconds", "Duration of a statement of the database.", buckets=_SHORT
)
COMMIT_SECONDS = _histogram(
    "pushgate_store_commit_seconds",
    "Duration of a commit, until the changes are on disk.",
    buckets=_SHORT,
)
STORE_WAIT_SECONDS = _histogram(
    "pushgate_store_wait_seconds", "Time that a transaction waited for a thread of the store.", buckets=_SHORT
)
STORE_CONNECTIONS = _gauge(
    "pushgate_store_connections",
    "Open connections to the database, `in_use` or `idle`, of the threads and of the event loop.",
    "pool",
    "state",
    mode="livesum",
)

# The process and its machine
BUILD_INFO = _gauge(
    "pushgate_build_info",
    "1, with the versions of Pushgate, Python and git, the role, and the kind of the database.",
    "version",
    "python",
    "git",
    "role",
    "database",
)
PROCESSES = _gauge("pushgate_processes", "Processes of this gateway that run.")
PROCESSES_DIED = _counter(
    "pushgate_processes_died",
    "Processes that died or hung, and were started again.",
    "reason",
)
DISK_FREE = _gauge(
    "pushgate_disk_free_bytes", "Free space of the disk with the data folder, or with the mirrors.", "folder"
)
DISK_SIZE = _gauge(
    "pushgate_disk_size_bytes", "Size of the disk with the data folder, or with the mirrors.", "folder"
)


# Looked up once: the first one is on the hot path.
_STAGES = {name: STAGE.labels(name) for name in get_args(Stage)}


def stage(name: Stage, seconds: float) -> None:
    """Record how long a stage took."""
    _STAGES[name].observe(seconds)
