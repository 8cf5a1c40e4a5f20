"""Metrics for Prometheus. Labels have few values, and contain no secrets and no names.

Where several processes share a port, Prometheus reaches any of them, and gets the metrics of all:
https://prometheus.github.io/client_python/multiprocess/
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

# The library's variable for the folder of shared counters; the library reads it when it is imported.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"

REGISTRY = CollectorRegistry()

DELIVERIES = Counter(
    "pushgate_deliveries", "Recorded deliveries.", ["provider", "verdict"], registry=REGISTRY
)
REFUSED = Counter(
    "pushgate_refused",
    "Webhook requests that were refused.",
    ["status", "reason"],
    registry=REGISTRY,
)
SETTLED = Counter(
    "pushgate_ref_updates_settled", "Ref updates that are settled.", ["state"], registry=REGISTRY
)
PUBLISHED = Counter(
    "pushgate_requests_published", "Execution requests that the broker confirmed.", registry=REGISTRY
)
EVENTS_PUBLISHED = Counter(
    "pushgate_events_published", "Events that the broker confirmed.", registry=REGISTRY
)
UNDELIVERABLE = Counter(
    "pushgate_messages_undeliverable",
    "Messages that the broker refused permanently.",
    ["what"],
    registry=REGISTRY,
)
STATUSES = Counter(
    "pushgate_statuses",
    "Verdicts on commits by provider and outcome: sent, postponed, or refused for good.",
    ["provider", "outcome"],
    registry=REGISTRY,
)
NOTIFICATIONS = Counter(
    "pushgate_notifications",
    "Messages to notification channels by kind and outcome: sent, postponed, or refused for good.",
    ["kind", "outcome"],
    registry=REGISTRY,
)
WEBHOOK_REPAIRS = Counter(
    "pushgate_webhook_repairs",
    "Registered webhooks that differed from what is needed, and were repaired.",
    registry=REGISTRY,
)
REDELIVERIES_REQUESTED = Counter(
    "pushgate_redeliveries_requested",
    "Failed deliveries that providers were requested to send again.",
    ["provider"],
    registry=REGISTRY,
)
REDELIVERIES_FAILED = Counter(
    "pushgate_redeliveries_failed",
    "Deliveries that were given up because they failed each time they were requested.",
    ["provider"],
    registry=REGISTRY,
)
STAGE = Histogram(
    "pushgate_stage_seconds",
    "Duration of a stage: accepting a delivery, fetching and planning a batch, from the webhook to the plan,"
    " and from the plan to the broker's confirm.",
    ["stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)
# Gauges of the whole store, read at each scrape: the latest value is right, whichever process read it.
PENDING_UPDATES = Gauge(
    "pushgate_pending_ref_updates",
    "Pending ref updates.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
OLDEST_PENDING = Gauge(
    "pushgate_oldest_pending_seconds",
    "Age of the oldest pending ref update.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
PENDING_REQUESTS = Gauge(
    "pushgate_pending_requests",
    "Execution requests that the broker has not confirmed.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
OLDEST_REQUEST = Gauge(
    "pushgate_oldest_unpublished_request_seconds",
    "Age of the oldest unpublished execution request; 0 without a broker.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
OLDEST_EVENT = Gauge(
    "pushgate_oldest_unpublished_event_seconds",
    "Age of the oldest unpublished event; 0 without a broker.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
IDENTITY_EXPIRY = Gauge(
    "pushgate_identity_expiry_timestamp_seconds",
    "When the first identity expires, as Unix time; +Inf if none does.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
WEBHOOKS = Gauge(
    "pushgate_webhooks",
    "Webhooks that Pushgate has registered at providers, by the result of the last check.",
    ["state"],
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
SILENT = Gauge(
    "pushgate_connections_silent",
    "Connections of which a push was recovered whose webhook never arrived, and none has arrived since.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
# Labelled, so that a process without a relay does not report a lost connection.
BROKER_CONNECTED = Gauge(
    "pushgate_broker_connected",
    "Whether this process is connected to the broker, for requests and for events.",
    ["what"],
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
PENDING_EVENTS = Gauge(
    "pushgate_pending_events",
    "Events that the broker has not confirmed.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
SCRATCH_WRITABLE = Gauge(
    "pushgate_fetch_disk_writable",
    "0 if this process cannot fetch because its disk is full or not writable, else 1.",
    registry=REGISTRY,
    multiprocess_mode="livemin",
)


def exposition() -> bytes:
    """Return all metrics in Prometheus's text format; reads files where processes share counters."""
    if _SHARED not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
