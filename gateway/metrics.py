"""What is counted, for Prometheus. Labels have few values, and none is anybody's secret or name.

Where several processes share a port, Prometheus reaches any one of them, which tells what all have counted:
https://prometheus.github.io/client_python/multiprocess/
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

# The library's: the folder in which processes count together. It is read when the library is imported.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"

REGISTRY = CollectorRegistry()

DELIVERIES = Counter(
    "pushgate_deliveries", "Deliveries that were recorded.", ["provider", "verdict"], registry=REGISTRY
)
REFUSED = Counter(
    "pushgate_refused",
    "Requests at the door that were not recorded.",
    ["status", "reason"],
    registry=REGISTRY,
)
SETTLED = Counter("pushgate_ref_updates_settled", "Ref updates that ended.", ["state"], registry=REGISTRY)
PUBLISHED = Counter(
    "pushgate_requests_published", "Requests that the broker has confirmed.", registry=REGISTRY
)
EVENTS_PUBLISHED = Counter(
    "pushgate_events_published", "Events that the broker has confirmed.", registry=REGISTRY
)
UNDELIVERABLE = Counter(
    "pushgate_messages_undeliverable",
    "Messages that the broker refuses for good.",
    ["what"],
    registry=REGISTRY,
)
STAGE = Histogram(
    "pushgate_stage_seconds",
    "How long a stage took: to accept a delivery, to fetch and plan a batch, and all from the webhook to the"
    " plan and from the plan to the broker's confirm.",
    ["stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)
# Of the whole store, looked up when somebody asks: what was looked up last is true, whichever process did.
PENDING_UPDATES = Gauge(
    "pushgate_pending_ref_updates",
    "Ref updates that wait.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
OLDEST_PENDING = Gauge(
    "pushgate_oldest_pending_seconds",
    "The age of the ref update that has waited longest.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
PENDING_REQUESTS = Gauge(
    "pushgate_pending_requests",
    "Requests that the broker does not have yet.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
OLDEST_REQUEST = Gauge(
    "pushgate_oldest_unpublished_request_seconds",
    "The age of the request that has waited longest for the broker; 0 without a broker.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
OLDEST_EVENT = Gauge(
    "pushgate_oldest_unpublished_event_seconds",
    "The age of the event that has waited longest for the broker; 0 without a broker.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
# Labelled, so that a process which relays nothing does not show one that is cut off.
BROKER_CONNECTED = Gauge(
    "pushgate_broker_connected",
    "Whether this process is connected to the broker, for requests and for events.",
    ["what"],
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
PENDING_EVENTS = Gauge(
    "pushgate_pending_events",
    "Events that the broker does not have yet.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
SCRATCH_WRITABLE = Gauge(
    "pushgate_fetch_disk_writable",
    "0 where this process can fetch nothing because there is no room or no right to write, else 1.",
    registry=REGISTRY,
    multiprocess_mode="min",
)


def exposition() -> bytes:
    """Return everything in Prometheus's text form; reads files where processes count together."""
    if _SHARED not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
