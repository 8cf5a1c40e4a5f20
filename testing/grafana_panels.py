"""The panels of the Grafana dashboard, by its rows: what comes in, what becomes of it, what that needs."""

from collections.abc import Mapping, Sequence
from functools import partial

from testing.grafana import Panel, most, named, quantile, quantiles, rate, series, share, total

_HOOKS = "/hooks/.*"
_stat = partial(Panel, kind="stat", width=4)

OVERVIEW = [
    _stat(
        "Deliveries",
        "Deliveries that were stored, each second.",
        "reqps",
        [rate("pushgate_deliveries_total")],
    ),
    _stat(
        "Refused",
        "Webhook requests that were refused, each second. The row of the webhook endpoint has the reasons.",
        "reqps",
        [rate("pushgate_refused_total")],
        steps=[(0.05, "yellow"), (1, "red")],
    ),
    _stat(
        "Oldest pending push",
        "How long the oldest push has waited to be planned. Alert: PushgatePushesWait.",
        "s",
        [most("pushgate_oldest_pending_seconds")],
        steps=[(60, "yellow"), (900, "red")],
    ),
    _stat(
        "Oldest request",
        "How long the oldest execution request has waited for the broker. Alert: PushgateRequestsWait.",
        "s",
        [most("pushgate_oldest_unpublished_request_seconds")],
        steps=[(60, "yellow"), (300, "red")],
    ),
    _stat(
        "Webhook to plan, p95",
        "Nineteen pushes in twenty were settled within this time. Alert: PushgateSlow.",
        "s",
        [quantile("pushgate_push_seconds")],
        steps=[(15, "yellow"), (60, "red")],
    ),
    _stat(
        "Workers",
        "Processes that fetch and plan, by their heartbeats. Alert: PushgateNoWorker.",
        "short",
        [most("pushgate_worker_processes_alive")],
    ),
    _stat(
        "Broker",
        "Whether a process is connected, for requests and for events. Alert: PushgateBrokerDisconnected.",
        "short",
        [most("pushgate_broker_connected", "what")],
        width=6,
        words={"0": "not connected", "1": "connected"},
    ),
    _stat(
        "Can fetch",
        "0 where a disk is full or not writable. Alert: PushgateCannotFetch.",
        "short",
        [(f"min ({series('pushgate_fetch_disk_writable')})", "disk")],
        width=6,
        words={"0": "no", "1": "yes"},
    ),
    _stat(
        "Silent connections",
        "Connections whose webhooks do not arrive. Alert: PushgateConnectionsSilent.",
        "short",
        [most("pushgate_connections_silent")],
        width=6,
        steps=[(1, "red")],
    ),
    _stat(
        "Versions",
        "The processes of each version and role.",
        "short",
        [(f"count by (version, role) ({series('pushgate_build_info')})", "{{version}} {{role}}")],
        width=6,
    ),
]

ENDPOINT = [
    Panel(
        "Deliveries by verdict", "Of all providers.", "reqps", [rate("pushgate_deliveries_total", "verdict")]
    ),
    Panel(
        "Deliveries by provider",
        "With any verdict.",
        "reqps",
        [rate("pushgate_deliveries_total", "provider")],
    ),
    Panel(
        "Refused by reason",
        "The status is the answer that the provider got; docs/troubleshooting.md says what to do.",
        "reqps",
        [rate("pushgate_refused_total", "status, reason")],
    ),
    Panel(
        "Answer to webhooks",
        "Time until the answer began. Providers give up after 10 seconds.",
        "s",
        quantiles("pushgate_http_request_seconds", route=_HOOKS),
        steps=[(5, "red")],
    ),
    Panel(
        "Storing a delivery",
        "The stage accept: the wait for a transaction, and the transaction.",
        "s",
        quantiles("pushgate_stage_seconds", stage="accept"),
    ),
    Panel(
        "Provider lag, p95",
        "From the push to the arrival of its webhook; GitHub, Azure DevOps and Bitbucket Server say when.",
        "s",
        [quantile("pushgate_provider_lag_seconds", by="provider")],
    ),
    Panel(
        "HTTP requests by status",
        "Of webhooks, the API and the dashboard.",
        "reqps",
        [rate("pushgate_http_request_seconds_count", "status")],
    ),
    Panel(
        "Slowest routes, p95",
        "The ten slowest routes.",
        "s",
        [(f"topk(10, {quantile('pushgate_http_request_seconds', by='route')[0]})", "{{route}}")],
    ),
    Panel(
        "HTTP connections",
        "Of clients, against the limit; at the limit the longest silent connection is closed.",
        "short",
        [
            named(total("pushgate_http_connections"), "open"),
            named(total("pushgate_http_connections_limit"), "limit"),
        ],
    ),
    Panel(
        "Failed requests",
        "Requests that Pushgate answered with 5xx, by route.",
        "reqps",
        [rate("pushgate_http_request_seconds_count", "route", status="5xx")],
    ),
]

FETCH = [
    Panel(
        "Stages, p95",
        "The stages of a push follow each other: accept, queue, fetch, plan, publish.",
        "s",
        [quantile("pushgate_stage_seconds", by="stage")],
    ),
    Panel(
        "Webhook to plan",
        "Until a ref update was settled.",
        "s",
        quantiles("pushgate_push_seconds"),
        steps=[(60, "red")],
    ),
    Panel(
        "Queue",
        "Connections that wait for a worker, are worked on, or are postponed after a failure.",
        "short",
        [most("pushgate_queue_connections", "state")],
    ),
    Panel(
        "Pending pushes",
        "Ref updates that are not settled.",
        "short",
        [named(most("pushgate_pending_ref_updates"), "pending")],
    ),
    Panel("Settled", "How ref updates ended.", "ops", [rate("pushgate_ref_updates_settled_total", "state")]),
    Panel(
        "Postponed by reason",
        "Tries that failed and are repeated.",
        "ops",
        [rate("pushgate_ref_updates_postponed_total", "host, reason")],
    ),
    Panel(
        "Fetch by host, p95",
        "Fetches of a connection's pushes, also those that failed.",
        "s",
        [quantile("pushgate_fetch_seconds", by="host")],
    ),
    Panel(
        "Failed fetches",
        "By host and reason; docs/observability.md lists the reasons.",
        "ops",
        [rate("pushgate_fetch_failures_total", "host, reason")],
    ),
    Panel(
        "Received from git hosts", "Bytes of objects.", "Bps", [rate("pushgate_fetched_bytes_total", "host")]
    ),
    Panel(
        "Claims",
        "Connections that workers have claimed; claims that have expired, because a worker died or hung.",
        "ops",
        [
            named(rate("pushgate_claims_total"), "claimed"),
            named(rate("pushgate_leases_expired_total"), "expired"),
            named(rate("pushgate_leases_lost_total"), "lost"),
        ],
    ),
    Panel(
        "Reconciliations",
        "Comparisons of remotes with what was delivered, by outcome.",
        "ops",
        [rate("pushgate_reconciliation_seconds_count", "outcome")],
    ),
    Panel(
        "Reconciliation lag",
        "For how long a due reconciliation has waited. Alert: PushgateReconciliationLate.",
        "s",
        [named(most("pushgate_reconciliation_lag_seconds"), "lag")],
        steps=[(3600, "red")],
    ),
]

PUBLISH = [
    Panel(
        "Published",
        "Messages that the broker confirmed.",
        "ops",
        [
            named(rate("pushgate_requests_published_total"), "requests"),
            named(rate("pushgate_events_published_total"), "events"),
        ],
    ),
    Panel(
        "Plan to confirm",
        "The stage publish.",
        "s",
        quantiles("pushgate_stage_seconds", stage="publish"),
    ),
    Panel(
        "Outbox",
        "Messages that wait for the broker.",
        "short",
        [
            named(most("pushgate_pending_requests"), "requests"),
            named(most("pushgate_pending_events"), "events"),
        ],
    ),
    Panel(
        "Oldest message",
        "Age of the oldest message that waits. Alerts: PushgateRequestsWait, PushgateEventsWait.",
        "s",
        [
            named(most("pushgate_oldest_unpublished_request_seconds"), "request"),
            named(most("pushgate_oldest_unpublished_event_seconds"), "event"),
        ],
        steps=[(300, "red")],
    ),
    Panel(
        "Broker",
        "Processes that are connected, relays that lead, and failures to reach the broker.",
        "short",
        [
            named(total("pushgate_broker_connected", "what"), "connected: {{what}}"),
            named(total("pushgate_relays_leading", "what"), "leading: {{what}}"),
            named(rate("pushgate_broker_failures_total", "what"), "failures/s: {{what}}"),
        ],
    ),
    Panel(
        "Undeliverable",
        "Messages that the broker refused for good. Alert: PushgateMessagesUndeliverable.",
        "ops",
        [rate("pushgate_messages_undeliverable_total", "what")],
    ),
]

PROVIDERS = [
    Panel(
        "API requests",
        "Requests to providers' APIs, by host and class of the answer.",
        "reqps",
        [rate("pushgate_provider_request_seconds_count", "host, status")],
    ),
    Panel(
        "API requests, p95",
        "Until the answer was read.",
        "s",
        [quantile("pushgate_provider_request_seconds", by="host")],
    ),
    Panel(
        "Rate limit",
        "Requests that a host still allows, according to its last answer, of whichever identity.",
        "short",
        [
            (f"min by (host) ({series('pushgate_provider_rate_limit_remaining')})", "{{host}}"),
            named(rate("pushgate_provider_rate_limited_total", "host"), "limited/s: {{host}}"),
        ],
    ),
    Panel(
        "Verdicts on commits",
        "Sent, postponed, or refused for good. Alert: PushgateVerdictsRefused.",
        "ops",
        [rate("pushgate_statuses_total", "provider, outcome")],
    ),
    Panel(
        "Notifications",
        "Sent, postponed, or refused for good. Alert: PushgateNotificationsRefused.",
        "ops",
        [rate("pushgate_notifications_total", "kind, outcome")],
    ),
    Panel(
        "Webhooks at providers",
        "By the last check, and repairs. Alert: PushgateWebhooksNotInOrder.",
        "short",
        [most("pushgate_webhooks", "state"), named(rate("pushgate_webhook_repairs_total"), "repairs/s")],
    ),
    Panel(
        "Redeliveries",
        "Failed deliveries that were requested again, and those that were given up.",
        "ops",
        [
            named(rate("pushgate_redeliveries_requested_total", "provider"), "requested: {{provider}}"),
            named(rate("pushgate_redeliveries_failed_total", "provider"), "given up: {{provider}}"),
        ],
    ),
    Panel(
        "First identity expires in",
        "Empty if none does. Alert: PushgateIdentityExpires.",
        "s",
        [(f"min ({series('pushgate_identity_expiry_timestamp_seconds')} < +Inf) - time()", "first identity")],
    ),
]

STORE = [
    Panel(
        "Statements",
        "Of both SQLite and PostgreSQL.",
        "s",
        quantiles("pushgate_store_statement_seconds"),
    ),
    Panel(
        "Commits",
        "Until the changes are on disk.",
        "s",
        quantiles("pushgate_store_commit_seconds"),
    ),
    Panel(
        "Wait for a thread",
        "A process has few threads for the store: if this grows, they are all busy.",
        "s",
        quantiles("pushgate_store_wait_seconds"),
    ),
    Panel(
        "Rate",
        "Statements and commits.",
        "ops",
        [
            named(rate("pushgate_store_statement_seconds_count"), "statements"),
            named(rate("pushgate_store_commit_seconds_count"), "commits"),
        ],
        width=12,
    ),
    Panel(
        "Connections",
        "To the database, of all processes.",
        "short",
        [total("pushgate_store_connections", "pool, state")],
        width=12,
    ),
]

RESOURCES = [
    Panel(
        "CPU",
        "Cores that each pod uses, without git.",
        "short",
        [rate("process_cpu_seconds_total", "pod, instance")],
    ),
    Panel(
        "Memory",
        "Resident memory of each pod, without git.",
        "bytes",
        [total("process_resident_memory_bytes", "pod, instance")],
    ),
    Panel(
        "Open files",
        "Share of the limit.",
        "percentunit",
        [share("max", "process_open_fds", "process_max_fds", "pod, instance")],
        steps=[(0.8, "red")],
    ),
    Panel(
        "Free disk",
        "Of the data folder and of the mirrors. Alert: PushgateDiskFills.",
        "percentunit",
        [share("min", "pushgate_disk_free_bytes", "pushgate_disk_size_bytes", "folder, pod, instance")],
    ),
    Panel(
        "Mirrors",
        "Their size, against the budget of each pod.",
        "bytes",
        [
            named(most("pushgate_mirror_bytes", "pod, instance"), "size: {{pod}} {{instance}}"),
            named(most("pushgate_mirror_budget_bytes"), "budget"),
        ],
    ),
    Panel(
        "Evicted mirrors",
        "Removed to keep the budget: the next push to their connection clones them again.",
        "Bps",
        [named(rate("pushgate_mirrors_evicted_bytes_total", "pod, instance"), "{{pod}} {{instance}}")],
    ),
    Panel(
        "Number of mirrors",
        "Of each pod, and how many were evicted.",
        "short",
        [
            named(most("pushgate_mirrors", "pod, instance"), "{{pod}} {{instance}}"),
            named(rate("pushgate_mirrors_evicted_total"), "evicted/s"),
        ],
    ),
    Panel(
        "Processes",
        "Of each pod with several (--workers).",
        "short",
        [most("pushgate_processes", "pod, instance")],
    ),
    Panel(
        "Processes that died",
        "Or hung; they were started again. Alert: PushgateProcessesDie.",
        "ops",
        [rate("pushgate_processes_died_total", "reason")],
    ),
]

ROWS: Mapping[str, Sequence[Panel]] = {
    "Overview": OVERVIEW,
    "Webhook endpoint and API": ENDPOINT,
    "Fetch and plan": FETCH,
    "Publish": PUBLISH,
    "Providers": PROVIDERS,
    "Store": STORE,
    "Resources": RESOURCES,
}
"""The panels of each row, in the order of the dashboard."""
