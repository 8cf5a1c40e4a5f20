"""The span of a webhook's request: the first of its delivery's trace."""

import time
from datetime import datetime

import structlog
from opentelemetry.trace import SpanKind

from gateway.store.accept import NewDelivery, Receipt
from gateway.tracing import attributes, spans
from gateway.tracing.spans import Event, SpanIds

# Anybody can send what no connection receives.
_NOT_RECORDED = frozenset({404, 405})
_FIRST_SERVER_ERROR = 500


class RequestSpan:
    """The span of a request from its beginning on. The log lines of the request have its ids."""

    def __init__(self) -> None:
        """Begin in a trace of its own: which delivery it is, if any, is known once it is verified."""
        self._started_ns = time.time_ns()
        self._ids = SpanIds.unrelated()
        self._found: attributes.Attributes = {}
        self._events: list[Event] = []
        self._name()

    def belongs_to(self, delivery: NewDelivery) -> None:
        """Continue in the trace of a delivery, which is stored now."""
        self._ids = SpanIds.root(delivery.id)
        # An event, because a span would cost a fifth of the request.
        self._events.append(Event("verified", time.time_ns()))
        self._name()

    def stored(
        self, delivery: NewDelivery, receipt: Receipt, *, provider: str, pushed_at: datetime | None
    ) -> None:
        """Add what is known of a stored delivery, and when the provider took the push, if it says so."""
        first = delivery.updates[0] if delivery.updates else None
        self._found = {
            **attributes.of_delivery(
                delivery.id,
                provider=provider,
                event=delivery.event,
                source=delivery.source,
                verdict=receipt.verdict,
            ),
            **attributes.of_full_name((delivery.repository or {}).get("full_name")),
            **(
                {}
                if first is None
                else attributes.of_ref(
                    kind=first.kind,
                    name=first.name,
                    after=first.after,
                    pull_request=(delivery.detail or {}).get("pull_request"),
                )
            ),
        }
        if pushed_at is not None:
            self._events.append(Event("push", int(pushed_at.timestamp() * 1e9)))

    def end(self, *, method: str, status: int) -> None:
        """Record the span of a request that was answered."""
        if status in _NOT_RECORDED:
            return
        spans.record(
            f"POST {attributes.WEBHOOK_ROUTE}",
            self._ids,
            started_ns=self._started_ns,
            kind=SpanKind.SERVER,
            attributes={**attributes.of_request(method=method, status=status), **self._found},
            events=self._events,
            error=str(status) if status >= _FIRST_SERVER_ERROR else None,
        )

    def _name(self) -> None:
        """Name the span in the log lines that follow: each request has a context of its own."""
        structlog.contextvars.bind_contextvars(**spans.ids_in_logs(self._ids, is_recorded=True))
